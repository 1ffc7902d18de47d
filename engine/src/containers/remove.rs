//! Taking a container apart: its root file system, the supervisor's record, its folder, its anonymous volumes, its name.

use super::{
    Container, discard,
    record::{Phase, Record},
    rules::{Operation, decide},
    sources, start, stop,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult, Filters},
    images::usage,
    time::Timestamp,
};
use proto::{
    containerd::services::{containers::v1::DeleteContainerRequest, snapshots::v1::RemoveSnapshotRequest},
    kind::chain,
};
use std::sync::Arc;
use tracing::warn;

/// How to remove.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Kill it first if it lives.
    pub force: bool,
    /// Its anonymous volumes too.
    pub volumes: bool,
}

/// Removes a container.
pub async fn remove(app: &Arc<App>, container: &Arc<Container>, options: Options) -> ApiResult<()> {
    let killed = {
        let live = container.live();
        (options.force && live.record.state.phase.is_live()).then_some(live.record.state.pid)
    };
    if killed.is_some() {
        end_it(app, container).await?;
    }
    let _turn = container.turn.lock().await;
    container.undone().await;
    let (before, record) = {
        let mut live = container.live();
        let live = &mut *live;
        let operation = if options.force { Operation::RemoveByForce } else { Operation::Remove };
        decide(operation, live.record.state.phase, &container.id, &live.record.name)?;
        let before = live.record.state.phase;
        live.record.state.phase = Phase::Removing;
        live.record.state.takes_volumes = options.volumes;
        live.restart_plan += 1;
        (before, live.record.clone())
    };
    if before.is_live() {
        container.live().record.state.phase = before;
        if killed == Some(record.state.pid) {
            return Err(ApiError::internal(format!(
                "cannot remove container \"{}\": could not kill: tried to kill container, but did not receive an exit event: process {} \
                 waits for a disk or a server",
                record.name, record.state.pid
            )));
        }
        // It was started between the kill and our turn.
        return Err(ApiError::conflict(format!("container {} was started while it was being removed", container.id)));
    }
    // On disk before anything goes: an engine that dies in between, or before the record's own end is on disk, is followed by
    // one that goes on. Of a container that removes itself the record says so already.
    if !record.host.auto_remove
        && let Err(error) = app.containers.store.put(&record).await
    {
        container.live().record.state.phase = before;
        return Err(ApiError::unexpected(&error));
    }
    proto::fault!("engine.remove.begun");
    let may_have_task = container.live().may_have_task;
    let taken_apart = if !may_have_task || start::delete_task_of(app, container).await {
        take_apart(app, &record, record.registered || may_have_task).await
    } else {
        let text = format!(
            "remove container {}: its task in the supervisor can't be deleted, as the engine's log tells",
            record.id
        );
        Err(ApiError::internal(text))
    };
    if let Err(error) = taken_apart {
        let mut live = container.live();
        live.record.state.phase = before;
        app.containers.store.put_soon(&live.record);
        return Err(error);
    }
    proto::fault!("engine.remove.taken_apart");
    app.volumes.release(&container.id);
    if options.volumes {
        remove_anonymous_volumes(app, &record).await;
    }
    proto::fault!("engine.remove.volumes_removed");
    let attributes = container.attributes();
    app.containers.store.remove_soon(&container.id);
    app.containers.forget(&container.id);
    proto::fault!("engine.remove.forgotten");
    app.events.publish("container", "destroy", &container.id, attributes);
    container.ends.send_modify(|ends| ends.removed = true);
    Ok(())
}

async fn end_it(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    let mut ends = container.ends.subscribe();
    ends.mark_unchanged();
    match stop::kill(app, container, nix::sys::signal::Signal::SIGKILL as u32).await {
        Err(error) if error.status != axum::http::StatusCode::CONFLICT => return Err(error),
        _ => {}
    }
    Ok(())
}

