//! Namespaces that containers share: `container:X` for pid and ipc, `shareable` ipc whose /dev/shm others can mount.
//!
//! The process that a namespace is taken from may end, and its pid be somebody else's by the time that the runtime opens
//! `/proc/PID/ns/…`: whose it is, is read from its cgroup, once before and once after that ([`Joined::holds`]).

use super::{
    Container,
    record::{Phase, Record},
};
use crate::{
    api::HostConfig,
    app::App,
    http::{ApiError, ApiResult},
    ids,
};
use axum::http::StatusCode;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tracing::warn;

/// The other container of a mode `container:X`.
pub fn other(mode: &str) -> Option<&str> {
    mode.strip_prefix("container:")
}

/// Refuses modes that don't exist.
pub fn check(host: &HostConfig) -> ApiResult<()> {
    for (what, mode, allowed, joins) in [
        ("IPC mode", &host.ipc_mode, &["", "private", "shareable", "host", "none"][..], true),
        ("PID mode", &host.pid_mode, &["", "private", "host"], true),
        ("UTS mode", &host.uts_mode, &["", "private", "host"], false),
        ("cgroup namespace mode", &host.cgroupns_mode, &["", "private", "host"], false),
        ("user namespace mode", &host.userns_mode, &["", "host"], false),
    ] {
        let fits = match other(mode) {
            Some(name) => joins && !name.is_empty(),
            None => allowed.contains(&mode.as_str()),
        };
        if !fits {
            return Err(ApiError::invalid(format!("invalid {what}: {mode}")));
        }
    }
    if host.privileged && host.userns_mode == "host" {
        tracing::debug!("no user namespaces are used: UsernsMode host is what everybody has");
    }
    Ok(())
}

/// Names of other containers become ids, which stay when they are renamed.
pub fn settle(app: &App, host: &mut HostConfig) -> ApiResult<()> {
    for mode in [&mut host.pid_mode, &mut host.ipc_mode] {
        if let Some(name) = other(mode) {
            // Not 404: clients take that for a missing image, and pull it.
            let found = app.containers.find(name).map_err(|error| ApiError::invalid(error.message))?;
            *mode = format!("container:{}", found.id);
        }
    }
    Ok(())
}

/// Containers that have to run before this one can start.
pub fn needed(record: &Record) -> Vec<String> {
    let host = &record.host;
    let modes = [&host.pid_mode, &host.ipc_mode, &host.network_mode];
    let links = host.links.iter().flatten().map(|link| link.split(':').next().unwrap_or_default());
    modes.into_iter().filter_map(|mode| other(mode)).chain(links).map(str::to_owned).collect()
}

/// How long a start by policy waits for those of others.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the containers that this one needs, as long as they are about to start: after a power cut all of them are
/// started at once. Those that will not start are not waited for; the start says what is missing.
pub async fn wait_for_needed(app: &App, record: &Record) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for id in needed(record) {
        let Ok(container) = app.containers.find(&id) else { continue };
        loop {
            let mut changed = std::pin::pin!(container.starts.notified());
            changed.as_mut().enable();
            if !is_about_to_run(&container) || tokio::time::timeout_at(deadline, changed).await.is_err() {
                break;
            }
        }
    }
}

fn is_about_to_run(container: &Container) -> bool {
    let live = container.live();
    let state = &live.record.state;
    if live.starting || live.ending || state.phase == Phase::Restarting {
        return true;
    }
    // Its end may not have been heard yet, and it may start again after that.
    state.phase.is_live() && !Donor { container: container.id.clone(), pid: state.pid }.is_alive()
}

/// What a container takes from others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// Process whose pid namespace it is in.
    pub pid: Option<Donor>,
    /// Process whose ipc namespace it is in.
    pub ipc: Option<Donor>,
    /// Folder of the host that is its /dev/shm.
    pub shm: Option<PathBuf>,
}

/// The first process of another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Donor {
    /// The container.
    pub container: String,
    /// Its process.
    pub pid: u32,
}

impl Donor {
    /// Its namespace of this kind.
    pub fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.pid).into()
    }

    fn is_alive(&self) -> bool {
        // A process that ends has given up its namespaces, though it may wait long for those that are in its pid namespace.
        if std::fs::read_link(self.namespace("ipc")).is_err() {
            return false;
        }
        // Every container has a cgroup of its own, named by its id.
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        groups.contains(&self.container)
    }
}

impl Joined {
    /// Whether those it was taken from still are the same processes.
    pub fn holds(&self) -> bool {
        [&self.pid, &self.ipc].into_iter().flatten().all(Donor::is_alive)
    }
}

