//! One entry of `mounts` -> what is mounted, with which attributes.

use std::path::{Path, PathBuf};

use sys::mount::{Propagation, Reach, attr};

use super::PlanError;
use crate::spec::Mount;

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Something that is there already.
    Bind { path: PathBuf, reach: Reach },
    /// The container's own part of the cgroup tree.
    Cgroup,
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
}

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
    pub(super) fn new(index: usize, mount: &Mount) -> Result<Self, PlanError> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        for (name, text) in [("destination", &mount.destination), ("source", &mount.source), ("type", &mount.kind)] {
            if text.contains('\0') {
                return Err(PlanError::invalid(field(name), text.as_str(), "contains a NUL"));
            }
        }
        if mount.destination.is_empty() {
            return Err(PlanError::invalid(field("destination"), "", "is empty"));
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(PlanError::Unsupported { field: "mounts[].uidMappings (idmapped mounts)" });
        }
        // Relative destinations are legal since 1.2 and mean the same.
        let destination = normalise(&mount.destination);
        let mut step = Self {
            destination,
            source: Source::Cgroup,
            attributes: Attributes::default(),
            tree_attributes: Attributes::default(),
            propagation: Vec::new(),
            copy_up: false,
        };
        let mut bind = (mount.kind == "bind").then_some(Reach::One);
        let mut data = Vec::new();
        for option in &mount.options {
            match option.as_str() {
                "bind" => bind = bind.or(Some(Reach::One)),
                "rbind" => bind = Some(Reach::Tree),
                "tmpcopyup" => step.copy_up = true,
                "idmap" | "ridmap" => {
                    return Err(PlanError::Unsupported { field: "mounts[].options: idmap (idmapped mounts)" });
                }
                word => {
                    if !step.word(word) {
                        if word.contains('\0') {
                            return Err(PlanError::invalid(field("options"), word, "contains a NUL"));
                        }
                        data.push(match word.split_once('=') {
                            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                            None => (word.to_owned(), None),
                        });
                    }
                }
            }
        }
        step.source = match bind {
            Some(reach) => {
                if mount.source.is_empty() {
                    return Err(PlanError::invalid(field("source"), "", "is empty"));
                }
                Source::Bind { path: mount.source.clone().into(), reach }
            }
            None if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") => Source::Cgroup,
            None if mount.kind.is_empty() => return Err(PlanError::invalid(field("type"), "", "is empty")),
            None => Source::Filesystem { kind: mount.kind.clone(), source: mount.source.clone(), options: data },
        };
        if step.copy_up && mount.kind != "tmpfs" {
            return Err(PlanError::invalid(field("options"), "tmpcopyup", "is for tmpfs only"));
        }
        step.check_proc(index)?;
        Ok(step)
    }

    /// A mount over or inside /proc could fake the files that labels and sysctls are written to (CVE-2019-16884).
    fn check_proc(&self, index: usize) -> Result<(), PlanError> {
        let Ok(below) = self.destination.strip_prefix("/proc") else { return Ok(()) };
        let refused = |why| {
            Err(PlanError::invalid(format!("mounts[{index}].destination"), self.destination.to_string_lossy(), why))
        };
        if below.as_os_str().is_empty() {
            return match &self.source {
                Source::Filesystem { kind, .. } if kind == "proc" => Ok(()),
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

    /// Takes one of the words of mount(8); false if it is an option of the filesystem itself.
    fn word(&mut self, word: &str) -> bool {
        let propagation = |kind, reach| Some((kind, reach));
        let found = match word {
            "private" => propagation(Propagation::Private, Reach::One),
            "rprivate" => propagation(Propagation::Private, Reach::Tree),
            "shared" => propagation(Propagation::Shared, Reach::One),
            "rshared" => propagation(Propagation::Shared, Reach::Tree),
            "slave" => propagation(Propagation::Slave, Reach::One),
            "rslave" => propagation(Propagation::Slave, Reach::Tree),
            "unbindable" => propagation(Propagation::Unbindable, Reach::One),
            "runbindable" => propagation(Propagation::Unbindable, Reach::Tree),
            _ => None,
        };
        if let Some(found) = found {
            self.propagation.push(found);
            return true;
        }
        // Without meaning for one mount, or the default.
        if matches!(
            word,
            "defaults"
                | "remount"
                | "silent"
                | "loud"
                | "relatime"
                | "atime"
                | "norelatime"
                | "nostrictatime"
                | "async"
                | "nomand"
                | "noiversion"
                | "nolazytime"
                | "copy-symlink"
                | "private-users"
        ) {
            if word == "relatime" {
                self.attributes.add(0, attr::ATIME);
            }
            return true;
        }
        let (recursive, plain) = match word.strip_prefix('r') {
            // "ro" and "rw" begin with an r of their own.
            Some(rest) if attribute(rest).is_some() && attribute(word).is_none() => (true, rest),
            _ => (false, word),
        };
        let Some((set, clear)) = attribute(plain) else { return false };
        if recursive {
            self.tree_attributes.add(set, clear)
        } else {
            self.attributes.add(set, clear)
        }
        true
    }
}

/// What a word sets and clears.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "noatime" => (attr::NOATIME, 0),
        "relatime" => (0, attr::ATIME),
        "strictatime" => (attr::STRICTATIME, 0),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        _ => return None,
    })
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
mod tests {
    use super::*;

