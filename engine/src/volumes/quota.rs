//! The option `size`: what is in a volume counts for a project of its own, which has a limit. It takes a file system with project
//! quotas (ext4 or xfs, mounted with `prjquota`) and a kernel that has them.

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use std::{collections::HashSet, os::fd::OwnedFd, path::Path};
use tracing::warn;

/// Numbers below are other people's.
const FIRST: u32 = 0x0042_0000;
const LAST: u32 = FIRST + 0xffff;

/// Why the size of a volume can't be limited.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    #[error(
        "quota size requested but no quota support: it takes ext4 or xfs, mounted with prjquota, below the data root"
    )]
    Unsupported(#[source] Errno),
    #[error("no project number is free for its quota")]
    Exhausted,
    #[error("{step}")]
    Failed {
        step: &'static str,
        #[source]
        cause: Errno,
    },
}

fn folder(path: &Path) -> Result<OwnedFd, QuotaError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|cause| QuotaError::Failed { step: "open its folder", cause })
}

/// Gives an empty folder a project that nobody has, and a limit; gives the project's number.
pub fn limit(path: &Path, bytes: u64, taken: &HashSet<u32>) -> Result<u32, QuotaError> {
    let folder = folder(path)?;
    let mut free = None;
    for project in (FIRST..=LAST).filter(|project| !taken.contains(project)) {
        // A number with files or a limit is another engine's on the same file system, or its volume is still being deleted.
        let unused = match sys::quota::usage(&folder, project) {
            Ok(usage) => usage.is_none_or(|usage| usage.files == 0 && usage.limit == 0),
            // ESRCH: quotas are not turned on.
            Err(cause) => return Err(QuotaError::Unsupported(cause)),
        };
        if unused {
            free = Some(project);
            break;
        }
    }
    let project = free.ok_or(QuotaError::Exhausted)?;
    // The limit first: what begins to count is limited from then on.
    sys::quota::set_limit(&folder, project, bytes).map_err(QuotaError::Unsupported)?;
    sys::quota::set_project(&folder, project).map_err(|cause| {
        let _ = sys::quota::set_limit(&folder, project, 0);
        QuotaError::Failed { step: "set the project of its folder", cause }
    })?;
    Ok(project)
}

/// Takes the limit of a project away: its number may be used again once its files are gone.
pub fn give_back(path: &Path, project: u32) {
    let done = folder(path).map_err(|error| error.to_string());
    let done = done.and_then(|folder| sys::quota::set_limit(&folder, project, 0).map_err(|errno| errno.to_string()));
    if let Err(error) = done {
        warn!(project, error, "quota of a volume stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::kind::chain;

    #[test]
    fn without_quotas_it_is_refused_in_dockers_words() {
        let error = limit(Path::new("/proc"), 1 << 20, &HashSet::new()).unwrap_err();
        assert!(chain(&error).to_string().starts_with("quota size requested but no quota support"), "{error}");
    }
}
