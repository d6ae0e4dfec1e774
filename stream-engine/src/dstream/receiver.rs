//! Receivers of a program's own.

use std::{marker::PhantomData, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::state::{StateValue, read, write};
use super::{DStream, StreamingContext};
use crate::batch::{SourceSpec, Startup};
use crate::source::receiver::{Intake, ReceiverLog, StoreError};

/// Takes values in from somewhere and stores them, as long as the job runs.
///
/// ```no_run
/// # use async_trait::async_trait;
/// # use stream_engine::dstream::{Receiver, ReceiverSupervisor};
/// struct Thermometer;
///
/// #[async_trait]
/// impl Receiver<f64> for Thermometer {
///     async fn on_start(&self, supervisor: &ReceiverSupervisor<f64>) -> anyhow::Result<()> {
///         loop {
///             supervisor.store(measure().await?).await?;
///         }
///     }
/// }
/// # async fn measure() -> anyhow::Result<f64> { Ok(21.5) }
/// ```
#[async_trait]
pub trait Receiver<T>: Send + Sync + 'static {
    /// Receives, until there is no more or something fails: in both cases it is called again after
    /// `spark.streaming.receiverRestartDelay`. At the end of the job it is dropped where it waits, 5 s after
    /// [`ReceiverSupervisor::stopping`] was cancelled, if it has not returned by then. It runs on the engine's threads, so work
    /// that blocks belongs in [`tokio::task::spawn_blocking`].
    async fn on_start(&self, supervisor: &ReceiverSupervisor<T>) -> anyhow::Result<()>;
}

/// What a receiver stores with, and whom it reports to. Cheap to clone.
pub struct ReceiverSupervisor<T> {
    intake: Intake,
    values: PhantomData<fn(T)>,
}

impl<T> Clone for ReceiverSupervisor<T> {
    fn clone(&self) -> Self {
        Self { intake: self.intake.clone(), values: PhantomData }
    }
}

impl<T: StateValue> ReceiverSupervisor<T> {
    /// Stores a value with the next block, which is made every `spark.streaming.blockInterval`; returns before. Waits for
    /// the rate and for room in memory. The error says that the value cannot be stored.
    pub async fn store(&self, value: T) -> anyhow::Result<()> {
        self.intake.store(encode(&value)?).await;
        Ok(())
    }

    /// Stores values as a block of their own, all or none. When it returns they are stored, with the write-ahead log on disk: now they may
    /// be acknowledged to whoever sent them. Waits for the rate and for room. After an error none is stored; where the call
    /// is dropped, all are or none.
    pub async fn store_all(&self, values: impl IntoIterator<Item = T>) -> anyhow::Result<()> {
        let values: Vec<Bytes> = values.into_iter().map(|value| encode(&value)).collect::<anyhow::Result<_>>()?;
        Ok(self.intake.store_all(values).await.map_err(|error: StoreError| error)?)
    }

    /// Shows the error, in the log and as the receiver's last one. Nothing else happens.
    pub fn report_error(&self, message: &str, error: &anyhow::Error) {
        self.intake.report(format!("{message}: {error:#}"));
    }

    /// Ends this run of the receiver, where it waits next; it is started again after the delay.
    pub fn restart(&self, message: &str) {
        self.intake.restart(message.into());
    }

    /// The receiver ends for good; the job goes on.
    pub fn stop(&self, message: &str) {
        self.intake.stop(message);
    }

    pub fn is_stopped(&self) -> bool {
        self.intake.stopping().is_cancelled()
    }

    /// Cancelled when the receiver is to end.
    pub fn stopping(&self) -> CancellationToken {
        self.intake.stopping()
    }
}

fn encode<T: StateValue>(value: &T) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    write(value, &mut bytes).map_err(|error| error.context("the value cannot be stored"))?;
    Ok(bytes.into())
}

impl StreamingContext {
    /// What a receiver stores, one partition. See [`Receiver`].
    pub fn receiver_stream<T: StateValue>(&self, receiver: impl Receiver<T>) -> DStream<T> {
        self.received("receiver", receiver, Ok)
    }

    /// What `receiver` stores, as what the stream's type is. `op` is for people.
    pub(super) fn received<R: StateValue, T: super::Data>(
        &self,
        op: &str,
        receiver: impl Receiver<R>,
        convert: impl Fn(R) -> anyhow::Result<T> + Send + Sync + 'static,
    ) -> DStream<T> {
        let receiver = Arc::new(receiver);
        let log = ReceiverLog::new(move |intake| {
            let receiver = receiver.clone();
            async move { receiver.on_start(&ReceiverSupervisor { intake, values: PhantomData }).await }.boxed()
        });
        let spec = |name| Ok(SourceSpec::local(name, "", Arc::new(log), Startup::Earliest));
        self.record_stream("receiver", op.into(), spec, move |range, record| {
            let wrong = |error: anyhow::Error| {
                error.context(format!("{} offset {}: what is stored cannot be read as this program's type", range.topic, record.offset))
            };
            let value = read::<R>(record.value.as_deref().unwrap_or_default()).map_err(wrong)?.pop();
            convert(value.ok_or_else(|| wrong(anyhow::anyhow!("it is empty")))?)
        })
    }
}
