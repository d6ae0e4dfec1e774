//! Who may do what, as a TOML file says it:
//!
//! ```toml
//! [roles.orders-writer]
//! allow = ["write topic orders-*", "read subject orders-*"]
//!
//! [principals.alice]
//! roles = ["orders-writer"]
//! allow = ["read topic payments", "read group billing", "describe,describe-configs cluster"]
//! requests_per_second = 200       # in place of [auth.quota]; 0 is no limit
//! bytes_per_second = 1000000
//!
//! [principals."*"]                # everybody who is known
//! allow = ["describe topic *"]
//!
//! [principals.root]
//! allow = ["all"]
//! ```
//!
//! A line is `VERB[,VERB…] KIND NAME`; `all` is every verb; NAME ends with `*` for everything that begins so; the cluster has no name. There is no
//! line that forbids: what is not allowed is forbidden.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde::Deserialize;

use super::access::{Kind, Verb};

/// The principal whose lines hold for everybody who is known.
pub(super) const EVERYONE: &str = "*";

/// Limits of a principal; `None` where the policy has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct OwnLimits {
    pub(super) requests: Option<f64>,
    pub(super) bytes: Option<f64>,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Policy {
    principals: HashMap<String, (Vec<Grant>, OwnLimits)>,
    everyone: (Vec<Grant>, OwnLimits),
    roles: HashMap<String, Vec<Grant>>,
}

#[derive(Clone, Debug)]
struct Grant {
    /// A bit for each verb.
    verbs: u8,
    /// `None`: of every kind.
    kind: Option<Kind>,
    name: Pattern,
}

#[derive(Clone, Debug)]
enum Pattern {
    Exact(String),
    Prefix(String),
}

impl Pattern {
    fn parse(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(text.to_owned()),
        }
    }
}

fn bit(verb: Verb) -> u8 {
    1 << verb as u8
}

/// The verb with what it includes.
fn bits(verb: Verb) -> u8 {
    let included = match verb {
        Verb::Read | Verb::Write | Verb::Delete | Verb::Alter => bit(Verb::Describe),
        Verb::AlterConfigs => bit(Verb::DescribeConfigs),
        Verb::Describe | Verb::Create | Verb::DescribeConfigs => 0,
    };
    bit(verb) | included
}

impl Grant {
    fn parse(text: &str) -> Result<Self, String> {
        let names = |all: Vec<&str>| all.join(", ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let form = || format!("{text:?} is not understood; write \"VERB[,VERB] KIND NAME\", as in \"read,describe topic orders-*\"");
        if words == ["all"] {
            return Ok(Self { verbs: u8::MAX, kind: None, name: Pattern::Prefix(String::new()) });
        }
        let (verbs, kind, name) = match words[..] {
            [verbs, kind] => (verbs, kind, None),
            [verbs, kind, name] => (verbs, kind, Some(name)),
            _ => return Err(form()),
        };
        let mut set = 0;
        for word in verbs.split(',') {
            set |= match Verb::ALL.into_iter().find(|verb| verb.name() == word) {
                Some(verb) => bits(verb),
                None if word == "all" => u8::MAX,
                None => {
                    let known = names(Verb::ALL.iter().map(|verb| verb.name()).chain(["all"]).collect());
                    return Err(format!("{text:?}: {word:?} is no verb; there are {known}"));
                }
            };
        }
        let kind = Kind::ALL.into_iter().find(|one| one.name() == kind).ok_or_else(|| {
            let known = names(Kind::ALL.iter().map(|kind| kind.name()).collect());
            format!("{text:?}: {kind:?} is nothing that can be allowed; there are {known}")
        })?;
        let name = match (kind, name) {
            (Kind::Cluster, None) => Pattern::Prefix(String::new()),
            (Kind::Cluster, Some(_)) => return Err(format!("{text:?}: there is one cluster; write it without a name")),
            (_, Some(name)) => Pattern::parse(name),
            (_, None) => return Err(form()),
        };
        Ok(Self { verbs: set, kind: Some(kind), name })
    }

    fn is_on(&self, verb: Verb, kind: Kind) -> bool {
        self.verbs & bit(verb) != 0 && self.kind.is_none_or(|own| own == kind)
    }

