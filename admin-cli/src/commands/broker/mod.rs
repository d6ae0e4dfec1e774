//! `millrace broker …`: the Kafka cluster as the bridge sees it.

mod list;

use clap::Subcommand;

use crate::{cli::Session, failure::Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists brokers with the load they carry.
    List,
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::List => list::run(session).await,
        }
    }
}
