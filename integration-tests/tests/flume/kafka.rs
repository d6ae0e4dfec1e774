//! Kafka as source, channel and sink: on Kafka 4.x and 2.8, beside real Flume in one group and on one topic, and killed at any
//! time. Counted outside: what a topic or the files of a `file_roll` hold against what was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    sync::{Arc, Mutex},
    time::Duration,
};

use integration_tests::{
    eventually,
    flume::Flume,
    kafka,
    process::{Process, run},
    servers::{OwnKafka, kafka_bootstrap},
    unique,
};

const WAIT: Duration = Duration::from_secs(60);

/// `a.` before every line.
fn agent(name: &str, lines: &str) -> String {
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{name}.{line}\n")).collect()
}

/// Starts the agent `a` of `lines`; its file and state are in `dir`.
fn start(dir: &Path, lines: &str) -> Process {
    let (conf, state) = (dir.join("agent.conf"), dir.join("state"));
    fs::write(&conf, agent("a", lines)).expect("the agent's file");
    let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    Process::start("millrace-collector", dir, &args, &env)
}

fn folder(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(&path).expect("a folder");
    path
}

/// The whole lines of all files of a folder.
fn lines(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder").flatten() {
        let text = fs::read(entry.path()).expect("a file");
        let text = String::from_utf8_lossy(&text);
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        lines.extend(whole.lines().map(str::to_owned));
    }
    lines
}

/// How many of `expected` are missing, and how many are there more than once.
fn lost_and_repeated<'a>(seen: &'a [String], expected: impl IntoIterator<Item = &'a String>) -> (usize, usize) {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    seen.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let counts = expected.into_iter().map(|line| counts.get(line).copied().unwrap_or_default());
    counts.fold((0, 0), |(lost, repeated), count| (lost + usize::from(count == 0), repeated + count.saturating_sub(1)))
}

async fn all_there(what: &str, expected: &[String], seen: impl Fn() -> Vec<String>) -> usize {
    eventually(WAIT, what, || async {
        match lost_and_repeated(&seen(), expected) {
            (0, repeated) => Ok(repeated),
            (lost, _) => Err(format!("{lost} of {} are not there", expected.len())),
        }
    })
    .await
}

fn numbered(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{prefix}-{number:06}")).collect()
}

const SINK: &str = "org.apache.flume.sink.kafka.KafkaSink";
const SOURCE: &str = "org.apache.flume.source.kafka.KafkaSource";
const CHANNEL: &str = "org.apache.flume.channel.kafka.KafkaChannel";

