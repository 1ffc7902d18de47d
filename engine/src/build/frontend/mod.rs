//! The frontend `dockerfile.v0`: reads Dockerfile and ignore file out of the context, has crate `dockerfile` make LLB of them for
//! each platform, and gives back references to what that stands for. Nothing but what the Dockerfile's own reading needs is made
//! here; the rest is made once somebody asks.
//!
//! `# syntax=docker/dockerfile:…` and `gateway.v0` with such a source are served by this same frontend: version 1 in all its
//! forms (`1`, `1.9`, `1.9.0`, `1-labs`, `labs`, `latest`). Frontends that are images of their own aren't run here.

mod context;
mod llb;
mod options;
mod subrequests;

pub use llb::last;
pub use options::{Wishes, attestable, llb_platform, parse_bool, platform_name};

use super::{
    backend::{Backend, ImageWanted},
    error::{BuildError, lines},
    running::{Build, Outcome, References},
};
use crate::images::platform::Platform;
use context::Entry;
use dockerfile::{
    Dockerfile,
    convert::{ConvertError, Converted, ImageConfig, NamedContext, Options, Resolver, convert},
    lint::Warning,
};
use filesync::patterns::Patterns;
use proto::{image_ref::ImageRef, kind::ErrorKind, moby::buildkit::v1::VertexWarning, pb};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

/// One run of the frontend.
#[derive(Debug)]
struct Frontend<'a> {
    build: &'a Arc<Build>,
    backend: &'a dyn Backend,
    wishes: Wishes,
    /// What of the main context is left out.
    ignored: OnceLock<Patterns>,
    inputs: &'a HashMap<String, pb::Definition>,
}

/// What was made of a Dockerfile, for those who show its steps.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// What it says.
    pub file: Dockerfile,
    /// The stage that is built.
    pub target: Option<String>,
    /// Its LLB.
    pub definition: Option<pb::Definition>,
}

/// Whether a name is one of a frontend that is built in.
pub fn check(frontend: &str, options: &HashMap<String, String>) -> Result<(), BuildError> {
    match frontend {
        "dockerfile.v0" => Ok(()),
        "gateway.v0" => match options.get("source") {
            Some(source) => serves(source),
            None => Err(BuildError::invalid("gateway.v0: source must be set to the image of a frontend")),
        },
        _ => Err(BuildError::not_found(format!("invalid frontend: {frontend}"))),
    }
}

/// Whether the frontend that an image would be is this one.
fn serves(source: &str) -> Result<(), BuildError> {
    // What follows the image's name are words for it.
    let name = source.split_whitespace().next().unwrap_or_default();
    let refused = || {
        BuildError::unsupported(format!(
            "frontend {name} is not implemented in berth: frontends that are images aren't run, docker/dockerfile version 1 is built in"
        ))
    };
    let image: ImageRef = name.parse().map_err(|_| BuildError::invalid(format!("invalid frontend {name:?}")))?;
    let repository = image.familiar_repository();
    if !matches!(repository.as_str(), "docker/dockerfile" | "docker/dockerfile-upstream") {
        return Err(refused());
    }
    let without_digest = name.split('@').next().unwrap_or(name);
    let tag = without_digest.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/')).unwrap_or("latest");
    let base = tag.strip_suffix("-labs").unwrap_or(tag);
    let is_version = base == "1"
        || base.strip_prefix("1.").is_some_and(|rest| {
            rest.split('.').count() <= 2
                && rest.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        });
    if is_version || matches!(tag, "latest" | "labs" | "master" | "master-labs" | "stable") {
        Ok(())
    } else {
        Err(refused())
    }
}

