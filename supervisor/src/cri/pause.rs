//! Process 1 of a pod whose containers see each other's processes: the shim under another name (`shim/src/init.rs`), alone in a root
//! of its own. It reaps, and ends when it is told to. No image is pulled for it, and pods that don't share processes have none, except under
//! shims of others: those are told of a pod as containerd tells them, by a container of the type `sandbox` that comes first and has the pod's
//! network. One that runs a virtual machine for the pod starts it then.

use std::{fs, path::PathBuf, sync::Arc};

use proto::{
    containerd::{
        services::{containers::v1::Container as Record, tasks::v1::CreateTaskRequest},
        types::Mount,
    },
    kind::chain,
    typeurl,
};
use serde_json::json;
use tracing::warn;

use super::{
    error::CriError,
    place::{self, Kind},
    pods::{Pods, blocking},
    record::{Phase, Sandbox},
    spec,
};
use crate::tasks::TaskError;

/// The program in its root, by whose name the shim knows what it is to be.
const PROGRAM: &str = "berth-pause";
/// The user that it is.
const NOBODY: u64 = 65535;
/// As the node's own daemons: the pod ends with it.
const OOM_SCORE_ADJ: i64 = -998;

impl Pods {
    /// Whether a sandbox has a process of its own.
    pub(super) fn has_process(&self, sandbox: &Sandbox) -> bool {
        let runtime = self.node.runtime(&sandbox.request.runtime_handler).name;
        place::shares_processes(&sandbox.namespaces()) || !self.tasks.is_own_runtime(&runtime)
    }

    /// Starts the process of a sandbox, and pins its pid namespace. Its container has the sandbox's id.
    pub(super) async fn run_pause(self: &Arc<Self>, id: &str, sandbox: &Sandbox) -> Result<(), CriError> {
        // Containers may signal what runs under the same profile, and nothing that has none.
        let settled = self.apparmor.settle(None, false).await;
        let profile = settled.map_err(|cause| CriError::Spec { id: id.to_owned(), cause: cause.into() })?;
        let (pods, own, of) = (self.clone(), id.to_owned(), sandbox.clone());
        let root = blocking(move || {
            let root = pods.pause_root()?;
            pods.containers.create(&pods.namespace, pods.pause_record(&own, &of, profile)?)?;
            Ok(root)
        })
        .await?;
        proto::fault!("supervisor.sandbox.pause_recorded");
        let failed = CriError::task(id);
        let rootfs = Mount {
            r#type: "bind".into(),
            source: root.display().to_string(),
            options: vec!["rbind".into(), "ro".into(), "nosuid".into(), "nodev".into()],
            ..Default::default()
        };
        let request = CreateTaskRequest { container_id: id.to_owned(), rootfs: vec![rootfs], ..Default::default() };
        self.tasks.create(self.namespace.clone(), request).await.map_err(&failed)?;
        let pid = self.tasks.start(&self.namespace, id, "").await.map_err(&failed)?;
        proto::fault!("supervisor.sandbox.pause_started");
        if place::shares_processes(&sandbox.namespaces()) {
            self.place(id).pin_processes(pid)?;
        }
        self.follow_pause(id);
        Ok(())
    }

