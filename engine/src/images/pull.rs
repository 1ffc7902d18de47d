//! `docker pull`: from the request to the lines that a client shows.

use super::{
    ImageError, Images, Kept,
    board::Board,
    platform::Platform,
    progress::{Gone, Line, Lines},
};
use crate::supervisor::{Credentials, Step, SupervisorError, Transfer, auth::Form, content};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use proto::{
    containerd::types::transfer::{ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration},
    image_ref::ImageRef,
    kind::{ErrorKind, chain},
    typeurl,
};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};

/// What is to be pulled.
#[derive(Debug, Clone, PartialEq)]
pub struct PullRequest {
    /// With a tag or digest; without either all tags of the repository.
    pub reference: ImageRef,
    /// Another platform than this machine's.
    pub platform: Option<Platform>,
    /// For the reference's registry.
    pub credentials: Option<Credentials>,
}

impl PullRequest {
    /// Reads the arguments of `POST /images/create` and the header `X-Registry-Auth`.
    pub fn parse(
        from_image: &str,
        tag: Option<&str>,
        platform: Option<&str>,
        auth: Option<&str>,
    ) -> Result<Self, ImageError> {
        if from_image == "scratch" {
            return Err(ImageError::Reserved);
        }
        let name: ImageRef = from_image.trim_end_matches(':').parse()?;
        let reference = match tag {
            Some(tag) if tag.contains(':') => {
                name.with_digest(tag.parse().map_err(proto::image_ref::ImageRefError::from)?)
            }
            Some(tag) => name.with_tag(tag)?,
            // Without any: all tags.
            None => name,
        };
        let platform = platform.map(Platform::parse).transpose().map_err(|e| ImageError::Invalid(e.to_string()))?;
        Ok(Self { reference, platform, credentials: auth.and_then(decode_auth) })
    }

    /// Whether all tags are meant.
    pub fn is_for_all_tags(&self) -> bool {
        self.reference.tag().is_none() && self.reference.digest().is_none()
    }
}

/// The header that carries credentials: JSON in base64, in either alphabet, padded or not. What can't be read counts as
/// none, as docker has it.
pub fn decode_auth(header: &str) -> Option<Credentials> {
    serde_json::from_slice::<Auth>(&decode_base64(header)?).ok().and_then(credentials)
}