/// Runs the frontend.
pub async fn run(
    options: &HashMap<String, String>,
    inputs: &HashMap<String, pb::Definition>,
    build: &Arc<Build>,
    backend: &dyn Backend,
) -> Result<(Outcome, Plan), BuildError> {
    let wishes = Wishes::read(options, llb_platform(&Platform::host()))?;
    if let Some(request) = &wishes.request
        && request == "frontend.subrequests.describe"
    {
        return Ok((subrequests::describe(), Plan::default()));
    }
    let frontend = Frontend { build, backend, wishes, ignored: OnceLock::new(), inputs };
    for import in &frontend.wishes.cache_imports {
        backend.import_cache(import, build).await?;
    }
    let remote = frontend.remote().await?;
    let entry = frontend.entry(remote.as_ref()).await?;
    let info = Arc::new(pb::SourceInfo {
        filename: entry.name.clone(),
        data: entry.text.clone(),
        definition: Some(entry.definition.clone()),
        language: "Dockerfile".to_owned(),
    });
    let told = |error: dockerfile::Error| located(error, &info);
    let file = match (dockerfile::parse::parse(&entry.text), &frontend.wishes.request) {
        (Ok(file), _) => file,
        // A linter's business is what is wrong.
        (Err(error), Some(request)) if request == "frontend.lint" => {
            return Ok((subrequests::lint(&[], Some(error), &info), Plan::default()));
        }
        (Err(error), _) => return Err(told(error)),
    };
    // A client that has resolved the frontend says so by `cmdline`.
    let syntax = frontend.wishes.syntax.as_ref().or(file.directives.syntax.as_ref());
    if let Some(syntax) = syntax.filter(|_| !options.contains_key("cmdline")) {
        serves(syntax)?;
    }
    match frontend.wishes.request.as_deref() {
        None | Some("frontend.lint") => {}
        Some("frontend.outline") => {
            let outline = subrequests::outline(&file, frontend.wishes.common.target.as_deref(), &info)?;
            return Ok((outline, Plan::default()));
        }
        Some("frontend.targets") => return Ok((subrequests::targets(&file, &info), Plan::default())),
        Some(other) => return Err(BuildError::unsupported(format!("unsupported request {other}"))),
    }
    let main = frontend.main(remote, &entry).await?;
    let converted = frontend.convert_all(&file, main, &entry, &info).await;
    if frontend.wishes.request.is_some() {
        return match converted {
            Ok(images) => {
                let warnings: Vec<Warning> = images.into_iter().flat_map(|(_, image)| image.warnings).collect();
                Ok((subrequests::lint(&distinct(warnings), None, &info), Plan::default()))
            }
            Err(ConvertError::Dockerfile(error)) => Ok((subrequests::lint(&[], Some(error), &info), Plan::default())),
            Err(error) => Err(frontend.failed(error, &info)),
        };
    }
    let images = converted.map_err(|error| frontend.failed(error, &info))?;
    let warnings = distinct(images.iter().flat_map(|(_, image)| image.warnings.clone()).collect());
    frontend.warn(&warnings, &entry, &info);
    if let Some(violation) = images.iter().find_map(|(_, image)| image.violation.clone()) {
        return Err(told(violation));
    }
    let definition = images.first().and_then(|(_, image)| image.definition.clone());
    let target = frontend.wishes.common.target.clone();
    Ok((frontend.outcome(images)?, Plan { file, target, definition }))
}

/// Name and text of the Dockerfile.
#[cfg(test)]
pub async fn dockerfile(
    options: &HashMap<String, String>,
    inputs: &HashMap<String, pb::Definition>,
    build: &Arc<Build>,
    backend: &dyn Backend,
) -> Result<(String, String), BuildError> {
    let wishes = Wishes::read(options, llb_platform(&Platform::host()))?;
    let frontend = Frontend { build, backend, wishes, ignored: OnceLock::new(), inputs };
    let remote = frontend.remote().await?;
    let entry = frontend.entry(remote.as_ref()).await?;
    Ok((entry.name, String::from_utf8_lossy(&entry.text).into_owned()))
}

