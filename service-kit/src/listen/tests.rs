//! Every limit of a listener, on loopback sockets.

use std::{
    convert::Infallible,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    response::sse,
    routing::{get, post},
};
use futures::{StreamExt as _, stream};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Ending, ListenAddr, Listener, Unhurried};
use crate::config::{LimitsConfig, TlsConfig};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    ending: Ending,
    task: JoinHandle<()>,
    /// Lets the requests to `/held` go on.
    release: Arc<Notify>,
    /// Told when one has arrived.
    arrived: Arc<Notify>,
}

async fn server(change: impl FnOnce(&mut LimitsConfig)) -> Server {
    server_named("test", change).await
}

async fn server_named(name: &'static str, change: impl FnOnce(&mut LimitsConfig)) -> Server {
    crate::metrics::prometheus();
    let mut limits = LimitsConfig::default();
    change(&mut limits);
    let (release, arrived) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let held = {
        let (release, arrived) = (release.clone(), arrived.clone());
        async move || {
            arrived.notify_one();
            release.notified().await;
            "released"
        }
    };
    let events = async || {
        let first = stream::once(async { Ok::<_, Infallible>(sse::Event::default().data("first")) });
        let second = stream::once(async {
            sleep(Duration::from_millis(500)).await;
            Ok(sse::Event::default().data("second"))
        });
        sse::Sse::new(first.chain(second).chain(stream::pending()))
    };
    let endless = || Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 64 << 10]))));
    let upgraded = async |mut request: axum::extract::Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            // Until its client closes.
            let mut socket = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.ok();
        });
        (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "test")])
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let router = Router::new()
        .route("/length", post(async |body: Bytes| body.len().to_string()))
        .route("/held", get(held.clone()).post(held.clone()))
        .route("/millrace.control.v1.Control/held", get(held))
        .route("/metrics", get(async || "page"))
        .route("/events", get(events))
        .route("/endless", get(async move || endless()))
        .route("/unhurried", get(async move || (Extension(Unhurried(PATIENCE)), endless())))
        .route("/upgraded", get(upgraded))
        .merge(tonic::service::Routes::new(health).into_axum_router());
    let listener = Listener::bind(name, ListenAddr::new((Ipv4Addr::LOCALHOST, 0)), &TlsConfig::default(), &limits).await.unwrap();
    let ending = Ending::default();
    let address = listener.address;
    let serving = listener.serve(router, Arc::new(limits), ending.clone());
    let task = tokio::spawn(async move {
        serving.await;
        drop(reporter);
    });
    Server { address, ending, task, release, arrived }
}

/// A connection that is told that it is too old; so is every one that was opened before it.
async fn until_old(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address).await;
    let begun = Instant::now();
    loop {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"page") {
            let count = timeout(PATIENCE, stream.read_buf(&mut answer)).await.unwrap().unwrap();
            assert!(count > 0, "closed without a word");
        }
        let answer = String::from_utf8(answer).unwrap();
        check_status(&answer, 200);
        if answer.contains("\r\nconnection: close\r\n") {
            return stream;
        }
        assert!(begun.elapsed() < PATIENCE, "an old connection goes on");
        // Between two requests it is idle: then it must not be closed.
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

async fn health_client(address: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

/// Everything until the server closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is a close, too.
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server does not close the connection").ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One request on a connection of its own.
async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = connect(address).await;
    stream.write_all(request.as_ref()).await.unwrap();
    rest(stream).await
}

fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
}

fn post_request(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /length HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn check_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "not {status}: {answer:?}");
}

#[tokio::test]
async fn a_connection_that_does_not_finish_its_header_is_closed() {
    let server = server(|limits| limits.header_timeout = Duration::from_millis(300)).await;
    for beginning in ["", "P", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\nhost: a\r\nx-slow: "] {
        let started = Instant::now();
        let mut stream = connect(server.address).await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        assert_eq!(rest(stream).await, "", "{beginning:?}");
        assert!(started.elapsed() >= Duration::from_millis(300), "{beginning:?} was closed early");
    }
}

