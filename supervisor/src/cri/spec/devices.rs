//! Devices: those of the request, the node's for a privileged container, those of CDI.

use std::{fs, path::PathBuf};

use ::spec::{
    cdi::{Registry, is_device_name},
    devices::{all_of_host, default_rules, nodes, rule_for},
};
use proto::runtime::v1 as cri;
use serde_json::{Value, json};

use super::{SpecError, mounts::destination};

/// Annotations in which device plugins of old name devices of CDI.
const CDI_PREFIX: &str = "cdi.k8s.io/";

/// What the request has of devices.
#[derive(Debug)]
pub(super) struct Devices {
    /// `linux.devices`
    pub(super) nodes: Vec<Value>,
    /// `linux.resources.devices`
    pub(super) rules: Vec<Value>,
}

/// Finds the devices of a request on the node.
pub(super) fn devices(config: &cri::ContainerConfig, privileged: bool) -> Result<Devices, SpecError> {
    let mut found = match privileged {
        true => Devices { nodes: all_of_host(), rules: vec![json!({"allow": true, "access": "rwm"})] },
        false => Devices { nodes: Vec::new(), rules: default_rules() },
    };
    for device in &config.devices {
        let (on_host, access) = (&device.host_path, device.permissions.as_str());
        if !on_host.starts_with('/') || on_host.contains('\0') {
            return Err(SpecError::invalid("devices.host_path", on_host, "is no absolute path"));
        }
        if access.len() > 3 || !access.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(SpecError::invalid(format!("device {on_host}: permissions"), access, "are not of r, w and m"));
        }
        let access = if access.is_empty() { "rwm" } else { access };
        let at = if device.container_path.is_empty() { on_host } else { &device.container_path };
        let at = destination("devices.container_path", at)?;
        // Names that udev gives are links.
        let real = fs::canonicalize(on_host).ok().and_then(|path| path.into_os_string().into_string().ok());
        let list = real.and_then(|real| nodes(&real, &at)).ok_or_else(|| SpecError::NoDevice(on_host.clone()))?;
        for node in list {
            if !privileged {
                found.rules.push(rule_for(&node, access));
            }
            found.nodes.retain(|other| other["path"] != node["path"]);
            found.nodes.push(node);
        }
    }
    Ok(found)
}

/// Writes what devices of CDI need into a specification.
pub(super) fn inject(
    config: &cri::ContainerConfig,
    folders: &[PathBuf],
    privileged: bool,
    spec: &mut Value,
) -> Result<(), SpecError> {
    let names = names(config)?;
    if names.is_empty() {
        return Ok(());
    }
    Registry::read(folders).edits(&names)?.apply(spec, privileged)?;
    Ok(())
}

fn names(config: &cri::ContainerConfig) -> Result<Vec<String>, SpecError> {
    let mut annotated: Vec<_> = config.annotations.iter().filter(|(key, _)| key.starts_with(CDI_PREFIX)).collect();
    annotated.sort();
    let annotated = annotated.into_iter().flat_map(|(_, value)| value.split(','));
    let mut names = Vec::<String>::new();
    for name in config.cdi_devices.iter().map(|device| device.name.as_str()).chain(annotated) {
        if !is_device_name(name) {
            return Err(SpecError::invalid("CDI device", name, "is not VENDOR/CLASS=NAME"));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, container: &str, permissions: &str) -> cri::Device {
        cri::Device { host_path: host.into(), container_path: container.into(), permissions: permissions.into() }
    }

    fn of(list: &[cri::Device], privileged: bool) -> Result<Devices, SpecError> {
        devices(&cri::ContainerConfig { devices: list.to_vec(), ..Default::default() }, privileged)
    }

    #[test]
    fn nodes_links_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let link = link.display().to_string();
        let found = of(&[device("/dev/zero", "", "r"), device(&link, "/dev/../x/n", "")], false).unwrap();
        let places: Vec<_> = found.nodes.iter().map(|node| node["path"].as_str().unwrap()).collect();
        assert_eq!(places, ["/dev/zero", "/x/n"]);
        let rules = &found.rules[found.rules.len() - 2..];
        assert_eq!(rules[0], json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}));
        assert_eq!(rules[1], json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}));
        assert_eq!(found.rules[0], json!({"allow": false, "access": "rwm"}));
        // A device is there once, at the place that was asked for last.
        let twice = of(&[device("/dev/zero", "/dev/a", "r"), device("/dev/null", "/dev/a", "r")], false).unwrap();
        assert_eq!((twice.nodes.len(), twice.nodes[0]["minor"].as_i64()), (1, Some(3)));
        let privileged = of(&[device("/dev/zero", "", "")], true).unwrap();
        assert_eq!(privileged.rules, [json!({"allow": true, "access": "rwm"})]);
        assert!(privileged.nodes.iter().filter(|node| node["path"] == "/dev/zero").count() == 1);
    }

    #[test]
    fn what_is_no_device() {
        for (device, words) in [
            (device("/etc/passwd", "", ""), "device /etc/passwd: neither a device node nor a folder with some"),
            (device("/nonexistent", "", ""), "device /nonexistent: neither a device node nor a folder with some"),
            (device("dev/null", "", ""), "devices.host_path dev/null: is no absolute path"),
            (device("/dev/null", "/..", ""), "devices.container_path /..: is no place below the container's root"),
            (device("/dev/null", "", "x"), "device /dev/null: permissions x: are not of r, w and m"),
            (device("/dev/null", "", "rwmr"), "device /dev/null: permissions rwmr: are not of r, w and m"),
        ] {
            assert_eq!(of(&[device], false).unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn devices_of_cdi_by_field_and_annotation() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"a","containerEdits":{"env":["A=1"]}},
            {"name":"b","containerEdits":{"env":["B=2"],"deviceNodes":[{"path":"/dev/b","hostPath":"/dev/null"}]}}]}"#;
        std::fs::write(folder.path().join("v.json"), text).unwrap();
        let of = |field: &[&str], annotations: &[(&str, &str)]| {
            let config = cri::ContainerConfig {
                cdi_devices: field.iter().map(|&name| cri::CdiDevice { name: name.into() }).collect(),
                annotations: annotations.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
                ..Default::default()
            };
            let mut spec = json!({});
            inject(&config, &[folder.path().to_owned()], false, &mut spec).map(|()| spec)
        };
        assert_eq!(of(&[], &[("other", "v.com/c=a")]).unwrap(), json!({}));
        let both = of(&["v.com/c=b"], &[("cdi.k8s.io/x", "v.com/c=a,v.com/c=b")]).unwrap();
        assert_eq!(both["process"]["env"], json!(["B=2", "A=1"]));
        assert_eq!(both["linux"]["devices"].as_array().unwrap().len(), 1);
        assert_eq!(of(&["v.com/c"], &[]).unwrap_err().to_string(), "CDI device v.com/c: is not VENDOR/CLASS=NAME");
        let missing = of(&[], &[("cdi.k8s.io/x", "v.com/c=z")]).unwrap_err().to_string();
        assert_eq!(missing, "CDI device injection failed: unresolvable CDI devices v.com/c=z");
    }
}
