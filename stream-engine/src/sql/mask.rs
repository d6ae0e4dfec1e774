//! A job's text as it may be shown: without the passwords in it.

use service_kit::config::is_secret;

const MASK: &str = "***";

/// Values of options and settings whose name says that they let somebody in, and passwords in URLs, become `***`; also in comments.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The literal that was read last, and whether `=` followed it.
    let mut key: Option<(String, bool)> = None;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("--") {
            let end = comment.find('\n').unwrap_or(comment.len());
            out.push_str("--");
            out.push_str(&masked(&comment[..end]));
            rest = &comment[end..];
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let end = comment.find("*/").unwrap_or(comment.len());
            out.push_str("/*");
            out.push_str(&masked(&comment[..end]));
            rest = &comment[end..];
            if let Some(after) = rest.strip_prefix("*/") {
                out.push_str("*/");
                rest = after;
            }
        } else if next == '\'' {
            let length = literal(rest);
            let content = rest[1..length].strip_suffix('\'').unwrap_or(&rest[1..length]);
            let secret = key.take().is_some_and(|(key, is_value)| is_value && is_secret(&key));
            let shown = if secret && !content.is_empty() && !is_variable(content) { MASK.to_owned() } else { without_passwords(content) };
            out.push('\'');
            out.push_str(&shown);
            if rest[1..length].ends_with('\'') {
                out.push('\'');
            }
            key = Some((content.to_owned(), false));
            rest = &rest[length..];
        } else {
            match (&mut key, next) {
                (Some((_, is_value)), '=') => *is_value = true,
                (_, next) if next.is_whitespace() => {}
                _ => key = None,
            }
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    // Comments are not made of literals.
    without_passwords(&out)
}

/// Length of the literal that begins here, with its quotes; `''` inside is a quote.
fn literal(text: &str) -> usize {
    let mut at = 1;
    while let Some(quote) = text[at..].find('\'') {
        at += quote + 1;
        if !text[at..].starts_with('\'') {
            return at;
        }
        at += 1;
    }
    text.len()
}

/// `${env:NAME}`: says where the secret is, not what it is.
fn is_variable(content: &str) -> bool {
    content.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).is_some_and(|name| !name.contains(":-") && !name.contains('}'))
}

/// `redis://user:secret@host` → `redis://user:***@host`, wherever it stands in the text.
pub(crate) fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || c == '\'' || c == '"').unwrap_or(after.len());
        out.push_str(&address(&after[..end]));
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

fn address(address: &str) -> String {
    let (place, query) = address.split_at(address.find('?').unwrap_or(address.len()));
    // A password may hold a `/` or `@` that should have been written in percent-encoding.
    let shown = match place.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
        Some((name, host)) => format!("{name}:{MASK}@{host}"),
        None => place.to_owned(),
    };
    let parameter = |part: &str| match part.split_once('=') {
        Some((name, _)) if is_secret(name.trim_start_matches('?')) || name.trim_start_matches('?') == "pass" => format!("{name}={MASK}"),
        _ => part.to_owned(),
    };
    shown + &query.split('&').map(parameter).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_somebody_in_is_not_shown_and_nothing_else_changes() {
        let text = r#"
            -- 'url' = 'redis://:hunter2@h', 'properties.ssl.key.password' = 'hunter2'
            /* redis://u:hunter2@h */ SET 'batch.interval' = '1s';
            CREATE TABLE t (a STRING /* ' */, b STRING) WITH ('connector' = 'kafka', 'properties.sasl.jaas.config' =
                'org.apache.kafka.common.security.scram.ScramLoginModule required username="u" password="hun''ter2";',
                'properties.ssl.truststore.password'='hunter2', 'properties.bootstrap.servers' = 'kafka:9092');
            CREATE TABLE r (a STRING) WITH ('url' = 'redis://user:hunter2@host:6379/0', 'key' = 'token:{a}');
            CREATE TABLE s (a STRING) WITH ('url' = 'rediss://:hun/ter2@host', 'password' = '${env:REDIS_PASSWORD}');
            INSERT INTO r SELECT a FROM t WHERE a = 'it''s' AND b <> 'password' AND b = 'hunted';"#;
        let shown = masked(text);
        assert!(!shown.contains("ter2"), "{shown}");
        for part in [
            "-- 'url' = 'redis://:***@h', 'properties.ssl.key.password' = '***'\n",
            "/* redis://u:***@h */ SET 'batch.interval' = '1s';",
            "'properties.sasl.jaas.config' =\n                '***',\n",
            "'properties.ssl.truststore.password'='***'",
            "'url' = 'redis://user:***@host:6379/0', 'key' = 'token:{a}'",
            "'url' = 'rediss://:***@host', 'password' = '${env:REDIS_PASSWORD}'",
            "WHERE a = 'it''s' AND b <> 'password' AND b = 'hunted';",
        ] {
            assert!(shown.contains(part), "without {part}:\n{shown}");
        }
    }

    #[test]
    fn text_without_secrets_and_text_that_is_cut_off_stay_as_they_are() {
        for text in
            ["", "'", "'a", "''", "SELECT 'a''b' -- x", "/* open", "'password' = '", "http://host/path@x", "'password' = ''", "ä'ö'ü"]
        {
            assert_eq!(masked(text), text);
        }
    }
}
