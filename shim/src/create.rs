//! Builds a container: checks, mounts, stdio, runtime; whatever was done is undone if a later step fails.

use std::rc::Rc;

use proto::{
    containerd::{runc::v1::Options, task::v3::CreateTaskRequest},
    id::ContainerId,
    kind::ErrorKind,
};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    bundle::{Bundle, Key},
    desk::Shim,
    error::TaskError,
    io::{Prepared, StdioConfig},
    journal::Journal,
    mounts::{self, Rootfs},
    oci::{Choice, Images, Oci},
    options,
    process::Process,
    reaper::Exit,
    report::warn_line,
    rules::State,
    task::{Message, Restore, Started, Task},
};

/// The parts of config.json that matter to a shim.
#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    linux: Linux,
    #[serde(default)]
    hooks: Option<serde::de::IgnoredAny>,
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

    /// Whether programs on the host may look for the root in the bundle.
    fn has_hooks(&self) -> bool {
        self.hooks.is_some()
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
    if !request.parent_checkpoint.is_empty() {
        return Err(TaskError::Unsupported("restoring a checkpoint that builds on a parent"));
    }
    if !request.checkpoint.is_empty() {
        let wrong = |why: &str| format!("checkpoint {:?} of container {} {why}", request.checkpoint, request.id);
        if !request.checkpoint.starts_with('/') {
            return Err(TaskError::Invalid(wrong("is not absolute")));
        }
        let found = std::fs::metadata(&request.checkpoint);
        let found = found.map_err(|cause| TaskError::File { file: request.checkpoint.clone().into(), cause })?;
        if !found.is_dir() {
            return Err(TaskError::Invalid(wrong("is no folder of images")));
        }
    }
    Ok(())
}

/// Builds the container of `request`; its process waits for Start. One that is to go on from a checkpoint has no process
/// before.
pub(crate) async fn create(
    shim: &Rc<Shim>,
    request: CreateTaskRequest,
    inbox: mpsc::UnboundedSender<Message>,
) -> Result<(Task, Option<oneshot::Receiver<Exit>>), TaskError> {
    let options = options(&request)?;
    check(&request)?;
    shim.enter_cgroup(&options.shim_cgroup)?;
    let bundle = Bundle::new(&request.bundle);
    let config = bundle.path().join("config.json");
    let text = std::fs::read(&config).map_err(|cause| TaskError::File { file: config.clone(), cause })?;
    let spec: Spec =
        serde_json::from_slice(&text).map_err(|error| TaskError::Invalid(format!("{}: {error}", config.display())))?;
    drop(text);
    let images = (!request.checkpoint.is_empty())
        .then(|| Images { folder: request.checkpoint.into(), work: options.criu_work_path.clone() });
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
    let prepared = Prepared::open(&stdio, &shim.console_path(), &shim.reaper).await.map_err(io_failed)?;
    proto::fault!("shim.create.stdio_opened");
    // Only Berth's own runtime takes a root by descriptor, and criu looks for it in the bundle.
    let may_detach = choice.program.is_empty() && images.is_none() && !spec.has_hooks();
    let rootfs = mounts::make_rootfs(&request.rootfs, &bundle.rootfs(), may_detach)?;
    let mut undo = Undo { bundle: &bundle, mounted: matches!(rootfs, Rootfs::Mounted) };
    proto::fault!("shim.create.rootfs_mounted");
    let journal = Journal::new(&bundle);
    let mut task = Task {
        shim: shim.clone(),
        id: request.id,
        bundle: bundle.clone(),
        journal,
        oci: Rc::new(oci),
        init: Process::new(Key::Init, stdio, Vec::new()),
        own_pids: spec.has_own_pids(),
        cgroup: None,
        oom: None,
        inbox,
        execs: Default::default(),
        owner,
        restore: None,
        init_settled: false,
        deletes: Vec::new(),
        busy: None,
        held: Default::default(),
        gone: false,
    };
    let exit = match images {
        Some(images) => {
            task.init.state = State::Unrestored;
            task.restore = Some(Restore { images, prepared: Some(prepared), tried: false });
            None
        }
        None => {
            let started = begin(shim, &task.oci, &task.id, prepared, Make::New(rootfs)).await?;
            Some(task.has_begun(started))
        }
    };
    undo.mounted = false;
    Ok((task, exit))
}

/// What a container's first process is made of.
pub(crate) enum Make<'a> {
    /// Its bundle, and this root.
    New(Rootfs),
    /// The images of a checkpoint.
    Restored(&'a Images),
}

/// Has the runtime make the container's first process. Whatever a failed runtime left is removed.
pub(crate) async fn begin(
    shim: &Shim,
    oci: &Oci,
    id: &str,
    mut prepared: Prepared,
    make: Make<'_>,
) -> Result<Started, TaskError> {
    let hold = shim.reaper.hold();
    let restored = matches!(make, Make::Restored(_));
    let child = prepared.child();
    let made = match make {
        Make::New(rootfs) => oci.create(rootfs, child, prepared.console()).await,
        Make::Restored(images) => oci.restore(images, child, prepared.console()).await,
    };
    let pid = match made {
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
    match restored {
        false => proto::fault!("shim.create.runtime_done"),
        true => proto::fault!("shim.restore.runtime_done"),
    }
    let exit = shim.reaper.claim(pid);
    drop(hold);
    let io = match prepared.begin() {
        Ok(io) => io,
        Err(cause) => {
            if let Err(error) = oci.delete(true).await {
                warn_line!("remove container {id}: {error}");
            }
            return Err(TaskError::Io { id: format!("container {id}"), cause });
        }
    };
    match restored {
        false => proto::fault!("shim.create.streams_begun"),
        true => proto::fault!("shim.restore.streams_begun"),
    }
    Ok(Started { pid, exit, io })
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
            (request("a", "/b", "c"), ErrorKind::InvalidArgument),
            (request("a", "/b", "/no/such/folder"), ErrorKind::NotFound),
            (request("a", "/b", "/proc/self/exe"), ErrorKind::InvalidArgument),
            (CreateTaskRequest { parent_checkpoint: "/p".into(), ..request("a", "/b", "/") }, ErrorKind::Unimplemented),
        ] {
            assert_eq!(check(&request).map_err(|error| error.kind()), Err(kind));
        }
        check(&request("a", "/b", "/proc")).expect("a folder");
        let mut with_options = request("a", "/b", "");
        with_options.options = Some(prost_types::Any { type_url: "x.Other".into(), value: Vec::new() });
        assert!(options(&with_options).is_err());
        let known = Options { binary_name: "/usr/sbin/runc".into(), ..Options::default() };
        with_options.options = Some(typeurl::pack(&known));
        assert_eq!(options(&with_options).expect("known"), known);
    }
}
