//! The command line: what holds for every command, and how the words become a `Session`.

use std::{ffi::OsString, fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, ValueEnum, error::ErrorKind};

use crate::{
    commands::Command,
    connect::{Credential, Tls, Trace},
    output::Output,
};

const AFTER_HELP: &str = "\
Exit codes:
  0   done
  1   the service refused, or the work failed
  2   a service cannot be reached
  64  wrong command line

Data goes to stdout, everything else to stderr. A call carries the W3C trace context found in TRACEPARENT, and says
who calls by MILLRACE_BEARER_TOKEN (a bearer token), MILLRACE_API_KEY or MILLRACE_USER (name:password), if one is set.";

/// Operates Millrace: the collector, the broker bridge and the stream engine.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, after_help = AFTER_HELP, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Control address of the collector.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "MILLRACE_COLLECTOR",
        hide_env_values = true,
        default_value = "127.0.0.1:7101"
    )]
    collector: Address,
    /// Control address of the bridge.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "MILLRACE_BRIDGE",
        hide_env_values = true,
        default_value = "127.0.0.1:7102"
    )]
    bridge: Address,
    /// Control address of the engine.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "MILLRACE_ENGINE",
        hide_env_values = true,
        default_value = "127.0.0.1:7103"
    )]
    engine: Address,
    /// Speak TLS with the control ports; their certificates must come from an authority in this PEM file.
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_CA_FILE", hide_env_values = true)]
    ca_file: Option<PathBuf>,
    /// With --ca-file: the certificate to show, in a PEM file, and its key.
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_CERT_FILE", hide_env_values = true, requires_all = ["ca_file", "key_file"])]
    cert_file: Option<PathBuf>,
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_KEY_FILE", hide_env_values = true, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Say who calls without TLS, too, to services of other machines; whoever stands in between learns the token, key or password.
    #[arg(long, global = true)]
    allow_plaintext: bool,
    /// `table` for people, `json` for programs: raw numbers, and names that only grow.
    #[arg(long, short, global = true, value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
    /// How long to wait for the answer, e.g. `5s` or `2m` [default: 10s; drain, job stop and job savepoint: 2m].
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// No colours. They are off as well where stdout is no terminal, or NO_COLOR is set.
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// One of the three services, as a word on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    Collector,
    Bridge,
    Engine,
}

impl Service {
    pub(crate) const ALL: [Service; 3] = [Service::Collector, Service::Bridge, Service::Engine];

    /// The word people use.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Service::Collector => "collector",
            Service::Bridge => "bridge",
            Service::Engine => "engine",
        }
    }

    /// The program, and the name the service itself answers with.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Service::Collector => "millrace-collector",
            Service::Bridge => "millrace-bridge",
            Service::Engine => "millrace-engine",
        }
    }

    pub(crate) fn variable(self) -> &'static str {
        match self {
            Service::Collector => "MILLRACE_COLLECTOR",
            Service::Bridge => "MILLRACE_BRIDGE",
            Service::Engine => "MILLRACE_ENGINE",
        }
    }
}

/// `HOST:PORT`; an IPv6 host stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(String);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if bare.contains("://") {
            return Err("the control port speaks gRPC; give HOST:PORT, and --ca-file for TLS".to_owned());
        }
        let wrong = || "expected HOST:PORT, e.g. 127.0.0.1:7101 or [::1]:7101".to_owned();
        let (host, port) = bare.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || port == 0 || (host.contains(':') && !bracketed) {
            return Err(wrong());
        }
        let address = Self(bare.to_owned());
        tonic::transport::Endpoint::from_shared(address.uri()).map_err(|_| wrong())?;
        Ok(address)
    }
}

impl Address {
    pub(crate) fn uri(&self) -> String {
        format!("http://{}", self.0)
    }

    /// Whether only this machine can hear what is said to it.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback())
    }

    pub(crate) fn https(&self) -> String {
        format!("https://{}", self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A positive duration: `500ms`, `30s`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("expected a number with a unit, e.g. 500ms, 30s, 12h or 7d".to_owned()),
    }
}

