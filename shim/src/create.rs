//! Builds a container: checks, mounts, stdio, runtime; whatever was done is undone if a later step fails.

use std::rc::Rc;

use proto::{
    containerd::{events::TaskOom, runc::v1::Options, task::v3::CreateTaskRequest},
    id::ContainerId,
    kind::ErrorKind,
};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    bundle::{Bundle, Key},
    cgroup::Cgroup,
    desk::Shim,
    error::TaskError,
    events::Topic,
    io::{Prepared, StdioConfig},
    journal::Journal,
    mounts,
    oci::{Choice, Oci},
    oom::OomWatch,
    options,
    process::Process,
    reaper::Exit,
    report::warn_line,
    task::{Message, Task},
};

/// The parts of config.json that matter to a shim.
#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    linux: Linux,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Whether all processes of the container die with its init: it has a pid namespace that nobody else is in.
    fn has_own_pids(&self) -> bool {
        self.linux.namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }
}

fn options(request: &CreateTaskRequest) -> Result<Options, TaskError> {
    options::read(request.options.as_ref()).map_err(|cause| {
        TaskError::Invalid(format!("options of container {}: {}", request.id, proto::kind::chain(&cause)))
    })
}

/// What may be refused without touching anything.
fn check(request: &CreateTaskRequest) -> Result<(), TaskError> {
    ContainerId::new(request.id.as_str())?;
    if !request.bundle.starts_with('/') {
        return Err(TaskError::Invalid(format!(
            "bundle {:?} of container {} is not absolute",
            request.bundle, request.id
        )));
    }
    if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
        return Err(TaskError::Unsupported("restoring a checkpoint"));
    }
    Ok(())
}

