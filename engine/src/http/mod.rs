//! The HTTP edge: decode, call the rules, encode. One file per resource.

pub mod absent;
pub mod adapt;
pub mod containers;
pub mod df;
pub mod error;
pub mod events;
pub mod exec;
pub mod filesystem;
pub mod hijack;
pub mod images;
pub mod networks;
pub mod query;
pub mod registry;
pub mod routes;
pub mod suggest;
pub mod system;
pub mod version;
pub mod volumes;
pub mod websocket;

pub use error::{ApiError, ApiResult};
pub use query::{Filters, Query, json_body};
pub use version::{ApiVersion, Manner};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// A JSON answer, ended by a newline as Go's encoder does.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], Body::from(bytes)).into_response()
        }
        Err(error) => ApiError::unexpected(&error).into_response(),
    }
}

/// The text of a JSON array that grows row by row.
#[derive(Debug, Default)]
pub struct Rows(Vec<u8>);

impl Rows {
    /// One more row.
    pub fn push(&mut self, row: &serde_json::Value) {
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        self.0.extend_from_slice(row.to_string().as_bytes());
    }

    /// The answer that has them all.
    pub fn answer(mut self) -> Response {
        self.0.extend_from_slice(if self.0.is_empty() { b"[]\n" } else { b"]\n" });
        ([(header::CONTENT_TYPE, "application/json")], self.0).into_response()
    }
}

/// Runs work that goes on when its client hangs up: a stop half done helps nobody.
pub async fn run_to_end<T: Send + 'static>(work: impl Future<Output = ApiResult<T>> + Send + 'static) -> ApiResult<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            Err(ApiError::internal("the engine met a defect of its own; its log tells more"))
        }
        Err(error) => Err(ApiError::unexpected(&error)),
    }
}
