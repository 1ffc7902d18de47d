//! Start: network, files, specification, task; attachments are joined before the process runs. What fails is undone in
//! reverse.
//!
//! ```text
//! network attach ─▶ files ─┐
//!                          ├─▶ task create ┬─▶ attachments ─▶ task start ─▶ running
//! users ─▶ spec ─▶ record ─┘   keep record ┘
//! ```

use super::{
    Container, Exit, attach, exits, forward, health, links, log_config, networking,
    record::{Phase, Record},
    register::{self, Registered, register},
    relay,
    rules::{Operation, decide},
    sources,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    ids,
    networks::Endpoint,
    supervisor::SupervisorError,
    time::Timestamp,
};
use axum::http::StatusCode;
use proto::{
    containerd::{
        services::tasks::v1::{CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest},
        types::Mount,
    },
    kind::{ErrorKind, chain},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{debug, warn};

/// How long a task that somebody else made, or makes, may be in the way of a start; and how long to wait between two looks.
const OTHERS_TASK: Duration = Duration::from_secs(10);
const RETRY_TASK: Duration = Duration::from_millis(50);

/// Who starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A request.
    User,
    /// The restart policy.
    Policy,
}

/// Starts a container at a user's request.
pub async fn start(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    let _turn = container.turn.lock().await;
    start_in_turn(app, container, Cause::User).await
}

/// Starts; the caller has the turn.
pub async fn start_in_turn(app: &Arc<App>, container: &Arc<Container>, cause: Cause) -> ApiResult<()> {
    let begun = Instant::now();
    container.undone().await;
    proto::fault!("engine.start.turn_taken");
    let record = {
        let mut live = container.live();
        let live = &mut *live;
        decide(Operation::Start, live.record.state.phase, &container.id, &live.record.name)?;
        live.starting = true;
        live.early_exits.clear();
        live.oom = false;
        live.restart_plan += 1;
        let state = &mut live.record.state;
        state.error.clear();
        if cause == Cause::User {
            state.manually_stopped = false;
            state.restart_count = 0;
            live.restart_delay = None;
        }
        live.record.clone()
    };
    match launch(app, container, record).await {
        Ok((pid, at)) => {
            let early = {
                let mut live = container.live();
                let live = &mut *live;
                live.starting = false;
                let state = &mut live.record.state;
                state.phase = Phase::Running;
                state.pid = pid;
                state.started_at = at;
                state.exit_code = 0;
                state.oom_killed = false;
                health::begin(state, &live.record.config);
                app.containers.store.put_soon(&live.record);
                std::mem::take(&mut live.early_exits).into_iter().find(|exit| exit.is_of(pid))
            };
            proto::fault!("engine.start.noted");
            networking::announce(app, &container.record(), "connect");
            tell_volumes(app, &container.record(), true);
            app.events.publish("container", "start", &container.id, container.attributes());
            health::watch(app, container);
            container.starts.notify_waiters();
            if container.live().linked {
                let (app, record) = (app.clone(), container.record());
                tokio::task::spawn_blocking(move || links::tell_others(&app, &record));
            }
            forward::watch(app, container);
            if let Some(exit) = early {
                exits::ended(app, container, exit);
            }
            debug!(id = ids::short(&container.id), pid, took = ?begun.elapsed(), "container started");
            Ok(())
        }
        Err(failure) => {
            failed(app, container, &failure);
            attach::dismiss_waiting(container, &failure);
            Err(failure)
        }
    }
}

/// Tells which volumes are in use from now on, or no more.
pub fn tell_volumes(app: &App, record: &Record, mounted: bool) {
    for mount in &record.mounts {
        let Some(volume) = &mount.volume else { continue };
        let text = str::to_owned;
        let mut attributes = std::collections::BTreeMap::from([
            (text("container"), record.id.clone()),
            (text("driver"), text(mount.volume_driver())),
        ]);
        if mounted {
            attributes.extend([
                (text("destination"), mount.destination.clone()),
                (text("read/write"), mount.writable.to_string()),
                (text("propagation"), mount.propagation.clone()),
            ]);
        }
        app.events.publish("volume", if mounted { "mount" } else { "unmount" }, volume, attributes);
    }
}

/// Notes a failed start: exit code and text for inspect, and no container is left where one would remove itself.
///
/// How and when the process before it ended stays known, as with Docker, unless the program itself is at fault.
fn failed(app: &Arc<App>, container: &Arc<Container>, failure: &ApiError) {
    let auto_remove = {
        let mut live = container.live();
        live.starting = false;
        let auto_remove = live.record.host.auto_remove;
        let state = &mut live.record.state;
        state.phase = if state.started_at.is_set() { Phase::Exited } else { Phase::Created };
        state.exit_code = match exit_code(&failure.message) {
            128 if state.exit_code != 0 => state.exit_code,
            code => code,
        };
        state.error.clone_from(&failure.message);
        state.endpoint = None;
        state.pid = 0;
        app.containers.store.put_soon(&live.record);
        auto_remove
    };
    let mut attributes = container.attributes();
    attributes.insert("exitCode".into(), container.live().record.state.exit_code.to_string());
    app.events.publish("container", "die", &container.id, attributes);
    let code = container.live().record.state.exit_code;
    container.ends.send_modify(|ends| {
        ends.count += 1;
        ends.code = code;
    });
    container.starts.notify_waiters();
    if auto_remove {
        exits::remove_by_itself(app, container);
    }
}

