//! `millrace topic advise`

use proto::control::v1::{AdviseTopicRequest, bridge_client::BridgeClient};

use super::{AdviceView, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Consumers that will read at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    consumers: u32,
    /// Producers that will write at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
    /// A topic that is there: as many partitions are advised as carry the records that are measured into it.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request =
        link.request(AdviseTopicRequest { consumers: args.consumers, producers: args.producers, topic: args.topic.unwrap_or_default() });
    let answer = link.answer(BridgeClient::new(link.channel()).advise_topic(request)).await?;
    let advice: AdviceView = answer.advice.ok_or_else(|| incomplete("the advice"))?.into();
    session.out.show(&advice, |advice: &AdviceView, out: &Output| {
        let mut table = Table::plain(out);
        advice.fill(&mut table);
        table.render()
    })
}