/// What every broker must take: a tailed file over a plain sink, a transactional one and the Kafka channel into topics, and
/// these over the source into files. Nothing but addresses and names is set.
async fn everything_passes(bootstrap: &str, dir: &Path) -> (Process, [String; 3]) {
    let name = unique("both");
    let topics = ["plain", "once", "through"].map(|way| format!("{name}-{way}"));
    for topic in &topics {
        kafka::create_topic(bootstrap, topic, 3).await;
    }
    let (log, out) = (dir.join("app.log"), folder(dir, "out"));
    let expected = numbered("line", 0..3000);
    fs::write(&log, expected.join("\n") + "\n").expect("the log");
    let mut conf = format!(
        "sources = plain once through back\nchannels = plain once through back\nsinks = plain once through back\n\
         sources.back.type = {SOURCE}\nsources.back.kafka.bootstrap.servers = {bootstrap}\nsources.back.channels = back\n\
         sources.back.kafka.topics.regex = {name}-(plain|once|through|late)\nsources.back.kafka.consumer.group.id = {name}\n\
         sources.back.kafka.consumer.auto.offset.reset = earliest\nsources.back.kafka.consumer.metadata.max.age.ms = 1000\n\
         channels.back.type = memory\nsinks.back.type = file_roll\nsinks.back.channel = back\n\
         sinks.back.sink.directory = {}\nsinks.back.sink.rollInterval = 0\n",
        out.display()
    );
    for (way, topic) in ["plain", "once", "through"].iter().zip(&topics) {
        conf += &format!(
            "sources.{way}.type = TAILDIR\nsources.{way}.filegroups = g\nsources.{way}.filegroups.g = {}\n\
             sources.{way}.channels = {way}\nsinks.{way}.type = {SINK}\nsinks.{way}.channel = {way}\n\
             sinks.{way}.kafka.bootstrap.servers = {bootstrap}\nsinks.{way}.kafka.topic = {topic}\n",
            log.display()
        );
    }
    conf += &format!(
        "channels.plain.type = memory\nchannels.once.type = memory\nsinks.once.kafka.producer.transactional.id = {name}\n\
         sinks.once.positionsTopic = {name}-positions\n\
         channels.through.type = {CHANNEL}\nchannels.through.kafka.bootstrap.servers = {bootstrap}\n\
         channels.through.kafka.topic = {name}-channel\nchannels.through.kafka.consumer.group.id = {name}-channel\n"
    );
    let mut collector = start(dir, &conf);
    collector.addresses().await;
    for topic in &topics {
        let repeated = all_there(topic, &expected, || kafka::texts(bootstrap, topic)).await;
        assert_eq!(repeated, 0, "{topic}");
    }
    let thrice = |count: usize| if count == 3 * expected.len() { Ok(()) } else { Err(format!("{count} of {}", 3 * expected.len())) };
    eventually(WAIT, "everything is in the files", || async { thrice(lines(&out).len()) }).await;
    // Of the transactional topic the last offset is the transaction's marker, which is no record.
    for (group, topic) in topics
        .iter()
        .filter(|topic| !topic.ends_with("once"))
        .map(|topic| (name.clone(), topic.clone()))
        .chain([(format!("{name}-channel"), format!("{name}-channel"))])
    {
        eventually(WAIT, "all is committed", || async {
            let lag = kafka::lag(bootstrap, &group, &topic);
            if lag == 0 { Ok(()) } else { Err(format!("{lag} of {topic}")) }
        })
        .await;
    }
    // Partitions and topics that come while it runs are read too.
    kafka::add_partitions(bootstrap, &topics[0], 4).await;
    let late = format!("{name}-late");
    kafka::create_topic(bootstrap, &late, 1).await;
    kafka::produce(bootstrap, &late, 1, numbered("late", 0..10));
    kafka::produce(bootstrap, &topics[0], 4, numbered("more", 0..40));
    let mut expected: Vec<String> = expected.iter().chain(&expected).chain(&expected).cloned().collect();
    expected.extend(numbered("late", 0..10).into_iter().chain(numbered("more", 0..40)));
    expected.sort();
    eventually(WAIT, "the late ones are in the files, and nothing twice", || async {
        let mut seen = lines(&out);
        seen.sort();
        if seen == expected { Ok(()) } else { Err(format!("{} of {}", seen.len(), expected.len())) }
    })
    .await;
    (collector, topics)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_4_and_2_8_take_sink_source_and_channel_and_a_broker_may_be_away() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old = OwnKafka::start_version(dir.path().join("kafka-2.8"), "2.8");
    for (version, bootstrap) in [("4", kafka_bootstrap()), ("2.8", old.bootstrap.clone())] {
        let dir = folder(dir.path(), version);
        let (mut collector, topics) = everything_passes(&bootstrap, &dir).await;
        if version == "2.8" {
            old.kill(1);
            collector.log_contains(WAIT, "no Kafka broker can be reached").await;
            old.restart(1);
            collector.log_contains(WAIT, "Kafka is back").await;
            let more = numbered("again", 0..500);
            let mut log = fs::OpenOptions::new().append(true).open(dir.join("app.log")).expect("the log");
            log.write_all((more.join("\n") + "\n").as_bytes()).expect("the log");
            for topic in &topics {
                all_there(topic, &more, || kafka::texts(&bootstrap, topic)).await;
            }
            eventually(WAIT, "all three ways are in the files", || async {
                let seen = lines(&dir.join("out"));
                let least = more.iter().map(|line| seen.iter().filter(|known| *known == line).count()).min();
                if least >= Some(3) { Ok(()) } else { Err(format!("a line is there {least:?} times")) }
            })
            .await;
            let log = collector.log();
            assert_eq!(log.matches("no Kafka broker can be reached").count(), 1, "{log}");
            // A broker that has just started knows no topics yet: that is no fault of the events.
            assert!(!log.contains("put aside"), "{log}");
        }
        collector.stop().await;
    }
}

