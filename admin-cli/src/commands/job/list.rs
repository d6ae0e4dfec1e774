//! `millrace job list`

use proto::control::v1::{ListJobsRequest, engine_client::EngineClient};
use serde::Serialize;

use super::JobView;
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, left, right, toned},
};

#[derive(Serialize)]
struct Report {
    jobs: Vec<JobView>,
}

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Engine).await?;
    let answer = link.answer(EngineClient::new(link.channel()).list_jobs(link.request(ListJobsRequest {}))).await?;
    session.out.show(&Report { jobs: answer.jobs.into_iter().map(JobView::from).collect() }, table)
}

fn table(report: &Report, out: &Output) -> String {
    let header = vec![
        left("JOB"),
        left("STATE"),
        right("INTERVAL"),
        right("BATCHES"),
        right("ROWS IN"),
        right("ROWS OUT"),
        left("WATERMARK"),
        left("ERROR"),
    ];
    let mut table = Table::new(out, header);
    for job in &report.jobs {
        table.row(vec![
            left(&job.name),
            toned(out, job.state, job.tone()),
            right(human::millis(job.batch_interval_ms)),
            right(human::count(job.batches_completed)),
            right(human::count(job.rows_in)),
            right(human::count(job.rows_out)),
            left(human::time(job.watermark_ms)),
            left(job.error.as_deref().unwrap_or_default()),
        ]);
    }
    table.render()
}
