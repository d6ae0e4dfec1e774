//! The otlp source before OpenTelemetry's own SDK: gRPC and HTTP, gzip, with and without TLS; a full channel loses nothing.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
};

use integration_tests::{eventually, flume::free_port, root};

use super::network::{Agent, Event, WAIT, millrace, prometheus};

/// `deploy/dev/otlp/logs`, started.
struct Sender(Child);

impl Sender {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(root().join("deploy/dev/otlp/logs"));
        Self(command.args(args).stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("deploy/dev/otlp/logs: {error}")))
    }

    async fn ends_well(&mut self) {
        let status = eventually(WAIT, "the sender has exported everything", || {
            let ended = self.0.try_wait();
            async { ended.ok().flatten().ok_or_else(|| "it still runs".to_owned()) }
        })
        .await;
        assert!(status.success(), "the sender ended with {status}");
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What a sender called `name` sends: bodies with their headers.
fn sent(name: &str, count: usize) -> Vec<Event> {
    let event = |number: usize| {
        let till = (number % 3).to_string();
        let time = (1_700_000_000_123_456_789_u64 + number as u64).to_string();
        let headers = [
            ("attributes.names", r#"["a","b"]"#),
            ("attributes.open", "true"),
            ("attributes.price", "2.5"),
            ("attributes.till", &till),
            ("flags", "1"),
            ("observedTimeUnixNano", "1700000001000000000"),
            ("resource.attributes.service.name", "shop"),
            ("resource.attributes.shop.tills", "3"),
            ("scope.name", "till"),
            ("scope.version", "1.2"),
            ("severity", "WARNING"),
            ("severityNumber", "13"),
            ("spanId", "0102030405060708"),
            ("timeUnixNano", &time),
            ("timestamp", "1700000000123"),
            ("traceId", "0102030405060708090a0b0c0d0e0f10"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let body = if number < count { format!("{name} {number}") } else { format!(r#"{{"last":"{name}","of":{count}}}"#) };
        (BTreeMap::from(headers), body)
    };
    (0..=count).map(event).collect()
}

/// Events without the attributes that the SDK adds about itself.
fn known(events: Vec<Event>) -> Vec<Event> {
    let plain = |(mut headers, body): Event| {
        let own = ["resource.attributes.telemetry.sdk.", "resource.attributes.service.instance.id"];
        headers.retain(|name, _| !own.iter().any(|own| name.starts_with(own)));
        (headers, body)
    };
    events.into_iter().map(plain).collect()
}

#[tokio::test]
async fn what_opentelemetrys_sdk_sends_arrives_once_over_every_wire() {
    let keys = tempfile::tempdir().expect("a folder");
    let request =
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem";
    let output = Command::new("openssl").args(request.split(' ')).current_dir(keys.path()).output().expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pem = ["cert.pem", "key.pem"].map(|file| fs::read_to_string(keys.path().join(file)).expect("PEM")).concat();
    let (both, certificate) = (keys.path().join("both.pem"), keys.path().join("cert.pem"));
    fs::write(&both, pem).expect("PEM");
    let (plain, secure, full) = (free_port(), free_port(), free_port());
    let source = |port: u16, more: &str| format!("type = otlp\nbind = 127.0.0.1\nport = {port}\nmaxRecords = 100\n{more}");
    let tls = format!("ssl = true\nkeystore-type = PEM\nkeystore = {}", both.display());
    let sources = [("plain", source(plain, "")), ("secure", source(secure, &tls)), ("full", source(full, ""))];
    let mut agent = Agent::new(&sources, "capacity = 300\ntransactionCapacity = 100\nkeep-alive = 0").await;
    // A name of its own, to be paused without its source.
    agent.conf =
        agent.conf.replace("agent.sinks.full.", "agent.sinks.drain.").replace("sinks = plain secure full", "sinks = plain secure drain");
    let mut collector = agent.start(&[]);
    let (control, page) = (collector.address("control").await, collector.address("metrics").await);
    let certificate = certificate.to_string_lossy();

    for (way, endpoint, more) in [
        ("grpc", format!("http://127.0.0.1:{plain}"), None),
        ("http", format!("http://127.0.0.1:{plain}/v1/logs"), None),
        ("grpc", format!("https://localhost:{secure}"), Some(&*certificate)),
        ("http", format!("https://localhost:{secure}/v1/logs"), Some(&*certificate)),
    ] {
        let args: Vec<&str> = [way, &endpoint, way, "450"].into_iter().chain(more).collect();
        Sender::start(&args).ends_well().await;
    }
    for source in ["plain", "secure"] {
        eventually(WAIT, &format!("{source} has every record once, with its headers"), || async {
            let events = known(agent.events(source));
            let expected = [sent("grpc", 450), sent("http", 450)].concat();
            let wrong = events.iter().zip(&expected).find(|(event, expected)| event != expected);
            if events == expected { Ok(()) } else { Err(format!("{} events of {}; {wrong:?}", events.len(), expected.len())) }
        })
        .await;
    }

    // JSON has no exporter in the SDK.
    let json =
        r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1544712660300000000","body":{"stringValue":"by JSON"}}]}]}]}"#;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let post = |body: &'static str| {
        client.post(format!("http://127.0.0.1:{plain}/v1/logs")).header("content-type", "application/json").body(body).send()
    };
    let answer = post(json).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.text().await.expect("text").as_str()), (200, "{}"));
    let answer = post("{\"resourceLogs\":1}").await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 400);
    assert!(answer.text().await.expect("text").contains(r#""code":3"#));
    eventually(WAIT, "the record by JSON", || async {
        let last = agent.events("plain").pop();
        let timestamp = last.as_ref().and_then(|(headers, _)| headers.get("timestamp").cloned());
        if last.as_ref().is_some_and(|(_, body)| body == "by JSON") && timestamp.as_deref() == Some("1544712660300") {
            Ok(())
        } else {
            Err(format!("{last:?}"))
        }
    })
    .await;

    // A channel of 300 events whose sink stands still: the SDK is told to try again, and does until there is room.
    millrace(&control, &["pause", "drain"]);
    let mut sender = Sender::start(&["grpc", &format!("http://127.0.0.1:{full}"), "full", "600"]);
    eventually(WAIT, "the source has refused an export", || async {
        let refused = prometheus(&page, "millrace_collector_source_channel_full_total", "full").await;
        if refused > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert!(sender.0.try_wait().expect("the sender").is_none(), "the sender has ended before there was room");
    millrace(&control, &["resume", "drain"]);
    sender.ends_well().await;
    eventually(WAIT, "every record once", || async {
        let events = known(agent.events("full"));
        if events == sent("full", 600) { Ok(()) } else { Err(format!("{} events of 601", events.len())) }
    })
    .await;
    collector.stop().await;
}
