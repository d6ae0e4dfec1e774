//! Callers, files and tasks; what each route and method asks is tested in `http::access_tests`.

use std::{fs, path::PathBuf};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request},
    routing::post,
};
use tempfile::TempDir;
use tower::ServiceExt as _;

use super::*;
use crate::config::Quota;

/// Authentication by API keys and passwords, in files that a test may change.
pub(crate) struct Kept {
    pub(crate) auth: Auth,
    directory: TempDir,
}

/// The API key of a principal.
pub(crate) fn key_of(principal: &str) -> String {
    format!("key-of-{principal}")
}

fn key_line(principal: &str, key: &str) -> String {
    format!("{principal}:{}\n", hex(digest::digest(&digest::SHA512, key.as_bytes()).as_ref()))
}

impl Kept {
    pub(crate) fn new(policy: &str, principals: &[&str]) -> Self {
        Self::with(policy, principals, |_| {})
    }

    pub(crate) fn with(policy: &str, principals: &[&str], change: impl FnOnce(&mut config::Auth)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("policy.toml"), policy).unwrap();
        fs::write(at("keys"), principals.iter().map(|name| key_line(name, &key_of(name))).collect::<String>()).unwrap();
        let mut config = config::Auth { policy_file: at("policy.toml"), api_keys_file: at("keys"), ..config::Auth::default() };
        change(&mut config);
        let auth = Auth::open(&config, false, &kafka()).unwrap().unwrap();
        Self { auth, directory }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
        self.auth.reload();
    }

    async fn caller(&self, principal: &str) -> Caller {
        known(&self.auth, principal).await
    }
}

fn kafka() -> KafkaConfig {
    KafkaConfig::new("nowhere:1")
}

/// Known by its key.
pub(crate) async fn known(auth: &Auth, principal: &str) -> Caller {
    auth.authenticate(&headers(&[("x-api-key", &key_of(principal))]), None).await.unwrap()
}

