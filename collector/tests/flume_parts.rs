//! Interceptors, sink groups and config filters in agent files: what runs, what is said, and that Flume 1.11, which was run
//! with the same files, drops the same components.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use collector::flume_conf::{ConfFile, Level, Options, Outcome, read};

/// Three sinks that are ready to be grouped.
const GOOD: &str = "\
a.sources = r
a.channels = c
a.sinks = k1 k2 k3
a.sources.r.type = seq
a.sources.r.channels = c
a.channels.c.type = memory
a.sinks.k1.type = null
a.sinks.k1.channel = c
a.sinks.k2.type = null
a.sinks.k2.channel = c
a.sinks.k3.type = null
a.sinks.k3.channel = c
";

fn outcome(lines: &str, strict: bool) -> Outcome {
    let text = format!("{GOOD}{lines}");
    let env = |name: &str| (name == "USER_X").then(|| "x1".to_owned());
    let run = |command: &str, key: &str| if key == "no" { Err("it fails".to_owned()) } else { Ok(format!("{command}-{key}")) };
    let options = Options { agent: None, strict, env: &env, run: &run, sys: &BTreeMap::new(), now: chrono::Local::now() };
    read(&[ConfFile { name: "a.conf", bytes: text.as_bytes() }], &options)
}

/// `(code, beginning of the remedy)` of every error.
fn errors(outcome: &Outcome) -> Vec<&'static str> {
    outcome.findings.iter().filter(|finding| finding.level == Level::Error).map(|finding| finding.code).collect()
}

/// Sources, sinks and groups that run.
fn running(outcome: &Outcome) -> String {
    let plan = &outcome.plans[0];
    let names =
        |components: &[collector::flume_conf::Component]| components.iter().map(|part| part.name.clone()).collect::<Vec<_>>().join(" ");
    let groups = plan.groups.iter().map(|group| format!("{}({})", group.name, group.channels.join(" "))).collect::<Vec<_>>().join(" ");
    format!("{}; {}; {groups}", names(&plan.sources), names(&plan.sinks))
}

/// Lines added to `GOOD`; the errors of the default reading; what the strict one runs, which is what Flume ran.
#[test]
fn flume_drops_the_same_components() {
    let group = "a.sinkgroups = g\na.sinkgroups.g.sinks = k1 k2\n";
    let interceptor = "a.sources.r.interceptors = i\na.sources.r.interceptors.i.type = ";
    for (lines, told, ran) in [
        (group.to_owned(), &["no-type"][..], "r; k3; "),
        (format!("{group}a.sinkgroups.g.processor.type = default"), &["group-size"], "r; k3; "),
        (format!("{group}a.sinkgroups.g.processor.type = failovr"), &["unknown-type"], "r; k3; "),
        (format!("{group}a.sinkgroups.g.processor.type = failover"), &[], "r; k1 k2 k3; g(k1 k2)"),
        (format!("{group}a.sinkgroups.g.processor.type = LOAD_BALANCE"), &[], "r; k1 k2 k3; g(k1 k2)"),
        (format!("{group}a.sinkgroups.g.processor.type = org.apache.flume.sink.FailoverSinkProcessor"), &[], "r; k1 k2 k3; g(k1 k2)"),
        (
            format!("{group}a.sinkgroups.g.processor.type = load_balance\na.sinkgroups.g.processor.selector = roundrobin"),
            &["wrong-value"],
            "r; k3; ",
        ),
        (
            format!(
                "{group}a.sinkgroups.g.processor.type = failover\na.sinkgroups.g.processor.priority.k1 = 5\na.sinkgroups.g.processor.priority.k2 = 5"
            ),
            &["duplicate-priority"],
            "r; k1 k3; g(k1)",
        ),
        ("a.sinkgroups = g\na.sinkgroups.g.sinks = k1\na.sinkgroups.g.processor.type = load_balance".into(), &["group-size"], "r; k2 k3; "),
        ("a.sinkgroups = g\na.sinkgroups.g.sinks = k1\na.sinkgroups.g.processor.type = default".into(), &[], "r; k1 k2 k3; g(k1)"),
        (
            "a.sinkgroups = g\na.sinkgroups.g.sinks = k1 kx\na.sinkgroups.g.processor.type = failover".into(),
            &["no-such-sink"],
            "r; k1 k2 k3; g(k1)",
        ),
        (
            "a.sinkgroups = g h\na.sinkgroups.g.sinks = k1 k2\na.sinkgroups.g.processor.type = failover\n\
             a.sinkgroups.h.sinks = k2 k3\na.sinkgroups.h.processor.type = failover"
                .into(),
            &["sink-in-two-groups"],
            "r; k1 k2 k3; g(k1 k2) h(k3)",
        ),
        ("a.sinkgroups = g\na.sinkgroups.g.processor.type = failover".into(), &["missing-property"], "; ; "),
        (format!("{group}a.sinkgroups.g.processor.type = failover\na.sinks.k2.batchSize = -1"), &["wrong-value"], "; ; "),
        (format!("{interceptor}regex_filter\na.sources.r.interceptors.i.regex = a("), &["regular-expression"], "; k1 k2 k3; "),
        (format!("{interceptor}search_replace"), &["missing-property"], "; k1 k2 k3; "),
        (
            format!(
                "{interceptor}search_replace\na.sources.r.interceptors.i.searchPattern = (.)\na.sources.r.interceptors.i.replaceString = $5"
            ),
            &["wrong-value"],
            "r; k1 k2 k3; ",
        ),
        (
            format!("{interceptor}regex_extractor\na.sources.r.interceptors.i.regex = (.)\na.sources.r.interceptors.i.serializers = s"),
            &["wrong-value"],
            "; k1 k2 k3; ",
        ),
        (
            format!(
                "{interceptor}regex_extractor\na.sources.r.interceptors.i.regex = (.)\na.sources.r.interceptors.i.serializers = s\n\
                 a.sources.r.interceptors.i.serializers.s.name = n\na.sources.r.interceptors.i.serializers.s.type = default"
            ),
            &[],
            "; k1 k2 k3; ",
        ),
        (format!("{interceptor}${{f['static']}}"), &["config-filter", "unknown-type"], "; k1 k2 k3; "),
    ] {
        let default = outcome(&lines, false);
        assert_eq!(errors(&default), told, "{lines}\n{:?}", default.findings);
        let strict = outcome(&lines, true);
        assert!(!strict.failed() || lines.contains("replaceString"), "{lines}\n{:?}", strict.findings);
        assert_eq!(running(&strict), ran, "{lines}\n{:?}", strict.findings);
    }
}

