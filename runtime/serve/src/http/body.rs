//! Bodies of requests: how much is read, how long that may take, and what JSON may look like.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::{
    App,
    error::ApiError,
    fields::{Fields, Problems, Table},
};

/// How long a client may take to send a body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Deepest nesting; messages with tools and schemas stay far below.
const MAX_DEPTH: usize = 100;

/// Values in a body. A parsed value takes tens of bytes where its text takes two, so the length
/// alone does not bound the memory.
const MAX_VALUES: usize = 1 << 21;

/// A body whose fields are compared with a route's table.
pub(super) struct Checked {
    pub(super) body: Map<String, Value>,
    /// The name under which it asks for the model.
    pub(super) model: String,
    /// What is wrong with it so far.
    pub(super) problems: Problems,
}

impl App {
    /// Reads a request's body, for a route with these fields.
    ///
    /// # Errors
    /// Those of [`read`], and 404 for another model than this server's.
    pub(super) async fn read(
        &self,
        request: Request<Body>,
        table: Table,
    ) -> Result<Checked, ApiError> {
        let body = read(request, self.options().max_body_bytes).await?;
        let model = self.model(Fields(&body))?;
        let mut problems = Problems::new(self.vocab_size());
        problems.check_object(table, &body, "");
        Ok(Checked { body, model, problems })
    }
}

/// Reads the JSON object that is a request's body.
///
/// # Errors
/// 400 for other JSON or none, 408, 413 or 415.
async fn read(request: Request<Body>, max_bytes: usize) -> Result<Map<String, Value>, ApiError> {
    read_within(request, max_bytes, READ_TIMEOUT).await
}

async fn read_within(
    request: Request<Body>,
    max_bytes: usize,
    limit: Duration,
) -> Result<Map<String, Value>, ApiError> {
    let (parts, body) = request.into_parts();
    check_headers(&parts.headers, max_bytes)?;
    let collected = tokio::time::timeout(limit, Limited::new(body, max_bytes).collect());
    let bytes = match collected.await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large(max_bytes)),
        Ok(Err(error)) => {
            return Err(ApiError::invalid(format!("the body cannot be read: {error}")));
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", limit.as_secs());
            let status = StatusCode::REQUEST_TIMEOUT;
            let error = ApiError::new(status, "timeout_error", Some("timeout"), message);
            return Err(error.with_header(header::CONNECTION, "close"));
        }
    };
    parse(&bytes)
}

fn check_headers(headers: &HeaderMap, max_bytes: usize) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let media = text(header::CONTENT_TYPE).map(|value| value.split(';').next().unwrap_or(value));
    if !media.is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json")) {
        return Err(unsupported("the body must be `Content-Type: application/json`"));
    }
    if !text(header::CONTENT_ENCODING).is_none_or(|value| value.eq_ignore_ascii_case("identity")) {
        return Err(unsupported("the body must not be compressed"));
    }
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > max_bytes as u64) {
        return Err(too_large(max_bytes));
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    check_structure(bytes)?;
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::invalid("the body must be a JSON object")),
        Err(error) => Err(ApiError::invalid(format!("the body is not valid JSON: {error}"))),
    }
}

/// Bounds nesting and number of values before anything is built from them.
fn check_structure(bytes: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut values, mut in_text, mut is_escaped) = (0_usize, 0_usize, false, false);
    for byte in bytes {
        if in_text {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'[' | b'{' => {
                depth += 1;
                values += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            let message = format!("the body is nested deeper than {MAX_DEPTH}");
            return Err(ApiError::invalid(message));
        }
        if values > MAX_VALUES {
            let message = format!("the body holds more than {MAX_VALUES} values");
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                Some("body_too_large"),
                message,
            ));
        }
    }
    Ok(())
}

fn too_large(max_bytes: usize) -> ApiError {
    let message = format!("the body is longer than the {max_bytes} bytes that this server takes");
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    let error = ApiError::new(status, "invalid_request_error", Some("body_too_large"), message);
    error.with_header(header::CONNECTION, "close")
}

fn unsupported(message: &str) -> ApiError {
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    ApiError::new(status, "invalid_request_error", Some("unsupported_media_type"), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_refused_before_they_are_built() {
        let status = |text: &[u8]| parse(text).map_err(|error| error.status.as_u16());
        let nested = |n: usize| {
            let list = [vec![b'['; n], vec![b']'; n]].concat();
            [b"{\"a\":", &list[..], b"}"].concat()
        };
        assert!(status(&nested(MAX_DEPTH - 1)).is_ok());
        assert_eq!(status(&nested(MAX_DEPTH)), Err(400));
        assert_eq!(status(&vec![b'['; 1 << 20]), Err(400));
        let wide = [b"{\"a\":[1", &b",1".repeat(MAX_VALUES)[..], b"]}"].concat();
        assert_eq!(status(&wide), Err(413));
        let texts = br#"{"a":"[[[\"{{{,,,","b\\":"]"}"#;
        assert_eq!(status(texts).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn bodies_are_not_waited_for() {
        let body = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, String>>());
        let request = Request::post("/").header("content-type", "application/json");
        let request = request.body(body).unwrap();
        let error = read_within(request, 100, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.status.as_u16(), 408);
    }

    #[test]
    fn only_an_object_is_a_body() {
        for text in ["", "[]", "3", "null", "{", "{}x", "{\"a\":1,}", "{\"a\":NaN}", "\"{}\""] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().status.as_u16(), 400, "{text}");
        }
        assert!(parse(b" {} ").unwrap().is_empty());
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
    }
}
