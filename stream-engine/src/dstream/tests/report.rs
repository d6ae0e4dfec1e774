//! What people see of a batch's outputs, while they run and when they fail.

use super::*;
use crate::batch::clock::ManualClock;
use crate::commit::PlannedBatch;
use crate::job::{OutputState, OutputView, StreamingListener};

fn monitor(ssc: &StreamingContext, clock: &ManualClock, second: i64) -> Arc<Monitor> {
    let monitor = Monitor::new("job", 1000, 10, "", Arc::new(clock.clone())).with_listeners(ssc.graph.lock().listeners.clone());
    let definition = (*batch(second, "a b").0).clone();
    monitor.submitted(&PlannedBatch { definition, caught_up: Vec::new(), end: None, topics: Vec::new(), sources: Vec::new() }, None);
    Arc::new(monitor)
}

fn states(outputs: &[OutputView]) -> Vec<OutputState> {
    outputs.iter().map(OutputView::state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_seen_while_they_run_and_when_the_batch_fails() {
    use OutputState::{Failed, Running, Succeeded, Waiting};
    let (ssc, words) = context();
    let clock = ManualClock::at(5_000);
    let monitor = monitor(&ssc, &clock, 1);
    let during = Arc::new(Mutex::new(Vec::new()));
    let fail = Arc::new(AtomicBool::new(true));
    words.print_first(1);
    let (watch, fails, seen, time) = (monitor.clone(), fail.clone(), during.clone(), clock.clone());
    words.foreach_rdd(move |rdd, _| {
        seen.lock().push(states(&watch.batch(1000).unwrap().outputs));
        time.advance(Duration::from_millis(30));
        let fails = fails.swap(false, Relaxed);
        async move {
            rdd.count().await?;
            anyhow::ensure!(!fails, "disk full");
            Ok(())
        }
    });
    words.window(secs(2), secs(2)).foreach_rdd(|_, _| async { panic!("not at this time") });
    ignore(&words);
    let mut program = ssc.program().unwrap();

    reported(&mut program, 1, "a b", false, Some(monitor.clone())).await.unwrap_err();
    let outputs = monitor.batch(1000).unwrap().outputs;
    assert_eq!(*during.lock(), [[Succeeded, Running, Waiting]]);
    assert_eq!(states(&outputs), [Succeeded, Failed, Waiting]);
    let (first, second) = (&outputs[0], &outputs[1]);
    assert!(first.description.starts_with("print at ") && first.description.contains("tests/report.rs:"), "{}", first.description);
    assert_eq!((second.started_ms, second.ended_ms, second.duration_ms()), (Some(5_000), Some(5_030), Some(30)));
    assert_eq!(second.error.as_deref(), Some("output foreachRDD-1: disk full"));

    program.restore(Bytes::new()).unwrap();
    reported(&mut program, 1, "a b", true, Some(monitor.clone())).await.unwrap();
    let outputs = monitor.batch(1000).unwrap().outputs;
    assert_eq!(states(&outputs), [Succeeded; 3]);
    assert_eq!(outputs.iter().map(|output| output.job_ids.clone()).collect::<Vec<_>>(), [vec![0], vec![1, 2], vec![3]]);
    assert_eq!((outputs[1].rows, outputs[1].error.clone()), (2, None));
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl StreamingListener for Heard {
    fn on_output_operation_started(&self, batch_time_ms: i64, output: &OutputView) -> anyhow::Result<()> {
        self.0.lock().push(format!("{batch_time_ms} {} starts", output.name));
        Ok(())
    }

    fn on_output_operation_completed(&self, batch_time_ms: i64, output: &OutputView) -> anyhow::Result<()> {
        self.0.lock().push(format!("{batch_time_ms} {} ends with {} rows", output.name, output.rows));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_the_context_hears_its_outputs_in_their_order() {
    let (ssc, words) = context();
    let heard = Arc::new(Heard::default());
    ssc.add_streaming_listener(heard.clone());
    ignore(&words);
    ignore(&words.count());
    let monitor = monitor(&ssc, &ManualClock::at(0), 1);
    reported(&mut ssc.program().unwrap(), 1, "a b c", false, Some(monitor.clone())).await.unwrap();
    monitor.listeners_done().await;
    let said = ["foreachRDD-0 starts", "foreachRDD-0 ends with 3 rows", "foreachRDD-1 starts", "foreachRDD-1 ends with 1 rows"];
    assert_eq!(*heard.0.lock(), said.map(|said| format!("1000 {said}")));
}
