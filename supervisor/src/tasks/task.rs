//! One task: what is known about it, who may change it, how its shim is called.
//!
//! Requests that change the life of the container take turns (`in_turn`): one writer, in the order of their arrival, each
//! carried to its end even if its caller goes away. What only touches one further process, or only looks, goes straight
//! to the shim, which orders it: a hanging start must not keep a kill from getting through.
//!
//! ```text
//! Making ----> Live ----> Ending ----> Ended        Making, Adopting: create, or a supervisor's start, is at work
//!                |          ^                       Live: the shim answers
//! Adopting ------+          |                       Orphan: the shim is gone, the exit is kept until delete
//!                +-> Orphan-+                       Ending: deleted for callers, the shim is leaving
//! ```

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use proto::{
    containerd::{
        task::v3::{StateRequest, StateResponse, task_client::TaskClient},
        v1::types::{Process, Status as ProcessStatus},
    },
    id::{ContainerId, ExecId, NamespaceName},
};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tonic::{Request as GrpcRequest, Response};

use super::{
    bundle::{Bundle, Exit, Origin},
    connection::{Connection, request},
    error::TaskError,
    patience::Calls,
    rules::{self, Request, State},
    shim_log::{self, ShimLog},
    shims::Program,
};

/// How long a question about the state may take before we answer from memory.
pub(super) const STATE_LIMIT: Duration = Duration::from_secs(2);

/// Where a task stands between its making and its end; see the module's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Being created.
    Making,
    /// Found at our start.
    Adopting,
    /// Has a shim.
    Live,
    /// Has lost its shim.
    Orphan,
    /// Deleted; the shim is leaving.
    Ending,
    /// Nothing is left of it.
    Ended,
}

/// What is known about a further process.
#[derive(Debug, Clone, Default)]
pub(super) struct ExecFacts {
    /// Its pid, once started.
    pub(super) pid: u32,
    /// Its end.
    pub(super) exit: Option<Exit>,
    /// Whether subscribers know of the end.
    pub(super) told: bool,
}

/// What is known about a task.
pub(super) struct Facts {
    /// Where it stands.
    pub(super) phase: Phase,
    /// The way to its shim.
    pub(super) connection: Option<Connection>,
    /// How it was made.
    pub(super) origin: Option<Origin>,
    /// Pid of the init process, once known.
    pub(super) pid: u32,
    /// State of the init process.
    pub(super) state: State,
    /// End of the init process.
    pub(super) exit: Option<Exit>,
    /// Whether subscribers know of the end.
    pub(super) told: bool,
    /// Whether they know of the creation, and of the deletion.
    pub(super) told_life: (bool, bool),
    /// The kernel has killed for memory.
    pub(super) oom: bool,
    /// The last event that came from its shim, as a hash: the one that a shim may repeat.
    pub(super) last_event: u64,
    /// Further processes, as far as we saw them begin.
    pub(super) execs: HashMap<ExecId, ExecFacts>,
}

impl Facts {
    /// Notes the end of the init process; the first report stands.
    pub(super) fn set_exit(&mut self, exit: Exit) {
        self.state = State::Stopped;
        self.exit.get_or_insert(exit);
    }

    /// Notes a state that is not the end; an end that was reported meanwhile stands.
    pub(super) fn set_state(&mut self, state: State) {
        if self.exit.is_none() {
            self.state = state;
        }
    }
}

/// A task of one namespace.
pub(crate) struct Task {
    pub(super) namespace: NamespaceName,
    pub(super) id: ContainerId,
    pub(super) bundle: Bundle,
    pub(super) facts: watch::Sender<Facts>,
    /// What somebody else's shim says, for as long as the task is known.
    shim_log: std::sync::Mutex<Option<ShimLog>>,
    pub(super) calls: Calls,
    turn: Arc<Mutex<()>>,
}

