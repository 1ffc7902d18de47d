//! Accept or refuse: the one place that says which request a container in which state takes. Pure, a table in the tests.

use super::record::Phase;
use crate::http::ApiError;

/// Requests that depend on the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Start the process.
    Start,
    /// End it with grace.
    Stop,
    /// Send a signal.
    Kill,
    /// Freeze.
    Pause,
    /// Thaw.
    Unpause,
    /// Run another process in it.
    Exec,
    /// Tell it the size of the terminal.
    Resize,
    /// Take apart.
    Remove,
    /// Take apart, ending the process first.
    RemoveByForce,
    /// List its processes.
    Top,
}

/// `Ok` if the request may go ahead.
pub fn decide(operation: Operation, phase: Phase, id: &str, name: &str) -> Result<(), ApiError> {
    use Operation as Op;
    let not_running = || ApiError::conflict(format!("container {id} is not running"));
    match (operation, phase) {
        (_, Phase::Removing) if operation != Op::RemoveByForce && operation != Op::Remove => {
            Err(ApiError::conflict(format!("container {id} is marked for removal and cannot be used")))
        }
        (Op::Remove | Op::RemoveByForce, Phase::Removing) => {
            Err(ApiError::conflict(format!("removal of container {name} is already in progress")))
        }

        (Op::Start, Phase::Running) => Err(ApiError::not_modified()),
        (Op::Start, Phase::Paused) => Err(ApiError::conflict("cannot start a paused container, try unpause instead")),
        (Op::Start, _) => Ok(()),

        (Op::Stop, Phase::Created | Phase::Exited) => Err(ApiError::not_modified()),
        (Op::Stop, _) => Ok(()),

        (Op::Kill, Phase::Running | Phase::Paused) => Ok(()),
        (Op::Kill, _) => {
            Err(ApiError::conflict(format!("cannot kill container: {name}: container {id} is not running")))
        }

        (Op::Pause, Phase::Running) => Ok(()),
        (Op::Pause, Phase::Paused) => Err(ApiError::conflict(format!("container {id} is already paused"))),
        (Op::Pause, _) => Err(not_running()),
        (Op::Unpause, Phase::Paused) => Ok(()),
        (Op::Unpause, _) => Err(ApiError::conflict(format!("container {id} is not paused"))),

        (Op::Exec, Phase::Paused) => {
            Err(ApiError::conflict(format!("container {name} is paused, unpause the container before exec")))
        }
        (Op::Exec | Op::Resize | Op::Top, Phase::Running) | (Op::Resize | Op::Top, Phase::Paused) => Ok(()),
        (Op::Exec, Phase::Restarting) => {
            Err(ApiError::conflict(format!("container {id} is restarting, wait until the container is running")))
        }
        (Op::Exec | Op::Resize | Op::Top, _) => Err(not_running()),

        (Op::Remove, Phase::Running) => {
            Err(in_use(name, "running", "stop the container before removing or force remove"))
        }
        (Op::Remove, Phase::Paused) => {
            Err(in_use(name, "paused", "unpause and then stop the container before removing or force remove"))
        }
        (Op::Remove, Phase::Restarting) => {
            Err(in_use(name, "restarting", "stop the container before removing or force remove"))
        }
        (Op::Remove | Op::RemoveByForce, _) => Ok(()),
    }
}

fn in_use(name: &str, state: &str, cure: &str) -> ApiError {
    ApiError::conflict(format!("cannot remove container \"/{name}\": container is {state}: {cure}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        use Operation as Op;
        use Phase::{Created, Exited, Paused, Removing, Restarting, Running};
        // 0 stands for "goes ahead", else the status of the refusal.
        let phases = [Created, Running, Paused, Restarting, Exited, Removing];
        let table = [
            (Op::Start, [0, 304, 409, 0, 0, 409]),
            (Op::Stop, [304, 0, 0, 0, 304, 409]),
            (Op::Kill, [409, 0, 0, 409, 409, 409]),
            (Op::Pause, [409, 0, 409, 409, 409, 409]),
            (Op::Unpause, [409, 409, 0, 409, 409, 409]),
            (Op::Exec, [409, 0, 409, 409, 409, 409]),
            (Op::Resize, [409, 0, 0, 409, 409, 409]),
            (Op::Top, [409, 0, 0, 409, 409, 409]),
            (Op::Remove, [0, 409, 409, 409, 0, 409]),
            (Op::RemoveByForce, [0, 0, 0, 0, 0, 409]),
        ];
        for (operation, row) in table {
            for (phase, expected) in phases.into_iter().zip(row) {
                let got = decide(operation, phase, "id", "name").map_or_else(|e| e.status.as_u16(), |()| 0);
                assert_eq!(got, expected, "{operation:?} in {phase:?}");
            }
        }
    }

    #[test]
    fn texts_that_clients_look_for() {
        let text = |op, phase| decide(op, phase, "1234", "web").unwrap_err().message;
        assert_eq!(
            text(Operation::Remove, Phase::Running),
            "cannot remove container \"/web\": container is running: stop the container before removing or force remove"
        );
        assert!(text(Operation::Kill, Phase::Exited).contains("is not running"));
    }
}
