//! Pods and containers in the words of NRI: from records, and from specifications.

use proto::{nri::pkg::api::v1alpha1 as nri, runtime::v1 as cri};
use serde_json::{Map, Value, json};

use super::super::record::{Container, Sandbox};

/// A pod. `namespaces` are the paths where its own are pinned, by their kind.
pub(super) fn pod(
    id: &str,
    sandbox: &Sandbox,
    ips: Vec<String>,
    namespaces: Vec<nri::LinuxNamespace>,
) -> nri::PodSandbox {
    let config = sandbox.config();
    let meta = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    // What the kubelet has said last.
    let (overhead, resources) = sandbox.resources();
    nri::PodSandbox {
        id: id.to_owned(),
        name: meta.name,
        uid: meta.uid,
        namespace: meta.namespace,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: sandbox.request.runtime_handler.clone(),
        linux: Some(nri::LinuxPodSandbox {
            pod_overhead: overhead.map(from_cri),
            pod_resources: resources.map(from_cri),
            cgroup_parent: linux.cgroup_parent,
            cgroups_path: String::new(),
            namespaces,
            resources: None,
        }),
        pid: 0,
        ips,
    }
}

/// A container that is on record, with its specification.
pub(super) fn container(id: &str, record: &Container, spec: &Value, pid: u32) -> nri::Container {
    let state = match record.state() {
        cri::ContainerState::ContainerCreated => nri::ContainerState::ContainerCreated,
        cri::ContainerState::ContainerRunning => nri::ContainerState::ContainerRunning,
        cri::ContainerState::ContainerExited => nri::ContainerState::ContainerStopped,
        cri::ContainerState::ContainerUnknown => nri::ContainerState::ContainerUnknown,
    };
    let end = record.end.clone().unwrap_or_default();
    nri::Container {
        state: state.into(),
        pid,
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: end.at,
        exit_code: end.code,
        status_reason: end.reason,
        status_message: end.message,
        ..unborn(id, &record.sandbox, &record.config, spec)
    }
}

