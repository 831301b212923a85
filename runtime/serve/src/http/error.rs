//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use text::TextError;

use crate::{ServeError, engine::SubmitError};

/// An answer that is no success.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The class of the error.
    pub(crate) kind: &'static str,
    /// The field at fault.
    pub(crate) param: Option<String>,
    /// What programs go by.
    pub(crate) code: Option<&'static str>,
    /// Headers that go with the status.
    pub(crate) headers: Vec<(header::HeaderName, HeaderValue)>,
}

const INVALID: &str = "invalid_request_error";

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError { status, message: message.into(), kind, param: None, code, headers: vec![] }
    }

    /// 400: the request is at fault.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, INVALID, None, message)
    }

    /// 400 about one field; `reason` goes on after its name.
    pub(crate) fn field(field: &str, reason: impl AsRef<str>) -> ApiError {
        ApiError::invalid(format!("`{field}` {}", reason.as_ref())).with_param(field)
    }

    /// 400: the prompt leaves no room.
    pub(crate) fn too_long(field: &str, reason: impl AsRef<str>) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field(field, reason) }
    }

    /// 400: the model is of another kind.
    pub(crate) fn wrong_kind(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, INVALID, Some("model_not_supported"), message)
    }

    /// 401.
    pub(crate) fn unauthorized(message: &str, scheme: &'static str) -> ApiError {
        let code = Some("invalid_api_key");
        let error = ApiError::new(StatusCode::UNAUTHORIZED, INVALID, code, message);
        error.with_header(header::WWW_AUTHENTICATE, scheme)
    }

    /// 404: no such model.
    pub(crate) fn no_model(name: &str, served: &[String]) -> ApiError {
        let name: String = name.chars().take(200).collect();
        let message = format!("the model {name:?} is not served here; {served:?} is");
        let code = Some("model_not_found");
        ApiError::new(StatusCode::NOT_FOUND, INVALID, code, message).with_param("model")
    }

    /// 503: the server ends.
    pub(crate) fn draining() -> ApiError {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let message = "the server is shutting down and takes no further requests";
        let error = ApiError::new(status, "service_unavailable_error", Some("draining"), message);
        error.with_header(header::RETRY_AFTER, "5").with_header(header::CONNECTION, "close")
    }

    /// 504: the answer takes longer than the server allows.
    pub(crate) fn timeout(seconds: u64) -> ApiError {
        let message = format!("the answer takes longer than the {seconds} s that requests may");
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", Some("timeout"), message)
    }

    /// 500: not the request's fault.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    pub(crate) fn with_param(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(param.into());
        self
    }

    pub(crate) fn with_header(mut self, name: header::HeaderName, value: &'static str) -> ApiError {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// Renames the field at fault: the engine calls `prompt` what a route may call otherwise.
    pub(crate) fn rename(mut self, from: &str, to: &str) -> ApiError {
        if self.param.as_deref() == Some(from) {
            self.message = self.message.replacen(&format!("`{from}`"), &format!("`{to}`"), 1);
            self.param = Some(to.into());
        }
        self
    }

    /// The body.
    pub(crate) fn json(&self) -> Value {
        let ApiError { message, kind, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(self.headers);
        response
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> ApiError {
        match error {
            ServeError::Request { field, reason } => ApiError::field(field, reason),
            ServeError::Kind { .. } => ApiError::wrong_kind(error.to_string()),
            ServeError::Text(error) => error.into(),
            error => {
                tracing::error!(%error, "a request failed");
                ApiError::internal(error.to_string())
            }
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        let message = error.to_string();
        match error {
            TextError::Refused { .. }
            | TextError::Conversation { .. }
            | TextError::Template { .. } => ApiError::invalid(message).with_param("messages"),
            TextError::Structure { .. } => ApiError::invalid(message).with_param("response_format"),
            TextError::Constraint { .. } => ApiError::invalid(message),
            TextError::Tools { field, .. } => ApiError::invalid(message).with_param(field),
            TextError::EmptyStop { .. } => ApiError::invalid(message).with_param("stop"),
            TextError::Encode { .. } | TextError::Decode { .. } => {
                ApiError::invalid(message).with_param("prompt")
            }
            TextError::Malformed { .. } => ApiError::wrong_kind(message),
            _ => ApiError::internal(message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        match error {
            SubmitError::Refused(error) => error.into(),
            SubmitError::Draining => ApiError::draining(),
            SubmitError::QueueFull { retry_after, .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let code = Some("queue_full");
                let mut full = ApiError::new(status, "rate_limit_error", code, error.to_string());
                let seconds = HeaderValue::from(retry_after.as_secs().max(1));
                full.headers.push((header::RETRY_AFTER, seconds));
                full
            }
        }
    }
}
