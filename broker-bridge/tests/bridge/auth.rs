//! Authentication and the policy on the real binary: TLS, every credential, HTTP and gRPC, files that rotate, quotas, the audit.

use std::{fs, path::Path, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::{
    control::v1::{ListTopicsRequest, StatusRequest, bridge_client::BridgeClient, control_client::ControlClient},
    data::v1::{ConsumeRequest, ProduceRequest, Record, Subscribe, bridge_data_client::BridgeDataClient, consume_request::Request},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};
use tonic::{
    Code,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig},
};

use crate::{
    eventually,
    process::{self, Bridge, servers, unique},
};

const PATIENCE: Duration = Duration::from_secs(30);
const JSON: &str = "content-type: application/vnd.kafka.json.v2+json";
const V2: &str = "content-type: application/vnd.kafka.v2+json";

/// Certificates, tokens and files of one test.
pub(crate) struct Site {
    directory: TempDir,
    signer: EcdsaKeyPair,
}

fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let own = params.clone().self_signed(&key).unwrap().pem();
    (own, Issuer::new(params, key))
}

/// A certificate and its key, in PEM.
fn certificate(issuer: &Issuer<'static, KeyPair>, common_name: &str, names: &[&str]) -> (String, String) {
    certificate_until(issuer, common_name, names, None)
}

fn certificate_until(issuer: &Issuer<'static, KeyPair>, common_name: &str, names: &[&str], until: Option<i32>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(until) = until {
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
    }
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