/// As a request of this caller's.
pub(crate) async fn as_caller<F: Future>(caller: Caller, work: F) -> F::Output {
    CALLER.scope(caller, work).await
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| ((*name).try_into().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

fn peer(certificate: Option<service_kit::listen::ClientCertificate>) -> Peer {
    Peer { address: ([127, 0, 0, 1], 9).into(), certificate: certificate.map(Arc::new) }
}

#[tokio::test]
async fn each_credential_names_its_principal_and_a_header_wins_over_the_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    fs::write(&users, format!("basil:{}\n", bcrypt::hash("pass:word", 4).unwrap())).unwrap();
    let kept = Kept::with("", &["keye"], |config| config.users_file = users);
    let names = service_kit::listen::ClientCertificate { common_name: Some("certa".into()), ..Default::default() };
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let (right, wrong) = (basic("basil:pass:word"), basic("basil:pass"));
    let lower = right.replace("Basic", "bASIC");
    for (given, certificate, expected) in [
        (vec![("authorization", right.as_str())], None, Ok("basil")),
        (vec![("authorization", &right)], Some(names.clone()), Ok("basil")),
        (
            vec![("authorization", &wrong)],
            Some(names.clone()),
            Err("name or password is wrong; send Basic or an X-API-Key or a client certificate"),
        ),
        (vec![("authorization", &lower)], None, Ok("basil")),
        (vec![("authorization", "Basic %%%")], None, Err("not base64")),
        (vec![("authorization", "Basic")], None, Err("Authorization has no scheme; send")),
        (vec![("authorization", "c2VjcmV0LXRva2Vu")], Some(names.clone()), Err("Authorization has no scheme; send")),
        (vec![("authorization", "c2VjcmV0LXRva2Vu x")], None, Err("Authorization's scheme is not taken here; send")),
        (vec![("authorization", "secret7 x")], None, Err("Authorization's scheme is not taken here; send")),
        (vec![("authorization", ""), ("x-api-key", "key-of-keye")], None, Err("Authorization has no scheme; send")),
        (vec![("authorization", &right), ("authorization", &wrong)], None, Err("Authorization is there more than once; send")),
        (vec![("authorization", &right), ("authorization", &right)], None, Err("Authorization is there more than once; send")),
        (vec![("x-api-key", "key-of-keye"), ("x-api-key", "key-of-keye")], None, Err("X-API-Key is there more than once; send")),
        (vec![("authorization", "Bearer a.b.c")], Some(names.clone()), Err("\"Bearer\" is not taken here")),
        (vec![("x-api-key", "key-of-keye")], None, Ok("keye")),
        (vec![("x-api-key", "key-of-keye")], Some(names.clone()), Ok("keye")),
        (vec![("x-api-key", "key-of-keyf")], Some(names.clone()), Err("the API key is not known")),
        (vec![], Some(names), Ok("certa")),
        (vec![], Some(Default::default()), Err("has no common name (auth.certificate_name)")),
        (
            vec![],
            Some(service_kit::listen::ClientCertificate { common_name: Some("*".into()), ..Default::default() }),
            Err("cannot be a principal's name"),
        ),
        (
            vec![],
            Some(service_kit::listen::ClientCertificate { common_name: Some("a\nb".into()), ..Default::default() }),
            Err("cannot be a principal's name"),
        ),
        (vec![], None, Err("no credentials")),
    ] {
        let found = kept.auth.authenticate(&headers(&given), Some(&peer(certificate))).await;
        match (found, expected) {
            (Ok(caller), Ok(principal)) => assert_eq!(&*caller.0.principal, principal),
            (Err(error), Err(message)) => {
                assert!(error.code == Code::Unauthenticated && error.message.contains(message), "{given:?}: {error}");
            }
            (found, expected) => panic!("{given:?}: {:?}, not {expected:?}", found.map(|caller| caller.0.principal.to_string())),
        }
    }
}

#[tokio::test]
async fn basic_is_base64_of_a_name_a_colon_and_a_password_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    fs::write(&users, format!("basil:{}\n", bcrypt::hash("pa>>?ss", 4).unwrap())).unwrap();
    let kept = Kept::with("", &["x"], |config| config.users_file = users);
    let right = STANDARD.encode("basil:pa>>?ss");
    assert!(right.contains('/') || right.contains('+'), "{right} is the same in both alphabets");
    let (padded, short) = (STANDARD.encode("basil:pass"), STANDARD.encode("basil:"));
    for (given, expected) in [
        (format!("Basic {right}"), None),
        // Blanks around it are nobody's.
        (format!("Basic   {right} "), None),
        (format!("Basic {}", right.replace('+', "-").replace('/', "_")), Some("not base64")),
        (format!("Basic {}", padded.trim_end_matches('=')), Some("not base64")),
        (format!("Basic {padded}AAAA"), Some("not base64")),
        (format!("Basic {} {}", &right[..4], &right[4..]), Some("not base64")),
        (format!("Basic {right},"), Some("not base64")),
        ("Basic ".to_owned(), Some("not base64")),
        (format!("Basic {}", STANDARD.encode("basil")), Some("not base64 of name:password")),
        (format!("Basic {}", STANDARD.encode([b'a', b':', 0xff, 0xfe])), Some("not base64 of name:password")),
        (format!("Basic {}", STANDARD.encode(":pa>>?ss")), Some("name or password is wrong")),
        (format!("Basic {}", STANDARD.encode(":")), Some("name or password is wrong")),
        (format!("Basic {short}"), Some("name or password is wrong")),
        (format!("Basic {}", STANDARD.encode("basil:pa>>?ss\0")), Some("name or password is wrong")),
        (format!("Basic {}", STANDARD.encode("BASIL:pa>>?ss")), Some("name or password is wrong")),
    ] {
        let found =
            kept.auth.authenticate(&headers(&[("authorization", given.as_str())]), None).await.map(|caller| caller.0.principal.to_string());
        match expected {
            None => assert_eq!(found.as_deref(), Ok("basil"), "{given}"),
            Some(reason) => {
                let error = found.unwrap_err();
                assert!(error.code == Code::Unauthenticated && error.message.contains(reason), "{given}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_set_for_all_contexts_needs_a_right_to_all_subjects() {
    let policy = "[principals.contexts]\nallow = [\"all subject :.*\"]\n[principals.named]\nallow = [\"all subject :.__GLOBAL:*\"]\n[principals.all]\nallow = [\"all subject *\"]";
    let kept = Kept::new(policy, &["contexts", "named", "all"]);
    let route = guarded(Some(&kept.auth), on_subject(Verb::AlterConfigs), post(async || "inside"));
    let router: Router = Router::new().route("/config/{subject}", route);
    for (principal, subject, expected) in [
        ("contexts", ":.x:", 200),
        ("contexts", ":.x:a", 200),
        ("contexts", ":.__GLOBAL:", 403),
        ("contexts", ":.__GLOBAL:a", 403),
        ("contexts", ":.:", 403),
        ("named", ":.__GLOBAL:", 403),
        ("all", ":.__GLOBAL:", 200),
        ("all", ":.:", 200),
    ] {
        let request = Request::post(format!("/config/{subject}")).header("x-api-key", key_of(principal)).body(Body::empty()).unwrap();
        assert_eq!(router.clone().oneshot(request).await.unwrap().status().as_u16(), expected, "{principal} {subject}");
    }
}

#[tokio::test]
async fn a_certificate_may_name_its_principal_by_dns_name_or_uri() {
    let names = service_kit::listen::ClientCertificate {
        common_name: Some("cn".into()),
        dns_names: vec!["a.example".into(), "b.example".into()],
        uris: vec!["spiffe://example/a".into()],
    };
    for (which, expected) in
        [(CertificateName::CommonName, "cn"), (CertificateName::Dns, "a.example"), (CertificateName::Uri, "spiffe://example/a")]
    {
        let kept = Kept::with("", &["x"], |config| config.certificate_name = which);
        let caller = kept.auth.authenticate(&HeaderMap::new(), Some(&peer(Some(names.clone())))).await.unwrap();
        assert_eq!(&*caller.0.principal, expected);
    }
}

const POLICY: &str = r#"
    [principals.alice]
    allow = ["write topic orders-*", "read topic orders-*", "read group g"]
    [principals.bob]
    allow = ["all"]
"#;

fn record(topic: &str) -> OutRecord {
    OutRecord { topic: topic.into(), partition: None, key: None, value: None, headers: Vec::new(), timestamp_ms: None }
}

#[tokio::test]
async fn what_only_a_body_names_is_asked_where_it_is_used() {
    let kept = Kept::new(POLICY, &["alice", "bob"]);
    // The bridge's own work is not asked.
    assert!(check_records(&[record("any")]).is_ok() && sees(Verb::Read, Kind::Topic, "any") && check_owner(None, String::new).is_ok());
    let alice = kept.caller("alice").await;
    CALLER
        .scope(alice, async {
            assert!(check_records(&[record("orders-1"), record("orders-2")]).is_ok());
            let denied = check_records(&[record("orders-1"), record("payments")]).unwrap_err();
            assert_eq!(
                (denied.code, denied.message.as_str()),
                (Code::Forbidden, "\"alice\" may not write topic \"payments\"; the policy does not allow it")
            );
            for (group, topics, allowed) in [
                ("g", vec!["orders-1"], true),
                ("g", vec!["^orders-.*"], true),
                ("g", vec!["^orders-1|x"], false),
                ("g", vec!["^order"], false),
                ("g", vec!["orders-1", "payments"], false),
                ("h", vec!["orders-1"], false),
            ] {
                assert_eq!(check_subscription(group, topics.iter().copied()).is_ok(), allowed, "{group} {topics:?}");
            }
            assert!(sees(Verb::Describe, Kind::Topic, "orders-1") && !sees(Verb::Describe, Kind::Topic, "payments"));
            let mine = owner();
            assert!(check_owner(mine.as_deref(), String::new).is_ok());
            let foreign = check_owner(Some("bob"), || "instance \"i\"".to_owned()).unwrap_err();
            assert!(foreign.code == Code::Forbidden && foreign.message.contains("instance \"i\": it belongs to another"), "{foreign}");
            assert!(own_id("k") != "k" && own_id("").is_empty());
            // A task that goes on takes the caller along, if it is told to.
            let carrier = carrier();
            let (with, without) =
                tokio::join!(tokio::spawn(carrier.run(async { check_records(&[record("payments")]) })), tokio::spawn(async { owner() }));
            assert!(with.unwrap().is_err() && without.unwrap().is_none());
        })
        .await;
    let bob = kept.caller("bob").await;
    assert!(CALLER.scope(bob, async { check_subscription("h", ["^.*"]) }).await.is_ok());
    assert_eq!(own_id("k"), "k");
}

#[tokio::test]
async fn files_are_read_again_and_a_wrong_one_changes_nothing() {
    let kept = Kept::new(POLICY, &["alice"]);
    let alice = kept.caller("alice").await;
    let may = |name: &str| CALLER.sync_scope(alice.clone(), || check(Verb::Read, Kind::Topic, name).is_ok());
    assert!(may("orders-1") && !may("payments"));
    kept.write("policy.toml", "[principals.alice]\nallow = [\"read topic payments\"]");
    assert!(!may("orders-1") && may("payments"), "for a caller that was there before, too");
    kept.write("policy.toml", "[principals.alice]\nallow = [\"reed topic x\"]");
    assert!(may("payments"));
    kept.write("keys", &key_line("alice", "new"));
    let by = async |key: &str| kept.auth.authenticate(&headers(&[("x-api-key", key)]), None).await.is_ok();
    assert!(by("new").await && !by(&key_of("alice")).await);
    kept.write("keys", "nonsense");
    assert!(by("new").await);
}

#[tokio::test]
async fn a_token_that_ends_ends_what_it_began() {
    let kept = Kept::new(POLICY, &["alice"]);
    let alice = kept.caller("alice").await;
    let at = |until: SystemTime| {
        Caller(Arc::new(Called {
            auth: kept.auth.clone(),
            principal: Arc::clone(&alice.0.principal),
            roles: Vec::new(),
            by: Credential::Token,
            address: None,
            until: Some(until),
            logs_in: false,
            connection: OnceLock::new(),
            body: None,
            asked: Mutex::new(None),
        }))
    };
    let now = SystemTime::now();
    let check = |caller: Caller| CALLER.sync_scope(caller, || check_subscription("g", ["orders-1"]));
    assert!(check(at(now + Duration::from_secs(60))).is_ok());
    assert_eq!(check(at(now - Duration::from_secs(1))).unwrap_err().code, Code::Unauthenticated);
}

#[test]
fn a_half_configuration_is_refused_with_its_key() {
    let check = |config: config::Auth, key: &str, message: &str| {
        let error = Auth::open(&config, false, &kafka()).err().unwrap();
        assert!(error.key == key && error.message.contains(message), "{error}");
    };
    assert!(Auth::open(&config::Auth::default(), false, &kafka()).unwrap().is_none());
    let path = PathBuf::from("/nowhere/file");
    check(config::Auth { users_file: path.clone(), ..Default::default() }, "auth.policy_file", "auth.users_file is set");
    check(config::Auth { policy_file: path.clone(), ..Default::default() }, "auth.policy_file", "nothing by which callers could be known");
    let both = config::Auth { policy_file: path.clone(), api_keys_file: path.clone(), ..Default::default() };
    check(both, "auth.policy_file", "cannot read /nowhere/file");
    let kept = Kept::new("", &["a"]);
    let policy_file = kept.directory.path().join("policy.toml");
    check(
        config::Auth { policy_file: policy_file.clone(), users_file: path.clone(), ..Default::default() },
        "auth.users_file",
        "cannot read",
    );
    check(
        config::Auth { policy_file: policy_file.clone(), api_keys_file: path, ..Default::default() },
        "auth.api_keys_file",
        "cannot read",
    );
    let jwt = config::Jwt { jwks: "/nowhere/jwks".into(), ..Default::default() };
    check(config::Auth { policy_file: policy_file.clone(), jwt, ..Default::default() }, "auth.jwt.audience", "is missing");
    assert!(Auth::open(&config::Auth { policy_file, ..Default::default() }, true, &kafka()).unwrap().is_some(), "by certificates alone");
}

#[tokio::test]
async fn a_small_body_is_heard_out_before_it_is_refused_and_a_slow_or_large_one_is_not_waited_for() {
    let kept = Kept::new("", &["x"]);
    let router: Router = Router::new().route("/", guarded(Some(&kept.auth), KNOWN, post(async || "inside")));
    let refused = async |body: Body| router.clone().oneshot(Request::post("/").body(body).unwrap()).await.unwrap().status().as_u16();
    let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = |pieces: usize| {
        let read = Arc::clone(&read);
        let piece = move |_| {
            read.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::convert::Infallible>(vec![0; 16 * 1024])
        };
        futures::StreamExt::map(futures::stream::iter(0..pieces), piece)
    };
    assert_eq!(refused(Body::from_stream(counted(3))).await, 401);
    assert_eq!(read.swap(0, std::sync::atomic::Ordering::Relaxed), 3);
    assert_eq!(refused(Body::from_stream(counted(1000))).await, 401);
    assert!(read.load(std::sync::atomic::Ordering::Relaxed) < 10);
    let never = futures::StreamExt::chain(counted(1), futures::stream::pending());
    assert_eq!(refused(Body::from_stream(never)).await, 401);
}

#[tokio::test]
async fn who_has_used_up_the_quota_is_told_when_to_come_again() {
    let policy = "[principals.slow]\nallow = [\"all\"]\nrequests_per_second = 0.5\n[principals.big]\nallow = [\"all\"]\nbytes_per_second = 10.0\n[principals.free]\nallow = [\"all\"]";
    let kept = Kept::with(policy, &["slow", "big", "free"], |config| {
        config.quota = Quota { burst: Duration::from_secs(1), ..Quota::default() };
    });
    let route = guarded(Some(&kept.auth), KNOWN, post(async |body: String| body));
    let router: Router = Router::new().route("/echo", route);
    let call = async |principal: &str, body: &str| {
        let request = Request::post("/echo").header("x-api-key", key_of(principal)).body(Body::from(body.to_owned())).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse::<u64>().unwrap());
        let text = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let tells = String::from_utf8_lossy(&text)
            .rsplit_once("try again in ")
            .and_then(|(_, wait)| wait.split_once(" s").map(|(wait, _)| wait.parse::<f64>().is_ok()));
        assert_eq!(tells, (status == 429).then_some(true), "{text:?}");
        (status, after)
    };
    assert_eq!(call("slow", "").await, (200, None));
    assert_eq!(call("slow", "").await, (429, Some(2)));
    // 100 bytes in and 100 out, of 10 a second: 19 s are owed.
    assert_eq!(call("big", &"x".repeat(100)).await, (200, None));
    let (status, after) = call("big", "x").await;
    assert!(status == 429 && after.is_some_and(|after| (18..=20).contains(&after)), "{after:?}");
    for _ in 0..50 {
        assert_eq!(call("free", "x").await, (200, None));
    }
}
