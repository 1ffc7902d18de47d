//! `docker push`: one tag of a repository or all of them, in docker's lines.

use super::{
    ImageContent, ImageError, Images, Record,
    names::RecordName,
    platform::Platform,
    progress::{Detail, Gone, Line, Lines},
    pull::{decode_auth, scheme},
};
use crate::supervisor::{Credentials, Step, SupervisorError, Transfer};
use proto::{
    containerd::types::{
        Descriptor,
        transfer::{ImageStore, OciRegistry, Progress, RegistryResolver},
    },
    image_ref::ImageRef,
    kind::{ErrorKind, chain},
    typeurl,
};
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// Layers that docker sends at the same time; of those after them it says "Waiting".
const PARALLEL: usize = 5;

/// What is to be pushed.
#[derive(Debug, Clone, PartialEq)]
pub struct PushRequest {
    /// With a tag; without one all tags of the repository.
    pub reference: ImageRef,
    /// One platform of several.
    pub platform: Option<Platform>,
    /// For the reference's registry.
    pub credentials: Option<Credentials>,
}

impl PushRequest {
    /// Reads the arguments of `POST /images/{name}/push` and the header `X-Registry-Auth`.
    pub fn parse(
        name: &str,
        tag: Option<&str>,
        platform: Option<Platform>,
        auth: Option<&str>,
    ) -> Result<Self, ImageError> {
        let name: ImageRef = name.parse()?;
        let reference = match tag {
            Some(tag) => name.with_tag(tag).map_err(|_| ImageError::Invalid("invalid tag format".into()))?,
            None => name,
        };
        if reference.digest().is_some() {
            return Err(ImageError::Invalid("cannot push a digest reference".into()));
        }
        Ok(Self { reference, platform, credentials: auth.and_then(decode_auth) })
    }
}

enum PushEnd {
    Failed(ImageError),
    Gone,
}

impl From<Gone> for PushEnd {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<ImageError> for PushEnd {
    fn from(error: ImageError) -> Self {
        Self::Failed(error)
    }
}

impl Images {
    /// Pushes and tells about it, failures included. Gives what was pushed whole.
    pub async fn push(&self, request: PushRequest, lines: &Lines) -> Vec<ImageRef> {
        let mut pushed = Vec::new();
        let outcome = tokio::select! {
            outcome = self.relay_pushes(&request, &mut pushed, lines) => outcome,
            () = lines.gone() => Err(PushEnd::Gone),
        };
        let name = request.reference.familiar();
        match outcome {
            Ok(()) => {}
            Err(PushEnd::Failed(error)) => {
                tracing::warn!(image = name, error = %chain(&error), "push failed");
                // Nobody listens if this fails.
                let _ = lines.write(Line::error(chain(&error))).await;
            }
            Err(PushEnd::Gone) => tracing::info!(image = name, "push cancelled by its client"),
        }
        pushed
    }

    async fn relay_pushes(
        &self,
        request: &PushRequest,
        pushed: &mut Vec<ImageRef>,
        lines: &Lines,
    ) -> Result<(), PushEnd> {
        let reference = &request.reference;
        lines.write(Line::status(format!("The push refers to repository [{}]", reference.repository()))).await?;
        let records = self.records().await?;
        let mut local: Vec<(ImageRef, Record)> = records
            .into_iter()
            .filter_map(|record| match &record.kind {
                RecordName::Tagged(name) if name.repository() == reference.repository() => Some((name.clone(), record)),
                _ => None,
            })
            .collect();
        if local.is_empty() {
            let name = reference.familiar_repository();
            let text = format!("An image does not exist locally with the tag: {name}");
            return Err(ImageError::Registry(text).into());
        }
        if reference.tag().is_some() {
            local.retain(|(name, _)| name == reference);
            if local.is_empty() {
                return Err(ImageError::Registry(format!("tag does not exist: {}", reference.familiar())).into());
            }
        }
        local.sort_by(|a, b| a.0.tag().cmp(&b.0.tag()));
        for (name, record) in local {
            self.push_one(&name, &record, request, lines).await?;
            pushed.push(name);
        }
        Ok(())
    }

