//! Managing a cluster beyond what librdkafka's binding offers: configurations with where each value comes from and changed one by one,
//! access control lists, replica assignments, reassignments, static members. Encoded by hand ([`super::wire`]), in
//! versions that Kafka 2.8 to 4.x all understand.

mod acls;
mod configs;
mod groups;
mod partitions;
mod rights;

pub use acls::{Acl, AclFilter, AclOperation, AclPattern, AclPermission, AclResource};
pub use configs::{ConfigChange, ConfigDetail, ConfigOf, Synonym};
pub use partitions::Reassignment;

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use tracing::debug;

use super::access::{Need, denied};
use super::dial::Dialer;
use super::wire::{self, Input, Node};
use super::{KafkaConfig, KafkaError};

/// Cheap to clone; connects for each request.
#[derive(Clone)]
pub struct Manage {
    dialer: Dialer,
}

/// Who is asked.
#[derive(Clone, Copy)]
enum To {
    Any,
    /// In KRaft mode brokers pass on what is the controller's; a controller that is one of the brokers (ZooKeeper mode) must be asked itself.
    Controller,
    Broker(i32),
}

/// What a parser gives, or why it cannot read the answer.
type Answer<T> = Result<T, String>;

impl Manage {
    pub fn new(config: &KafkaConfig) -> Self {
        Self::of(&Dialer::new(config))
    }

    pub(super) fn of(dialer: &Dialer) -> Self {
        Self { dialer: dialer.clone() }
    }

    fn bound(&self) -> Duration {
        self.dialer.config.api_timeout()
    }

    /// Brokers with their racks, and the controller's id.
    async fn nodes(&self) -> Result<(Vec<Node>, Option<i32>), KafkaError> {
        let mut last = KafkaError::Unreachable("no bootstrap server is named".into());
        for server in self.dialer.config.servers() {
            match wire::nodes(&self.dialer, &server, self.bound()).await {
                Ok(found) => return Ok(found),
                Err(error @ KafkaError::Auth(_)) => return Err(error),
                Err(error) => {
                    debug!(%error, "asking the next bootstrap server");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The racks of the brokers that have one.
    pub async fn racks(&self) -> Result<std::collections::BTreeMap<i32, String>, KafkaError> {
        let (nodes, _) = self.nodes().await?;
        Ok(nodes.into_iter().filter_map(|node| Some((node.id, node.rack?))).collect())
    }

    async fn ask<T>(&self, to: To, api: (i16, i16), body: &[u8], parse: impl FnOnce(&mut Input<'_>) -> Answer<T>) -> Result<T, KafkaError> {
        let (nodes, controller) = self.nodes().await?;
        let node = match to {
            To::Any => nodes.first(),
            To::Controller => nodes.iter().find(|node| Some(node.id) == controller).or(nodes.first()),
            To::Broker(id) => match nodes.iter().find(|node| node.id == id) {
                Some(node) => Some(node),
                None => return Err(KafkaError::Invalid(format!("the cluster has no broker {id}"))),
            },
        };
        let Some(node) = node else { return Err(KafkaError::Unreachable("the cluster names no broker".into())) };
        let address = node.address();
        let answer = wire::ask(&self.dialer, &address, api, body, self.bound()).await?;
        parse(&mut Input(&answer)).map_err(|reason| wire::malformed(&address, &reason))
    }
}

impl Manage {
    /// As [`refused`]; where the principal may not do it, with what has to be granted.
    fn denied(&self, code: i16, message: Option<String>, what: &str, need: &Need) -> KafkaError {
        let known = match code {
            29 => Some(Code::TopicAuthorizationFailed),
            30 => Some(Code::GroupAuthorizationFailed),
            31 => Some(Code::ClusterAuthorizationFailed),
            _ => None,
        };
        let told = known.and_then(|code| denied(code, what, need, &self.dialer.config));
        told.map_or_else(|| refused(code, message, what), KafkaError::Auth)
    }
}

/// What a broker's error code means for the caller; `object` is what the request was about.
fn refused(code: i16, message: Option<String>, what: &str) -> KafkaError {
    let said = message.filter(|message| !message.is_empty()).unwrap_or_else(|| format!("error {code} of the Kafka protocol"));
    let text = format!("{what}: {said}");
    match code {
        // By the names of the protocol: authorization of topic, group, cluster, transactional id.
        29..=31 | 53 => KafkaError::Auth(text),
        // REQUEST_TIMED_OUT
        7 => KafkaError::Timeout(text),
        // UNSUPPORTED_VERSION
        35 => KafkaError::Unsupported(text),
        // SECURITY_DISABLED: the brokers have no authorizer, which no repetition changes.
        54 => KafkaError::Invalid(format!("{text} (authorizer.class.name is not set)")),
        // Topic exception, bad partitions, replication, assignment, configuration, request, policy; unknown member names of enumerations.
        17 | 37..=40 | 42 | 44 | 60 => KafkaError::Invalid(text),
        // Coordinator or leader moving, not the controller, reassignment in progress.
        5 | 6 | 14..=16 | 41 | 56 => KafkaError::Retryable(text),
        _ => KafkaError::Fatal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_brokers_words_and_its_kind() {
        let cases = [(29, "auth"), (54, "invalid"), (40, "invalid"), (41, "retryable"), (35, "unsupported"), (999, "fatal")];
        for (code, kind) in cases {
            let error = refused(code, Some("said the broker".into()), "altering");
            let found = match &error {
                KafkaError::Auth(_) => "auth",
                KafkaError::Invalid(_) => "invalid",
                KafkaError::Retryable(_) => "retryable",
                KafkaError::Unsupported(_) => "unsupported",
                KafkaError::Fatal(_) => "fatal",
                _ => "other",
            };
            assert_eq!(found, kind, "{code}");
            assert!(error.to_string().starts_with("altering: said the broker"), "{error}");
        }
        assert!(refused(42, None, "x").to_string().contains("error 42"));
    }
}
