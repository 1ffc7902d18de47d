//! What is going on in a build, for any number of listeners; late ones get everything so far.
//!
//! Of a vertex and of a status only the latest is kept, of logs at most what the limits allow, so that a build that talks for
//! days stays small.

use crate::{
    graph::Graph,
    worker::{Progress, StepError},
};
use proto::{
    digest::Digest,
    moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning},
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};
use tokio::sync::watch;

/// Bytes of output that are kept of a step.
pub const STEP_LOG_MAX: usize = 2 << 20;
/// Bytes of output that a step may write per second.
pub const STEP_LOG_SPEED: usize = 200 << 10;
/// Bytes of output that are kept of a build; the oldest go first.
const BUILD_LOG_MAX: usize = 32 << 20;
/// Warnings and statuses that are kept of a build.
const ITEMS_MAX: usize = 20_000;
/// How a step ends that nobody wants any more; clients of BuildKit know it by these words.
const CANCELED: &str = "context canceled";

/// The notice board of a build.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// Steps of a build, in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// All of them.
    pub total: usize,
    /// Those whose result was known.
    pub cached: usize,
    /// Those that ended well, or were known.
    pub completed: usize,
    /// Those that failed.
    pub failed: usize,
    /// What there was to think about.
    pub warnings: usize,
}

#[derive(Default)]
struct State {
    /// Of the latest change; each thing below carries the number of its own.
    last: u64,
    vertices: BTreeMap<String, (u64, Vertex)>,
    /// Vertices in the order of their appearance.
    order: Vec<String>,
    statuses: BTreeMap<(String, String), (u64, VertexStatus)>,
    warnings: Vec<(u64, VertexWarning)>,
    logs: VecDeque<(u64, VertexLog)>,
    log_bytes: usize,
    meters: BTreeMap<String, Meter>,
    finished: bool,
}

/// How much a step has written.
struct Meter {
    since: Instant,
    written: usize,
    clipping: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("last", &self.last)
            .field("vertices", &self.vertices.len())
            .finish_non_exhaustive()
    }
}

impl Default for Board {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Board {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Says what will perhaps be done. What was said of a vertex before stays.
    pub fn announce(&self, graph: &Graph) {
        self.change(|state| {
            for vertex in &graph.vertices {
                let digest = vertex.digest.to_string();
                if state.vertices.contains_key(&digest) {
                    continue;
                }
                let mut inputs: Vec<_> =
                    vertex.inputs.iter().map(|input| graph.vertices[input.vertex].digest.to_string()).collect();
                inputs.dedup();
                let progress_group = vertex.metadata.progress_group.clone();
                let new = Vertex { digest, inputs, name: vertex.name.clone(), progress_group, ..Vertex::default() };
                state.vertex(new);
            }
        });
    }

    /// Says anything of a vertex: of work that isn't an operation, like loading a Dockerfile.
    pub fn put(&self, vertex: Vertex) {
        self.change(|state| state.vertex(vertex));
    }

    /// A step has begun.
    pub fn started(&self, digest: &str) {
        self.update(digest, |vertex| {
            vertex.started.get_or_insert_with(now);
            vertex.completed = None;
            vertex.cached = false;
            vertex.error.clear();
        });
    }

    /// A step's result was known.
    pub fn cached(&self, digest: &str) {
        self.update(digest, |vertex| {
            if vertex.completed.is_none() {
                vertex.started.get_or_insert_with(now);
                vertex.completed = Some(now());
                vertex.cached = true;
            }
        });
    }

    /// A step has ended.
    pub fn completed(&self, digest: &str, error: Option<&StepError>) {
        self.update(digest, |vertex| {
            vertex.started.get_or_insert_with(now);
            vertex.completed = Some(now());
            vertex.error = match error {
                Some(StepError::Cancelled) => CANCELED.into(),
                error => error.map(words).unwrap_or_default(),
            };
        });
    }

    /// Steps of a graph that have begun won't end here.
    pub(crate) fn abandon(&self, graph: &Graph) {
        let mut state = self.lock();
        let digests = graph.vertices.iter().map(|vertex| vertex.digest.to_string());
        let begun = digests.filter_map(|digest| state.vertices.get(&digest)).map(|(_, vertex)| vertex);
        let open: Vec<_> = begun.filter(|v| v.started.is_some() && v.completed.is_none()).cloned().collect();
        if open.is_empty() {
            return;
        }
        for vertex in open {
            state.vertex(Vertex { completed: Some(now()), error: CANCELED.into(), ..vertex });
        }
        state.last += 1;
        self.changed.send_replace(state.last);
    }

