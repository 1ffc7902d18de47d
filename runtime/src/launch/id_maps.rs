//! Writes the id maps of a new user namespace: straight, or by newuidmap and newgidmap, which may do for an ordinary user what the
//! kernel allows him only for his own id.

#![expect(clippy::disallowed_methods, reason = "newuidmap is a program of the host")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, Pid, access, getegid, geteuid};
use sys::Errno;

use crate::confine::limits;
use crate::plan::namespaces::{NamespacePlan, map_lines};
use crate::spec::IdMapping;

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// The kernel refused it.
    #[error("write {file} for {field}")]
    Write {
        file: &'static str,
        field: &'static str,
        #[source]
        cause: Errno,
    },
    /// The program that could do it is missing.
    #[error(
        "{field}: ids other than the user's own are mapped by {program}, which is not in PATH (Debian: package uidmap)"
    )]
    NoProgram { program: &'static str, field: &'static str },
    /// It could not be run.
    #[error("run {path}")]
    Run {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// It said no.
    #[error("{field}: {program}: {said} (does {table} give this user those ids?)")]
    Refused { program: &'static str, field: &'static str, said: String, table: &'static str },
}

/// One of the two maps.
struct Side {
    file: &'static str,
    field: &'static str,
    program: &'static str,
    table: &'static str,
}

const UIDS: Side = Side { file: "uid_map", field: "linux.uidMappings", program: "newuidmap", table: "/etc/subuid" };
const GIDS: Side = Side { file: "gid_map", field: "linux.gidMappings", program: "newgidmap", table: "/etc/subgid" };

/// Writes both maps of a process.
pub(super) fn write(proc: &OwnedFd, pid: Pid, plan: &NamespacePlan) -> Result<(), MapError> {
    let is_root = geteuid().is_root();
    let (uids, gids) = (&plan.uid_mappings, &plan.gid_mappings);
    if is_root || is_only(uids, geteuid().as_raw()) {
        UIDS.straight(proc, pid, uids)?;
    } else {
        UIDS.by_program(pid, uids)?;
    }
    if !is_root && !is_only(gids, getegid().as_raw()) {
        return GIDS.by_program(pid, gids);
    }
    match GIDS.straight(proc, pid, gids) {
        // Without CAP_SETGID only one id may be mapped, and only if groups cannot be dropped (user_namespaces(7)).
        Err(MapError::Write { cause: Errno::EPERM, .. }) => {
            limits::write_proc(proc, &format!("{pid}/setgroups"), b"deny").map_err(|cause| MapError::Write {
                file: "setgroups",
                field: GIDS.field,
                cause,
            })?;
            GIDS.straight(proc, pid, gids)
        }
        done => done,
    }
}

/// True for what an ordinary user may map himself.
fn is_only(map: &[IdMapping], own: u32) -> bool {
    matches!(map, [one] if one.size == 1 && one.host_id == own)
}

impl Side {
    fn straight(&self, proc: &OwnedFd, pid: Pid, map: &[IdMapping]) -> Result<(), MapError> {
        limits::write_proc(proc, &format!("{pid}/{}", self.file), map_lines(map).as_bytes())
            .map_err(|cause| MapError::Write { file: self.file, field: self.field, cause })
    }

    fn by_program(&self, pid: Pid, map: &[IdMapping]) -> Result<(), MapError> {
        let Self { field, program, table, .. } = *self;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = find(program, &path).ok_or(MapError::NoProgram { program, field })?;
        let numbers = map.iter().flat_map(|one| [one.container_id, one.host_id, one.size]).map(|id| id.to_string());
        let mut command = Command::new(&path);
        command.arg(pid.to_string()).args(numbers).env_clear().stdin(Stdio::null());
        let output = command.output().map_err(|cause| MapError::Run { path, cause })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches(program).trim_start_matches([':', ' ']).replace('\n', "; ");
        let said = if said.is_empty() { output.status.to_string() } else { said };
        Err(MapError::Refused { program, field, said, table })
    }
}

/// Looks in the folders of PATH; a relative one would be wherever the caller happens to be, say in a bundle.
fn find(program: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_absolute_folders() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("newuidmap");
        std::fs::write(&file, "").expect("file");
        let path = |text: String| std::ffi::OsString::from(text);
        let folder = dir.path().display();
        // No test runs as a user who may execute what has no x bit at all.
        assert_eq!(find("newuidmap", &path(format!("{folder}"))), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("mode");
        assert_eq!(find("newuidmap", &path(format!("relative::/no/such:{folder}"))), Some(file));
        assert_eq!(find("newuidmap", &path("relative:.:".into())), None);
    }

    #[test]
    fn ones_own_id_alone() {
        let map = |host_id, size| IdMapping { container_id: 0, host_id, size };
        assert!(is_only(&[map(1000, 1)], 1000));
        assert!(!is_only(&[map(1000, 2)], 1000) && !is_only(&[map(0, 1)], 1000));
        assert!(!is_only(&[map(1000, 1), map(1000, 1)], 1000) && !is_only(&[], 1000));
    }
}
