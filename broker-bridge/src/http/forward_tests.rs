//! What the answer of another replica means, and when its sessions are taken over.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::body::to_bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};
use tower::ServiceExt as _;

use super::*;
use crate::{
    auth::tests::{Kept, key_of},
    http::{router, tests::app},
    session::{Shared, directory_with},
    testing::{self, FakeKafka, MemoryOffsets},
};

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nmillrace-refused: requests\r\ncontent-length: 0\r\n\r\n";
const LATE: &str = "HTTP/1.1 504 Gateway Timeout\r\nmillrace-refused: request_timeout\r\ncontent-length: 0\r\n\r\n";
const DRAINING: &str = "HTTP/1.1 503 Service Unavailable\r\nmillrace-refused: draining\r\ncontent-length: 0\r\n\r\n";
const STRANGER: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nmillrace-forwarded: http://a:1\r\ncontent-length: 2\r\n\r\n[]";
const NOT_THERE: &str = "HTTP/1.1 404 Not Found\r\nmillrace-forwarded: http://a:1\r\ncontent-length: 0\r\n\r\n";
/// The connection ends where the answer should be.
const NOTHING: &str = "";

/// A replica that gives these answers, the last one again and again; its address, and how many requests have come.
async fn owner(answers: &'static [&'static str]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                // Who only looks whether somebody is there asks nothing.
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = answers[count.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
                    if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

/// A listener that shows this certificate and asks its clients for the same one; its address.
async fn secured(certificate: &Path, key: &Path) -> String {
    let provider = Arc::new(ring::default_provider());
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let server = server.with_client_cert_verifier(verifier).with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                drop(stream.write_all(ANSWER.replace("content-length", "connection: close\r\ncontent-length").as_bytes()).await);
                drop(stream.shutdown().await);
            }
        }
    });
    address
}

/// One replica, and an instance `i` of group `g` that `owner` has.
struct World {
    app: App,
    key: String,
}

impl World {
    async fn new(owner: &str) -> Self {
        let (kafka, store, log) = (FakeKafka::with_topic("t", 1), MemoryOffsets::default(), Shared::default());
        let kept = Kept::with("[principals.root]\nallow = [\"all\"]", &["root"], |config| {
            let secret = config.policy_file.with_file_name("secret");
            std::fs::write(&secret, "s".repeat(32)).unwrap();
            config.forward_secret_file = secret;
        });
        let config = BridgeConfig::default();
        let replica =
            |address: &str| testing::sessions_in(Some(directory_with(&log, address, "redis")), &kafka, &store, config.consume.clone());
        let fields = BTreeMap::from([("auto.offset.reset".to_owned(), "earliest".into())]);
        let root = auth::tests::known(&kept.auth, "root").await;
        let created = async { replica(owner).create_shared("g", Some("i".to_owned()), testing::settings(), fields).await.unwrap() };
        auth::tests::as_caller(root, created).await;
        let mut app = app(&kafka, &store, config.clone(), Some(kept.auth.clone()));
        app.sessions = replica("http://me:1");
        Self { app, key: key_of("root") }
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(format!("/consumers/g/instances/i{path}"));
        let request = request.header("x-api-key", &self.key).header("accept", "application/vnd.kafka.binary.v2+json");
        let answer = router(self.app.clone()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        (answer.status().as_u16(), String::from_utf8(to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap())
    }

    /// Whether the instance was taken over.
    fn has_it(&self) -> bool {
        self.app.sessions.get("g", "i").is_ok()
    }
}

#[tokio::test]
async fn an_owner_that_lives_keeps_its_sessions_whatever_it_answers() {
    for (answers, status, text, requests) in [
        (&[ANSWER][..], 200, "[]", 1),
        (&[BUSY], 503, "503 Service Unavailable (requests)", 1),
        (&[LATE], 503, "504 Gateway Timeout (request_timeout)", 1),
        // Its connection was closed as the request came.
        (&[NOTHING, ANSWER], 200, "[]", 2),
        (&[NOTHING, NOTHING], 503, "it takes connections, and breaks them off", 2),
        (&[NOTHING, BUSY], 503, "503 Service Unavailable (requests)", 2),
    ] {
        let (address, asked) = owner(answers).await;
        let world = World::new(&address).await;
        let (found, said) = world.ask("GET", "/subscription").await;
        assert!(found == status && said.contains(text), "{answers:?}: {found} {said}");
        assert_eq!((world.has_it(), asked.load(Ordering::Relaxed)), (false, requests), "{answers:?}");
    }
}

#[tokio::test]
async fn an_owner_that_stops_or_is_gone_is_replaced() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [owner(&[DRAINING]).await.0, owner(&[NOTHING, DRAINING]).await.0, owner(&[STRANGER]).await.0, format!("http://{nobody}")]
    {
        let world = World::new(&address).await;
        assert_eq!(world.ask("GET", "/subscription").await.0, 200, "{address}");
        assert!(world.has_it(), "{address}");
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_any_more_leaves_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("bridge.pem"), directory.path().join("bridge.key"));
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let owner = secured(&cert, &key).await;
    let authority = directory.path().join("ca.pem");
    std::fs::copy(&cert, &authority).unwrap();
    let mut config = BridgeConfig::default();
    config.consume.forward_ca = authority;
    config.http.tls.cert.clone_from(&cert);
    config.http.tls.key = key;
    let forward = Forward::new(&config).unwrap();
    let (parts, ()) = Request::get("/consumers/g/instances/i/subscription").body(()).unwrap().into_parts();
    let ask = async || forward.send(&owner, "http://me:1", None, &parts, Bytes::new()).await.map(|answer| answer.status()).map_err(|_| ());
    assert_eq!(ask().await, Ok(StatusCode::OK));
    std::fs::write(&cert, "nothing").unwrap();
    forward.connections.lock().looked -= LOOK;
    assert_eq!(ask().await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn what_an_owner_deleted_before_it_broke_off_is_deleted() {
    let (address, _) = owner(&[NOTHING, NOT_THERE]).await;
    assert_eq!(World::new(&address).await.ask("DELETE", "").await.0, 204);
    let (address, _) = owner(&[NOT_THERE]).await;
    assert_eq!(World::new(&address).await.ask("DELETE", "").await.0, 404);
}

#[tokio::test]
async fn a_body_that_is_not_the_one_that_was_signed_is_refused_also_where_sessions_are_not_shared() {
    for is_shared in [true, false] {
        let mut world = World::new("http://me:1").await;
        if !is_shared {
            world.app.sessions = testing::sessions(&FakeKafka::with_topic("t", 1), &MemoryOffsets::default(), Default::default());
        }
        let auth = world.app.auth.clone().unwrap();
        let root = auth::tests::known(&auth, "root").await;
        let uri = Uri::from_static("/consumers/g/instances/i/offsets");
        let mut signed = HeaderMap::new();
        assert!(auth::tests::as_caller(root, async { auth.hand_on(&Method::POST, &uri, b"{}", &mut signed) }).await);
        let ask = async |body: &'static str| {
            let mut request = Request::post(uri.clone()).body(Body::from(body)).unwrap();
            *request.headers_mut() = signed.clone();
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.kafka.v2+json"));
            router(world.app.clone()).oneshot(request).await.unwrap().status().as_u16()
        };
        assert_ne!(ask("{}").await, 401, "shared: {is_shared}");
        assert_eq!(ask("{\"offsets\":[]}").await, 401, "shared: {is_shared}");
        assert_eq!(ask("").await, 401, "shared: {is_shared}");
    }
}
