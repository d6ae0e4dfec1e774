//! The pages: what Spark's Streaming tab shows, and the jobs around it.

use std::sync::Arc;

use maud::{DOCTYPE, Markup, html};

use super::chart::Chart;
use super::text::{clock, count, duration, maybe_duration, span, time};
use crate::job::{BatchState, BatchView, Job, JobState, JobView, OutputState, OutputView, ReceiverView, StreamView};
use crate::sql;

/// Batches in the charts.
const CHART_BATCHES: usize = 120;
/// Completed batches on a page, and failed ones in all.
const TABLE_BATCHES: usize = 50;

fn layout(title: &str, trail: &Markup, refresh_ms: u64, live: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Millrace" }
                link rel="stylesheet" href="/assets/style.css";
                script src="/assets/page.js" defer {}
            }
            body {
                a.skip href="#live" { "Skip to content" }
                header {
                    nav aria-label="Breadcrumb" { a.brand href="/" { "Millrace" } span.muted { "stream engine" } (trail) }
                    span #fresh.muted role="status" {}
                }
                main #live data-refresh=(refresh_ms) { (live) }
                footer.muted { "JSON: " a href="/api/v1/applications" { "/api/v1/applications" } " · " a href="/metrics" { "/metrics" } " · times in UTC" }
            }
        }
    }
}

pub(super) fn not_found(message: &str) -> Markup {
    layout("Not found", &html! {}, 0, &html! { h1 { "Not found" } p { (message) } p { a href="/" { "All jobs" } } })
}

fn state(state: JobState) -> Markup {
    html! { span class={ "state " (state.name().to_lowercase()) } { (state.name()) } }
}

fn batch_state(batch: &BatchView) -> Markup {
    let class = match batch.state {
        BatchState::Queued => "starting",
        BatchState::Running => "running",
        BatchState::Completed => "finished",
        BatchState::Failed => "failed",
    };
    html! { span class={ "state " (class) } { (batch.state.name()) } }
}

fn fact(name: &str, value: String) -> Markup {
    html! { div.fact { dt { (name) } dd { (value) } } }
}

// === All jobs ===

pub(super) fn jobs(jobs: &[Arc<Job>], now_ms: i64) -> Markup {
    let live = html! {
        h1 { "Jobs" }
        @if jobs.is_empty() {
            div.empty {
                p { strong { "No jobs yet." } }
                p { "Submit one: " code { "millrace job submit JOB.sql" } }
            }
        } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Job" } th scope="col" { "State" } th scope="col" { "Kind" }
                    th.n scope="col" { "Batches" } th.n scope="col" { "Rows in" } th.n scope="col" { "Rows out" }
                    th.n scope="col" { "Processing" } th.n scope="col" { "Total delay" } th scope="col" { "Watermark" } th scope="col" { "Last batch" } th scope="col" { "Runs for / ended" }
                } }
                tbody { @for job in jobs {
                    @let view = job.monitor.view();
                    @let newest = job.monitor.completed(1).into_iter().next();
                    tr {
                        th scope="row" { a href={ "/jobs/" (job.name) } { (job.name) } }
                        td { (state(view.state)) @if let Some(error) = &view.error { div.error-line { (first_line(error)) } } }
                        td { (job.kind.name()) }
                        td.n { (count(view.totals.batches)) }
                        td.n { (count(view.totals.rows_in)) }
                        td.n { (count(view.totals.rows_out)) }
                        td.n { (maybe_duration(newest.as_ref().and_then(BatchView::processing_ms))) }
                        td.n { (maybe_duration(newest.as_ref().and_then(BatchView::total_delay_ms))) }
                        td { (view.watermark_ms.map_or_else(|| "–".into(), time)) }
                        td { (ago(view.last_batch_at_ms, now_ms)) }
                        td { (lifetime(&view, now_ms)) }
                    }
                } }
            } }
        }
    };
    layout("Jobs", &html! {}, 2000, &live)
}

