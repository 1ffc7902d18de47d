//! Builds of images: `/build`, and BuildKit's API over `/grpc` and `/session`.
//!
//! [`frontend`] makes LLB of a Dockerfile (crate `dockerfile`), crate `solver` finds out what of it has to be done, [`worker`] does
//! that on filesystems ([`tree`]), [`export`] makes images, archives and folders of the result. Files, secrets and credentials of
//! the client come over its [`session`]. [`api`] speaks with clients; [`Builder`] is what all of its doors lead to, and asks for
//! work through [`backend::Backend`].

pub mod api;
mod backend;
mod error;
mod export;
mod frontend;
mod history;
mod progress;
mod running;
pub mod session;
pub mod tree;
mod work;
pub mod worker;

use backend::{Absent, Backend};
pub use error::BuildError;
pub use frontend::parse_bool as is_true;

use crate::config::BuilderConfig;
use backend::Finished;
use history::History;
use proto::{
    google::rpc,
    kind::{ErrorKind, chain},
    moby::buildkit::v1::{
        BuildHistoryRecord, CacheOptions, Exporter, PruneRequest, UsageRecord,
        types::{BuildkitVersion, WorkerRecord},
    },
    pb,
};
use running::{Build, Outcome};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tracing::{info, warn};

/// Keys that the build cache can be filtered by.
pub const FILTERS: &[&str] =
    &["id", "parent", "parents", "type", "description", "inuse", "shared", "private", "mutable", "immutable"];

/// How long somebody who asks for a build waits for it to begin: its client asks for both at once.
const PATIENCE: Duration = Duration::from_secs(3);
/// The cache is looked through no more often than this.
const BETWEEN_COLLECTIONS: Duration = Duration::from_secs(60);

/// Builds, by whomever.
#[derive(Debug)]
pub struct Builder {
    /// Who does the work, once there is somebody.
    backend: OnceLock<Arc<dyn Backend>>,
    /// Clients that serve files, secrets and credentials.
    sessions: session::Sessions,
    config: BuilderConfig,
    /// What is told of this builder to those who choose one.
    worker: WorkerRecord,
    running: Mutex<HashMap<String, Arc<Build>>>,
    /// Told of every build that begins or ends.
    changed: watch::Sender<u64>,
    history: History,
    collected: Mutex<Option<Instant>>,
    /// Where contexts are unpacked that come in a request.
    contexts: PathBuf,
}

/// What a client asks for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The client's name for it.
    pub id: String,
    /// Its session, and others that it may use.
    pub sessions: Vec<String>,
    /// `dockerfile.v0`, or nothing.
    pub frontend: String,
    /// Options of the frontend.
    pub options: HashMap<String, String>,
    /// LLB for the frontend.
    pub inputs: HashMap<String, pb::Definition>,
    /// LLB rather than a frontend.
    pub definition: Option<pb::Definition>,
    /// Where the result goes.
    pub exporters: Vec<Exporter>,
    /// Caches elsewhere.
    pub cache: CacheOptions,
    /// What the client allows.
    pub entitlements: Vec<String>,
    /// Whether it is left out of the history.
    pub internal: bool,
}

/// What came of it.
pub type Response = BTreeMap<String, String>;

impl Builder {
    /// One without anybody who does the work; see [`Self::give`].
    pub fn new(sessions: session::Sessions, config: BuilderConfig, worker: WorkerRecord, contexts: PathBuf) -> Self {
        let history = History::new(config.history, config.history_age);
        Self {
            backend: OnceLock::new(),
            sessions,
            worker: WorkerRecord { gc_policy: config.policies.clone(), ..worker },
            config,
            running: Mutex::default(),
            changed: watch::channel(0).0,
            history,
            collected: Mutex::default(),
            contexts,
        }
    }

    /// Has `backend` do the work from now on. The first one stays.
    pub fn give(&self, backend: Arc<dyn Backend>) {
        let _ = self.backend.set(backend);
    }

