//! Counts the words of the last ten minutes in Kafka, every two seconds: Spark's `KafkaWordCount`, whose window adds what
//! comes and takes away what leaves.
//!
//! `cargo run -p examples --bin windowed_word_count -- localhost:9092 word-counters lines /tmp/windowed-word-count`

use std::{sync::Arc, time::Duration};

use stream_engine::dstream::{ConsumerStrategy, KafkaUtils, Keep, LocationStrategy, SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [brokers, group, topics, checkpoint]) = SparkConf::with_args(["brokers", "group", "topics", "checkpoint"]);
    let ssc = StreamingContext::new(conf.set_app_name("KafkaWordCount"), seconds(2))?;
    ssc.checkpoint(&checkpoint);

    let lines = KafkaUtils::create_direct_stream::<String, String>(
        &ssc,
        LocationStrategy::PreferConsistent,
        ConsumerStrategy::subscribe(topics.split(','), [("bootstrap.servers", brokers), ("group.id", group)]),
    );
    let words = lines.flat_map(|line| line.value.unwrap_or_default().split(' ').map(str::to_string).collect::<Vec<_>>());
    // Without it a word would stay, with 0, when it has left the window.
    let still_there: Keep<String, i64> = Arc::new(|(_, count)| *count > 0);
    let word_counts = words.map(|word| (word, 1_i64)).reduce_by_key_and_window_with_inverse(
        |a, b| a + b,
        |a, b| a - b,
        seconds(10 * 60),
        seconds(2),
        Some(still_there),
    );
    word_counts.print();

    ssc.start()?;
    ssc.await_termination()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
