//! Devices: which the container has, and which its cgroup allows.

use crate::{
    api::{HostConfig, host_config::Device},
    http::{ApiError, ApiResult},
};
use nix::sys::stat::{SFlag, major, minor, stat};
use serde_json::{Value, json};
use std::path::Path;

/// `linux.devices`: those of the user, or all of the host's for a privileged container.
pub(super) fn devices(host: &HostConfig) -> ApiResult<Vec<Value>> {
    let mut list = Vec::new();
    if host.privileged {
        host_devices(Path::new("/dev"), &mut list, 0);
    }
    for device in &host.devices {
        for node in nodes(device)? {
            list.retain(|other| other["path"] != node["path"]);
            list.push(node);
        }
    }
    Ok(list)
}

/// `linux.resources.devices`: nothing, then the harmless ones, then the user's.
pub(super) fn cgroup_rules(host: &HostConfig) -> ApiResult<Vec<Value>> {
    if host.privileged {
        return Ok(vec![json!({"allow": true, "access": "rwm"})]);
    }
    let allow = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = json!({"allow": true, "type": kind, "access": access});
        for (key, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[key] = number.into();
            }
        }
        rule
    };
    let mut rules = vec![
        json!({"allow": false, "access": "rwm"}),
        // Any node may be made, to be useless without one of the rules below.
        allow("c", None, None, "m"),
        allow("b", None, None, "m"),
    ];
    // null, zero, full, random, urandom; tty, console, ptmx; pseudo terminals.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(allow("c", Some(major), Some(minor), "rwm"));
    }
    rules.push(allow("c", Some(136), None, "rwm"));
    for device in &host.devices {
        let access = if device.cgroup_permissions.is_empty() { "rwm" } else { &device.cgroup_permissions };
        for node in nodes(device)? {
            let kind = node["type"].as_str().unwrap_or("c");
            rules.push(allow(kind, node["major"].as_i64(), node["minor"].as_i64(), access));
        }
    }
    for rule in host.device_cgroup_rules.iter().flatten() {
        rules.push(parse_device_rule(rule)?);
    }
    Ok(rules)
}

/// Reads `c 42:* rmw`.
pub fn parse_device_rule(text: &str) -> ApiResult<Value> {
    let bad = || ApiError::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let words: Vec<&str> = text.split(' ').collect();
    let [kind @ ("a" | "b" | "c"), numbers, access] = words[..] else { return Err(bad()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    if access.is_empty() || access.len() > 3 || !access.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(bad());
    }
    let mut rule = json!({"allow": true, "type": kind, "access": access});
    for (key, number) in [("major", major), ("minor", minor)] {
        if number != "*" {
            rule[key] = number.parse::<u32>().map_err(|_| bad())?.into();
        }
    }
    Ok(rule)
}

/// One device, or all within a folder.
fn nodes(device: &Device) -> ApiResult<Vec<Value>> {
    let at = if device.path_in_container.is_empty() { &device.path_on_host } else { &device.path_in_container };
    let path = Path::new(&device.path_on_host);
    if path.is_dir() {
        let mut list = Vec::new();
        host_devices(path, &mut list, 1);
        for node in &mut list {
            let below =
                node["path"].as_str().and_then(|text| text.strip_prefix(device.path_on_host.trim_end_matches('/')));
            node["path"] = format!("{}{}", at.trim_end_matches('/'), below.unwrap_or_default()).into();
        }
        if !list.is_empty() {
            return Ok(list);
        }
    }
    describe(path, at).map(|node| vec![node]).ok_or_else(|| {
        ApiError::invalid(format!(
            "error gathering device information while adding custom device \"{}\": not a device node",
            device.path_on_host
        ))
    })
}

fn describe(path: &Path, at: &str) -> Option<Value> {
    let stat = stat(path).ok()?;
    let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFCHR => "c",
        SFlag::S_IFBLK => "b",
        _ => return None,
    };
    Some(json!({
        "path": at, "type": kind, "major": major(stat.st_rdev), "minor": minor(stat.st_rdev),
        "fileMode": stat.st_mode & 0o777, "uid": stat.st_uid, "gid": stat.st_gid,
    }))
}

fn host_devices(folder: &Path, list: &mut Vec<Value>, depth: u32) {
    // Own mounts of every container, and links into /proc.
    const SKIPPED: [&str; 9] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "stdin", "stdout", "stderr"];
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Ok(kind) = entry.file_type() else { continue };
        if (depth == 0 && SKIPPED.iter().any(|skipped| name == *skipped)) || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            if depth < 3 {
                host_devices(&path, list, depth + 1);
            }
        } else if let Some(node) = path.to_str().and_then(|text| describe(&path, text)) {
            list.push(node);
        }
    }
}
