//! Where in a container's cgroup the process of an `exec` goes: at its top, or in one below (`--cgroup`).

#![expect(clippy::disallowed_methods, reason = "procfs of the host")]

use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sys::Errno;

use super::create::is_unprivileged;
use super::{Cgroup, CgroupError, Hierarchy, files, place};

/// What the `--cgroup` flags say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Below {
    /// For every hierarchy that none of the others is about.
    all: String,
    /// By v1 controller.
    by_controller: Vec<(String, String)>,
}

impl Below {
    /// Reads `path` or `controller[,controller]:path`, each given once. The error says what is wrong with which.
    pub(crate) fn parse<'a>(flags: impl Iterator<Item = &'a str>) -> Result<Self, (&'a str, &'static str)> {
        let mut below = Self::default();
        for flag in flags.filter(|flag| !flag.is_empty()) {
            let (controllers, path) = match flag.split_once(':') {
                Some((controllers, path)) => (controllers, path),
                None => ("", flag),
            };
            if path.contains(|c: char| c.is_control()) {
                return Err((flag, "contains a control character"));
            }
            let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            if parts.contains(&"..") {
                return Err((flag, "leads out of the container's cgroup"));
            }
            let path = parts.join("/");
            if controllers.is_empty() {
                if !below.all.is_empty() {
                    return Err((flag, "is the second for all controllers"));
                }
                below.all = path;
                continue;
            }
            for controller in controllers.split(',') {
                if below.by_controller.iter().any(|(known, _)| known == controller) || controller.is_empty() {
                    return Err((flag, "names a controller twice, or none"));
                }
                below.by_controller.push((controller.to_owned(), path.clone()));
            }
        }
        Ok(below)
    }

    fn is_top(&self) -> bool {
        self.all.is_empty() && self.by_controller.is_empty()
    }

    fn of(&self, hierarchy: &Hierarchy) -> &str {
        let own = self.by_controller.iter().find(|(controller, _)| hierarchy.controls(controller));
        own.map_or(&self.all, |(_, path)| path)
    }
}

/// What a process needs to be in a cgroup from its beginning.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// The cgroup2 directory to be cloned into.
    pub(crate) unified: Option<OwnedFd>,
    /// Files to join v1 by.
    pub(crate) tasks: Vec<OwnedFd>,
    top: bool,
}

impl Cgroup {
    /// Opens the way in. What is asked for has to be there: a process that went elsewhere would have other limits.
    pub(crate) fn enter(&self, below: &Below) -> Result<Entrance, CgroupError> {
        if below.is_top() {
            return Ok(Entrance { unified: self.open_unified()?, tasks: self.task_files()?, top: true });
        }
        if self.path.is_empty() {
            return Err(CgroupError::NoneOfItsOwn);
        }
        let known = |controller: &str| self.legacy.iter().any(|hierarchy| hierarchy.controls(controller));
        if let Some((controller, _)) = below.by_controller.iter().find(|(controller, _)| !known(controller)) {
            return Err(CgroupError::NoHierarchy(controller.clone()));
        }
        let path =
            |hierarchy: &Hierarchy| format!("{}/{}", self.path, below.of(hierarchy)).trim_end_matches('/').to_owned();
        let missing = |hierarchy: &Hierarchy| CgroupError::NoSubCgroup(hierarchy.mount_point().join(path(hierarchy)));
        let mut tasks = Vec::with_capacity(self.legacy.len());
        for hierarchy in &self.legacy {
            match files::open_for_writing(hierarchy, &path(hierarchy), "tasks") {
                Err(CgroupError::Write { cause: Errno::ENOENT, .. }) => return Err(missing(hierarchy)),
                opened => tasks.push(opened?),
            }
        }
        let unified = match &self.unified {
            None => None,
            Some(hierarchy) => match open(hierarchy, &path(hierarchy)) {
                // Beside v1 it has no limits to speak of: where nobody made one below, its top will do.
                Err(Errno::ENOENT) if !self.is_unified() => self.open_unified()?,
                Err(Errno::ENOENT) => return Err(missing(hierarchy)),
                opened => Some(opened.map_err(|cause| CgroupError::Read {
                    file: hierarchy.mount_point().join(path(hierarchy)).display().to_string(),
                    cause,
                })?),
            },
        };
        Ok(Entrance { unified, tasks, top: false })
    }

    /// Another way in when cloning into the first was refused: the cgroup of the container's first process, if that has moved on and
    /// handed controllers down, so that nobody can be at the top any more; none, where an unprivileged caller may not go in at all.
    pub(crate) fn other_entrance(&self, first: &Entrance, refusal: Errno, init: Pid) -> Option<Option<OwnedFd>> {
        match refusal {
            Errno::EBUSY if first.top => {
                let hierarchy = self.unified.as_ref()?;
                let text = std::fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
                let path = place::path_of(&text, None)?;
                let path = path.trim_matches('/');
                // Never out of the container's own.
                path.strip_prefix(&self.path).filter(|rest| rest.starts_with('/'))?;
                open(hierarchy, path).ok().map(Some)
            }
            Errno::EACCES | Errno::EPERM if first.unified.is_some() && is_unprivileged() => Some(None),
            _ => None,
        }
    }
}

fn open(hierarchy: &Hierarchy, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    openat(&hierarchy.dir, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&'static str]) -> Result<Below, (&'static str, &'static str)> {
        Below::parse(flags.iter().copied())
    }

    #[test]
    fn flags_name_controllers_and_paths() {
        assert!(parse(&[""]).expect("ok").is_top());
        assert!(parse(&["/"]).expect("ok").is_top());
        assert_eq!(parse(&["/a//./b/"]).expect("ok").all, "a/b");
        let below = parse(&["memory,pids:x", "cpu:y", "z"]).expect("ok");
        assert_eq!(below.all, "z");
        let expected = [("memory", "x"), ("pids", "x"), ("cpu", "y")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(below.by_controller, expected);
        for bad in [&["a/../b"][..], &[".."], &["cpu:../x"], &["a", "b"], &["cpu:a", "cpu:b"], &["cpu,:a"], &["a\nb"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_leads_out(flag in "[a-c./:,]{0,16}") {
            if let Ok(below) = Below::parse(std::iter::once(flag.as_str())) {
                let paths = below.by_controller.iter().map(|(_, path)| path).chain([&below.all]);
                for path in paths {
                    proptest::prop_assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."));
                }
            }
        }
    }
}
