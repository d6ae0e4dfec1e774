//! From declaration to the end: what is refused, remembered, found again.

use super::*;
use crate::checkpoint::Checkpoint;
use crate::commit::{Commit, Metadata, PlannedBatch};

#[test]
fn a_program_without_outputs_does_not_start() {
    let (ssc, _words) = context();
    assert!(ssc.program().err().unwrap().to_string().contains("no output operations registered, so nothing to execute"));
}

/// The words of the panic.
fn refused(declare: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(declare)).unwrap_err();
    *panic.downcast::<String>().unwrap()
}

#[test]
fn what_is_declared_after_the_start_is_refused_at_the_call() {
    let (ssc, words) = context();
    words.print();
    assert_eq!(ssc.get_state(), StreamingContextState::Initialized);
    let _program = ssc.program().unwrap();
    assert_eq!(ssc.get_state(), StreamingContextState::Active);
    let said = "Adding new inputs, transformations, and output operations after starting a context is not supported";
    assert_eq!(refused(|| drop(words.count())), format!("count: {said}"));
    assert_eq!(refused(|| words.print()), format!("print: {said}"));
    assert_eq!(refused(|| drop(words.cache())), format!("cache: {said}"));
    assert_eq!(refused(|| drop(words.map(pair).map_with_state(StateSpec::function(|_, _, _: &mut State<u64>| 1)))), format!("map: {said}"));
    assert_eq!(refused(|| ssc.remember(secs(1))), format!("remember: {said}"));
    let strategy = ConsumerStrategy::subscribe(["t"], [("bootstrap.servers", "unused:9092")]);
    let create = || drop(KafkaUtils::create_direct_stream::<String, String>(&ssc, LocationStrategy::PreferConsistent, strategy));
    assert_eq!(refused(create), format!("kafka(t): {said}"));

    let (ssc, words) = context();
    ssc.stop(false);
    assert!(refused(|| drop(words.count())).contains("after stopping a context is not supported"));
    assert_eq!(ssc.start().unwrap_err().to_string(), "StreamingContext has already been stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_declares_more_fails_its_batch_and_blocks_nothing() {
    let (ssc, words) = context();
    let stream = words.clone();
    words.foreach_rdd(move |_, _| {
        stream.count().print();
        async { Ok(()) }
    });
    let error = attempt(&mut ssc.program().unwrap(), 1, "a", false).await.unwrap_err();
    assert!(format!("{error:#}").contains("after starting a context is not supported"), "{error:#}");
}

#[test]
fn wrong_settings_are_all_said_at_once() {
    let conf = SparkConf::new()
        .set_app_name("no/name")
        .set("spark.streaming.backpresure.enabled", "true")
        .set("spark.streaming.kafka.maxRatePerPartition", "many")
        .set("spark.serializer", "org.apache.spark.serializer.KryoSerializer");
    let error = StreamingContext::new(conf, secs(1)).err().unwrap().to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
    assert!(error.contains("did you mean `spark.streaming.backpressure.enabled`"), "{error}");
}

#[test]
fn impossible_arguments_are_all_said_at_the_start() {
    let (ssc, words) = context();
    words.repartition(0).print();
    words.count_by_value_with_partitions(0).print();
    words.map(pair).map_with_state(StateSpec::function(|_, _, _: &mut State<u64>| 1).num_partitions(0)).print();
    words.checkpoint(Duration::from_millis(1500)).print();
    words.uid("stateless").print();
    words.map(pair).update_state_by_key(|_, s: Option<u64>| s).uid("one").uid("two").print();
    words.map(pair).update_state_by_key(|_, s: Option<u64>| s).uid("one").print();
    words.map(pair).update_state_by_key(|_, s: Option<u64>| s).uid("a/b").print();
    let error = ssc.program().err().unwrap().to_string();
    let said = [
        "repartition: the number of partitions (0) must be positive",
        "reduceByKey: the number of partitions (0) must be positive",
        "mapWithState: the number of partitions (0) must be positive",
        "The checkpoint interval for flatMap has been set to 1500 ms which not a multiple of its slide time (1000 ms). Please set it to a multiple of 1000 ms.",
        "uid(stateless): flatMap: it keeps no state",
        "uid(two): updateStateByKey: it is `one` already",
        "uid(a/b): a name is not empty and has no `/`",
        "uid(one): two streams have this name",
    ];
    assert_eq!(error.lines().collect::<Vec<_>>(), said);
}

#[test]
fn a_changed_window_is_another_program_and_a_changed_filter_is_not() {
    let fingerprint = |window, filter: bool| {
        let (ssc, words) = context();
        let words = if filter { words.filter(|w| w != "a") } else { words };
        words.window(secs(window), secs(1)).print();
        ssc.program().unwrap().fingerprint()
    };
    assert_eq!(fingerprint(2, false), fingerprint(2, true));
    assert_ne!(fingerprint(2, false), fingerprint(3, false));
}

async fn texts(rdds: Vec<Rdd<String>>) -> Vec<String> {
    let mut texts = Vec::new();
    for rdd in rdds {
        texts.push(rdd.collect().await.unwrap().join(" "));
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_holds_the_batches_of_its_times_as_long_as_they_are_remembered() {
    for by_context in [false, true] {
        let (ssc, words) = context();
        let words = words.map(|word| word);
        if by_context {
            ssc.remember(secs(3));
        } else {
            words.remember(secs(3));
        }
        words.foreach_rdd(|_, _| async { Ok(()) });
        let slice = |from: i64, until: i64| words.slice(Time::new(from), Time::new(until));
        let error = slice(1000, 2000).err().unwrap().to_string();
        assert!(error.starts_with("slice: map has not been initialized"), "{error}");
        let mut program = ssc.program().unwrap();
        for (second, text) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
            run(&mut program, second, text).await;
        }
        // Times between batches are those of the batch before; what has not come is not there.
        assert_eq!(texts(slice(2500, 3999).unwrap()).await, ["b", "c"]);
        assert_eq!(texts(slice(2000, 9000).unwrap()).await, ["b", "c", "d"]);
        assert_eq!(texts(slice(3000, 3000).unwrap()).await, ["c"], "once more");
        assert!(slice(5000, 9000).unwrap().is_empty());
        let error = slice(1000, 3000).err().unwrap().to_string();
        assert_eq!(error, "slice: map does not remember its batch of 1000 ms; call remember on it with a longer duration");
        // After a restart as well.
        let snapshot = program.snapshot().unwrap();
        restore(&mut program, snapshot, &[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await;
        run(&mut program, 5, "e").await;
        assert_eq!(texts(slice(3000, 5000).unwrap()).await, ["c", "d", "e"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_cached_stream_are_computed_once() {
    for (cache, times) in [(false, 2), (true, 1)] {
        let (ssc, words) = context();
        let computed = Arc::new(Mutex::new(0));
        let counter = computed.clone();
        let mapped = words.map(move |word| {
            *counter.lock() += 1;
            word
        });
        if cache {
            mapped.persist();
        }
        // One consumer, whose function evaluates what it is given twice.
        ignore(&mapped.derive("twice", |rdd, _| rdd.union(&rdd)));
        ignore(&words); // keeps the records
        run(&mut ssc.program().unwrap(), 1, "a").await;
        assert_eq!(*computed.lock(), times);
    }
}

#[test]
fn streams_with_state_need_a_checkpoint() {
    let check = |declare: fn(&DStream<String>), location: Option<&str>| {
        let (ssc, words) = context();
        declare(&words);
        location.iter().for_each(|location| ssc.checkpoint(location));
        let mut program = ssc.program().unwrap();
        ssc.check_checkpoint(&mut program)
    };
    let with_state: [fn(&DStream<String>); 3] = [
        |s| s.count_by_window(secs(2), secs(1)).print(),
        |s| s.map(pair).update_state_by_key(|_, s: Option<u64>| s).print(),
        |s| s.map(pair).map_with_state(StateSpec::function(|_, _, _: &mut State<u64>| 1)).print(),
    ];
    for declare in with_state {
        let error = check(declare, None).unwrap_err().to_string();
        assert!(error.starts_with("The checkpoint directory has not been set. Please set it by StreamingContext.checkpoint()"), "{error}");
        check(declare, Some("memory:///dstream-with-state")).unwrap();
    }
    check(|s| s.window(secs(2), secs(1)).print(), None).unwrap();
}

/// Stores what a program has after a batch, as the runner does.
async fn stored(location: &str, change: impl Fn(&mut serde_json::Value, &mut Vec<u8>)) -> Checkpoint {
    let (ssc, words) = context();
    words.map(pair).update_state_by_key(|v: Vec<u64>, _: Option<u64>| Some(v.len() as u64)).foreach_rdd(|_, _| async { Ok(()) });
    let mut program = ssc.program().unwrap();
    run(&mut program, 0, "a").await;
    let (mut fingerprint, mut state) = (program.fingerprint(), program.snapshot().unwrap().to_vec());
    change(&mut fingerprint, &mut state);
    let checkpoint = Checkpoint::open(location, &Default::default()).unwrap();
    let sources = vec![crate::commit::SourceStart { name: "kafka-0".into(), ..Default::default() }];
    let metadata = Metadata { job: "streaming".into(), checkpoint_id: "c".into(), fingerprint, started_at_ms: 0, sources };
    checkpoint.put_metadata(&metadata).await.unwrap();
    let (definition, _) = batch(0, "a");
    let planned =
        PlannedBatch { definition: (*definition).clone(), caught_up: vec![vec![true; 2]], end: None, topics: vec![], sources: vec![] };
    checkpoint.put_definition(&planned).await.unwrap();
    let commit = Commit {
        id: 0,
        time_ms: 0,
        next: vec![],
        watermark_ms: None,
        totals: Default::default(),
        end: None,
        topics: vec![],
        sources: vec![],
    };
    checkpoint.put_commit(&commit, &state).await.unwrap();
    checkpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_used_is_emptied_where_the_program_asks_for_it() {
    type Change = fn(&mut serde_json::Value, &mut Vec<u8>);
    let changes: [(&str, Change, bool); 3] = [
        ("sound", |_, _| {}, false),
        ("of-another-program", |fingerprint, _| *fingerprint = serde_json::json!({"kind": "sql"}), true),
        ("unreadable", |_, state| state.truncate(3), true),
    ];
    for (name, change, emptied) in changes {
        for create_on_error in [false, true] {
            let location = format!("memory:///dstream-{name}-{create_on_error}");
            let checkpoint = stored(&location, change).await;
            let create = || {
                let (ssc, words) = context();
                words.map(pair).update_state_by_key(|v: Vec<u64>, _: Option<u64>| Some(v.len() as u64)).print_first(0);
                Ok(ssc)
            };
            let ssc = if create_on_error {
                StreamingContext::get_or_create_on_error(&location, create).unwrap()
            } else {
                StreamingContext::get_or_create(&location, create).unwrap()
            };
            ssc.check_checkpoint(&mut ssc.program().unwrap()).unwrap();
            let occupied = checkpoint.occupied().await.unwrap().is_some();
            assert_eq!(occupied, !(emptied && create_on_error), "{name} {create_on_error}");
        }
    }
}

/// A program whose broker is never there, on free ports.
fn unreachable(name: &str) -> StreamingContext {
    let mut conf = SparkConf::new().set_app_name(name);
    conf.flags.control_listen = Some("127.0.0.1:0".into());
    conf.flags.page_listen = Some("127.0.0.1:0".into());
    let ssc = StreamingContext::new(conf, secs(1)).unwrap();
    let strategy = ConsumerStrategy::subscribe(["t"], [("bootstrap.servers", "127.0.0.1:1")]);
    KafkaUtils::create_direct_stream::<String, String>(&ssc, LocationStrategy::PreferConsistent, strategy).print();
    ssc
}

/// In one test, for a process has one active context.
#[test]
fn one_context_at_a_time_is_active_from_its_start_to_its_end() {
    let first = unreachable("first");
    assert_eq!(first.await_termination().unwrap_err().to_string(), "the context is not running; call start first");
    assert!(StreamingContext::get_active().is_none());
    first.start().unwrap();
    assert_eq!(first.get_state(), StreamingContextState::Active);
    let active = StreamingContext::get_active_or_create(|| panic!("there is one")).unwrap();
    assert_eq!(first.start().unwrap_err().to_string(), "this context was started already");
    let second = unreachable("second");
    let error = second.start().unwrap_err().to_string();
    assert_eq!(error, "Only one StreamingContext may be started in a process; `first` is running");
    assert!(!active.await_termination_or_timeout(Duration::from_millis(1)).unwrap());
    // Two threads wait, a third stops it.
    let waiting = std::thread::spawn({
        let first = first.clone();
        move || first.await_termination()
    });
    active.stop(false);
    assert!(first.await_termination_or_timeout(secs(60)).unwrap());
    waiting.join().unwrap().unwrap();
    assert_eq!(first.get_state(), StreamingContextState::Stopped);
    assert_eq!(first.start().unwrap_err().to_string(), "StreamingContext has already been stopped");
    assert!(StreamingContext::get_active().is_none());
    // Its place is free.
    second.start().unwrap();
    assert_eq!(StreamingContext::get_active().unwrap().get_state(), StreamingContextState::Active);
    second.stop(false);
    assert!(second.await_termination_or_timeout(secs(60)).unwrap());
}

#[test]
fn outputs_that_cannot_be_exactly_once_are_refused_by_name_before_the_start() {
    let table = HbaseTable::new("http://nowhere:8080", "words");
    let put = |word: String| Put::new(word).add_column("cf", "n", "1");
    let error = |ssc: &StreamingContext| ssc.program().err().map(|error| error.to_string()).unwrap_or_default();

    let (ssc, words) = context();
    words.hbase_bulk_put(&table, put);
    let mut program = ssc.program().unwrap();
    let no_checkpoint = ssc.check_checkpoint(&mut program).unwrap_err().to_string();
    assert!(no_checkpoint.contains("output hbaseBulkPut at ") && no_checkpoint.contains("give --checkpoint"), "{no_checkpoint}");

    let (ssc, words) = context();
    words.hbase_bulk_put(&table.clone().at_least_once(), put);
    ssc.check_checkpoint(&mut ssc.program().unwrap()).unwrap();

    let (ssc, words) = context();
    words.hbase_bulk_put(&table, put);
    ssc.require_exactly_once();
    assert_eq!(error(&ssc), "");
    let (ssc, words) = context();
    words.hbase_bulk_put(&table, put);
    words.print();
    ssc.require_exactly_once();
    assert!(error(&ssc).starts_with("output print at ") && error(&ssc).contains("require_exactly_once"), "{}", error(&ssc));

    // Only what feeds the output counts.
    let received = |conf: SparkConf, printed_only: bool| {
        let ssc = StreamingContext::new(conf, secs(1)).unwrap();
        let lines = ssc.socket_text_stream("127.0.0.1", 9);
        lines.print();
        let queue = ssc.queue_stream(&RddQueue::<String>::default(), true, None);
        queue.print();
        let written = if printed_only { context_stream(&ssc) } else { lines.union(&queue) };
        written.hbase_bulk_put(&table, put);
        error(&ssc)
    };
    assert_eq!(received(SparkConf::new(), true), "");
    let refused = received(SparkConf::new(), false);
    assert!(
        refused.contains("receiver-0: a crash loses what it has received; set spark.streaming.receiver.writeAheadLog.enable"),
        "{refused}"
    );
    assert!(refused.contains("queue-1: the queue ends with the process"), "{refused}");
    let logged = received(SparkConf::new().set("spark.streaming.receiver.writeAheadLog.enable", "true"), false);
    assert!(!logged.contains("receiver-0") && logged.contains("queue-1"), "{logged}");

    let (ssc, words) = context();
    words.hbase_bulk_put(&HbaseTable::new("nowhere", "words"), put);
    assert!(error(&ssc).contains("hbaseBulkPut: the REST gateway's address"), "{}", error(&ssc));
}
