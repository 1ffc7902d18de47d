//! What a build tells of itself: the solver's board, with steps of the builder's own beside the operations.

use proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use solver::{Board, worker::Progress as _};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long what comes is gathered before a listener is told: bars that move needn't be told every time.
const GATHER: Duration = Duration::from_millis(30);
/// Bytes of output in one message: gRPC's limit is 4 MiB.
const PORTION: usize = 1 << 20;

/// All of it, for any number of listeners, also those who come late.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Board>);

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

impl Progress {
    /// Where the solver tells of operations.
    pub fn board(&self) -> &Arc<Board> {
        &self.0
    }

    /// The state of a step.
    pub fn vertex(&self, vertex: Vertex) {
        self.0.put(vertex);
    }

    /// Output of a step.
    pub fn log(&self, log: VertexLog) {
        self.0.log(log);
    }

    /// How far something is.
    #[allow(dead_code, reason = "exporters tell how far they are")]
    pub fn status(&self, status: VertexStatus) {
        self.0.status(status);
    }

    /// Something to think about.
    pub fn warn(&self, warning: VertexWarning) {
        self.0.warn(warning);
    }

    /// There is nothing more to come.
    pub fn finish(&self) {
        self.0.finish();
    }

    /// From the beginning.
    pub fn listen(&self) -> Listener {
        Listener { heard: self.0.listen(), first: true }
    }

    /// Numbers for the history.
    pub fn counts(&self) -> Counts {
        let summary = self.0.summary();
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        Counts {
            total: number(summary.total),
            completed: number(summary.completed),
            cached: number(summary.cached),
            warnings: number(summary.warnings),
        }
    }

    /// A step of the builder's own, that is no operation: loading, exporting. Told as begun.
    pub fn step(&self, name: &str) -> OwnStep {
        let digest = proto::digest::Digest::of(format!("{name}\0{:?}", SystemTime::now()).as_bytes()).to_string();
        let vertex = Vertex { digest, name: name.to_owned(), started: Some(now()), ..Vertex::default() };
        self.vertex(vertex.clone());
        OwnStep { progress: self.clone(), vertex, ended: false }
    }
}

/// Hears everything once.
#[derive(Debug)]
pub struct Listener {
    heard: solver::Listener,
    first: bool,
}

impl Listener {
    /// What is new, as soon as something is; nothing at the end.
    pub async fn next(&mut self) -> Option<Vec<StatusResponse>> {
        if !std::mem::take(&mut self.first) {
            tokio::time::sleep(GATHER).await;
        }
        self.heard.next().await.map(portions)
    }
}

/// The same in messages that aren't too large.
fn portions(mut whole: StatusResponse) -> Vec<StatusResponse> {
    let logs = std::mem::take(&mut whole.logs);
    let mut messages = vec![whole];
    let mut length = 0;
    for log in logs {
        if length > PORTION {
            messages.push(StatusResponse::default());
            length = 0;
        }
        length += log.msg.len();
        if let Some(message) = messages.last_mut() {
            message.logs.push(log);
        }
    }
    messages
}

/// A step that is under way; dropped without having ended, it was cancelled.
#[derive(Debug)]
pub struct OwnStep {
    progress: Progress,
    vertex: Vertex,
    ended: bool,
}

impl OwnStep {
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

/// This moment.
pub fn now() -> prost_types::Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(vertex: &str, length: usize) -> VertexLog {
        VertexLog { vertex: vertex.into(), msg: vec![b'x'; length], ..VertexLog::default() }
    }

    #[tokio::test]
    async fn who_comes_late_hears_everything() {
        let progress = Progress::default();
        let step = progress.step("[internal] load x");
        let mut early = progress.listen();
        assert_eq!(early.next().await.unwrap()[0].vertexes.len(), 1);
        step.end(&Ok::<(), String>(()));
        progress.finish();
        assert!(early.next().await.unwrap()[0].vertexes[0].completed.is_some());
        assert!(early.next().await.is_none());
        let mut late = progress.listen();
        assert_eq!(late.next().await.unwrap()[0].vertexes.len(), 1);
        assert!(late.next().await.is_none());
    }

    #[test]
    fn output_fits_into_messages() {
        let logs = (0..5).map(|_| log("a", 1 << 20)).chain([log("b", 3)]).collect();
        let messages = portions(StatusResponse { logs, ..StatusResponse::default() });
        assert!(messages.iter().all(|m| m.logs.iter().map(|l| l.msg.len()).sum::<usize>() < 4 << 20));
        assert_eq!(messages.iter().map(|m| m.logs.len()).sum::<usize>(), 6);
    }

    #[tokio::test]
    async fn a_step_that_is_dropped_was_cancelled() {
        let progress = Progress::default();
        drop(progress.step("exporting to image"));
        let told = progress.listen().next().await.unwrap();
        assert_eq!(told[0].vertexes[0].error, "context canceled");
    }
}