impl Site {
    pub(crate) fn new(orders: &str, group: &str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        let site = Self { directory: tempfile::tempdir().unwrap(), signer };
        let (ca, issuer) = authority("one authority");
        let (server, server_key) = certificate(&issuer, "bridge", &["127.0.0.1", "localhost"]);
        site.write("ca.pem", &ca);
        site.write("server.pem", &server);
        site.write("server.key", &server_key);
        // Somebody, somebody who may do nothing, one of yesterday, and one of another authority.
        for (name, (cert, key)) in [
            ("carol", certificate(&issuer, "carol", &[])),
            ("nothing", certificate(&issuer, "nothing", &[])),
            ("expired", certificate_until(&issuer, "carol", &[], Some(2020))),
            ("stranger", certificate(&authority("no authority").1, "carol", &[])),
        ] {
            site.write(&format!("{name}.pem"), &cert);
            site.write(&format!("{name}.key"), &key);
        }
        site.write("users", &format!("alice:{}\n", bcrypt::hash("first", 4).unwrap()));
        let key = |name: &str| {
            let hash = digest::digest(&digest::SHA512, format!("key-of-{name}").as_bytes());
            format!("{name}:{}\n", hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        };
        site.write("keys", &["root", "slow"].map(key).concat());
        let point = site.signer.public_key().as_ref();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "k1", "x": text(&point[1..33]), "y": text(&point[33..])});
        site.write("jwks.json", &json!({"keys": [jwk]}).to_string());
        site.write("policy.toml", &Self::policy(orders, group, true));
        site
    }

    fn policy(orders: &str, group: &str, carol_reads: bool) -> String {
        let carol = if carol_reads { format!("\"read topic {orders}\", \"read group {group}\"") } else { String::new() };
        format!(
            "[roles.writer]\nallow = [\"write topic {orders}\"]\n[principals.alice]\nroles = [\"writer\"]\nallow = [\"read group {group}\", \"read topic {orders}\"]\n[principals.carol]\nallow = [{carol}]\n[principals.root]\nallow = [\"all\"]\n[principals.slow]\nallow = [\"describe topic *\"]\nrequests_per_second = 0.01\n"
        )
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Put in its place at once, as a careful operator does it.
    fn write(&self, name: &str, text: &str) {
        let next = self.directory.path().join(format!("{name}.next"));
        fs::write(&next, text).unwrap();
        fs::rename(next, self.directory.path().join(name)).unwrap();
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k1"})), part(claims));
        let signature = self.signer.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("authorization: Bearer {message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    pub(crate) async fn bridge(&self) -> Bridge {
        self.bridge_with(&[]).await
    }

    async fn bridge_with(&self, more: &[(&str, &str)]) -> Bridge {
        let file = |name: &str| self.path(name);
        let mut variables = vec![
            ("MILLRACE_AUTH__POLICY_FILE", file("policy.toml")),
            ("MILLRACE_AUTH__USERS_FILE", file("users")),
            ("MILLRACE_AUTH__API_KEYS_FILE", file("keys")),
            ("MILLRACE_AUTH__JWT__JWKS", file("jwks.json")),
            ("MILLRACE_AUTH__JWT__AUDIENCE", "bridge".to_owned()),
            ("MILLRACE_AUTH__JWT__ROLES_CLAIM", "roles".to_owned()),
            ("MILLRACE_AUTH__AUDIT", "all".to_owned()),
            ("MILLRACE_AUTH__QUOTA__BURST", "1s".to_owned()),
        ];
        let of: Vec<(String, String)> = ["HTTP", "CONTROL"]
            .iter()
            .flat_map(|listener| {
                [
                    (format!("MILLRACE_{listener}__TLS__CERT"), file("server.pem")),
                    (format!("MILLRACE_{listener}__TLS__KEY"), file("server.key")),
                    (format!("MILLRACE_{listener}__TLS__CLIENT_CA"), file("ca.pem")),
                    (format!("MILLRACE_{listener}__TLS__CLIENT_AUTH"), "want".to_owned()),
                ]
            })
            .collect();
        variables.extend(of.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let variables = variables.iter().map(|(name, value)| (*name, value.as_str()));
        let variables: Vec<(&str, &str)> = variables.chain(more.iter().copied()).collect();
        let bridge = Bridge::start_unready_with(&servers(), &variables).await;
        eventually("the bridge is ready", async || self.curl(&bridge, &["-s"], "/ready").await.status == 200).await;
        bridge
    }

    /// `curl` over TLS, with these arguments; carol's certificate only where it is asked for.
    pub(crate) async fn curl(&self, bridge: &Bridge, arguments: &[&str], path: &str) -> Answer {
        let mut command = Command::new("curl");
        command.args(["-sS", "-i", "--max-time", "30", "--cacert", &self.path("ca.pem")]).args(arguments);
        let output = command.arg(format!("https://{}{path}", bridge.http)).stdin(Stdio::null()).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Without an answer, why there is none.
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or(("", &told));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn carol(&self) -> [String; 4] {
        ["--cert".to_owned(), self.path("carol.pem"), "--key".to_owned(), self.path("carol.key")]
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    /// 0: none came.
    pub(crate) status: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    #[track_caller]
    fn refuses(&self, status: u16, code: u64, message: &str) {
        let body = self.is(status);
        assert!(body["error_code"] == code && body["message"].as_str().is_some_and(|told| told.contains(message)), "{message:?}: {body}");
    }
}

const ROOT: [&str; 2] = ["-H", "x-api-key: key-of-root"];
const ALICE: [&str; 2] = ["-u", "alice:first"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_caller_may_do_what_the_policy_says_over_http_and_grpc() {
    let (orders, payments, group) = (unique("orders"), unique("payments"), unique("group"));
    let site = Site::new(&orders, &group);
    let bridge = site.bridge().await;
    let curl = async |who: &[&str], more: &[&str], path: &str| site.curl(&bridge, &[who, more].concat(), path).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let carol = site.carol();
    let carol: Vec<&str> = carol.iter().map(String::as_str).collect();
    let token = site.token(&json!({"sub": "dave", "aud": "bridge", "exp": now + 600, "roles": ["writer"]}));
    let dave = ["-H", token.as_str()];

    // Nobody, and those who are not who they say.
    let nobody = curl(&[], &[], "/topics").await;
    nobody.refuses(401, 40101, "no credentials; send Basic or a Bearer token or an X-API-Key");
    assert!(nobody.head.contains("www-authenticate: basic realm") && nobody.head.contains("www-authenticate: bearer"), "{nobody:?}");
    assert_eq!(curl(&[], &[], "/healthy").await.status, 200);
    curl(&["-u", "alice:second"], &[], "/topics").await.refuses(401, 40101, "name or password is wrong");
    let old = site.token(&json!({"sub": "dave", "aud": "bridge", "exp": now - 600}));
    curl(&["-H", &old], &[], "/topics").await.refuses(401, 40101, "the token has expired");
    let other = site.token(&json!({"sub": "dave", "aud": "else", "exp": now + 600}));
    curl(&["-H", &other], &[], "/topics").await.refuses(401, 40101, "somebody else (aud)");
    curl(&["-H", "x-api-key: guess"], &[], "/topics").await.refuses(401, 40101, "not known");

    // Root creates; the writers write where they may.
    for topic in [&orders, &payments] {
        let body = json!({"topic_name": topic, "partitions_count": 1, "replication_factor": 1}).to_string();
        curl(&ROOT, &["-H", V2, "-d", &body], "/admin/topics").await.is(201);
        curl(&ALICE, &["-H", V2, "-d", &body], "/admin/topics").await.refuses(403, 40301, "\"alice\" may not create any topic");
    }
    let record = ["-H", JSON, "-d", r#"{"records":[{"value":1}]}"#];
    for who in [&ALICE[..], &dave[..], &ROOT[..]] {
        curl(who, &record, &format!("/topics/{orders}")).await.is(200);
    }
    let denied = format!("may not write topic {payments:?}");
    curl(&ALICE, &record, &format!("/topics/{payments}")).await.refuses(403, 40301, &denied);
    curl(&dave, &record, &format!("/topics/{payments}")).await.refuses(403, 40301, &format!("\"dave\" {denied}"));
    curl(&carol, &record, &format!("/topics/{orders}")).await.refuses(403, 40301, "\"carol\" may not write");
    // Named in the body alone: all or nothing.
    let both = json!({"records": [{"topic": orders, "value": 1}, {"topic": payments, "value": 1}]}).to_string();
    curl(&ALICE, &["-H", JSON, "-d", &both], "/records").await.refuses(403, 40301, &denied);
    let begun = curl(&ALICE, &["-X", "POST"], "/transactions").await.is(201);
    let transaction = begun["transaction_id"].as_str().unwrap();
    assert!(begun["base_uri"].as_str().unwrap().starts_with("https://"), "{begun}");
    let place = format!("/transactions/{transaction}");
    curl(&ALICE, &["-H", JSON, "-d", &both], &format!("{place}/records")).await.refuses(403, 40301, &denied);
    curl(&dave, &["-X", "POST"], &format!("{place}/commit")).await.refuses(403, 40301, "belongs to another principal");
    curl(&ALICE, &["-X", "POST"], &format!("{place}/abort")).await.is(204);

    // Lists show what may be seen.
    assert_eq!(curl(&carol, &[], "/topics").await.is(200), json!([orders]));
    assert!(curl(&ROOT, &[], "/topics").await.is(200).as_array().unwrap().contains(&json!(payments)));

    // A consumer reads its topics, and is its owner's.
    let consumers = format!("/consumers/{group}");
    let config = r#"{"name":"c1","format":"json","auto.offset.reset":"earliest"}"#;
    curl(&carol, &["-H", V2, "-d", config], &consumers).await.is(200);
    curl(&carol, &["-H", V2, "-d", config], "/consumers/other").await.refuses(403, 40301, "may not read group \"other\"");
    let instance = format!("{consumers}/instances/c1");
    let subscribe = |topics: Value| topics.to_string();
    let foreign = subscribe(json!({"topics": [payments]}));
    let wide = subscribe(json!({"topic_pattern": ".*"}));
    curl(&carol, &["-H", V2, "-d", &foreign], &format!("{instance}/subscription")).await.refuses(403, 40301, "may not read topic");
    curl(&carol, &["-H", V2, "-d", &wide], &format!("{instance}/subscription")).await.refuses(403, 40301, "may not read topic \"*\"");
    let own = subscribe(json!({"topics": [orders]}));
    curl(&carol, &["-H", V2, "-d", &own], &format!("{instance}/subscription")).await.is(204);
    let accept = ["-H", "accept: application/vnd.kafka.json.v2+json"];
    let records = format!("{instance}/records?timeout=2000");
    eventually("carol reads", async || !curl(&carol, &accept, &records).await.is(200).as_array().unwrap().is_empty()).await;
    curl(&ALICE, &accept, &records).await.refuses(403, 40301, "belongs to another principal");

    grpc(&site, &bridge, &orders, &payments).await;

    // One request in a hundred seconds.
    curl(&["-H", "x-api-key: key-of-slow"], &[], "/topics").await.is(200);
    let refused = curl(&["-H", "x-api-key: key-of-slow"], &[], "/topics").await;
    refused.refuses(429, 429, "\"slow\" has used up its requests a second");
    let wait = refused.head.lines().find_map(|line| line.strip_prefix("retry-after: ")?.trim().parse::<u64>().ok());
    assert!(wait.is_some_and(|wait| (1..=100).contains(&wait)), "{refused:?}");

    let metrics = curl(&ROOT, &[], "/metrics").await.body;
    for line in [
        "millrace_bridge_auth_total{credential=\"password\",outcome=\"accepted\"}",
        "millrace_bridge_auth_total{credential=\"token\",outcome=\"refused\"}",
        "millrace_bridge_auth_denied_total{verb=\"write\"}",
        "millrace_bridge_quota_refused_total{what=\"requests\"}",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    let log = bridge.log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains("audit")).collect();
    for parts in [
        ["principal=alice", "verb=\"write\"", "outcome=\"denied\""],
        ["principal=alice", "verb=\"write\"", "outcome=\"allowed\""],
        ["principal=carol", "verb=\"read\"", "credential=\"certificate\""],
        ["principal=root", "verb=\"create\"", "credential=\"api_key\""],
        ["outcome=\"unauthenticated\"", "credential=\"token\"", "the token has expired"],
    ] {
        assert!(audit.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?} is not in {audit:#?}");
    }
    assert!(!log.contains("key-of-root") && !log.contains("alice:first"), "no secret is logged");

    rotation(&site, &bridge, &orders, &group).await;
    for topic in [&orders, &payments] {
        drop(curl(&ROOT, &["-X", "DELETE"], &format!("/v3/clusters/none/topics/{topic}")).await);
    }
    bridge.stop().await;
}

async fn channel(site: &Site, bridge: &Bridge) -> Channel {
    let ca = Certificate::from_pem(fs::read(site.path("ca.pem")).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
    Channel::from_shared(format!("https://{}", bridge.control)).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
}

fn known<T>(message: T, key: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-api-key", MetadataValue::try_from(key).unwrap());
    request
}

fn alice<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("alice:first"));
    request.metadata_mut().insert("authorization", MetadataValue::try_from(basic).unwrap());
    request
}

async fn grpc(site: &Site, bridge: &Bridge, orders: &str, payments: &str) {
    let channel = channel(site, bridge).await;
    let mut control = BridgeClient::new(channel.clone());
    assert_eq!(control.list_topics(ListTopicsRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(control.list_topics(known(ListTopicsRequest::default(), "guess")).await.unwrap_err().code(), Code::Unauthenticated);
    let seen = control.list_topics(alice(ListTopicsRequest::default())).await.unwrap().into_inner().topics;
    assert_eq!(seen.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(), [orders]);
    let status = ControlClient::new(channel.clone()).status(alice(StatusRequest {})).await.unwrap_err();
    assert!(status.code() == Code::PermissionDenied && status.message().contains("may not describe the cluster"), "{status}");
    assert!(ControlClient::new(channel.clone()).status(known(StatusRequest {}, "key-of-root")).await.is_ok());

    // The topics are in the messages, which come after the call was let in.
    let mut data = BridgeDataClient::new(channel);
    let batch = |topic: &str| ProduceRequest {
        topic: topic.to_owned(),
        records: vec![Record { value: Some(vec![b'1'].into()), ..Default::default() }],
        ..ProduceRequest::default()
    };
    let denied = data.produce(alice(batch(payments))).await.unwrap_err();
    assert!(denied.code() == Code::PermissionDenied && denied.message().contains(payments), "{denied}");
    let stream = tokio_stream::iter([batch(orders), batch(payments)]);
    let mut answers = data.produce_stream(alice(stream)).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().results[0].offset >= 0);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::PermissionDenied);
    let subscribe = Subscribe {
        group: unique("group"),
        topics: vec![orders.to_owned()],
        auto_offset_reset: "earliest".into(),
        credit: 10,
        ..Subscribe::default()
    };
    let wanted = ConsumeRequest { request: Some(Request::Subscribe(subscribe)) };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter([wanted]), tokio_stream::pending());
    let mut batches = data.consume(alice(requests)).await.unwrap().into_inner();
    let denied = batches.message().await.unwrap_err();
    assert!(denied.code() == Code::PermissionDenied && denied.message().contains("may not read group"), "{denied}");

    // The CLI, as the same principals.
    let ca = site.path("ca.pem");
    let words = ["--ca-file", &ca, "topic", "list"];
    let (code, told) = process::millrace_as(bridge, &words, &[("MILLRACE_API_KEY", "key-of-root")]).await;
    assert!(code == 0 && told.contains(payments), "{told}");
    let (code, told) = process::millrace_as(bridge, &words, &[("MILLRACE_USER", "alice:first")]).await;
    assert!(code == 0 && told.contains(orders) && !told.contains(payments), "{told}");
    let (code, told) = process::millrace_as(bridge, &words, &[]).await;
    assert!(code == 1 && told.contains("no credentials"), "{code} {told}");
}

/// Files change under the running bridge.
async fn rotation(site: &Site, bridge: &Bridge, orders: &str, group: &str) {
    // A stream that was begun rightly ends when its right ends.
    let events = site.path("events");
    let carol = site.carol();
    let instance = format!("/consumers/{group}/instances/c1");
    let gone = [&carol[..], &["-X".to_owned(), "DELETE".to_owned()]].concat();
    site.curl(bridge, &gone.iter().map(String::as_str).collect::<Vec<_>>(), &instance).await.is(204);
    site.curl(bridge, &[&ALICE[..], &["-H", JSON, "-d", r#"{"records":[{"value":2}]}"#]].concat(), &format!("/topics/{orders}"))
        .await
        .is(200);
    let mut stream = Command::new("curl")
        .args(["-sSN", "--cacert", &site.path("ca.pem"), "-o", &events, "-H", "accept: text/event-stream"])
        .args(&carol)
        .arg(format!("https://{}/consumers/{group}/stream?topics={orders}&auto.offset.reset=earliest&format=json", bridge.http))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let told = || fs::read_to_string(Path::new(&events)).unwrap_or_default();
    eventually("the stream has records", async || told().contains("id: ")).await;
    site.write("policy.toml", &Site::policy(orders, group, false));
    let carol: Vec<&str> = carol.iter().map(String::as_str).collect();
    eventually("carol sees nothing any more", async || site.curl(bridge, &carol, "/topics").await.status == 403).await;
    // What is waited for comes; what would follow does not.
    site.curl(bridge, &[&ALICE[..], &["-H", JSON, "-d", r#"{"records":[{"value":2}]}"#]].concat(), &format!("/topics/{orders}"))
        .await
        .is(200);
    let ended = timeout(PATIENCE, stream.wait()).await;
    assert!(ended.is_ok(), "the stream goes on: {}", told());
    assert!(told().contains("event: error") && told().contains("40301"), "{}", told());

    site.write("users", &format!("alice:{}\n", bcrypt::hash("second", 4).unwrap()));
    eventually("the new password is taken", async || site.curl(bridge, &["-u", "alice:second"], "/topics").await.status == 200).await;
    site.curl(bridge, &ALICE, "/topics").await.refuses(401, 40101, "name or password is wrong");

    // Half a rotation is none.
    site.write("policy.toml", "[principals.root]\nallow = [\"al\"]");
    eventually("the mistake is told", async || bridge.log().contains("the changed file cannot be used")).await;
    assert_eq!(site.curl(bridge, &ROOT, "/topics").await.status, 200);

    let (ca, issuer) = authority("another authority");
    let (server, server_key) = certificate(&issuer, "bridge", &["127.0.0.1", "localhost"]);
    site.write("server.key", &server_key);
    site.write("server.pem", &server);
    site.write("ca.pem", &ca);
    eventually("the new certificate is shown", async || site.curl(bridge, &ROOT, "/topics").await.status == 200).await;
    // The old authority's clients are strangers now: the handshake fails.
    assert_eq!(site.curl(bridge, &carol, "/topics").await.status, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_is_told_who_calls_and_goes_on_for_the_creator_alone() {
    let (orders, group, directory) = (unique("orders"), unique("group"), unique("sessions"));
    let site = Site::new(&orders, &group);
    site.write("secret", &"1".repeat(32));
    site.write("other-secret", &"2".repeat(32));
    let (ca, secret, other_secret) = (site.path("ca.pem"), site.path("secret"), site.path("other-secret"));
    let with = |secret| {
        [
            ("MILLRACE_CONSUME__SESSIONS_TOPIC", directory.as_str()),
            ("MILLRACE_CONSUME__FORWARD_CA", ca.as_str()),
            ("MILLRACE_OFFSETS__STORE", "kafka"),
            ("MILLRACE_AUTH__FORWARD_SECRET_FILE", secret),
        ]
    };
    let (shared, apart) = (with(secret.as_str()), with(other_secret.as_str()));
    let (first, second, stranger) = tokio::join!(site.bridge_with(&shared), site.bridge_with(&shared), site.bridge_with(&apart));
    let carol = site.carol();
    let carol: Vec<&str> = carol.iter().map(String::as_str).collect();
    let curl = async |bridge: &Bridge, who: &[&str], more: &[&str], path: &str| site.curl(bridge, &[who, more].concat(), path).await;
    let topic = json!({"topic_name": orders, "partitions_count": 1, "replication_factor": 1}).to_string();
    curl(&first, &ROOT, &["-H", V2, "-d", &topic], "/admin/topics").await.is(201);
    curl(&first, &ROOT, &["-H", JSON, "-d", r#"{"records":[{"value":1}]}"#], &format!("/topics/{orders}")).await.is(200);

    // Carol has a certificate, which ends at the replica that she asks.
    let config = r#"{"name":"c1","format":"json","auto.offset.reset":"earliest","auto.commit.enable":false}"#;
    curl(&first, &carol, &["-H", V2, "-d", config], &format!("/consumers/{group}")).await.is(200);
    let instance = format!("/consumers/{group}/instances/c1");
    let subscription = json!({"topics": [orders]}).to_string();
    curl(&second, &carol, &["-H", V2, "-d", &subscription], &format!("{instance}/subscription")).await.is(204);
    let accept = ["-H", "accept: application/vnd.kafka.json.v2+json"];
    let records = format!("{instance}/records?timeout=2000");
    eventually("carol reads through the other one", async || {
        !curl(&second, &carol, &accept, &records).await.is(200).as_array().unwrap().is_empty()
    })
    .await;
    assert!(first.log().lines().any(|line| line.contains("principal=carol") && line.contains("credential=\"forwarded\"")));

    // Alice may read the group and the topic, and has a password that both know.
    for more in [&accept[..], &["-X", "DELETE"]] {
        curl(&second, &ALICE, more, if more.len() == 2 && more[0] == "-X" { &instance } else { &records }).await.refuses(
            403,
            40301,
            "belongs to another principal",
        );
    }
    for said in ["millrace-caller: carol", "millrace-caller: eyJwcmluY2lwYWwiOiJjYXJvbCJ9.AAAA"] {
        curl(&first, &["-H", said], &accept, &records).await.refuses(401, 40101, "what another bridge says of the caller");
    }
    // One with another secret cannot speak for her, and does not take over what somebody holds.
    curl(&stranger, &carol, &accept, &records).await.refuses(503, 503, "auth.forward_secret_file");
    curl(&first, &carol, &accept, &records).await.is(200);

    first.kill().await;
    curl(&second, &ALICE, &accept, &records).await.refuses(403, 40301, "belongs to another principal");
    eventually("carol goes on at the other one", async || {
        let answer = curl(&second, &carol, &accept, &records).await;
        answer.status == 200 && !answer.is(200).as_array().unwrap().is_empty()
    })
    .await;
    curl(&second, &ALICE, &accept, &records).await.refuses(403, 40301, "belongs to another principal");
    curl(&second, &carol, &["-X", "DELETE"], &instance).await.is(204);
    for topic in [&orders, &directory] {
        drop(curl(&second, &ROOT, &["-X", "DELETE"], &format!("/v3/clusters/none/topics/{topic}")).await);
    }
    second.stop().await;
    stranger.stop().await;
}

#[tokio::test]
async fn who_would_listen_to_everybody_without_asking_is_refused_unless_told() {
    let directory = tempfile::tempdir().unwrap();
    let offsets = directory.path().join("offsets").display().to_string();
    let run = async |variables: &[(&str, &str)]| {
        let words = ["serve", "--bootstrap-servers", "127.0.0.1:1", "--http-listen", "0.0.0.0:0", "--control-listen", "127.0.0.1:0"];
        let output = process::run(&[&words[..], &["--offsets-path", &offsets]].concat(), variables).await;
        (output.status.code(), process::text(&output))
    };
    let (code, told) = run(&[("MILLRACE_LIMITS__ALLOW_PLAINTEXT", "true")]).await;
    assert!(code == Some(78) && told.contains("http.listen: other machines can reach 0.0.0.0:0, and authentication is off"), "{told}");
    let (code, told) = run(&[("MILLRACE_AUTH__ALLOW_OPEN", "true")]).await;
    assert!(code == Some(78) && told.contains("will not serve without TLS on 0.0.0.0:0 (http)"), "{told}");
    let (code, told) = run(&[("MILLRACE_AUTH__ALLOW_OPEN", "true"), ("MILLRACE_HTTP__TLS__CERT", "/nowhere.pem")]).await;
    assert!(code == Some(78) && told.contains("[http.tls] cert: cannot read /nowhere.pem"), "{told}");
}
