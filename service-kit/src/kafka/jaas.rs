//! `sasl.jaas.config` and `sasl.mechanism`: user, password, and how to log in with them.

use std::collections::BTreeMap;

use super::KafkaError;

pub(super) const OAUTH: &str = "OAUTHBEARER is not offered; use SCRAM-SHA-512 or PLAIN over SASL_SSL, or client certificates";
pub(super) const KERBEROS: &str = "this build has no Kerberos; use SCRAM-SHA-512 or PLAIN over SASL_SSL, or client certificates";

/// Credentials of `sasl.jaas.config`.
pub(super) struct Login {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    pub username: String,
    pub password: String,
}

impl Login {
    /// Java's class for the mechanism.
    pub(super) fn module(&self) -> &'static str {
        match self.mechanism.as_str() {
            "PLAIN" => "org.apache.kafka.common.security.plain.PlainLoginModule",
            _ => "org.apache.kafka.common.security.scram.ScramLoginModule",
        }
    }
}

pub(super) fn login(values: &BTreeMap<String, String>) -> Result<Login, KafkaError> {
    let refuse = |text: String| Err(KafkaError::Config(text));
    let mechanism = values.get("sasl.mechanism").map(|value| value.trim().to_ascii_uppercase());
    let expected = match mechanism.as_deref() {
        Some("PLAIN") => "PlainLoginModule",
        Some("SCRAM-SHA-256" | "SCRAM-SHA-512") => "ScramLoginModule",
        Some("GSSAPI") => return refuse(format!("sasl.mechanism = GSSAPI is refused: {KERBEROS}")),
        Some("OAUTHBEARER") => return refuse(format!("sasl.mechanism = OAUTHBEARER is refused: {OAUTH}")),
        Some(other) => {
            return refuse(format!("sasl.mechanism = {other}: expected PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"));
        }
        None => {
            return refuse(format!("sasl.mechanism is missing, and Java's default is GSSAPI, but {KERBEROS}; set sasl.mechanism"));
        }
    };
    let Some(jaas) = values.get("sasl.jaas.config") else {
        return refuse(format!("sasl.jaas.config is missing: set it to `…{expected} required username=\"…\" password=\"…\";`"));
    };
    let (module, options) = jaas_options(jaas).map_err(KafkaError::Config)?;
    if module.rsplit('.').next() != Some(expected) {
        return refuse(format!("sasl.jaas.config names {module}, but sasl.mechanism = {} needs {expected}", mechanism.unwrap_or_default()));
    }
    if options.get("tokenauth").is_some_and(|value| value == "true") {
        return refuse("sasl.jaas.config: tokenauth is refused: delegation tokens are not offered; log in by password".into());
    }
    let option = |name: &str| {
        let missing = || KafkaError::Config(format!("sasl.jaas.config: {name}=\"…\" is missing"));
        options.get(name).cloned().ok_or_else(missing)
    };
    Ok(Login { username: option("username")?, password: option("password")?, mechanism: mechanism.unwrap_or_default() })
}

/// `class flag name="value" … ;` → class and options.
fn jaas_options(text: &str) -> Result<(String, BTreeMap<String, String>), String> {
    const SHAPE: &str = "sasl.jaas.config: expected `CLASS required name=\"value\" …;`";
    let text = text.trim();
    let Some(body) = text.strip_suffix(';') else { return Err(format!("{SHAPE}: the `;` at the end is missing")) };
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (_, '\\') => word.extend(chars.next()),
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => word.push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("{SHAPE}: a quote is not closed"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut words = words.into_iter();
    let (Some(module), Some(_flag)) = (words.next(), words.next()) else { return Err(SHAPE.into()) };
    let mut options = BTreeMap::new();
    for word in words {
        let Some((name, value)) = word.split_once('=') else { return Err(SHAPE.into()) };
        options.insert(name.to_owned(), value.to_owned());
    }
    Ok((module, options))
}
