//! `millrace broker list`

use proto::control::v1::{Broker, BrokersRequest, PartitionProblem, bridge_client::BridgeClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, left, right},
};

#[derive(Serialize)]
struct Report {
    cluster_id: String,
    under_replicated: u32,
    under_min_isr: u32,
    offline: u32,
    not_preferred: u32,
    brokers: Vec<View>,
    /// The worst first.
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    topic: String,
    partition: i32,
    kind: String,
    /// `null` where there is none.
    leader: Option<i32>,
    replicas: Vec<i32>,
    isr: Vec<i32>,
    min_isr: u32,
}

impl From<PartitionProblem> for Problem {
    fn from(problem: PartitionProblem) -> Self {
        let PartitionProblem { topic, partition, kind, leader, replicas, isr, min_isr } = problem;
        Self { topic, partition, kind, leader: (leader >= 0).then_some(leader), replicas, isr, min_isr }
    }
}

#[derive(Serialize)]
struct View {
    id: i32,
    host: String,
    port: i32,
    controller: bool,
    partitions: u32,
    leaders: u32,
    /// `null` where the bridge's client cannot ask for it.
    log_bytes: Option<i64>,
    /// Partitions that it should lead.
    preferred: u32,
    /// Share of those that others lead, 0 to 1.
    leader_imbalance: f64,
}

impl From<Broker> for View {
    fn from(broker: Broker) -> Self {
        let Broker { id, host, port, controller, partitions, leaders, log_bytes, preferred, leader_imbalance, .. } = broker;
        let log_bytes = (log_bytes >= 0).then_some(log_bytes);
        Self { id, host, port, controller, partitions, leaders, log_bytes, preferred, leader_imbalance }
    }
}

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let answer = link.answer(BridgeClient::new(link.channel()).brokers(link.request(BrokersRequest {}))).await?;
    let report = Report {
        cluster_id: answer.cluster_id,
        under_replicated: answer.under_replicated,
        under_min_isr: answer.under_min_isr,
        offline: answer.offline,
        not_preferred: answer.not_preferred,
        brokers: answer.brokers.into_iter().map(View::from).collect(),
        problems: answer.problems.into_iter().map(Problem::from).collect(),
    };
    session.out.show(&report, text)
}

fn text(report: &Report, out: &Output) -> String {
    let mut facts = Table::plain(out);
    facts.fact("cluster", &report.cluster_id);
    facts.fact("under-replicated partitions", human::count(report.under_replicated));
    facts.fact("under min.insync.replicas", human::count(report.under_min_isr));
    facts.fact("offline partitions", human::count(report.offline));
    facts.fact("not led by the preferred", human::count(report.not_preferred));

    let header = vec![
        right("BROKER"),
        left("ADDRESS"),
        left("CONTROLLER"),
        right("PARTITIONS"),
        right("LEADERS"),
        right("SHOULD LEAD"),
        right("IMBALANCE"),
        right("LOG"),
    ];
    let mut brokers = Table::new(out, header);
    for view in &report.brokers {
        brokers.row(vec![
            right(view.id.to_string()),
            left(format!("{}:{}", view.host, view.port)),
            left(if view.controller { "yes" } else { "no" }),
            right(human::count(view.partitions)),
            right(human::count(view.leaders)),
            right(human::count(view.preferred)),
            right(format!("{:.0} %", view.leader_imbalance * 100.0)),
            right(view.log_bytes.map_or_else(|| "-".to_owned(), human::bytes)),
        ]);
    }
    let mut parts = vec![facts.render(), brokers.render()];
    if !report.problems.is_empty() {
        let header =
            vec![left("TOPIC"), right("PARTITION"), left("PROBLEM"), right("LEADER"), left("REPLICAS"), left("IN SYNC"), right("MIN ISR")];
        let mut problems = Table::new(out, header);
        for problem in report.problems.iter().take(PROBLEMS) {
            let ids = |ids: &[i32]| ids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
            problems.row(vec![
                left(&problem.topic),
                right(problem.partition.to_string()),
                left(&problem.kind),
                right(problem.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string())),
                left(ids(&problem.replicas)),
                left(ids(&problem.isr)),
                right(problem.min_isr.to_string()),
            ]);
        }
        parts.push(problems.render());
        if report.problems.len() > PROBLEMS {
            parts.push(format!("{} more: see them with -o json", human::count((report.problems.len() - PROBLEMS) as i64)));
        }
    }
    parts.join("\n\n")
}

/// Partitions that people are shown; the document has all that the bridge names.
const PROBLEMS: usize = 50;
