//! Devices of the host: which there are, and what `linux.devices` and the device cgroup say of them.

use nix::sys::stat::{SFlag, major, minor, stat};
use serde_json::{Value, json};
use std::path::Path;

/// All devices of the host, for a privileged container.
pub fn all_of_host() -> Vec<Value> {
    let mut list = Vec::new();
    host_devices(Path::new("/dev"), &mut list, 0);
    list
}

/// One device, or all within a folder, where the container is to have them. None: there is none.
pub fn nodes(on_host: &str, at: &str) -> Option<Vec<Value>> {
    let path = Path::new(on_host);
    if path.is_dir() {
        let mut list = Vec::new();
        host_devices(path, &mut list, 1);
        for node in &mut list {
            let below = node["path"].as_str().and_then(|text| text.strip_prefix(on_host.trim_end_matches('/')));
            node["path"] = format!("{}{}", at.trim_end_matches('/'), below.unwrap_or_default()).into();
        }
        if !list.is_empty() {
            return Some(list);
        }
    }
    describe(path, at).map(|node| vec![node])
}

/// `linux.resources.devices` of a container without devices of its own: nothing, then the harmless ones.
pub fn default_rules() -> Vec<Value> {
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
    rules
}

/// The rule for a device of [`nodes`].
pub fn rule_for(node: &Value, access: &str) -> Value {
    allow(node["type"].as_str().unwrap_or("c"), node["major"].as_i64(), node["minor"].as_i64(), access)
}

fn allow(kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> Value {
    let mut rule = json!({"allow": true, "type": kind, "access": access});
    for (key, number) in [("major", major), ("minor", minor)] {
        if let Some(number) = number {
            rule[key] = number.into();
        }
    }
    rule
}

/// A device node, as `linux.devices` has it, at another path. None: it is none.
pub fn describe(path: &Path, at: &str) -> Option<Value> {
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
