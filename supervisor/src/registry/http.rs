//! Requests over http and https, and where redirects lead.

use std::{collections::HashMap, fmt, sync::OnceLock, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, Response, Uri, body::Incoming, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};

use super::{RegistryError, SILENCE};

/// The body of an answer.
pub(crate) type Body = Incoming;

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

    /// The URL with `path` added to its folder. `path` comes from checked names, so that it always fits.
    pub(crate) fn join(&self, path: &str) -> Self {
        Self::parse(&format!("{self}{path}")).unwrap_or_else(|_| self.clone())
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

/// Connections to one or more hosts, for the time of one transfer.
pub(crate) struct Sender {
    plain: Client<HttpConnector, Full<Bytes>>,
    // Reading the system's certificates costs time and memory: only when https is spoken.
    tls: OnceLock<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(Duration::from_secs(15)));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

impl Sender {
    /// No connections yet.
    pub(crate) fn new() -> Self {
        Self { plain: Client::builder(TokioExecutor::new()).build(connector()), tls: OnceLock::new() }
    }

    /// Sends one request; redirects are the caller's matter.
    pub(crate) async fn send(
        &self,
        method: &Method,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Body>, RegistryError> {
        let host = target.authority();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.0.clone();
        *request.headers_mut() = headers;
        let sending = if target.is_https() { self.tls()?.request(request) } else { self.plain.request(request) };
        match tokio::time::timeout(SILENCE, sending).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.is_connect() => {
                // The outer error only says "client error (Connect)".
                Err(RegistryError::Unreachable { host, cause: innermost(error) })
            }
            Ok(Err(error)) => Err(RegistryError::Cut { host, cause: innermost(error) }),
            Err(_) => {
                let cause = std::io::Error::from(std::io::ErrorKind::TimedOut).into();
                Err(RegistryError::Cut { host, cause })
            }
        }
    }

    fn tls(&self) -> Result<&Client<HttpsConnector<HttpConnector>, Full<Bytes>>, RegistryError> {
        if let Some(client) = self.tls.get() {
            return Ok(client);
        }
        let provider = rustls::crypto::ring::default_provider();
        let config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(|error| RegistryError::Tls(error.to_string()))?
            .with_root_certificates(roots()?)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .wrap_connector(connector());
        Ok(self.tls.get_or_init(|| Client::builder(TokioExecutor::new()).build(connector)))
    }
}

// Where distributions keep the certificates they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn roots() -> Result<RootCertStore, RegistryError> {
    let mut store = RootCertStore::empty();
    // The variable that OpenSSL and curl go by.
    let chosen = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let files = chosen.into_iter().chain(BUNDLES.iter().map(Into::into));
    let Some(file) = files.into_iter().find(|file| file.exists()) else {
        return Err(RegistryError::Tls("no CA certificates are installed (package ca-certificates)".into()));
    };
    let certificates = CertificateDer::pem_file_iter(&file)
        .map_err(|error| RegistryError::Tls(format!("{}: {error}", file.display())))?;
    // Single certificates that rustls can't use are left out, as everywhere.
    let (added, _) = store.add_parsable_certificates(certificates.filter_map(Result::ok));
    if added == 0 {
        return Err(RegistryError::Tls(format!("{} holds no usable CA certificate", file.display())));
    }
    Ok(store)
}

fn innermost(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().into()
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
pub(crate) async fn next(body: &mut Body) -> Option<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> {
    loop {
        match body.frame().await? {
            // Trailers say nothing to us.
            Ok(frame) => match frame.into_data() {
                Ok(data) => return Some(Ok(data)),
                Err(_) => continue,
            },
            Err(error) => return Some(Err(innermost(error))),
        }
    }
}

/// Reads a body into memory, up to a limit.
pub(crate) async fn read(mut body: Body, limit: u64, host: &str, what: &str) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(SILENCE, next(&mut body)).await {
            Ok(Some(Ok(piece))) if (bytes.len() + piece.len()) as u64 <= limit => bytes.extend_from_slice(&piece),
            Ok(Some(Ok(_))) => {
                return Err(RegistryError::TooBig { what: what.to_owned(), host: host.to_owned(), limit });
            }
            Ok(Some(Err(cause))) => return Err(RegistryError::Cut { host: host.to_owned(), cause }),
            Ok(None) => return Ok(bytes),
            Err(_) => {
                let cause = std::io::Error::from(std::io::ErrorKind::TimedOut).into();
                return Err(RegistryError::Cut { host: host.to_owned(), cause });
            }
        }
    }
}

/// What a registry says about a refusal, as the end of an error message: `: manifest unknown`. Empty if nothing.
pub(crate) async fn detail(body: Body) -> String {
    let Ok(bytes) = read(body, 64 << 10, "", "").await else { return String::new() };
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
    let Ok(all) = serde_json::from_slice::<All>(bytes) else { return String::new() };
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
    if texts.is_empty() { String::new() } else { format!(": {}", texts.join(", ")) }
}

/// Where a partial answer begins: `bytes 100-199/200` gives 100.
pub(crate) fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
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
    }
}
