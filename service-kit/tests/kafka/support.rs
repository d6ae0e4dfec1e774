//! Topics that go away with their test, records, a proxy in front of the broker, and captured log lines.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use service_kit::kafka::{self, Admin, KafkaConfig, KafkaError, OutRecord, RangeReader, Record, TopicPartition};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) fn servers() -> String {
    std::env::var("KAFKA_BOOTSTRAP_SERVERS").unwrap_or_else(|_| {
        panic!(
            "KAFKA_BOOTSTRAP_SERVERS is not set: run `make test`, or start a broker with deploy/dev/kafka and export \
             the variable it prints"
        )
    })
}

pub(crate) fn config() -> KafkaConfig {
    KafkaConfig::new(servers())
}

pub(crate) fn with(pairs: &[(&str, &str)]) -> KafkaConfig {
    let mut config = config();
    for (key, value) in pairs {
        config.set(*key, *value);
    }
    config
}

pub(crate) async fn admin() -> Arc<dyn Admin> {
    kafka::admin(&config()).await.unwrap()
}

/// A name no other test and no other run uses.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    format!("millrace-test-{what}-{}-{nanos}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a test with a topic of its own, and deletes it, however the test ends.
pub(crate) async fn topic(what: &str, partitions: i32, settings: &[(&str, &str)], test: impl AsyncFnOnce(Arc<str>)) {
    let admin = admin().await;
    let name = unique(what);
    let settings: BTreeMap<String, String> = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    admin.create_topic(&name, partitions, 1, &settings, false).await.unwrap();
    let outcome = AssertUnwindSafe(test(name.as_str().into())).catch_unwind().await;
    let deleted = admin.delete_topic(&name).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    deleted.unwrap();
}

/// Condition polled until it holds; fails the test after `bound`.
pub(crate) async fn eventually(what: &str, bound: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn to(topic: &Arc<str>, partition: i32, value: impl Into<Bytes>) -> OutRecord {
    OutRecord {
        topic: Arc::clone(topic),
        partition: Some(partition),
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
        timestamp_ms: None,
    }
}

/// `prefix-0`, `prefix-1`, … for partition 0.
pub(crate) fn numbered(topic: &Arc<str>, prefix: &str, count: usize) -> Vec<OutRecord> {
    (0..count).map(|number| to(topic, 0, format!("{prefix}-{number}"))).collect()
}

pub(crate) async fn produce(records: Vec<OutRecord>) {
    let producer = kafka::producer(&config()).await.unwrap();
    for result in producer.send(records).await {
        result.unwrap();
    }
}

pub(crate) async fn read(
    reader: &Arc<dyn RangeReader>,
    partition: &TopicPartition,
    from: i64,
    until: i64,
) -> Result<Vec<Record>, KafkaError> {
    let chunks: Vec<Vec<Record>> = reader.read(partition.clone(), from, until).try_collect().await?;
    Ok(chunks.into_iter().flatten().collect())
}

/// First element of a read that is expected to fail.
pub(crate) async fn read_error(reader: &Arc<dyn RangeReader>, partition: &TopicPartition, from: i64, until: i64) -> KafkaError {
    let mut stream = reader.read(partition.clone(), from, until);
    while let Some(chunk) = stream.next().await {
        if let Err(error) = chunk {
            assert!(stream.next().await.is_none(), "the stream goes on after an error");
            return error;
        }
    }
    panic!("reading {partition} from {from} until {until} succeeded");
}

pub(crate) fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap()).collect()
}

pub(crate) fn offsets(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.offset).collect()
}

/// Loopback proxies, one for each broker, that put themselves into the addresses brokers announce.
pub(crate) struct Proxy {
    pub(crate) servers: String,
    /// Requests whose length prefix came by itself, and all requests.
    pub(crate) split_requests: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
    /// Answers about the cluster name no broker.
    fenced: Arc<AtomicBool>,
    /// Of these answers.
    pub(crate) fenced_answers: Arc<AtomicUsize>,
    /// Listeners and connections.
    live: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let brokers = admin().await.cluster().await.unwrap().brokers;
        let (open, _) = watch::channel(true);
        let split_requests = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let live = Arc::new(AtomicUsize::new(0));
        let (fenced, fenced_answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut listeners = Vec::new();
        let mut ports = Vec::new();
        for broker in &brokers {
            assert!(
                ["127.0.0.1", "localhost"].contains(&broker.host.as_str()),
                "outages can only be made in front of a broker on loopback, not {}: run `make test`",
                broker.host
            );
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.push((broker.host.clone(), broker.port, listener.local_addr().unwrap().port()));
            listeners.push(listener);
        }
        let servers: Vec<String> = ports.iter().map(|(_, _, port)| format!("127.0.0.1:{port}")).collect();
        for (listener, broker) in listeners.into_iter().zip(brokers) {
            let upstream = format!("{}:{}", broker.host, broker.port);
            let link = Link {
                upstream,
                ports: ports.clone(),
                open: open.subscribe(),
                fenced: Arc::clone(&fenced),
                fenced_answers: Arc::clone(&fenced_answers),
                live: Arc::clone(&live),
                split_requests: Arc::clone(&split_requests),
                requests: Arc::clone(&requests),
            };
            tokio::spawn(accept(listener, link));
        }
        Self { servers: servers.join(","), split_requests, requests, open, fenced, fenced_answers, live }
    }

    /// Ends all connections; returns when they have ended, so that nothing sent from now on gets through.
    pub(crate) async fn cut(&self) {
        self.open.send_replace(false);
        eventually("all connections are cut", Duration::from_secs(10), async || self.live.load(Ordering::SeqCst) == 0).await;
    }

