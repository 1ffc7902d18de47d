//! Create: bundle, shim, container; whatever fails, everything before it is undone.

use std::{path::PathBuf, sync::Arc, time::Instant};

use prost_types::Any;
use proto::{
    containerd::{
        events::{TaskDelete, TaskExit},
        services::{containers::v1::Container, tasks::v1::CreateTaskRequest},
        task::v3,
        types::Descriptor,
    },
    id::{ContainerId, NamespaceName},
    kind::ErrorKind,
};
use tracing::{debug, info};

use super::{
    Tasks,
    bundle::{Exit, Origin},
    connection::Connection,
    delete::known_exit,
    error::TaskError,
    rules::State,
    shims::{Program, ShimError},
    task::{Phase, Task},
};
use crate::failure::Failure;

/// Everything that is settled before anything is made.
struct Plan {
    program: Program,
    origin: Origin,
    spec: Vec<u8>,
    request: v3::CreateTaskRequest,
    checkpoint: Option<Descriptor>,
}

impl Tasks {
    /// Makes the task of a container; it waits for start. Answers the pid.
    pub(crate) async fn create(
        self: &Arc<Self>,
        namespace: NamespaceName,
        request: CreateTaskRequest,
    ) -> Result<u32, TaskError> {
        let id = ContainerId::new(request.container_id.as_str())?;
        let container = self.containers.get(&namespace, id.as_str())?;
        let plan = self.plan(&id, container, request)?;
        let task = self.reserve(&namespace, &id).await?;
        let tasks = self.clone();
        task.clone().detached(async move { tasks.make(task, plan).await }).await
    }

    fn plan(&self, id: &ContainerId, container: Container, request: CreateTaskRequest) -> Result<Plan, TaskError> {
        let runtime = container.runtime.unwrap_or_default();
        let name = if request.runtime_path.is_empty() { &runtime.name } else { &request.runtime_path };
        let shim = self.runtimes.shim(name).map_err(|cause| TaskError::Runtime { id: id.clone(), cause })?;
        let spec = spec_json(id, container.spec)?;
        let options = request.options.or(runtime.options);
        let images = self.images(request.checkpoint, options.as_ref());
        let images = images.map_err(|cause| TaskError::Checkpoint { id: id.clone(), cause })?;
        let (images, checkpoint) = images.map_or((None, None), |(images, blob)| (Some(images), blob));
        let origin = Origin {
            shim: shim.clone(),
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            snapshot: (!container.snapshot_key.is_empty()).then_some((container.snapshotter, container.snapshot_key)),
            images: images.clone(),
        };
        let request = v3::CreateTaskRequest {
            id: id.to_string(),
            rootfs: request.rootfs,
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            options,
            checkpoint: images.map(|images| images.folder.display().to_string()).unwrap_or_default(),
            ..Default::default()
        };
        Ok(Plan { program: Program { shim, ..self.program.clone() }, origin, spec, request, checkpoint })
    }

    /// Takes the container's place in the list of tasks. A predecessor that is leaving is waited for.
    async fn reserve(&self, namespace: &NamespaceName, id: &ContainerId) -> Result<Arc<Task>, TaskError> {
        loop {
            let old = {
                let mut tasks = self.lock();
                let key = (namespace.clone(), id.clone());
                match tasks.get(&key) {
                    Some(old) if matches!(old.phase(), Phase::Ending | Phase::Ended) => old.clone(),
                    Some(_) => return Err(TaskError::Exists(id.clone())),
                    None => {
                        let task = Task::new(&self.folder, namespace.clone(), id.clone(), Phase::Making);
                        tasks.insert(key, task.clone());
                        return Ok(task);
                    }
                }
            };
            old.reaches(|phase| phase == Phase::Ended).await;
            // `forget` marks first and removes then: let it.
            tokio::task::yield_now().await;
        }
    }

    async fn make(self: Arc<Self>, task: Arc<Task>, plan: Plan) -> Result<u32, TaskError> {
        let reserved = Reservation { tasks: &self, task: &task, kept: false };
        let _turn = task.turn().await;
        let began = Instant::now();
        match self.build(&task, plan).await {
            Ok(pid) => {
                reserved.keep();
                info!(namespace = %task.namespace, id = %task.id, pid, us = began.elapsed().as_micros(), "task created");
                Ok(pid)
            }
            Err(error) => {
                self.undo(&task).await;
                Err(error)
            }
        }
    }

