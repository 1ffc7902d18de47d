//! The worker: each operation goes to the part that can do it.

use super::{
    caches::Caches,
    content::Contents,
    files, layered,
    run::{Runner, clients::Clients, open_caches},
    sources::{
        git::Git,
        http::Http,
        image::{self, Keyring},
        local::{Locals, SLOT},
    },
};
use crate::{
    app::App,
    build::{
        backend::ImageWanted,
        error::BuildError,
        session::Sessions,
        tree::{Tree, TreeError, Trees},
        work::{Results, Solving, Workshop},
    },
    supervisor::Credentials,
};
use dockerfile::convert::ImageConfig;
use proto::{
    digest::Digest,
    kind::{ErrorKind, chain},
    moby::buildkit::v1::Exporter,
    pb::{self, op},
};
use solver::{CacheMount, Index, Kept, Options, Pin, Selection, Solver, Step, StepError, Work, Worker};
use std::{collections::BTreeMap, io, sync::Arc};
use tracing::{info, warn};

/// All that builds are done with.
pub struct Whole {
    /// Images, and all else that the engine has.
    pub app: Arc<App>,
    /// Filesystems.
    pub trees: Trees,
    contents: Arc<Contents>,
    locals: Locals,
    git: Git,
    http: Http,
    caches: Caches,
    clients: Arc<Clients>,
    runner: Runner<Clients>,
}

/// Why builds can't be done.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Filesystems.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Folders of our own.
    #[error("open {what}")]
    Folder {
        /// Which one.
        what: &'static str,
        /// Why not.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn folder<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> OpenError {
    move |cause| OpenError::Folder { what, cause: cause.into() }
}

/// The backend of this engine. What engines before it cached is found again.
pub async fn open(app: &Arc<App>) -> Result<Solving<Whole>, OpenError> {
    let data = app.config.engine_data();
    let trees = Trees::open(&app.supervisor).await?;
    let contents = Arc::new(Contents::default());
    let owned = app.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let at = owned.config.engine_data().join("builds");
        std::fs::create_dir_all(&at).map_err(folder("the folder of builds"))?;
        let index = Index::open(&at.join("cache.redb")).map_err(folder("the index of the build cache"))?;
        let caches = open_caches(&owned.config.engine_data()).map_err(folder("cache mounts"))?;
        let git = Git::open(&owned).map_err(folder("repositories"))?;
        let http = Http::open(&owned).map_err(folder("downloads"))?;
        Ok::<_, OpenError>((index, caches, git, http))
    });
    let (index, caches, git, http) = opened.await.map_err(folder("a thread"))??;
    let locals = Locals::open(app.sessions.clone(), trees.clone(), contents.clone(), data.join("builds/locals"));
    let asked = contents.clone();
    let locals = locals.map_err(folder("folders of clients"))?;
    let clients = Arc::new(Clients {
        sessions: app.sessions.clone(),
        content: Arc::new(move |tree, _| {
            let contents = asked.clone();
            Box::pin(async move { contents.digest(&tree, &Selection::default()).await })
        }),
    });
    let whole = Whole {
        app: app.clone(),
        runner: Runner::new(app.clone(), trees.clone(), caches.clone(), clients.clone()),
        locals: locals.clone(),
        trees: trees.clone(),
        contents,
        git,
        http,
        caches,
        clients,
    };
    let solver = Solver::new(Arc::new(whole), index, Options { parallel: 0 });
    sweep(&solver, &locals, &trees).await;
    Ok(Solving::new(solver, data))
}

/// Lets go of what an engine kept that was killed before it had written down why.
async fn sweep(solver: &Solver<Whole>, locals: &Locals, trees: &Trees) {
    if let Err(error) = locals.sweep().await {
        warn!(error = %chain(&error), "folders of builds' clients not swept");
    }
    let swept = match trees.lasting().await {
        Ok(kept) => {
            let results = kept.into_iter().filter(|(_, description)| !description.starts_with(SLOT));
            solver.sweep(results.map(|(name, _)| name)).await
        }
        Err(error) => return warn!(error = %chain(&error), "results of builds not swept"),
    };
    match swept {
        Ok(0) => {}
        Ok(count) => info!(count, "results of builds that nobody knows of are gone"),
        Err(error) => warn!(error = %chain(&error), "results of builds not swept"),
    }
}

/// The credentials that a build's clients have.
struct Keys<'a> {
    sessions: &'a Sessions,
    ids: &'a [String],
}

impl Keyring for Keys<'_> {
    async fn credentials(&self, host: &str) -> Option<Credentials> {
        // Clients know the hub by its registry.
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let asked = self.sessions.any(self.ids, "credentials", |session| {
            let host = host.to_owned();
            async move { session.credentials(&host).await }
        });
        // Whoever has none is none the worse for public images.
        asked.await.ok().flatten()
    }
}

impl Whole {
    fn keys<'a>(&'a self, step: &'a Step) -> Keys<'a> {
        Keys { sessions: &self.app.sessions, ids: &step.sessions }
    }
}

fn scheme(source: &pb::SourceOp) -> &str {
    source.identifier.split_once("://").map_or("", |(scheme, _)| scheme)
}

