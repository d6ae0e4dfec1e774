//! The command line: `millrace-bridge serve`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};

use crate::{config::BridgeConfig, service::BridgeService};

/// Kafka for programs that speak HTTP or gRPC.
#[derive(Parser)]
#[command(
    name = "millrace-bridge",
    version,
    after_help = "Configuration: flags, then MILLRACE_… variables (MILLRACE_KAFKA__BOOTSTRAP_SERVERS), then the file, then defaults."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP and gRPC until SIGINT or SIGTERM.
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// TOML file; see config/bridge.example.toml.
    #[arg(long, env = "MILLRACE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Brokers to start from: host:port,host:port.
    #[arg(long, value_name = "SERVERS")]
    bootstrap_servers: Option<String>,
    /// HTTP address [default: 127.0.0.1:8082].
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<String>,
    /// Address of the schema registry [default: 127.0.0.1:8081; empty: none of its own].
    #[arg(long, value_name = "ADDRESS")]
    registry_listen: Option<String>,
    /// Control and gRPC address [default: 127.0.0.1:7102].
    #[arg(long, value_name = "ADDRESS")]
    control_listen: Option<String>,
    /// Directory of the offset store [default: millrace-bridge-offsets].
    #[arg(long, value_name = "DIR")]
    offsets_path: Option<PathBuf>,
}

impl Serve {
    /// Only what was given, in the shape of the configuration.
    fn flags(&self) -> Value {
        let mut flags = Map::new();
        let path = self.offsets_path.as_ref().map(|path| path.display().to_string());
        for (section, key, value) in [
            ("kafka", "bootstrap_servers", &self.bootstrap_servers),
            ("http", "listen", &self.http_listen),
            ("registry", "listen", &self.registry_listen),
            ("control", "listen", &self.control_listen),
            ("offsets", "path", &path),
        ] {
            if let Some(value) = value {
                flags.insert(section.to_owned(), serde_json::json!({ key: value }));
            }
        }
        Value::Object(flags)
    }
}

/// Runs the process; the exit code is one of `service_kit::exit`.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { service_kit::exit::USAGE } else { 0 };
            // A closed terminal is nothing to report to.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let Command::Serve(serve) = cli.command;
    let config: BridgeConfig = match service_kit::config::load(serve.config.as_deref(), serve.flags()) {
        Ok(config) => config,
        Err(errors) => return errors.report(),
    };
    let kit = config.kit();
    match BridgeService::new(config) {
        Ok(service) => service_kit::run(service, kit),
        Err(errors) => errors.report(),
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn flags_hold_only_what_was_given() {
        let Command::Serve(serve) =
            Cli::try_parse_from(["millrace-bridge", "serve", "--bootstrap-servers", "k:1", "--http-listen", "127.0.0.1:0"])
                .unwrap()
                .command;
        assert_eq!(serve.flags(), serde_json::json!({"kafka": {"bootstrap_servers": "k:1"}, "http": {"listen": "127.0.0.1:0"}}));
    }

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