/// Events of one way.
const EVENTS: usize = 1000;

/// Flume's Avro form in both directions, and one topic as the channel of both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_flume_reads_what_we_write_and_we_read_what_it_writes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (bootstrap, name) = (kafka_bootstrap(), unique("flume"));
    let topic = |way: &str| format!("{name}-{way}");
    for way in ["ours", "theirs", "our-channel", "their-channel"] {
        kafka::create_topic(&bootstrap, &topic(way), 2).await;
    }
    // Each side: numbers with headers to a sink and to a channel without a sink; a source and a channel without a source to files.
    let side = |who: &str, other: &str| {
        let (read, drained) = (folder(dir.path(), &format!("{who}-read")), folder(dir.path(), &format!("{who}-drained")));
        let write = |name: &str| {
            format!(
                "sources.{name}.type = seq\nsources.{name}.totalEvents = {EVENTS}\nsources.{name}.batchSize = 50\n\
                 sources.{name}.channels = {name}\nsources.{name}.interceptors = i j\n\
                 sources.{name}.interceptors.i.type = static\nsources.{name}.interceptors.i.key = from\n\
                 sources.{name}.interceptors.i.value = {who} K\\u00f6ln\nsources.{name}.interceptors.j.type = static\n\
                 sources.{name}.interceptors.j.key = key\nsources.{name}.interceptors.j.value = k-{who}\n"
            )
        };
        let roll = |name: &str, folder: &Path| {
            format!(
                "sinks.{name}.type = file_roll\nsinks.{name}.channel = {name}\nsinks.{name}.sink.directory = {}\n\
                 sinks.{name}.sink.rollInterval = 0\nsinks.{name}.sink.serializer = HEADER_AND_TEXT\n",
                folder.display()
            )
        };
        let kafka_channel = |name: &str, topic: &str| {
            format!(
                "channels.{name}.type = {CHANNEL}\nchannels.{name}.kafka.bootstrap.servers = {bootstrap}\n\
                 channels.{name}.kafka.topic = {topic}\nchannels.{name}.kafka.consumer.group.id = {topic}\n"
            )
        };
        let conf = format!(
            "sources = w f r\nchannels = w f r d\nsinks = w r d\n{}{}\
             channels.w.type = memory\nchannels.w.capacity = 1000\nchannels.w.transactionCapacity = 1000\n\
             channels.r.type = memory\nchannels.r.capacity = 1000\nchannels.r.transactionCapacity = 1000\n\
             sinks.w.type = {SINK}\nsinks.w.channel = w\nsinks.w.kafka.bootstrap.servers = {bootstrap}\nsinks.w.kafka.topic = {}\n\
             sinks.w.useFlumeEventFormat = true\n\
             sources.r.type = {SOURCE}\nsources.r.channels = r\nsources.r.kafka.bootstrap.servers = {bootstrap}\n\
             sources.r.kafka.topics = {}\nsources.r.useFlumeEventFormat = true\nsources.r.kafka.consumer.group.id = {}\n\
             sources.r.kafka.consumer.auto.offset.reset = earliest\n{}{}{}{}",
            write("w"),
            write("f"),
            topic(who),
            topic(other),
            topic(other),
            roll("r", &read),
            roll("d", &drained),
            kafka_channel("f", &topic(&format!("{}-channel", if who == "ours" { "our" } else { "their" }))),
            kafka_channel("d", &topic(&format!("{}-channel", if who == "ours" { "their" } else { "our" }))),
        );
        (conf, read, drained)
    };
    let (ours, read, drained) = side("ours", "theirs");
    let (theirs, their_read, their_drained) = side("theirs", "ours");
    let flume = Flume::start(dir.path(), "flume", &agent("agent", &theirs));
    let mut collector = start(dir.path(), &ours);
    collector.addresses().await;
    // `{from=ours Köln, key=k-ours, …} 17`: headers in no order.
    let numbers = |folder: &Path, from: &str| -> BTreeMap<usize, usize> {
        let mut numbers = BTreeMap::new();
        for line in lines(folder) {
            let (headers, body) = line.rsplit_once("} ").unwrap_or_else(|| panic!("{line}"));
            assert!(headers.contains(&format!("from={from} Köln")) && headers.contains(&format!("key=k-{from}")), "{line}");
            *numbers.entry(body.parse().unwrap_or_else(|_| panic!("{line}"))).or_default() += 1;
        }
        numbers
    };
    for (folder, from) in [(&read, "theirs"), (&drained, "theirs"), (&their_read, "ours"), (&their_drained, "ours")] {
        eventually(WAIT, &format!("{from} are in {}", folder.display()), || async {
            // A file that is being written may end within a line, but never within what was flushed.
            let seen = numbers(folder, from);
            if seen.len() == EVENTS { Ok(()) } else { Err(format!("{} of {EVENTS}", seen.len())) }
        })
        .await;
        let seen = numbers(folder, from);
        assert!(seen.values().all(|count| *count == 1), "{from} in {}: {seen:?}", folder.display());
    }
    // The headers that a source adds are the same on both sides.
    let names = |folder: &Path| -> BTreeSet<String> {
        let line = lines(folder).remove(0);
        let (headers, _) = line.trim_start_matches('{').rsplit_once("} ").unwrap_or_else(|| panic!("{line}"));
        headers.split(", ").filter_map(|header| Some(header.split_once('=')?.0.to_owned())).collect()
    };
    assert_eq!(names(&read), names(&their_read));
    assert_eq!(names(&drained), names(&their_drained));
    collector.stop().await;
    flume.stop().await;
}

