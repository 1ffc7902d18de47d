//! One request and its answer.

use super::{ApiVersion, ClientError, Endpoint, Host};
use crate::output::value::Value;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Method, Request, Response, body::Incoming};
use serde::{Serialize, de::DeserializeOwned};
use std::io;

/// Body of a request.
pub type Body = BoxBody<Bytes, io::Error>;

/// A request to be.
#[derive(Debug)]
pub struct Call {
    method: Method,
    path: String,
    query: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Body>,
    versioned: bool,
}

impl Call {
    fn new(method: Method, path: impl Into<String>) -> Self {
        let path = path.into();
        Self { method, path, query: String::new(), headers: Vec::new(), body: None, versioned: true }
    }

    /// GET
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// HEAD
    pub fn head(path: impl Into<String>) -> Self {
        Self::new(Method::HEAD, path)
    }

    /// POST
    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    /// PUT
    pub fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    /// DELETE
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Without `/v1.NN` before the path.
    pub fn unversioned(mut self) -> Self {
        self.versioned = false;
        self
    }

    /// Adds `key=value` to the query.
    pub fn query(mut self, key: &str, value: impl AsRef<str>) -> Self {
        if !self.query.is_empty() {
            self.query.push('&');
        }
        self.query.push_str(key);
        self.query.push('=');
        self.query.push_str(&escape(value.as_ref(), false));
        self
    }

    /// Adds `key=1` when `on`.
    pub fn switch(self, key: &str, on: bool) -> Self {
        if on { self.query(key, "1") } else { self }
    }

    /// Adds `key=value` when there is a value.
    pub fn maybe(self, key: &str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.query(key, value),
            None => self,
        }
    }

    /// Adds `filters={"key":{"value":true}}` when there are any.
    pub fn filters(self, filters: &[(String, String)]) -> Self {
        if filters.is_empty() {
            return self;
        }
        let mut map = std::collections::BTreeMap::<&str, std::collections::BTreeMap<&str, bool>>::new();
        for (key, value) in filters {
            map.entry(key).or_default().insert(value, true);
        }
        self.query("filters", serde_json::to_string(&map).unwrap_or_default())
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A JSON body.
    pub fn json(self, value: &impl Serialize) -> Self {
        let text = serde_json::to_vec(value).unwrap_or_default();
        self.header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed())
    }

    /// A body of any kind.
    pub fn body(mut self, body: Body) -> Self {
        self.body = Some(body);
        self
    }

    /// The path, without version and query.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn upgrading(&mut self, protocol: &str) -> &mut Self {
        self.headers.push(("connection", "Upgrade".to_owned()));
        self.headers.push(("upgrade", protocol.to_owned()));
        self
    }

    pub(super) fn take_request(
        &mut self,
        endpoint: &Endpoint,
        version: ApiVersion,
    ) -> Result<Request<Body>, ClientError> {
        let body = self.body.take();
        let request = self.to_request(endpoint, version)?;
        Ok(match body {
            Some(body) => request.map(|_| body),
            None => request,
        })
    }

    pub(super) fn to_request(&self, endpoint: &Endpoint, version: ApiVersion) -> Result<Request<Body>, ClientError> {
        let prefix = if self.versioned { format!("/v{version}") } else { String::new() };
        let mark = if self.query.is_empty() { "" } else { "?" };
        let name = match &endpoint.host {
            Host::Unix(_) | Host::Ssh(_) => "api.berth.localhost",
            Host::Tcp(address) => address,
        };
        let mut builder = Request::builder()
            .method(self.method.clone())
            .uri(format!("{prefix}{}{mark}{}", self.path, self.query))
            .header("host", name)
            .header("user-agent", user_agent(endpoint));
        for (name, value) in &endpoint.headers {
            // berth's own headers are what the engine goes by.
            if !name.eq_ignore_ascii_case("user-agent")
                && !self.headers.iter().any(|(own, _)| name.eq_ignore_ascii_case(own))
            {
                builder = builder.header(name, value);
            }
        }
        for (name, value) in &self.headers {
            builder = builder.header(*name, value);
        }
        builder
            .body(Full::new(Bytes::new()).map_err(|never| match never {}).boxed())
            .map_err(|cause| ClientError::Request { path: self.path.clone(), cause })
    }

    pub(super) fn broken(&self, cause: hyper::Error) -> ClientError {
        ClientError::Http { method: self.method.to_string(), path: self.path.clone(), cause }
    }
}

