//! Connections of our own to a broker, with TLS and a login as the settings say: for what librdkafka has no call for ([`super::wire`]).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use super::context::blocking;
use super::scram::Scram;
use super::wire::{Input, Output, SASL_AUTHENTICATE, SASL_HANDSHAKE, round_trip};
use super::{KafkaConfig, KafkaError, jaas};
use crate::{files::Watched, verifier::Verifier};

pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Makes connections as the settings say. Cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) config: KafkaConfig,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// What the files said last.
struct Kept {
    files: Watched,
    dial: Arc<Dial>,
}

impl Dialer {
    pub(super) fn new(config: &KafkaConfig) -> Self {
        Self { config: config.clone(), kept: Arc::default() }
    }

    /// What the files of the settings say now; the system's authorities are read once. The error names the setting that cannot be used here.
    pub(super) async fn dial(&self) -> Result<Arc<Dial>, KafkaError> {
        let Self { config, kept } = self.clone();
        // It reads files.
        let made = blocking(move || {
            let mut kept = kept.lock();
            // What cannot be used any more is not kept.
            if let Some(mut before) = kept.take()
                && !before.files.changed()
            {
                return Ok(Arc::clone(&kept.insert(before).dial));
            }
            let named = ["ssl.truststore.location", "ssl.keystore.location"].into_iter().filter_map(|key| config.get(key));
            // First, so that a change between the two is seen.
            let files = Watched::new(named.map(PathBuf::from));
            let dial = Arc::new(Dial::of(&config)?);
            Ok(Arc::clone(&kept.insert(Kept { files, dial }).dial))
        });
        made.await
    }
}

/// How a connection is made.
pub(super) struct Dial {
    tls: Option<TlsConnector>,
    login: Option<jaas::Login>,
}

impl Dial {
    /// The error names the setting that cannot be used here.
    fn of(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let tls = if config.tls() { Some(TlsConnector::from(Arc::new(tls(config)?))) } else { None };
        let login = if config.protocol().starts_with("sasl_") { Some(jaas::login(config.values())?) } else { None };
        Ok(Self { tls, login })
    }

    /// A connection on which requests are taken; inside: why the broker refuses the login.
    pub(super) async fn connect(&self, address: &str) -> io::Result<Result<Box<dyn Duplex>, String>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Duplex> = match &self.tls {
            None => Box::new(stream),
            Some(connector) => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
                let host = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Box::new(connector.connect(host, stream).await?)
            }
        };
        match &self.login {
            Some(login) => Ok(log_in(&mut stream, login).await?.map(|()| stream)),
            None => Ok(Ok(stream)),
        }
    }
}

/// Inside: why the broker refuses.
async fn log_in(stream: &mut Box<dyn Duplex>, login: &jaas::Login) -> io::Result<Result<(), String>> {
    let mut body = Output::default();
    body.string(&login.mechanism);
    let answer = round_trip(stream, SASL_HANDSHAKE, body.bytes()).await?;
    if Input(&answer).i16() != Ok(0) {
        return Ok(Err(format!("it does not offer {}", login.mechanism)));
    }
    if login.mechanism == "PLAIN" {
        let token = format!("\0{}\0{}", login.username, login.password);
        return Ok(authenticate(stream, token.as_bytes()).await?.map(drop));
    }
    let Some(scram) = Scram::new(&login.mechanism, &login.username) else {
        return Ok(Err(format!("this client cannot log in by {:?}", login.mechanism)));
    };
    let challenge = match authenticate(stream, scram.first().as_bytes()).await? {
        Ok(challenge) => challenge,
        Err(reason) => return Ok(Err(reason)),
    };
    let password = login.password.clone();
    // Thousands of rounds of a hash.
    let last = spawn_blocking(move || scram.last(&password, &challenge)).await.map_err(io::Error::other)?;
    let (last, signature) = match last {
        Ok(last) => last,
        Err(reason) => return Ok(Err(reason)),
    };
    // Who does not know the password cannot sign either: it would be no broker of ours.
    let signed = |answer: String| {
        if answer.split(',').any(|part| part == signature) { Ok(()) } else { Err("it does not know the password".to_owned()) }
    };
    Ok(authenticate(stream, last.as_bytes()).await?.and_then(signed))
}

/// One step of a login; inside: why the broker refuses.
async fn authenticate(stream: &mut Box<dyn Duplex>, token: &[u8]) -> io::Result<Result<String, String>> {
    let mut body = Output::default();
    body.count(token.len()).raw(token);
    let answer = round_trip(stream, SASL_AUTHENTICATE, body.bytes()).await?;
    let mut input = Input(&answer);
    let code = input.i16();
    let said = input.string().ok().flatten();
    if code != Ok(0) {
        return Ok(Err(said.unwrap_or_else(|| "refused".to_owned())));
    }
    let token = input.count().and_then(|count| input.take(count));
    Ok(token.map(|token| String::from_utf8_lossy(token).into_owned()))
}

