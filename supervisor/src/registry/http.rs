//! Requests over http and https, and where redirects lead.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{HeaderMap, Method, Request, Response, Uri, body::Incoming, header};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};

use super::{
    Network, RegistryError,
    connect::{ConnectError, Connector, Security, innermost},
    tls,
};

/// The body of an answer.
pub(crate) type Body = Incoming;

/// How long an explanation may take to arrive.
const DETAIL: Duration = Duration::from_secs(10);

/// A URL that we send requests to: scheme, authority, path and query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target(Uri);

impl Target {
    /// Reads an absolute http or https URL.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("{text:?} is not a URL"))?;
        match (uri.scheme_str(), uri.authority()) {
            // user:password@host would be credentials of somebody else's choice.
            (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => Ok(Self(uri)),
            _ => Err(format!("{text:?} is not an http or https URL")),
        }
    }

    /// Scheme, host and port: what credentials are bound to.
    pub(crate) fn origin(&self) -> (String, String) {
        (self.0.scheme_str().unwrap_or_default().to_owned(), self.authority())
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> String {
        self.0.authority().map(|a| a.as_str().to_ascii_lowercase()).unwrap_or_default()
    }

    /// Whether it is encrypted.
    pub(crate) fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// The URL with `path` below it. `path` comes from checked names, so that it always fits.
    pub(crate) fn join(&self, path: &str) -> Self {
        let base = self.to_string();
        Self::parse(&format!("{}/{path}", base.trim_end_matches('/'))).unwrap_or_else(|_| self.clone())
    }

    /// The same in another scheme.
    pub(crate) fn with_scheme(&self, scheme: &str) -> Option<Self> {
        Self::parse(&format!("{scheme}://{}{}", self.authority(), self.0.path())).ok()
    }

    /// The same authority with another path.
    pub(crate) fn at(&self, path: &str) -> Self {
        let (scheme, authority) = self.origin();
        Self::parse(&format!("{scheme}://{authority}{path}")).unwrap_or_else(|_| self.clone())
    }

    /// The path.
    pub(crate) fn path(&self) -> &str {
        self.0.path()
    }

    /// Host, without brackets, and port.
    pub(super) fn host_and_port(&self) -> (&str, u16) {
        let host = self.0.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        (host, self.0.port_u16().unwrap_or(if self.is_https() { 443 } else { 80 }))
    }

    /// Where a `Location` leads from here (RFC 3986, 5.2, without dot segments).
    pub(crate) fn resolve(&self, location: &str) -> Result<Self, String> {
        let (scheme, authority) = self.origin();
        if location.contains("://") {
            Self::parse(location)
        } else if let Some(rest) = location.strip_prefix("//") {
            Self::parse(&format!("{scheme}://{rest}"))
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{authority}{location}"))
        } else {
            let folder = self.0.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            Self::parse(&format!("{scheme}://{authority}{folder}/{location}"))
        }
    }

    /// The URL with parameters added to its query, encoded.
    pub(crate) fn with_query(&self, parameters: &[(&str, &str)]) -> Result<Self, String> {
        let mut text = self.to_string();
        for (name, value) in parameters {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(name);
            text.push('=');
            text.push_str(&encode(value));
        }
        Self::parse(&text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Percent-encodes everything but what is safe everywhere in a URL.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A body that is sent; asked for again where a request is repeated.
pub(super) trait Payload: Send + Sync {
    /// The body from its beginning.
    fn open(&self) -> Outgoing;
    /// Its length.
    fn length(&self) -> u64;
    /// Bytes handed over so far, in all repetitions.
    fn sent(&self) -> u64 {
        0
    }
}

/// A body on its way out.
pub(super) type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

impl Payload for Bytes {
    fn open(&self) -> Outgoing {
        Full::new(self.clone()).map_err(|never| match never {}).boxed_unsync()
    }

    fn length(&self) -> u64 {
        self.len() as u64
    }
}

/// Connections to one host and to where it redirects, for the time of one transfer.
pub(super) struct Sender {
    network: Arc<Network>,
    own: Client<Connector, Outgoing>,
    foreign: Client<Connector, Outgoing>,
}

impl Sender {
    /// No connections yet.
    pub(super) fn new(network: Arc<Network>, security: Arc<Security>) -> Self {
        let client = |identity| {
            let connector = Connector::new(network.clone(), security.clone(), identity);
            Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector)
        };
        Self { own: client(true), foreign: client(false), network: network.clone() }
    }

    /// How the network is reached.
    pub(super) fn network(&self) -> Arc<Network> {
        self.network.clone()
    }

    /// How long a connection may be silent.
    pub(super) fn silence(&self) -> Duration {
        self.network.silence
    }

    /// Sends one request; redirects are the caller's matter. `own`: to the host that the credentials are for.
    pub(super) async fn send(
        &self,
        method: &Method,
        target: &Target,
        headers: HeaderMap,
        payload: &dyn Payload,
        own: bool,
    ) -> Result<Response<Body>, RegistryError> {
        let mut request = Request::new(payload.open());
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.0.clone();
        *request.headers_mut() = headers;
        let wrong = |why| RegistryError::Protocol { host: target.authority(), why };
        if let Some(value) = self.network.authorization(target).map_err(wrong)? {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, value);
        }
        let direction = if matches!(*method, Method::GET | Method::HEAD) { "from" } else { "to" };
        let cut = |cause| RegistryError::Cut { direction, host: target.authority(), cause };
        let mut sending = std::pin::pin!(if own { self.own.request(request) } else { self.foreign.request(request) });
        let mut sent = payload.sent();
        loop {
            match tokio::time::timeout(self.network.silence, &mut sending).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => return Err(failure(error, target, cut)),
                // What is on its way out is no silence.
                Err(_) if payload.sent() > sent => sent = payload.sent(),
                Err(_) => return Err(cut(silent(self.network.silence))),
            }
        }
    }
}

fn failure(
    error: hyper_util::client::legacy::Error,
    target: &Target,
    cut: impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> RegistryError,
) -> RegistryError {
    let host = target.authority();
    if error.is_connect() {
        // The outer error only says "client error (Connect)".
        let inner = std::error::Error::source(&error).map(|source| match source.downcast_ref::<ConnectError>() {
            Some(error) => error.clone(),
            None => ConnectError::Dial(innermost(source)),
        });
        let cause = inner.unwrap_or_else(|| ConnectError::Dial(error.to_string())).into();
        return RegistryError::Unreachable { host, cause };
    }
    if let Some(alert) = alert(&error) {
        return RegistryError::Unreachable { cause: ConnectError::Tls(tls::explain(&alert, &host)).into(), host };
    }
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<hyper::Error>());
    if source.is_some_and(|source| source.is_parse()) {
        return RegistryError::NotHttp { host, why: format!("its answer is no HTTP ({})", innermost(&error)) };
    }
    cut(innermost(&error).into())
}

