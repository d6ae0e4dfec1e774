//! One agent file, run first by real Flume and then by the collector on the same input into the same topics: every record of
//! the collector is Flume's, in Flume's place.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use integration_tests::{
    eventually,
    flume::Flume,
    kafka::{self, Seen},
    process::Process,
    servers::kafka_bootstrap,
    unique,
};

const WAIT: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 3;

/// `TOPICS` stands for what all topics' names begin with.
const LINES: &[&str] = &[
    "k=alice p=0 t=1600000000001 c=red to=TOPICS-named the first",
    "k=bob p=2 t=1600000000002 c=blue user",
    "k=carol p=1 t=1600000000003 c=both to=TOPICS-elsewhere to another",
    "k=Zoë p=2 t=1500000000000 c=green older; ünïcödé, 日本, 🙂",
    "",
    "   blanks before and behind   ",
    "\ta\ttab\\t and a back\\slash \"quoted\" 'too' ${sys:records.topics} %{colour} $1",
    "t=soon no time",
    "t=1600000000004 c=red time and colour",
    "p=1 part",
    "k=alice another of alice's",
    "k=dave c=other nobody chooses it",
    "DEBUG k=erin c=blue filtered in one place",
    "k=frank secret=hidden p=0 t=1600000000005 shown",
    "windows\r",
    "c=both LONG",
    "k=the-last p=0 t=1600000000006 c=red end",
];

/// Topics, and how many lines come to each.
fn expected(lines: &[String], topics: &str) -> BTreeMap<String, usize> {
    let with = |needles: &[&str]| lines.iter().filter(|line| needles.iter().any(|needle| line.contains(needle))).count();
    let all = lines.len();
    let [named, elsewhere] = ["named", "elsewhere"].map(|topic| with(&[&format!("to={topics}-{topic}")]));
    let mut counts = BTreeMap::new();
    for topic in ["old", "event", "fixed", "parts", "numbered", "second", "times", "kept", "raw"] {
        counts.insert(topic, all);
    }
    counts.extend([("named", named), ("elsewhere", elsewhere), ("unnamed", all - named - elsewhere)]);
    for (topic, colour) in
        [("by-red", "c=red"), ("by-blue", "c=blue"), ("by-both", "c=both"), ("by-green", "c=green"), ("by-other", "c=other")]
    {
        counts.insert(topic, with(&[colour]));
    }
    counts.insert("by-", all - with(&["c="]));
    counts.insert("red", with(&["c=red", "c=both"]));
    counts.insert("blue", with(&["c=blue", "c=both"]));
    counts.insert("maybe", with(&["c=blue"]));
    counts.insert("rest", all - with(&["c=red", "c=blue", "c=both"]));
    counts.insert("changed", all - with(&["DEBUG"]));
    counts.insert("spooled", all + 2);
    counts.into_iter().map(|(topic, count)| (format!("{topics}-{topic}"), count)).collect()
}

/// Those of a topic in the order of each partition.
type Records = BTreeMap<String, BTreeMap<i32, Vec<Seen>>>;

fn read(bootstrap: &str, topics: &BTreeMap<String, usize>) -> Records {
    let by_partition = |topic: &String| {
        let mut partitions: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
        kafka::read_all(bootstrap, topic).into_iter().for_each(|record| partitions.entry(record.partition).or_default().push(record));
        partitions
    };
    topics.keys().map(|topic| (topic.clone(), by_partition(topic))).collect()
}

/// Waits until every topic has `times` its records, and not one more.
async fn all_there(who: &str, bootstrap: &str, topics: &BTreeMap<String, usize>, times: usize) -> Records {
    eventually(WAIT, &format!("{who}'s records"), || async {
        let records = read(bootstrap, topics);
        let wrong: Vec<String> = topics
            .iter()
            .filter_map(|(topic, count)| {
                let there: usize = records[topic].values().map(Vec::len).sum();
                (there != count * times).then(|| format!("{topic}: {there} of {}", count * times))
            })
            .collect();
        if wrong.is_empty() { Ok(records) } else { Err(wrong.join(", ")) }
    })
    .await
}