fn age(since_ms: i64, now_ms: i64) -> u64 {
    u64::try_from(now_ms - since_ms).unwrap_or(0)
}

/// `3 s ago`
fn ago(at_ms: Option<i64>, now_ms: i64) -> String {
    at_ms.map_or_else(|| "–".into(), |at_ms| format!("{} ago", span(age(at_ms, now_ms))))
}

/// How long a job runs, or when it ended.
fn lifetime(view: &JobView, now_ms: i64) -> String {
    match view.ended_at_ms {
        Some(ended_ms) => format!("ended {}", time(ended_ms)),
        None if view.state.is_over() => "ended earlier".into(),
        None => format!("for {}", span(age(view.started_at_ms, now_ms))),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

// === One job ===

pub(super) fn job(job: &Job, now_ms: i64, page: usize) -> Markup {
    let view = job.monitor.view();
    let ended = job.monitor.completed(usize::MAX);
    let (completed, failed): (Vec<&BatchView>, Vec<&BatchView>) = ended.iter().partition(|batch| batch.state == BatchState::Completed);
    let charted: Vec<&BatchView> = ended.iter().take(CHART_BATCHES).collect();
    let live = html! {
        h1 { (view.name) " " (state(view.state)) }
        (summary(&view, now_ms))
        @if let Some(error) = &view.error { div.alert role="alert" { pre { (error) } } }
        (facts(job, &view, now_ms))
        section aria-label="Charts" { (charts(&charted, &view)) }
        (active_table(job, &view.active))
        (failed_table(job, &failed))
        (completed_table(job, &completed, view.totals.batches, page))
        @if !job.plan.is_empty() { details { summary { "Plan (how the engine runs the queries)" } pre { (job.plan) } } }
        @if !job.definition.is_empty() { details { summary { "Definition" } pre { (sql::masked(&job.definition)) } } }
        @if !job.notes.is_empty() {
            details { summary { "Notes (" (job.notes.len()) ")" } ul { @for note in &job.notes { li { (note) } } } }
        }
    };
    let refresh = if view.state.is_over() { 0 } else { view.batch_interval_ms.clamp(1000, 5000) };
    layout(&view.name, &html! { span.muted { "/" } a href={ "/jobs/" (job.name) } aria-current="page" { (job.name) } }, refresh, &live)
}

/// Spark's header line.
fn summary(view: &JobView, now_ms: i64) -> Markup {
    let verb = match view.state {
        JobState::Waiting => "Waiting to run",
        state if state.is_over() => "Ran",
        _ => "Running",
    };
    html! {
        p.lead {
            (verb) " batches of " strong { (duration(view.batch_interval_ms)) }
            @if !view.state.is_over() { " for " strong { (span(age(view.started_at_ms, now_ms))) } }
            @if view.started_at_ms > 0 { " since " strong { (time(view.started_at_ms)) } }
            @if let Some(ended_ms) = view.ended_at_ms { " until " strong { (time(ended_ms)) } }
            " (" strong { (count(view.totals.batches)) } " completed batches, " strong { (count(view.totals.rows_in)) } " records)"
        }
    }
}

fn facts(job: &Job, view: &JobView, now_ms: i64) -> Markup {
    html! {
        dl.facts {
            (fact("Last batch", ago(view.last_batch_at_ms, now_ms)))
            (fact("Has read all up to", ago(Some(view.caught_up_ms), now_ms)))
            (fact("Rows out", count(view.totals.rows_out)))
            (fact("Watermark", view.watermark_ms.map_or_else(|| "–".into(), time)))
            (fact("Late rows", count(view.totals.late)))
            (fact("Malformed rows", count(view.totals.malformed)))
            @for (source, limit) in &view.rate_limits { (fact(&format!("Rate limit of {source}"), format!("{}/s", count(*limit)))) }
            (fact("Kind", job.kind.name().into()))
            (fact("Checkpoint", view.checkpoint.clone()))
        }
    }
}

fn charts(batches: &[&BatchView], view: &JobView) -> Markup {
    let interval_ms = view.batch_interval_ms;
    let series = |value: &dyn Fn(&BatchView) -> Option<f64>| -> Vec<(i64, f64)> {
        batches.iter().rev().filter_map(|batch| value(batch).map(|value| (batch.time_ms, value))).collect()
    };
    let ms = |value: Option<u64>| value.map(|ms| ms as f64);
    let rate = series(&|batch| Some(per_second(batch.records, view)));
    let scheduling = series(&|batch| ms(batch.scheduling_delay_ms()));
    let processing = series(&|batch| ms(batch.processing_ms()));
    let total = series(&|batch| ms(batch.total_delay_ms()));
    let interval = Some((interval_ms as f64, "batch interval"));
    // The line is drawn where it does not flatten the values.
    let near = processing.iter().any(|(_, value)| *value * 20.0 >= interval_ms as f64);
    html! {
        (Chart { title: "Input rate", unit: "records/s", points: &rate, line: None }.render())
        (streams(batches, view))
        (Chart { title: "Scheduling delay", unit: "ms", points: &scheduling, line: None }.render())
        (Chart { title: "Processing time", unit: "ms", points: &processing, line: interval.filter(|_| near) }.render())
        @if !near && !processing.is_empty() { p.muted.note { "Processing time is below a twentieth of the batch interval (" (duration(interval_ms)) ")." } }
        (Chart { title: "Total delay", unit: "ms", points: &total, line: None }.render())
    }
}

fn per_second(records: u64, view: &JobView) -> f64 {
    records as f64 * 1000.0 / view.batch_interval_ms.max(1) as f64
}

/// The input rate of each stream, and what receives it. Open where something is wrong with a receiver.
fn streams(batches: &[&BatchView], view: &JobView) -> Markup {
    if view.streams.is_empty() {
        return html! {};
    }
    let wrong = |stream: &StreamView| stream.receiver.as_ref().is_some_and(|receiver| !receiver.active || receiver.last_error.is_some());
    let open = view.streams.iter().any(wrong) && !view.state.is_over();
    html! {
        details.streams open[open] {
            summary { "Input rate by stream (" (view.streams.len()) ")" }
            @for stream in &view.streams {
                @let points: Vec<(i64, f64)> = batches.iter().rev().map(|batch| (batch.time_ms, per_second(batch.records_of(stream.id), view))).collect();
                @let behind = batches.first().and_then(|newest| newest.behind(stream.id));
                (Chart { title: &stream.name, unit: "records/s", points: &points, line: None }.render())
                dl.facts {
                    (fact("Stream", stream.id.to_string()))
                    @match &stream.receiver {
                        None => (fact("Read", "directly".into())),
                        Some(receiver) => (receiver_facts(receiver)),
                    }
                    @if let Some(behind) = behind { (fact("Behind", format!("{} records", count(behind)))) }
                }
                @if let Some(error) = stream.receiver.as_ref().and_then(|receiver| receiver.last_error.as_ref()) {
                    details { summary.error-line { "Last error, " (time(error.time_ms)) ": " (first_line(&error.message)) } pre { (error.error) } }
                }
            }
        }
    }
}

fn receiver_facts(receiver: &ReceiverView) -> Markup {
    html! {
        (fact("Receiver", if receiver.active { "ACTIVE" } else { "INACTIVE" }.into()))
        (fact("Executor / host", format!("{} / {}", receiver.executor_id, receiver.location)))
    }
}

fn batch_link(job: &Job, batch: &BatchView) -> Markup {
    html! { a href={ "/jobs/" (job.name) "/batches/" (batch.time_ms) } { (time(batch.time_ms)) } span.muted { " #" (batch.id) } }
}

/// `2/3`, and what the others do.
fn outputs_done(batch: &BatchView) -> Markup {
    let in_state = |state: OutputState| (batch.outputs_in(state), state.name());
    let others = [OutputState::Running, OutputState::Failed].map(in_state);
    html! {
        (batch.outputs_in(OutputState::Succeeded)) "/" (batch.outputs.len())
        @for (n, name) in others { @if n > 0 { span.muted { " (" (n) " " (name) ")" } } }
    }
}

fn active_table(job: &Job, active: &[BatchView]) -> Markup {
    html! {
        h2 { "Active batches (" (active.len()) ")" }
        @if active.is_empty() { p.muted { "None." } } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Batch time" } th.n scope="col" { "Records" } th.n scope="col" { "Scheduling delay" }
                    th.n scope="col" { "Attempt" } th.n scope="col" { "Outputs: succeeded/total" } th scope="col" { "Status" }
                } }
                tbody { @for batch in active.iter().rev() {
                    tr {
                        th scope="row" { (batch_link(job, batch)) }
                        td.n { (count(batch.records)) }
                        td.n { (maybe_duration(batch.scheduling_delay_ms())) }
                        td.n { (batch.attempt + 1) }
                        td.n { (outputs_done(batch)) }
                        td { (batch_state(batch)) @if let Some(error) = &batch.error { div.error-line { (first_line(error)) } } }
                    }
                } }
            } }
        }
    }
}

