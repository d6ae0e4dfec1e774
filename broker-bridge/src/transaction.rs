//! Transactions of callers: begin, write, send offsets, commit or abort. Knows neither HTTP nor gRPC.
//!
//! | promise | how |
//! |---|---|
//! | all or nothing | one Kafka transaction by one writer; readers at `read_committed` see all of it, or none |
//! | an abandoned transaction ends | each has a lease, renewed by every call up to `transactions.timeout`; when it runs out, the transaction is aborted |
//! | nobody writes after a restart | a transaction's id dies with the process; the writer's own id is taken up again by the next process of that place, which fences it |
//! | bounded | so many at a time (`transactions.open_max`), so many records in each (`transactions.records_max`) |
//!
//! Writers are used again: beginning with a new one costs a round trip to the coordinator, and every `transactional.id` leaves a trace in Kafka.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use service_kit::kafka::{self, KafkaError, OutRecord, TopicPartition, TransactionalWriter};
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    auth, config,
    connect::Connection,
    error::{BridgeError, Code, Result},
    gate::{Gate, Work},
    topics::Topics,
};

/// Makes writers; in tests without a broker.
#[async_trait]
pub(crate) trait Writers: Send + Sync {
    /// Fences whoever had the id.
    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError>;
}

/// Writers on the configured cluster.
pub(crate) struct KafkaWriters {
    pub(crate) kafka: Connection,
    /// How long Kafka lets a transaction live.
    pub(crate) timeout: Duration,
}

#[async_trait]
impl Writers for KafkaWriters {
    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
        let mut config = self.kafka.of_caller()?.config().clone();
        let timeout_ms = self.timeout.as_millis().clamp(1_000, i32::MAX as u128);
        config.set("transaction.timeout.ms", timeout_ms.to_string());
        kafka::transactional_writer(&config, transactional_id).await
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transactions {
    inner: Arc<Inner>,
}

struct Inner {
    writers: Arc<dyn Writers>,
    topics: Topics,
    gate: Arc<Gate>,
    config: config::Transactions,
    /// What transactional ids begin with.
    id: String,
    open: Mutex<HashMap<String, Arc<Transaction>>>,
    /// Writers that wait for the next transaction.
    idle: Mutex<Vec<Slot>>,
    /// Of all writers there are.
    numbers: Arc<Mutex<Numbers>>,
    /// `transactions.open_max`.
    room: Arc<Semaphore>,
}

/// A writer with its number, which ends its transactional id.
struct Slot {
    writer: Box<dyn TransactionalWriter>,
    /// Made with a caller's own login: nobody else may use it.
    of_caller: bool,
    _number: Number,
}

/// The end of a transactional id; free again when it is dropped. Whoever takes it then aborts what its writer left open.
struct Number {
    number: usize,
    of: Arc<Mutex<Numbers>>,
}

#[derive(Default)]
struct Numbers {
    free: Vec<usize>,
    made: usize,
}

impl Number {
    fn take(of: &Arc<Mutex<Numbers>>) -> Self {
        let mut numbers = of.lock();
        let number = numbers.free.pop().unwrap_or_else(|| {
            numbers.made += 1;
            numbers.made - 1
        });
        Self { number, of: Arc::clone(of) }
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.of.lock().free.push(self.number);
    }
}

struct Transaction {
    /// Who began it.
    owner: Option<Arc<str>>,
    /// Its own, where it logs in to Kafka itself.
    connection: Option<Connection>,
    lease: Duration,
    /// Kafka lets no transaction live longer, whoever renews its lease.
    end: Instant,
    /// Until when the lease holds.
    until: Mutex<Instant>,
    state: tokio::sync::Mutex<State>,
}

struct State {
    /// `None` once it has ended.
    slot: Option<Slot>,
    records: usize,
    _permit: OwnedSemaphorePermit,
}

/// What a caller learns of its new transaction.
pub(crate) struct Begun {
    pub(crate) id: String,
    pub(crate) lease: Duration,
}

impl Transactions {
    pub(crate) fn new(writers: Arc<dyn Writers>, topics: Topics, gate: Arc<Gate>, id: String, config: config::Transactions) -> Self {
        let room = Arc::new(Semaphore::new(config.open_max.min(Semaphore::MAX_PERMITS)));
        let (open, idle, numbers) = (Mutex::default(), Mutex::default(), Arc::default());
        Self { inner: Arc::new(Inner { writers, topics, gate, config, id, open, idle, numbers, room }) }
    }

