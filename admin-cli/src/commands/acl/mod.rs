//! `millrace acl …`: Kafka's access control lists, in the words of Kafka's own tool.

mod create;
mod delete;
mod list;

use clap::Subcommand;
use proto::control::v1::Acl;
use serde::Serialize;

use crate::{
    cli::Session,
    failure::Failure,
    output::{Output, Table, left},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists entries; all where nothing is said.
    List(list::Args),
    /// Lets a principal do something, or forbids it.
    Create(create::Args),
    /// Deletes the entries that match, and shows them.
    Delete(delete::Args),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::List(args) => list::run(args, session).await,
            Command::Create(args) => create::run(args, session).await,
            Command::Delete(args) => delete::run(args, session).await,
        }
    }
}

/// What an entry is about.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Resource {
    /// A topic; `*` is every one.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// A consumer group; `*` is every one.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// A transactional id; `*` is every one.
    #[arg(long, value_name = "NAME")]
    transactional_id: Option<String>,
    /// The cluster itself.
    #[arg(long)]
    cluster: bool,
}

impl Resource {
    /// Type and name.
    fn named(self) -> Option<(&'static str, String)> {
        let Self { topic, group, transactional_id, cluster } = self;
        let named = topic.map(|name| ("TOPIC", name)).or_else(|| group.map(|name| ("GROUP", name)));
        let named = named.or_else(|| transactional_id.map(|name| ("TRANSACTIONAL_ID", name)));
        named.or_else(|| cluster.then(|| ("CLUSTER", "kafka-cluster".to_owned())))
    }
}

/// What an entry that is made or deleted is about.
#[derive(Debug, clap::Args)]
struct Place {
    #[command(flatten)]
    resource: Resource,
    /// The name is a prefix: of every topic, group or id that begins so.
    #[arg(long, conflicts_with = "cluster")]
    prefixed: bool,
}

impl Place {
    /// An entry with nothing but its place.
    fn acl(self) -> Result<Acl, Failure> {
        let missing = || Failure::usage("say what it is about: --topic, --group, --transactional-id or --cluster");
        let (resource_type, resource_name) = self.resource.named().ok_or_else(missing)?;
        let pattern_type = if self.prefixed { "PREFIXED" } else { "LITERAL" }.to_owned();
        Ok(Acl { resource_type: resource_type.to_owned(), resource_name, pattern_type, ..Acl::default() })
    }
}

/// Which entries of a place.
#[derive(Debug, clap::Args)]
struct Of {
    /// Of this principal alone, as `User:alice`.
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Of this operation alone, as `read` or `alter-configs`.
    #[arg(long, value_name = "OPERATION")]
    operation: Option<String>,
}

impl Of {
    fn filter(self, place: Acl) -> Acl {
        let (principal, any) = (self.principal.unwrap_or_default(), || "ANY".to_owned());
        Acl { principal, operation: self.operation.map_or_else(any, |name| operation(&name)), permission: any(), ..place }
    }
}

/// As Kafka names it.
fn operation(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[derive(Serialize)]
struct AclView {
    resource_type: String,
    resource_name: String,
    pattern_type: String,
    principal: String,
    host: String,
    operation: String,
    permission: String,
}

impl From<Acl> for AclView {
    fn from(acl: Acl) -> Self {
        let Acl { resource_type, resource_name, pattern_type, principal, host, operation, permission } = acl;
        Self { resource_type, resource_name, pattern_type, principal, host, operation, permission }
    }
}

fn table(acls: &[AclView], out: &Output) -> String {
    let header = ["PRINCIPAL", "PERMISSION", "OPERATION", "RESOURCE", "PATTERN", "NAME", "HOST"];
    let mut table = Table::new(out, header.into_iter().map(left).collect());
    for acl in acls {
        let cells = [&acl.principal, &acl.permission, &acl.operation, &acl.resource_type, &acl.pattern_type, &acl.resource_name, &acl.host];
        table.row(cells.into_iter().map(left).collect());
    }
    table.render()
}
