//! `millrace job stop NAME [--drain]`

use proto::control::v1::{StopJobRequest, engine_client::EngineClient};
use serde::Serialize;

use super::{JobView, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::human,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// Reads to the end of the sources as they are now and emits every open window before it stops.
    ///
    /// For a job that is not meant to go on: its windows are closed then. Submitted again, it goes on from its offsets, and counts rows that
    /// still come for those windows as late. Without this option open windows are kept in the checkpoint, and the job goes on with them.
    #[arg(long)]
    drain: bool,
}

#[derive(Serialize)]
struct Report {
    job: JobView,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let patience = session.patience();
    let link = session.connect_within(Service::Engine, patience.wait).await?;
    let spinner = session.out.waiting(format!("{} {}", if args.drain { "draining" } else { "stopping" }, human::line(&args.name)));
    let request = link.request(StopJobRequest { name: args.name, drain: args.drain, timeout_ms: patience.asked_ms });
    let answer = link.answer(EngineClient::new(link.channel()).stop_job(request)).await;
    spinner.finish_and_clear();
    let report = Report { job: answer?.job.ok_or_else(|| incomplete("the job"))?.into() };
    session.out.show(&report, |report, _| {
        let job = &report.job;
        let counts = format!(
            "{} batches, {} rows in, {} rows out",
            human::count(job.batches_completed),
            human::count(job.rows_in),
            human::count(job.rows_out)
        );
        format!("{} is {}: {counts}", human::line(&job.name), job.state)
    })
}
