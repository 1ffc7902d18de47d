//! One entry of `mounts` -> what is mounted, with which attributes.

use std::path::{Path, PathBuf};

use sys::mount::{Propagation, Reach, attr};

use super::PlanError;
use super::id_maps::{self, IdMap};
use super::libc_flag::NEWUSER;
use super::mount_words::{self, Word};
use super::namespaces::NamespacePlan;
use crate::spec::Mount;

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Something that is there already.
    Bind { path: PathBuf, reach: Reach },
    /// The container's own part of the cgroup tree.
    Cgroup,
    /// Nothing: what is mounted there already is changed (`remount`). Options are for the file system as a whole.
    Remount { options: Vec<(String, Option<String>)> },
    /// A filesystem of its own.
    Filesystem { kind: String, source: String, options: Vec<(String, Option<String>)> },
}

impl Source {
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self, Self::Bind { .. })
    }
}

/// Attributes to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
        // The access time policy is one field: the kernel wants all of it cleared when any of it is set.
        if (set | clear) & attr::ATIME != 0 {
            self.clear |= attr::ATIME;
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// One mount to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountStep {
    /// Its place in `mounts`, for errors.
    pub(crate) index: usize,
    /// Always absolute; inside the rootfs.
    pub(crate) destination: PathBuf,
    pub(crate) source: Source,
    /// For the mount itself.
    pub(crate) attributes: Attributes,
    /// For it and all mounts below (`rro` and so on).
    pub(crate) tree_attributes: Attributes,
    /// In order; empty means what the rootfs has.
    pub(crate) propagation: Vec<(Propagation, Reach)>,
    /// Fill a tmpfs with what it covers.
    pub(crate) copy_up: bool,
    pub(crate) id_map: Option<IdMap>,
    pub(crate) links: Links,
}

/// What happens with symbolic links at the ends of source and destination; they are followed unless something is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// A source that is a link is made again at the destination.
    pub(crate) copy: bool,
    /// A source that is a link is bound itself.
    pub(crate) source_itself: bool,
    /// A destination that is a link is covered itself.
    pub(crate) destination_itself: bool,
}

/// What the rest of config.json has to say about mounts.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) namespaces: &'a NamespacePlan,
    /// `linux.mountLabel`
    pub(super) label: &'a str,
}

/// File systems without a device, which "ro" leaves writable as a whole: one of them may be shared with other mounts.
const WITHOUT_DEVICE: &[&str] =
    &["tmpfs", "ramfs", "proc", "sysfs", "mqueue", "devpts", "bpf", "debugfs", "tracefs", "securityfs", "overlay"];

/// Files below /proc that may be covered; anything else there could mislead the runtime or the container's tools.
const BELOW_PROC: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

