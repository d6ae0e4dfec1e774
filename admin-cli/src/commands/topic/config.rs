//! `millrace topic config NAME`

use proto::control::v1::{DescribeTopicConfigsRequest, bridge_client::BridgeClient};

use super::{super::settings::Shown, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// Those too that nobody set.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(DescribeTopicConfigsRequest { topics: vec![args.name] });
    let mut answer = link.answer(BridgeClient::new(link.channel()).describe_topic_configs(request)).await?;
    let found = answer.topics.pop().ok_or_else(|| incomplete("the topic"))?;
    session.out.show(&Shown::new(found.configs, args.all), Shown::text)
}