/// What every command is given: where the services are, how long to wait, how to speak.
#[derive(Debug)]
pub(crate) struct Session {
    collector: Address,
    bridge: Address,
    engine: Address,
    timeout: Option<Duration>,
    pub(crate) trace: Option<Trace>,
    pub(crate) tls: Option<Tls>,
    pub(crate) credential: Option<Credential>,
    /// The credential may go to other machines without TLS.
    pub(crate) allow_plaintext: bool,
    pub(crate) out: Output,
}

impl Session {
    const TIMEOUT: Duration = Duration::from_secs(10);
    const PATIENCE: Duration = Duration::from_secs(120);

    pub(crate) fn address(&self, service: Service) -> &Address {
        match service {
            Service::Collector => &self.collector,
            Service::Bridge => &self.bridge,
            Service::Engine => &self.engine,
        }
    }

    /// For calls that are answered from memory or by one question to a broker.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Self::TIMEOUT)
    }

    /// For calls that wait until work is done. `asked` goes to the service (0: its own deadline), and the caller waits a little longer,
    /// so that the service's account of what is left arrives instead of a bare time-out.
    pub(crate) fn patience(&self) -> Patience {
        match self.timeout {
            Some(timeout) => Patience {
                asked_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
                wait: timeout.saturating_add(Duration::from_secs(5)),
            },
            None => Patience { asked_ms: 0, wait: Self::PATIENCE },
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) asked_ms: u64,
    pub(crate) wait: Duration,
}

/// The command, and the session it runs in; or clap's answer (help, version, a usage error).
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<(Command, Session), clap::Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    // clap colours its own errors before it has read the flag, so the flag is looked for first.
    let plain = words.iter().any(|word| word == "--no-color");
    let color = if plain { ColorChoice::Never } else { ColorChoice::Auto };
    let matches = Cli::command().color(color).try_get_matches_from(words)?;
    let Cli { global, command } = Cli::from_arg_matches(&matches)?;
    let out = Output::new(global.output, global.no_color);
    let trace = match std::env::var("TRACEPARENT").ok().filter(|value| !value.is_empty()).map(|value| Trace::parse(&value)) {
        None => None,
        Some(Ok(trace)) => Some(trace),
        Some(Err(reason)) => {
            out.note(&format!("TRACEPARENT is ignored: {reason}"));
            None
        }
    };
    let credential = Credential::from_environment().map_err(|reason| Cli::command().error(ErrorKind::ValueValidation, reason))?;
    let Global { collector, bridge, engine, timeout, ca_file, cert_file, key_file, allow_plaintext, .. } = global;
    let tls = ca_file.map(|ca| Tls { ca, identity: cert_file.zip(key_file) });
    Ok((command, Session { collector, bridge, engine, timeout, trace, tls, credential, allow_plaintext, out }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["127.0.0.1:7101", "collector.example:1", "[::1]:7101"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        assert_eq!("http://127.0.0.1:7101/".parse::<Address>().unwrap().to_string(), "127.0.0.1:7101");
        for bad in ["", "127.0.0.1", ":7101", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:99999", "::1:7101", "https://a:1", "a b:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn only_this_machines_own_addresses_are_loopback() {
        for (address, expected) in [
            ("127.0.0.1:1", true),
            ("127.8.0.1:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("localhost.example:1", false),
            ("127.0.0.1.example:1", false),
            ("10.0.0.1:1", false),
            ("[::]:1", false),
            ("bridge:1", false),
        ] {
            assert_eq!(address.parse::<Address>().unwrap().is_loopback(), expected, "{address}");
        }
    }

    #[test]
    fn a_duration_needs_a_unit_and_a_length() {
        assert_eq!(duration("7d").unwrap(), Duration::from_secs(7 * 86_400));
        assert!(duration("7").is_err());
        assert!(duration("0s").is_err());
    }
}