    fn backend(&self) -> &dyn Backend {
        self.backend.get().map_or(&Absent, Arc::as_ref)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Build>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The build of this name, once it is there.
    pub async fn build(&self, id: &str) -> Result<Arc<Build>, BuildError> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(build) = self.running().get(id) {
                    return build.clone();
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let missing = |_| BuildError::not_found(format!("no such job {id}"));
        tokio::time::timeout(PATIENCE, waiting).await.map_err(missing)
    }

    /// Ends a build. Whether there was one.
    pub fn cancel(&self, id: &str) -> bool {
        let build = self.running().get(id).cloned();
        if let Some(build) = &build {
            build.cancelled.send_replace(true);
        }
        build.is_some()
    }

    /// What clients may allow, of what one asks for.
    fn allowed(&self, wanted: &[String]) -> Result<Vec<String>, BuildError> {
        for entitlement in wanted {
            let name = entitlement.split('=').next().unwrap_or_default();
            if !["network.host", "security.insecure", "device"].contains(&name) {
                return Err(BuildError::invalid(format!("unknown entitlement {entitlement}")));
            }
            if !self.config.entitlements.contains(&name) {
                return Err(BuildError::new(
                    ErrorKind::PermissionDenied,
                    format!("granting entitlement {entitlement} is not allowed by build daemon configuration"),
                ));
            }
        }
        Ok(wanted.to_vec())
    }

    /// Writes a build down as begun.
    pub fn begin(self: &Arc<Self>, wanted: Wanted) -> Result<Begun, BuildError> {
        if !running::is_name(&wanted.id) {
            return Err(BuildError::invalid(
                "the ref of a build has letters, digits, '.', '_' and '-', 128 at most, and doesn't begin with '.'",
            ));
        }
        if wanted.definition.is_some() && !wanted.frontend.is_empty() {
            return Err(BuildError::invalid("invalid request: both a definition and a frontend are given"));
        }
        if let Some(exporter) = wanted.exporters.iter().find(|exporter| exporter.r#type.is_empty()) {
            return Err(BuildError::invalid(format!("an exporter without type: {:?}", exporter.attrs)));
        }
        // Of whoever leads the build: buildx runs the frontend itself and asks here for attestations.
        frontend::attestable(&wanted.options)?;
        if !wanted.frontend.is_empty() {
            frontend::check(&wanted.frontend, &wanted.options)?;
        }
        let entitlements = self.allowed(&wanted.entitlements)?;
        let mut build = Build::new(wanted.id.clone(), wanted.sessions.clone(), entitlements);
        build.inputs.clone_from(&wanted.inputs);
        let build = Arc::new(build);
        // Before anybody can find it: the client may come with its first call at once.
        let returned = (wanted.definition.is_none() && wanted.frontend.is_empty()).then(|| build.await_return());
        {
            let mut running = self.running();
            if running.contains_key(&build.id) {
                return Err(BuildError::new(ErrorKind::AlreadyExists, format!("job ID {} exists", build.id)));
            }
            running.insert(build.id.clone(), build.clone());
        }
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
        let record = BuildHistoryRecord {
            r#ref: build.id.clone(),
            frontend: wanted.frontend.clone(),
            frontend_attrs: without_secrets(&wanted.options),
            exporters: wanted.exporters.clone(),
            created_at: Some(progress::now()),
            ..BuildHistoryRecord::default()
        };
        if !wanted.internal {
            self.history.begin(record, build.progress.clone());
        }
        Ok(Begun { builder: self.clone(), build, wanted, returned, ended: false })
    }

    async fn work(self: &Arc<Self>, begun: &mut Begun) -> Result<Response, BuildError> {
        let (build, backend) = (begun.build.clone(), self.backend());
        let wanted = &begun.wanted;
        for import in &wanted.cache.imports {
            backend.import_cache(import, &build).await?;
        }
        let outcome = match (begun.returned.take(), &wanted.definition) {
            (Some(returned), _) => {
                let gone = |_| BuildError::new(ErrorKind::Cancelled, "the client's frontend has gone");
                returned.await.map_err(gone)??
            }
            (None, Some(definition)) => {
                let reference = build.refer(definition.clone(), backend)?;
                Outcome { references: running::References::One(Some(reference)), ..Outcome::default() }
            }
            (None, None) => {
                let (outcome, plan) = frontend::run(&wanted.options, &wanted.inputs, &build, backend).await?;
                build.plan.send_replace(Some(Arc::new(plan)));
                outcome
            }
        };
        if outcome.attestations.values().any(|all| !all.is_empty()) {
            return Err(BuildError::unsupported(
                "attestations that a frontend makes are not supported by this builder yet",
            ));
        }
        let finished = build.make_all(outcome, backend).await?;
        self.export(&build, &begun.wanted, finished).await
    }

    async fn export(&self, build: &Arc<Build>, wanted: &Wanted, finished: Finished) -> Result<Response, BuildError> {
        let mut response: Response = finished
            .outcome
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with("frontend."))
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        // One after the other: they would only wait for the same disk.
        for (index, exporter) in (0..).zip(&wanted.exporters) {
            response.extend(self.backend().export(index, exporter, &finished, build).await?);
        }
        for cache in &wanted.cache.exports {
            response.extend(self.backend().export_cache(cache, &finished, build).await?);
        }
        Ok(response)
    }