// What the other side of TLS complained of after its part of the handshake: with TLS 1.3, our certificate.
fn alert(error: &(dyn std::error::Error + 'static)) -> Option<rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if let Some(alert @ rustls::Error::AlertReceived(_)) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(alert.clone());
        }
        next = error.source();
    }
    None
}

/// The error of a connection on which nothing came.
pub(super) fn silent(limit: Duration) -> Box<dyn std::error::Error + Send + Sync> {
    format!("silent for {} s", limit.as_secs_f32()).into()
}

/// The headers that a client wants to be sent along.
pub(crate) fn headers(map: &HashMap<String, String>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in map {
        let name = header::HeaderName::try_from(name).map_err(|_| format!("{name:?} is not a header name"))?;
        let value = header::HeaderValue::try_from(value).map_err(|_| format!("header {name} has a bad value"))?;
        headers.insert(name, value);
    }
    if !headers.contains_key(header::USER_AGENT) {
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static("berth"));
    }
    Ok(headers)
}

/// The next piece of a body.
pub(super) async fn next(body: &mut Body) -> Option<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> {
    loop {
        match body.frame().await? {
            // Trailers say nothing to us.
            Ok(frame) => match frame.into_data() {
                Ok(data) => return Some(Ok(data)),
                Err(_) => continue,
            },
            Err(error) => return Some(Err(innermost(&error).into())),
        }
    }
}

