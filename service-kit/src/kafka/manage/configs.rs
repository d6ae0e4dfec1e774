//! Configurations: `DescribeConfigs` v1 with synonyms, `IncrementalAlterConfigs` v0.

use super::{Answer, Manage, Need, To};
use crate::kafka::{
    KafkaError,
    wire::{Input, Output},
};

const DESCRIBE: (i16, i16) = (32, 1);
const ALTER: (i16, i16) = (44, 0);

/// Whose configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigOf<'a> {
    Topic(&'a str),
    Broker(i32),
    /// What is set for all brokers at run time.
    AllBrokers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigDetail {
    pub name: String,
    /// `None` where the broker keeps it to itself (sensitive), or where none is set.
    pub value: Option<String>,
    pub is_read_only: bool,
    pub is_sensitive: bool,
    /// As Kafka names it: `DYNAMIC_TOPIC_CONFIG`, `DEFAULT_CONFIG`, …
    pub source: &'static str,
    /// Where the value would come from, nearest first.
    pub synonyms: Vec<Synonym>,
}

impl ConfigDetail {
    /// Nobody set it.
    pub fn is_default(&self) -> bool {
        self.source == DEFAULT
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synonym {
    pub name: String,
    pub value: Option<String>,
    pub source: &'static str,
}

/// A setting's new value; `None` takes it away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    pub name: String,
    pub value: Option<String>,
}

const DEFAULT: &str = "DEFAULT_CONFIG";

fn source(code: i8) -> &'static str {
    match code {
        1 => "DYNAMIC_TOPIC_CONFIG",
        2 => "DYNAMIC_BROKER_CONFIG",
        3 => "DYNAMIC_DEFAULT_BROKER_CONFIG",
        4 => "STATIC_BROKER_CONFIG",
        5 => DEFAULT,
        6 => "DYNAMIC_BROKER_LOGGER_CONFIG",
        _ => "UNKNOWN",
    }
}

impl ConfigOf<'_> {
    /// The protocol's number of the kind, and the name.
    fn resource(self) -> (i8, String) {
        match self {
            Self::Topic(name) => (2, name.to_owned()),
            Self::Broker(id) => (4, id.to_string()),
            Self::AllBrokers => (4, String::new()),
        }
    }

    /// A broker knows its own best, and alone may change it.
    fn to(self) -> To {
        match self {
            Self::Broker(id) => To::Broker(id),
            _ => To::Any,
        }
    }

    fn what(self) -> String {
        match self {
            Self::Topic(name) => format!("the configuration of topic \"{name}\""),
            Self::Broker(id) => format!("the configuration of broker {id}"),
            Self::AllBrokers => "the brokers' common configuration".to_owned(),
        }
    }

    /// `operation`: what has to be granted for it.
    fn refused(self, manage: &Manage, code: i16, message: Option<String>, verb: &str, operation: &'static str) -> KafkaError {
        let need = match self {
            // UNKNOWN_TOPIC_OR_PARTITION
            Self::Topic(name) if code == 3 => return KafkaError::UnknownTopic(name.to_owned()),
            Self::Topic(name) => Need::topic(operation, name),
            Self::Broker(_) | Self::AllBrokers => Need::cluster(operation),
        };
        manage.denied(code, message, &format!("{verb} {}", self.what()), &need)
    }
}

