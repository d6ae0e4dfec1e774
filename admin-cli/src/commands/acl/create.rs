//! `millrace acl create --topic NAME --principal User:alice --operation read`

use proto::control::v1::{Acl, CreateAclsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::{AclView, Place, operation, table};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
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
    let permission = if args.deny { "DENY" } else { "ALLOW" }.to_owned();
    let acl = Acl { principal: args.principal, host: args.host, permission, ..args.place.acl()? };
    let acls: Vec<Acl> = args.operation.iter().map(|name| Acl { operation: operation(name), ..acl.clone() }).collect();
    let link = session.connect(Service::Bridge).await?;
    link.answer(BridgeClient::new(link.channel()).create_acls(link.request(CreateAclsRequest { acls: acls.clone() }))).await?;
    let report = Report { created: acls.into_iter().map(AclView::from).collect() };
    session.out.show(&report, |report, out| table(&report.created, out))
}
