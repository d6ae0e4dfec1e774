use std::{fs, path::Path};

use object_store::{ObjectStoreExt as _, memory::InMemory};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;
use crate::channel::{
    Channel,
    memory::{Limits, MemoryChannel},
};
use crate::counters::SinkCounters;
use crate::flume_conf::component::Setting;

/// A sink over a channel of `capacity` events, as its conf would make it.
struct Bench {
    channel: Arc<dyn Channel>,
    counters: Arc<SinkCounters>,
    stop: Stop,
    hurry: watch::Sender<bool>,
    trouble: Arc<Mutex<Option<String>>>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    _resume: watch::Sender<bool>,
}

fn component(settings: &[(&str, &str)]) -> Component {
    let mut component = Component::new(&KIND, "k", "hdfs");
    for (key, value) in settings {
        component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
    }
    component
}

fn sink(settings: &[(&str, &str)], state: &Path, store: Option<Arc<dyn ObjectStore>>) -> RolledFiles {
    let component = component(settings);
    let setup = Setup { state_dir: state.to_owned(), strict: false, committed: watch::Sender::new(None) };
    RolledFiles {
        dead: DeadLetters::of(&component, &setup.state_dir),
        shaping: settings::shaping(&component, settings::format(&component).unwrap()),
        batch: component.count("hdfs.batchSize"),
        bounds: settings::hold(&component),
        state_dir: state.to_owned(),
        to: settings::destination(&component).ok().unwrap(),
        store,
    }
}

impl Bench {
    fn start(sink: RolledFiles, capacity: usize) -> Self {
        let limits = Limits { events_max: capacity, transaction_max: capacity, bytes_max: 0, keep_alive: Duration::from_secs(5) };
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(limits));
        let (resume, paused) = watch::channel(false);
        let (counters, stop, hurry) = (SinkCounters::new("k"), Stop::default(), watch::Sender::new(false));
        let trouble = Arc::new(Mutex::new(None));
        let input = Input::new("k", channel.clone(), counters.clone(), paused, trouble.clone()).hurried_by(hurry.subscribe());
        let task = tokio::task::spawn(Box::new(sink).run(input, stop.clone()));
        Self { channel, counters, stop, hurry, trouble, task, _resume: resume }
    }

    async fn put(&self, events: impl IntoIterator<Item = Event>) {
        self.channel.put(&mut events.into_iter().collect()).await.unwrap();
    }

    /// Until the channel's events are committed.
    async fn emptied(&self) {
        let emptied = async {
            while self.channel.fill().events > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), emptied).await.expect("the channel is emptied");
    }

    async fn end(self) {
        self.stop.begin.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Paths below `directory` and their contents; a file's stamp is `#`.
fn tree(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).unwrap().to_string_lossy().into_owned();
            let name: Vec<String> = name.split('.').map(|part| if part.len() == 13 { "#".into() } else { part.to_owned() }).collect();
            found.push((name.join("."), String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()));
        }
    }
    found.sort();
    found
}

fn numbered(from: usize, to: usize) -> impl Iterator<Item = Event> {
    (from..to).map(|n| Event::new(format!("line {n}")))
}

const TEXT: (&str, &str) = ("hdfs.fileType", "DataStream");

