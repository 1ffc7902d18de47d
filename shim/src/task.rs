//! One container: its state has one writer, the task here, at which all requests and all exits queue.
//!
//! ```text
//!            Create                Start                 exit
//!   (none) ──────────▶ Created ──────────▶ Running ──────────────▶ Stopped ──Delete──▶ (none)
//!                         │                 │   ▲                   ▲  ▲
//!                         │            Pause▼   │Resume             │  │
//!                         │                Paused ──────exit────────┘  │
//!                         └───Delete: kill─────────────exit────────────┘
//!
//!   restored from a checkpoint: Create ▶ Unrestored ──Start: runtime restores──▶ Running; Delete needs no kill
//!
//!   exec:  Exec ▶ Created ──Start▶ Starting ──runtime done▶ Running ──exit▶ Stopped ──Delete▶ (none)
//!                    └──────────Delete──────────────────────────────────────────────────────▶
//! ```
//! Stopped has two steps. When a process is reaped, its exit is recorded in the bundle and its output is passed on; then the
//! exit is announced: event, waiters. Init is announced after all its execs. While the runtime works (`busy`) init's exit is held
//! back: so TaskStart always stands before TaskExit.

mod busy;
mod control;
mod end;
mod exec;
mod restore;

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use prost::{Message as Protobuf, Name};
use prost_types::Any;
use proto::{
    berth::streams::v1::AttachRequest,
    containerd::{
        events::{TaskCreate, TaskIo},
        task::v3::{
            CheckpointTaskRequest, CreateTaskRequest, DeleteResponse, ExecProcessRequest, PidsResponse, StateResponse,
            WaitResponse,
        },
    },
    id::ExecId,
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::restore::Restore;
use crate::{
    bundle::{Bundle, Key},
    cgroup::Cgroup,
    create,
    desk::Shim,
    error::TaskError,
    events::Topic,
    io::{IoError, ProcessIo},
    journal::Journal,
    oci::Oci,
    oom::OomWatch,
    process::{Process, Reply},
    reaper::Exit,
    rules::{Op, State, Who, judge},
};

/// A request about one container.
pub(crate) enum Call {
    /// Describe a process.
    State(Key, Reply<StateResponse>),
    /// Let a process run; gives its pid.
    Start(Key, Reply<u32>),
    /// Forget a process that has ended.
    Delete(Key, Reply<DeleteResponse>),
    /// List all processes.
    Pids(Reply<PidsResponse>),
    /// Freeze.
    Pause(Reply<()>),
    /// Thaw.
    Resume(Reply<()>),
    /// Send a signal, to all processes if so asked.
    Kill(Key, u32, bool, Reply<()>),
    /// Make an exec known.
    Exec(ExecProcessRequest, Reply<()>),
    /// Set the size of a terminal: columns, rows.
    Resize(Key, u16, u16, Reply<()>),
    /// Close stdin.
    CloseIo(Key, Reply<()>),
    /// Change limits (runtime-spec LinuxResources as JSON).
    Update(Vec<u8>, Reply<()>),
    /// Write an image of all processes.
    Checkpoint(CheckpointTaskRequest, Reply<()>),
    /// Wait for the end.
    Wait(Key, Reply<WaitResponse>),
    /// Measure.
    Stats(Reply<Any>),
    /// The pid of init.
    InitPid(Reply<u32>),
    /// Join FIFOs to a process.
    Attach(AttachRequest, Reply<()>),
    /// Begin the log files of a process anew.
    ReopenLog(Key, Reply<()>),
}

/// A process that its runtime has made.
pub(crate) struct Started {
    /// Its pid on the host.
    pub(crate) pid: u32,
    /// Its end.
    pub(crate) exit: oneshot::Receiver<Exit>,
    /// Its stdio.
    pub(crate) io: ProcessIo,
}

/// What queues at a container's task.
pub(crate) enum Message {
    /// A request.
    Call(Call),
    /// The runtime is done with an operation on the container.
    Done(busy::Finish),
    /// The runtime is done with starting an exec.
    ExecStarted(Key, Result<Started, TaskError>, Reply<u32>),
    /// A process has been reaped.
    Exited(Key, Exit),
    /// Its output is through.
    Settled(Key),
    /// Init's exit has waited long enough for its execs'.
    Overdue,
}

/// A container and all that belongs to it.
pub(crate) struct Task {
    pub(crate) shim: Rc<Shim>,
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) journal: Rc<Journal>,
    pub(crate) oci: Rc<Oci>,
    pub(crate) init: Process,
    pub(crate) own_pids: bool,
    /// Where its resources are counted, as long as it isn't deleted.
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) oom: Option<OomWatch>,
    pub(crate) inbox: mpsc::UnboundedSender<Message>,
    pub(crate) execs: HashMap<String, Process>,
    pub(crate) owner: (u32, u32),
    /// What Start restores the container from, as long as it hasn't.
    pub(crate) restore: Option<Restore>,
    /// Init's output is through; its exit waits for those of execs.
    pub(crate) init_settled: bool,
    /// Deletes that came before the end was announced.
    pub(crate) deletes: Vec<(Key, Reply<DeleteResponse>)>,
    /// What the runtime works on.
    pub(crate) busy: Option<Op>,
    /// What waits for it.
    pub(crate) held: VecDeque<Message>,
    /// Deleted.
    pub(crate) gone: bool,
}

