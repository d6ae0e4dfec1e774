//! The command line, in Flume's own words where Flume has them. Data goes to standard output, talk to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line's output")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{ErrorKind as IoErrorKind, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use serde_json::json;
use service_kit::{config::TlsConfig, exit};

use crate::CollectorService;
use crate::channel_cli::ChannelArgs;
use crate::conf_files::Origins;
use crate::config::{AgentConfig, CollectorConfig};
use crate::fault::Point;
use crate::flume_conf::finding::Shown;
use crate::flume_conf::kinds::{self, Kind, MISSING};
use crate::flume_conf::plan::ComponentView;
use crate::flume_conf::{Finding, Level, Outcome, Plan, Role};
use crate::ganglia;
use crate::pipeline_tests;
use crate::reload;
use crate::source::exec;

/// Collects events as a Flume agent file says, and writes them to Kafka.
#[derive(Parser)]
#[command(name = "millrace-collector", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs an agent.
    Agent(AgentArgs),
    /// Reads an agent file and tells what would run and everything that is wrong. Exit code 1 when something is an error.
    Check(CheckArgs),
    /// Lists the known component types, or the properties of one.
    Components(ComponentsArgs),
    /// Runs pipeline tests: given events, what comes to the channels and sinks. Exit code 1 when a test fails, 78 when a file cannot be used.
    Test(TestArgs),
    /// Looks at a channel on disk, checks it, or empties it, without its agent.
    Channel(ChannelArgs),
    /// Lists the points where this build can be made to fail, one a line.
    #[cfg(debug_assertions)]
    #[command(hide = true)]
    FaultPoints,
}

#[derive(Args)]
#[command(
    after_help = "Settings of the process itself (control port, logs, traces, limits): --config FILE (TOML) or environment MILLRACE_…, e.g. MILLRACE_CONTROL__LISTEN=127.0.0.1:7101."
)]
struct AgentArgs {
    /// Name of the agent in the file; may be left out when the file has only one.
    #[arg(short, long)]
    name: Option<String>,
    /// Flume properties file. May be repeated: later ones count over earlier ones.
    #[arg(short = 'f', long = "conf-file", value_name = "FILE")]
    conf_file: Vec<PathBuf>,
    /// The same by its URI (file:, http:, https:). May be repeated; files count over URIs.
    #[arg(short = 'u', long = "conf-uri", value_name = "URI")]
    conf_uri: Vec<String>,
    /// Seconds between looks whether a file or URI has changed [default: 30 for files, 300 for URIs]
    #[arg(short = 'i', long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    poll_interval: Option<u64>,
    /// Accepted without effect: Flume looks for its logging configuration there.
    #[arg(short, long, value_name = "DIR")]
    conf: Option<PathBuf>,
    /// Copy Flume even where that is harmful: wrong components are dropped and the rest runs, dead keys stay dead, `exec` runs its command.
    #[arg(long)]
    flume_strict: bool,
    /// Where file positions and dead letters are kept, in a directory for each agent [default: millrace/collector below $XDG_STATE_HOME, else below ~/.local/state]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Settings of the process, as TOML.
    #[arg(long, value_name = "TOML", env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    /// Do not read the files again when they change.
    #[arg(long)]
    no_reload_conf: bool,
    /// Java system property: `flume.monitoring.port` sets the metrics page's port (on the loopback address); `flume.monitoring.type=ganglia` with `.hosts`, `.pollFrequency`, `.isGanglia3` sends counters to Ganglia; `javax.net.ssl.keyStore` and its like and `flume.ssl.…` are TLS settings for all components; others are what ${sys:name} stands for.
    #[arg(short = 'D', value_name = "NAME=VALUE")]
    define: Vec<String>,
}

#[derive(Args)]
struct CheckArgs {
    /// Flume properties files, by path or URI.
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// Only this agent.
    #[arg(short, long)]
    name: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Read the files as Flume does.
    #[arg(long)]
    flume_strict: bool,
    /// What ${sys:name} stands for.
    #[arg(short = 'D', value_name = "NAME=VALUE")]
    define: Vec<String>,
}

#[derive(Args)]
struct TestArgs {
    /// Test files (TOML); their format is described in docs/pipeline-tests.md.
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Read the agents' files as Flume does.
    #[arg(long)]
    flume_strict: bool,
}

