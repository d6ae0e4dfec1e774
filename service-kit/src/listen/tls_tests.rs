use std::{fs, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Extension, Router, routing::get};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::{
    config::{ClientAuth, LimitsConfig, TlsConfig},
    listen::{Ending, ListenAddr, Listener, Peer},
};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, in PEM.
    fn certify(&self, common_name: &str, dns: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names.push(SanType::URI("spiffe://example/one".try_into().unwrap()));
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// What this authority's client reads of the page; an error where TLS does not come about.
    async fn read(&self, address: std::net::SocketAddr, identity: Option<&(String, String)>) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let tcp = TcpStream::connect(address).await?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}

async fn who(Extension(peer): Extension<Peer>) -> String {
    match peer.certificate {
        None => "nobody".to_owned(),
        Some(names) => format!("{:?} {:?} {:?}", names.common_name, names.dns_names, names.uris),
    }
}

#[tokio::test]
async fn clients_are_known_by_their_certificates_and_files_may_change() {
    crate::metrics::prometheus();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { directory.path().join(name) };
    let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let (server, key) = first.certify("server", "localhost");
    write("server.pem", &server);
    write("server.key", &key);
    write("ca.pem", &first.pem);
    let mut config = TlsConfig { cert: at("server.pem"), key: at("server.key"), client_ca: at("ca.pem"), client_auth: ClientAuth::Want };
    let serve = async |config: &TlsConfig| {
        let limits = LimitsConfig::default();
        let listener = Listener::bind("files", ListenAddr::new((Ipv4Addr::LOCALHOST, 0)), config, &limits).await.unwrap();
        let address = listener.address;
        let ending = Ending::default();
        let task = tokio::spawn(listener.serve(Router::new().route("/", get(who)), Arc::new(limits), ending.clone()));
        (address, ending, task)
    };
    let client = first.certify("alice", "alice.example");
    let stranger = second.certify("alice", "alice.example");

    let (address, ending, task) = serve(&config).await;
    assert!(first.read(address, None).await.unwrap().ends_with("nobody"));
    let known = first.read(address, Some(&client)).await.unwrap();
    assert!(known.ends_with("Some(\"alice\") [\"alice.example\"] [\"spiffe://example/one\"]"), "{known}");
    assert!(first.read(address, Some(&stranger)).await.is_err());
    assert!(second.read(address, None).await.is_err(), "the server's authority is not the client's");

    // A broken file changes nothing; a good pair is shown to the next connections.
    let (server, key) = second.certify("server", "localhost");
    write("server.pem", "nonsense");
    // Whoever connects until the file is looked at, and then, is shown the certificate of before.
    let refused = "millrace_listen_tls_reloads_total{listener=\"files\",outcome=\"refused\"} ";
    let deadline = Instant::now() + Duration::from_secs(20);
    while !crate::metrics::render().contains(refused) {
        assert!(first.read(address, None).await.is_ok() && Instant::now() < deadline, "the broken file is not looked at");
    }
    assert!(first.read(address, None).await.is_ok());
    write("server.key", &key);
    write("server.pem", &server);
    let deadline = Instant::now() + Duration::from_secs(20);
    while second.read(address, None).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not shown");
        sleep(Duration::from_millis(50)).await;
    }
    ending.stop.cancel();
    task.await.unwrap();

    config.client_auth = ClientAuth::Need;
    let (address, ending, task) = serve(&config).await;
    assert!(second.read(address, None).await.is_err(), "who shows nothing is not let in");
    assert!(second.read(address, Some(&client)).await.unwrap().contains("alice"));
    ending.stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_told_with_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { directory.path().join(name) };
    let (cert, key) = Authority::new("one").certify("server", "localhost");
    fs::write(at("server.pem"), &cert).unwrap();
    fs::write(at("server.key"), &key).unwrap();
    fs::write(at("other.key"), Authority::new("two").certify("other", "localhost").1).unwrap();
    fs::write(at("empty"), "").unwrap();
    let good = TlsConfig { cert: at("server.pem"), key: at("server.key"), ..TlsConfig::default() };
    for (config, expected) in [
        (TlsConfig { cert: at("nowhere"), ..good.clone() }, "[http.tls] cert: cannot read"),
        (TlsConfig { cert: at("empty"), ..good.clone() }, "has no certificate"),
        (TlsConfig { key: PathBuf::new(), ..good.clone() }, "key is missing"),
        (TlsConfig { key: at("empty"), ..good.clone() }, "no private key that can be read"),
        (TlsConfig { key: at("other.key"), ..good.clone() }, "do not go together"),
        (TlsConfig { client_auth: ClientAuth::Need, ..good.clone() }, "client_ca is missing"),
        (TlsConfig { cert: PathBuf::new(), ..good.clone() }, "key is set, and cert is not"),
        (TlsConfig { client_auth: ClientAuth::Want, ..TlsConfig::default() }, "client_auth is set, and cert is not"),
        (TlsConfig { client_ca: at("server.pem"), ..good.clone() }, "client_ca is set, and client_auth is none"),
        (TlsConfig { client_ca: at("server.pem"), ..TlsConfig::default() }, "client_ca is set, and cert is not"),
    ] {
        let address = ListenAddr::new((Ipv4Addr::LOCALHOST, 0));
        let error = Listener::bind("http", address, &config, &LimitsConfig::default()).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // With TLS, others may reach it.
    let open = ListenAddr::new((Ipv4Addr::UNSPECIFIED, 0));
    assert!(Listener::bind("http", open, &good, &LimitsConfig::default()).await.is_ok());
}
