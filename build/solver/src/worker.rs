//! What the solver asks of those who do the work.

use crate::remote::Layer;
use proto::{
    digest::Digest,
    moby::buildkit::v1::{VertexLog, VertexStatus, VertexWarning},
    pb,
};
use std::{collections::HashSet, sync::Arc};
use tokio::sync::watch;

/// Does operations. A result is a filesystem; what it is, only the worker knows.
pub trait Worker: Send + Sync + 'static {
    /// A filesystem that is there as long as somebody has this.
    type Ref: Clone + Send + Sync + 'static;

    /// What a source stands for now, asked of the world but not yet fetched: the digest of an image, the commit of a git
    /// reference, a URL's content, a folder of the client's. Called once per source and build.
    fn pin(
        &self,
        source: &pb::SourceOp,
        platform: Option<&pb::Platform>,
        step: &Step,
    ) -> impl Future<Output = Result<Pin, StepError>> + Send;

    /// Does an operation, one result per output of it. Dropping the future ends it, and nothing of it stays.
    fn perform(
        &self,
        work: Work<Self::Ref>,
        step: &Step,
    ) -> impl Future<Output = Result<Vec<Option<Self::Ref>>, StepError>> + Send;

    /// Digest of what `selection` says of a filesystem: paths, contents, modes, owners, links; no times.
    fn content(
        &self,
        of: &Self::Ref,
        selection: &Selection,
        step: &Step,
    ) -> impl Future<Output = Result<Digest, StepError>> + Send;

    /// Makes a result last: it survives restarts until it is removed.
    fn keep(&self, result: &Self::Ref, description: &str) -> impl Future<Output = Result<Kept, StepError>> + Send;

    /// What was kept; nothing if it is no longer there or not whole.
    fn find(&self, name: &str) -> impl Future<Output = Result<Option<Self::Ref>, StepError>> + Send;

    /// Lets go of what was kept, or of a mount. What others use, an image or a running build, stays with them.
    fn remove(&self, name: &str) -> impl Future<Output = Result<(), StepError>> + Send;

    /// Filesystems that commands write to, which stay from one build to the next: `RUN --mount=type=cache`.
    fn mounts(&self) -> impl Future<Output = Result<Vec<CacheMount>, StepError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// A result of another cache, made of its layers, lowest first. Nothing: they can't be had, and the work is done instead.
    fn fetch(
        &self,
        layers: &[Layer],
        step: &Step,
    ) -> impl Future<Output = Result<Option<Self::Ref>, StepError>> + Send {
        let _ = (layers, step);
        async { Ok(None) }
    }

    /// Which of what was kept is in use by others too, by an image: removing it would free nothing.
    fn shared(&self, names: &[String]) -> impl Future<Output = Result<HashSet<String>, StepError>> + Send {
        let _ = names;
        async { Ok(HashSet::new()) }
    }
}

/// A filesystem that commands write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// For [`Worker::remove`].
    pub name: String,
    /// Bytes that it takes.
    pub size: u64,
    /// For users.
    pub description: String,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Milliseconds since 1970.
    pub last_used: u64,
    /// How often it was used.
    pub uses: u64,
    /// Whether a command has it now.
    pub in_use: bool,
}

/// What a source stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Pin {
    /// The same for the same content.
    pub key: Digest,
    /// What to fetch, said so that it stays the same: `docker-image://x@sha256:…`.
    pub source: pb::SourceOp,
}

/// Something to be done.
#[derive(Debug)]
pub struct Work<R> {
    /// The operation.
    pub op: Arc<pb::Op>,
    /// Of a source: what it was found to stand for.
    pub pin: Option<Pin>,
    /// Results that it works on, by index of its inputs; nothing is an empty filesystem.
    pub inputs: Vec<Option<R>>,
}

/// Which part of an input an operation reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Selection {
    /// Paths or patterns, all read alike; none: everything. Their names are part of the digest where there is more than one.
    pub paths: Vec<String>,
    /// Whether these have `*`, `?` and `[]`.
    pub wildcard: bool,
    /// Whether symbolic links at the end of a path are followed.
    pub follow_links: bool,
    /// Only these below the paths.
    pub include: Vec<String>,
    /// Not these below the paths.
    pub exclude: Vec<String>,
}

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// To find it by.
    pub name: String,
    /// Bytes that it takes of its own.
    pub size: u64,
}

/// The step of a build that something is done for: who asked, and whom to tell.
#[derive(Debug, Clone)]
pub struct Step {
    /// Digest of the operation.
    pub digest: String,
    /// Its name for users: `[2/3] RUN make`.
    pub name: String,
    /// Sessions of clients that want it; any of them may be asked for secrets, files and credentials.
    pub sessions: Vec<String>,
    /// What the clients allowed: `network.host`, `security.insecure`, `device`.
    pub entitlements: Vec<String>,
    /// Where its progress goes.
    pub progress: Arc<dyn Progress>,
    /// Becomes true when nobody wants it any more.
    pub cancelled: watch::Receiver<bool>,
}

/// Takes what is told of a step.
pub trait Progress: Send + Sync + std::fmt::Debug {
    /// Output of a command. Must not block.
    fn log(&self, log: VertexLog);
    /// How far something is.
    fn status(&self, status: VertexStatus);
    /// Something to think about.
    fn warn(&self, warning: VertexWarning);
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The command of a RUN.
    #[error("process \"{command}\" did not complete successfully: exit code: {code}")]
    Exit {
        /// Its words.
        command: String,
        /// Its exit code.
        code: u32,
    },
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
    /// The client asked for what can't be.
    #[error("{0}")]
    Invalid(String),
    /// The client asked for what it hasn't allowed.
    #[error("{0}")]
    Denied(String),
    /// Something that was asked for isn't there.
    #[error("{0}")]
    NotFound(String),
    /// This builder can't.
    #[error("{0}")]
    Unsupported(String),
    /// All else.
    #[error("{what}")]
    Failed {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}
