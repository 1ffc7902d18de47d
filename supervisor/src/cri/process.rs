//! What is done with, and in, a container that is on record: its specification, resources, further processes.

use std::{collections::BTreeMap, fs, sync::Arc};

use nix::{errno::Errno, fcntl::OFlag, sys::signal::Signal};
use proto::{nri::pkg::api::v1alpha1::Event, runtime::v1 as cri, typeurl};
use serde_json::Value;
use tracing::warn;

use super::{
    NAMESPACE,
    error::CriError,
    images::Image,
    place::Kind,
    pods::{Pods, blocking},
    record::{Container, Phase, Sandbox},
    spec::{self, ImageConfig, ImageMount, Input, Pins, SandboxFiles, Volume},
    streaming::Target,
};
use crate::{
    containers,
    layers::{copy::Copier, place, tree::open_in},
};

/// What has to be found out before a specification can be written, and can't be read from records.
pub(super) struct Found {
    apparmor: Option<String>,
    target_pid: Option<u32>,
    recursive_read_only: bool,
}

/// A container's specification, and what follows from it.
pub(super) struct Written {
    /// The specification.
    pub(super) spec: Value,
    /// Who its first process is.
    pub(super) user: cri::LinuxContainerUser,
    /// What asks it to end.
    pub(super) stop_signal: u32,
}

impl Pods {
    /// Asks for what a specification depends on besides records.
    pub(super) async fn find_out(
        &self,
        (sandbox_id, sandbox): (&str, &Sandbox),
        config: &cri::ContainerConfig,
    ) -> Result<Found, CriError> {
        let failed = |cause| CriError::Spec { id: name_of(config), cause };
        let apparmor = spec::settle_apparmor(&self.apparmor, config).await.map_err(failed)?;
        let mut target_pid = None;
        if let Some(id) = self.neighbour(sandbox_id, config)? {
            let process = self.tasks.get(&self.namespace, &id, "").await;
            target_pid = Some(process.map_err(CriError::task(&id))?.pid);
        }
        let recursive_read_only = self.node.is_recursive_read_only(&sandbox.request.runtime_handler).await;
        Ok(Found { apparmor, target_pid, recursive_read_only })
    }

    /// The container whose processes another one of its sandbox is to see; it has to run.
    pub(super) fn neighbour(&self, sandbox: &str, config: &cri::ContainerConfig) -> Result<Option<String>, CriError> {
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = context.and_then(|context| context.namespace_options.clone()).unwrap_or_default();
        if options.pid != cri::NamespaceMode::Target as i32 {
            return Ok(None);
        }
        let id = self.container_id(&options.target_id)?;
        if self.running(&id)?.sandbox != sandbox {
            return Err(CriError::Invalid(format!(
                "container {id}, whose processes are to be seen, is in another sandbox"
            )));
        }
        Ok(Some(id))
    }

    /// Writes the specification of a container, and fills the volumes that its image wants.
    pub(super) fn specification(
        &self,
        id: &str,
        (sandbox_id, sandbox): (&str, &Sandbox),
        config: &cri::ContainerConfig,
        (image, image_mounts): (&Image, &BTreeMap<usize, ImageMount>),
        found: &Found,
    ) -> Result<Written, CriError> {
        let failed = |cause| CriError::Spec { id: name_of(config), cause };
        let of_image = ImageConfig::parse(&self.images.config(image)?).map_err(failed)?;
        let snapshots = self.stores.snapshots.get_or_default("")?;
        let mounts = snapshots.mounts(NAMESPACE, id)?;
        let users = spec::users(&mounts, self.stores.snapshots.scratch()).map_err(failed)?;
        let (place, namespaces) = (self.place(sandbox_id), sandbox.namespaces());
        let made = spec::make(&Input {
            id,
            sandbox_id,
            pod: sandbox.config(),
            container: config,
            image: &of_image,
            users: &users,
            pins: &Pins {
                net: place.pinned(Kind::Net, &namespaces),
                ipc: place.pinned(Kind::Ipc, &namespaces),
                uts: place.pinned(Kind::Uts, &namespaces),
                user: place.pinned(Kind::User, &namespaces),
                pid: place.pinned(Kind::Pid, &namespaces),
            },
            files: &SandboxFiles {
                hosts: place.hosts(),
                hostname: place.hostname(),
                resolv_conf: place.resolv_conf(),
                shm: place.shm(&namespaces),
            },
            target_pid: found.target_pid,
            driver: self.driver,
            image_mounts,
            volumes: &self.volumes_of(id),
            apparmor: found.apparmor.as_deref(),
            recursive_read_only: found.recursive_read_only,
            cdi: &self.cdi,
            host: &self.host,
        })
        .map_err(failed)?;
        for warning in &made.warnings {
            warn!(id, container = name_of(config), "{warning}");
        }
        if !made.volumes.is_empty() {
            let root = place::readable(&mounts, self.stores.snapshots.scratch())
                .map_err(crate::snapshots::SnapshotError::from)?;
            for volume in &made.volumes {
                fill(volume, root.as_ref()).map_err(|cause| CriError::Io {
                    id: sandbox_id.to_owned(),
                    what: "make and fill the image's volume",
                    at: volume.source.clone(),
                    cause,
                })?;
            }
        }
        let user = &made.spec["process"]["user"];
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let groups = user["additionalGids"].as_array().into_iter().flatten();
        let user = cri::LinuxContainerUser {
            uid: number(&user["uid"]),
            gid: number(&user["gid"]),
            supplemental_groups: groups.map(number).collect(),
        };
        let stop_signal = spec::stop_signal(config, &of_image).map_err(failed)?;
        Ok(Written { spec: made.spec, user, stop_signal })
    }

