//! Counts words in Kafka, batch by batch: Spark's `DirectKafkaWordCount`.
//!
//! `cargo run -p examples --bin direct_kafka_word_count -- localhost:9092 word-counters lines,more_lines`

use std::time::Duration;

use stream_engine::dstream::{ConsumerStrategy, KafkaUtils, LocationStrategy, SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [brokers, group_id, topics]) = SparkConf::with_args(["brokers", "group_id", "topics"]);
    let ssc = StreamingContext::new(conf.set_app_name("DirectKafkaWordCount"), Duration::from_secs(2))?;

    let kafka_params = [("bootstrap.servers", brokers), ("group.id", group_id)];
    let messages = KafkaUtils::create_direct_stream::<String, String>(
        &ssc,
        LocationStrategy::PreferConsistent,
        ConsumerStrategy::subscribe(topics.split(','), kafka_params),
    );

    let lines = messages.flat_map(|record| record.value);
    let words = lines.flat_map(|line| line.split_whitespace().map(str::to_string).collect::<Vec<_>>());
    let word_counts = words.map(|word| (word, 1_u64)).reduce_by_key(|a, b| a + b);
    word_counts.print();

    ssc.start()?;
    ssc.await_termination()
}
