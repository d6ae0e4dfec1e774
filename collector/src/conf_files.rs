//! Where an agent's files come from: paths, URIs (`file:`, `http:`, `https:`), and the commands of config filters. Everything
//! that is waited for or read has a bound.

use std::{
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::ServerName};

/// A file larger than this is no agent file.
const SIZE_MAX: usize = 4 << 20;
/// What a config filter's command may write.
const LINE_MAX: usize = 64 << 10;
/// What a config filter's command may take.
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(10);

/// What the files of an agent are, in the order in which they are read: later ones count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    pub uris: Vec<String>,
    pub files: Vec<PathBuf>,
    /// For a URI's answer.
    pub timeout: Duration,
}

impl Origins {
    pub fn is_empty(&self) -> bool {
        self.uris.is_empty() && self.files.is_empty()
    }

    /// Each one's name and bytes, or why it cannot be read. Blocks; not for a task.
    pub fn read(&self) -> Vec<(String, anyhow::Result<Vec<u8>>)> {
        let uris = self.uris.iter().map(|uri| (without_user(uri), self.fetch(uri)));
        let files = self.files.iter().map(|path| (path.display().to_string(), std::fs::read(path).map_err(anyhow::Error::from)));
        uris.chain(files).collect()
    }

    fn fetch(&self, uri: &str) -> anyhow::Result<Vec<u8>> {
        if let Some(path) = file_of(uri) {
            return Ok(std::fs::read(path)?);
        }
        let scheme = uri.split(':').next().unwrap_or_default().to_ascii_lowercase();
        anyhow::ensure!(["http", "https"].contains(&scheme.as_str()), "`{scheme}:` is not known here; there are file:, http: and https:");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let fetched = runtime.block_on(async { tokio::time::timeout(self.timeout, get(uri)).await });
        fetched.map_err(|_| anyhow::anyhow!("no complete answer within {:?}", self.timeout))?
    }
}

/// The path of a `file:` URI.
fn file_of(uri: &str) -> Option<PathBuf> {
    let rest = uri.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("file:")).map(|_| &uri[5..])?;
    let path = rest.strip_prefix("//").map_or(rest, |rest| rest.strip_prefix("localhost").unwrap_or(rest));
    let mut bytes = Vec::new();
    let mut left = path.as_bytes();
    while let Some((&first, rest)) = left.split_first() {
        let escaped =
            rest.get(..2).filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        left = if escaped.is_some() { &rest[2..] } else { rest };
    }
    Some(PathBuf::from(std::ffi::OsString::from(String::from_utf8_lossy(&bytes).into_owned())))
}

/// A URI as it may be shown.
fn without_user(uri: &str) -> String {
    match uri.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split('/').next()?.rsplit_once('@')?.0, rest))) {
        Some((scheme, user, rest)) => format!("{scheme}://{}", &rest[user.len() + 1..]),
        None => uri.to_owned(),
    }
}

async fn get(text: &str) -> anyhow::Result<Vec<u8>> {
    let uri: Uri = text.parse().with_context(|| format!("`{}` is no URI", without_user(text)))?;
    let host = uri.host().context("the URI has no host")?.to_owned();
    let secure = uri.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await?;
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let (user, shown) = authority.rsplit_once('@').map_or((None, authority), |(user, shown)| (Some(user), shown));
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str())).header(HOST, shown);
    if let Some(user) = user {
        use base64::Engine as _;
        request = request.header("authorization", format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user)));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    if secure {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(bare.to_owned())?;
        answer(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?, request).await
    } else {
        answer(stream, request).await
    }
}

async fn answer(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<Vec<u8>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status() == StatusCode::OK, "the answer is {}", response.status());
        let body = Limited::new(response.into_body(), SIZE_MAX).collect().await;
        Ok(body
            .map_err(|error| anyhow::anyhow!("the answer cannot be read, or is larger than {SIZE_MAX} bytes: {error}"))?
            .to_bytes()
            .to_vec())
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The last bytes may come with the connection's end.
        _ended = connection => exchange.await,
    }
}

/// Runs a config filter's command with a key as its last argument; the first line that it writes.
pub fn run(command: &str, key: &str) -> Result<String, String> {
    run_within(command, key, COMMAND_TIME_MAX)
}

