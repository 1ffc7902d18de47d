//! Manifests and blobs from a registry: mirrors in order, cut connections taken up again, no more believed than the digest.

use std::sync::Arc;

use hyper::{HeaderMap, Method, StatusCode, header};
use proto::digest::Digest;

use super::{
    Anonymous, Registry, RegistryError, Trials, Upstream,
    auth::{Ask, Session},
    hosts::{Capabilities, Host},
    http::{self, Body, Target},
    retry::Retry,
    text,
};
use crate::{
    content::Writer,
    failure::blocking,
    images::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST},
};

/// How often a download is tried again without getting further.
const ATTEMPTS: u32 = 6;
/// How often a manifest is tried for.
const MANIFEST_ATTEMPTS: u32 = 4;
/// How often a host is tried after which there is another one.
const MIRROR_ATTEMPTS: u32 = 2;
/// Bytes gathered before they are written.
const BATCH: usize = 1 << 20;

impl Registry {
    /// Fetches a manifest or index by tag or digest: bytes, media type, digest.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<(Vec<u8>, String, Digest), RegistryError> {
        let (action, by_digest) = if reference.parse::<Digest>().is_ok() { ("pull", true) } else { ("resolve", false) };
        let (upstreams, mut trials) = self.capable(action, |can| if by_digest { can.pull } else { can.resolve })?;
        for (index, upstream) in upstreams.iter().enumerate() {
            let is_last = index + 1 == upstreams.len();
            let mut retry = Retry::new(if is_last { MANIFEST_ATTEMPTS } else { MIRROR_ATTEMPTS });
            let error = loop {
                match self.manifest_once(upstream, reference).await {
                    Ok(found) => return Ok(found),
                    // The next host is nearer than the next try.
                    Err(error @ RegistryError::Unreachable { .. }) if !is_last => break error,
                    Err(error) => {
                        if let Err(error) = retry.after(error).await {
                            break error;
                        }
                    }
                }
            };
            trials.failed(upstream, is_last, error)?;
        }
        Err(RegistryError::Incapable { domain: self.image.domain().to_owned(), action })
    }

    async fn manifest_once(
        &self,
        upstream: &Upstream,
        reference: &str,
    ) -> Result<(Vec<u8>, String, Digest), RegistryError> {
        let scope = self.pull_scope();
        let mut ask = Ask::new(Method::GET, &scope);
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
            ask = ask.with(header::ACCEPT, media_type);
        }
        let path = format!("{}/manifests/{reference}", self.path());
        let what = format!("manifest {reference:?}");
        let session = &upstream.session;
        let answer = session.switching(|base| upstream.target(base, &path), &ask).await;
        let answer = answer.map_err(|error| self.name("pull", error))?;
        let (status, host) = (answer.status(), session.host());
        if !status.is_success() {
            let headers = answer.headers().clone();
            let detail = http::detail(answer.into_body()).await;
            return Err(match status {
                StatusCode::NOT_FOUND => RegistryError::NoManifest { image: self.shown(reference), detail },
                _ => self.refusal("pull", host, status, &headers, what, detail),
            });
        }
        // Without parameters such as a charset.
        let media_type = text(answer.headers(), &header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let promised = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let promised = promised.and_then(|digest| digest.parse::<Digest>().ok());
        let bytes = http::read(answer.into_body(), MANIFEST_LIMIT, session.silence(), &host, &what).await?;
        let actual = Digest::of(&bytes);
        let wanted = reference.parse::<Digest>().ok().or(promised);
        if let Some(expected) = wanted
            && expected != actual
        {
            return Err(RegistryError::WrongDigest { host, what, actual, expected });
        }
        Ok((bytes, media_type, actual))
    }

    /// Fetches a small blob into memory; one whose descriptor is beyond `limit` is not asked for.
    pub(crate) async fn small_blob(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let what = format!("blob {}", blob.digest);
        if blob.size > limit {
            return Err(RegistryError::TooBig { what, host: self.host(), limit });
        }
        let (upstreams, mut trials) = self.capable("pull", |can| can.pull)?;
        for (index, upstream) in upstreams.iter().enumerate() {
            let is_last = index + 1 == upstreams.len();
            let mut retry = Retry::new(if is_last { MANIFEST_ATTEMPTS } else { MIRROR_ATTEMPTS });
            let error = loop {
                match self.small_blob_once(upstream, blob, &what).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => {
                        if let Err(error) = retry.after(error).await {
                            break error;
                        }
                    }
                }
            };
            trials.failed(upstream, is_last, error)?;
        }
        Err(RegistryError::Incapable { domain: self.image.domain().to_owned(), action: "pull" })
    }

    async fn small_blob_once(
        &self,
        upstream: &Upstream,
        blob: &Descriptor,
        what: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let (scope, path) = (self.pull_scope(), format!("{}/blobs/{}", self.path(), blob.digest));
        let session = &upstream.session;
        let asked = session.switching(|base| upstream.target(base, &path), &Ask::new(Method::GET, &scope)).await;
        let answer = asked.map_err(|error| self.name("pull", error))?;
        if !answer.status().is_success() {
            return Err(self.no_blob(session.host(), blob, answer).await);
        }
        let bytes = http::read(answer.into_body(), blob.size, session.silence(), &session.host(), what).await?;
        let actual = Digest::of(&bytes);
        if actual != blob.digest {
            let what = what.to_owned();
            return Err(RegistryError::WrongDigest { host: session.host(), what, actual, expected: blob.digest });
        }
        Ok(bytes)
    }

    async fn no_blob(&self, host: String, blob: &Descriptor, answer: hyper::Response<Body>) -> RegistryError {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let detail = http::detail(answer.into_body()).await;
        let (image, digest) = (self.image.to_string(), blob.digest);
        match status {
            StatusCode::NOT_FOUND => RegistryError::NoBlob { image, digest, detail },
            _ => self.refusal("pull", host, status, &headers, format!("blob {digest}"), detail),
        }
    }

    /// Fetches a blob into an ingest, from where that stands, until it has the blob's digest. Cut connections are taken up
    /// again, where they were and with the next host if need be.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        mut writer: Writer,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Writer, RegistryError> {
        if writer.offset() > blob.size {
            writer.seek(0)?;
        }
        let (upstreams, mut trials) = self.capable("pull", |can| can.pull)?;
        let urls: Vec<Target> = blob.foreign_urls().filter_map(|url| Target::parse(url).ok()).collect();
        for (index, upstream) in upstreams.iter().enumerate() {
            let is_last = index + 1 == upstreams.len();
            let path = format!("{}/blobs/{}", self.path(), blob.digest);
            let source = Source {
                session: &upstream.session,
                target: &|base| upstream.target(base, &path),
                scope: &self.pull_scope(),
                attempts: if is_last { ATTEMPTS } else { MIRROR_ATTEMPTS },
                dismiss: !is_last,
            };
            let (same, outcome) = self.download(&source, blob, writer, progress).await?;
            writer = same;
            match outcome {
                Ok(()) => return Ok(writer),
                // Not in the registry by intention: its maker gives it out himself.
                Err(RegistryError::NoBlob { .. }) if is_last && !urls.is_empty() => {
                    return self.elsewhere(blob, writer, &urls, progress).await;
                }
                Err(error) => {
                    if let Err(error) = trials.failed(upstream, is_last, error) {
                        // An ingest from which nothing can be taken up is of no use to anybody.
                        if writer.offset() == 0
                            && let Err(left) = writer.abort()
                        {
                            tracing::warn!(error = %proto::kind::chain(&left), "empty ingest left to the collector");
                        }
                        return Err(error);
                    }
                }
            }
        }
        Err(RegistryError::Incapable { domain: self.image.domain().to_owned(), action: "pull" })
    }

    // From the addresses that the manifest gives for it: encrypted, and nobody there gets to know who we are.
    async fn elsewhere(
        &self,
        blob: &Descriptor,
        mut writer: Writer,
        urls: &[Target],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Writer, RegistryError> {
        let mut trials = Trials::default();
        for (index, url) in urls.iter().enumerate() {
            let host = Host {
                base: url.clone(),
                other: None,
                can: Capabilities::ALL,
                trust: Default::default(),
                headers: HeaderMap::new(),
                dial_timeout: None,
                mirrored: None,
            };
            let Some(network) = self.upstreams.last().map(|upstream| upstream.session.network()) else { break };
            let session = Session::new(&host, HeaderMap::new(), Arc::new(Anonymous), network, false);
            let source = Source {
                session: &session,
                target: &|base| base.clone(),
                scope: "",
                attempts: ATTEMPTS,
                dismiss: false,
            };
            let (same, outcome) = self.download(&source, blob, writer, progress).await?;
            writer = same;
            let is_last = index + 1 == urls.len();
            match outcome {
                Ok(()) => return Ok(writer),
                Err(error) if is_last && trials.before.is_empty() => return Err(error),
                Err(error) if is_last => {
                    return Err(RegistryError::Everywhere { last: Box::new(error), before: trials.text() });
                }
                Err(error) => trials.before.push((url.to_string(), proto::kind::chain(&error))),
            }
        }
        Err(RegistryError::NoBlob { image: self.image.to_string(), digest: blob.digest, detail: String::new() })
    }

    // All of a blob from one host. The writer comes back unless it is what failed.
    async fn download(
        &self,
        source: &Source<'_>,
        blob: &Descriptor,
        mut writer: Writer,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(Writer, Result<(), RegistryError>), RegistryError> {
        let mut retry = Retry::new(source.attempts);
        while writer.offset() < blob.size {
            let before = writer.offset();
            let (same, outcome) = self.download_once(source, blob, writer, progress).await?;
            writer = same;
            if writer.offset() > before {
                retry.reset();
            }
            let Err(error) = outcome else { continue };
            if source.dismiss && matches!(error, RegistryError::Unreachable { .. }) {
                return Ok((writer, Err(error)));
            }
            if error.is_passing() {
                tracing::info!(
                    blob = %blob.digest, at = writer.offset(), attempt = retry.attempt() + 1,
                    error = %proto::kind::chain(&error), "download cut, taken up again"
                );
            }
            if let Err(error) = retry.after(error).await {
                return Ok((writer, Err(error)));
            }
        }
        let actual = writer.digest();
        if actual == blob.digest {
            return Ok((writer, Ok(())));
        }
        // Nothing of it is kept: which byte is wrong, nobody knows.
        writer.seek(0)?;
        let (host, what) = (source.session.host(), format!("blob {}", blob.digest));
        Ok((writer, Err(RegistryError::WrongDigest { host, what, actual, expected: blob.digest })))
    }

    async fn download_once(
        &self,
        source: &Source<'_>,
        blob: &Descriptor,
        mut writer: Writer,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(Writer, Result<(), RegistryError>), RegistryError> {
        let (start, host) = (writer.offset(), source.session.host());
        let mut ask = Ask::new(Method::GET, source.scope);
        if start > 0 {
            // Whether the blob is still the same needs no If-Range: its digest decides.
            ask = ask.with(header::RANGE, &format!("bytes={start}-"));
        }
        let answer = match source.session.switching(source.target, &ask).await {
            Ok(answer) => answer,
            Err(error) => return Ok((writer, Err(self.name("pull", error)))),
        };
        let (range, total) = http::content_range(answer.headers());
        let length = text(answer.headers(), &header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        let whole = match answer.status() {
            StatusCode::OK => length,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => total,
            _ => None,
        };
        if let Some(actual) = whole.filter(|whole| *whole != blob.size) {
            writer.seek(0)?;
            let (digest, size) = (blob.digest, blob.size);
            return Ok((
                writer,
                Err(match actual > size {
                    true => RegistryError::TooLong { host, digest, size },
                    false => RegistryError::TooShort { host, digest, size, actual },
                }),
            ));
        }
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if range == Some(start) => {}
            // It sends everything: only from the beginning is it certain.
            StatusCode::OK => writer.seek(0)?,
            // Another part than asked for.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                writer.seek(0)?;
                let cause = "answered another range than asked for".into();
                return Ok((writer, Err(RegistryError::Cut { direction: "from", host, cause })));
            }
            _ => return Ok((writer, Err(self.no_blob(host, blob, answer).await))),
        }
        let mut body = answer.into_body();
        let mut next = batch(source.session, &mut body).await;
        loop {
            let (pieces, end) = next;
            let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            if writer.offset() + length > blob.size {
                writer.seek(0)?;
                return Ok((writer, Err(RegistryError::TooLong { host, digest: blob.digest, size: blob.size })));
            }
            let writing = blocking(move || {
                for piece in &pieces {
                    writer.write(piece).map_err(crate::failure::status)?;
                }
                Ok(writer)
            });
            // What arrives while the disk is busy is gathered meanwhile.
            let (written, following) = match end {
                None => {
                    let (written, following) = tokio::join!(writing, batch(source.session, &mut body));
                    (written, Ok(following))
                }
                Some(end) => (writing.await, Err(end)),
            };
            writer = written.map_err(RegistryError::Store)?;
            progress(writer.offset());
            match following {
                Ok(following) => next = following,
                Err(Ok(())) if writer.offset() < blob.size => {
                    let cause = std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into();
                    return Ok((writer, Err(RegistryError::Cut { direction: "from", host, cause })));
                }
                Err(end) => return Ok((writer, end)),
            }
        }
    }
}

/// Where a blob is had from.
struct Source<'a> {
    session: &'a Session,
    target: &'a (dyn Fn(&Target) -> Target + Send + Sync),
    scope: &'a str,
    attempts: u32,
    // Whether there is another host, which is asked at once if nobody answers here.
    dismiss: bool,
}

// Some pieces of the body, and how it ended if it did.
async fn batch(session: &Session, body: &mut Body) -> (Vec<bytes::Bytes>, Option<Result<(), RegistryError>>) {
    let cut = |cause| Some(Err(RegistryError::Cut { direction: "from", host: session.host(), cause }));
    let (mut batch, mut length) = (Vec::new(), 0);
    while length < BATCH {
        match tokio::time::timeout(session.silence(), http::next(body)).await {
            Ok(Some(Ok(bytes))) => {
                length += bytes.len();
                batch.push(bytes);
            }
            Ok(Some(Err(cause))) => return (batch, cut(cause)),
            Ok(None) => return (batch, Some(Ok(()))),
            Err(_) => return (batch, cut(http::silent(session.silence()))),
        }
    }
    (batch, None)
}
