//! `millrace group …`: consumer groups as the bridge sees them.

mod describe;
mod lag;
mod list;
mod reset_offsets;

use clap::Subcommand;
use proto::control::v1::{Group, LagPace};
use serde::Serialize;

use crate::{cli::Session, failure::Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists consumer groups.
    List,
    /// Shows a group's members, and what they read.
    Describe(describe::Args),
    /// Shows how far a group is behind, by partition; without a name, how far each group is.
    Lag(lag::Args),
    /// Puts a group elsewhere in a topic. The group must have no members.
    ResetOffsets(reset_offsets::Args),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::List => list::run(session).await,
            Command::Describe(args) => describe::run(args, session).await,
            Command::Lag(args) => lag::run(args, session).await,
            Command::ResetOffsets(args) => reset_offsets::run(args, session).await,
        }
    }
}

#[derive(Serialize)]
struct GroupView {
    id: String,
    state: String,
    members: u32,
    protocol: String,
}

impl From<Group> for GroupView {
    fn from(group: Group) -> Self {
        let Group { id, state, members, protocol } = group;
        Self { id, state, members, protocol }
    }
}

/// How a lag moves; `null` is not known.
#[derive(Serialize)]
struct PaceView {
    lag_seconds: Option<f64>,
    trend_records_per_second: Option<f64>,
    catch_up_seconds: Option<f64>,
}

impl From<Option<LagPace>> for PaceView {
    fn from(pace: Option<LagPace>) -> Self {
        let LagPace { lag_seconds, trend, catch_up_seconds } = pace.unwrap_or_default();
        Self { lag_seconds, trend_records_per_second: trend, catch_up_seconds }
    }
}