/// Finds what the modes of a container name, at its start.
pub fn join(app: &App, record: &Record) -> ApiResult<Joined> {
    let mut joined = Joined::default();
    if let Some(id) = other(&record.host.pid_mode) {
        let failed = |text: String| {
            let name = &record.name;
            let what = format!("start container {name}: cannot join PID namespace of container {id}: {text}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what)
        };
        joined.pid = Some(donor(app, id).map_err(failed)?);
    }
    if let Some(id) = other(&record.host.ipc_mode) {
        let failed = |text: String| {
            let what = format!("can't join IPC of container {id}: {text}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what)
        };
        let found = donor(app, id).map_err(failed)?;
        let shm = shm_of(app, id);
        if !is_mounted(&shm) {
            let hint = "non-shareable IPC (hint: use IpcMode:shareable for the donor container)";
            return Err(failed(hint.to_owned()));
        }
        (joined.ipc, joined.shm) = (Some(found), Some(shm));
    }
    if record.host.ipc_mode == "shareable" {
        let shm = shm_of(app, &record.id);
        make_shm(&shm, record.host.shm_size).map_err(|cause| {
            ApiError::internal(format!("start container {}: mount its /dev/shm: {cause}", record.name))
        })?;
        joined.shm = Some(shm);
    }
    Ok(joined)
}

fn donor(app: &App, id: &str) -> Result<Donor, String> {
    let container = app.containers.find(id).map_err(|error| error.message)?;
    let (phase, pid) = {
        let live = container.live();
        (live.record.state.phase, live.record.state.pid)
    };
    let id = container.id.clone();
    if phase == Phase::Restarting {
        return Err(format!("Container {id} is restarting, wait until the container is running"));
    }
    let donor = Donor { container: id, pid };
    if !phase.is_live() || pid == 0 || !donor.is_alive() {
        return Err(format!("container {} is not running", donor.container));
    }
    Ok(donor)
}

fn shm_of(app: &App, id: &str) -> PathBuf {
    app.config.engine_run().join("shm").join(id)
}

fn is_mounted(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    let parent = folder.parent().and_then(device);
    device(folder).is_some_and(|dev| Some(dev) != parent)
}

fn make_shm(folder: &Path, size: i64) -> Result<(), std::io::Error> {
    if is_mounted(folder) {
        // Of an earlier run: what is in it is over.
        let _ = umount2(folder, MntFlags::MNT_DETACH);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let options = format!("mode=1777,size={size}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("shm"), folder, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// Gives back what [`join`] has made for a container that has ended. Those who share it keep it.
pub fn release(app: &App, record: &Record) {
    if record.host.ipc_mode == "shareable" {
        remove_shm(&shm_of(app, &record.id), &record.id);
    }
}

fn remove_shm(folder: &Path, id: &str) {
    match umount2(folder, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => warn!(id = ids::short(id), %error, "shared memory folder stays mounted"),
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(id = ids::short(id), %error, "shared memory folder left behind");
        }
        _ => {}
    }
}

/// Gives back what engines before this one could not.
pub fn sweep(app: &App) {
    for entry in std::fs::read_dir(app.config.engine_run().join("shm")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str() else { continue };
        let used = app.containers.get(id).is_some_and(|container| {
            let live = container.live();
            live.starting || live.record.state.phase.is_live()
        });
        if !used {
            remove_shm(&entry.path(), id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let host = |json: &str| serde_json::from_str::<HostConfig>(json).unwrap();
        for good in [
            r#"{}"#,
            r#"{"PidMode":"container:x","IpcMode":"container:y","UTSMode":"host","UsernsMode":"host"}"#,
            r#"{"PidMode":"host","IpcMode":"shareable","CgroupnsMode":"private"}"#,
            r#"{"IpcMode":"none"}"#,
        ] {
            check(&host(good)).unwrap();
        }
        for (bad, text) in [
            (r#"{"UTSMode":"container:x"}"#, "invalid UTS mode: container:x"),
            (r#"{"PidMode":"container:"}"#, "invalid PID mode: container:"),
            (r#"{"PidMode":"shareable"}"#, "invalid PID mode: shareable"),
            (r#"{"IpcMode":"x"}"#, "invalid IPC mode: x"),
            (r#"{"CgroupnsMode":"container:x"}"#, "invalid cgroup namespace mode: container:x"),
            (r#"{"UsernsMode":"x"}"#, "invalid user namespace mode: x"),
        ] {
            let error = check(&host(bad)).unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (400, text));
        }
    }

    #[test]
    fn a_process_of_somebody_else_is_no_donor() {
        let donor = Donor { container: "f".repeat(64), pid: std::process::id() };
        assert!(!donor.is_alive());
        assert!(!Joined { pid: Some(donor), ..Joined::default() }.holds());
        assert!(Joined::default().holds());
    }
}
