//! What is counted of each component: by Flume's names for the JSON page, by Millrace's for Prometheus.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::channel::Channel;

/// Name → value, as Flume's page shows it; numbers are whole unless Flume's own are not.
pub type Shown = Vec<(&'static str, f64)>;

/// Counts here and in Prometheus. Added to per batch, never per event.
pub struct Counter {
    value: AtomicU64,
    exported: metrics::Counter,
}

impl Counter {
    pub fn new(name: &'static str, label: &'static str, component: &str) -> Self {
        Self { value: AtomicU64::new(0), exported: metrics::counter!(name, label => component.to_owned()) }
    }

    pub fn add(&self, count: u64) {
        self.value.fetch_add(count, Relaxed);
        self.exported.increment(count);
    }

    pub fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

/// Milliseconds since 1970; 0 before it happens.
#[derive(Default)]
pub struct Moment(AtomicI64);

impl Moment {
    pub fn now(&self) {
        self.0.store(unix_ms(), Relaxed);
    }

    fn get(&self) -> f64 {
        self.0.load(Relaxed) as f64
    }
}

pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub struct SourceCounters {
    pub received: Counter,
    /// Bytes of their bodies.
    pub received_bytes: Counter,
    /// What is in its files and not read yet.
    pub unread_bytes: AtomicU64,
    unread: metrics::Gauge,
    pub accepted: Counter,
    pub batches_received: Counter,
    pub batches_accepted: Counter,
    /// Requests of one event, where the protocol tells them from batches.
    pub appends_received: Counter,
    pub appends_accepted: Counter,
    /// A put that found the channel full.
    pub channel_failures: Counter,
    pub read_failures: Counter,
    /// Events that an interceptor ended.
    pub filtered: Counter,
    /// Events that the selector sent to no channel.
    pub unrouted: Counter,
    /// Events that an optional channel refused.
    pub optional_refused: Counter,
    /// Messages that were lost: dropped by the kernel, or taken and not put before the end.
    pub dropped: Counter,
    /// Connections whose TLS handshake failed.
    pub tls_failures: Counter,
    pub connections: AtomicI64,
    pub started: Moment,
    pub stopped: Moment,
}

impl SourceCounters {
    pub fn new(component: &str) -> Arc<Self> {
        let counter = |name| Counter::new(name, "source", component);
        Arc::new(Self {
            received: counter("millrace_collector_source_received_events_total"),
            received_bytes: counter("millrace_collector_source_received_bytes_total"),
            unread_bytes: AtomicU64::new(0),
            unread: metrics::gauge!("millrace_collector_source_unread_bytes", "source" => component.to_owned()),
            accepted: counter("millrace_collector_source_accepted_events_total"),
            batches_received: counter("millrace_collector_source_received_batches_total"),
            batches_accepted: counter("millrace_collector_source_accepted_batches_total"),
            appends_received: counter("millrace_collector_source_received_appends_total"),
            appends_accepted: counter("millrace_collector_source_accepted_appends_total"),
            channel_failures: counter("millrace_collector_source_channel_full_total"),
            read_failures: counter("millrace_collector_source_read_failures_total"),
            filtered: counter("millrace_collector_source_filtered_events_total"),
            unrouted: counter("millrace_collector_source_unrouted_events_total"),
            optional_refused: counter("millrace_collector_source_optional_refused_events_total"),
            dropped: counter("millrace_collector_source_dropped_events_total"),
            tls_failures: counter("millrace_collector_source_tls_failures_total"),
            connections: AtomicI64::new(0),
            started: Moment::default(),
            stopped: Moment::default(),
        })
    }

    pub fn is_behind(&self, bytes: u64) {
        self.unread_bytes.store(bytes, Relaxed);
        self.unread.set(bytes as f64);
    }

    pub fn shown(&self) -> Shown {
        let count = |counter: &Counter| counter.get() as f64;
        vec![
            ("EventReceivedCount", count(&self.received)),
            ("EventAcceptedCount", count(&self.accepted)),
            ("AppendReceivedCount", count(&self.appends_received)),
            ("AppendAcceptedCount", count(&self.appends_accepted)),
            ("AppendBatchReceivedCount", count(&self.batches_received)),
            ("AppendBatchAcceptedCount", count(&self.batches_accepted)),
            ("OpenConnectionCount", self.connections.load(Relaxed) as f64),
            ("ChannelWriteFail", count(&self.channel_failures)),
            ("EventReadFail", count(&self.read_failures)),
            ("GenericProcessingFail", 0.0),
            ("ByteReceivedCount", count(&self.received_bytes)),
            ("UnreadByteCount", self.unread_bytes.load(Relaxed) as f64),
            ("FilteredEventCount", count(&self.filtered)),
            ("UnroutedEventCount", count(&self.unrouted)),
            ("OptionalRefusedEventCount", count(&self.optional_refused)),
            ("DroppedEventCount", count(&self.dropped)),
            ("TlsFailureCount", count(&self.tls_failures)),
            ("StartTime", self.started.get()),
            ("StopTime", self.stopped.get()),
        ]
    }
}

pub struct SinkCounters {
    pub attempted: Counter,
    pub delivered: Counter,
    /// Bytes of the bodies that the channel has let go of.
    pub committed_bytes: Counter,
    /// Events whose delivery failed and is tried again.
    pub failed: Counter,
    /// Events that can never be delivered, put aside with the reason.
    pub dead: Counter,
    /// Events found in the committed positions: written by an earlier transaction.
    pub skipped: Counter,
    pub batches_complete: Counter,
    pub batches_underflow: Counter,
    pub batches_empty: Counter,
    pub rollbacks: Counter,
    pub send_ms: AtomicU64,
    pub sends: AtomicU64,
    pub connections_created: Counter,
    pub connections_failed: Counter,
    pub started: Moment,
    pub stopped: Moment,
}

impl SinkCounters {
    pub fn new(component: &str) -> Arc<Self> {
        let counter = |name| Counter::new(name, "sink", component);
        Arc::new(Self {
            attempted: counter("millrace_collector_sink_attempted_events_total"),
            delivered: counter("millrace_collector_sink_delivered_events_total"),
            committed_bytes: counter("millrace_collector_sink_committed_bytes_total"),
            failed: counter("millrace_collector_sink_failed_events_total"),
            dead: counter("millrace_collector_sink_dead_letters_total"),
            skipped: counter("millrace_collector_sink_skipped_events_total"),
            batches_complete: counter("millrace_collector_sink_complete_batches_total"),
            batches_underflow: counter("millrace_collector_sink_underflow_batches_total"),
            batches_empty: counter("millrace_collector_sink_empty_batches_total"),
            rollbacks: counter("millrace_collector_sink_rollbacks_total"),
            send_ms: AtomicU64::new(0),
            sends: AtomicU64::new(0),
            connections_created: counter("millrace_collector_sink_connections_total"),
            connections_failed: counter("millrace_collector_sink_connection_failures_total"),
            started: Moment::default(),
            stopped: Moment::default(),
        })
    }

    /// Of the events whose delivery was decided, those delivered, in percent; 100 before the first.
    pub fn success_rate(&self) -> f64 {
        let (delivered, failed) = (self.delivered.get(), self.failed.get() + self.dead.get());
        if delivered + failed == 0 { 100.0 } else { delivered as f64 * 100.0 / (delivered + failed) as f64 }
    }

    /// One send is over, after `time`.
    pub fn sent_in(&self, time: Duration) {
        self.send_ms.fetch_add(u64::try_from(time.as_millis()).unwrap_or_default(), Relaxed);
        self.sends.fetch_add(1, Relaxed);
    }

    /// A batch was taken: `events` of at most `max`.
    pub fn taken(&self, events: usize, max: usize) {
        match events {
            0 => self.batches_empty.add(1),
            _ if events < max => self.batches_underflow.add(1),
            _ => self.batches_complete.add(1),
        }
        self.attempted.add(events as u64);
    }

    pub fn shown(&self) -> Shown {
        let count = |counter: &Counter| counter.get() as f64;
        vec![
            ("ConnectionCreatedCount", count(&self.connections_created)),
            ("ConnectionClosedCount", 0.0),
            ("ConnectionFailedCount", count(&self.connections_failed)),
            ("BatchCompleteCount", count(&self.batches_complete)),
            ("BatchUnderflowCount", count(&self.batches_underflow)),
            ("BatchEmptyCount", count(&self.batches_empty)),
            ("EventDrainAttemptCount", count(&self.attempted)),
            ("EventDrainSuccessCount", count(&self.delivered)),
            ("EventWriteFail", count(&self.failed)),
            ("ChannelReadFail", 0.0),
            ("RollbackCount", count(&self.rollbacks)),
            ("KafkaEventSendTimer", self.send_ms.load(Relaxed) as f64),
            ("SendCount", self.sends.load(Relaxed) as f64),
            ("DeadLetterCount", count(&self.dead)),
            ("SkippedEventCount", count(&self.skipped)),
            ("ByteDrainCount", count(&self.committed_bytes)),
            ("SuccessRate", self.success_rate()),
            ("StartTime", self.started.get()),
            ("StopTime", self.stopped.get()),
        ]
    }
}

/// A channel counts itself; this adds when it started, and tells Prometheus.
pub struct ChannelGauges {
    events: metrics::Gauge,
    events_max: metrics::Gauge,
    bytes: metrics::Gauge,
    fill: metrics::Gauge,
    put: metrics::Counter,
    taken: metrics::Counter,
    damaged: metrics::Counter,
    repeated: metrics::Counter,
    pub started: Moment,
    pub stopped: Moment,
}

impl ChannelGauges {
    pub fn new(component: &str) -> Arc<Self> {
        let gauge = |name: &'static str| metrics::gauge!(name, "channel" => component.to_owned());
        let counter = |name: &'static str| metrics::counter!(name, "channel" => component.to_owned());
        Arc::new(Self {
            events: gauge("millrace_collector_channel_events"),
            events_max: gauge("millrace_collector_channel_capacity_events"),
            bytes: gauge("millrace_collector_channel_bytes"),
            fill: gauge("millrace_collector_channel_fill_ratio"),
            put: counter("millrace_collector_channel_put_events_total"),
            taken: counter("millrace_collector_channel_taken_events_total"),
            damaged: counter("millrace_collector_channel_damaged_events_total"),
            repeated: counter("millrace_collector_channel_repeated_events_total"),
            started: Moment::default(),
            stopped: Moment::default(),
        })
    }

    pub fn shown(&self, channel: &dyn Channel) -> Shown {
        let (fill, traffic) = (channel.fill(), channel.traffic());
        vec![
            ("ChannelCapacity", fill.events_max as f64),
            ("ChannelSize", fill.events as f64),
            ("ChannelFillPercentage", fill.percent()),
            ("ChannelByteSize", fill.bytes as f64),
            ("EventPutAttemptCount", traffic.put_attempts as f64),
            ("EventPutSuccessCount", traffic.put_successes as f64),
            ("EventTakeAttemptCount", traffic.take_attempts as f64),
            ("EventTakeSuccessCount", traffic.take_successes as f64),
            ("DamagedEventCount", traffic.damaged as f64),
            ("RepeatedEventCount", traffic.repeated as f64),
            ("StartTime", self.started.get()),
            ("StopTime", self.stopped.get()),
        ]
    }

    pub fn publish(&self, channel: &dyn Channel) {
        let (fill, traffic) = (channel.fill(), channel.traffic());
        self.events.set(fill.events as f64);
        self.events_max.set(fill.events_max as f64);
        self.bytes.set(fill.bytes as f64);
        self.fill.set(fill.percent() / 100.0);
        self.put.absolute(traffic.put_successes);
        self.taken.absolute(traffic.take_successes);
        self.damaged.absolute(traffic.damaged);
        self.repeated.absolute(traffic.repeated);
    }
}
