//! `linux.cgroupsPath`, `linux.resources` and the annotations about them: what can be said to be wrong without looking at a cgroup.

use std::collections::BTreeMap;

use super::{Options, PlanError, is_cgroup_path};
use crate::confine::cgroup::systemd::Property;
use crate::confine::cgroup::systemd::annotations;
use crate::confine::cgroup::systemd::names::{self, UnitName};
use crate::spec::{Resources, WeightDevice};

/// The unit and its properties, under `--systemd-cgroup`; empty otherwise.
pub(super) fn check_path(
    path: &str,
    notes: &BTreeMap<String, String>,
    options: Options,
) -> Result<(UnitName, Vec<Property>), PlanError> {
    let field = "linux.cgroupsPath";
    if !is_cgroup_path(path) {
        let why = "has \".\", \"..\" or a control character in it, or is too long";
        return Err(PlanError::invalid(field, path, why));
    }
    if !options.systemd_cgroup {
        // Taking it for a path would make odd folders, and limits that systemd knows nothing of.
        if !path.starts_with('/') && path.split(':').count() == 3 {
            return Err(PlanError::invalid(field, path, "is slice:prefix:name, which needs --systemd-cgroup"));
        }
        return Ok((UnitName::default(), Vec::new()));
    }
    let unit = names::parse(path).map_err(|why| PlanError::invalid(field, path, why))?;
    let mut properties = Vec::new();
    for (key, value) in notes {
        let Some(name) = key.strip_prefix(annotations::KEY) else { continue };
        let property = annotations::property(name, value);
        properties.push(property.map_err(|why| PlanError::invalid(format!("annotations.{key}"), value, why))?);
    }
    Ok((unit, properties))
}

