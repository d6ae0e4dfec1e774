//! Logins and certificates that are refused: one sentence each, with the setting; and what `check` says before anything runs.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use integration_tests::{
    eventually,
    process::{Process, run},
    secured::{By, Secured},
};

use proto::control::v1::{ComponentsRequest, collector_client::CollectorClient};
use tokio::net::{TcpListener, TcpStream};

use super::WAIT;

/// The sink's file: `brokers`, and `settings` with `changes` made to them; an empty value takes a setting away.
fn configure(dir: &Path, brokers: &str, settings: Vec<(String, String)>, changes: &[(&str, &str)]) -> String {
    let mut settings: BTreeMap<String, String> = settings.into_iter().collect();
    for (key, value) in changes {
        match *value {
            "" => drop(settings.remove(*key)),
            value => drop(settings.insert((*key).to_owned(), value.to_owned())),
        }
    }
    let mut text = format!(
        "a.sources = s\na.channels = c\na.sinks = k\na.sources.s.type = seq\na.sources.s.totalEvents = 1\na.sources.s.channels = c\na.channels.c.type = memory\n\
         a.sinks.k.channel = c\na.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.topic = refused\n\
         a.sinks.k.kafka.bootstrap.servers = {brokers}\n"
    );
    for (key, value) in settings {
        text.push_str(&format!("a.sinks.k.kafka.producer.{key} = {value}\n"));
    }
    let path = dir.join("agent.conf");
    fs::write(&path, text).expect("the agent's file");
    path.to_string_lossy().into_owned()
}

/// Listener, login, changes, and what has to be said.
struct Case {
    listener: &'static str,
    by: By,
    changes: Vec<(&'static str, String)>,
    says: Vec<String>,
}

fn case(listener: &'static str, by: By, changes: &[(&'static str, &str)], says: &[&str]) -> Case {
    let changes = changes.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    Case { listener, by, changes, says: says.iter().map(|text| (*text).to_owned()).collect() }
}

/// A relay to a broker, under the broker's name, so that its certificate fits; and how many connections it was asked for.
async fn relay(broker: &str) -> (String, Arc<AtomicUsize>) {
    let (name, _) = broker.rsplit_once(':').expect("host:port");
    let listener = TcpListener::bind((name, 0)).await.expect("a port");
    let address = format!("{name}:{}", listener.local_addr().expect("an address").port());
    let connections = Arc::new(AtomicUsize::new(0));
    let (broker, counted) = (broker.to_owned(), Arc::clone(&connections));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let broker = broker.clone();
            tokio::spawn(async move {
                if let Ok(mut to) = TcpStream::connect(broker).await {
                    drop(tokio::io::copy_bidirectional(&mut client, &mut to).await);
                }
            });
        }
    });
    (address, connections)
}

/// What the sink's state says is wrong.
async fn trouble(control: &str) -> String {
    let channel = tonic::transport::Channel::from_shared(format!("http://{control}")).expect("an address").connect().await;
    let mut client = CollectorClient::new(channel.expect("the control port"));
    let components = client.components(ComponentsRequest {}).await.expect("components").into_inner().components;
    components.into_iter().find(|component| component.name == "k").expect("the sink").error
}

