//! Checkpoints: files that the runtime has criu write, and make processes of again.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use proto::containerd::runc::v1::CheckpointOptions;

use super::{ChildStdio, Oci, OciError};
use crate::bundle::Key;

/// The files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Images {
    /// Where they are.
    pub(crate) folder: PathBuf,
    /// Where criu may write; empty for a folder in the bundle.
    pub(crate) work: String,
}

impl Oci {
    /// Writes an image of the container to `images`; it goes on running unless it is to end.
    pub(crate) async fn checkpoint(&self, images: &str, options: &CheckpointOptions) -> Result<(), OciError> {
        let own_work = self.bundle.scratch("criu-work");
        let work = if options.work_path.is_empty() { own_work.as_os_str() } else { OsStr::new(&options.work_path) };
        for folder in [OsStr::new(images), work] {
            fs::create_dir_all(folder).map_err(|cause| OciError::Write { file: folder.into(), cause })?;
        }
        let mut args: Vec<&OsStr> =
            vec!["checkpoint".as_ref(), "--image-path".as_ref(), images.as_ref(), "--work-path".as_ref(), work];
        for (flag, on) in [
            ("--leave-running", !options.exit),
            ("--tcp-established", options.open_tcp),
            ("--ext-unix-sk", options.external_unix_sockets),
            ("--shell-job", options.terminal),
            ("--file-locks", options.file_locks),
        ] {
            if on {
                args.push(flag.as_ref());
            }
        }
        if !options.cgroups_mode.is_empty() {
            args.extend([OsStr::new("--manage-cgroups-mode"), options.cgroups_mode.as_ref()]);
        }
        for namespace in &options.empty_namespaces {
            args.extend([OsStr::new("--empty-ns"), namespace.as_ref()]);
        }
        args.push(self.id.as_ref());
        let done = self.run("checkpoint", &Key::Init, &args, ChildStdio::null()).await;
        // criu's log stays for whoever wants to know why it failed; the bundle goes with the container.
        if done.is_ok() {
            let _ = fs::remove_dir_all(own_work);
        }
        done
    }

    /// Makes the container go on from a checkpoint; its processes run when this is done. Gives the pid.
    pub(crate) async fn restore(
        &self,
        images: &Images,
        stdio: ChildStdio,
        console: Option<&Path>,
    ) -> Result<u32, OciError> {
        let own_work = self.bundle.scratch("criu-work");
        let work = if images.work.is_empty() { own_work.as_os_str() } else { OsStr::new(&images.work) };
        fs::create_dir_all(work).map_err(|cause| OciError::Write { file: work.into(), cause })?;
        let mut args: Vec<&OsStr> = vec!["--image-path".as_ref(), images.folder.as_ref(), "--work-path".as_ref(), work];
        args.extend(["--detach", "--no-subreaper"].map(OsStr::new));
        args.extend(self.rootfs_args());
        let restored = self.process("restore", &Key::Init, args, stdio, console).await;
        // After a failure criu's log stays, until the bundle goes.
        if restored.is_ok() {
            let _ = fs::remove_dir_all(own_work);
        }
        restored
    }
}