    async fn push_one(
        &self,
        name: &ImageRef,
        record: &Record,
        request: &PushRequest,
        lines: &Lines,
    ) -> Result<(), PushEnd> {
        let image = self.content(&record.name, &record.target).await?;
        // Of an index the supervisor picks the platform; a single image is for its own.
        if let Some(wanted) = request.platform.as_ref().map(Platform::normalized)
            && image.manifest.to_string() == record.target.digest
            && wanted != image.platform()
        {
            let name = name.familiar();
            let text =
                format!("image with reference {name} was found but does not provide the specified platform ({wanted})");
            return Err(ImageError::Registry(text).into());
        }
        let mut board = Board::new(&image);
        for line in board.begin() {
            lines.write(line).await?;
        }
        let store = ImageStore {
            name: record.name.clone(),
            platforms: request.platform.iter().map(Platform::to_proto).collect(),
            ..ImageStore::default()
        };
        let host_dir = self.host_dir(name.domain()).await?;
        let reference = name.to_string();
        let destination = |auth_stream| {
            let resolver = RegistryResolver {
                auth_stream,
                host_dir,
                parallel: self.outside().uploads,
                default_scheme: scheme(name.domain()).into(),
                ..RegistryResolver::default()
            };
            typeurl::pack(&OciRegistry { reference, resolver: Some(resolver) })
        };
        let failed = |error| push_error(name, error);
        let credentials = request.credentials.clone();
        let mut transfer = Transfer::push(&self.client, name, credentials, store, destination).await.map_err(failed)?;
        let mut target = None;
        loop {
            match transfer.next().await {
                Some(Step::Progress(progress)) => {
                    if progress.event == "pushed" {
                        target = progress.desc.clone();
                    }
                    for line in board.update(&progress) {
                        lines.write(line).await?;
                    }
                }
                Some(Step::Done(result)) => break result.map_err(failed)?,
                None => return Err(failed(SupervisorError::Protocol("transfer without result".into())).into()),
            }
        }
        for line in board.finish() {
            lines.write(line).await?;
        }
        // Not told by every peer: then it is what the name points to now.
        let target: Descriptor = match target.filter(|target| !target.digest.is_empty()) {
            Some(target) => target,
            None => self.record(&record.name).await?.map_or_else(|| record.target.clone(), |record| record.target),
        };
        let (tag, digest, size) = (name.tag().unwrap_or_default(), &target.digest, target.size);
        lines.write(Line::status(format!("{tag}: digest: {digest} size: {size}"))).await?;
        let aux = json!({"Tag": tag, "Digest": digest, "Size": size});
        lines.write(Line { detail: Some(Detail::default()), aux: Some(aux), ..Line::default() }).await?;
        Ok(())
    }
}

/// What a failed push is called: docker's words where there are some.
fn push_error(name: &ImageRef, error: SupervisorError) -> ImageError {
    let text = error.to_string();
    let said = |words: &str| text.contains(words).then(|| ImageError::Registry(text.clone()));
    match error.kind() {
        ErrorKind::PermissionDenied => said("denied: ")
            .unwrap_or_else(|| ImageError::Registry("denied: requested access to the resource is denied".into())),
        ErrorKind::Unauthenticated => said("unauthorized: ")
            .unwrap_or_else(|| ImageError::Registry("unauthorized: authentication required".into())),
        // Not said twice.
        _ if text.starts_with("push ") => ImageError::Registry(text),
        _ => ImageError::supervisor("push", name.familiar(), error),
    }
}

/// Turns the supervisor's reports into docker's lines, layer by layer. Docker calls a layer by what is in it, not by its
/// compressed form.
#[derive(Debug)]
struct Board {
    /// Digest in the image to the name that is shown; topmost first in `order`.
    names: HashMap<String, String>,
    order: Vec<String>,
    ended: HashSet<String>,
}

impl Board {
    fn new(image: &ImageContent) -> Self {
        let (mut names, mut order) = (HashMap::new(), Vec::new());
        for (layer, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids).rev() {
            let digest = layer.digest.to_string();
            if names.insert(digest.clone(), diff_id.hex().chars().take(12).collect()).is_none() {
                order.push(digest);
            }
        }
        Self { names, order, ended: HashSet::new() }
    }