    pub(crate) fn restore(&self) {
        self.open.send_replace(true);
    }

    /// As long as it is set, the only broker tells of its topics and of no broker, as one does that the controller has fenced.
    pub(crate) fn fence(&self, fenced: bool) {
        self.fenced.store(fenced, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Link {
    upstream: String,
    /// Announced host, announced port, the proxy's port.
    ports: Vec<(String, u16, u16)>,
    open: watch::Receiver<bool>,
    fenced: Arc<AtomicBool>,
    fenced_answers: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
    split_requests: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

/// Counts one listener or connection as long as it lives.
struct Live(Arc<AtomicUsize>);

impl Live {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, link: Link) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some((Live::new(&link.live), listener));
    let mut open = link.open.clone();
    loop {
        if *open.borrow_and_update() {
            let bound = match listener.take() {
                Some(bound) => bound,
                None => (Live::new(&link.live), TcpListener::bind(address).await.unwrap()),
            };
            tokio::select! {
                accepted = bound.1.accept() => {
                    let (client, _) = accepted.unwrap();
                    tokio::spawn(carry(Live::new(&link.live), client, link.clone()));
                    listener = Some(bound);
                }
                // Dropping the listener refuses new connections.
                changed = open.changed() => if changed.is_err() { return },
            }
        } else {
            // Closed here too: a connection may have come in the moment of the cut.
            listener = None;
            if open.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn carry(_live: Live, client: TcpStream, link: Link) {
    let Ok(server) = TcpStream::connect(&link.upstream).await else { return };
    server.set_nodelay(true).unwrap();
    client.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut open = link.open.clone();
    let requests = async {
        let mut buffer = vec![0; 1 << 20];
        let mut frame_left = 0usize;
        loop {
            let count = from_client.read(&mut buffer).await?;
            if count == 0 {
                return std::io::Result::Ok(());
            }
            let mut rest = &buffer[..count];
            if frame_left == 0 && rest.len() == 4 {
                link.split_requests.fetch_add(1, Ordering::Relaxed);
            }
            while !rest.is_empty() {
                if frame_left == 0 {
                    // Clients write the prefix in one piece.
                    let Some((prefix, after)) = rest.split_at_checked(4) else { break };
                    frame_left = u32::from_be_bytes(prefix.try_into().unwrap()) as usize;
                    link.requests.fetch_add(1, Ordering::Relaxed);
                    rest = after;
                }
                let here = frame_left.min(rest.len());
                frame_left -= here;
                rest = &rest[here..];
            }
            to_server.write_all(&buffer[..count]).await?;
        }
    };
    let responses = async {
        loop {
            let mut frame = vec![0; from_server.read_u32().await? as usize];
            from_server.read_exact(&mut frame).await?;
            announce_proxies(&mut frame, &link.ports);
            if link.fenced.load(Ordering::SeqCst) && take_broker(&mut frame, &link.ports[0].0) {
                link.fenced_answers.fetch_add(1, Ordering::SeqCst);
            }
            to_client.write_all(&(frame.len() as u32).to_be_bytes()).await?;
            to_client.write_all(&frame).await?;
        }
        #[allow(unreachable_code)] // Gives the block its type.
        std::io::Result::Ok(())
    };
    tokio::select! {
        _ = requests => {}
        _ = responses => {}
        // `cut` ends the connection in the middle of whatever it is doing.
        _ = open.wait_for(|open| !open) => {}
    }
}

/// Host and port follow each other in every response that names brokers.
fn announce_proxies(frame: &mut [u8], ports: &[(String, u16, u16)]) {
    for (host, real, proxy) in ports {
        let pattern = [host.as_bytes(), &u32::from(*real).to_be_bytes()].concat();
        let places: Vec<usize> =
            frame.windows(pattern.len()).enumerate().filter(|(_, window)| *window == pattern).map(|(at, _)| at).collect();
        for at in places {
            frame[at + host.len()..at + pattern.len()].copy_from_slice(&u32::from(*proxy).to_be_bytes());
        }
    }
}

/// Makes the list of brokers empty in a metadata response of version 9 or later with one broker; gives whether it was one. Before the list are the
/// correlation id, no tags, and the throttle time; in it the broker's id, host, port, no rack and no tags.
fn take_broker(frame: &mut Vec<u8>, host: &str) -> bool {
    const LIST: usize = 9;
    let name = LIST + 1 + 4;
    let end = name + 1 + host.len() + 4 + 1 + 1;
    let is_one = frame.len() > end
        && frame[4] == 0
        && frame[LIST] == 2
        && usize::from(frame[name]) == host.len() + 1
        && frame[name + 1..].starts_with(host.as_bytes())
        && frame[end - 2..end] == [0, 0];
    if is_one {
        frame.splice(LIST..end, [1]);
    }
    is_one
}

/// Lines at `info` and above that hold `text`.
pub(crate) fn logged(text: &str) -> Vec<String> {
    LINES.get_or_init(Arc::default).lock().iter().filter(|line| line.contains(text)).cloned().collect()
}

static LINES: OnceLock<Arc<Mutex<Vec<String>>>> = OnceLock::new();

/// Begins to keep what is logged; for the whole test process.
pub(crate) fn capture_log() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::SeqCst) {
        return;
    }
    let lines = Arc::clone(LINES.get_or_init(Arc::default));
    let writer = move || Lines(Arc::clone(&lines));
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false).with_writer(writer).init();
}

struct Lines(Arc<Mutex<Vec<String>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
