//! Where a container's cgroup lies, and what its files say.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use crate::error::TaskError;

const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of a container's init process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    /// One folder per controller.
    V1(Vec<(String, PathBuf)>),
    /// One folder.
    V2(PathBuf),
}

/// Reads `/proc/PID/cgroup` (cgroups(7)): controllers and path of every hierarchy.
fn hierarchies(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((controllers, path))
        })
        .collect()
}

impl Cgroup {
    /// The cgroup of process `pid`; `None` if it has none of its own, but lives in the shim's.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let ours = fs::read_to_string("/proc/self/cgroup").ok()?;
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        Self::resolve(&theirs, &ours, unified)
    }

    fn resolve(theirs: &str, ours: &str, unified: bool) -> Option<Self> {
        let ours = hierarchies(ours);
        let own = |(controllers, path): &(&str, &str)| *path != "/" && !ours.contains(&(*controllers, *path));
        let theirs = hierarchies(theirs).into_iter().filter(own);
        let below = |controller: &str, path: &str| Path::new(ROOT).join(controller).join(path.trim_start_matches('/'));
        if unified {
            return theirs
                .into_iter()
                .find(|(controllers, _)| controllers.is_empty())
                .map(|(_, path)| Self::V2(below("", path)));
        }
        let mut folders = Vec::new();
        for (controllers, path) in theirs {
            if let Some(name) = controllers.strip_prefix("name=") {
                folders.push((name.to_owned(), below(name, path)));
            } else {
                // Controllers mounted together have a link for each alone.
                let each = controllers.split(',').filter(|name| !name.is_empty());
                folders.extend(each.map(|name| (name.to_owned(), below(name, path))));
            }
        }
        (!folders.is_empty()).then_some(Self::V1(folders))
    }

    /// The folder of a controller; the only one with version 2.
    pub(crate) fn folder(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V1(folders) => folders.iter().find(|(name, _)| name == controller).map(|(_, path)| path.as_path()),
            Self::V2(path) => Some(path),
        }
    }

    /// Whether the processes are frozen; `None` if the cgroup doesn't say.
    pub(crate) fn is_frozen(&self) -> Option<bool> {
        match self {
            Self::V2(folder) => Some(value(&table(folder, "cgroup.events"), "frozen") == 1),
            Self::V1(_) => {
                let state = fs::read_to_string(self.folder("freezer")?.join("freezer.state")).ok()?;
                Some(state.trim() != "THAWED")
            }
        }
    }

    /// All processes in the cgroup and below it, in ascending order; `None` if it can't be read.
    pub(crate) fn pids(&self) -> Option<Vec<u32>> {
        let folder = match self {
            Self::V2(path) => path.as_path(),
            Self::V1(folders) => {
                let best = ["devices", "pids", "memory", "freezer"].iter().find_map(|name| self.folder(name));
                best.or_else(|| folders.first().map(|(_, path)| path.as_path()))?
            }
        };
        let mut pids = Vec::new();
        collect(folder, &mut pids).ok()?;
        pids.sort_unstable();
        Some(pids)
    }
}

/// Puts this process into the cgroup `path` of every hierarchy that has one of that name; it must be in one at least.
pub(crate) fn enter(path: &str) -> Result<(), TaskError> {
    let relative = Path::new(path.trim_start_matches('/'));
    if relative.components().any(|part| !matches!(part, Component::Normal(_))) || relative.as_os_str().is_empty() {
        return Err(TaskError::Invalid(format!("option shim_cgroup: {path:?} is no path of a cgroup")));
    }
    let top = Path::new(ROOT);
    let below = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    // Several names can be links to one hierarchy (cpu, cpuacct).
    let hierarchies = std::iter::once(top.to_owned()).chain(below.filter(|at| !at.is_symlink()));
    let mut entered = false;
    for file in hierarchies.map(|at| at.join(relative).join("cgroup.procs")).filter(|file| file.exists()) {
        fs::write(&file, "0").map_err(|cause| TaskError::File { file, cause })?;
        entered = true;
    }
    if entered {
        return Ok(());
    }
    let file = top.join(relative);
    Err(TaskError::File { file, cause: std::io::ErrorKind::NotFound.into() })
}

fn collect(folder: &Path, pids: &mut Vec<u32>) -> std::io::Result<()> {
    let text = fs::read_to_string(folder.join("cgroup.procs"))?;
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // One that vanishes meanwhile has no processes.
            let _ = collect(&entry.path(), pids);
        }
    }
    Ok(())
}

/// A file of one number; `max`, and what version 1 writes for it, is 0 (no limit).
pub(crate) fn number(folder: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    match text.trim() {
        "max" => Some(0),
        text => text.parse().ok(),
    }
}

/// A file of `name number` lines.
pub(crate) fn table(folder: &Path, file: &str) -> Vec<(String, u64)> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// One value of such a table; 0 if it isn't there.
pub(crate) fn value(table: &[(String, u64)], name: &str) -> u64 {
    table.iter().find(|(key, _)| key == name).map_or(0, |(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_enters_no_cgroup_but_the_one_named() {
        for path in ["", "/", "..", "/a/../..", "a//../b"] {
            assert!(matches!(enter(path), Err(TaskError::Invalid(_))), "{path:?}");
        }
        assert!(matches!(enter("/berth-test-nothing-there"), Err(TaskError::File { .. })));
    }

    #[test]
    fn folders_follow_the_hierarchies() {
        let ours = "5:devices:/\n4:memory:/outer\n0::/\n";
        let theirs = "5:devices:/ns/c\n4:memory:/outer/ns/c\n3:cpu,cpuacct:/ns/c\n2:name=systemd:/ns/c\n0::/\n";
        let cgroup = Cgroup::resolve(theirs, ours, false).expect("version 1");
        for (controller, folder) in [
            ("devices", Some("/sys/fs/cgroup/devices/ns/c")),
            ("memory", Some("/sys/fs/cgroup/memory/outer/ns/c")),
            ("cpuacct", Some("/sys/fs/cgroup/cpuacct/ns/c")),
            ("systemd", Some("/sys/fs/cgroup/systemd/ns/c")),
            ("pids", None),
        ] {
            assert_eq!(cgroup.folder(controller), folder.map(Path::new), "{controller}");
        }
        assert_eq!(Cgroup::resolve(ours, ours, false), None, "the shim's own cgroup isn't the container's");
        let unified = Cgroup::resolve("0::/ns/c\n", "0::/\n", true);
        assert_eq!(unified, Some(Cgroup::V2("/sys/fs/cgroup/ns/c".into())));
        assert_eq!(Cgroup::resolve("0::/same\n", "0::/same\n", true), None);
    }
}