#[tokio::test]
async fn a_drip_of_header_bytes_does_not_keep_a_connection_open() {
    let server = server(|limits| limits.header_timeout = Duration::from_millis(300)).await;
    let (mut read, mut write) = connect(server.address).await.into_split();
    write.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let drip = async {
        while write.write_all(b"x: y\r\n").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let closed = async { read.read_to_end(&mut Vec::new()).await };
    timeout(PATIENCE, futures::future::select(Box::pin(drip), Box::pin(closed))).await.expect("still open");
}

#[tokio::test]
async fn a_header_that_is_too_large_or_has_too_many_fields_gets_431() {
    let server = server(|_| {}).await;
    let fields: String = (0..70).map(|n| format!("x-{n}: y\r\n")).collect();
    check_status(&ask(server.address, format!("GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n")).await, 431);
    let large = "y".repeat(40_000);
    check_status(&ask(server.address, format!("GET /metrics HTTP/1.1\r\nhost: a\r\nx: {large}\r\n\r\n")).await, 431);
}

#[tokio::test]
async fn a_body_is_bounded_as_sent_and_as_unpacked() {
    let server = server(|limits| {
        limits.body_bytes_max = 500_000;
        limits.body_ratio_max = 100.try_into().unwrap();
    })
    .await;
    let check = async |request: Vec<u8>, status: u16| {
        let answer = ask(server.address, request).await;
        check_status(&answer, status);
        answer
    };
    let text: Vec<u8> = (0..100_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
    assert!(check(post_request("", &vec![b'a'; 500_000]), 200).await.ends_with("500000"));
    check(post_request("", &vec![b'a'; 500_001]), 413).await;
    let disguised = ask(server.address, post_request("content-type: application/grpc\r\n", &vec![b'a'; 500_001])).await;
    check_status(&disguised, 413);
    // Announced, not sent.
    check(b"POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999999\r\nconnection: close\r\n\r\n".to_vec(), 413).await;
    let mut chunked = b"POST /length HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".to_vec();
    for _ in 0..51 {
        chunked.extend_from_slice(format!("2710\r\n{}\r\n", "a".repeat(10_000)).as_bytes());
    }
    check([chunked, b"0\r\n\r\n".to_vec()].concat(), 413).await;

    assert!(check(post_request("content-encoding: gzip\r\n", &gzip(&text)), 200).await.ends_with(&text.len().to_string()));
    let two_members = [gzip(b"one"), gzip(b"two")].concat();
    assert!(check(post_request("content-encoding: gzip\r\n", &two_members), 200).await.ends_with('6'));
    // 400 kB of zeros are within the size and beyond the ratio; 600 kB of digits the other way round.
    assert!(check(post_request("content-encoding: gzip\r\n", &gzip(&[0; 400_000])), 413).await.contains("body_ratio_max"));
    assert!(check(post_request("content-encoding: gzip\r\n", &gzip(&[text.clone(), text].concat())), 413).await.contains("body_bytes_max"));
    check(post_request("content-encoding: br\r\n", b"x"), 415).await;
    check(post_request("content-encoding: gzip\r\n", b"this is not gzip"), 400).await;
    let whole = gzip(b"cut off");
    check(post_request("content-encoding: gzip\r\n", &whole[..whole.len() - 3]), 400).await;
}

#[tokio::test]
async fn bodies_of_all_requests_together_have_a_bound() {
    let server = server(|limits| limits.bodies_bytes_max = 100_000).await;
    // Held: sent but for the last byte.
    let head = "POST /length HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 80000\r\n\r\n";
    let mut parked = connect(server.address).await;
    parked.write_all(&[head.as_bytes(), &[b'a'; 79_999]].concat()).await.unwrap();
    let held = async {
        while server.ending.body_bytes.load(std::sync::atomic::Ordering::Relaxed) < 79_999 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, held).await.unwrap();
    let refused = ask(server.address, post_request("", &[b'a'; 50_000])).await;
    check_status(&refused, 503);
    assert!(refused.contains("bodies_bytes_max") && refused.to_lowercase().contains("retry-after: 1"), "{refused}");
    check_status(&ask(server.address, post_request("", &[b'a'; 10_000])).await, 200);
    parked.write_all(b"a").await.unwrap();
    check_status(&rest(parked).await, 200);
    check_status(&ask(server.address, post_request("", &[b'a'; 50_000])).await, 200);
    assert_eq!(server.ending.body_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_gets_408() {
    let server = server(|limits| {
        limits.body_idle_timeout = Duration::from_millis(200);
        limits.body_timeout = Duration::from_millis(600);
    })
    .await;
    let head = "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nsome";
    check_status(&ask(server.address, head).await, 408);
    // Never idle for long, never complete.
    let (mut read, mut write) = connect(server.address).await.into_split();
    write.write_all(head.as_bytes()).await.unwrap();
    let drip = async {
        while write.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let answer = async {
        let mut bytes = vec![0; 12];
        read.read_exact(&mut bytes).await.map(|_| bytes)
    };
    let answer = tokio::select! { () = drip => unreachable!(), answer = timeout(PATIENCE, answer) => answer.unwrap().unwrap() };
    assert_eq!(answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_unless_the_answer_may_take_its_time() {
    let server = server_named("untaken", |limits| limits.write_idle_timeout = Duration::from_millis(300)).await;
    let begun = async |path: &str| {
        let mut stream = connect(server.address).await;
        stream.write_all(get_request(path).as_bytes()).await.unwrap();
        let mut first = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
        stream
    };
    let mut unhurried = begun("/unhurried").await;
    let untaken = begun("/endless").await;
    let counted = "millrace_listen_rejected_total{listener=\"untaken\",reason=\"write_idle_timeout\"} 1";
    let cut = async {
        while !crate::metrics::render().contains(counted) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, cut).await.expect("a client that takes nothing keeps its connection");
    // What was on the way, and the end.
    rest(untaken).await;
    // More than can have been on the way.
    let mut taken = 0;
    let mut bytes = vec![0; 1 << 20];
    while taken < 64 << 20 {
        let count = timeout(PATIENCE, unhurried.read(&mut bytes)).await.unwrap().unwrap();
        assert!(count > 0, "ended after {taken} bytes");
        taken += count;
    }
    assert!(crate::metrics::render().contains(counted));
}

#[tokio::test]
async fn a_connection_that_is_no_longer_http_keeps_its_place() {
    let server = server(|limits| limits.connections_max = 1.try_into().unwrap()).await;
    let mut socket = connect(server.address).await;
    socket.write_all(b"GET /upgraded HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: test\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"HTTP/1.1 101");
    for _ in 0..20 {
        assert_eq!(ask(server.address, get_request("/metrics")).await, "", "a second connection");
    }
    drop(socket);
    let again = async {
        while !ask(server.address, get_request("/metrics")).await.starts_with("HTTP/1.1 200") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("a closed connection keeps its place");
}

#[tokio::test]
async fn a_request_without_an_answer_gets_504_and_a_call_its_own_deadline() {
    let server = server(|limits| {
        limits.request_timeout = Duration::from_millis(200);
        limits.body_timeout = Duration::from_millis(200);
    })
    .await;
    check_status(&ask(server.address, get_request("/held")).await, 504);
    // The handler does not read the body.
    check_status(&ask(server.address, "POST /held HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc").await, 504);
    let call = |deadline: &str| {
        format!(
            "POST /held HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/grpc\r\n{deadline}content-length: 0\r\n\r\n"
        )
    };
    for deadline in ["", "grpc-timeout: 100m\r\n", "grpc-timeout: nonsense\r\n"] {
        let answer = ask(server.address, call(deadline)).await;
        assert!(answer.contains("grpc-status: 4"), "{deadline}: {answer}");
    }
    // A longer deadline of its own than the listener's.
    while timeout(Duration::ZERO, server.arrived.notified()).await.is_ok() {}
    let answer = tokio::spawn(ask(server.address, call("grpc-timeout: 10S\r\n")));
    server.arrived.notified().await;
    // One that came later, and has none.
    check_status(&ask(server.address, get_request("/held")).await, 504);
    assert!(!answer.is_finished());
    server.release.notify_waiters();
    assert!(answer.await.unwrap().contains("released"));
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let server = server(|limits| {
        limits.connections_per_ip_max = 2.try_into().unwrap();
        limits.connections_max = 3.try_into().unwrap();
    })
    .await;
    let keep = async |from: [u8; 4]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut stream = socket.connect(server.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().ok()?;
        Some(stream)
    };
    let first = keep([127, 0, 0, 1]).await;
    let second = keep([127, 0, 0, 1]).await;
    assert!(first.is_some() && second.is_some());
    assert!(keep([127, 0, 0, 1]).await.is_none(), "a third of the same address");
    let other = keep([127, 0, 0, 2]).await;
    assert!(other.is_some());
    assert!(keep([127, 0, 0, 3]).await.is_none(), "a fourth of all");
    drop(first);
    // The place is free again as soon as the server has seen the close.
    let again = async {
        while keep([127, 0, 0, 3]).await.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("a closed connection keeps its place");
    let refused = crate::metrics::render();
    assert!(refused.contains("millrace_listen_rejected_total{listener=\"test\",reason=\"connections_per_ip\"}"), "{refused}");
}

#[tokio::test]
async fn too_many_requests_at_a_time_get_503_but_calls_of_the_control_port_pass() {
    for (name, control) in [("control", 200), ("test", 503)] {
        let server = server_named(name, |limits| limits.requests_max = 1.try_into().unwrap()).await;
        let held = tokio::spawn(ask(server.address, get_request("/held")));
        server.arrived.notified().await;
        let answer = ask(server.address, get_request("/events")).await;
        check_status(&answer, 503);
        assert!(answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("millrace-refused: requests"), "{answer}");
        check_status(&ask(server.address, get_request("/metrics")).await, control);
        server.release.notify_waiters();
        check_status(&held.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn an_event_stream_outlives_the_request_timeout_and_ends_at_the_drain() {
    let server = server(|limits| limits.request_timeout = Duration::from_millis(100)).await;
    let mut stream = connect(server.address).await;
    stream.write_all(get_request("/events").as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("second") {
        let mut piece = [0; 1024];
        let count = timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(count > 0, "ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    server.ending.drain.cancel();
    assert!(rest(stream).await.ends_with("0\r\n\r\n"), "the stream was torn, not ended");
}

#[tokio::test]
async fn a_grpc_stream_outlives_the_request_timeout_and_ends_with_the_connections_age() {
    let server = server(|limits| {
        limits.request_timeout = Duration::from_millis(100);
        limits.connection_age_max = Duration::from_millis(400);
        limits.connection_age_grace = Duration::from_millis(400);
    })
    .await;
    let mut client = health_client(server.address).await;
    let started = Instant::now();
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    assert!(timeout(PATIENCE, watch.message()).await.unwrap().is_err());
    assert!(started.elapsed() >= Duration::from_millis(700), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_health_watch_is_ended_properly_when_the_control_port_stops() {
    let server = server(|_| {}).await;
    let mut client = health_client(server.address).await;
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    server.ending.drain.cancel();
    // Control calls are still answered.
    client.check(HealthCheckRequest::default()).await.unwrap();
    server.ending.stop.cancel();
    let end = timeout(PATIENCE, watch.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    timeout(PATIENCE, server.task).await.expect("the listener does not end").unwrap();
}

#[tokio::test]
async fn a_drain_answers_what_is_in_flight_and_refuses_what_comes() {
    let server = server(|_| {}).await;
    let held = tokio::spawn(ask(server.address, get_request("/held")));
    let control = tokio::spawn(ask(server.address, get_request("/millrace.control.v1.Control/held")));
    server.arrived.notified().await;
    server.arrived.notified().await;
    server.ending.drain.cancel();
    let refused = ask(server.address, get_request("/held")).await;
    check_status(&refused, 503);
    assert!(refused.contains("millrace-refused: draining"), "{refused}");
    server.ending.stop.cancel();
    server.ending.in_flight.close();
    assert!(timeout(Duration::from_millis(100), server.ending.in_flight.wait()).await.is_err(), "a request is in flight");
    server.release.notify_waiters();
    check_status(&held.await.unwrap(), 200);
    check_status(&control.await.unwrap(), 200);
    timeout(PATIENCE, server.ending.in_flight.wait()).await.unwrap();
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_cut_ends_even_a_request_that_hangs() {
    let server = server(|_| {}).await;
    let held = tokio::spawn(ask(server.address, get_request("/held")));
    server.arrived.notified().await;
    server.ending.stop.cancel();
    server.ending.cut.cancel();
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    assert_eq!(held.await.unwrap(), "");
}

#[tokio::test]
async fn an_old_connection_is_closed_after_its_request() {
    let server = server(|limits| limits.connection_age_max = Duration::from_millis(200)).await;
    let mut stream = connect(server.address).await;
    stream.write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    server.arrived.notified().await;
    until_old(server.address).await;
    server.release.notify_waiters();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("released"), "{answer}");
}

#[tokio::test]
async fn a_stop_closes_a_connection_that_is_old_and_idle() {
    let server = server(|limits| {
        limits.connection_age_max = Duration::from_millis(100);
        limits.connection_age_grace = PATIENCE * 2;
        limits.header_timeout = PATIENCE * 2;
    })
    .await;
    let mut stream = connect(server.address).await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"page") {
        assert!(timeout(PATIENCE, stream.read_buf(&mut answer)).await.unwrap().unwrap() > 0, "closed without a word");
    }
    until_old(server.address).await;
    server.ending.stop.cancel();
    assert_eq!(rest(stream).await, "");
    timeout(PATIENCE, server.task).await.expect("the listener does not end").unwrap();
}

/// A request that comes as the connection gets old would be lost, if idle connections were just closed.
#[tokio::test]
async fn an_old_connection_answers_once_more_and_says_that_it_was_the_last_time() {
    let server = server(|limits| limits.connection_age_max = Duration::from_millis(200)).await;
    let stream = until_old(server.address).await;
    assert_eq!(rest(stream).await, "");
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_an_error_with_its_remedy() {
    let limits = LimitsConfig::default();
    let first = Listener::bind("control", ListenAddr::new((Ipv4Addr::LOCALHOST, 0)), &TlsConfig::default(), &limits).await.unwrap();
    let taken = first.address;
    let error = Listener::bind("control", ListenAddr::new(taken), &TlsConfig::default(), &limits).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {taken} (control): address in use; set [control] listen or MILLRACE_CONTROL__LISTEN")
    );
    let open = ListenAddr::new((Ipv4Addr::UNSPECIFIED, 0));
    let error = Listener::bind("http", open, &TlsConfig::default(), &limits).await.err().unwrap().to_string();
    assert!(error.contains("without TLS on 0.0.0.0:0 (http)") && error.contains("allow_plaintext = true"), "{error}");
    let none = TlsConfig::default();
    let (faults, code) = super::check(&[("control", ListenAddr::new(taken), &none), ("http", open, &none)], &limits).unwrap_err();
    assert!(code == 78 && faults[0].contains("MILLRACE_CONTROL__LISTEN") && faults[1] == error, "{faults:?}");
    assert!(Listener::bind("http", open, &none, &LimitsConfig { allow_plaintext: true, ..limits }).await.is_ok());
}

#[tokio::test]
async fn http2_headers_are_bounded() {
    let server = server(|limits| limits.http2_header_list_bytes_max = 1024.try_into().unwrap()).await;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let ask = async |value: String| {
        let request =
            http::Request::get(format!("http://{}/metrics", server.address)).header("x-large", value).body(Body::empty()).unwrap();
        client.request(request).await.map(|response| response.status().as_u16())
    };
    assert_eq!(ask("small".into()).await.unwrap(), 200);
    assert_ne!(ask("y".repeat(4096)).await.unwrap_or(431), 200);
}
