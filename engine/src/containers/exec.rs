//! Further processes in a running container: create, start, and what is known of them afterwards.

use super::{
    Container, Exit,
    layers::Layers,
    links, lock, merge,
    record::Record,
    rules::{Operation, decide},
    spec,
    streams::{ClientStream, Ended, Ends, Fifos, Framing, Wants, pump},
    validate::{not_yet, words},
};
use crate::{
    api::serial::nullable,
    app::App,
    http::{ApiError, ApiResult},
    ids,
    supervisor::SupervisorError,
    time::Timestamp,
};
use ::spec::users::{self, Memberships};
use proto::{
    containerd::services::tasks::v1::{
        CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest,
    },
    kind::chain,
    stdio::{FifoReader, StdioUri},
    typeurl,
};
use serde::Deserialize;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{oneshot, watch},
};
use tracing::{debug, warn};

/// How long a finished exec can still be inspected.
const KEPT: Duration = Duration::from_secs(600);
/// How long output may still come after the process has ended.
const AFTER_EXIT: Duration = Duration::from_secs(2);

/// Body of an exec create request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct ExecConfig {
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    #[serde(deserialize_with = "nullable")]
    pub privileged: bool,
    #[serde(deserialize_with = "nullable")]
    pub tty: bool,
    pub console_size: Option<[u32; 2]>,
    #[serde(deserialize_with = "nullable")]
    pub attach_stdin: bool,
    #[serde(deserialize_with = "nullable")]
    pub attach_stdout: bool,
    #[serde(deserialize_with = "nullable")]
    pub attach_stderr: bool,
    #[serde(deserialize_with = "nullable")]
    pub detach_keys: String,
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
}

/// Body of an exec start request.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecStart {
    /// Nobody waits for it.
    #[serde(deserialize_with = "nullable")]
    pub detach: bool,
    /// As at create; ignored.
    #[serde(deserialize_with = "nullable")]
    pub tty: bool,
    /// Size of the terminal.
    pub console_size: Option<[u32; 2]>,
}

/// One exec.
#[derive(Debug)]
pub struct Exec {
    /// 64 hex digits.
    pub id: String,
    /// Id of its container.
    pub container: String,
    /// What was asked for.
    pub config: ExecConfig,
    state: Mutex<ExecState>,
    exited: watch::Sender<bool>,
}

/// How far an exec is.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecState {
    /// Start was asked for.
    pub started: bool,
    /// Its process lives.
    pub running: bool,
    /// Pid on the host.
    pub pid: u32,
    /// Exit code, once there is one.
    pub exit_code: Option<i64>,
    finished: Option<Timestamp>,
}

impl Exec {
    /// The state right now.
    pub fn state(&self) -> ExecState {
        *lock(&self.state)
    }

    /// Whether it ended long ago.
    pub fn is_stale(&self) -> bool {
        self.state().finished.is_some_and(|at| at.elapsed() > KEPT)
    }
}

