//! Older versions of the API: handlers speak the current one, and what differs is put right here, on the way in and on the way
//! out. Two tables say at which version something came or went. (What an image's or `df`'s answer looks like is decided where
//! it is made: those types know their versions.)
//!
//! A request for the current version passes untouched; its body isn't read here.

use super::{ApiError, ApiResult, ApiVersion, json, json_body};
use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, Uri, header, uri::PathAndQuery},
    response::Response,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::fmt::Write as _;
use tower::ServiceExt;

/// Query arguments that an older version hasn't: method, path, key, and the version that brought it. They are ignored before,
/// as dockerd does.
const ARGUMENTS: &[(&str, &str, &str, u16)] = &[
    ("POST", "/containers/{id}/wait", "condition", 30),
    ("POST", "/images/create", "platform", 32),
    ("POST", "/containers/create", "platform", 41),
    ("GET", "/containers/{id}/stats", "one-shot", 41),
    ("POST", "/containers/{id}/stop", "signal", 42),
    ("POST", "/containers/{id}/restart", "signal", 42),
    ("GET", "/images/json", "shared-size", 42),
    ("GET", "/images/json", "manifests", 47),
    ("POST", "/images/{name...}/push", "platform", 46),
    ("GET", "/images/{name...}/json", "manifests", 48),
    ("GET", "/images/{name...}/history", "platform", 48),
    ("GET", "/images/{name...}/get", "platform", 48),
    ("GET", "/images/get", "platform", 48),
    ("POST", "/images/load", "platform", 48),
    ("GET", "/images/{name...}/json", "platform", 49),
    ("DELETE", "/images/{name...}", "platforms", 50),
];

type ChangeBody = fn(&mut Value, ApiVersion) -> ApiResult<()>;
type ChangeAnswer = fn(&mut Value, ApiVersion);

/// Bodies that change below a version.
const BODIES: &[(&str, &str, u16, ChangeBody)] = &[
    ("POST", "/containers/create", 48, create_request),
    ("POST", "/containers/{id}/update", 42, update_request),
    ("POST", "/containers/{id}/exec", 42, without_console),
    ("POST", "/exec/{id}/start", 42, without_console),
];

/// Answers that change below a version.
const ANSWERS: &[(&str, &str, u16, ChangeAnswer)] =
    &[("GET", "/info", 50, info_answer), ("GET", "/containers/{id}/json", 48, container_answer)];

fn is(method: &str, pattern: &str, request: (&Method, &str)) -> bool {
    request.0.as_str() == method && super::routes::matches(pattern, request.1)
}