/// `X-Registry-Config`: credentials by registry, in the same form.
pub fn decode_registry_config(header: &str) -> Option<BTreeMap<String, Credentials>> {
    let all: BTreeMap<String, Auth> = serde_json::from_slice(&decode_base64(header)?).ok()?;
    Some(all.into_iter().filter_map(|(registry, auth)| Some((registry, credentials(auth)?))).collect())
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

fn credentials(auth: Auth) -> Option<Credentials> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let username = given(auth.username);
    if let Some(secret) = given(auth.registrytoken) {
        return Some(Credentials { username: String::new(), secret, form: Form::RegistryToken });
    }
    if let Some(secret) = given(auth.identitytoken) {
        return Some(Credentials { username: username.unwrap_or_default(), secret, form: Form::IdentityToken });
    }
    match (username, given(auth.password)) {
        (Some(username), Some(secret)) => Some(Credentials { username, secret, form: Form::Password }),
        _ => {
            let pair = String::from_utf8(decode_base64(&given(auth.auth)?)?).ok()?;
            let (username, secret) = pair.split_once(':')?;
            Some(Credentials { username: username.into(), secret: secret.into(), form: Form::Password })
        }
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    GeneralPurpose::new(alphabet, LENIENT).decode(text.trim()).ok()
}

/// A pull whose image has been found.
pub struct Pull {
    transfer: Transfer,
    reference: ImageRef,
    kept: Option<Kept>,
    /// Blobs that were there before.
    existing: HashSet<String>,
    /// Reports from the time of looking.
    early: Vec<Step>,
}

impl Images {
    /// Starts a pull; returns when the image was found, so that what fails before is still an error status.
    pub async fn begin_pull(&self, request: PullRequest) -> Result<Pull, ImageError> {
        let PullRequest { reference, platform, credentials } = request;
        let name = reference.to_string();
        let failed = |error| registry_error(&reference, error);
        let records = self.records().await?;
        let existing = content::digests(&self.client).await.map_err(failed)?;
        let kept = self.keep_displaced(&name, &records).await?;
        let wanted = platform.unwrap_or_else(Platform::host).to_proto();
        let store = ImageStore {
            name: name.clone(),
            platforms: vec![wanted.clone()],
            unpacks: vec![UnpackConfiguration {
                platform: Some(wanted),
                snapshotter: self.client.snapshotter().into(),
            }],
            ..ImageStore::default()
        };
        let host_dir = self.host_dir(reference.domain()).await?;
        let source = |auth_stream| {
            let resolver = RegistryResolver {
                auth_stream,
                host_dir,
                parallel: self.outside().downloads,
                default_scheme: scheme(reference.domain()).into(),
                ..RegistryResolver::default()
            };
            typeurl::pack(&OciRegistry { reference: name.clone(), resolver: Some(resolver) })
        };
        let begun = async {
            let mut transfer =
                Transfer::pull(&self.client, &reference, credentials, store, source).await.map_err(failed)?;
            let mut early = Vec::new();
            loop {
                match transfer.next().await {
                    Some(Step::Done(Err(error))) => return Err(failed(error)),
                    Some(step) => {
                        let found = match &step {
                            Step::Progress(progress) => progress.desc.is_some(),
                            Step::Done(_) => true,
                        };
                        early.push(step);
                        if found {
                            return Ok((transfer, early));
                        }
                    }
                    None => return Err(failed(SupervisorError::Protocol("transfer without result".into()))),
                }
            }
        };
        proto::fault!("engine.pull.displaced_kept");
        match begun.await {
            Ok((transfer, early)) => Ok(Pull { transfer, reference, kept, existing, early }),
            Err(error) => {
                self.settle_displaced(&name, kept).await?;
                Err(error)
            }
        }
    }

    /// Goes on with a pull to its end and tells about it. Gives the reference if it succeeded.
    pub async fn finish_pull(&self, pull: Pull, lines: &Lines) -> Option<ImageRef> {
        let reference = pull.reference.clone();
        let outcome = self.carry_out_pull(pull, lines).await;
        let news = outcome.map(|was_there| !was_there);
        self.end_pull(&reference, reference.familiar(), news, lines).await
    }

    /// Pulls every tag, one after the other, and tells about it. Gives the repository if all succeeded.
    pub async fn pull_tags(&self, request: PullRequest, tags: Vec<String>, lines: &Lines) -> Option<ImageRef> {
        let repository = request.reference.clone();
        let pulled = async {
            let mut news = false;
            for tag in tags {
                let reference = repository.with_tag(&tag).map_err(ImageError::from)?;
                let pull = self.begin_pull(PullRequest { reference, ..request.clone() }).await?;
                news |= !self.carry_out_pull(pull, lines).await?;
            }
            Ok(news)
        };
        let outcome = pulled.await;
        self.end_pull(&repository, repository.familiar_repository(), outcome, lines).await
    }

    /// The last line of a pull; of a successful one whether it brought anything.
    async fn end_pull(
        &self,
        reference: &ImageRef,
        shown: String,
        outcome: Result<bool, PullEnd>,
        lines: &Lines,
    ) -> Option<ImageRef> {
        let told = match outcome {
            Ok(news) => {
                let news = if news { "Downloaded newer image for" } else { "Image is up to date for" };
                lines.write(Line::status(format!("Status: {news} {shown}"))).await.map_err(PullEnd::from)
            }
            Err(end) => Err(end),
        };
        match told {
            Ok(()) => return Some(reference.clone()),
            Err(PullEnd::Failed(error)) => {
                tracing::warn!(image = shown, error = %chain(&error), "pull failed");
                // Nobody listens if this fails.
                let _ = lines.write(Line::error(chain(&error))).await;
            }
            Err(PullEnd::Gone) => tracing::info!(image = shown, "pull cancelled by its client"),
        }
        None
    }

    // Gives whether the image was there before.
    async fn carry_out_pull(&self, pull: Pull, lines: &Lines) -> Result<bool, PullEnd> {
        let name = pull.reference.to_string();
        let reference = pull.reference.clone();
        let Pull { transfer, kept, existing, early, .. } = pull;
        // Whatever happens to the client, the kept record is looked after.
        let outcome = tokio::select! {
            outcome = self.relay_pull(&reference, transfer, Board::new(existing), early, lines) => outcome,
            () = lines.gone() => Err(PullEnd::Gone),
        };
        proto::fault!("engine.pull.transferred");
        let settled = self.settle_displaced(&name, kept).await;
        proto::fault!("engine.pull.settled");
        let was_there = outcome?;
        settled?;
        Ok(was_there)
    }

    async fn relay_pull(
        &self,
        reference: &ImageRef,
        mut transfer: Transfer,
        mut board: Board,
        early: Vec<Step>,
        lines: &Lines,
    ) -> Result<bool, PullEnd> {
        let tag = match (reference.digest(), reference.tag()) {
            (Some(_), _) => reference.familiar(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let from = format!("Pulling from {}", reference.path());
        lines.write(Line { id: Some(tag), ..Line::status(from) }).await?;
        let mut early = early.into_iter();
        let result = loop {
            let step = match early.next() {
                Some(step) => Some(step),
                None => transfer.next().await,
            };
            match step {
                Some(Step::Progress(progress)) => {
                    for line in board.update(&progress) {
                        lines.write(line).await?;
                    }
                }
                Some(Step::Done(result)) => break result,
                None => break Err(SupervisorError::Protocol("transfer without result".into())),
            }
        };
        result.map_err(|error| registry_error(reference, error))?;
        let name = reference.to_string();
        let record = self.record(&name).await?.ok_or_else(|| ImageError::NotFound(reference.familiar()))?;
        let id = self.content(&name, &record.target).await?.id();
        let was_there = board.existing.contains(&id.to_string());
        for line in board.finish(was_there) {
            lines.write(line).await?;
        }
        lines.write(Line::status(format!("Digest: {}", record.target.digest))).await?;
        Ok(was_there)
    }
}

enum PullEnd {
    Failed(ImageError),
    Gone,
}

impl From<Gone> for PullEnd {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<ImageError> for PullEnd {
    fn from(error: ImageError) -> Self {
        Self::Failed(error)
    }
}

/// How a registry is spoken to if nothing is configured for it.
pub(super) fn scheme(domain: &str) -> &'static str {
    if proto::image_ref::is_local(domain) { "http" } else { "https" }
}

/// What a failed pull is called: docker's words where SDKs look for them, without saying twice what the supervisor says so.
pub(super) fn registry_error(reference: &ImageRef, error: SupervisorError) -> ImageError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::NotFound if text.starts_with("manifest for ") => ImageError::Registry(text),
        ErrorKind::NotFound => {
            let name = reference.familiar();
            ImageError::Registry(format!("manifest for {name} not found: manifest unknown: {text}"))
        }
        ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => {
            let detail = match text.strip_prefix("pull access denied for ") {
                Some(rest) => match rest.split_once(": ") {
                    Some((_, detail)) => detail,
                    None => "requested access to the resource is denied",
                },
                None => &text,
            };
            let name = reference.familiar_repository();
            ImageError::Registry(format!(
                "pull access denied for {name}, repository does not exist or may require 'docker login': denied: {detail}"
            ))
        }
        _ => ImageError::supervisor("pull", reference.familiar(), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refusals_are_said_once() {
        let reference: ImageRef = "reg.example/a:1".parse().unwrap();
        let said = |kind, message: &str| {
            registry_error(&reference, SupervisorError::Refused { kind, message: message.into() }).to_string()
        };
        let denied =
            "pull access denied for reg.example/a, repository does not exist or may require 'docker login': denied: ";
        let cases = [
            (
                ErrorKind::NotFound,
                "manifest for reg.example/a:1 not found: x",
                "manifest for reg.example/a:1 not found: x".to_owned(),
            ),
            (ErrorKind::NotFound, "gone", "manifest for reg.example/a:1 not found: manifest unknown: gone".to_owned()),
            (ErrorKind::Unauthenticated, "pull access denied for x, login: why", format!("{denied}why")),
            (ErrorKind::PermissionDenied, "no", format!("{denied}no")),
        ];
        for (kind, message, expected) in cases {
            assert_eq!(said(kind, message), expected);
        }
    }

    #[test]
    fn requests() {
        let pull = |image: &str, tag: Option<&str>| {
            PullRequest::parse(image, tag, None, None).map(|r| r.reference.to_string()).map_err(|e| e.kind())
        };
        const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(pull("busybox", Some("1")), Ok("docker.io/library/busybox:1".into()));
        assert_eq!(pull("busybox:2", None), Ok("docker.io/library/busybox:2".into()));
        assert_eq!(pull("docker.io/library/busybox", Some(D)), Ok(format!("docker.io/library/busybox@{D}")));
        assert_eq!(pull(&format!("a@{D}"), None), Ok(format!("docker.io/library/a@{D}")));
        assert_eq!(pull("scratch", Some("latest")), Err(ErrorKind::PermissionDenied));
        // All tags.
        assert_eq!(pull("busybox", None), Ok("docker.io/library/busybox".into()));
        for (image, tag) in [("Bad", Some("1")), ("a", Some("b c")), ("a", Some("sha256:1")), ("", Some("x"))] {
            assert_eq!(pull(image, tag), Err(ErrorKind::InvalidArgument), "{image} {tag:?}");
        }
    }

    #[test]
    fn auth_headers() {
        let json = r#"{"username":"u","password":"p?>","serveraddress":"x"}"#;
        let url = base64::engine::general_purpose::URL_SAFE.encode(json);
        let standard = base64::engine::general_purpose::STANDARD_NO_PAD.encode(json);
        for header in [url, standard] {
            let found = decode_auth(&header).unwrap();
            assert_eq!((&*found.username, &*found.secret, found.form), ("u", "p?>", Form::Password));
        }
        let encode = |json: &str| base64::engine::general_purpose::URL_SAFE.encode(json);
        let token = decode_auth(&encode(r#"{"identitytoken":"t"}"#)).unwrap();
        assert_eq!((token.form, &*token.secret), (Form::IdentityToken, "t"));
        let pair = decode_auth(&encode(&format!(r#"{{"auth":"{}"}}"#, encode("a:b:c")))).unwrap();
        assert_eq!((&*pair.username, &*pair.secret), ("a", "b:c"));
        for none in ["e30=", "", "!!!", "e30", &encode(r#"{"username":"u"}"#), &encode("[]")] {
            assert_eq!(decode_auth(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn headers_never_panic(text in ".{0,80}") {
            let _ = decode_auth(&text);
        }
    }
}