/// What `docker run` ends with when its container could not start; by the words, which clients read the same way.
fn exit_code(text: &str) -> i64 {
    let text = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["executable file not found", "no such file or directory", "system cannot find the file specified"]) {
        127
    } else if has(&["permission denied", "is a directory", "not a directory"]) {
        126
    } else {
        128
    }
}

async fn launch(app: &Arc<App>, container: &Arc<Container>, record: Record) -> ApiResult<(u32, Timestamp)> {
    let begun = Instant::now();
    let kind = networking::kind(&record);
    let (network, registered) = tokio::join!(attach_network(app, &record), register(app, container, &record, kind));
    let endpoint = network.as_ref().ok().cloned().flatten();
    let mut undo = Undo { app: app.clone(), container: container.clone(), endpoint, task: false, armed: true };
    proto::fault!("engine.start.prepared");
    network?;
    let Registered { rootfs, joined, sources, apparmor } = registered?;
    let prepared = begun.elapsed();
    {
        let mut live = container.live();
        live.record.registered = true;
        live.record.state.endpoint.clone_from(&undo.endpoint);
        live.record.state.apparmor = apparmor;
        live.record.state.launched_at = Timestamp::now();
        live.may_have_task = true;
    }
    // The record must know of the endpoint before the process can live: an engine that dies in between finds both.
    let current = container.record();
    let stdio = stdio(app, &record).await?;
    let (created, kept) = tokio::join!(create_task(app, &record, rootfs, stdio), app.containers.store.put(&current));
    proto::fault!("engine.start.task_created");
    let name = &record.name;
    // A supervisor that died may have made it before it could say so.
    undo.task = created.as_ref().err().is_none_or(SupervisorError::is_disconnect);
    created.map_err(|error| refused(name, &record, &error))?;
    // The runtime has taken what they refer to.
    drop(sources);
    kept.map_err(|e| ApiError::unexpected(&e))?;
    let created = begun.elapsed();
    if let Some(relay) = app.containers.relays.get(&record.id) {
        relay.settle();
    }
    attach::connect_waiting(app, container).await;
    proto::fault!("engine.start.attached");
    if !joined.holds() {
        let text = format!("start container {name}: the container whose namespaces it joins has ended");
        return Err(ApiError::conflict(text));
    }
    let request = StartRequest { container_id: record.id.clone(), exec_id: String::new() };
    let mut tasks = app.supervisor.tasks();
    let (answer, ()) = tokio::join!(tasks.start(request), unpin(app, &record.id));
    let answer = answer.map_err(SupervisorError::from);
    let pid = answer.map_err(|error| refused(name, &record, &error))?.into_inner().pid;
    proto::fault!("engine.start.task_started");
    undo.armed = false;
    debug!(id = ids::short(&record.id), ?prepared, ?created, started = ?begun.elapsed(), "launch");
    Ok((pid, Timestamp::now()))
}

/// The words for the user: what, on which container, why. The status follows from the class of the cause.
fn refused(name: &str, record: &Record, error: &SupervisorError) -> ApiError {
    if error.is_disconnect() {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("start container {name}: {}", chain(error)));
    }
    let message = format!("start container {name} ({}): {}", record.path, chain(error));
    let status = if exit_code(&message) == 128 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
    ApiError::new(status, message)
}

/// Takes back what a failed start has made.
struct Undo {
    app: Arc<App>,
    container: Arc<Container>,
    endpoint: Option<Endpoint>,
    task: bool,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (app, container, id) = (self.app.clone(), self.container.clone(), self.container.id.clone());
        let (endpoint, task) = (self.endpoint.take(), self.task);
        let record = self.container.record();
        self.container.undo(async move {
            if task {
                delete_task_of(&app, &container).await;
            }
            app.containers.relays.end(&id).await;
            if let Some(endpoint) = endpoint {
                detach_network(&app, &id, endpoint).await;
            }
            sources::release(&app, &record).await;
        });
    }
}

/// Kills and deletes the task of a container whatever its state; what is not there is fine. Notes and tells whether none is left.
pub async fn delete_task_of(app: &App, container: &Container) -> bool {
    let gone = delete_task(app, &container.id).await;
    container.live().may_have_task &= !gone;
    gone
}