impl Task {
    /// A task about which nothing is known yet.
    pub(super) fn new(tasks: &Path, namespace: NamespaceName, id: ContainerId, phase: Phase) -> Arc<Self> {
        let bundle = Bundle::at(tasks, &namespace, &id);
        let facts = Facts {
            phase,
            connection: None,
            origin: None,
            pid: 0,
            state: State::Created,
            exit: None,
            told: false,
            told_life: (false, false),
            oom: false,
            last_event: 0,
            execs: HashMap::new(),
        };
        let (facts, _) = watch::channel(facts);
        let (calls, shim_log) = (Calls::default(), std::sync::Mutex::default());
        Arc::new(Self { namespace, id, bundle, facts, shim_log, calls, turn: Arc::default() })
    }

    /// Listens to the log of a shim that isn't Berth's.
    pub(super) fn hear_shim(&self, origin: &Origin) {
        if !shim_log::is_ours(&origin.shim) {
            let log = ShimLog::open(self.bundle.path(), &self.namespace, &self.id);
            *self.shim_log.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = log;
        }
    }

    /// Where it stands.
    pub(super) fn phase(&self) -> Phase {
        self.facts.borrow().phase
    }

    /// Moves it on.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.facts.send_modify(|facts| facts.phase = phase);
    }

    /// Waits for a phase.
    pub(super) async fn reaches(&self, wanted: impl Fn(Phase) -> bool) {
        // The sender is in `self`, so this can't fail.
        let _ = self.facts.subscribe().wait_for(|facts| wanted(facts.phase)).await;
    }

    /// Waits until the shim can be asked (again), or is known to be gone; or until `enough` is known without it.
    pub(super) async fn connected_or_not_live(&self, enough: impl Fn(&Facts) -> bool) {
        let usable = |connection: &Connection| !connection.is_lost();
        let settled = |facts: &Facts| {
            facts.phase != Phase::Live || facts.connection.as_ref().is_some_and(usable) || enough(facts)
        };
        let _ = self.facts.subscribe().wait_for(settled).await;
    }

    /// Waits for this request's turn.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Takes the turn at once, of a task that nobody else has seen yet.
    pub(super) fn first_turn(&self) -> Option<OwnedMutexGuard<()>> {
        self.turn.clone().try_lock_owned().ok()
    }

    /// Runs a change when it is its turn, to the end, whatever becomes of the caller.
    pub(super) async fn in_turn<T, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, TaskError>
    where
        F: Future<Output = Result<T, TaskError>> + Send,
        T: Send + 'static,
    {
        let task = self.clone();
        self.detached(async move {
            let _turn = task.turn().await;
            work(task).await
        })
        .await
    }

    /// Runs work to the end, whatever becomes of the caller.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> Result<T, TaskError> {
        tokio::spawn(work).await.unwrap_or_else(|_| Err(TaskError::Panic { id: self.id.clone() }))
    }

    /// The way to the shim, if there is one; an error if there is no task any more.
    pub(super) fn connection(&self) -> Result<Option<Connection>, TaskError> {
        let facts = self.facts.borrow();
        match facts.phase {
            Phase::Live => Ok(facts.connection.clone()),
            Phase::Orphan => Ok(None),
            _ => Err(TaskError::NotFound(self.id.to_string())),
        }
    }

    /// Asks the rules, with fresh facts before a refusal: ours may be a moment old.
    pub(super) async fn accept(&self, request: Request) -> Result<(), TaskError> {
        let known = self.facts.borrow().state;
        let mut verdict = rules::accept(request, known);
        if verdict.is_err() && self.refresh(None).await.is_ok() {
            verdict = rules::accept(request, self.facts.borrow().state);
        }
        verdict.map_err(|refusal| TaskError::Refused { id: self.id.clone(), refusal })
    }

    /// Calls the shim. An error of the shim's is passed on; the loss of the shim is told apart from it.
    pub(super) async fn call<M, T, F>(
        &self,
        call: &'static str,
        message: M,
        with: impl FnOnce(TaskClient<Connection>, GrpcRequest<M>) -> F,
    ) -> Result<T, TaskError>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let gone = || TaskError::ShimGone { id: self.id.clone(), call };
        let connection = self.connection()?.ok_or_else(gone)?;
        let answer = with(connection.tasks(), request(&self.namespace, message));
        match self.patiently(call, answer).await? {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(lost_or(&connection, status).await.map_or_else(gone, TaskError::Answer)),
        }
    }

    /// Asks the shim how a process is, and notes it if it is the init process.
    pub(super) async fn refresh(&self, exec: Option<&ExecId>) -> Result<StateResponse, TaskError> {
        let gone = || TaskError::ShimGone { id: self.id.clone(), call: "State" };
        let connection = self.connection()?.ok_or_else(gone)?;
        let state = self.ask_state(&connection, exec).await?;
        if exec.is_none() {
            self.facts.send_modify(|facts| note_state(facts, &state));
        }
        Ok(state)
    }

    /// Asks a shim how a process is, for a limited time.
    pub(super) async fn ask_state(
        &self,
        connection: &Connection,
        exec: Option<&ExecId>,
    ) -> Result<StateResponse, TaskError> {
        let exec_id = exec.map(ToString::to_string).unwrap_or_default();
        let message = request(&self.namespace, StateRequest { id: self.id.to_string(), exec_id });
        let mut shim = connection.tasks();
        let gone = || TaskError::ShimGone { id: self.id.clone(), call: "State" };
        match tokio::time::timeout(STATE_LIMIT, shim.state(message)).await {
            Ok(Ok(state)) => Ok(state.into_inner()),
            Ok(Err(status)) => Err(lost_or(connection, status).await.map_or_else(gone, TaskError::Answer)),
            Err(_) => Err(TaskError::ShimSilent { id: self.id.clone(), call: "State", limit: STATE_LIMIT }),
        }
    }

    /// The init process as clients see it, from memory.
    pub(super) fn process(&self) -> Process {
        let facts = self.facts.borrow();
        let origin = facts.origin.clone();
        let origin = origin.as_ref();
        let status = match facts.state {
            State::Created => ProcessStatus::Created,
            State::Running => ProcessStatus::Running,
            State::Paused => ProcessStatus::Paused,
            State::Stopped => ProcessStatus::Stopped,
        };
        Process {
            container_id: self.id.to_string(),
            id: self.id.to_string(),
            pid: facts.pid,
            status: status.into(),
            stdin: origin.map(|o| o.stdin.clone()).unwrap_or_default(),
            stdout: origin.map(|o| o.stdout.clone()).unwrap_or_default(),
            stderr: origin.map(|o| o.stderr.clone()).unwrap_or_default(),
            terminal: origin.is_some_and(|o| o.terminal),
            exit_status: facts.exit.as_ref().map_or(0, |exit| exit.status),
            exited_at: facts.exit.as_ref().map(|exit| exit.at),
        }
    }

    /// The shim's program, to clean up with.
    pub(super) fn program(&self, like: &Program) -> Option<Program> {
        let facts = self.facts.borrow();
        facts.origin.as_ref().map(|origin| Program { shim: origin.shim.clone(), ..like.clone() })
    }
}

/// `None` if the connection broke, else the shim's own answer.
pub(super) async fn lost_or(connection: &Connection, status: tonic::Status) -> Option<Box<tonic::Status>> {
    // An error that came from the other side has no source; one of the transport's own has. The transport may notice a
    // moment before the connection's end is noted.
    let transport = std::error::Error::source(&status).is_some() || status.code() == tonic::Code::Unavailable;
    if transport {
        let _ = tokio::time::timeout(Duration::from_millis(200), connection.lost()).await;
    }
    (!connection.is_lost()).then(|| Box::new(status))
}

/// Takes over what a shim says about the init process.
pub(super) fn note_state(facts: &mut Facts, state: &StateResponse) {
    if state.pid != 0 {
        facts.pid = state.pid;
    }
    match state.status() {
        ProcessStatus::Stopped => {
            facts.set_exit(Exit { pid: state.pid, status: state.exit_status, at: state.exited_at.unwrap_or_default() })
        }
        ProcessStatus::Created => facts.set_state(State::Created),
        ProcessStatus::Running => facts.set_state(State::Running),
        ProcessStatus::Paused | ProcessStatus::Pausing => facts.set_state(State::Paused),
        ProcessStatus::Unknown => {}
    }
}
