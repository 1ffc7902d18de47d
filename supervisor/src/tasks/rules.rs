//! Which request is accepted in which state: a pure function, asked before anything is done.
//!
//! ```text
//!            create          start           exit
//! (nothing) -------> Created -----> Running -----> Stopped --delete--> (nothing)
//!                      |            ^     |           ^
//!                      |     resume |     | pause     | exit
//!                      |            |     v           |
//!                      |            Paused -----------+
//!                      +--delete / exit before start--> (nothing) / Stopped
//! ```
//! The shim decides in the end, since a process can exit at any moment; what is refused here spares it the call, and
//! answers for tasks whose shim is gone.

use proto::kind::ErrorKind;

/// The state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Made, waiting for start.
    Created,
    /// At work.
    Running,
    /// Frozen.
    Paused,
    /// Ended; its exit is known.
    Stopped,
}

/// What is asked of a task's init process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Let it run.
    Start,
    /// One more process.
    Exec,
    /// A signal.
    Kill,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// New limits.
    Update,
    /// An image of its processes.
    Checkpoint,
    /// Forget it.
    Delete,
    /// Processes, resource use, stdio.
    Inspect,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Start needs a task that waits for it.
    #[error("can't start, it is {0}")]
    NotCreated(&'static str),
    /// Exec, update and the like need a live container.
    #[error("not running")]
    NotRunning,
    /// Delete needs an ended one.
    #[error("still {0}: kill it first")]
    StillRunning(&'static str),
    /// Pause needs a running one.
    #[error("can't pause, it is {0}")]
    NotPausable(&'static str),
    /// Resume needs a paused one.
    #[error("can't resume, it is {0}")]
    NotPaused(&'static str),
    /// A frozen container can't start anything: the runtime would wait for its thaw.
    #[error("paused: resume it first")]
    Paused,
    /// Nobody is there to get the signal. Clients of containerd look for these words and for NOT_FOUND.
    #[error("process already finished")]
    Finished,
}

impl Refusal {
    /// What kind of failure it is.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Finished => ErrorKind::NotFound,
            _ => ErrorKind::FailedPrecondition,
        }
    }
}

impl State {
    /// The state as a word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// Whether `request` may be passed to the shim of a task in `state`.
pub(crate) fn accept(request: Request, state: State) -> Result<(), Refusal> {
    use State::{Created, Paused, Running, Stopped};
    match (request, state) {
        (Request::Start, Created) => Ok(()),
        (Request::Start, _) => Err(Refusal::NotCreated(state.word())),
        (Request::Delete, Created | Stopped) => Ok(()),
        (Request::Delete, _) => Err(Refusal::StillRunning(state.word())),
        (Request::Pause, Running) => Ok(()),
        (Request::Pause, _) => Err(Refusal::NotPausable(state.word())),
        (Request::Resume, Paused) => Ok(()),
        (Request::Resume, _) => Err(Refusal::NotPaused(state.word())),
        (Request::Kill, Stopped) => Err(Refusal::Finished),
        (Request::Exec, Paused) => Err(Refusal::Paused),
        // What has not begun has nothing to keep.
        (Request::Checkpoint, Created) => Err(Refusal::NotRunning),
        (Request::Exec | Request::Update | Request::Checkpoint | Request::Inspect, Stopped) => Err(Refusal::NotRunning),
        (Request::Kill | Request::Exec | Request::Update | Request::Checkpoint | Request::Inspect, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        use State::{Created, Paused, Running, Stopped};
        // One row per request: accepted in created, running, paused, stopped.
        for (request, row) in [
            (Request::Start, [true, false, false, false]),
            (Request::Exec, [true, true, false, false]),
            (Request::Kill, [true, true, true, false]),
            (Request::Pause, [false, true, false, false]),
            (Request::Resume, [false, false, true, false]),
            (Request::Update, [true, true, true, false]),
            (Request::Checkpoint, [false, true, true, false]),
            (Request::Delete, [true, false, false, true]),
            (Request::Inspect, [true, true, true, false]),
        ] {
            for (state, accepted) in [Created, Running, Paused, Stopped].into_iter().zip(row) {
                assert_eq!(accept(request, state).is_ok(), accepted, "{request:?} while {state:?}");
            }
        }
        assert_eq!(accept(Request::Kill, Stopped).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(accept(Request::Delete, Running).unwrap_err().to_string(), "still running: kill it first");
    }
}
