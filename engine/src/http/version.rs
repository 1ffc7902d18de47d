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

    /// Reads `1.43`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// What every answer is like, by configuration.
#[derive(Debug, Clone)]
pub struct Manner {
    /// The oldest version that is accepted.
    pub minimum: ApiVersion,
    /// Whether experimental features are said to be on.
    pub experimental: bool,
    /// `api-cors-header`.
    pub cors: Option<HeaderValue>,
}

impl Default for Manner {
    fn default() -> Self {
        Self { minimum: ApiVersion::MINIMUM, experimental: false, cors: None }
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
pub fn negotiate(request: &mut Request<Body>, minimum: ApiVersion) -> Result<ApiVersion, Response> {
    let path = request.uri().path();
    let (text, rest) = match versioned(path) {
        Some((text, rest)) => (Some(text), rest),
        None => (None, path),
    };
    let version = match text.map(|text| (text, order(text))) {
        None => ApiVersion::CURRENT,
        Some((text, parts)) if parts > (1, ApiVersion::CURRENT.minor, 0) => {
            let max = ApiVersion::CURRENT;
            return Err(ApiError::invalid(format!(
                "client version {text} is too new. Maximum supported API version is {max}"
            ))
            .into_response());
        }
        Some((text, parts)) if parts < (1, minimum.minor, 0) || text.split('.').count() > 2 => {
            let message = format!(
                "client version {text} is too old. Minimum supported API version is {minimum}, please upgrade your client to a newer version"
            );
            // Clients before 1.24 expect plain text.
            return Err(match parts < (1, ApiVersion::MINIMUM.minor, 0) {
                true => (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response(),
                false => ApiError::invalid(message).into_response(),
            });
        }
        Some((_, (_, minor, _))) => ApiVersion::v1(minor),
    };
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
    Ok(version)
}

/// The parts of a version, to be compared; a part that is no number is the largest.
fn order(text: &str) -> (u16, u16, u16) {
    let mut parts = text.split('.').map(|part| if part.is_empty() { 0 } else { part.parse().unwrap_or(u16::MAX) });
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// Splits `/v1.43/rest` into `1.43` and `/rest`.
pub(super) fn versioned(path: &str) -> Option<(&str, &str)> {
    let tail = path.strip_prefix("/v")?;
    let slash = tail.find('/')?;
    let (text, rest) = tail.split_at(slash);
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')).then_some((text, rest))
}

/// Headers that every answer carries.
pub fn stamp(response: &mut Response, manner: &Manner) {
    let headers = response.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static("1.51"));
    headers.insert("Docker-Experimental", HeaderValue::from_static(if manner.experimental { "true" } else { "false" }));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Server", HeaderValue::from_static(concat!("Berth/", env!("CARGO_PKG_VERSION"), " (linux)")));
    if let Some(origin) = &manner.cors {
        headers.insert("Access-Control-Allow-Origin", origin.clone());
        let sent = "Origin, X-Requested-With, Content-Type, Accept, X-Registry-Auth";
        headers.insert("Access-Control-Allow-Headers", HeaderValue::from_static(sent));
        headers
            .insert("Access-Control-Allow-Methods", HeaderValue::from_static("HEAD, GET, POST, DELETE, PUT, OPTIONS"));
    }
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
            assert!(negotiate(&mut request, ApiVersion::MINIMUM).is_ok(), "{path}");
            assert_eq!(request.uri().to_string(), rest);
            assert_eq!(request.extensions().get::<ApiVersion>().unwrap().to_string(), version);
        }
        for (path, status) in [
            ("/v1.52/info", 400),
            ("/v1.23/info", 400),
            ("/v2.0/info", 400),
            ("/v2/info", 400),
            ("/v1/info", 400),
            ("/v1.2.3/info", 400),
            ("/v./info", 400),
            ("/v1.99999999/info", 400),
        ] {
            assert_eq!(negotiate(&mut request(path), ApiVersion::MINIMUM).unwrap_err().status(), status, "{path}");
        }
        assert!(negotiate(&mut request("/v1.39/info"), ApiVersion::v1(40)).is_err());
        assert!(negotiate(&mut request("/v1.40/info"), ApiVersion::v1(40)).is_ok());
    }
}
