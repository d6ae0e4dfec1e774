//! Can a changed program go on from a checkpoint? Facts in, verdict out; no I/O.
//!
//! A program is known by its sources' names and its [`fingerprint`](Program::fingerprint). In both, what is named is found again by
//! its name: a source `/sources/<name>`, an operator with state `/operators/<name>`.
//!
//! | difference | what it means |
//! |---|---|
//! | a source or an operator is added | it begins: the source at its startup mode, the operator without state |
//! | a source or an operator is removed | its offsets or its state are dropped; only when the job says that it may be |
//! | anything else | the checkpoint does not fit |

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use super::Metadata;
use crate::batch::Program;

/// What is taken for dropping what a changed program does not claim any more; Flink's name.
pub const IGNORE_UNCLAIMED: &str = "execution.state-recovery.ignore-unclaimed-state";

/// Longest value shown.
const SHOWN_CHARS_MAX: usize = 200;

/// What a checkpoint knows a program by.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub fingerprint: Value,
    /// Names of the sources, by index.
    pub sources: Vec<String>,
}

impl Identity {
    pub fn of(program: &dyn Program) -> Self {
        Self { fingerprint: program.fingerprint(), sources: program.sources().into_iter().map(|source| source.name).collect() }
    }
}

/// One thing in which a program is not the one that wrote the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Names from the outside in: `operators`, `totals`, `window`, `size_ms`.
    pub path: Vec<String>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Added,
    Removed,
    Changed { was: Value, is: Value },
}

/// What a difference means for the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Begins,
    Dropped,
    DoesNotFit,
}

impl Difference {
    fn meaning(&self) -> Meaning {
        match (self.path.as_slice(), &self.what) {
            ([kind, _], What::Added) if kind == "sources" || kind == "operators" => Meaning::Begins,
            ([kind, _], What::Removed) if kind == "sources" || kind == "operators" => Meaning::Dropped,
            _ => Meaning::DoesNotFit,
        }
    }

    /// What follows from it, for a program that goes on.
    pub fn consequence(&self) -> &'static str {
        let source = self.path.first().is_some_and(|kind| kind == "sources");
        match (self.meaning(), source) {
            (Meaning::Begins, true) => "it begins at its startup mode",
            (Meaning::Begins, false) => "it begins without state: what is open now lacks what came before",
            (Meaning::Dropped, true) => "its offsets are dropped",
            (Meaning::Dropped, false) => "its state is dropped",
            (Meaning::DoesNotFit, _) => "it does not fit",
        }
    }
}

/// `/operators/totals/window/size_ms: was 10000, is 20000`
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.path {
            write!(f, "/{name}")?;
        }
        match &self.what {
            What::Added => f.write_str(": was not there"),
            What::Removed => f.write_str(": is not there any more"),
            What::Changed { was, is } => write!(f, ": was {}, is {}", shown(was), shown(is)),
        }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Every difference, by path. Members of an object are added and removed by their names; a list is compared item by item only where