fn run_within(command: &str, key: &str, bound: Duration) -> Result<String, String> {
    let mut words = command.split_whitespace();
    let program = words.next().ok_or("there is no command")?;
    let child = Command::new(program).args(words).arg(key).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| format!("{program}: {error}"))?;
    let Some(output) = child.stdout.take() else { return Err(format!("{program} has no output")) };
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.take(LINE_MAX as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    let end = Instant::now() + bound;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _gone = child.kill();
                let _reaped = child.wait();
                return Err(format!("{program} did not end within {bound:?}"));
            }
            Err(error) => return Err(format!("{program}: {error}")),
        }
    };
    if !status.success() {
        return Err(format!("{program} ended with {status}"));
    }
    // A child of the command may hold its output open: what came until now counts.
    while !reader.is_finished() {
        if Instant::now() >= end {
            return Err(format!("{program} ended, but its output stays open"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let bytes =
        reader.join().map_err(|_| format!("{program}: its output cannot be read"))?.map_err(|error| format!("{program}: {error}"))?;
    if bytes.len() > LINE_MAX {
        return Err(format!("{program} wrote more than {LINE_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{program} did not write UTF-8"))?;
    text.lines().next().map(str::to_owned).ok_or_else(|| format!("{program} wrote nothing"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn origins(uri: &str) -> Origins {
        Origins { uris: vec![uri.to_owned()], files: Vec::new(), timeout: Duration::from_millis(500) }
    }

    fn fetched(uri: &str) -> Result<String, String> {
        let (_, read) = origins(uri).read().remove(0);
        read.map(|bytes| String::from_utf8(bytes).unwrap()).map_err(|error| format!("{error:#}"))
    }

    /// Answers one request with `text`.
    fn serve(text: &'static str) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 2048];
            let count = stream.read(&mut request).unwrap();
            let asked = String::from_utf8_lossy(&request[..count]).into_owned();
            let text = text.replace("ASKED", asked.lines().find(|line| line.starts_with("authorization")).unwrap_or_default());
            stream.write_all(text.as_bytes()).unwrap();
            if text.ends_with("WAIT") {
                // Until the other side goes.
                let _gone = stream.read(&mut request);
            }
        });
        port
    }

    #[test]
    fn uris_are_read_within_their_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.conf");
        std::fs::write(&path, "a.sources = r").unwrap();
        assert_eq!(fetched(&format!("file://{}/a%20b.conf", dir.path().display())).unwrap(), "a.sources = r");
        let port = serve("HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\na.sources = r");
        assert_eq!(fetched(&format!("http://127.0.0.1:{port}/x?y")).unwrap(), "a.sources = r");
        let port = serve("HTTP/1.1 200 OK\r\n\r\nASKED");
        assert_eq!(fetched(&format!("http://u:p@127.0.0.1:{port}")).unwrap(), "authorization: Basic dTpw");
        let port = serve("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(fetched(&format!("http://127.0.0.1:{port}")).unwrap_err(), "the answer is 404 Not Found");
        let port = serve("HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\nWAIT");
        assert!(fetched(&format!("http://127.0.0.1:{port}")).unwrap_err().contains("within 500ms"));
        assert!(fetched("classpath://x").unwrap_err().contains("`classpath:` is not known here"));
        assert_eq!(without_user("http://u:p@h:1/x@y"), "http://h:1/x@y");
    }

    #[test]
    fn a_filters_command_has_bounds() {
        assert_eq!(run("/bin/echo a  b", "k"), Ok("a b k".into()));
        assert_eq!(run("printf x\\ny\\n", "k"), Ok("x".into()));
        assert!(run("/bin/false", "k").unwrap_err().contains("ended with"));
        assert!(run("/bin/true", "k").unwrap_err().contains("wrote nothing"));
        assert!(run("/no/such", "k").unwrap_err().contains("/no/such"));
        assert!(run_within("sleep 60 --", "1", Duration::from_millis(100)).unwrap_err().contains("did not end within"));
        assert!(run_within("yes", "x", Duration::from_millis(500)).unwrap_err().contains("yes"));
    }
}
