//! API versions: the `/v1.43` prefix is checked and cut off before routing, and every answer names what we serve.

use super::error::ApiError;
use axum::{
    body::Body,
    http::{HeaderValue, Request, StatusCode, Uri, uri::PathAndQuery},
    response::{IntoResponse, Response},
};
use std::fmt;

/// Version of the API that a request was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    /// What we serve, and what unversioned requests mean.
    pub const CURRENT: Self = Self::v1(51);
    /// The oldest that is accepted.
    pub const MINIMUM: Self = Self::v1(24);

    /// Version 1.`minor`.
    pub const fn v1(minor: u16) -> Self {
        Self { major: 1, minor }
    }

    /// Whether the request was made for 1.`minor` or later.
    pub fn at_least(self, minor: u16) -> bool {
        self >= Self::v1(minor)
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Cuts the version off the path and notes it in the request's extensions.
// The refusal is a whole response and built once per bad request; boxing it would save nothing that counts.
#[allow(clippy::result_large_err)]
pub fn negotiate(request: &mut Request<Body>) -> Result<(), Response> {
    let path = request.uri().path();
    let (version, rest) = match versioned(path) {
        Some((text, rest)) => (ApiVersion::parse(text), rest),
        None => (Some(ApiVersion::CURRENT), path),
    };
    let Some(version) = version else {
        return Err(ApiError::not_found("page not found").into_response());
    };
    if version > ApiVersion::CURRENT {
        let max = ApiVersion::CURRENT;
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {max}"
        ))
        .into_response());
    }
    if version < ApiVersion::MINIMUM {
        let min = ApiVersion::MINIMUM;
        let message = format!(
            "client version {version} is too old. Minimum supported API version is {min}, please upgrade your client to a newer version"
        );
        // Clients that old expect plain text.
        return Err((StatusCode::BAD_REQUEST, message).into_response());
    }
    // `/containers//web/json` is how clients ask for the name as inspect shows it.
    let rest = rest.replace("//", "/");
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest,
    };
    let Ok(target) = target.parse::<PathAndQuery>() else {
        return Err(ApiError::not_found("page not found").into_response());
    };
    *request.uri_mut() = Uri::from(target);
    request.extensions_mut().insert(version);
    Ok(())
}

/// Splits `/v1.43/rest` into `1.43` and `/rest`.
fn versioned(path: &str) -> Option<(&str, &str)> {
    let tail = path.strip_prefix("/v")?;
    let slash = tail.find('/')?;
    let (text, rest) = tail.split_at(slash);
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')).then_some((text, rest))
}

/// Headers that every answer carries.
pub fn stamp(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static("1.51"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Server", HeaderValue::from_static(concat!("Berth/", env!("CARGO_PKG_VERSION"), " (linux)")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    #[test]
    fn prefixes() {
        assert_eq!(ApiVersion::CURRENT.to_string(), "1.51");
        let cases = [
            ("/v1.24/containers/json?all=1", "/containers/json?all=1", "1.24"),
            ("/containers/json", "/containers/json", "1.51"),
            ("/version", "/version", "1.51"),
            ("/v1.51/version", "/version", "1.51"),
            ("/volumes/x", "/volumes/x", "1.51"),
            ("/v1.30/containers//web/json", "/containers/web/json", "1.30"),
        ];
        for (path, rest, version) in cases {
            let mut request = request(path);
            assert!(negotiate(&mut request).is_ok(), "{path}");
            assert_eq!(request.uri().to_string(), rest);
            assert_eq!(request.extensions().get::<ApiVersion>().unwrap().to_string(), version);
        }
        for (path, status) in [("/v1.52/info", 400), ("/v1.23/info", 400), ("/v2.0/info", 400), ("/v1.2.3/info", 404)] {
            assert_eq!(negotiate(&mut request(path)).unwrap_err().status(), status, "{path}");
        }
    }
}