/// The user's own name for this client (DOCKER_CUSTOM_HEADERS), or ours.
fn user_agent(endpoint: &Endpoint) -> &str {
    let own = endpoint.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("user-agent"));
    own.map_or(concat!("berth/", env!("CARGO_PKG_VERSION"), " (linux)"), |(_, value)| value)
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Escapes a path segment or a query value; references keep their slashes in a path.
pub fn escape(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:@".contains(&byte) || (slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// An answer; its body is still under way.
#[derive(Debug)]
pub struct Reply {
    call: Call,
    response: Response<Incoming>,
    rest: BytesMut,
    /// How much of `rest` holds no end of line.
    scanned: usize,
}

impl Reply {
    pub(super) fn new(call: Call, response: Response<Incoming>) -> Self {
        Self { call, response, rest: BytesMut::new(), scanned: 0 }
    }

    pub(super) async fn checked(self) -> Result<Self, ClientError> {
        let status = self.response.status();
        if status.as_u16() < 400 {
            return Ok(self);
        }
        #[derive(serde::Deserialize)]
        struct Message {
            message: String,
        }
        let path = self.call.path.clone();
        let body = self.bytes().await?;
        let text = String::from_utf8_lossy(&body);
        let message = match serde_json::from_slice::<Message>(&body) {
            Ok(known) => known.message.trim().to_owned(),
            Err(_) if text.trim().is_empty() => {
                format!("{} for API route {path}", status.canonical_reason().unwrap_or("error"))
            }
            Err(_) => text.trim().to_owned(),
        };
        Err(ClientError::Api { status: status.as_u16(), message })
    }

    /// The path asked for.
    pub fn path(&self) -> &str {
        &self.call.path
    }

    /// A header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// The next piece of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.response.body_mut().frame().await {
                None => return Ok(None),
                Some(Err(cause)) => return Err(self.call.broken(cause)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The next line of the body that isn't empty.
    pub async fn line(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(at) = self.rest[self.scanned..].iter().position(|b| *b == b'\n') {
                let mut line = self.rest.split_to(self.scanned + at + 1);
                self.scanned = 0;
                let end = line.trim_ascii_end().len();
                line.truncate(end);
                if !line.is_empty() {
                    return Ok(Some(line.freeze()));
                }
                continue;
            }
            self.scanned = self.rest.len();
            match self.chunk().await? {
                Some(data) => self.rest.extend_from_slice(&data),
                None if self.rest.trim_ascii().is_empty() => return Ok(None),
                None => {
                    self.scanned = 0;
                    return Ok(Some(std::mem::take(&mut self.rest).freeze()));
                }
            }
        }
    }

    /// The next object of a body that is a sequence of JSON lines.
    pub async fn object<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        match self.line().await? {
            None => Ok(None),
            Some(line) => serde_json::from_slice(&line).map(Some).map_err(|cause| self.undecodable(cause)),
        }
    }

    /// The whole body.
    pub async fn bytes(mut self) -> Result<Bytes, ClientError> {
        let mut all = BytesMut::new();
        while let Some(data) = self.chunk().await? {
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    }

    /// The whole body as JSON.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let path = self.call.path.clone();
        let body = self.bytes().await?;
        serde_json::from_slice(&body).map_err(|cause| ClientError::Decode { path, cause })
    }

    /// The whole body as JSON of any shape, in the engine's order.
    pub async fn value(self) -> Result<Value, ClientError> {
        self.json().await
    }

    fn undecodable(&self, cause: serde_json::Error) -> ClientError {
        ClientError::Decode { path: self.call.path.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_escaped() {
        let call = Call::get(format!("/images/{}/json", escape("a/b:c d", true)))
            .query("a", "x&y=1")
            .filters(&[("label".into(), "a=b".into()), ("label".into(), "c".into())]);
        let request = call.to_request(&Endpoint::default(), super::super::NEWEST).unwrap();
        assert_eq!(
            request.uri().to_string(),
            "/v1.51/images/a/b:c%20d/json?a=x%26y%3D1&filters=%7B%22label%22:%7B%22a%3Db%22:true%2C%22c%22:true%7D%7D"
        );
    }
}
