//! One process of a container: init or an exec.

use proto::containerd::task::v3::{DeleteResponse, StateResponse, WaitResponse};
use tokio::sync::oneshot;

use crate::{
    bundle::Key,
    clock,
    error::TaskError,
    io::{ProcessIo, StdioConfig},
    reaper::Exit,
    rules::State,
};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, TaskError>>;

/// What is known of a process.
pub(crate) struct Process {
    /// Which it is.
    pub(crate) key: Key,
    /// Its state.
    pub(crate) state: State,
    /// Its pid on the host; 0 before there is one.
    pub(crate) pid: u32,
    /// How it ended.
    pub(crate) exit: Option<Exit>,
    /// Its end has been told; before that, waiters wait.
    pub(crate) announced: bool,
    /// Where its stdio was to lead.
    pub(crate) stdio: StdioConfig,
    /// Its stdio, once there is a process.
    pub(crate) io: Option<ProcessIo>,
    /// Size for its terminal, columns and rows, asked for before there was one.
    pub(crate) early_size: Option<(u16, u16)>,
    /// Its stdin was closed before it had one.
    pub(crate) early_close: bool,
    /// The OCI process of an exec that hasn't been started.
    pub(crate) spec: Vec<u8>,
    waiters: Vec<Reply<WaitResponse>>,
}

impl Process {
    /// A process that doesn't run yet.
    pub(crate) fn new(key: Key, stdio: StdioConfig, spec: Vec<u8>) -> Self {
        Self {
            key,
            state: State::Created,
            pid: 0,
            exit: None,
            announced: false,
            stdio,
            io: None,
            early_size: None,
            early_close: false,
            spec,
            waiters: Vec::new(),
        }
    }

    /// The answer to State.
    pub(crate) fn describe(&self, container: &str, bundle: &str) -> StateResponse {
        use proto::containerd::v1::types::Status;
        let status = match self.state {
            State::Created | State::Unrestored | State::Starting => Status::Created,
            State::Running => Status::Running,
            State::Paused => Status::Paused,
            State::Stopped => Status::Stopped,
        };
        StateResponse {
            id: container.to_owned(),
            bundle: bundle.to_owned(),
            pid: self.pid,
            status: status.into(),
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            exit_status: self.exit.map_or(0, |exit| exit.status),
            exited_at: self.exit.map(|exit| clock::timestamp(exit.at)),
            exec_id: match &self.key {
                Key::Init => String::new(),
                Key::Exec(id) => id.clone(),
            },
        }
    }

    /// The answer to Delete.
    pub(crate) fn obituary(&self) -> DeleteResponse {
        DeleteResponse {
            pid: self.pid,
            exit_status: self.exit.map_or(0, |exit| exit.status),
            exited_at: self.exit.map(|exit| clock::timestamp(exit.at)),
        }
    }

    /// Answers when the end has been told, at once if it has been.
    pub(crate) fn wait(&mut self, reply: Reply<WaitResponse>) {
        match self.exit {
            Some(exit) if self.announced => drop(reply.send(Ok(answer(exit)))),
            _ => {
                // Callers that went away would pile up in a container that lives long.
                self.waiters.retain(|waiter| !waiter.is_closed());
                self.waiters.push(reply);
            }
        }
    }

    /// Tells all who wait.
    pub(crate) fn tell_waiters(&mut self, exit: Exit) {
        self.announced = true;
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Ok(answer(exit)));
        }
    }
}

fn answer(exit: Exit) -> WaitResponse {
    WaitResponse { exit_status: exit.status, exited_at: Some(clock::timestamp(exit.at)) }
}
