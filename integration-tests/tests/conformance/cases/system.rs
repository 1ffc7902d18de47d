//! Ping, versions, unknown paths, info, df, auth.

use crate::{cases, run::Run};
use serde_json::{Value, json};

cases!(
    ping,
    versions,
    unknown_paths,
    version_shape,
    info_shape,
    df,
    auth,
    double_slash,
    head_of_get,
    options_preflight
);

fn ping(run: &mut Run) {
    run.plain(200, "GET", "/_ping");
    run.plain(200, "HEAD", "/_ping");
    run.plain(200, "GET", "/v1.41/_ping");
    run.plain(200, "HEAD", "/v1.40/_ping");
}

fn versions(run: &mut Run) {
    run.plain(200, "GET", "/v1.24/containers/json");
    run.plain(200, "GET", "/containers/json");
    run.plain(400, "GET", "/v9.99/containers/json");
    run.plain(400, "GET", "/v1.11/containers/json");
    run.plain(400, "GET", "/v1/containers/json");
    run.plain(404, "GET", "/vx/containers/json");
}

fn unknown_paths(run: &mut Run) {
    run.refused(404, "GET", "/nothing", None, "page not found");
    run.refused(404, "PATCH", "/containers/json", None, "page not found");
    run.refused(404, "PUT", "/containers/create", None, "page not found");
    run.plain(404, "GET", "/");
    run.plain(404, "POST", "/containers/json");
}

fn double_slash(run: &mut Run) {
    run.get(200, "/networks/");
}

fn head_of_get(run: &mut Run) {
    run.plain(404, "HEAD", "/v1.41/containers/json");
}

fn options_preflight(run: &mut Run) {
    run.plain(200, "OPTIONS", "/v1.41/containers/json");
}

// Only the types: what an engine is differs.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
        Value::Array(items) => json!([items.first().map(shape)]),
        Value::Object(fields) => Value::Object(fields.iter().map(|(k, v)| (k.clone(), shape(v))).collect()),
    }
}

fn version_shape(run: &mut Run) {
    let version: Value = serde_json::from_slice(&run.quietly("GET", "/version", None).body).unwrap();
    let mut shape = shape(&version);
    shape["Components"] = json!(version["Components"].is_array());
    run.note("shape of version", shape);
}

fn info_shape(run: &mut Run) {
    let info: Value = serde_json::from_slice(&run.quietly("GET", "/info", None).body).unwrap();
    let mut shape = shape(&info);
    for (key, kind) in [("Runtimes", info["Runtimes"].is_object()), ("DriverStatus", info["DriverStatus"].is_array())] {
        shape[key] = json!(kind);
    }
    run.note("shape of info", shape);
    let same = [
        "MemoryLimit",
        "SwapLimit",
        "KernelMemoryTCP",
        "CpuCfsPeriod",
        "CpuCfsQuota",
        "CPUShares",
        "CPUSet",
        "PidsLimit",
        "IPv4Forwarding",
        "BridgeNfIptables",
        "OomKillDisable",
        "LoggingDriver",
        "CgroupDriver",
        "CgroupVersion",
        "KernelVersion",
        "OperatingSystem",
        "OSVersion",
        "OSType",
        "Architecture",
        "IndexServerAddress",
        "NCPU",
        "MemTotal",
        "HttpProxy",
        "Name",
        "Labels",
        "ExperimentalBuild",
        "Swarm",
        "Isolation",
        "GenericResources",
        "Containers",
        "ContainersRunning",
        "ContainersPaused",
        "ContainersStopped",
        "Images",
        "Driver",
    ];
    for key in same {
        run.note(&format!("info {key}"), info[key].clone());
    }
}

fn df(run: &mut Run) {
    run.start("one", &crate::run::waiting());
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "kept", "Labels": {"a": "b"}})));
    run.get(200, "/system/df");
    run.get(200, "/system/df?type=container");
}

fn auth(run: &mut Run) {
    run.send(400, "POST", "/auth", b"{", "Content-Type: application/json\r\n");
}
