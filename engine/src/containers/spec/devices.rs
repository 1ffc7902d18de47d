//! Devices: which the container has, and which its cgroup allows.

use crate::{
    api::{HostConfig, host_config::Device},
    http::{ApiError, ApiResult},
};
use ::spec::devices::{self, all_of_host, default_rules, rule_for};
use serde_json::{Value, json};

/// `linux.devices`: those of the user, or all of the host's for a privileged container.
pub(super) fn devices(host: &HostConfig) -> ApiResult<Vec<Value>> {
    let mut list = if host.privileged { all_of_host() } else { Vec::new() };
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
    let mut rules = default_rules();
    for device in &host.devices {
        let access = if device.cgroup_permissions.is_empty() { "rwm" } else { &device.cgroup_permissions };
        rules.extend(nodes(device)?.iter().map(|node| rule_for(node, access)));
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
    devices::nodes(&device.path_on_host, at).ok_or_else(|| {
        ApiError::invalid(format!(
            "error gathering device information while adding custom device \"{}\": not a device node",
            device.path_on_host
        ))
    })
}
