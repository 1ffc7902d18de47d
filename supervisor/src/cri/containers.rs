//! Containers: create, start, stop, remove, and what is said of them.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use nix::sys::signal::Signal;
use proto::{
    berth::streams::v1::ReopenLogRequest,
    containerd::services::{containers::v1::Container as Record, tasks::v1::CreateTaskRequest},
    kind::chain,
    nri::pkg::api::v1alpha1::Event,
    runtime::v1 as cri,
    stdio::StdioUri,
    typeurl,
};
use tracing::{info, warn};

use super::{
    NAMESPACE,
    error::CriError,
    images::Image,
    layer,
    pods::{Pods, blocking, new_id, now},
    process::{Found, signal_of},
    record::{CONTAINERS, Container, End, NAMES, Phase, SANDBOXES, Sandbox, container_name, drop_name, take_name},
    sandboxes,
};
use crate::{
    snapshots::{GID_MAP, UID_MAP},
    tasks::{TaskError, shims::ShimError},
};

/// Code of a container that couldn't be started.
const NOT_STARTED: i32 = 128;
/// How long what was killed may take to end; one that waits for a disk can't be killed.
const AFTER_KILL: Duration = Duration::from_secs(120);
/// Until a kill is tried again that a dying shim didn't carry out.
const AGAIN: Duration = Duration::from_millis(100);

impl Pods {
    /// Records a container of a sandbox; nothing runs yet. Answers its id.
    pub(super) async fn create_container(
        self: &Arc<Self>,
        request: cri::CreateContainerRequest,
    ) -> Result<String, CriError> {
        let config = request.config.ok_or(CriError::Missing("container config"))?;
        let meta = config.metadata.clone().ok_or(CriError::Missing("container metadata"))?;
        if meta.name.is_empty() {
            return Err(CriError::Missing("container name"));
        }
        if config.windows.is_some() {
            return Err(CriError::Invalid("this is no Windows node".into()));
        }
        let sandbox = self.sandbox_id(&request.pod_sandbox_id)?;
        self.detached(async move |pods| {
            let _turn = pods.turns.of(&sandbox).await;
            let name = container_name(&sandbox, &meta);
            if let Some(other) = pods.id_of_name(&name)? {
                let there = pods.container(&other)?;
                return match there.is_some_and(|there| there.config == config) {
                    true => Ok(other),
                    false => {
                        let name = format!("{} (attempt {})", meta.name, meta.attempt);
                        Err(CriError::NameTaken { what: "container", name, other })
                    }
                };
            }
            let found = pods.sandbox(&sandbox)?;
            let record = found.ok_or_else(|| CriError::NotFound { what: "sandbox", id: sandbox.clone() })?;
            if record.phase() != Phase::Ready {
                let why = "it isn't ready, so that no container can be made in it".into();
                return Err(CriError::State { what: "sandbox", id: sandbox, why });
            }
            let found = pods.find_out((&sandbox, &record), &config).await?;
            let id = new_id()?;
            let (own, pods) = (id.clone(), pods.clone());
            let recording = pods.clone();
            blocking(move || recording.record_container(&own, (&sandbox, &record), config, &found)).await?;
            pods.tell(&id, cri::ContainerEventType::ContainerCreatedEvent);
            pods.announce_done(Event::PostCreateContainer, &id).await;
            Ok(id)
        })
        .await
    }

    fn record_container(
        &self,
        id: &str,
        sandbox: (&str, &Sandbox),
        config: cri::ContainerConfig,
        found: &Found,
    ) -> Result<(), CriError> {
        let wanted = config.image.clone().unwrap_or_default().image;
        if wanted.is_empty() {
            return Err(CriError::Missing("image"));
        }
        let image = self.images.find(&wanted)?;
        let image = image.ok_or_else(|| CriError::NotFound { what: "image", id: wanted.clone() })?;
        let log = log_path(sandbox.1.config(), &config)?;
        let lease = crate::leases::unique("cri");
        self.stores.leases.create(NAMESPACE, &lease, layer::unfinished())?;
        let made = self.record_under_lease(id, sandbox, config.clone(), (&image, found), (&log, &lease));
        // Whatever came of it: what isn't recorded now is nobody's.
        if let Err(error) = self.stores.leases.delete(NAMESPACE, &lease) {
            warn!(id, error = %chain(&error), "lease stays until it is looked at");
        }
        if made.is_err() {
            self.remove_volumes(id);
            self.remove_views(id, &config);
            self.drop_layer(id);
        }
        made
    }

