//! Counts words in Kafka and goes on where it stopped, or died: Spark's `RecoverableNetworkWordCount`. Words of an exclude
//! list are dropped and counted; the counts of each batch are appended to a file.
//!
//! `cargo run -p examples --bin recoverable_word_count -- localhost:9092 lines /tmp/recoverable-word-count /tmp/counts.txt`
#![allow(clippy::print_stdout)] // Its output is what the program is for.

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use stream_engine::dstream::{ConsumerStrategy, KafkaUtils, LocationStrategy, SparkConf, StreamingContext};

fn create_context(conf: SparkConf, brokers: &str, topic: &str, output_path: &str) -> anyhow::Result<StreamingContext> {
    let ssc = StreamingContext::new(conf.set_app_name("RecoverableWordCount"), Duration::from_secs(1))?;

    let lines = KafkaUtils::create_direct_stream::<String, String>(
        &ssc,
        LocationStrategy::PreferConsistent,
        ConsumerStrategy::subscribe([topic], [("bootstrap.servers", brokers), ("auto.offset.reset", "earliest")]),
    );
    let words = lines.flat_map(|line| line.value.unwrap_or_default().split(' ').map(str::to_string).collect::<Vec<_>>());
    let word_counts = words.map(|word| (word, 1_u64)).reduce_by_key(|a, b| a + b);

    let exclude_list = ["a", "b", "c"];
    let dropped_words_counter = Arc::new(AtomicU64::new(0));
    let output_path = output_path.to_string();
    word_counts.foreach_rdd(move |rdd, time| {
        let (dropped_words_counter, output_path) = (dropped_words_counter.clone(), output_path.clone());
        async move {
            let dropped = dropped_words_counter.clone();
            let counts = rdd.filter(move |(word, count)| {
                let excluded = exclude_list.contains(&word.as_str());
                if excluded {
                    dropped.fetch_add(*count, Ordering::Relaxed);
                }
                !excluded
            });
            let mut counts = counts.collect().await?;
            counts.sort();
            let output = format!("Counts at time {time} {counts:?}");
            println!("{output}");
            println!("Dropped {} word(s) totally", dropped_words_counter.load(Ordering::Relaxed));
            let mut file = File::options().append(true).create(true).open(&output_path)?;
            writeln!(file, "{output}")?;
            Ok(())
        }
    });
    Ok(ssc)
}

fn main() -> anyhow::Result<()> {
    let (conf, [brokers, topic, checkpoint, output_path]) = SparkConf::with_args(["brokers", "topic", "checkpoint", "output_path"]);
    let ssc = StreamingContext::get_or_create(&checkpoint, || create_context(conf, &brokers, &topic, &output_path))?;
    ssc.start()?;
    ssc.await_termination()
}
