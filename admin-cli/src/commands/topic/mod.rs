//! `millrace topic …`: topics as the bridge sees them.

mod add_partitions;
mod advise;
mod alter;
mod config;
mod create;
mod delete;
mod describe;
mod lint;
mod list;

use clap::Subcommand;
use proto::control::v1::{Advice, Topic};
use serde::Serialize;

use crate::{
    cli::Session,
    failure::Failure,
    output::{Table, human},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists topics with their replication state.
    List(list::Args),
    /// Shows partitions, replicas, offsets and settings of a topic.
    Describe(describe::Args),
    /// Creates a topic; what is left out is advised by the bridge.
    Create(create::Args),
    /// Shows a topic's settings, with where each value comes from.
    Config(config::Args),
    /// Changes settings of a topic; the others stay as they are.
    Alter(alter::Args),
    /// Gives a topic more partitions. Records stay where they are; new ones of the same key may go elsewhere.
    AddPartitions(add_partitions::Args),
    /// Deletes a topic and every record in it.
    Delete(delete::Args),
    /// Says how many partitions a topic should have, and why.
    Advise(advise::Args),
    /// Says what is wrong with topics, and what to do about it. Ends with 1 where there are errors.
    Lint(lint::Args),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::List(args) => list::run(args, session).await,
            Command::Describe(args) => describe::run(args, session).await,
            Command::Create(args) => create::run(args, session).await,
            Command::Config(args) => config::run(args, session).await,
            Command::Alter(args) => alter::run(args, session).await,
            Command::AddPartitions(args) => add_partitions::run(args, session).await,
            Command::Delete(args) => delete::run(args, session).await,
            Command::Advise(args) => advise::run(args, session).await,
            Command::Lint(args) => lint::run(args, session).await,
        }
    }
}

#[derive(Serialize)]
struct TopicView {
    name: String,
    partitions: u32,
    replication: u32,
    under_replicated: u32,
    offline: u32,
    internal: bool,
}

impl From<Topic> for TopicView {
    fn from(topic: Topic) -> Self {
        let Topic { name, partitions, replication, under_replicated, offline, internal } = topic;
        Self { name, partitions, replication, under_replicated, offline, internal }
    }
}

impl TopicView {
    /// How the topic is: what is worst comes first.
    fn health(&self) -> String {
        match (self.offline, self.under_replicated) {
            (0, 0) => "healthy".to_owned(),
            (0, under) => format!("{} under-replicated", human::count(under)),
            (offline, 0) => format!("{} offline", human::count(offline)),
            (offline, under) => format!("{} offline, {} under-replicated", human::count(offline), human::count(under)),
        }
    }
}

#[derive(Serialize)]
struct AdviceView {
    partitions: u32,
    replication: u32,
    min_insync_replicas: u32,
    reasons: Vec<String>,
}

impl From<Advice> for AdviceView {
    fn from(advice: Advice) -> Self {
        let Advice { partitions, replication, min_insync_replicas, reasons } = advice;
        Self { partitions, replication, min_insync_replicas, reasons }
    }
}

impl AdviceView {
    /// One line where a topic is not as advised.
    fn instead_of(&self, topic: &TopicView) -> Option<String> {
        let partitions = (self.partitions != topic.partitions).then(|| format!("{} partitions", human::count(self.partitions)));
        let replication = (self.replication != topic.replication).then(|| format!("replication {}", human::count(self.replication)));
        let wish: Vec<String> = partitions.into_iter().chain(replication).collect();
        (!wish.is_empty()).then(|| format!("{}; `millrace topic advise` says why", wish.join(", ")))
    }

    fn fill(&self, table: &mut Table) {
        table.fact("advised partitions", human::count(self.partitions));
        table.fact("advised replication", human::count(self.replication));
        table.fact("advised min.insync.replicas", human::count(self.min_insync_replicas));
        for (at, reason) in self.reasons.iter().enumerate() {
            table.fact(if at == 0 { "because" } else { "" }, reason);
        }
    }
}

/// An answer that lacks the part it exists for.
fn incomplete(part: &str) -> Failure {
    Failure::failed(format!("the bridge answered without {part}; is it millrace-bridge of this version?"))
}
