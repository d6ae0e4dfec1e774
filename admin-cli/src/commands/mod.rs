//! The command tree. One module a word, one file a verb.

mod acl;
mod broker;
mod collector;
mod completion;
mod config;
mod group;
mod job;
mod log_level;
mod service;
mod settings;
mod status;
mod tap;
mod top;
mod topic;

use clap::Subcommand;

use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows how the services are, all at once.
    Status(status::Args),
    /// Shows events as they pass the collector's components, until Ctrl-C.
    Tap(tap::Args),
    /// Shows what each component of the collector moves, renewed every second.
    Top(top::Args),
    /// Looks into the collector and steers it.
    #[command(subcommand)]
    Collector(collector::Command),
    /// Steers the bridge. Topics, groups and brokers have commands of their own.
    #[command(subcommand)]
    Bridge(service::Command),
    /// Steers the engine. Jobs have commands of their own.
    #[command(subcommand)]
    Engine(service::Command),
    /// Kafka topics, through the bridge.
    #[command(subcommand)]
    Topic(topic::Command),
    /// Consumer groups, through the bridge.
    #[command(subcommand)]
    Group(group::Command),
    /// Kafka brokers, through the bridge.
    #[command(subcommand)]
    Broker(broker::Command),
    /// Kafka's access control lists, through the bridge.
    #[command(subcommand)]
    Acl(acl::Command),
    /// Jobs of the stream engine.
    #[command(subcommand)]
    Job(job::Command),
    /// Prints the configuration that is in force, with secrets masked.
    Config(config::Args),
    /// Changes what a running service logs.
    LogLevel(log_level::Args),
    /// Prints a completion script for a shell.
    Completion(completion::Args),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::Status(args) => status::run(args, session).await,
            Command::Tap(args) => tap::run(args, session).await,
            Command::Top(args) => top::run(args, session).await,
            Command::Collector(command) => command.run(session).await,
            Command::Bridge(command) => command.run(Service::Bridge, session).await,
            Command::Engine(command) => command.run(Service::Engine, session).await,
            Command::Topic(command) => command.run(session).await,
            Command::Group(command) => command.run(session).await,
            Command::Broker(command) => command.run(session).await,
            Command::Acl(command) => command.run(session).await,
            Command::Job(command) => command.run(session).await,
            Command::Config(args) => config::run(args, session).await,
            Command::LogLevel(args) => log_level::run(args, session).await,
            Command::Completion(args) => completion::run(args, session),
        }
    }
}
