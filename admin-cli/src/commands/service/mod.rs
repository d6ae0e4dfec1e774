//! What can be done to each of the three services alike: `millrace {collector,bridge,engine} pause|resume|drain`. The collector alone reads its
//! configuration again while it runs.

mod drain;
mod pause;
pub(super) mod reload;
mod resume;

use clap::Subcommand;

use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stops taking input; what was accepted is still delivered.
    Pause(Component),
    /// Takes input again.
    Resume(Component),
    /// Stops input and waits until everything accepted has been delivered.
    Drain,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Component {
    /// Only this source, sink, topic or job; all of them when left out.
    component: Option<String>,
}

impl Component {
    /// As the protocol has it: empty is all.
    fn name(self) -> String {
        self.component.unwrap_or_default()
    }
}

impl Command {
    pub(crate) async fn run(self, service: Service, session: &Session) -> Result<(), Failure> {
        match self {
            Command::Pause(component) => pause::run(service, component, session).await,
            Command::Resume(component) => resume::run(service, component, session).await,
            Command::Drain => drain::run(service, session).await,
        }
    }
}

/// `what` and the names, or that there was nothing.
fn listed(what: &str, names: &[String]) -> String {
    if names.is_empty() { format!("{what}: nothing") } else { format!("{what}: {}", names.join(", ")) }
}
