//! A client for registries (OCI distribution-spec 1.1, docker registry API v2): manifests and blobs, for pulling.
//!
//! `http` sends requests and follows redirects, `auth` gets tokens; here is what a pull asks for. Credentials go to the
//! registry's own host and to the token service it names, and to nobody else (CVE-2020-15157).

mod auth;
mod http;

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper::{HeaderMap, Method, StatusCode, header};
use proto::{digest::Digest, image_ref::ImageRef, kind::ErrorKind};
use tonic::async_trait;

use crate::{
    content::{ContentError, Writer},
    failure::{Failure, blocking},
    images::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST},
};
use auth::Session;
pub(crate) use http::{Body, Target};

/// How often a request is tried again without getting further.
const ATTEMPTS: u32 = 6;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes gathered before they are written.
const BATCH: usize = 1 << 20;

/// Why something could not be had from a registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// The registry doesn't know the image.
    #[error("manifest for {image} not found{detail}")]
    NoManifest {
        /// The image asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// The registry has the manifest, but not the blob.
    #[error("blob {digest} of {image} not found{detail}")]
    NoBlob {
        /// The image asked for.
        image: String,
        /// The blob.
        digest: Digest,
        /// What the registry says.
        detail: String,
    },
    /// Credentials are missing or wrong.
    #[error("pull access denied for {image}, repository does not exist or may require login{detail}")]
    Unauthorized {
        /// The image asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// Known, and not allowed.
    #[error("access to {image} is forbidden{detail}")]
    Forbidden {
        /// The image asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// Nobody answers.
    #[error("registry {host} can't be reached")]
    Unreachable {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection was cut, too often.
    #[error("transfer from {host} was cut off")]
    Cut {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that the protocol doesn't know.
    #[error("registry {host} answered {status} for {what}{detail}")]
    Answer {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: StatusCode,
        /// What was asked for.
        what: String,
        /// What the registry says.
        detail: String,
    },
    /// A document beyond what is read into memory.
    #[error("{what} from {host} is larger than {limit} bytes")]
    TooBig {
        /// What was asked for.
        what: String,
        /// Host and port.
        host: String,
        /// What is allowed.
        limit: u64,
    },
    /// The registry sent something else than what was asked for.
    #[error("registry {host} sent {what} with digest {actual}, expected {expected}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// What arrived.
        actual: Digest,
        /// What was promised.
        expected: Digest,
    },
    /// More bytes than the manifest promises.
    #[error("registry {host} sent more than the {size} bytes of blob {digest}")]
    TooLong {
        /// Host and port.
        host: String,
        /// The blob.
        digest: Digest,
        /// Its size by the manifest.
        size: u64,
    },
    /// The registry's answer can't be followed.
    #[error("registry {host}: {why}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// TLS can't be set up on this machine.
    #[error("set up TLS: {0}")]
    Tls(String),
    /// The store failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Waiting for the disk failed.
    #[error("{}", .0.message())]
    Store(tonic::Status),
}

impl Failure for RegistryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoManifest { .. } | Self::NoBlob { .. } => ErrorKind::NotFound,
            Self::Unauthorized { .. } => ErrorKind::Unauthenticated,
            Self::Forbidden { .. } => ErrorKind::PermissionDenied,
            Self::Unreachable { .. } | Self::Cut { .. } => ErrorKind::Unavailable,
            Self::Answer { status, .. } if status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS => {
                ErrorKind::Unavailable
            }
            Self::Answer { .. } | Self::Protocol { .. } | Self::Tls(_) => ErrorKind::Internal,
            Self::TooBig { .. } | Self::WrongDigest { .. } | Self::TooLong { .. } => ErrorKind::DataLoss,
            Self::Content(error) => error.kind(),
            Self::Store(status) => ErrorKind::from_grpc(status.code()),
        }
    }
}

impl RegistryError {
    // Whether trying again may help.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Cut { .. })
            || matches!(self, Self::Answer { .. } if self.kind() == ErrorKind::Unavailable)
    }
}

/// What a user gave to log in with.
#[derive(Clone)]
pub(crate) enum Credential {
    /// User name and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        secret: String,
    },
    /// An identity token (OAuth 2).
    Refresh(String),
    /// A complete `Authorization` header.
    Header(String),
}