    /// Changes the limits of a container, now if it runs, and for its start if it hasn't been started.
    pub(super) async fn update_resources(
        self: &Arc<Self>,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<(), CriError> {
        if request.windows.is_some() {
            return Err(CriError::Invalid("this is no Windows node".into()));
        }
        let wanted = request.linux.ok_or(CriError::Missing("linux resources"))?;
        let id = self.container_id(&request.container_id)?;
        self.detached(async move |pods| {
            let sandbox = pods.known(&id)?.sandbox;
            let _turn = pods.turns.of(&sandbox).await;
            let container = pods.known(&id)?;
            let limits =
                spec::resources(&wanted, &pods.host).map_err(|cause| CriError::Spec { id: id.clone(), cause })?;
            let (limits, wanted) = pods.wished_resources(&id, limits, wanted).await?;
            match container.state() {
                cri::ContainerState::ContainerRunning => {
                    let packed =
                        typeurl::pack_json(typeurl::RESOURCES, Value::from(limits.clone()).to_string().into_bytes());
                    let updated = pods.tasks.update(&pods.namespace, &id, Some(packed), request.annotations).await;
                    updated.map_err(CriError::task(&id))?;
                }
                cri::ContainerState::ContainerCreated => {}
                other => {
                    let why = format!("it is {}, so that it has no limits to be changed", other.as_str_name());
                    return Err(CriError::State { what: "container", id, why });
                }
            }
            let (own, pods2) = (id.clone(), pods.clone());
            blocking(move || {
                // The record of the specification says what is true: it is what a checkpoint, or a late start, begins with.
                pods2.stores.db.write(|tx| {
                    containers::change_spec(tx, NAMESPACE, &own, |spec| {
                        merge(&mut spec["linux"]["resources"], &Value::from(limits))
                    })
                })
            })
            .await?;
            pods.change_container(&id, move |container| {
                let linux = container.config.linux.get_or_insert_default();
                overlay(linux.resources.get_or_insert_default(), wanted);
            })
            .await?;
            pods.announce_done(Event::PostUpdateContainer, &id).await;
            Ok(())
        })
        .await
    }

    /// Runs a command in a container and answers what it has written.
    pub(super) async fn exec_sync(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, CriError> {
        let target = self.target(&request.container_id)?;
        Ok(self.streaming.exec_sync(target, request).await?)
    }

    /// Where a client may run a command in a container.
    pub(super) async fn exec_url(&self, request: cri::ExecRequest) -> Result<String, CriError> {
        Ok(self.streaming.exec_url(self.target(&request.container_id)?, request).await?)
    }

    /// Where a client may join a container's first process.
    pub(super) async fn attach_url(&self, request: cri::AttachRequest) -> Result<String, CriError> {
        Ok(self.streaming.attach_url(self.target(&request.container_id)?, request).await?)
    }

    /// Where a client may reach ports of a pod.
    pub(super) async fn port_forward_url(&self, request: cri::PortForwardRequest) -> Result<String, CriError> {
        let id = self.sandbox_id(&request.pod_sandbox_id)?;
        let sandbox = self.sandbox(&id)?.unwrap_or_default();
        if sandbox.phase() != Phase::Ready {
            return Err(CriError::State {
                what: "sandbox",
                id,
                why: "it isn't ready, so that nobody listens in it".into(),
            });
        }
        Ok(self.streaming.port_forward_url(self.place(&id).pinned(Kind::Net, &sandbox.namespaces()), request).await?)
    }

    fn target(&self, id: &str) -> Result<Target, CriError> {
        let id = self.container_id(id)?;
        let Container { config, .. } = self.running(&id)?;
        let record = self.containers.get(&self.namespace, &id)?;
        let spec: serde_json::Value =
            record.spec.and_then(|spec| serde_json::from_slice(&spec.value).ok()).unwrap_or_default();
        let process = spec["process"].clone();
        Ok(Target { id, process, tty: config.tty, stdin: config.stdin, stdin_once: config.stdin_once })
    }

    /// A container that must be running.
    pub(super) fn running(&self, id: &str) -> Result<Container, CriError> {
        let container = self.known(id)?;
        match container.state() {
            cri::ContainerState::ContainerRunning => Ok(container),
            other => {
                let why = format!("it is {}, not running", other.as_str_name());
                Err(CriError::State { what: "container", id: id.to_owned(), why })
            }
        }
    }
}

fn name_of(config: &cri::ContainerConfig) -> String {
    config.metadata.as_ref().map(|meta| meta.name.clone()).unwrap_or_default()
}

/// Makes a volume and copies into it what the image has there.
fn fill(volume: &Volume, root: Option<&std::os::fd::OwnedFd>) -> std::io::Result<()> {
    fs::create_dir_all(&volume.source)?;
    let Some(root) = root else { return Ok(()) };
    let inside = volume.destination.trim_start_matches('/');
    let from = match open_in(root, inside.as_bytes(), OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other?,
    };
    let to: std::os::fd::OwnedFd = fs::File::open(&volume.source)?.into();
    Copier::default().tree(&from, &to).map_err(std::io::Error::other)
}

/// Puts what `new` says over what `old` says, member by member.
pub(super) fn merge(old: &mut Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new.clone(),
    }
}

/// The same for CRI's message, in which 0 and nothing say nothing.
pub(super) fn overlay(old: &mut cri::LinuxContainerResources, new: cri::LinuxContainerResources) {
    for (old, new) in [
        (&mut old.cpu_period, new.cpu_period),
        (&mut old.cpu_quota, new.cpu_quota),
        (&mut old.cpu_shares, new.cpu_shares),
        (&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        (&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
        (&mut old.oom_score_adj, new.oom_score_adj),
    ] {
        if new != 0 {
            *old = new;
        }
    }
    for (old, new) in [(&mut old.cpuset_cpus, new.cpuset_cpus), (&mut old.cpuset_mems, new.cpuset_mems)] {
        if !new.is_empty() {
            *old = new;
        }
    }
    if !new.hugepage_limits.is_empty() {
        old.hugepage_limits = new.hugepage_limits;
    }
    old.unified.extend(new.unified);
}

/// A signal as CRI names it.
pub(super) fn signal_of(number: u32) -> cri::Signal {
    let name = match number {
        34 => "SIGRTMIN".to_owned(),
        35..=49 => format!("SIGRTMINPLUS{}", number - 34),
        50..=63 => format!("SIGRTMAXMINUS{}", 64 - number),
        64 => "SIGRTMAX".to_owned(),
        _ => Signal::try_from(number as i32).map(|signal| signal.as_str().to_owned()).unwrap_or_default(),
    };
    cri::Signal::from_str_name(&name).unwrap_or(cri::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn signals_by_their_names() {
        use cri::Signal::*;
        for (number, signal) in [
            (15, Sigterm),
            (9, Sigkill),
            (34, Sigrtmin),
            (37, Sigrtminplus3),
            (63, Sigrtmaxminus1),
            (64, Sigrtmax),
            (0, RuntimeDefault),
        ] {
            assert_eq!(signal_of(number), signal, "{number}");
        }
    }

    #[test]
    fn what_is_new_goes_over_what_was() {
        let mut old = json!({"cpu": {"shares": 2, "quota": 5}, "pids": {"limit": 7}});
        merge(&mut old, &json!({"cpu": {"shares": 9}, "memory": {"limit": 1}}));
        assert_eq!(old, json!({"cpu": {"shares": 9, "quota": 5}, "pids": {"limit": 7}, "memory": {"limit": 1}}));
        let mut old = cri::LinuxContainerResources { cpu_shares: 2, cpuset_cpus: "0".into(), ..Default::default() };
        overlay(&mut old, cri::LinuxContainerResources { memory_limit_in_bytes: 5, ..Default::default() });
        assert_eq!((old.cpu_shares, old.memory_limit_in_bytes, old.cpuset_cpus.as_str()), (2, 5, "0"));
    }
}
