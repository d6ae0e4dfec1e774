//! Flume's remote calls between real Flume and the collector, in both directions: no event lost, none twice, headers kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use integration_tests::{
    eventually,
    flume::{Flume, avro_client, free_port},
    kafka,
    process::{Process, run},
    servers::kafka_bootstrap,
    unique,
};

const WAIT: Duration = Duration::from_secs(90);
/// By way and connection.
const EVENTS: usize = 2000;

/// One way of speaking: the type of source and sink, and what is set on both.
struct Way {
    name: &'static str,
    kind: &'static str,
    settings: &'static str,
    tls: bool,
}

const WAYS: &[Way] = &[
    Way { name: "plain", kind: "avro", settings: "", tls: false },
    Way { name: "deflate", kind: "avro", settings: "compression-type = deflate", tls: false },
    Way { name: "tls", kind: "avro", settings: "", tls: true },
    Way { name: "both", kind: "avro", settings: "compression-type = deflate", tls: true },
    Way { name: "compact", kind: "thrift", settings: "", tls: false },
    Way { name: "binary", kind: "thrift", settings: "protocol = binary", tls: false },
    Way { name: "thrifttls", kind: "thrift", settings: "", tls: true },
];

/// A key and its certificate, in PEM and as Java has them.
struct Keys(PathBuf);

impl Keys {
    fn new(dir: &Path) -> Self {
        let made = Self(dir.to_path_buf());
        made.run("openssl", "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem");
        made.run("openssl", "pkcs12 -export -in cert.pem -inkey key.pem -out key.p12 -passout pass:secret");
        made.run("keytool", "-importcert -noprompt -alias a -file cert.pem -keystore trust.p12 -storetype PKCS12 -storepass secret");
        let pem = ["cert.pem", "key.pem"].map(|file| fs::read_to_string(dir.join(file)).expect("PEM")).concat();
        fs::write(dir.join("both.pem"), pem).expect("PEM");
        made
    }

    fn run(&self, program: &str, args: &str) {
        let output =
            Command::new(program).args(args.split(' ')).current_dir(&self.0).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).to_string_lossy().into_owned()
    }
}

/// `prefix.key = value` for every line of `settings`.
fn lines(prefix: &str, settings: &str) -> String {
    settings.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{prefix}.{line}\n")).collect()
}

/// An agent with a `seq` source, a channel and a sink for every way; the sinks send to `ports`.
fn sending(agent: &str, ports: &BTreeMap<&str, u16>, trust: &str) -> String {
    let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
    let mut text = format!("{agent}.sources = {0}\n{agent}.channels = {0}\n{agent}.sinks = {0}\n", names.join(" "));
    for way in WAYS {
        let name = way.name;
        text += &lines(
            &format!("{agent}.sources.{name}"),
            &format!(
                "type = seq\nchannels = {name}\ntotalEvents = {EVENTS}\nbatchSize = 100\ninterceptors = w p\n\
                 interceptors.w.type = static\ninterceptors.w.key = way\ninterceptors.w.value = {name}\n\
                 interceptors.p.type = static\ninterceptors.p.key = place\ninterceptors.p.value = K\\u00f6ln"
            ),
        );
        text += &lines(&format!("{agent}.channels.{name}"), &format!("type = memory\ncapacity = {EVENTS}\ntransactionCapacity = 100"));
        let settings = format!(
            "type = {}\nchannel = {name}\nhostname = localhost\nport = {}\nbatch-size = 100\n{}\n",
            way.kind, ports[name], way.settings
        );
        text += &lines(&format!("{agent}.sinks.{name}"), &settings);
        if way.tls {
            text += &lines(&format!("{agent}.sinks.{name}"), &format!("ssl = true\n{trust}"));
        }
    }
    text
}

