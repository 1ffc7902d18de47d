//! Between HTTP and the routes: every request of a connection passes here, is decided, changed to what was decided about, and
//! noted.

use super::{
    AccessError, Allow, OWNER,
    audit::{Entry, Trail},
    body,
    peer::Peer,
    rules::{self, Decision},
};
use crate::{
    app::App,
    containers::Container,
    http::{ApiError, ApiResult, Query, json_body},
    images::pull::PullRequest,
    listen::Caller,
};
use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::{fmt::Write as _, sync::Arc};
use tokio::net::UnixStream;
use tower::ServiceExt;
use tracing::{error, warn};

/// The rules and the trail of an engine.
#[derive(Debug)]
pub struct Gate {
    app: Arc<App>,
    trail: Option<Trail>,
}

/// One connection and who is on its other end.
#[derive(Debug)]
pub struct Passage {
    gate: Arc<Gate>,
    peer: Option<Peer>,
}

/// A request that goes no further.
#[derive(Debug)]
enum Stopped {
    /// By a rule; the sentence for the user.
    Refused(String),
    /// By what the request itself says, as the routes would have stopped it.
    Failed(ApiError),
}

impl From<ApiError> for Stopped {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl Gate {
    /// Opens the trail, if one is wanted.
    pub fn new(app: Arc<App>) -> Result<Arc<Self>, AccessError> {
        let trail = app.config.access.audit.as_deref().map(Trail::open).transpose().map_err(AccessError::Audit)?;
        Ok(Arc::new(Self { app, trail }))
    }

    /// For a connection; none where everybody may do all and nothing is noted.
    pub fn passage(self: &Arc<Self>, stream: &UnixStream) -> Option<Arc<Passage>> {
        if self.trail.is_none() && self.app.config.access.rules.is_empty() {
            return None;
        }
        let peer = Peer::of(stream).inspect_err(|cause| warn!(%cause, "client of a connection not known")).ok();
        Some(Arc::new(Passage { gate: self.clone(), peer }))
    }

    /// The same for a client over TCP.
    pub fn passage_of(self: &Arc<Self>, caller: &Caller) -> Option<Arc<Passage>> {
        if self.trail.is_none() && self.app.config.access.rules.is_empty() {
            return None;
        }
        Some(Arc::new(Passage { gate: self.clone(), peer: Some(Peer::remote(caller)) }))
    }
}

impl Passage {
    /// Answers a request whose version is settled.
    pub async fn pass(&self, router: Router, request: Request<Body>) -> Response {
        let Some(peer) = &self.peer else {
            return ApiError::new(StatusCode::FORBIDDEN, "who is connected can't be told").into_response();
        };
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (response, refused) = match self.admit(peer, request).await {
            Ok(request) => (router.oneshot(request).await.unwrap_or_else(|never| match never {}), None),
            Err(Stopped::Failed(error)) => (error.into_response(), None),
            Err(Stopped::Refused(reason)) => {
                (ApiError::new(StatusCode::FORBIDDEN, reason.clone()).into_response(), Some(reason))
            }
        };
        if let Some(trail) = &self.gate.trail {
            let status = response.status().as_u16();
            let entry = Entry { peer, method: method.as_str(), path: &path, refused: refused.as_deref(), status };
            if let Err(cause) = trail.append(&entry) {
                // What was done is done, and an engine that stands still because a disk is full helps nobody.
                error!(%cause, "request is missing in the audit trail");
            }
        }
        response
    }

