//! All services together: one trace from a line to its result, the CLI over all three, the way through the bridge.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use integration_tests::{
    eventually, kafka,
    otlp::{Receiver, Span},
    process::{Process, run},
    servers::{OwnKafka, kafka_bootstrap, redis_url},
    unique,
};
use redis::Commands;

const WAIT: Duration = Duration::from_secs(60);
/// Event times begin here; a multiple of every window used.
const EPOCH_MS: usize = 1_790_000_000_000;
const CONTROL: (&str, &str) = ("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0");

fn agent(dir: &Path, name: &str, sink: &str) -> (Vec<String>, std::path::PathBuf) {
    let log = dir.join(format!("{name}.log.txt"));
    fs::write(&log, "").expect("the log");
    let conf = dir.join(format!("{name}.conf"));
    let text = format!(
        "agent.sources = s\nagent.channels = c\nagent.sinks = k\nagent.sources.s.type = exec\nagent.sources.s.command = tail -F {}\n\
         agent.sources.s.channels = c\nagent.channels.c.type = memory\nagent.channels.c.capacity = 10000\nagent.sinks.k.channel = c\n{sink}",
        log.display()
    );
    fs::write(&conf, text).expect("the agent's file");
    let state = dir.join(format!("{name}.state"));
    let args = ["agent", "-n", "agent", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy()].map(str::to_owned);
    (args.to_vec(), log)
}

fn start_collector(dir: &Path, args: &[String], env: &[(&str, &str)]) -> Process {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let env = [&[CONTROL, ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")], env].concat();
    Process::start("millrace-collector", dir, &args, &env)
}

fn start_engine(dir: &Path, env: &[(&str, &str)]) -> Process {
    let checkpoints = dir.join("checkpoints");
    let env = [&[CONTROL, ("MILLRACE_PAGE__LISTEN", "127.0.0.1:0")], env].concat();
    Process::start("millrace-engine", dir, &["serve", "--checkpoint", &checkpoints.to_string_lossy()], &env)
}

fn start_bridge(dir: &Path, bootstrap: &str) -> Process {
    start_bridge_with(dir, bootstrap, &[])
}

/// `env` wins over free ports.
fn start_bridge_with(dir: &Path, bootstrap: &str, env: &[(&str, &str)]) -> Process {
    let data = dir.join("bridge");
    let args = ["serve", "--bootstrap-servers", bootstrap, "--offsets-path", &data.to_string_lossy()];
    let env = [&[CONTROL, ("MILLRACE_HTTP__LISTEN", "127.0.0.1:0"), ("MILLRACE_REGISTRY__LISTEN", "127.0.0.1:0")], env].concat();
    Process::start("millrace-bridge", dir, &args, &env)
}

fn bridge_sink(endpoint: &str, topic: &str) -> String {
    format!("agent.sinks.k.type = bridge\nagent.sinks.k.endpoint = {endpoint}\nagent.sinks.k.topic = {topic}\n")
}

fn append(log: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(log).expect("the log");
    writeln!(file, "{line}").expect("the log");
}

fn kafka_sink(bootstrap: &str, topic: &str) -> String {
    format!(
        "agent.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\nagent.sinks.k.kafka.bootstrap.servers = {bootstrap}\nagent.sinks.k.kafka.topic = {topic}\n"
    )
}

fn job(dir: &Path, topic: &str, bootstrap: &str, url: &str, prefix: &str) -> String {
    let path = dir.join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\nCREATE TABLE lines (ts BIGINT, event_time AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR event_time AS event_time - INTERVAL '0' SECOND)\n\
         WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}', 'scan.startup.mode' = 'earliest-offset', 'format' = 'json');\n\
         CREATE TABLE totals (window_start TIMESTAMP(3), requests BIGINT, PRIMARY KEY (window_start) NOT ENFORCED)\n\
         WITH ('connector' = 'redis', 'url' = '{url}', 'mode' = 'hash', 'key' = '{prefix}:{{window_start}}');\n\
         INSERT INTO totals SELECT window_start, COUNT(*) AS requests FROM TABLE(TUMBLE(TABLE lines, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY window_start, window_end;\n"
    );
    fs::write(&path, sql).expect("the job");
    path.to_string_lossy().into_owned()
}

