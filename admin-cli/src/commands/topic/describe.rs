//! `millrace topic describe NAME`

use std::collections::BTreeMap;

use proto::control::v1::{DescribeTopicRequest, Partition, bridge_client::BridgeClient};
use serde::Serialize;

use super::{TopicView, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, Tone, human, left, right, toned},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
}

#[derive(Serialize)]
struct Report {
    topic: TopicView,
    partitions: Vec<PartitionView>,
    /// Settings that differ from the broker's default.
    config: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct PartitionView {
    id: i32,
    /// `null` without a leader.
    leader: Option<i32>,
    replicas: Vec<i32>,
    isr: Vec<i32>,
    begin_offset: i64,
    end_offset: i64,
}

impl From<Partition> for PartitionView {
    fn from(partition: Partition) -> Self {
        let Partition { id, leader, replicas, isr, begin_offset, end_offset } = partition;
        Self { id, leader: (leader >= 0).then_some(leader), replicas, isr, begin_offset, end_offset }
    }
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(DescribeTopicRequest { name: args.name });
    let answer = link.answer(BridgeClient::new(link.channel()).describe_topic(request)).await?;
    let report = Report {
        topic: answer.topic.ok_or_else(|| incomplete("the topic"))?.into(),
        partitions: answer.partitions.into_iter().map(PartitionView::from).collect(),
        config: answer.config.into_iter().collect(),
    };
    session.out.show(&report, text)
}

fn text(report: &Report, out: &Output) -> String {
    let mut facts = Table::plain(out);
    facts.fact("topic", &report.topic.name);
    facts.fact("partitions", human::count(report.topic.partitions));
    facts.fact("replication", human::count(report.topic.replication));
    facts.fact("state", report.topic.health());
    for (name, value) in &report.config {
        facts.fact(name, human::setting(name, value));
    }

    let header = vec![
        right("PARTITION"),
        right("LEADER"),
        left("REPLICAS"),
        left("ISR"),
        right("BEGIN"),
        right("END"),
        right("OFFSETS"),
        left("STATE"),
    ];
    let mut partitions = Table::new(out, header);
    for partition in &report.partitions {
        let (state, tone) = match partition.leader {
            None => ("offline", Tone::Bad),
            Some(_) if partition.isr.len() < partition.replicas.len() => ("under-replicated", Tone::Watch),
            Some(_) => ("healthy", Tone::Good),
        };
        partitions.row(vec![
            right(partition.id.to_string()),
            right(partition.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string())),
            left(ids(&partition.replicas)),
            left(ids(&partition.isr)),
            right(human::count(partition.begin_offset)),
            right(human::count(partition.end_offset)),
            right(human::count(partition.end_offset.saturating_sub(partition.begin_offset))),
            toned(out, state, tone),
        ]);
    }
    format!("{}\n\n{}", facts.render(), partitions.render())
}

fn ids(brokers: &[i32]) -> String {
    brokers.iter().map(i32::to_string).collect::<Vec<_>>().join(",")
}
