//! Builds: what they share, and what each has for itself.

mod drive;

use crate::{
    counts::{Counts, Figures},
    flight::{Crew, Flights},
    graph::{Graph, GraphError},
    index::{Index, IndexError, Record, View},
    progress::{Board, StepBoard, words},
    remote::{Exporter, Imported, Layer},
    worker::{Kept, Pin, Step, StepError, Worker},
};
use proto::{digest::Digest, pb};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::{OnceCell, Semaphore, watch};

/// Definitions of one build that are remembered for [`Build::export`].
const SOLVED_MAX: usize = 1000;

/// Solves builds; clones share everything.
pub struct Solver<W: Worker>(pub(crate) Arc<Inner<W>>);

impl<W: Worker> Clone for Solver<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// How it works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Operations at once, of all builds together; 0: as many as there are.
    pub parallel: usize,
}

/// Who builds.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Sessions that may be asked for files, secrets and credentials.
    pub sessions: Vec<String>,
    /// What is allowed: `network.host`, `security.insecure`, `device`.
    pub entitlements: Vec<String>,
}

pub(crate) struct Inner<W: Worker> {
    pub(crate) crew: Crew<W>,
    flights: Arc<Flights<W::Ref>>,
    counts: Counts,
    builds: AtomicU64,
    pub(crate) claims: Claims,
}

/// Which records builds that aren't over have used, and which are being pruned.
#[derive(Default)]
pub(crate) struct Claims(Mutex<ClaimsState>);

#[derive(Default)]
struct ClaimsState {
    used: HashMap<Digest, usize>,
    doomed: HashSet<Digest>,
}

/// One build. It may solve several definitions; what they share is asked for once. What it used isn't pruned before it is
/// dropped.
pub struct Build<W: Worker>(Arc<BuildInner<W>>);

impl<W: Worker> Clone for Build<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct BuildInner<W: Worker> {
    solver: Arc<Inner<W>>,
    id: u64,
    options: BuildOptions,
    board: Arc<Board>,
    counts: Counts,
    pins: Mutex<HashMap<Digest, Arc<OnceCell<Pin>>>>,
    claimed: Mutex<HashSet<Digest>>,
    imports: Mutex<Vec<Arc<Imported>>>,
    solved: Mutex<Vec<Solved<W::Ref>>>,
    gone: watch::Sender<bool>,
}

/// What came of a definition.
#[derive(Debug, Clone)]
pub struct Solved<R> {
    /// What was asked for; nothing is an empty filesystem.
    pub result: Option<R>,
    /// What was solved.
    pub graph: Arc<Graph>,
    /// The canonical key of each of its vertices.
    pub keys: Vec<Digest>,
    /// Their keys by definition, where these are others.
    pub aliases: Vec<Option<Digest>>,
}

/// A result that is known.
#[derive(Debug, Clone)]
pub struct KnownResult<R> {
    /// The canonical key of what made it.
    pub key: Digest,
    /// Which of its results.
    pub output: usize,
    /// What made it.
    pub op: Arc<pb::Op>,
    /// What made it, for users.
    pub name: String,
    /// It.
    pub result: R,
}

/// Why a definition has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SolveError {
    /// It is refused.
    #[error("invalid definition")]
    Graph(#[source] Arc<GraphError>),
    /// A step of it failed.
    #[error("{name}")]
    Step {
        /// Digest of the operation: key of [`pb::Source::locations`].
        digest: Digest,
        /// Its name for users.
        name: String,
        /// Why it failed.
        #[source]
        cause: Arc<StepError>,
    },
    /// What is known can't be read.
    #[error("look up {name} in the build cache")]
    Index {
        /// The step's name.
        name: String,
        /// Why not.
        #[source]
        cause: Arc<IndexError>,
    },
    /// Everything waits for something. A bug.
    #[error("build stands still at {name}")]
    Stuck {
        /// What was asked for.
        name: String,
    },
}

