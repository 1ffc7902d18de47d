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
//!   exec:  Exec ▶ Created ──Start▶ Starting ──runtime done▶ Running ──exit▶ Stopped ──Delete▶ (none)
//!                    └──────────Delete──────────────────────────────────────────────────────▶
//! ```
//! Stopped has two steps. When a process is reaped, its exit is recorded in the bundle and its output is passed on; then the
//! exit is announced: event, waiters. Init is announced after all its execs. An exit that comes while a request is worked on
//! queues behind it: so TaskStart always stands before TaskExit.

use std::{collections::HashMap, rc::Rc, time::Duration};

use nix::unistd::Pid;
use prost_types::Any;
use proto::{
    berth::streams::v1::AttachRequest,
    containerd::{
        events::{
            TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIo, TaskOom, TaskPaused, TaskResumed,
            TaskStart,
        },
        runc::v1::ProcessDetails,
        task::v3::{CreateTaskRequest, DeleteResponse, ExecProcessRequest, PidsResponse, StateResponse, WaitResponse},
        v1::types::ProcessInfo,
    },
    id::ExecId,
    typeurl,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    bundle::{Bundle, Key},
    cgroup::Cgroup,
    clock, create,
    desk::Shim,
    error::TaskError,
    events::Topic,
    io::{IoError, Prepared, ProcessIo, StdioConfig},
    mounts,
    oci::{Oci, OciError},
    oom::OomWatch,
    process::{Process, Reply},
    reaper::Exit,
    report::warn_line,
    rules::{Op, State, Who, judge},
    stats,
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
    /// Wait for the end.
    Wait(Key, Reply<WaitResponse>),
    /// Measure.
    Stats(Reply<Any>),
    /// The pid of init.
    InitPid(Reply<u32>),
    /// Join FIFOs to a process.
    Attach(AttachRequest, Reply<()>),
}

/// An exec that its runtime has started.
pub(crate) struct Started {
    pid: u32,
    exit: oneshot::Receiver<Exit>,
    io: ProcessIo,
}

/// What queues at a container's task.
pub(crate) enum Message {
    /// A request.
    Call(Call),
    /// The runtime is done with starting an exec.
    ExecStarted(Key, Result<Started, TaskError>, Reply<u32>),
    /// A process has been reaped.
    Exited(Key, Exit),
    /// Its output is through.
    Settled(Key),
    /// Init's exit has waited long enough for its execs'.
    Overdue,
}

/// How long init's exit may wait for the exits of execs. With a pid namespace of its own they are all dead before it; else
/// they have been killed, and only a process that the kernel can't kill is late.
const EXECS_LATE: Duration = Duration::from_secs(5);

