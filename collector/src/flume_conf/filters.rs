//! Config filters: `${f1['key']}` in the values of an agent whose file has `agent.configfilters = f1`.
//!
//! They work after the other variables. What a filter does not know stays as it is. No process is started in here: the
//! caller gives the way to run a command.

use std::collections::BTreeMap;

use super::kinds::{Kind, Property, adopts_nothing, nothing_to_say};
use super::merge::Merged;
use super::plan::Options;
use super::{Finding, Level, Role};

pub static FILTERS: &[&Kind] = &[&ENV, &EXTERNAL];

static ENV: Kind = Kind {
    role: Role::Filter,
    alias: Some("env"),
    class: Some("org.apache.flume.configfilter.EnvironmentVariableConfigFilter"),
    doc: "`${name['KEY']}` is the environment's variable KEY.",
    properties: &[],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

static EXTERNAL: Kind = Kind {
    role: Role::Filter,
    alias: Some("external"),
    class: Some("org.apache.flume.configfilter.ExternalProcessConfigFilter"),
    doc: "`${name['key']}` is the first line that a command writes; the key is its last argument. It has ten seconds.",
    properties: &[
        Property::text("command", None, "The command and its arguments, separated by blanks. No shell reads it.").required(),
        Property::choice("charset", &["UTF-8"], "UTF-8", "How its output is read."),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

/// One reference: where it stands in a value, and its key.
struct Reference<'a> {
    begin: usize,
    end: usize,
    filter: &'a str,
    key: &'a str,
}

/// The references in `value`: `${name['key']}`, `${name["key"]}`, `${name[key]}`.
fn references(value: &str) -> Vec<Reference<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = value[at..].find("${").map(|begin| at + begin) {
        at = begin + 2;
        let Some(end) = value[at..].find('}').map(|end| at + end) else { break };
        let Some((filter, rest)) = value[at..end].split_once('[') else { continue };
        let Some(key) = rest.strip_suffix(']') else { continue };
        let quoted = |quote: char| key.strip_prefix(quote).and_then(|key| key.strip_suffix(quote));
        let key = quoted('\'').or_else(|| quoted('"')).unwrap_or(key);
        if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            found.push(Reference { begin, end: end + 1, filter, key });
        }
    }
    found
}

/// Is this the inside of a reference to a config filter?
pub(super) fn is_reference(inside: &str) -> bool {
    !references(&format!("${{{inside}}}")).is_empty()
}

/// Puts what the filters know into the values, agent by agent.
pub(super) fn apply(merged: &mut Merged, options: &Options<'_>, findings: &mut Vec<Finding>) {
    let mut known: BTreeMap<(String, String, String), Result<Option<String>, String>> = BTreeMap::new();
    let kinds: BTreeMap<String, String> = merged.iter().map(|(key, setting)| (key.clone(), setting.value.trim().to_owned())).collect();
    let filter = |agent: &str, name: &str, key: &str| -> Option<String> {
        let listed = kinds.get(&format!("{agent}.configfilters"))?.split_whitespace().any(|listed| listed == name);
        kinds.get(&format!("{agent}.configfilters.{name}.{key}")).filter(|_| listed).cloned()
    };
    for (key, setting) in merged.iter_mut() {
        let Some((agent, rest)) = key.split_once('.') else { continue };
        if rest.starts_with("configfilters") || options.agent.is_some_and(|wanted| wanted != agent) {
            continue;
        }
        let mut value = String::new();
        let mut copied = 0;
        for reference in references(&setting.value) {
            let told = |level, message: String| {
                Finding::new(level, "config-filter", message).maybe_at(setting.place.as_ref()).key(key).flume("leaves it as it is")
            };
            let Some(kind) = filter(agent, reference.filter, "type") else {
                let finding = told(Level::Error, format!("there is no config filter `{}`", reference.filter));
                findings
                    .push(finding.remedy(format!("add {agent}.configfilters = {0} and {agent}.configfilters.{0}.type", reference.filter)));
                continue;
            };
            let asked = (agent.to_owned(), reference.filter.to_owned(), reference.key.to_owned());
            let answer = known.entry(asked).or_insert_with(|| {
                if ENV.is_called(&kind) {
                    Ok((options.env)(reference.key))
                } else if let Some(command) = filter(agent, reference.filter, "command").filter(|_| EXTERNAL.is_called(&kind)) {
                    (options.run)(&command, reference.key).map(Some)
                } else {
                    // The filter's own lines have a finding.
                    Ok(None)
                }
            });
            match answer {
                Ok(Some(text)) => {
                    value.push_str(&setting.value[copied..reference.begin]);
                    value.push_str(text);
                    copied = reference.end;
                }
                Ok(None) => {
                    let finding = told(Level::Error, format!("config filter `{}` does not know `{}`", reference.filter, reference.key));
                    findings.push(finding.remedy("set it, or correct the key"));
                }
                Err(why) => {
                    let finding = told(Level::Error, format!("config filter `{}`: `{}`: {why}", reference.filter, reference.key));
                    findings.push(finding.remedy("make the command write the value as one line"));
                }
            }
        }
        if copied > 0 {
            value.push_str(&setting.value[copied..]);
            setting.value = value;
        }
    }
    if options.strict {
        for finding in findings.iter_mut().filter(|finding| finding.code == "config-filter") {
            finding.level = Level::Warning;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_three_forms() {
        let value = r#"a${f['k-1']}b${g["K_2"]}${h[k]}${i['a b']}${j['x"]}${k[]}${l}${env:m}${n['x'"#;
        let found: Vec<_> = references(value).iter().map(|found| (found.filter, found.key, &value[found.begin..found.end])).collect();
        assert_eq!(found, [("f", "k-1", "${f['k-1']}"), ("g", "K_2", r#"${g["K_2"]}"#), ("h", "k", "${h[k]}")]);
        assert!(is_reference("f['k']") && !is_reference("f") && !is_reference("env:X"));
    }
}
