//! Counts words in Kafka over ten minutes, every two seconds, as a member of a consumer group: Spark's `KafkaWordCount`, with a
//! receiver. `direct_kafka_word_count` reads without one.
//!
//! `cargo run -p examples --bin kafka_word_count -- localhost:9092 my-consumer-group topic1,topic2 1 /tmp/kafka-word-count`

use std::time::Duration;

use stream_engine::dstream::{KafkaUtils, SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [brokers, group, topics, num_threads, checkpoint]) =
        SparkConf::with_args(["brokers", "group", "topics", "num_threads", "checkpoint"]);
    // What is stored is on disk before its offsets are committed to the group.
    let conf = conf.set_app_name("KafkaWordCount").set("spark.streaming.receiver.writeAheadLog.enable", "true");
    let ssc = StreamingContext::new(conf, Duration::from_secs(2))?;
    ssc.checkpoint(&checkpoint);

    let num_threads: usize = num_threads.parse()?;
    let topic_map = topics.split(',').map(|topic| (topic, num_threads));
    let params = [("bootstrap.servers", brokers.as_str()), ("group.id", group.as_str()), ("auto.offset.reset", "earliest")];
    let lines = KafkaUtils::create_stream::<String, String>(&ssc, params, topic_map).map(|(_, line)| line.unwrap_or_default());
    let words = lines.flat_map(|line| line.split(' ').map(str::to_string).collect::<Vec<_>>());
    let word_counts = words.map(|word| (word, 1_u64)).reduce_by_key_and_window_with_inverse(
        |a, b| a + b,
        |a, b| a - b,
        Duration::from_secs(600),
        None,
        None,
    );
    word_counts.print();

    ssc.start()?;
    ssc.await_termination()
}
