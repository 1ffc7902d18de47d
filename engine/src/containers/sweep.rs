//! What an engine that died left half-made or half-removed: looked for once, when the next one starts, but for what the
//! supervisor was still making for it then.

use super::{create::LABEL, exits, record::Phase, remove, sources, start};
use crate::{
    app::App,
    ids,
    supervisor::{Lease, SupervisorError},
};
use proto::{
    containerd::services::{
        containers::v1::{DeleteContainerRequest, GetContainerRequest, ListContainersRequest},
        snapshots::v1::{ListSnapshotsRequest, RemoveSnapshotRequest},
        tasks::v1::GetRequest,
    },
    kind::chain,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tracing::{info, warn};

/// What the engine made in the supervisor and has no record of goes; so do records whose root file system was never made.
pub async fn sweep(app: &Arc<App>) {
    let ours = format!("labels.\"{LABEL}\"");
    sweep_containers(app, &ours).await;
    // Before the leases: what their containers have mounted goes with those.
    crate::build::worker::run::sweep(app).await;
    if let Err(error) = Lease::sweep(&app.supervisor).await {
        warn!(error = %chain(&error), "leases of interrupted operations left to their expiry");
    }
    let mut lists = HashMap::new();
    for snapshotter in app.supervisor.snapshotters() {
        match sweep_snapshots(app, snapshotter, &ours).await {
            Ok(found) => {
                lists.insert(snapshotter.clone(), found);
            }
            Err(error) => warn!(snapshotter, error = %chain(&error), "list snapshots of the supervisor"),
        }
    }
    undo_half_made(app, &lists).await;
    sweep_folders(app);
    sources::sweep(app);
}

/// A task was made, or is there. If its container neither lives for us nor is being started, an engine that died had asked for
/// it, or a failed start could not be taken back: nobody else would ever end it.
pub fn late_task(app: &Arc<App>, id: &str) {
    let Some(container) = app.containers.get(id) else {
        let (app, id) = (app.clone(), id.to_owned());
        tokio::spawn(async move { stray_task(&app, &id).await });
        return;
    };
    let awaited = |live: &super::Live| live.starting || live.record.state.phase.is_live();
    if awaited(&container.live()) {
        return;
    }
    let app = app.clone();
    tokio::spawn(async move {
        let _turn = container.turn.lock().await;
        container.undone().await;
        let request = GetRequest { container_id: container.id.clone(), exec_id: String::new() };
        // Else it is gone, or the supervisor is: then all is compared again.
        let is_there = app.supervisor.tasks().get(request).await.is_ok();
        if is_there && !awaited(&container.live()) {
            info!(id = ids::short(&container.id), "task of an interrupted start swept up");
            exits::abandon_task(&app, &container).await;
        }
    });
}

/// Removes a task that nobody has a record of, neither we nor the supervisor. Others' containers in our namespace have records
/// there, without our label.
pub async fn stray_task(app: &Arc<App>, id: &str) {
    if !ids::is_full(id) || app.containers.get(id).is_some() {
        return;
    }
    let request = GetContainerRequest { id: id.to_owned() };
    match app.supervisor.containers().get(request).await.map_err(SupervisorError::from) {
        Err(error) if error.is_not_found() => {
            info!(id = ids::short(id), "task without a container swept up");
            start::delete_task(app, id).await;
        }
        _ => {}
    }
}

async fn sweep_containers(app: &Arc<App>, ours: &str) {
    let list = ListContainersRequest { filters: vec![ours.to_owned()] };
    let listed =
        app.supervisor.retry(list, |client, request| async move { client.containers().list(request).await }).await;
    let found = match listed {
        Ok(answer) => answer.containers,
        Err(error) => {
            warn!(error = %chain(&error), "list containers of the supervisor");
            return;
        }
    };
    for found in found {
        if found.labels.contains_key(LABEL) && app.containers.get(&found.id).is_none() {
            info!(id = ids::short(&found.id), "half-removed container swept up");
            start::delete_task(app, &found.id).await;
            let delete = DeleteContainerRequest { id: found.id.clone() };
            let _ = app.supervisor.containers().delete(delete).await;
        }
    }
}

/// Removes root file systems without a container; gives the names of all.
async fn sweep_snapshots(app: &App, snapshotter: &str, ours: &str) -> Result<HashSet<String>, SupervisorError> {
    let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), filters: vec![ours.to_owned()] };
    let mut stream = app.supervisor.snapshots().list(request).await?.into_inner();
    let mut found = HashSet::new();
    while let Some(answer) = stream.message().await? {
        for info in answer.info {
            found.insert(info.name.clone());
            let owner = info.labels.get(LABEL).cloned().unwrap_or_default();
            let of_owner = owner == info.name || info.name.starts_with(&format!("{owner}-"));
            if of_owner && !owner.is_empty() && app.containers.get(&owner).is_none() {
                info!(id = ids::short(&owner), snapshotter, "orphaned root file system swept up");
                let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: info.name };
                let _ = app.supervisor.snapshots().remove(request).await;
            }
        }
    }
    Ok(found)
}

/// Takes back creates that nobody was told of: their record came to disk before their root file system was made.
/// `snapshots` are those of each snapshotter; of one that isn't loaded or couldn't tell, nothing is known to be missing.
async fn undo_half_made(app: &Arc<App>, snapshots: &HashMap<String, HashSet<String>>) {
    for container in app.containers.all() {
        let half = {
            let record = &container.live().record;
            let is_missing = || snapshots.get(&record.snapshotter).is_some_and(|found| !found.contains(&container.id));
            record.state.phase == Phase::Created && !record.state.started_at.is_set() && is_missing()
        };
        if half {
            info!(id = ids::short(&container.id), "half-made container taken back");
            let options = remove::Options { force: false, volumes: true };
            if let Err(error) = remove::remove(app, &container, options).await {
                warn!(id = ids::short(&container.id), %error, "half-made container stays");
            }
        }
    }
}

fn sweep_folders(app: &App) {
    for entry in std::fs::read_dir(&app.containers.folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|id| ids::is_full(id) && app.containers.get(id).is_none()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    app.containers.relays.sweep();
    // FIFOs whose engine died before the shim had opened them.
    for entry in std::fs::read_dir(&app.containers.streams).into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}
