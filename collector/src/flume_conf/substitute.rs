//! `${…}` in values, as Commons Text's `StringSubstitutor` does it for Flume 1.10 and later.
//!
//! `${env:X}`, `${sys:x}`, `${java:…}`, `${date:PATTERN}`, `${other.key}`, each with `:-default`; nested (`${env:${which}}`);
//! `$${x}` stays `${x}`; what is not known stays as it is. Only values are substituted, never keys. Flume reads
//! `${other.key}` in the order of a hash table, so that a reference may or may not be resolved; here it always is.

use std::collections::BTreeMap;

use chrono::{DateTime, Local};

/// What may stand in a value, for the reference.
pub const REFERENCE: &[(&str, &str)] = &[
    ("${env:NAME}", "a variable of the environment"),
    ("${sys:name}", "`-Dname=value` of the command line; a few of Java's own: `user.home`, `user.name`, `user.dir`, `java.io.tmpdir`, …"),
    ("${date:yyyy-MM-dd}", "the time at which the file is read"),
    ("${other.key}", "another key's value"),
    ("${env:NAME:-value}", "any of them with a default"),
    ("${filter['key']}", "what a config filter gives for the key"),
    ("$${text}", "`${text}` itself"),
];

/// Where the variables come from. Given in, so that nothing here touches the process.
pub struct Variables<'a> {
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// `-Dname=value` of the command line, over a few of Java's own (`user.home`, …).
    pub sys: &'a BTreeMap<String, String>,
    pub now: DateTime<Local>,
}

/// What was found in one value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Substituted {
    pub value: String,
    /// References that stay as they are.
    pub unknown: Vec<String>,
    /// A key that refers to itself.
    pub cycle: Option<String>,
}

/// Depth and length that no sane file reaches; beyond them a reference stays as it is.
const DEPTH_MAX: usize = 32;
const LENGTH_MAX: usize = 1 << 20;

pub fn substitute(value: &str, properties: &BTreeMap<String, String>, variables: &Variables<'_>) -> Substituted {
    let mut out = Substituted::default();
    let mut run = Run { properties, variables, path: Vec::new(), budget: LENGTH_MAX, out: &mut out };
    let value = run.expand(value, 0);
    out.value = value;
    out
}

struct Run<'a> {
    properties: &'a BTreeMap<String, String>,
    variables: &'a Variables<'a>,
    path: Vec<String>,
    budget: usize,
    out: &'a mut Substituted,
}

impl Run<'_> {
    fn expand(&mut self, text: &str, depth: usize) -> String {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            let inner = &from[2..];
            if let Some(before) = before.strip_suffix('$') {
                // `$${x}`: one `$` goes, the rest stays as it is.
                result.push_str(before);
                let end = closing(inner).map_or(inner.len(), |end| end + 1);
                result.push_str("${");
                result.push_str(&inner[..end]);
                rest = &inner[end..];
                continue;
            }
            result.push_str(before);
            let Some(end) = closing(inner) else {
                result.push_str(from);
                return result;
            };
            let reference = &inner[..end];
            match self.resolve(reference, depth) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("${");
                    result.push_str(reference);
                    result.push('}');
                }
            }
            rest = &inner[end + 1..];
            if self.budget == 0 {
                break;
            }
        }
        result.push_str(rest);
        result
    }

    fn resolve(&mut self, reference: &str, depth: usize) -> Option<String> {
        if depth >= DEPTH_MAX {
            self.out.cycle.get_or_insert_with(|| reference.to_owned());
            return None;
        }
        let reference = self.expand(reference, depth + 1);
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (reference.as_str(), None),
        };
        let found = self.lookup(name, depth).or(default);
        match &found {
            Some(value) => self.budget = self.budget.saturating_sub(value.len() + 1),
            // `${f['key']}` is a config filter's; that pass has its own finding.
            None => self.out.unknown.push(reference.clone()),
        }
        found
    }

    fn lookup(&mut self, name: &str, depth: usize) -> Option<String> {
        if let Some((prefix, rest)) = name.split_once(':') {
            match prefix.to_ascii_lowercase().as_str() {
                "env" => return (self.variables.env)(rest),
                "sys" => return self.variables.sys.get(rest).cloned(),
                "date" => return Some(self.variables.now.format(&java_date_pattern(rest)).to_string()),
                _ => {}
            }
        }
        let value = self.properties.get(name)?;
        if self.path.iter().any(|on_path| on_path == name) {
            self.out.cycle.get_or_insert_with(|| name.to_owned());
            return None;
        }
        self.path.push(name.to_owned());
        let value = self.expand(value, depth + 1);
        self.path.pop();
        Some(value)
    }
}

