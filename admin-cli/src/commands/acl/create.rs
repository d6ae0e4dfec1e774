//! `millrace acl create --topic NAME --principal User:alice --operation read`

use proto::control::v1::{Acl, CreateAclsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::{AclView, Resource, table};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    resource: Resource,
    /// The name is a prefix: every topic, group or id that begins so.
    #[arg(long, conflicts_with = "cluster")]
    prefixed: bool,
    /// Who, as `User:alice`; `User:*` is everybody.
    #[arg(long, value_name = "PRINCIPAL")]
    principal: String,
    /// What, as `read`, `write`, `alter-configs` or `all`; may be given several times.
    #[arg(long, value_name = "OPERATION", required = true)]
    operation: Vec<String>,
    /// From this address alone.
    #[arg(long, value_name = "ADDRESS", default_value = "*")]
    host: String,
    /// Forbids it; that is stronger than what is allowed.
    #[arg(long)]
    deny: bool,
}

#[derive(Serialize)]
struct Report {
    created: Vec<AclView>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let Args { resource, prefixed, principal, operation, host, deny } = args;
    let (resource_type, resource_name) = resource.required()?;
    let acl = |operation: String| Acl {
        resource_type: resource_type.to_owned(),
        resource_name: resource_name.clone(),
        pattern_type: if prefixed { "PREFIXED" } else { "LITERAL" }.to_owned(),
        principal: principal.clone(),
        host: host.clone(),
        operation: operation.replace('-', "_").to_uppercase(),
        permission: if deny { "DENY" } else { "ALLOW" }.to_owned(),
    };
    let acls: Vec<Acl> = operation.into_iter().map(acl).collect();
    let link = session.connect(Service::Bridge).await?;
    link.answer(BridgeClient::new(link.channel()).create_acls(link.request(CreateAclsRequest { acls: acls.clone() }))).await?;
    let report = Report { created: acls.into_iter().map(AclView::from).collect() };
    session.out.show(&report, |report, out| table(&report.created, out))
}
