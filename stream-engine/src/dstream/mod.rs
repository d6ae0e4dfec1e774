//! The DStream API: Spark Streaming's programs, typed, in Rust.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use stream_engine::dstream::{ConsumerStrategy, KafkaUtils, LocationStrategy, SparkConf, StreamingContext};
//! # fn main() -> anyhow::Result<()> {
//! let ssc = StreamingContext::new(SparkConf::from_args().set_app_name("counts"), Duration::from_secs(5))?;
//! let params = [("bootstrap.servers", "kafka1:9092"), ("group.id", "counts"), ("auto.offset.reset", "latest")];
//! let stream = KafkaUtils::create_direct_stream::<String, String>(
//!     &ssc,
//!     LocationStrategy::PreferConsistent,
//!     ConsumerStrategy::subscribe(["logs_topic"], params),
//! );
//! stream.flat_map(|record| record.value).count_by_value().print();
//! ssc.start()?;
//! ssc.await_termination()
//! # }
//! ```
//!
//! | file | what can be done with streams |
//! |---|---|
//! | `kafka`, `kafka_receiver` | made from Kafka, directly or by a receiver |
//! | `socket`, `http`, `receiver` | made from what a receiver stores: lines of a socket, of HTTP requests, a program's own |
//! | `files`, `queue` | made from new files of a directory, from batches that the program queues, from a clock |
//! | `stream`, `pair` | within a batch: by value, by key; outputs |
//! | `hbase` | written to HBase, exactly once |
//! | `join`, `transform` | several streams; any function from batch to batch |
//! | `window` | over the batches of the last while |
//! | `update_state`, `map_with_state` | with a state per key that goes on from batch to batch |
//! | `rdd` | what a batch can do: transformations, actions |
//! | `save` | batches as folders of files |
//! | `frame`, `schema` | batches as tables, for SQL |
//! | `testing` | what of it comes out, in a unit test |
//! | `graph`, `program`, `shuffle`, `state` | how it runs, and what of it is in a checkpoint |
//!
//! Differences from Spark, on purpose: a checkpoint holds no code, so that a changed program resumes (state is found by
//! [`DStream::uid`]); there is no driver, `foreach_rdd` runs where the partitions are; `foreach_rdd` is asynchronous and may
//! fail, which runs the batch again (outputs that succeeded are not repeated within the process). Where Spark has forms of
//! one name, the further ones say what they add (`count_by_value_with_partitions`, `reduce_by_window_with_inverse`); a slide
//! that Spark lets one leave out is `None`.

mod conf;
mod context;
mod files;
mod frame;
mod graph;
mod hbase;
mod http;
mod input;
mod join;
mod kafka;
mod kafka_receiver;
mod listen;
mod map_with_state;
mod pair;
mod program;
mod queue;
mod rdd;
mod receiver;
mod save;
mod schema;
mod shuffle;
mod socket;
mod state;
mod stream;
mod testing;
#[cfg(test)]
mod tests;
mod time;
mod transform;
mod update_state;
mod window;

pub use crate::source::receiver::{ReceiverError, ReceiverStatus, StoreError};
pub use arrow::{array::RecordBatch, datatypes::SchemaRef};
pub use conf::SparkConf;
pub use context::{StreamingContext, StreamingContextState};
pub use datafusion::prelude::{DataFrame, SessionContext};
pub use hbase::{HbaseTable, Put};
pub use kafka::{ConsumerRecord, ConsumerStrategy, FromKafka, KafkaUtils, LocationStrategy};
pub use map_with_state::{MapWithStateDStream, State, StateSpec};
pub use queue::RddQueue;
pub use rdd::{CoGroup, Data, FullOuter, IntoRdd, Key, Rdd};
pub use receiver::{Receiver, ReceiverSupervisor};
pub use service_kit::kafka::TopicPartition;
pub use shuffle::Keep;
pub use state::StateValue;
pub use stream::DStream;
pub use testing::StreamingTest;
pub use time::Time;
pub use update_state::StateUpdate;