impl Manage {
    /// One list for each asked for, in their order, ascending by name. Topics that went meanwhile have an empty one.
    pub async fn configs(&self, of: &[ConfigOf<'_>]) -> Result<Vec<Vec<ConfigDetail>>, KafkaError> {
        let Some(first) = of.first() else { return Ok(Vec::new()) };
        let mut body = Output::default();
        body.count(of.len());
        for one in of {
            let (kind, name) = one.resource();
            body.i8(kind).string(&name).null_array();
        }
        body.bool(true);
        let results = self.ask(first.to(), DESCRIBE, body.bytes(), parse_described).await?;
        let mut found = vec![Vec::new(); of.len()];
        for (code, message, kind, name, mut entries) in results {
            let Some(at) = of.iter().position(|one| one.resource() == (kind, name.clone())) else { continue };
            match code {
                0 => {
                    entries.sort_by(|a, b| a.name.cmp(&b.name));
                    found[at] = entries;
                }
                3 if of.len() > 1 => {}
                _ => return Err(of[at].refused(self, code, message, "reading", "DESCRIBE_CONFIGS")),
            }
        }
        Ok(found)
    }

    /// Changes these settings and no other; all or none.
    pub async fn alter_configs(&self, of: ConfigOf<'_>, changes: &[ConfigChange], validate_only: bool) -> Result<(), KafkaError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (kind, name) = of.resource();
        let mut body = Output::default();
        body.count(1).i8(kind).string(&name).count(changes.len());
        for change in changes {
            body.string(&change.name).i8(i8::from(change.value.is_none())).nullable(change.value.as_deref());
        }
        body.bool(validate_only);
        // The controller decides on topics; in ZooKeeper mode no other broker does.
        let to = if matches!(of, ConfigOf::Broker(_)) { of.to() } else { To::Controller };
        let (code, message) = self.ask(to, ALTER, body.bytes(), parse_altered).await?;
        if code == 0 { Ok(()) } else { Err(of.refused(self, code, message, "changing", "ALTER_CONFIGS")) }
    }
}

type Described = (i16, Option<String>, i8, String, Vec<ConfigDetail>);

fn parse_described(input: &mut Input<'_>) -> Answer<Vec<Described>> {
    let _throttle_ms = input.i32()?;
    let mut results = Vec::new();
    for _ in 0..input.count()? {
        let (code, message, kind) = (input.i16()?, input.string()?, input.i8()?);
        let name = input.string()?.unwrap_or_default();
        let mut entries = Vec::new();
        for _ in 0..input.count()? {
            let (name, value) = (input.string()?.unwrap_or_default(), input.string()?);
            let (is_read_only, from, is_sensitive) = (input.bool()?, source(input.i8()?), input.bool()?);
            let mut synonyms = Vec::new();
            for _ in 0..input.count()? {
                let (name, value) = (input.string()?.unwrap_or_default(), input.string()?);
                synonyms.push(Synonym { name, value: value.filter(|_| !is_sensitive), source: source(input.i8()?) });
            }
            let value = value.filter(|_| !is_sensitive);
            entries.push(ConfigDetail { name, value, is_read_only, is_sensitive, source: from, synonyms });
        }
        results.push((code, message, kind, name, entries));
    }
    Ok(results)
}

/// The only result.
fn parse_altered(input: &mut Input<'_>) -> Answer<(i16, Option<String>)> {
    let _throttle_ms = input.i32()?;
    if input.count()? == 0 {
        return Err("no result".to_owned());
    }
    Ok((input.i16()?, input.string()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_with_its_synonyms_and_secrets_stay_behind() {
        let mut answer = Output::default();
        answer.i32(0).count(1).i16(0).nullable(None).i8(2).string("t").count(2);
        answer.string("retention.ms").nullable(Some("7")).bool(false).i8(1).bool(false).count(1);
        answer.string("log.retention.ms").nullable(Some("9")).i8(5);
        answer.string("secret").nullable(Some("hunter2")).bool(true).i8(4).bool(true).count(0);
        let (code, _, kind, name, entries) = parse_described(&mut Input(answer.bytes())).unwrap().remove(0);
        assert_eq!((code, kind, name.as_str()), (0, 2, "t"));
        assert_eq!((entries[0].value.as_deref(), entries[0].source, entries[0].is_default()), (Some("7"), "DYNAMIC_TOPIC_CONFIG", false));
        assert_eq!((entries[0].synonyms[0].name.as_str(), entries[0].synonyms[0].source), ("log.retention.ms", DEFAULT));
        assert_eq!((entries[1].value.as_deref(), entries[1].is_read_only), (None, true));
        for length in 0..answer.bytes().len() {
            assert!(parse_described(&mut Input(&answer.bytes()[..length])).is_err(), "{length}");
        }
    }
}