/// A container of which there is only what it is to be.
pub(super) fn unborn(id: &str, sandbox: &str, config: &cri::ContainerConfig, spec: &Value) -> nri::Container {
    let (process, linux) = (&spec["process"], &spec["linux"]);
    let mut annotations = config.annotations.clone();
    // What plugins have added to it; the rest of the specification's is ours.
    let added = spec["annotations"].as_object().into_iter().flatten();
    annotations.extend(
        added.filter(|(key, _)| !key.starts_with("io.kubernetes.cri.")).map(|(key, value)| (key.clone(), text(value))),
    );
    nri::Container {
        id: id.to_owned(),
        pod_sandbox_id: sandbox.to_owned(),
        name: config.metadata.clone().unwrap_or_default().name,
        labels: config.labels.clone(),
        annotations,
        args: texts(&process["args"]),
        env: texts(&process["env"]),
        mounts: items(&spec["mounts"])
            .map(|mount| nri::Mount {
                destination: text(&mount["destination"]),
                r#type: text(&mount["type"]),
                source: text(&mount["source"]),
                options: texts(&mount["options"]),
            })
            .collect(),
        hooks: spec.get("hooks").map(hooks),
        linux: Some(nri::LinuxContainer {
            namespaces: items(&linux["namespaces"])
                .map(|one| nri::LinuxNamespace { r#type: text(&one["type"]), path: text(&one["path"]) })
                .collect(),
            devices: items(&linux["devices"]).map(device).collect(),
            resources: Some(from_oci(&linux["resources"])),
            oom_score_adj: process["oomScoreAdj"].as_i64().map(|value| nri::OptionalInt { value }),
            cgroups_path: text(&linux["cgroupsPath"]),
            io_priority: process.get("ioPriority").map(|wanted| nri::LinuxIoPriority {
                class: nri::IoPrioClass::from_str_name(&text(&wanted["class"])).unwrap_or_default().into(),
                priority: wanted["priority"].as_i64().unwrap_or_default() as i32,
            }),
            seccomp_profile: seccomp_profile(config),
            seccomp_policy: linux.get("seccomp").map(seccomp),
            sysctl: map(&linux["sysctl"]),
            net_devices: linux["netDevices"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, one)| (key.clone(), nri::LinuxNetDevice { name: text(&one["name"]) }))
                .collect(),
            scheduler: None,
            rdt: None,
        }),
        rlimits: items(&process["rlimits"])
            .map(|limit| nri::PosixRlimit {
                r#type: text(&limit["type"]),
                hard: limit["hard"].as_u64().unwrap_or_default(),
                soft: limit["soft"].as_u64().unwrap_or_default(),
            })
            .collect(),
        cdi_devices: config.cdi_devices.iter().map(|one| nri::CdiDevice { name: one.name.clone() }).collect(),
        user: Some(nri::User {
            uid: number(&process["user"]["uid"]),
            gid: number(&process["user"]["gid"]),
            additional_gids: items(&process["user"]["additionalGids"]).map(number).collect(),
        }),
        ..Default::default()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap_or_default() as u32
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts(value: &Value) -> Vec<String> {
    items(value).map(text).collect()
}

fn map(value: &Value) -> std::collections::HashMap<String, String> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn device(node: &Value) -> nri::LinuxDevice {
    let id = |value: &Value| value.as_u64().map(|value| nri::OptionalUInt32 { value: value as u32 });
    nri::LinuxDevice {
        path: text(&node["path"]),
        r#type: text(&node["type"]),
        major: node["major"].as_i64().unwrap_or_default(),
        minor: node["minor"].as_i64().unwrap_or_default(),
        file_mode: node["fileMode"].as_u64().map(|value| nri::OptionalFileMode { value: value as u32 }),
        uid: id(&node["uid"]),
        gid: id(&node["gid"]),
    }
}

fn hooks(all: &Value) -> nri::Hooks {
    let of = |key: &str| {
        items(&all[key])
            .map(|hook| nri::Hook {
                path: text(&hook["path"]),
                args: texts(&hook["args"]),
                env: texts(&hook["env"]),
                timeout: hook["timeout"].as_i64().map(|value| nri::OptionalInt { value }),
            })
            .collect()
    };
    nri::Hooks {
        prestart: of("prestart"),
        create_runtime: of("createRuntime"),
        create_container: of("createContainer"),
        start_container: of("startContainer"),
        poststart: of("poststart"),
        poststop: of("poststop"),
    }
}

fn seccomp_profile(config: &cri::ContainerConfig) -> Option<nri::SecurityProfile> {
    use nri::security_profile::ProfileType;
    let wanted = config.linux.as_ref()?.security_context.as_ref()?.seccomp.as_ref()?;
    let kind = match wanted.profile_type() {
        cri::security_profile::ProfileType::RuntimeDefault => ProfileType::RuntimeDefault,
        cri::security_profile::ProfileType::Unconfined => ProfileType::Unconfined,
        cri::security_profile::ProfileType::Localhost => ProfileType::Localhost,
    };
    Some(nri::SecurityProfile { profile_type: kind.into(), localhost_ref: wanted.localhost_ref.clone() })
}

fn seccomp(policy: &Value) -> nri::LinuxSeccomp {
    let errno = |value: &Value| value.as_u64().map(|value| nri::OptionalUInt32 { value: value as u32 });
    let big = |value: &Value| value.as_u64().unwrap_or_default();
    nri::LinuxSeccomp {
        default_action: text(&policy["defaultAction"]),
        default_errno: errno(&policy["defaultErrnoRet"]),
        architectures: texts(&policy["architectures"]),
        flags: texts(&policy["flags"]),
        listener_path: text(&policy["listenerPath"]),
        listener_metadata: text(&policy["listenerMetadata"]),
        syscalls: items(&policy["syscalls"])
            .map(|call| nri::LinuxSyscall {
                names: texts(&call["names"]),
                action: text(&call["action"]),
                errno_ret: errno(&call["errnoRet"]),
                args: items(&call["args"])
                    .map(|arg| nri::LinuxSeccompArg {
                        index: number(&arg["index"]),
                        value: big(&arg["value"]),
                        value_two: big(&arg["valueTwo"]),
                        op: text(&arg["op"]),
                    })
                    .collect(),
            })
            .collect(),
    }
}

/// `linux.resources` of a specification.
pub(super) fn from_oci(all: &Value) -> nri::LinuxResources {
    let int = |value: &Value| value.as_i64().map(|value| nri::OptionalInt64 { value });
    let uint = |value: &Value| value.as_u64().map(|value| nri::OptionalUInt64 { value });
    let flag = |value: &Value| value.as_bool().map(|value| nri::OptionalBool { value });
    let (memory, cpu) = (all.get("memory"), all.get("cpu"));
    nri::LinuxResources {
        memory: memory.map(|memory| nri::LinuxMemory {
            limit: int(&memory["limit"]),
            reservation: int(&memory["reservation"]),
            swap: int(&memory["swap"]),
            kernel: int(&memory["kernel"]),
            kernel_tcp: int(&memory["kernelTCP"]),
            swappiness: uint(&memory["swappiness"]),
            disable_oom_killer: flag(&memory["disableOOMKiller"]),
            use_hierarchy: flag(&memory["useHierarchy"]),
        }),
        cpu: cpu.map(|cpu| nri::LinuxCpu {
            shares: uint(&cpu["shares"]),
            quota: int(&cpu["quota"]),
            period: uint(&cpu["period"]),
            realtime_runtime: int(&cpu["realtimeRuntime"]),
            realtime_period: uint(&cpu["realtimePeriod"]),
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
        }),
        hugepage_limits: items(&all["hugepageLimits"])
            .map(|limit| nri::HugepageLimit {
                page_size: text(&limit["pageSize"]),
                limit: limit["limit"].as_u64().unwrap_or_default(),
            })
            .collect(),
        blockio_class: None,
        rdt_class: None,
        unified: map(&all["unified"]),
        devices: items(&all["devices"])
            .map(|rule| nri::LinuxDeviceCgroup {
                allow: rule["allow"].as_bool().unwrap_or_default(),
                r#type: text(&rule["type"]),
                major: int(&rule["major"]),
                minor: int(&rule["minor"]),
                access: text(&rule["access"]),
            })
            .collect(),
        pids: all["pids"]["limit"].as_i64().map(|limit| nri::LinuxPids { limit }),
    }
}

/// The same back, without classes and devices.
pub(super) fn to_oci(all: &nri::LinuxResources) -> Map<String, Value> {
    let mut parts = Map::new();
    let mut put = |key: &str, values: Vec<(&str, Option<Value>)>| {
        let part: Map<_, _> = values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        if !part.is_empty() {
            parts.insert(key.to_owned(), part.into());
        }
    };
    if let Some(memory) = &all.memory {
        put(
            "memory",
            vec![
                ("limit", memory.limit.map(|one| one.value.into())),
                ("reservation", memory.reservation.map(|one| one.value.into())),
                ("swap", memory.swap.map(|one| one.value.into())),
                ("kernel", memory.kernel.map(|one| one.value.into())),
                ("kernelTCP", memory.kernel_tcp.map(|one| one.value.into())),
                ("swappiness", memory.swappiness.map(|one| one.value.into())),
                ("disableOOMKiller", memory.disable_oom_killer.map(|one| one.value.into())),
                ("useHierarchy", memory.use_hierarchy.map(|one| one.value.into())),
            ],
        );
    }
    if let Some(cpu) = &all.cpu {
        let some = |list: &String| Some(list.clone().into()).filter(|_| !list.is_empty());
        put(
            "cpu",
            vec![
                ("shares", cpu.shares.map(|one| one.value.into())),
                ("quota", cpu.quota.map(|one| one.value.into())),
                ("period", cpu.period.map(|one| one.value.into())),
                ("realtimeRuntime", cpu.realtime_runtime.map(|one| one.value.into())),
                ("realtimePeriod", cpu.realtime_period.map(|one| one.value.into())),
                ("cpus", some(&cpu.cpus)),
                ("mems", some(&cpu.mems)),
            ],
        );
    }
    put("pids", vec![("limit", all.pids.map(|pids| pids.limit.into()))]);
    if !all.hugepage_limits.is_empty() {
        let limits = all.hugepage_limits.iter();
        let limits = limits.map(|limit| json!({"pageSize": limit.page_size, "limit": limit.limit}));
        parts.insert("hugepageLimits".into(), limits.collect());
    }
    if !all.unified.is_empty() {
        parts.insert("unified".into(), json!(all.unified));
    }
    parts
}

/// Resources as the kubelet says them: 0 and nothing say nothing.
pub(super) fn from_cri(all: &cri::LinuxContainerResources) -> nri::LinuxResources {
    let int = |value: i64| Some(nri::OptionalInt64 { value }).filter(|_| value != 0);
    let uint =
        |value: i64| u64::try_from(value).ok().filter(|value| *value != 0).map(|value| nri::OptionalUInt64 { value });
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: int(all.memory_limit_in_bytes),
            swap: int(all.memory_swap_limit_in_bytes),
            ..Default::default()
        }),
        cpu: Some(nri::LinuxCpu {
            shares: uint(all.cpu_shares),
            quota: int(all.cpu_quota),
            period: uint(all.cpu_period),
            cpus: all.cpuset_cpus.clone(),
            mems: all.cpuset_mems.clone(),
            ..Default::default()
        }),
        hugepage_limits: all
            .hugepage_limits
            .iter()
            .map(|limit| nri::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: all.unified.clone(),
        ..Default::default()
    }
}

/// The same back, as far as the kubelet has words for it.
pub(super) fn to_cri(all: &nri::LinuxResources) -> cri::LinuxContainerResources {
    let (memory, cpu) = (all.memory.unwrap_or_default(), all.cpu.clone().unwrap_or_default());
    let int = |value: Option<nri::OptionalInt64>| value.map_or(0, |one| one.value);
    let uint = |value: Option<nri::OptionalUInt64>| value.map_or(0, |one| i64::try_from(one.value).unwrap_or(i64::MAX));
    cri::LinuxContainerResources {
        cpu_period: uint(cpu.period),
        cpu_quota: int(cpu.quota),
        cpu_shares: uint(cpu.shares),
        memory_limit_in_bytes: int(memory.limit),
        memory_swap_limit_in_bytes: int(memory.swap),
        oom_score_adj: 0,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: all
            .hugepage_limits
            .iter()
            .map(|limit| cri::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: all.unified.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_there_and_back() {
        let spec = json!({
            "memory": {"limit": 1, "reservation": 2, "swap": 3, "kernel": 4, "kernelTCP": 5, "swappiness": 6,
                "disableOOMKiller": true, "useHierarchy": false},
            "cpu": {"shares": 1, "quota": -1, "period": 3, "realtimeRuntime": 4, "realtimePeriod": 5, "cpus": "0", "mems": "1"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
            "unified": {"memory.high": "1"},
            "pids": {"limit": 7},
        });
        assert_eq!(Value::from(to_oci(&from_oci(&spec))), spec);
        assert_eq!(Value::from(to_oci(&from_oci(&json!({})))), json!({}));
        let wanted = cri::LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 5,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 1 }],
            ..Default::default()
        };
        assert_eq!(to_cri(&from_cri(&wanted)), wanted);
    }

    #[test]
    fn a_container_is_what_its_specification_says() {
        let spec = json!({
            "process": {"args": ["a"], "env": ["B=c"], "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
                "oomScoreAdj": 3, "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]},
            "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "options": ["ro"]}],
            "hooks": {"poststop": [{"path": "/h", "timeout": 4}]},
            "annotations": {"io.kubernetes.cri.sandbox-id": "s", "mine": "yes"},
            "linux": {"cgroupsPath": "/c", "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}],
                "namespaces": [{"type": "network", "path": "/n"}], "sysctl": {"a": "b"},
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW"}]}},
        });
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "n".into(), attempt: 0 }),
            annotations: [("kubelet".to_owned(), "said".to_owned())].into(),
            ..Default::default()
        };
        let made = unborn("c", "s", &config, &spec);
        assert_eq!((made.id.as_str(), made.pod_sandbox_id.as_str(), made.name.as_str()), ("c", "s", "n"));
        assert_eq!((made.args, made.env), (vec!["a".to_owned()], vec!["B=c".to_owned()]));
        assert_eq!(made.annotations.len(), 2);
        assert_eq!(made.mounts[0].options, ["ro"]);
        assert_eq!(made.hooks.unwrap().poststop[0].timeout, Some(nri::OptionalInt { value: 4 }));
        assert_eq!((made.rlimits[0].soft, made.rlimits[0].hard), (1, 2));
        assert_eq!(made.user.unwrap(), nri::User { uid: 5, gid: 6, additional_gids: vec![7] });
        let linux = made.linux.unwrap();
        assert_eq!((linux.cgroups_path.as_str(), linux.sysctl["a"].as_str()), ("/c", "b"));
        assert_eq!((linux.namespaces[0].path.as_str(), linux.devices[0].minor), ("/n", 2));
        assert_eq!(linux.seccomp_policy.unwrap().syscalls[0].names, ["x"]);
    }
}
