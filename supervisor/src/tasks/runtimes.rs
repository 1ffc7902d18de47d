//! From a runtime's name to the shim binary that serves it.
//!
//! `io.containerd.NAME.VERSION` is served by `containerd-shim-NAME-VERSION`, beside this program or on the PATH; an
//! absolute path is the binary itself. Two names are served by berth-shim: its own, and `io.containerd.runc.v2`, which is
//! what containerd's clients ask for when nobody told them otherwise. `[runtimes]` in the configuration goes before all.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proto::kind::ErrorKind;

use crate::failure::Failure;

/// Names that berth-shim serves.
const OURS: [&str; 2] = ["io.containerd.berth.v1", "io.containerd.runc.v2"];

/// Why no shim serves a runtime.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// Neither a name nor an absolute path.
    #[error("runtime {0:?} is neither of the form io.containerd.NAME.VERSION nor an absolute path")]
    Name(String),
    /// There is no such program.
    #[error("runtime {name}: shim {binary} was not found {place}")]
    Missing {
        /// The runtime.
        name: String,
        /// The program looked for.
        binary: String,
        /// Where it was looked for.
        place: &'static str,
    },
}

impl Failure for RuntimeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) => ErrorKind::InvalidArgument,
            Self::Missing { .. } => ErrorKind::NotFound,
        }
    }
}

/// The runtimes that are configured, and where programs are looked for.
pub(crate) struct Runtimes {
    configured: BTreeMap<String, PathBuf>,
    folders: Vec<PathBuf>,
}

impl Runtimes {
    /// Looks beside this program first, then on the PATH.
    pub(crate) fn new(configured: BTreeMap<String, PathBuf>) -> Self {
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = beside.into_iter().chain(std::env::split_paths(&path)).filter(|p| p.is_absolute()).collect();
        Self { configured, folders }
    }

    /// The shim binary for `runtime`.
    pub(crate) fn shim(&self, runtime: &str) -> Result<PathBuf, RuntimeError> {
        if let Some(path) = self.configured.get(runtime) {
            return existing(runtime, path.clone());
        }
        if runtime.starts_with('/') {
            return existing(runtime, PathBuf::from(runtime));
        }
        let binary = binary_name(runtime).ok_or_else(|| RuntimeError::Name(runtime.to_owned()))?;
        let names =
            if OURS.contains(&runtime) { vec!["berth-shim", "containerd-shim-berth-v1"] } else { vec![&*binary] };
        let found = names.iter().find_map(|name| self.folders.iter().map(|f| f.join(name)).find(|at| at.is_file()));
        found.ok_or_else(|| RuntimeError::Missing {
            name: runtime.to_owned(),
            binary: names[0].to_owned(),
            place: "beside berth-supervisor or on its PATH",
        })
    }
}

fn existing(name: &str, at: PathBuf) -> Result<PathBuf, RuntimeError> {
    if at.is_file() {
        return Ok(at);
    }
    Err(RuntimeError::Missing { name: name.to_owned(), binary: at.display().to_string(), place: "where it should be" })
}

/// containerd's rule: the last two of the dotted parts.
fn binary_name(runtime: &str) -> Option<String> {
    let clean = runtime.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    (clean && !runtime.split('.').any(str::is_empty)).then(|| format!("containerd-shim-{name}-{version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_binaries() {
        for (runtime, binary) in [
            ("io.containerd.runc.v2", Some("containerd-shim-runc-v2")),
            ("io.containerd.kata-qemu.v2", Some("containerd-shim-kata-qemu-v2")),
            ("a.b", Some("containerd-shim-a-b")),
            ("runc", None),
            ("", None),
            ("bin/x.y", None),
            ("..", None),
            ("io.containerd..v2", None),
        ] {
            assert_eq!(binary_name(runtime).as_deref(), binary, "{runtime:?}");
        }
    }

    #[test]
    fn the_configuration_comes_first_and_missing_programs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let shim = folder.path().join("berth-shim");
        std::fs::write(&shim, "").unwrap();
        let configured = [("io.containerd.x.v1".to_owned(), shim.clone()), ("gone".to_owned(), "/nonexistent".into())];
        let runtimes = Runtimes { configured: configured.into(), folders: vec![folder.path().to_owned()] };
        for name in ["io.containerd.x.v1", "io.containerd.berth.v1", "io.containerd.runc.v2", shim.to_str().unwrap()] {
            assert_eq!(runtimes.shim(name).unwrap(), shim, "{name}");
        }
        for (name, words) in [
            ("gone", "/nonexistent was not found where it should be"),
            ("io.containerd.kata.v2", "containerd-shim-kata-v2 was not found beside"),
            ("/nonexistent", "where it should be"),
            ("./x.y", "neither of the form"),
        ] {
            let error = runtimes.shim(name).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
    }
}