fn tls(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let wrong = |key: &str, reason: String| KafkaError::Config(format!("{key}: {reason}"));
    // The text of a setting, or of the file that another one names.
    let pem = |text: &'static str, file: &'static str| match (config.get(text), config.get(file)) {
        (Some(pem), _) => Ok(Some((text, pem.as_bytes().to_vec()))),
        (None, Some(path)) => {
            let read = std::fs::read(path).map_err(|error| wrong(file, format!("cannot read {path}: {error}")))?;
            Ok(Some((file, read)))
        }
        (None, None) => Ok::<_, KafkaError>(None),
    };
    let mut roots = RootCertStore::empty();
    match pem("ssl.truststore.certificates", "ssl.truststore.location")? {
        Some((key, pem)) => {
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).flatten().collect();
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(wrong(key, "there is no certificate in PEM".into()));
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let verifier: Arc<dyn ServerCertVerifier> = verifier.map_err(|error| wrong("ssl.truststore.location", error.to_string()))?;
    let by_name = config.get("ssl.endpoint.identification.algorithm") != Some("");
    let verifier = match by_name {
        true => verifier,
        false => Verifier::of(Arc::clone(&provider), move |certificate, others, name, now| {
            match verifier.verify_server_cert(certificate, others, name, &[], now) {
                Err(Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
                    Ok(())
                }
                verified => verified.map(drop),
            }
        }),
    };
    let key_provider = provider.key_provider;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| KafkaError::Fatal(format!("TLS: {error}")))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    if config.get("ssl.keystore.type").is_some_and(|kind| !kind.eq_ignore_ascii_case("pem")) {
        let remedy = "`openssl pkcs12 -in STORE -out STORE.pem -nodes`, and ssl.keystore.type = PEM";
        return Err(KafkaError::Unsupported(format!("ssl.keystore.type: this question is asked with PEM alone; make it so by {remedy}")));
    }
    let chain = pem("ssl.keystore.certificate.chain", "ssl.keystore.location")?;
    let key = pem("ssl.keystore.key", "ssl.keystore.location")?;
    match (chain, key) {
        (Some((_, chain)), Some((name, key))) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).flatten().collect();
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
                let text = format!("{name}: this question is asked with a key that is not encrypted; `openssl pkey -in KEY -out KEY.pem`");
                KafkaError::Unsupported(text)
            })?;
            // Not `with_client_auth_cert`, which reads the certificate and takes none of X.509's first version; brokers do.
            let key = key_provider.load_private_key(key).map_err(|error| wrong(name, error.to_string()))?;
            Ok(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

#[cfg(test)]
mod tests {

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What a client with this mechanism sends after the broker has said that it offers it.
    async fn sent(mechanism: &str) -> String {
        let (ours, mut broker) = tokio::io::duplex(4096);
        let login = jaas::Login { mechanism: mechanism.to_owned(), username: "app".to_owned(), password: "hunter2".to_owned() };
        let client = tokio::spawn(async move { log_in(&mut (Box::new(ours) as Box<dyn Duplex>), &login).await.map(|_| ()) });
        let length = broker.read_i32().await.unwrap();
        broker.read_exact(&mut vec![0; length as usize]).await.unwrap();
        // Correlation id, no error, no mechanisms.
        broker.write_all(&[0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let mut asked = vec![0; 1024];
        let count = broker.read(&mut asked).await.unwrap();
        drop(broker);
        drop(client.await.unwrap());
        String::from_utf8_lossy(&asked[..count]).into_owned()
    }

    #[tokio::test]
    async fn files_are_read_once_and_again_when_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        let write = |name: &str| std::fs::write(&ca, rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.pem()).unwrap();
        write("first.example");
        let mut config = KafkaConfig::new("h:9092");
        config.set("security.protocol", "SSL");
        config.set("ssl.truststore.location", ca.to_str().unwrap());
        let (dialer, other) = (Dialer::new(&config), Dialer::new(&config));
        let first = dialer.dial().await.unwrap();
        assert!(Arc::ptr_eq(&first, &dialer.clone().dial().await.unwrap()) && !Arc::ptr_eq(&first, &other.dial().await.unwrap()));
        write("second.of.another.length.example");
        let second = dialer.dial().await.unwrap();
        assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &dialer.dial().await.unwrap()));
        std::fs::write(&ca, "nothing").unwrap();
        for _ in 0..2 {
            assert!(dialer.dial().await.err().unwrap().to_string().contains("ssl.truststore.location"));
        }
        write("third.example");
        assert!(dialer.dial().await.is_ok());
    }

    #[tokio::test]
    async fn the_password_is_sent_where_the_mechanism_is_plain_and_nowhere_else() {
        assert!(sent("PLAIN").await.ends_with("\0app\0hunter2"));
        assert!(sent("SCRAM-SHA-256").await.contains("n,,n=app,r="));
        for mechanism in ["SCRAM-SHA-512", "SCRAM-SHA-1", "GSSAPI", ""] {
            assert!(!sent(mechanism).await.contains("hunter2"), "{mechanism:?}");
        }
    }
}
