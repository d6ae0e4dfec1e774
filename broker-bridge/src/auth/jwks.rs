//! Which keys sign tokens: a set of keys (RFC 7517) from a file, or from a URL that is asked from time to time.
//!
//! A URL is asked every `auth.jwt.refresh`, and when a token names a key that is not there, but never sooner than `auth.jwt.refresh_min` after the last
//! time. While it does not answer, the keys before stay.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::http::{Request, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use service_kit::files::Watched;
use tokio::{
    net::TcpStream,
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    jwt::{Key, parse_keys},
    reloaded,
};
use crate::{config, trust};

pub(super) struct Keys {
    source: Source,
    keys: RwLock<Option<Arc<Vec<Key>>>>,
    refresh: Duration,
    refresh_min: Duration,
}

enum Source {
    File(PathBuf, Mutex<Watched>),
    Url { fetch: Box<Fetch>, asked: tokio::sync::Mutex<Option<Asked>> },
}

/// The last question.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    answered: bool,
}

impl Keys {
    /// A file is read now, a URL later. The error names the key of the configuration.
    pub(super) fn open(config: &config::Jwt) -> Result<Self, (&'static str, String)> {
        let of_url = config.jwks.starts_with("http://") || config.jwks.starts_with("https://");
        let (source, keys) = if of_url {
            (Source::Url { fetch: Box::new(Fetch::new(config)?), asked: tokio::sync::Mutex::default() }, None)
        } else {
            let path = PathBuf::from(&config.jwks);
            // First, so that a change between the two is seen.
            let watched = Watched::new([path.clone()]);
            let keys = read(&path).map_err(|message| ("jwks", message))?;
            (Source::File(path, Mutex::new(watched)), Some(Arc::new(keys)))
        };
        Ok(Self { source, keys: RwLock::new(keys), refresh: config.refresh, refresh_min: config.refresh_min })
    }

    /// `None` until they were read once.
    pub(super) fn now(&self) -> Option<Arc<Vec<Key>>> {
        self.keys.read().clone()
    }

    pub(super) async fn look(&self) {
        match &self.source {
            Source::File(path, watched) => {
                if watched.lock().changed() {
                    reloaded("jwks", path, read(path).map(|keys| *self.keys.write() = Some(Arc::new(keys))));
                }
            }
            Source::Url { fetch, asked } => {
                let mut asked = asked.lock().await;
                let due = asked.is_none_or(|last| {
                    // Without an answer it is asked again sooner.
                    let wait = if last.answered { self.refresh.max(self.refresh_min) } else { self.refresh_min };
                    last.at.elapsed() >= wait
                });
                if due {
                    *asked = Some(self.ask(fetch, asked.is_none_or(|last| last.answered)).await);
                }
            }
        }
    }

    /// Keys that were read after `known`, where there may be such.
    pub(super) async fn newer_than(&self, known: &Arc<Vec<Key>>) -> Option<Arc<Vec<Key>>> {
        if let Source::Url { fetch, asked } = &self.source {
            // One asks, the others wait for what it learns.
            let mut asked = asked.lock().await;
            let unchanged = self.now().is_some_and(|now| Arc::ptr_eq(&now, known));
            if unchanged && asked.is_none_or(|last| last.at.elapsed() >= self.refresh_min) {
                *asked = Some(self.ask(fetch, true).await);
            }
        } else {
            self.look().await;
        }
        self.now().filter(|now| !Arc::ptr_eq(now, known))
    }

    async fn ask(&self, fetch: &Fetch, tell: bool) -> Asked {
        let found = match timeout(fetch.timeout, fetch.get()).await {
            Ok(Ok(body)) => parse_keys(&body).map_err(|message| format!("what it answers {message}")),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("no answer within {:?} (auth.jwt.timeout)", fetch.timeout)),
        };
        let answered = found.is_ok();
        let outcome = if answered { "read" } else { "refused" };
        metrics::counter!("millrace_bridge_auth_reloads_total", "file" => "jwks", "outcome" => outcome).increment(1);
        match found {
            Ok(keys) => *self.keys.write() = Some(Arc::new(keys)),
            // Once: it is asked again and again.
            Err(error) if tell => tracing::warn!(url = fetch.shown, error, "the keys of tokens cannot be read; trying on"),
            Err(error) => tracing::debug!(url = fetch.shown, error, "the keys of tokens cannot be read"),
        }
        Asked { at: Instant::now(), answered }
    }
}

fn read(path: &PathBuf) -> Result<Vec<Key>, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse_keys(&text).map_err(|message| format!("{} {message}", path.display()))
}

/// Asks one address.
struct Fetch {
    uri: Uri,
    /// Without anything that may be secret.
    shown: String,
    host: String,
    port: u16,
    /// Whose certificates it must have (empty: the system's authorities), and its name.
    tls: Option<(PathBuf, ServerName<'static>)>,
    timeout: Duration,
    bytes_max: usize,
}

impl Fetch {
    fn new(config: &config::Jwt) -> Result<Self, (&'static str, String)> {
        let wrong = |what: &str| ("jwks", format!("{what}; write a path, or https://host/path"));
        let uri: Uri = config.jwks.parse().map_err(|_| wrong("is no address"))?;
        let host = uri.host().ok_or_else(|| wrong("names no host"))?.trim_matches(['[', ']']).to_owned();
        let https = uri.scheme_str() == Some("https");
        let tls = if https {
            let name = ServerName::try_from(host.clone()).map_err(|_| wrong("has a host that no certificate can name"))?;
            trust::client(&config.ca, None).map_err(|message| ("ca", message))?;
            Some((config.ca.clone(), name))
        } else if config.allow_plaintext || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback()) {
            None
        } else {
            let message = "is asked without TLS, so whoever stands in between could have any token taken; write https://, or allow it with auth.jwt.allow_plaintext = true";
            return Err(("jwks", message.to_owned()));
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let shown = format!("{}://{host}:{port}{}", if https { "https" } else { "http" }, uri.path());
        Ok(Self { uri, shown, host, port, tls, timeout: config.timeout, bytes_max: config.bytes_max })
    }

    async fn get(&self) -> anyhow::Result<Bytes> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            Some((ca, name)) => {
                // Each time: the file may have changed.
                let ca = ca.clone();
                let tls =
                    spawn_blocking(move || trust::client(&ca, None)).await?.map_err(|reason| anyhow::anyhow!("{reason} (auth.jwt.ca)"))?;
                self.exchange(TokioIo::new(TlsConnector::from(Arc::new(tls)).connect(name.clone(), tcp).await?)).await
            }
            None => self.exchange(TokioIo::new(tcp)).await,
        }
    }

    async fn exchange(&self, io: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static) -> anyhow::Result<Bytes> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let host = self.uri.authority().map_or(self.host.as_str(), |authority| authority.as_str());
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let request =
            Request::get(path).header(header::HOST, host).header(header::ACCEPT, "application/json").body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            anyhow::ensure!(response.status().is_success(), "it answers {}", response.status());
            let body = Limited::new(response.into_body(), self.bytes_max).collect().await;
            anyhow::Ok(body.map_err(|error| anyhow::anyhow!("its answer cannot be read: {error} (auth.jwt.bytes_max)"))?.to_bytes())
        };
        // The connection is driven as long as the answer is waited for, and dropped with it.
        tokio::select! {
            body = exchange => body,
            never = async {
                drop(connection.await);
                std::future::pending::<std::convert::Infallible>().await
            } => match never {},
        }
    }
}
