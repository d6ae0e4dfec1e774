//! The sinks and the sources of one protocol against each other, over loopback.

use std::{path::PathBuf, time::Duration};

use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::watch};

use super::*;
use crate::channel::{
    Channel,
    memory::{Limits as Size, MemoryChannel},
};
use crate::counters::{SinkCounters, SourceCounters};
use crate::flume_conf::{Kind, component::Setting};
use crate::sink::{self, Input, Sink};
use crate::source::server::Answer as _;
use crate::source::{self, Stop};

proptest! {
    #[test]
    fn numbers_come_back(value: i64) {
        let mut bytes = Vec::new();
        put_zigzag(&mut bytes, value);
        let mut cut = Cut::new(bytes.into());
        prop_assert_eq!(cut.zigzag().unwrap(), value);
        prop_assert!(cut.rest().is_empty());
    }
}

#[test]
fn zigzag_has_small_numbers_for_small_ones() {
    for (value, expected) in [(0, 0), (-1, 1), (1, 2), (-64, 127)] {
        let mut bytes = Vec::new();
        put_zigzag(&mut bytes, value);
        assert_eq!(bytes, [expected]);
    }
    assert!(Cut::new(Bytes::from_static(&[0xff; 11])).varint().is_err());
}

#[tokio::test]
async fn a_stream_may_end_only_between_messages() {
    let mut incoming = Incoming::new();
    assert!(!incoming.fill(&mut &b""[..], 4).await.unwrap());
    assert!(incoming.fill(&mut &b"abc"[..], 4).await.is_err());
}

fn component(kind: &'static Kind, settings: &str) -> Component {
    let mut component = Component::new(kind, "x", kind.name());
    for (key, value) in settings.lines().filter_map(|line| line.split_once('=')) {
        component.settings.insert(key.trim().to_owned(), Setting { value: value.trim().to_owned(), place: None });
    }
    component
}

fn channel(events_max: usize, transaction_max: usize) -> Arc<dyn Channel> {
    Arc::new(MemoryChannel::new(Size { events_max, transaction_max, bytes_max: usize::MAX, keep_alive: Duration::ZERO }))
}

/// A source that answers on a port, into a channel.
struct Answering {
    port: u16,
    counters: Arc<SourceCounters>,
    trouble: Arc<Mutex<Option<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Session {
    Avro(source::avro::Session),
    Thrift(source::thrift::Session),
}

async fn answering(kind: &str, settings: &str, channel: &Arc<dyn Channel>) -> Answering {
    let session = match kind {
        "avro" => Session::Avro(source::avro::Session::build(&component(&source::avro::KIND, settings)).unwrap()),
        _ => Session::Thrift(source::thrift::Session::build(&component(&source::thrift::KIND, settings)).unwrap()),
    };
    let (resume, paused) = watch::channel(false);
    let (counters, trouble) = (SourceCounters::new("x"), Arc::new(Mutex::new(None)));
    let out = Output::new("x", vec![channel.clone()], counters.clone(), paused, trouble.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let _resume = resume;
        while let Ok((tcp, peer)) = listener.accept().await {
            let stop = Stop::default();
            // A connection's errors are its own.
            drop(match &session {
                Session::Avro(session) => session.serve(tcp, peer, &out, &stop).await,
                Session::Thrift(session) => session.serve(tcp, peer, &out, &stop).await,
            });
        }
    });
    Answering { port, counters, trouble, task }
}