/// The request as a client of the current version would have made it.
pub async fn request(version: ApiVersion, mut request: Request<Body>) -> ApiResult<Request<Body>> {
    if version == ApiVersion::CURRENT {
        return Ok(request);
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let gone: Vec<&str> = ARGUMENTS
        .iter()
        .filter(|(m, pattern, _, since)| !version.at_least(*since) && is(m, pattern, (&method, &path)))
        .map(|(_, _, key, _)| *key)
        .collect();
    let filter = !version.at_least(41) && is("GET", "/images/json", (&method, &path));
    if !gone.is_empty() || filter {
        let query = query(request.uri().query().unwrap_or_default(), &gone, filter)?;
        let target = format!("{path}?{query}").parse::<PathAndQuery>();
        *request.uri_mut() = Uri::from(target.map_err(|_| ApiError::not_found("page not found"))?);
    }
    let change =
        BODIES.iter().find(|(m, pattern, below, _)| !version.at_least(*below) && is(m, pattern, (&method, &path)));
    let Some((.., change)) = change else { return Ok(request) };
    let (mut parts, body) = request.into_parts();
    let mut value: Value = json_body(&parts.headers, body).await?;
    change(&mut value, version)?;
    let text = value.to_string();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.insert(header::CONTENT_LENGTH, text.len().into());
    Ok(Request::from_parts(parts, Body::from(text)))
}

/// The answer as a client of that version knows it.
pub async fn answer(version: ApiVersion, method: &Method, path: &str, router: &Router, response: Response) -> Response {
    if version == ApiVersion::CURRENT || !response.status().is_success() {
        return response;
    }
    let change =
        ANSWERS.iter().find(|(m, pattern, below, _)| !version.at_least(*below) && is(m, pattern, (method, path)));
    let members = !version.at_least(28) && method == Method::GET && matches!(path, "/networks" | "/networks/");
    if change.is_none() && !members {
        return response;
    }
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else {
        return axum::response::IntoResponse::into_response(ApiError::internal("an answer was cut off"));
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return axum::response::IntoResponse::into_response(ApiError::internal("an answer is no JSON"));
    };
    if let Some((.., change)) = change {
        change(&mut value, version);
    }
    if members {
        with_members(&mut value, router).await;
    }
    json(status, &value)
}

/// Without the arguments that the version hasn't; its `filter` is a filter by reference now.
fn query(text: &str, gone: &[&str], filter: bool) -> ApiResult<String> {
    let asked = super::Query::parse(Some(text));
    let keys = |pair: &&str| {
        let key = super::query::percent_decode(pair.split('=').next().unwrap_or_default());
        let rewritten = filter && matches!(key.as_str(), "filter" | "filters");
        !rewritten && !gone.contains(&key.as_str())
    };
    let mut kept: String =
        text.split('&').filter(|pair| !pair.is_empty()).filter(keys).flat_map(|p| [p, "&"]).collect();
    if filter {
        let mut filters: Value = match asked.get("filters") {
            Some(text) => serde_json::from_str(text).map_err(|e| ApiError::invalid(format!("invalid filter: {e}")))?,
            None => json!({}),
        };
        if let (Some(reference), Some(map)) = (asked.get("filter"), filters.as_object_mut()) {
            map.insert("reference".into(), json!([reference]));
        }
        kept.push_str("filters=");
        for byte in filters.to_string().bytes() {
            let _ = write!(kept, "%{byte:02X}");
        }
    }
    Ok(kept)
}

/// `POST /containers/create`
fn create_request(body: &mut Value, version: ApiVersion) -> ApiResult<()> {
    if !version.at_least(44)
        && let Some(check) = body.get_mut("Healthcheck").and_then(Value::as_object_mut)
    {
        check.remove("StartInterval");
    }
    if !version.at_least(48) {
        let endpoints = body.pointer_mut("/NetworkingConfig/EndpointsConfig").and_then(Value::as_object_mut);
        for endpoint in endpoints.into_iter().flat_map(serde_json::Map::values_mut).filter_map(Value::as_object_mut) {
            endpoint.remove("GwPriority");
            if !version.at_least(44) {
                // The container's own address it was then.
                endpoint.remove("MacAddress");
            }
        }
    }
    let Some(host) = body.get_mut("HostConfig").and_then(Value::as_object_mut) else { return Ok(()) };
    let empty = |value: Option<&Value>| value.is_none_or(crate::api::serial::is_zero);
    if !version.at_least(25) {
        // Clients of that time removed the container themselves.
        host.remove("AutoRemove");
    }
    if !version.at_least(40) {
        for key in ["KernelMemoryTCP", "Capabilities"] {
            host.remove(key);
        }
        if empty(host.get("IpcMode")) {
            host.insert("IpcMode".into(), "shareable".into());
        }
        if host.get("PidsLimit").and_then(Value::as_i64).is_some_and(|limit| limit <= 0) {
            host.remove("PidsLimit");
        }
    }
    if !version.at_least(41) && empty(host.get("CgroupnsMode")) && !crate::app::is_cgroup2() {
        host.insert("CgroupnsMode".into(), "host".into());
    }
    if !version.at_least(42) {
        host.remove("ConsoleSize");
    } else {
        host.remove("KernelMemory");
    }
    if !version.at_least(43) {
        host.remove("Annotations");
    }
    let Some(mounts) = host.get_mut("Mounts").and_then(Value::as_array_mut) else { return Ok(()) };
    for mount in mounts {
        if mount["Type"] == "image" {
            return Err(ApiError::invalid(format!(
                "mount type \"image\" needs API version 1.48, and this request is for {version}"
            )));
        }
        if !version.at_least(45) && !empty(mount.pointer("/VolumeOptions/Subpath")) {
            return Err(ApiError::invalid("VolumeOptions.Subpath needs API v1.45 or newer"));
        }
        let forced = mount.pointer("/BindOptions/ReadOnlyForceRecursive") == Some(&Value::Bool(true));
        if !version.at_least(44) && mount["Type"] == "bind" && forced {
            return Err(ApiError::invalid("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer"));
        }
        if let Some(bind) = mount.get_mut("BindOptions").and_then(Value::as_object_mut) {
            for (key, since) in [
                ("NonRecursive", 40),
                ("CreateMountpoint", 42),
                ("ReadOnlyNonRecursive", 44),
                ("ReadOnlyForceRecursive", 44),
            ] {
                if !version.at_least(since) {
                    bind.remove(key);
                }
            }
        }
        // What was read-only then was so at its top alone.
        let read_only = mount.get("ReadOnly") == Some(&Value::Bool(true));
        if !version.at_least(44) && mount["Type"] == "bind" && read_only {
            if !mount["BindOptions"].is_object() {
                mount["BindOptions"] = json!({});
            }
            mount["BindOptions"]["ReadOnlyNonRecursive"] = true.into();
        }
    }
    Ok(())
}

/// `POST /containers/{id}/update`
fn update_request(body: &mut Value, version: ApiVersion) -> ApiResult<()> {
    let Some(fields) = body.as_object_mut() else { return Ok(()) };
    if !version.at_least(40) {
        fields.remove("PidsLimit");
    }
    Ok(())
}

fn without_console(body: &mut Value, _: ApiVersion) -> ApiResult<()> {
    if let Some(fields) = body.as_object_mut() {
        fields.remove("ConsoleSize");
    }
    Ok(())
}

/// `GET /info`
fn info_answer(body: &mut Value, version: ApiVersion) {
    let Some(info) = body.as_object_mut() else { return };
    if !version.at_least(50) {
        info.remove("DiscoveredDevices");
        info.insert("BridgeNfIptables".into(), false.into());
        info.insert("BridgeNfIp6tables".into(), false.into());
    }
    if !version.at_least(49) {
        info.remove("FirewallBackend");
        for key in ["ContainerdCommit", "RuncCommit", "InitCommit"] {
            if let Some(commit) = info.get_mut(key) {
                commit["Expected"] = commit["ID"].clone();
            }
        }
    }
    if !version.at_least(47)
        && let Some(registries) = info.get_mut("RegistryConfig").and_then(Value::as_object_mut)
    {
        registries.insert("AllowNondistributableArtifactsCIDRs".into(), json!([]));
        registries.insert("AllowNondistributableArtifactsHostnames".into(), json!([]));
    }
    if !version.at_least(46) {
        info.remove("Containerd");
    }
    if !version.at_least(44) {
        for runtime in
            info.get_mut("Runtimes").and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut())
        {
            runtime.as_object_mut().map(|fields| fields.remove("status"));
        }
    }
    if !version.at_least(42) {
        // The kernel took these limits away in 5.16.
        info.insert("KernelMemory".into(), false.into());
        info.insert("KernelMemoryTCP".into(), false.into());
    }
    if !version.at_least(25) {
        info.insert("ExecutionDriver".into(), "<not supported>".into());
        if let Some(options) = info.get_mut("SecurityOptions").and_then(Value::as_array_mut) {
            for option in options {
                let word = option.as_str().and_then(|text| text.split(',').next()?.strip_prefix("name="));
                if let Some(word) = word.map(str::to_owned) {
                    *option = word.into();
                }
            }
        }
    }
}

