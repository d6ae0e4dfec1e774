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
    /// Its name, to be kept with the job's checkpoint, or an object store URL; left out, the batch's number is the name. One that is there
    /// is never replaced.
    #[arg(long, value_name = "NAME|URL")]
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