impl Frontend<'_> {
    /// One image per platform, all at once.
    async fn convert_all(
        &self,
        file: &Dockerfile,
        main: NamedContext,
        entry: &Entry,
        info: &Arc<pb::SourceInfo>,
    ) -> Result<Vec<(pb::Platform, Converted)>, ConvertError<BuildError>> {
        let host = self.wishes.common.build_platform.clone();
        let platforms = if self.wishes.platforms.is_empty() { vec![host] } else { self.wishes.platforms.clone() };
        let images = platforms.into_iter().map(|platform| {
            let main = main.clone();
            async move {
                let failed = |cause| ConvertError::Image { reference: String::new(), span: None, cause };
                let options = Options {
                    platform: platform.clone(),
                    all_stages: self.wishes.request.is_some(),
                    implicit_platform: self.wishes.platforms.is_empty(),
                    context: Some(main),
                    contexts: self.named(&platform).await.map_err(failed)?,
                    source: (entry.name.clone(), info.data.clone()),
                    session: self.build.sessions.first().cloned().unwrap_or_default(),
                    ..self.wishes.common.clone()
                };
                Ok((platform, convert(file, &options, self).await?))
            }
        });
        futures_util::future::try_join_all(images).await
    }

    fn failed(&self, error: ConvertError<BuildError>, info: &Arc<pb::SourceInfo>) -> BuildError {
        match error {
            ConvertError::Dockerfile(error) => located(error, info),
            // Of the client's contexts.
            ConvertError::Image { reference, cause, .. } if reference.is_empty() => cause,
            ConvertError::Image { reference, cause, span } => {
                let error = cause.while_doing(&format!("failed to resolve source metadata for {reference}"));
                match span {
                    Some(span) => error.at(info.clone(), vec![lines(span.first, span.last)]),
                    None => error,
                }
            }
        }
    }

    fn outcome(&self, images: Vec<(pb::Platform, Converted)>) -> Result<Outcome, BuildError> {
        let mut outcome = Outcome::default();
        let mut references = BTreeMap::new();
        let mut shown = Vec::new();
        let epoch = images.iter().find_map(|(_, image)| image.epoch);
        for (platform, image) in images {
            let name = platform_name(&platform);
            let reference = match image.definition {
                Some(definition) => Some(self.build.refer(definition, self.backend)?),
                None => None,
            };
            let suffix = if self.wishes.multi_platform { format!("/{name}") } else { String::new() };
            outcome.metadata.insert(format!("containerimage.config{suffix}"), image.config);
            if let Some(base) = image.base_config {
                outcome.metadata.insert(format!("containerimage.base.config{suffix}"), base);
            }
            let mut fields = json!({"architecture": platform.architecture, "os": platform.os});
            if !platform.variant.is_empty() {
                fields["variant"] = json!(platform.variant);
            }
            shown.push(json!({"ID": name, "Platform": fields}));
            references.insert(name, reference);
        }
        let platforms = json!({"Platforms": shown}).to_string();
        outcome.metadata.insert("refs.platforms".to_owned(), platforms.into_bytes());
        if let Some(epoch) = epoch {
            outcome.metadata.insert("source.date.epoch".to_owned(), epoch.to_string().into_bytes());
        }
        outcome.references = if self.wishes.multi_platform {
            References::Many(references)
        } else {
            References::One(references.into_values().next().flatten())
        };
        Ok(outcome)
    }

    /// Tells of warnings at the step that read the Dockerfile.
    fn warn(&self, warnings: &[Warning], entry: &Entry, info: &Arc<pb::SourceInfo>) {
        let vertex = last(&entry.definition).unwrap_or_default();
        for warning in warnings {
            self.build.progress.warn(VertexWarning {
                vertex: vertex.clone(),
                level: 1,
                short: format!("{}: {} (line {})", warning.rule, warning.detail, warning.span.first).into_bytes(),
                detail: vec![warning.description.as_bytes().to_vec()],
                url: warning.url.to_owned(),
                info: Some(pb::SourceInfo::clone(info)),
                ranges: vec![lines(warning.span.first, warning.span.last)],
            });
        }
    }
}

impl Resolver for Frontend<'_> {
    type Error = BuildError;

    fn is_ignored(&self, path: &str) -> bool {
        self.ignored.get().is_some_and(|patterns| patterns.matches(path))
    }

    async fn image(&self, reference: &str, platform: &pb::Platform) -> Result<ImageConfig, BuildError> {
        let wanted = ImageWanted {
            reference: reference.to_owned(),
            platform: platform.clone(),
            mode: self.wishes.resolve_mode.clone(),
            step: format!("[internal] load metadata for {reference}"),
        };
        let step = self.build.progress.step(&wanted.step);
        let config = self.backend.image(&wanted, self.build).await;
        step.end(&config);
        config
    }
}

/// An error with the lines that it is about.
fn located(error: dockerfile::Error, info: &Arc<pb::SourceInfo>) -> BuildError {
    let told = BuildError::new(ErrorKind::InvalidArgument, error.to_string());
    match error.span {
        Some(span) => told.at(info.clone(), vec![lines(span.first, span.last)]),
        None => told,
    }
}

/// Each once, though several platforms found it.
fn distinct(warnings: Vec<Warning>) -> Vec<Warning> {
    let mut seen: Vec<Warning> = Vec::new();
    for warning in warnings {
        if !seen.contains(&warning) {
            seen.push(warning);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_that_are_images() {
        for (name, served) in [
            ("docker/dockerfile:1", true),
            ("docker/dockerfile", true),
            ("docker/dockerfile:1.4", true),
            ("docker/dockerfile:1.20.0", true),
            ("docker.io/docker/dockerfile:1.7-labs", true),
            ("docker/dockerfile:labs", true),
            ("docker/dockerfile:1@sha256:ac85f380a63b13dfcefa89046420e1781752bab202122f8f50032edf31be0021", true),
            ("docker/dockerfile-upstream:master", true),
            ("docker/dockerfile:2", false),
            ("docker/dockerfile:1.x", false),
            ("docker/dockerfile:experimental", false),
            ("example.com/docker/dockerfile:1", false),
            ("tonistiigi/dockerfile", false),
            ("ghcr.io/reproducible-containers/buildkit-nix:v0.1.1", false),
        ] {
            assert_eq!(serves(name).is_ok(), served, "{name}: {:?}", serves(name));
        }
        let options = HashMap::from([("source".to_owned(), "docker/dockerfile:1".to_owned())]);
        assert!(check("gateway.v0", &options).is_ok());
        assert!(check("dockerfile.v0", &HashMap::new()).is_ok());
        assert_eq!(check("x", &options).unwrap_err().message, "invalid frontend: x");
    }
}
