//! Blobs and manifests to a registry: only what it lacks, mounted from another repository where it has it there, and taken
//! up again after a cut where the registry remembers what it got.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, Method, Response, StatusCode, body::Frame, header};
use proto::digest::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Registry, RegistryError, Upstream,
    auth::Ask,
    http::{self, Body, Outgoing, Payload, Target},
    retry::Retry,
    text,
};
use crate::images::manifest::Descriptor;

/// How often an upload is tried without getting further.
const ATTEMPTS: u32 = 5;
/// Repositories that a blob is tried to be mounted from.
const MOUNTS: usize = 2;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the network.
const AHEAD: usize = 2;
/// Up to this size a blob goes with the request that completes it: one request less.
const SMALL: u64 = 1 << 20;

/// How a blob got to be in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was there.
    Exists,
    /// From another repository of the registry.
    Mounted(String),
    /// Sent.
    Uploaded,
}

/// A part of a file on its way out.
struct Part {
    file: Arc<File>,
    start: u64,
    end: u64,
    sent: Arc<AtomicU64>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Payload for Part {
    fn open(&self) -> Outgoing {
        let (send, pieces) = mpsc::channel::<io::Result<Frame<Bytes>>>(AHEAD);
        let (file, mut at, end) = (self.file.clone(), self.start, self.end);
        let (sent, progress) = (self.sent.clone(), self.progress.clone());
        // Ends with the request: nobody takes the pieces any more. A thread is had for each piece alone: a registry that takes
        // nothing must not keep it.
        tokio::spawn(async move {
            while at < end {
                let length = PIECE.min(usize::try_from(end - at).unwrap_or(PIECE));
                let (file, from) = (file.clone(), at);
                let reading = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; length];
                    file.read_exact_at(&mut piece, from).map(|()| piece)
                });
                let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                let failed = read.is_err();
                let length = length as u64;
                at += length;
                if send.send(read.map(|piece| Frame::data(piece.into()))).await.is_err() || failed {
                    return;
                }
                sent.fetch_add(length, Ordering::Relaxed);
                progress(at);
            }
        });
        StreamBody::new(ReceiverStream::new(pieces)).boxed_unsync()
    }

    fn length(&self) -> u64 {
        self.end - self.start
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

enum Mount {
    Done,
    Begun(Target),
    Refused,
}

impl Registry {
    // The first host that takes content, as containerd chooses it.
    fn receiver(&self) -> Result<&Upstream, RegistryError> {
        let found = self.upstreams.iter().find(|upstream| upstream.can.push);
        found.ok_or_else(|| RegistryError::Incapable { domain: self.image.domain().to_owned(), action: "push" })
    }

    fn push_scope(&self) -> String {
        format!("repository:{}:pull,push", self.path())
    }

    /// Brings a blob into the repository. `candidates` are repositories of the same registry that may have it.
    pub(crate) async fn push_blob(
        &self,
        blob: &Descriptor,
        file: &Arc<File>,
        candidates: &[String],
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Outcome, RegistryError> {
        let upstream = self.receiver()?;
        let mut retry = Retry::new(ATTEMPTS);
        let mut reached = 0;
        let mut first = true;
        loop {
            match self
                .push_blob_once(upstream, blob, file, if first { candidates } else { &[] }, progress, &mut reached)
                .await
            {
                Ok(outcome) => return Ok(outcome),
                Err(error) => {
                    if error.is_passing() {
                        tracing::info!(
                            blob = %blob.digest, attempt = retry.attempt() + 1, error = %proto::kind::chain(&error),
                            "upload cut, tried again"
                        );
                    }
                    retry.after(error).await?;
                }
            }
            first = false;
        }
    }

    async fn push_blob_once(
        &self,
        upstream: &Upstream,
        blob: &Descriptor,
        file: &Arc<File>,
        candidates: &[String],
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
        reached: &mut u64,
    ) -> Result<Outcome, RegistryError> {
        if self.has_blob(upstream, &blob.digest).await? {
            return Ok(Outcome::Exists);
        }
        let mut begun = None;
        for from in candidates.iter().filter(|from| *from != self.path()).take(MOUNTS) {
            match self.mount(upstream, &blob.digest, from).await? {
                Mount::Done => return Ok(Outcome::Mounted(from.clone())),
                Mount::Begun(location) => {
                    if let Some(older) = begun.replace(location) {
                        self.forget(upstream, &older).await;
                    }
                }
                Mount::Refused => {}
            }
        }
        let location = match begun {
            Some(location) => location,
            None => self.begin(upstream).await?,
        };
        self.send(upstream, location, blob, file, progress, reached).await?;
        Ok(Outcome::Uploaded)
    }

    async fn has_blob(&self, upstream: &Upstream, digest: &Digest) -> Result<bool, RegistryError> {
        let (scope, path) = (self.push_scope(), format!("{}/blobs/{digest}", self.path()));
        let answer =
            upstream.session.switching(|base| upstream.target(base, &path), &Ask::new(Method::HEAD, &scope)).await;
        let answer = answer.map_err(|error| self.name("push", error))?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            // Whether we may push at all, the first real request tells, and says why not.
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
            _ => Err(self.refused(upstream, answer, format!("blob {digest}")).await),
        }
    }

    async fn mount(&self, upstream: &Upstream, digest: &Digest, from: &str) -> Result<Mount, RegistryError> {
        let scope = format!("{} repository:{from}:pull", self.push_scope());
        let path = format!("{}/blobs/uploads/", self.path());
        let target = |base: &Target| {
            let target = upstream.target(base, &path);
            target.with_query(&[("mount", &digest.to_string()), ("from", from)]).unwrap_or(target)
        };
        let ask = Ask::new(Method::POST, &scope).with(header::CONTENT_LENGTH, "0");
        match upstream.session.switching(target, &ask).await {
            Ok(answer) => match answer.status() {
                StatusCode::CREATED => Ok(Mount::Done),
                StatusCode::ACCEPTED => self.location(upstream, None, answer.headers()).map(Mount::Begun),
                // Not ours to read there, or nothing that this registry does: then we send it.
                _ => Ok(Mount::Refused),
            },
            Err(RegistryError::Unauthorized { .. }) => Ok(Mount::Refused),
            Err(error) => Err(error),
        }
    }

    async fn begin(&self, upstream: &Upstream) -> Result<Target, RegistryError> {
        let (scope, path) = (self.push_scope(), format!("{}/blobs/uploads/", self.path()));
        let ask = Ask::new(Method::POST, &scope).with(header::CONTENT_LENGTH, "0");
        let answer = upstream.session.switching(|base| upstream.target(base, &path), &ask).await;
        let answer = answer.map_err(|error| self.name("push", error))?;
        match answer.status() {
            StatusCode::ACCEPTED => self.location(upstream, None, answer.headers()),
            _ => Err(self.refused(upstream, answer, "a new upload".into()).await),
        }
    }

    // Best effort: registries drop old uploads by themselves.
    async fn forget(&self, upstream: &Upstream, location: &Target) {
        let scope = self.push_scope();
        let _ = upstream.session.request_to(location, &Ask::new(Method::DELETE, &scope)).await;
    }

    async fn send(
        &self,
        upstream: &Upstream,
        location: Target,
        blob: &Descriptor,
        file: &Arc<File>,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
        reached: &mut u64,
    ) -> Result<(), RegistryError> {
        let (mut location, mut offset) = (location, 0);
        let part =
            |start, end| Part { file: file.clone(), start, end, sent: Arc::default(), progress: progress.clone() };
        while blob.size > SMALL && offset < blob.size {
            let rest = part(offset, blob.size);
            match self.patch(upstream, &location, &rest, blob.size).await {
                Ok(next) => (location, offset) = (next, blob.size),
                Err(error) if error.is_passing() => {
                    // What it has of it, it may know; then only the rest is sent.
                    let Some((next, has)) = self.standing(upstream, &location).await else { return Err(error) };
                    if has <= offset || has > blob.size || has <= *reached {
                        return Err(error);
                    }
                    tracing::info!(blob = %blob.digest, at = has, error = %proto::kind::chain(&error), "upload cut, taken up again");
                    *reached = has;
                    (location, offset) = (next, has);
                }
                Err(error) => return Err(error),
            }
            proto::fault!("supervisor.push.blob_sent");
        }
        let rest = part(offset, blob.size);
        let scope = self.push_scope();
        let wrong = |why| RegistryError::Protocol { host: upstream.session.host(), why };
        let target = location.with_query(&[("digest", &blob.digest.to_string())]).map_err(wrong)?;
        let mut ask = Ask::new(Method::PUT, &scope)
            .with(header::CONTENT_LENGTH, &rest.length().to_string())
            .with(header::CONTENT_TYPE, "application/octet-stream");
        if rest.length() > 0 {
            ask.payload = &rest;
        }
        let answer = upstream.session.request_to(&target, &ask).await.map_err(|error| self.name("push", error))?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::ACCEPTED => Ok(()),
            _ => Err(self.refused(upstream, answer, format!("blob {}", blob.digest)).await),
        }
    }

    async fn patch(
        &self,
        upstream: &Upstream,
        location: &Target,
        rest: &Part,
        size: u64,
    ) -> Result<Target, RegistryError> {
        let scope = self.push_scope();
        let mut ask = Ask::new(Method::PATCH, &scope)
            .with(header::CONTENT_LENGTH, &rest.length().to_string())
            .with(header::CONTENT_TYPE, "application/octet-stream");
        if rest.start > 0 {
            ask = ask.with(header::CONTENT_RANGE, &format!("{}-{}", rest.start, size - 1));
        }
        ask.payload = rest;
        let answer = upstream.session.request_to(location, &ask).await.map_err(|error| self.name("push", error))?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                self.location(upstream, Some(location), answer.headers())
            }
            // It has lost the upload, or counts otherwise: a new one will do.
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => {
                let detail = http::detail(answer.into_body()).await;
                let (host, cause) = (upstream.session.host(), format!("the registry dropped the upload{detail}"));
                Err(RegistryError::Cut { direction: "to", host, cause: cause.into() })
            }
            _ => Err(self.refused(upstream, answer, "a part of a blob".into()).await),
        }
    }

    // Where an upload stands, and where it goes on (distribution-spec, "Resuming a chunked upload").
    async fn standing(&self, upstream: &Upstream, location: &Target) -> Option<(Target, u64)> {
        let scope = self.push_scope();
        let answer = upstream.session.request_to(location, &Ask::new(Method::GET, &scope)).await.ok()?;
        if !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::ACCEPTED | StatusCode::OK) {
            return None;
        }
        let last = received(answer.headers())?;
        Some((self.location(upstream, Some(location), answer.headers()).ok()?, last))
    }

    fn location(
        &self,
        upstream: &Upstream,
        here: Option<&Target>,
        headers: &HeaderMap,
    ) -> Result<Target, RegistryError> {
        let base = upstream.session.base();
        let wrong = |why| RegistryError::Protocol { host: upstream.session.host(), why };
        let target = match (text(headers, &header::LOCATION), here) {
            (Some(text), here) => here.unwrap_or(base).resolve(text).map_err(|why| wrong(format!("upload: {why}")))?,
            (None, Some(here)) => here.clone(),
            (None, None) => return Err(wrong("upload without location".into())),
        };
        // A registry behind a proxy that adds the encryption may not know of it.
        if base.is_https() && !target.is_https() && target.authority() == base.authority() {
            return Target::parse(&target.to_string().replacen("http://", "https://", 1)).map_err(wrong);
        }
        Ok(target)
    }

    /// Stores a manifest or index under a tag or its digest.
    pub(crate) async fn push_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let upstream = self.receiver()?;
        let (scope, path) = (self.push_scope(), format!("{}/manifests/{reference}", self.path()));
        let mut retry = Retry::new(ATTEMPTS);
        loop {
            let mut ask = Ask::new(Method::PUT, &scope)
                .with(header::CONTENT_TYPE, media_type)
                .with(header::CONTENT_LENGTH, &bytes.len().to_string());
            ask.payload = bytes;
            let answer = upstream.session.switching(|base| upstream.target(base, &path), &ask).await;
            let error = match answer.map_err(|error| self.name("push", error)) {
                Ok(answer) if answer.status().is_success() => {
                    let host = upstream.session.host();
                    let taken = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
                    let taken = taken.and_then(|digest| digest.parse::<Digest>().ok());
                    let (what, expected) = (format!("manifest {reference:?} back"), Digest::of(bytes));
                    return match taken.filter(|actual| *actual != expected) {
                        Some(actual) => Err(RegistryError::WrongDigest { host, what, actual, expected }),
                        None => Ok(()),
                    };
                }
                Ok(answer) => self.refused(upstream, answer, format!("manifest {reference:?}")).await,
                Err(error) => error,
            };
            retry.after(error).await?;
        }
    }

    async fn refused(&self, upstream: &Upstream, answer: Response<Body>, what: String) -> RegistryError {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let detail = http::detail(answer.into_body()).await;
        self.refusal("push", upstream.session.host(), status, &headers, what, detail)
    }
}

// How many bytes a `Range: 0-99` speaks of. The registry's "0-0" means none.
fn received(headers: &HeaderMap) -> Option<u64> {
    let value = text(headers, &header::RANGE)?;
    let last: u64 = value.strip_prefix("bytes=").unwrap_or(value).strip_prefix("0-")?.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_is_there() {
        for (value, wanted) in
            [("0-99", Some(100)), ("bytes=0-99", Some(100)), ("0-0", Some(0)), ("5-99", None), ("0-x", None)]
        {
            let headers = [(header::RANGE, value.parse().unwrap())].into_iter().collect();
            assert_eq!(received(&headers), wanted, "{value}");
        }
    }
}
