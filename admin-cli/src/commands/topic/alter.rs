//! `millrace topic alter NAME --set KEY=VALUE --delete KEY`

use proto::control::v1::{AlterTopicConfigsRequest, bridge_client::BridgeClient};

use super::super::settings::{Changed, Changes};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    #[command(flatten)]
    changes: Changes,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let Args { name: topic, changes } = args;
    let dry_run = changes.dry_run;
    let (set, delete) = changes.checked()?;
    let changed = Changed::new(format!("topic {topic}"), dry_run, &set, &delete);
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(AlterTopicConfigsRequest { topic, set, delete, dry_run });
    link.answer(BridgeClient::new(link.channel()).alter_topic_configs(request)).await?;
    session.out.show(&changed, Changed::text)
}
