//! Counts words in Kafka since the program first ran, in state that outlives it: Spark's `StatefulNetworkWordCount`, with
//! `mapWithState`.
//!
//! `cargo run -p examples --bin stateful_word_count -- localhost:9092 lines /tmp/stateful-word-count`

use std::time::Duration;

use stream_engine::dstream::{ConsumerStrategy, KafkaUtils, LocationStrategy, Rdd, SparkConf, State, StateSpec, StreamingContext};

fn main() -> anyhow::Result<()> {
    let (conf, [brokers, topic, checkpoint]) = SparkConf::with_args(["brokers", "topic", "checkpoint"]);
    let ssc = StreamingContext::new(conf.set_app_name("StatefulWordCount"), Duration::from_secs(1))?;
    ssc.checkpoint(&checkpoint);

    // What the counts begin with.
    let initial_rdd = Rdd::parallelize([("hello".to_string(), 1_u64), ("world".to_string(), 1)]);

    let lines = KafkaUtils::create_direct_stream::<String, String>(
        &ssc,
        LocationStrategy::PreferConsistent,
        ConsumerStrategy::subscribe([topic], [("bootstrap.servers", brokers.as_str()), ("auto.offset.reset", "earliest")]),
    );
    let words = lines.flat_map(|line| line.value.unwrap_or_default().split(' ').map(str::to_string).collect::<Vec<_>>());
    let word_dstream = words.map(|word| (word, 1_u64));

    // Each word with its count so far.
    let mapping_func = |word: String, one: Option<u64>, state: &mut State<u64>| {
        let sum = one.unwrap_or(0) + state.get_option().copied().unwrap_or(0);
        state.update(sum);
        (word, sum)
    };

    let state_dstream = word_dstream.map_with_state(StateSpec::function(mapping_func).initial_state(initial_rdd));
    state_dstream.print();

    ssc.start()?;
    ssc.await_termination()
}