/// it has as many as before.
pub fn differences(was: &Value, is: &Value) -> Vec<Difference> {
    fn walk(path: &mut Vec<String>, was: &Value, is: &Value, found: &mut Vec<Difference>) {
        match (was, is) {
            (Value::Object(before), Value::Object(now)) => {
                let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
                for name in names {
                    path.push(name.clone());
                    match (before.get(name), now.get(name)) {
                        (Some(was), Some(is)) => walk(path, was, is, found),
                        (Some(_), None) => found.push(Difference { path: path.clone(), what: What::Removed }),
                        _ => found.push(Difference { path: path.clone(), what: What::Added }),
                    }
                    path.pop();
                }
            }
            (Value::Array(before), Value::Array(now)) if before.len() == now.len() && before.iter().any(Value::is_object) => {
                for (n, (was, is)) in before.iter().zip(now).enumerate() {
                    path.push(n.to_string());
                    walk(path, was, is, found);
                    path.pop();
                }
            }
            _ if was != is => found.push(Difference { path: path.clone(), what: What::Changed { was: was.clone(), is: is.clone() } }),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&mut Vec::new(), was, is, &mut found);
    found
}

impl Metadata {
    /// How the program differs from the one that wrote this, where it can go on all the same; in the order of their paths. The error
    /// says what does not fit. `may_drop`: what the program does not claim any more may be dropped.
    pub fn check(&self, location: &str, job: &str, program: &Identity, may_drop: bool) -> Result<Vec<Difference>, String> {
        if self.job != job {
            return Err(format!("checkpoint `{location}` belongs to job `{}`, not to `{job}`; give this job its own", self.job));
        }
        let mut all = differences(&self.fingerprint, &program.fingerprint);
        let then: Vec<&String> = self.sources.iter().map(|source| &source.name).collect();
        let removed = then.iter().filter(|name| !program.sources.contains(name)).map(|name| (*name, What::Removed));
        let added = program.sources.iter().filter(|name| !then.contains(name)).map(|name| (name, What::Added));
        for (name, what) in removed.chain(added) {
            let difference = Difference { path: vec!["sources".into(), name.clone()], what };
            if !all.contains(&difference) {
                all.push(difference);
            }
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        let refused = |meaning| match meaning {
            Meaning::Begins => false,
            Meaning::Dropped => !may_drop,
            Meaning::DoesNotFit => true,
        };
        let wrong: Vec<&Difference> = all.iter().filter(|difference| refused(difference.meaning())).collect();
        if wrong.is_empty() {
            return Ok(all);
        }
        let remedy = if wrong.iter().all(|difference| difference.meaning() == Meaning::Dropped) {
            format!("Restore it, or drop what was kept for it: SET '{IGNORE_UNCLAIMED}' = 'true' (a savepoint first keeps a way back)")
        } else {
            format!(
                "Restore the program, or give the changed job a fresh checkpoint (--checkpoint, another --name, or `millrace job delete {job} --checkpoint`)"
            )
        };
        let lines: String = wrong.iter().map(|difference| format!("  {difference}\n")).collect();
        Err(format!("checkpoint `{location}` was written by a different program of job `{job}`:\n{lines}{remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commit::SourceStart;

    fn said(was: Value, is: Value) -> Vec<String> {
        differences(&was, &is).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn differences_name_the_place_and_both_values() {
        let was = json!({"operators": {"a": {"keys": ["x"]}, "b": {}}, "list": [{"n": 1}, {"n": 2}], "window": "10s"});
        let is = json!({"operators": {"a": {"keys": ["x", "y"]}, "c": {}}, "list": [{"n": 1}, {"n": 3}], "window": "20s"});
        assert_eq!(
            said(was.clone(), is),
            [
                "/list/1/n: was 2, is 3",
                r#"/operators/a/keys: was ["x"], is ["x","y"]"#,
                "/operators/b: is not there any more",
                "/operators/c: was not there",
                r#"/window: was "10s", is "20s""#,
            ]
        );
        assert!(said(was.clone(), was).is_empty());
        assert_eq!(said(json!([{"n": 1}]), json!([])), [r#": was [{"n":1}], is []"#]);
        let long = said(json!({"plan": "é".repeat(500)}), json!({"plan": 1})).remove(0);
        assert!(long.ends_with("é…, is 1") && long.chars().count() < 230, "{long}");
    }

    /// A job of one source and these operators.
    fn metadata(operators: Value) -> Metadata {
        let source = SourceStart { name: "logs".into(), ..SourceStart::default() };
        let fingerprint = json!({"sources": {"logs": {"topics": ["t"]}}, "operators": operators});
        Metadata { job: "job".into(), checkpoint_id: "c".into(), fingerprint, started_at_ms: 0, sources: vec![source] }
    }

    fn program(sources: &[&str], operators: Value) -> Identity {
        let described: serde_json::Map<_, _> = sources.iter().map(|name| ((*name).to_owned(), json!({"topics": ["t"]}))).collect();
        Identity {
            fingerprint: json!({"sources": described, "operators": operators}),
            sources: sources.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn paths(differences: &[Difference]) -> Vec<String> {
        differences.iter().map(|difference| difference.path.join("/")).collect()
    }

    #[test]
    fn what_is_added_begins_and_what_is_removed_is_dropped_only_when_it_may_be() {
        let was = metadata(json!({"a": {"size": 10}, "b": {"size": 10}}));
        let same = program(&["logs"], json!({"a": {"size": 10}, "b": {"size": 10}}));
        assert_eq!(was.check("here", "job", &same, false), Ok(vec![]));

        let more = program(&["more", "logs"], json!({"a": {"size": 10}, "b": {"size": 10}, "c": {"size": 10}}));
        let found = was.check("here", "job", &more, false).unwrap();
        assert_eq!(paths(&found), ["operators/c", "sources/more"]);
        assert!(found[0].consequence().contains("without state") && found[1].consequence().contains("startup mode"));

        let less = program(&["other"], json!({"a": {"size": 10}}));
        let refused = was.check("here", "job", &less, false).unwrap_err();
        for part in ["`here`", "job `job`", "/operators/b: is not there any more", "/sources/logs: is not there any more", IGNORE_UNCLAIMED]
        {
            assert!(refused.contains(part), "without {part}: {refused}");
        }
        assert!(!refused.contains("/sources/other"), "what fits is not what stops it: {refused}");
        let found = was.check("here", "job", &less, true).unwrap();
        assert_eq!(paths(&found), ["operators/b", "sources/logs", "sources/other"]);
        assert!(found[0].consequence().contains("state is dropped") && found[1].consequence().contains("offsets are dropped"));
    }

    #[test]
    fn what_is_changed_within_a_source_or_an_operator_does_not_fit() {
        let was = metadata(json!({"a": {"size": 10}}));
        let changed = program(&["logs"], json!({"a": {"size": 20, "keys": ["k"]}, "b": {"size": 1}}));
        let refused = was.check("here", "job", &changed, true).unwrap_err();
        for part in ["/operators/a/size: was 10, is 20", "/operators/a/keys: was not there", "fresh checkpoint", "job delete job"] {
            assert!(refused.contains(part), "without {part}: {refused}");
        }
        assert!(!refused.contains("/operators/b") && !refused.contains(IGNORE_UNCLAIMED), "{refused}");
        assert!(was.check("here", "other", &changed, true).unwrap_err().contains("belongs to job `job`"));
    }

    #[test]
    fn sources_without_names_of_their_own_do_not_move() {
        let mut was = metadata(json!({}));
        was.fingerprint = json!({"sources": [["t"]]});
        let program = Identity { fingerprint: json!({"sources": [["t"], ["u"]]}), sources: vec!["logs".into(), "kafka-1".into()] };
        let refused = was.check("here", "job", &program, true).unwrap_err();
        assert!(refused.contains(r#"/sources: was [["t"]], is [["t"],["u"]]"#), "{refused}");
    }
}