/// `GET /containers/{id}/json`
fn container_answer(body: &mut Value, version: ApiVersion) {
    let id = body["Id"].as_str().unwrap_or_default().get(..12).unwrap_or_default().to_owned();
    let networks = body.pointer_mut("/NetworkSettings/Networks").and_then(Value::as_object_mut);
    for (name, endpoint) in networks.into_iter().flatten() {
        let Some(fields) = endpoint.as_object_mut() else { continue };
        fields.remove("GwPriority");
        if !version.at_least(44) {
            fields.remove("DNSNames");
        }
        let predefined =
            matches!(name.as_str(), "bridge" | "host" | "none" | "default") || name.starts_with("container:");
        if !version.at_least(45) && !predefined && !id.is_empty() {
            let aliases = fields.entry("Aliases").or_insert(Value::Null);
            if !aliases.is_array() {
                *aliases = json!([]);
            }
            if let Some(list) = aliases.as_array_mut().filter(|list| !list.iter().any(|alias| *alias == *id)) {
                list.push(id.clone().into());
            }
        }
    }
    if let Some(fields) = body.as_object_mut() {
        fields.remove("ImageManifestDescriptor");
    }
    if !version.at_least(44)
        && let Some(check) = body.pointer_mut("/Config/Healthcheck").and_then(Value::as_object_mut)
    {
        check.remove("StartInterval");
    }
}