fn millrace(addresses: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
    let flags: Vec<&str> = addresses.iter().flat_map(|(service, address)| [*service, *address]).collect();
    let output = run("millrace", &[&flags[..], args].concat(), &[]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn one_trace_leads_from_the_line_to_the_write() {
    let (bootstrap, url) = (kafka_bootstrap(), redis_url());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, prefix) = (unique("traced"), unique("traced-totals"));
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let receiver = Receiver::start().await;
    let env = [("MILLRACE_TELEMETRY__OTLP_ENDPOINT", receiver.endpoint.as_str()), ("MILLRACE_TELEMETRY__TRACE_SAMPLE", "1.0")];
    let mut engine = start_engine(dir.path(), &env);
    let control = engine.address("control").await;
    let (code, _, said) =
        millrace(&[("--engine", &control)], &["job", "submit", &job(dir.path(), &topic, &bootstrap, &url, &prefix), "--name", "traced"]);
    assert_eq!(code, 0, "{said}");
    let (args, log) = agent(dir.path(), "traced", &kafka_sink(&bootstrap, &topic));
    let mut collector = start_collector(dir.path(), &args, &env);
    collector.addresses().await;
    append(&log, r#"{"ts":1790000001000}"#);
    append(&log, r#"{"ts":1790000021000}"#);

    let spans = eventually(WAIT, "the spans of the line's trace arrive", || async {
        let spans = receiver.spans();
        let traces: BTreeSet<&String> = spans.iter().filter(|span| span.name == "collector.read").map(|span| &span.trace).collect();
        // The collector's spans and the engine's come in their own time.
        let has = |trace: &str, name: &str| spans.iter().any(|span| span.trace == trace && span.name == name);
        let whole = traces.iter().find(|trace| ["collector.send", "engine.batch", "output"].iter().all(|name| has(trace, name)));
        whole
            .map(|trace| spans.iter().filter(|span| span.trace == **trace).cloned().collect::<Vec<Span>>())
            .ok_or_else(|| format!("{spans:#?}"))
    })
    .await;
    let one = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}: {spans:#?}"));
    let (read, send, batch, output) = (one("collector.read"), one("collector.send"), one("engine.batch"), one("output"));
    assert_eq!((read.service.as_str(), read.parent.as_str()), ("millrace-collector", ""));
    assert_eq!(send.parent, read.id);
    assert_eq!(batch.service, "millrace-engine");
    assert!([&read.id, &send.id].contains(&&batch.parent), "the batch hangs on {}: {spans:#?}", batch.parent);
    let mut above = output;
    while above.id != batch.id {
        above = spans.iter().find(|span| span.id == above.parent).unwrap_or_else(|| panic!("{} hangs on nothing: {spans:#?}", above.name));
    }
    // The record itself carries the trace.
    let record = kafka::read_all(&bootstrap, &topic).remove(0);
    let header = String::from_utf8_lossy(record.headers.get("traceparent").expect("traceparent")).into_owned();
    assert!(header.contains(&read.trace), "{header}");
    collector.stop().await;
    engine.stop().await;
}

#[tokio::test]
async fn without_an_endpoint_records_carry_no_trace() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("untraced");
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let (args, log) = agent(dir.path(), "untraced", &kafka_sink(&bootstrap, &topic));
    let mut collector = start_collector(dir.path(), &args, &[]);
    collector.addresses().await;
    append(&log, "a line");
    let record =
        eventually(WAIT, "the line arrives", || async { kafka::read_all(&bootstrap, &topic).pop().ok_or_else(|| "nothing".to_owned()) })
            .await;
    assert!(!record.headers.contains_key("traceparent"), "{record:?}");
    collector.stop().await;
}

#[tokio::test]
async fn the_cli_sees_all_three_and_says_who_is_away() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("cli");
    let (args, _) = agent(dir.path(), "cli", &kafka_sink(&bootstrap, &topic));
    let mut collector = start_collector(dir.path(), &args, &[]);
    let mut engine = start_engine(dir.path(), &[]);
    let mut bridge = start_bridge(dir.path(), &bootstrap);
    let (c, e, b) = (collector.address("control").await, engine.address("control").await, bridge.address("control").await);
    let all = [("--collector", c.as_str()), ("--bridge", b.as_str()), ("--engine", e.as_str())];

    let (code, said, talk) = millrace(&all, &["status", "--output", "json"]);
    assert_eq!(code, 0, "{said}{talk}");
    let status: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    for service in ["millrace-collector", "millrace-bridge", "millrace-engine"] {
        assert!(status.to_string().contains(service), "{service} is missing: {status}");
    }
    let (code, said, talk) = millrace(&all, &["topic", "create", &topic, "--consumers", "3", "--producers", "2"]);
    assert_eq!(code, 0, "{said}{talk}");
    let (code, said, _) = millrace(&all, &["topic", "list", "--output", "json"]);
    let topics: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let row = topics["topics"]
        .as_array()
        .unwrap_or_else(|| panic!("no list: {topics}"))
        .iter()
        .find(|row| row["name"] == topic.as_str())
        .unwrap_or_else(|| panic!("{topic} in {topics}"));
    assert_eq!((code, row["partitions"].as_u64()), (0, Some(6)), "max(3, 2) × 2 partitions");
    let (code, said, talk) = millrace(&all, &["collector", "components"]);
    assert!(code == 0 && said.contains("exec") && said.contains("memory") && said.contains("KafkaSink"), "{said}{talk}");
    let (code, said, talk) = millrace(&all, &["collector", "pause", "s"]);
    assert!(code == 0, "{said}{talk}");
    let (_, said, _) = millrace(&all, &["collector", "components"]);
    assert!(said.to_lowercase().contains("paused"), "{said}");

    engine.stop().await;
    let (code, said, talk) = millrace(&all, &["status"]);
    assert!(code != 0 && format!("{said}{talk}").contains(&e), "{code}: {said}{talk}");
    let (code, _, talk) = millrace(&all, &["job", "list"]);
    assert!(code != 0 && talk.contains(&e) && talk.contains("millrace-engine"), "{talk}");
    collector.stop().await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_collector_sends_through_the_bridge() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("through-bridge");
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let mut bridge = start_bridge(dir.path(), &bootstrap);
    let endpoint = bridge.address("control").await;
    let (args, log) = agent(dir.path(), "bridged", &bridge_sink(&format!("http://{endpoint}"), &topic));
    let mut collector = start_collector(dir.path(), &args, &[]);
    collector.addresses().await;
    let lines: Vec<String> = (0..300).map(|n| format!("line {n}")).collect();
    lines.iter().for_each(|line| append(&log, line));
    eventually(WAIT, "the lines are in Kafka", || async {
        let seen = kafka::texts(&bootstrap, &topic);
        if seen == lines { Ok(()) } else { Err(format!("{} of {} lines\n{}", seen.len(), lines.len(), collector.log())) }
    })
    .await;
    collector.stop().await;
    bridge.stop().await;
}

/// A batch is written all or none: what is at fault is found, and its neighbours are not put aside with it.
#[tokio::test]
async fn what_the_bridge_cannot_write_is_put_aside_alone() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("small-bridged");
    kafka::create_topic_with(&bootstrap, &topic, 1, &[("max.message.bytes", "100000")]).await;
    let mut bridge = start_bridge(dir.path(), &bootstrap);
    let endpoint = format!("http://{}", bridge.address("control").await);
    let (args, log) = agent(dir.path(), "bridged", &bridge_sink(&endpoint, &topic));
    // Above the topic's limit; above what the bridge takes in a request; above the bridge's producer, and not alone in its batch.
    let bad = [200_000, 5 << 20, 1_500_000].map(|bytes| "z".repeat(bytes));
    let mut good = Vec::new();
    for bad in bad.iter().chain([&String::new()]) {
        for _ in 0..100 {
            good.push(format!("line {}", good.len()));
            append(&log, &good[good.len() - 1]);
        }
        if !bad.is_empty() {
            append(&log, bad);
        }
    }
    // All of it from the start, so that each is in the middle of a batch.
    let conf = fs::read_to_string(dir.path().join("bridged.conf")).expect("the agent's file").replace("tail -F", "tail -n +1 -F");
    fs::write(dir.path().join("bridged.conf"), conf).expect("the agent's file");
    let mut collector = start_collector(dir.path(), &args, &[]);
    collector.addresses().await;
    eventually(WAIT, "the good lines are in Kafka", || async {
        let seen = kafka::texts(&bootstrap, &topic);
        if seen == good { Ok(()) } else { Err(format!("{} of {} lines\n{}", seen.len(), good.len(), collector.log())) }
    })
    .await;
    collector.stop().await;
    let aside = fs::read_to_string(dir.path().join("bridged.state/agent/dead-letter/k.jsonl")).expect("the dead letters");
    let letters: Vec<serde_json::Value> = aside.lines().map(|line| serde_json::from_str(line).expect("a letter")).collect();
    assert_eq!(letters.len(), bad.len());
    for ((letter, bad), reason) in
        letters.iter().zip(&bad).zip(["max.message.bytes", "larger than what the bridge takes", "max.request.size"])
    {
        assert!(letter["body"] == **bad, "{reason}");
        assert!(letter["reason"].as_str().is_some_and(|said| said.contains(reason)), "{}", letter["reason"]);
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_bridge_that_is_killed_under_load_loses_and_repeats_no_line() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("killed-bridge");
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let mut bridge = start_bridge(dir.path(), &bootstrap);
    let (control, http) = (bridge.address("control").await, bridge.address("http").await);
    let (args, log) = agent(dir.path(), "bridged", &bridge_sink(&format!("http://{control}"), &topic));
    let mut collector = start_collector(dir.path(), &args, &[]);
    collector.addresses().await;
    let mut lines = Vec::new();
    let mut write = |count: usize| {
        let begin = lines.len();
        lines.extend((begin..begin + count).map(|n| format!("line {n:06} {}", "x".repeat(n % 90))));
        append(&log, &lines[begin..].join("\n"));
    };
    for _ in 0..10 {
        for _ in 0..20 {
            write(100);
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..40))).await;
        }
        bridge.kill_9();
        write(100);
        bridge = start_bridge_with(dir.path(), &bootstrap, &[("MILLRACE_CONTROL__LISTEN", &control), ("MILLRACE_HTTP__LISTEN", &http)]);
        bridge.addresses().await;
    }
    eventually(WAIT, "every line is in Kafka once and in order", || async {
        let seen = kafka::texts(&bootstrap, &topic);
        if seen == lines { Ok(()) } else { Err(format!("{} records, {} lines\n{}", seen.len(), lines.len(), collector.log())) }
    })
    .await;
    collector.stop().await;
    bridge.stop().await;
    assert_eq!(kafka::texts(&bootstrap, &topic).len(), lines.len());
}

