//! `millrace acl delete --topic NAME`: asks a person once more; a script says `--yes`.

use proto::control::v1::{DeleteAclsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::{AclView, Of, Place, table};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    of: Of,
    /// Does not ask. Needed where there is no terminal to ask on.
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct Report {
    deleted: Vec<AclView>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let Args { place, of, yes } = args;
    let filter = of.filter(place.acl()?);
    if !yes {
        let resource_name = &filter.resource_name;
        match output::ask(&format!("This deletes every entry that matches on {resource_name}. Type the name to go on:")) {
            None => {
                return Err(Failure::usage(format!(
                    "deleting entries on {resource_name} needs --yes where there is no terminal to ask on"
                )));
            }
            Some(answer) if answer == *resource_name => {}
            Some(_) => return Err(Failure::failed("the names differ; nothing was deleted")),
        }
    }
    let link = session.connect(Service::Bridge).await?;
    let answer =
        link.answer(BridgeClient::new(link.channel()).delete_acls(link.request(DeleteAclsRequest { filter: Some(filter) }))).await?;
    let report = Report { deleted: answer.acls.into_iter().map(AclView::from).collect() };
    session.out.show(&report, |report, out| table(&report.deleted, out))
}
