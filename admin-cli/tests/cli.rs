//! What a user sees: the real binary against control services with fixed answers. Snapshots are in `snapshots/`; `MILLRACE_BLESS=1` renews them.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Stdio,
};

use support::{Fake, World, mask, millrace, snapshot, stderr, stdout, transcript};

#[test]
fn every_listing_is_a_table_and_a_document() {
    let world = World::start();
    for (name, words) in [
        ("status", &["status"][..]),
        ("status_wide", &["status", "--wide"]),
        ("collector_components", &["collector", "components"]),
        ("tap", &["tap", "--max", "2", "--headers", "logSource", "nginx"]),
        ("top", &["top", "--once", "--interval", "10ms"]),
        ("topic_list", &["topic", "list"]),
        ("topic_describe", &["topic", "describe", "logs_topic"]),
        ("topic_advise", &["topic", "advise", "--consumers", "3", "--producers", "2"]),
        ("topic_advise_of_one", &["topic", "advise", "--topic", "clicks"]),
        ("topic_lint", &["topic", "lint"]),
        ("topic_lint_clean", &["topic", "lint", "clean"]),
        ("group_list", &["group", "list"]),
        ("group_lag", &["group", "lag", "spark-group"]),
        ("group_lags", &["group", "lag"]),
        (
            "group_reset_offsets_dry_run",
            &["group", "reset-offsets", "spark-group", "--topic", "logs_topic", "--to", "earliest", "--dry-run"],
        ),
        ("broker_list", &["broker", "list"]),
        ("broker_config", &["broker", "config", "1"]),
        ("topic_config", &["topic", "config", "logs_topic"]),
        ("group_describe", &["group", "describe", "spark-group"]),
        ("acl_list", &["acl", "list", "--principal", "User:spark"]),
        ("job_list", &["job", "list"]),
        ("job_show", &["job", "show", "nginx-stats"]),
    ] {
        world.check(name, words);
        // A look at the clock is in it.
        if name != "top" {
            world.check(&format!("{name}_json"), &[words, &["--output", "json"]].concat());
        }
    }
}

#[test]
fn every_action_says_what_it_did() {
    let world = World::start();
    for (name, words) in [
        ("reload", &["collector", "reload"][..]),
        ("tap_logfmt", &["tap", "--max", "2", "--format", "logfmt", "--quiet"]),
        ("tap_too_many", &["tap", "--limit", "9999"]),
        ("reload_json", &["collector", "reload", "-o", "json"]),
        ("group_reset_offsets", &["group", "reset-offsets", "spark-group", "--topic", "logs_topic", "--to", "7"]),
        ("group_reset_offsets_refused", &["group", "reset-offsets", "busy", "--topic", "logs_topic", "--to", "latest"]),
        ("pause_all", &["collector", "pause"]),
        ("pause_one", &["engine", "pause", "a"]),
        ("pause_unknown", &["collector", "pause", "c"]),
        ("resume", &["bridge", "resume"]),
        ("drain", &["collector", "drain"]),
        ("drain_incomplete", &["bridge", "drain"]),
        ("drain_incomplete_json", &["bridge", "drain", "-o", "json"]),
        ("config", &["config", "bridge"]),
        ("config_json", &["config", "bridge", "-o", "json"]),
        ("log_level", &["log-level", "engine", "info,stream_engine=debug"]),
        ("topic_delete", &["topic", "delete", "old", "--yes"]),
        ("topic_config_all", &["topic", "config", "logs_topic", "--all"]),
        ("topic_alter", &["topic", "alter", "logs_topic", "--set", "retention.ms=3600000", "--delete", "segment.ms"]),
        ("topic_alter_dry_run_json", &["topic", "alter", "logs_topic", "--set", "a=b", "--dry-run", "-o", "json"]),
        ("topic_alter_twice", &["topic", "alter", "logs_topic", "--set", "a=b", "--delete", "a"]),
        ("topic_add_partitions", &["topic", "add-partitions", "logs_topic", "--partitions", "12"]),
        ("broker_alter", &["broker", "alter", "--set", "log.cleaner.backoff.ms=16000"]),
        ("acl_create", &["acl", "create", "--topic", "logs_", "--prefixed", "--principal", "User:spark", "--operation", "alter-configs"]),
        ("acl_create_of_nothing", &["acl", "create", "--principal", "User:spark", "--operation", "read"]),
        ("acl_delete", &["acl", "delete", "--topic", "logs_", "--prefixed", "--yes"]),
        ("acl_delete_without_yes", &["acl", "delete", "--group", "spark-group"]),
        ("topic_delete_without_yes", &["topic", "delete", "old"]),
        ("topic_create_exists", &["topic", "create", "logs_topic"]),
        ("topic_describe_unknown", &["topic", "describe", "nope"]),
        ("job_stop", &["job", "stop", "nginx-stats", "--drain"]),
        ("job_stop_json", &["job", "stop", "nginx-stats", "-o", "json"]),
        ("job_savepoint", &["job", "savepoint", "nginx-stats"]),
        ("job_savepoint_json", &["job", "savepoint", "nginx-stats", "-o", "json"]),
        ("job_savepoints", &["job", "savepoints", "nginx-stats"]),
        ("job_savepoints_json", &["job", "savepoints", "nginx-stats", "-o", "json"]),
        ("job_savepoints_delete", &["job", "savepoints", "nginx-stats", "--delete", "before-upgrade"]),
        ("job_savepoints_delete_unknown", &["job", "savepoints", "nginx-stats", "--delete", "nothing"]),
    ] {
        world.check(name, words);
    }
}

