//! `check` beside real Flume on a corpus of agent files: with `--flume-strict` the same components run, with the same
//! sizes; as the collector reads them by itself, every difference has a finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use integration_tests::{process::run, root, servers::script};
use serde_json::Value;

/// What the files' variables stand for. Everything else that they name is not set.
const ENV: &[(&str, &str)] = &[
    ("CORPUS_CAPACITY", "5000"),
    ("CORPUS_SMALL", "50"),
    ("CORPUS_WHICH", "CORPUS_CAPACITY"),
    ("CORPUS_EMPTY", ""),
    ("CORPUS_SINKS", "k l"),
    ("CORPUS_TYPE", "logger"),
];
const DEFINE: &str = "-Dcorpus.capacity=6000";

/// A component: what it is, and its name.
type Name = (&'static str, String);

fn files() -> Vec<PathBuf> {
    let folder = root().join("integration-tests/corpus");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).expect("the corpus").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// One line for every agent of every file.
fn flume(files: &[PathBuf]) -> Vec<Value> {
    let folder = root().join("deploy/dev/flume");
    let jars = [("flume", "pom.xml"), ("flume-more", "more.xml"), ("flume-hadoop", "hadoop.xml")]
        .map(|(name, pom)| script("jars", &[name, &folder.join(pom).to_string_lossy()]) + "/*");
    let dir = tempfile::tempdir().expect("a folder");
    let result = dir.path().join("result");
    let output = Command::new("java")
        .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", DEFINE, "-cp", &jars.join(":")])
        .arg(format!("-Dlog4j2.configurationFile={}", folder.join("log4j2.properties").display()))
        .arg(root().join("integration-tests/java/Loaded.java"))
        .arg(&result)
        .args(files)
        .envs(ENV.iter().copied())
        .output()
        .expect("java");
    let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let text = fs::read_to_string(&result).unwrap_or_else(|error| panic!("{error}:\n{log}"));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn check(file: &str, agent: &str, strict: bool) -> Value {
    let path = root().join("integration-tests/corpus").join(file);
    let path = path.to_string_lossy();
    let mut arguments = vec!["check", "-o", "json", "-n", agent, DEFINE, &path];
    arguments.extend(strict.then_some("--flume-strict"));
    let output = run("millrace-collector", &arguments, ENV);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{file}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Flume's components.
fn loaded(line: &Value) -> BTreeMap<Name, &Value> {
    let of = |list, role| {
        let all = line[list].as_object().into_iter().flatten();
        all.map(move |(name, view)| ((role, name.clone()), view))
    };
    of("sources", "source").chain(of("channels", "channel")).chain(of("sinks", "sink")).collect()
}

/// The components that `check` says would run.
fn planned(checked: &Value) -> BTreeMap<Name, &Value> {
    if checked["starts"] != true {
        return BTreeMap::new();
    }
    let components = checked["agents"][0]["components"].as_array().into_iter().flatten();
    let role = |view: &Value| ["source", "channel", "sink"].into_iter().find(|role| view["role"] == *role);
    components.filter_map(|view| Some(((role(view)?, view["name"].as_str()?.to_owned()), view))).collect()
}

/// What `components` prints, by role and by alias and class.
fn kinds() -> BTreeMap<(String, String), Value> {
    let output = run("millrace-collector", &["components", "-o", "json"], &[]);
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut kinds = BTreeMap::new();
    for kind in all["components"].as_array().into_iter().flatten() {
        for name in [&kind["type"], &kind["class"]].into_iter().filter_map(Value::as_str) {
            kinds.insert((kind["role"].as_str().unwrap_or_default().to_owned(), name.to_lowercase()), kind.clone());
        }
    }
    kinds
}

/// What a setting is, or its default.
fn setting(view: &Value, kind: &Value, names: &[&str]) -> Option<String> {
    let properties = kind["properties"].as_array()?;
    let property = names.iter().find_map(|name| properties.iter().find(|property| property["name"] == *name))?;
    let written = view["settings"][property["name"].as_str()?].as_str();
    written.or_else(|| property["default"].as_str()).map(|text| text.trim().to_owned())
}

fn texts(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Sizes and channels of one component that runs in both.
fn differences(name: &Name, flume: &Value, ours: &Value, kinds: &BTreeMap<(String, String), Value>) -> Vec<String> {
    let mut wrong = Vec::new();
    let kind = ours["type"].as_str().unwrap_or_default().to_lowercase();
    let Some(kind) = kinds.get(&(name.0.to_owned(), kind.clone())) else { return vec![format!("no kind {kind}")] };
    if let Some(class) = kind["class"].as_str()
        && flume["class"] != class
    {
        wrong.push(format!("class {class}, Flume {}", flume["class"]));
    }
    if name.0 != "channel" && texts(&flume["channels"]) != texts(&ours["channels"]) {
        wrong.push(format!("channels {}, Flume {}", ours["channels"], flume["channels"]));
    }
    let sizes: [(&str, &[&str]); 3] = [
        ("capacity", &["capacity"]),
        ("transactionCapacity", &["transactionCapacity"]),
        ("batch", &["batchSize", "batch-size", "flumeBatchSize", "hdfs.batchSize", "sink.batchSize"]),
    ];
    for (size, names) in sizes {
        if let (Some(theirs), Some(ours)) = (flume[size].as_i64(), setting(ours, kind, names))
            && ours != theirs.to_string()
        {
            wrong.push(format!("{size} {ours}, Flume {theirs}"));
        }
    }
    wrong
}

/// Does a finding speak of the component, of one of its channels, or of how the whole file is read?
fn told(checked: &Value, name: &Name, view: &Value) -> bool {
    let mut names = vec![name.clone()];
    names.extend(texts(&view["channels"]).into_iter().map(|channel| ("channel", channel.to_owned())));
    names.iter().any(|name| told_of(checked, name)) || findings(checked).any(|finding| finding["code"] == "encoding")
}

fn findings(checked: &Value) -> impl Iterator<Item = &Value> {
    checked["findings"].as_array().into_iter().flatten()
}

/// Flume loads some components that it cannot run, and it has some that are missing here: a finding must say so.
fn only_loaded(checked: &Value, (role, name): &Name) -> bool {
    findings(checked).any(|finding| {
        let flume = finding["flume"].as_str().unwrap_or_default();
        let of_it = finding["key"].as_str().unwrap_or_default().contains(&format!(".{role}s.{name}."));
        of_it && ["never gets it started", "takes it as it is"].iter().any(|begin| flume.starts_with(begin))
    })
}

fn told_of(checked: &Value, (role, name): &Name) -> bool {
    findings(checked).any(|finding| {
        let key = finding["key"].as_str().unwrap_or_default();
        let message = finding["message"].as_str().unwrap_or_default();
        let said = !finding["flume"].as_str().unwrap_or_default().is_empty() || finding["level"] == "error";
        said && (key.contains(&format!(".{role}s.{name}."))
            || key.ends_with(&format!(".{role}s"))
            || message.contains(&format!("`{name}`")))
    })
}

#[test]
fn check_says_what_real_flume_does_on_every_file() {
    let files = files();
    assert!(files.len() >= 80, "{} files", files.len());
    for file in &files {
        let bytes = fs::read(file).expect("a file of the corpus");
        assert!(bytes.starts_with(b"# "), "{} does not say what it shows", file.display());
    }
    let kinds = kinds();
    let (mut wrong, mut compared, mut excused) = (Vec::new(), 0, 0);
    for line in flume(&files) {
        let (file, agent) = (line["file"].as_str().unwrap_or_default(), line["agent"].as_str().unwrap_or_default());
        let theirs = loaded(&line);
        let strict = check(file, agent, true);
        let ours = planned(&strict);
        let not_built = findings(&strict).any(|finding| finding["code"] == "not-built" && finding["level"] == "error");
        // What is attached to a channel that cannot run does not run either.
        let attached = |view: &Value| texts(&view["channels"]).iter().any(|name| only_loaded(&strict, &("channel", (*name).to_owned())));
        let left: BTreeSet<_> =
            theirs.iter().filter(|(name, view)| !only_loaded(&strict, name) && !attached(view)).map(|(name, _)| name).collect();
        let right: BTreeSet<_> = ours.keys().collect();
        excused += usize::from(not_built) + theirs.len() - left.len();
        if left != right && !not_built {
            wrong.push(format!("{file} ({agent}): Flume runs {left:?}, strict {right:?}; Flume's error {}", line["fatal"]));
        }
        for (name, view) in &theirs {
            compared += 1;
            if let Some(ours) = ours.get(name) {
                let found = differences(name, view, ours, &kinds);
                wrong.extend(found.into_iter().map(|text| format!("{file} ({agent}): {name:?}: {text}")));
            }
        }
        // The collector's own reading.
        let own = check(file, agent, false);
        let ours = planned(&own);
        let errors = findings(&own).filter(|finding| finding["level"] == "error").count();
        if (own["starts"] == true) != (errors == 0) {
            wrong.push(format!("{file} ({agent}): starts {}, {errors} errors", own["starts"]));
        }
        if own["starts"] != true {
            continue;
        }
        let (left, right): (BTreeSet<_>, BTreeSet<_>) = (theirs.keys().collect(), ours.keys().collect());
        for name in left.symmetric_difference(&right) {
            let view = theirs.get(*name).or_else(|| ours.get(*name)).copied().unwrap_or(&Value::Null);
            if !told(&own, name, view) {
                wrong.push(format!("{file} ({agent}): {name:?} runs in one only, and no finding says so: {}", own["findings"]));
            }
        }
        for (name, view) in &theirs {
            if let Some(ours) = ours.get(name)
                && let found = differences(name, view, ours, &kinds)
                && !found.is_empty()
                && !told(&own, name, ours)
            {
                wrong.push(format!("{file} ({agent}): {name:?}: {found:?}, and no finding says so"));
            }
        }
    }
    // Ports that cannot be, batches of zero and words that are looked at late: few, and each with its finding.
    assert!(excused < 30, "{excused}");
    assert!(compared > 300, "only {compared} components of Flume");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}