    async fn build(self: &Arc<Self>, task: &Arc<Task>, plan: Plan) -> Result<u32, TaskError> {
        let Plan { program, origin, spec, mut request, checkpoint } = plan;
        let bundle_failed = |cause| TaskError::Bundle { id: task.id.clone(), cause };
        let shim_failed = |cause| TaskError::Shim { id: task.id.clone(), cause };
        if let Err(cause) = task.bundle.make(&spec, &origin) {
            // What an earlier attempt left lies in the way: nobody's, since the place in the list is ours.
            if cause.kind() != ErrorKind::AlreadyExists || !self.try_undo(task).await {
                return Err(bundle_failed(cause));
            }
            task.bundle.make(&spec, &origin).map_err(bundle_failed)?;
        }
        proto::fault!("supervisor.create.bundle_made");
        task.hear_shim(&origin);
        task.facts.send_modify(|facts| facts.origin = Some(origin));
        let began = Instant::now();
        let bootstrap = program.start(&task.namespace, &task.id, task.bundle.path()).await.map_err(shim_failed)?;
        debug!(namespace = %task.namespace, id = %task.id, us = began.elapsed().as_micros(), "shim started");
        proto::fault!("supervisor.create.shim_started");
        task.bundle.set_bootstrap(&bootstrap).map_err(bundle_failed)?;
        proto::fault!("supervisor.create.bootstrap_recorded");
        let connection = Connection::open(&bootstrap).await;
        let socket = PathBuf::from(bootstrap.address);
        let connection = connection.map_err(|cause| shim_failed(ShimError::Connect { socket, cause }))?;
        task.facts.send_modify(|facts| facts.connection = Some(connection.clone()));
        proto::fault!("supervisor.create.connected");
        request.bundle = task.bundle.path().display().to_string();
        if let Some(checkpoint) = checkpoint {
            let unpacked =
                self.unpack_checkpoint(&task.namespace, checkpoint, PathBuf::from(&request.checkpoint)).await;
            unpacked.map_err(|cause| TaskError::Checkpoint { id: task.id.clone(), cause })?;
            proto::fault!("supervisor.create.checkpoint_unpacked");
        }
        let began = Instant::now();
        let mut shim = connection.tasks();
        let created = shim.create(super::connection::request(&task.namespace, request));
        let created = match task.patiently("Create", created).await? {
            Ok(created) => created.into_inner(),
            Err(status) => {
                let answer = super::task::lost_or(&connection, status).await.map(TaskError::Answer);
                return Err(answer.unwrap_or_else(|| TaskError::ShimGone { id: task.id.clone(), call: "Create" }));
            }
        };
        debug!(namespace = %task.namespace, id = %task.id, us = began.elapsed().as_micros(), "shim created the container");
        proto::fault!("supervisor.create.shim_created");
        task.facts.send_modify(|facts| {
            facts.pid = created.pid;
            facts.set_state(State::Created);
            facts.phase = Phase::Live;
        });
        self.watch(task, connection);
        proto::fault!("supervisor.create.watched");
        Ok(created.pid)
    }
}

impl Tasks {
    /// Tells the end of a task whose creation was told, but which nobody will ever start: whoever follows the events would
    /// wait for it.
    pub(super) fn end_story(&self, task: &Task) {
        self.tell_undelivered(task);
        let (created, deleted) = task.facts.borrow().told_life;
        if !created || deleted {
            return;
        }
        let Exit { pid, status, at } = task.bundle.exit().unwrap_or_else(|| known_exit(task));
        let container_id = task.id.to_string();
        if !task.facts.borrow().told {
            let event = TaskExit {
                container_id: container_id.clone(),
                id: container_id.clone(),
                pid,
                exit_status: status,
                exited_at: Some(at),
            };
            self.events.publish(&task.namespace, "/tasks/exit", &event);
        }
        let event = TaskDelete { container_id, pid, exit_status: status, exited_at: Some(at), id: String::new() };
        self.events.publish(&task.namespace, "/tasks/delete", &event);
        task.facts.send_modify(|facts| (facts.told, facts.told_life.1) = (true, true));
    }
}

/// A place in the list, given back on drop unless kept: also when the making panics.
struct Reservation<'a> {
    tasks: &'a Tasks,
    task: &'a Task,
    kept: bool,
}

impl Reservation<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.tasks.forget(self.task);
        }
    }
}

/// The spec as the JSON that goes into config.json.
fn spec_json(id: &ContainerId, spec: Option<Any>) -> Result<Vec<u8>, TaskError> {
    let spec = spec.unwrap_or_default();
    let is_spec = spec.type_url.rsplit('/').next() == Some("Spec");
    let is_object = serde_json::from_slice::<&serde_json::value::RawValue>(&spec.value)
        .is_ok_and(|json| json.get().starts_with('{'));
    if is_spec && is_object { Ok(spec.value) } else { Err(TaskError::Spec { id: id.clone(), type_url: spec.type_url }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::typeurl;

    #[test]
    fn only_specs_in_json_become_config_json() {
        let id = ContainerId::new("web").unwrap();
        let json = |url: &str, text: &str| spec_json(&id, Some(typeurl::pack_json(url, text.as_bytes().to_vec())));
        assert_eq!(json(typeurl::SPEC, "{\"a\":1}").unwrap(), b"{\"a\":1}");
        for (url, text) in [(typeurl::SPEC, "[]"), (typeurl::SPEC, "{"), (typeurl::PROCESS, "{}"), ("", "{}")] {
            assert!(json(url, text).is_err(), "{url} {text}");
        }
        assert!(spec_json(&id, None).is_err());
    }
}