    /// The build has ended: listeners end once they have everything.
    pub fn finish(&self) {
        self.change(|state| state.finished = true);
    }

    /// One more who wants to hear everything.
    pub fn listen(self: &Arc<Self>) -> Listener {
        Listener { changed: self.changed.subscribe(), board: self.clone(), heard: 0 }
    }

    /// Everything so far.
    pub fn everything(&self) -> StatusResponse {
        self.lock().since(0)
    }

    /// How many steps there are, by what became of them.
    pub fn summary(&self) -> Summary {
        let state = self.lock();
        let mut summary = Summary { warnings: state.warnings.len(), ..Summary::default() };
        for (_, vertex) in state.vertices.values() {
            summary.total += 1;
            summary.cached += usize::from(vertex.cached);
            summary.failed += usize::from(!vertex.error.is_empty() && vertex.error != CANCELED);
            summary.completed += usize::from(vertex.completed.is_some() && vertex.error.is_empty());
        }
        summary
    }

    fn update(&self, digest: &str, change: impl FnOnce(&mut Vertex)) {
        self.change(|state| {
            let mut vertex = match state.vertices.get(digest) {
                Some((_, vertex)) => vertex.clone(),
                None => Vertex { digest: digest.to_owned(), ..Vertex::default() },
            };
            change(&mut vertex);
            state.vertex(vertex);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.last += 1;
        self.changed.send_replace(state.last);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Board {
    fn log(&self, log: VertexLog) {
        self.change(|state| state.log(log));
    }

    fn status(&self, status: VertexStatus) {
        self.change(|state| {
            let key = (status.vertex.clone(), status.id.clone());
            if state.statuses.len() < ITEMS_MAX || state.statuses.contains_key(&key) {
                let at = state.last + 1;
                state.statuses.insert(key, (at, status));
            }
        });
    }

    fn warn(&self, warning: VertexWarning) {
        self.change(|state| {
            if state.warnings.len() < ITEMS_MAX {
                state.warnings.push((state.last + 1, warning));
            }
        });
    }
}

impl State {
    fn vertex(&mut self, vertex: Vertex) {
        let digest = vertex.digest.clone();
        if self.vertices.insert(digest.clone(), (self.last + 1, vertex)).is_none() {
            self.order.push(digest);
        }
    }

    fn log(&mut self, mut log: VertexLog) {
        let fresh = Meter { since: Instant::now(), written: 0, clipping: false };
        let meter = self.meters.entry(log.vertex.clone()).or_insert(fresh);
        // Whole seconds, the one that has begun included: a burst at the start is no flood.
        let seconds = usize::try_from(meter.since.elapsed().as_secs()).unwrap_or(usize::MAX).saturating_add(1);
        let by_speed = STEP_LOG_SPEED.saturating_mul(seconds);
        let (room, limit) = if by_speed < STEP_LOG_MAX { (by_speed, "200KiB/s") } else { (STEP_LOG_MAX, "2MiB") };
        let room = room.saturating_sub(meter.written);
        if log.msg.len() > room {
            log.msg.truncate(room);
            meter.written += log.msg.len();
            if !meter.clipping {
                meter.clipping = true;
                log.msg.extend_from_slice(format!("\n[output clipped, log limit {limit} reached]\n").as_bytes());
            }
        } else {
            meter.written += log.msg.len();
            meter.clipping = false;
        }
        if log.msg.is_empty() {
            return;
        }
        log.timestamp.get_or_insert_with(now);
        self.log_bytes += log.msg.len();
        self.logs.push_back((self.last + 1, log));
        while self.log_bytes > BUILD_LOG_MAX {
            let Some((_, oldest)) = self.logs.pop_front() else { break };
            self.log_bytes -= oldest.msg.len();
        }
    }

    fn since(&self, heard: u64) -> StatusResponse {
        let logs = self.logs.partition_point(|(at, _)| *at <= heard);
        let warnings = self.warnings.partition_point(|(at, _)| *at <= heard);
        let vertices = self.order.iter().filter_map(|digest| self.vertices.get(digest));
        StatusResponse {
            vertexes: vertices.filter(|(at, _)| *at > heard).map(|(_, vertex)| vertex.clone()).collect(),
            statuses: self.statuses.values().filter(|(at, _)| *at > heard).map(|(_, status)| status.clone()).collect(),
            logs: self.logs.range(logs..).map(|(_, log)| log.clone()).collect(),
            warnings: self.warnings[warnings..].iter().map(|(_, warning)| warning.clone()).collect(),
        }
    }
}

/// Hears of a build, from its beginning on.
#[derive(Debug)]
pub struct Listener {
    board: Arc<Board>,
    changed: watch::Receiver<u64>,
    heard: u64,
}

impl Listener {
    /// What is new, as soon as something is; nothing once the build is over. Who asks seldom gets more at once.
    pub async fn next(&mut self) -> Option<StatusResponse> {
        loop {
            {
                let state = self.board.lock();
                if state.last > self.heard {
                    let news = state.since(self.heard);
                    self.heard = state.last;
                    if news != StatusResponse::default() {
                        return Some(news);
                    }
                }
                if state.finished {
                    return None;
                }
                self.changed.mark_unchanged();
            }
            // The board is ours too, so its end can't come.
            self.changed.changed().await.ok()?;
        }
    }
}

/// Tells one board of one step, whatever the step calls itself: another build may have the same work under another name.
#[derive(Debug, Clone)]
pub struct StepBoard {
    board: Arc<Board>,
    digest: String,
}

impl StepBoard {
    /// Of the step `digest`.
    pub fn new(board: Arc<Board>, digest: &Digest) -> Self {
        Self { board, digest: digest.to_string() }
    }

    pub(crate) fn started(&self) {
        self.board.started(&self.digest);
    }

    pub(crate) fn cached(&self) {
        self.board.cached(&self.digest);
    }

    pub(crate) fn completed(&self, error: Option<&StepError>) {
        self.board.completed(&self.digest, error);
    }
}

impl Progress for StepBoard {
    fn log(&self, log: VertexLog) {
        self.board.log(VertexLog { vertex: self.digest.clone(), ..log });
    }

    fn status(&self, status: VertexStatus) {
        self.board.status(VertexStatus { vertex: self.digest.clone(), ..status });
    }

    fn warn(&self, warning: VertexWarning) {
        self.board.warn(VertexWarning { vertex: self.digest.clone(), ..warning });
    }
}

/// Work that several builds wait for, told to all of them; who comes late hears what was said before.
#[derive(Debug, Default)]
pub(crate) struct Fan(Mutex<FanState>);

#[derive(Debug, Default)]
struct FanState {
    begun: bool,
    boards: Vec<StepBoard>,
    said: Vec<Said>,
    bytes: usize,
}

#[derive(Debug, Clone)]
enum Said {
    Log(VertexLog),
    Status(VertexStatus),
    Warning(VertexWarning),
}

impl Fan {
    pub(crate) fn join(&self, board: StepBoard) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.begun {
            board.started();
        }
        state.said.iter().for_each(|said| said.tell(&board));
        state.boards.push(board);
    }

    /// It isn't waiting for others any more.
    pub(crate) fn begin(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.begun = true;
        state.boards.iter().for_each(StepBoard::started);
    }

    /// The end is told by [`Fan::completed`] to those who are still there.
    pub(crate) fn leave(&self, board: &StepBoard) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.boards.retain(|other| !Arc::ptr_eq(&other.board, &board.board) || other.digest != board.digest);
    }

    pub(crate) fn completed(&self, error: Option<&StepError>) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What never began was known elsewhere, and is shown so already; but for a failure.
        if state.begun || error.is_some() {
            state.boards.iter().for_each(|board| board.completed(error));
        }
    }

    fn say(&self, said: Said) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.boards.iter().for_each(|board| said.tell(board));
        let bytes = if let Said::Log(log) = &said { log.msg.len() } else { 0 };
        if state.bytes + bytes <= STEP_LOG_MAX && state.said.len() < ITEMS_MAX {
            state.bytes += bytes;
            state.said.push(said);
        }
    }
}

impl Said {
    fn tell(&self, board: &StepBoard) {
        match self.clone() {
            Self::Log(log) => board.log(log),
            Self::Status(status) => board.status(status),
            Self::Warning(warning) => board.warn(warning),
        }
    }
}

impl Progress for Fan {
    fn log(&self, mut log: VertexLog) {
        log.timestamp.get_or_insert_with(now);
        self.say(Said::Log(log));
    }

    fn status(&self, status: VertexStatus) {
        self.say(Said::Status(status));
    }

    fn warn(&self, warning: VertexWarning) {
        self.say(Said::Warning(warning));
    }
}

/// An error with all its causes, in a line.
pub(crate) fn words(error: &StepError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn now() -> prost_types::Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests;