    /// The request as it may go on.
    async fn admit(&self, peer: &Peer, request: Request<Body>) -> Result<Request<Body>, Stopped> {
        let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
        let refused = |why: &str, rule: &str| {
            Stopped::Refused(format!("user {} may not {method} {path}: {why}{rule}", peer.shown()))
        };
        let Some((number, allow)) = peer.allowed(&self.gate.app.config.access.rules) else {
            return Err(refused("no access rule of the engine names this user or a group of theirs", ""));
        };
        if allow == Allow::All {
            return Ok(request);
        }
        let rule = format!(" (access rule {number} allows {:?})", allow.name());
        let refused = |why: &str| refused(why, &rule);
        let mut segments = decode(&path).ok_or_else(|| refused("its path is not UTF-8"))?;
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let query = request.uri().query().map(str::to_owned);
        let asked = Query::parse(query.as_deref());
        // What the handler takes for an import: any source at all.
        let import = asked.raw("fromSrc").is_some() || asked.raw("fromImage").is_none();
        let decision = rules::decide(allow, &method, &words, import);
        let mut query = query;
        let mut request = request;
        match decision {
            Decision::Allowed => {}
            Decision::Refused(why) => return Err(refused(why)),
            Decision::Container(name) => segments[1] = self.own_container(peer, &name).map_err(|s| s.told(&refused))?,
            Decision::ExecCreate(name) => {
                segments[1] = self.own_container(peer, &name).map_err(|s| s.told(&refused))?;
                let (body, back) = take_json(request).await?;
                body::exec(&body).map_err(|why| refused(&why))?;
                request = back(body);
            }
            Decision::Exec(id) => {
                let exec = self.gate.app.containers.exec(&id)?;
                self.own_container(peer, &exec.container).map_err(|s| s.told(&refused))?;
            }
            Decision::Volume(name) => self.own_volume(peer, &name).map_err(|s| s.told(&refused))?,
            Decision::Listing => query = Some(only_own(query.as_deref(), &peer.owner())?),
            Decision::ContainerCreate => {
                let (mut body, back) = take_json(request).await?;
                let needs = body::container(&mut body, &peer.owner()).map_err(|why| refused(&why))?;
                if let Some(name) = needs.network_of {
                    let id = self.own_container(peer, &name).map_err(|s| s.told(&refused))?;
                    body["HostConfig"]["NetworkMode"] = format!("container:{id}").into();
                }
                for name in needs.volumes {
                    self.own_volume(peer, &name).map_err(|s| match s {
                        NotOwn::Failed(_) => refused(&format!("volume {name} does not exist: make it first")),
                        other => other.told(&refused),
                    })?;
                }
                request = back(body);
            }
            Decision::Pull => {
                let image = asked.get("fromImage").unwrap_or_default();
                let pull = PullRequest::parse(image, asked.get("tag"), None, None).map_err(ApiError::from)?;
                if pull.is_for_all_tags() {
                    return Err(refused("images are shared by all users: pull one tag that is not here yet"));
                }
                let name = pull.reference.familiar();
                // What is pulled by its digest can't become anything else.
                if pull.reference.digest().is_none() && self.gate.app.images.resolve(&name).await.is_ok() {
                    return Err(refused("images are shared by all users, and this one is here already"));
                }
            }
            Decision::VolumeCreate => {
                let (mut body, back) = take_json(request).await?;
                body::volume(&mut body, &peer.owner()).map_err(|why| refused(&why))?;
                let name = body.get("Name").and_then(Value::as_str).unwrap_or_default();
                match self.own_volume(peer, name) {
                    // A new one.
                    Ok(()) | Err(NotOwn::Failed(_)) => {}
                    Err(other) => return Err(other.told(&refused)),
                }
                request = back(body);
            }
        }
        *request.uri_mut() = target(&segments, query.as_deref())?;
        Ok(request)
    }

    /// The full id of a container, if it is this user's.
    fn own_container(&self, peer: &Peer, name: &str) -> Result<String, NotOwn> {
        let container: Arc<Container> = self.gate.app.containers.find(name).map_err(|error| {
            // What else there is may be somebody else's: no hints at it.
            let plain = error.status == StatusCode::NOT_FOUND;
            NotOwn::Failed(if plain { ApiError::not_found(format!("No such container: {name}")) } else { error })
        })?;
        let owner = container.live().record.host.annotations.get(OWNER).cloned();
        match owner {
            Some(uid) if uid == peer.owner() => Ok(container.id.clone()),
            _ => Err(NotOwn::Others(format!("container {name} is not theirs"))),
        }
    }

    fn own_volume(&self, peer: &Peer, name: &str) -> Result<(), NotOwn> {
        let volume = self.gate.app.volumes.get(name);
        let volume = volume.map_err(|_| NotOwn::Failed(ApiError::not_found(format!("get {name}: no such volume"))))?;
        match volume.labels.get(OWNER) {
            Some(uid) if *uid == peer.owner() => Ok(()),
            _ => Err(NotOwn::Others(format!("volume {name} is not theirs"))),
        }
    }
}

/// Why something isn't a user's own.
#[derive(Debug)]
enum NotOwn {
    /// There is no such thing.
    Failed(ApiError),
    /// It is somebody else's.
    Others(String),
}

impl NotOwn {
    fn told(self, refused: &impl Fn(&str) -> Stopped) -> Stopped {
        match self {
            Self::Failed(error) => Stopped::Failed(error),
            Self::Others(why) => refused(&why),
        }
    }
}

/// The whole body, read once, and what makes a request again of what was made of it.
async fn take_json(request: Request<Body>) -> ApiResult<(Value, impl FnOnce(Value) -> Request<Body>)> {
    let (mut parts, body) = request.into_parts();
    let value: Value = json_body(&parts.headers, body).await?;
    let back = move |value: Value| {
        let text = value.to_string();
        parts.headers.remove(header::TRANSFER_ENCODING);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        parts.headers.insert(header::CONTENT_LENGTH, text.len().into());
        Request::from_parts(parts, Body::from(text))
    };
    Ok((value, back))
}

/// Segments of a path, as the routes decode them.
fn decode(path: &str) -> Option<Vec<String>> {
    path.strip_prefix('/')?.split('/').map(decode_segment).collect()
}

fn decode_segment(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).ok()
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' | b'@' => {
                out.push(char::from(byte))
            }
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
}