/// Not shown while there are none: a batch that fails for good ends its job.
fn failed_table(job: &Job, failed: &[&BatchView]) -> Markup {
    html! {
        @if !failed.is_empty() {
            h2 { "Failed batches (" (failed.len()) ")" }
            (ended_table(job, &failed[..failed.len().min(TABLE_BATCHES)]))
        }
    }
}

fn completed_table(job: &Job, completed: &[&BatchView], total: u64, page: usize) -> Markup {
    let pages = completed.len().div_ceil(TABLE_BATCHES).max(1);
    let page = page.clamp(1, pages);
    let first = (page - 1) * TABLE_BATCHES;
    let shown = &completed[first..completed.len().min(first + TABLE_BATCHES)];
    let link = |to: usize, name: &str| html! { a href={ "/jobs/" (job.name) "?page=" (to) "#completed" } { (name) } };
    html! {
        h2 #completed { "Completed batches (last " (count(completed.len() as u64)) " out of " (count(total)) ")" }
        @if completed.is_empty() { p.muted { "None yet." } } @else {
            (ended_table(job, shown))
            @if pages > 1 {
                nav.pages aria-label="Pages of completed batches" {
                    @if page > 1 { (link(1, "Newest")) (link(page - 1, "Newer")) }
                    span.muted { "Page " (page) " of " (pages) }
                    @if page < pages { (link(page + 1, "Older")) (link(pages, "Oldest")) }
                }
            }
        }
    }
}