/// Before 1.28 the list of networks tells who is on each.
async fn with_members(rows: &mut Value, router: &Router) {
    for row in rows.as_array_mut().into_iter().flatten() {
        let Some(id) = row["Id"].as_str() else { continue };
        let asked =
            Request::builder().uri(format!("/networks/{id}")).extension(ApiVersion::CURRENT).body(Body::empty());
        let Ok(asked) = asked else { continue };
        let answer = router.clone().oneshot(asked).await.unwrap_or_else(|never| match never {});
        let Ok(body) = answer.into_body().collect().await else { continue };
        let whole: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        if whole["Containers"].is_object() {
            row["Containers"] = whole["Containers"].clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(minor: u16, change: fn(&mut Value, ApiVersion) -> ApiResult<()>, mut value: Value) -> ApiResult<Value> {
        change(&mut value, ApiVersion::v1(minor)).map(|()| value)
    }

    #[test]
    fn creates_of_older_clients() {
        let full = json!({
            "Healthcheck": {"StartInterval": 5, "Interval": 6},
            "HostConfig": {
                "AutoRemove": true, "Annotations": {"a": "b"}, "ConsoleSize": [1, 2], "KernelMemoryTCP": 1, "KernelMemory": 1,
                "PidsLimit": 0, "IpcMode": "",
                "Mounts": [{"Type": "bind", "BindOptions": {"NonRecursive": true, "CreateMountpoint": true, "ReadOnlyNonRecursive": true}}],
            },
            "NetworkingConfig": {"EndpointsConfig": {"n": {"GwPriority": 3, "MacAddress": "m"}}},
        });
        // version, pointer, whether it is still there
        for (minor, pointer, there) in [
            (24, "/HostConfig/AutoRemove", false),
            (25, "/HostConfig/AutoRemove", true),
            (39, "/HostConfig/KernelMemoryTCP", false),
            (40, "/HostConfig/KernelMemoryTCP", true),
            (41, "/HostConfig/KernelMemory", true),
            (42, "/HostConfig/KernelMemory", false),
            (39, "/HostConfig/PidsLimit", false),
            (41, "/HostConfig/ConsoleSize", false),
            (42, "/HostConfig/ConsoleSize", true),
            (42, "/HostConfig/Annotations", false),
            (43, "/HostConfig/Annotations", true),
            (43, "/Healthcheck/StartInterval", false),
            (44, "/Healthcheck/StartInterval", true),
            (24, "/Healthcheck/Interval", true),
            (39, "/HostConfig/Mounts/0/BindOptions/NonRecursive", false),
            (40, "/HostConfig/Mounts/0/BindOptions/NonRecursive", true),
            (41, "/HostConfig/Mounts/0/BindOptions/CreateMountpoint", false),
            (43, "/HostConfig/Mounts/0/BindOptions/ReadOnlyNonRecursive", false),
            (44, "/HostConfig/Mounts/0/BindOptions/ReadOnlyNonRecursive", true),
            (43, "/NetworkingConfig/EndpointsConfig/n/MacAddress", false),
            (44, "/NetworkingConfig/EndpointsConfig/n/MacAddress", true),
            (47, "/NetworkingConfig/EndpointsConfig/n/GwPriority", false),
            (48, "/NetworkingConfig/EndpointsConfig/n/GwPriority", true),
        ] {
            let changed = body(minor, create_request, full.clone()).unwrap();
            assert_eq!(changed.pointer(pointer).is_some(), there, "1.{minor} {pointer}");
        }
        assert_eq!(body(39, create_request, full.clone()).unwrap()["HostConfig"]["IpcMode"], "shareable");
        assert_eq!(body(40, create_request, full).unwrap()["HostConfig"]["IpcMode"], "");
        let read_only = json!({"HostConfig": {"Mounts": [{"Type": "bind", "ReadOnly": true}]}});
        let top_alone = "/HostConfig/Mounts/0/BindOptions/ReadOnlyNonRecursive";
        for (minor, there) in [(43, Some(&Value::Bool(true))), (44, None)] {
            assert_eq!(body(minor, create_request, read_only.clone()).unwrap().pointer(top_alone), there, "1.{minor}");
        }
        let force =
            json!({"HostConfig": {"Mounts": [{"Type": "bind", "BindOptions": {"ReadOnlyForceRecursive": true}}]}});
        assert!(body(43, create_request, force.clone()).is_err() && body(44, create_request, force).is_ok());
        let image = json!({"HostConfig": {"Mounts": [{"Type": "image"}]}});
        assert!(body(47, create_request, image).unwrap_err().message.contains("1.48"));
        let subpath = json!({"HostConfig": {"Mounts": [{"Type": "volume", "VolumeOptions": {"Subpath": "a"}}]}});
        assert!(body(44, create_request, subpath.clone()).is_err());
        assert!(body(45, create_request, subpath).is_ok());
        for odd in [
            json!(null),
            json!([]),
            json!({"HostConfig": 1, "Healthcheck": []}),
            json!({"HostConfig": {"Mounts": [1]}}),
        ] {
            assert!(body(24, create_request, odd.clone()).is_ok(), "{odd}");
        }
    }

    #[test]
    fn arguments_of_older_clients() {
        for (text, gone, filter, expected) in [
            ("condition=removed&x=1", &["condition"][..], false, "x=1&"),
            ("c%6Fndition=removed", &["condition"], false, ""),
            ("all=1", &[], true, "all=1&filters=%7B%7D"),
        ] {
            assert_eq!(query(text, gone, filter).unwrap(), expected);
        }
        let text = query("filter=a:1&filters={\"label\":[\"x\"]}", &[], true).unwrap();
        let filters = super::super::Query::parse(Some(&text));
        let filters = filters.filters(&["label", "reference"]).unwrap();
        assert_eq!(filters.values("reference").collect::<Vec<_>>(), ["a:1"]);
        assert_eq!(filters.values("label").collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn info_of_each_version() {
        let now = json!({
            "FirewallBackend": {}, "DiscoveredDevices": [], "Containerd": {}, "ContainerdCommit": {"ID": "c"},
            "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""}, "RegistryConfig": {}, "Runtimes": {"r": {"path": "r", "status": {}}},
            "SecurityOptions": ["name=seccomp,profile=builtin"],
        });
        for (minor, pointer, there) in [
            (49, "/BridgeNfIptables", true),
            (49, "/DiscoveredDevices", false),
            (49, "/FirewallBackend", true),
            (48, "/FirewallBackend", false),
            (48, "/ContainerdCommit/Expected", true),
            (49, "/ContainerdCommit/Expected", false),
            (46, "/RegistryConfig/AllowNondistributableArtifactsCIDRs", true),
            (47, "/RegistryConfig/AllowNondistributableArtifactsCIDRs", false),
            (46, "/Containerd", true),
            (45, "/Containerd", false),
            (44, "/Runtimes/r/status", true),
            (43, "/Runtimes/r/status", false),
            (41, "/KernelMemory", true),
            (42, "/KernelMemory", false),
            (24, "/ExecutionDriver", true),
            (25, "/ExecutionDriver", false),
        ] {
            let mut value = now.clone();
            info_answer(&mut value, ApiVersion::v1(minor));
            assert_eq!(value.pointer(pointer).is_some(), there, "1.{minor} {pointer}");
            let word = if minor < 25 { "seccomp" } else { "name=seccomp,profile=builtin" };
            assert_eq!(value["SecurityOptions"][0], word);
        }
    }

    #[test]
    fn aliases_and_priorities() {
        let now = json!({"Id": "a".repeat(64), "ImageManifestDescriptor": {}, "NetworkSettings": {"Networks": {
            "bridge": {"Aliases": null, "GwPriority": 0, "DNSNames": null},
            "mine": {"Aliases": ["x"], "GwPriority": 0, "DNSNames": ["x"]},
        }}});
        let of = |minor| {
            let mut value = now.clone();
            container_answer(&mut value, ApiVersion::v1(minor));
            assert!(value.get("ImageManifestDescriptor").is_none());
            value["NetworkSettings"]["Networks"].clone()
        };
        assert_eq!(of(44)["mine"], json!({"Aliases": ["x", "aaaaaaaaaaaa"], "DNSNames": ["x"]}));
        assert_eq!(of(43)["mine"], json!({"Aliases": ["x", "aaaaaaaaaaaa"]}));
        assert_eq!(of(45)["mine"], json!({"Aliases": ["x"], "DNSNames": ["x"]}));
        assert_eq!(of(24)["bridge"], json!({"Aliases": null}));
    }
}
