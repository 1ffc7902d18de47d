//! What builds need of those who do the work: solver, worker and exporters.

use super::{
    error::BuildError,
    running::{Build, Outcome},
};
use dockerfile::convert::ImageConfig;
use futures_util::future::BoxFuture;
use proto::{
    fsutil::types::Stat,
    moby::buildkit::v1::{CacheOptionsEntry, Exporter, PruneRequest, UsageRecord},
    pb,
};
use std::{any::Any, collections::BTreeMap, fmt::Debug, sync::Arc};

/// What a call gives, at last.
pub type Work<'a, T> = BoxFuture<'a, Result<T, BuildError>>;

/// Does the work of builds.
pub trait Backend: Debug + Send + Sync + 'static {
    /// Whether `definition` is one at all: digests, indices, sizes, values.
    fn check(&self, definition: &pb::Definition) -> Result<(), BuildError>;

    /// The filesystem that `definition` stands for; nothing is an empty one. Steps are told of at `build.progress`. An error names
    /// its step ([`BuildError::of_step`]). Dropping the future ends what nobody else wants.
    fn solve<'a>(
        &'a self,
        definition: &'a pb::Definition,
        build: &'a Arc<Build>,
    ) -> Work<'a, Option<Arc<dyn Filesystem>>>;

    /// An image's configuration.
    fn image<'a>(&'a self, wanted: &'a ImageWanted, build: &'a Arc<Build>) -> Work<'a, ImageConfig>;

    /// What a source stands for now.
    fn pin<'a>(
        &'a self,
        source: &'a pb::SourceOp,
        platform: Option<&'a pb::Platform>,
        build: &'a Arc<Build>,
    ) -> Work<'a, solver::Pin>;

    /// Puts a result somewhere, `index` its place among the outputs; what is told of it: `containerimage.digest` and the like.
    fn export<'a>(
        &'a self,
        index: u32,
        exporter: &'a Exporter,
        result: &'a Finished,
        build: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>>;

    /// Makes what another builder has cached known here.
    fn import_cache<'a>(&'a self, from: &'a CacheOptionsEntry, build: &'a Arc<Build>) -> Work<'a, ()>;

    /// Gives other builders what was cached.
    fn export_cache<'a>(
        &'a self,
        to: &'a CacheOptionsEntry,
        result: &'a Finished,
        build: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>>;

    /// A build is over: what was held for it may go.
    fn ended(&self, build: &Build) {
        let _ = build;
    }

    /// What is cached, as far as the filters (`id==x`, `type~=y`) let it through.
    fn usage<'a>(&'a self, filters: &'a [String]) -> Work<'a, Vec<UsageRecord>>;

    /// Removes from the cache, and tells what.
    fn prune<'a>(&'a self, request: &'a PruneRequest) -> Work<'a, Vec<UsageRecord>>;
}

/// Which configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageWanted {
    /// The image, normalised.
    pub reference: String,
    /// For this one.
    pub platform: pb::Platform,
    /// `default`, `pull` or `local`.
    pub mode: String,
    /// Name of the step that it is told at: `[internal] load metadata for …`.
    pub step: String,
}

/// A filesystem that was made.
pub trait Filesystem: Any + Debug + Send + Sync {
    /// Bytes of a file, as many of them as there are from `offset` on; no more than [`FILE_LIMIT`].
    fn read_file<'a>(&'a self, path: &'a str, offset: u64, length: Option<u64>) -> Work<'a, Vec<u8>>;

    /// What is in a folder, sorted; only names that match `pattern`, if there is one.
    fn read_dir<'a>(&'a self, path: &'a str, pattern: Option<&'a str>) -> Work<'a, Vec<Stat>>;

    /// What is at a path.
    fn stat<'a>(&'a self, path: &'a str) -> Work<'a, Stat>;
}

/// The largest part of a file that is read at once, as much as a message may carry.
pub const FILE_LIMIT: u64 = 16 << 20;

/// A result with everything made.
#[derive(Debug)]
pub struct Finished {
    /// What was said of it, and where it comes from.
    pub outcome: Outcome,
    /// The filesystems by platform; a single one may have no name.
    pub trees: BTreeMap<String, Option<Arc<dyn Filesystem>>>,
}

/// Stands in while an engine has no builder.
#[derive(Debug)]
pub struct Absent;

impl Absent {
    fn say<T: Send + 'static>(what: &'static str) -> Work<'static, T> {
        Box::pin(async move { Err(BuildError::unsupported(format!("{what} is not implemented in berth yet"))) })
    }
}

impl Backend for Absent {
    fn check(&self, _: &pb::Definition) -> Result<(), BuildError> {
        Ok(())
    }

    fn solve<'a>(&'a self, _: &'a pb::Definition, _: &'a Arc<Build>) -> Work<'a, Option<Arc<dyn Filesystem>>> {
        Self::say("solving a build")
    }

    fn image<'a>(&'a self, _: &'a ImageWanted, _: &'a Arc<Build>) -> Work<'a, ImageConfig> {
        Self::say("resolving an image of a build")
    }

    fn pin<'a>(&'a self, _: &'a pb::SourceOp, _: Option<&'a pb::Platform>, _: &'a Arc<Build>) -> Work<'a, solver::Pin> {
        Self::say("resolving a source of a build")
    }

    fn export<'a>(
        &'a self,
        _: u32,
        _: &'a Exporter,
        _: &'a Finished,
        _: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>> {
        Self::say("exporting a build")
    }

    fn import_cache<'a>(&'a self, _: &'a CacheOptionsEntry, _: &'a Arc<Build>) -> Work<'a, ()> {
        Self::say("importing build cache")
    }

    fn export_cache<'a>(
        &'a self,
        _: &'a CacheOptionsEntry,
        _: &'a Finished,
        _: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>> {
        Self::say("exporting build cache")
    }

    fn usage<'a>(&'a self, _: &'a [String]) -> Work<'a, Vec<UsageRecord>> {
        // Nothing was ever cached.
        Box::pin(async { Ok(Vec::new()) })
    }

    fn prune<'a>(&'a self, _: &'a PruneRequest) -> Work<'a, Vec<UsageRecord>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
