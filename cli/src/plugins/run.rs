//! Runs a plugin in the place of a command.

use super::{ORIGINAL, Plugin, original};
use crate::config::{Config, endpoint};
use crate::context::DEFAULT;
use crate::exit::{Failure, Outcome};
use std::{
    ffi::OsString,
    os::unix::{fs::DirBuilderExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::ExitStatus,
};
use tokio::{
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};

/// Tells a plugin where to be told that it shall end.
const SOCKET: &str = "DOCKER_CLI_PLUGIN_SOCKET";
/// So many requests to end and a plugin is killed.
const PATIENCE: u32 = 3;

/// Runs a plugin with the whole command line; its exit code is ours.
pub async fn run(config: &Config, plugin: &Plugin, words: &[OsString]) -> Outcome {
    let socket = Socket::listen();
    let mut command = Command::new(&plugin.path);
    command.args(words).env(ORIGINAL, original());
    // The plugin reads flags, variables and contexts as berth does, but knows neither BERTH_HOST nor berth's own default.
    if config.context_name() == DEFAULT {
        let host = endpoint::address(config.globals());
        command.env("DOCKER_HOST", host.unwrap_or_else(|| config.default_host()));
    }
    match &socket {
        Some(socket) => command.env(SOCKET, socket.path()),
        None => command.env_remove(SOCKET),
    };
    let failed = |cause| Failure::io(format!("run plugin {}", plugin.path.display()), cause);
    // Listened to before the plugin runs: a request that comes early is for it, too.
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [Ok(interrupts), Ok(terminates)] = signals else {
        return Err(Failure::Refused("signals can't be listened to".to_owned()));
    };
    let mut child = command.spawn().map_err(failed)?;
    let status = attend(&mut child, socket, interrupts, terminates).await.map_err(failed)?;
    match code(status) {
        0 => Ok(()),
        code => Err(Failure::Exit(code)),
    }
}

/// As a shell has it: 128 and the signal.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Waits for the plugin's end, and passes on what berth is asked.
async fn attend(
    child: &mut Child,
    mut socket: Option<Socket>,
    mut interrupts: Signal,
    mut terminates: Signal,
) -> std::io::Result<ExitStatus> {
    let mut listeners = Vec::new();
    let mut asked = 0;
    loop {
        let number = tokio::select! {
            status = child.wait() => return status,
            Some(stream) = accept(&mut socket) => {
                listeners.push(stream);
                continue;
            }
            number = either(&mut interrupts, &mut terminates) => number,
        };
        asked += 1;
        if asked >= PATIENCE {
            crate::output::note(&format!("got {PATIENCE} SIGTERM/SIGINTs, forcefully exiting"));
            child.start_kill()?;
            continue;
        }
        // On a terminal, the kernel has told the plugin already: it is of the same process group.
        if number == nix::libc::SIGINT && crate::terminal::stdin_is_terminal() {
            continue;
        }
        // A plugin that listens takes the end of the connection for the request; any other one gets the signal itself.
        let told = !listeners.is_empty();
        listeners.clear();
        socket = None;
        if !told && let (Some(pid), Ok(signal)) = (child.id(), nix::sys::signal::Signal::try_from(number)) {
            // It may have ended in this moment.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
        }
    }
}

async fn either(interrupts: &mut Signal, terminates: &mut Signal) -> i32 {
    tokio::select! {
        _ = interrupts.recv() => nix::libc::SIGINT,
        _ = terminates.recv() => nix::libc::SIGTERM,
    }
}

async fn accept(socket: &mut Option<Socket>) -> Option<UnixStream> {
    match socket {
        Some(socket) => socket.listener.accept().await.ok().map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// A socket in a folder for this user only; both are gone when it is dropped.
struct Socket {
    folder: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn listen() -> Option<Self> {
        let parent = crate::config::variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").ok()?;
        let folder = parent.join(format!("berth-plugin-{}", random.trim()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder).ok()?;
        match UnixListener::bind(folder.join("s")) {
            Ok(listener) => Some(Self { folder, listener }),
            Err(_) => {
                let _ = std::fs::remove_dir(&folder);
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(Path::new("s"))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Only this process knows the folder: whatever fails here, somebody cleaned up before.
        let _ = std::fs::remove_file(self.path());
        let _ = std::fs::remove_dir(&self.folder);
    }
}
