//! Which requests fit which state: one pure function, one table.

use proto::kind::ErrorKind;

/// State of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Init: built, waiting at the gate. Exec: known, not started.
    Created,
    /// Init: everything is there but its processes, which Start restores from a checkpoint.
    Unrestored,
    /// An exec whose runtime is at work.
    Starting,
    /// Its program runs.
    Running,
    /// Frozen with the whole container (init only).
    Paused,
    /// It has ended.
    Stopped,
}

/// Which process a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The container's own.
    Init,
    /// One that joined.
    Exec,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Let it run.
    Start,
    /// Forget it.
    Delete,
    /// Signal it.
    Kill,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change limits.
    Update,
    /// Write an image of it.
    Checkpoint,
    /// Make an exec known.
    AddExec,
    /// List processes.
    Pids,
    /// Measure.
    Stats,
    /// Set the terminal's size.
    Resize,
    /// Close stdin.
    CloseIo,
    /// Join FIFOs.
    Attach,
}

/// Why a request doesn't fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Refusal {
    /// The kind for the caller's program.
    pub(crate) kind: ErrorKind,
    /// The reason for people; the words for ended processes are those that docker looks for.
    pub(crate) reason: &'static str,
}

fn no(reason: &'static str) -> Result<(), Refusal> {
    Err(Refusal { kind: ErrorKind::FailedPrecondition, reason })
}

/// A client of containerd gets the same words about an exec without a process.
const UNRESTORED: &str = "process not created: start restores it from its checkpoint";

/// Whether `op` may be done to a process in state `process`, in a container whose init is in state `init`.
pub(crate) fn judge(op: Op, who: Who, process: State, init: State) -> Result<(), Refusal> {
    use State::{Created, Paused, Running, Starting, Stopped, Unrestored};
    match (op, who, process) {
        (Op::Start, _, Created) if who == Who::Init || matches!(init, Running | Created) => Ok(()),
        (Op::Start, _, Unrestored) => Ok(()),
        (Op::Start, Who::Exec, Created) if init == Paused => no("the container is paused"),
        (Op::Start, Who::Exec, Created) => no("the container has stopped"),
        (Op::Start, _, Starting | Running | Paused) => no("it has been started already"),
        (Op::Start, _, _) => no("it has stopped"),

        (Op::Delete, _, Created | Unrestored | Stopped) => Ok(()),
        (Op::Resize | Op::CloseIo, _, Unrestored) => Ok(()),
        // As containerd's, but for what would only fail in a runtime that doesn't know the container yet.
        (_, _, Unrestored) => no(UNRESTORED),
        (Op::Delete, _, Starting) => no("it is being started"),
        (Op::Delete, _, _) => no("it is still running"),

        (Op::Kill, _, Stopped) => Err(Refusal { kind: ErrorKind::NotFound, reason: "process already finished" }),
        (Op::Kill, Who::Exec, Created) => no("it has not been started"),
        (Op::Kill, _, Starting) => no("it is being started"),
        (Op::Kill, _, _) => Ok(()),

        (Op::Pause, _, Running) | (Op::Resume, _, Paused) => Ok(()),
        (Op::Pause, _, Paused) => no("it is paused already"),
        (Op::Pause, _, _) => no("it is not running"),
        (Op::Resume, _, _) => no("it is not paused"),

        (Op::Checkpoint, _, Running | Paused) => Ok(()),
        (Op::Checkpoint, _, _) => no("it is not running"),

        (Op::AddExec, _, Paused) => no("the container is paused"),
        (Op::Update | Op::AddExec, _, Stopped) => no("the container has stopped"),
        (Op::Update | Op::AddExec | Op::Pids | Op::Stats, _, _) => Ok(()),

        (Op::Attach, _, Stopped) | (Op::Resize, Who::Exec, Stopped) => no("it has stopped"),
        (Op::Attach, Who::Exec, Created | Starting) => no("it has not been started"),
        (Op::Attach, _, _) => Ok(()),

        // As containerd's shim: a process that has no terminal yet, or none any more, or stdin, has nothing against it.
        (Op::Resize | Op::CloseIo, _, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] =
        [State::Created, State::Starting, State::Running, State::Paused, State::Stopped, State::Unrestored];

    /// One letter per state of [`STATES`]: `y` yes, `n` failed precondition, `g` gone (not found), `-` can't happen.
    #[test]
    fn table_for_init() {
        for (op, expected) in [
            (Op::Start, "y-nnny"),
            (Op::Delete, "y-nnyy"),
            (Op::Kill, "y-yygn"),
            (Op::Pause, "n-ynnn"),
            (Op::Resume, "n-nynn"),
            (Op::Update, "y-yynn"),
            (Op::Checkpoint, "n-yynn"),
            (Op::AddExec, "y-ynnn"),
            (Op::Pids, "y-yyyn"),
            (Op::Stats, "y-yyyn"),
            (Op::Resize, "y-yyyy"),
            (Op::CloseIo, "y-yyyy"),
            (Op::Attach, "y-yynn"),
        ] {
            check(op, Who::Init, expected, |process| process);
        }
    }

    #[test]
    fn table_for_execs() {
        for (op, expected) in [
            (Op::Start, "ynn-n"),
            (Op::Delete, "ynn-y"),
            (Op::Kill, "nny-g"),
            (Op::Resize, "yyy-n"),
            (Op::CloseIo, "yyy-y"),
            (Op::Attach, "nny-n"),
        ] {
            check(op, Who::Exec, expected, |_| State::Running);
        }
        for init in [State::Paused, State::Stopped] {
            assert!(judge(Op::Start, Who::Exec, State::Created, init).is_err(), "{init:?}");
        }
    }

    fn check(op: Op, who: Who, expected: &str, init: impl Fn(State) -> State) {
        for (state, letter) in STATES.into_iter().zip(expected.chars()) {
            let kind = judge(op, who, state, init(state)).map_err(|refusal| refusal.kind);
            match letter {
                'y' => assert_eq!(kind, Ok(()), "{op:?} {state:?}"),
                'n' => assert_eq!(kind, Err(ErrorKind::FailedPrecondition), "{op:?} {state:?}"),
                'g' => assert_eq!(kind, Err(ErrorKind::NotFound), "{op:?} {state:?}"),
                _ => {}
            }
        }
    }
}
