//! What goes wrong with a request, as OpenAI's API says it: a status, and `{"error": {message, type, param, code}}`.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::Error;

/// Why a request is not answered.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The status of an answer that has not begun.
    pub status: StatusCode,
    code: Option<&'static str>,
    /// The field at fault.
    param: Option<String>,
    message: String,
    /// Seconds after which asking again may help.
    retry_after: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after: None }
    }

    /// The request as a whole will not do.
    pub fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// A field's value will not do: the message is its name and what is wrong.
    pub fn value(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {problem}");
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, Some("invalid_value"), message) }
    }

    /// A field that nobody knows.
    pub fn unknown(param: impl Into<String>) -> Self {
        Self { code: Some("unknown_parameter"), ..Self::value(param, "no such field is known here") }
    }

    /// A field, or a value of it, that others have and torchless has not.
    pub fn unsupported(param: impl Into<String>, what: impl std::fmt::Display) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::value(param, what) }
    }

    /// Prompt and answer are longer than the context.
    pub fn too_long(param: &str, message: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message);
        Self { param: Some(param.to_owned()), ..problem }
    }

    /// Another model is asked for.
    pub fn no_such_model(asked: &str, served: &str) -> Self {
        let message = format!("model: {asked:?} is not served here, {served:?} is");
        let problem = Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Self { param: Some("model".to_owned()), ..problem }
    }

    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("unknown_url"), "there is nothing at this address")
    }

    pub fn wrong_method() -> Self {
        let message = "this address does not take this method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_supported"), message)
    }

    pub fn wrong_key() -> Self {
        let message = "a wrong API key, or none: send the server's in the header `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    pub fn not_json_type() -> Self {
        let message = "the body is JSON: send the header `Content-Type: application/json` with it";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("unsupported_media_type"), message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {} MiB", limit >> 20);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    pub fn body_too_slow() -> Self {
        let message = "the body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    pub fn queue_full() -> Self {
        let message = "as many requests are waiting as may: ask again later";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"), message);
        Self { retry_after: Some(1), ..problem }
    }

    pub fn loading() -> Self {
        let problem = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("model_loading"),
            "the model is still loading: ask again later",
        );
        Self { retry_after: Some(1), ..problem }
    }

    pub fn stopping() -> Self {
        let problem = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("server_stopping"),
            "this server is being stopped: ask again, or another",
        );
        Self { retry_after: Some(1), ..problem }
    }

    /// It took longer than requests may.
    pub fn out_of_time(seconds: u64) -> Self {
        let message =
            format!("not done after {seconds} seconds, which is the limit here: ask for fewer tokens");
        Self::new(StatusCode::GATEWAY_TIMEOUT, Some("timeout"), message)
    }

    /// The engine failed while it worked on this, and is started anew.
    pub fn engine_failed() -> Self {
        let problem = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Some("engine_failed"),
            "the engine failed and is started anew: ask again",
        );
        Self { retry_after: Some(1), ..problem }
    }

    /// A defect of the server's.
    pub fn internal() -> Self {
        let message = "the server failed on this request; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("internal_error"), message)
    }

    /// What the body of the answer, or the last frame of a stream that has begun, says.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            // The library names its own field, `mirostat.tau`; here it is `mirostat_tau`.
            Error::Setting { name, problem } => Self::value(name.replace('.', "_"), problem),
            Error::Grammar(_) => Self { param: Some("response_format".to_owned()), ..Self::request(message) },
            Error::EmptyPrompt
            | Error::UnknownToken { .. }
            | Error::NoTokenLeft
            | Error::LogitOverflow
            | Error::NoChatTemplate { .. }
            | Error::Request(_) => Self::request(message),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("engine_error"), message),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // OpenAI's clients repeat what failed with 5xx unless they are told that it is of no use.
        if self.status.is_server_error() && self.retry_after.is_none() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// A value as the whole answer.
pub fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
