//! The sources that listen, and the spooling directory: the same input to real Flume and to the collector gives the same
//! events; real senders are understood; and what Flume would drop is held back or counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use integration_tests::{
    eventually,
    flume::{Flume, free_port},
    kafka,
    process::{Process, run},
    servers::kafka_bootstrap,
    unique,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

pub(crate) const WAIT: Duration = Duration::from_secs(90);

/// Headers and body.
pub(crate) type Event = (BTreeMap<String, String>, String);

/// An event as `useFlumeEventFormat` writes it.
fn decode(value: &[u8]) -> Event {
    fn long(rest: &mut &[u8]) -> i64 {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = rest[0];
            *rest = &rest[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return (value >> 1) as i64 ^ -((value & 1) as i64);
            }
        }
    }
    fn text(rest: &mut &[u8]) -> String {
        let length = usize::try_from(long(rest)).expect("a length");
        let (text, after) = rest.split_at(length);
        *rest = after;
        text.iter()
            .map(|&byte| if byte.is_ascii() && byte != b'\\' { char::from(byte).to_string() } else { format!("\\x{byte:02x}") })
            .collect()
    }
    let (mut rest, mut headers) = (value, BTreeMap::new());
    loop {
        let count = long(&mut rest);
        if count == 0 {
            break;
        }
        if count < 0 {
            long(&mut rest);
        }
        for _ in 0..count.abs() {
            let name = text(&mut rest);
            headers.insert(name, text(&mut rest));
        }
    }
    let body = text(&mut rest);
    assert!(rest.is_empty(), "bytes after the event");
    (headers, body)
}

/// An agent `agent`: every source has a channel, a Kafka sink and a topic of its own.
pub(crate) struct Agent {
    pub(crate) dir: tempfile::TempDir,
    bootstrap: String,
    topics: BTreeMap<&'static str, String>,
    pub(crate) conf: String,
}

