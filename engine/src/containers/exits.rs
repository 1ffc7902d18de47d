//! Ends of processes: heard as events, found by asking after every interruption; then kept, cleaned up after, told, and
//! judged by the restart policy.
//!
//! The exit is on disk before the task (which holds the only other copy) is deleted.

use super::{
    Container, Exit, health, namespaces,
    record::{Phase, Record},
    remove,
    restart::{self, Ending},
    sources,
    start::{self, Cause},
    sweep,
};
use crate::{
    app::App,
    ids,
    supervisor::{Notice, Subscription, SupervisorError},
    time::Timestamp,
};
use proto::{
    containerd::{
        events::{TaskCreate, TaskExit, TaskOom, TaskPaused, TaskResumed},
        services::{
            events::v1::Envelope,
            tasks::v1::{GetRequest, ListTasksRequest},
        },
        v1::types::{Process, Status},
    },
    kind::chain,
    oom, typeurl,
};
use std::{collections::HashMap, sync::Arc};
use tracing::{debug, info, warn};

/// Follows the supervisor's events for as long as the engine lives. Tells `ready` when the state was compared once.
pub async fn follow(app: Arc<App>, ready: tokio::sync::oneshot::Sender<()>) {
    let mut ready = Some(ready);
    let mut subscription = Subscription::new(app.supervisor.clone());
    while let Some(notice) = subscription.next().await {
        match notice {
            Notice::Event(envelope) => heard(&app, &envelope),
            Notice::Lost(error) => {
                warn!(error = %chain(&error), "supervisor away");
                let app = app.clone();
                tokio::spawn(async move { crate::launch::revive_supervisor(&app.config).await });
            }
            Notice::Connected => {
                let first = ready.is_some();
                if let Err(error) = compare(&app, first).await {
                    warn!(error = %chain(&error), "compare with the supervisor");
                    if error.is_disconnect() {
                        continue;
                    }
                }
                if let Some(ready) = ready.take() {
                    let _ = ready.send(());
                }
            }
        }
    }
}

fn heard(app: &Arc<App>, envelope: &Envelope) {
    let Some(any) = &envelope.event else { return };
    let at = envelope.timestamp.map_or_else(Timestamp::now, Timestamp::from);
    if let Some(Ok(exit)) = typeurl::unpack::<TaskExit>(any) {
        let at = exit.exited_at.map_or(at, Timestamp::from);
        let ended_now = Exit { code: i64::from(exit.exit_status), at, pid: Some(exit.pid).filter(|pid| *pid != 0) };
        if exit.id == exit.container_id {
            if let Some(container) = app.containers.get(&exit.container_id) {
                ended(app, &container, ended_now);
            }
        } else if let Ok(exec) = app.containers.exec(&exit.id) {
            super::exec::ended(app, &exec, ended_now);
        }
    } else if let Some(Ok(oom)) = typeurl::unpack::<TaskOom>(any) {
        if let Some(container) = app.containers.get(&oom.container_id) {
            container.live().oom = true;
            app.events.publish("container", "oom", &container.id, container.attributes());
        }
    } else if let Some(Ok(paused)) = typeurl::unpack::<TaskPaused>(any) {
        set_paused(app, &paused.container_id, true, at);
    } else if let Some(Ok(resumed)) = typeurl::unpack::<TaskResumed>(any) {
        set_paused(app, &resumed.container_id, false, at);
    } else if let Some(Ok(created)) = typeurl::unpack::<TaskCreate>(any) {
        sweep::late_task(app, &created.container_id);
    }
}

fn set_paused(app: &Arc<App>, id: &str, paused: bool, at: Timestamp) {
    let Some(container) = app.containers.get(id) else { return };
    if !frozen(app, &container, paused, at) {
        return;
    }
    if !paused {
        health::watch(app, &container);
    }
}

