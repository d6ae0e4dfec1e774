//! The http source behind TLS, beside Flume's.

use std::{collections::BTreeMap, fs, process::Command};

use integration_tests::{
    eventually,
    flume::{Flume, free_port},
};

use super::network::{Agent, Event, WAIT, prometheus};

/// `keystore` in the form that each of the two reads, and the keys that Flume calls deprecated.
#[tokio::test]
async fn http_over_tls_answers_as_flume_does() {
    let keys = tempfile::tempdir().expect("a folder");
    let run_in = |program: &str, args: &[&str]| {
        let output =
            Command::new(program).args(args).current_dir(keys.path()).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let openssl = |args: &str| {
        let (code, _, told) = run_in("openssl", &args.split(' ').collect::<Vec<_>>());
        assert_eq!(code, Some(0), "{args}: {told}");
    };
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem",
    );
    openssl("pkcs12 -export -in cert.pem -inkey key.pem -out key.p12 -passout pass:secret");
    let pem = ["cert.pem", "key.pem"].map(|file| fs::read_to_string(keys.path().join(file)).expect("PEM")).concat();
    fs::write(keys.path().join("both.pem"), pem).expect("PEM");
    let old = |file: &str, kind: &str, port: u16| {
        let path = keys.path().join(file);
        let tls = format!("enableSSL = true\nkeystore = {}\nkeystore-type = {kind}\nkeystorePassword = secret", path.display());
        format!("type = http\nbind = 127.0.0.1\nport = {port}\n{tls}\nexcludeProtocols = SSLv3 TLSv1.3")
    };
    let ask = |port: u16| {
        let url = format!("https://localhost:{port}/");
        let plain = url.replace("https", "http");
        let json = r#"[{"headers":{"a":"b"},"body":"over TLS"}]"#;
        let status = ["-sS", "-m", "20", "--noproxy", "*", "-o", "answer", "-w", "%{http_code}"];
        let curl = |more: &[&str]| run_in("curl", &[&status, more].concat());
        let cases: [&[&str]; 6] = [
            &["--cacert", "cert.pem", "--http1.1", "-d", json, &url],
            &["--cacert", "cert.pem", "-d", "no json", &url],
            // Nobody says whose certificate it is; a version that is excluded; one that nobody speaks; no TLS.
            &["-d", json, &url],
            &["--cacert", "cert.pem", "--tlsv1.3", "-d", json, &url],
            &["--cacert", "cert.pem", "--tls-max", "1.1", "-d", json, &url],
            &["-d", json, &plain],
        ];
        cases.map(|case| match curl(case) {
            (Some(0), status, _) if status.starts_with('2') || status == "400" && case.contains(&"no json") => status,
            // What is said to somebody without TLS differs: bytes of TLS, or an HTTP answer without it.
            (_, _, _) => "no".to_owned(),
        })
    };
    let (ours, flumes) = (free_port(), free_port());
    let agent = Agent::new(&[("http", old("both.pem", "PEM", ours))], "").await;
    let mut collector = agent.start(&[]);
    collector.addresses().await;
    let flume_agent = Agent::new(&[("http", old("key.p12", "PKCS12", flumes))], "").await;
    let mut flume = Flume::start(flume_agent.dir.path(), "flume", &flume_agent.conf);
    flume.listens(flumes).await;
    let answers = ask(ours);
    assert_eq!(answers, ["200", "400", "no", "no", "no", "no"].map(str::to_owned));
    let page = collector.address("metrics").await;
    assert_eq!(prometheus(&page, "millrace_collector_source_tls_failures_total", "http").await, 4);
    assert_eq!(collector.log().matches("a TLS handshake failed: ").count(), 1, "the others within ten seconds are only counted");
    assert_eq!(answers, ask(flumes), "Flume's");
    // HTTP/2, which Flume does not offer.
    let (code, status, told) = run_in(
        "curl",
        &[
            "-sS",
            "--noproxy",
            "*",
            "--cacert",
            "cert.pem",
            "--http2",
            "-o",
            "answer",
            "-w",
            "%{http_code} %{http_version}",
            "-d",
            "[]",
            &format!("https://localhost:{ours}/"),
        ],
    );
    assert_eq!((code, status.as_str()), (Some(0), "200 2"), "{told}");
    for agent in [&agent, &flume_agent] {
        eventually(WAIT, "one event", || async {
            let events = agent.events("http");
            let expected: Vec<Event> = vec![(BTreeMap::from([("a".to_owned(), "b".to_owned())]), "over TLS".to_owned())];
            if events == expected { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
    }
    collector.stop().await;
}
