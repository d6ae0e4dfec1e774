//! `millrace acl delete --topic NAME`: asks a person once more; a script says `--yes`.

use proto::control::v1::{Acl, DeleteAclsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::{AclView, Resource, table};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    resource: Resource,
    /// Entries whose name is this prefix, in place of those with just this name.
    #[arg(long, conflicts_with = "cluster")]
    prefixed: bool,
    /// Of this principal alone, as `User:alice`.
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Of this operation alone, as `read` or `alter-configs`.
    #[arg(long, value_name = "OPERATION")]
    operation: Option<String>,
    /// Does not ask. Needed where there is no terminal to ask on.
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct Report {
    deleted: Vec<AclView>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let Args { resource, prefixed, principal, operation, yes } = args;
    let (resource_type, resource_name) = resource.required()?;
    if !yes {
        match output::ask(&format!("This deletes every entry that matches on {resource_name}. Type the name to go on:")) {
            None => {
                return Err(Failure::usage(format!(
                    "deleting entries on {resource_name} needs --yes where there is no terminal to ask on"
                )));
            }
            Some(answer) if answer == resource_name => {}
            Some(_) => return Err(Failure::failed("the names differ; nothing was deleted")),
        }
    }
    let filter = Acl {
        resource_type: resource_type.to_owned(),
        resource_name,
        pattern_type: if prefixed { "PREFIXED" } else { "LITERAL" }.to_owned(),
        principal: principal.unwrap_or_default(),
        host: String::new(),
        operation: operation.map_or_else(|| "ANY".to_owned(), |operation| operation.replace('-', "_")),
        permission: "ANY".to_owned(),
    };
    let link = session.connect(Service::Bridge).await?;
    let answer =
        link.answer(BridgeClient::new(link.channel()).delete_acls(link.request(DeleteAclsRequest { filter: Some(filter) }))).await?;
    let report = Report { deleted: answer.acls.into_iter().map(AclView::from).collect() };
    session.out.show(&report, |report, out| table(&report.deleted, out))
}