fn unknown(source: &pb::SourceOp) -> StepError {
    StepError::Unsupported(format!("source {}: {:?} is not implemented in berth", source.identifier, scheme(source)))
}

impl Worker for Whole {
    type Ref = Tree;

    async fn pin(&self, source: &pb::SourceOp, platform: Option<&pb::Platform>, step: &Step) -> Result<Pin, StepError> {
        match scheme(source) {
            "docker-image" => image::pin(&self.app.images, &self.trees, source, platform, &self.keys(step)).await,
            "local" => self.locals.pin(source, step).await,
            "git" => self.git.pin(source, &self.clients, step).await,
            "http" | "https" => self.http.pin(source, self.clients.as_ref(), step).await,
            _ => Err(unknown(source)),
        }
    }

    async fn perform(&self, work: Work<Tree>, step: &Step) -> Result<Vec<Option<Tree>>, StepError> {
        let trees = &self.trees;
        let platform = work.op.platform.as_ref();
        match &work.op.op {
            Some(op::Op::Source(_)) => {
                let pin = work.pin.ok_or_else(|| StepError::Invalid("a source that wasn't pinned".into()))?;
                let source = &pin.source;
                let tree = match scheme(source) {
                    "docker-image" => {
                        image::perform(&self.app.images, trees, source, platform, &self.keys(step), step).await
                    }
                    "local" => self.locals.perform(&pin, step).await,
                    "git" => self.git.fetch(source, trees, &self.clients, step).await,
                    "http" | "https" => self.http.fetch(source, trees, self.clients.as_ref(), step).await,
                    _ => Err(unknown(source)),
                };
                Ok(vec![Some(tree?)])
            }
            Some(op::Op::Exec(exec)) => self.runner.run(exec, work.inputs, step).await,
            Some(op::Op::File(file)) => files::perform(trees, file, &work.inputs).await,
            Some(op::Op::Merge(merge)) => Ok(vec![Some(layered::merge(trees, merge, &work.inputs).await?)]),
            Some(op::Op::Diff(diff)) => Ok(vec![Some(layered::diff(trees, diff, &work.inputs).await?)]),
            Some(op::Op::Build(_)) => {
                Err(StepError::Unsupported("builds within builds are not implemented in berth".into()))
            }
            None => Err(StepError::Invalid("an operation that is none".into())),
        }
    }

    async fn content(&self, of: &Tree, selection: &Selection, _: &Step) -> Result<Digest, StepError> {
        self.contents.digest(of, selection).await
    }

    async fn keep(&self, result: &Tree, description: &str) -> Result<Kept, StepError> {
        let lasting = self.trees.keep(result, description).await?;
        Ok(Kept { name: lasting.name, size: lasting.size })
    }

    async fn find(&self, name: &str) -> Result<Option<Tree>, StepError> {
        Ok(self.trees.find(name).await?)
    }

    async fn remove(&self, name: &str) -> Result<(), StepError> {
        if !self.caches.has(name) {
            return Ok(self.trees.remove(name).await?);
        }
        let (caches, name) = (self.caches.clone(), name.to_owned());
        blocking(move || caches.remove(&name).map_err(io::Error::other)).await
    }

    async fn mounts(&self) -> Result<Vec<CacheMount>, StepError> {
        let caches = self.caches.clone();
        let list = blocking(move || Ok(caches.list())).await?;
        let millis = |at: Option<prost_types::Timestamp>| {
            at.map_or(0, |at| at.seconds.unsigned_abs() * 1000 + u64::from(at.nanos.unsigned_abs()) / 1_000_000)
        };
        let mounts = list.into_iter().map(|record| CacheMount {
            name: record.id,
            size: u64::try_from(record.size).unwrap_or(0),
            description: record.description,
            created: millis(record.created_at),
            last_used: millis(record.last_used_at),
            uses: u64::try_from(record.usage_count).unwrap_or(0),
            in_use: record.in_use,
        });
        Ok(mounts.collect())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, StepError> {
    let failed = |cause: io::Error| StepError::Failed { what: "cache mounts".into(), cause: cause.into() };
    tokio::task::spawn_blocking(work).await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
}

impl Workshop for Whole {
    async fn image(&self, wanted: &ImageWanted, step: &Step) -> Result<ImageConfig, BuildError> {
        let mode = image::Mode::parse(&wanted.mode).map_err(|error| BuildError::invalid(error.to_string()))?;
        let platform = image::platform_of(Some(&wanted.platform));
        let keys = self.keys(step);
        let found = image::look_up(&self.app.images, &self.trees, &wanted.reference, &platform, mode, &keys).await;
        let found = found.map_err(|error| BuildError::of(error.kind(), &error))?;
        Ok(ImageConfig { digest: found.digest.to_string(), config: found.config, reference: None })
    }

    async fn export(
        &self,
        index: u32,
        exporter: &Exporter,
        results: &Results,
        step: &Step,
    ) -> Result<BTreeMap<String, String>, BuildError> {
        let order = super::super::export::order::Order { whole: self, index, exporter, results, step };
        order.run().await
    }
}

/// An error of the builder's own.
pub fn internal(error: &dyn std::error::Error) -> BuildError {
    BuildError::of(ErrorKind::Internal, error)
}