/// Who is asked for credentials when a registry wants them.
#[async_trait]
pub(crate) trait Credentials: Send + Sync {
    /// The credential for `host`; `challenges` are the values of its `WWW-Authenticate` header.
    async fn credential(&self, host: &str, challenges: &[String]) -> Option<Credential>;
}

/// Nobody: anonymous access.
pub(crate) struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn credential(&self, _: &str, _: &[String]) -> Option<Credential> {
        None
    }
}

/// One repository in one registry, for the time of one pull.
pub(crate) struct Registry {
    image: ImageRef,
    base: Target,
    session: Session,
}

impl Registry {
    /// The repository of `image`. `scheme` is `http` or `https`, empty for the rule: http for this machine, else https.
    pub(crate) fn new(
        image: &ImageRef,
        scheme: &str,
        headers: &HashMap<String, String>,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Self, RegistryError> {
        // The one name that is not its own host.
        let host = match image.domain() {
            domain @ "docker.io" => format!("registry-1.{domain}"),
            domain => domain.to_owned(),
        };
        let scheme = match scheme {
            "http" | "https" => scheme,
            "" if is_local(&host) => "http",
            "" => "https",
            other => {
                return Err(RegistryError::Protocol { host, why: format!("scheme {other:?} is not http or https") });
            }
        };
        let base = Target::parse(&format!("{scheme}://{host}/v2/{}/", image.path()))
            .map_err(|why| RegistryError::Protocol { host: host.clone(), why })?;
        let extra = http::headers(headers).map_err(|why| RegistryError::Protocol { host, why })?;
        let scope = format!("repository:{}:pull", image.path());
        Ok(Self { image: image.clone(), session: Session::new(base.clone(), scope, extra, credentials), base })
    }

    /// Host and port of the registry.
    pub(crate) fn host(&self) -> String {
        self.base.authority()
    }

    /// Fetches a manifest or index by tag or digest: bytes, media type, digest.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<(Vec<u8>, String, Digest), RegistryError> {
        let mut headers = HeaderMap::new();
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
            headers.append(header::ACCEPT, header::HeaderValue::from_static(media_type));
        }
        let mut attempt = 0;
        loop {
            match self.manifest_once(reference, &headers).await {
                Err(error) if error.is_passing() && attempt + 1 < ATTEMPTS / 2 => {
                    attempt += 1;
                    pause(attempt).await;
                }
                done => return done,
            }
        }
    }

    async fn manifest_once(
        &self,
        reference: &str,
        headers: &HeaderMap,
    ) -> Result<(Vec<u8>, String, Digest), RegistryError> {
        let target = self.base.join(&format!("manifests/{reference}"));
        let what = format!("manifest {reference:?}");
        let answer = self.session.request(&Method::GET, &target, headers).await.map_err(|e| self.name(e))?;
        let status = answer.status();
        let host = self.host();
        if !status.is_success() {
            let detail = http::detail(answer.into_body()).await;
            let image = self.shown(reference);
            return Err(match status {
                StatusCode::NOT_FOUND => RegistryError::NoManifest { image, detail },
                _ => self.refusal(status, what, detail),
            });
        }
        let text = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        // Without parameters such as a charset.
        let media_type = text("content-type").unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let promised = text("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        let bytes = http::read(answer.into_body(), MANIFEST_LIMIT, &host, &what).await?;
        let actual = Digest::of(&bytes);
        let wanted = reference.parse::<Digest>().ok().or(promised);
        if let Some(expected) = wanted
            && expected != actual
        {
            return Err(RegistryError::WrongDigest { host, what, actual, expected });
        }
        Ok((bytes, media_type, actual))
    }

    /// Fetches a blob into an ingest, from where that stands; cut connections are taken up again.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        mut writer: Writer,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Writer, RegistryError> {
        let mut attempt = 0;
        if writer.offset() > blob.size {
            writer.seek(0)?;
        }
        while writer.offset() < blob.size {
            let before = writer.offset();
            let (same, outcome) = self.blob_once(blob, writer, progress).await?;
            writer = same;
            if writer.offset() > before {
                attempt = 0;
            }
            match outcome {
                Ok(()) => {}
                Err(error) if error.is_passing() && attempt + 1 < ATTEMPTS => {
                    attempt += 1;
                    tracing::info!(
                        blob = %blob.digest, at = writer.offset(), attempt,
                        error = %proto::kind::chain(&error), "download cut, taken up again"
                    );
                    pause(attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(writer)
    }

    // The writer comes back unless it is what failed.
    async fn blob_once(
        &self,
        blob: &Descriptor,
        mut writer: Writer,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(Writer, Result<(), RegistryError>), RegistryError> {
        let target = self.base.join(&format!("blobs/{}", blob.digest));
        let mut headers = HeaderMap::new();
        let start = writer.offset();
        if start > 0
            && let Ok(range) = format!("bytes={start}-").parse()
        {
            headers.insert(header::RANGE, range);
        }
        let answer = match self.session.request(&Method::GET, &target, &headers).await.map_err(|e| self.name(e)) {
            Ok(answer) => answer,
            Err(error) => return Ok((writer, Err(error))),
        };
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if http::range_start(answer.headers()) == Some(start) => {}
            // It sends everything, or another part than asked for: only from the beginning is it certain.
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if start > 0 => {
                if answer.status() == StatusCode::PARTIAL_CONTENT {
                    writer.seek(0)?;
                    let host = self.host();
                    let why = "answered another range than asked for".to_owned();
                    return Ok((writer, Err(RegistryError::Cut { host, cause: why.into() })));
                }
                writer.seek(0)?;
            }
            StatusCode::OK => {}
            status => {
                let detail = http::detail(answer.into_body()).await;
                let image = self.image.to_string();
                return Ok((
                    writer,
                    Err(match status {
                        StatusCode::NOT_FOUND => RegistryError::NoBlob { image, digest: blob.digest, detail },
                        _ => self.refusal(status, format!("blob {}", blob.digest), detail),
                    }),
                ));
            }
        }
        let mut body = answer.into_body();
        loop {
            let (batch, end) = self.batch(&mut body).await;
            let length: u64 = batch.iter().map(|b| b.len() as u64).sum();
            if writer.offset() + length > blob.size {
                let host = self.host();
                return Err(RegistryError::TooLong { host, digest: blob.digest, size: blob.size });
            }
            writer = blocking(move || {
                for bytes in &batch {
                    writer.write(bytes).map_err(crate::failure::status)?;
                }
                Ok(writer)
            })
            .await
            .map_err(RegistryError::Store)?;
            progress(writer.offset());
            match end {
                None => {}
                Some(Ok(())) if writer.offset() < blob.size => {
                    let cause = std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into();
                    return Ok((writer, Err(RegistryError::Cut { host: self.host(), cause })));
                }
                Some(outcome) => return Ok((writer, outcome)),
            }
        }
    }

    // Some pieces of the body, and how it ended if it did.
    async fn batch(&self, body: &mut Body) -> (Vec<bytes::Bytes>, Option<Result<(), RegistryError>>) {
        let (mut batch, mut length) = (Vec::new(), 0);
        while length < BATCH {
            match tokio::time::timeout(SILENCE, http::next(body)).await {
                Ok(Some(Ok(bytes))) => {
                    length += bytes.len();
                    batch.push(bytes);
                }
                Ok(Some(Err(cause))) => {
                    return (batch, Some(Err(RegistryError::Cut { host: self.host(), cause })));
                }
                Ok(None) => return (batch, Some(Ok(()))),
                Err(_) => {
                    let cause = std::io::Error::from(std::io::ErrorKind::TimedOut).into();
                    return (batch, Some(Err(RegistryError::Cut { host: self.host(), cause })));
                }
            }
        }
        (batch, None)
    }

    fn refusal(&self, status: StatusCode, what: String, detail: String) -> RegistryError {
        let image = self.image.familiar_repository();
        match status {
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { image, detail },
            StatusCode::FORBIDDEN => RegistryError::Forbidden { image, detail },
            status => RegistryError::Answer { host: self.host(), status, what, detail },
        }
    }

    // Refusals of the token service name the image, too.
    fn name(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Unauthorized { detail, .. } => {
                RegistryError::Unauthorized { image: self.image.familiar_repository(), detail }
            }
            other => other,
        }
    }

    fn shown(&self, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}{separator}{reference}", self.image.familiar_repository())
    }
}

async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(100 << attempt.min(6))).await;
}

/// Whether a host with optional port is this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for local in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["localhost.example.com", "127.0.0.1.example.com", "10.0.0.1:5000", "[::2]:5000", "example.com"] {
            assert!(!is_local(remote), "{remote}");
        }
    }
}
