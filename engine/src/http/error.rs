//! How failures look to clients: a status and `{"message": "..."}`. Kinds of errors map to statuses in one table.

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use proto::kind::{ErrorKind, chain};
use serde_json::json;
use spec::{
    apparmor::AppArmorError, caps::UnknownCapability, cdi::CdiError, seccomp::ProfileError, signal::UnknownSignal,
    users::UserError,
};

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Status of the answer.
    pub status: StatusCode,
    /// Text that the client prints after "Error response from daemon: ".
    pub message: String,
    /// What the user may do about it, if that isn't plain from the message.
    hint: Option<String>,
    /// Nothing that the log should tell of.
    expected: bool,
}

/// What handlers return.
pub type ApiResult<T = Response> = Result<T, ApiError>;

impl ApiError {
    /// An error of this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hint: None, expected: false }
    }

    /// 400
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 304: nothing to do, no body.
    pub fn not_modified() -> Self {
        Self::new(StatusCode::NOT_MODIFIED, "")
    }

    /// The same with a next step for the user: a field of its own in the answer, for docker's client shows the message alone.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as an answer that is nobody's trouble: the log doesn't tell of it.
    #[must_use]
    pub fn expected(mut self) -> Self {
        self.expected = true;
        self
    }

    /// The error's code: a word for programs, stable where messages may become clearer. The two failures of a command are
    /// what docker's client finds in the text.
    pub fn code(&self) -> &'static str {
        let lower = self.message.to_lowercase();
        match self.status {
            StatusCode::BAD_REQUEST
                if ["executable file not found", "no such file or directory"]
                    .iter()
                    .any(|words| lower.contains(words)) =>
            {
                "command_not_found"
            }
            StatusCode::BAD_REQUEST if lower.contains("permission denied") => "command_not_executable",
            StatusCode::BAD_REQUEST => "invalid_argument",
            StatusCode::UNAUTHORIZED => "unauthenticated",
            StatusCode::FORBIDDEN => "permission_denied",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::CONFLICT => "conflict",
            StatusCode::NOT_IMPLEMENTED => "not_implemented",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            StatusCode::GATEWAY_TIMEOUT => "deadline_exceeded",
            status if status.is_client_error() => "invalid_argument",
            _ => "internal",
        }
    }

    /// The whole chain of causes under the status of its kind.
    pub fn of(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        Self::new(status_of(kind), chain(error))
    }

    /// An error with its causes, unexpected.
    pub fn unexpected(error: &dyn std::error::Error) -> Self {
        Self::of(ErrorKind::Internal, error)
    }
}

/// HTTP status of each kind of error.
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::FailedPrecondition => StatusCode::CONFLICT,
        ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::ResourceExhausted | ErrorKind::Cancelled | ErrorKind::DataLoss | ErrorKind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

impl From<UnknownCapability> for ApiError {
    fn from(error: UnknownCapability) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<UnknownSignal> for ApiError {
    fn from(error: UnknownSignal) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<ProfileError> for ApiError {
    fn from(error: ProfileError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<CdiError> for ApiError {
    fn from(error: CdiError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<AppArmorError> for ApiError {
    fn from(error: AppArmorError) -> Self {
        match error {
            AppArmorError::NotLoaded(_) => {
                Self::invalid(format!("{error}, or choose another by --security-opt apparmor=NAME"))
            }
            AppArmorError::Load { .. } => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED && !self.expected {
            tracing::warn!(status = self.status.as_u16(), error = %self.message, "request failed");
        }
        let mut body = json!({ "message": self.message, "code": self.code() });
        if let Some(hint) = &self.hint {
            body["hint"] = hint.as_str().into();
        }
        let body = format!("{body}\n");
        (self.status, [(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies() {
        let body = async |error: ApiError| {
            let bytes = axum::body::to_bytes(error.into_response().into_body(), 1 << 10).await.unwrap();
            serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
        };
        assert_eq!(
            body(ApiError::not_found("No such container: a").hint("look")).await,
            json!({"message": "No such container: a", "code": "not_found", "hint": "look"})
        );
        for (status, text, code) in [
            (400, "exec: \"x\": executable file not found in $PATH", "command_not_found"),
            (400, "exec: \"/etc\": permission denied", "command_not_executable"),
            (409, "x", "conflict"),
            (413, "x", "invalid_argument"),
            (500, "x", "internal"),
        ] {
            let error = ApiError::new(StatusCode::from_u16(status).unwrap(), text);
            assert_eq!(body(error).await, json!({"message": text, "code": code}));
        }
    }

    #[test]
    fn every_kind_has_an_error_status() {
        for kind in ErrorKind::ALL {
            let status = status_of(kind);
            assert!(status.is_client_error() || status.is_server_error(), "{kind:?}");
        }
    }
}
