//! TLS of a service's own listeners: PEM files, read again when they change; and whose certificate a client has shown.
//!
//! A rotated file is seen by the next connection, within [`LOOK`]. Files that cannot be used any more leave what was read before, and a line in the log.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use tracing::{error, info};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::{Tls, TlsFailed};
use crate::{
    config::{ClientAuth, TlsConfig},
    files::Watched,
};

/// How often connections have the files looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who is at the other end of a request's connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Checked against `client_ca`; `None` where none was shown.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// The names in a client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    pub common_name: Option<String>,
    /// Of the subject's alternative names, in their order.
    pub dns_names: Vec<String>,
    pub uris: Vec<String>,
}

impl ClientCertificate {
    /// What cannot be read has no names.
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = parse_x509_certificate(certificate) else { return Self::default() };
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        let mut names = Self { common_name, ..Self::default() };
        if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                    GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                    _ => {}
                }
            }
        }
        names
    }
}

/// How a listener shakes hands, and who is told where it fails.
pub(super) struct Handshake {
    source: Source,
    pub(super) failed: Arc<TlsFailed>,
}

enum Source {
    Fixed(TlsAcceptor),
    Files { name: &'static str, config: TlsConfig, read: Mutex<Read> },
}

/// What the files said last.
struct Read {
    acceptor: TlsAcceptor,
    files: Watched,
    looked: Instant,
}

impl From<Tls> for Handshake {
    fn from(Tls { acceptor, failed }: Tls) -> Self {
        Self { source: Source::Fixed(acceptor), failed }
    }
}

impl Handshake {
    /// `None` where the configuration names no certificate. The error is a whole sentence.
    pub(super) fn of(name: &'static str, config: &TlsConfig) -> Result<Option<Self>, String> {
        let set = |path: &Path| !path.as_os_str().is_empty();
        let asks = config.client_auth != ClientAuth::None;
        let wrong = match config.is_on() {
            false if set(&config.key) => "key is set, and cert is not; name the certificate's PEM file",
            false if asks => "client_auth is set, and cert is not; name the PEM files of certificate and key",
            false if set(&config.client_ca) => "client_ca is set, and cert is not; name the PEM files of certificate and key",
            false => return Ok(None),
            true if set(&config.client_ca) && !asks => {
                "client_ca is set, and client_auth is none, so no client would be asked for a certificate; set client_auth to want or need, or leave client_ca out"
            }
            true => "",
        };
        if !wrong.is_empty() {
            return Err(wrong.to_owned());
        }
        let files = Watched::new([&config.cert, &config.key, &config.client_ca].map(Clone::clone));
        let read = Mutex::new(Read { acceptor: acceptor(config)?, files, looked: Instant::now() });
        let failed = move |peer: SocketAddr, error: &io::Error| tracing::debug!(listener = name, %peer, %error, "no TLS");
        Ok(Some(Self { source: Source::Files { name, config: config.clone(), read }, failed: Arc::new(failed) }))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        match &self.source {
            Source::Fixed(acceptor) => acceptor.clone(),
            Source::Files { name, config, read } => {
                let mut read = read.lock();
                if read.looked.elapsed() >= LOOK {
                    read.looked = Instant::now();
                    if read.files.changed() {
                        match acceptor(config) {
                            Ok(acceptor) => {
                                reloaded(name, "read");
                                info!(listener = name, cert = %config.cert.display(), "TLS files read again");
                                read.acceptor = acceptor;
                            }
                            Err(error) => {
                                reloaded(name, "refused");
                                error!(listener = name, error, "the changed TLS files cannot be used; going on with those before")
                            }
                        }
                    }
                }
                read.acceptor.clone()
            }
        }
    }
}

/// Counts changed files.
fn reloaded(listener: &'static str, outcome: &'static str) {
    metrics::counter!("millrace_listen_tls_reloads_total", "listener" => listener, "outcome" => outcome).increment(1);
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    if path.as_os_str().is_empty() {
        return Err(format!("{key} is missing; name its PEM file"));
    }
    std::fs::read(path).map_err(|error| format!("{key}: cannot read {}: {error}", path.display()))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("{key}: {} is not PEM: {error:?}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{key}: {} has no certificate, which stands between BEGIN CERTIFICATE and END CERTIFICATE", path.display()));
    }
    Ok(found)
}

fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates("cert", &config.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read("key", &config.key)?).map_err(|error| {
        format!(
            "key: {} has no private key that can be read ({error:?}); an encrypted one is decrypted by `openssl pkey -in KEY -out KEY.pem`",
            config.key.display()
        )
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match config.client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        asked => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("client_ca", &config.client_ca)? {
                roots.add(certificate).map_err(|error| format!("client_ca: {}: {error}", config.client_ca.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if asked == ClientAuth::Want { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("client_ca: {error}"))?)
        }
    };
    let mut tls = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("{} and {} do not go together: {error}", config.cert.display(), config.key.display()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
