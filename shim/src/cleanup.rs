//! Action `delete`: cleans up after a shim that can't be reached, and says how its container ended.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};
use prost::Message as _;
use proto::{containerd::task::v3::DeleteResponse, kind::chain};

use crate::{
    args::{self, Args},
    bundle::{Bundle, Key, Settings, read_pid},
    clock,
    mounts::{self, MountError},
    oci::{self, OciError},
    reaper,
    report::warn_line,
    socket,
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

/// How long the runtime may take; whoever started us waits some seconds longer.
const LIMIT: Duration = Duration::from_secs(15);

/// Lets the runtime kill and remove what it still has of the container. Nothing there is what is wanted.
fn force_delete(settings: &Settings, bundle: &Bundle, id: &str) -> Result<(), OciError> {
    let log = bundle.runtime_log(&Key::Init);
    let _ = std::fs::remove_file(&log);
    let mut command = oci::command(settings, Some(&log), &["delete".as_ref(), "--force".as_ref(), id.as_ref()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|cause| OciError::Spawn { program: settings.runtime.clone(), cause })?;
    let limit = args::runtime_limit().min(LIMIT);
    if !ends_within(child.id(), limit) {
        reaper::kill_tree(child.id());
        let _ = child.wait();
        return Err(OciError::Hung { verb: "delete", program: settings.runtime.clone(), limit });
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        _ => {
            let said = std::fs::read_to_string(&log).ok().and_then(|log| oci::last_error(&log));
            let message = said.unwrap_or_else(|| "it logged nothing".to_owned());
            if message.contains("does not exist") { Ok(()) } else { Err(OciError::Failed { verb: "delete", message }) }
        }
    }
}

/// Whether a child ends in time; it is not reaped here.
fn ends_within(pid: u32, limit: Duration) -> bool {
    let Ok(pidfd) = sys::process::pidfd_open(Pid::from_raw(pid.cast_signed())) else { return true };
    let mut waiting = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut waiting, limit).is_ok_and(|ready| ready > 0)
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
    if let Err(error) = force_delete(&settings, &bundle, &args.id) {
        warn_line!("{}", chain(&error));
    }
    proto::fault!("shim.cleanup.runtime_done");
    if let Err(error) = mounts::unmount_rootfs(&bundle.rootfs()) {
        warn_line!("{}", chain(&error));
        return Err(error.into());
    }
    proto::fault!("shim.cleanup.unmounted");
    socket::remove_if_dead(&places.find_socket(bundle.path()));
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