/// Builds the container of `request`; its process waits for Start.
pub(crate) async fn create(
    shim: &Rc<Shim>,
    request: CreateTaskRequest,
    inbox: mpsc::UnboundedSender<Message>,
) -> Result<(Task, oneshot::Receiver<Exit>), TaskError> {
    let options = options(&request)?;
    check(&request)?;
    shim.enter_cgroup(&options.shim_cgroup)?;
    let bundle = Bundle::new(&request.bundle);
    let config = bundle.path().join("config.json");
    let text = std::fs::read(&config).map_err(|cause| TaskError::File { file: config.clone(), cause })?;
    let spec: Spec =
        serde_json::from_slice(&text).map_err(|error| TaskError::Invalid(format!("{}: {error}", config.display())))?;
    drop(text);
    let choice = Choice {
        program: options.binary_name,
        root: options.root,
        systemd_cgroup: options.systemd_cgroup,
        no_pivot: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
    };
    let oci = Oci::new(&choice, &shim.runtime_root, &shim.namespace, &request.id, &bundle, shim.reaper.clone());
    bundle
        .record_settings(&oci.settings())
        .map_err(|cause| TaskError::File { file: bundle.path().join("shim.json"), cause })?;
    proto::fault!("shim.create.settings_recorded");
    let owner = (options.io_uid, options.io_gid);
    let stdio = StdioConfig {
        container: request.id.clone(),
        namespace: shim.namespace.clone(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        owner,
        stdin_waits: true,
    };
    let io_failed = |cause| TaskError::Io { id: format!("container {}", request.id), cause };
    let mut prepared = Prepared::open(&stdio, &shim.console_path(), &shim.reaper).await.map_err(io_failed)?;
    proto::fault!("shim.create.stdio_opened");
    mounts::mount_rootfs(&request.rootfs, &bundle.rootfs())?;
    let mut undo = Undo { bundle: &bundle, mounted: !request.rootfs.is_empty() };
    proto::fault!("shim.create.rootfs_mounted");
    let hold = shim.reaper.hold();
    let pid = match oci.create(prepared.child(), prepared.console()).await {
        Ok(pid) => pid,
        Err(error) => {
            // Something of that name was there before and isn't ours to remove.
            if error.kind() != ErrorKind::AlreadyExists {
                hold.kill_strays(None);
                // What the runtime had done so far, if it died half-way; most have cleaned up.
                let _ = oci.delete(true).await;
            }
            return Err(error.into());
        }
    };
    proto::fault!("shim.create.runtime_done");
    let exit = shim.reaper.claim(pid);
    drop(hold);
    let io = match prepared.begin() {
        Ok(io) => io,
        Err(cause) => {
            if let Err(error) = oci.delete(true).await {
                warn_line!("remove container {}: {error}", request.id);
            }
            return Err(io_failed(cause));
        }
    };
    proto::fault!("shim.create.streams_begun");
    undo.mounted = false;
    let journal = Journal::new(&bundle);
    let cgroup = Cgroup::of(pid);
    let oom = cgroup.as_ref().and_then(|cgroup| {
        let (shim, bundle, journal) = (shim.clone(), bundle.clone(), journal.clone());
        let container_id = request.id.clone();
        OomWatch::begin(cgroup, move || {
            // On record before it is told, and for whoever wasn't there to hear it.
            if let Err(error) = bundle.record_oom() {
                warn_line!("record out-of-memory kill of {container_id}: {error}");
            }
            shim.events.push(&journal, Topic::Oom, &TaskOom { container_id: container_id.clone() });
        })
    });
    let mut init = Process::new(Key::Init, stdio, Vec::new());
    (init.pid, init.io) = (pid, Some(io));
    let task = Task {
        shim: shim.clone(),
        id: request.id.clone(),
        bundle: bundle.clone(),
        journal,
        oci: Rc::new(oci),
        init,
        own_pids: spec.has_own_pids(),
        cgroup,
        oom,
        inbox,
        execs: Default::default(),
        owner,
        init_settled: false,
        deletes: Vec::new(),
        busy: None,
        held: Default::default(),
        gone: false,
    };
    Ok((task, exit))
}

/// Takes the root filesystem away again unless the container has come to be.
struct Undo<'a> {
    bundle: &'a Bundle,
    mounted: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = mounts::unmount_rootfs(&self.bundle.rootfs())
        {
            warn_line!("{}", proto::kind::chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::typeurl;

    use super::*;

    #[test]
    fn a_pid_namespace_of_its_own_has_no_path() {
        for (namespaces, own) in [
            (r#"[{"type":"pid"},{"type":"mount"}]"#, true),
            (r#"[{"type":"pid","path":""}]"#, true),
            (r#"[{"type":"pid","path":"/proc/1/ns/pid"}]"#, false),
            (r#"[{"type":"mount"}]"#, false),
        ] {
            let spec: Spec =
                serde_json::from_str(&format!(r#"{{"linux":{{"namespaces":{namespaces}}}}}"#)).expect("spec");
            assert_eq!(spec.has_own_pids(), own, "{namespaces}");
        }
        assert!(!serde_json::from_str::<Spec>("{}").expect("spec").has_own_pids());
    }

    #[test]
    fn what_cannot_be_done_is_refused_first() {
        let request = |id: &str, bundle: &str, checkpoint: &str| CreateTaskRequest {
            id: id.into(),
            bundle: bundle.into(),
            checkpoint: checkpoint.into(),
            ..CreateTaskRequest::default()
        };
        for (request, kind) in [
            (request("a/b", "/b", ""), ErrorKind::InvalidArgument),
            (request("a", "b", ""), ErrorKind::InvalidArgument),
            (request("a", "/b", "/c"), ErrorKind::Unimplemented),
        ] {
            assert_eq!(check(&request).map_err(|error| error.kind()), Err(kind));
        }
        let mut with_options = request("a", "/b", "");
        with_options.options = Some(prost_types::Any { type_url: "x.Other".into(), value: Vec::new() });
        assert!(options(&with_options).is_err());
        let known = Options { binary_name: "/usr/sbin/runc".into(), ..Options::default() };
        with_options.options = Some(typeurl::pack(&known));
        assert_eq!(options(&with_options).expect("known"), known);
    }
}
