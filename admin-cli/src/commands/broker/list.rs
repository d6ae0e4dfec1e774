//! `millrace broker list`

use proto::control::v1::{Broker, BrokersRequest, bridge_client::BridgeClient};
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
    offline: u32,
    brokers: Vec<View>,
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
}

impl From<Broker> for View {
    fn from(broker: Broker) -> Self {
        let Broker { id, host, port, controller, partitions, leaders, log_bytes } = broker;
        Self { id, host, port, controller, partitions, leaders, log_bytes: (log_bytes >= 0).then_some(log_bytes) }
    }
}

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let answer = link.answer(BridgeClient::new(link.channel()).brokers(link.request(BrokersRequest {}))).await?;
    let report = Report {
        cluster_id: answer.cluster_id,
        under_replicated: answer.under_replicated,
        offline: answer.offline,
        brokers: answer.brokers.into_iter().map(View::from).collect(),
    };
    session.out.show(&report, text)
}

fn text(report: &Report, out: &Output) -> String {
    let mut facts = Table::plain(out);
    facts.fact("cluster", &report.cluster_id);
    facts.fact("under-replicated partitions", human::count(report.under_replicated));
    facts.fact("offline partitions", human::count(report.offline));

    let header = vec![right("BROKER"), left("ADDRESS"), left("CONTROLLER"), right("PARTITIONS"), right("LEADERS"), right("LOG")];
    let mut brokers = Table::new(out, header);
    for view in &report.brokers {
        brokers.row(vec![
            right(view.id.to_string()),
            left(format!("{}:{}", view.host, view.port)),
            left(if view.controller { "yes" } else { "no" }),
            right(human::count(view.partitions)),
            right(human::count(view.leaders)),
            right(view.log_bytes.map_or_else(|| "-".to_owned(), human::bytes)),
        ]);
    }
    format!("{}\n\n{}", facts.render(), brokers.render())
}
