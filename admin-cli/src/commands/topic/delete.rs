//! `millrace topic delete NAME`: asks a person for the name once more; a script says `--yes`.

use proto::control::v1::{DeleteTopicRequest, bridge_client::BridgeClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// Does not ask. Needed where there is no terminal to ask on.
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct View {
    deleted: String,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    if !args.yes {
        match output::ask(&format!("This deletes every record in {}. Type the topic's name to go on:", args.name)) {
            None => return Err(Failure::usage(format!("deleting {} needs --yes where there is no terminal to ask on", args.name))),
            Some(answer) if answer == args.name => {}
            Some(_) => return Err(Failure::failed("the names differ; nothing was deleted")),
        }
    }
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(DeleteTopicRequest { name: args.name.clone() });
    link.answer(BridgeClient::new(link.channel()).delete_topic(request)).await?;
    session.out.show(&View { deleted: args.name }, |view, _| format!("deleted {}", view.deleted))
}
