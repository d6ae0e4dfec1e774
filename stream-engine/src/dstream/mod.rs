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
//! Differences from Spark, on purpose: a checkpoint holds no code, so that a changed program resumes; there is no
//! driver, `foreach_rdd` runs where the partitions are; `foreach_rdd` is asynchronous and may fail, which runs the batch
//! again (outputs that succeeded are not repeated within the process).

mod conf;
mod context;
mod graph;
mod kafka;
mod program;
mod rdd;
mod shuffle;
mod stream;
#[cfg(test)]
mod tests;

pub use conf::SparkConf;
pub use context::StreamingContext;
pub use graph::Time;
pub use kafka::{ConsumerRecord, ConsumerStrategy, FromKafka, KafkaUtils, LocationStrategy};
pub use rdd::{Data, Key, Rdd};
pub use service_kit::kafka::TopicPartition;
pub use shuffle::Keep;
pub use stream::DStream;