#[tokio::test]
async fn a_refused_connection_is_told_once_with_its_setting() {
    let kafka = Secured::shared();
    let file = |name: &str| kafka.file(name).to_string_lossy().into_owned();
    let jaas = |module: &str| format!("org.apache.kafka.common.security.{module} required username=\"collector\" password=\"wrong\";");
    let (scram, plain) = (jaas("scram.ScramLoginModule"), jaas("plain.PlainLoginModule"));
    let (other_ca, other, expired) = (file("other-ca.pem"), file("other.pem"), file("collector.expired.pem"));
    let login = "user or password of sasl.jaas.config";
    let cases = [
        case("SASL_SSL", By::Scram, &[("sasl.jaas.config", &scram)], &["refuses the login of User:collector by SCRAM-SHA-512", login]),
        case("SASL_SSL", By::Plain, &[("sasl.jaas.config", &plain)], &["refuses the login of User:collector by PLAIN", login]),
        case(
            "SASL_SSL",
            By::Scram,
            &[("ssl.truststore.location", &other_ca)],
            &["is signed by CN=ca,O=Millrace, which is no authority that ssl.truststore.location", &other_ca],
        ),
        case(
            "SASL_SSL",
            By::Scram,
            &[("ssl.truststore.location", ""), ("ssl.truststore.type", "")],
            &["is signed by CN=ca,O=Millrace", "ssl.truststore.location is not set"],
        ),
        case("EXPIRED", By::Scram, &[], &["(CN=localhost,O=Millrace) ended on", "ssl.keystore.location"]),
        case("WRONGHOST", By::Scram, &[], &["is for kafka.invalid, not for 127.0.0.1", "ssl.endpoint.identification.algorithm"]),
        case(
            "SSL",
            By::Certificate,
            &[("ssl.keystore.location", ""), ("ssl.keystore.type", "")],
            &["asks for a client certificate; set ssl.keystore.location"],
        ),
        case(
            "SSL",
            By::Certificate,
            &[("ssl.keystore.location", &other)],
            &["refuses the certificate of ssl.keystore.location (CN=other,O=Millrace)", "authority that the broker trusts"],
        ),
        case(
            "SSL",
            By::Certificate,
            &[("ssl.keystore.location", &expired)],
            &["refuses the certificate of ssl.keystore.location (CN=collector,O=Millrace)", "ended on"],
        ),
    ];
    let runs = cases.map(|case| {
        let kafka = kafka.clone();
        async move {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let changes: Vec<(&str, &str)> = case.changes.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let (broker, connections) = relay(kafka.listener(case.listener)).await;
            let conf = configure(dir.path(), &broker, kafka.settings(case.by, "collector"), &changes);
            let state = dir.path().join("state");
            let args = ["agent", "-n", "a", "-f", &conf, "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
            let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
            let mut collector = Process::start("millrace-collector", dir.path(), &args, &env);
            let said = |log: &str| log.lines().filter(|line| line.contains("Kafka cannot be used")).map(str::to_owned).collect::<Vec<_>>();
            eventually(WAIT, &format!("{:?} is said", case.says), || async {
                let lines = said(&collector.log());
                let all = lines.iter().any(|line| case.says.iter().all(|part| line.contains(part)));
                if all { Ok(()) } else { Err(collector.log()) }
            })
            .await;
            let told_after = connections.load(Ordering::Relaxed);
            // It tries on, and the status says why; the log has it once.
            let control = collector.address("control").await;
            eventually(WAIT, "the sink's state says why", || async {
                let trouble = trouble(&control).await;
                if case.says.iter().all(|part| trouble.contains(part)) { Ok(()) } else { Err(trouble) }
            })
            .await;
            eventually(WAIT, "it has tried three times more", || async {
                let more = connections.load(Ordering::Relaxed) - told_after;
                if more >= 3 { Ok(()) } else { Err(format!("{more} times")) }
            })
            .await;
            assert_eq!(said(&collector.log()).len(), 1, "{}", collector.log());
            collector.kill_9();
        }
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn check_says_what_is_wrong_with_security_settings() {
    let kafka = Secured::shared();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |by: By, changes: &[(&str, &str)]| {
        let conf = configure(dir.path(), kafka.at(by), kafka.settings(by, "collector"), changes);
        let output = run("millrace-collector", &["check", &conf], &[]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    for by in [By::Scram, By::Plain, By::Certificate] {
        let (code, text) = check(by, &[]);
        assert_eq!(code, Some(0), "{text}");
        assert!(!text.contains("kafka.producer.s"), "{text}");
    }
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "no certificate").expect("a file");
    let empty = empty.to_string_lossy();
    let expired = kafka.file("collector.expired.pem");
    let ca = kafka.file("ca.pem");
    let key = |name: &str| format!("a.sinks.k.kafka.producer.{name}");
    for (by, changes, at, says) in [
        (By::Scram, &[("sasl.mechanism", "")][..], "sasl.mechanism", "set sasl.mechanism"),
        (By::Scram, &[("sasl.mechanism", "GSSAPI")], "sasl.mechanism", "sasl.mechanism = GSSAPI is refused: this build has no Kerberos"),
        (By::Scram, &[("sasl.mechanism", "OAUTHBEARER")], "sasl.mechanism", "OAUTHBEARER is not offered"),
        (By::Scram, &[("sasl.mechanism", "SCRAM")], "sasl.mechanism", "expected PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
        (By::Scram, &[("sasl.mechanism", "PLAIN")], "sasl.jaas.config", "needs PlainLoginModule"),
        (By::Scram, &[("sasl.jaas.config", "")], "sasl.jaas.config", "is missing"),
        (By::Scram, &[("ssl.truststore.location", "/nowhere/ca.pem")], "ssl.truststore.location", "cannot read /nowhere/ca.pem"),
        (By::Scram, &[("ssl.truststore.location", &empty)], "ssl.truststore.location", "TLS cannot be set up"),
        (By::Scram, &[("ssl.truststore.type", "JKS")], "ssl.truststore.location", "Java key stores are not read"),
        (By::Certificate, &[("ssl.keystore.location", "/nowhere/app.pem")], "ssl.keystore.location", "cannot read /nowhere/app.pem"),
        (By::Certificate, &[("ssl.keystore.location", &empty)], "ssl.keystore.location", "TLS cannot be set up"),
        (By::Certificate, &[("ssl.keystore.location", &ca.to_string_lossy())], "ssl.keystore.location", "TLS cannot be set up"),
        (By::Certificate, &[("ssl.keystore.location", &expired.to_string_lossy())], "ssl.keystore.location", "ended on"),
    ] {
        let (code, text) = check(by, changes);
        assert_ne!(code, Some(0), "{changes:?}: {text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error")).collect();
        assert_eq!(errors.len(), 1, "{changes:?}: {text}");
        assert!(errors[0].contains(&key(at)) && errors[0].contains(says), "{changes:?}: {text}");
    }
}
