//! `/_ping`, `/version`, `/info`, `/events`.

use super::{ApiResult, json};
use crate::app::App;
use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::sync::Arc;

/// `GET /_ping` (axum answers HEAD with the same headers).
pub async fn ping() -> Response {
    let mut response = "OK".into_response();
    let headers = response.headers_mut();
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers.insert("Swarm", HeaderValue::from_static("inactive"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// `HEAD /_ping`: as GET, and says itself that there is no body.
pub async fn ping_head() -> Response {
    let mut response = ping().await;
    *response.body_mut() = axum::body::Body::empty();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

/// `GET /version`
pub async fn version(State(app): State<Arc<App>>) -> ApiResult {
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let details = json!({
        "ApiVersion": "1.51", "MinAPIVersion": "1.24", "Arch": arch(), "Os": "linux", "KernelVersion": kernel,
        "BuildTime": "", "Experimental": "false", "GitCommit": "", "GoVersion": "",
    });
    let body = json!({
        "Platform": {"Name": "Berth"},
        "Components": [{"Name": "Engine", "Version": version, "Details": details}],
        "Version": version, "ApiVersion": "1.51", "MinAPIVersion": "1.24", "GitCommit": "", "GoVersion": "",
        "Os": "linux", "Arch": arch(), "KernelVersion": kernel, "BuildTime": "",
    });
    let _ = app;
    Ok(json(StatusCode::OK, &body))
}

/// Go's name of this machine's architecture.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
