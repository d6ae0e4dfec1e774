//! Counts the words of each second that come from a socket, by SQL: Spark's `SqlNetworkWordCount`. Try it beside `nc -lk 9999`.
//!
//! `cargo run -p examples --bin sql_network_word_count -- localhost 9999`

use std::{io::Write as _, time::Duration};

use serde::{Deserialize, Serialize};
use stream_engine::dstream::{SessionContext, SparkConf, StreamingContext};

/// A row of the table.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    word: String,
}

fn main() -> anyhow::Result<()> {
    let (conf, [host, port]) = SparkConf::with_args(["host", "port"]);
    let ssc = StreamingContext::new(conf.set_app_name("SqlNetworkWordCount"), Duration::from_secs(1))?;

    let lines = ssc.socket_text_stream(&host, port.parse()?);
    let words = lines.flat_map(|line| line.split(' ').map(str::to_string).collect::<Vec<_>>());
    words.foreach_rdd(|rdd, time| async move {
        let session = SessionContext::new();
        let words_data_frame = rdd.map(|word| Record { word }).to_df(&session)?;
        session.register_table("words", words_data_frame.into_view())?;
        let word_counts_data_frame = session.sql("SELECT word, COUNT(*) AS total FROM words GROUP BY word ORDER BY word").await?;
        writeln!(std::io::stdout(), "========= {time} =========")?;
        word_counts_data_frame.show().await?;
        Ok(())
    });

    ssc.start()?;
    ssc.await_termination()
}
