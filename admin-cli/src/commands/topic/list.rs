//! `millrace topic list`

use proto::control::v1::{ListTopicsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::TopicView;
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, Tone, human, left, right, toned},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kafka's own topics too.
    #[arg(long)]
    internal: bool,
}

#[derive(Serialize)]
struct Report {
    topics: Vec<TopicView>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(ListTopicsRequest { include_internal: args.internal });
    let answer = link.answer(BridgeClient::new(link.channel()).list_topics(request)).await?;
    session.out.show(&Report { topics: answer.topics.into_iter().map(TopicView::from).collect() }, table)
}

fn table(report: &Report, out: &Output) -> String {
    let mut table = Table::new(out, vec![left("TOPIC"), right("PARTITIONS"), right("REPLICATION"), left("STATE")]);
    for topic in &report.topics {
        let tone = match (topic.offline, topic.under_replicated) {
            (0, 0) => Tone::Good,
            (0, _) => Tone::Watch,
            _ => Tone::Bad,
        };
        table.row(vec![
            left(&topic.name),
            right(human::count(topic.partitions)),
            right(human::count(topic.replication)),
            toned(out, topic.health(), tone),
        ]);
    }
    table.render()
}
