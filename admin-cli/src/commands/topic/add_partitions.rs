//! `millrace topic add-partitions NAME --partitions N`

use proto::control::v1::{AddPartitionsRequest, bridge_client::BridgeClient};

use super::{TopicView, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::human,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// How many it is to have, more than it has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(AddPartitionsRequest { topic: args.name, partitions: args.partitions });
    let answer = link.answer(BridgeClient::new(link.channel()).add_partitions(request)).await?;
    let topic: TopicView = answer.topic.ok_or_else(|| incomplete("the topic"))?.into();
    session.out.show(&topic, |topic, _| format!("{} has {} partitions", topic.name, human::count(topic.partitions)))
}
