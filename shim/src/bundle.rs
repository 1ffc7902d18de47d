//! The bundle folder of a container: what lies there under which name, and the records that outlive the shim.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{clock, reaper::Exit};

/// Which process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The first one.
    Init,
    /// One that joined later, by its checked exec id.
    Exec(String),
}

impl Key {
    /// The id as it stands in events: the container's for init.
    pub(crate) fn event_id<'a>(&'a self, container: &'a str) -> &'a str {
        match self {
            Self::Init => container,
            Self::Exec(id) => id,
        }
    }

    fn stem(&self) -> String {
        match self {
            Self::Init => "init".to_owned(),
            Self::Exec(id) => format!("exec-{id}"),
        }
    }
}

/// A bundle folder.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    root: PathBuf,
}

/// Exit of a process, as it stands in the bundle before anybody is told.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct ExitRecord {
    /// Its pid on the host.
    pub(crate) pid: u32,
    /// Its exit code, or 128 and the signal.
    pub(crate) exit_status: u32,
    /// When it was reaped, RFC 3339.
    pub(crate) exited_at: String,
    /// Its event is in the journal, or was delivered. Absent in records of older shims.
    #[serde(default)]
    pub(crate) announced: bool,
}

/// How the container was made: what `delete` needs when the shim is gone.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The OCI runtime.
    pub(crate) runtime: PathBuf,
    /// Its `--root`.
    pub(crate) root: PathBuf,
    /// Whether it was given `--systemd-cgroup`.
    pub(crate) systemd_cgroup: bool,
}

impl Bundle {
    /// The bundle at `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// Where the root filesystem is mounted.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// What the runtime says about an operation on this process.
    pub(crate) fn runtime_log(&self, key: &Key) -> PathBuf {
        match key {
            // containerd's name for it.
            Key::Init => self.root.join("log.json"),
            Key::Exec(_) => self.root.join(format!("{}.log.json", key.stem())),
        }
    }

    /// Where the runtime leaves the pid.
    pub(crate) fn pid_file(&self, key: &Key) -> PathBuf {
        self.root.join(format!("{}.pid", key.stem()))
    }

    /// Where the exit of the process is recorded.
    pub(crate) fn exit_file(&self, key: &Key) -> PathBuf {
        self.root.join(format!("{}.exit", key.stem()))
    }

    /// Events that nobody has taken yet.
    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join(proto::journal::FILE)
    }

    /// Says that the kernel has killed for memory in this container.
    pub(crate) fn oom_file(&self) -> PathBuf {
        self.root.join("init.oom")
    }

    /// The process spec of an exec.
    pub(crate) fn spec_file(&self, key: &Key) -> PathBuf {
        self.root.join(format!("{}.json", key.stem()))
    }

    /// A scratch file for one operation.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.root.join(format!(".shim-{name}"))
    }

    /// Removes what an exec left.
    pub(crate) fn forget(&self, key: &Key) {
        for file in [self.runtime_log(key), self.pid_file(key), self.exit_file(key), self.spec_file(key)] {
            // Most of them were never written.
            let _ = fs::remove_file(file);
        }
    }

    /// Records an exit. The name appears with its whole content or not at all; the run root is a tmpfs, so there is
    /// nothing that fsync would add.
    ///
    /// It is written twice: as soon as the exit is known, and again when its event has gone into the journal, which says to
    /// whoever finds the record after our death that nobody needs to announce it.
    pub(crate) fn record_exit(&self, key: &Key, pid: u32, exit: Exit, announced: bool) -> io::Result<()> {
        let exited_at = clock::rfc3339_nano(exit.at);
        self.replace(&self.exit_file(key), &ExitRecord { pid, exit_status: exit.status, exited_at, announced })
    }

    /// Records that the kernel has killed for memory.
    pub(crate) fn record_oom(&self) -> io::Result<()> {
        fs::write(self.oom_file(), "")
    }

    /// The recorded exit, if there is one.
    pub(crate) fn recorded_exit(&self, key: &Key) -> Option<ExitRecord> {
        serde_json::from_slice(&fs::read(self.exit_file(key)).ok()?).ok()
    }

    /// Records how the container is made.
    pub(crate) fn record_settings(&self, settings: &Settings) -> io::Result<()> {
        self.replace(&self.root.join("shim.json"), settings)
    }

    /// How the container was made, if the shim got that far.
    pub(crate) fn settings(&self) -> Option<Settings> {
        serde_json::from_slice(&fs::read(self.root.join("shim.json")).ok()?).ok()
    }

    fn replace(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value)?;
        let new = path.with_extension("new");
        fs::write(&new, bytes)?;
        fs::rename(new, path)
    }
}

/// The pid that a runtime wrote.
pub(crate) fn read_pid(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    match text.trim().parse::<u32>() {
        Ok(pid) if pid > 0 && i32::try_from(pid).is_ok() => Ok(pid),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not a pid"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn records_come_back() {
        let folder = tempfile::tempdir().expect("folder");
        let bundle = Bundle::new(folder.path());
        let key = Key::Exec("e1".into());
        assert_eq!(bundle.recorded_exit(&key), None);
        let exit = Exit { status: 137, at: UNIX_EPOCH + Duration::new(1, 5) };
        for announced in [false, true] {
            bundle.record_exit(&key, 42, exit, announced).expect("record");
            let exited_at = "1970-01-01T00:00:01.000000005Z".into();
            let record = ExitRecord { pid: 42, exit_status: 137, exited_at, announced };
            assert_eq!(bundle.recorded_exit(&key), Some(record));
        }
        assert!(folder.path().join("exec-e1.exit").exists() && !folder.path().join("exec-e1.new").exists());
        bundle.forget(&key);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    }

    #[test]
    fn pids_are_positive_numbers() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("pid");
        for (text, pid) in [("12", Some(12)), ("12\n", Some(12)), ("0", None), ("-1", None), ("", None), ("x", None)] {
            fs::write(&file, text).expect("write");
            assert_eq!(read_pid(&file).ok(), pid, "{text:?}");
        }
    }
}
