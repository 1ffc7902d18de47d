//! After a start: what an earlier supervisor has left half done is finished or undone; the records say which.

use std::{collections::HashSet, sync::Arc};

use proto::{
    containerd::v1::types::{Process, Status as ProcessStatus},
    kind::chain,
    runtime::v1 as cri,
};
use tracing::{info, warn};

use super::{
    error::CriError,
    exits,
    pods::{Pods, blocking},
    record::{Phase, Sandbox},
};

impl Pods {
    /// Looks at every record. What takes its time goes on behind, with the sandbox's turn, so that calls for it wait.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), CriError> {
        let sandboxes = self.sandboxes()?;
        let known: HashSet<String> = sandboxes.iter().map(|(id, _)| id.clone()).collect();
        let containers: HashSet<String> = self.containers_of(None)?.into_iter().map(|(id, _)| id).collect();
        let pods = self.clone();
        blocking(move || {
            pods.sweep(&known, &containers);
            Ok(())
        })
        .await?;
        let living: HashSet<String> =
            self.tasks.list(&self.namespace).await.into_iter().map(|process| process.container_id).collect();
        let pods = self.clone();
        let running = living.clone();
        blocking(move || {
            pods.sweep_images(|id| running.contains(id));
            Ok(())
        })
        .await?;
        for (id, container) in self.containers_of(None)? {
            if container.state() == cri::ContainerState::ContainerRunning {
                match living.contains(&id) {
                    true => {
                        if let Err(error) = self.relays.adopt(&id, &container.stdio()).await {
                            warn!(id, error = %chain(&error), "container goes on without a relay");
                        }
                        self.follow_again(&id);
                        if container.config.stdin_once && self.relays.stdin_has_ended(&id).await {
                            // The client that was its end went with us: the relay knows, that shim doesn't.
                            let _ = self.tasks.close_io(&self.namespace, &id, "", true).await;
                        }
                    }
                    // Lost with the run root, or between the record of its start and its task.
                    false => self.note_end(&id, exits::lost("neither it nor a record of it was there")).await,
                }
            }
        }
        for id in self.relays.all().into_iter().filter(|id| !self.relays.has(id)) {
            let relays = self.relays.clone();
            tokio::spawn(async move { relays.end(&id, true).await });
        }
        for (id, sandbox) in sandboxes {
            let whole = sandbox.phase() != Phase::Ready || self.place(&id).is_whole(&sandbox.namespaces());
            if whole && sandbox.phase() == Phase::Ready && self.has_process(&sandbox) {
                self.follow_pause(&id);
            }
            if whole && matches!(sandbox.phase(), Phase::Ready | Phase::NotReady) {
                continue;
            }
            let turn = self.turns.of(&id).await;
            let pods = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                if let Err(error) = pods.finish(&id, &sandbox).await {
                    warn!(id, error = %chain(&error), "sandbox stays as it is until it is stopped or removed");
                }
            });
        }
        Ok(())
    }

    // A task that waits for its start waits for nobody: who would have started it is gone, and can't be asked to do it again.
    fn follow_again(self: &Arc<Self>, id: &str) {
        let (pods, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            let created = |process: &Process| process.status == ProcessStatus::Created as i32;
            if pods.tasks.get(&pods.namespace, &id, "").await.as_ref().is_ok_and(created) {
                pods.note_end(&id, exits::lost("its start was cut off")).await;
            } else {
                pods.follow(&id);
            }
        });
    }

    async fn finish(self: &Arc<Self>, id: &str, sandbox: &Sandbox) -> Result<(), CriError> {
        info!(id, phase = sandbox.phase().word(), "sandbox of an earlier run looked after");
        match sandbox.phase() {
            Phase::Making => self.undo_sandbox(id).await,
            // A machine that was started anew: its namespaces are gone, what plugins have recorded is not.
            Phase::Ready if self.place(id).is_whole(&sandbox.namespaces()) => Ok(()),
            Phase::Ready | Phase::Stopping => self.stop_in_turn(id).await,
            Phase::NotReady => Ok(()),
        }
    }

    /// Folders of sandboxes and containers that are on no record.
    fn sweep(&self, known: &HashSet<String>, containers: &HashSet<String>) {
        for entry in std::fs::read_dir(self.volumes()).into_iter().flatten().flatten() {
            if let Some(id) = entry.file_name().to_str().filter(|id| !containers.contains(*id)) {
                info!(id, "volumes of a container that is on no record are removed");
                self.remove_volumes(id);
            }
        }
        for entry in std::fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !known.contains(&id) {
                info!(id, "folder of a sandbox that is on no record is removed");
                if let Err(error) = self.place(&id).remove() {
                    warn!(id, error = %chain(&error), "folder of a sandbox stays");
                }
            }
        }
    }
}
