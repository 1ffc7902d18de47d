//! What a user with rule "own" may ask for in a body: containers that can't reach the host, processes without more rights than
//! the container has, plain volumes. Pure. Options are allowed one by one; one that is set and not known here is refused.

use super::OWNER;
use crate::containers::mounts::check_volume_name;
use serde_json::{Map, Value, json};

/// What must belong to the user for the request to go on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The container whose network is shared.
    pub network_of: Option<String>,
    /// Volumes by name.
    pub volumes: Vec<String>,
}

/// Options of the host side that concern nothing outside of the container.
const HARMLESS: &[&str] = &[
    "AutoRemove",
    "ConsoleSize",
    "ContainerIDFile",
    "CapDrop",
    "CpuCount",
    "CpuPercent",
    "CpuPeriod",
    "CpuQuota",
    "CpuShares",
    "CpusetCpus",
    "CpusetMems",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "GroupAdd",
    "Init",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "MemorySwappiness",
    "NanoCpus",
    "PidsLimit",
    "PortBindings",
    "PublishAllPorts",
    "ReadonlyRootfs",
    "RestartPolicy",
    "ShmSize",
    "Tmpfs",
    "Ulimits",
];

/// Looks through the body of `POST /containers/create`, and writes into it whose the container is.
pub fn container(body: &mut Value, owner: &str) -> Result<Needs, String> {
    let Value::Object(fields) = body else { return Err("its body is not an object".to_owned()) };
    let mut needs = Needs::default();
    let host = object(fields, "HostConfig")?;
    for (key, value) in host.iter() {
        // An empty list is nothing, but here it would show what Docker hides.
        let shows = matches!(key.as_str(), "MaskedPaths" | "ReadonlyPaths") && !value.is_null();
        if !shows && unset(value) || HARMLESS.contains(&key.as_str()) {
            continue;
        }
        option(key, value, &mut needs)?;
    }
    object(host, "Annotations")?.insert(OWNER.to_owned(), owner.into());
    own_label(fields, owner)?;
    Ok(needs)
}

/// The same for `POST /volumes/create`.
pub fn volume(body: &mut Value, owner: &str) -> Result<(), String> {
    let Value::Object(fields) = body else { return Err("its body is not an object".to_owned()) };
    for (key, value) in fields.iter() {
        let plain = matches!(key.as_str(), "Name" | "Labels") || key == "Driver" && value == "local";
        if !unset(value) && !plain {
            return Err(format!("{key} may lead to files of the host"));
        }
    }
    // Without it a plugin would be asked, and what that has under this name would become the user's.
    fields.insert("Driver".to_owned(), "local".into());
    own_label(fields, owner)
}

/// The same for `POST /containers/{id}/exec`.
pub fn exec(body: &Value) -> Result<(), String> {
    if body.get("Privileged").is_some_and(|value| !unset(value)) {
        Err("Privileged reaches the host".to_owned())
    } else {
        Ok(())
    }
}

fn own_label(fields: &mut Map<String, Value>, owner: &str) -> Result<(), String> {
    object(fields, "Labels")?.insert(OWNER.to_owned(), owner.into());
    Ok(())
}

fn object<'v>(fields: &'v mut Map<String, Value>, key: &str) -> Result<&'v mut Map<String, Value>, String> {
    let value = fields.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| format!("{key} is not an object"))
}

fn unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn option(key: &str, value: &Value, needs: &mut Needs) -> Result<(), String> {
    let text = value.as_str().unwrap_or("\0");
    let refused = || Err(format!("{key} {} reaches beyond the container", short(value)));
    match (key, text) {
        ("NetworkMode", _) => match text.split_once(':') {
            Some(("container", other)) => needs.network_of = Some(other.to_owned()),
            Some(_) => return refused(),
            None if text == "host" || text == "\0" => return refused(),
            None => {}
        },
        ("IpcMode", "private" | "shareable" | "none") | ("CgroupnsMode", "private") | ("Isolation", "default") => {}
        ("SecurityOpt", _) => {
            let known = |item: &Value| {
                matches!(item.as_str(), Some("no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true"))
            };
            if !value.as_array().is_some_and(|items| items.iter().all(known)) {
                return refused();
            }
        }
        ("OomScoreAdj", _) if value.as_i64().is_some_and(|n| n > 0) => {}
        ("LogConfig", _) => {
            let kind = value.get("Type").and_then(Value::as_str).unwrap_or_default();
            if !matches!(kind, "" | "json-file" | "local" | "none") {
                return refused();
            }
        }
        ("Binds", _) => {
            for item in value.as_array().into_iter().flatten() {
                bind(item.as_str().ok_or("Binds holds something else than text")?, needs)?;
            }
            if !value.is_array() {
                return refused();
            }
        }
        ("Mounts", _) => {
            let items = value.as_array().ok_or("Mounts is not a list")?;
            items.iter().try_for_each(|item| mount(item, needs))?;
        }
        _ => return refused(),
    }
    Ok(())
}

