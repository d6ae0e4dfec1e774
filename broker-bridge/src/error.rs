//! Every error a caller can meet, once: Confluent's `error_code`, HTTP status and kind (which decides the gRPC code and whether to try again).
//!
//! A message says what happened and what to do about it.

use ::http::StatusCode;
use proto::{ErrorKind, ServiceError};
use service_kit::{kafka::KafkaError, offsets::OffsetError};

/// What went wrong, as a number that clients of the REST proxy know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    BadRequest,
    Unauthenticated,
    NoRoute,
    TopicNotFound,
    PartitionNotFound,
    InstanceNotFound,
    GroupNotFound,
    TransactionNotFound,
    MethodNotAllowed,
    NotAcceptable,
    FormatMismatch,
    Conflict,
    TopicExists,
    InstanceExists,
    IllegalState,
    TooLarge,
    Misdirected,
    UnsupportedMediaType,
    Unprocessable,
    KeySchemaMissing,
    ValueSchemaMissing,
    Conversion,
    InvalidConsumerConfig,
    InvalidSchema,
    InvalidPayload,
    Serialization,
    InvalidBatch,
    SlowBody,
    Deserialization,
    TooMany,
    Forbidden,
    Internal,
    Kafka,
    Unsupported,
    KafkaRetriable,
    Unavailable,
    OutcomeUnknown,
    Timeout,
}

/// `(code, error_code, HTTP status, kind)`; every code once.
const TABLE: &[(Code, u32, StatusCode, ErrorKind)] = &[
    (Code::BadRequest, 400, StatusCode::BAD_REQUEST, ErrorKind::Invalid),
    (Code::Unauthenticated, 40101, StatusCode::UNAUTHORIZED, ErrorKind::Unauthenticated),
    (Code::Forbidden, 40301, StatusCode::FORBIDDEN, ErrorKind::Forbidden),
    (Code::NoRoute, 404, StatusCode::NOT_FOUND, ErrorKind::NotFound),
    (Code::TopicNotFound, 40401, StatusCode::NOT_FOUND, ErrorKind::NotFound),
    (Code::PartitionNotFound, 40402, StatusCode::NOT_FOUND, ErrorKind::NotFound),
    (Code::InstanceNotFound, 40403, StatusCode::NOT_FOUND, ErrorKind::NotFound),
    (Code::GroupNotFound, 40405, StatusCode::NOT_FOUND, ErrorKind::NotFound),
    (Code::TransactionNotFound, 40410, StatusCode::NOT_FOUND, ErrorKind::NotFound),
    (Code::MethodNotAllowed, 405, StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Unsupported),
    (Code::NotAcceptable, 406, StatusCode::NOT_ACCEPTABLE, ErrorKind::Invalid),
    (Code::FormatMismatch, 40601, StatusCode::NOT_ACCEPTABLE, ErrorKind::Invalid),
    (Code::Conflict, 409, StatusCode::CONFLICT, ErrorKind::Conflict),
    (Code::TopicExists, 40002, StatusCode::CONFLICT, ErrorKind::AlreadyExists),
    (Code::InstanceExists, 40902, StatusCode::CONFLICT, ErrorKind::AlreadyExists),
    (Code::IllegalState, 40903, StatusCode::CONFLICT, ErrorKind::Conflict),
    (Code::TooLarge, 413, StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::Invalid),
    // Between bridges alone.
    (Code::Misdirected, 421, StatusCode::MISDIRECTED_REQUEST, ErrorKind::Unavailable),
    (Code::UnsupportedMediaType, 415, StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorKind::Invalid),
    (Code::Unprocessable, 422, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::KeySchemaMissing, 42201, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::ValueSchemaMissing, 42202, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::Conversion, 42203, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::InvalidConsumerConfig, 42204, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::InvalidSchema, 42205, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::InvalidPayload, 42206, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::Serialization, 42207, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::InvalidBatch, 42208, StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
    (Code::SlowBody, 408, StatusCode::REQUEST_TIMEOUT, ErrorKind::Timeout),
    // The REST proxy's word for a record that its schema format cannot read.
    (Code::Deserialization, 40801, StatusCode::REQUEST_TIMEOUT, ErrorKind::Invalid),
    (Code::TooMany, 429, StatusCode::TOO_MANY_REQUESTS, ErrorKind::LimitExceeded),
    (Code::Internal, 500, StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal),
    (Code::Kafka, 50002, StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal),
    (Code::Unsupported, 501, StatusCode::NOT_IMPLEMENTED, ErrorKind::Unsupported),
    // The REST proxy sends 50003 with status 500, and so do the paths that are its own (`http`). Balancers and clients act on the status, so
    // everywhere else it is the honest one.
    (Code::KafkaRetriable, 50003, StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unavailable),
    (Code::Unavailable, 503, StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unavailable),
    // Nobody will ever know it: a repetition is not safe, so it is not asked for.
    (Code::OutcomeUnknown, 50401, StatusCode::GATEWAY_TIMEOUT, ErrorKind::Internal),
    (Code::Timeout, 504, StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout),
];

impl Code {
    fn row(self) -> &'static (Code, u32, StatusCode, ErrorKind) {
        // The test below shows that every code has its row.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    pub(crate) fn number(self) -> u32 {
        self.row().1
    }

    pub(crate) fn status(self) -> StatusCode {
        self.row().2
    }

    pub(crate) fn kind(self) -> ErrorKind {
        self.row().3
    }
}

