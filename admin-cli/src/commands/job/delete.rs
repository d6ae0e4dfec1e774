//! `millrace job delete NAME [--checkpoint]`

use proto::control::v1::{DeleteJobRequest, engine_client::EngineClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::human,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job that is finished, stopped or failed.
    name: String,
    /// Delete its checkpoint too: a job of this name then begins afresh. Savepoints stay.
    #[arg(long)]
    checkpoint: bool,
}

#[derive(Serialize)]
struct View {
    name: String,
    /// Where the checkpoint is, or was.
    checkpoint: String,
    checkpoint_deleted: bool,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Engine).await?;
    let request = link.request(DeleteJobRequest { name: args.name.clone(), checkpoint: args.checkpoint });
    let answer = link.answer(EngineClient::new(link.channel()).delete_job(request)).await?;
    let view = View { name: args.name, checkpoint: answer.checkpoint, checkpoint_deleted: args.checkpoint };
    session.out.show(&view, |view, _| {
        let rest = if view.checkpoint_deleted { "deleted too" } else { "kept" };
        format!("{} is deleted; its checkpoint {} is {rest}", human::line(&view.name), human::line(&view.checkpoint))
    })
}
