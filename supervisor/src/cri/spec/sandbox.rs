//! What of a sandbox's configuration can't be had.

use std::collections::BTreeMap;

use proto::runtime::v1::{self as cri, NamespaceMode};

use super::{Host, SpecError, namespaces, resources, security};

/// Longest host name (uname(2)).
const LONGEST_NAME: usize = 64;
/// Settings of IPC namespaces.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn linux(pod: &cri::PodSandboxConfig) -> cri::LinuxPodSandboxConfig {
    pod.linux.clone().unwrap_or_default()
}

pub(super) fn context(pod: &cri::PodSandboxConfig) -> cri::LinuxSandboxSecurityContext {
    linux(pod).security_context.unwrap_or_default()
}

/// Refuses what can't be had, before anything is made.
pub(in crate::cri) fn check_sandbox(
    pod: &cri::PodSandboxConfig,
    driver: cri::CgroupDriver,
    host: &Host,
) -> Result<(), SpecError> {
    if pod.windows.is_some() {
        return Err(SpecError::unsupported("windows", "this node runs Linux"));
    }
    let (linux, context) = (linux(pod), context(pod));
    let options = context.namespace_options.clone().unwrap_or_default();
    for (kind, number) in [("network", options.network), ("ipc", options.ipc)] {
        let mode = namespaces::mode(kind, number)?;
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            let field = format!("namespace_options.{kind}");
            return Err(SpecError::invalid(field, mode.as_str_name(), "only POD and NODE are possible"));
        }
    }
    let pid = namespaces::mode("pid", options.pid)?;
    if pid == NamespaceMode::Target {
        return Err(SpecError::invalid("namespace_options.pid", "TARGET", "is for containers, not for sandboxes"));
    }
    if let Some(userns) = &options.userns_options {
        namespaces::check_user_namespace(userns)?;
        let nodes = [("network", options.network), ("ipc", options.ipc), ("pid", options.pid)];
        let nodes = nodes.into_iter().find(|(_, mode)| *mode == NamespaceMode::Node as i32);
        if userns.mode == NamespaceMode::Pod as i32
            && let Some((kind, _)) = nodes
        {
            // Root of the user namespace would have no say in it: sysfs and mqueue couldn't even be mounted.
            let what = format!("a user namespace of the pod with the node's {kind} namespace");
            return Err(SpecError::unsupported(what, "it gives no power over namespaces of the node"));
        }
    }
    sysctls(pod)?;
    check_names(pod)?;
    security::refuse_classes(&pod.annotations)?;
    security::check_selinux_options(context.selinux_options.as_ref(), host)?;
    resources::cgroups_path(&linux.cgroup_parent, driver, "id")?;
    for wanted in [&linux.overhead, &linux.resources].into_iter().flatten() {
        resources::resources(wanted, host)?;
    }
    Ok(())
}

/// Kernel settings for the pod's namespaces, to be written once these are made: paths below /proc/sys, and values. None of them
/// reaches the node.
pub(in crate::cri) fn sysctls(pod: &cri::PodSandboxConfig) -> Result<BTreeMap<String, String>, SpecError> {
    let options = context(pod).namespace_options.unwrap_or_default();
    let mut settings = BTreeMap::new();
    for (key, value) in linux(pod).sysctls {
        // Both spellings are in use: net/ipv4/conf/eth0.1/x is net.ipv4.conf.eth0/1.x.
        let dotted = match (key.find('.'), key.find('/')) {
            (dot, Some(slash)) if dot.is_none_or(|dot| slash < dot) => swapped(&key),
            _ => key.clone(),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/*:".contains(c);
        // A `/` is a dot within a name; "..", a way out, would need two of them.
        if dotted.split('.').any(|part| part.is_empty() || part.contains("//")) || !dotted.chars().all(plain) {
            return Err(SpecError::invalid("sysctl", &key, "is no name of a kernel setting"));
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(SpecError::invalid(format!("sysctl {key}"), &value, "has control characters"));
        }
        let (namespace, mode) = if dotted.starts_with("net.") {
            ("network", options.network)
        } else if dotted.starts_with("fs.mqueue.") || IPC.contains(&dotted.as_str()) {
            ("ipc", options.ipc)
        } else {
            return Err(SpecError::invalid("sysctl", &key, "belongs to the node, not to a pod"));
        };
        if mode == NamespaceMode::Node as i32 {
            let why = match namespace {
                "network" => "the pod's network namespace is the node's",
                _ => "the pod's ipc namespace is the node's",
            };
            return Err(SpecError::invalid("sysctl", &key, why));
        }
        if settings.insert(swapped(&dotted), value).is_some() {
            return Err(SpecError::invalid("sysctl", &key, "is there twice, in two spellings"));
        }
    }
    Ok(settings)
}

fn swapped(key: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    key.chars().map(swap).collect()
}

/// Names that become lines of files (CVE-2022-4318 is what a newline can do there).
fn check_names(pod: &cri::PodSandboxConfig) -> Result<(), SpecError> {
    let strange = |text: &str| text.is_empty() || text.chars().any(|c| c.is_control() || c.is_whitespace());
    if !pod.hostname.is_empty() && (strange(&pod.hostname) || pod.hostname.len() > LONGEST_NAME) {
        return Err(SpecError::invalid("hostname", &pod.hostname, "has blanks, or is longer than 64 bytes"));
    }
    let dns = pod.dns_config.clone().unwrap_or_default();
    for (field, words) in [("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)] {
        if let Some(word) = words.iter().find(|word| strange(word)) {
            let field = format!("dns_config.{field}");
            return Err(SpecError::invalid(
                field,
                word,
                "is empty or has blanks, which would be other lines of resolv.conf",
            ));
        }
    }
    Ok(())
}
