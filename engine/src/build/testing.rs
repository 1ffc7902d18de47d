//! A backend for tests: folders of clients are maps, everything else is an empty filesystem.

use super::{
    BuildError, Builder,
    backend::{Backend, FILE_LIMIT, Filesystem, Finished, ImageWanted, Work},
    running::Build,
    session::Sessions,
};
use crate::config::BuilderConfig;
use dockerfile::convert::ImageConfig;
use prost::Message as _;
use proto::{
    fsutil::types::Stat,
    moby::buildkit::v1::{CacheOptionsEntry, Exporter, PruneRequest, UsageRecord, Vertex, types::WorkerRecord},
    pb::{self, op},
};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Files by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The backend.
#[derive(Debug, Default)]
pub struct Fake {
    /// What sources have, by identifier.
    pub sources: HashMap<String, Files>,
    /// Solving waits for one of these, if they are given.
    pub gate: Option<Semaphore>,
    /// What was solved.
    pub solved: Mutex<Vec<String>>,
    /// Where results went.
    pub exported: Mutex<Vec<Exporter>>,
    /// What was asked of the cache.
    pub pruned: Mutex<Vec<PruneRequest>>,
}

#[derive(Debug)]
struct Tree(Files);

impl Filesystem for Tree {
    fn read_file<'a>(&'a self, path: &'a str, offset: u64, length: Option<u64>) -> Work<'a, Vec<u8>> {
        Box::pin(async move {
            let path = path.trim_start_matches('/');
            let bytes = self
                .0
                .get(path)
                .ok_or_else(|| BuildError::not_found(format!("open {path}: no such file or directory")))?;
            let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let most = usize::try_from(length.unwrap_or(FILE_LIMIT)).unwrap_or(usize::MAX);
            Ok(bytes[begin..].iter().copied().take(most).collect())
        })
    }

    fn read_dir<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> Work<'a, Vec<Stat>> {
        Box::pin(async { Ok(self.0.keys().map(|path| Stat { path: path.clone(), ..Stat::default() }).collect()) })
    }

    fn stat<'a>(&'a self, path: &'a str) -> Work<'a, Stat> {
        Box::pin(async move {
            let bytes = self.read_file(path, 0, None).await?;
            Ok(Stat { path: path.to_owned(), size: bytes.len() as i64, ..Stat::default() })
        })
    }
}

impl Backend for Fake {
    fn check(&self, definition: &pb::Definition) -> Result<(), BuildError> {
        if definition.def.is_empty() { Err(BuildError::invalid("invalid empty definition")) } else { Ok(()) }
    }

    fn solve<'a>(
        &'a self,
        definition: &'a pb::Definition,
        build: &'a Arc<Build>,
    ) -> Work<'a, Option<Arc<dyn Filesystem>>> {
        Box::pin(async move {
            let digest = super::frontend::last(definition).unwrap_or_default();
            let vertex = Vertex { digest: digest.clone(), started: Some(super::progress::now()), ..Vertex::default() };
            build.progress.vertex(vertex.clone());
            if let Some(gate) = &self.gate {
                gate.acquire().await.map_err(|_| BuildError::cancelled())?.forget();
            }
            let mut files = Files::new();
            for bytes in &definition.def {
                if let Ok(pb::Op { op: Some(op::Op::Source(source)), .. }) = pb::Op::decode(bytes.as_slice()) {
                    let known = self.sources.get(&source.identifier);
                    let known = known.ok_or_else(|| {
                        BuildError::not_found(format!("{} isn't there", source.identifier)).of_step(&digest, definition)
                    })?;
                    files.extend(known.clone());
                }
            }
            self.solved.lock().unwrap().push(digest);
            build.progress.vertex(Vertex { completed: Some(super::progress::now()), ..vertex });
            let tree: Arc<dyn Filesystem> = Arc::new(Tree(files));
            Ok(Some(tree))
        })
    }

    fn image<'a>(&'a self, wanted: &'a ImageWanted, _: &'a Arc<Build>) -> Work<'a, ImageConfig> {
        Box::pin(async move {
            Ok(ImageConfig {
                digest: proto::digest::Digest::of(wanted.reference.as_bytes()).to_string(),
                config: b"{}".to_vec(),
                reference: None,
            })
        })
    }

    fn pin<'a>(
        &'a self,
        source: &'a pb::SourceOp,
        _: Option<&'a pb::Platform>,
        _: &'a Arc<Build>,
    ) -> Work<'a, solver::Pin> {
        Box::pin(async move {
            let key = proto::digest::Digest::of(source.identifier.as_bytes());
            Ok(solver::Pin { key, source: source.clone() })
        })
    }

    fn export<'a>(
        &'a self,
        _: u32,
        exporter: &'a Exporter,
        result: &'a Finished,
        _: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            self.exported.lock().unwrap().push(exporter.clone());
            let digest = proto::digest::Digest::of(b"image").to_string();
            let count = result.trees.len().to_string();
            Ok([("containerimage.digest".to_owned(), digest), ("trees".to_owned(), count)].into())
        })
    }

    fn import_cache<'a>(&'a self, _: &'a CacheOptionsEntry, _: &'a Arc<Build>) -> Work<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn export_cache<'a>(
        &'a self,
        _: &'a CacheOptionsEntry,
        _: &'a Finished,
        _: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>> {
        Box::pin(async { Ok(BTreeMap::new()) })
    }

    fn usage<'a>(&'a self, _: &'a [String]) -> Work<'a, Vec<UsageRecord>> {
        Box::pin(async { Ok(vec![UsageRecord { id: "r1".to_owned(), size: 5, ..UsageRecord::default() }]) })
    }

    fn prune<'a>(&'a self, request: &'a PruneRequest) -> Work<'a, Vec<UsageRecord>> {
        Box::pin(async move {
            self.pruned.lock().unwrap().push(request.clone());
            Ok(vec![UsageRecord { id: "r1".to_owned(), size: 5, ..UsageRecord::default() }])
        })
    }
}

/// A builder on it.
pub fn builder(backend: Arc<Fake>) -> Arc<Builder> {
    let config = BuilderConfig {
        entitlements: vec!["network.host"],
        policies: Vec::new(),
        history: 10,
        history_age: Duration::from_secs(3600),
    };
    let worker = WorkerRecord { id: "w1".to_owned(), ..WorkerRecord::default() };
    let builder = Builder::new(Sessions::new(), config, worker, PathBuf::from("/nonexistent"));
    builder.give(backend);
    Arc::new(builder)
}

/// LLB that is one source.
pub fn source(identifier: &str) -> pb::Definition {
    let op = pb::Op {
        op: Some(op::Op::Source(pb::SourceOp { identifier: identifier.to_owned(), ..Default::default() })),
        ..pb::Op::default()
    };
    let bytes = op.encode_to_vec();
    let digest = proto::digest::Digest::of(&bytes).to_string();
    let end = pb::Op { inputs: vec![pb::Input { digest, index: 0 }], ..pb::Op::default() };
    pb::Definition { def: vec![bytes, end.encode_to_vec()], ..pb::Definition::default() }
}