/// True if the news are news.
fn frozen(app: &App, container: &Container, paused: bool, at: Timestamp) -> bool {
    let mut live = container.live();
    // Told late: we have frozen or thawed it ourselves since.
    if at < live.frozen_as_of {
        return false;
    }
    live.frozen_as_of = at;
    let state = &mut live.record.state;
    match (state.phase, paused) {
        (Phase::Running, true) => state.phase = Phase::Paused,
        (Phase::Paused, false) => state.phase = Phase::Running,
        _ => return false,
    }
    app.containers.store.put_soon(&live.record);
    true
}

/// The first process of a container has ended. Heard twice (event and comparison) it counts once.
pub fn ended(app: &Arc<App>, container: &Arc<Container>, exit: Exit) {
    if start::keep_for_start(container, exit) {
        return;
    }
    {
        let mut live = container.live();
        if live.ending || !live.record.state.phase.is_live() {
            return;
        }
        if !exit.is_of(live.record.state.pid) {
            debug!(id = ids::short(&container.id), ?exit, "end of an earlier run");
            return;
        }
        live.ending = true;
    }
    let (app, container) = (app.clone(), container.clone());
    tokio::spawn(async move { finish(&app, &container, exit).await });
}

async fn finish(app: &Arc<App>, container: &Arc<Container>, exit: Exit) {
    let id = ids::short(&container.id).to_owned();
    let (record, ran) = {
        let mut live = container.live();
        let oom = live.oom;
        let mut record = live.record.clone();
        let ran = exit.at.since(record.state.started_at);
        live.oom = false;
        record.state.phase = Phase::Exited;
        record.state.pid = 0;
        record.state.exit_code = exit.code;
        record.state.finished_at = exit.at;
        record.state.oom_killed = oom;
        // As Docker: who is not watched is not healthy.
        if let Some(health) = &mut record.state.health {
            health.status = health::Status::Unhealthy;
        }
        (record, ran)
    };
    proto::fault!("engine.exit.heard");
    let endpoint = record.state.endpoint.clone();
    let detach = async {
        if let Some(endpoint) = endpoint {
            start::detach_network(app, &container.id, endpoint).await;
        }
    };
    let bury = async {
        // A container that removes itself leaves nobody to ask for its exit code later.
        if !record.host.auto_remove
            && let Err(error) = app.containers.store.put(&record).await
        {
            warn!(id, error = %chain(&error), "exit not kept");
        }
        proto::fault!("engine.exit.recorded");
        start::delete_task_of(app, container).await;
        proto::fault!("engine.exit.task_deleted");
        // The shim has written all of the output by now.
        app.containers.relays.end(&container.id).await;
        sources::release(app, &record).await;
    };
    tokio::join!(detach, bury);
    proto::fault!("engine.exit.cleaned");
    let (restart, remove) = {
        let mut live = container.live();
        let ending = Ending {
            code: exit.code,
            manual: live.record.state.manually_stopped,
            restarts: live.record.state.restart_count,
        };
        let manual = ending.manual;
        let restart = restart::wants_restart(&live.record.host.restart_policy, ending);
        let name = live.record.name.clone();
        live.record.state = record.state.clone();
        live.record.name = name;
        live.record.state.manually_stopped = manual;
        live.record.state.endpoint = None;
        live.ending = false;
        if restart {
            live.record.state.phase = Phase::Restarting;
            live.record.state.restart_count += 1;
            live.restart_delay = Some(restart::next_delay(live.restart_delay, ran));
        }
        if !live.record.host.auto_remove {
            app.containers.store.put_soon(&live.record);
        }
        (restart.then(|| (live.restart_plan, live.restart_delay.unwrap_or_default())), live.record.host.auto_remove)
    };
    let mut attributes = container.attributes();
    attributes.insert("exitCode".into(), exit.code.to_string());
    attributes.insert("execDuration".into(), ran.as_secs().to_string());
    app.events.publish("container", "die", &container.id, attributes);
    start::tell_volumes(app, &record, false);
    super::networking::announce(app, &record, "disconnect");
    proto::fault!("engine.exit.announced");
    info!(id, code = exit.code, "container ended");
    for exec in app.containers.execs_of(&container.id) {
        super::exec::ended(app, &exec, Exit { code: 137, at: exit.at, pid: None });
    }
    container.ends.send_modify(|ends| {
        ends.count += 1;
        ends.code = exit.code;
    });
    container.starts.notify_waiters();
    if remove {
        remove_by_itself(app, container);
    } else if let Some((plan, delay)) = restart {
        let (app, container) = (app.clone(), container.clone());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            restart_as_planned(&app, &container, plan).await;
        });
    }
}