/// Kills and deletes a task whatever its state; tells whether none is left.
pub async fn delete_task(app: &App, id: &str) -> bool {
    let delete = DeleteTaskRequest { container_id: id.to_owned() };
    let deleted = app
        .supervisor
        .retry(delete.clone(), |client, request| async move { client.tasks().delete(request).await })
        .await;
    let error = match deleted {
        Ok(_) => return true,
        Err(error) if error.is_not_found() => return true,
        Err(error) => error,
    };
    if error.kind() != ErrorKind::FailedPrecondition {
        warn!(id = ids::short(id), error = %chain(&error), "task left behind");
        return false;
    }
    let kill = KillRequest { container_id: id.to_owned(), exec_id: String::new(), signal: 9, all: true };
    let _ = app.supervisor.tasks().kill(kill).await;
    let wait = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
    let _ = tokio::time::timeout(Duration::from_secs(10), app.supervisor.tasks().wait(wait)).await;
    match app
        .supervisor
        .retry(delete.clone(), |client, request| async move { client.tasks().delete(request).await })
        .await
    {
        Err(error) if !error.is_not_found() => {
            warn!(id = ids::short(id), error = %chain(&error), "task left behind");
            false
        }
        _ => true,
    }
}

/// Takes a container off its network.
pub async fn detach_network(app: &Arc<App>, id: &str, endpoint: Endpoint) {
    let (owner, key) = (app.clone(), id.to_owned());
    let detached = tokio::task::spawn_blocking(move || owner.networks.detach(&key, &endpoint)).await;
    match detached {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(id = ids::short(id), error = %chain(&error), "network left behind"),
        Err(error) => warn!(id = ids::short(id), %error, "network left behind"),
    }
}

/// Removes the pin of a namespace that a process is in. One that stays is removed when the container ends.
async fn unpin(app: &Arc<App>, id: &str) {
    let (owner, key) = (app.clone(), id.to_owned());
    let done = tokio::task::spawn_blocking(move || owner.networks.unpin(&key)).await;
    if let Ok(Err(error)) = done {
        warn!(id = ids::short(id), error = %chain(&error), "network namespace stays pinned");
    }
}

async fn attach_network(app: &Arc<App>, record: &Record) -> ApiResult<Option<Endpoint>> {
    let (owner, record) = (app.clone(), record.clone());
    let work = move || networking::attach(&owner, &record);
    tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::unexpected(&e))?
}

/// What a task's stdio fields say: a log that Berth's shim writes and a stdin that attachments feed, or FIFOs of a relay.
async fn stdio(app: &App, record: &Record) -> ApiResult<relay::Paths> {
    if !register::choice(app, record).await?.attaches {
        // Said here, as a log that isn't there would be missed too late.
        log_config::parse(&record.host.log_config)?.simple_file()?;
        let made = app.containers.relays.make(&record.id, &relay_plan(app, record));
        let failed = |e| ApiError::internal(format!("start container {}: make FIFOs: {e}", record.name));
        return made.map(|relay| relay.paths.clone()).map_err(failed);
    }
    let log = log_config::parse(&record.host.log_config)?.uri(&app.containers.folder_of(&record.id), record.into());
    Ok(relay::Paths {
        stdin: if record.config.open_stdin { "attach:".into() } else { String::new() },
        stdout: log.clone(),
        stderr: if record.config.tty { String::new() } else { log },
    })
}

/// What the relay of a container carries, if it needs one.
pub fn relay_plan(app: &App, record: &Record) -> relay::Plan {
    let file = log_config::parse(&record.host.log_config).and_then(|driver| driver.simple_file()).ok().flatten();
    let log = file.map(|(max_size, max_files)| relay::LogPlace {
        path: app.containers.log_of(&record.id),
        max_size,
        max_files,
    });
    relay::Plan { tty: record.config.tty, stdin: record.config.open_stdin, log }
}

async fn create_task(
    app: &App,
    record: &Record,
    rootfs: Vec<Mount>,
    stdio: relay::Paths,
) -> Result<(), SupervisorError> {
    let request = CreateTaskRequest {
        container_id: record.id.clone(),
        rootfs,
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        terminal: record.config.tty,
        ..CreateTaskRequest::default()
    };
    let begun = Instant::now();
    loop {
        match app.supervisor.tasks().create(request.clone()).await.map_err(SupervisorError::from) {
            Ok(_) => return Ok(()),
            // A task of an earlier run whose end was not cleaned up in time; or one that is being made for an engine that died,
            // which containerd doesn't let us delete before it is there.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && begun.elapsed() < OTHERS_TASK => {
                if begun.elapsed() > RETRY_TASK {
                    tokio::time::sleep(RETRY_TASK).await;
                }
                delete_task(app, &record.id).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether an exit that comes now belongs to a start that is not over yet; keeps it for the start then.
pub fn keep_for_start(container: &Container, exit: Exit) -> bool {
    let mut live = container.live();
    if live.starting {
        live.early_exits.push(exit);
    }
    live.starting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_failed_starts() {
        let cases = [
            ("exec: \"nope\": executable file not found in $PATH", 127),
            ("exec /x: no such file or directory", 127),
            ("exec /etc: is a directory", 126),
            ("exec /etc/passwd: Permission denied", 126),
            ("cgroup: something else", 128),
        ];
        for (text, code) in cases {
            assert_eq!(exit_code(text), code, "{text}");
        }
    }
}