    /// Forgets a build that ended.
    fn end(self: &Arc<Self>, build: &Arc<Build>, result: Result<Response, BuildError>) {
        self.running().remove(&build.id);
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
        self.backend().ended(build);
        build.end(result.is_ok());
        build.progress.finish();
        let counts = build.progress.counts();
        self.history.end(&build.id, |record| {
            record.completed_at = Some(progress::now());
            record.num_total_steps = counts.total;
            record.num_completed_steps = counts.completed;
            record.num_cached_steps = counts.cached;
            record.num_warnings = counts.warnings;
            match &result {
                Ok(response) => {
                    record.exporter_response = response.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                }
                Err(error) => {
                    record.error = Some(rpc::Status {
                        code: error.kind.to_grpc() as i32,
                        message: error.message.clone(),
                        details: Vec::new(),
                    });
                }
            }
        });
        let (id, steps, cached) = (&build.id, counts.total, counts.cached);
        match result {
            Ok(_) => info!(id, steps, cached, "built"),
            Err(error) => info!(id, steps, cached, error = %error, "build failed"),
        }
        self.collect();
    }

    /// Keeps the cache within its limits, unless that was done just now.
    fn collect(self: &Arc<Self>) {
        {
            let mut collected = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
            if collected.is_some_and(|at| at.elapsed() < BETWEEN_COLLECTIONS) || self.config.policies.is_empty() {
                return;
            }
            *collected = Some(Instant::now());
        }
        let builder = self.clone();
        tokio::spawn(async move {
            for policy in &builder.config.policies {
                let request = PruneRequest {
                    filter: policy.filters.clone(),
                    all: policy.all,
                    keep_duration: policy.keep_duration,
                    reserved_space: policy.reserved_space,
                    max_used_space: policy.max_used_space,
                    min_free_space: policy.min_free_space,
                };
                match builder.backend().prune(&request).await {
                    Ok(removed) if removed.is_empty() => {}
                    Ok(removed) => {
                        let bytes: i64 = removed.iter().map(|record| record.size).sum();
                        info!(records = removed.len(), bytes, "build cache kept within its limits");
                    }
                    Err(error) => warn!(error = %chain(&error), "build cache isn't kept within its limits"),
                }
            }
        });
    }

    /// What is cached.
    pub async fn usage(&self) -> Result<Vec<UsageRecord>, BuildError> {
        self.backend().usage(&[]).await
    }

    /// Removes from the cache.
    pub async fn prune(&self, request: &PruneRequest) -> Result<Vec<UsageRecord>, BuildError> {
        self.backend().prune(request).await
    }

    /// What this builder is like.
    pub fn version() -> BuildkitVersion {
        BuildkitVersion {
            package: "berth".to_owned(),
            version: concat!("v", env!("CARGO_PKG_VERSION"), "-berth").to_owned(),
            revision: String::new(),
        }
    }
}

/// A build that has a name, and has to be run.
#[derive(Debug)]
pub struct Begun {
    builder: Arc<Builder>,
    /// The build.
    pub build: Arc<Build>,
    wanted: Wanted,
    returned: Option<tokio::sync::oneshot::Receiver<Result<Outcome, BuildError>>>,
    ended: bool,
}

impl Begun {
    /// To the end. Dropped before that, the build is cancelled.
    pub async fn run(mut self) -> Result<Response, BuildError> {
        let builder = self.builder.clone();
        let mut cancelled = self.build.cancelled.subscribe();
        let result = tokio::select! {
            biased;
            _ = cancelled.wait_for(|cancelled| *cancelled) => Err(BuildError::cancelled()),
            result = builder.work(&mut self) => result,
        };
        self.ended = true;
        builder.end(&self.build, result.clone());
        result
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.ended {
            self.builder.end(&self.build, Err(BuildError::cancelled()));
        }
    }
}

/// Options as they may be shown: a URL may have a password in it.
fn without_secrets(options: &HashMap<String, String>) -> HashMap<String, String> {
    let shown = options.iter().map(|(key, value)| {
        let bare = match value.split_once("://") {
            Some((scheme, rest)) => {
                let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
                match place.rsplit_once('@') {
                    Some((_, host)) => format!("{scheme}://xxxxx@{host}/{path}"),
                    None => value.clone(),
                }
            }
            None => value.clone(),
        };
        (key.clone(), bare)
    });
    shown.collect()
}

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
