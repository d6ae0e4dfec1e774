//! The one table: error kind ↔ gRPC code ↔ HTTP status ↔ may the caller try again.

use http::StatusCode;
use tonic::{Code, Status};

/// What a caller should make of a failure. Coarse on purpose; the message has the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; the same request fails again.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already.
    AlreadyExists,
    /// The request does not fit the present state (paused, subscribed already, wrong epoch).
    Conflict,
    /// No or wrong credentials.
    Unauthenticated,
    /// Known caller, not allowed.
    Forbidden,
    /// A stated limit is exceeded (size, count, quota).
    LimitExceeded,
    /// Something this service depends on is away; try again later.
    Unavailable,
    /// The deadline passed; the outcome is not known.
    Timeout,
    /// This build or configuration does not offer it.
    Unsupported,
    /// A fault of the service itself.
    Internal,
}

/// `(kind, gRPC, HTTP, retryable)`; every kind once.
const TABLE: &[(ErrorKind, Code, StatusCode, bool)] = &[
    (ErrorKind::Invalid, Code::InvalidArgument, StatusCode::BAD_REQUEST, false),
    (ErrorKind::NotFound, Code::NotFound, StatusCode::NOT_FOUND, false),
    (ErrorKind::AlreadyExists, Code::AlreadyExists, StatusCode::CONFLICT, false),
    (ErrorKind::Conflict, Code::FailedPrecondition, StatusCode::CONFLICT, false),
    (ErrorKind::Unauthenticated, Code::Unauthenticated, StatusCode::UNAUTHORIZED, false),
    (ErrorKind::Forbidden, Code::PermissionDenied, StatusCode::FORBIDDEN, false),
    (ErrorKind::LimitExceeded, Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, true),
    (ErrorKind::Unavailable, Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, true),
    (ErrorKind::Timeout, Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, true),
    (ErrorKind::Unsupported, Code::Unimplemented, StatusCode::NOT_IMPLEMENTED, false),
    (ErrorKind::Internal, Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, false),
];

impl ErrorKind {
    fn row(self) -> &'static (ErrorKind, Code, StatusCode, bool) {
        // The test below shows that every kind has its row.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[TABLE.len() - 1])
    }

    pub fn grpc(self) -> Code {
        self.row().1
    }

    pub fn http(self) -> StatusCode {
        self.row().2
    }

    pub fn retryable(self) -> bool {
        self.row().3
    }

    /// The kind behind a gRPC code; codes that Millrace does not send become `Internal`.
    pub fn from_grpc(code: Code) -> Self {
        TABLE.iter().find(|row| row.1 == code).map_or(ErrorKind::Internal, |row| row.0)
    }
}

/// A failure as it leaves a service: what to do about it, and what happened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    pub kind: ErrorKind,
    pub message: String,
}

impl ServiceError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        Status::new(error.kind.grpc(), error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_trip_through_grpc() {
        for (kind, code, http, _) in TABLE {
            assert_eq!(ErrorKind::from_grpc(*code), *kind);
            assert_eq!(kind.grpc(), *code);
            assert!(http.is_client_error() || http.is_server_error());
        }
        // Adding a kind without a row is a compile error here.
        let rows = |kind: ErrorKind| match kind {
            ErrorKind::Invalid
            | ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Conflict
            | ErrorKind::Unauthenticated
            | ErrorKind::Forbidden
            | ErrorKind::LimitExceeded
            | ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::Unsupported
            | ErrorKind::Internal => TABLE.iter().filter(|row| row.0 == kind).count(),
        };
        assert!(TABLE.iter().all(|row| rows(row.0) == 1));
        assert_eq!(TABLE.len(), 11);
    }
}
