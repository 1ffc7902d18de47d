//! `GET /containers/{id}/json`.

use super::{
    Container, links, list, ports,
    record::{Phase, Record},
    security,
};
use crate::{app::App, http::ApiResult};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Everything about one container.
pub fn inspect(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<Value> {
    let record = container.record();
    let execs: Vec<String> =
        app.containers.execs_of(&record.id).into_iter().filter(|e| e.state().running).map(|e| e.id.clone()).collect();
    let folder = app.containers.folder_of(&record.id);
    // As Docker: the files of other drivers are nobody else's to read.
    let has_log = record.host.log_config.kind == "json-file";
    let file = |name: &str| match record.state.started_at.is_set() {
        true => folder.join(name).display().to_string(),
        false => String::new(),
    };
    let config = serde_json::to_value(&record.config).unwrap_or_default();
    let value = json!({
        "Id": record.id,
        "Created": record.created,
        "Path": record.path,
        "Args": record.args,
        "State": state(&record),
        "Image": record.image_id,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": if has_log { app.containers.log_of(&record.id).display().to_string() } else { String::new() },
        "Name": format!("/{}", record.name),
        "RestartCount": record.state.restart_count,
        "Driver": record.snapshotter,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": apparmor(&record),
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host_config(app, &record),
        "GraphDriver": {"Data": null, "Name": record.snapshotter},
        "Mounts": list::mounts(&record),
        "Config": config,
        "NetworkSettings": network_settings(app, &record),
    });
    Ok(value)
}

/// The profile it runs, or ran, under; of one that never ran, what it asks for.
fn apparmor(record: &Record) -> String {
    let profile = match record.state.started_at.is_set() {
        true => record.state.apparmor.clone(),
        false => security::parse(&record.host).ok().and_then(|security| security.apparmor),
    };
    profile.unwrap_or_default()
}

fn state(record: &Record) -> Value {
    let state = &record.state;
    let phase = state.phase;
    let mut value = json!({
        "Status": phase.name(),
        "Running": phase.is_live() || phase == Phase::Restarting,
        "Paused": phase == Phase::Paused,
        "Restarting": phase == Phase::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": false,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at,
        "FinishedAt": state.finished_at,
    });
    if let Some(health) = &state.health {
        value["Health"] = serde_json::to_value(health).unwrap_or_default();
    }
    value
}

/// `HostConfig`, with links by name and what was chosen where nothing was asked for.
fn host_config(app: &App, record: &Record) -> Value {
    let mut value = serde_json::to_value(&record.host).unwrap_or_default();
    value["Links"] = links::shown(app, record).map_or(Value::Null, Value::from);
    if value["Runtime"] == "" {
        value["Runtime"] = app.live().default_runtime().into();
    }
    // Of records that were made before it was settled at create.
    if value["CgroupnsMode"] == "" {
        value["CgroupnsMode"] = if app.unified_cgroups && !record.host.privileged { "private" } else { "host" }.into();
    }
    value
}

fn network_settings(app: &App, record: &Record) -> Value {
    let endpoint = record.state.endpoint.as_ref();
    let networks = super::networking::networks(app, record);
    // As dockerd: the fields outside of `Networks` are those of the default network.
    let network = networks.get("bridge").cloned().unwrap_or_default();
    let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
    let mut published: Map<String, Value> = Map::new();
    if record.state.phase.is_live() {
        for key in &record.config.exposed_ports.0 {
            published.insert(key.clone(), Value::Null);
        }
    }
    for port in endpoint.iter().flat_map(|e| &e.ports) {
        let entry = published.entry(ports::port_key(port.container_port, port.protocol)).or_insert(Value::Null);
        // One of a container whose own address is known outside has none on the host.
        let host_port = if port.host_port == 0 { String::new() } else { port.host_port.to_string() };
        let binding = json!({"HostIp": port.host_ip, "HostPort": host_port});
        match entry {
            Value::Array(list) => list.push(binding),
            other => *other = json!([binding]),
        }
    }
    let pid = record.state.pid;
    let sandbox = endpoint.filter(|_| pid != 0).map_or(String::new(), |_| format!("/proc/{pid}/ns/net"));
    let id = if sandbox.is_empty() { String::new() } else { record.id.clone() };
    json!({
        "Bridge": "",
        "SandboxID": id,
        "SandboxKey": sandbox,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "Ports": published,
        "EndpointID": text("EndpointID"),
        "Gateway": text("Gateway"),
        "GlobalIPv6Address": text("GlobalIPv6Address"),
        "GlobalIPv6PrefixLen": network["GlobalIPv6PrefixLen"].as_u64().unwrap_or(0),
        "IPAddress": text("IPAddress"),
        "IPPrefixLen": network["IPPrefixLen"].as_i64().unwrap_or(0),
        "IPv6Gateway": text("IPv6Gateway"),
        "MacAddress": text("MacAddress"),
        "Networks": networks,
    })
}