#[derive(Args)]
struct ComponentsArgs {
    /// A type: its properties.
    kind: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing can be told when even the terminal is gone.
            let _printed = error.print();
            if !asked {
                for note in std::env::args().skip(1).filter_map(|word| of_flume_ng(&word)) {
                    eprintln!("note: {note}");
                }
            }
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(exit::USAGE) };
        }
    };
    match cli.command {
        Command::Agent(arguments) => agent(arguments),
        Command::Check(arguments) => check(&arguments),
        Command::Components(arguments) => components(&arguments),
        Command::Test(arguments) => test(&arguments),
        Command::Channel(arguments) => channel(&arguments),
        #[cfg(debug_assertions)]
        Command::FaultPoints => {
            print(&Point::NAMES.iter().map(|name| format!("{name}\n")).collect::<String>());
            ExitCode::SUCCESS
        }
    }
}

/// What to do about a word of `flume-ng` that is not known here.
fn of_flume_ng(word: &str) -> Option<String> {
    let instead = match word {
        "-C" | "--classpath" | "--plugins-path" => "for custom classes, which cannot be loaded; leave it out",
        "-d" | "--dryrun" => "for a dry run; `millrace-collector check FILE` tells what would run",
        "-z" | "--zkConnString" | "-p" | "--zkBasePath" => {
            "for files in ZooKeeper, which is not read; give them with --conf-file or --conf-uri"
        }
        "avro-client" => {
            "a command that is not here; an `avro` source takes what Flume's own sends, and an agent with an `avro` sink sends"
        }
        word if word.starts_with("-X") => "Java's; leave it out",
        _ => return None,
    };
    Some(format!("`{word}` is {instead}"))
}

/// Java properties that mean something to `flume-ng` and nothing here.
fn without_effect(define: &BTreeMap<String, String>) -> impl Iterator<Item = String> + '_ {
    let known = [
        ("flume.root.logger", "logs are set by MILLRACE_TELEMETRY__LOG"),
        ("flume.log.dir", "logs go to standard error"),
        ("flume.log.file", "logs go to standard error"),
        ("propertiesImplementation", "write ${env:NAME} for a variable of the environment"),
    ];
    known.into_iter().filter(|(name, _)| define.contains_key(*name)).map(|(name, instead)| format!("-D{name} has no effect; {instead}"))
}

fn defined(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        text.split_once('=').map_or_else(|| (text.clone(), String::new()), |(name, value)| (name.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn agent(arguments: AgentArgs) -> ExitCode {
    if let Some(directory) = &arguments.conf {
        eprintln!("note: --conf {} has no effect; logs are set by MILLRACE_TELEMETRY__LOG", directory.display());
    }
    if let Err(wrong) = service_kit::fault::check(Point::NAMES) {
        eprintln!("error: {wrong}");
        return ExitCode::from(exit::CONFIG);
    }
    raise_file_limit();
    let define = defined(&arguments.define);
    let metrics = match define.get("flume.monitoring.port").map(|port| (port, port.parse::<u16>())) {
        None => None,
        Some((_, Ok(port))) => Some(format!("127.0.0.1:{port}")),
        Some((text, Err(_))) => {
            eprintln!("error: -Dflume.monitoring.port={text} is not a port");
            return ExitCode::from(exit::USAGE);
        }
    };
    let ganglia = match ganglia::flags(&define) {
        Ok(flags) => flags,
        Err(fault) => {
            eprintln!("error: {fault}");
            return ExitCode::from(exit::USAGE);
        }
    };
    let known = |kind: &&String| ["http", "ganglia"].iter().any(|known| kind.eq_ignore_ascii_case(known));
    if let Some(kind) = define.get("flume.monitoring.type").filter(|kind| !known(kind)) {
        eprintln!("note: -Dflume.monitoring.type={kind} has no effect; the metrics page is served over HTTP");
    }
    for note in without_effect(&define) {
        eprintln!("note: {note}");
    }
    let flags = json!({
        "agent": {
            "name": arguments.name,
            "conf_file": (!arguments.conf_file.is_empty()).then_some(arguments.conf_file),
            "conf_uri": (!arguments.conf_uri.is_empty()).then_some(arguments.conf_uri),
            "reload_interval": arguments.poll_interval.map(|seconds| format!("{seconds}s")),
            "uri_interval": arguments.poll_interval.map(|seconds| format!("{seconds}s")),
            "state_dir": arguments.state_dir,
            "flume_strict": arguments.flume_strict.then_some(true),
            "reload_conf": arguments.no_reload_conf.then_some(false),
            "define": (!define.is_empty()).then_some(define),
        },
        "metrics": { "listen": metrics },
        "ganglia": ganglia,
    });
    let config: CollectorConfig = match service_kit::config::load(arguments.config.as_deref(), flags) {
        Ok(config) => config,
        Err(errors) => return errors.report(),
    };
    if let Err(fault) = config.ganglia.check() {
        eprintln!("error: {fault}");
        return ExitCode::from(exit::CONFIG);
    }
    let origins = config.agent.origins();
    if origins.is_empty() {
        eprintln!("error: no agent file; give one with --conf-file FILE or --conf-uri URI");
        return ExitCode::from(exit::USAGE);
    }
    if !origins.uris.is_empty() && !origins.files.is_empty() {
        eprintln!("note: files count over URIs; Flume reads the URIs alone when both are given");
    }
    let outcome = reload::read(&origins, config.agent.name.as_deref(), config.agent.flume_strict, &config.agent.define);
    match one_plan(outcome) {
        Ok((plan, findings)) => {
            let kit = config.kit();
            // All at once, and before anything runs.
            let wanted =
                [("control", config.control.listen, &config.control.tls), ("metrics", config.metrics.listen, &TlsConfig::default())];
            if let Err((faults, code)) = service_kit::listen::check(&wanted, &config.limits) {
                faults.iter().for_each(|fault| eprintln!("error: {fault}"));
                return ExitCode::from(code);
            }
            service_kit::run(CollectorService { config, plan, findings }, kit)
        }
        Err(findings) => {
            for finding in &findings {
                eprintln!("{}: {finding}", finding.level);
            }
            let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
            eprintln!("{errors} error{}; nothing was started", if errors == 1 { "" } else { "s" });
            ExitCode::from(exit::CONFIG)
        }
    }
}

/// Every tailed file, connection and log needs a handle; the soft limit is often far below what the process may have.
/// Commands that `exec` starts inherit it.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        eprintln!("note: the limit of open files stays as it is: {error}");
    }
}

/// Data to standard output. Whoever reads it may stop early (`| head`): that is no failure.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && error.kind() != IoErrorKind::BrokenPipe
    {
        eprintln!("error: standard output: {error}");
    }
}

