//! Which sysctls a container may set: only those that belong to a namespace of its own (GHSA-w2j5-3rcx-vx7x).

use std::collections::BTreeMap;

use super::PlanError;
use super::libc_flag::{NEWIPC, NEWNET, NEWUSER, NEWUTS};
use super::namespaces::NamespacePlan;

const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn check(sysctl: &BTreeMap<String, String>, namespaces: &NamespacePlan) -> Result<(), PlanError> {
    for (key, value) in sysctl {
        // Both spellings of a key are in use; inside a name, the other character stands for a dot of the name.
        let dotted = key.replace('/', ".");
        let field = || format!("linux.sysctl {key}");
        let bad = |why| Err(PlanError::invalid("linux.sysctl", key.as_str(), why));
        if key.contains(['\0', '\n']) || value.contains(['\0', '\n']) {
            return bad("contains a control character");
        }
        if dotted.split('.').any(str::is_empty) {
            return bad("is no name of a sysctl");
        }
        let (namespace, flag) = if dotted.starts_with("net.") {
            ("network", NEWNET)
        } else if dotted.starts_with("fs.mqueue.") || IPC.contains(&dotted.as_str()) {
            ("ipc", NEWIPC)
        } else if dotted.starts_with("user.") {
            ("user", NEWUSER)
        } else if matches!(dotted.as_str(), "kernel.domainname" | "kernel.hostname") {
            if dotted == "kernel.hostname" {
                return bad("is set by hostname");
            }
            ("uts", NEWUTS)
        } else {
            return bad("is not namespaced");
        };
        if !namespaces.is_private(flag) {
            return Err(PlanError::NeedsNamespace { field: field(), namespace });
        }
    }
    Ok(())
}

/// The path of a sysctl below /proc/sys. `net.ipv4.conf.eth0/1.x` and `net/ipv4/conf/eth0.1/x` mean the same.
pub(crate) fn path_of(key: &str) -> String {
    match (key.find('.'), key.find('/')) {
        (Some(dot), slash) if slash.is_none_or(|slash| dot < slash) => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(key: &str, new: u64) -> bool {
        let sysctl = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
        check(&sysctl, &NamespacePlan { new, ..NamespacePlan::default() }).is_ok()
    }

    #[test]
    fn only_with_the_namespace() {
        assert!(verdict("net.ipv4.ip_forward", NEWNET));
        assert!(verdict("net/ipv4/ip_forward", NEWNET));
        assert!(!verdict("net.ipv4.ip_forward", NEWIPC));
        assert!(verdict("kernel.shmmax", NEWIPC));
        assert!(verdict("fs.mqueue.msg_max", NEWIPC));
        assert!(!verdict("kernel.core_pattern", NEWIPC | NEWNET | NEWUTS | NEWUSER));
        assert!(!verdict("net.../../kernel.core_pattern", NEWNET));
    }

    #[test]
    fn both_spellings_of_a_path() {
        assert_eq!(path_of("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }
}
