//! Devices by the Container Device Interface: files of the administrator's or of drivers' tools say under which name a device
//! goes and what a container needs to use it: device nodes, mounts, variables, hooks.

mod yaml;

use nix::sys::stat::{SFlag, major, minor, stat};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tracing::warn;

/// Larger files describe no devices.
const FILE_LIMIT: u64 = 8 << 20;

/// Where descriptions are looked for: where the configuration says, else at the usual places.
pub fn folders(configured: &[String]) -> Vec<PathBuf> {
    match configured {
        [] => vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        some => some.iter().map(PathBuf::from).collect(),
    }
}

/// Why devices can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// No description has them.
    #[error("CDI device injection failed: unresolvable CDI devices {}", .0.join(", "))]
    Unknown(Vec<String>),
    /// Its node on the host isn't there.
    #[error("CDI device injection failed: device node {at}: {why}")]
    Node {
        /// Its path.
        at: String,
        /// Why not.
        why: String,
    },
    /// What is there is something else.
    #[error("CDI device injection failed: {0} is not a device node")]
    NoDevice(String),
    /// Runtimes know no such hook.
    #[error("CDI device injection failed: there is no hook {0:?}")]
    Hook(String),
}

/// What is done to a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
    #[serde(rename = "intelRdt")]
    intel_rdt: Option<Value>,
    net_devices: Vec<NetDevice>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(rename = "type")]
    kind: String,
    options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetDevice {
    host_interface_name: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    cdi_version: String,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// All devices that are described, by their full names.
#[derive(Debug, Default)]
pub struct Registry {
    /// Edits of the device, and the file whose edits come with it.
    devices: BTreeMap<String, (Edits, usize)>,
    files: Vec<Edits>,
}

impl Registry {
    /// Reads the folders; a device of a later one replaces that of an earlier one. What cannot be read is reported and left out.
    pub fn read(folders: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for folder in folders {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_description(path)).collect();
            paths.sort();
            let mut here = BTreeMap::new();
            for path in paths {
                match read_file(&path) {
                    Ok(file) => {
                        registry.files.push(file.container_edits);
                        let at = registry.files.len() - 1;
                        for device in file.devices {
                            let name = format!("{}={}", file.kind, device.name);
                            if here.insert(name.clone(), (device.container_edits, at)).is_some() {
                                warn!(device = name, folder = %folder.display(), "described twice: the later file counts");
                            }
                        }
                    }
                    Err(why) => warn!(file = %path.display(), why, "CDI description left out"),
                }
            }
            registry.devices.extend(here);
        }
        registry
    }

    /// Whether a device of this kind is described.
    pub fn has_kind(&self, kind: &str) -> bool {
        self.devices.keys().any(|name| name.split_once('=').is_some_and(|(of, _)| of == kind))
    }

    /// What the devices of these names make of a container.
    pub fn edits(&self, names: &[String]) -> Result<Edits, CdiError> {
        let missing: Vec<String> = names.iter().filter(|name| !self.devices.contains_key(*name)).cloned().collect();
        if !missing.is_empty() {
            return Err(CdiError::Unknown(missing));
        }
        let mut all = Edits::default();
        let mut files = Vec::new();
        for (edits, file) in names.iter().filter_map(|name| self.devices.get(name)) {
            if !files.contains(file) {
                files.push(*file);
                all.add(&self.files[*file]);
            }
            all.add(edits);
        }
        Ok(all)
    }
}

fn is_description(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml") && path.is_file()
}

fn read_file(path: &Path) -> Result<File, String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if meta.len() > FILE_LIMIT {
        return Err(format!("larger than {FILE_LIMIT} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let value = if path.extension().is_some_and(|end| end == "json") {
        serde_json::from_str(&text).map_err(|e| e.to_string())?
    } else {
        yaml::parse(&text)?
    };
    let file: File = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let major = file.cdi_version.split('.').next().unwrap_or_default();
    if !matches!(major, "0" | "1") {
        return Err(format!("version {:?} is not known", file.cdi_version));
    }
    if !is_kind(&file.kind) {
        return Err(format!("kind {:?} is not VENDOR/CLASS", file.kind));
    }
    Ok(file)
}

fn is_kind(kind: &str) -> bool {
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    kind.split_once('/').is_some_and(|(vendor, class)| word(vendor) && word(class))
}

/// Whether this is a full name: `VENDOR/CLASS=NAME`.
pub fn is_device_name(name: &str) -> bool {
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
    };
    name.split_once('=').is_some_and(|(kind, device)| is_kind(kind) && word(device))
}

impl Edits {
    /// Variables that are set.
    pub fn env(&self) -> &[String] {
        &self.env
    }

    fn add(&mut self, other: &Self) {
        self.env.extend(other.env.iter().cloned());
        self.device_nodes.extend(other.device_nodes.iter().cloned());
        self.mounts.extend(other.mounts.iter().cloned());
        self.hooks.extend(other.hooks.iter().cloned());
        self.additional_gids.extend(&other.additional_gids);
        self.net_devices.extend(other.net_devices.iter().cloned());
        if other.intel_rdt.is_some() {
            self.intel_rdt.clone_from(&other.intel_rdt);
        }
    }