/// Index of the `}` that closes the reference whose inside begins `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'$' if bytes.get(at + 1) == Some(&b'{') => {
                open += 1;
                at += 1;
            }
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// `yyyy-MM-dd` to `%Y-%m-%d`: the letters of `SimpleDateFormat` that appear in file names and topics.
fn java_date_pattern(pattern: &str) -> String {
    let mut result = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        if char == '\'' {
            // Quoted text is taken as it is; two quotes are one.
            match chars.next_if_eq(&'\'') {
                Some(_) => result.push('\''),
                None => {
                    for quoted in chars.by_ref().take_while(|&quoted| quoted != '\'') {
                        result.push(quoted);
                        if quoted == '%' {
                            result.push('%');
                        }
                    }
                }
            }
            continue;
        }
        let mut run = 1;
        while chars.next_if_eq(&char).is_some() {
            run += 1;
        }
        match (char, run) {
            ('y', 2) => result.push_str("%y"),
            ('y', _) => result.push_str("%Y"),
            ('M', 3) => result.push_str("%b"),
            ('M', 4..) => result.push_str("%B"),
            ('M', 1) => result.push_str("%-m"),
            ('M', _) => result.push_str("%m"),
            ('d', 1) => result.push_str("%-d"),
            ('d', _) => result.push_str("%d"),
            ('D', _) => result.push_str("%j"),
            ('H', 1) => result.push_str("%-H"),
            ('H', _) => result.push_str("%H"),
            ('h', _) => result.push_str("%I"),
            ('m', _) => result.push_str("%M"),
            ('s', _) => result.push_str("%S"),
            ('S', _) => result.push_str("%3f"),
            ('E', 1..=3) => result.push_str("%a"),
            ('E', _) => result.push_str("%A"),
            ('a', _) => result.push_str("%p"),
            ('z', _) => result.push_str("%Z"),
            ('Z', _) => result.push_str("%z"),
            ('X', _) => result.push_str("%:z"),
            ('%', run) => result.push_str(&"%%".repeat(run)),
            (other, run) => result.extend(std::iter::repeat_n(other, run)),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

    use super::*;

    fn run(value: &str) -> Substituted {
        let properties: BTreeMap<String, String> = [
            ("a.port", "9092"),
            ("a.hosts", "k1:${a.port},k2:${a.port}"),
            ("which", "HOST"),
            ("loop1", "${loop2}"),
            ("loop2", "x${loop1}"),
            ("self", "${self}"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let sys = [("user.home".to_owned(), "/users/u".to_owned())].into();
        let env = |name: &str| match name {
            "HOST" => Some("h1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let now = Local.with_ymd_and_hms(2026, 3, 4, 5, 6, 7).unwrap();
        substitute(value, &properties, &Variables { env: &env, sys: &sys, now })
    }

    #[test]
    fn references() {
        for (text, expected) in [
            ("plain", "plain"),
            ("", ""),
            ("${env:HOST}", "h1"),
            ("x${env:HOST}y", "xh1y"),
            ("${env:HOST}:${a.port}", "h1:9092"),
            ("${env:EMPTY}", ""),
            ("${ENV:HOST}", "h1"),
            ("${env:NONE}", "${env:NONE}"),
            ("${env:NONE:-d}", "d"),
            ("${env:NONE:-}", ""),
            ("${env:HOST:-d}", "h1"),
            ("${env:NONE:-${a.port}}", "9092"),
            ("${env:${which}}", "h1"),
            ("${a.hosts}", "k1:9092,k2:9092"),
            ("${sys:user.home}/x", "/users/u/x"),
            ("${sys:none}", "${sys:none}"),
            ("${java:version}", "${java:version}"),
            ("${none}", "${none}"),
            ("${none:-x}", "x"),
            ("$${env:HOST}", "${env:HOST}"),
            ("$${a}${a.port}", "${a}9092"),
            ("$", "$"),
            ("$$", "$$"),
            ("${", "${"),
            ("${}", "${}"),
            ("${env:HOST", "${env:HOST"),
            ("a}b", "a}b"),
            ("{env:HOST}", "{env:HOST}"),
            ("$env:HOST", "$env:HOST"),
            ("${date:yyyy-MM-dd}", "2026-03-04"),
            ("${date:yyyyMMdd'T'HHmmss}", "20260304T050607"),
            ("${date:yy M d ''}", "26 3 4 '"),
            ("${date:100%}", "100%"),
            ("${f1['password']}", "${f1['password']}"),
        ] {
            assert_eq!(run(text).value, expected, "{text}");
        }
        assert_eq!(run("${none}-${env:NONE}").unknown, ["none", "env:NONE"]);
    }

    #[test]
    fn a_reference_to_itself_is_told_and_ends() {
        assert_eq!(run("${loop1}").cycle.as_deref(), Some("loop1"));
        assert_eq!(run("${self}").cycle.as_deref(), Some("self"));
        assert_eq!(run("${a.hosts}").cycle, None);
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(text in any::<String>(), dense in "[${}:ae.-]{0,60}") {
            run(&text);
            run(&dense);
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern in "[a-zA-Z'% -]{0,20}") {
            // `format` of an unknown specifier would be an error when it is written out.
            run(&format!("${{date:{pattern}}}"));
        }
    }
}