/// Values that no kernel takes, and names that would lead out of the cgroup's directory.
pub(crate) fn check_resources(resources: &Resources) -> Result<(), PlanError> {
    let field = |name: &str| format!("linux.resources.{name}");
    let refuse = |name: &str, value: String, why| Err(PlanError::invalid(field(name), value, why));
    let memory = &resources.memory;
    if let Some(swappiness) = memory.swappiness.filter(|value| *value > 100) {
        return refuse("memory.swappiness", swappiness.to_string(), "is not from 0 to 100");
    }
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (memory.limit, memory.swap)
        && swap < limit
    {
        return refuse("memory.swap", swap.to_string(), "is memory and swap together, and less than memory.limit");
    }
    if let Some(idle) = resources.cpu.idle.filter(|idle| !matches!(idle, 0 | 1)) {
        return refuse("cpu.idle", idle.to_string(), "is neither 0 nor 1");
    }
    for (name, list) in [("cpu.cpus", &resources.cpu.cpus), ("cpu.mems", &resources.cpu.mems)] {
        if !list.bytes().all(|byte| byte.is_ascii_digit() || b",-: \n".contains(&byte)) {
            return refuse(name, list.clone(), "is not a list such as 0-3,7");
        }
    }
    let block = &resources.block_io;
    let weights = |device: &WeightDevice| [device.weight, device.leaf_weight];
    for weight in [block.weight, block.leaf_weight].into_iter().chain(block.weight_device.iter().flat_map(weights)) {
        // 0 has always meant "not set"; what is above is cut to what the scheduler at hand takes.
        if let Some(weight) = weight.filter(|weight| *weight > 1000) {
            return refuse("blockIO.weight", weight.to_string(), "is not from 10 to 1000");
        }
    }
    for limit in &resources.hugepage_limits {
        let digits = limit.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &limit.page_size[digits.len()..];
        let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !number || !matches!(unit, "KB" | "MB" | "GB") {
            let why = "is not a size such as 64KB, 2MB or 1GB";
            return refuse("hugepageLimits.pageSize", limit.page_size.clone(), why);
        }
    }
    let plain = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if let Some(entry) = resources.network.priorities.iter().find(|entry| !plain(&entry.name)) {
        return refuse("network.priorities.name", entry.name.clone(), "is not the name of an interface");
    }
    if let Some(device) = resources.rdma.keys().find(|device| !plain(device)) {
        return refuse("rdma", device.clone(), "is not the name of a device");
    }
    for key in resources.unified.keys() {
        let name = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        if !key.contains('.') || key.starts_with('.') || !key.bytes().all(name) {
            return refuse("unified", key.clone(), "is not the name of a cgroup file");
        }
        // These move processes or hand out controllers: they are no limits.
        if matches!(
            key.as_str(),
            "cgroup.procs"
                | "cgroup.threads"
                | "cgroup.subtree_control"
                | "cgroup.kill"
                | "cgroup.freeze"
                | "cgroup.type"
        ) {
            return refuse("unified", key.clone(), "is not a limit");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(text: &str) -> Result<(), String> {
        check_resources(&serde_json::from_str(text).expect("parses")).map_err(|error| error.to_string())
    }

    #[test]
    fn impossible_limits_are_refused_by_name() {
        for (text, field) in [
            (r#"{"memory":{"swappiness":101}}"#, "memory.swappiness"),
            (r#"{"memory":{"limit":200,"swap":100}}"#, "memory.swap"),
            (r#"{"cpu":{"idle":2}}"#, "cpu.idle"),
            (r#"{"cpu":{"cpus":"all"}}"#, "cpu.cpus"),
            (r#"{"blockIO":{"weight":1001}}"#, "blockIO.weight"),
            (r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"leafWeight":2000}]}}"#, "blockIO.weight"),
            (r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, "hugepageLimits.pageSize"),
            (r#"{"hugepageLimits":[{"pageSize":"2M","limit":1}]}"#, "hugepageLimits.pageSize"),
            (r#"{"network":{"priorities":[{"name":"eth0 5","priority":1}]}}"#, "network.priorities.name"),
            (r#"{"rdma":{"mlx 0":{"hcaHandles":1}}}"#, "rdma"),
            (r#"{"unified":{"../memory.max":"1"}}"#, "unified"),
            (r#"{"unified":{"cgroup.procs":"1"}}"#, "unified"),
            (r#"{"unified":{"memory":"1"}}"#, "unified"),
        ] {
            let error = resources(text).expect_err(text);
            assert!(error.starts_with(&format!("config.json: linux.resources.{field}: ")), "{error}");
        }
        for text in [
            "{}",
            r#"{"memory":{"limit":100,"swap":-1,"swappiness":0},"cpu":{"idle":1,"cpus":"0-3,7"},"blockIO":{"weight":0}}"#,
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1},{"pageSize":"64KB","limit":1}],"rdma":{"mlx5_0":{}}}"#,
            r#"{"unified":{"memory.high":"1","hugetlb.2MB.max":"0"}}"#,
        ] {
            resources(text).expect(text);
        }
    }

    #[test]
    fn each_driver_has_its_paths() {
        let none = BTreeMap::new();
        let systemd = Options { systemd_cgroup: true, ..Options::default() };
        assert!(check_path("system.slice:docker:1", &none, Options::default()).is_err());
        assert!(check_path("/docker/1", &none, Options::default()).is_ok());
        assert_eq!(check_path("system.slice:docker:1", &none, systemd).expect("ok").0.scope, "docker-1.scope");
        for bad in ["/docker/1", "a:b", "a.slice:b:../c"] {
            assert!(check_path(bad, &none, systemd).is_err(), "{bad}");
        }
        let note = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let notes = note("org.systemd.property.CollectMode", "'inactive'");
        assert_eq!(check_path("", &notes, systemd).expect("ok").1.len(), 1);
        assert!(check_path("", &notes, Options::default()).expect("ok").1.is_empty());
        let error =
            check_path("", &note("org.systemd.property.ExecStart", "'x'"), systemd).expect_err("no").to_string();
        assert!(error.starts_with("config.json: annotations.org.systemd.property.ExecStart: "), "{error}");
    }
}