#[tokio::test(flavor = "multi_thread")]
async fn files_roll_by_count_and_have_their_names_when_they_are_complete() {
    let directory = tempfile::tempdir().unwrap();
    let path = format!("file://{}/out/%{{host}}", directory.path().display());
    let settings = [("hdfs.path", path.as_str()), TEXT, ("hdfs.rollCount", "3"), ("hdfs.rollSize", "0"), ("hdfs.fileSuffix", ".log")];
    let bench = Bench::start(sink(&settings, &directory.path().join("state"), None), 100);
    let event = |n: usize, host: &str| Event::with_headers(format!("{n}"), [("host", host)]);
    bench.put((0..7).map(|n| event(n, if n == 3 { "b" } else { "a" }))).await;
    bench.emptied().await;
    let out = directory.path().join("out");
    let during: Vec<String> = tree(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        during,
        ["a/FlumeData.#.log", "a/FlumeData.#.log.tmp", "b/FlumeData.#.log.tmp"].map(str::to_owned)[..].to_vec(),
        "open: three events each"
    );
    assert_eq!(bench.counters.delivered.get(), 7);
    bench.end().await;
    let after = tree(&out);
    let expected = [("a/FlumeData.#.log", "0\n1\n2\n"), ("a/FlumeData.#.log", "4\n5\n6\n"), ("b/FlumeData.#.log", "3\n")];
    assert_eq!(after, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_has_no_place_is_put_aside_and_the_others_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = format!("file://{}/out/%{{to}}/%Y", directory.path().display());
    let settings = [("hdfs.path", path.as_str()), TEXT, ("hdfs.timeZone", "UTC")];
    let state = directory.path().join("state");
    let bench = Bench::start(sink(&settings, &state, None), 100);
    bench
        .put([
            Event::new("no time"),
            Event::with_headers("good", [("timestamp", "0"), ("to", "x//y")]),
            Event::with_headers("escape", [("timestamp", "0"), ("to", "../../../etc")]),
        ])
        .await;
    bench.emptied().await;
    let trouble = bench.trouble.clone();
    bench.end().await;
    let told = trouble.lock().clone().unwrap_or_default();
    assert!(told.starts_with("2 of 3 events were put aside: the path holds parts of the time"), "{told}");
    assert_eq!(tree(&directory.path().join("out")), [("x/y/1970/FlumeData.#".to_owned(), "good\n".to_owned())]);
    let letters = fs::read_to_string(state.join("dead-letter/k.jsonl")).unwrap();
    let reasons: Vec<bool> =
        letters.lines().zip(["no header `timestamp`", "`..` cannot be part"]).map(|(line, why)| line.contains(why)).collect();
    assert_eq!(reasons, [true, true], "{letters}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_left_by_a_killed_process_is_finished_without_its_torn_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = format!("file://{}/out", directory.path().display());
    let settings = [("hdfs.path", path.as_str()), TEXT, ("hdfs.rollCount", "0"), ("hdfs.rollSize", "0"), ("hdfs.rollInterval", "0")];
    let state = directory.path().join("state");
    let bench = Bench::start(sink(&settings, &state, None), 100);
    bench.put(numbered(0, 2)).await;
    bench.emptied().await;
    // What a kill leaves: the file under its name in use, torn behind what was committed.
    bench.task.abort();
    let out = directory.path().join("out");
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.len() == 1 && left[0].to_string_lossy().ends_with(".tmp"), "{left:?}");
    fs::write(&left[0], "line 0\nline 1\nlin").unwrap();
    Bench::start(sink(&settings, &state, None), 100).end().await;
    assert_eq!(tree(&out), [("FlumeData.#".to_owned(), "line 0\nline 1\n".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_old_files_are_closed() {
    for (key, others) in [("hdfs.idleTimeout", "hdfs.rollInterval"), ("hdfs.rollInterval", "hdfs.idleTimeout")] {
        let directory = tempfile::tempdir().unwrap();
        let path = format!("file://{}/out", directory.path().display());
        let settings = [("hdfs.path", path.as_str()), TEXT, ("hdfs.rollCount", "0"), ("hdfs.rollSize", "0"), (key, "1"), (others, "0")];
        let bench = Bench::start(sink(&settings, &directory.path().join("state"), None), 100);
        bench.put(numbered(0, 1)).await;
        bench.emptied().await;
        let out = directory.path().join("out");
        let closed = async {
            while tree(&out)[0].0 != "FlumeData.#" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect(key);
        bench.put(numbered(1, 2)).await;
        bench.emptied().await;
        bench.end().await;
        assert_eq!(tree(&out).iter().map(|(_, text)| text.as_str()).collect::<String>(), "line 0\nline 1\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_too_many_closes_the_one_longest_unused() {
    let directory = tempfile::tempdir().unwrap();
    let path = format!("file://{}/out/%{{d}}", directory.path().display());
    let settings = [("hdfs.path", path.as_str()), TEXT, ("hdfs.maxOpenFiles", "2"), ("hdfs.rollCount", "0"), ("hdfs.rollSize", "0")];
    let bench = Bench::start(sink(&settings, &directory.path().join("state"), None), 100);
    bench.put(["a", "b", "a", "c"].map(|d| Event::with_headers(d, [("d", d)]))).await;
    bench.emptied().await;
    let names: Vec<String> = tree(&directory.path().join("out")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a/FlumeData.#.tmp", "b/FlumeData.#", "c/FlumeData.#.tmp"]);
    bench.end().await;
}

async fn stored(store: &InMemory) -> Vec<String> {
    use futures::TryStreamExt as _;
    let found: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut texts = Vec::new();
    for object in found {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        texts.push(String::from_utf8(bytes.to_vec()).unwrap());
    }
    texts
}

const FOR_STORE: [(&str, &str); 4] = [("hdfs.path", "s3://bucket/logs"), TEXT, ("hdfs.rollSize", "0"), ("hdfs.rollInterval", "0")];

#[tokio::test(flavor = "multi_thread")]
async fn in_a_store_a_take_is_committed_when_its_files_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(InMemory::new());
    let settings = [&FOR_STORE[..], &[("hdfs.rollCount", "6"), ("hdfs.batchSize", "4")]].concat();
    let bench = Bench::start(sink(&settings, directory.path(), Some(store.clone())), 100);
    bench.put(numbered(0, 8)).await;
    let first = async {
        while bench.counters.delivered.get() < 4 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), first).await.unwrap();
    // The first take is in the file that is complete, the second one is in it and in the open one.
    assert_eq!(bench.channel.fill().events, 4);
    assert_eq!(stored(&store).await.len(), 1);
    // Somebody waits.
    bench.hurry.send_replace(true);
    bench.emptied().await;
    assert_eq!(stored(&store).await.concat().lines().count(), 8);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_events_fill_no_more_than_half_of_the_channel() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(InMemory::new());
    let settings = [&FOR_STORE[..], &[("hdfs.rollCount", "0"), ("hdfs.batchSize", "5")]].concat();
    let bench = Bench::start(sink(&settings, directory.path(), Some(store.clone())), 20);
    bench.put(numbered(0, 20)).await;
    bench.emptied().await;
    assert_eq!(stored(&store).await.iter().map(|text| text.lines().count()).collect::<Vec<_>>(), [10, 10]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_disk_refuses_goes_back_and_is_written_when_it_takes_again() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    fs::write(&out, "a file where the directory should be").unwrap();
    let path = format!("file://{}", out.display());
    let settings = [("hdfs.path", path.as_str()), TEXT];
    let bench = Bench::start(sink(&settings, &directory.path().join("state"), None), 100);
    bench.put(numbered(0, 2)).await;
    let refused = async {
        while bench.counters.rollbacks.get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    assert_eq!((bench.channel.fill().events, bench.counters.delivered.get()), (2, 0));
    fs::remove_file(&out).unwrap();
    bench.emptied().await;
    bench.end().await;
    assert_eq!(tree(&out), [("FlumeData.#".to_owned(), "line 0\nline 1\n".to_owned())]);
}

#[test]
fn slips_are_told_with_their_keys() {
    let told = |settings: &[(&str, &str)]| -> Vec<String> {
        let findings = (KIND.review)(&component(settings), false);
        findings.into_iter().map(|finding| format!("{} {}", finding.key.unwrap_or_default(), finding.message)).collect()
    };
    let fine = ("hdfs.path", "hdfs://nn/l/%Y");
    assert_eq!(told(&[fine]), [""; 0]);
    for (settings, expected) in [
        (vec![("hdfs.path", "gs://b/x")], "k.hdfs.path scheme `gs` is none of file, hdfs, viewfs, s3, s3a, s3n"),
        (vec![("hdfs.path", "/x/%Q")], "k.hdfs.path `%Q` stands for nothing; `%%` is a percent sign"),
        (vec![("hdfs.path", "/x/%Y")], "k.hdfs.path a path without a scheme is on this machine's disk"),
        (vec![fine, ("hdfs.filePrefix", "%[x]")], "k.hdfs.filePrefix `%[x]` stands for nothing; there are %[localhost], %[IP] and %[FQDN]"),
        (vec![fine, ("hdfs.timeZone", "Mars")], "k.hdfs.timeZone `Mars` is no time zone"),
        (
            vec![fine, ("hdfs.round", "true"), ("hdfs.roundUnit", "hour"), ("hdfs.roundValue", "30")],
            "k.hdfs.roundValue 30 is not between 1 and 24",
        ),
        (vec![fine, ("hdfs.codeC", "lzo")], "k.hdfs.codeC codec `lzo` is not built in; there are gzip, snappy, zstandard, deflate, none"),
        (
            vec![fine, TEXT, ("hdfs.codeC", "gzip")],
            "k.hdfs.codeC a DataStream is not compressed; write hdfs.fileType = CompressedStream, or remove the codec",
        ),
        (
            vec![fine, ("hdfs.fileType", "CompressedStream")],
            "k.hdfs.codeC a CompressedStream needs a codec: gzip, snappy, zstandard, deflate",
        ),
        (
            vec![fine, TEXT, ("serializer", "com.x.Mine$Builder")],
            "k.serializer `com.x.Mine$Builder` is none of TEXT, HEADER_AND_TEXT, AVRO_EVENT",
        ),
        (vec![fine, ("hdfs.kerberosKeytab", "/k")], "k.hdfs.kerberosKeytab not read: the ticket of the process's user counts"),
    ] {
        assert_eq!(told(&settings), [expected], "{settings:?}");
    }
}