/// Columns of the terminal; without one lines are as long as they are.
fn width() -> usize {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return usize::MAX;
    }
    rustix::termios::tcgetwinsize(&out).ok().map_or(usize::MAX, |size| if size.ws_col < 40 { usize::MAX } else { size.ws_col.into() })
}

/// `text` behind `head`, in lines of at most `width` characters; all but the first are indented.
fn wrapped(head: &str, text: &str, indent: usize, width: usize) -> String {
    let mut result = head.to_owned();
    let mut at = head.rsplit('\n').next().unwrap_or_default().chars().count();
    let mut begun = false;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if at.saturating_add(1 + length) > width && (begun || at > indent) {
            result.push('\n');
            result.push_str(&" ".repeat(indent));
            (at, begun) = (indent, false);
        }
        if begun {
            result.push(' ');
            at += 1;
        }
        result.push_str(word);
        (at, begun) = (at + length, true);
    }
    result.push('\n');
    result
}

fn one_plan(outcome: Outcome) -> Result<(Plan, Vec<Finding>), Vec<Finding>> {
    let failed = outcome.failed();
    let Outcome { mut plans, mut findings } = outcome;
    match plans.len() {
        1 if !failed => Ok((plans.remove(0), findings)),
        0 | 1 => Err(findings),
        _ => {
            let names: Vec<_> = plans.iter().map(|plan| plan.agent.as_str()).collect();
            findings.push(
                Finding::error("no-name", format!("there are several agents: {}", names.join(", ")))
                    .flume("needs --name always")
                    .remedy("give one of them with --name"),
            );
            Err(findings)
        }
    }
}

/// A line into a text that is printed at the end.
macro_rules! line {
    ($text:expr, $($arguments:tt)*) => {
        // Writing to a String cannot fail.
        let _written = writeln!($text, $($arguments)*);
    };
}

impl CheckArgs {
    /// A word with a scheme is a URI.
    fn origins(&self) -> Origins {
        let (uris, files): (Vec<&PathBuf>, Vec<&PathBuf>) = self.file.iter().partition(|name| {
            let name = name.to_string_lossy().to_ascii_lowercase();
            ["file:", "http://", "https://"].iter().any(|scheme| name.starts_with(scheme))
        });
        let uris = uris.into_iter().map(|uri| uri.to_string_lossy().into_owned()).collect();
        Origins { uris, files: files.into_iter().cloned().collect(), timeout: AgentConfig::default().uri_timeout }
    }
}