/// The path that was decided about, and nothing else.
fn target(segments: &[String], query: Option<&str>) -> ApiResult<Uri> {
    let mut text = String::new();
    for segment in segments {
        text.push('/');
        encode(segment, &mut text);
    }
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    let target = text.parse::<PathAndQuery>().map_err(|_| ApiError::not_found("page not found"))?;
    Ok(Uri::from(target))
}

/// A query that asks for what has the user's label, and for whatever it asked for before.
fn only_own(query: Option<&str>, owner: &str) -> ApiResult<String> {
    let asked = Query::parse(query);
    let bad = |_| ApiError::invalid("invalid filter");
    let mut filters: Value =
        asked.get("filters").map(serde_json::from_str).transpose().map_err(bad)?.unwrap_or(json!({}));
    let fields = filters.as_object_mut().ok_or_else(|| ApiError::invalid("invalid filter"))?;
    let label = format!("{OWNER}={owner}");
    match fields.entry("label").or_insert(Value::Null) {
        Value::Object(labels) => _ = labels.insert(label, true.into()),
        Value::Array(labels) => labels.push(label.into()),
        other if other.is_null() => *other = json!([label]),
        _ => return Err(ApiError::invalid("invalid filter")),
    }
    let others = query.unwrap_or_default().split('&').filter(|pair| {
        let key = pair.split('=').next().unwrap_or_default();
        !key.is_empty() && decode_segment(&key.replace('+', " ")).is_none_or(|key| key != "filters")
    });
    let mut text: String = others.flat_map(|pair| [pair, "&"]).collect();
    text.push_str("filters=");
    encode(&filters.to_string(), &mut text);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_decided_about_is_what_is_routed() {
        for (path, segments, routed) in [
            ("/containers/web/json", &["containers", "web", "json"][..], "/containers/web/json"),
            ("/containers/%77eb/%6Ason", &["containers", "web", "json"], "/containers/web/json"),
            ("/containers/%2Fweb/json", &["containers", "/web", "json"], "/containers/%2Fweb/json"),
            ("/images/r:5/a@b/json", &["images", "r:5", "a@b", "json"], "/images/r:5/a@b/json"),
            ("/a/%zz%", &["a", "%zz%"], "/a/%25zz%25"),
            ("/..", &[".."], "/.."),
        ] {
            let decoded = decode(path).unwrap();
            assert_eq!(decoded, segments, "{path}");
            assert_eq!(target(&decoded, Some("a=1")).unwrap().to_string(), format!("{routed}?a=1"));
        }
        assert_eq!(decode("/%ff"), None);
    }

    #[test]
    fn lists_are_of_ones_own() {
        for (query, label) in [
            (None, json!(["berth.owner.uid=7"])),
            (Some("all=1&filters=%7B%22label%22%3A%5B%22a%22%5D%7D"), json!(["a", "berth.owner.uid=7"])),
            (Some("filters={\"label\":{\"a\":true}}"), json!({"a": true, "berth.owner.uid=7": true})),
            (Some("%66ilters={\"label\":[\"x\"]}&filters={}"), json!(["x", "berth.owner.uid=7"])),
        ] {
            let text = only_own(query, "7").unwrap();
            assert_eq!(text.matches("filters=").count(), 1, "{text}");
            let asked = Query::parse(Some(&text));
            let filters: Value = serde_json::from_str(asked.get("filters").unwrap()).unwrap();
            assert_eq!(filters["label"], label);
            assert_eq!(asked.flag("all"), query.is_some_and(|q| q.starts_with("all")));
        }
        for query in ["filters=[]", "filters={\"label\":1}", "filters=x"] {
            assert!(only_own(Some(query), "7").is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,20}") {
            let mut encoded = String::new();
            encode(&text, &mut encoded);
            prop_assert_eq!(decode_segment(&encoded), Some(text));
        }

        /// However the label filter is spelt: the query that goes on asks for the user's own, once.
        #[test]
        fn no_filter_gets_around(query in "(filters|%66ilters|a|all)=[a-z%{}\":0-9\\[\\]]{0,20}(&(filters|f)=[a-z{}]{0,6})?") {
            if let Ok(text) = only_own(Some(&query), "7") {
                let asked = Query::parse(Some(&text));
                prop_assert_eq!(asked.all("filters").count(), 1);
                prop_assert!(asked.get("filters").unwrap().contains("berth.owner.uid=7"));
            }
        }
    }
}