/// Builds the container and serves it until it is deleted.
pub(crate) async fn run(
    shim: Rc<Shim>,
    request: CreateTaskRequest,
    inbox: mpsc::UnboundedSender<Message>,
    mut messages: mpsc::UnboundedReceiver<Message>,
    reply: Reply<u32>,
) {
    let id = request.id.clone();
    let event = TaskCreate {
        container_id: id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(TaskIo {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint.clone(),
        pid: 0,
    };
    let mut task = match create::create(&shim, request, inbox).await {
        Ok((task, exit)) => {
            if let Some(exit) = exit {
                watch_exit(&task.inbox, Key::Init, exit);
            }
            task
        }
        Err(error) => {
            // Before the answer, so that the caller may use the name again.
            shim.forget(&id);
            let _ = reply.send(Err(error));
            return;
        }
    };
    task.tell(Topic::Create, &TaskCreate { pid: task.init.pid, ..event });
    proto::fault!("shim.create.announced");
    let _ = reply.send(Ok(task.init.pid));
    proto::fault!("shim.create.answered");
    sys::memory::trim_heap();
    while let Some(message) = messages.recv().await {
        task.take(message);
        if task.gone {
            return;
        }
    }
}

fn watch_exit(inbox: &mpsc::UnboundedSender<Message>, key: Key, exit: oneshot::Receiver<Exit>) {
    let inbox = inbox.clone();
    tokio::task::spawn_local(async move {
        if let Ok(exit) = exit.await {
            let _ = inbox.send(Message::Exited(key, exit));
        }
    });
}

impl Task {
    fn tell<M: Protobuf + Name>(&self, topic: Topic, event: &M) {
        self.shim.events.push(&self.journal, topic, event);
    }

    fn process(&mut self, key: &Key) -> Result<&mut Process, TaskError> {
        match key {
            Key::Init => Ok(&mut self.init),
            Key::Exec(exec) => self
                .execs
                .get_mut(exec)
                .ok_or_else(|| TaskError::NoExec { container: self.id.clone(), exec: exec.clone() }),
        }
    }

    fn name(&self, key: &Key) -> String {
        match key {
            Key::Init => format!("container {}", self.id),
            Key::Exec(exec) => format!("exec {exec} of container {}", self.id),
        }
    }

    /// The process, if `op` may be done to it.
    fn admit(&mut self, op: Op, verb: &'static str, key: &Key) -> Result<&mut Process, TaskError> {
        let init = self.init.state;
        let who = if *key == Key::Init { Who::Init } else { Who::Exec };
        let state = self.process(key)?.state;
        match judge(op, who, state, init) {
            Ok(()) => self.process(key),
            Err(refusal) => Err(TaskError::Refused { op: verb, id: self.name(key), refusal }),
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Call(call) => self.call(call),
            // `take` has run it.
            Message::Done(_) => {}
            Message::ExecStarted(key, result, reply) => {
                let answer = result.and_then(|started| self.exec_started(&key, started));
                if answer.is_err()
                    && let Ok(exec) = self.process(&key)
                {
                    exec.state = State::Stopped;
                    let exit = Exit { status: 255, at: std::time::SystemTime::now() };
                    // It never ran: nothing is recorded or sent, but whoever waits must hear of it.
                    exec.exit = Some(exit);
                    exec.tell_waiters(exit);
                }
                let _ = reply.send(answer);
                self.announce_init_if_due(false);
            }
            Message::Exited(key, exit) => self.exited(&key, exit),
            Message::Settled(key) => {
                if key == Key::Init {
                    self.init_settled = true;
                } else {
                    self.announce(&key);
                    if let Some(place) = self.deletes.iter().position(|(waiting, _)| *waiting == key) {
                        let (key, reply) = self.deletes.swap_remove(place);
                        let _ = reply.send(self.delete_exec(&key));
                    }
                }
                self.announce_init_if_due(false);
            }
            Message::Overdue => self.announce_init_if_due(true),
        }
    }

    fn call(&mut self, call: Call) {
        // A caller that has gone needs no answer: results of `send` are dropped.
        match call {
            Call::State(key, reply) => {
                let (id, bundle) = (self.id.clone(), self.bundle.path().display().to_string());
                let _ = reply.send(self.process(&key).map(|process| process.describe(&id, &bundle)));
            }
            Call::Start(Key::Init, reply) => self.start(reply),
            Call::Start(key, reply) => self.start_exec(key, reply),
            Call::Delete(Key::Init, reply) => self.delete(reply),
            Call::Delete(key, reply) => match self.admit(Op::Delete, "delete", &key) {
                Ok(exec) if exec.state == State::Stopped && !exec.announced => self.deletes.push((key, reply)),
                Ok(_) => drop(reply.send(self.delete_exec(&key))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Call::Pids(reply) => self.pids(reply),
            Call::Pause(reply) => self.pause(reply),
            Call::Resume(reply) => self.resume(reply),
            Call::Kill(key, signal, all, reply) => self.kill(&key, signal, all, reply),
            Call::Exec(request, reply) => drop(reply.send(self.add_exec(request))),
            Call::Resize(key, columns, rows, reply) => {
                let _ = reply.send(self.resize(&key, (columns, rows)));
            }
            Call::CloseIo(key, reply) => {
                let closed = self.admit(Op::CloseIo, "close stdin of", &key).map(|process| match &process.io {
                    Some(io) => io.close_stdin(),
                    None => process.early_close = true,
                });
                let _ = reply.send(closed);
            }
            Call::Update(resources, reply) => self.update(resources, reply),
            Call::Checkpoint(request, reply) => self.checkpoint(request, reply),
            Call::Wait(key, reply) => match self.process(&key) {
                Ok(process) => process.wait(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Call::Stats(reply) => drop(reply.send(self.stats())),
            Call::InitPid(reply) => drop(reply.send(Ok(self.init.pid))),
            Call::Attach(request, reply) => {
                let key = key_of(&request.exec_id);
                let done = key.and_then(|key| {
                    let started = self.process(&key)?.state != State::Created;
                    self.with_io(Op::Attach, "attach to", &key, |io| io.attach(&request, started))
                });
                let _ = reply.send(done);
            }
            Call::ReopenLog(key, reply) => {
                let id = self.name(&key);
                let io = self.admit(Op::Attach, "reopen the log of", &key).map(|process| process.io.as_ref());
                match io.map(|io| io.map(ProcessIo::reopen)) {
                    Err(error) => drop(reply.send(Err(error))),
                    Ok(None) => drop(reply.send(Err(TaskError::Io { id, cause: IoError::NoFile }))),
                    // A disk may take its time, and others need not wait for it.
                    Ok(Some(reopening)) => drop(tokio::task::spawn_local(async move {
                        let _ = reply.send(reopening.await.map_err(|cause| TaskError::Io { id, cause }));
                    })),
                }
            }
        }
    }

    fn with_io(
        &mut self,
        op: Op,
        verb: &'static str,
        key: &Key,
        work: impl FnOnce(&ProcessIo) -> Result<(), IoError>,
    ) -> Result<(), TaskError> {
        let id = self.name(key);
        let process = self.admit(op, verb, key)?;
        let io = process.io.as_ref().ok_or(IoError::NoStream("stdio"));
        io.and_then(work).map_err(|cause| TaskError::Io { id, cause })
    }
}

/// The process that a request's `exec_id` means.
pub(crate) fn key_of(exec_id: &str) -> Result<Key, TaskError> {
    match exec_id {
        "" => Ok(Key::Init),
        exec => Ok(Key::Exec(String::from(ExecId::new(exec)?))),
    }
}
