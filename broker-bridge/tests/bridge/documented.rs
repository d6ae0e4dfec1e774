//! The examples of README.md and docs/bridge.md, as they stand: with curl, against a running bridge, on the ports that they name.

use std::{fmt::Write as _, path::Path, process::Stdio, time::Duration};

use regex::Regex;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{cluster::Cluster, process::Bridge};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command of a page, and what the page shows below it.
struct Example {
    line: usize,
    command: String,
    shown: Vec<String>,
}

/// Of blocks that are called `console`: what is behind `$ `, and the lines up to the next one.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for (at, line) in page.lines().enumerate() {
        if let Some(kind) = line.strip_prefix("```") {
            inside = kind == "console";
        } else if !inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example { line: at + 1, command: command.to_owned(), shown: Vec::new() });
        } else if let Some(example) = examples.last_mut() {
            let goes_on = example.shown.is_empty() && example.command.ends_with('\\');
            if goes_on { write!(example.command, "\n{line}").unwrap() } else { example.shown.push(line.to_owned()) }
        }
    }
    examples
}

/// Of blocks that are called `sh` and name the bridge's port: what is asked of a bridge that runs.
fn requests(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.filter(|block| block.contains("localhost:8082")).flat_map(str::lines);
    lines.filter(|line| line.starts_with("curl ") || line.starts_with("millrace ")).collect()
}

/// A shell in which the bridge's documented ports are this one's.
struct Shell {
    home: TempDir,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

struct Ran {
    output: Vec<String>,
    /// Of every answer, in order.
    statuses: Vec<u16>,
    code: i32,
    errors: String,
}

impl Shell {
    fn of(bridge: &Bridge) -> Self {
        let home = TempDir::new().unwrap();
        let rc = format!(
            "connect-to = \"localhost:8082:{}\"\nconnect-to = \"localhost:8081:{}\"\nwrite-out = \"%{{stderr}}\\n<%{{http_code}}>\\n\"\n",
            bridge.http, bridge.registry
        );
        std::fs::write(home.path().join(".curlrc"), rc).unwrap();
        let binaries = Path::new(env!("CARGO_BIN_EXE_millrace-bridge")).parent().unwrap();
        let mut process = Command::new("bash")
            .env("CURL_HOME", home.path())
            .env("PATH", format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap()))
            .env("MILLRACE_BRIDGE", &bridge.control)
            .env("no_proxy", "localhost")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { home, input, output: BufReader::new(output).lines(), _process: process }
    }

    async fn run(&mut self, command: &str) -> Ran {
        let errors = self.home.path().join("errors");
        let whole = format!("{{ {command}\n}} 2>'{}' </dev/null; printf '\\n\\001%s\\n' $?\n", errors.display());
        self.input.write_all(whole.as_bytes()).await.unwrap();
        let mut output = Vec::new();
        let code = loop {
            let line = timeout(PATIENCE, self.output.next_line()).await.unwrap_or_else(|_| panic!("{command} does not end: {output:?}"));
            let line = line.unwrap().expect("the shell goes on");
            match line.strip_prefix('\u{1}') {
                Some(code) => break code.parse().unwrap(),
                None => output.push(line),
            }
        };
        while output.last().is_some_and(String::is_empty) {
            output.pop();
        }
        let errors = std::fs::read_to_string(errors).unwrap();
        let status = |line: &str| line.strip_prefix('<')?.strip_suffix('>')?.parse().ok();
        Ran { output, statuses: errors.lines().filter_map(status).collect(), code, errors }
    }

    /// A command without an end.
    async fn run_until_something_comes(&mut self, command: &str) -> Ran {
        let output = self.home.path().join("output");
        let output = output.display();
        let whole = format!(
            ": >'{output}'; {{ exec {command}\n}} >'{output}' & for _ in $(seq 400); do [ -s '{output}' ] && break; sleep 0.05; done; kill $!; wait $!; cat '{output}'"
        );
        self.run(&whole).await
    }
}

/// Equal but for what the page leaves out with `…`.
fn is_as_shown(shown: &[String], found: &[String]) -> bool {
    let pattern = |line: &String| format!("^{}$", regex::escape(line).replace('…', ".*"));
    shown.len() == found.len() && shown.iter().zip(found).all(|(shown, found)| Regex::new(&pattern(shown)).unwrap().is_match(found))
}

/// What an answer that is an error says its status is.
fn status_of_error(output: &[String]) -> Option<u16> {
    let code = output.first()?.split("\"error_code\":").nth(1)?.get(..3)?;
    code.parse().ok().filter(|_| output[0].starts_with("{\"error_code\":"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_example_works_as_it_stands() {
    // Topics and groups have the names of the page here: on a broker of its own.
    let cluster = Cluster::start(1);
    let bridge = Bridge::start(&cluster.servers).await;
    let mut shell = Shell::of(&bridge);

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/bridge.md")).unwrap();
    let examples = examples(&page);
    assert!(examples.len() > 40, "{} examples", examples.len());
    let mut wrong = Vec::new();
    for Example { line, command, shown } in &examples {
        let ran = shell.run(command).await;
        let expected = status_of_error(&ran.output);
        let statuses_fit = ran.statuses.iter().all(|status| expected.map_or((200..300).contains(status), |error| *status == error));
        let has_status = !command.contains("curl ") || !ran.statuses.is_empty();
        if ran.code != 0 || !statuses_fit || !has_status || !is_as_shown(shown, &ran.output) {
            wrong.push(format!(
                "docs/bridge.md:{line}: {command}\n  shown: {}\n  found: {}\n  status {:?}, exit code {} {}",
                shown.join("\n         "),
                ran.output.join("\n         "),
                ran.statuses,
                ran.code,
                if ran.statuses.is_empty() { &ran.errors } else { "" },
            ));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), bridge.log());

    // The README's, some of which have no end.
    let first = r#"millrace topic create first && curl -s localhost:8082/topics/first -H 'Content-Type: application/vnd.kafka.text.v2+json' -d '{"records":[{"value":"hello"}]}'"#;
    assert_eq!(shell.run(first).await.code, 0);
    let page = std::fs::read_to_string(root.join("README.md")).unwrap();
    let requests = requests(&page);
    assert!(requests.len() >= 3, "{requests:?}");
    for request in requests {
        if request.contains("-sN") {
            let ran = shell.run_until_something_comes(request).await;
            assert!(!ran.output.is_empty(), "{request}: {}", ran.errors);
        } else {
            let ran = shell.run(request).await;
            assert!(ran.code == 0 && ran.statuses.iter().all(|status| *status == 200), "{request}: {:?} {}", ran.output, ran.errors);
        }
    }
    bridge.stop().await;
}