#[test]
fn a_topic_is_created_as_asked_and_the_rest_is_advised() {
    let world = World::start();
    let words = ["topic", "create", "clicks", "--retention", "7d", "--min-isr", "2", "--replication", "3", "--consumers", "4"];
    world.check("topic_create", &[&words[..], &["--config", "cleanup.policy=compact", "--config", "x=a=b"]].concat());
    let message = world.bridge.call().message;
    for part in [
        "name: \"clicks\"",
        "partitions: 0",
        "replication: 3",
        "consumers: 4",
        "producers: 1",
        "retention_ms: 604800000",
        "min_insync_replicas: 2",
        "\"x\": \"a=b\"",
        "dry_run: false",
    ] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    world.check("topic_create_as_advised", &["topic", "create", "clicks"]);
    world.check("topic_create_like_another", &["topic", "create", "clicks-2", "--like", "clicks", "--dry-run"]);
    world.check("topic_create_not_as_advised", &["topic", "create", "clicks", "--partitions", "1", "--replication", "1"]);
    world.check("topic_create_dry_run", &["topic", "create", "clicks", "--partitions", "8", "--dry-run"]);
    world.check("topic_create_dry_run_json", &["topic", "create", "clicks", "--partitions", "8", "--dry-run", "-o", "json"]);
    world.check("topic_create_twice", &["topic", "create", "a", "--retention", "1h", "--config", "retention.ms=1"]);
}

const JOB: &str = "CREATE TABLE logs (host STRING, status INT);\nINSERT INTO out\nSELECT host, COUNT(*)\nFROM logs GROUP BY host;\n";

#[test]
fn a_job_is_submitted_under_its_files_name() {
    let world = World::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nginx-stats.sql");
    fs::write(&file, JOB).unwrap();
    let file = file.to_str().unwrap();

    let seen = world.millrace(&["job", "submit", file]);
    snapshot("job_submit", &transcript(&["job", "submit", "nginx-stats.sql"], &seen));
    assert!(world.engine.call().message.contains("name: \"nginx-stats\""), "{:?}", world.engine.call());
    let seen = world.millrace(&["job", "submit", file, "--name", "other", "--dry-run"]);
    snapshot("job_submit_dry_run", &transcript(&["job", "submit", "nginx-stats.sql", "--name", "other", "--dry-run"], &seen));
    let seen = world.millrace(&["job", "submit", file, "--dry-run", "-o", "json"]);
    snapshot("job_submit_dry_run_json", &transcript(&["job", "submit", "nginx-stats.sql", "--dry-run", "-o", "json"], &seen));
}