struct Sending {
    counters: Arc<SinkCounters>,
    trouble: Arc<Mutex<Option<String>>>,
    stop: Stop,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn sending(kind: &str, settings: &str, port: u16, channel: &Arc<dyn Channel>) -> Sending {
    let settings = format!("hostname = localhost\nport = {port}\nmaxBackoffSleep = 20\n{settings}");
    let setup = sink::Setup { state_dir: PathBuf::new(), strict: false, committed: watch::Sender::new(None) };
    let sink: Box<dyn Sink> = match kind {
        "avro" => sink::avro::build(&component(&sink::avro::KIND, &settings), setup).unwrap(),
        _ => sink::thrift::build(&component(&sink::thrift::KIND, &settings), setup).unwrap(),
    };
    let (resume, paused) = watch::channel(false);
    let (counters, trouble, stop) = (SinkCounters::new("x"), Arc::new(Mutex::new(None)), Stop::default());
    let input = Input::new("x", channel.clone(), counters.clone(), paused, trouble.clone());
    let ending = stop.clone();
    let task = tokio::spawn(async move {
        let _resume = resume;
        sink.run(input, ending).await
    });
    Sending { counters, trouble, stop, task }
}

impl Sending {
    async fn end(self) {
        self.stop.begin.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not within 20 s");
}

fn events(count: usize) -> Vec<Event> {
    (0..count).map(|n| Event::with_headers(format!("{n} {}", "x".repeat(n % 300)), [("n", n.to_string().as_str()), ("é", "ü")])).collect()
}

async fn all(channel: &Arc<dyn Channel>) -> Vec<(Headers, Bytes)> {
    let mut all = Vec::new();
    loop {
        let taken = channel.clone().take(1000, Duration::ZERO).await;
        if taken.is_empty() {
            return all;
        }
        all.extend(taken.events().iter().map(|event| (event.headers.clone(), event.body.clone())));
        taken.commit();
    }
}

const WIRES: [(&str, &str); 4] = [("avro", ""), ("avro", "compression-type = deflate"), ("thrift", ""), ("thrift", "protocol = binary")];

#[tokio::test]
async fn events_arrive_in_their_order_with_their_headers() {
    for (kind, wire) in WIRES {
        let (near, far) = (channel(1000, 500), channel(1000, 500));
        let source = answering(kind, wire, &far).await;
        let mut sent = events(500);
        let expected: Vec<_> = sent.iter().map(|event| (event.headers.clone(), event.body.clone())).collect();
        near.put(&mut sent).await.unwrap();
        let sink = sending(kind, &format!("batch-size = 70\nmaxRequestBytes = 5000\n{wire}"), source.port, &near);
        until("500 events", || sink.counters.delivered.get() == 500).await;
        assert_eq!(all(&far).await, expected, "{kind} {wire}");
        assert_eq!((source.counters.accepted.get(), near.fill().events), (500, 0));
        assert!(source.counters.batches_accepted.get() > 10);
        sink.end().await;
    }
}

/// A full channel on the other side: nothing is lost, and nothing comes twice.
#[tokio::test]
async fn a_full_channel_is_answered_failed_and_the_events_come_again() {
    for (kind, wire) in WIRES {
        let (near, far) = (channel(1000, 500), channel(20, 20));
        let source = answering(kind, wire, &far).await;
        near.put(&mut events(100)).await.unwrap();
        let sink = sending(kind, &format!("batch-size = 15\n{wire}"), source.port, &near);
        until("a refusal", || sink.counters.rollbacks.get() > 0).await;
        let mut bodies = Vec::new();
        while bodies.len() < 100 {
            until("more", || far.fill().events > 0).await;
            bodies.extend(all(&far).await.into_iter().map(|(_, body)| body));
        }
        until("the last answer", || sink.counters.delivered.get() == 100).await;
        assert_eq!(bodies, events(100).into_iter().map(|event| event.body).collect::<Vec<_>>(), "{kind} {wire}");
        assert!(source.counters.channel_failures.get() > 0);
        assert_eq!((near.fill().events, far.fill().events), (0, 0));
        sink.end().await;
    }
}

#[tokio::test]
async fn a_batch_that_no_transaction_holds_is_said() {
    let (near, far) = (channel(1000, 500), channel(1000, 10));
    let source = answering("avro", "", &far).await;
    near.put(&mut events(11)).await.unwrap();
    let sink = sending("avro", "", source.port, &near);
    until("a word", || source.trouble.lock().is_some()).await;
    assert!(source.trouble.lock().as_deref().unwrap().contains("transactionCapacity"));
    until("a word", || sink.trouble.lock().is_some()).await;
    assert!(sink.trouble.lock().as_deref().unwrap().contains("Failed"));
    sink.end().await;
    // Everything is back in its place.
    assert_eq!((near.fill().events, all(&near).await.len(), all(&far).await.len()), (11, 11, 0));
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_with_the_reason() {
    for (kind, wire) in WIRES {
        let (near, far) = (channel(1000, 500), channel(1000, 500));
        let source = answering(kind, &format!("maxBatchEvents = 10\n{wire}"), &far).await;
        near.put(&mut events(11)).await.unwrap();
        let sink = sending(kind, wire, source.port, &near);
        until("a word", || sink.trouble.lock().is_some()).await;
        let said = sink.trouble.lock().clone().unwrap();
        assert!(said.contains("the other side's error: more than 10 events in one request (maxBatchEvents)"), "{said}");
        assert!(source.counters.read_failures.get() > 0);
        sink.end().await;
        assert_eq!((all(&near).await.len(), all(&far).await.len()), (11, 0));
    }
}

/// A peer that accepts and never answers, and one that hangs up: the events stay, and go to whoever takes them.
#[tokio::test]
async fn a_silent_or_absent_peer_costs_nothing() {
    let (near, far) = (channel(1000, 500), channel(1000, 500));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    near.put(&mut events(3)).await.unwrap();
    let sink = sending("avro", "request-timeout = 1000", port, &near);
    let (held, _) = silent.accept().await.unwrap();
    until("a timeout", || sink.trouble.lock().as_deref().is_some_and(|word| word.contains("request-timeout"))).await;
    drop((held, silent));
    until("a refusal", || sink.trouble.lock().as_deref().is_some_and(|word| word.contains("cannot connect"))).await;
    sink.end().await;
    assert_eq!(near.fill().events, 3);
    let source = answering("avro", "", &far).await;
    let sink = sending("avro", "", source.port, &near);
    until("3 events", || sink.counters.delivered.get() == 3).await;
    assert_eq!(all(&far).await.len(), 3);
    sink.end().await;
}

#[tokio::test]
async fn a_filtered_peer_is_hung_up_on() {
    let (near, far) = (channel(1000, 500), channel(1000, 500));
    let source = answering("avro", "ipFilter = true\nipFilterRules = allow:ip:10.*,deny:ip:*", &far).await;
    near.put(&mut events(3)).await.unwrap();
    let sink = sending("avro", "", source.port, &near);
    until("a refusal", || sink.counters.rollbacks.get() > 0).await;
    sink.end().await;
    assert_eq!((near.fill().events, far.fill().events), (3, 0));
}

/// Bytes of something else: a word in the log and the end of the connection, whatever is set.
#[tokio::test]
async fn another_protocol_is_refused() {
    for (kind, wire) in WIRES {
        let far = channel(10, 10);
        let source = answering(kind, wire, &far).await;
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", source.port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{kind} {wire}: the connection stays open");
    }
}

#[tokio::test]
async fn connections_are_made_anew_at_intervals() {
    let (near, far) = (channel(1000, 500), channel(1000, 500));
    let source = answering("avro", "", &far).await;
    let sink = sending("avro", "reset-connection-interval = 1", source.port, &near);
    near.put(&mut events(1)).await.unwrap();
    until("one event", || sink.counters.delivered.get() == 1).await;
    let first = std::time::Instant::now();
    while sink.counters.connections_created.get() < 2 {
        assert!(first.elapsed() < Duration::from_secs(20));
        near.put(&mut events(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(first.elapsed() > Duration::from_millis(900));
    sink.end().await;
}

/// An authority, and keys that it signed: PEM files in a folder.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let made = Self { dir: tempfile::tempdir().unwrap() };
        made.write("authority.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = rcgen::Issuer::new(params, key);
        for name in ["localhost", "elsewhere"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap().pem();
            made.write(&format!("{name}.pem"), &(certificate.clone() + &key.serialize_pem()));
            made.write(&format!("{name}-certificate.pem"), &certificate);
        }
        made
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn keystore(&self, name: &str) -> String {
        format!("ssl = true\nkeystore-type = PEM\nkeystore = {}", self.dir.path().join(name).display())
    }

    fn truststore(&self, name: &str) -> String {
        format!("ssl = true\ntruststore-type = PEM\ntruststore = {}", self.dir.path().join(name).display())
    }
}

#[tokio::test]
async fn a_certificate_is_believed_when_it_should_be() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let refused = ["UnknownIssuer", "not valid for name"];
    for (keystore, trust, expected) in [
        ("localhost.pem", authority.truststore("authority.pem"), None),
        ("localhost.pem", authority.truststore("localhost-certificate.pem"), None),
        ("localhost.pem", stranger.truststore("authority.pem"), Some(refused[0])),
        ("localhost.pem", "ssl = true".to_owned(), Some(refused[0])),
        ("localhost.pem", "ssl = true\ntrust-all-certs = true".to_owned(), None),
        ("localhost.pem", authority.truststore("authority.pem") + "\ninclude-protocols = TLSv1.2", None),
        ("elsewhere.pem", authority.truststore("authority.pem"), Some(refused[1])),
        ("elsewhere.pem", authority.truststore("authority.pem") + "\nverify-hostname = false", None),
        ("elsewhere.pem", authority.truststore("elsewhere-certificate.pem"), None),
        ("elsewhere.pem", stranger.truststore("authority.pem") + "\nverify-hostname = false", Some(refused[0])),
    ] {
        for (kind, wire) in WIRES {
            let (near, far) = (channel(1000, 500), channel(1000, 500));
            let source = answering(kind, &format!("{}\n{wire}", authority.keystore(keystore)), &far).await;
            near.put(&mut events(3)).await.unwrap();
            let sink = sending(kind, &format!("{trust}\n{wire}"), source.port, &near);
            until("events or a refusal", || far.fill().events == 3 || sink.trouble.lock().is_some()).await;
            let said = sink.trouble.lock().clone();
            match (expected, said) {
                (None, None) => assert_eq!(all(&far).await.len(), 3),
                (Some(reason), Some(said)) if said.contains(reason) => {
                    assert_eq!(far.fill().events, 0);
                    until("a failure counted", || source.counters.tls_failures.get() > 0).await;
                }
                (_, said) => panic!("{keystore} {trust} {wire}: {said:?} instead of {expected:?}"),
            }
            sink.end().await;
        }
    }
}

/// Before 1.10 Flume encrypted what was compressed; since then it compresses what is encrypted. Clients of both are understood.
#[tokio::test]
async fn compression_may_be_on_either_side_of_encryption() {
    let authority = Authority::new("authority");
    let far = channel(1000, 500);
    let source = answering("avro", &(authority.keystore("localhost.pem") + "\ncompression-type = deflate"), &far).await;
    let calling = component(&sink::avro::KIND, &authority.truststore("authority.pem"));
    let tls = crate::tls::connector(&calling).unwrap().unwrap();
    for inside in [true, false] {
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", source.port)).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let mut stream: connection::Stream = if inside {
            Box::new(deflate::Deflated::new(tls.connect(name, tcp).await.unwrap(), 6))
        } else {
            Box::new(tls.connect(name, deflate::Deflated::new(tcp, 6)).await.unwrap())
        };
        let mut client = avro::Requestor::default();
        avro::write_frame(&mut stream, 1, &client.request(&events(2))).await.unwrap();
        let (_, answer) = avro::read_frame(&mut Incoming::new(), &mut stream, 1000).await.unwrap().unwrap();
        assert_eq!(client.answer(answer).unwrap(), avro::Answer::Status(avro::Status::Ok));
        assert_eq!(all(&far).await.len(), 2);
    }
}