    fn step(kind: &str, destination: &str, options: &[&str]) -> Result<MountStep, PlanError> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mount = Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: "src".into(),
            options,
            ..Mount::default()
        };
        MountStep::new(0, &mount)
    }

    #[test]
    fn words_become_attributes() {
        let made = step("tmpfs", "/x", &["nosuid", "noexec", "ro", "mode=755", "size=64k", "huge"]).expect("step");
        assert_eq!(made.attributes.set, attr::NOSUID | attr::NOEXEC | attr::RDONLY);
        let options =
            vec![("mode".into(), Some("755".into())), ("size".into(), Some("64k".into())), ("huge".into(), None)];
        assert_eq!(made.source, Source::Filesystem { kind: "tmpfs".into(), source: "src".into(), options });
    }

    #[test]
    fn binds_are_found_by_type_or_option() {
        for (kind, options, reach) in [
            ("bind", &[][..], Reach::One),
            ("none", &["bind"], Reach::One),
            ("", &["rbind", "rprivate"], Reach::Tree),
            ("bind", &["rbind"], Reach::Tree),
        ] {
            let made = step(kind, "/x", options).expect("step");
            assert_eq!(made.source, Source::Bind { path: "src".into(), reach }, "{kind} {options:?}");
        }
    }

    #[test]
    fn recursive_words_are_kept_apart() {
        let made = step("bind", "/x", &["rbind", "rro", "rnosuid", "rw", "rslave"]).expect("step");
        assert_eq!(made.tree_attributes.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(made.attributes, Attributes { set: 0, clear: attr::RDONLY });
        assert_eq!(made.propagation, [(Propagation::Slave, Reach::Tree)]);
    }

    #[test]
    fn the_last_word_wins_and_atime_is_one_field() {
        let made = step("bind", "/x", &["ro", "rw", "noatime"]).expect("step");
        assert_eq!(made.attributes, Attributes { set: attr::NOATIME, clear: attr::RDONLY | attr::ATIME });
    }

    #[test]
    fn destinations_are_normalised() {
        for (given, meant) in [("a/b", "/a/b"), ("/a//./b/", "/a/b"), ("/../../etc", "/etc"), ("/", "/")] {
            assert_eq!(step("tmpfs", given, &[]).expect("step").destination, Path::new(meant));
        }
    }

    #[test]
    fn proc_is_guarded() {
        assert!(step("proc", "/proc", &[]).is_ok());
        assert!(step("tmpfs", "/proc", &[]).is_err());
        assert!(step("tmpfs", "/proc/sys", &[]).is_err());
        assert!(step("bind", "/tmp/../proc/self/attr", &[]).is_err());
        assert!(step("bind", "/proc/uptime", &[]).is_ok());
    }
}
