//! How containers end: each that runs is followed, and its end is recorded before anybody hears of it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use proto::{kind::chain, runtime::v1 as cri};
use tracing::{info, warn};

use super::{
    pods::{Pods, now},
    record::End,
};
use crate::tasks::TaskError;

/// Code of a container of whose end nobody knows.
const UNKNOWN: i32 = 255;
/// Until what failed is tried again: a shim may hang, the disk be full.
const AGAIN: Duration = Duration::from_secs(1);

/// How late somebody else's shim may tell that memory had run out, and how often we look.
const OOM_LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

impl Pods {
    /// Follows a container that was started, until its end is recorded.
    pub(super) fn follow(self: &Arc<Self>, id: &str) {
        let (pods, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            let end = loop {
                match pods.tasks.wait(&pods.namespace, &id, "").await {
                    Ok(exit) => {
                        // All that it has written is in its log before anybody hears of its end.
                        pods.relays.end(&id, false).await;
                        let oom = exit.status == 137 && pods.is_oom(&id).await;
                        let at = exit.at.seconds.saturating_mul(1_000_000_000).saturating_add(exit.at.nanos.into());
                        break End {
                            at: if at > 0 { at } else { now() },
                            code: exit.status as i32,
                            reason: reason(exit.status, oom).into(),
                            message: String::new(),
                        };
                    }
                    // The next supervisor follows it.
                    Err(TaskError::Draining) => return,
                    Err(error @ TaskError::NotFound(_)) => break lost(&chain(&error).to_string()),
                    Err(error) => {
                        warn!(id, error = %chain(&error), "container can't be followed; it is tried again");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            };
            pods.note_end(&id, end).await;
        });
    }

    /// Whether memory had run out when a container was killed. Shims of others tell it beside the exit, and may be late.
    async fn is_oom(&self, id: &str) -> bool {
        let saw = || self.tasks.saw_oom(&self.namespace, id);
        let by_us = self.killed.lock().unwrap_or_else(PoisonError::into_inner).contains(id);
        if saw() || by_us || self.tasks.has_own_shim(&self.namespace, id) {
            return saw();
        }
        let told = async {
            while !saw() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(OOM_LIMIT, told).await.is_ok()
    }

    /// Records an end, takes the task away, and tells.
    pub(super) async fn note_end(self: &Arc<Self>, id: &str, end: End) {
        let code = end.code;
        self.relays.end(id, true).await;
        while let Err(error) = self
            .change_container(id, {
                let end = end.clone();
                move |container| {
                    // The first that is known of it stands.
                    container.end.get_or_insert(end);
                }
            })
            .await
        {
            warn!(id, error = %chain(&error), "end of a container not recorded; it is tried again");
            tokio::time::sleep(AGAIN).await;
        }
        proto::fault!("supervisor.cri_container.end_recorded");
        info!(id, code, reason = end.reason, "container ended");
        self.announce_end(id).await;
        self.ended.notify_waiters();
        self.delete_task(id).await;
        self.tell(id, cri::ContainerEventType::ContainerStoppedEvent);
    }
}

/// The end of a container that was lost without one.
pub(super) fn lost(why: &str) -> End {
    End { at: now(), code: UNKNOWN, reason: "Unknown".into(), message: format!("its end was not seen: {why}") }
}

fn reason(status: u32, oom: bool) -> &'static str {
    match (status, oom) {
        (0, _) => "Completed",
        (_, true) => "OOMKilled",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        for (status, oom, word) in [
            (0, false, "Completed"),
            (0, true, "Completed"),
            (137, true, "OOMKilled"),
            (137, false, "Error"),
            (1, false, "Error"),
        ] {
            assert_eq!(reason(status, oom), word);
        }
    }
}
