//! Which cgroup a container gets: by which driver, at which path, and in which hierarchies.
//!
//! | config.json           | root                  | rootless                                                    |
//! |-----------------------|-----------------------|-------------------------------------------------------------|
//! | `/a/b`                | a/b of each hierarchy | the same, where that may be made                             |
//! | `a/b`                 | berth-containers/a/b  | a/b beside the runtime's own cgroup, or else below it        |
//! | none                  | berth-ID              | berth-ID, likewise                                           |
//! | `slice:prefix:name`   | with `--systemd-cgroup`: the unit's                                                 |
//!
//! Rootless is who may not write at the roots. Such a container has a cgroup where it can have one; where it cannot, it runs in
//! the runtime's own, unless it asks for limits.

#![expect(clippy::disallowed_methods, reason = "procfs of the host")]

use std::os::fd::OwnedFd;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use sys::Errno;

use super::systemd::names::UnitName;
use super::systemd::{self, Unit, Wishes};
use super::{Cgroup, CgroupError, Hierarchy};
use crate::spec::Resources;

/// What `--rootless` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Rootless {
    /// Found out when something is not permitted.
    #[default]
    Auto,
    Yes,
    No,
}

impl Rootless {
    /// Reads the flag, as Go reads truth.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "auto" => Self::Auto,
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Self::Yes,
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Self::No,
            _ => return None,
        })
    }
}

/// The global flags about cgroups.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Driver {
    /// `--systemd-cgroup`
    pub(crate) systemd: bool,
    pub(crate) rootless: Rootless,
    /// `--cgroup-manager disabled`: containers stay in the runtime's own cgroup.
    pub(crate) disabled: bool,
}

/// What decides about a new container's cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) id: &'a str,
    /// `linux.cgroupsPath`
    pub(crate) path: &'a str,
    /// The same under `--systemd-cgroup`.
    pub(crate) unit: &'a UnitName,
    pub(crate) properties: &'a [systemd::Property],
    pub(crate) resources: &'a Resources,
}

/// Folder of the containers whose path is relative; it goes with the last of them.
pub(super) const PARENT: &str = "berth-containers";

impl Driver {
    /// Chooses the cgroup of a new container. Nothing is made yet.
    pub(crate) fn place(self, wanted: &Wanted<'_>) -> Result<Cgroup, CgroupError> {
        if self.disabled {
            return if any_limit(wanted.resources) { Err(CgroupError::Disabled) } else { Ok(Cgroup::none()) };
        }
        if self.systemd {
            let unit = self.unit(wanted.unit, wanted.id);
            let path = unit.path()?;
            let mut cgroup = Cgroup::locate(&path)?;
            cgroup.wishes = Wishes { properties: wanted.properties.to_vec(), id: wanted.id.to_owned() };
            return Ok(cgroup.of_unit(Some(unit)));
        }
        let path = default_path(wanted.path, wanted.id);
        let cgroup = match Cgroup::locate(&path) {
            Err(error @ CgroupError::NotMounted(_)) => return self.without(wanted, error),
            located => located?,
        };
        if self.rootless == Rootless::No || (self.rootless == Rootless::Auto && cgroup.is_roots()) {
            return Ok(cgroup);
        }
        self.place_rootless(cgroup, wanted)
    }

    /// The unit of a container, by what its config.json says.
    pub(crate) fn unit(self, name: &UnitName, id: &str) -> Unit {
        let users = match self.rootless {
            Rootless::Auto => systemd::is_users(),
            Rootless::Yes => true,
            Rootless::No => false,
        };
        Unit::new(name, id, users)
    }

    /// Runs the container where the runtime is, if it asks for no more.
    fn without(self, wanted: &Wanted<'_>, error: CgroupError) -> Result<Cgroup, CgroupError> {
        let lenient = self.rootless != Rootless::No && !any_limit(wanted.resources);
        if lenient { Ok(Cgroup::none()) } else { Err(error) }
    }