    fn takes(&self, name: &str) -> bool {
        match &self.name {
            Pattern::Exact(own) => own == name,
            Pattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }

    /// Every name that begins so.
    fn takes_all(&self, prefix: &str) -> bool {
        matches!(&self.name, Pattern::Prefix(own) if prefix.starts_with(own.as_str()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    roles: BTreeMap<String, RoleText>,
    #[serde(default)]
    principals: BTreeMap<String, PrincipalText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleText {
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrincipalText {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    requests_per_second: Option<f64>,
    #[serde(default)]
    bytes_per_second: Option<f64>,
}

impl Policy {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(&text).map_err(|message| format!("{}: {message}", path.display()))
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let grants = |place: String, lines: &[String]| {
            let parsed = lines.iter().map(|line| Grant::parse(line).map_err(|message| format!("{place}: {message}")));
            parsed.collect::<Result<Vec<_>, _>>()
        };
        let mut policy = Self::default();
        for (name, role) in &file.roles {
            policy.roles.insert(name.clone(), grants(format!("roles.{name}.allow"), &role.allow)?);
        }
        for (name, principal) in file.principals {
            let mut allowed = grants(format!("principals.{name}.allow"), &principal.allow)?;
            for role in &principal.roles {
                match policy.roles.get(role) {
                    Some(grants) => allowed.extend(grants.iter().cloned()),
                    None => return Err(format!("principals.{name}.roles: there is no [roles.{role}]")),
                }
            }
            let limits = OwnLimits { requests: principal.requests_per_second, bytes: principal.bytes_per_second };
            for (key, limit) in [("requests_per_second", limits.requests), ("bytes_per_second", limits.bytes)] {
                if limit.is_some_and(|limit| !limit.is_finite() || limit < 0.0) {
                    return Err(format!("principals.{name}.{key} must be 0 (no limit) or more"));
                }
            }
            if name == EVERYONE {
                policy.everyone = (allowed, limits);
            } else {
                policy.principals.insert(name, (allowed, limits));
            }
        }
        Ok(policy)
    }

    /// All lines that hold for a principal; `roles` are those that its token gives. A role that the policy does not know gives nothing.
    fn grants<'a>(&'a self, principal: &str, roles: &'a [String]) -> impl Iterator<Item = &'a Grant> {
        let own = self.principals.get(principal).map_or(&[][..], |(grants, _)| grants.as_slice());
        let given = roles.iter().filter_map(|role| self.roles.get(role)).flatten();
        own.iter().chain(&self.everyone.0).chain(given)
    }

    pub(super) fn allows(&self, principal: &str, roles: &[String], verb: Verb, kind: Kind, name: &str) -> bool {
        self.grants(principal, roles).any(|grant| grant.is_on(verb, kind) && grant.takes(name))
    }

    /// Whether there is anything of the kind that may be done.
    pub(super) fn allows_any(&self, principal: &str, roles: &[String], verb: Verb, kind: Kind) -> bool {
        self.grants(principal, roles).any(|grant| grant.is_on(verb, kind))
    }

    /// Whether it may be done to all names that begin so.
    pub(super) fn allows_all(&self, principal: &str, roles: &[String], verb: Verb, kind: Kind, prefix: &str) -> bool {
        self.grants(principal, roles).any(|grant| grant.is_on(verb, kind) && grant.takes_all(prefix))
    }

    pub(super) fn limits(&self, principal: &str) -> OwnLimits {
        let own = self.principals.get(principal).map(|(_, limits)| *limits).unwrap_or_default();
        let everyone = self.everyone.1;
        OwnLimits { requests: own.requests.or(everyone.requests), bytes: own.bytes.or(everyone.bytes) }
    }
}

/// What every text that a regular expression takes begins with; too short rather than too long.
pub(super) fn literal_prefix(pattern: &str) -> &str {
    // An alternative may begin in another way, and a flag may make letters equal.
    if pattern.contains('|') || pattern.contains("(?") {
        return "";
    }
    let special = |letter: char| r".[](){}*+?^$\".contains(letter);
    let end = pattern.find(special).unwrap_or(pattern.len());
    match pattern[end..].chars().next() {
        // The letter before may be left out, or stand for itself any number of times.
        Some('*' | '?' | '{' | '+') => pattern[..end].char_indices().next_back().map_or("", |(last, _)| &pattern[..last]),
        _ => &pattern[..end],
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    const POLICY: &str = r#"
        [roles.writer]
        allow = ["write topic orders-*"]
        [principals.alice]
        roles = ["writer"]
        allow = ["read topic payments", "read,alter group billing", "describe cluster"]
        requests_per_second = 5
        [principals.bob]
        [principals.root]
        allow = ["all"]
        [principals."*"]
        allow = ["alter-configs subject s*"]
        bytes_per_second = 10
    "#;

    #[test]
    fn what_is_not_written_is_not_allowed() {
        let policy = Policy::parse(POLICY).unwrap();
        let check = |principal: &str, verb, kind, name: &str, expected| {
            assert_eq!(policy.allows(principal, &[], verb, kind, name), expected, "{principal} {verb:?} {kind:?} {name}");
        };
        check("alice", Verb::Write, Kind::Topic, "orders-1", true);
        check("alice", Verb::Write, Kind::Topic, "orders", false);
        check("alice", Verb::Describe, Kind::Topic, "orders-1", true);
        check("alice", Verb::Read, Kind::Topic, "orders-1", false);
        check("alice", Verb::Read, Kind::Topic, "payments", true);
        check("alice", Verb::Read, Kind::Topic, "payments2", false);
        check("alice", Verb::Read, Kind::Group, "payments", false);
        check("alice", Verb::Alter, Kind::Group, "billing", true);
        check("alice", Verb::Delete, Kind::Group, "billing", false);
        check("alice", Verb::Describe, Kind::Cluster, "", true);
        check("alice", Verb::Alter, Kind::Cluster, "", false);
        for principal in ["alice", "bob", "nobody-has-heard-of"] {
            check(principal, Verb::DescribeConfigs, Kind::Subject, "s1", true);
            check(principal, Verb::Read, Kind::Subject, "s1", false);
        }
        check("bob", Verb::Describe, Kind::Topic, "orders-1", false);
        for verb in Verb::ALL {
            for kind in Kind::ALL {
                check("root", verb, kind, "anything", true);
            }
        }
        let roles = ["writer".to_owned(), "unheard".to_owned()];
        assert!(policy.allows("by-token", &roles, Verb::Write, Kind::Topic, "orders-9"));
        assert!(!policy.allows("by-token", &roles[1..], Verb::Write, Kind::Topic, "orders-9"));
        assert!(policy.allows_any("alice", &[], Verb::Write, Kind::Topic) && !policy.allows_any("bob", &[], Verb::Write, Kind::Topic));
        let all = |principal: &str, prefix: &str| policy.allows_all(principal, &[], Verb::Write, Kind::Topic, prefix);
        assert!(all("alice", "orders-") && all("alice", "orders-a") && !all("alice", "order") && !all("alice", "") && all("root", ""));
        assert_eq!(policy.limits("alice"), OwnLimits { requests: Some(5.0), bytes: Some(10.0) });
        assert_eq!(policy.limits("else"), OwnLimits { requests: None, bytes: Some(10.0) });
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let check = |text: &str, expected: &str| {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(
            "[principals.a]\nallow = [\"wrte topic x\"]",
            "principals.a.allow: \"wrte topic x\": \"wrte\" is no verb; there are read, write",
        );
        check("[roles.r]\nallow = [\"read topics x\"]", "roles.r.allow: \"read topics x\": \"topics\" is nothing");
        check("[principals.a]\nallow = [\"read topic\"]", "VERB[,VERB] KIND NAME");
        check("[principals.a]\nallow = [\"describe cluster one\"]", "there is one cluster");
        check("[principals.a]\nroles = [\"x\"]", "there is no [roles.x]");
        check("[principals.a]\nallows = []", "unknown field `allows`");
        check("[principals.a]\nrequests_per_second = -1.0", "must be 0");
        check("[principal.a]", "unknown field `principal`");
    }

    #[test]
    fn a_pattern_means_no_less_than_its_prefix_says() {
        let cases = [
            ("orders-.*", "orders-"),
            ("orders", "orders"),
            ("orders-*", "orders"),
            ("ab?c", "a"),
            ("a{0}b", ""),
            ("orders-.*|.*", ""),
            ("(orders)", ""),
            ("(?i)orders", ""),
            (r"a\.b", "a"),
            ("é*", ""),
            ("", ""),
        ];
        for (pattern, expected) in cases {
            assert_eq!(literal_prefix(pattern), expected, "{pattern}");
        }
    }
}