/// One group of a real Flume and ours: each takes over from the other, and no record is lost; what a hand-over repeats is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_group_with_real_flume_hands_partitions_over() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (bootstrap, topic) = (kafka_bootstrap(), unique("group"));
    kafka::create_topic(&bootstrap, &topic, 4).await;
    let (ours, theirs) = (folder(dir.path(), "ours"), folder(dir.path(), "theirs"));
    let conf = |folder: &Path| {
        format!(
            "sources = r\nchannels = c\nsinks = k\nsources.r.type = {SOURCE}\nsources.r.channels = c\n\
             sources.r.kafka.bootstrap.servers = {bootstrap}\nsources.r.kafka.topics = {topic}\nsources.r.kafka.consumer.group.id = {topic}\n\
             sources.r.kafka.consumer.auto.offset.reset = earliest\nsources.r.batchSize = 100\nsources.r.batchDurationMillis = 200\n\
             channels.c.type = memory\nchannels.c.capacity = 1000\nchannels.c.transactionCapacity = 100\n\
             sinks.k.type = file_roll\nsinks.k.channel = c\nsinks.k.sink.directory = {}\nsinks.k.sink.rollInterval = 0\n",
            folder.display()
        )
    };
    let (written, done) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicBool::new(false)));
    let background = Done(done.clone());
    let writer = {
        let (bootstrap, topic, written) = (bootstrap.clone(), topic.clone(), written.clone());
        tokio::task::spawn_blocking(move || {
            while !done.load(SeqCst) {
                let mut all = written.lock().expect("the list");
                let from = all.len();
                let more = numbered("record", from..from + 50);
                kafka::produce(&bootstrap, &topic, 4, more.clone());
                all.extend(more);
                drop(all);
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let begins = async |who: &str, folder: &Path, less: usize| {
        eventually(WAIT, &format!("{who} gets records"), || async {
            let count = lines(folder).len();
            if count > less { Ok(()) } else { Err(count.to_string()) }
        })
        .await;
    };
    let mut collector = start(dir.path(), &conf(&ours));
    begins("ours", &ours, 0).await;
    let flume = Flume::start(dir.path(), "flume", &agent("agent", &conf(&theirs)));
    begins("theirs", &theirs, 0).await;
    let shared = lines(&ours).len();
    begins("ours", &ours, shared).await;
    collector.stop().await;
    let alone = lines(&theirs).len();
    begins("theirs", &theirs, alone).await;
    let mut collector = start(dir.path(), &conf(&ours));
    let before = lines(&ours).len();
    begins("ours", &ours, before).await;
    flume.stop().await;
    drop(background);
    writer.await.expect("the writer");
    let written = written.lock().expect("the list").clone();
    let seen = || [lines(&ours), lines(&theirs)].concat();
    let repeated = all_there("every record", &written, seen).await;
    collector.stop().await;
    say(&format!("one group with Flume, three hand-overs: {} records, 0 lost, {repeated} repeated", written.len()));
}

#[allow(clippy::print_stderr, reason = "counts that the documentation quotes")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// Lets whoever works in the background end, also when the test fails.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Kills of the test; another number with `KILLS`.
fn kills() -> u32 {
    std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_it_loses_no_record() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (bootstrap, name) = (kafka_bootstrap(), unique("killed"));
    let (input, output) = (format!("{name}-in"), format!("{name}-out"));
    kafka::create_topic(&bootstrap, &input, 3).await;
    kafka::create_topic(&bootstrap, &output, 3).await;
    let files = folder(dir.path(), "files");
    // With an instance id a successor has the partitions at once, not only when the killed one's session is over.
    let source = |name: &str| {
        format!(
            "sources.{name}.type = {SOURCE}\nsources.{name}.channels = {name}\nsources.{name}.kafka.bootstrap.servers = {bootstrap}\n\
             sources.{name}.kafka.topics = {input}\nsources.{name}.kafka.consumer.group.id = {input}-{name}\n\
             sources.{name}.kafka.consumer.auto.offset.reset = earliest\nsources.{name}.kafka.consumer.group.instance.id = {name}\n"
        )
    };
    let conf = format!(
        "sources = m k\nchannels = m k\nsinks = m k\n{}{}channels.m.type = memory\nchannels.m.capacity = 2000\nchannels.m.transactionCapacity = 1000\n\
         sinks.m.type = file_roll\nsinks.m.channel = m\nsinks.m.sink.directory = {}\nsinks.m.sink.rollInterval = 0\n\
         channels.k.type = {CHANNEL}\nchannels.k.kafka.bootstrap.servers = {bootstrap}\nchannels.k.kafka.topic = {name}-channel\n\
         channels.k.kafka.consumer.group.id = {name}-channel\nchannels.k.kafka.consumer.group.instance.id = c\n\
         sinks.k.type = {SINK}\nsinks.k.channel = k\nsinks.k.kafka.bootstrap.servers = {bootstrap}\nsinks.k.kafka.topic = {output}\n\
         sinks.k.allowTopicOverride = false\n",
        source("m"),
        source("k"),
        files.display()
    );
    kafka::create_topic(&bootstrap, &format!("{name}-channel"), 2).await;
    let done = Arc::new(AtomicBool::new(false));
    let background = Done(done.clone());
    let writer = {
        let (bootstrap, input) = (bootstrap.clone(), input.clone());
        tokio::task::spawn_blocking(move || {
            let mut written = Vec::new();
            while !done.load(SeqCst) {
                let more = numbered("record", written.len()..written.len() + 200);
                kafka::produce(&bootstrap, &input, 3, more.clone());
                written.extend(more);
                std::thread::sleep(Duration::from_millis(10));
            }
            written
        })
    };
    for _ in 0..kills() {
        let seen = lines(&files).len();
        let mut collector = start(dir.path(), &conf);
        collector.addresses().await;
        // Killed at work, not before.
        eventually(WAIT, "it delivers", || async { if lines(&files).len() > seen { Ok(()) } else { Err("nothing yet".into()) } }).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..500))).await;
        collector.kill_9();
    }
    drop(background);
    let written = writer.await.expect("the writer");
    let mut collector = start(dir.path(), &conf);
    collector.addresses().await;
    let in_files = all_there("every record is in the files", &written, || lines(&files)).await;
    let in_topic = all_there("every record is in the topic", &written, || kafka::texts(&bootstrap, &output)).await;
    collector.stop().await;
    say(&format!(
        "{} kills, {} records: 0 lost; repeated: {in_files} source → memory → file_roll, {in_topic} source → Kafka channel → Kafka sink",
        kills(),
        written.len()
    ));
}

