//! `millrace broker …`: the Kafka cluster as the bridge sees it.

mod alter;
mod config;
mod list;

use clap::Subcommand;

use crate::{cli::Session, failure::Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists brokers with the load they carry.
    List,
    /// Shows settings of a broker, or of all, with where each value comes from.
    Config(config::Args),
    /// Changes settings of a broker, or of all, at run time; the others stay as they are.
    Alter(alter::Args),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::List => list::run(session).await,
            Command::Config(args) => config::run(args, session).await,
            Command::Alter(args) => alter::run(args, session).await,
        }
    }
}
