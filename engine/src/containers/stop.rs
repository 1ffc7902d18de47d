//! Stop, kill, restart, pause, unpause, resize, rename, update, top: requests to a process that lives.

use super::{
    Container, health, is_up,
    record::Phase,
    rules::{Operation, decide},
    start, validate,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    supervisor::SupervisorError,
    time::Timestamp,
};
use ::spec::signal;
use nix::sys::signal::Signal;
use proto::{
    containerd::services::tasks::v1::{
        KillRequest, ListPidsRequest, PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest,
    },
    kind::{ErrorKind, chain},
};
use std::{sync::Arc, time::Duration};
use tracing::warn;

const SIGKILL: u32 = Signal::SIGKILL as u32;
/// How long a killed process may take to end: it may be stuck in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// How to stop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Instead of the container's own signal.
    pub signal: Option<u32>,
    /// Seconds, instead of the container's own; negative is for ever.
    pub timeout: Option<i64>,
}

/// Ends a container with grace. Returns when its end is recorded; says why, if it had to be killed.
pub async fn stop(app: &Arc<App>, container: &Arc<Container>, options: Options) -> ApiResult<Option<String>> {
    // Behind a start that is under way, but not holding up others for the time of grace.
    drop(container.turn.lock().await);
    stop_now(app, container, options).await
}

async fn stop_now(app: &Arc<App>, container: &Arc<Container>, options: Options) -> ApiResult<Option<String>> {
    let mut ends = container.ends.subscribe();
    let (was, own_signal, timeout) = {
        let mut live = container.live();
        let live = &mut *live;
        let phase = live.record.state.phase;
        decide(Operation::Stop, phase, &container.id, &live.record.name)?;
        live.record.state.manually_stopped = true;
        if phase == Phase::Restarting {
            live.restart_plan += 1;
            live.record.state.phase = Phase::Exited;
        }
        app.containers.store.put_soon(&live.record);
        let config = &live.record.config;
        (phase, config.stop_signal.clone(), validate::stop_timeout(config, options.timeout))
    };
    if was == Phase::Restarting {
        container.ends.send_modify(|ends| ends.count += 1);
        app.events.publish("container", "stop", &container.id, container.attributes());
        return Ok(None);
    }
    ends.mark_unchanged();
    let first = match options.signal {
        Some(signal) => signal,
        None if own_signal.is_empty() => Signal::SIGTERM as u32,
        None => signal::parse(&own_signal)?,
    };
    send(app, container, first, None).await?;
    if was == Phase::Paused {
        // A frozen process can't even die.
        let _ = app.supervisor.tasks().resume(ResumeTaskRequest { container_id: container.id.clone() }).await;
    }
    proto::fault!("engine.stop.signalled");
    let graceful = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, ends.changed()).await.is_ok(),
        None => ends.changed().await.is_ok(),
    };
    // Ten seconds lost at every stop, mostly to a first process that ignores the signal: worth a word (moby#27187).
    let hint = timeout.filter(|timeout| !graceful && !timeout.is_zero()).map(|timeout| {
        format!(
            "container {} did not end within {} s of {}, so it was killed; \
             let its first process handle that signal, or use --init, STOPSIGNAL or --stop-timeout",
            container.live().record.name,
            timeout.as_secs(),
            signal::name(first)
        )
    });
    if !graceful {
        if let Some(hint) = &hint {
            warn!(id = crate::ids::short(&container.id), "{hint}");
        }
        send(app, container, SIGKILL, hint.as_deref()).await?;
        proto::fault!("engine.stop.killed");
        if tokio::time::timeout(KILL_PATIENCE, ends.changed()).await.is_err() {
            return Err(ApiError::internal(format!(
                "cannot stop container {}: it lives {KILL_PATIENCE:?} after SIGKILL",
                container.id
            )));
        }
    }
    app.events.publish("container", "stop", &container.id, container.attributes());
    Ok(hint)
}

/// Sends a signal and tells it; a process that has just ended is fine.
async fn send(app: &App, container: &Container, signal: u32, hint: Option<&str>) -> ApiResult<()> {
    let mut attributes = container.attributes();
    attributes.extend(hint.map(|hint| ("berth.hint".to_owned(), hint.to_owned())));
    attributes.insert("signal".into(), signal.to_string());
    let request = KillRequest { container_id: container.id.clone(), exec_id: String::new(), signal, all: false };
    let sent = app
        .supervisor
        .retry(request.clone(), |client, request| async move { client.tasks().kill(request).await })
        .await;
    match sent {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition) => {
            warn!(id = crate::ids::short(&container.id), error = %chain(&error), "signal to an ended process");
        }
        Err(error) => return Err(failed(app, container, "kill", &error)),
    }
    app.events.publish("container", "kill", &container.id, attributes);
    Ok(())
}