/// Reads a body into memory, up to a limit.
pub(super) async fn read(
    mut body: Body,
    limit: u64,
    silence: Duration,
    host: &str,
    what: &str,
) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    let cut = |cause| RegistryError::Cut { direction: "from", host: host.to_owned(), cause };
    loop {
        match tokio::time::timeout(silence, next(&mut body)).await {
            Ok(Some(Ok(piece))) if (bytes.len() + piece.len()) as u64 <= limit => bytes.extend_from_slice(&piece),
            Ok(Some(Ok(_))) => {
                return Err(RegistryError::TooBig { what: what.to_owned(), host: host.to_owned(), limit });
            }
            Ok(Some(Err(cause))) => return Err(cut(cause)),
            Ok(None) => return Ok(bytes),
            Err(_) => return Err(cut(silent(silence))),
        }
    }
}

/// What a registry says about a refusal, as the end of an error message: `: manifest unknown`. Empty if nothing.
pub(super) async fn detail(body: Body) -> String {
    let Ok(bytes) = read(body, 64 << 10, DETAIL, "", "").await else { return String::new() };
    errors(&bytes)
}

fn errors(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct All {
        #[serde(default)]
        errors: Vec<One>,
    }
    let Ok(all) = serde_json::from_slice::<All>(bytes) else { return plain(bytes) };
    let texts = all.errors.into_iter().take(3).map(|error| {
        let code = error.code.to_lowercase().replace('_', " ");
        let text = match (code.is_empty(), error.message.is_empty()) {
            (false, false) if error.message.to_lowercase() != code => format!("{code}: {}", error.message),
            (true, _) => error.message,
            _ => code,
        };
        text.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
    });
    let texts: Vec<_> = texts.filter(|text| !text.is_empty()).collect();
    if texts.is_empty() { plain(bytes) } else { format!(": {}", texts.join(", ")) }
}

// Token services and proxies have words of their own: {"details": …}, {"message": …}, or a line of text.
fn plain(bytes: &[u8]) -> String {
    let value = serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let named = value.as_ref().and_then(|value| {
        ["details", "message", "error_description", "error"].iter().find_map(|key| value.get(key)?.as_str())
    });
    let line = match (named, &value) {
        (Some(text), _) => text,
        (None, Some(_)) => return String::new(),
        // A page for browsers says nothing in one line.
        (None, None) => std::str::from_utf8(bytes).ok().filter(|text| !text.contains('<')).unwrap_or_default(),
    };
    let text: String = line.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// Where a partial answer begins, and how much there is in all: `bytes 100-199/200` gives 100 and 200.
pub(super) fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let value = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((range, total)) = value.strip_prefix("bytes ").and_then(|value| value.split_once('/')) else {
        return (None, None);
    };
    (range.split('-').next().and_then(|start| start.trim().parse().ok()), total.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base = Target::parse("https://reg.example:5000/v2/a/blobs/x?y=1").unwrap();
        for (location, wanted) in [
            ("https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/v2/b", "https://reg.example:5000/v2/b"),
            ("other", "https://reg.example:5000/v2/a/blobs/other"),
        ] {
            assert_eq!(base.resolve(location).unwrap().to_string(), wanted);
        }
        for bad in ["ftp://x/y", "http://user:secret@x/y", "https://", "file:///etc/passwd", "http:// /"] {
            assert!(base.resolve(bad).is_err(), "{bad}");
        }
        let query = base.with_query(&[("scope", "repository:a/b:pull")]).unwrap();
        assert_eq!(query.to_string(), "https://reg.example:5000/v2/a/blobs/x?y=1&scope=repository%3Aa%2Fb%3Apull");
    }

    #[test]
    fn error_bodies() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(errors(body), ": manifest unknown");
        assert_eq!(errors(br#"{"errors":[{"code":"DENIED","message":"go\naway"}]}"#), ": denied: goaway");
        assert_eq!(errors(b"<html>"), "");
        assert_eq!(errors(br#"{"details":"incorrect username or password"}"#), ": incorrect username or password");
        assert_eq!(
            errors(b"Client sent an HTTP request to an HTTPS server.\n"),
            ": Client sent an HTTP request to an HTTPS server."
        );
    }

    #[test]
    fn ranges() {
        for (text, wanted) in [
            ("bytes 100-199/200", (Some(100), Some(200))),
            ("bytes 100-199/*", (Some(100), None)),
            ("bytes */200", (None, Some(200))),
            ("octets 1", (None, None)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            assert_eq!(content_range(&headers), wanted, "{text}");
        }
    }
}
