//! Every metric of every service: one table. Names are `millrace_<service>_<what>_<unit|total>`.
//!
//! Add a line to [`METRICS`], then use the name with the `metrics` macros: `metrics::counter!("millrace_listen_rejected_total", "listener" => name, "reason" => reason)`.
//! A test refuses a name that is not in the table. Histograms are rendered with buckets by unit.

use std::{sync::OnceLock, time::Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// `seconds`, `bytes`, `events`, …; what one is one of.
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn counter(name: &'static str, unit: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit, labels, help }
}

const fn gauge(name: &'static str, unit: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, help }
}

const fn histogram(name: &'static str, unit: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, unit, labels, help }
}

/// By service.
pub const METRICS: &[Metric] = &[
    // collector
    counter("millrace_collector_source_received_events_total", "events", &["source"], "Events a source has read."),
    counter("millrace_collector_source_received_bytes_total", "bytes", &["source"], "Bytes of the bodies of the events a source has read."),
    gauge("millrace_collector_source_unread_bytes", "bytes", &["source"], "What is in a source's files and not read yet."),
    counter("millrace_collector_source_accepted_events_total", "events", &["source"], "Events that every channel of the source has taken."),
    counter("millrace_collector_source_received_batches_total", "batches", &["source"], "Batches a source has read."),
    counter(
        "millrace_collector_source_accepted_batches_total",
        "batches",
        &["source"],
        "Batches that every channel of the source has taken.",
    ),
    counter(
        "millrace_collector_source_received_appends_total",
        "requests",
        &["source"],
        "Requests of a single event that a source has read.",
    ),
    counter(
        "millrace_collector_source_accepted_appends_total",
        "requests",
        &["source"],
        "Requests of a single event that every channel of the source has taken.",
    ),
    counter("millrace_collector_source_channel_full_total", "puts", &["source"], "Puts that found the channel full for its keep-alive."),
    counter("millrace_collector_source_read_failures_total", "failures", &["source"], "Reads that failed and were tried again."),
    counter("millrace_collector_source_filtered_events_total", "events", &["source"], "Events that an interceptor ended."),
    counter(
        "millrace_collector_interceptor_failures_total",
        "events",
        &["interceptor"],
        "Events that went on without an interceptor's work: an expression gave up, or a time could not be read.",
    ),
    counter(
        "millrace_collector_source_unrouted_events_total",
        "events",
        &["source"],
        "Events that the channel selector sent to no channel.",
    ),
    counter(
        "millrace_collector_source_optional_refused_events_total",
        "events",
        &["source"],
        "Events that an optional channel had no room for.",
    ),
    counter(
        "millrace_collector_source_dropped_events_total",
        "events",
        &["source"],
        "Messages that were lost before any channel had them: datagrams that the kernel dropped, and what the end of the process cut short.",
    ),
    counter("millrace_collector_source_tls_failures_total", "connections", &["source"], "Connections whose TLS handshake failed."),
    gauge("millrace_collector_channel_events", "events", &["channel"], "Events in a channel, those taken and not yet delivered included."),
    gauge("millrace_collector_channel_capacity_events", "events", &["channel"], "Events a channel can hold."),
    gauge("millrace_collector_channel_bytes", "bytes", &["channel"], "Bytes in a channel."),
    gauge("millrace_collector_channel_fill_ratio", "0 to 1", &["channel"], "How full a channel is, by events or bytes, whichever is more."),
    counter("millrace_collector_channel_put_events_total", "events", &["channel"], "Events put into a channel."),
    counter("millrace_collector_channel_taken_events_total", "events", &["channel"], "Events taken from a channel and delivered."),
    counter(
        "millrace_collector_channel_dead_letters_total",
        "events",
        &["channel"],
        "Events that a Kafka channel can never write, and records that are no events, put aside with the reason.",
    ),
    counter(
        "millrace_collector_channel_damaged_events_total",
        "events",
        &["channel"],
        "Events that were damaged or missing on disk, and passed over.",
    ),
    counter(
        "millrace_collector_channel_undecodable_records_total",
        "records",
        &["channel"],
        "Records read by a Kafka channel that are no events (parseAsFlumeEvent): put aside, or the channel stops before them.",
    ),
    counter(
        "millrace_collector_channel_repeated_events_total",
        "events",
        &["channel"],
        "Events that a file's source read again after a crash and that were in the channel already.",
    ),
    counter("millrace_collector_sink_attempted_events_total", "events", &["sink"], "Events a sink has taken."),
    counter("millrace_collector_sink_delivered_events_total", "events", &["sink"], "Events a sink has delivered."),
    counter(
        "millrace_collector_sink_committed_bytes_total",
        "bytes",
        &["sink"],
        "Bytes of the bodies that a sink's channel has let go of: delivered, or put aside as dead letters.",
    ),
    gauge(
        "millrace_collector_reload_failed",
        "0 or 1",
        &[],
        "1 while what runs is not what the agent's files say, because the last reload failed.",
    ),
    gauge("millrace_collector_taps", "taps", &[], "Taps that are open (`millrace tap`)."),
    counter(
        "millrace_collector_tap_passed_over_events_total",
        "events",
        &[],
        "Events that a tap was open for and that were over its limit, or that its reader was too slow for.",
    ),
    counter("millrace_collector_sink_failed_events_total", "events", &["sink"], "Failed deliveries of events, each tried again."),
    counter(
        "millrace_collector_sink_dead_letters_total",
        "events",
        &["sink"],
        "Events that can never be delivered, put aside with the reason.",
    ),
    counter(
        "millrace_collector_sink_skipped_events_total",
        "events",
        &["sink"],
        "Events left out because an earlier transaction had written them.",
    ),
    counter(
        "millrace_collector_ganglia_failures_total",
        "sends",
        &["host"],
        "Times that counters could not be sent to Ganglia: the name is unknown, or the machine refuses.",
    ),
    gauge("millrace_collector_sink_success_ratio", "0 to 1", &["sink"], "Delivered events among those whose delivery was decided."),
    gauge("millrace_collector_sink_open_files", "files", &["sink"], "Files a sink is writing."),
    gauge("millrace_collector_sink_held_events", "events", &["sink"], "Events that are held until their file in HDFS or S3 is complete."),
    counter("millrace_collector_sink_complete_batches_total", "batches", &["sink"], "Takes as large as they may be."),
    counter("millrace_collector_sink_underflow_batches_total", "batches", &["sink"], "Takes that found fewer events."),
    counter("millrace_collector_sink_empty_batches_total", "batches", &["sink"], "Takes that found none for a second."),
    counter("millrace_collector_sink_rollbacks_total", "batches", &["sink"], "Deliveries of which something failed and was tried again."),
    counter(
        "millrace_collector_sink_connections_total",
        "connections",
        &["sink"],
        "Writers made: one at the start, one more after each lost transaction.",
    ),
    counter("millrace_collector_group_failures_total", "failures", &["group", "sink"], "Times a sink of a group failed and was left out."),
    counter("millrace_collector_sink_connection_failures_total", "connections", &["sink"], "Writers that could not be made."),
    // bridge
    counter(
        "millrace_bridge_produce_records_total",
        "records",
        &["result"],
        "Records of produce requests: written (acknowledged) or refused.",
    ),
    gauge("millrace_bridge_produce_in_flight_records", "records", &[], "Records and requests for records taken and not yet answered."),
    histogram("millrace_bridge_produce_seconds", "seconds", &[], "From a batch's checks to its last acknowledgement."),
    gauge("millrace_bridge_dedup_records", "records", &[], "Results kept to answer repeated batches (produce.dedup_records_max)."),
    counter("millrace_bridge_dedup_replayed_total", "batches", &[], "Repeated batches answered without writing."),
    gauge("millrace_bridge_dedup_keys", "keys", &[], "Keys that are known: written, or claimed by a bridge."),
    gauge("millrace_bridge_keyed_requests", "requests", &[], "Requests with a key that are under way (produce.keyed_requests_max)."),
    gauge("millrace_bridge_keyed_waiting", "requests", &[], "Of these, those that wait for another bridge's result (produce.dedup_lease)."),
    histogram("millrace_bridge_keyed_seconds", "seconds", &[], "From the claim of a key to the commit of its batch."),
    gauge("millrace_bridge_keyed_transactions_open", "transactions", &[], "Transactions of batches with a key; two at most."),
    counter(
        "millrace_bridge_keyed_transactions_total",
        "transactions",
        &["outcome"],
        "Transactions of batches with a key: committed, aborted for a batch that cannot be written, or failed. Batches share them.",
    ),
    counter("millrace_bridge_keyed_claims_lost_total", "claims", &[], "Claims of a key that came after another bridge's."),
    counter(
        "millrace_bridge_keyed_takeovers_total",
        "takeovers",
        &[],
        "Times that another bridge's transactional ids were taken to end its batches.",
    ),
    gauge("millrace_bridge_sessions", "sessions", &[], "Consumer instances and gRPC consumers (consume.sessions_max)."),
    counter("millrace_bridge_sessions_expired_total", "sessions", &[], "Consumers that left their group because nobody used them."),
    counter("millrace_bridge_streams_cut_total", "streams", &[], "Streams whose client took and said nothing for consume.session_idle."),
    gauge("millrace_bridge_session_entries", "sessions", &[], "Consumer instances of all bridges that share them (consume.directory_max)."),
    counter("millrace_bridge_sessions_claimed_total", "sessions", &[], "Consumers taken over from a bridge that is gone."),
    counter("millrace_bridge_forwarded_requests_total", "requests", &[], "Requests sent on to the bridge that holds the consumer."),
    counter("millrace_bridge_forward_failures_total", "requests", &[], "Forwarded requests that the other bridge did not answer."),
    gauge(
        "millrace_bridge_session_held_bytes",
        "bytes",
        &[],
        "Records that all consumers hold ready, and answers on their way (consume.held_bytes_max).",
    ),
    gauge("millrace_bridge_transactions_open", "transactions", &[], "Transactions that are open (transactions.open_max)."),
    counter(
        "millrace_bridge_transactions_total",
        "transactions",
        &["outcome"],
        "Transactions that ended: committed, aborted, expired (their lease ran out), failed.",
    ),
    gauge("millrace_bridge_produce_streams", "streams", &[], "Streams of records that are open (produce.streams_max)."),
    gauge("millrace_bridge_produce_in_flight_bytes", "bytes", &[], "Records taken and not yet acknowledged (produce.in_flight_bytes_max)."),
    counter(
        "millrace_bridge_stale_offsets_total",
        "partitions or groups",
        &[],
        "Stored offsets given up: of a topic that was created anew, or behind a partition's end.",
    ),
    counter(
        "millrace_bridge_foreign_offsets_total",
        "partitions",
        &[],
        "Partitions whose offset in Kafka was not the stored one when a consumer began: an ordinary member of the group has gone further, or somebody has set it back.",
    ),
    counter("millrace_bridge_consume_records_total", "records", &[], "Records handed to consumers."),
    counter(
        "millrace_bridge_blocked_partitions_total",
        "partitions",
        &[],
        "Partitions that a consumer was given no more records of: the next one cannot be shown in its format.",
    ),
    gauge(
        "millrace_bridge_window_records",
        "records",
        &[],
        "Records in the windows of delivery = acknowledged (consume.window_records_max).",
    ),
    counter("millrace_bridge_redelivered_records_total", "records", &[], "Records delivered again: rejected, or not acknowledged in time."),
    counter(
        "millrace_bridge_full_window_answers_total",
        "answers",
        &[],
        "Answers without new records of a partition, since its window is full.",
    ),
    counter(
        "millrace_bridge_dead_letters_total",
        "records",
        &["outcome"],
        "Records written to a dead-letter topic; those that failed are tried again.",
    ),
    counter("millrace_bridge_commits_total", "commits", &[], "Acknowledgements kept in the offset store."),
    counter("millrace_bridge_mirror_failures_total", "commits", &[], "Acknowledgements whose copy Kafka did not take; the store has them."),
    gauge("millrace_bridge_kafka_available", "0 or 1", &[], "1 while Kafka answers."),
    gauge(
        "millrace_bridge_group_lag_records",
        "records",
        &["group", "topic", "partition"],
        "Records a group has not yet read (monitor.lag_series_max).",
    ),
    gauge(
        "millrace_bridge_group_lag_series_left_out",
        "partitions",
        &[],
        "Partitions of groups without a lag gauge, because there are too many.",
    ),
    gauge(
        "millrace_bridge_group_status",
        "Burrow's code",
        &["group"],
        "How a group is by Burrow's rules: 1 OK, 2 WARN, 3 ERR; 0 when it is gone (monitor.lag_series_max).",
    ),
    gauge(
        "millrace_bridge_group_lag_seconds",
        "seconds",
        &["group"],
        "Age of the oldest record a group has not yet read; NaN where it is not known (monitor.lag_series_max).",
    ),
    gauge(
        "millrace_bridge_group_lag_trend_records_per_second",
        "records per second",
        &["group"],
        "How a group's lag grows, below 0 where it shrinks; NaN before the third look (monitor.lag_series_max).",
    ),
    gauge(
        "millrace_bridge_group_catch_up_seconds",
        "seconds",
        &["group"],
        "Time until a group has no lag if it goes on like this; NaN unless its lag shrinks (monitor.lag_series_max).",
    ),
    gauge("millrace_bridge_groups", "groups", &["status"], "Groups by how they are: OK, WARN, ERR."),
    gauge("millrace_bridge_watch_groups", "groups", &[], "Groups that are watched (monitor.groups_max)."),
    gauge(
        "millrace_bridge_watch_group_partitions",
        "partitions",
        &[],
        "Partitions of groups whose commits are remembered (monitor.group_partitions_max).",
    ),
    gauge(
        "millrace_bridge_watch_groups_left_out",
        "groups",
        &[],
        "Groups that had no room since the start, in full or in part (monitor.groups_max, monitor.group_partitions_max).",
    ),
    counter("millrace_bridge_watch_commits_total", "commits", &[], "Entries read from Kafka's log of group offsets."),
    histogram("millrace_bridge_watch_pass_seconds", "seconds", &[], "One look at all groups: ends, commits, members."),
    gauge("millrace_bridge_brokers", "brokers", &[], "Brokers in the cluster."),
    gauge(
        "millrace_bridge_not_preferred_leader_partitions",
        "partitions",
        &[],
        "Partitions that another replica leads than the first of their list.",
    ),
    gauge(
        "millrace_bridge_broker_leader_imbalance_ratio",
        "0 to 1",
        &["broker"],
        "Share of the partitions a broker should lead that others lead.",
    ),
    gauge("millrace_bridge_registry_schemas", "schemas", &[], "Versions of all subjects, those softly deleted included."),
    gauge("millrace_bridge_registry_bytes", "bytes", &[], "What the schemas need in memory (registry.bytes_max)."),
    gauge(
        "millrace_bridge_value_schemas_bytes",
        "bytes",
        &[],
        "What the schemas may need that are kept for records (registry.value_schemas_bytes_max).",
    ),
    counter("millrace_bridge_value_schemas_read_total", "schemas", &[], "Schemas that were read for records because they were not kept."),
    histogram("millrace_bridge_registry_write_seconds", "seconds", &[], "From a write's wait for its turn until it can be read."),
    counter("millrace_bridge_registry_fenced_total", "writes", &[], "Writes that began again because another replica wrote."),
    counter("millrace_bridge_registry_stale_reads_total", "requests", &[], "Requests answered from what was known while Kafka was away."),
    counter(
        "millrace_bridge_registry_passed_over_records_total",
        "records",
        &[],
        "Records of the registry's topic that say what cannot be.",
    ),
    counter(
        "millrace_bridge_auth_total",
        "requests",
        &["credential", "outcome"],
        "Requests by what their caller showed (certificate, password, token, api_key, forwarded, none), and whether it was accepted, refused, or could not be checked.",
    ),
    counter("millrace_bridge_auth_denied_total", "requests", &["verb"], "Requests of known callers that the policy does not allow."),
    counter(
        "millrace_bridge_auth_reloads_total",
        "files",
        &["file", "outcome"],
        "Times that policy, users, api_keys, forward_secret or jwks changed and were read, or refused and left as before.",
    ),
    gauge(
        "millrace_bridge_auth_kafka_logins",
        "logins",
        &[],
        "Callers' own logins to Kafka whose clients are kept (auth.pass_through.principals_max).",
    ),
    gauge("millrace_bridge_auth_passwords_remembered", "passwords", &[], "Right passwords that are remembered (auth.remembered_max)."),
    counter(
        "millrace_bridge_quota_refused_total",
        "requests",
        &["what"],
        "Requests refused because their principal's requests or bytes were used up.",
    ),
    gauge("millrace_bridge_quota_principals", "principals", &[], "Principals whose use is kept (auth.quota.principals_max)."),
    gauge("millrace_bridge_under_replicated_partitions", "partitions", &[], "Partitions whose ISR is smaller than their replica list."),
    gauge(
        "millrace_bridge_under_min_isr_partitions",
        "partitions",
        &[],
        "Partitions whose ISR is below min.insync.replicas: acks=all is refused.",
    ),
    gauge("millrace_bridge_offline_partitions", "partitions", &[], "Partitions without a leader."),
    gauge("millrace_bridge_broker_partitions", "partitions", &["broker"], "Replicas on a broker."),
    gauge("millrace_bridge_broker_leaders", "partitions", &["broker"], "Partitions a broker leads."),
    gauge("millrace_bridge_broker_log_bytes", "bytes", &["broker"], "Bytes of log on a broker's disks, replicas included."),
    // engine
    gauge("millrace_engine_job_up", "0 or 1", &["job"], "1 while the job runs, waits or is paused; 0 when it finished or failed."),
    gauge("millrace_engine_batches_running", "batches", &["job"], "Batches being processed."),
    gauge("millrace_engine_batches_waiting", "batches", &["job"], "Batches cut and not yet started (batch.queue.max)."),
    gauge(
        "millrace_engine_batches_retained",
        "batches",
        &["job"],
        "Completed batches that the page shows (spark.streaming.ui.retainedBatches).",
    ),
    counter("millrace_engine_batches_completed_total", "batches", &["job"], "Batches committed."),
    counter("millrace_engine_batch_failures_total", "batches", &["job"], "Runs of batches that failed; the batch is run again."),
    histogram("millrace_engine_batch_processing_seconds", "seconds", &["job"], "From a batch's start to its commit."),
    gauge("millrace_engine_last_completed_batch_processing_seconds", "seconds", &["job"], "Processing time of the newest completed batch."),
    gauge(
        "millrace_engine_last_completed_batch_scheduling_delay_seconds",
        "seconds",
        &["job"],
        "How long the newest completed batch waited for its start.",
    ),
    gauge(
        "millrace_engine_last_completed_batch_total_delay_seconds",
        "seconds",
        &["job"],
        "From cutting the newest completed batch to its commit.",
    ),
    gauge(
        "millrace_engine_last_completed_batch_end_timestamp_seconds",
        "seconds since 1970",
        &["job"],
        "When the newest completed batch was committed.",
    ),
    gauge(
        "millrace_engine_caught_up_timestamp_seconds",
        "seconds since 1970",
        &["job"],
        "All that was in the job's sources at this time is processed: time() minus this is the job's lag in seconds, also while it stands still.",
    ),
    gauge("millrace_engine_last_received_batch_records", "records", &["job"], "Records in the newest batch that was cut."),
    counter("millrace_engine_received_records_total", "records", &["job"], "Records in batches that were cut."),
    counter("millrace_engine_rows_in_total", "rows", &["job"], "Rows read by committed batches."),
    counter("millrace_engine_rows_out_total", "rows", &["job"], "Rows written by committed batches."),
    counter("millrace_engine_malformed_rows_total", "rows", &["job"], "Rows that could not be decoded."),
    counter("millrace_engine_late_rows_total", "rows", &["job"], "Rows behind the watermark."),
    gauge("millrace_engine_watermark_timestamp_seconds", "seconds since 1970", &["job"], "The job's watermark."),
    counter("millrace_engine_dead_letters_total", "records", &["table"], "Malformed records sent to a dead-letter topic."),
    gauge(
        "millrace_engine_pipeline_queue_items",
        "chunks or batches",
        &["step"],
        "What waits in front of a step of running batches: decode, query, write, dead-letters (millrace.pipeline.queue.max).",
    ),
    gauge(
        "millrace_engine_rate_limit_records",
        "records per second",
        &["job", "source"],
        "Backpressure's limit of a source; 0 while there is none.",
    ),
    counter("millrace_engine_listener_events_dropped_total", "events", &["job"], "Events that a StreamingListener was too slow to hear."),
    counter(
        "millrace_engine_offset_commits_total",
        "writes",
        &["job", "outcome"],
        "Writes of a job's offsets to its group (offsets.store): ok or failed. A failed one is made up by the next.",
    ),
    counter("millrace_engine_fenced_writes_total", "writes", &["output"], "Writes refused because another process is ahead of this one."),
    gauge("millrace_engine_window_state_bytes", "bytes", &["output"], "Window state in the newest snapshot."),
    gauge("millrace_engine_window_state_rows", "rows", &["output"], "Partial states held for open windows."),
    gauge(
        "millrace_engine_receiver_active",
        "0 or 1",
        &["job", "source"],
        "1 while the receiver runs; 0 while it waits for its next start.",
    ),
    counter("millrace_engine_receiver_records_total", "records", &["job", "source"], "Records that a receiver stored."),
    counter("millrace_engine_receiver_errors_total", "errors", &["job", "source"], "Errors that a receiver reported or ended with."),
    gauge(
        "millrace_engine_receiver_held_bytes",
        "bytes",
        &["job", "source"],
        "What counts for the bound of a receiver's log (receiver.bytes.max): in memory everything, on disk what is not processed yet.",
    ),
    gauge("millrace_engine_receiver_log_bytes", "bytes", &["job", "source"], "A receiver's write-ahead log on disk."),
    counter(
        "millrace_engine_receiver_lost_records_total",
        "records",
        &["job", "source"],
        "Records of batches or windows that were lost with the process that received them.",
    ),
    // offset stores outside of this process
    counter(
        "millrace_offset_store_calls_total",
        "calls",
        &["store", "outcome"],
        "Calls to an offset store: done (ok), refused (fenced, regressed, wrong), no answer (away), or failed.",
    ),
    histogram("millrace_offset_store_call_seconds", "seconds", &["store"], "From a call to an offset store to its answer."),
    counter(
        "millrace_offset_store_collisions_total",
        "writes",
        &["store"],
        "Writes that were made again because another process had written the same group.",
    ),
    // hbase
    gauge("millrace_hbase_connections", "connections", &[], "Open connections to HBase's REST gateway."),
    counter(
        "millrace_hbase_requests_total",
        "requests",
        &["outcome"],
        "Requests to HBase's REST gateway: ok, refused, unavailable (HBase behind it), failed (no answer).",
    ),
    histogram("millrace_hbase_request_seconds", "seconds", &[], "From sending a request to HBase's REST gateway to the end of its answer."),
    // kafka
    counter("millrace_kafka_fetch_bytes_total", "bytes", &["client"], "Keys, values and headers of records read."),
    counter("millrace_kafka_fetch_records_total", "records", &["client"], "Records read, by the client that read them."),
    counter(
        "millrace_kafka_hand_overs_total",
        "partitions",
        &[],
        "Partitions that rskafka could not go on reading and librdkafka took over.",
    ),
    counter("millrace_kafka_outages_total", "outages", &[], "Times no broker could be reached."),
    counter("millrace_kafka_produce_bytes_total", "bytes", &[], "Keys, values and headers of records queued for sending."),
    counter("millrace_kafka_produce_errors_total", "records", &[], "Records that were not written."),
    gauge(
        "millrace_kafka_member_queue_bytes",
        "bytes",
        &["group"],
        "Fetched ahead and not yet read by a Kafka source or channel; seen every 5 s.",
    ),
    gauge("millrace_kafka_produce_queue_bytes", "bytes", &[], "Memory taken by records that are queued or in flight."),
    counter("millrace_kafka_produce_records_total", "records", &[], "Records queued for sending."),
    // kit
    gauge("millrace_process_build_info", "constant 1", &["service", "version"], "Which build this is."),
    gauge("millrace_process_resident_memory_bytes", "bytes", &[], "Resident memory of the process."),
    gauge("millrace_process_uptime_seconds", "seconds", &[], "Time since the process started."),
    gauge("millrace_process_ready", "0 or 1", &[], "1 while the service may be sent work."),
    counter("millrace_process_panics_total", "panics", &[], "Tasks that ended by a fault of the program."),
    counter(
        "millrace_trace_spans_total",
        "spans",
        &["outcome"],
        "Spans sent to the trace receiver, lost because it was away, or dropped from a full queue.",
    ),
    gauge("millrace_trace_queue_spans", "spans", &[], "Spans that wait for export (telemetry.trace_queue_spans_max)."),
    gauge("millrace_listen_connections", "connections", &["listener"], "Open connections."),
    gauge("millrace_listen_requests", "requests", &["listener"], "Requests being answered, up to the head of the response."),
    counter("millrace_listen_connections_total", "connections", &["listener"], "Connections accepted."),
    counter(
        "millrace_listen_requests_total",
        "requests",
        &["listener", "status"],
        "Responses by HTTP status class (a gRPC error counts as 2xx: see its own status).",
    ),
    counter(
        "millrace_listen_rejected_total",
        "connections or requests",
        &["listener", "reason"],
        "Refused by a limit: connections, connections_per_ip, tls (no handshake), header_timeout, headers, bodies, body_bytes, body_ratio, body_timeout, write_idle_timeout, encoding, request_timeout, requests, draining.",
    ),
    counter(
        "millrace_listen_tls_reloads_total",
        "files",
        &["listener", "outcome"],
        "Changed TLS files by what became of them: read, refused (those before stay in use).",
    ),
    gauge("millrace_listen_body_bytes", "bytes", &[], "HTTP requests' bodies that are held at a time (limits.bodies_bytes_max)."),
    histogram("millrace_listen_request_seconds", "seconds", &["listener"], "From a request's head to its response's head."),
];

const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const AMOUNTS: &[f64] = &[1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];

static STARTED: OnceLock<Instant> = OnceLock::new();
static PROMETHEUS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Makes this process's recorder at the first call.
pub(crate) fn prometheus() -> &'static PrometheusHandle {
    PROMETHEUS.get_or_init(|| {
        STARTED.get_or_init(Instant::now);
        let mut histograms = METRICS.iter().filter(|metric| metric.kind == Kind::Histogram);
        let builder = histograms.try_fold(PrometheusBuilder::new(), |builder, metric| {
            builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), if metric.unit == "seconds" { SECONDS } else { AMOUNTS })
        });
        // It fails for an empty list of buckets only.
        let builder = builder.unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("this process has another metrics recorder; the page stays empty");
        }
        for metric in METRICS {
            match metric.kind {
                Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
                Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
                Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
            }
        }
        handle
    })
}