fn failed(_app: &App, container: &Container, operation: &str, error: &SupervisorError) -> ApiError {
    ApiError::new(
        crate::http::error::status_of(error.kind()),
        format!("cannot {operation} container {}: {}", container.id, chain(error)),
    )
}

/// Sends a signal.
pub async fn kill(app: &Arc<App>, container: &Arc<Container>, signal: u32) -> ApiResult<()> {
    let (paused, restarting) = {
        let mut live = container.live();
        let live = &mut *live;
        let phase = live.record.state.phase;
        decide(Operation::Kill, phase, &container.id, &live.record.name)?;
        let own = &live.record.config.stop_signal;
        let stops = signal == SIGKILL
            || signal == (if own.is_empty() { Signal::SIGTERM as u32 } else { signal::parse(own).unwrap_or(0) });
        if stops {
            live.record.state.manually_stopped = true;
            app.containers.store.put_soon(&live.record);
        }
        (phase == Phase::Paused, phase == Phase::Restarting)
    };
    debug_assert!(!restarting, "refused by the rules");
    let mut ends = container.ends.subscribe();
    ends.mark_unchanged();
    send(app, container, signal, None).await?;
    proto::fault!("engine.kill.sent");
    if paused && signal == SIGKILL {
        let _ = app.supervisor.tasks().resume(ResumeTaskRequest { container_id: container.id.clone() }).await;
    }
    if signal == SIGKILL {
        // As Docker: after a kill has been answered the container is not listed as running.
        let _ = tokio::time::timeout(Duration::from_secs(10), ends.changed()).await;
    }
    Ok(())
}

/// Stops if it runs, then starts.
pub async fn restart(app: &Arc<App>, container: &Arc<Container>, options: Options) -> ApiResult<Option<String>> {
    let _turn = container.turn.lock().await;
    let mut hint = None;
    if is_up(container.live().record.state.phase) {
        match stop_now(app, container, options).await {
            Err(error) if error.status != axum::http::StatusCode::NOT_MODIFIED => return Err(error),
            stopped => hint = stopped.ok().flatten(),
        }
        // A container that removes itself is gone by now, as in Docker.
    }
    start::start_in_turn(app, container, start::Cause::User).await?;
    app.events.publish("container", "restart", &container.id, container.attributes());
    Ok(hint)
}

/// Freezes all processes.
pub async fn pause(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    let _turn = container.turn.lock().await;
    pause_in_turn(app, container).await
}

/// The same by whoever has the turn.
pub async fn pause_in_turn(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    check(container, Operation::Pause)?;
    let request = PauseTaskRequest { container_id: container.id.clone() };
    let done = app.supervisor.tasks().pause(request).await.map_err(SupervisorError::from);
    done.map_err(|error| failed(app, container, "pause", &error))?;
    proto::fault!("engine.pause.task_paused");
    set_phase(app, container, Phase::Running, Phase::Paused);
    app.events.publish("container", "pause", &container.id, container.attributes());
    Ok(())
}

/// Thaws all processes.
pub async fn unpause(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    let _turn = container.turn.lock().await;
    unpause_in_turn(app, container).await
}

/// The same by whoever has the turn.
pub async fn unpause_in_turn(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    check(container, Operation::Unpause)?;
    let request = ResumeTaskRequest { container_id: container.id.clone() };
    let done = app.supervisor.tasks().resume(request).await.map_err(SupervisorError::from);
    done.map_err(|error| failed(app, container, "unpause", &error))?;
    proto::fault!("engine.unpause.task_resumed");
    set_phase(app, container, Phase::Paused, Phase::Running);
    health::watch(app, container);
    app.events.publish("container", "unpause", &container.id, container.attributes());
    Ok(())
}

fn set_phase(app: &App, container: &Container, from: Phase, to: Phase) {
    let mut live = container.live();
    live.frozen_as_of = Timestamp::now();
    // The supervisor's own event may have come first, or the end of the process.
    if live.record.state.phase == from {
        live.record.state.phase = to;
        app.containers.store.put_soon(&live.record);
    }
}

