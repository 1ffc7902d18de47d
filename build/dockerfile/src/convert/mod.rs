//! Makes LLB of a Dockerfile, as BuildKit's frontend does: first it finds out which stages the target needs, asks for the
//! images that these begin with (and for what their ONBUILD triggers need in turn), then goes through their instructions.

mod begin;
mod copy;
pub mod git;
mod image;
pub mod llb;
mod meta;
mod path;
pub mod platform;
mod run;
mod show;
mod stages;
mod text;
mod vars;
mod walk;
mod words;

pub use git::GitRef;

use crate::{Error, error::Span, instruction::Dockerfile, lint::Warning};
use futures_util::future::try_join_all;
use proto::pb;
use stages::Converter;
use std::collections::BTreeMap;

/// What the world says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Digest of its manifest or index, `sha256:…`.
    pub digest: String,
    /// Its configuration, JSON of the image specification.
    pub config: Vec<u8>,
    /// Its name, if another one is to be used for it (`docker.io/library/x:latest`).
    pub reference: Option<String>,
}

/// Knows images.
pub trait Resolver {
    /// What goes wrong.
    type Error: std::error::Error + Send + Sync + 'static;
    /// The configuration of `reference` (normalised) for `platform`.
    fn image(
        &self,
        reference: &str,
        platform: &pb::Platform,
    ) -> impl Future<Output = Result<ImageConfig, Self::Error>> + Send;

    /// Whether the client leaves `path` out of its main context (`.dockerignore`), for the check CopyIgnoredFile.
    fn is_ignored(&self, path: &str) -> bool {
        let _ = path;
        false
    }
}

/// A context of the client's besides the main one: `--build-context name=…`.
#[derive(Debug, Clone, PartialEq)]
pub enum NamedContext {
    /// docker-image://reference
    Image(String),
    /// local:name: a folder of the client's, and the patterns of its .dockerignore.
    Local {
        /// Its name in the session.
        name: String,
        /// What is left out.
        exclude: Vec<String>,
    },
    /// git or http(s): a source of its own.
    Source(pb::SourceOp),
    /// input:name: LLB, and the image configuration that belongs to it.
    Input(pb::Definition, Option<Vec<u8>>),
}

/// What the client wants; BuildKit's frontend options.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// target
    pub target: Option<String>,
    /// Whether all stages are gone through, needed or not, as a linter wants it.
    pub all_stages: bool,
    /// build-arg:
    pub build_args: BTreeMap<String, String>,
    /// label:
    pub labels: BTreeMap<String, String>,
    /// platform: what the image is for.
    pub platform: pb::Platform,
    /// Whether nobody asked for `platform`: then the image says what its base says.
    pub implicit_platform: bool,
    /// Where the build runs.
    pub build_platform: pb::Platform,
    /// Whether several platforms are built, and names of steps say which.
    pub multi_platform: bool,
    /// no-cache: everything, or these stages.
    pub no_cache: Option<Vec<String>>,
    /// add-hosts: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// ulimit
    pub ulimits: Vec<pb::Ulimit>,
    /// shm-size, bytes.
    pub shm_size: Option<u64>,
    /// cgroup-parent
    pub cgroup_parent: Option<String>,
    /// force-network-mode
    pub network: Option<String>,
    /// hostname
    pub hostname: Option<String>,
    /// The main context; a local one is named `context`.
    pub context: Option<NamedContext>,
    /// context:
    pub contexts: BTreeMap<String, NamedContext>,
    /// The name of the Dockerfile, and its text, for the user.
    pub source: (String, Vec<u8>),
    /// Names of the session for caches of the same client: `build-arg:BUILDKIT_CACHE_MOUNT_NS`.
    pub cache_namespace: String,
    /// SOURCE_DATE_EPOCH, seconds since 1970; if the client says nothing, a global ARG of the Dockerfile may.
    pub epoch: Option<i64>,
    /// Name of the client's session, which local sources are pinned to.
    pub session: String,
    /// Tells one client's local folders from another's: `local.sharedkeyhint`, `local.uniqueid`.
    pub unique_id: String,
}

/// An image to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// What to do; nothing for `FROM scratch` alone.
    pub definition: Option<pb::Definition>,
    /// Configuration of the image, JSON of the image specification with docker's own fields; `rootfs` and the times of `history`
    /// are for the exporter to fill in.
    pub config: Vec<u8>,
    /// Configuration of the image that the stage is built on, for the exporter and for named contexts.
    pub base_config: Option<Vec<u8>>,
    /// SOURCE_DATE_EPOCH: the client's, or the default of a global ARG.
    pub epoch: Option<i64>,
    /// What was noticed.
    pub warnings: Vec<Warning>,
    /// That the Dockerfile, or the client, doesn't want to be built with such warnings.
    pub violation: Option<Error>,
}

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError<E: std::error::Error + 'static> {
    /// The Dockerfile.
    #[error(transparent)]
    Dockerfile(#[from] Error),
    /// An image.
    #[error("{reference}")]
    Image {
        /// Its name.
        reference: String,
        /// Where it is asked for.
        span: Option<Span>,
        /// Why.
        #[source]
        cause: E,
    },
}

/// Makes LLB of `file` for one platform.
pub async fn convert<R: Resolver + Sync>(
    file: &Dockerfile,
    options: &Options,
    resolver: &R,
) -> Result<Converted, ConvertError<R::Error>> {
    let ignored = |path: &str| resolver.is_ignored(path);
    let mut converter = Converter::new(file, options, &ignored)?;
    loop {
        let questions = converter.questions()?;
        let answers = try_join_all(questions.into_iter().map(|same| async move {
            let question = &same[0];
            match resolver.image(&question.reference, &question.platform).await {
                Ok(answer) => Ok((same, answer)),
                Err(cause) => {
                    let span = Some(question.span);
                    Err(ConvertError::Image { reference: question.shown.clone(), span, cause })
                }
            }
        }));
        for (same, answer) in answers.await? {
            for question in same {
                converter.answer(question, &answer)?;
            }
        }
        if !converter.add_triggers()? {
            break;
        }
    }
    Ok(converter.finish()?)
}

#[cfg(test)]
mod tests;
