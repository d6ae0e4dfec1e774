//! What the registry refuses, with the codes that its clients know. The status is what the code begins with.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use service_kit::kafka::KafkaError;

use super::CONTENT_TYPE;
use crate::error::{BridgeError, Code};

/// A failure as a client of the registry sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RegistryError {
    /// Of five digits, or a status of three.
    pub(super) code: u32,
    pub(super) message: String,
}

pub(super) type Result<T, E = RegistryError> = std::result::Result<T, E>;

impl RegistryError {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn no_subject(subject: &str) -> Self {
        Self::new(40401, format!("Subject '{subject}' not found."))
    }

    pub(super) fn no_version(version: impl std::fmt::Display) -> Self {
        Self::new(40402, format!("Version {version} not found."))
    }

    pub(super) fn no_schema(id: Option<&str>) -> Self {
        Self::new(40403, id.map_or_else(|| "Schema not found".to_owned(), |id| format!("Schema {id} not found")))
    }

    pub(super) fn invalid_schema(message: impl Into<String>) -> Self {
        Self::new(42201, message)
    }

    pub(super) fn invalid_version(version: &str) -> Self {
        Self::new(42202, format!("version '{version}' is neither a number from 1 nor \"latest\""))
    }

    pub(super) fn not_permitted(message: impl Into<String>) -> Self {
        Self::new(42205, message)
    }

    pub(super) fn invalid_subject(subject: &str) -> Self {
        Self::new(
            42208,
            format!(
                "no subject can be called '{subject}': a name is not empty, is neither __GLOBAL nor __EMPTY, and has no control characters"
            ),
        )
    }

    pub(super) fn store(message: impl Into<String>) -> Self {
        Self::new(50001, message)
    }

    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self::new(50002, message)
    }

    pub(super) fn status(&self) -> StatusCode {
        let status = if self.code >= 1000 { self.code / 100 } else { self.code };
        u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<KafkaError> for RegistryError {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::TooLarge { .. } => Self::new(42209, format!("the schema is too large: {error}")),
            KafkaError::Timeout(_) | KafkaError::OutcomeUnknown(_) => Self::timeout(error.to_string()),
            other => Self::store(other.to_string()),
        }
    }
}

impl From<BridgeError> for RegistryError {
    fn from(error: BridgeError) -> Self {
        Self::new(if error.retryable() { 50001 } else { error.code.number() }, error.message)
    }
}

/// For who asks on behalf of people.
impl From<RegistryError> for BridgeError {
    fn from(error: RegistryError) -> Self {
        let code = match error.status() {
            StatusCode::NOT_FOUND => Code::NoRoute,
            StatusCode::UNPROCESSABLE_ENTITY => Code::Unprocessable,
            status if status.is_server_error() => Code::Unavailable,
            _ => Code::BadRequest,
        };
        Self::new(code, error.message)
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::debug!(error = %self, "request to the registry failed");
        }
        let body = json!({"error_code": self.code, "message": self.message}).to_string();
        let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if status.is_server_error() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
