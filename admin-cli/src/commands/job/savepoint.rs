//! `millrace job savepoint NAME`

use proto::control::v1::{SavepointRequest, engine_client::EngineClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::human,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// Where to, an object store URL; left out, `savepoints/` below the job's checkpoint.
    #[arg(long, value_name = "URL")]
    target: Option<String>,
}

#[derive(Serialize)]
struct View {
    location: String,
    batch_id: u64,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect_within(Service::Engine, session.patience().wait).await?;
    let spinner = session.out.waiting(format!("waiting for the running batch of {}", human::line(&args.name)));
    let request = link.request(SavepointRequest { name: args.name, target: args.target.unwrap_or_default() });
    let answer = link.answer(EngineClient::new(link.channel()).savepoint(request)).await;
    spinner.finish_and_clear();
    let answer = answer?;
    let view = View { location: answer.location, batch_id: answer.batch_id };
    session.out.show(&view, |view, _| format!("{} (after batch {})", human::line(&view.location), view.batch_id))
}