impl MountStep {
    pub(super) fn new(
        index: usize,
        mount: &Mount,
        around: &Surroundings<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, PlanError> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        for (name, text) in [("destination", &mount.destination), ("source", &mount.source), ("type", &mount.kind)] {
            if text.contains('\0') {
                return Err(PlanError::invalid(field(name), text.as_str(), "contains a NUL"));
            }
        }
        if mount.destination.is_empty() {
            return Err(PlanError::invalid(field("destination"), "", "is empty"));
        }
        let mut step = Self {
            index,
            // Relative destinations are legal since 1.2 and mean the same.
            destination: normalise(&mount.destination),
            source: Source::Cgroup,
            attributes: Attributes::default(),
            tree_attributes: Attributes::default(),
            propagation: Vec::new(),
            copy_up: false,
            id_map: None,
            links: Links::default(),
        };
        let mut bind = (mount.kind == "bind").then_some(Reach::One);
        let (mut remount, mut id_map) = (false, None);
        let mut options: Vec<(String, Option<String>)> = Vec::new();
        // Those of them that ask for nothing that would be missed.
        let mut idle = Vec::new();
        for option in &mount.options {
            if option.contains('\0') {
                return Err(PlanError::invalid(field("options"), option.as_str(), "contains a NUL"));
            }
            match mount_words::read(option) {
                Some(Word::Bind(Reach::Tree)) => bind = Some(Reach::Tree),
                Some(Word::Bind(Reach::One)) => bind = bind.or(Some(Reach::One)),
                Some(Word::Propagation(kind, reach)) => step.propagation.push((kind, reach)),
                Some(Word::Attributes(Reach::One, set, clear)) => step.attributes.add(set, clear),
                Some(Word::Attributes(Reach::Tree, set, clear)) => step.tree_attributes.add(set, clear),
                Some(Word::Superblock(name, wanted)) => {
                    options.push((name.to_owned(), None));
                    if !wanted {
                        idle.push(name);
                    }
                }
                Some(Word::Iversion) if mount.kind.starts_with("ext") => options.push(("i_version".to_owned(), None)),
                Some(Word::Iversion) => {
                    warnings.push(format!("{}: {:?} has no iversion; left out", field("options"), mount.kind));
                }
                Some(Word::Remount) => remount = true,
                Some(Word::CopyUp) => step.copy_up = true,
                Some(Word::IdMap(reach, ids)) => id_map = Some((reach, ids)),
                Some(Word::CopySymlink) => step.links.copy = true,
                Some(Word::SourceNoFollow) => step.links.source_itself = true,
                Some(Word::DestinationNoFollow) => step.links.destination_itself = true,
                Some(Word::Nothing) => {}
                None => options.push(match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.to_owned(), None),
                }),
            }
        }
        step.id_map = id_maps::plan(index, mount, id_map, around.namespaces)?;
        if bind.is_some() {
            // mount(2) ignores them for a bind, and so do the other runtimes.
            for (key, _) in options.drain(..).filter(|(key, _)| !idle.contains(&key.as_str())) {
                warnings.push(format!(
                    "{}: {key:?} belongs to a file system as a whole, and has no effect on a bind mount",
                    field("options")
                ));
            }
        }
        step.source = match bind {
            _ if remount => Source::Remount { options },
            Some(reach) => {
                if mount.source.is_empty() {
                    return Err(PlanError::invalid(field("source"), "", "is empty"));
                }
                Source::Bind { path: mount.source.clone().into(), reach }
            }
            None if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") => Source::Cgroup,
            None if mount.kind.is_empty() => return Err(PlanError::invalid(field("type"), "", "is empty")),
            None => {
                let kind = mount.kind.clone();
                if step.attributes.set & attr::RDONLY != 0 && !WITHOUT_DEVICE.contains(&kind.as_str()) {
                    options.push(("ro".to_owned(), None));
                }
                if !around.label.is_empty() && !matches!(kind.as_str(), "proc" | "sysfs") {
                    options.push(("context".to_owned(), Some(around.label.to_owned())));
                }
                check_owners(index, &options, around.namespaces)?;
                Source::Filesystem { kind, source: mount.source.clone(), options }
            }
        };
        if step.copy_up && mount.kind != "tmpfs" {
            return Err(PlanError::invalid(field("options"), "tmpcopyup", "is for tmpfs only"));
        }
        if step.id_map.is_some() && matches!(step.source, Source::Cgroup | Source::Remount { .. }) {
            return Err(PlanError::invalid(field("options"), "idmap", "is for binds and file systems of their own"));
        }
        if step.links.copy && step.id_map.is_some() {
            return Err(PlanError::invalid(field("options"), "copy-symlink", "does not go with idmap"));
        }
        if (step.links.copy || step.links.source_itself) && !step.source.is_bind() {
            return Err(PlanError::invalid(field("options"), "copy-symlink or src-nofollow", "is for binds only"));
        }
        // What is mounted below a read-only /sys, cgroups above all, would stay writable for whoever owns it (CVE-2023-25809).
        if matches!(step.source, Source::Bind { reach: Reach::Tree, .. })
            && step.destination == Path::new("/sys")
            && step.attributes.set & attr::RDONLY != 0
        {
            step.tree_attributes.add(attr::RDONLY, 0);
        }
        step.check_proc()?;
        Ok(step)
    }

    /// A mount over or inside /proc could fake the files that labels and sysctls are written to (CVE-2019-16884).
    fn check_proc(&self) -> Result<(), PlanError> {
        let index = self.index;
        let Ok(below) = self.destination.strip_prefix("/proc") else { return Ok(()) };
        let refused = |why| {
            Err(PlanError::invalid(format!("mounts[{index}].destination"), self.destination.to_string_lossy(), why))
        };
        if below.as_os_str().is_empty() {
            return match &self.source {
                Source::Filesystem { kind, .. } if kind == "proc" => Ok(()),
                // Changes what is there.
                Source::Remount { .. } => Ok(()),
                // Whether the source really is procfs is checked when it is opened.
                Source::Bind { .. } => Ok(()),
                _ => refused("can only be procfs"),
            };
        }
        if BELOW_PROC.iter().any(|allowed| below == Path::new(allowed)) {
            return Ok(());
        }
        refused("is inside /proc")
    }
}

/// `uid=` and `gid=` of a file system are ids of the container: one that it has not could not be told to the kernel.
fn check_owners(
    index: usize,
    options: &[(String, Option<String>)],
    namespaces: &NamespacePlan,
) -> Result<(), PlanError> {
    if namespaces.new & NEWUSER == 0 {
        return Ok(());
    }
    for (key, value) in options {
        let (map, why) = match key.as_str() {
            "uid" => (&namespaces.uid_mappings, "is not in linux.uidMappings"),
            "gid" => (&namespaces.gid_mappings, "is not in linux.gidMappings"),
            _ => continue,
        };
        let id = value.as_deref().and_then(|value| value.parse().ok());
        if let Some(id) = id
            && id_maps::outside(map, id).is_none()
        {
            return Err(PlanError::invalid(format!("mounts[{index}].options"), format!("{key}={id}"), why));
        }
    }
    Ok(())
}

/// Absolute, without `.`, `..` and doubled slashes. What `..` meant is decided here, as text: links cannot change it.
fn normalise(path: &str) -> PathBuf {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    PathBuf::from(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests;
