//! Counts the words of each second that come from a socket: Spark's `NetworkWordCount`. Try it beside `nc -lk 9999`.
//!
//! `cargo run -p examples --bin network_word_count -- localhost 9999`

use std::time::Duration;

use stream_engine::dstream::{SparkConf, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [host, port]) = SparkConf::with_args(["host", "port"]);
    let ssc = StreamingContext::new(conf.set_app_name("NetworkWordCount"), Duration::from_secs(1))?;

    let lines = ssc.socket_text_stream(&host, port.parse()?);
    let words = lines.flat_map(|line| line.split(' ').map(str::to_string).collect::<Vec<_>>());
    let word_counts = words.map(|word| (word, 1_u64)).reduce_by_key(|a, b| a + b);
    word_counts.print();

    ssc.start()?;
    ssc.await_termination()
}