    fn record_under_lease(
        &self,
        id: &str,
        (sandbox_id, sandbox): (&str, &Sandbox),
        config: cri::ContainerConfig,
        (image, found): (&Image, &Found),
        (log, lease): (&str, &str),
    ) -> Result<(), CriError> {
        let snapshots = self.stores.snapshots.get_or_default("")?;
        let parent = image.chain().map(|chain| chain.to_string()).unwrap_or_default();
        let ids = sandbox.ids().map(|(uids, gids)| [(UID_MAP.to_owned(), uids), (GID_MAP.to_owned(), gids)]);
        let labels = ids.into_iter().flatten().chain(layer::unfinished()).collect();
        snapshots.prepare(NAMESPACE, id, &parent, labels, Some(lease))?;
        proto::fault!("supervisor.cri_container.snapshot_made");
        let views = self.view_images(id, sandbox, &config, lease)?;
        let mut made = self.specification(id, (sandbox_id, sandbox), &config, (image, &views.mounts), found)?;
        let adjusted = self.adjust(id, (sandbox_id, sandbox), &config, &mut made)?;
        proto::fault!("supervisor.cri_container.specified");
        let container = Container {
            sandbox: sandbox_id.to_owned(),
            image_id: image.id().to_string(),
            created_at: now(),
            started_at: 0,
            end: None,
            user: Some(made.user),
            stop_signal: made.stop_signal,
            log: log.to_owned(),
            config,
        };
        let shown = Record {
            id: id.to_owned(),
            image: image.first_name().unwrap_or_else(|| image.id().to_string()),
            runtime: Some(self.node.runtime(&sandbox.request.runtime_handler)),
            spec: Some(typeurl::pack_json(typeurl::SPEC, made.spec.to_string().into_bytes())),
            snapshotter: snapshots.name().to_owned(),
            snapshot_key: id.to_owned(),
            labels: container
                .config
                .labels
                .clone()
                .into_iter()
                .chain(kind_label())
                .chain(views.labels.clone())
                .collect(),
            ..Default::default()
        };
        let name = container.name();
        self.containers.create_with(&self.namespace, shown, |tx| {
            if let Err(other) = take_name(tx, &name, id)? {
                return Err(CriError::NameTaken { what: "container", name: name.clone(), other });
            }
            for key in [id].into_iter().chain(views.keys()) {
                layer::settle(tx, snapshots.name(), key)?;
            }
            Ok(CONTAINERS.put(tx, NAMESPACE, id, &container)?)
        })?;
        adjusted.recorded();
        self.stores.gc.changed();
        proto::fault!("supervisor.cri_container.recorded");
        info!(id, sandbox = sandbox_id, image = %image.id(), "container created");
        Ok(())
    }

    fn id_of_name(&self, name: &str) -> Result<Option<String>, CriError> {
        Ok(self.stores.db.read(|tx| NAMES.get(tx, NAMESPACE, name))?)
    }