/// Prepares a process; nothing runs yet.
pub fn create(app: &Arc<App>, container: &Arc<Container>, config: ExecConfig) -> ApiResult<String> {
    {
        let live = container.live();
        decide(Operation::Exec, live.record.state.phase, &container.id, &live.record.name)?;
    }
    if config.cmd.first().is_none_or(String::is_empty) {
        return Err(ApiError::invalid("No exec command specified"));
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(ApiError::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    let nul = |text: &String| text.contains('\0');
    if config.cmd.iter().any(nul) || config.env.iter().any(nul) {
        return Err(ApiError::invalid("exec: NUL character in command or environment"));
    }
    if super::frames::DetachKeys::parse(&config.detach_keys).is_none() {
        return Err(ApiError::invalid(format!("Invalid escape keys ({}) provided", config.detach_keys)));
    }
    app.containers.forget_old_execs();
    let id = ids::random_id().map_err(|e| ApiError::unexpected(&e))?;
    let command = shown(&config.cmd);
    let exec = Exec {
        id: id.clone(),
        container: container.id.clone(),
        config,
        state: Mutex::default(),
        exited: watch::Sender::new(false),
    };
    app.containers.add_exec(Arc::new(exec));
    proto::fault!("engine.exec.known");
    tell(app, container, &format!("exec_create: {command}"), &id);
    Ok(id)
}

/// A command line as Docker's events have it: the blank is there without arguments too.
fn shown(cmd: &[String]) -> String {
    cmd.split_first().map_or_else(String::new, |(program, rest)| format!("{program} {}", rest.join(" ")))
}

fn tell(app: &App, container: &Container, action: &str, id: &str) {
    let mut attributes = container.attributes();
    attributes.insert("execID".into(), id.to_owned());
    app.events.publish("container", action, &container.id, attributes);
}

/// A started exec whose client is still to be served.
#[derive(Debug)]
pub struct Running {
    exec: Arc<Exec>,
    container: Arc<Container>,
    ends: Ends,
}

/// An exec that may be started: by whoever holds this, and nobody else any more.
#[derive(Debug)]
pub struct Claim {
    exec: Arc<Exec>,
    container: Arc<Container>,
    record: Record,
}

/// Checks whether an exec can be started, and claims it.
pub fn claim(app: &Arc<App>, exec: &Arc<Exec>) -> ApiResult<Claim> {
    let container = app
        .containers
        .get(&exec.container)
        .ok_or_else(|| ApiError::not_found(format!("No such container: {}", exec.container)))?;
    let record = {
        let live = container.live();
        decide(Operation::Exec, live.record.state.phase, &container.id, &live.record.name)?;
        live.record.clone()
    };
    let mut state = lock(&exec.state);
    if state.started {
        let why = if state.running { "is already running" } else { "has already run" };
        return Err(ApiError::conflict(format!("exec command {} {why}", exec.id)));
    }
    state.started = true;
    drop(state);
    Ok(Claim { exec: exec.clone(), container, record })
}

/// Starts the process. Its output is held in the FIFOs until [`Running::serve`] reads it.
pub async fn start(app: &Arc<App>, claim: Claim, options: ExecStart) -> ApiResult<Running> {
    let Claim { exec, container, record } = claim;
    let begun = std::time::Instant::now();
    // Before it starts, as dockerd, and of one that can't be started, too: told behind the start, a short command's end comes first.
    tell(app, &container, &format!("exec_start: {}", shown(&exec.config.cmd)), &exec.id);
    match launch(app, &exec, &record, options).await {
        Ok((pid, ends)) => {
            {
                let mut state = lock(&exec.state);
                state.pid = pid;
                // Its end may have been heard before the answer to its start.
                state.running = state.finished.is_none();
            }
            debug!(id = ids::short(&exec.id), pid, took = ?begun.elapsed(), "exec started");
            Ok(Running { exec, container, ends })
        }
        Err(error) => {
            let lower = error.message.to_lowercase();
            let missing = lower.contains("executable file not found") || lower.contains("no such file or directory");
            finish(&exec, if missing { 127 } else { 126 }, Timestamp::now());
            forget_process(app, &exec).await;
            Err(error)
        }
    }
}

async fn launch(app: &Arc<App>, exec: &Arc<Exec>, record: &Record, options: ExecStart) -> ApiResult<(u32, Ends)> {
    let failed = |error: &SupervisorError| {
        let message = format!("exec in container {} ({}): {}", record.name, exec.config.cmd[0], chain(error));
        let lower = message.to_lowercase();
        let of_command =
            ["executable file not found", "no such file or directory", "permission denied", "is a directory"];
        let status = if of_command.iter().any(|words| lower.contains(words)) {
            axum::http::StatusCode::BAD_REQUEST
        } else {
            crate::http::error::status_of(error.kind())
        };
        ApiError::new(status, message)
    };
    if let Some(profile) = &record.state.apparmor {
        app.apparmor.keep(profile).await?;
    }
    let links = links::environment(app, record).unwrap_or_default();
    let process = process(exec, record, options, &links)?;
    let config = &exec.config;
    let wants = if options.detach {
        Wants::default()
    } else {
        Wants {
            stdin: config.attach_stdin,
            stdout: config.attach_stdout || (config.tty && config.attach_stderr),
            stderr: config.attach_stderr && !config.tty,
        }
    };
    let (fifos, mut ends) = Fifos::make(&app.containers.streams, &exec.id, wants)
        .map_err(|e| ApiError::internal(format!("exec in container {}: make FIFOs: {e}", record.name)))?;
    proto::fault!("engine.exec.fifos_made");
    // Output never waits for us: if the engine dies the process goes on. Other shims know plain paths only.
    let plain = app.containers.relays.get(&record.id).is_some();
    let uri = |path: &str, reader| match path {
        "" => String::new(),
        path if plain => path.to_owned(),
        path => StdioUri::Fifo { path: PathBuf::from(path), reader }.to_string(),
    };
    let request = ExecProcessRequest {
        container_id: record.id.clone(),
        exec_id: exec.id.clone(),
        stdin: uri(&fifos.stdin, FifoReader::Awaited),
        stdout: uri(&fifos.stdout, FifoReader::Optional),
        stderr: uri(&fifos.stderr, FifoReader::Optional),
        terminal: config.tty,
        spec: Some(typeurl::pack_json(typeurl::PROCESS, process)),
    };
    app.supervisor.tasks().exec(request).await.map_err(|s| failed(&s.into()))?;
    proto::fault!("engine.exec.added");
    let request = StartRequest { container_id: record.id.clone(), exec_id: exec.id.clone() };
    let started = app.supervisor.tasks().start(request).await.map_err(|s| failed(&s.into()))?;
    proto::fault!("engine.exec.started");
    fifos
        .settle(&mut ends)
        .map_err(|e| ApiError::internal(format!("exec in container {}: open stdin: {e}", record.name)))?;
    if plain && wants.stdin {
        // Such a shim holds a writing end of its own, and lets go of it only when told.
        let end = ends.input_end();
        let client = app.supervisor.clone();
        let request = CloseIoRequest { container_id: record.id.clone(), exec_id: exec.id.clone(), stdin: true };
        tokio::spawn(async move {
            let _ = end.await;
            // A process that has ended has no stdin to close.
            let _ = client.tasks().close_io(request).await;
        });
    }
    Ok((started.into_inner().pid, ends))
}

/// The process in the words of the runtime specification.
fn process(exec: &Exec, record: &Record, options: ExecStart, links: &[String]) -> ApiResult<Vec<u8>> {
    let config = &exec.config;
    let layers = Layers::of_process(record.state.pid).map_err(|e| ApiError::unexpected(&e))?;
    let database = layers.users().map_err(|e| ApiError::unexpected(&e))?;
    let wanted = if config.user.is_empty() { &record.config.user } else { &config.user };
    let user = users::find(&database, wanted, Memberships::WithoutGroup, words(&record.host.group_add))?;
    let caps = spec::exec_caps(record, config.privileged)?;
    let mut env = merge::environment(&record.config, &record.config.hostname, links);
    if config.tty && !env.iter().any(|word| word.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    merge::overlay(&mut env, &config.env);
    let cwd = if config.working_dir.is_empty() { &record.config.working_dir } else { &config.working_dir };
    let mut process = spec::process(record, &user, &caps, config.cmd.clone(), env, cwd, config.tty)?;
    if let Some([rows, columns]) =
        options.console_size.or(config.console_size).filter(|[r, c]| config.tty && *r > 0 && *c > 0)
    {
        process["consoleSize"] = serde_json::json!({"height": rows, "width": columns});
    }
    if let Some(profile) = &record.state.apparmor {
        process["apparmorProfile"] = profile.clone().into();
    }
    serde_json::to_vec(&process).map_err(|e| ApiError::unexpected(&e))
}

/// An exec's process has ended.
pub fn ended(app: &Arc<App>, exec: &Arc<Exec>, exit: Exit) {
    if !exec.state().started || exec.state().finished.is_some() {
        return;
    }
    proto::fault!("engine.exec.ended");
    finish(exec, exit.code, exit.at);
    let (app, exec) = (app.clone(), exec.clone());
    if let Some(container) = app.containers.get(&exec.container) {
        let mut attributes = container.attributes();
        attributes.extend([("execID".to_owned(), exec.id.clone()), ("exitCode".to_owned(), exit.code.to_string())]);
        app.events.publish("container", "exec_die", &container.id, attributes);
    }
    tokio::spawn(async move { forget_process(&app, &exec).await });
}

fn finish(exec: &Exec, code: i64, at: Timestamp) {
    {
        let mut state = lock(&exec.state);
        state.running = false;
        state.exit_code = Some(code);
        state.finished = Some(at);
    }
    exec.exited.send_replace(true);
}

/// Sends a signal to an exec's process; one that has ended is fine.
pub async fn kill(app: &App, exec: &Exec, signal: u32) {
    let request = KillRequest { container_id: exec.container.clone(), exec_id: exec.id.clone(), signal, all: false };
    if let Err(status) = app.supervisor.tasks().kill(request).await {
        debug!(id = ids::short(&exec.id), error = status.message(), "signal to an exec");
    }
}

async fn forget_process(app: &App, exec: &Exec) {
    let request = DeleteProcessRequest { container_id: exec.container.clone(), exec_id: exec.id.clone() };
    match app.supervisor.tasks().delete_process(request).await.map_err(SupervisorError::from) {
        // The whole container may have ended, and its execs with it.
        Err(error) if !error.is_not_found() && !error.is_disconnect() => {
            debug!(id = ids::short(&exec.id), error = %chain(&error), "exec left to its container's end");
        }
        _ => {}
    }
}

impl Running {
    /// Serves the client until the process has ended and its output is told.
    pub async fn serve(mut self, app: Arc<App>, client: ClientStream) {
        let ends = std::mem::take(&mut self.ends);
        let config = &self.exec.config;
        let framing = if config.tty { Framing::Raw } else { Framing::Multiplexed };
        let keys = if config.tty { super::frames::DetachKeys::parse(&config.detach_keys) } else { None };
        let (over, stop) = oneshot::channel();
        let mut exited = self.exec.exited.subscribe();
        let watcher = tokio::spawn(async move {
            if exited.wait_for(|exited| *exited).await.is_ok() {
                tokio::time::sleep(AFTER_EXIT).await;
            }
            let _ = over.send(());
        });
        let (ended, mut writer) = pump(client, ends, framing, keys, stop).await;
        watcher.abort();
        match ended {
            Ended::Output => {
                // The client asks for the exit code as soon as the stream ends: it must be there by then.
                let mut exited = self.exec.exited.subscribe();
                let _ = exited.wait_for(|exited| *exited).await;
            }
            Ended::Detached => tell(&app, &self.container, "exec_detach", &self.exec.id),
            Ended::Client => self.hang_up(&app).await,
            Ended::Over => {}
        }
        let _ = writer.shutdown().await;
    }

    /// The client of a terminal has gone: so is the terminal, for the process.
    async fn hang_up(&self, app: &App) {
        if !self.exec.config.tty || !self.exec.state().running {
            return;
        }
        let request = KillRequest {
            container_id: self.exec.container.clone(),
            exec_id: self.exec.id.clone(),
            signal: nix::sys::signal::Signal::SIGHUP as u32,
            all: false,
        };
        if let Err(status) = app.supervisor.tasks().kill(request).await {
            warn!(id = ids::short(&self.exec.id), error = status.message(), "hang up");
        }
    }
}

/// Refuses what a create request may hold and is not built.
pub fn check_unbuilt(body: &serde_json::Map<String, serde_json::Value>) -> ApiResult<()> {
    let known = [
        "User",
        "Privileged",
        "Tty",
        "ConsoleSize",
        "AttachStdin",
        "AttachStdout",
        "AttachStderr",
        "DetachKeys",
        "Env",
        "WorkingDir",
        "Cmd",
        "Detach",
        "Container",
        "ExecIDs",
    ];
    match body.iter().find(|(key, value)| !known.contains(&key.as_str()) && !crate::api::serial::is_zero(value)) {
        Some((key, _)) => Err(not_yet(&format!("exec option {key}"))),
        None => Ok(()),
    }
}