/// Everything measured so far in Prometheus' text format.
pub fn render() -> String {
    let handle = prometheus();
    metrics::gauge!("millrace_process_uptime_seconds").set(uptime().as_secs_f64());
    metrics::gauge!("millrace_process_resident_memory_bytes").set(resident_bytes() as f64);
    handle.render()
}

pub(crate) fn uptime() -> std::time::Duration {
    STARTED.get_or_init(Instant::now).elapsed()
}

/// Resident memory in bytes; 0 where the platform does not tell.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// `GET /metrics`, to be merged into a service's router. The control port has it already.
pub fn router() -> axum::Router {
    let page = async || ([(http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render());
    axum::Router::new().route("/metrics", axum::routing::get(page))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

    use super::*;

    #[test]
    fn the_reference_page_is_current() {
        let mut page = String::from(
            "# Metrics\n\n<!-- Written by a test of service-kit; renew with `MILLRACE_BLESS=1 cargo test -p service-kit`. -->\n\n\
             Every service serves them at `/metrics` of its control port, in Prometheus' text format; the collector also at `/prometheus` of its metrics page (port 41414).\n\n\
             | metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n",
        );
        for Metric { name, kind, unit, labels, help } in METRICS {
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(page, "| `{name}` | {kind} | {unit} | {} | {help} |", labels.join(", ")).unwrap();
        }
        crate::generated::check("metrics.md", &page);
    }

    #[test]
    fn names_are_unique_and_say_what_they_are() {
        let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            assert!(metric.name.starts_with("millrace_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{}", metric.name);
        }
    }

    /// The sources are the only list of what is used.
    #[test]
    fn every_metric_in_the_sources_is_in_the_table() {
        fn walk(dir: &Path, used: &mut BTreeSet<String>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, used);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    for start in ["counter!(", "gauge!(", "histogram!("] {
                        let names = text.split(start).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split_once('"'));
                        used.extend(names.map(|(name, _)| name.to_owned()).filter(|name| name.starts_with("millrace_")));
                    }
                }
            }
        }
        let mut used = BTreeSet::new();
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for service in ["service-kit", "collector", "broker-bridge", "stream-engine"] {
            walk(&workspace.join(service).join("src"), &mut used);
        }
        let known: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
        let unknown: Vec<&String> = used.difference(&known).collect();
        assert!(used.contains("millrace_process_panics_total") && unknown.is_empty(), "not in METRICS: {unknown:?}");
    }

    #[test]
    fn a_histogram_has_buckets_and_the_process_is_described() {
        prometheus();
        metrics::histogram!("millrace_listen_request_seconds", "listener" => "buckets").record(0.002);
        let page = render();
        for line in [
            "millrace_listen_request_seconds_bucket{listener=\"buckets\",le=\"0.0025\"} 1",
            "# TYPE millrace_process_resident_memory_bytes gauge",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        let memory = page.lines().find_map(|line| line.strip_prefix("millrace_process_resident_memory_bytes ")).unwrap();
        assert!(memory.parse::<f64>().unwrap() > 1e6, "{memory}");
    }
}