impl Agent {
    pub(crate) async fn new(sources: &[(&'static str, String)], channel: &str) -> Self {
        let bootstrap = kafka_bootstrap();
        let dir = tempfile::tempdir().expect("a folder");
        let names = sources.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
        let mut conf = format!("agent.sources = {names}\nagent.channels = {names}\nagent.sinks = {names}\n");
        let mut topics = BTreeMap::new();
        for (name, settings) in sources {
            let topic = unique(name);
            kafka::create_topic(&bootstrap, &topic, 1).await;
            let mut put = |part: &str, text: &str| {
                for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
                    conf.push_str(&format!("agent.{part}.{name}.{line}\n"));
                }
            };
            put("sources", &format!("channels = {name}\n{}", settings.replace("DIR", &dir.path().to_string_lossy())));
            put("channels", &format!("type = memory\n{channel}"));
            put(
                "sinks",
                &format!(
                    "channel = {name}\ntype = org.apache.flume.sink.kafka.KafkaSink\nkafka.bootstrap.servers = {bootstrap}\n\
                     kafka.topic = {topic}\nuseFlumeEventFormat = true"
                ),
            );
            topics.insert(*name, topic);
        }
        Self { dir, bootstrap, topics, conf }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn start(&self, more: &[&str]) -> Process {
        let (conf, state) = (self.path("collector.conf"), self.path("state"));
        fs::write(&conf, &self.conf).expect("the agent's file");
        let (conf, state) = (conf.to_string_lossy(), state.to_string_lossy());
        let args = [&["agent", "-n", "agent", "-f", &conf, "--state-dir", &state], more].concat();
        let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
        Process::start("millrace-collector", self.dir.path(), &args, &env)
    }

    pub(crate) fn events(&self, source: &str) -> Vec<Event> {
        kafka::read_all(&self.bootstrap, &self.topics[source]).iter().map(|record| decode(&record.value)).collect()
    }

    pub(crate) fn bodies(&self, source: &str) -> Vec<String> {
        self.events(source).into_iter().map(|(_, body)| body).collect()
    }
}

pub(crate) async fn prometheus(address: &str, metric: &str, source: &str) -> u64 {
    let page = reqwest::get(format!("http://{address}/prometheus")).await.expect("the page").text().await.expect("text");
    let line = page.lines().find(|line| line.starts_with(metric) && line.contains(&format!("source=\"{source}\"")));
    line.and_then(|line| line.rsplit_once(' ')).and_then(|(_, value)| value.parse::<f64>().ok()).map_or(0, |value| value as u64)
}

pub(crate) fn millrace(control: &str, args: &[&str]) {
    let output = run("millrace", &[&["--collector", control, "collector"], args].concat(), &[]);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn send(port: u16, bytes: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    stream.write_all(bytes).await.expect("bytes");
    stream.shutdown().await.expect("the end");
}

/// What goes to a source: the messages that every agent reads alike, and those that only Flume and --flume-strict do.
struct Input {
    alike: Vec<String>,
    strict: Vec<String>,
}

impl Input {
    fn new(alike: &[&str], strict: &[&str]) -> Self {
        let own = |messages: &[&str]| messages.iter().map(|&message| message.to_owned()).collect();
        Self { alike: own(alike), strict: own(strict) }
    }

    fn of(&self, strict: bool) -> Vec<&str> {
        self.alike.iter().chain(self.strict.iter().filter(|_| strict)).map(String::as_str).collect()
    }
}

fn syslog_tcp() -> Input {
    let long = format!("<34>Oct 11 22:14:15 h {}", "x".repeat(500));
    Input::new(
        &[
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick",
            "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [x@1 a=\"b\"] said",
            "<13>1 2003-10-11T22:14:15Z h b",
            "<13>1 2003-10-11T22:14:15+02:00 h b",
            "<13>1 - - nil stamp and nil host",
            "<0>Feb 31 25:61:61 lenient b",
            "<7>Xyz  1 00:00:00 h b",
            "<191>Nov  1 01:02:03 host.example.com tag[1]: two blanks",
            "<191>1Nov 1 01:02:03 host.example.com a version",
            "<34>no header here",
            "<34>Oct 11 22:14:15 [::1] no such host",
            "plain text",
            "<>empty",
            "<1x>bad",
            "<12345>long",
            "<34>Oct 11 22:14:15 h ",
            "\n\n<34>Oct 11 22:14:15 h after empty lines",
            &long,
        ],
        &[
            "<13>1 2003-08-24T05:14:15.123456-07:00 192.0.2.1 myproc - - - a zone after a fraction",
            "<13>1 2003-10-11T22:14:15.5Z h half a second",
            "<34>1 2003-10-11T22:14:15Z h carriage return\r",
        ],
    )
}

fn syslog_multiport() -> Input {
    let long = format!("<34>1 2003-10-11T22:14:15Z h {}", "y".repeat(500));
    // The same for both agents.
    static NOW: LazyLock<chrono::DateTime<chrono::Utc>> = LazyLock::new(chrono::Utc::now);
    let day = *NOW - chrono::TimeDelta::days(2);
    let recent = format!("<34>{} host recent", day.format("%b %e %H:%M:%S"));
    let ago = *NOW - chrono::TimeDelta::days(100);
    let old = format!("<34>{} host long ago", ago.format("%b %e %H:%M:%S"));
    Input::new(
        &[
            "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 said",
            "<13>1 2003-08-24T05:14:15.123456-07:00 192.0.2.1 myproc - - - a zone",
            "<13>1 2003-10-11T22:14:15.5Z h half a second",
            "<13>2003-10-11T22:14:15Z h no version",
            "<13>1 2003-10-11T22:14:15X h no zone",
            "<34>1 2003-10-11T22:14:15Z höst grüße",
            "<34>1 2003-10-11T22:14:15Z h carriage return\r",
            "<34>1 2003-10-11T22:14:15Z h ",
            &recent,
            "<34>Jun 31 01:02:03 h no such day",
            "plain text",
            "<34>",
            "<34>x",
            "<34>1 ",
            "<x>1 2003-10-11T22:14:15Z h b",
            "<34>1 2003-10-11T22:14:15 h no zone at all",
            &long,
        ],
        &[&old, "<34>Jun 1 01:02:03 host one blank before the day"],
    )
}

/// What the spooling directory gets, oldest first.
fn spooled() -> Vec<(&'static str, Vec<u8>)> {
    let long = format!("{}\n{}\nshort\n", "a".repeat(40), "b".repeat(75));
    vec![
        ("lines.log", b"one\ntwo\r\n\nfour".to_vec()),
        ("empty.log", Vec::new()),
        ("long.log", long.into_bytes()),
        ("text.log", "grüße 中文\n😀 and more than forty characters come after the face\n".as_bytes().to_vec()),
        ("ignored.tmp", b"no\n".to_vec()),
        ("last.log", b"last\n".to_vec()),
    ]
}

/// An Avro file with two records in one block and one in another.
fn avro_file() -> Vec<u8> {
    let schema = r#"{"type":"record","name":"Line","namespace":"logs","doc":"a line","fields":[{"name":"id","type":"long"},{"name":"text","type":["null",{"type":"string","avro.java.string":"String"}]},{"name":"tags","type":{"type":"array","items":{"type":"enum","name":"Tag","symbols":["A","B"]}}}]}"#;
    let number = |value: usize| {
        let mut left = value << 1;
        let mut bytes = Vec::new();
        while left >= 0x80 {
            bytes.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    };
    let text = |text: &str| [number(text.len()), text.as_bytes().to_vec()].concat();
    let record = |id: usize, said: &str| [number(id), number(1), text(said), number(1), number(1), number(0)].concat();
    let sync = *b"0123456789abcdef";
    let block = |records: &[Vec<u8>]| {
        let bytes = records.concat();
        [number(records.len()), number(bytes.len()), bytes, sync.to_vec()].concat()
    };
    let header = [b"Obj\x01".to_vec(), number(1), text("avro.schema"), text(schema), number(0), sync.to_vec()].concat();
    [header, block(&[record(1, "one"), record(300, "two")]), block(&[record(3, "three")])].concat()
}

const REQUESTS: &[(&str, &str, &str)] = &[
    ("/", "application/json", r#"[{"headers":{"a":"b","c":"d"},"body":"one"},{"body":"two"}]"#),
    ("/any/path", "application/json; charset=UTF-8", r#"[{"headers":{"n":1.10,"t":true,"e":1e3},"body":"g\u0072\u00fc\n\"\\"}]"#),
    ("/", "text/plain", r#"[{"other":[1,{"x":null}],"headers":{}}]"#),
    ("/", "application/json", "[]"),
    ("/", "application/json", "not json"),
    ("/", "application/json", "{}"),
    ("/", "application/json", r#"[{"body":{"x":1}}]"#),
];

/// A format of one's own, which Flume does not document; its messages, and some of the RFCs.
const CUSTOM: &str = r"format.regex = <(\\d+)>(v\\d)? ?\\[(.*?)\\] (\\S+): (.*)
format.search = ([+-]\\d\\d):
format.replace = $1
format.dateFormat = dd.MMM yyyy HH:mm Z
keepFields = timestamp";
const CUSTOM_MESSAGES: &[&str] = &[
    "<13>[01.Feb 2024 10:20 +01:00] h: said",
    "<13>v7 [01.February 2024 25:20 -0130 and more] other.host: lenient",
    "<14>[no time] h: said",
    "<15>[ 3.mar 2024  9:05 GMT] h: blanks",
    "<13>[x] h: ",
    "<13>1 2003-10-11T22:14:15Z h of RFC 5424",
    "<34>Oct 11 22:14:15 h of RFC 3164",
    "<34>neither",
    "plain",
];

/// The sources with the ports they listen on.
fn sources(ports: &BTreeMap<&'static str, u16>) -> Vec<(&'static str, String)> {
    let who = "clientIPHeader = ip\nclientHostnameHeader = name";
    vec![
        ("tcp", format!("type = syslogtcp\nhost = 127.0.0.1\nport = {}\neventSize = 200\n{who}", ports["tcp"])),
        ("kept", format!("type = syslogtcp\nhost = 127.0.0.1\nport = {}\nkeepFields = priority timestamp hostname", ports["kept"])),
        ("custom", format!("type = syslogtcp\nhost = 127.0.0.1\nport = {}\n{CUSTOM}", ports["custom"])),
        (
            "multi",
            format!("type = multiport_syslogtcp\nhost = 127.0.0.1\nports = {}\neventSize = 200\nportHeader = port\n{who}", ports["multi"]),
        ),
        ("udp", format!("type = syslogudp\nhost = 127.0.0.1\nport = {}\nkeepFields = all\n{who}", ports["udp"])),
        ("netcat", format!("type = netcatudp\nbind = 127.0.0.1\nport = {}\nremoteAddress = from", ports["netcat"])),
        ("http", format!("type = http\nbind = 127.0.0.1\nport = {}", ports["http"])),
        (
            "blob",
            format!(
                "type = http\nbind = 127.0.0.1\nport = {}\nhandler = org.apache.flume.source.http.BLOBHandler\nhandler.mandatoryParameters = name",
                ports["blob"]
            ),
        ),
        (
            "spool",
            "type = spooldir\nspoolDir = DIR/spool\nbasenameHeader = true\nignorePattern = .*\\\\.tmp\ndeserializer.maxLineLength = 40"
                .into(),
        ),
        ("records", "type = spooldir\nspoolDir = DIR/records\ndeserializer = AVRO\nbasenameHeader = true\nbasenameHeaderKey = b".into()),
    ]
}

/// Feeds one agent; gives the statuses of its HTTP answers.
async fn feed(agent: &Agent, ports: &BTreeMap<&'static str, u16>, strict: bool) -> Vec<u16> {
    // Flume keeps fields of the last message of a connection in the next invalid one: each has its own.
    for message in syslog_tcp().of(strict) {
        send(ports["tcp"], format!("{message}\n").as_bytes()).await;
    }
    for message in syslog_tcp().of(strict).iter().filter(|message| !message.contains("> -") && !message.contains("1 - ")) {
        send(ports["kept"], format!("{message}\n").as_bytes()).await;
    }
    for message in CUSTOM_MESSAGES {
        send(ports["custom"], format!("{message}\n").as_bytes()).await;
    }
    let together: String = syslog_multiport().of(strict).iter().map(|message| format!("{message}\n")).collect();
    send(ports["multi"], together.as_bytes()).await;
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for (source, messages) in [
        ("udp", &["<34>Oct 11 22:14:15 mymachine su: 'su root' failed\n", "<165>1 2003-10-11T22:14:15Z m app - - - said"][..]),
        ("netcat", &["one", "two\n", "", "three\r\n"]),
    ] {
        // There is no other way to see that somebody listens.
        eventually(WAIT, &format!("{source} answers"), || async {
            sender.send_to(b"<1>probe", ("127.0.0.1", ports[source])).map_err(|error| error.to_string())?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            if agent.events(source).is_empty() { Err("nothing yet".to_owned()) } else { Ok(()) }
        })
        .await;
        for message in messages {
            sender.send_to(message.as_bytes(), ("127.0.0.1", ports[source])).expect("a datagram");
        }
    }
    let client = reqwest::Client::new();
    let mut statuses = Vec::new();
    for (path, kind, body) in REQUESTS {
        let request = client.post(format!("http://127.0.0.1:{}{path}", ports["http"])).header("content-type", *kind).body(*body);
        statuses.push(request.send().await.expect("an answer").status().as_u16());
    }
    for query in ["name=a%20b+c&name=d&other", "name="] {
        let request =
            client.post(format!("http://127.0.0.1:{}/?{query}", ports["blob"])).header("content-type", "text/x").body("any\nthing");
        statuses.push(request.send().await.expect("an answer").status().as_u16());
    }
    statuses
}

/// The agent's directories with their files, written before the agent starts.
fn fill_spool(agent: &Agent) {
    for (directory, files) in [("spool", spooled()), ("records", vec![("lines.avro", avro_file())])] {
        fs::create_dir(agent.path(directory)).expect("a folder");
        for (age, (name, content)) in (1..).zip(files.into_iter().rev()) {
            let path = agent.path(directory).join(name);
            fs::write(&path, content).expect("a file");
            let time = SystemTime::now() - Duration::from_secs(60 * age);
            fs::File::options().append(true).open(path).and_then(|file| file.set_modified(time)).expect("its time");
        }
    }
}

/// What cannot be the same in two agents: ports, and what Flume leaves in the headers of invalid messages.
fn comparable(events: Vec<Event>, ports: &BTreeMap<&'static str, u16>) -> Vec<Event> {
    let one = |(mut headers, body): Event| {
        if headers.get("flume.syslog.status").is_some_and(|status| status == "Invalid") {
            headers.retain(|name, _| !["priority", "version"].contains(&name.as_str()));
        }
        for value in headers.values_mut() {
            if *value == ports["multi"].to_string() {
                *value = "PORT".into();
            }
            if let Some((address, _)) = value.split_once(':').filter(|(address, _)| address.starts_with('/')) {
                *value = format!("{address}:PORT");
            }
        }
        (headers, body)
    };
    let mut events: Vec<Event> = events.into_iter().map(one).filter(|(_, body)| !body.contains("probe")).collect();
    events.sort();
    events
}

#[tokio::test]
async fn the_same_input_gives_the_same_events_as_in_flume() {
    let names = ["tcp", "kept", "custom", "multi", "udp", "netcat", "http", "blob"];
    let ports = || names.iter().map(|name| (*name, free_port())).collect::<BTreeMap<&'static str, u16>>();
    for strict in [true, false] {
        let (theirs, ours) = (ports(), ports());
        let room = "capacity = 10000\ntransactionCapacity = 1000";
        let (flume, collector) = (Agent::new(&sources(&theirs), room).await, Agent::new(&sources(&ours), room).await);
        fill_spool(&flume);
        fill_spool(&collector);
        let mut running = Flume::start(flume.dir.path(), "flume", &flume.conf);
        let mut process = collector.start(if strict { &["--flume-strict"] } else { &[] });
        process.addresses().await;
        for name in ["tcp", "kept", "custom", "multi", "http", "blob"] {
            running.listens(theirs[name]).await;
        }
        let statuses = (feed(&flume, &theirs, strict).await, feed(&collector, &ours, strict).await);
        assert_eq!(statuses.0, statuses.1, "answers to HTTP requests");
        for (source, least) in [
            ("tcp", 18),
            ("kept", 15),
            ("custom", 9),
            ("multi", 18),
            ("udp", 2),
            ("netcat", 4),
            ("http", 4),
            ("blob", 2),
            ("spool", 11),
            ("records", 3),
        ] {
            eventually(WAIT, &format!("{source} (strict: {strict})"), || async {
                let expected = comparable(flume.events(source), &theirs);
                let got = comparable(collector.events(source), &ours);
                let missing: Vec<_> = expected.iter().filter(|event| !got.contains(event)).collect();
                let more: Vec<_> = got.iter().filter(|event| !expected.contains(event)).collect();
                if expected == got && got.len() >= least {
                    return Ok(());
                }
                Err(format!(
                    "Flume {} events, collector {}; only Flume: {missing:#?}; only the collector: {more:#?}",
                    expected.len(),
                    got.len()
                ))
            })
            .await;
        }
        // Spooled files in their order, not only all of them.
        assert_eq!(flume.bodies("spool"), collector.bodies("spool"));
        assert_eq!(flume.bodies("records"), collector.bodies("records"));
        for agent in [&flume, &collector] {
            eventually(WAIT, "the files are complete", || async {
                let open = |folder: &str| {
                    let entries = fs::read_dir(agent.path(folder)).expect("the folder").flatten();
                    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.ends_with(".log")).count()
                };
                if open("spool") + open("records") == 0 { Ok(()) } else { Err("some are not".to_owned()) }
            })
            .await;
        }
        process.stop().await;
    }
}

/// util-linux's `logger`, over TCP and UDP, in every form it speaks.
#[tokio::test]
async fn logger_is_understood() {
    let ports: BTreeMap<_, _> = ["tcp", "multi", "udp"].map(|name| (name, free_port())).into();
    let sources = [
        ("tcp", format!("type = syslogtcp\nhost = 127.0.0.1\nport = {}", ports["tcp"])),
        ("multi", format!("type = multiport_syslogtcp\nhost = 127.0.0.1\nports = {}", ports["multi"])),
        ("udp", format!("type = syslogudp\nhost = 127.0.0.1\nport = {}", ports["udp"])),
    ];
    let agent = Agent::new(&sources, "").await;
    let mut collector = agent.start(&[]);
    collector.addresses().await;
    let mut sent: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (source, way) in [("tcp", "--tcp"), ("multi", "--tcp"), ("udp", "--udp")] {
        for (number, form) in ["--rfc3164", "--rfc5424", "--rfc5424 --octet-count", "--rfc3164 --octet-count"].into_iter().enumerate() {
            if way == "--udp" && form.contains("octet") {
                continue;
            }
            let said = format!("message {number} of {source}");
            let port = ports[source].to_string();
            let logger = Command::new("logger")
                .args([way, "-n", "127.0.0.1", "-P", &port, "-t", "trial", "-p", "local3.warning"])
                .args(form.split(' '))
                .arg(&said)
                .output();
            let logger = logger.expect("logger");
            assert!(logger.status.success(), "{}", String::from_utf8_lossy(&logger.stderr));
            sent.entry(source).or_default().insert(said);
        }
    }
    let host = Command::new("hostname").output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).expect("hostname");
    for (source, sent) in &sent {
        eventually(WAIT, &format!("{source} has them all"), || async {
            let events = agent.events(source);
            let whole = |said: &String| {
                events.iter().any(|(headers, body)| {
                    let right = ["Facility", "Severity", "host"].iter().map(|name| headers.get(*name).map(String::as_str)).eq([
                        Some("19"),
                        Some("4"),
                        Some(host.as_str()),
                    ]);
                    let now = chrono::Utc::now().timestamp_millis();
                    let recent = headers
                        .get("timestamp")
                        .and_then(|text| text.parse::<i64>().ok())
                        .is_some_and(|millis| (now - millis).abs() < 120_000);
                    right && recent && body.ends_with(said) && body.starts_with("trial") && !headers.contains_key("flume.syslog.status")
                })
            };
            if sent.iter().all(whole) && events.len() == sent.len() { Ok(()) } else { Err(format!("host {host}: {events:#?}")) }
        })
        .await;
    }
    collector.stop().await;
}

/// Where Flume drops what does not fit into the channel, the sender waits, and gets everything through in its order.
#[tokio::test]
async fn a_full_channel_makes_tcp_senders_wait_and_loses_nothing() {
    let (tcp, http) = (free_port(), free_port());
    let sources = [
        ("tcp", format!("type = syslogtcp\nhost = 127.0.0.1\nport = {tcp}")),
        ("http", format!("type = http\nbind = 127.0.0.1\nport = {http}")),
    ];
    let agent = Agent::new(&sources, "capacity = 100\ntransactionCapacity = 100\nkeep-alive = 1").await;
    let mut collector = agent.start(&[]);
    collector.addresses().await;
    let messages: Vec<String> = (0..20_000).map(|n| format!("app: message {n} {}", "z".repeat(100))).collect();
    let text: String = messages.iter().map(|message| format!("<13>1 2003-10-11T22:14:15Z h {message}\n")).collect();
    let sending = tokio::spawn(async move { send(tcp, text.as_bytes()).await });
    eventually(WAIT, "every message is there, in order", || async {
        let bodies = agent.bodies("tcp");
        if bodies == messages { Ok(()) } else { Err(format!("{} of {}", bodies.len(), messages.len())) }
    })
    .await;
    sending.await.expect("the sender");

    // More than a transaction holds is refused for good; what a full channel refuses is taken when it is sent again.
    let client = reqwest::Client::new();
    let request = |from: usize, count: usize| {
        let events: Vec<_> =
            (from..from + count).map(|n| serde_json::json!({"headers": {"n": n.to_string()}, "body": format!("event {n}")})).collect();
        client.post(format!("http://127.0.0.1:{http}/")).body(serde_json::to_string(&events).expect("JSON")).send()
    };
    assert_eq!(request(0, 101).await.expect("an answer").status(), 413);
    let mut refused = 0;
    for batch in 0..100 {
        loop {
            let status = request(batch * 100, 100).await.expect("an answer").status();
            if status == 200 {
                break;
            }
            assert_eq!(status, 503);
            refused += 1;
        }
    }
    eventually(WAIT, "every event once", || async {
        let (bodies, wanted) = (agent.bodies("http"), (0..10_000).map(|n| format!("event {n}")).collect::<Vec<_>>());
        if bodies == wanted { Ok(()) } else { Err(format!("{} events, {refused} requests refused", bodies.len())) }
    })
    .await;
    collector.stop().await;
}

/// Datagrams cannot be held back: those that the kernel drops are counted, and told once.
#[tokio::test]
async fn every_datagram_is_delivered_or_counted() {
    let port = free_port();
    let source = format!("type = syslogudp\nhost = 127.0.0.1\nport = {port}\nreceiveBufferBytes = 65536");
    let agent = Agent::new(&[("udp", source)], "capacity = 100\ntransactionCapacity = 100").await;
    let mut collector = agent.start(&[]);
    let page = collector.address("metrics").await;
    let control = collector.address("control").await;
    millrace(&control, &["pause", "udp"]);
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let count = 5_000;
    for n in 0..count {
        sender
            .send_to(format!("<13>1 2003-10-11T22:14:15Z h {n} {}", "z".repeat(200)).as_bytes(), ("127.0.0.1", port))
            .expect("a datagram");
    }
    eventually(WAIT, "drops are counted", || async {
        let dropped = prometheus(&page, "millrace_collector_source_dropped_events_total", "udp").await;
        if dropped > 0 { Ok(()) } else { Err("none yet".to_owned()) }
    })
    .await;
    millrace(&control, &["resume", "udp"]);
    eventually(WAIT, "delivered and dropped are all", || async {
        let dropped = prometheus(&page, "millrace_collector_source_dropped_events_total", "udp").await;
        let delivered = agent.bodies("udp").len() as u64;
        if delivered + dropped == count && delivered > 100 { Ok(()) } else { Err(format!("{delivered} + {dropped} of {count}")) }
    })
    .await;
    collector.stop().await;
    assert_eq!(collector.log().matches("the kernel dropped datagrams").count(), 1, "{}", collector.log());
}

/// kill -9 in the middle of files: every line once with a transactional sink, none lost without.
#[tokio::test]
async fn a_killed_collector_reads_spooled_files_on() {
    for transactional in [true, false] {
        let mut agent = Agent::new(
            &[("spool", "type = spooldir\nspoolDir = DIR/spool\nbatchSize = 500".into())],
            "capacity = 2000\ntransactionCapacity = 500",
        )
        .await;
        if transactional {
            agent.conf.push_str(&format!(
                "agent.sinks.spool.kafka.producer.transactional.id = {}\nagent.sinks.spool.positionsTopic = {}\n",
                unique("txn"),
                unique("positions")
            ));
        }
        fs::create_dir(agent.path("spool")).expect("a folder");
        let mut written = Vec::new();
        let put = |name: String, lines: usize, written: &mut Vec<String>| {
            let text: Vec<String> = (0..lines).map(|n| format!("{name} {n} {}", "w".repeat(n % 120))).collect();
            // Put there whole, as the source wants it.
            let new = agent.path(&format!("{name}.new"));
            fs::write(&new, text.join("\n") + "\n").expect("a file");
            fs::rename(new, agent.path("spool").join(&name)).expect("a file");
            written.extend(text);
        };
        for round in 0..6 {
            put(format!("large-{round}"), 40_000, &mut written);
            for small in 0..20 {
                put(format!("small-{round}-{small}"), 30, &mut written);
            }
            let before = agent.events("spool").len();
            let mut collector = agent.start(&[]);
            eventually(WAIT, "something new is delivered", || async {
                if agent.events("spool").len() > before + 1_000 { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            collector.kill_9();
        }
        let mut collector = agent.start(&[]);
        written.sort();
        eventually(Duration::from_secs(180), &format!("every line (transactional: {transactional})"), || async {
            let mut bodies = agent.bodies("spool");
            let count = bodies.len();
            bodies.sort();
            if !transactional {
                bodies.dedup();
            }
            if bodies == written { Ok(()) } else { Err(format!("{count} events of {} lines", written.len())) }
        })
        .await;
        eventually(WAIT, "every file is complete", || async { all_complete(&agent.path("spool")) }).await;
        collector.stop().await;
    }
}

fn all_complete(folder: &Path) -> Result<(), String> {
    let names =
        fs::read_dir(folder).map_err(|error| error.to_string())?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.into_iter().find(|name| !name.ends_with(".COMPLETED")) {
        Some(open) => Err(format!("{open} is not")),
        None => Ok(()),
    }
}

/// A name that is used again breaks the rules: Flume's source dies of it.
#[tokio::test]
async fn a_file_that_breaks_the_rules_is_set_aside_and_told() {
    let agent = Agent::new(&[("spool", "type = spooldir\nspoolDir = DIR/spool".into())], "").await;
    let spool = agent.path("spool");
    fs::create_dir(&spool).expect("a folder");
    let mut collector = agent.start(&[]);
    let control = collector.address("control").await;
    fs::write(agent.path("new"), "one\n").expect("a file");
    fs::rename(agent.path("new"), spool.join("twice")).expect("a file");
    eventually(WAIT, "it is read", || async { if agent.bodies("spool") == ["one"] { Ok(()) } else { Err("not yet".to_owned()) } }).await;
    eventually(WAIT, "it is complete", || async { all_complete(&spool) }).await;
    // A second file of the same name: its completed name is taken.
    fs::write(agent.path("new"), "two\n").expect("a file");
    fs::rename(agent.path("new"), spool.join("twice")).expect("a file");
    collector.log_contains(WAIT, "file is set aside").await;
    fs::write(agent.path("new"), "three\n").expect("a file");
    fs::rename(agent.path("new"), spool.join("other")).expect("a file");
    eventually(WAIT, "the others go on", || async {
        let bodies = agent.bodies("spool");
        if bodies == ["one", "two", "three"] && spool.join("other.COMPLETED").exists() { Ok(()) } else { Err(format!("{bodies:?}")) }
    })
    .await;
    assert_eq!(fs::read_to_string(spool.join("twice.COMPLETED")).expect("the first"), "one\n");
    let output = run("millrace", &["--collector", &control, "collector", "components"], &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("set aside"), "{text}");
    collector.stop().await;
}

/// Both TCP sources behind TLS, with OpenSSL as the sender.
#[tokio::test]
async fn syslog_over_tls_is_understood() {
    let keys = tempfile::tempdir().expect("a folder");
    let openssl = |args: &str, input: std::process::Stdio| {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(keys.path()).stdin(input).output().expect("openssl");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem", std::process::Stdio::null());
    let pem = ["cert.pem", "key.pem"].map(|file| fs::read_to_string(keys.path().join(file)).expect("PEM")).concat();
    fs::write(keys.path().join("both.pem"), pem).expect("PEM");
    let tls = format!("ssl = true\nkeystore-type = PEM\nkeystore = {}", keys.path().join("both.pem").display());
    let (tcp, multi) = (free_port(), free_port());
    let sources = [
        ("tcp", format!("type = syslogtcp\nhost = 127.0.0.1\nport = {tcp}\n{tls}")),
        ("multi", format!("type = multiport_syslogtcp\nhost = 127.0.0.1\nports = {multi}\n{tls}")),
    ];
    let agent = Agent::new(&sources, "").await;
    let mut collector = agent.start(&[]);
    collector.addresses().await;
    let messages: Vec<String> = (0..500).map(|n| format!("app: message {n}")).collect();
    let text: String = messages.iter().map(|message| format!("<13>1 2003-10-11T22:14:15Z h {message}\n")).collect();
    fs::write(keys.path().join("messages"), text).expect("messages");
    for (source, port) in [("tcp", tcp), ("multi", multi)] {
        // What does not speak TLS ends its own connection only.
        send(port, b"<13>1 - h plain text\n").await;
        let input = fs::File::open(keys.path().join("messages")).expect("messages");
        openssl(&format!("s_client -connect 127.0.0.1:{port} -CAfile cert.pem -verify_return_error -quiet -no_ign_eof"), input.into());
        eventually(WAIT, &format!("{source} has every message"), || async {
            let bodies = agent.bodies(source);
            if bodies == messages { Ok(()) } else { Err(format!("{} events", bodies.len())) }
        })
        .await;
        let page = collector.address("metrics").await;
        assert_eq!(prometheus(&page, "millrace_collector_source_tls_failures_total", source).await, 1);
    }
    let log = collector.log();
    assert_eq!(log.matches("a TLS handshake failed: ").count(), 2, "{log}");
    assert!(log.contains("does the client speak TLS? (ssl)"), "{log}");
    collector.stop().await;
}
