//! What keeps the tree as its documents say: paths, the direction of dependencies, and words that do not belong.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::MetadataCommand;
use integration_tests::root;

/// Every file that git tracks or would track.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(output.status.success());
    let files: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect();
    assert!(files.len() > 50, "git lists only {} files", files.len());
    files
}

/// Words in backticks that look like paths.
fn paths_in(text: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            for word in line.split('`').skip(1).step_by(2) {
                let path = word.trim_end_matches('/');
                let looks = (path.contains('/') || path.ends_with(".rs") || path.ends_with(".toml"))
                    && !path.contains([' ', '*', '<', ':', '$', '=']);
                if looks && !path.starts_with(['/', '~']) {
                    paths.insert(path.to_owned());
                }
            }
        }
    }
    paths
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let mut missing = Vec::new();
    for document in ["ARCHITECTURE.md", "README.md"] {
        let text = fs::read_to_string(root().join(document)).expect(document);
        let paths = paths_in(&text);
        assert!(document != "ARCHITECTURE.md" || paths.len() > 30, "{document} names only {} paths", paths.len());
        missing.extend(paths.into_iter().filter(|path| !root().join(path).exists()).map(|path| format!("{document}: {path}")));
    }
    assert!(missing.is_empty(), "these paths do not exist:\n{}", missing.join("\n"));
}

#[test]
fn dependencies_point_one_way() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().expect("cargo metadata");
    let members: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let allowed = |package: &str| -> &[&str] {
        match package {
            "proto" => &[],
            "service-kit" | "admin-cli" | "integration-tests" => &["proto"],
            "collector" | "broker-bridge" | "stream-engine" => &["proto", "service-kit"],
            // Programs that use the engine as a library.
            "examples" => &["stream-engine", "service-kit"],
            _ => panic!("{package} is new: say here what it may depend on"),
        }
    };
    let mut checked = 0;
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|dependency| members.contains(&dependency.name)) {
            checked += 1;
            assert!(allowed(&package.name).contains(&dependency.name.as_str()), "{} must not depend on {}", package.name, dependency.name);
        }
    }
    assert!(checked >= 8, "only {checked} dependencies between members");
}

#[test]
fn only_the_kafka_module_names_the_client_crates() {
    for file in files().iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let free = ["service-kit/src/kafka", "service-kit/tests", "service-kit/examples", "integration-tests"];
        if free.iter().any(|folder| file.starts_with(folder)) {
            continue;
        }
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (n, line) in code.enumerate() {
            assert!(!line.contains("rdkafka::") && !line.contains("rskafka::"), "{}: code line {}: {line}", file.display(), n + 1);
        }
    }
}

#[test]
fn versions_stand_once_in_the_root_manifest() {
    for file in files().iter().filter(|file| file.ends_with("Cargo.toml") && file.parent() != Some(Path::new(""))) {
        let text = fs::read_to_string(root().join(file)).expect("manifest");
        let in_dependencies = text.lines().scan(false, |inside, line| {
            if line.starts_with('[') {
                *inside = line.contains("dependencies");
            }
            Some((*inside, line))
        });
        for (inside, line) in in_dependencies {
            let pinned = inside
                && !line.starts_with(['[', '#'])
                && line.contains('=')
                && !line.contains("workspace = true")
                && !line.contains("path =");
            assert!(!pinned, "{}: `{line}` belongs into the root manifest", file.display());
        }
    }
}

#[test]
fn no_test_is_switched_off_and_no_work_is_left_in_code() {
    // Spelled in pieces, so that this file does not find itself.
    let words = [["#[ig", "nore"], ["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimple", "mented!("]].map(|parts| parts.concat());
    for file in files().iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        for (n, line) in text.lines().enumerate() {
            assert!(!words.iter().any(|word| line.contains(word.as_str())), "{}:{}: {line}", file.display(), n + 1);
        }
    }
}

#[test]
fn nothing_names_a_machine() {
    let words = [["/ro", "ot/"], ["/wo", "rk/"], ["/ho", "me/"]].map(|parts| parts.concat());
    for file in files() {
        let Ok(text) = fs::read_to_string(root().join(&file)) else {
            continue;
        };
        for (n, line) in text.lines().enumerate() {
            assert!(!words.iter().any(|word| line.contains(word.as_str())), "{}:{}: {line}", file.display(), n + 1);
        }
    }
}