    fn begin(&self) -> Vec<Line> {
        self.order.iter().filter_map(|digest| Some(Line::of(self.names.get(digest)?, "Preparing"))).collect()
    }

    fn update(&mut self, progress: &Progress) -> Vec<Line> {
        let Some(id) = self.names.get(&progress.name) else { return Vec::new() };
        // Reports may come late: what has ended doesn't begin again.
        if self.ended.contains(&progress.name) {
            return Vec::new();
        }
        let (now, total) = (progress.progress, progress.total);
        let line = match progress.event.as_str() {
            "waiting" if self.order.iter().skip(PARALLEL).any(|late| *late == progress.name) => Line::of(id, "Waiting"),
            "compressing" => Line::bar(id, "Preparing", now, total),
            "uploading" => Line::bar(id, "Pushing", now, total),
            "complete" => Line::of(id, "Pushed"),
            "already exists" => Line::of(id, "Layer already exists"),
            "mounted" => {
                let from = progress.parents.first().map_or("another repository", String::as_str);
                Line::of(id, &format!("Mounted from {from}"))
            }
            _ => return Vec::new(),
        };
        if matches!(progress.event.as_str(), "complete" | "already exists" | "mounted") {
            self.ended.insert(progress.name.clone());
        }
        vec![line]
    }

    /// Layers whose end nobody reported.
    fn finish(&mut self) -> Vec<Line> {
        let left = self.order.iter().filter(|digest| !self.ended.contains(*digest));
        left.filter_map(|digest| Some(Line::of(self.names.get(digest)?, "Pushed"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::testing::group;

    #[test]
    fn requests() {
        let parse = |name: &str, tag| {
            PushRequest::parse(name, tag, None, None).map(|r| r.reference.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(parse("a", Some("1")), Ok("docker.io/library/a:1".into()));
        assert_eq!(parse("reg:5000/a/b", None), Ok("reg:5000/a/b".into()));
        assert_eq!(parse("a", Some(" x")), Err("invalid tag format".into()));
        let pinned = format!("a@sha256:{}", "0".repeat(64));
        assert_eq!(parse(&pinned, None), Err("cannot push a digest reference".into()));
        assert!(parse("A", None).unwrap_err().starts_with("invalid reference format"));
    }

    #[test]
    fn lines_of_layers() {
        let image = group(&["docker.io/library/a:1"]).content;
        let mut board = Board::new(&image);
        let shown = |lines: Vec<Line>| -> Vec<String> {
            lines.iter().map(|l| l.status.clone().unwrap_or_default() + " " + l.id.as_deref().unwrap_or("")).collect()
        };
        let short = |at: usize| image.config.rootfs.diff_ids[at].hex()[..12].to_owned();
        let (low, top) = (short(0), short(1));
        // Topmost first.
        assert_eq!(shown(board.begin()), [format!("Preparing {top}"), format!("Preparing {low}")]);
        let mut report = |event: &str, at: usize| {
            let name = image.layers[at].digest.to_string();
            let parents = vec!["team/x".to_owned()];
            shown(board.update(&Progress { event: event.into(), name, parents, ..Progress::default() }))
        };
        assert_eq!(report("uploading", 0), [format!("Pushing {low}")]);
        assert_eq!(report("mounted", 0), [format!("Mounted from team/x {low}")]);
        assert!(report("uploading", 0).is_empty() && report("odd", 1).is_empty());
        assert_eq!(shown(board.finish()), [format!("Pushed {top}")]);
    }

    #[test]
    fn refusals() {
        let name: ImageRef = "reg.example/a:1".parse().unwrap();
        let said = |kind, message: &str| {
            push_error(&name, SupervisorError::Refused { kind, message: message.into() }).to_string()
        };
        assert_eq!(said(ErrorKind::Unauthenticated, "no"), "unauthorized: authentication required");
        assert_eq!(said(ErrorKind::PermissionDenied, "x"), "denied: requested access to the resource is denied");
        assert_eq!(said(ErrorKind::PermissionDenied, "denied: quota"), "denied: quota");
    }
}
