//! The hashtags that were used most in the last minute and in the last ten seconds: Spark's `TwitterPopularTags`, with its
//! messages in Kafka.
//!
//! `cargo run -p examples --bin popular_hashtags -- localhost:9092 messages`
#![allow(clippy::print_stdout)] // Its output is what the program is for.

use std::time::Duration;

use stream_engine::dstream::{ConsumerStrategy, DStream, KafkaUtils, LocationStrategy, SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [brokers, topic]) = SparkConf::with_args(["brokers", "topic"]);
    let ssc = StreamingContext::new(conf.set_app_name("PopularTags"), Duration::from_secs(2))?;

    let stream = KafkaUtils::create_direct_stream::<String, String>(
        &ssc,
        LocationStrategy::PreferConsistent,
        ConsumerStrategy::subscribe([topic], [("bootstrap.servers", brokers)]),
    );
    let words = stream.flat_map(|message| message.value.unwrap_or_default().split(' ').map(str::to_string).collect::<Vec<_>>());
    let hash_tags = words.filter(|word| word.starts_with('#'));

    show_top(&hash_tags, 60);
    show_top(&hash_tags, 10);

    ssc.start()?;
    ssc.await_termination()
}

/// Prints the ten most used tags of the last `seconds` after every batch.
fn show_top(hash_tags: &DStream<String>, seconds: u64) {
    let top_counts = hash_tags
        .map(|tag| (tag, 1_u64))
        .reduce_by_key_and_window(|a, b| a + b, Duration::from_secs(seconds), None)
        .map(|(topic, count)| (count, topic))
        .transform(|rdd, _time| rdd.sort_by_key(false));

    top_counts.foreach_rdd(move |rdd, _time| async move {
        let top_list = rdd.take(10).await?;
        println!("\nPopular topics in last {seconds} seconds ({} total):", rdd.count().await?);
        for (count, tag) in top_list {
            println!("{tag} ({count} messages)");
        }
        Ok(())
    });
}
