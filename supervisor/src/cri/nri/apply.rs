//! A plugin's wishes, written into a specification.
//!
//! What a value may be is for the runtime to judge, as with what the kubelet asks for; refused here is what would break the seam between
//! us and the shim, and what nothing below us does.

use std::collections::HashMap;

use ::spec::devices::rule_for;
use proto::nri::pkg::api::v1alpha1::{
    ContainerAdjustment, Hook, Hooks, IoPrioClass, LinuxContainerAdjustment, LinuxDevice, LinuxMemoryPolicy, LinuxRdt,
    LinuxResources, LinuxScheduler, LinuxSchedulerFlag, LinuxSchedulerPolicy, LinuxSeccomp, Mount, MpolFlag, MpolMode,
};
use serde_json::{Map, Value, json};

use super::{
    collect::{merge_resources, removed},
    convert::{from_oci, to_oci},
};

/// Annotations by which shims and tools know a container.
const RESERVED: &str = "io.kubernetes.cri.";

/// Writes what is wanted. Devices of CDI are the caller's: they come after all other wishes. The error says what can't be done.
pub(super) fn apply(spec: &mut Value, wish: &ContainerAdjustment) -> Result<(), String> {
    if let Some(key) = wish.annotations.keys().find(|key| removed(key).unwrap_or(key).starts_with(RESERVED)) {
        return Err(format!("annotation {key}: those that begin with {RESERVED} are the runtime's own"));
    }
    write_map(spec, "annotations", &wish.annotations, |value| value.clone().into());
    mounts(spec, &wish.mounts)?;
    environment(spec, wish)?;
    let process = member(spec, &["process"]);
    match wish.args.split_first() {
        None => {}
        Some((first, [])) if first.is_empty() => return Err("no arguments are left to run".to_owned()),
        Some((first, rest)) if first.is_empty() => process["args"] = json!(rest),
        Some(_) => process["args"] = json!(wish.args),
    }
    for limit in &wish.rlimits {
        let new = json!({"type": limit.r#type, "soft": limit.soft, "hard": limit.hard});
        replace(list(process, "rlimits"), "type", &limit.r#type, Some(new));
    }
    if let Some(wanted) = &wish.hooks {
        hooks(spec, wanted);
    }
    if let Some(linux) = &wish.linux {
        of_linux(spec, linux)?;
    }
    Ok(())
}

fn of_linux(spec: &mut Value, wish: &LinuxContainerAdjustment) -> Result<(), String> {
    for device in &wish.devices {
        of_device(spec, device)?;
    }
    if let Some(wanted) = &wish.resources {
        resources(spec, wanted)?;
    }
    let process = member(spec, &["process"]);
    if let Some(score) = &wish.oom_score_adj {
        if !(-1000..=1000).contains(&score.value) {
            return Err(format!("oom_score_adj {} is not from -1000 to 1000", score.value));
        }
        process["oomScoreAdj"] = score.value.into();
    }
    if let Some(wanted) = &wish.io_priority {
        match wanted.class() {
            IoPrioClass::IoprioClassNone => remove(process, "ioPriority"),
            class => process["ioPriority"] = json!({"class": class.as_str_name(), "priority": wanted.priority}),
        }
    }
    if let Some(wanted) = &wish.scheduler {
        match wanted.policy() {
            LinuxSchedulerPolicy::SchedNone => remove(process, "scheduler"),
            policy => process["scheduler"] = scheduler(wanted, policy),
        }
    }
    let linux = member(spec, &["linux"]);
    if !wish.cgroups_path.is_empty() {
        linux["cgroupsPath"] = wish.cgroups_path.clone().into();
    }
    for namespace in &wish.namespaces {
        let name = removed(&namespace.r#type);
        let kind = name.unwrap_or(&namespace.r#type);
        let mut new = json!({"type": kind});
        if !namespace.path.is_empty() {
            new["path"] = namespace.path.clone().into();
        }
        replace(list(linux, "namespaces"), "type", kind, Some(new).filter(|_| name.is_none()));
    }
    write_map(linux, "sysctl", &wish.sysctl, |value| value.clone().into());
    write_map(linux, "netDevices", &wish.net_devices, |device| match device.name.as_str() {
        "" => json!({}),
        name => json!({"name": name}),
    });
    if let Some(wanted) = &wish.seccomp_policy {
        linux["seccomp"] = seccomp(wanted);
    }
    if let Some(wanted) = &wish.rdt {
        rdt(linux, wanted);
    }
    if let Some(wanted) = &wish.memory_policy {
        linux["memoryPolicy"] = memory_policy(wanted);
    }
    Ok(())
}

/// The object at this place, made if it isn't there.
fn member<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    let mut at = value;
    for key in path {
        at = &mut at[*key];
        if !at.is_object() {
            *at = json!({});
        }
    }
    at
}

fn list<'a>(value: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let at = &mut value[key];
    if !at.is_array() {
        *at = json!([]);
    }
    match at {
        Value::Array(all) => all,
        _ => unreachable!("it was made a list just now"),
    }
}

fn remove(value: &mut Value, key: &str) {
    if let Some(object) = value.as_object_mut() {
        object.remove(key);
    }
}

/// Puts an item in the place of the one that goes by the same name, or takes that away.
fn replace(all: &mut Vec<Value>, key: &str, name: &str, new: Option<Value>) {
    let at = all.iter().position(|item| item[key] == name);
    match (at, new) {
        (Some(at), Some(new)) => all[at] = new,
        (Some(at), None) => drop(all.remove(at)),
        (None, Some(new)) => all.push(new),
        (None, None) => {}
    }
}

/// Writes a map of which keys with `-` in front are removals. Nothing is left of an empty one.
fn write_map<T>(parent: &mut Value, name: &str, wanted: &HashMap<String, T>, write: impl Fn(&T) -> Value) {
    let at = member(parent, &[name]);
    for key in wanted.keys().filter_map(|key| removed(key)) {
        remove(at, key);
    }
    for (key, value) in wanted.iter().filter(|(key, _)| removed(key).is_none()) {
        at[key.as_str()] = write(value);
    }
    if at.as_object().is_some_and(Map::is_empty) {
        remove(parent, name);
    }
}

fn environment(spec: &mut Value, wish: &ContainerAdjustment) -> Result<(), String> {
    let env = list(member(spec, &["process"]), "env");
    let named = |variable: &Value, key: &str| {
        variable.as_str().is_some_and(|text| text.split_once('=').map_or(text, |(name, _)| name) == key)
    };
    for variable in &wish.env {
        let key = removed(&variable.key).unwrap_or(&variable.key);
        if key.is_empty() || key.contains(['=', '\0']) || variable.value.contains('\0') {
            return Err(format!("variable {key:?} has no name that one can have"));
        }
        env.retain(|other| !named(other, key));
        if removed(&variable.key).is_none() {
            env.push(format!("{key}={}", variable.value).into());
        }
    }
    Ok(())
}

fn mounts(spec: &mut Value, wanted: &[Mount]) -> Result<(), String> {
    if wanted.is_empty() {
        return Ok(());
    }
    for mount in wanted {
        let name = removed(&mount.destination);
        let at = name.unwrap_or(&mount.destination);
        if !at.starts_with('/') || at.contains('\0') {
            return Err(format!("mount {at:?}: the destination is no absolute path"));
        }
        let all = list(spec, "mounts");
        all.retain(|other| other["destination"] != at);
        if name.is_some() {
            continue;
        }
        let mut new = json!({"destination": at, "source": mount.source, "options": mount.options});
        if !mount.r#type.is_empty() {
            new["type"] = mount.r#type.clone().into();
        }
        all.push(new);
        // What is to travel between host and container can't if the root is a mount of its own.
        let travels = |words: [&str; 2]| mount.options.iter().any(|option| words.contains(&option.as_str()));
        let root = &mut member(spec, &["linux"])["rootfsPropagation"];
        let is = |words: [&str; 2]| root.as_str().is_some_and(|word| words.contains(&word));
        if travels(["shared", "rshared"]) && !is(["shared", "rshared"]) {
            *root = "rshared".into();
        } else if travels(["slave", "rslave"]) && !is(["shared", "rshared"]) && !is(["slave", "rslave"]) {
            *root = "rslave".into();
        } else if root.is_null() {
            remove(&mut spec["linux"], "rootfsPropagation");
        }
    }
    // Outer ones first; those of one depth stay as they were.
    let depth = |mount: &Value| {
        let at = mount["destination"].as_str().unwrap_or_default();
        at.split('/').filter(|part| !part.is_empty() && *part != ".").count()
    };
    list(spec, "mounts").sort_by_key(depth);
    Ok(())
}

fn of_device(spec: &mut Value, device: &LinuxDevice) -> Result<(), String> {
    let linux = member(spec, &["linux"]);
    let all = list(linux, "devices");
    if let Some(path) = removed(&device.path) {
        all.retain(|other| other["path"] != path);
        return Ok(());
    }
    if !device.path.starts_with('/') {
        return Err(format!("device {:?}: no absolute path", device.path));
    }
    let mut node = json!({"path": device.path, "type": device.r#type, "major": device.major, "minor": device.minor});
    for (key, value) in [
        ("fileMode", device.file_mode.map(|mode| mode.value)),
        ("uid", device.uid.map(|uid| uid.value)),
        ("gid", device.gid.map(|gid| gid.value)),
    ] {
        if let Some(value) = value {
            node[key] = value.into();
        }
    }
    let rule = rule_for(&node, "rwm");
    replace(all, "path", &device.path, Some(node));
    // A privileged container may use all there are already.
    let rules = list(member(linux, &["resources"]), "devices");
    if !rules.iter().any(|other| other["allow"] == true && other["type"].is_null() && other["major"].is_null()) {
        rules.push(rule);
    }
    Ok(())
}

/// Puts resources over those of a specification.
fn resources(spec: &mut Value, wanted: &LinuxResources) -> Result<(), String> {
    let linux = member(spec, &["linux"]);
    if let Some(class) = wanted.blockio_class.as_ref().filter(|class| !class.value.is_empty()) {
        return Err(format!("class {:?} of block I/O: this node has no such classes", class.value));
    }
    if let Some(class) = &wanted.rdt_class {
        match class.value.as_str() {
            "" => remove(linux, "intelRdt"),
            // A class without a schema is one that the node's administrator has made (runtime-spec, `intelRdt.closID`).
            class => linux["intelRdt"] = json!({"closID": class}),
        }
    }
    let at = member(linux, &["resources"]);
    let mut all = from_oci(at);
    merge_resources(&mut all, wanted);
    if let Some(object) = at.as_object_mut() {
        object.extend(to_oci(&all));
    }
    for rule in &wanted.devices {
        let mut new = json!({"allow": rule.allow, "access": rule.access});
        if !rule.r#type.is_empty() {
            new["type"] = rule.r#type.clone().into();
        }
        for (key, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                new[key] = number.value.into();
            }
        }
        list(at, "devices").push(new);
    }
    Ok(())
}

fn hooks(spec: &mut Value, wanted: &Hooks) {
    let one = |hook: &Hook| {
        let mut new = json!({"path": hook.path});
        for (key, words) in [("args", &hook.args), ("env", &hook.env)] {
            if !words.is_empty() {
                new[key] = json!(words);
            }
        }
        if let Some(seconds) = &hook.timeout {
            new["timeout"] = seconds.value.into();
        }
        new
    };
    for (key, new) in [
        ("prestart", &wanted.prestart),
        ("createRuntime", &wanted.create_runtime),
        ("createContainer", &wanted.create_container),
        ("startContainer", &wanted.start_container),
        ("poststart", &wanted.poststart),
        ("poststop", &wanted.poststop),
    ] {
        if !new.is_empty() {
            list(member(spec, &["hooks"]), key).extend(new.iter().map(one));
        }
    }
}

fn scheduler(wanted: &LinuxScheduler, policy: LinuxSchedulerPolicy) -> Value {
    let flags: Vec<_> = wanted.flags().map(|flag: LinuxSchedulerFlag| flag.as_str_name()).collect();
    let mut new = json!({"policy": policy.as_str_name(), "nice": wanted.nice, "priority": wanted.priority});
    if !flags.is_empty() {
        new["flags"] = json!(flags);
    }
    for (key, value) in [("runtime", wanted.runtime), ("deadline", wanted.deadline), ("period", wanted.period)] {
        if value != 0 {
            new[key] = value.into();
        }
    }
    new
}

fn seccomp(wanted: &LinuxSeccomp) -> Value {
    let calls: Vec<_> = wanted
        .syscalls
        .iter()
        .map(|call| {
            let mut new = json!({"names": call.names, "action": call.action});
            if let Some(errno) = &call.errno_ret {
                new["errnoRet"] = errno.value.into();
            }
            if !call.args.is_empty() {
                let args = call.args.iter().map(
                    |arg| json!({"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}),
                );
                new["args"] = args.collect();
            }
            new
        })
        .collect();
    let mut new = json!({"defaultAction": wanted.default_action, "syscalls": calls});
    if let Some(errno) = &wanted.default_errno {
        new["defaultErrnoRet"] = errno.value.into();
    }
    for (key, words) in [("architectures", &wanted.architectures), ("flags", &wanted.flags)] {
        if !words.is_empty() {
            new[key] = json!(words);
        }
    }
    for (key, word) in [("listenerPath", &wanted.listener_path), ("listenerMetadata", &wanted.listener_metadata)] {
        if !word.is_empty() {
            new[key] = word.clone().into();
        }
    }
    new
}

fn rdt(linux: &mut Value, wanted: &LinuxRdt) {
    if wanted.remove {
        remove(linux, "intelRdt");
    }
    if let Some(id) = &wanted.clos_id {
        member(linux, &["intelRdt"])["closID"] = id.value.clone().into();
    }
    if let Some(lines) = &wanted.schemata {
        member(linux, &["intelRdt"])["schemata"] = json!(lines.value);
    }
    if let Some(on) = &wanted.enable_monitoring {
        member(linux, &["intelRdt"])["enableMonitoring"] = on.value.into();
    }
}

fn memory_policy(wanted: &LinuxMemoryPolicy) -> Value {
    let flags: Vec<_> = wanted.flags().map(|flag: MpolFlag| flag.as_str_name()).collect();
    let mode: MpolMode = wanted.mode();
    let mut new = json!({"mode": mode.as_str_name(), "nodes": wanted.nodes});
    if !flags.is_empty() {
        new["flags"] = json!(flags);
    }
    new
}

#[cfg(test)]
mod tests {
    use proto::nri::pkg::api::v1alpha1::{
        KeyValue, LinuxCpu, LinuxIoPriority, LinuxMemory, LinuxNamespace, LinuxNetDevice, LinuxPids, LinuxSyscall,
        OptionalBool, OptionalFileMode, OptionalInt, OptionalInt64, OptionalRepeatedString, OptionalString,
        OptionalUInt32, OptionalUInt64, PosixRlimit,
    };

    use super::*;

    fn spec() -> Value {
        json!({
            "process": {"args": ["sh"], "env": ["PATH=/bin", "HOME=/root"]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["rbind"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
                "cgroupsPath": "/a/b",
            },
            "annotations": {"io.kubernetes.cri.sandbox-id": "s"},
        })
    }

    fn linux(wish: LinuxContainerAdjustment) -> ContainerAdjustment {
        ContainerAdjustment { linux: Some(wish), ..Default::default() }
    }

    fn applied(wish: &ContainerAdjustment) -> Value {
        let mut spec = spec();
        apply(&mut spec, wish).unwrap();
        spec
    }

    #[test]
    fn nothing_wanted_changes_nothing() {
        assert_eq!(applied(&ContainerAdjustment::default())["linux"]["resources"], spec()["linux"]["resources"]);
        assert_eq!(applied(&linux(LinuxContainerAdjustment::default())), spec());
    }

    #[test]
    fn process() {
        let variable = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
        let done = applied(&ContainerAdjustment {
            env: vec![variable("HOME", "/h"), variable("NEW", "a=b"), variable("-PATH", "")],
            args: vec![String::new(), "sleep".into(), "1".into()],
            rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft: 8 }],
            annotations: [("k".to_owned(), "v".to_owned()), ("-x".to_owned(), String::new())].into(),
            ..Default::default()
        });
        assert_eq!(done["process"]["env"], json!(["HOME=/h", "NEW=a=b"]));
        assert_eq!(done["process"]["args"], json!(["sleep", "1"]));
        assert_eq!(done["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 8, "hard": 9}]));
        assert_eq!(done["annotations"], json!({"io.kubernetes.cri.sandbox-id": "s", "k": "v"}));
        let done = applied(&linux(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: -5 }),
            io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassBe.into(), priority: 3 }),
            scheduler: Some(LinuxScheduler {
                policy: LinuxSchedulerPolicy::SchedBatch.into(),
                flags: vec![LinuxSchedulerFlag::SchedFlagReclaim.into()],
                ..Default::default()
            }),
            ..Default::default()
        }));
        assert_eq!(done["process"]["oomScoreAdj"], -5);
        assert_eq!(done["process"]["ioPriority"], json!({"class": "IOPRIO_CLASS_BE", "priority": 3}));
        let wanted = json!({"policy": "SCHED_BATCH", "nice": 0, "priority": 0, "flags": ["SCHED_FLAG_RECLAIM"]});
        assert_eq!(done["process"]["scheduler"], wanted);
    }

    #[test]
    fn mounts_outer_ones_first() {
        let mount = |destination: &str, options: &[&str]| Mount {
            destination: destination.into(),
            r#type: "bind".into(),
            source: "/src".into(),
            options: options.iter().map(|&word| word.into()).collect(),
        };
        let wish = ContainerAdjustment {
            mounts: vec![mount("/a/b", &["rbind", "rshared"]), mount("/a", &["ro"]), mount("-/etc/hosts", &[])],
            ..Default::default()
        };
        let done = applied(&wish);
        let places: Vec<_> = done["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(places, ["/proc", "/a", "/a/b"]);
        assert_eq!(done["mounts"][1]["options"], json!(["ro"]));
        assert_eq!(done["linux"]["rootfsPropagation"], "rshared");
    }

    #[test]
    fn linux_parts() {
        let namespace = |kind: &str, path: &str| LinuxNamespace { r#type: kind.into(), path: path.into() };
        let done = applied(&linux(LinuxContainerAdjustment {
            devices: vec![LinuxDevice {
                path: "/dev/x".into(),
                r#type: "c".into(),
                major: 1,
                minor: 3,
                file_mode: Some(OptionalFileMode { value: 0o666 }),
                ..Default::default()
            }],
            namespaces: vec![namespace("-pid", ""), namespace("network", "/other"), namespace("time", "")],
            cgroups_path: "/c".into(),
            sysctl: [("net.x".to_owned(), "1".to_owned())].into(),
            net_devices: [("eth9".to_owned(), LinuxNetDevice { name: "e".into() })].into(),
            seccomp_policy: Some(LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![LinuxSyscall {
                    names: vec!["mkdir".into()],
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: Some(OptionalUInt32 { value: 5 }),
                    args: vec![],
                }],
                ..Default::default()
            }),
            rdt: Some(LinuxRdt {
                clos_id: Some(OptionalString { value: "gold".into() }),
                schemata: Some(OptionalRepeatedString { value: vec!["L3:0=f".into()] }),
                enable_monitoring: Some(OptionalBool { value: true }),
                remove: false,
            }),
            memory_policy: Some(LinuxMemoryPolicy {
                mode: MpolMode::MpolBind.into(),
                nodes: "0".into(),
                flags: vec![MpolFlag::MpolFStaticNodes.into()],
            }),
            ..Default::default()
        }));
        let linux = &done["linux"];
        let node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        assert_eq!(linux["devices"], json!([node]));
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
        assert_eq!(linux["resources"]["devices"][1], rule);
        assert_eq!(linux["namespaces"], json!([{"type": "network", "path": "/other"}, {"type": "time"}]));
        assert_eq!((&linux["cgroupsPath"], &linux["sysctl"]), (&json!("/c"), &json!({"net.x": "1"})));
        assert_eq!(linux["netDevices"], json!({"eth9": {"name": "e"}}));
        let call = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5});
        assert_eq!(linux["seccomp"], json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]}));
        let wanted = json!({"closID": "gold", "schemata": ["L3:0=f"], "enableMonitoring": true});
        assert_eq!(linux["intelRdt"], wanted);
        let wanted = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
        assert_eq!(linux["memoryPolicy"], wanted);
    }

    #[test]
    fn resources_go_over_what_was() {
        let done = applied(&linux(LinuxContainerAdjustment {
            resources: Some(LinuxResources {
                memory: Some(LinuxMemory { limit: Some(OptionalInt64 { value: 7 << 20 }), ..Default::default() }),
                cpu: Some(LinuxCpu {
                    quota: Some(OptionalInt64 { value: 5000 }),
                    cpus: "0".into(),
                    ..Default::default()
                }),
                unified: [("memory.high".to_owned(), "max".to_owned())].into(),
                pids: Some(LinuxPids { limit: 9 }),
                rdt_class: Some(OptionalString { value: "gold".into() }),
                ..Default::default()
            }),
            ..Default::default()
        }));
        let wanted = json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "cpu": {"shares": 2, "quota": 5000, "cpus": "0"},
            "memory": {"limit": 7 << 20},
            "unified": {"memory.high": "max"},
            "pids": {"limit": 9},
        });
        assert_eq!(done["linux"]["resources"], wanted);
        assert_eq!(done["linux"]["intelRdt"], json!({"closID": "gold"}));
        let shares = Some(OptionalUInt64 { value: 4 });
        let cpu = Some(LinuxCpu { shares, ..Default::default() });
        let done = applied(&linux(LinuxContainerAdjustment {
            resources: Some(LinuxResources { cpu, ..Default::default() }),
            ..Default::default()
        }));
        assert_eq!(done["linux"]["resources"]["cpu"], json!({"shares": 4}));
    }

    #[test]
    fn what_nobody_can_do() {
        let class = Some(OptionalString { value: "fast".into() });
        let cases = [
            (
                ContainerAdjustment {
                    annotations: [("-io.kubernetes.cri.sandbox-id".to_owned(), String::new())].into(),
                    ..Default::default()
                },
                "annotation -io.kubernetes.cri.sandbox-id: those that begin with io.kubernetes.cri. are the runtime's own",
            ),
            (
                ContainerAdjustment {
                    mounts: vec![Mount { destination: "etc".into(), ..Default::default() }],
                    ..Default::default()
                },
                "mount \"etc\": the destination is no absolute path",
            ),
            (ContainerAdjustment { args: vec![String::new()], ..Default::default() }, "no arguments are left to run"),
            (
                ContainerAdjustment {
                    env: vec![KeyValue { key: "A=B".into(), value: String::new() }],
                    ..Default::default()
                },
                "variable \"A=B\" has no name that one can have",
            ),
            (
                linux(LinuxContainerAdjustment {
                    resources: Some(LinuxResources { blockio_class: class, ..Default::default() }),
                    ..Default::default()
                }),
                "class \"fast\" of block I/O: this node has no such classes",
            ),
            (
                linux(LinuxContainerAdjustment {
                    oom_score_adj: Some(OptionalInt { value: 1001 }),
                    ..Default::default()
                }),
                "oom_score_adj 1001 is not from -1000 to 1000",
            ),
        ];
        for (wish, words) in cases {
            assert_eq!(apply(&mut spec(), &wish), Err(words.to_owned()));
        }
    }
}
