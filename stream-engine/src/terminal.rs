//! The job of `run` on its terminal: one line at the bottom that says where it is. Without a terminal there is none.

use std::{
    io::{self, IsTerminal as _},
    sync::{Arc, OnceLock, mpsc::Receiver},
    thread::{self, JoinHandle},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::job::{JobView, Monitor};

/// How often the line is drawn.
const PERIOD: Duration = Duration::from_millis(200);

static LINE: OnceLock<ProgressBar> = OnceLock::new();

/// Draws the line from the start of the job to its end, when standard error is a terminal. Join it before the process ends.
pub fn show(started: Receiver<Arc<Monitor>>) -> Option<JoinHandle<()>> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let draw = move || {
        // The job did not start; the log says why.
        let Ok(monitor) = started.recv() else { return };
        let line = LINE.get_or_init(ProgressBar::new_spinner);
        line.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        service_kit::telemetry::write_log_within(|write| aside(write));
        loop {
            let view = monitor.view();
            if view.state.is_over() {
                break;
            }
            let rate = monitor.recent_progress().last().and_then(|progress| progress.processed_rows_per_second);
            line.set_message(text(&view, rate));
            line.tick();
            thread::sleep(PERIOD);
        }
        line.finish_and_clear();
    };
    thread::Builder::new().name("progress-line".into()).spawn(draw).ok()
}

/// Does what writes to the terminal while the line is away.
pub fn aside<T>(write: impl FnOnce() -> T) -> T {
    match LINE.get() {
        Some(line) => line.suspend(write),
        None => write(),
    }
}

/// `totals RUNNING · 12 batches · 34567 rows in, 120 out · 81230 rows/s · 1 batch active · watermark 14:05:10`
fn text(view: &JobView, rows_per_second: Option<f64>) -> String {
    let counted = |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let mut parts = vec![
        format!("{} {}", view.name, view.state.name()),
        counted(view.totals.batches, "batch", "batches"),
        format!("{}, {} out", counted(view.totals.rows_in, "row in", "rows in"), view.totals.rows_out),
    ];
    parts.extend(rows_per_second.map(|rate| format!("{rate:.0} rows/s")));
    if !view.active.is_empty() {
        parts.push(format!("{} active", view.active.len()));
    }
    let watermark = view.watermark_ms.and_then(chrono::DateTime::from_timestamp_millis);
    parts.extend(watermark.map(|watermark| format!("watermark {}", watermark.format("%H:%M:%S"))));
    parts.extend(view.error.clone());
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::clock::ManualClock;
    use crate::commit::Totals;

    #[test]
    fn the_line_says_where_the_job_is_and_what_it_waits_for() {
        let monitor = Monitor::new("totals", 1000, 10, "", Arc::new(ManualClock::at(0)));
        assert_eq!(text(&monitor.view(), None), "totals STARTING · 0 batches · 0 rows in, 0 out");
        monitor.restored(Totals { batches: 1, rows_in: 34_567, rows_out: 120, ..Totals::default() }, Some(50_710_000));
        monitor.waiting("sources", "no broker answers".into());
        assert_eq!(
            text(&monitor.view(), Some(81_230.4)),
            "totals WAITING · 1 batch · 34567 rows in, 120 out · 81230 rows/s · watermark 14:05:10 · waiting: no broker answers (since 00:00:00 UTC)"
        );
    }
}