    /// `lease`: how long it lives without a call; `None` takes `transactions.lease`.
    pub(crate) async fn begin(&self, lease: Option<Duration>) -> Result<Begun> {
        let inner = &self.inner;
        let lease = lease.unwrap_or(inner.config.lease);
        if lease.is_zero() || lease > inner.config.timeout {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!("a lease of {lease:?} is not possible; give 1 ms to {:?} (transactions.timeout)", inner.config.timeout),
            ));
        }
        let state = self.open().await?;
        let now = Instant::now();
        let id = uuid::Uuid::new_v4().to_string();
        let (until, state) = (Mutex::new(now + lease), tokio::sync::Mutex::new(state));
        let (owner, connection) = (auth::owner(), auth::connection().ok().flatten());
        let transaction = Transaction { owner, connection, lease, end: now + inner.config.timeout, until, state };
        inner.open.lock().insert(id.clone(), Arc::new(transaction));
        Ok(Begun { id, lease })
    }

    /// Writes records of any topics in one transaction of its own: all or none.
    pub(crate) async fn write_all(&self, records: Vec<OutRecord>) -> Result<()> {
        self.check(&records, 0).await?;
        let mut state = self.open().await?;
        let transactions = self.clone();
        to_the_end(async move {
            let outcome = match state.writer()?.send(records).await {
                Ok(()) => state.writer()?.commit().await,
                Err(error) => Err(error),
            };
            transactions.end(&mut state, outcome).await
        })
        .await
    }

    async fn open(&self) -> Result<State> {
        let inner = &self.inner;
        drop(inner.gate.enter(Work::Produce, 0)?);
        let permit = Arc::clone(&inner.room).try_acquire_owned().map_err(|_| {
            BridgeError::new(
                Code::TooMany,
                format!("{} transactions are open already (transactions.open_max); end one, or try again", inner.config.open_max),
            )
        })?;
        let mut slot = self.slot().await?;
        if let Err(error) = slot.writer.begin().await {
            return Err(error.into());
        }
        metrics::gauge!("millrace_bridge_transactions_open").increment(1);
        Ok(State { slot: Some(slot), records: 0, _permit: permit })
    }

    /// A writer that waits, or a new one.
    async fn slot(&self) -> Result<Slot> {
        let of_caller = auth::connection()?.and_then(|_| auth::owner());
        if of_caller.is_none()
            && let Some(slot) = self.inner.idle.lock().pop()
        {
            return Ok(slot);
        }
        let number = Number::take(&self.inner.numbers);
        // Nobody else's: who may use an id can fence whoever has it.
        let id = match &of_caller {
            Some(name) => format!("{}.of.{name}-{}", self.inner.id, number.number),
            None => format!("{}-{}", self.inner.id, number.number),
        };
        let writer = self.inner.writers.writer(&id).await?;
        Ok(Slot { writer, of_caller: of_caller.is_some(), _number: number })
    }

    /// Whether this process has it. Then its caller, whom another bridge may have handed on, goes by the login that it began with.
    pub(crate) fn has(&self, id: &str) -> bool {
        let open = self.inner.open.lock();
        let Some(transaction) = open.get(id) else { return false };
        if transaction.owner == auth::owner() {
            auth::lend(transaction.connection.as_ref());
        }
        true
    }

    /// An error where somebody else began it.
    fn check_owner(&self, id: &str) -> Result<()> {
        let owner = self.inner.open.lock().get(id).map(|transaction| transaction.owner.clone());
        owner.map_or(Ok(()), |owner| auth::check_owner(owner.as_deref(), || format!("transaction {id:?}")))
    }

    /// The open transaction of an id, its lease renewed; the time of the call does not count.
    async fn of<T>(&self, id: &str, call: impl AsyncFnOnce(&mut State) -> Result<T>) -> Result<T> {
        let transaction = self.inner.open.lock().get(id).cloned().ok_or_else(|| unknown(id))?;
        let mut state = transaction.state.lock().await;
        if state.slot.is_none() || *transaction.until.lock() <= Instant::now() {
            return Err(unknown(id));
        }
        let result = call(&mut state).await;
        *transaction.until.lock() = (Instant::now() + transaction.lease).min(transaction.end);
        result
    }

    /// Resolves when the records are acknowledged. An error leaves nothing but to abort.
    pub(crate) async fn produce(&self, id: &str, records: Vec<OutRecord>) -> Result<usize> {
        let count = records.len();
        self.check_owner(id)?;
        let (transactions, id) = (self.clone(), id.to_owned());
        to_the_end(async move {
            let send = async |state: &mut State| {
                transactions.check(&records, state.records).await?;
                state.writer()?.send(records).await?;
                state.records += count;
                Ok(count)
            };
            transactions.of(&id, send).await
        })
        .await
    }

    /// Offsets of a group, as part of the transaction: the next ones to read.
    pub(crate) async fn offsets(&self, id: &str, group: &str, offsets: Vec<(TopicPartition, i64, String)>) -> Result<()> {
        if group.is_empty() {
            return Err(BridgeError::new(Code::Unprocessable, "group is empty; name the group whose offsets these are"));
        }
        self.check_owner(id)?;
        auth::check_subscription(group, offsets.iter().map(|(partition, ..)| &*partition.topic))?;
        if let Some((partition, offset, _)) = offsets.iter().find(|(_, offset, _)| *offset < 0) {
            return Err(BridgeError::new(Code::Unprocessable, format!("{partition}: {offset} is not an offset")));
        }
        for (partition, ..) in &offsets {
            self.inner.topics.check(&partition.topic, Some(partition.partition)).await?;
        }
        let (transactions, id, group) = (self.clone(), id.to_owned(), group.to_owned());
        to_the_end(async move {
            let send = async |state: &mut State| Ok(state.writer()?.offsets(&group, offsets).await?);
            transactions.of(&id, send).await
        })
        .await
    }

    pub(crate) async fn commit(&self, id: &str) -> Result<()> {
        self.finish(id, true).await
    }

    pub(crate) async fn abort(&self, id: &str) -> Result<()> {
        self.finish(id, false).await
    }

    async fn finish(&self, id: &str, commit: bool) -> Result<()> {
        self.check_owner(id)?;
        let (transactions, id) = (self.clone(), id.to_owned());
        to_the_end(async move {
            let ended = transactions
                .of(&id, async |state| {
                    let writer = state.writer()?;
                    if commit {
                        let outcome = writer.commit().await;
                        return transactions.end(state, outcome).await;
                    }
                    transactions.give_up(state, "aborted").await
                })
                .await;
            let is_over = match transactions.inner.open.lock().get(&id) {
                Some(transaction) => transaction.state.try_lock().is_ok_and(|state| state.slot.is_none()),
                None => false,
            };
            if is_over {
                transactions.inner.open.lock().remove(&id);
            }
            ended
        })
        .await
    }

    /// After a commit: the writer goes back, or what failed is aborted.
    async fn end(&self, state: &mut State, outcome: Result<(), KafkaError>) -> Result<()> {
        match outcome {
            Ok(()) => {
                self.put_back(state, "committed");
                Ok(())
            }
            Err(error) => {
                let aborted = self.give_up(state, "failed").await;
                let told = match aborted {
                    Ok(()) if !matches!(error, KafkaError::OutcomeUnknown(_)) => {
                        format!("{error}; the transaction is aborted, nothing of it is to be seen")
                    }
                    _ => error.to_string(),
                };
                Err(BridgeError { message: told, ..BridgeError::from(error) })
            }
        }
    }

    async fn give_up(&self, state: &mut State, outcome: &'static str) -> Result<()> {
        match state.writer()?.abort().await {
            Ok(()) => {
                self.put_back(state, outcome);
                Ok(())
            }
            Err(error) => {
                // The next writer with its id aborts what this one could not.
                if state.slot.take().is_some() {
                    over("failed");
                }
                Err(error.into())
            }
        }
    }

    fn put_back(&self, state: &mut State, outcome: &'static str) {
        if let Some(slot) = state.slot.take() {
            over(outcome);
            match slot.of_caller {
                false => self.inner.idle.lock().push(slot),
                true => drop(slot),
            }
        }
    }

    /// What can be refused before anything is written.
    async fn check(&self, records: &[OutRecord], before: usize) -> Result<()> {
        let max = self.inner.config.records_max;
        if records.is_empty() {
            return Err(BridgeError::new(Code::Unprocessable, "records is empty; send at least one record"));
        }
        auth::check_records(records)?;
        if before + records.len() > max {
            return Err(BridgeError::new(
                Code::TooLarge,
                format!(
                    "{} records in one transaction are more than {max} (transactions.records_max); commit sooner",
                    before + records.len()
                ),
            ));
        }
        for record in records {
            self.inner.topics.check(&record.topic, record.partition).await?;
        }
        Ok(())
    }

    /// Aborts what nobody has touched for its lease, until the shutdown; then everything.
    pub(crate) async fn watch(self, shutdown: CancellationToken) {
        loop {
            let next = self.inner.open.lock().values().map(|transaction| *transaction.until.lock()).min();
            let wait = next.map_or(LOOK, |next| next.saturating_duration_since(Instant::now()).clamp(SOON, LOOK));
            select! {
                () = shutdown.cancelled() => break,
                () = sleep(wait) => self.expire(|until| until <= Instant::now(), "expired").await,
            }
        }
        self.expire(|_| true, "aborted").await;
    }

    async fn expire(&self, is_over: impl Fn(Instant) -> bool, outcome: &'static str) {
        let over: Vec<(String, Arc<Transaction>)> = {
            let open = self.inner.open.lock();
            open.iter().filter(|(_, one)| is_over(*one.until.lock())).map(|(id, one)| (id.clone(), Arc::clone(one))).collect()
        };
        for (id, transaction) in over {
            // A call that is under way renews the lease when it ends.
            let Ok(mut state) = transaction.state.try_lock() else { continue };
            if !is_over(*transaction.until.lock()) {
                continue;
            }
            if state.slot.is_some() {
                tracing::info!(id, lease = ?transaction.lease, outcome, "transaction was not ended by its caller");
                if let Err(error) = self.give_up(&mut state, outcome).await {
                    tracing::warn!(id, %error, "the transaction ends at transaction.timeout.ms");
                }
            }
            self.inner.open.lock().remove(&id);
        }
    }
}