impl SolveError {
    /// With all its causes, in a line.
    pub fn words(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl<W: Worker> Solver<W> {
    /// Has `worker` do what isn't in `index`.
    pub fn new(worker: Arc<W>, index: Index, options: Options) -> Self {
        let permits = (options.parallel > 0).then(|| Arc::new(Semaphore::new(options.parallel)));
        Self(Arc::new(Inner {
            crew: Crew { worker, index, permits },
            flights: Flights::new(),
            counts: Counts::default(),
            builds: AtomicU64::new(0),
            claims: Claims::default(),
        }))
    }

    /// Begins a build, which is told of on `board`.
    pub fn build(&self, options: BuildOptions, board: Arc<Board>) -> Build<W> {
        Build(Arc::new(BuildInner {
            solver: self.0.clone(),
            id: self.0.builds.fetch_add(1, Relaxed),
            options,
            board,
            counts: Counts::default(),
            pins: Mutex::default(),
            claimed: Mutex::default(),
            imports: Mutex::default(),
            solved: Mutex::default(),
            gone: watch::Sender::new(false),
        }))
    }

    /// What all builds did.
    pub fn counts(&self) -> Figures {
        self.0.counts.now()
    }

    /// Who does the work.
    pub fn worker(&self) -> &Arc<W> {
        &self.0.crew.worker
    }

    /// What is known.
    pub fn index(&self) -> &Index {
        &self.0.crew.index
    }

    /// Lets go of what was left by a crash between keeping and recording: what is among `kept`, the names of all that the worker
    /// keeps, and in no record. To be called before the first build. Gives their count.
    pub async fn sweep(&self, kept: impl IntoIterator<Item = String>) -> Result<usize, IndexError> {
        let names = self.names()?;
        let stray: Vec<_> = kept.into_iter().filter(|name| !names.contains(name)).collect();
        let count = stray.len();
        self.0.crew.remove(stray.into_iter().map(|name| Kept { name, size: 0 })).await;
        Ok(count)
    }

    /// Names of all results that are on record.
    pub fn names(&self) -> Result<HashSet<String>, IndexError> {
        let records = self.0.crew.index.records()?;
        Ok(records.iter().flat_map(|(_, record)| record.names()).collect())
    }
}

impl<W: Worker> Build<W> {
    /// Does what a definition asks for. Dropping the future ends what nobody else wants.
    pub async fn solve(&self, definition: &pb::Definition) -> Result<Solved<W::Ref>, SolveError> {
        let graph = Graph::decode(definition).map_err(|error| SolveError::Graph(Arc::new(error)))?;
        self.solve_graph(Arc::new(graph)).await
    }

    /// Does what a graph asks for.
    pub async fn solve_graph(&self, graph: Arc<Graph>) -> Result<Solved<W::Ref>, SolveError> {
        graph.allowed(&self.0.options.entitlements).map_err(|error| SolveError::Graph(Arc::new(error)))?;
        self.0.board.announce(&graph);
        self.0.count(|counts| &counts.steps, graph.vertices.len());
        let solved = drive::drive(self, graph).await?;
        let noted = Solved { result: None, ..solved.clone() };
        let mut all = self.0.solved.lock().unwrap_or_else(PoisonError::into_inner);
        // A frontend of a client's choice may ask for ever.
        if all.len() < SOLVED_MAX {
            all.push(noted);
        }
        drop(all);
        Ok(solved)
    }

    /// From here on, what isn't known here may be known there; those that came first are asked first.
    pub fn import(&self, imported: Arc<Imported>) {
        self.0.imports.lock().unwrap_or_else(PoisonError::into_inner).push(imported);
    }

    /// What is known of all that this build has solved, so that layers can be made of it for [`Build::export`].
    pub async fn results(&self) -> Result<Vec<KnownResult<W::Ref>>, SolveError> {
        let solved = self.0.solved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut seen = HashSet::new();
        let mut results = Vec::new();
        for (graph, keys) in solved.iter().map(|solved| (&solved.graph, &solved.keys)) {
            for (vertex, key) in graph.vertices.iter().zip(keys).filter(|(_, key)| seen.insert(**key)) {
                let unread = |cause| SolveError::Index { name: vertex.name.clone(), cause: Arc::new(cause) };
                let Some((_, record)) = self.0.solver.crew.index.lookup(key).map_err(unread)? else { continue };
                for (output, kept) in record.outputs.iter().enumerate() {
                    let Some(kept) = kept else { continue };
                    let found = self.0.solver.crew.worker.find(&kept.name).await;
                    let step = |cause| {
                        let (digest, name) = (vertex.digest, vertex.name.clone());
                        SolveError::Step { digest, name, cause: Arc::new(cause) }
                    };
                    if let Some(result) = found.map_err(step)? {
                        let (op, name) = (vertex.op.clone(), vertex.name.clone());
                        results.push(KnownResult { key: *key, output, op, name, result });
                    }
                }
            }
        }
        Ok(results)
    }

    /// All that this build has solved as a cache config, for [`Imported::parse`] at another builder. `layers` are those of
    /// [`Build::results`], lowest first, by key and output; what isn't among them doesn't go along (`mode=min`).
    pub fn export(&self, layers: &HashMap<(Digest, usize), Vec<Layer>>) -> Vec<u8> {
        let mut exporter = Exporter::new();
        for solved in self.0.solved.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            exporter.add(solved, |key, output| layers.get(&(*key, output)).cloned());
        }
        exporter.finish()
    }

    /// What this build did.
    pub fn counts(&self) -> Figures {
        self.0.counts.now()
    }

    /// Where it is told of.
    pub fn board(&self) -> &Arc<Board> {
        &self.0.board
    }

    /// The step of a vertex, told of on this build's board.
    fn step(&self, digest: &Digest, name: &str) -> Step {
        Step {
            digest: digest.to_string(),
            name: name.to_owned(),
            sessions: self.0.options.sessions.clone(),
            entitlements: self.0.options.entitlements.clone(),
            progress: Arc::new(StepBoard::new(self.0.board.clone(), digest)),
            cancelled: self.0.gone.subscribe(),
        }
    }

    /// What a source stands for; asked once.
    async fn pin(&self, op: &pb::Op, source: &pb::SourceOp, step: Step, digest: Digest) -> Result<Pin, StepError> {
        let cell = self.0.pins.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default().clone();
        let ask = || async {
            self.0.count(|counts| &counts.pins, 1);
            self.0.solver.crew.worker.pin(source, op.platform.as_ref(), &step).await
        };
        cell.get_or_try_init(ask).await.cloned()
    }

    /// Keeps a record from being pruned; not if it is too late.
    fn claim(&self, key: Digest, unless_doomed: bool) -> bool {
        let mut claimed = self.0.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.contains(&key) {
            return true;
        }
        let mut state = self.0.solver.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unless_doomed && state.doomed.contains(&key) {
            return false;
        }
        *state.used.entry(key).or_default() += 1;
        claimed.insert(key);
        true
    }

    /// The record that a key leads to.
    fn lookup(&self, view: &View, key: &Digest) -> Result<Option<(Digest, Record)>, IndexError> {
        let found = view.lookup(key)?;
        Ok(found.filter(|(canonical, _)| self.claim(*canonical, true)))
    }
}

impl<W: Worker> BuildInner<W> {
    fn count(&self, which: impl Fn(&Counts) -> &AtomicU64, by: usize) {
        for counts in [&self.counts, &self.solver.counts] {
            which(counts).fetch_add(by as u64, Relaxed);
        }
    }
}

impl<W: Worker> Drop for BuildInner<W> {
    fn drop(&mut self) {
        self.gone.send_replace(true);
        let claimed = self.claimed.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.solver.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in claimed.drain() {
            if let Some(count) = state.used.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    state.used.remove(&key);
                }
            }
        }
    }
}

impl Claims {
    pub(crate) fn used(&self) -> HashSet<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).used.keys().copied().collect()
    }

    /// From here on no build takes it; not if one has it.
    pub(crate) fn doom(&self, key: Digest) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !state.used.contains_key(&key) && state.doomed.insert(key)
    }

    pub(crate) fn spare(&self, key: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).doomed.remove(key);
    }
}

/// For the board: a step that couldn't even be begun.
fn failed(board: &StepBoard, error: &StepError) {
    tracing::debug!(error = words(error), "step of a build failed");
    board.completed(Some(error));
}