    fn place_rootless(self, mut cgroup: Cgroup, wanted: &Wanted<'_>) -> Result<Cgroup, CgroupError> {
        if let Some(unified) = &cgroup.unified {
            let own = own_path(None);
            if !wanted.path.starts_with('/')
                && let Some(base) = own.as_deref().and_then(|own| base(unified, own))
            {
                // v1 is hardly ever delegated; with another path there than here one place would be wrong.
                cgroup.legacy.clear();
                let below = default_path(&format!("/{}", wanted.path), wanted.id);
                cgroup.path = format!("{base}/{below}").trim_start_matches('/').to_owned();
            }
            let usable = can_make(&unified.dir, &cgroup.path)
                && own.as_deref().is_some_and(|own| can_enter(&unified.dir, own, &cgroup.path));
            if !usable {
                cgroup.unified = None;
            }
        }
        let path = cgroup.path.clone();
        cgroup.legacy.retain(|hierarchy| can_make(&hierarchy.dir, &path));
        if cgroup.unified.is_none() && cgroup.legacy.is_empty() {
            return self.without(wanted, CgroupError::NotPermitted(super::ROOT.to_owned() + "/" + &path));
        }
        Ok(cgroup)
    }
}

/// The path for the cgroupfs driver, relative to the roots.
pub(crate) fn default_path(given: &str, id: &str) -> String {
    let parts = given.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    match (parts.as_str(), given.starts_with('/')) {
        ("", _) => format!("berth-{id}"),
        (_, true) => parts,
        (_, false) => format!("{PARENT}/{parts}"),
    }
}

impl Cgroup {
    /// Whether we may do at the root of the tree as we like: one look, at the hierarchy that is there on every kind of host.
    fn is_roots(&self) -> bool {
        let first = self.unified.as_ref().filter(|_| self.is_unified()).or(self.legacy.first());
        nix::unistd::geteuid().is_root() && first.is_some_and(|hierarchy| may_write(&hierarchy.dir, "."))
    }
}

fn may_write(dir: &OwnedFd, path: &str) -> bool {
    faccessat(dir, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}

/// Whether a directory can be made at `path`, or is there and ours.
fn can_make(dir: &OwnedFd, path: &str) -> bool {
    let mut path = path;
    loop {
        match faccessat(dir, if path.is_empty() { "." } else { path }, AccessFlags::W_OK, AtFlags::AT_EACCESS) {
            Err(Errno::ENOENT) if !path.is_empty() => path = parent(path),
            other => return other.is_ok(),
        }
    }
}

/// Whether a process of ours may go from one cgroup2 directory to another: it takes writing in what both are below of.
fn can_enter(dir: &OwnedFd, from: &str, to: &str) -> bool {
    let mut common = from.trim_matches('/');
    while !(common.is_empty() || to == common || to.strip_prefix(common).is_some_and(|rest| rest.starts_with('/'))) {
        common = parent(common);
    }
    let procs = if common.is_empty() { "cgroup.procs".to_owned() } else { format!("{common}/cgroup.procs") };
    may_write(dir, &procs)
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Where the containers of an unprivileged runtime go: beside its own cgroup, whose parent has no processes that would be in the way
/// of handing controllers down; or else below its own.
fn base(unified: &Hierarchy, own: &str) -> Option<String> {
    let own = own.trim_matches('/');
    let ours = |path: &str| {
        let procs = if path.is_empty() { "cgroup.procs".to_owned() } else { format!("{path}/cgroup.procs") };
        may_write(&unified.dir, if path.is_empty() { "." } else { path }) && may_write(&unified.dir, &procs)
    };
    let candidates = [(!own.is_empty()).then(|| parent(own)), Some(own)];
    candidates.into_iter().flatten().find(|path| ours(path)).map(str::to_owned)
}

/// The runtime's own cgroup in a v1 hierarchy, or on cgroup2.
pub(super) fn own_path(controller: Option<&str>) -> Option<String> {
    path_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?, controller)
}

/// The path in a /proc/PID/cgroup: of a v1 controller, or of cgroup2.
pub(super) fn path_of(text: &str, controller: Option<&str>) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let is_it = match controller {
            None => names.is_empty(),
            Some(name) => names.split(',').any(|one| one == name || one.strip_prefix("name=") == Some(name)),
        };
        is_it.then(|| path.to_owned())
    })
}

