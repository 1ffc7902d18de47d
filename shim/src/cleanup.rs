//! Action `delete`: cleans up after a shim that can't be reached, and says how its container ended.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Stdio,
    time::SystemTime,
};

use prost::Message as _;
use proto::{containerd::task::v3::DeleteResponse, kind::chain};

use crate::{
    args::Args,
    bundle::{Bundle, Key, Settings, read_pid},
    clock,
    mounts::{self, MountError},
    oci,
    report::warn_line,
    start::{Places, StartError},
};

/// Why something may be left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CleanupError {
    /// The command line is incomplete.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no bundle to look at.
    #[error("find the bundle")]
    Bundle(#[source] io::Error),
    /// The root filesystem stays.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Nobody reads the answer.
    #[error("print the exit")]
    Print(#[source] io::Error),
}

/// Kills and unmounts what is left and prints a DeleteResponse.
pub(crate) fn delete(args: &Args) -> Result<(), CleanupError> {
    let folder = match args.bundle.as_str() {
        "" => std::env::current_dir().map_err(CleanupError::Bundle)?,
        path => PathBuf::from(path),
    };
    let places = Places::of(args, &folder, None)?;
    let bundle = Bundle::new(folder);
    // A shim that died before Create has left none; then the usual runtime, which will find nothing.
    let settings = bundle.settings().unwrap_or_else(|| Settings {
        runtime: oci::default_program(),
        root: places.runtime_root.join(&args.namespace),
        systemd_cgroup: false,
    });
    let words = ["delete".as_ref(), "--force".as_ref(), args.id.as_ref()];
    let output = oci::command(&settings, None, &words).stdin(Stdio::null()).output();
    match output {
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            // Nothing there is what was wanted.
            if !said.contains("does not exist") {
                warn_line!("{} delete --force {}: {}", settings.runtime.display(), args.id, said.trim());
            }
        }
        Err(error) => warn_line!("start {}: {error}", settings.runtime.display()),
        Ok(_) => {}
    }
    proto::fault!("shim.cleanup.runtime_done");
    if let Err(error) = mounts::unmount_rootfs(&bundle.rootfs()) {
        warn_line!("{}", chain(&error));
        return Err(error.into());
    }
    proto::fault!("shim.cleanup.unmounted");
    // The socket of a dead shim. One that lives still has others of its group.
    let socket = places.find_socket(bundle.path());
    if UnixStream::connect(&socket).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = std::fs::remove_file(&socket);
    }
    proto::fault!("shim.cleanup.socket_removed");
    let record = bundle.recorded_exit(&Key::Init);
    let killed = u32::from(128 + nix::libc::SIGKILL.unsigned_abs() as u8);
    let response = match record {
        Some(record) => DeleteResponse {
            pid: record.pid,
            exit_status: record.exit_status,
            exited_at: clock::parse_rfc3339_nano(&record.exited_at).map(clock::timestamp),
        },
        None => DeleteResponse {
            pid: read_pid(&bundle.pid_file(&Key::Init)).unwrap_or(0),
            exit_status: killed,
            exited_at: Some(clock::timestamp(SystemTime::now())),
        },
    };
    let mut stdout = io::stdout();
    stdout.write_all(&response.encode_to_vec()).and_then(|()| stdout.flush()).map_err(CleanupError::Print)
}
