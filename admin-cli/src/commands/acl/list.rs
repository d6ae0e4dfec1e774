//! `millrace acl list`

use proto::control::v1::{Acl, ListAclsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::{AclView, Of, Resource, table};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    resource: Resource,
    #[command(flatten)]
    of: Of,
}

#[derive(Serialize)]
struct Report {
    acls: Vec<AclView>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let (resource_type, resource_name) = args.resource.named().unwrap_or_default();
    let filter = args.of.filter(Acl { resource_type: resource_type.to_owned(), resource_name, ..Acl::default() });
    let link = session.connect(Service::Bridge).await?;
    let answer = link.answer(BridgeClient::new(link.channel()).list_acls(link.request(ListAclsRequest { filter: Some(filter) }))).await?;
    let report = Report { acls: answer.acls.into_iter().map(AclView::from).collect() };
    session.out.show(&report, |report, out| table(&report.acls, out))
}
