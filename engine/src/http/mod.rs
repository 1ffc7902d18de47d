//! The HTTP edge: decode, call the rules, encode. One file per resource.

pub mod error;
pub mod images;
pub mod query;
pub mod routes;
pub mod system;
pub mod version;

pub use error::{ApiError, ApiResult};
pub use query::{Filters, Query, json_body};
pub use version::ApiVersion;

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