/// Starts again, unless somebody started or stopped the container meanwhile.
pub async fn restart_as_planned(app: &Arc<App>, container: &Arc<Container>, plan: u64) {
    let record = container.record();
    namespaces::wait_for_needed(app, &record).await;
    let _turn = container.turn.lock().await;
    {
        let live = container.live();
        if live.restart_plan != plan || live.record.state.phase != Phase::Restarting {
            return;
        }
    }
    if let Err(error) = start::start_in_turn(app, container, Cause::Policy).await {
        warn!(id = ids::short(&container.id), %error, "restart by policy failed");
    }
}

/// Removes a container that was made to remove itself.
pub fn remove_by_itself(app: &Arc<App>, container: &Arc<Container>) {
    let (app, container) = (app.clone(), container.clone());
    tokio::spawn(async move {
        let options = remove::Options { force: false, volumes: true };
        if let Err(error) = remove::remove(&app, &container, options).await {
            // Removed by somebody else at the same time, mostly.
            debug!(id = ids::short(&container.id), %error, "automatic removal");
        }
    });
}

/// Compares what the engine believes with what the supervisor has: after a start of either, or a lost connection.
async fn compare(app: &Arc<App>, first: bool) -> Result<(), SupervisorError> {
    let (tasks, oom) = app
        .supervisor
        .retry(ListTasksRequest { filter: String::new() }, |client, request| async move {
            let answer = client.tasks().list(request).await?;
            let oom = answer.metadata().get_bin(oom::HEADER).and_then(|value| value.to_bytes().ok());
            Ok(tonic::Response::new((answer.into_inner().tasks, oom.unwrap_or_default())))
        })
        .await?;
    // Its event may have come while nobody listened.
    for (_, task) in tasks.iter().enumerate().filter(|(place, _)| oom::is_set(&oom, *place)) {
        if let Some(container) = app.containers.get(&name_of(task)) {
            container.live().oom = true;
        }
    }
    let mut tasks: HashMap<String, Process> = tasks.into_iter().map(|task| (name_of(&task), task)).collect();
    for container in app.containers.all() {
        let task = tasks.remove(&container.id);
        if first {
            let record = container.record();
            if let Err(error) = app.containers.relays.resume(&record.id, &start::relay_plan(app, &record)) {
                warn!(id = ids::short(&record.id), %error, "output is not relayed any more");
            }
        }
        compare_one(app, &container, task, first).await;
    }
    if first {
        sweep::sweep(app).await;
    }
    for id in tasks.into_keys() {
        sweep::stray_task(app, &id).await;
    }
    Ok(())
}

// containerd names a task's container in `id`; `container_id` came later.
fn name_of(task: &Process) -> String {
    if task.container_id.is_empty() { task.id.clone() } else { task.container_id.clone() }
}

