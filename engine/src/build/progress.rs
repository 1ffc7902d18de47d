//! What a build tells of itself, for any number of listeners, also those who come late: each gets the newest state of every step
//! and all output, in the order in which it came.

use proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// Output of one step that is kept, as BuildKit's.
const LOG_LIMIT: usize = 2 << 20;
const CLIPPED: &str = "\n[output clipped, log limit 2MiB reached]\n";
/// How long what comes is gathered before a listener is told: bars that move needn't be told every time.
const GATHER: Duration = Duration::from_millis(30);
/// Bytes of output in one message: gRPC's limit is 4 MiB.
const PORTION: usize = 1 << 20;

/// All of it.
#[derive(Debug)]
pub struct Progress {
    told: Mutex<Told>,
    /// Number of the last thing, and whether it was the last one.
    newest: watch::Sender<(u64, bool)>,
}

#[derive(Debug, Default)]
struct Told {
    last: u64,
    vertices: HashMap<String, (u64, Vertex)>,
    statuses: HashMap<(String, String), (u64, VertexStatus)>,
    logs: Vec<(u64, VertexLog)>,
    warnings: Vec<(u64, VertexWarning)>,
    /// Bytes of output by step.
    lengths: HashMap<String, usize>,
}

/// Steps in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub total: i32,
    /// Those that ended.
    pub completed: i32,
    /// Those that had been done before.
    pub cached: i32,
    /// Warnings.
    pub warnings: i32,
}

impl Default for Progress {
    fn default() -> Self {
        Self { told: Mutex::default(), newest: watch::channel((0, false)).0 }
    }
}

impl Progress {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Told, u64)) {
        let mut told = self.told();
        told.last += 1;
        let number = told.last;
        change(&mut told, number);
        self.newest.send_modify(|(last, _)| *last = number);
    }

    /// The state of a step.
    pub fn vertex(&self, vertex: Vertex) {
        self.tell(|told, number| {
            told.vertices.insert(vertex.digest.clone(), (number, vertex));
        });
    }

    /// Output of a step.
    pub fn log(&self, mut log: VertexLog) {
        self.tell(|told, number| {
            let length = told.lengths.entry(log.vertex.clone()).or_default();
            if *length >= LOG_LIMIT {
                return;
            }
            if *length + log.msg.len() >= LOG_LIMIT {
                log.msg.truncate(LOG_LIMIT - *length);
                *length = LOG_LIMIT;
                log.msg.extend_from_slice(CLIPPED.as_bytes());
            } else {
                *length += log.msg.len();
            }
            told.logs.push((number, log));
        });
    }

    /// How far something is.
    pub fn status(&self, status: VertexStatus) {
        self.tell(|told, number| {
            told.statuses.insert((status.vertex.clone(), status.id.clone()), (number, status));
        });
    }

    /// Something to think about.
    pub fn warn(&self, warning: VertexWarning) {
        self.tell(|told, number| told.warnings.push((number, warning)));
    }

    /// There is nothing more to come.
    pub fn finish(&self) {
        self.newest.send_modify(|(_, ended)| *ended = true);
    }

    /// From the beginning.
    pub fn listen(self: &Arc<Self>) -> Listener {
        Listener { progress: self.clone(), newest: self.newest.subscribe(), seen: 0 }
    }

    /// Numbers for the history.
    pub fn counts(&self) -> Counts {
        let told = self.told();
        let count = |wanted: fn(&Vertex) -> bool| {
            i32::try_from(told.vertices.values().filter(|(_, v)| wanted(v)).count()).unwrap_or(i32::MAX)
        };
        Counts {
            total: count(|_| true),
            completed: count(|v| v.completed.is_some()),
            cached: count(|v| v.cached),
            warnings: i32::try_from(told.warnings.len()).unwrap_or(i32::MAX),
        }
    }

    /// A step of the builder's own, that is no operation: loading, exporting. Told as begun.
    pub fn step(self: &Arc<Self>, name: &str) -> OwnStep {
        let digest = proto::digest::Digest::of(format!("{name}\0{:?}", SystemTime::now()).as_bytes()).to_string();
        let vertex = Vertex { digest, name: name.to_owned(), started: Some(now()), ..Vertex::default() };
        self.vertex(vertex.clone());
        OwnStep { progress: self.clone(), vertex, ended: false }
    }

    /// What came after `seen`, and the number of its last thing.
    fn since(&self, seen: u64) -> (Vec<StatusResponse>, u64) {
        let told = self.told();
        let newer = |number: u64| number > seen;
        let mut first = StatusResponse::default();
        let vertices: BTreeMap<u64, &Vertex> =
            told.vertices.values().filter(|(number, _)| newer(*number)).map(|(n, v)| (*n, v)).collect();
        first.vertexes = vertices.into_values().cloned().collect();
        let statuses: BTreeMap<u64, &VertexStatus> =
            told.statuses.values().filter(|(number, _)| newer(*number)).map(|(n, s)| (*n, s)).collect();
        first.statuses = statuses.into_values().cloned().collect();
        let after = told.warnings.partition_point(|(number, _)| !newer(*number));
        first.warnings = told.warnings[after..].iter().map(|(_, warning)| warning.clone()).collect();
        let mut messages = vec![first];
        let mut length = 0;
        let after = told.logs.partition_point(|(number, _)| !newer(*number));
        for (_, log) in &told.logs[after..] {
            if length > PORTION {
                messages.push(StatusResponse::default());
                length = 0;
            }
            length += log.msg.len();
            if let Some(message) = messages.last_mut() {
                message.logs.push(log.clone());
            }
        }
        messages.retain(|m| {
            !(m.vertexes.is_empty() && m.statuses.is_empty() && m.logs.is_empty() && m.warnings.is_empty())
        });
        (messages, told.last)
    }
}