/// A container and all that belongs to it.
pub(crate) struct Task {
    pub(crate) shim: Rc<Shim>,
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) oci: Rc<Oci>,
    pub(crate) init: Process,
    pub(crate) own_pids: bool,
    pub(crate) oom: Option<OomWatch>,
    pub(crate) inbox: mpsc::UnboundedSender<Message>,
    pub(crate) execs: HashMap<String, Process>,
    pub(crate) owner: (u32, u32),
    /// Init's output is through; its exit waits for those of execs.
    pub(crate) init_settled: bool,
    /// Deletes that came before the end was announced.
    pub(crate) deletes: Vec<(Key, Reply<DeleteResponse>)>,
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
            watch_exit(&task.inbox, Key::Init, exit);
            task
        }
        Err(error) => {
            // Before the answer, so that the caller may use the name again.
            shim.forget(&id);
            let _ = reply.send(Err(error));
            return;
        }
    };
    task.shim.events.push(Topic::Create, &TaskCreate { pid: task.init.pid, ..event });
    let _ = reply.send(Ok(task.init.pid));
    sys::memory::trim_heap();
    while let Some(message) = messages.recv().await {
        if task.handle(message).await {
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

    /// True when the container is gone.
    async fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::Call(Call::Delete(Key::Init, reply)) => return self.delete(reply).await,
            Message::Call(call) => self.call(call).await,
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
                return self.announce_init_if_due(false).await;
            }
            Message::Exited(key, exit) => self.exited(&key, exit).await,
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
                return self.announce_init_if_due(false).await;
            }
            Message::Overdue => return self.announce_init_if_due(true).await,
        }
        false
    }

    async fn call(&mut self, call: Call) {
        // A caller that has gone needs no answer: results of `send` are dropped.
        match call {
            Call::State(key, reply) => {
                let (id, bundle) = (self.id.clone(), self.bundle.path().display().to_string());
                let _ = reply.send(self.process(&key).map(|process| process.describe(&id, &bundle)));
            }
            Call::Start(Key::Init, reply) => drop(reply.send(self.start().await)),
            Call::Start(key, reply) => self.start_exec(key, reply),
            Call::Delete(key, reply) => match self.admit(Op::Delete, "delete", &key) {
                Ok(exec) if exec.state == State::Stopped && !exec.announced => self.deletes.push((key, reply)),
                Ok(_) => drop(reply.send(self.delete_exec(&key))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Call::Pids(reply) => drop(reply.send(self.pids().await)),
            Call::Pause(reply) => drop(reply.send(self.pause().await)),
            Call::Resume(reply) => drop(reply.send(self.resume().await)),
            Call::Kill(key, signal, all, reply) => drop(reply.send(self.kill(&key, signal, all).await)),
            Call::Exec(request, reply) => drop(reply.send(self.add_exec(request))),
            Call::Resize(key, columns, rows, reply) => {
                let done = self.with_io(Op::Resize, "resize", &key, |io| io.resize(columns, rows));
                let _ = reply.send(done);
            }
            Call::CloseIo(key, reply) => {
                let closed = self.admit(Op::CloseIo, "close stdin of", &key).map(|process| {
                    if let Some(io) = &process.io {
                        io.close_stdin();
                    }
                });
                let _ = reply.send(closed);
            }
            Call::Update(resources, reply) => drop(reply.send(self.update(&resources).await)),
            Call::Wait(key, reply) => match self.process(&key) {
                Ok(process) => process.wait(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Call::Stats(reply) => drop(reply.send(self.stats())),
            Call::InitPid(reply) => drop(reply.send(Ok(self.init.pid))),
            Call::Attach(request, reply) => {
                let key = key_of(&request.exec_id);
                let done = key.and_then(|key| self.with_io(Op::Attach, "attach to", &key, |io| io.attach(&request)));
                let _ = reply.send(done);
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

    async fn start(&mut self) -> Result<u32, TaskError> {
        self.admit(Op::Start, "start", &Key::Init)?;
        self.oci.start().await?;
        self.init.state = State::Running;
        self.shim.events.push(Topic::Start, &TaskStart { container_id: self.id.clone(), pid: self.init.pid });
        Ok(self.init.pid)
    }

    fn add_exec(&mut self, request: ExecProcessRequest) -> Result<(), TaskError> {
        let exec = String::from(ExecId::new(request.exec_id)?);
        if self.execs.contains_key(&exec) {
            return Err(TaskError::Exists { what: "exec", id: exec });
        }
        self.admit(Op::AddExec, "exec in", &Key::Init)?;
        let spec = request.spec.map(|any| any.value).unwrap_or_default();
        if spec.is_empty() {
            return Err(TaskError::Invalid(format!("exec {exec} has no process spec")));
        }
        let stdio = StdioConfig {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            owner: self.owner,
            stdin_waits: false,
        };
        let key = Key::Exec(exec.clone());
        self.execs.insert(exec.clone(), Process::new(key, stdio, spec));
        self.shim.events.push(Topic::ExecAdded, &TaskExecAdded { container_id: self.id.clone(), exec_id: exec });
        Ok(())
    }

    /// Execs start beside one another and beside other requests: the runtime's part runs on its own, and its result
    /// queues here.
    fn start_exec(&mut self, key: Key, reply: Reply<u32>) {
        let (shim, oci, inbox) = (self.shim.clone(), self.oci.clone(), self.inbox.clone());
        let id = self.name(&key);
        let exec = match self.admit(Op::Start, "start", &key) {
            Ok(exec) => exec,
            Err(error) => return drop(reply.send(Err(error))),
        };
        exec.state = State::Starting;
        let (stdio, spec) = (exec.stdio.clone(), std::mem::take(&mut exec.spec));
        tokio::task::spawn_local(async move {
            let work = async {
                let io_failed = |cause| TaskError::Io { id: id.clone(), cause };
                let mut prepared = Prepared::open(&stdio, &shim.console_path()).map_err(io_failed)?;
                let hold = shim.reaper.hold();
                let pid = oci.exec(&key, &spec, prepared.child(), prepared.console()).await?;
                let exit = shim.reaper.claim(pid);
                drop(hold);
                match prepared.begin() {
                    Ok(io) => Ok(Started { pid, exit, io }),
                    Err(cause) => {
                        // Nobody would hear it, and nobody could stop it by name.
                        let _ = sys::process::kill(Pid::from_raw(pid.cast_signed()), nix::libc::SIGKILL);
                        Err(io_failed(cause))
                    }
                }
            };
            let result = work.await;
            let _ = inbox.send(Message::ExecStarted(key, result, reply));
        });
    }

    fn exec_started(&mut self, key: &Key, started: Started) -> Result<u32, TaskError> {
        let inbox = self.inbox.clone();
        let Started { pid, exit, io } = started;
        let exec = self.process(key)?;
        (exec.state, exec.pid, exec.io) = (State::Running, pid, Some(io));
        let exec_id = key.event_id("").to_owned();
        self.shim.events.push(Topic::ExecStarted, &TaskExecStarted { container_id: self.id.clone(), exec_id, pid });
        watch_exit(&inbox, key.clone(), exit);
        Ok(pid)
    }

    async fn kill(&mut self, key: &Key, signal: u32, all: bool) -> Result<(), TaskError> {
        let id = self.name(key);
        let own_pids = self.own_pids;
        let process = self.admit(Op::Kill, "signal", key)?;
        let (pid, state) = (process.pid, process.state);
        let number = i32::try_from(signal).ok().filter(|number| (0..=64).contains(number));
        let number = number.ok_or_else(|| TaskError::Invalid(format!("{signal} is not a signal")))?;
        // With init dies everything in its pid namespace (pid_namespaces(7)).
        let reaches_all = own_pids && number == nix::libc::SIGKILL;
        if *key != Key::Init || ((!all || reaches_all) && state != State::Paused) {
            // It is our child and not reaped (that would have stopped it), so the number can mean nobody else.
            return sys::process::kill(Pid::from_raw(pid.cast_signed()), number).map_err(|errno| match errno {
                nix::Error::ESRCH => TaskError::Gone { id },
                errno => TaskError::Signal { id, cause: errno.into() },
            });
        }
        self.oci.kill(signal, all).await?;
        if state == State::Paused && number == nix::libc::SIGKILL {
            // A frozen process dies when it thaws. It may be dead by now, so that this fails.
            if self.oci.resume().await.is_ok() {
                self.init.state = State::Running;
            }
        }
        Ok(())
    }

    async fn pause(&mut self) -> Result<(), TaskError> {
        self.admit(Op::Pause, "pause", &Key::Init)?;
        self.oci.pause().await?;
        self.init.state = State::Paused;
        self.shim.events.push(Topic::Paused, &TaskPaused { container_id: self.id.clone() });
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), TaskError> {
        self.admit(Op::Resume, "resume", &Key::Init)?;
        self.oci.resume().await?;
        self.init.state = State::Running;
        self.shim.events.push(Topic::Resumed, &TaskResumed { container_id: self.id.clone() });
        Ok(())
    }

    async fn update(&mut self, resources: &[u8]) -> Result<(), TaskError> {
        self.admit(Op::Update, "update", &Key::Init)?;
        Ok(self.oci.update(resources).await?)
    }

    async fn pids(&mut self) -> Result<PidsResponse, TaskError> {
        let pid = self.admit(Op::Pids, "list processes of", &Key::Init)?.pid;
        let pids = match Cgroup::of(pid).and_then(|cgroup| cgroup.pids()) {
            Some(pids) => pids,
            None => self.oci.ps().await?,
        };
        let info = |pid: u32| {
            let exec = self.execs.iter().find(|(_, exec)| exec.pid == pid && exec.state == State::Running);
            let info = exec.map(|(id, _)| typeurl::pack(&ProcessDetails { exec_id: id.clone() }));
            ProcessInfo { pid, info }
        };
        Ok(PidsResponse { processes: pids.into_iter().map(info).collect() })
    }

    fn stats(&mut self) -> Result<Any, TaskError> {
        let pid = self.admit(Op::Stats, "measure", &Key::Init)?.pid;
        let cgroup = Cgroup::of(pid).ok_or_else(|| TaskError::NoCgroup(self.id.clone()))?;
        Ok(stats::read(&cgroup))
    }

    async fn exited(&mut self, key: &Key, exit: Exit) {
        let Ok(process) = self.process(key) else { return };
        process.state = State::Stopped;
        process.exit = Some(exit);
        let pid = process.pid;
        if let Err(error) = self.bundle.record_exit(key, pid, exit) {
            warn_line!("record exit of {}: {error}", self.name(key));
        }
        if *key == Key::Init {
            if self.oom.as_ref().is_some_and(OomWatch::has_grown) {
                self.shim.events.push(Topic::Oom, &TaskOom { container_id: self.id.clone() });
            }
            self.oom = None;
            if !self.own_pids {
                // Processes of a shared pid namespace outlive their init; the container doesn't.
                match self.oci.kill(nix::libc::SIGKILL.unsigned_abs(), true).await {
                    Ok(()) => {}
                    Err(error) if matches!(&error, OciError::Failed { .. }) => {}
                    Err(error) => warn_line!("kill what init of {} left: {error}", self.id),
                }
            }
        }
        let inbox = self.inbox.clone();
        let key = key.clone();
        let settled = self.process(&key).ok().and_then(|process| process.io.as_ref().map(ProcessIo::settle));
        tokio::task::spawn_local(async move {
            if let Some(settled) = settled {
                settled.await;
            }
            let _ = inbox.send(Message::Settled(key));
        });
    }

    fn announce(&mut self, key: &Key) {
        let (container_id, events) = (self.id.clone(), self.shim.clone());
        let Ok(process) = self.process(key) else { return };
        let Some(exit) = process.exit.filter(|_| !process.announced) else { return };
        let event = TaskExit {
            id: key.event_id(&container_id).to_owned(),
            container_id,
            pid: process.pid,
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)),
        };
        events.events.push(Topic::Exit, &event);
        process.tell_waiters(exit);
    }

    /// True when a Delete that waited for this has removed the container.
    async fn announce_init_if_due(&mut self, overdue: bool) -> bool {
        if !self.init_settled || self.init.announced {
            return false;
        }
        let alive = |exec: &Process| {
            matches!(exec.state, State::Starting | State::Running) || (exec.state == State::Stopped && !exec.announced)
        };
        if !overdue && self.execs.values().any(alive) {
            let inbox = self.inbox.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(EXECS_LATE).await;
                let _ = inbox.send(Message::Overdue);
            });
            return false;
        }
        self.announce(&Key::Init);
        let Some(place) = self.deletes.iter().position(|(key, _)| *key == Key::Init) else { return false };
        let (_, reply) = self.deletes.swap_remove(place);
        self.delete(reply).await
    }

    fn delete_exec(&mut self, key: &Key) -> Result<DeleteResponse, TaskError> {
        let exec = self.process(key)?;
        let answer = exec.obituary();
        if let Some(io) = exec.io.take() {
            io.abandon();
        }
        if let Key::Exec(id) = key {
            self.execs.remove(id);
        }
        self.bundle.forget(key);
        Ok(answer)
    }

    /// True when the container is gone.
    async fn delete(&mut self, reply: Reply<DeleteResponse>) -> bool {
        match self.admit(Op::Delete, "delete", &Key::Init) {
            Err(error) => {
                let _ = reply.send(Err(error));
                return false;
            }
            Ok(init) if init.announced => {}
            Ok(init) => {
                // Created: it ends now, and its end is told before its removal. Stopped: its end is being told.
                if init.state == State::Created {
                    let _ = sys::process::kill(Pid::from_raw(init.pid.cast_signed()), nix::libc::SIGKILL);
                }
                self.deletes.push((Key::Init, reply));
                return false;
            }
        }
        let removed = match self.oci.delete(false).await {
            Err(_) => self.oci.delete(true).await,
            done => done,
        };
        let unmounted = mounts::unmount_rootfs(&self.bundle.rootfs());
        let result = removed.map_err(TaskError::from).and_then(|()| unmounted.map_err(TaskError::from));
        if let Err(error) = result {
            let _ = reply.send(Err(error));
            return false;
        }
        let _ = std::fs::remove_file(self.bundle.pid_file(&Key::Init));
        let answer = self.init.obituary();
        let event = TaskDelete {
            container_id: self.id.clone(),
            pid: answer.pid,
            exit_status: answer.exit_status,
            exited_at: answer.exited_at,
            // containerd leaves it empty for init.
            id: String::new(),
        };
        self.shim.events.push(Topic::Delete, &event);
        // Before the answer: a Shutdown that follows it must find no container.
        self.shim.forget(&self.id);
        let _ = reply.send(Ok(answer));
        true
    }
}

/// The process that a request's `exec_id` means.
pub(crate) fn key_of(exec_id: &str) -> Result<Key, TaskError> {
    match exec_id {
        "" => Ok(Key::Init),
        exec => Ok(Key::Exec(String::from(ExecId::new(exec)?))),
    }
}