#[test]
fn a_wrong_job_is_shown_at_the_place_that_is_wrong() {
    let world = World::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.sql");
    fs::write(&file, JOB.replace("SELECT host", "SELECT hots")).unwrap();
    let seen = world.millrace(&["job", "submit", file.to_str().unwrap()]);
    let seen = transcript(&["job", "submit", "job.sql"], &seen).replace(folder.path().to_str().unwrap(), "");
    snapshot("job_submit_wrong", &seen);

    fs::write(&file, b"SELECT \xff").unwrap();
    let seen = world.millrace(&["job", "submit", file.to_str().unwrap()]);
    assert!(stderr(&seen).contains("job.sql is not UTF-8 text: byte 7 is wrong"), "{seen:?}");
    fs::write(&file, vec![b' '; (1 << 20) + 1]).unwrap();
    let seen = world.millrace(&["job", "submit", file.to_str().unwrap()]);
    assert!(stderr(&seen).contains("job.sql is larger than 1.0 MiB"), "{seen:?}");
    world.check("job_submit_absent", &["job", "submit", "no/such.sql"]);
    world.check("job_submit_stdin_without_name", &["job", "submit", "-"]);
}

#[test]
fn a_job_is_read_from_stdin() {
    let world = World::start();
    let mut child = world.command(&["job", "submit", "-", "--name", "piped"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(JOB.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let message = world.engine.call().message;
    assert!(message.contains("name: \"piped\"") && message.contains("CREATE TABLE logs"), "{message}");
}

/// A port on which nobody listens: bound once, so it was free.
fn closed() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_service_that_is_away_is_named_with_the_remedy() {
    for (service, variable, words) in [
        ("collector", "MILLRACE_COLLECTOR", ["collector", "components"]),
        ("bridge", "MILLRACE_BRIDGE", ["topic", "list"]),
        ("engine", "MILLRACE_ENGINE", ["job", "list"]),
    ] {
        let address = closed();
        let seen = millrace(&words).env(variable, &address).output().unwrap();
        assert_eq!(seen.status.code(), Some(2));
        assert_eq!(stdout(&seen), "");
        let expected = format!(
            "error: cannot reach the {service} at {address}: connection refused; is millrace-{service} running? set --{service} or {variable}\n"
        );
        assert_eq!(stderr(&seen), expected);
    }
    let seen = millrace(&["topic", "list", "--bridge", "no.such.host.invalid:7102", "--timeout", "30s"]).output().unwrap();
    assert_eq!(seen.status.code(), Some(2));
    assert!(stderr(&seen).starts_with("error: cannot reach the bridge at no.such.host.invalid:7102: "), "{seen:?}");
}

#[test]
fn status_shows_who_is_away_beside_who_is_there() {
    let collector = Fake::collector();
    let (bridge, engine) = (closed(), closed());
    let address = collector.address.to_string();
    for (name, output) in [("status_partly", "table"), ("status_partly_json", "json")] {
        let words = ["status", "--collector", &address, "--bridge", &bridge, "--engine", &engine, "--output", output];
        let seen = transcript(&["status"], &millrace(&words).output().unwrap());
        let seen = [(&address, "collector"), (&bridge, "bridge"), (&engine, "engine")]
            .iter()
            .fold(seen, |seen, (address, service)| mask(&seen, address, service));
        snapshot(name, &seen);
    }
    // Whoever runs one service asks for that one.
    assert_eq!(millrace(&["status", "collector", "--collector", &address]).output().unwrap().status.code(), Some(0));
    let seen = millrace(&["status", "engine", "--engine", &address]).output().unwrap();
    assert_eq!(seen.status.code(), Some(1));
    assert!(stdout(&seen).contains("millrace-collector answers here, not millrace-engine; set --engine or MILLRACE_ENGINE"), "{seen:?}");
}

#[test]
fn a_service_that_accepts_and_never_answers_costs_the_deadline_and_no_more() {
    // Bound and never accepted: the kernel completes the connection, nobody speaks.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let seen = millrace(&["job", "list", "--engine", &address, "--timeout", "300ms"]).output().unwrap();
    assert_eq!(seen.status.code(), Some(2));
    assert!(stderr(&seen).contains(&format!("the engine at {address} did not answer within 300ms")), "{seen:?}");
    // All three hang: the deadlines run at the same time.
    let started = std::time::Instant::now();
    let words = ["status", "--collector", &address, "--bridge", &address, "--engine", &address, "--timeout", "2s"];
    let seen = millrace(&words).output().unwrap();
    assert_eq!(seen.status.code(), Some(2));
    assert_eq!(stdout(&seen).matches("unreachable").count(), 3, "{seen:?}");
    let spent = started.elapsed();
    // One after the other would be 6 s.
    assert!((2.0..6.0).contains(&spent.as_secs_f64()), "took {spent:?}");
}

#[test]
fn whoever_else_listens_there_is_not_mistaken_for_a_service() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let seen = millrace(&["topic", "list", "--bridge", &address]).output().unwrap();
    server.join().unwrap();
    assert_eq!(seen.status.code(), Some(2));
    assert!(stderr(&seen).starts_with(&format!("error: lost the bridge at {address}: ")), "{seen:?}");
    assert!(stderr(&seen).contains("is it millrace-bridge"), "{seen:?}");

    // The right program at the wrong option.
    let world = World::start();
    let seen = world.millrace(&["topic", "list", "--bridge", &world.engine.address.to_string()]);
    assert_eq!(seen.status.code(), Some(1));
    assert!(stderr(&seen).contains("does not offer this call; is it millrace-bridge of this version?"), "{seen:?}");
}

#[test]
fn the_callers_trace_and_deadline_travel_along() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let world = World::start();
    assert!(world.command(&["topic", "list"]).env("TRACEPARENT", trace).output().unwrap().status.success());
    assert_eq!(world.bridge.call().traceparent.as_deref(), Some(trace));
    assert!(world.bridge.call().has_deadline);

    assert!(world.millrace(&["job", "list"]).status.success());
    assert_eq!(world.engine.call().traceparent, None);

    let seen = world.command(&["collector", "components"]).env("TRACEPARENT", "nonsense").output().unwrap();
    assert!(seen.status.success());
    assert!(stderr(&seen).contains("TRACEPARENT is ignored"), "{seen:?}");
    assert_eq!(world.collector.call().traceparent, None);
}

#[test]
fn a_given_time_is_what_the_service_is_told() {
    let world = World::start();
    world.millrace(&["job", "stop", "a", "--drain", "--timeout", "90s"]);
    let message = world.engine.call().message;
    assert!(message.contains("drain: true") && message.contains("timeout_ms: 90000"), "{message}");
    world.millrace(&["collector", "drain"]);
    assert!(world.collector.call().message.contains("timeout_ms: 0"), "{:?}", world.collector.call());
}

#[test]
fn a_wrong_command_line_is_exit_code_64() {
    for (name, words) in [
        ("usage_unknown", &["topics"][..]),
        ("usage_missing", &["topic", "describe"]),
        ("usage_reload", &["bridge", "reload"]),
        ("usage_place", &["group", "reset-offsets", "g", "--topic", "t", "--to", "yesterday"]),
        ("usage_address", &["status", "--bridge", "localhost"]),
        ("usage_timeout", &["status", "--timeout", "10"]),
        ("usage_config", &["topic", "create", "a", "--config", "retention"]),
        ("usage_partitions", &["topic", "create", "a", "--partitions", "0"]),
        ("usage_service", &["config", "broker"]),
    ] {
        let output = millrace(words).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{words:?}");
        snapshot(name, &transcript(words, &output));
    }
    let output = millrace(&["status"]).env("MILLRACE_ENGINE", "nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(millrace(&[]).output().unwrap().status.code(), Some(64));
    for words in [&["--help"][..], &["--version"], &["topic", "create", "--help"]] {
        let output = millrace(words).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty() && !output.stdout.is_empty());
    }
}

#[test]
fn a_credential_goes_to_other_machines_by_tls_alone_unless_it_is_allowed() {
    let world = World::start();
    // Leads to this machine, and is none of its loopback addresses.
    let address = format!("0.0.0.0:{}", world.bridge.address.port());
    let list = |words: &[&str], key: &str| {
        let words = [&["topic", "list", "--bridge", address.as_str()], words].concat();
        millrace(&words).env("MILLRACE_API_KEY", key).output().unwrap()
    };
    let refused = list(&[], "hunter2");
    assert_eq!(refused.status.code(), Some(64), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("--ca-file") && stderr(&refused).contains("--allow-plaintext"), "{}", stderr(&refused));
    assert!(world.bridge.calls.lock().unwrap().is_empty());
    for seen in [list(&["--allow-plaintext"], "hunter2"), list(&[], "")] {
        assert_eq!(seen.status.code(), Some(0), "{}", stderr(&seen));
    }
}

#[test]
fn there_is_a_completion_script_for_each_shell() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef millrace"),
        ("fish", "complete -c millrace"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let output = millrace(&["completion", shell]).output().unwrap();
        assert!(output.status.success());
        let script = stdout(&output);
        assert!(script.contains(mark) && script.contains("savepoint"), "{shell}: {script}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = millrace(&["completion", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

/// The command with a terminal on all three streams, by `script` of util-linux, and `typed` on its keyboard.
fn on_a_terminal(world: &World, words: &[&str], typed: &str) -> (Option<i32>, String) {
    typed_at(world, &[&[env!("CARGO_BIN_EXE_millrace")], words].concat().join(" "), typed)
}

fn typed_at(world: &World, line: &str, typed: &str) -> (Option<i32>, String) {
    let mut command = world.command(&[]);
    let variables: Vec<_> = command.get_envs().map(|(key, value)| (key.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = std::process::Command::new("script");
    for (key, value) in variables {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.args(["--quiet", "--return", "--command", line, "/dev/null"]).env("TERM", "xterm");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stdout(&output))
}

#[test]
fn a_terminal_gets_colours_unless_they_are_unwanted() {
    let world = World::start();
    let (code, seen) = on_a_terminal(&world, &["status"], "");
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("\u{1b}["), "{seen}");
    let (_, seen) = on_a_terminal(&world, &["status", "--no-color"], "");
    assert!(seen.contains("ready") && !seen.contains('\u{1b}'), "{seen}");
}

#[test]
fn a_table_keeps_to_the_terminals_width() {
    let world = World::start();
    let line = format!("stty columns 100; {} status --no-color", env!("CARGO_BIN_EXE_millrace"));
    let (_, seen) = typed_at(&world, &line, "");
    let widest = seen.lines().map(|line| line.trim_end().chars().count()).max();
    assert!((50..=100).contains(&widest.unwrap()), "{seen}");
    // What a pipe gets in one line.
    assert!(seen.lines().count() > 4 && seen.contains("degraded"), "{seen}");
}

#[test]
fn a_terminal_shows_that_a_drain_is_under_way() {
    let (_, seen) = on_a_terminal(&World::start(), &["job", "stop", "nginx-stats", "--drain"], "");
    assert!(seen.contains("draining nginx-stats") && seen.contains("nginx-stats is finished"), "{seen}");
}

#[test]
fn a_person_types_the_name_of_the_topic_to_delete() {
    let world = World::start();
    let (code, seen) = on_a_terminal(&world, &["topic", "delete", "old"], "older\n");
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("Type the topic's name") && seen.contains("nothing was deleted"), "{seen}");
    assert!(world.bridge.calls.lock().unwrap().is_empty());
    let (code, seen) = on_a_terminal(&world, &["topic", "delete", "old"], "old\n");
    assert_eq!(code, Some(0), "{seen}");
    assert!(world.bridge.call().message.contains("old"));
}

#[test]
fn a_pipe_gets_no_escape_sequences() {
    let world = World::start();
    for words in [&["status"][..], &["collector", "components"], &["--help"]] {
        let output = world.millrace(words);
        assert!(!output.stdout.contains(&0x1b), "{words:?}");
    }
}