    fn pause_record(&self, id: &str, sandbox: &Sandbox, apparmor: Option<String>) -> Result<Record, CriError> {
        let (place, namespaces, config) = (self.place(id), sandbox.namespaces(), sandbox.config());
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        let failed = |cause| CriError::Spec { id: id.to_owned(), cause };
        let mut list = vec![json!({"type": "mount"}), json!({"type": "pid"})];
        for (kind, name) in [(Kind::User, "user"), (Kind::Net, "network"), (Kind::Ipc, "ipc"), (Kind::Uts, "uts")] {
            if let Some(path) = place.pinned(kind, &namespaces) {
                list.push(json!({"type": name, "path": path}));
            }
        }
        let meta = config.metadata.clone().unwrap_or_default();
        let mappings = spec::mappings(config).map_err(failed)?;
        // Nobody, or who comes nearest.
        let lowest = mappings.iter().filter_map(|(_, map)| map[0]["size"].as_u64()).min();
        let nobody = lowest.map_or(NOBODY, |ids| NOBODY.min(ids.saturating_sub(1)));
        let mut spec = json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "user": {"uid": nobody, "gid": nobody},
                "args": [format!("/{PROGRAM}")],
                "cwd": "/",
                "noNewPrivileges": true,
                "oomScoreAdj": self.host.lowest_oom_score_adj.map_or(OOM_SCORE_ADJ, |lowest| lowest.max(OOM_SCORE_ADJ)),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "size=64k", "mode=755"]},
            ],
            "linux": {
                "namespaces": list,
                "cgroupsPath": spec::cgroups_path(&parent, self.driver, id).map_err(failed)?,
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
            "annotations": {
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": id,
                "io.kubernetes.cri.sandbox-name": meta.name,
                "io.kubernetes.cri.sandbox-namespace": meta.namespace,
                "io.kubernetes.cri.sandbox-uid": meta.uid,
            },
        });
        for (key, map) in mappings {
            spec["linux"][key] = map;
        }
        if let Some(profile) = apparmor {
            spec["process"]["apparmorProfile"] = profile.into();
        }
        Ok(Record {
            id: id.to_owned(),
            runtime: Some(self.node.runtime(&sandbox.request.runtime_handler)),
            spec: Some(typeurl::pack_json(typeurl::SPEC, spec.to_string().into_bytes())),
            labels: [("io.cri-containerd.kind".to_owned(), "sandbox".to_owned())].into(),
            ..Default::default()
        })
    }

    /// The root of all of them: a copy of the shim, since it could be written to by who gets hold of it, and two folders.
    fn pause_root(&self) -> Result<PathBuf, CriError> {
        let root = self.folder().with_file_name("pause");
        let failed = |what, at: PathBuf| {
            move |cause| CriError::Io { id: "of a pod that shares processes".to_owned(), what, at, cause }
        };
        for folder in ["proc", "dev"] {
            let at = root.join(folder);
            fs::create_dir_all(&at).map_err(failed("make folder", at))?;
        }
        let shim = self.tasks.own_shim().map_err(|cause| CriError::Runtime(PROGRAM, cause))?;
        let program = root.join(PROGRAM);
        ::spec::init::copy_of(&shim, &program).map_err(failed("copy the shim to", program.clone()))?;
        Ok(root)
    }

    /// Marks a sandbox as ended whose process has ended by itself, and with it all others of the pod.
    pub(super) fn follow_pause(self: &Arc<Self>, id: &str) {
        let (pods, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            if matches!(pods.tasks.wait(&pods.namespace, &id, "").await, Err(TaskError::Draining)) {
                return;
            }
            let _turn = pods.turns.of(&id).await;
            let ready = |sandbox: &Sandbox| sandbox.phase() == Phase::Ready;
            if !pods.sandbox(&id).is_ok_and(|sandbox| sandbox.as_ref().is_some_and(ready)) {
                return;
            }
            warn!(id, "first process of a pod has ended, and with it the pod");
            if let Err(error) = pods.change(&id, |sandbox| sandbox.set_phase(Phase::Stopping)).await {
                warn!(id, error = %chain(&error), "end of a sandbox not recorded");
            }
        });
    }

    /// Takes the process of a sandbox away; there may be none.
    pub(super) async fn remove_pause(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        self.kill(id).await?;
        match self.tasks.wait(&self.namespace, id, "").await {
            Ok(_) | Err(TaskError::NotFound(_)) => {}
            Err(error) => return Err(CriError::task(id)(error)),
        }
        self.delete_task(id).await;
        let (pods, own) = (self.clone(), id.to_owned());
        blocking(move || pods.containers.delete_with(&pods.namespace, &own, |_| Ok::<_, CriError>(())).map(drop)).await
    }
}
