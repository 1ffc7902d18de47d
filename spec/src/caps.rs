//! Capabilities: the default set, and what additions and drops make of it. Pure.

use std::collections::BTreeSet;

/// Capabilities by their full names.
pub type Set = BTreeSet<&'static str>;

/// A name that no capability has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid capability: {0:?}")]
pub struct UnknownCapability(pub String);

const ALL: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The set a container gets.
pub fn effective(add: &[String], drop: &[String], privileged: bool) -> Result<Set, UnknownCapability> {
    let (add, add_all) = named(add)?;
    let (drop, drop_all) = named(drop)?;
    if privileged {
        return Ok(all_of_host());
    }
    let mut set: Set = match (add_all, drop_all) {
        (true, _) => all_of_host(),
        (false, true) => Set::new(),
        (false, false) => DEFAULT.into(),
    };
    if !drop_all {
        set.retain(|cap| !drop.contains(cap));
    }
    // An explicit addition wins over "drop all", as does a named drop over "add all".
    set.extend(add.into_iter().filter(|cap| drop_all || !drop.contains(cap)));
    Ok(set)
}

/// All of them. One that we lack ourselves cannot be handed on: the kernel would refuse the whole container.
pub fn all_of_host() -> Set {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let Some(bounding) = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else { return ALL.into() };
    ALL.into_iter().filter(|cap| bounding & (1 << number(cap)) != 0).collect()
}

/// The kernel's number of a capability (linux/capability.h).
fn number(cap: &str) -> u32 {
    const IN_ORDER: [&str; 41] = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_LINUX_IMMUTABLE",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_BROADCAST",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_IPC_LOCK",
        "CAP_IPC_OWNER",
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_SYS_CHROOT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_PACCT",
        "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT",
        "CAP_SYS_NICE",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TIME",
        "CAP_SYS_TTY_CONFIG",
        "CAP_MKNOD",
        "CAP_LEASE",
        "CAP_AUDIT_WRITE",
        "CAP_AUDIT_CONTROL",
        "CAP_SETFCAP",
        "CAP_MAC_OVERRIDE",
        "CAP_MAC_ADMIN",
        "CAP_SYSLOG",
        "CAP_WAKE_ALARM",
        "CAP_BLOCK_SUSPEND",
        "CAP_AUDIT_READ",
        "CAP_PERFMON",
        "CAP_BPF",
        "CAP_CHECKPOINT_RESTORE",
    ];
    IN_ORDER.iter().position(|name| *name == cap).map_or(63, |n| n as u32)
}

/// Those that are named, with `CAP_` or without, and whether `ALL` is among them.
pub fn named(list: &[String]) -> Result<(Set, bool), UnknownCapability> {
    let (mut set, mut all) = (Set::new(), false);
    for given in list {
        let upper = given.to_ascii_uppercase();
        if upper == "ALL" || upper == "CAP_ALL" {
            all = true;
            continue;
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        match ALL.iter().find(|cap| **cap == full) {
            Some(cap) => drop(set.insert(*cap)),
            None => return Err(UnknownCapability(given.clone())),
        }
    }
    Ok((set, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_and_drops() {
        let list = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let size = |add: &[&str], drop: &[&str]| effective(&list(add), &list(drop), false).unwrap().len();
        assert_eq!(size(&[], &[]), 14);
        assert_eq!(size(&["net_admin"], &[]), 15);
        assert_eq!(size(&["CAP_NET_ADMIN"], &["ALL"]), 1);
        assert_eq!(size(&[], &["mknod", "CAP_CHOWN"]), 12);
        assert!(!effective(&list(&["ALL"]), &list(&["MKNOD"]), false).unwrap().contains("CAP_MKNOD"));
        assert!(effective(&list(&["nothing"]), &[], false).is_err());
        assert_eq!(ALL.iter().map(|cap| number(cap)).collect::<BTreeSet<_>>().len(), 41);
    }
}
