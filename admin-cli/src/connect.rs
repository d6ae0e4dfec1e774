//! The way to a service: one connection, one deadline over connecting and answering, and errors that name the remedy.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::time::Instant;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    cli::{Address, Service, Session},
    failure::Failure,
    output::human,
};

/// A W3C trace context, checked, ready to travel.
#[derive(Clone, Debug)]
pub(crate) struct Trace(MetadataValue<Ascii>);

impl Trace {
    /// `VERSION-TRACE_ID-PARENT_ID-FLAGS` in lower-case hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let widths = [2, 32, 16, 2];
        let parts: Vec<&str> = text.split('-').collect();
        let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let shaped = parts.len() == widths.len() && parts.iter().zip(widths).all(|(part, width)| part.len() == width && hex(part));
        let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        if !shaped || zero(parts[1]) || zero(parts[2]) || parts[0] == "ff" {
            return Err(format!("{text:?} is no W3C trace context; expected 00-<32 hex digits>-<16 hex digits>-<2 hex digits>"));
        }
        text.parse().map(Trace).map_err(|_| "it is no header value".to_owned())
    }
}

/// How a control port with TLS is spoken to.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) ca: PathBuf,
    /// Certificate and key to show.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    fn config(&self) -> Result<ClientTlsConfig, Failure> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())));
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&self.ca)?));
        Ok(match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            None => config,
        })
    }
}

/// Says who calls. From the environment, for command lines are seen by others.
#[derive(Clone)]
pub(crate) struct Credential(&'static str, MetadataValue<Ascii>);

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ***", self.0)
    }
}

impl Credential {
    /// The first of those that are set; an error where it cannot be sent.
    pub(crate) fn from_environment() -> Result<Option<Self>, String> {
        const FORMS: [(&str, &str); 3] =
            [("MILLRACE_BEARER_TOKEN", "authorization"), ("MILLRACE_API_KEY", "x-api-key"), ("MILLRACE_USER", "authorization")];
        for (variable, header) in FORMS {
            let Some(text) = std::env::var(variable).ok().filter(|text| !text.is_empty()) else { continue };
            let value = match variable {
                "MILLRACE_BEARER_TOKEN" => format!("Bearer {text}"),
                "MILLRACE_USER" => format!("Basic {}", STANDARD.encode(text)),
                _ => text,
            };
            let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| format!("{variable} has letters that cannot be sent"))?;
            value.set_sensitive(true);
            return Ok(Some(Self(header, value)));
        }
        Ok(None)
    }
}

/// A connected service.
pub(crate) struct Link {
    service: Service,
    address: Address,
    channel: Channel,
    wait: Duration,
    deadline: Instant,
    trace: Option<Trace>,
    credential: Option<Credential>,
}

impl Session {
    /// Connects, with the usual deadline for the connection and the calls together.
    pub(crate) async fn connect(&self, service: Service) -> Result<Link, Failure> {
        self.connect_within(service, self.timeout()).await
    }

    /// Connects; `wait` bounds connecting and everything asked over the link.
    pub(crate) async fn connect_within(&self, service: Service, wait: Duration) -> Result<Link, Failure> {
        let address = self.address(service).clone();
        let deadline = Instant::now() + wait;
        if self.credential.is_some() && self.tls.is_none() && !self.allow_plaintext && !address.is_loopback() {
            return Err(Failure::usage(format!(
                "will not say who calls without TLS to {address}, where others could learn the credential; give --ca-file, or allow it with --allow-plaintext"
            )));
        }
        let uri = if self.tls.is_some() { address.https() } else { address.uri() };
        let endpoint = Endpoint::from_shared(uri).map_err(|error| Failure::usage(format!("{address} is no address: {error}")))?;
        let endpoint = match &self.tls {
            Some(tls) => endpoint.tls_config(tls.config()?).map_err(|error| Failure::usage(format!("--ca-file: {}", reason(&error))))?,
            None => endpoint,
        };
        // A service that is there accepts at once; only the answer may take as long as `wait`.
        let endpoint = endpoint.connect_timeout(wait.min(self.timeout()));
        let cannot = |reason: String| {
            let (word, program, variable) = (service.word(), service.program(), service.variable());
            Failure::unreachable(format!(
                "cannot reach the {word} at {address}: {reason}; is {program} running? set --{word} or {variable}"
            ))
        };
        let channel = match tokio::time::timeout_at(deadline, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(cannot(reason(&error))),
            Err(_) => return Err(cannot(format!("no connection within {}", human::duration(wait)))),
        };
        Ok(Link { service, address, channel, wait, deadline, trace: self.trace.clone(), credential: self.credential.clone() })
    }
}