async fn compare_one(app: &Arc<App>, container: &Arc<Container>, task: Option<Process>, first: bool) {
    let phase = {
        let mut live = container.live();
        if live.starting || live.ending {
            return;
        }
        live.may_have_task |= first;
        live.record.state.phase
    };
    let id = ids::short(&container.id);
    let task = match task {
        // The list may be older than its start: nobody is declared dead on hearsay.
        None if phase.is_live() => {
            let request = GetRequest { container_id: container.id.clone(), exec_id: String::new() };
            match app.supervisor.tasks().get(request).await.map_err(SupervisorError::from) {
                Ok(answer) => answer.into_inner().process,
                Err(error) if error.is_not_found() => None,
                // It will be compared again when the supervisor is back.
                Err(error) => {
                    warn!(id, error = %chain(&error), "state not known");
                    return;
                }
            }
        }
        task => task,
    };
    match (phase.is_live(), task) {
        (true, None) => {
            warn!(id, "its process is gone without a trace: the machine was restarted, or its shim killed");
            ended(app, container, Exit { code: 255, at: Timestamp::now(), pid: None });
        }
        (true, Some(task)) => match task.status() {
            Status::Stopped => {
                let at = task.exited_at.map_or_else(Timestamp::now, Timestamp::from);
                ended(app, container, Exit { code: i64::from(task.exit_status), at, pid: None });
            }
            status => {
                let mut live = container.live();
                live.record.state.pid = task.pid;
                live.record.state.phase = if status == Status::Paused { Phase::Paused } else { Phase::Running };
                debug!(id, pid = task.pid, "adopted");
            }
        },
        (false, Some(task)) if first => {
            // An engine before us died in the middle: of a start, or of cleaning up.
            let exited_at = task.exited_at.map_or_else(Timestamp::now, Timestamp::from);
            let unheard = {
                let mut live = container.live();
                let state = &mut live.record.state;
                let unheard = match task.status() {
                    Status::Running | Status::Paused | Status::Pausing => true,
                    // The end of a run that is on record already has the same time.
                    Status::Stopped => exited_at > state.finished_at && state.launched_at > state.finished_at,
                    Status::Created | Status::Unknown => false,
                };
                if unheard {
                    state.phase = Phase::Running;
                    state.pid = task.pid;
                    state.started_at = state.launched_at;
                    app.containers.store.put_soon(&live.record);
                }
                unheard
            };
            match (unheard, task.status()) {
                (true, Status::Stopped) => {
                    ended(app, container, Exit { code: i64::from(task.exit_status), at: exited_at, pid: None });
                }
                (true, _) => info!(id, pid = task.pid, "adopted in the middle of its start"),
                (false, _) => abandon_task(app, container).await,
            }
        }
        (false, Some(_)) => sweep::late_task(app, &container.id),
        (false, None) if first => forget_endpoint(app, container).await,
        _ => {}
    }
}

/// Takes away the task of a container that nobody started.
pub async fn abandon_task(app: &Arc<App>, container: &Container) {
    start::delete_task_of(app, container).await;
    app.containers.relays.end(&container.id).await;
    forget_endpoint(app, container).await;
}

async fn forget_endpoint(app: &Arc<App>, container: &Container) {
    let endpoint = container.live().record.state.endpoint.take();
    if let Some(endpoint) = endpoint {
        start::detach_network(app, &container.id, endpoint).await;
        app.containers.keep_soon(container);
    }
}

/// What has to happen to containers when the engine starts, after the comparison.
pub async fn resume(app: &Arc<App>) {
    for container in app.containers.all() {
        let record: Record = container.record();
        let state = &record.state;
        if state.frozen_by_commit {
            super::commit::thaw(app, &container).await;
        }
        if record.update_pending {
            super::update::resume(app, &container).await;
        }
        if state.phase == Phase::Running {
            health::watch(app, &container);
        }
        super::forward::watch(app, &container);
        if state.phase == Phase::Removing {
            container.live().record.state.phase = Phase::Exited;
            // Before anybody asks: for most users it is gone already.
            let options = remove::Options { force: false, volumes: state.takes_volumes };
            if let Err(error) = remove::remove(app, &container, options).await {
                warn!(id = ids::short(&container.id), %error, "interrupted removal not finished");
            }
        } else if !state.phase.is_live() && record.host.auto_remove && state.started_at.is_set() {
            remove_by_itself(app, &container);
        } else if container.live().ending || state.phase.is_live() || !state.started_at.is_set() {
            // Runs, is being judged by its policy right now, or never ran.
        } else if state.phase == Phase::Restarting
            || restart::wants_start_with_engine(&record.host.restart_policy, state.manually_stopped)
        {
            let plan = {
                let mut live = container.live();
                live.record.state.phase = Phase::Restarting;
                live.restart_plan
            };
            let (app, container) = (app.clone(), container.clone());
            tokio::spawn(async move { restart_as_planned(&app, &container, plan).await });
        }
    }
}
