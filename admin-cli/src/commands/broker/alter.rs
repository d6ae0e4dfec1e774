//! `millrace broker alter [BROKER] --set KEY=VALUE --delete KEY`

use proto::control::v1::{AlterBrokerConfigsRequest, bridge_client::BridgeClient};

use super::super::settings::{Changed, Changes};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A broker's id; left out, all brokers.
    broker: Option<i32>,
    #[command(flatten)]
    changes: Changes,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let Args { broker, changes } = args;
    let dry_run = changes.dry_run;
    let (set, delete) = changes.checked()?;
    let of = broker.map_or_else(|| "all brokers".to_owned(), |id| format!("broker {id}"));
    let changed = Changed::new(of, dry_run, &set, &delete);
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(AlterBrokerConfigsRequest { broker, set, delete, dry_run });
    link.answer(BridgeClient::new(link.channel()).alter_broker_configs(request)).await?;
    session.out.show(&changed, Changed::text)
}
