//! `millrace job show NAME`

use proto::control::v1::{Batch, OffsetRange, ShowJobRequest, engine_client::EngineClient};
use serde::Serialize;

use super::{JobView, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, left, right},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// How many batches, newest first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    batches: u32,
    /// Also show how the engine runs the job's queries; in JSON the plan is always there.
    #[arg(long)]
    plan: bool,
}

#[derive(Serialize)]
struct Report {
    job: JobView,
    batches: Vec<BatchView>,
    plan: String,
    definition: String,
}

#[derive(Serialize)]
struct BatchView {
    id: u64,
    time_ms: i64,
    /// One of queued, running, completed, failed.
    state: String,
    rows: u64,
    scheduling_delay_ms: u64,
    processing_ms: u64,
    total_delay_ms: u64,
    ranges: Vec<RangeView>,
    error: Option<String>,
}

#[derive(Serialize)]
struct RangeView {
    topic: String,
    partition: i32,
    from: i64,
    /// Exclusive.
    until: i64,
}

impl From<OffsetRange> for RangeView {
    fn from(range: OffsetRange) -> Self {
        let OffsetRange { topic, partition, from, until } = range;
        Self { topic, partition, from, until }
    }
}

impl From<Batch> for BatchView {
    fn from(batch: Batch) -> Self {
        Self {
            id: batch.id,
            time_ms: batch.time_ms,
            state: batch.state,
            rows: batch.rows,
            scheduling_delay_ms: batch.scheduling_delay_ms,
            processing_ms: batch.processing_ms,
            total_delay_ms: batch.total_delay_ms,
            ranges: batch.ranges.into_iter().map(RangeView::from).collect(),
            error: (!batch.error.is_empty()).then_some(batch.error),
        }
    }
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Engine).await?;
    let request = link.request(ShowJobRequest { name: args.name, batches: args.batches });
    let answer = link.answer(EngineClient::new(link.channel()).show_job(request)).await?;
    let report = Report {
        job: answer.job.ok_or_else(|| incomplete("the job"))?.into(),
        batches: answer.batches.into_iter().map(BatchView::from).collect(),
        plan: answer.plan,
        definition: answer.definition,
    };
    session.out.show(&report, |report, out| text(report, out, args.plan))
}

fn text(report: &Report, out: &Output, plan: bool) -> String {
    let mut facts = Table::plain(out);
    report.job.fill(&mut facts);

    let header = vec![
        right("BATCH"),
        left("TIME"),
        left("STATE"),
        right("ROWS"),
        right("SCHEDULING"),
        right("PROCESSING"),
        right("TOTAL"),
        left("OFFSETS"),
        left("ERROR"),
    ];
    let mut batches = Table::new(out, header);
    for batch in &report.batches {
        batches.row(vec![
            right(batch.id.to_string()),
            left(human::time(Some(batch.time_ms))),
            left(&batch.state),
            right(human::count(batch.rows)),
            right(human::millis(batch.scheduling_delay_ms)),
            right(human::millis(batch.processing_ms)),
            right(human::millis(batch.total_delay_ms)),
            left(ranges(&batch.ranges)),
            left(batch.error.as_deref().unwrap_or_default()),
        ]);
    }

    let mut text = format!("{}\n\n{}", facts.render(), batches.render());
    for (title, body, shown) in [("PLAN", &report.plan, plan), ("DEFINITION", &report.definition, true)] {
        if shown && !body.is_empty() {
            text.push_str(&format!("\n\n{title}\n{}", human::lines(body)));
        }
    }
    text
}

/// `logs/0 [5, 9)`: partitions that got nothing are left out.
fn ranges(ranges: &[RangeView]) -> String {
    let moved = ranges.iter().filter(|range| range.until > range.from);
    moved.map(|range| format!("{}/{} [{}, {})", range.topic, range.partition, range.from, range.until)).collect::<Vec<_>>().join(" ")
}
