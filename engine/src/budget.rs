//! Keeps images and logs within their budgets (`config/budget.rs` says which, and why they are on by default): looked at some time
//! after the start, after every pull, import or build, and once in a while.

use crate::{
    app::App,
    images::{ImageGroup, remove::PruneOptions},
    time::Timestamp,
};
use proto::kind::chain;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, info, warn};

/// The first look, and how often without a reason.
const FIRST: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_secs(3600);
/// Images that come together are looked at together.
const SETTLE: Duration = Duration::from_secs(2);
/// Down to this part of the budget, so that not every pull has to clean up.
const DOWN_TO: f64 = 0.9;

/// Looks after the budgets for as long as the engine lives.
pub async fn keep(app: Arc<App>) {
    let budget = app.config.budget;
    if budget.images.is_none() && budget.logs.is_none() {
        return;
    }
    let (_, mut events) = app.events.subscribe(None);
    let mut next = FIRST;
    loop {
        let due = tokio::time::sleep(next);
        tokio::pin!(due);
        loop {
            let event = tokio::select! {
                () = due.as_mut() => break,
                event = events.recv() => event,
            };
            let grown = match event {
                Ok(event) => {
                    event.kind == "image" && matches!(event.action.as_str(), "pull" | "import" | "load" | "create")
                }
                Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => return,
            };
            if grown {
                due.as_mut().reset(tokio::time::Instant::now() + SETTLE);
            }
        }
        next = OFTEN;
        if let Some(limit) = budget.images {
            images(&app, limit, budget.named).await;
        }
        if let Some(limit) = budget.logs {
            let (app, worker) = (app.clone(), app.clone());
            match tokio::task::spawn_blocking(move || logs(&worker, limit)).await {
                Ok(0) => {}
                Ok(freed) => {
                    app.metrics.freed.fetch_add(freed, Ordering::Relaxed);
                    app.metrics.cleanups.fetch_add(1, Ordering::Relaxed);
                    info!(freed, limit, "old logs removed: they were over their budget");
                }
                Err(error) => warn!(%error, "budget of logs not looked at"),
            }
        }
    }
}

/// Removes images until they take less: those without a name first, oldest first, each only if no container is made of it.
async fn images(app: &App, limit: u64, named: bool) {
    let measure = async || app.images.disk_usage().await.map(|bytes| u64::try_from(bytes).unwrap_or(0));
    let before = match measure().await {
        Ok(bytes) => bytes,
        Err(error) => return warn!(error = %chain(&error), "budget of images not looked at"),
    };
    if before <= limit {
        return debug!(before, limit, "images are within their budget");
    }
    let goal = (limit as f64 * DOWN_TO) as u64;
    let groups = match app.images.groups().await {
        Ok(groups) => groups,
        Err(error) => return warn!(error = %chain(&error), "budget of images not looked at"),
    };
    let used = last_uses(app);
    let mut left = before;
    let mut removed = 0;
    for group in order(groups, named, &used) {
        if left <= goal {
            break;
        }
        let one = PruneOptions { named, until: None, labels: &|_| true, only: Some(&group.id) };
        match app.images.prune(&one, app).await {
            Ok((done, _)) => {
                for (group, lines) in done {
                    crate::http::images::tell_removed(app, &group, &lines);
                    removed += 1;
                }
            }
            Err(error) => warn!(image = group.id.short(), error = %chain(&error), "image left over its budget"),
        }
        left = measure().await.unwrap_or(left);
    }
    let freed = before.saturating_sub(left);
    app.metrics.cleanups.fetch_add(1, Ordering::Relaxed);
    app.metrics.freed.fetch_add(freed, Ordering::Relaxed);
    if left > limit {
        warn!(
            images = left,
            limit, removed, freed, "images are over their budget, and what is left has a name or is in use"
        );
    } else {
        info!(images = left, limit, removed, freed, "images removed: they were over their budget");
    }
}

/// When a container was last made of each image.
fn last_uses(app: &App) -> HashMap<String, Timestamp> {
    let mut uses: HashMap<String, Timestamp> = HashMap::new();
    for container in app.containers.all() {
        let live = container.live();
        let at = live.record.state.started_at.max(live.record.created);
        let entry = uses.entry(live.record.image_id.clone()).or_insert(at);
        *entry = (*entry).max(at);
    }
    uses
}

/// What may go, in the order in which it goes. Images that containers are made of are none of them.
fn order(groups: Vec<ImageGroup>, named: bool, used: &HashMap<String, Timestamp>) -> Vec<ImageGroup> {
    let mut candidates: Vec<ImageGroup> = groups
        .into_iter()
        .filter(|group| (named || group.is_dangling()) && !used.contains_key(&group.id.to_string()))
        .collect();
    // The last time it was named is the last time somebody pulled, loaded or tagged it.
    candidates.sort_by_key(|group| {
        let named_at = group.records.iter().map(|record| record.updated_at).max();
        (!group.is_dangling(), named_at)
    });
    candidates
}

/// Removes rotated logs, oldest first, until all logs take less. Gives the bytes that were freed. The file that is written to stays:
/// its container's own limits keep it small.
fn logs(app: &App, limit: u64) -> u64 {
    let mut sum = 0;
    let mut rotated: BTreeMap<(SystemTime, PathBuf), u64> = BTreeMap::new();
    for container in app.containers.all() {
        let folder = app.containers.folder_of(&container.id);
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(at) = name.find(".log") else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            if !meta.is_file() {
                continue;
            }
            sum += meta.len();
            let tail = name[at + 4..].strip_prefix('.').unwrap_or_default();
            if tail.starts_with(|c: char| c.is_ascii_digit()) {
                rotated.insert((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path()), meta.len());
            }
        }
    }
    let mut freed = 0;
    for ((_, path), size) in rotated {
        if sum - freed <= limit {
            break;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => freed += size,
            // Rotated away since we looked.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => freed += size,
            Err(error) => warn!(path = %path.display(), %error, "old log not removed"),
        }
    }
    freed
}