fn check(container: &Container, operation: Operation) -> ApiResult<()> {
    let live = container.live();
    decide(operation, live.record.state.phase, &container.id, &live.record.name)
}

/// Tells the process the size of its terminal.
pub async fn resize(app: &Arc<App>, container: &Arc<Container>, exec: &str, rows: u32, columns: u32) -> ApiResult<()> {
    check(container, Operation::Resize)?;
    let request =
        ResizePtyRequest { container_id: container.id.clone(), exec_id: exec.to_owned(), width: columns, height: rows };
    let done = app.supervisor.tasks().resize_pty(request).await.map_err(SupervisorError::from);
    done.map_err(|error| failed(app, container, "resize", &error))?;
    let mut attributes = container.attributes();
    attributes.extend([("height".to_owned(), rows.to_string()), ("width".to_owned(), columns.to_string())]);
    app.events.publish("container", "resize", &container.id, attributes);
    Ok(())
}

/// Gives another name.
pub async fn rename(app: &Arc<App>, container: &Arc<Container>, name: &str) -> ApiResult<()> {
    if name.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    let _turn = container.turn.lock().await;
    let name = super::names::check(name)?;
    let old = container.live().record.name.clone();
    if old == name {
        return Err(ApiError::invalid("Renaming a container with the same name as its current name"));
    }
    app.containers.reserve_name(&name, &container.id)?;
    let record = {
        let mut live = container.live();
        live.record.name.clone_from(&name);
        live.record.clone()
    };
    if let Err(error) = app.containers.store.put(&record).await {
        container.live().record.name.clone_from(&old);
        app.containers.release_name(&name, &container.id);
        return Err(ApiError::unexpected(&error));
    }
    app.containers.release_name(&old, &container.id);
    let mut attributes = container.attributes();
    attributes.insert("oldName".into(), format!("/{old}"));
    super::networking::live::renamed(app, container).await;
    app.events.publish("container", "rename", &container.id, attributes);
    Ok(())
}

/// Processes of a container as the host sees them: titles and rows of `ps`.
pub async fn top(
    app: &Arc<App>,
    container: &Arc<Container>,
    arguments: &str,
) -> ApiResult<(Vec<String>, Vec<Vec<String>>)> {
    check(container, Operation::Top)?;
    let request = ListPidsRequest { container_id: container.id.clone() };
    let answer = app.supervisor.tasks().list_pids(request).await.map_err(SupervisorError::from);
    let pids: Vec<u32> = answer
        .map_err(|error| failed(app, container, "list processes of", &error))?
        .into_inner()
        .processes
        .into_iter()
        .map(|process| process.pid)
        .collect();
    let arguments = if arguments.is_empty() { "-ef" } else { arguments };
    let output = tokio::process::Command::new("ps")
        .args(arguments.split_whitespace())
        .output()
        .await
        .map_err(|e| ApiError::internal(format!("list processes of container {}: run ps: {e}", container.id)))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        // As dockerd, whose client shows it.
        return Err(ApiError::internal(format!("ps: {}", text.lines().next().unwrap_or("failed"))));
    }
    let shown = table(&String::from_utf8_lossy(&output.stdout), &pids)?;
    app.events.publish("container", "top", &container.id, container.attributes());
    Ok(shown)
}

fn table(text: &str, pids: &[u32]) -> ApiResult<(Vec<String>, Vec<Vec<String>>)> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next().unwrap_or("").split_whitespace().map(str::to_owned).collect();
    let column = titles
        .iter()
        .position(|title| title == "PID")
        .ok_or_else(|| ApiError::internal("Couldn't find PID field in ps output"))?;
    let rows = lines.filter_map(|line| {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let pid: u32 = words.get(column)?.parse().ok()?;
        // The last column is the command, which has spaces of its own.
        if words.len() > titles.len() && !titles.is_empty() {
            let command = words.split_off(titles.len() - 1).join(" ");
            words.push(command);
        }
        pids.contains(&pid).then_some(words)
    });
    let rows = rows.collect();
    Ok((titles, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_ps() {
        let text = "UID PID CMD\nroot 7 sleep 1 2\nroot 8 other\n";
        let (titles, rows) = table(text, &[7]).unwrap();
        assert_eq!(titles, ["UID", "PID", "CMD"]);
        assert_eq!(rows, [["root", "7", "sleep 1 2"]]);
        assert!(table("A B\n", &[]).is_err());
    }
}