/// How often leases are looked at: at least, and at most.
const LOOK: Duration = Duration::from_millis(250);
const SOON: Duration = Duration::from_millis(5);

/// In a task of its own, as the same caller: one that hangs up must not leave it half way.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let done = tokio::spawn(auth::carrier().run(work)).await;
    done.unwrap_or_else(|error| Err(BridgeError::new(Code::Internal, format!("the transaction failed: {error}"))))
}

fn over(outcome: &'static str) {
    metrics::gauge!("millrace_bridge_transactions_open").decrement(1);
    metrics::counter!("millrace_bridge_transactions_total", "outcome" => outcome).increment(1);
}

pub(crate) fn unknown(id: &str) -> BridgeError {
    BridgeError::new(
        Code::TransactionNotFound,
        format!(
            "transaction {id:?} is not open: it has ended, its lease ran out, or its bridge has gone, and then it is aborted; begin another one"
        ),
    )
}

impl State {
    fn writer(&mut self) -> Result<&mut Box<dyn TransactionalWriter>> {
        match &mut self.slot {
            Some(slot) => Ok(&mut slot.writer),
            None => Err(BridgeError::new(Code::TransactionNotFound, "the transaction has ended")),
        }
    }
}

impl Drop for State {
    /// Dropped half way: the writer aborts as it goes.
    fn drop(&mut self) {
        if self.slot.take().is_some() {
            over("failed");
        }
    }
}
