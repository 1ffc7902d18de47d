//! Networks of the user, made and removed, and a container that joins and leaves them while it lives; every step repeated until
//! it succeeded.

use crate::{life, walk::Scene};
use integration_tests::{faults::Fault, run};
use serde_json::{Value, json};

fn network(fault: &Fault<'_>, name: &str) {
    // 409: it was made before the engine died.
    // One of them of both families.
    let body = json!({ "Name": name, "EnableIPv6": name == "two" });
    fault.ask("POST", "/networks/create", Some(&body), &[201, 409]);
}

fn change(fault: &Fault<'_>, network: &str, what: &str, container: &str) {
    // 403: it was done before the engine died.
    let body = json!({ "Container": container });
    fault.ask("POST", &format!("/networks/{network}/{what}"), Some(&body), &[200, 403]);
}

/// The networks that a container is on and its addresses there.
fn members(fault: &Fault<'_>, name: &str) -> Vec<(String, String)> {
    let inspect = fault.ask("GET", &format!("/containers/{name}/json"), None, &[200]);
    let networks = inspect["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
    let address = |value: &Value| value["IPAddress"].as_str().unwrap_or_default().to_owned();
    networks.iter().map(|(network, value)| (network.clone(), address(value))).collect()
}

/// The kernel has what the record says: addresses, and a default route by the only way out.
fn assert_true(fault: &Fault<'_>, name: &str, networks: &[&str]) {
    fault.settle();
    fault.step("networks are what they should be", || {
        let members = members(fault, name);
        if members.iter().map(|(network, _)| network.as_str()).collect::<Vec<_>>() != networks {
            return Err(format!("{members:?}"));
        }
        let pid = life::state(fault, name)["Pid"].to_string();
        let inside = ["-t", pid.as_str(), "-n"];
        let run = |command: &[&str]| run("nsenter", inside.iter().chain(command)).stdout();
        let (addresses, routes) = (run(&["ip", "-o", "-4", "addr", "show"]), run(&["ip", "route"]));
        let links = addresses.lines().filter(|line| line.contains(" eth")).count();
        let known = members.iter().all(|(_, ip)| !ip.is_empty() && addresses.contains(&format!("{ip}/")));
        let named = run(&["busybox", "nslookup", "-type=a", name, "127.0.0.11"]);
        let answers = members.iter().any(|(_, ip)| named.contains(&format!("Address: {ip}")));
        match known && links == networks.len() && routes.contains("default via") && answers {
            true => Ok(()),
            false => Err(format!("{members:?}\n{addresses}\n{routes}\n{named}")),
        }
    });
}

/// Changes the ports that a container publishes.
fn publish(fault: &Fault<'_>, name: &str, ports: &[u16]) {
    let binding = |port: &u16| json!({ "HostIp": "127.0.0.1", "HostPort": port.to_string() });
    let bindings: Vec<Value> = ports.iter().map(binding).collect();
    let body = json!({ "PortBindings": { "80/tcp": bindings } });
    fault.ask("POST", &format!("/containers/{name}/update"), Some(&body), &[200]);
    fault.settle();
    fault.step("ports are what they should be", || {
        let inspect = fault.ask("GET", &format!("/containers/{name}/json"), None, &[200]);
        let shown = &inspect["NetworkSettings"]["Ports"]["80/tcp"];
        let rules = run("nft", ["list", "ruleset"]).stdout();
        let led = ports.iter().all(|port| rules.contains(&format!("tcp . 127.0.0.1 . {port} :")));
        match *shown == json!(bindings) && led {
            true => Ok(()),
            false => Err(format!("{shown}\n{rules}")),
        }
    });
}

/// Two networks, a container on the first; it joins the second, leaves the first, and all goes.
pub fn networks(_: &Scene, fault: &Fault<'_>) {
    let name = "member";
    fault.arm();
    network(fault, "one");
    network(fault, "two");
    let gateway = fault.stack().gateway();
    let port = 25_000 + gateway.split('.').nth(2).and_then(|n| n.parse::<u16>().ok()).unwrap_or(0);
    let body = json!({
        "Image": "busybox", "Cmd": ["sh", "-c", life::SCRIPT], "ExposedPorts": { "80/tcp": {} },
        "HostConfig": {
            "NetworkMode": "one",
            "PortBindings": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": port.to_string() }] },
        },
    });
    fault.ask("POST", &format!("/containers/create?name={name}"), Some(&body), &[201, 409]);
    life::start(fault, name);
    assert_true(fault, name, &["one"]);
    change(fault, "two", "connect", name);
    assert_true(fault, name, &["one", "two"]);
    publish(fault, name, &[port, port + 1000]);
    publish(fault, name, &[port + 1000]);
    assert_true(fault, name, &["one", "two"]);
    change(fault, "one", "disconnect", name);
    assert_true(fault, name, &["two"]);
    fault.ask("POST", &format!("/containers/{name}/kill"), None, &[204, 409]);
    fault.settle();
    life::remove(fault, name);
    for network in ["one", "two"] {
        fault.ask("DELETE", &format!("/networks/{network}"), None, &[204, 404]);
    }
    fault.settle();
    let left = fault.ask("GET", "/networks", None, &[200]);
    assert_eq!(left.as_array().map(Vec::len), Some(3), "{}: {left}", fault.point);
}