    /// Starts a container that was created.
    pub(super) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let id = self.container_id(id)?;
        self.detached(async move |pods| {
            let sandbox = pods.known(&id)?.sandbox;
            let turn = pods.turns.of(&sandbox).await;
            let container = pods.known(&id)?;
            let refused = |why: String| Err(CriError::State { what: "container", id: id.clone(), why });
            if container.state() != cri::ContainerState::ContainerCreated {
                let state = container.state().as_str_name();
                return refused(format!("it is {state} and can be started only once, after it was created"));
            }
            let of = pods.sandbox(&sandbox)?.unwrap_or_default();
            if of.phase() != Phase::Ready {
                return refused(format!("its sandbox {sandbox} isn't ready"));
            }
            // Its specification names the pid namespace by a process, whose number may be somebody else's by now.
            pods.neighbour(&sandbox, &container.config)?;
            let start = pods.starting.begin(&id);
            pods.change_container(&id, |container| container.started_at = now()).await?;
            proto::fault!("supervisor.cri_container.starting");
            if let Err(error) = pods.run(&id, &container, &of.request.runtime_handler).await {
                let message = chain(&error).to_string();
                let end = End { at: now(), code: NOT_STARTED, reason: "StartError".into(), message };
                pods.note_end(&id, end).await;
                return Err(error);
            }
            drop(start);
            pods.announce_done(Event::PostStartContainer, &id).await;
            drop(turn);
            // Nobody is to hear of its end before they hear of its start.
            pods.tell(&id, cri::ContainerEventType::ContainerStartedEvent);
            pods.follow(&id);
            Ok(())
        })
        .await
    }

    async fn run(self: &Arc<Self>, id: &str, container: &Container, handler: &str) -> Result<(), CriError> {
        let failed = CriError::task(id);
        let (pods, own) = (self.clone(), id.to_owned());
        let rootfs = blocking(move || Ok(pods.stores.snapshots.get_or_default("")?.mounts(NAMESPACE, &own)?)).await?;
        let wanted = container.stdio();
        let output = wanted.output();
        if let StdioUri::Cri { path, .. } = &output
            && let Some(folder) = path.parent()
        {
            let made = std::fs::create_dir_all(folder);
            made.map_err(|cause| CriError::Io { id: id.to_owned(), what: "make folder", at: folder.into(), cause })?;
        }
        let [stdin, stdout, stderr] = match self.tasks.is_own_runtime(&self.node.runtime(handler).name) {
            true => [
                if wanted.stdin { StdioUri::Attach.to_string() } else { String::new() },
                output.to_string(),
                if wanted.terminal { String::new() } else { output.to_string() },
            ],
            false => {
                let fifos = self.relays.start(id, &wanted).await;
                fifos.map_err(|cause| CriError::Relay { id: id.to_owned(), cause })?
            }
        };
        proto::fault!("supervisor.cri_container.stdio_ready");
        let terminal = wanted.terminal;
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin,
            stdout,
            stderr,
            terminal,
            ..Default::default()
        };
        self.mount_images(id, container).await?;
        let mut created = self.tasks.create(self.namespace.clone(), request.clone()).await;
        if created.as_ref().is_err_and(is_by_a_shim_that_left) {
            // The pod's last container has just ended, and with it, while we were on our way to it, the pod's shim.
            created = self.tasks.create(self.namespace.clone(), request).await;
        }
        let own = self.sandbox(&container.sandbox)?.is_some_and(|sandbox| {
            self.tasks.is_own_runtime(&self.node.runtime(&sandbox.request.runtime_handler).name)
        });
        if own || created.is_err() {
            self.unmount_images(id).await;
        }
        created.map_err(&failed)?;
        proto::fault!("supervisor.cri_container.task_created");
        if let Err(refused) = self.announce(Event::StartContainer, id).await {
            self.delete_task(id).await;
            return Err(refused);
        }
        if let Err(cause) = self.tasks.start(&self.namespace, id, "").await {
            self.delete_task(id).await;
            return Err(failed(cause));
        }
        proto::fault!("supervisor.cri_container.task_started");
        Ok(())
    }

    /// Asks a container to end, and kills it when it hasn't after `timeout` seconds.
    pub(super) async fn stop_container(self: &Arc<Self>, id: &str, timeout: i64) -> Result<(), CriError> {
        let id = match self.container_id(id) {
            Err(CriError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        let Some(container) = self.container(&id)? else { return Ok(()) };
        // A start that is at work is waited for.
        drop(self.turns.of(&container.sandbox).await);
        let Some(container) = self.container(&id)? else { return Ok(()) };
        if container.state() != cri::ContainerState::ContainerRunning {
            return Ok(());
        }
        if timeout > 0 {
            match self.signal(&id, container.stop_signal, false).await {
                // It ends with its shim; or the connection alone was lost, and it is killed in the end.
                Err(error) if is_without_shim(&error) => {}
                other => other?,
            }
            let patience = Duration::from_secs(timeout as u64);
            if tokio::time::timeout(patience, self.has_ended(&id)).await.is_ok() {
                self.announce_end(&id).await;
                return Ok(());
            }
            info!(id, timeout, "container didn't stop in time and is killed");
        }
        self.kill_and_wait(&id).await
    }

    /// Kills a container, if it runs, and waits for its end.
    pub(super) async fn kill_and_wait(&self, id: &str) -> Result<(), CriError> {
        let running = |container: &Container| container.state() == cri::ContainerState::ContainerRunning;
        if !self.container(id)?.is_some_and(|container| running(&container)) {
            return Ok(());
        }
        let killed = || self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        killed().insert(id.to_owned());
        let ended = async {
            self.kill(id).await?;
            let ended = tokio::time::timeout(AFTER_KILL, self.has_ended(id)).await;
            ended.unwrap_or_else(|_| Err(CriError::Immortal { id: id.to_owned(), limit: AFTER_KILL }))
        };
        let ended = ended.await;
        killed().remove(id);
        ended?;
        // Whoever recorded it may be about to; plugins hear of it once, and before whoever asked for it.
        self.announce_end(id).await;
        Ok(())
    }

    /// Kills a container's processes. If its shim dies meanwhile, until what it minded is on record as ended.
    pub(super) async fn kill(&self, id: &str) -> Result<(), CriError> {
        let began = tokio::time::Instant::now();
        loop {
            match self.signal(id, Signal::SIGKILL as u32, true).await {
                Err(error) if is_without_shim(&error) && began.elapsed() < AFTER_KILL => {
                    tokio::time::sleep(AGAIN).await
                }
                other => return other,
            }
        }
    }

    pub(super) async fn signal(&self, id: &str, signal: u32, all: bool) -> Result<(), CriError> {
        match self.tasks.kill(&self.namespace, id, "", signal, all).await {
            // It has ended, or is about to: whoever follows it records that.
            Ok(()) | Err(TaskError::NotFound(_)) => Ok(()),
            Err(error) if is_ended(&error) => Ok(()),
            Err(error) => Err(CriError::task(id)(error)),
        }
    }

    /// Waits for a container's end to be on record.
    async fn has_ended(&self, id: &str) -> Result<(), CriError> {
        loop {
            let mut changed = std::pin::pin!(self.ended.notified());
            changed.as_mut().enable();
            let running = |container: Container| container.state() == cri::ContainerState::ContainerRunning;
            if !self.container(id)?.is_some_and(running) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Removes a container, by force.
    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let id = match self.container_id(id) {
            Err(CriError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        self.detached(async move |pods| {
            let Some(container) = pods.container(&id)? else { return Ok(()) };
            let _turn = pods.turns.of(&container.sandbox).await;
            pods.remove_container_in_turn(&id).await
        })
        .await
    }

    pub(super) async fn remove_container_in_turn(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Some(container) = self.container(id)? else { return Ok(()) };
        self.kill_and_wait(id).await?;
        proto::fault!("supervisor.cri_container.removing");
        self.delete_task(id).await;
        self.announce_removal(id).await;
        proto::fault!("supervisor.cri_container.task_deleted");
        let event = self.event(id, cri::ContainerEventType::ContainerDeletedEvent)?;
        let free = self.is_layer_free(id).await;
        let (pods, own) = (self.clone(), id.to_owned());
        blocking(move || {
            let name = container.name();
            let driver = pods.stores.snapshots.get_or_default("")?.name();
            let mut layer = None;
            // Somebody may have removed containerd's record by itself.
            let gone = pods.containers.delete_with(&pods.namespace, &own, |tx| {
                CONTAINERS.remove(tx, NAMESPACE, &own)?;
                if free {
                    layer = layer::unrecord(tx, driver, &own)?;
                }
                Ok::<_, CriError>(drop_name(tx, &name, &own)?)
            });
            pods.remove_volumes(&own);
            if gone.is_ok() {
                pods.sweep_layer(&own, layer);
                pods.remove_views(&own, &container.config);
            }
            // Its image may have been removed under it.
            pods.stores.gc.schedule();
            gone.map(drop)
        })
        .await?;
        proto::fault!("supervisor.cri_container.unrecorded");
        if let Some(event) = event {
            // Nobody may be listening.
            let _ = self.told.send(Arc::new(event));
        }
        info!(id, "container removed");
        Ok(())
    }

    /// Takes a task away; it may be gone, or never have been.
    pub(super) async fn delete_task(self: &Arc<Self>, id: &str) {
        match self.tasks.delete(&self.namespace, id).await {
            Ok(_) | Err(TaskError::NotFound(_)) => {}
            Err(error) => warn!(id, error = %chain(&error), "task not deleted"),
        }
        self.unmount_images(id).await;
    }

    /// A container that must be there.
    pub(super) fn known(&self, id: &str) -> Result<Container, CriError> {
        self.container(id)?.ok_or_else(|| CriError::NotFound { what: "container", id: id.to_owned() })
    }

    /// Changes a container's record.
    pub(super) async fn change_container(
        self: &Arc<Self>,
        id: &str,
        change: impl FnOnce(&mut Container) + Send + 'static,
    ) -> Result<(), CriError> {
        let (pods, id) = (self.clone(), id.to_owned());
        blocking(move || {
            pods.stores.db.write(|tx| {
                if let Some(mut container) = CONTAINERS.get(tx, NAMESPACE, &id)? {
                    change(&mut container);
                    CONTAINERS.put(tx, NAMESPACE, &id, &container)?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Begins a container's log anew, after the kubelet has renamed it.
    pub(super) async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let id = self.container_id(id)?;
        let container = self.known(&id)?;
        if container.state() != cri::ContainerState::ContainerRunning {
            let why = "it isn't running, so that its log can't be begun anew".into();
            return Err(CriError::State { what: "container", id, why });
        }
        let reopen = ReopenLogRequest { container_id: id.clone(), ..Default::default() };
        if self.relays.has(&id) {
            return self.relays.reopen_log(reopen).await.map_err(|cause| CriError::Relay { id, cause });
        }
        self.tasks.reopen_log(&self.namespace, reopen).await.map_err(CriError::task(&id))
    }

    /// What is said of a container.
    pub(super) fn container_status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse, CriError> {
        let id = self.container_id(id)?;
        let container = self.known(&id)?;
        let mut info = HashMap::new();
        if verbose {
            let record = self.containers.get(&self.namespace, &id)?;
            let spec: serde_json::Value =
                record.spec.and_then(|spec| serde_json::from_slice(&spec.value).ok()).unwrap_or_default();
            let text = serde_json::json!({
                "sandboxID": container.sandbox,
                "snapshotKey": record.snapshot_key,
                "snapshotter": record.snapshotter,
                "runtimeType": record.runtime.map(|runtime| runtime.name),
                "runtimeSpec": spec,
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(cri::ContainerStatusResponse { status: Some(self.status_of(&id, container)), info })
    }

    /// What is said of all containers of a sandbox.
    pub(super) fn statuses_of(&self, sandbox: &str) -> Result<Vec<cri::ContainerStatus>, CriError> {
        let all = self.containers_of(Some(sandbox))?;
        Ok(all.into_iter().map(|(id, container)| self.status_of(&id, container)).collect())
    }

    fn status_of(&self, id: &str, container: Container) -> cri::ContainerStatus {
        let state = container.state().into();
        let config = container.config;
        let linux = config.linux.unwrap_or_default();
        let end = container.end.unwrap_or_default();
        cri::ContainerStatus {
            id: id.to_owned(),
            metadata: config.metadata,
            state,
            created_at: container.created_at,
            started_at: container.started_at,
            finished_at: end.at,
            exit_code: end.code,
            image: config.image,
            image_ref: container.image_id.clone(),
            reason: end.reason,
            message: end.message,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: container.log,
            resources: Some(cri::ContainerResources { linux: linux.resources, windows: None }),
            image_id: container.image_id,
            user: Some(cri::ContainerUser { linux: container.user }),
            stop_signal: signal_of(container.stop_signal).into(),
        }
    }

    /// The containers that pass a filter.
    pub(super) fn list_containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, CriError> {
        let filter = filter.unwrap_or_default();
        let all = self.stores.db.read(|tx| CONTAINERS.list(tx, NAMESPACE, &filter.id))?;
        let all = all.into_iter().map(|(id, one)| (id.clone(), self.starting.shown(&id, one)));
        let wanted = |container: &Container| {
            container.sandbox.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|state| state.state == container.state() as i32)
                && matches(&container.config.labels, &filter.label_selector)
        };
        Ok(all.filter(|(_, container)| wanted(container)).map(|(id, one)| listed(id, one)).collect())
    }

    /// An event about a container that is on record.
    pub(super) fn event(
        &self,
        id: &str,
        kind: cri::ContainerEventType,
    ) -> Result<Option<cri::ContainerEventResponse>, CriError> {
        if self.told.receiver_count() == 0 {
            return Ok(None);
        }
        let Some(container) = self.container(id)? else { return Ok(None) };
        let sandbox = self.stores.db.read(|tx| SANDBOXES.get(tx, NAMESPACE, &container.sandbox))?;
        Ok(Some(cri::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: sandbox.map(|sandbox| sandboxes::status(&container.sandbox, &sandbox)),
            containers_statuses: self.statuses_of(&container.sandbox)?,
        }))
    }

    /// Tells those who follow events of a container.
    pub(super) fn tell(&self, id: &str, kind: cri::ContainerEventType) {
        match self.event(id, kind) {
            // The last of them may just have gone.
            Ok(Some(event)) => drop(self.told.send(Arc::new(event))),
            Ok(None) => {}
            Err(error) => warn!(id, error = %chain(&error), "event not told"),
        }
    }
}

/// Whether a shim went away before it had made anything.
fn is_by_a_shim_that_left(error: &TaskError) -> bool {
    matches!(
        error,
        TaskError::ShimGone { call: "Create", .. } | TaskError::Shim { cause: ShimError::Connect { .. }, .. }
    )
}

/// Whether a shim went away under a call: what it minded is ended and on record soon.
fn is_without_shim(error: &CriError) -> bool {
    matches!(error, CriError::Task { cause, .. } if matches!(**cause, TaskError::ShimGone { .. }))
}

/// Whether a refusal means that there is nothing left to be signalled.
fn is_ended(error: &TaskError) -> bool {
    use crate::failure::Failure;
    matches!(error.kind(), proto::kind::ErrorKind::NotFound | proto::kind::ErrorKind::FailedPrecondition)
}

fn kind_label() -> [(String, String); 1] {
    [("io.cri-containerd.kind".to_owned(), "container".to_owned())]
}

fn listed(id: String, container: Container) -> cri::Container {
    let state = container.state().into();
    let config = container.config;
    cri::Container {
        id,
        pod_sandbox_id: container.sandbox,
        metadata: config.metadata,
        image: config.image,
        image_ref: container.image_id.clone(),
        state,
        created_at: container.created_at,
        labels: config.labels,
        annotations: config.annotations,
        image_id: container.image_id,
    }
}

/// Whether labels have all that a selector wants.
pub(super) fn matches(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Where the output of a container goes: below the sandbox's folder of logs, whatever the path says.
fn log_path(sandbox: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> Result<String, CriError> {
    let (folder, path) = (&sandbox.log_directory, &container.log_path);
    if folder.is_empty() || path.is_empty() {
        return Ok(String::new());
    }
    let bad = |why: &str| Err(CriError::Invalid(format!("log path {path:?} in {folder:?}: {why}")));
    if !Path::new(folder).is_absolute() {
        return bad("the folder isn't absolute");
    }
    if [folder, path].into_iter().any(|path| path.contains('\0')) {
        return bad("there is a NUL in it");
    }
    let below: Option<PathBuf> = Path::new(path)
        .components()
        .map(|part| match part {
            Component::Normal(part) => Some(part),
            _ => None,
        })
        .collect();
    match below {
        Some(below) if !path.ends_with('/') => Ok(Path::new(folder).join(below).display().to_string()),
        _ => bad("it has to name a file below the folder, without . and .."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_stay_below_their_folder() {
        let path = |folder: &str, path: &str| {
            let sandbox = cri::PodSandboxConfig { log_directory: folder.into(), ..Default::default() };
            log_path(&sandbox, &cri::ContainerConfig { log_path: path.into(), ..Default::default() })
        };
        assert_eq!(path("/var/log/pods/a", "web/0.log").unwrap(), "/var/log/pods/a/web/0.log");
        assert_eq!(path("/var/log/pods/a", "").unwrap(), "");
        assert_eq!(path("", "web/0.log").unwrap(), "");
        for (folder, bad) in [
            ("/l", "../x"),
            ("/l", "/etc/cron.d/x"),
            ("/l", "a/../../x"),
            ("l", "x"),
            ("/l", "a/"),
            ("/l", "a\0"),
            ("/l\0", "a"),
        ] {
            assert!(matches!(path(folder, bad), Err(CriError::Invalid(_))), "{folder} {bad}");
        }
    }

    #[test]
    fn selectors() {
        let labels = |all: &[(&str, &str)]| {
            all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>()
        };
        let one = labels(&[("a", "1"), ("b", "2")]);
        assert!(matches(&one, &labels(&[])) && matches(&one, &labels(&[("a", "1")])));
        assert!(!matches(&one, &labels(&[("a", "2")])) && !matches(&one, &labels(&[("c", "")])));
    }
}
