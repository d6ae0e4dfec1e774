//! `millrace-collector test FILE…`: does an agent's pipeline do with given events what its tests say? The code that decides is
//! the pipeline's own; nothing is started, bound or written.

pub mod file;
pub mod run;

#[cfg(test)]
mod tests;

use std::{fmt::Write as _, path::PathBuf};

use serde::Serialize;

use self::file::{Fault, Loaded};
use self::run::{Failure, fault_of, pinned, run, source_of};
use crate::conf_files::Origins;
use crate::flume_conf::{Level, Outcome, Plan};
use crate::reload;

/// One test's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub file: String,
    pub line: usize,
    pub name: String,
    pub passed: bool,
    pub failures: Vec<Failure>,
}

/// What the files came to.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub passed: bool,
    pub tests: Vec<Verdict>,
    /// Why a file could not be used: `file:line: what`. With one of them no test of its file was run.
    pub faults: Vec<String>,
}

/// Runs the tests of all files.
pub async fn run_files(paths: &[PathBuf], strict: bool) -> Report {
    let mut report = Report::default();
    for path in paths {
        let told = |fault: &Fault| format!("{}:{}: {}", path.display(), fault.line, fault.message);
        let outcome = match Loaded::read(path) {
            Ok(loaded) => match prepared(&loaded, strict).await {
                Ok(plan) => verdicts(&loaded, &plan).await,
                Err(faults) => Err(faults),
            },
            Err(faults) => Err(faults.iter().map(told).collect()),
        };
        match outcome {
            Ok(verdicts) => report.tests.extend(verdicts),
            Err(faults) => report.faults.extend(faults),
        }
    }
    report.passed = report.faults.is_empty() && report.tests.iter().all(|test| test.passed);
    report
}

/// The agent's plan, once the file asks for nothing that it does not have.
async fn prepared(loaded: &Loaded, strict: bool) -> Result<Plan, Vec<String>> {
    let files = loaded.file.conf.iter().map(|name| loaded.directory.join(name)).collect();
    let (agent, define) = (loaded.file.agent.clone(), loaded.file.define.clone());
    let origins = Origins { files, ..Origins::default() };
    // It may run the commands of config filters.
    let read = tokio::task::spawn_blocking(move || reload::read(&origins, agent.as_deref(), strict, &define)).await;
    let outcome = read.map_err(|error| vec![format!("{}: {error}", loaded.name)])?;
    let failed = outcome.failed();
    let Outcome { mut plans, findings } = outcome;
    if failed {
        let errors = findings.iter().filter(|finding| finding.level == Level::Error);
        return Err(errors.map(|finding| format!("{}: {finding}", loaded.name)).collect());
    }
    if plans.len() != 1 {
        let names: Vec<_> = plans.iter().map(|plan| plan.agent.as_str()).collect();
        return Err(vec![format!("{}:1: there are several agents: {}; give one with agent = …", loaded.name, names.join(", "))]);
    }
    let plan = pinned(plans.remove(0), loaded.file.clock, loaded.file.host.as_deref());
    let mut faults = Vec::new();
    for test in &loaded.file.tests {
        let mut fault = |line: usize, what: String| faults.push(format!("{}:{line}: test `{}`: {what}", loaded.name, test.get_ref().name));
        match source_of(&plan, test.get_ref()) {
            Ok(source) => {
                for expect in &test.get_ref().expect {
                    if let Some(what) = fault_of(&plan, source, expect.get_ref()) {
                        fault(loaded.line(expect), what);
                    }
                }
            }
            Err(what) => fault(loaded.line(test), what),
        }
    }
    if faults.is_empty() { Ok(plan) } else { Err(faults) }
}

async fn verdicts(loaded: &Loaded, plan: &Plan) -> Result<Vec<Verdict>, Vec<String>> {
    let mut verdicts = Vec::new();
    for test in &loaded.file.tests {
        let line = loaded.line(test);
        let failures = run(loaded, plan, test).await.map_err(|error| vec![format!("{}:{line}: {error:#}", loaded.name)])?;
        let name = test.get_ref().name.clone();
        verdicts.push(Verdict { file: loaded.name.clone(), line, name, passed: failures.is_empty(), failures });
    }
    Ok(verdicts)
}

impl Report {
    /// As people read it; what is wrong with the files themselves is not in it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for test in &self.tests {
            let word = if test.passed { "ok  " } else { "FAIL" };
            // Writing to a String cannot fail.
            let _written = writeln!(text, "{word} {}:{} {}", test.file, test.line, test.name);
            for failure in &test.failures {
                let Failure { line, place, what, expected, seen } = failure;
                let _written = writeln!(
                    text,
                    "       {}:{line}: {place}: {what}\n         expected  {expected}\n         seen      {seen}",
                    test.file
                );
            }
        }
        let failed = self.tests.iter().filter(|test| !test.passed).count();
        let count = self.tests.len();
        let _written = writeln!(text, "{count} test{}, {failed} failed", if count == 1 { "" } else { "s" });
        text
    }
}
