//! Finding the program inside a container, with the error texts that docker and others look for.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::Errno;
use nix::fcntl::AT_FDCWD;
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, faccessat};

/// Why there is nothing to execute.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No folder of PATH has it.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A path that leads nowhere.
    #[error("exec: {name:?}: stat {name}: {}", words(*cause))]
    Stat {
        /// Which.
        name: String,
        /// Why nothing is there.
        cause: Errno,
    },
    /// A folder. execve(2) says EACCES; docker clients before 23 look for those words to exit with 126, newer ones for either.
    #[error("exec: {0:?}: is a directory: permission denied")]
    Directory(String),
    /// Not for this user.
    #[error("exec: {0:?}: permission denied")]
    Denied(String),
}

/// The words that Go programs print, in lower case.
fn words(cause: Errno) -> String {
    cause.desc().to_lowercase()
}

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl LookupError {
    /// The exit code of a shell that finds no program.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::NotInPath(_) | Self::Stat { .. }) { 127 } else { 126 }
    }
}

/// Finds what the first argument names, as execvp(3) would, for the current user and in the current directory.
pub fn find(name: &CStr, env: &[std::ffi::CString]) -> Result<PathBuf, LookupError> {
    let text = name.to_string_lossy().into_owned();
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    if name.to_bytes().contains(&b'/') {
        return match check(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(Errno::EISDIR) => Err(LookupError::Directory(text)),
            Err(Errno::EACCES) => Err(LookupError::Denied(text)),
            Err(cause) => Err(LookupError::Stat { name: text, cause }),
        };
    }
    let given = env.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let mut denied = false;
    for folder in given.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let candidate = Path::new(std::ffi::OsStr::from_bytes(folder)).join(path);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied { LookupError::Denied(text) } else { LookupError::NotInPath(text) })
}

fn check(path: &Path) -> Result<(), Errno> {
    let kind = SFlag::from_bits_truncate(stat(path)?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    if kind != SFlag::S_IFREG {
        return Err(Errno::EACCES);
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    fn look(name: &str, path: &str) -> Result<PathBuf, String> {
        let env = [CString::new(format!("PATH={path}")).expect("env")];
        find(&CString::new(name).expect("name"), &env).map_err(|error| error.to_string())
    }

    #[test]
    fn callers_find_their_words() {
        assert_eq!(look("sh", "/nonexistent:/bin"), Ok("/bin/sh".into()));
        assert_eq!(look("/bin/sh", ""), Ok("/bin/sh".into()));
        for (name, text) in [
            ("no-such-tool", "exec: \"no-such-tool\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/usr", "exec: \"/usr\": is a directory: permission denied"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ] {
            assert_eq!(look(name, "/bin"), Err(text.to_owned()));
        }
    }
}
