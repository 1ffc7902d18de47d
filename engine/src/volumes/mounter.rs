//! Mounts and unmounts volumes with options in a process of its own: a server that doesn't answer holds up whoever calls mount(2),
//! umount(2) or stat(2) for minutes or for good, and a process can be killed meanwhile. What it is told comes by its standard input, as
//! there may be a password in it; what went wrong it says on its standard output, nothing if all went well.

use super::local::{self, is_mounted};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tracing::warn;

/// The word that makes the program do this.
pub const ARGUMENT: &str = "volume-mounter";
/// Name servers and servers of files have this long.
const MOUNTING: Duration = Duration::from_secs(30);
/// What was written is brought to the server by then, or by the kernel alone.
const UNMOUNTING: Duration = Duration::from_secs(10);
/// One that was killed is gone by then, unless the kernel holds it.
const DYING: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
enum Task {
    Mount { options: BTreeMap<String, String>, at: PathBuf },
    Unmount { at: PathBuf },
}

/// Mounts, unless something is mounted there already; in both cases its root can be looked at.
pub fn mount(options: &BTreeMap<String, String>, at: &Path) -> io::Result<()> {
    let task = Task::Mount { options: options.clone(), at: at.to_owned() };
    match run(&task, MOUNTING)? {
        Some(text) if text.is_empty() => Ok(()),
        Some(text) => Err(io::Error::other(text)),
        None => Err(io::Error::other(format!(
            "failed to mount local volume: mount {}: no answer within {} s: can its server be reached?",
            local::words(options),
            MOUNTING.as_secs()
        ))),
    }
}

/// Unmounts what is mounted there. Of a server that doesn't answer, the mount is gone all the same.
pub fn unmount(at: &Path) -> io::Result<()> {
    if !is_mounted(at)? {
        return Ok(());
    }
    match run(&Task::Unmount { at: at.to_owned() }, UNMOUNTING)? {
        Some(text) if text.is_empty() => Ok(()),
        Some(text) => Err(io::Error::other(text)),
        None if is_mounted(at)? => Err(io::Error::other(format!("no answer within {} s", UNMOUNTING.as_secs()))),
        None => {
            warn!(at = %at.display(), "volume is unmounted, but its server doesn't answer: what was last written may be lost");
            Ok(())
        }
    }
}

/// What it says; `None` if it had to be killed.
fn run(task: &Task, patience: Duration) -> io::Result<Option<String>> {
    // Us as we are, also when another program lies in our place by now.
    let mut child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()?;
    let (mut told, mut says) = (child.stdin.take(), child.stdout.take());
    let sent = told.as_mut().map_or(Ok(()), |told| told.write_all(&serde_json::to_vec(task)?));
    drop(told);
    let mut text = String::new();
    let ended = match (sent, says.as_mut()) {
        (Err(error), _) => Err(error),
        (Ok(()), Some(says)) => read_until(says, &mut text, Instant::now() + patience),
        (Ok(()), None) => Ok(true),
    };
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
        let mut rest = String::new();
        if let Some(says) = says.as_mut().filter(|_| ended.is_ok()) {
            let _ = read_until(says, &mut rest, Instant::now() + DYING);
        }
        reap_later(child);
        return ended.map(|_| None);
    }
    let status = child.wait()?;
    match status.success() || !text.is_empty() {
        true => Ok(Some(text)),
        false => Err(io::Error::other(format!("the process that does it ended: {status}"))),
    }
}

/// Reads to the end; false if that hasn't come by then.
fn read_until(from: &mut (impl Read + AsFd), text: &mut String, end: Instant) -> io::Result<bool> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = PollTimeout::try_from(end.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        let ready = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], left);
        match ready {
            Ok(0) => return Ok(false),
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        match from.read(&mut piece)? {
            0 => break,
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
    text.push_str(&String::from_utf8_lossy(&bytes));
    Ok(true)
}

/// One that the kernel holds ends when the server is back.
fn reap_later(mut child: Child) {
    let reap = std::thread::Builder::new().name("mounter".into()).stack_size(64 * 1024);
    if let Err(error) = reap.spawn(move || child.wait()) {
        warn!(%error, "a process that mounts is not waited for");
    }
}

/// What the program does when its first argument is [`ARGUMENT`].
pub fn main() -> io::Result<()> {
    let mut told = Vec::new();
    io::stdin().read_to_end(&mut told)?;
    let done = match serde_json::from_slice(&told)? {
        Task::Mount { options, at } => local::mount_at(&options, &at),
        Task::Unmount { at } => match umount2(&at, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        },
    };
    match done {
        Ok(()) => Ok(()),
        Err(error) => io::stdout().write_all(error.to_string().as_bytes()),
    }
}
