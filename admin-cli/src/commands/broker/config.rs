//! `millrace broker config [BROKER]`

use proto::control::v1::{DescribeBrokerConfigsRequest, bridge_client::BridgeClient};

use super::super::settings::Shown;
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A broker's id; left out, what is set for all brokers at run time.
    broker: Option<i32>,
    /// Those too that nobody set.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(DescribeBrokerConfigsRequest { broker: args.broker });
    let answer = link.answer(BridgeClient::new(link.channel()).describe_broker_configs(request)).await?;
    session.out.show(&Shown::new(answer.configs, args.all), Shown::text)
}
