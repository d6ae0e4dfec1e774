//! Counts words that are posted over HTTP since the program first ran. Who gets a 200 knows that his words are on disk and will be
//! counted, once, whatever happens to the program.
//!
//! `cargo run -p examples --bin http_word_count -- 127.0.0.1:7105 /tmp/http-word-count`, then
//! `curl --data-binary 'to be or not to be' http://127.0.0.1:7105/`

use std::time::Duration;

use stream_engine::dstream::{SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [listen, checkpoint]) = SparkConf::with_args(["listen", "checkpoint"]);
    let conf = conf.set_app_name("HttpWordCount").set("spark.streaming.receiver.writeAheadLog.enable", "true");
    let ssc = StreamingContext::new(conf, Duration::from_secs(1))?;
    ssc.checkpoint(&checkpoint);

    let lines = ssc.http_stream(&listen);
    let words = lines.flat_map(|line| line.split_whitespace().map(str::to_string).collect::<Vec<_>>());
    let counts = words.map(|word| (word, 1_u64)).update_state_by_key(|ones: Vec<u64>, sum: Option<u64>| {
        let new = ones.iter().sum::<u64>();
        Some(sum.unwrap_or(0) + new)
    });
    counts.print_first(1000);

    ssc.start()?;
    ssc.await_termination()
}
