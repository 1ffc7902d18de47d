//! The folders that a supervisor works in, and that it works in them alone.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::config::Config;

/// Why the roots can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// A folder that we need can't be made.
    #[error("make folder {at}")]
    Folder {
        /// The folder.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file system takes no writes.
    #[error("{root} is on a file system that is mounted read-only: mount it read-write, or choose another root")]
    ReadOnly {
        /// The root.
        root: PathBuf,
    },
    /// Another supervisor works on the same root.
    #[error("another berth-supervisor is using {root} ({}): stop it, or choose other roots", whose(.pid))]
    Taken {
        /// The root.
        root: PathBuf,
        /// Who it is, as it noted.
        pid: Option<u32>,
    },
    /// The lock can't be taken for another reason.
    #[error("lock {at}")]
    Lock {
        /// The lock file.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

fn whose(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "it has just begun".to_owned(), |pid| format!("pid {pid}"))
}

/// Holds both roots for this process. The kernel lets go of them when it ends, whatever happens.
#[derive(Debug)]
pub(crate) struct Roots {
    _locks: [Flock<File>; 2],
}

impl Roots {
    /// Makes the folders and takes them.
    pub(crate) fn take(config: &Config) -> Result<Self, RootError> {
        let data = |error| read_only(error, &config.data_root);
        let run = |error| read_only(error, &config.run_root);
        make_folder(&config.data_root, 0o711).map_err(data)?;
        make_folder(&config.data(), 0o700).map_err(data)?;
        make_folder(&config.run_root, 0o711).map_err(run)?;
        make_folder(&config.run(), 0o711).map_err(run)?;
        let locks = [
            lock(&config.run_root, config.run_root.join("supervisor.lock")).map_err(run)?,
            lock(&config.data_root, config.data().join("lock")).map_err(data)?,
        ];
        Ok(Self { _locks: locks })
    }
}

/// Makes a folder with its parents; an existing one keeps its mode.
pub(super) fn make_folder(at: &Path, mode: u32) -> Result<(), RootError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(at);
    made.map_err(|cause| RootError::Folder { at: at.to_owned(), cause })
}

fn read_only(error: RootError, root: &Path) -> RootError {
    match error {
        RootError::Folder { cause, .. } | RootError::Lock { cause, .. }
            if cause.kind() == io::ErrorKind::ReadOnlyFilesystem =>
        {
            RootError::ReadOnly { root: root.to_owned() }
        }
        other => other,
    }
}

/// A supervisor that was killed while it started a program has left a child that holds the lock for a moment, until it
/// executes that program (or not).
const CHILD_EXECUTES: Duration = Duration::from_millis(500);

fn take(mut file: File) -> Result<Flock<File>, (File, Errno)> {
    let began = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((again, Errno::EWOULDBLOCK)) if began.elapsed() < CHILD_EXECUTES => file = again,
            taken_or_not => return taken_or_not,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lock(root: &Path, at: PathBuf) -> Result<Flock<File>, RootError> {
    let failed = |cause| RootError::Lock { at: at.clone(), cause };
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&at).map_err(failed)?;
    match take(file) {
        Ok(mut lock) => {
            // For the message of those who come second. Without room for it the lock holds all the same.
            if lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).is_err() {
                let _ = lock.set_len(0);
            }
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            Err(RootError::Taken { root: root.to_owned(), pid })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}