/// Hears everything once.
#[derive(Debug)]
pub struct Listener {
    progress: Arc<Progress>,
    newest: watch::Receiver<(u64, bool)>,
    seen: u64,
}

impl Listener {
    /// What is new, as soon as something is; nothing at the end.
    pub async fn next(&mut self) -> Option<Vec<StatusResponse>> {
        loop {
            let seen = self.seen;
            let ended =
                self.newest.wait_for(|(last, ended)| *last > seen || *ended).await.map_or(true, |state| state.1);
            if !ended && self.seen > 0 {
                tokio::time::sleep(GATHER).await;
            }
            let (messages, last) = self.progress.since(self.seen);
            self.seen = last;
            if !messages.is_empty() {
                return Some(messages);
            }
            if ended {
                return None;
            }
        }
    }
}

/// A step that is under way; dropped without having ended, it was cancelled.
#[derive(Debug)]
pub struct OwnStep {
    progress: Arc<Progress>,
    vertex: Vertex,
    ended: bool,
}

impl OwnStep {
    /// Its digest.
    pub fn digest(&self) -> &str {
        &self.vertex.digest
    }

    /// It ended, with this result.
    pub fn end<T, E: std::fmt::Display>(mut self, result: &Result<T, E>) {
        self.vertex.error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.tell();
    }

    fn tell(&mut self) {
        self.ended = true;
        self.vertex.completed = Some(now());
        self.progress.vertex(self.vertex.clone());
    }
}

impl Drop for OwnStep {
    fn drop(&mut self) {
        if !self.ended {
            self.vertex.error = "context canceled".to_owned();
            self.tell();
        }
    }
}

impl solver::worker::Progress for Progress {
    fn log(&self, log: VertexLog) {
        Self::log(self, log);
    }

    fn status(&self, status: VertexStatus) {
        Self::status(self, status);
    }

    fn warn(&self, warning: VertexWarning) {
        Self::warn(self, warning);
    }
}

/// This moment.
pub fn now() -> prost_types::Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(vertex: &str, text: &str) -> VertexLog {
        VertexLog { vertex: vertex.into(), msg: text.into(), ..VertexLog::default() }
    }

    #[tokio::test]
    async fn who_comes_late_hears_everything() {
        let progress = Arc::new(Progress::default());
        let step = progress.step("[internal] load x");
        progress.log(log(step.digest(), "one\n"));
        let mut early = progress.listen();
        let first = early.next().await.unwrap();
        assert_eq!((first[0].vertexes.len(), first[0].logs.len()), (1, 1));
        progress.log(log(step.digest(), "two\n"));
        step.end(&Ok::<(), String>(()));
        progress.finish();
        let second = early.next().await.unwrap();
        assert!(second[0].vertexes[0].completed.is_some());
        assert_eq!(second[0].logs[0].msg, b"two\n");
        assert!(early.next().await.is_none());
        let mut late = progress.listen();
        let all = late.next().await.unwrap();
        assert_eq!((all[0].vertexes.len(), all[0].logs.len()), (1, 2));
        assert!(late.next().await.is_none());
        assert_eq!(progress.counts(), Counts { total: 1, completed: 1, ..Counts::default() });
    }

    #[tokio::test]
    async fn output_has_an_end_and_fits_into_messages() {
        let progress = Arc::new(Progress::default());
        for _ in 0..5 {
            progress.log(log("a", &"x".repeat(1 << 20)));
        }
        progress.log(log("b", "fine"));
        progress.finish();
        let all = progress.listen().next().await.unwrap();
        assert!(all.iter().all(|m| m.logs.iter().map(|l| l.msg.len()).sum::<usize>() < 4 << 20));
        let text: Vec<u8> =
            all.iter().flat_map(|m| &m.logs).filter(|l| l.vertex == "a").flat_map(|l| l.msg.clone()).collect();
        assert!(text.ends_with(CLIPPED.as_bytes()));
        assert_eq!(text.len(), LOG_LIMIT + CLIPPED.len());
        assert_eq!(all.iter().flat_map(|m| &m.logs).filter(|l| l.vertex == "b").count(), 1);
    }

    #[tokio::test]
    async fn a_step_that_is_dropped_was_cancelled() {
        let progress = Arc::new(Progress::default());
        drop(progress.step("exporting to image"));
        let told = progress.listen().next().await.unwrap();
        assert_eq!(told[0].vertexes[0].error, "context canceled");
    }
}