fn channel(arguments: &ChannelArgs) -> ExitCode {
    let which = arguments.which();
    let origins = Origins { files: which.files(), ..Origins::default() };
    arguments.run(reload::read(&origins, which.name.as_deref(), false, &BTreeMap::new()))
}

fn test(arguments: &TestArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report = runtime.block_on(pipeline_tests::run_files(&arguments.file, arguments.flume_strict));
    for fault in &report.faults {
        eprintln!("error: {fault}");
    }
    match arguments.output {
        Format::Json => print(&format!("{:#}\n", json!(report))),
        Format::Table if report.tests.is_empty() => {}
        Format::Table => print(&report.text()),
    }
    match (report.faults.is_empty(), report.passed) {
        (false, _) => ExitCode::from(exit::CONFIG),
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
    }
}

fn check(arguments: &CheckArgs) -> ExitCode {
    let mut outcome = reload::read(&arguments.origins(), arguments.name.as_deref(), arguments.flume_strict, &defined(&arguments.define));
    reload::look(&mut outcome, arguments.flume_strict);
    let (mut text, width) = (String::new(), width());
    if arguments.output == Format::Json {
        let agents: Vec<_> = outcome
            .plans
            .iter()
            .map(|plan| json!({ "agent": plan.agent, "components": plan.components().chain(&plan.groups).map(ComponentView::from).collect::<Vec<_>>() }))
            .collect();
        line!(text, "{:#}", json!({ "starts": !outcome.failed(), "agents": agents, "findings": outcome.findings }));
    } else {
        for plan in &outcome.plans {
            let part = if outcome.failed() { ", as far as it can be read" } else { "" };
            line!(text, "agent {}{part}", plan.agent);
            for component in plan.components() {
                let tail = exec::tail_of(component, arguments.flume_strict).filter(|_| std::ptr::eq(component.kind, &exec::KIND));
                let how =
                    tail.map_or_else(String::new, |tail| format!("  tails {} from {}", tail.path.display(), exec::describe(tail.begin)));
                let channels =
                    if component.channels.is_empty() { String::new() } else { format!("  → {}", component.channels.join(" ")) };
                let arrow = if component.kind.role == Role::Sink { channels.replace('→', "←") } else { channels };
                let prefix = format!("{}.{}.{}.", plan.agent, component.kind.role.plural(), component.name);
                let of_it = |finding: &Finding| finding.key.as_ref().is_some_and(|key| key.starts_with(&prefix));
                let wrong = outcome.findings.iter().any(|finding| finding.level == Level::Error && of_it(finding));
                let wrong = if wrong { "  (wrong, see below)" } else { "" };
                line!(text, "  {:8}{:16}{}{arrow}{how}{wrong}", component.kind.role.singular(), component.name, component.type_name);
            }
            for group in &plan.groups {
                line!(text, "  {:8}{:16}{}  of {}", "group", group.name, group.type_name, group.channels.join(" "));
            }
        }
        for finding in &outcome.findings {
            text.push_str(&wrapped("", &format!("{}: {finding}", finding.level), 4, width));
        }
        let count = |level| outcome.findings.iter().filter(|finding| finding.level == level).count();
        let (errors, warnings) = (count(Level::Error), count(Level::Warning));
        let left_out = outcome.findings.iter().any(|finding| finding.code == "left-out");
        let verdict = match (errors, left_out) {
            (0, false) => "it starts",
            (0, true) => "it starts, but not as it is written",
            _ => "it does not start",
        };
        line!(text, "{errors} error{}, {warnings} warning{}: {verdict}", plural(errors), plural(warnings));
        text = text.lines().map(|line| format!("{}\n", Shown(line))).collect();
    }
    print(&text);
    if outcome.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn components(arguments: &ComponentsArgs) -> ExitCode {
    let chosen: Vec<&'static Kind> =
        kinds::built().filter(|kind| arguments.kind.as_ref().is_none_or(|name| kind.is_called(name))).collect();
    if chosen.is_empty() {
        let name = arguments.kind.as_deref().unwrap_or_default();
        let missing = Role::ALL.iter().find_map(|role| kinds::find_missing(*role, name));
        let named = || kinds::built().flat_map(|kind| [kind.alias, kind.class]).flatten();
        let word =
            |class: &&str| class.rsplit('.').next().is_some_and(|last| last.to_ascii_lowercase().starts_with(&name.to_ascii_lowercase()));
        let near = kinds::nearest(name, named()).or_else(|| named().filter(|_| name.len() > 2).find(word));
        let hint = match (missing, near) {
            (Some(missing), _) => format!("Flume has it, this version has not: {}", missing.instead),
            (None, Some(near)) => format!("did you mean `{near}`?"),
            (None, None) => "`millrace-collector components` lists what there is".to_owned(),
        };
        eprintln!("error: there is no type `{name}`; {hint}");
        return ExitCode::FAILURE;
    }
    let (mut text, width) = (String::new(), width());
    if arguments.output == Format::Json {
        let kinds: Vec<_> = chosen.iter().map(|kind| as_json(kind)).collect();
        line!(text, "{:#}", json!({ "components": kinds }));
    } else if arguments.kind.is_some() {
        for kind in chosen {
            line!(text, "{} {}", kind.role, kind.name());
            text.push_str(&wrapped("", kind.doc, 0, width));
            text.push('\n');
            for property in kind.properties {
                text.push_str(&wrapped("  ", &format!("{}  [{}]", property.name, described(property)), 6, width));
                text.push_str(&wrapped("      ", property.doc, 6, width));
            }
            for (old, new) in kind.deprecated {
                line!(text, "  {old}  [deprecated]{}", if new.is_empty() { "  no effect".to_owned() } else { format!("  → {new}") });
            }
        }
    } else {
        for kind in chosen {
            let doc = kind.doc.split_inclusive(". ").next().unwrap_or_default();
            text.push_str(&wrapped(&row(kind.role, kind.name()), doc.trim_end(), 8, width));
        }
        line!(text, "\nIn Flume, not in this version:");
        for missing in MISSING {
            let head = row(missing.role, missing.alias.unwrap_or(missing.class));
            text.push_str(&wrapped(&head, &format!("instead: {}", missing.instead), 8, width));
        }
    }
    print(&text);
    ExitCode::SUCCESS
}

fn row(role: Role, name: &str) -> String {
    let head = format!("{:16} {name:42} ", role.singular());
    // What is longer than its column has the line for itself.
    if name.len() > 42 { format!("{head}\n        ") } else { head }
}

fn as_json(kind: &Kind) -> serde_json::Value {
    let properties: Vec<_> = kind
        .properties
        .iter()
        .map(|property| json!({ "name": property.name, "type": property.kind.to_string(), "default": property.default, "required": property.required, "own": property.own, "doc": property.doc }))
        .collect();
    json!({ "role": kind.role, "type": kind.name(), "class": kind.class, "doc": kind.doc, "properties": properties, "deprecated": kind.deprecated })
}

fn described(property: &kinds::Property) -> String {
    let default = match (property.required, property.default) {
        (true, _) => "required".to_owned(),
        (false, Some(default)) => format!("default {default}"),
        (false, None) => "optional".to_owned(),
    };
    format!("{}, {default}{}", property.kind, if property.own { ", Millrace's own" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::{defined, of_flume_ng, row, without_effect, wrapped};
    use crate::flume_conf::Role;

    #[test]
    fn words_of_flume_ng_are_answered() {
        for (word, told) in
            [("-Xmx512m", "Java's"), ("-C", "custom classes"), ("-z", "ZooKeeper"), ("--dryrun", "millrace-collector check")]
        {
            assert!(of_flume_ng(word).is_some_and(|note| note.contains(told)), "{word}");
        }
        assert_eq!(of_flume_ng("agent"), None);
        let define = defined(&["flume.root.logger=DEBUG,console".to_owned(), "x=y".to_owned()]);
        let notes: Vec<String> = without_effect(&define).collect();
        assert_eq!(notes, ["-Dflume.root.logger has no effect; logs are set by MILLRACE_TELEMETRY__LOG"]);
    }

    #[test]
    fn a_long_name_breaks_no_column() {
        assert!(row(Role::Sink, &"x".repeat(43)).ends_with("\n        "));
        assert_eq!(row(Role::Sink, "hdfs").len(), row(Role::Group, "failover").len());
    }

    #[test]
    fn rows_are_wrapped_at_words() {
        assert_eq!(wrapped("a    ", "bb cc dd", 2, 11), "a    bb cc\n  dd\n");
        assert_eq!(wrapped("a    ", "bb cc dd", 2, usize::MAX), "a    bb cc dd\n");
        assert_eq!(wrapped("long head ", "word", 2, 10), "long head \n  word\n");
        assert_eq!(wrapped("", "endlessword x", 2, 5), "endlessword\n  x\n");
        assert_eq!(wrapped("x", "", 2, 5), "x\n");
    }
}