fn bind(text: &str, needs: &mut Needs) -> Result<(), String> {
    match text.split_once(':') {
        None => Ok(()),
        Some((source, _)) => named(source, needs),
    }
}

fn named(source: &str, needs: &mut Needs) -> Result<(), String> {
    if check_volume_name(source).is_err() {
        return Err(format!("{source:?} is a path of the host"));
    }
    needs.volumes.push(source.to_owned());
    Ok(())
}

fn mount(item: &Value, needs: &mut Needs) -> Result<(), String> {
    let text = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
    let options = item.get("VolumeOptions").and_then(Value::as_object);
    match text("Type") {
        "tmpfs" => Ok(()),
        "volume" => {
            let known = |key: &str| matches!(key, "NoCopy" | "Labels" | "Subpath");
            if let Some((key, _)) = options.into_iter().flatten().find(|(key, value)| !unset(value) && !known(key)) {
                return Err(format!("{key} of a volume may lead to files of the host"));
            }
            if text("Source").is_empty() { Ok(()) } else { named(text("Source"), needs) }
        }
        kind => Err(format!("a mount of type {kind:?} reaches the host")),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(host: Value) -> Result<Needs, String> {
        container(&mut json!({"Image": "x", "HostConfig": host}), "7")
    }

    #[test]
    fn what_the_docker_client_sends_for_a_plain_run_is_allowed() {
        let plain = json!({"Binds":null,"ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},"NetworkMode":"default",
            "PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"RestartPolicy":{"Name":"no","MaximumRetryCount":0},
            "AutoRemove":true,"VolumeDriver":"","VolumesFrom":null,"ConsoleSize":[24,80],"CapAdd":null,"CapDrop":["ALL"],
            "CgroupnsMode":"","Dns":[],"IpcMode":"","Cgroup":"","Links":null,"OomScoreAdj":0,"PidMode":"","Privileged":false,
            "SecurityOpt":["no-new-privileges"],"UTSMode":"","UsernsMode":"","ShmSize":0,"Isolation":"","CpuShares":2,"Memory":64,
            "MemorySwappiness":-1,"OomKillDisable":false,"PidsLimit":10,"Devices":[],"MaskedPaths":null,"ReadonlyPaths":null});
        assert_eq!(host(plain), Ok(Needs::default()));
        assert_eq!(host(Value::Null), Ok(Needs::default()));
        let wanted = host(json!({"Binds": ["data:/d:ro", "/anonymous"], "NetworkMode": "container:web",
            "Mounts": [{"Type":"volume","Source":"more","Target":"/m"},{"Type":"tmpfs","Target":"/t"},{"Type":"volume","Target":"/a"}]}));
        assert_eq!(wanted, Ok(Needs { network_of: Some("web".into()), volumes: vec!["data".into(), "more".into()] }));
    }

    #[test]
    fn ways_to_the_host_are_refused() {
        for (key, value) in [
            ("Privileged", json!(true)),
            ("Privileged", json!("true")),
            ("privileged", json!(true)),
            ("Binds", json!(["/:/host"])),
            ("Binds", json!(["./x:/host"])),
            ("Binds", json!([":/host"])),
            ("Binds", json!("/:/host")),
            ("Binds", json!([["/:/host"]])),
            ("Mounts", json!([{"Type":"bind","Source":"/","Target":"/h"}])),
            ("Mounts", json!([{"type":"volume","Source":"/","Target":"/h"}])),
            ("Mounts", json!([{"Type":"volume","Source":"/etc","Target":"/h"}])),
            (
                "Mounts",
                json!([{"Type":"volume","Target":"/h","VolumeOptions":{"DriverConfig":{"Options":{"type":"none","o":"bind","device":"/"}}}}]),
            ),
            ("Mounts", json!({"Type":"bind"})),
            ("CapAdd", json!(["SYS_ADMIN"])),
            ("Devices", json!([{"PathOnHost":"/dev/sda"}])),
            ("DeviceCgroupRules", json!(["a *:* rwm"])),
            ("DeviceRequests", json!([{"Driver":"x"}])),
            ("SecurityOpt", json!(["seccomp=unconfined"])),
            ("SecurityOpt", json!(["no-new-privileges:false"])),
            ("SecurityOpt", json!("x")),
            ("NetworkMode", json!("host")),
            ("NetworkMode", json!("ns:/proc/1/ns/net")),
            ("NetworkMode", json!(["host"])),
            ("PidMode", json!("host")),
            ("PidMode", json!("container:x")),
            ("IpcMode", json!("host")),
            ("IpcMode", json!("container:x")),
            ("UTSMode", json!("host")),
            ("UsernsMode", json!("host")),
            ("CgroupnsMode", json!("host")),
            ("CgroupParent", json!("/")),
            ("VolumesFrom", json!(["x"])),
            ("Sysctls", json!({"net.x":"1"})),
            ("MaskedPaths", json!(["/x"])),
            ("Runtime", json!("other")),
            ("Annotations", json!({"a":"b"})),
            ("Annotations", json!({OWNER:"0"})),
            ("OomScoreAdj", json!(-1000)),
            ("OomKillDisable", json!(true)),
            ("LogConfig", json!({"Type":"syslog"})),
            ("Whatever", json!({"is":"new"})),
        ] {
            let mut config = Map::new();
            config.insert(key.to_owned(), value);
            let shown = Value::Object(config.clone());
            assert!(host(Value::Object(config)).is_err(), "{shown}");
        }
        assert!(container(&mut json!([]), "7").is_err() && container(&mut json!({"HostConfig": 1}), "7").is_err());
    }

    #[test]
    fn empty_lists_of_hidden_paths_are_not_nothing() {
        for key in ["MaskedPaths", "ReadonlyPaths"] {
            assert!(host(json!({ key: [] })).is_err(), "{key}");
        }
    }

    #[test]
    fn the_owner_is_written_down() {
        let mut body = json!({"Labels": {OWNER: "0", "a": "b"}});
        container(&mut body, "7").unwrap();
        assert_eq!(body, json!({"HostConfig":{"Annotations":{OWNER:"7"}},"Labels":{OWNER:"7","a":"b"}}));
        let mut body = json!({"Name":"v","Driver":"local","DriverOpts":{},"Labels":null});
        volume(&mut body, "7").unwrap();
        assert_eq!(body["Labels"], json!({OWNER:"7"}));
        let mut any = json!({"Name":"v"});
        volume(&mut any, "7").unwrap();
        assert_eq!(any["Driver"], "local");
        assert!(volume(&mut json!({"DriverOpts":{"device":"/"}}), "7").is_err());
        assert!(volume(&mut json!({"Driver":"nfs"}), "7").is_err());
        assert!(exec(&json!({"Privileged":true})).is_err() && exec(&json!({"Cmd":["a"],"Privileged":false})).is_ok());
    }

    proptest! {
        /// Whatever is asked for under whatever name: what goes on has only options that are known here, and one owner.
        #[test]
        fn nothing_unknown_goes_on(key in "[A-Za-z]{1,12}", text in "\\PC{1,12}") {
            let mut body = json!({"HostConfig": {key.as_str(): text.as_str()}, "Labels": {OWNER: "0"}});
            if container(&mut body, "7").is_ok() {
                let known = ["NetworkMode", "IpcMode", "CgroupnsMode", "Isolation", "LogConfig"];
                let is_known = HARMLESS.contains(&key.as_str()) || known.contains(&key.as_str());
                prop_assert!(is_known, "{} {}", key, text);
                prop_assert_eq!(&body["Labels"][OWNER], "7");
                prop_assert_eq!(&body["HostConfig"]["Annotations"][OWNER], "7");
            }
        }
    }
}