async fn take_apart(app: &Arc<App>, record: &Record, registered: bool) -> ApiResult<()> {
    let id = &record.id;
    let snapshot = RemoveSnapshotRequest { snapshotter: record.snapshotter.clone(), key: id.clone() };
    let entry = DeleteContainerRequest { id: id.clone() };
    let folder = app.containers.folder_of(id);
    let (unregistered, removed, emptied) = tokio::join!(
        async {
            if registered {
                app.supervisor
                    .retry(entry.clone(), |client, request| async move { client.containers().delete(request).await })
                    .await
            } else {
                Ok(())
            }
        },
        app.supervisor
            .retry(snapshot.clone(), |client, request| async move { client.snapshots().remove(request).await }),
        tokio::task::spawn_blocking(move || discard::remove_folder(&folder)),
    );
    proto::fault!("engine.remove.parts_removed");
    sources::remove_views(&app.supervisor, &record.snapshotter, &record.mounts).await.map_err(|error| {
        ApiError::internal(format!("remove container {id}: its views of images: {}", chain(&error)))
    })?;
    for (what, result) in [("record", unregistered), ("root file system", removed.map(drop))] {
        match result {
            Err(error) if !error.is_not_found() => {
                return Err(ApiError::internal(format!("remove container {id}: its {what}: {}", chain(&error))));
            }
            _ => {}
        }
    }
    // Nobody waits for that: it neither fails nor is it undone by our end.
    let emptied = emptied.map(|(result, large)| {
        drop(tokio::task::spawn_blocking(move || drop(large)));
        result
    });
    match emptied {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(id = crate::ids::short(id), %error, "folder left behind");
        }
        _ => {}
    }
    Ok(())
}

async fn remove_anonymous_volumes(app: &Arc<App>, record: &Record) {
    for name in record.mounts.iter().filter(|m| m.anonymous).filter_map(|m| m.volume.as_ref()) {
        match app.volumes.remove_driven(name, false).await {
            Ok(driver) => app.events.publish("volume", "destroy", name, [("driver".into(), driver)].into()),
            // Another container uses it by name.
            Err(error) => tracing::debug!(volume = name, error = %chain(&error), "anonymous volume stays"),
        }
    }
}

/// Removes all ended containers that pass the filters; gives their ids, and the bytes that they had written.
pub async fn prune(app: &Arc<App>, filters: &Filters) -> ApiResult<(Vec<String>, i64)> {
    let mut until = None;
    for value in filters.values("until") {
        until = Some(parse_until(value)?);
    }
    let (mut removed, mut freed) = (Vec::new(), 0);
    for container in app.containers.all() {
        let fits = {
            let live = container.live();
            let record = &live.record;
            matches!(record.state.phase, Phase::Created | Phase::Exited)
                && !live.starting
                && filters.labels(&record.config.labels)
                && until.is_none_or(|until| record.created < until)
        };
        if !fits {
            continue;
        }
        let record = container.record();
        let size = usage::snapshot(&app.supervisor, &record.snapshotter, &record.id).await.unwrap_or(0);
        if remove(app, &container, Options { force: false, volumes: false }).await.is_ok() {
            removed.push(container.id.clone());
            freed += size;
        }
    }
    app.events.publish("container", "prune", "", [("reclaimed".into(), freed.to_string())].into());
    Ok((removed, freed))
}

/// A moment, or a time span back from now (`1h30m`).
pub fn parse_until(text: &str) -> ApiResult<Timestamp> {
    if let Ok(moment) = Timestamp::parse_query(text) {
        return Ok(moment);
    }
    let bad = || ApiError::invalid(format!("invalid filter 'until=[{text}]'"));
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        seconds += number
            * match &rest[digits..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    if text.is_empty() {
        return Err(bad());
    }
    let now = Timestamp::now();
    Ok(Timestamp::from_parts(now.seconds() - seconds as i64, i64::from(now.subsec_nanos())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until() {
        let back = |text| Timestamp::now().seconds() - parse_until(text).unwrap().seconds();
        assert!((5399..=5401).contains(&back("1h30m")));
        assert_eq!(parse_until("17").unwrap().seconds(), 17);
        for bad in ["", "h", "1x", "1h2", "é"] {
            assert!(parse_until(bad).is_err(), "{bad}");
        }
    }
}
