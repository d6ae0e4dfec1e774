//! Millrace's stream engine: micro-batches over Kafka, programmed in SQL or with DStreams.
//!
//! | folder | question it answers |
//! |---|---|
//! | [`source`] | which partitions exist, where does a job start in them, how are their records read |
//! | [`batch`] | when is a batch cut, how large may it be, and in which order do things happen to it |
//! | [`commit`] | after a crash: which batch comes next (pure decisions) |
//! | [`worker`] | how workers share a job's slots, and run them |
//! | [`checkpoint`] | offsets, batch definitions and state at an object store URL |
//! | [`job`] | what a job is, its settings, which jobs this engine has |
//! | [`dstream`] | the typed API: `StreamingContext`, `DStream`, `Rdd`, `KafkaUtils` |
//! | [`sql`], [`format`], [`sink`] | SQL jobs: planning, decoding, outputs |
//! | [`ui`] | the page with jobs, batches and charts, and the same as JSON |
//! | [`terminal`] | one line about the job that `run` runs |
//! | [`service`], [`control`], [`config`] | the process, its control port, its configuration |
//! | [`fault`] | where a debug build can be made to fail |
//!
//! Data flows one way: source → batch → program (operators, sinks) → commit.

pub mod batch;
pub mod checkpoint;
pub mod commit;
pub mod config;
pub mod control;
pub mod dstream;
pub mod fault;
pub mod format;
pub mod job;
pub mod service;
pub mod sink;
pub mod source;
pub mod sql;
pub mod terminal;
pub mod ui;
pub mod worker;