fn ended_table(job: &Job, batches: &[&BatchView]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th scope="col" { "Batch time" } th.n scope="col" { "Records" } th.n scope="col" { "Scheduling delay" }
                th.n scope="col" { "Processing time" } th.n scope="col" { "Total delay" } th.n scope="col" { "Outputs: succeeded/total" } th scope="col" { "Status" }
            } }
            tbody { @for batch in batches {
                tr {
                    th scope="row" { (batch_link(job, batch)) }
                    td.n { (count(batch.records)) }
                    td.n { (maybe_duration(batch.scheduling_delay_ms())) }
                    td.n { (maybe_duration(batch.processing_ms())) }
                    td.n { (maybe_duration(batch.total_delay_ms())) }
                    td.n { (outputs_done(batch)) }
                    td {
                        (batch_state(batch))
                        @if batch.attempt > 0 || batch.state == BatchState::Failed {
                            div.error-line {
                                @if batch.attempt > 0 { (batch.attempt + 1) " attempts: " }
                                @if let Some(error) = &batch.error { (first_line(error)) }
                            }
                        }
                    }
                }
            } }
        } }
    }
}

// === One batch ===

pub(super) fn batch(job: &Job, batch: &BatchView) -> Markup {
    let view = job.monitor.view();
    let live = html! {
        h1 { "Batch at " (time(batch.time_ms)) " " (batch_state(batch)) }
        p.lead { "Number " strong { (batch.id) } " of job " a href={ "/jobs/" (job.name) } { (job.name) } }
        dl.facts {
            (fact("Batch duration", duration(view.batch_interval_ms)))
            (fact("Input data size", format!("{} records", count(batch.records))))
            (fact("Scheduling delay", maybe_duration(batch.scheduling_delay_ms())))
            (fact("Processing time", maybe_duration(batch.processing_ms())))
            (fact("Total delay", maybe_duration(batch.total_delay_ms())))
            (fact("Rows out", count(batch.rows_out)))
            (fact("Malformed", count(batch.malformed)))
            (fact("Late", count(batch.late)))
            (fact("Attempts", (batch.attempt + 1).to_string()))
        }
        @if let Some(error) = &batch.error { div.alert role="alert" { strong { "Last error" } pre { (error) } } }
        h2 { "Outputs" }
        @if batch.outputs.is_empty() { p.muted { @if batch.started_ms.is_none() { "Not begun." } @else { "None began." } } } @else {
            div.scroll { table {
                thead { tr {
                    th.n scope="col" { "Id" } th scope="col" { "Output" } th scope="col" { "Description" } th scope="col" { "Started" }
                    th.n scope="col" { "Duration" } th.n scope="col" { "Rows" } th scope="col" { "Jobs" } th scope="col" { "Status" }
                } }
                tbody { @for output in &batch.outputs { (output_row(output)) } }
            } }
        }
        h2 { "Input" }
        @for (source, ranges) in batch.ranges.iter().enumerate() {
            @let name = view.streams.get(source).map_or_else(|| format!("Stream {source}"), |stream| stream.name.clone());
            div.scroll { table {
                caption { (name) @if let Some(behind) = batch.behind(source) { span.muted { " · left for later batches: " (count(behind)) " records" } } }
                thead { tr { th scope="col" { "Topic" } th.n scope="col" { "Partition" } th.n scope="col" { "From offset" } th.n scope="col" { "Until offset" } th.n scope="col" { "Records" } } }
                tbody { @for range in ranges {
                    tr {
                        th scope="row" { (range.topic) }
                        td.n { (range.partition) } td.n { (range.from) } td.n { (range.until) } td.n { (count(range.count())) }
                    }
                } }
            } }
        }
    };
    let trail = html! {
        span.muted { "/" } a href={ "/jobs/" (job.name) } { (job.name) }
        span.muted { "/" } a href={ "/jobs/" (job.name) "/batches/" (batch.time_ms) } aria-current="page" { "batch " (batch.id) }
    };
    let refresh = if matches!(batch.state, BatchState::Queued | BatchState::Running) { 1000 } else { 0 };
    layout(&format!("Batch {} of {}", batch.id, job.name), &trail, refresh, &live)
}

fn output_row(output: &OutputView) -> Markup {
    let state = output.state();
    let class = match state {
        OutputState::Waiting => "waiting",
        OutputState::Running => "running",
        OutputState::Succeeded => "finished",
        OutputState::Failed => "failed",
    };
    let jobs: Vec<String> = output.job_ids.iter().map(u64::to_string).collect();
    html! { tr {
        td.n { (output.id) }
        th scope="row" { (output.name) }
        td { (output.description) }
        td { (output.started_ms.map_or_else(|| "–".into(), clock)) }
        td.n { (maybe_duration(output.duration_ms())) }
        td.n { @if state == OutputState::Succeeded { (count(output.rows)) } @else { "–" } }
        td { (jobs.join(", ")) }
        td {
            span class={ "state " (class) } { (state.name()) }
            @if let Some(error) = &output.error {
                details.error { summary.error-line { (first_line(error)) } pre { (error) } }
            }
        }
    } }
}