/// A failure as it leaves the bridge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct BridgeError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

pub(crate) type Result<T, E = BridgeError> = std::result::Result<T, E>;

impl BridgeError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn unknown_topic(topic: &str) -> Self {
        Self::new(
            Code::TopicNotFound,
            format!("topic {topic:?} does not exist; create it with POST /admin/topics or `millrace topic create {topic}`"),
        )
    }

    /// Where a topic was meant that is there: to create it is no help.
    pub(crate) fn of_missing(self, topic: &str) -> Self {
        match self.code {
            Code::TopicNotFound => {
                Self::new(self.code, format!("topic {topic:?} does not exist; `millrace topic list` or GET /topics shows the topics"))
            }
            _ => self,
        }
    }

    pub(crate) fn unknown_partition(topic: &str, partition: i32, partitions: usize) -> Self {
        Self::new(
            Code::PartitionNotFound,
            format!("topic {topic:?} has no partition {partition}; it has 0 to {}", partitions.saturating_sub(1)),
        )
    }

    pub(crate) fn retryable(&self) -> bool {
        self.code.kind().retryable()
    }
}

impl From<KafkaError> for BridgeError {
    fn from(error: KafkaError) -> Self {
        let code = match (&error, error.kind()) {
            (KafkaError::UnknownTopic(topic), _) => return Self::unknown_topic(topic),
            (KafkaError::TooLarge { .. }, _) => Code::TooLarge,
            (_, ErrorKind::Unavailable) => Code::KafkaRetriable,
            (_, ErrorKind::Timeout) => Code::Timeout,
            (_, ErrorKind::Invalid) => Code::Unprocessable,
            (_, ErrorKind::NotFound) => Code::NoRoute,
            (_, ErrorKind::AlreadyExists) => Code::TopicExists,
            (_, ErrorKind::Conflict) => Code::Conflict,
            (_, ErrorKind::Unauthenticated | ErrorKind::Forbidden) => Code::Forbidden,
            (_, ErrorKind::LimitExceeded) => Code::TooMany,
            (_, ErrorKind::Unsupported) => Code::Unsupported,
            (_, ErrorKind::Internal) => Code::Kafka,
        };
        Self::new(code, error.to_string())
    }
}

impl From<OffsetError> for BridgeError {
    fn from(error: OffsetError) -> Self {
        let code = match &error {
            OffsetError::Fenced { .. } | OffsetError::Regressed { .. } => Code::IllegalState,
            OffsetError::Invalid(_) => Code::Unprocessable,
            OffsetError::Denied(_) => Code::Forbidden,
            OffsetError::InUse { .. } | OffsetError::Away { .. } => Code::Unavailable,
            OffsetError::Storage { .. } => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<BridgeError> for ServiceError {
    fn from(error: BridgeError) -> Self {
        ServiceError::new(error.code.kind(), error.message)
    }
}

impl From<BridgeError> for tonic::Status {
    fn from(error: BridgeError) -> Self {
        ServiceError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_one_row_and_its_number_begins_with_its_status() {
        let codes: std::collections::HashSet<Code> = TABLE.iter().map(|row| row.0).collect();
        let numbers: BTreeSet<u32> = TABLE.iter().map(|row| row.1).collect();
        assert_eq!((codes.len(), numbers.len()), (TABLE.len(), TABLE.len()));
        // `Timeout` is the last variant: a code without a row would answer as the first row's.
        assert_eq!(TABLE.len(), Code::Timeout as usize + 1);
        for (code, number, status, _) in TABLE {
            assert_eq!(code.number(), *number);
            let prefix = if *number >= 1000 { number / 100 } else { *number };
            // The two that deliberately differ: the one is explained in the table, the other is of a conflict.
            if !matches!(code, Code::KafkaRetriable | Code::TopicExists) {
                assert_eq!(prefix, u32::from(status.as_u16()), "{code:?}");
            }
        }
    }

    #[test]
    fn kafka_errors_become_the_codes_that_clients_know() {
        let check = |error: KafkaError, code: Code| {
            let converted = BridgeError::from(error.clone());
            assert_eq!(converted.code, code, "{error}");
            assert!(!converted.message.is_empty());
        };
        check(KafkaError::UnknownTopic("t".into()), Code::TopicNotFound);
        check(KafkaError::Unreachable("k:1".into()), Code::KafkaRetriable);
    }
}
