//! What can go wrong with Kafka, and what a caller may do about it. The client crates' errors end here.

use proto::ErrorKind;
use rdkafka::error::{KafkaError as RdError, RDKafkaError, RDKafkaErrorCode as Code};
use rskafka::client::error::{Error as RsError, ProtocolError};

use super::TopicPartition;

/// A failure of Kafka or of its settings.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum KafkaError {
    /// A setting is wrong; the message names the key and the remedy.
    #[error("{0}")]
    Config(String),
    /// No broker answered within `default.api.timeout.ms`; the message names the servers.
    #[error("{0}")]
    Unreachable(String),
    #[error("topic \"{0}\" does not exist; create it, or correct the name")]
    UnknownTopic(String),
    #[error("topic \"{0}\" exists already")]
    AlreadyExists(String),
    #[error("group \"{0}\" does not exist")]
    UnknownGroup(String),
    /// The record alone is larger than the producer or the topic allows.
    #[error(
        "record of {bytes} bytes is larger than allowed: the producer's max.request.size is {max}, \
         and the topic's max.message.bytes may be lower; raise both, or make the record smaller"
    )]
    TooLarge { bytes: usize, max: usize },
    #[error("{partition} has no offset {offset}: it holds {earliest} to {latest}")]
    OffsetOutOfRange { partition: Box<TopicPartition>, offset: i64, earliest: i64, latest: i64 },
    /// Another writer or member took over; this one must be dropped.
    #[error("{0}")]
    Fenced(String),
    /// It is not known whether the transaction was committed; this writer must be dropped.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// Credentials are wrong, or the principal may not do this.
    #[error("{0}")]
    Auth(String),
    /// The request does not fit the present state: the group has members, no transaction is open, …
    #[error("{0}")]
    Conflict(String),
    /// The broker refuses the request as such: replication factor above the brokers, bad topic name, …
    #[error("{0}")]
    Invalid(String),
    /// This role or connection does not offer it.
    #[error("{0}")]
    Unsupported(String),
    /// The deadline passed; for a record: it may or may not have been written.
    #[error("{0}")]
    Timeout(String),
    /// It may work when tried again: not enough replicas, leader moving, broker overloaded.
    #[error("{0}")]
    Retryable(String),
    /// This client cannot go on; make a new one.
    #[error("{0}")]
    Fatal(String),
}

impl KafkaError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Invalid(_) | Self::OffsetOutOfRange { .. } => ErrorKind::Invalid,
            Self::UnknownTopic(_) | Self::UnknownGroup(_) => ErrorKind::NotFound,
            Self::AlreadyExists(_) => ErrorKind::AlreadyExists,
            Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Fenced(_) | Self::Conflict(_) => ErrorKind::Conflict,
            Self::Auth(_) => ErrorKind::Forbidden,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Timeout(_) | Self::OutcomeUnknown(_) => ErrorKind::Timeout,
            Self::Unreachable(_) | Self::Retryable(_) => ErrorKind::Unavailable,
            Self::Fatal(_) => ErrorKind::Internal,
        }
    }

    /// The same call may succeed later, on the same client.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Timeout(_) | Self::Retryable(_))
    }

    /// The client that gave this error is of no further use.
    pub(super) fn poisons(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_) | Self::Fenced(_) | Self::Fatal(_))
    }

    /// `what` names the action and the object: `"committing offsets of group \"g\""`.
    pub(super) fn from_code(code: Code, what: &str) -> Self {
        let message = format!("{what}: {code}");
        match code {
            Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => Self::Unreachable(message),
            Code::OperationTimedOut | Code::MessageTimedOut | Code::TimedOutQueue | Code::RequestTimedOut => Self::Timeout(message),
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => Self::Invalid(message),
            Code::Fenced | Code::InvalidProducerEpoch | Code::ProducerFenced | Code::FencedInstanceId => Self::Fenced(message),
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::DelegationTokenAuthorizationFailed
            | Code::SSL => Self::Auth(message),
            Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress | Code::NonEmptyGroup => Self::Conflict(message),
            Code::InvalidReplicationFactor
            | Code::InvalidPartitions
            | Code::InvalidTopic
            | Code::InvalidConfig
            | Code::InvalidReplicaAssignment
            | Code::InvalidGroupId
            | Code::InvalidArgument
            | Code::OffsetMetadataTooLarge
            | Code::PolicyViolation
            | Code::InvalidTimestamp
            | Code::InvalidRecord => Self::Invalid(message),
            Code::UnsupportedVersion | Code::UnsupportedFeature | Code::UnsupportedForMessageFormat => Self::Unsupported(message),
            Code::Fatal => Self::Fatal(message),
            _ => Self::Retryable(message),
        }
    }

    pub(super) fn from_rd(error: &RdError, what: &str) -> Self {
        match error {
            RdError::ClientConfig(_, reason, key, value) => Self::Config(format!("{key} = {value}: librdkafka refuses it ({reason})")),
            RdError::ClientCreation(reason) => Self::Config(format!("{what}: {reason}")),
            RdError::Transaction(error) => Self::from_native(error, what),
            other => match other.rdkafka_error_code() {
                Some(code) => Self::from_code(code, what),
                None => Self::Fatal(format!("{what}: {other}")),
            },
        }
    }

    /// Errors of the transactional calls, which say themselves whether the client can go on.
    pub(super) fn from_native(error: &RDKafkaError, what: &str) -> Self {
        match Self::from_code(error.code(), &format!("{what} ({})", error.string())) {
            fenced @ Self::Fenced(_) => fenced,
            auth @ Self::Auth(_) => auth,
            other if error.is_fatal() => Self::Fatal(other.to_string()),
            other => other,
        }
    }

    pub(super) fn from_rs(error: &RsError, partition: &TopicPartition, offset: i64) -> Self {
        let message = format!("reading {partition} at offset {offset}: {error}");
        match error {
            RsError::Connection(_) | RsError::Timeout | RsError::RetryFailed(_) => Self::Unreachable(message),
            RsError::ServerError { protocol_error, .. } => match protocol_error {
                ProtocolError::UnknownTopicOrPartition => Self::UnknownTopic(partition.topic.to_string()),
                ProtocolError::TopicAuthorizationFailed | ProtocolError::SaslAuthenticationFailed => Self::Auth(message),
                _ => Self::Retryable(message),
            },
            _ => Self::Retryable(message),
        }
    }
}

impl From<KafkaError> for proto::ServiceError {
    fn from(error: KafkaError) -> Self {
        proto::ServiceError::new(error.kind(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_tried_again_is_unavailable_or_late() {
        for error in [
            KafkaError::from_code(Code::BrokerTransportFailure, "x"),
            KafkaError::from_code(Code::MessageTimedOut, "x"),
            KafkaError::from_code(Code::NotEnoughReplicas, "x"),
        ] {
            assert!(error.retryable(), "{error:?}");
            assert!(error.kind().retryable(), "{error:?}");
        }
        for error in [
            KafkaError::UnknownTopic("t".into()),
            KafkaError::TooLarge { bytes: 2, max: 1 },
            KafkaError::from_code(Code::ProducerFenced, "x"),
            KafkaError::from_code(Code::TopicAuthorizationFailed, "x"),
        ] {
            assert!(!error.retryable(), "{error:?}");
        }
    }

    #[test]
    fn a_taken_over_writer_is_poisoned() {
        for code in [Code::Fenced, Code::InvalidProducerEpoch, Code::ProducerFenced] {
            assert!(KafkaError::from_code(code, "commit").poisons());
        }
        assert!(!KafkaError::from_code(Code::NotEnoughReplicas, "commit").poisons());
    }
}