    /// Writes them into a specification.
    pub fn apply(&self, spec: &mut Value, privileged: bool) -> Result<(), CdiError> {
        for word in &self.env {
            let key = word.split('=').next().unwrap_or(word);
            let env = list(&mut spec["process"]["env"]);
            env.retain(|have| have.as_str().is_none_or(|have| have.split('=').next() != Some(key)));
            env.push(word.clone().into());
        }
        for node in &self.device_nodes {
            let (device, rule) = node.resolve()?;
            let devices = list(&mut spec["linux"]["devices"]);
            devices.retain(|have| have["path"] != device["path"]);
            devices.push(device);
            if !privileged {
                list(&mut spec["linux"]["resources"]["devices"]).push(rule);
            }
        }
        for mount in &self.mounts {
            let bind = mount.kind.is_empty() || mount.kind == "bind";
            let mut options = mount.options.clone();
            if bind && !options.iter().any(|o| o == "bind" || o == "rbind") {
                options.push("rbind".into());
            }
            list(&mut spec["mounts"]).push(json!({
                "type": if bind { "bind" } else { &mount.kind }, "destination": mount.container_path,
                "source": mount.host_path, "options": options,
            }));
        }
        for hook in &self.hooks {
            let known = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
            if !known.contains(&hook.hook_name.as_str()) {
                return Err(CdiError::Hook(hook.hook_name.clone()));
            }
            let mut entry = json!({"path": hook.path, "args": hook.args, "env": hook.env});
            // The specification wants a positive number; tools write -1 for none.
            if let Some(timeout) = hook.timeout.filter(|seconds| *seconds > 0) {
                entry["timeout"] = timeout.into();
            }
            list(&mut spec["hooks"][hook.hook_name.as_str()]).push(entry);
        }
        for gid in self.additional_gids.iter().filter(|gid| **gid != 0) {
            let groups = list(&mut spec["process"]["user"]["additionalGids"]);
            if !groups.contains(&json!(gid)) {
                groups.push((*gid).into());
            }
        }
        if let Some(rdt) = &self.intel_rdt {
            spec["linux"]["intelRdt"] = rdt.clone();
        }
        for device in &self.net_devices {
            spec["linux"]["netDevices"][device.host_interface_name.as_str()] = json!({"name": device.name});
        }
        Ok(())
    }
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("made a list just now"),
    }
}

impl Node {
    /// The device with what the description left open taken from the host's node, and the rule that allows it.
    fn resolve(&self) -> Result<(Value, Value), CdiError> {
        let at = if self.host_path.is_empty() { &self.path } else { &self.host_path };
        let (mut kind, mut numbers) = (self.kind.clone(), (self.major, self.minor));
        let complete = kind == "p" || (!kind.is_empty() && numbers != (0, 0));
        if !complete {
            let node = stat(at.as_str())
                .map_err(|error| CdiError::Node { at: at.clone(), why: error.desc().to_lowercase() })?;
            kind = match SFlag::from_bits_truncate(node.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFCHR => "c",
                SFlag::S_IFBLK => "b",
                SFlag::S_IFIFO => "p",
                _ => return Err(CdiError::NoDevice(at.clone())),
            }
            .into();
            numbers = (major(node.st_rdev) as i64, minor(node.st_rdev) as i64);
        }
        let mut device = json!({"path": self.path, "type": kind, "major": numbers.0, "minor": numbers.1});
        for (key, value) in [("fileMode", self.file_mode), ("uid", self.uid), ("gid", self.gid)] {
            if let Some(value) = value {
                device[key] = value.into();
            }
        }
        let access = match self.permissions.as_str() {
            "" => "rwm",
            "none" => "",
            access => access,
        };
        let rule = json!({"allow": true, "type": kind, "major": numbers.0, "minor": numbers.1, "access": access});
        Ok((device, rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_name_and_written_into_the_specification() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        for folder in [&first, &second] {
            std::fs::create_dir(folder).unwrap();
        }
        let text = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/thing","containerEdits":{"env":["ALL=1"]},"devices":[
            {"name":"one","containerEdits":{"env":["A=file"],"deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/null","permissions":"rw"}],
             "mounts":[{"hostPath":"/etc","containerPath":"/mnt","options":["ro"]}],"additionalGids":[7],
             "hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true"],"timeout":-1}]}}]}"#;
        std::fs::write(first.join("v.json"), text).unwrap();
        std::fs::write(first.join("broken.json"), "{").unwrap();
        let later =
            "cdiVersion: 0.5.0\nkind: vendor.com/thing\ndevices:\n- name: two\n  containerEdits:\n    env: [B=2]\n";
        std::fs::write(second.join("v.yaml"), later).unwrap();
        let folders = [first, second];
        let registry = Registry::read(&folders);
        assert!(registry.has_kind("vendor.com/thing") && !registry.has_kind("vendor.com/thin"));
        let edits = registry.edits(&["vendor.com/thing=one".into(), "vendor.com/thing=two".into()]).unwrap();
        let mut spec = json!({"process": {"env": ["A=user"], "user": {"additionalGids": [0]}},
            "linux": {"devices": [], "resources": {"devices": []}}, "mounts": []});
        edits.apply(&mut spec, false).unwrap();
        assert_eq!(spec["process"]["env"], json!(["ALL=1", "A=file", "B=2"]));
        assert_eq!(spec["linux"]["devices"][0], json!({"path": "/dev/thing", "type": "c", "major": 1, "minor": 3}));
        assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rw");
        assert_eq!(spec["mounts"][0]["options"], json!(["ro", "rbind"]));
        assert_eq!(spec["hooks"]["createContainer"][0], json!({"path": "/bin/true", "args": ["true"], "env": []}));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([0, 7]));
        let error = registry.edits(&["vendor.com/thing=three".into()]).unwrap_err();
        assert_eq!(error.to_string(), "CDI device injection failed: unresolvable CDI devices vendor.com/thing=three");
    }

    #[test]
    fn names() {
        for (name, good) in
            [("vendor.com/class=dev", true), ("v/c=0:1", true), ("v/c", false), ("/dev/null", false), ("v/c=", false)]
        {
            assert_eq!(is_device_name(name), good, "{name}");
        }
    }
}
