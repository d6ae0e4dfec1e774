//! Log lines from Kafka, a window of the last 30 seconds every 10 seconds: Spark Streaming's direct-stream program, in Rust.
//!
//! ```scala
//! val conf = new SparkConf().setAppName("KafkaStream")
//! val ssc = new StreamingContext(conf, Seconds(5))
//! val kafkaParams = Map[String, Object](
//!   "bootstrap.servers" -> "kafka1:9092",
//!   "key.deserializer" -> classOf[StringDeserializer],
//!   "value.deserializer" -> classOf[StringDeserializer],
//!   "group.id" -> "spark-group",
//!   "auto.offset.reset" -> "latest")
//! val topics = Array("logs_topic")
//! val stream = KafkaUtils.createDirectStream[String, String](
//!   ssc, PreferConsistent, Subscribe[String, String](topics, kafkaParams))
//! val lines = stream.map(record => (record.key, record.value))
//! lines.window(Seconds(30), Seconds(10)).foreachRDD { rdd =>
//!   println(s"${rdd.count()} lines in the last 30 seconds")
//!   rdd.take(10).foreach { case (key, value) => println(s"$key: $value") }
//! }
//! ssc.start()
//! ssc.awaitTermination()
//! ```
//!
//! `cargo run -p examples --bin kafka_stream -- --help` lists the flags: checkpoint folder, addresses of the control port
//! and the page, settings. `KAFKA_BOOTSTRAP_SERVERS` names other brokers.
#![allow(clippy::print_stdout)] // Its output is what the program is for.

use std::{env, time::Duration};

use stream_engine::dstream::{ConsumerStrategy, KafkaUtils, LocationStrategy, SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let conf = SparkConf::from_args().set_app_name("KafkaStream");
    let ssc = StreamingContext::new(conf, seconds(5))?;
    let brokers = env::var("KAFKA_BOOTSTRAP_SERVERS").unwrap_or("kafka1:9092".into());
    let kafka_params = [
        ("bootstrap.servers", brokers.as_str()),
        ("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer"),
        ("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer"),
        ("group.id", "spark-group"),
        ("auto.offset.reset", "latest"),
    ];
    let topics = ["logs_topic"];
    let stream = KafkaUtils::create_direct_stream::<String, String>(
        &ssc,
        LocationStrategy::PreferConsistent,
        ConsumerStrategy::subscribe(topics, kafka_params),
    );
    let lines = stream.map(|record| (record.key, record.value));
    lines.window(seconds(30), seconds(10)).foreach_rdd(|rdd, _time| async move {
        println!("{} lines in the last 30 seconds", rdd.count().await?);
        for (key, value) in rdd.take(10).await? {
            println!("{}: {}", key.unwrap_or("null".into()), value.unwrap_or("null".into()));
        }
        Ok(())
    });
    ssc.start()?;
    ssc.await_termination()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
