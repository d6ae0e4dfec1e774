//! What was configured: defaults < TOML file < environment `MILLRACE_…` < flags.
//!
//! Unknown keys are refused with the nearest known one, and every error is reported at once, each with its file and line, variable or flag.
//! A service's own struct has the kit's four sections as fields by name (`control`, `telemetry`, `shutdown`, `limits`) beside its own.

mod load;
mod parse;

use std::{fmt, net::Ipv4Addr, num::NonZeroU32, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize, Serializer};

use crate::listen::ListenAddr;

pub use load::is_secret;
pub use load::{ConfigError, ConfigErrors, NOT_CONFIGURATION, load, render};
pub use parse::{at_least_one, duration, period};

/// The kit's part of each service's configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitConfig {
    pub control: ControlConfig,
    pub telemetry: TelemetryConfig,
    pub shutdown: ShutdownConfig,
    pub limits: LimitsConfig,
}

/// A key of the reference page.
#[cfg(test)]
struct Key {
    key: &'static str,
    kind: &'static str,
    meaning: &'static [&'static str],
}

/// A section: its struct, its defaults and its lines on the reference page from one text.
macro_rules! section {
    ($(#[$attribute:meta])* $name:ident, $section:literal, { $( $(#[doc = $doc:literal])+ $(#[serde($serde:meta)])? $field:ident: $type:ty = $default:expr; $kind:literal )+ }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ $(#[serde($serde)])? pub $field: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        #[cfg(test)]
        impl $name {
            const KEYS: &'static [Key] = &[ $( Key { key: concat!($section, ".", stringify!($field)), kind: $kind, meaning: &[$($doc),+] }, )+ ];
        }
    };
}

section! {
    /// `[control]`: the gRPC port for operators.
    ControlConfig, "control", {
        /// Where the control port listens; port 0 takes a free one. Each service has its own default port.
        listen: ListenAddr = ListenAddr::new((Ipv4Addr::LOCALHOST, 0)); "address"
        /// TLS of the control port; its keys follow.
        #[serde(default)]
        tls: TlsConfig = TlsConfig::default(); "section"
    }
}

section! {
    /// `[control.tls]`, and `tls` below the section of any other listener that has one. The files are read again when they change.
    TlsConfig, "control.tls", {
        /// PEM file with the certificate and those that signed it. Empty: no TLS.
        cert: PathBuf = PathBuf::new(); "path"
        /// PEM file with the certificate's private key, not encrypted.
        key: PathBuf = PathBuf::new(); "path"
        /// PEM file with the authorities whose certificates clients may show.
        client_ca: PathBuf = PathBuf::new(); "path"
        /// Whether clients are asked for a certificate: `none`, `want` (they may come without) or `need`.
        client_auth: ClientAuth = ClientAuth::None; "none, want or need"
    }
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    #[default]
    None,
    Want,
    Need,
}

impl TlsConfig {
    pub fn is_on(&self) -> bool {
        !self.cert.as_os_str().is_empty()
    }
}

impl ControlConfig {
    /// Loopback, at a service's own default port.
    pub fn on_port(port: u16) -> Self {
        Self { listen: ListenAddr::new((Ipv4Addr::LOCALHOST, port)), tls: TlsConfig::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

section! {
    /// `[telemetry]`: logs to standard error, traces by OTLP.
    TelemetryConfig, "telemetry", {
        /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or a list such as `info,collector=debug`. Can be changed while running.
        #[serde(deserialize_with = "parse::log_filter")]
        log: String = "info".into(); "filter"
        /// `text` for people, `json` for programs.
        log_format: LogFormat = LogFormat::Text; "text or json"
        /// Where traces go, by OTLP over gRPC, e.g. `http://127.0.0.1:4317`. Unset: tracing is off.
        #[serde(deserialize_with = "parse::otlp_endpoint")]
        otlp_endpoint: Option<String> = None; "URL"
        /// Share of new traces that is kept, 0 to 1; a trace that a caller began keeps the caller's choice. 0 turns tracing off.
        #[serde(deserialize_with = "parse::ratio")]
        trace_sample: f64 = 1.0; "number"
        /// Spans that may wait for export; more are dropped.
        trace_queue_spans_max: NonZeroU32 = positive(16_384); "count"
        /// Tells replicas apart in traces. Unset: `<host>:<process id>`.
        service_instance: Option<String> = None; "text"
    }
}

section! {
    /// `[shutdown]`
    ShutdownConfig, "shutdown", {
        /// From the first signal until everything accepted must be delivered. What is left then is named in the log, and the exit code is 1.
        #[serde(with = "duration")]
        deadline: Duration = Duration::from_secs(20); "duration"
    }
}

section! {
    /// `[limits]`: what each listener of the service, HTTP and gRPC, grants its clients.
    LimitsConfig, "limits", {
        /// Serve without TLS on addresses that other machines can reach.
        allow_plaintext: bool = false; "true or false"
        /// Connections at a time; more are closed at once.
        connections_max: NonZeroU32 = positive(1024); "count"
        /// Connections at a time from one IP address.
        connections_per_ip_max: NonZeroU32 = positive(128); "count"
        /// Requests being answered at a time; more get 503 (gRPC UNAVAILABLE).
        requests_max: NonZeroU32 = positive(1024); "count"
        /// Until a connection must have sent its request's header; also how long an HTTP/1 connection may be idle.
        #[serde(with = "parse::period")]
        header_timeout: Duration = Duration::from_secs(10); "duration"
        /// An HTTP/1 request's header in bytes, 8192 at least (431).
        #[serde(deserialize_with = "parse::header_bytes")]
        header_bytes_max: u32 = 32 * 1024; "bytes"
        /// Fields in a request's header, 100 at most (431).
        #[serde(deserialize_with = "parse::headers")]
        headers_max: u32 = 64; "count"
        /// An HTTP request's body in bytes, as sent and after decompression (413). gRPC bounds each message instead, at 4 MiB.
        body_bytes_max: u64 = 10 * 1024 * 1024; "bytes"
        /// The bodies of all HTTP requests at a time, in bytes, until they are answered; more get 503.
        bodies_bytes_max: u64 = 64 * 1024 * 1024; "bytes"
        /// How many times larger than sent a compressed body may become (413).
        body_ratio_max: NonZeroU32 = positive(100); "count"
        /// Until the next piece of an HTTP request's body, 1 KiB or its end, must arrive (408).
        #[serde(with = "parse::period")]
        body_idle_timeout: Duration = Duration::from_secs(10); "duration"
        /// Until an HTTP request's body must be complete (408).
        #[serde(with = "parse::period")]
        body_timeout: Duration = Duration::from_secs(60); "duration"
        /// Until a client must take more of what is sent to it; then its connection is closed. Streams of records and WebSockets have a time of
        /// their own.
        #[serde(with = "parse::period")]
        write_idle_timeout: Duration = Duration::from_secs(10); "duration"
        /// From the complete request to the first byte of the response (504). A gRPC call that states its own deadline has that one.
        #[serde(with = "parse::period")]
        request_timeout: Duration = Duration::from_secs(30); "duration"
        /// Streams at a time on an HTTP/2 connection.
        http2_streams_max: NonZeroU32 = positive(128); "count"
        /// An HTTP/2 request's header in bytes, after decompression.
        http2_header_list_bytes_max: NonZeroU32 = positive(16 * 1024); "bytes"
        /// Streams that the client has reset and the service not yet dealt with; more end the connection.
        http2_pending_resets_max: NonZeroU32 = positive(20); "count"
        /// How often an HTTP/2 connection is asked whether it is alive.
        #[serde(with = "parse::period")]
        http2_keep_alive_interval: Duration = Duration::from_secs(20); "duration"
        /// Until it must have answered.
        #[serde(with = "parse::period")]
        http2_keep_alive_timeout: Duration = Duration::from_secs(10); "duration"
        /// Age at which a connection is closed after its open requests, so that clients spread over replicas again. A gRPC call's own deadline may not be longer.
        #[serde(with = "parse::period")]
        connection_age_max: Duration = Duration::from_secs(600); "duration"
        /// How long open requests may still take then.
        #[serde(with = "parse::period")]
        connection_age_grace: Duration = Duration::from_secs(30); "duration"
    }
}

const fn positive(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(value) => value,
        None => NonZeroU32::MIN,
    }
}

/// A password or token. Printed and written as `***`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    // An unset secret is shown as unset.
    fn masked(&self) -> &'static str {
        if self.0.is_empty() { "" } else { load::MASK }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.masked())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.masked())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_reference_page_has_every_key_and_is_current() {
        let keys: Vec<&Key> = [ControlConfig::KEYS, TlsConfig::KEYS, TelemetryConfig::KEYS, ShutdownConfig::KEYS, LimitsConfig::KEYS]
            .into_iter()
            .flatten()
            .collect();
        let defaults = serde_json::to_value(KitConfig::default()).unwrap();
        let mut page = String::from(
            "# Configuration that every service has\n\n\
             <!-- Written by a test of service-kit; renew with `MILLRACE_BLESS=1 cargo test -p service-kit`. -->\n\n\
             A key `limits.connections_max` is `connections_max` in the section `[limits]` of the TOML file, or the variable `MILLRACE_LIMITS__CONNECTIONS_MAX`.\n\n\
             | key | type | default | meaning |\n|---|---|---|---|\n",
        );
        for Key { key, kind, meaning } in &keys {
            let default = defaults.pointer(&format!("/{}", key.replace('.', "/"))).unwrap_or_else(|| panic!("{key} is not a key"));
            let default = match default.to_string().trim_matches('"') {
                "null" => "unset".to_owned(),
                "" => "empty".to_owned(),
                _ if default.is_object() => String::new(),
                text => format!("`{text}`"),
            };
            writeln!(page, "| `{key}` | {kind} | {default} |{} |", meaning.concat()).unwrap();
        }
        fn count(value: &serde_json::Value) -> usize {
            value.as_object().map_or(0, |keys| keys.len() + keys.values().map(count).sum::<usize>())
        }
        // The top level has four sections.
        assert_eq!(keys.len() + 4, count(&defaults));
        crate::generated::check("config-kit.md", &page);
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {}", serde_json::to_string(&secret).unwrap()), "*** \"***\"");
        assert_eq!(secret.expose(), "hunter2");
    }
}