/// Written by others than Flume, and `parseAsFlumeEvent` left as it is: nothing is committed, or everything is put aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_no_events_stop_a_channel_or_are_put_aside() {
    let (bootstrap, dir) = (kafka_bootstrap(), tempfile::tempdir().expect("a temporary folder"));
    let (topic, group) = (unique("no-events"), unique("group"));
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let written = numbered("plain", 0..50);
    kafka::produce(&bootstrap, &topic, 1, written.clone());
    let out = folder(dir.path(), "out");
    let agent = |more: &str| {
        format!(
            "channels = c\nsinks = k\nchannels.c.type = {CHANNEL}\nchannels.c.kafka.bootstrap.servers = {bootstrap}\n\
             channels.c.kafka.topic = {topic}\nchannels.c.kafka.consumer.group.id = {group}\n{more}\n\
             sinks.k.type = file_roll\nsinks.k.channel = c\nsinks.k.sink.directory = {}",
            out.display()
        )
    };
    let mut collector = start(dir.path(), &agent(""));
    collector.log_contains(WAIT, "set parseAsFlumeEvent = false").await;
    let page = collector.address("metrics").await;
    let health = reqwest::get(format!("http://{page}/health")).await.expect("the page").text().await.expect("text");
    assert!(health.contains("degraded") && health.contains("offset 0 of") && health.contains(&topic), "{health}");
    collector.stop().await;
    assert_eq!(collector.log().matches("is no event in Flume's form").count(), 1, "{}", collector.log());
    assert_eq!((kafka::lag(&bootstrap, &group, &topic), lines(&out).len()), (50, 0), "{}", collector.log());

    // With the setting that was missing nothing is lost.
    let mut collector = start(dir.path(), &agent("channels.c.parseAsFlumeEvent = false"));
    all_there("every record", &written, || lines(&out)).await;
    collector.stop().await;

    // And where it was asked for, they are put aside.
    let more = numbered("more", 0..30);
    kafka::produce(&bootstrap, &topic, 1, more.clone());
    let aside = folder(dir.path(), "aside");
    let mut collector = start(dir.path(), &agent(&format!("channels.c.deadLetter.directory = {}", aside.display())));
    eventually(WAIT, "they are committed", || async {
        let lag = kafka::lag(&bootstrap, &group, &topic);
        if lag == 0 { Ok(()) } else { Err(format!("{lag} are not; {}", collector.log())) }
    })
    .await;
    collector.stop().await;
    let letters: Vec<serde_json::Value> = lines(&aside).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let bodies: Vec<_> = letters.iter().filter_map(|letter| letter["body"].as_str()).collect();
    assert_eq!(bodies, more);
    assert!(letters[0]["reason"].as_str().is_some_and(|why| why.contains("offset 50 of") && why.contains("parseAsFlumeEvent")));
}