/// The sources of an agent that answers every way, into the channels that `channel` names.
fn answering(agent: &str, ports: &BTreeMap<&str, u16>, key: &str, channel: impl Fn(&str) -> String) -> String {
    let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
    let mut text = format!("{agent}.sources = {}\n", names.join(" "));
    for way in WAYS {
        let prefix = format!("{agent}.sources.{}", way.name);
        let (channel, port) = (channel(way.name), ports[way.name]);
        text += &lines(&prefix, &format!("type = {}\nchannels = {channel}\nbind = 127.0.0.1\nport = {port}\n{}", way.kind, way.settings));
        if way.tls {
            text += &lines(&prefix, &format!("ssl = true\n{key}"));
        }
    }
    text
}

fn ports() -> BTreeMap<&'static str, u16> {
    WAYS.iter().map(|way| (way.name, free_port())).collect()
}

fn start(dir: &Path, conf: &str) -> Process {
    let (path, state) = (dir.join("collector.conf"), dir.join("state"));
    fs::write(&path, conf).expect("the agent's file");
    let args = ["agent", "-n", "a", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    Process::start("millrace-collector", dir, &args, &env)
}

/// The lines of an agent's channel `c` and its Kafka sink `k`.
fn to_kafka(bootstrap: &str, topic: &str) -> String {
    format!(
        "a.channels = c\na.sinks = k\na.channels.c.type = memory\na.channels.c.capacity = 20000\na.channels.c.transactionCapacity = 1000\n\
         a.sinks.k.channel = c\na.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = {bootstrap}\n\
         a.sinks.k.kafka.topic = {topic}\na.sinks.k.header.way = way\na.sinks.k.header.place = place\n"
    )
}

fn header(record: &kafka::Seen, name: &str) -> String {
    let found = record.headers.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

#[tokio::test]
async fn what_flumes_sinks_send_arrives_once_over_every_wire() {
    let (dir, topic, bootstrap) = (tempfile::tempdir().expect("a folder"), unique("avro"), kafka_bootstrap());
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let (keys, ports) = (Keys::new(dir.path()), ports());
    let key = format!("keystore = {}\nkeystore-type = PEM", keys.path("both.pem"));
    let conf = answering("a", &ports, &key, |_| "c".to_owned()) + &to_kafka(&bootstrap, &topic);
    let mut collector = start(dir.path(), &conf);
    collector.addresses().await;
    let trust = format!("truststore = {}\ntruststore-password = secret\ntruststore-type = PKCS12", keys.path("trust.p12"));
    let _flume = Flume::start(dir.path(), "sending", &sending("agent", &ports, &trust));
    eventually(WAIT, "every event is in Kafka once, with its headers", || async {
        let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for record in kafka::read_all(&bootstrap, &topic) {
            if header(&record, "place") != "Köln" {
                return Err(format!("headers {:?}", record.headers));
            }
            seen.entry(header(&record, "way")).or_default().push(record.text().parse().map_err(|_| record.text())?);
        }
        whole(seen)
    })
    .await;
    collector.stop().await;
}

#[tokio::test]
async fn what_the_collectors_sinks_send_flume_takes_once_over_every_wire() {
    let dir = tempfile::tempdir().expect("a folder");
    let (keys, ports) = (Keys::new(dir.path()), ports());
    let key = format!("keystore = {}\nkeystore-password = secret\nkeystore-type = PKCS12", keys.path("key.p12"));
    let mut conf = answering("agent", &ports, &key, str::to_owned);
    let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
    conf += &format!("agent.channels = {0}\nagent.sinks = {0}\n", names.join(" "));
    for name in &names {
        let rolled = dir.path().join(name);
        fs::create_dir(&rolled).expect("a folder");
        conf += &lines(&format!("agent.channels.{name}"), &format!("type = memory\ncapacity = {EVENTS}\ntransactionCapacity = 100"));
        let file_roll = format!(
            "type = file_roll\nchannel = {name}\nsink.directory = {}\nsink.rollInterval = 0\nsink.serializer = header_and_text",
            rolled.display()
        );
        conf += &lines(&format!("agent.sinks.{name}"), &file_roll);
    }
    let mut flume = Flume::start(dir.path(), "answering", &conf);
    let trust = format!("truststore = {}\ntruststore-type = PEM", keys.path("cert.pem"));
    // The sinks find nobody at first, and try until Flume is there.
    let mut collector = start(dir.path(), &sending("a", &ports, &trust));
    collector.addresses().await;
    for port in ports.values() {
        flume.listens(*port).await;
    }
    eventually(WAIT, "every event is in Flume's files once, with its headers", || async {
        let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for name in &names {
            for file in fs::read_dir(dir.path().join(name)).map_err(|error| error.to_string())? {
                let text = fs::read_to_string(file.map_err(|error| error.to_string())?.path()).map_err(|error| error.to_string())?;
                for line in text.lines() {
                    let (headers, body) = line.rsplit_once("} ").ok_or_else(|| line.to_owned())?;
                    let whole = headers.contains(&format!("way={name}")) && headers.contains("place=K");
                    seen.entry((*name).to_owned()).or_default().push(body.parse().ok().filter(|_| whole).ok_or_else(|| line.to_owned())?);
                }
            }
        }
        whole(seen)
    })
    .await;
    collector.stop().await;
}

/// Every way has every number once.
fn whole(seen: BTreeMap<String, Vec<usize>>) -> Result<(), String> {
    let mut wrong = Vec::new();
    for way in WAYS {
        let mut numbers = seen.get(way.name).cloned().unwrap_or_default();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        if (count, numbers.len(), numbers.last()) != (EVENTS, EVENTS, Some(&(EVENTS - 1))) {
            wrong.push(format!("{}: {count} events, {} of them different, of {EVENTS}", way.name, numbers.len()));
        }
    }
    if wrong.is_empty() && seen.len() == WAYS.len() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// A channel that is full: Flume's sink is told so, keeps its batch, and sends it again until it is taken.
#[tokio::test]
async fn a_full_channel_costs_flumes_events_nothing() {
    let (dir, topic, bootstrap, port) = (tempfile::tempdir().expect("a folder"), unique("avrofull"), kafka_bootstrap(), free_port());
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let source = lines("a.sources.r", &format!("type = avro\nchannels = c\nbind = 127.0.0.1\nport = {port}"));
    let small = "a.sources = r\na.channels.c.capacity = 250\na.channels.c.transactionCapacity = 100\na.channels.c.keep-alive = 0\n";
    let mut collector = start(dir.path(), &(to_kafka(&bootstrap, &topic) + &source + small));
    let (control, page) = (collector.address("control").await, collector.address("metrics").await);
    let millrace = |args: &[&str]| {
        let output = run("millrace", &[&["--collector", &control, "collector"], args].concat(), &[]);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    millrace(&["pause", "k"]);
    let sending = lines("agent.sources.s", "type = seq\nchannels = c\ntotalEvents = 1000\nbatchSize = 100")
        + &lines("agent.channels.c", "type = memory\ncapacity = 1000\ntransactionCapacity = 100")
        + &lines("agent.sinks.k", &format!("type = avro\nchannel = c\nhostname = localhost\nport = {port}\nbatch-size = 100"))
        + "agent.sources = s\nagent.channels = c\nagent.sinks = k\n";
    let flume = Flume::start(dir.path(), "sending", &sending);
    eventually(WAIT, "the source has refused a batch", || async {
        let shown: serde_json::Value = reqwest::get(format!("http://{page}/metrics")).await.expect("the page").json().await.expect("JSON");
        let source = &shown["SOURCE.r"];
        let number = |name: &str| source[name].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        if number("ChannelWriteFail") > 1 && number("EventAcceptedCount") == 200 { Ok(()) } else { Err(source.to_string()) }
    })
    .await;
    assert!(flume.log().contains("Avro RPC call returned Status: FAILED"), "{}", flume.log());
    millrace(&["resume", "k"]);
    eventually(WAIT, "every event is in Kafka once", || async {
        let texts = kafka::texts(&bootstrap, &topic);
        let expected: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        if texts == expected { Ok(()) } else { Err(format!("{} events of 1000", texts.len())) }
    })
    .await;
    collector.stop().await;
}

/// The library's clients: one host, two of which the first is dead, two that take turns.
#[tokio::test]
async fn flumes_client_library_finds_its_way_to_the_collector() {
    let (dir, topic, bootstrap) = (tempfile::tempdir().expect("a folder"), unique("avroclient"), kafka_bootstrap());
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let (one, two, dead) = (free_port(), free_port(), free_port());
    let mut conf = to_kafka(&bootstrap, &topic) + "a.sources = one two\n";
    for (name, port) in [("one", one), ("two", two)] {
        conf += &lines(
            &format!("a.sources.{name}"),
            &format!(
                "type = avro\nchannels = c\nbind = 127.0.0.1\nport = {port}\ninterceptors = w\ninterceptors.w.type = static\ninterceptors.w.key = way\ninterceptors.w.value = {name}"
            ),
        );
    }
    let mut collector = start(dir.path(), &conf);
    let page = collector.address("metrics").await;
    let (events, headers) = (dir.path().join("events"), dir.path().join("headers"));
    fs::write(&headers, "place = Aachen\n").expect("headers");
    let send = |prefix: &str, properties: &str| {
        let text: String = (0..500).map(|n| format!("{prefix} {n}\n")).collect();
        fs::write(&events, text).expect("events");
        let rpc = dir.path().join("rpc.properties");
        fs::write(&rpc, properties).expect("properties");
        let (ok, said) =
            avro_client(&["--rpcProps", &rpc.to_string_lossy(), "-F", &events.to_string_lossy(), "-R", &headers.to_string_lossy()]);
        assert!(ok, "{prefix}: {said}");
    };
    send("default", &format!("client.type = default\nhosts = h1\nhosts.h1 = 127.0.0.1:{one}\nbatch-size = 50\n"));
    send(
        "failover",
        &format!(
            "client.type = default_failover\nhosts = h1 h2\nhosts.h1 = 127.0.0.1:{dead}\nhosts.h2 = 127.0.0.1:{two}\nbatch-size = 50\n"
        ),
    );
    send(
        "turns",
        &format!(
            "client.type = default_loadbalance\nhosts = h1 h2\nhosts.h1 = 127.0.0.1:{one}\nhosts.h2 = 127.0.0.1:{two}\nbatch-size = 50\n"
        ),
    );
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    eventually(WAIT, "every line is in Kafka", || {
        let records = kafka::read_all(&bootstrap, &topic);
        counts.clear();
        for record in &records {
            assert_eq!(header(record, "place"), "Aachen");
            let client = record.text().split(' ').next().unwrap_or_default().to_owned();
            *counts.entry((client, header(record, "way"))).or_default() += 1;
        }
        let mut distinct: Vec<String> = records.iter().map(kafka::Seen::text).collect();
        distinct.sort();
        distinct.dedup();
        let outcome =
            if (records.len(), distinct.len()) == (1500, 1500) { Ok(()) } else { Err(format!("{} of 1500, {counts:?}", records.len())) };
        async { outcome }
    })
    .await;
    let count = |client: &str, way: &str| counts.get(&(client.to_owned(), way.to_owned())).copied().unwrap_or_default();
    assert_eq!((count("default", "one"), count("failover", "two")), (500, 500), "{counts:?}");
    assert!(count("turns", "one") > 0 && count("turns", "two") > 0, "{counts:?}");
    let page: serde_json::Value =
        reqwest::get(format!("http://{page}/metrics")).await.expect("the page").json().await.expect("Flume's JSON");
    let number = |source: &str, name: &str| page[format!("SOURCE.{source}")][name].as_str().and_then(|text| text.parse::<usize>().ok());
    let received = |source: &str| number(source, "AppendReceivedCount").zip(number(source, "AppendBatchReceivedCount")).map(|(a, b)| a + b);
    assert!(received("one") > Some(0) && received("two") > Some(0), "{page}");
    assert_eq!(number("one", "EventAcceptedCount").zip(number("two", "EventAcceptedCount")).map(|(a, b)| a + b), Some(1500), "{page}");
    collector.stop().await;
}