/// Whether anything is asked for that takes a controller. Devices do not: a container without privileges cannot make any.
pub(crate) fn any_limit(resources: &Resources) -> bool {
    let (memory, cpu, block) = (&resources.memory, &resources.cpu, &resources.block_io);
    let set = |value: Option<i64>| value.is_some_and(|value| value != 0);
    set(memory.limit)
        || set(memory.reservation)
        || set(memory.swap)
        || memory.swappiness.is_some()
        || memory.disable_oom_killer == Some(true)
        || cpu.shares.is_some_and(|shares| shares != 0)
        || set(cpu.quota)
        || cpu.burst.is_some_and(|burst| burst != 0)
        || cpu.period.is_some_and(|period| period != 0)
        || set(cpu.realtime_runtime)
        || cpu.realtime_period.is_some_and(|period| period != 0)
        || !cpu.cpus.is_empty()
        || !cpu.mems.is_empty()
        || set(cpu.idle)
        || resources.pids.limit.is_some_and(|limit| limit >= 0)
        || block.weight.is_some_and(|weight| weight != 0)
        || !block.weight_device.is_empty()
        || !block.throttle_read_bps_device.is_empty()
        || !block.throttle_write_bps_device.is_empty()
        || !block.throttle_read_iops_device.is_empty()
        || !block.throttle_write_iops_device.is_empty()
        || !resources.hugepage_limits.is_empty()
        || resources.network.class_id.is_some_and(|class| class != 0)
        || !resources.network.priorities.is_empty()
        || !resources.rdma.is_empty()
        || !resources.unified.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_their_default() {
        for (given, path) in [
            ("", "berth-x"),
            ("/", "berth-x"),
            ("/docker/1", "docker/1"),
            ("//a//b/", "a/b"),
            ("a/b", "berth-containers/a/b"),
        ] {
            assert_eq!(default_path(given, "x"), path, "{given}");
        }
    }

    #[test]
    fn own_cgroups_are_read() {
        let text = "3:cpu,cpuacct:/a\n2:name=systemd:/b:c\n0::/d\n";
        for (controller, path) in [(Some("cpuacct"), "/a"), (Some("systemd"), "/b:c"), (None, "/d")] {
            assert_eq!(path_of(text, controller).as_deref(), Some(path));
        }
        assert_eq!(path_of(text, Some("memory")), None);
    }

    #[test]
    fn rootless_is_three_words() {
        for (text, expected) in [
            ("auto", Some(Rootless::Auto)),
            ("", Some(Rootless::Auto)),
            ("true", Some(Rootless::Yes)),
            ("false", Some(Rootless::No)),
            ("maybe", None),
        ] {
            assert_eq!(Rootless::parse(text), expected);
        }
    }

    #[test]
    fn limits_are_told_from_their_absence() {
        for (text, asked) in [
            ("{}", false),
            (r#"{"devices":[{"allow":false}]}"#, false),
            (r#"{"memory":{"limit":0},"cpu":{"shares":0},"pids":{"limit":-1}}"#, false),
            (r#"{"memory":{"limit":1}}"#, true),
            (r#"{"pids":{"limit":0}}"#, true),
            (r#"{"unified":{"memory.high":"1"}}"#, true),
        ] {
            assert_eq!(any_limit(&serde_json::from_str(text).expect("resources")), asked, "{text}");
        }
    }

    #[test]
    fn the_common_ancestor_decides() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("folders");
        std::fs::write(dir.path().join("a/cgroup.procs"), "").expect("file");
        let flags = nix::fcntl::OFlag::O_PATH;
        let fd = nix::fcntl::open(dir.path(), flags, nix::sys::stat::Mode::empty()).expect("open");
        assert!(can_enter(&fd, "/a/b", "a/c/d"));
        assert!(!can_enter(&fd, "/ab", "a/c"), "their only common folder is the root, which has no file");
        assert!(can_make(&fd, "a/x/y/z"));
    }
}
