//! `millrace collector …`

pub(super) mod components;

use clap::Subcommand;

use super::service;
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists sources, channels and sinks with their state and counters.
    Components,
    /// Reads the configuration again; one that cannot be built leaves the running one in place.
    Reload,
    #[command(flatten)]
    Service(service::Command),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::Components => components::run(session).await,
            Command::Reload => service::reload::run(session).await,
            Command::Service(command) => command.run(Service::Collector, session).await,
        }
    }
}