/// Certificates of one authority for a bridge and for a client that is called `collector`.
fn certificates(dir: &Path) {
    let openssl = |args: &str| {
        let output = std::process::Command::new("openssl").args(args.split(' ')).current_dir(dir).output().expect("openssl");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let conf = "[req]\ndistinguished_name = dn\n[dn]\n[ca]\nbasicConstraints = critical,CA:TRUE\n\
                [leaf]\nbasicConstraints = CA:FALSE\nsubjectAltName = DNS:localhost\n";
    fs::write(dir.join("openssl.cnf"), conf).expect("a file");
    let new = "req -x509 -newkey rsa:2048 -nodes -days 2 -config openssl.cnf";
    openssl(&format!("{new} -extensions ca -subj /CN=authority -keyout ca.key -out ca.pem"));
    for name in ["bridge", "collector"] {
        openssl(&format!("{new} -extensions leaf -CA ca.pem -CAkey ca.key -subj /CN={name} -keyout {name}.key -out {name}.pem"));
    }
    let both = ["collector.pem", "collector.key"].map(|file| fs::read_to_string(dir.join(file)).expect("PEM")).concat();
    fs::write(dir.join("both.pem"), both).expect("PEM");
}

/// Over TLS, to a bridge that asks who calls; and the records are what the Kafka sink makes of the same events.
#[tokio::test]
async fn a_collector_says_who_it_is_to_a_bridge_with_tls_and_its_records_are_the_kafka_sinks() {
    const KEY: &str = "the-collectors-key";
    // Of "U*U": one of bcrypt's own test vectors.
    const USERS: &str = "collector:$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n";
    let bootstrap = kafka_bootstrap();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path();
    let (direct, bridged) = (unique("direct"), unique("policed"));
    for topic in [&direct, &bridged] {
        for (part, partitions) in [("a", 1), ("b", 2), ("named", 1)] {
            kafka::create_topic(&bootstrap, &format!("{topic}-{part}"), partitions).await;
        }
    }
    certificates(dir);
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let write = |name: &str, text: &str| {
        fs::write(dir.join("new"), text).and_then(|()| fs::rename(dir.join("new"), dir.join(name))).expect("a file");
    };
    write("policy.toml", &format!("[principals.collector]\nallow = [\"write topic {bridged}-*\"]\n"));
    write("users", USERS);
    write("password", "U*U\n");
    let sum = std::process::Command::new("sh").args(["-c", &format!("printf %s {KEY} | sha512sum")]).output().expect("sha512sum");
    write("keys", &format!("collector:{}\n", String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default()));
    let bridge = [
        ("MILLRACE_CONTROL__TLS__CERT", file("bridge.pem")),
        ("MILLRACE_CONTROL__TLS__KEY", file("bridge.key")),
        ("MILLRACE_CONTROL__TLS__CLIENT_CA", file("ca.pem")),
        ("MILLRACE_CONTROL__TLS__CLIENT_AUTH", "want".to_owned()),
        ("MILLRACE_AUTH__POLICY_FILE", file("policy.toml")),
        ("MILLRACE_AUTH__USERS_FILE", file("users")),
        ("MILLRACE_AUTH__API_KEYS_FILE", file("keys")),
    ];
    let bridge: Vec<(&str, &str)> = bridge.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut bridge = start_bridge_with(dir, &bootstrap, &bridge);
    let control = bridge.address("control").await;
    let port = control.rsplit(':').next().unwrap_or_default();

    let header = |at: usize, name: &str| {
        let i = format!("agent.sources.s.interceptors.i{at}");
        format!("{i}.type = regex_extractor\n{i}.regex = {name}=(\\\\S+)\n{i}.serializers = x\n{i}.serializers.x.name = {name}\n")
    };
    let names = ["kind", "key", "part", "ts", "host", "direct", "policed"];
    let headers: String = names.iter().enumerate().map(|(at, name)| header(at, name)).collect();
    let listed: Vec<String> = (0..names.len()).map(|at| format!("i{at}")).collect();
    let of_records = |sink: &str, topic: &str, from: &str| {
        let sink = format!("agent.sinks.{sink}");
        format!(
            "{sink}.{topic}-%{{kind}}\n{sink}.topicHeader = {from}\n{sink}.partitionIdHeader = part\n{sink}.timestampHeader = ts\n\
             {sink}.header.host = from-host\n{sink}.defaultPartitionId = 0\n"
        )
    };
    let both = |credential: &str| {
        format!(
            "agent.channels = c d\nagent.sources.s.channels = c d\nagent.channels.d.type = memory\nagent.sinks = k d\n\
             agent.sources.s.interceptors = {}\n{headers}\
             agent.sinks.d.channel = d\nagent.sinks.d.type = org.apache.flume.sink.kafka.KafkaSink\n\
             agent.sinks.d.kafka.bootstrap.servers = {bootstrap}\n{}\
             agent.sinks.k.type = bridge\nagent.sinks.k.endpoint = https://localhost:{port}\nagent.sinks.k.truststore = {}\n{}{credential}",
            listed.join(" "),
            of_records("d", &format!("kafka.topic = {direct}"), "direct"),
            file("ca.pem"),
            of_records("k", &format!("topic = {bridged}"), "policed"),
        )
    };
    // Not older than the topics' retention, and not the time of the test.
    let time = chrono::Utc::now().timestamp_millis() - 3_600_000;
    let lines = |n: usize| {
        [
            format!("{n} kind=a"),
            format!("{n} kind=b key=k{n} part=1 ts={time}"),
            format!("{n} kind=a host=h1 key=%"),
            format!("{n} kind=a direct={direct}-named policed={bridged}-named ts={}", time + 1),
        ]
    };
    // What there is of a topic; the clocks' own times left out.
    let records = |topic: &str| {
        let all = kafka::read_all(&bootstrap, topic).into_iter();
        let set = |record: &kafka::Seen| record.timestamp_ms.filter(|set| (time..time + 2).contains(set));
        all.map(|record| (record.partition, set(&record), record.key, record.value, record.headers)).collect::<Vec<_>>()
    };
    let same = async |what: &str, lines: usize, log: &dyn Fn() -> String| {
        eventually(WAIT, what, || async {
            let mut total = 0;
            for part in ["a", "b", "named"] {
                let (one, other) = (records(&format!("{direct}-{part}")), records(&format!("{bridged}-{part}")));
                total += other.len();
                if one != other {
                    return Err(format!("{part}: {one:?}\n{other:?}\n{}", log()));
                }
            }
            if total == lines { Ok(()) } else { Err(format!("{total} of {lines}\n{}", log())) }
        })
        .await;
    };
    write("key", "another key\n");
    let credentials = [
        format!("agent.sinks.k.keystore = {}\n", file("both.pem")),
        format!("agent.sinks.k.user = collector\nagent.sinks.k.passwordFile = {}\n", file("password")),
        format!("agent.sinks.k.apiKeyFile = {}\n", file("key")),
    ];
    for (n, credential) in credentials.iter().enumerate() {
        let (args, log) = agent(dir, &format!("by-{n}"), &both(credential));
        let mut collector = start_collector(dir, &args, &[]);
        collector.addresses().await;
        lines(n).iter().for_each(|line| append(&log, line));
        if credential.contains("apiKeyFile") {
            // Not with this key; with the right one it goes on by itself.
            collector.log_contains(WAIT, "the bridge does not take records").await;
            assert_eq!(records(&format!("{bridged}-b")).len(), n);
            write("key", KEY);
        }
        same(credential, 4 * (n + 1), &|| collector.log()).await;
        collector.stop().await;
    }
    // Nobody is no one; and a bridge whose authority is not known is not told anything.
    for (n, (conf, said)) in [
        (both(""), "no credentials"),
        (both(&credentials[0]).replace(&format!("truststore = {}", file("ca.pem")), "requestTimeout = 5000"), "UnknownIssuer"),
    ]
    .into_iter()
    .enumerate()
    {
        let (args, log) = agent(dir, &format!("not-{n}"), &conf);
        let mut collector = start_collector(dir, &args, &[]);
        collector.addresses().await;
        append(&log, "kind=a");
        collector.log_contains(WAIT, "the bridge does not take records").await;
        let text = collector.log();
        assert!(text.contains(said), "{said}: {text}");
        collector.kill_9();
    }
    assert_eq!(records(&format!("{bridged}-b")).len(), credentials.len());
    bridge.stop().await;
}

#[tokio::test]
async fn a_minute_without_a_broker_costs_nothing_and_each_service_says_so_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let own = OwnKafka::start(folder.path().join("kafka"));
    let (bootstrap, url, dir) = (own.bootstrap.clone(), redis_url(), folder.path());
    let (direct, bridged, prefix) = (unique("outage"), unique("outage-bridged"), unique("outage-totals"));
    kafka::create_topic(&bootstrap, &direct, 1).await;
    kafka::create_topic(&bootstrap, &bridged, 1).await;
    let mut engine = start_engine(dir, &[]);
    let mut bridge = start_bridge(dir, &bootstrap);
    let (e, b) = (engine.address("control").await, bridge.address("control").await);
    let (code, _, said) =
        millrace(&[("--engine", &e)], &["job", "submit", &job(dir, &direct, &bootstrap, &url, &prefix), "--name", "outage"]);
    assert_eq!(code, 0, "{said}");
    let (args, log) = agent(dir, "direct", &kafka_sink(&bootstrap, &direct));
    let mut collector = start_collector(dir, &args, &[]);
    let c = collector.address("control").await;
    let (args, bridged_log) = agent(dir, "bridged", &bridge_sink(&format!("http://{b}"), &bridged));
    let mut through = start_collector(dir, &args, &[]);
    through.addresses().await;
    let all = [("--collector", c.as_str()), ("--bridge", b.as_str()), ("--engine", e.as_str())];
    let health = || {
        let (_, said, talk) = millrace(&all, &["status", "--output", "json"]);
        let status: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{talk}"));
        let (_, said, talk) = millrace(&all, &["job", "list", "--output", "json"]);
        let jobs: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{talk}"));
        let rows = status["services"].as_array().unwrap_or_else(|| panic!("no list: {status}")).iter();
        let states: Vec<String> = rows.map(|row| row["health"].to_string()).chain([jobs["jobs"][0]["state"].to_string()]).collect();
        (states.join(" ").replace('"', ""), format!("{status}\n{jobs}"))
    };
    let is = async |wanted: &str| {
        eventually(WAIT, wanted, || async {
            let (states, whole) = health();
            if states == wanted { Ok(()) } else { Err(format!("{states}: {whole}")) }
        })
        .await;
    };
    let mut written = Vec::new();
    let write = |written: &mut Vec<String>| {
        let line = format!(r#"{{"ts":{}}}"#, EPOCH_MS + 100 * written.len());
        append(&log, &line);
        append(&bridged_log, &line);
        written.push(line);
    };
    (0..100).for_each(|_| write(&mut written));
    is("ready ready ready running").await;
    eventually(WAIT, "the first lines are counted", || async {
        let (_, whole) = health();
        if whole.contains(r#""rows_in":100"#) { Ok(()) } else { Err(whole) }
    })
    .await;

    own.kill(1);
    let start = Instant::now();
    let away = Duration::from_secs(std::env::var("OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60));
    while start.elapsed() < away {
        write(&mut written);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (states, whole) = health();
    assert_eq!(states, "degraded degraded degraded waiting", "{whole}");
    own.restart(1);
    (0..100).for_each(|_| write(&mut written));
    eventually(WAIT, "every line is in Kafka once and in order", || async {
        let seen = kafka::texts(&bootstrap, &direct);
        if seen == written { Ok(()) } else { Err(format!("{} records, {} lines\n{}", seen.len(), written.len(), collector.log())) }
    })
    .await;
    // What the bridge could not acknowledge was repeated under its id.
    eventually(WAIT, "every line came through the bridge once and in order", || async {
        let seen = kafka::texts(&bootstrap, &bridged);
        if seen == written { Ok(()) } else { Err(format!("{} records, {} lines\n{}", seen.len(), written.len(), bridge.log())) }
    })
    .await;
    let mut expected = BTreeMap::new();
    for n in 0..written.len() {
        *expected.entry(EPOCH_MS + 100 * n / 10_000 * 10_000).or_insert(0_u64) += 1;
    }
    // A line of much later closes every window.
    append(&log, r#"{"ts":1799999999000}"#);
    eventually(WAIT, "every window has its lines", || async {
        let (counts, expected) = (totals(&url, &prefix), expected.values().copied().collect::<Vec<u64>>());
        if counts == expected { Ok(()) } else { Err(format!("{counts:?}, not {expected:?}\n{}", engine.log())) }
    })
    .await;
    is("ready ready ready running").await;
    for (service, process) in [("collector", &collector), ("bridge", &bridge), ("engine", &engine)] {
        let log = process.log();
        for line in ["no Kafka broker can be reached", "Kafka is back"] {
            assert_eq!(log.matches(line).count(), 1, "{service}: {line}\n{log}");
        }
    }
    for process in [&mut through, &mut collector, &mut bridge, &mut engine] {
        process.stop().await;
    }
}

/// The requests of each window in Redis, oldest first.
fn totals(url: &str, prefix: &str) -> Vec<u64> {
    let mut connection = redis::Client::open(url).expect("URL").get_connection().expect("Redis");
    let mut keys: Vec<String> =
        connection.scan_match::<_, String>(format!("{prefix}:*")).expect("scan").map(|key| key.expect("key")).collect();
    keys.sort();
    keys.iter().map(|key| connection.hget::<_, _, u64>(key, "requests").expect("requests")).collect()
}