#[test]
fn groups_are_in_the_effective_configuration() {
    let lines = "a.sinkgroups = g\na.sinkgroups.g.sinks = k1 k2\na.sinkgroups.g.processor.type = failover\na.sinkgroups.g.processor.priority.k1 = 5\n";
    let outcome = outcome(lines, false);
    assert!(!outcome.failed(), "{:?}", outcome.findings);
    let text = outcome.plans[0].to_properties();
    for line in lines.lines() {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let again = {
        let env = |_: &str| None;
        let run = |_: &str, _: &str| Err(String::new());
        let options = Options { agent: None, strict: false, env: &env, run: &run, sys: &BTreeMap::new(), now: chrono::Local::now() };
        read(&[ConfFile { name: "b.conf", bytes: text.as_bytes() }], &options)
    };
    assert_eq!(running(&again), running(&outcome));
    assert!(again.plans[0].components().zip(outcome.plans[0].components()).all(|(a, b)| a.same(b)));
}

#[test]
fn config_filters_put_values_in() {
    let lines = "a.configfilters = e p\na.configfilters.e.type = env\na.configfilters.p.type = external\na.configfilters.p.command = show\n\
                 a.sources.r.interceptors = i\na.sources.r.interceptors.i.type = static\n";
    for (value, expected, told) in [
        ("${e['USER_X']}", "x1", &[][..]),
        (r#"<${e["USER_X"]}${p[k-1]}>"#, "<x1show-k-1>", &[]),
        ("${p['a']}${p['a']}", "show-ashow-a", &[]),
        ("${e['NONE']}-${e['USER_X']}", "${e['NONE']}-x1", &["config-filter"]),
        ("${p['no']}", "${p['no']}", &["config-filter"]),
        ("${q['a']}", "${q['a']}", &["config-filter"]),
    ] {
        let outcome = outcome(&format!("{lines}a.sources.r.interceptors.i.value = {value}"), false);
        assert_eq!(errors(&outcome), told, "{value}: {:?}", outcome.findings);
        assert_eq!(outcome.plans[0].sources[0].interceptors[0].set("value"), Some(expected));
    }
    for (lines, told) in [
        ("a.configfilters = f\na.configfilters.f.type = hadoop", "not-built"),
        ("a.configfilters = f\na.configfilters.f.type = external", "missing-property"),
        ("a.configfilters = f\na.configfilters.f.type = evn", "unknown-type"),
    ] {
        assert_eq!(errors(&outcome(lines, false)), [told], "{lines}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let interceptor = "a.sources.r.interceptors = i\na.sources.r.interceptors.i.type = ";
    for (lines, told) in [
        (
            "org.apache.flume.sink.solr.morphline.MorphlineInterceptor$Builder",
            "interceptor `org.apache.flume.sink.solr.morphline.MorphlineInterceptor$Builder` is not in this version",
        ),
        ("regex_filter\na.sources.r.interceptors.i.regex = \\\\Ga", "\\G is not known here (near character 1)"),
        ("regex_filter\na.sources.r.interceptors.i.regex = (?u)a", "the flag `u`"),
    ] {
        for strict in [false, true] {
            let outcome = outcome(&format!("{interceptor}{lines}"), strict);
            let finding = outcome.findings.iter().find(|finding| finding.message.contains(told));
            let finding = finding.unwrap_or_else(|| panic!("{lines}: {:?}", outcome.findings));
            assert_eq!((finding.level, finding.place.as_ref().unwrap().line), (Level::Error, 14 + u32::from(lines.contains('\n'))));
        }
    }
}