/// What `check` says of Kafka channels with one side only, and of the commonest slips.
#[test]
fn a_kafka_channel_needs_neither_source_nor_sink() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |lines: &str| {
        let path = dir.path().join("c.conf");
        fs::write(&path, agent("a", lines)).expect("the file");
        let output = run("millrace-collector", &["check", &path.to_string_lossy()], &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let channel = format!("channels = c\nchannels.c.type = {CHANNEL}\nchannels.c.kafka.bootstrap.servers = k:9092\n");
    for (lines, finding) in [
        ("sinks = k\nsinks.k.type = null\nsinks.k.channel = c\n", ""),
        ("sources = r\nsources.r.type = seq\nsources.r.channels = c\n", ""),
        ("sources = r\nsources.r.type = seq\nsources.r.channels = c\nchannels.c.capacity = 5\n", "no such property"),
        ("sources = r\nsources.r.type = seq\nsources.r.channels = c\nchannels.c.kafka.producer.acks = 1\n", "acks"),
        (
            "sources = r\nsources.r.type = seq\nsources.r.channels = c\nchannels.c.kafka.consumer.enable.auto.commit = true\n",
            "enable.auto.commit",
        ),
    ] {
        let (code, said) = check(&format!("{channel}{lines}"));
        assert_eq!(code, Some(0), "{lines}: {said}");
        assert!(if finding.is_empty() { said.contains("0 warnings") } else { said.contains(finding) }, "{lines}: {said}");
    }
    let (code, said) = check(&channel);
    assert_ne!(code, Some(0), "{said}");
}