impl Link {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request that carries the deadline and the trace.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.open_ended(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        request
    }

    /// A request whose answer has no end: only its beginning has the deadline.
    pub(crate) fn open_ended<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(Trace(value)) = &self.trace {
            request.metadata_mut().insert("traceparent", value.clone());
        }
        if let Some(Credential(header, value)) = &self.credential {
            request.metadata_mut().insert(*header, value.clone());
        }
        request
    }

    /// Waits for the answer until the deadline.
    pub(crate) async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout_at(self.deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.explain(&status)),
            Err(_) => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Failure {
        Failure::unreachable(format!(
            "the {word} at {address} did not answer within {wait}; the outcome is not known: look with `millrace status {word}`, or raise --timeout",
            word = self.service.word(),
            address = self.address,
            wait = human::duration(self.wait),
        ))
    }

    pub(crate) fn explain(&self, status: &Status) -> Failure {
        let (word, address, program) = (self.service.word(), &self.address, self.service.program());
        // Marks of the transport: its deadline on either side, the answer for a method nobody hosts (bare, or with the method's path),
        // and a connection that broke.
        if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) && status.message() == "Timeout expired" {
            return self.too_late();
        }
        if status.code() == Code::Unimplemented && (status.message().is_empty() || status.message().contains("/millrace.control.v1.")) {
            return Failure::failed(format!(
                "{address} does not offer this call; is it {program} of this version? set --{word} or {}",
                self.service.variable()
            ));
        }
        // An HTTP answer read as gRPC: the first byte of its text where the compression flag should be, or a content type that is not gRPC's.
        if ["compression flag", "invalid content-type"].iter().any(|mark| status.message().contains(mark)) {
            return Failure::unreachable(format!(
                "{address} answers, but it is not a control port, perhaps the HTTP port; set --{word} or {} to {program}'s [control] listen",
                self.service.variable()
            ));
        }
        if let Some(source) = status.source() {
            return Failure::unreachable(format!("lost the {word} at {address}: {}; is it {program}, and still running?", reason(source)));
        }
        match status.message() {
            "" => Failure::failed(format!("the {word} answered: {}", status.code().description())),
            message => Failure::failed(human::line(message)),
        }
    }
}

/// The innermost cause in plain words: transports wrap it three deep.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    loop {
        if let Some(io) = innermost.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return "connection refused".to_owned(),
                io::ErrorKind::ConnectionReset => return "connection reset".to_owned(),
                io::ErrorKind::TimedOut => return "no connection in time".to_owned(),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => return "no route to the host".to_owned(),
                _ => {}
            }
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => return human::line(&innermost.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn only_a_well_formed_trace_context_travels() {
        assert!(Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").is_ok());
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
        ] {
            assert!(Trace::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[tokio::test]
    async fn a_port_that_speaks_http_is_told_apart_from_a_service() {
        let link = Link {
            service: Service::Bridge,
            address: "127.0.0.1:8082".parse().unwrap(),
            channel: Endpoint::from_static("http://127.0.0.1:8082").connect_lazy(),
            wait: Duration::from_secs(1),
            deadline: Instant::now(),
            trace: None,
            credential: None,
        };
        for message in [
            "protocol error: received message with invalid compression flag: 123 (valid flags are 0 and 1) while receiving response with status: 404 Not Found",
            "invalid content-type: text/html",
        ] {
            let failure = link.explain(&Status::internal(message));
            assert_eq!(failure.exit, crate::failure::Exit::Unreachable);
            assert!(failure.message.contains("not a control port") && failure.message.contains("MILLRACE_BRIDGE"), "{}", failure.message);
        }
    }
}
