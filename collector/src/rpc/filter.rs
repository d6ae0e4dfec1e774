//! `ipFilterRules`: `allow:ip:10.1.*,deny:name:*`. The first rule that matches a peer decides; a peer that none matches may connect.

use std::net::{IpAddr, SocketAddr};

/// A rule's pattern, in which `*` is any text and `?` any character.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Address(String),
    /// A host name, as DNS has it for the address.
    Name(String),
    /// `name:localhost`: from this host.
    Here,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    pattern: Pattern,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(Vec<Rule>);

impl Filter {
    pub fn parse(text: &str) -> Result<Self, String> {
        let rules: Result<Vec<Rule>, String> = text.split(',').map(|rule| parse_rule(rule.trim())).collect();
        Ok(Self(rules?))
    }

    /// May `peer` connect? `local` is this end of its connection. Asks DNS where a rule has a name.
    pub async fn allows(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        let address = peer.ip().to_canonical();
        let mut name = None;
        for rule in &self.0 {
            let matches = match &rule.pattern {
                Pattern::Address(pattern) => written(address).iter().any(|text| glob(pattern.as_bytes(), text.as_bytes())),
                Pattern::Here => address.is_loopback() || address == local.ip().to_canonical(),
                Pattern::Name(pattern) => {
                    let known = match name.take() {
                        Some(known) => known,
                        None => host_name(address).await,
                    };
                    let matches = glob(pattern.as_bytes(), known.as_bytes());
                    name = Some(known);
                    matches
                }
            };
            if matches {
                return rule.allow;
            }
        }
        true
    }
}

fn parse_rule(rule: &str) -> Result<Rule, String> {
    let refuse = || format!("`{rule}` is not <allow|deny>:<ip|name>:<pattern>");
    let mut parts = rule.splitn(3, ':');
    let (Some(verdict), Some(what), Some(pattern)) = (parts.next(), parts.next(), parts.next()) else { return Err(refuse()) };
    let allow = match verdict {
        "allow" => true,
        "deny" => false,
        _ => return Err(refuse()),
    };
    // Flume makes a regular expression of it; these characters mean the same there.
    if pattern.is_empty() || !pattern.chars().all(|c| c.is_ascii_alphanumeric() || ".*?:-_%".contains(c)) {
        return Err(format!("`{pattern}` is not an address or a name with `*` and `?`"));
    }
    let pattern = match what {
        "ip" => Pattern::Address(pattern.to_owned()),
        "name" if pattern == "localhost" => Pattern::Here,
        "name" => Pattern::Name(pattern.to_owned()),
        _ => return Err(refuse()),
    };
    Ok(Rule { allow, pattern })
}

/// An address in the short form and in Java's, which writes out every group of IPv6.
fn written(address: IpAddr) -> Vec<String> {
    let mut forms = vec![address.to_string()];
    if let IpAddr::V6(address) = address {
        forms.push(address.segments().map(|group| format!("{group:x}")).join(":"));
    }
    forms
}

/// The name that DNS has for an address; the address where it has none.
async fn host_name(address: IpAddr) -> String {
    let found = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&address)).await;
    found.ok().and_then(Result::ok).unwrap_or_else(|| address.to_string())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` was, and what it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(&c) if c == b'?' || c == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, seen) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_rule_that_matches_decides() {
        for (rules, peer, expected) in [
            ("allow:ip:10.1.*,deny:ip:*", "10.1.2.3:9", true),
            ("allow:ip:10.1.*,deny:ip:*", "10.2.2.3:9", false),
            (" deny:ip:10.1.* , allow:ip:* ", "10.1.2.3:9", false),
            ("deny:ip:10.1.*", "10.2.2.3:9", true),
            ("deny:ip:10.1.2.?", "10.1.2.33:9", true),
            ("deny:ip:10.1.2.?", "10.1.2.3:9", false),
            ("deny:ip:10.1.2.3", "[::ffff:10.1.2.3]:9", false),
            ("deny:ip:0:0:0:0:0:0:0:1", "[::1]:9", false),
            ("allow:name:localhost,deny:ip:*", "127.0.0.1:9", true),
            ("allow:name:localhost,deny:ip:*", "192.0.2.1:9", true),
            ("allow:name:localhost,deny:ip:*", "192.0.2.2:9", false),
            ("deny:name:*", "127.0.0.1:9", false),
        ] {
            let filter = Filter::parse(rules).unwrap();
            assert_eq!(filter.allows(peer.parse().unwrap(), "192.0.2.1:1".parse().unwrap()).await, expected, "{rules} {peer}");
        }
    }

    #[test]
    fn wrong_rules_are_refused() {
        for rules in
            ["", "allow", "allow:ip", "allow:ip:", "permit:ip:*", "allow:host:*", "allow:ip:10.[12].*", "allow:ip:*,", "deny:ip:1|2"]
        {
            assert!(Filter::parse(rules).is_err(), "{rules}");
        }
    }
}