/// Flume's Avro event: headers have no order there.
fn decode(value: &[u8]) -> Option<(BTreeMap<String, String>, Vec<u8>)> {
    fn number(rest: &mut &[u8]) -> Option<i64> {
        let (mut number, mut shift) = (0u64, 0);
        loop {
            let (byte, after) = rest.split_first()?;
            *rest = after;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()));
            }
        }
    }
    fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let length = usize::try_from(number(rest)?).ok()?;
        let (bytes, after) = rest.split_at_checked(length)?;
        *rest = after;
        Some(bytes)
    }
    let (mut rest, mut headers) = (value, BTreeMap::new());
    loop {
        let count = number(&mut rest)?;
        if count < 0 {
            // The block's length in bytes, which a reader may skip by.
            number(&mut rest)?;
        }
        if count == 0 {
            break;
        }
        for _ in 0..count.abs() {
            let name = String::from_utf8(bytes(&mut rest)?.to_vec()).ok()?;
            headers.insert(name, String::from_utf8(bytes(&mut rest)?.to_vec()).ok()?);
        }
    }
    let body = bytes(&mut rest)?.to_vec();
    rest.is_empty().then_some((headers, body))
}

/// What two records must have in common, to be read by eye.
fn shown(record: &Seen, flume_event: bool) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let value = if flume_event {
        let (headers, body) = decode(&record.value).unwrap_or_else(|| panic!("no event of Flume: {}", text(&record.value)));
        format!("{headers:?} {}", text(&body))
    } else {
        text(&record.value)
    };
    let headers: Vec<String> = record.headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    // Where no event says it, the time is that of sending.
    let time = record.timestamp_ms.filter(|time| *time < 1_650_000_000_000);
    format!("key {:?} time {time:?} headers {headers:?} value {value}", record.key.as_deref().map(text))
}

fn input(dir: &Path, topics: &str) -> Vec<String> {
    let long = "0123456789".repeat(300);
    let lines: Vec<String> = LINES.iter().map(|line| line.replace("TOPICS", topics).replace("LONG", &long)).collect();
    fs::write(dir.join("input"), lines.join("\n") + "\n").expect("the input");
    lines
}

/// Two files, the second of which is younger; the longest line is cut in two by `maxLineLength`.
fn spool(dir: &Path) {
    let (spool, text) = (dir.join("spool"), fs::read_to_string(dir.join("input")).expect("the input"));
    drop(fs::remove_dir_all(&spool));
    fs::create_dir(&spool).expect("the folder");
    for (name, text, age) in [("b.log", text.as_str(), 100), ("a.log", "of the second file\n", 50)] {
        fs::write(spool.join(name), text).expect("a file");
        let file = fs::File::options().append(true).open(spool.join(name)).expect("a file");
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("its time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_file_and_input_give_the_same_records() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (bootstrap, name) = (kafka_bootstrap(), unique("records"));
    let topics = expected(&input(dir.path(), &name), &name);
    for topic in topics.keys() {
        // Events without a key go to any partition: one, then.
        let short = topic.strip_prefix(&format!("{name}-")).unwrap_or_default();
        let partitions = if ["red", "blue", "maybe", "rest"].contains(&short) { 1 } else { PARTITIONS };
        // The lines' times are years ago: the broker must not clear them away.
        kafka::create_topic_with(&bootstrap, topic, partitions, &[("retention.ms", "-1")]).await;
    }
    let defines =
        [format!("-Drecords.dir={}", dir.path().display()), format!("-Drecords.brokers={bootstrap}"), format!("-Drecords.topics={name}")];
    let defines = defines.each_ref().map(String::as_str);
    let conf = include_str!("records.conf");
    let conf_path = dir.path().join("agent.conf");
    spool(dir.path());
    let flume = Flume::start_with(dir.path(), "flume", conf, &defines);
    let theirs = all_there("Flume", &bootstrap, &topics, 1).await;
    flume.stop().await;

    spool(dir.path());
    fs::write(&conf_path, conf).expect("the agent's file");
    let (conf_path, state) = (conf_path.to_string_lossy(), dir.path().join("state"));
    let state = state.to_string_lossy();
    let mut args = vec!["agent", "-n", "agent", "-f", &conf_path, "--state-dir", &state, "--no-reload-conf"];
    args.extend(defines);
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    let mut collector = Process::start("millrace-collector", dir.path(), &args, &env);
    let both = all_there("the collector", &bootstrap, &topics, 2).await;
    collector.stop().await;

    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (topic, partitions) in &both {
        let flume_event = ["event", "kept", "changed", "spooled"].iter().any(|short| topic.ends_with(&format!("-{short}")));
        for (partition, records) in partitions {
            let before = theirs[topic].get(partition).map_or(0, Vec::len);
            let (left, right) = records.split_at(before);
            compared += left.len();
            let [left, right] = [left, right].map(|side| side.iter().map(|record| shown(record, flume_event)).collect::<Vec<_>>());
            if left != right {
                let pairs = left.iter().zip(&right).find(|(left, right)| left != right);
                wrong.push(format!("{topic}/{partition}: {} of Flume, {} of ours; first difference {pairs:#?}", left.len(), right.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(compared, topics.values().sum::<usize>());
}
