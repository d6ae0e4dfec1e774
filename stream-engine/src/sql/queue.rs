//! The queues between the steps of a batch: bounded by `millrace.pipeline.queue.max`, and what waits in them is a gauge.

use futures::{Stream, stream};
use tokio::sync::mpsc;

/// A queue in front of `step`.
pub(crate) fn queue<T>(step: &'static str, items_max: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(items_max);
    let waiting = metrics::gauge!("millrace_engine_pipeline_queue_items", "step" => step);
    (Sender { queue: sender, waiting }, Receiver(receiver))
}

pub(crate) struct Sender<T> {
    queue: mpsc::Sender<Waiting<T>>,
    waiting: metrics::Gauge,
}

pub(crate) struct Receiver<T>(mpsc::Receiver<Waiting<T>>);

/// The other end is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed;

/// Counted for as long as it lies in the queue, also when the queue is dropped with it.
struct Waiting<T> {
    item: T,
    _counted: Counted,
}

struct Counted(metrics::Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), waiting: self.waiting.clone() }
    }
}

impl<T> Sender<T> {
    /// Waits for room.
    pub(crate) async fn send(&self, item: T) -> Result<(), Closed> {
        let room = self.queue.reserve().await.map_err(|_| Closed)?;
        self.waiting.increment(1.0);
        room.send(Waiting { item, _counted: Counted(self.waiting.clone()) });
        Ok(())
    }
}

impl<T: Send + 'static> Receiver<T> {
    pub(crate) async fn recv(&mut self) -> Option<T> {
        self.0.recv().await.map(|waiting| waiting.item)
    }

    pub(crate) fn stream(self) -> impl Stream<Item = T> + Send + 'static {
        stream::unfold(self, |mut queue| async move { queue.recv().await.map(|item| (item, queue)) })
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_full_queue_holds_its_sender_up_and_a_dropped_one_counts_nothing() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let shown = recorder.handle();
        let (sender, mut receiver) = metrics::with_local_recorder(&recorder, || queue("test", 2));
        sender.send(1).await.unwrap();
        sender.send(2).await.unwrap();
        assert!(sender.send(3).now_or_never().is_none(), "there is room for two");
        let items = |n: u32| format!("millrace_engine_pipeline_queue_items{{step=\"test\"}} {n}\n");
        assert!(shown.render().contains(&items(2)), "{}", shown.render());
        assert_eq!(receiver.recv().await, Some(1));
        assert!(shown.render().contains(&items(1)));
        let mut rest = Box::pin(receiver.stream());
        sender.send(3).await.unwrap();
        assert_eq!(rest.next().await, Some(2));
        drop(rest);
        assert!(sender.send(4).await.is_err());
        assert!(shown.render().contains(&items(0)), "{}", shown.render());
    }
}
