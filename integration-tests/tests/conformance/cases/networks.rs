//! Networks.

use crate::{
    cases,
    run::{Run, encode, sh, waiting, with_host},
};
use serde_json::{Value, json};

cases!(
    predefined,
    life,
    refusals,
    filters,
    prune,
    connect,
    containers_on_it,
    names_resolve,
    static_addresses,
    internal,
    dual_stack,
    configurations,
    several_at_once
);

fn predefined(run: &mut Run) {
    let listed = run.get(200, "/networks");
    run.note("how many", json!(listed.as_array().map(Vec::len)));
    for name in ["none", "host"] {
        run.get(200, &format!("/networks/{name}"));
        run.refused(
            403,
            "DELETE",
            &format!("/networks/{name}"),
            None,
            "is a pre-defined network and cannot be removed",
        );
    }
    run.ask(403, "POST", "/networks/create", Some(&json!({"Name": "host"})));
    run.start("web", &waiting());
    run.get(200, "/networks/bridge");
}

fn life(run: &mut Run) {
    let body = json!({"Name": "net", "Labels": {"a": "b"}, "Options": {"com.docker.network.bridge.name": "bconfnet"},
        "IPAM": {"Config": [{"Subnet": "10.77.1.0/24", "Gateway": "10.77.1.1"}]}});
    run.ask(201, "POST", "/networks/create", Some(&body));
    run.get(200, "/networks/net");
    let id = run.quietly("GET", "/networks/net", None).json()["Id"].as_str().unwrap_or_default().to_owned();
    let short = run.quietly("GET", &format!("/networks/{}", &id[..12.min(id.len())]), None);
    run.note("by a short id", json!(short.status));
    run.refused(
        409,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "net", "CheckDuplicate": true})),
        "network with name net already exists",
    );
    run.delete(204, "/networks/net");
    run.refused(404, "GET", "/networks/net", None, "network net not found");
    run.delete(404, "/networks/net");
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "plain"})));
    run.get(200, "/networks/plain");
}

fn refusals(run: &mut Run) {
    run.ask(400, "POST", "/networks/create", Some(&json!({"Name": ""})));
    run.ask(404, "POST", "/networks/create", Some(&json!({"Name": "x", "Driver": "nowhere"})));
    run.ask(400, "POST", "/networks/create", Some(&json!({"Name": "x", "IPAM": {"Config": [{"Subnet": "odd"}]}})));
    run.ask(
        400,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "x", "IPAM": {"Config": [{"Subnet": "10.77.1.0/24", "Gateway": "10.78.0.1"}]}})),
    );
    run.ask(
        201,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "taken", "IPAM": {"Config": [{"Subnet": "10.77.2.0/24"}]}})),
    );
    run.refused(
        403,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "y", "IPAM": {"Config": [{"Subnet": "10.77.2.0/25"}]}})),
        "Pool overlaps with other one on this address space",
    );
    run.send(400, "POST", "/networks/create", b"{", "Content-Type: application/json\r\n");
    run.get(400, "/networks?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.ask(404, "POST", "/networks/nowhere/connect", Some(&json!({"Container": "x"})));
    run.ask(404, "POST", "/networks/nowhere/disconnect", Some(&json!({"Container": "x"})));
    run.ask(404, "POST", "/networks/taken/connect", Some(&json!({"Container": "nobody"})));
    run.send(400, "POST", "/networks/taken/connect", b"{", "Content-Type: application/json\r\n");
}

fn named(answer: &integration_tests::http::Answer) -> Value {
    let listed: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let mut names: Vec<String> = listed.as_array().into_iter().flatten().map(|n| n["Name"].to_string()).collect();
    names.sort();
    json!([answer.status, names])
}

fn filters(run: &mut Run) {
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "first", "Labels": {"a": "1"}})));
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "second", "Internal": true})));
    for filter in [
        json!({"name": ["fir"]}),
        json!({"label": ["a=1"]}),
        json!({"label": ["b"]}),
        json!({"driver": ["bridge"]}),
        json!({"driver": ["null"]}),
        json!({"type": ["custom"]}),
        json!({"type": ["builtin"]}),
        json!({"type": ["odd"]}),
        json!({"scope": ["local"]}),
        json!({"scope": ["swarm"]}),
        json!({"dangling": ["true"]}),
        json!({"dangling": ["odd"]}),
        json!({"name": ["first", "second"]}),
    ] {
        let answer = run.quietly("GET", &format!("/networks?filters={}", encode(&filter.to_string())), None);
        run.note(&filter.to_string(), named(&answer));
    }
}

fn prune(run: &mut Run) {
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "gone"})));
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "kept", "Labels": {"keep": "1"}})));
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "used"})));
    run.start("web", &with_host(waiting(), json!({"NetworkMode": "used"})));
    run.post(200, "/networks/prune?filters=%7B%22label%21%22%3A%5B%22keep%22%5D%7D");
    run.post(400, "/networks/prune?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.post(200, "/networks/prune");
    run.post(200, "/networks/prune");
    run.refused(403, "DELETE", "/networks/used", None, "has active endpoints");
}

fn connect(run: &mut Run) {
    run.ask(
        201,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "net", "IPAM": {"Config": [{"Subnet": "10.77.3.0/24"}]}})),
    );
    run.start("web", &waiting());
    run.ask(
        200,
        "POST",
        "/networks/net/connect",
        Some(&json!({"Container": "web", "EndpointConfig": {"Aliases": ["www"]}})),
    );
    run.inspect("web", &["/NetworkSettings/Networks/net"]);
    run.get(200, "/networks/net");
    run.refused(
        403,
        "POST",
        "/networks/net/connect",
        Some(&json!({"Container": "web"})),
        "already exists in network net",
    );
    run.ask(200, "POST", "/networks/net/disconnect", Some(&json!({"Container": "web"})));
    run.ask(500, "POST", "/networks/net/disconnect", Some(&json!({"Container": "web"})));
    run.inspect("web", &["/NetworkSettings/Networks/net"]);
    run.create("made", &waiting());
    run.ask(200, "POST", "/networks/net/connect", Some(&json!({"Container": "made"})));
    run.inspect("made", &["/NetworkSettings/Networks/net"]);
    run.post(204, "/containers/made/start");
    run.inspect("made", &["/NetworkSettings/Networks/net"]);
    run.ask(400, "POST", "/networks/host/connect", Some(&json!({"Container": "web"})));
    run.start("hosted", &with_host(waiting(), json!({"NetworkMode": "host"})));
    run.ask(400, "POST", "/networks/net/connect", Some(&json!({"Container": "hosted"})));
}

fn containers_on_it(run: &mut Run) {
    run.ask(
        201,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "net", "IPAM": {"Config": [{"Subnet": "10.77.4.0/24"}]}})),
    );
    let mut config = with_host(waiting(), json!({"NetworkMode": "net"}));
    config["NetworkingConfig"] = json!({"EndpointsConfig": {"net": {"Aliases": ["db", "store"]}}});
    run.start("web", &config);
    run.inspect("web", &["/NetworkSettings", "/HostConfig/NetworkMode"]);
    run.get(200, "/networks/net");
    run.get(200, "/containers/json");
    run.refused(403, "DELETE", "/networks/net", None, "has active endpoints");
    run.delete(204, "/containers/web?force=1");
    run.delete(204, "/networks/net");
}

fn names_resolve(run: &mut Run) {
    run.ask(
        201,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "net", "IPAM": {"Config": [{"Subnet": "10.77.5.0/24"}]}})),
    );
    let mut config = with_host(waiting(), json!({"NetworkMode": "net"}));
    config["NetworkingConfig"] =
        json!({"EndpointsConfig": {"net": {"Aliases": ["db"], "IPAMConfig": {"IPv4Address": "10.77.5.9"}}}});
    run.start("server", &config);
    for name in ["server", "db"] {
        let script =
            format!("ping -c 1 -W 2 {name} | head -1 | cut -d' ' -f2,3; cat /etc/resolv.conf | grep nameserver");
        run.runs(&format!("asks-{name}"), &with_host(sh(&script), json!({"NetworkMode": "net"})));
    }
    run.runs(
        "lost",
        &with_host(sh("ping -c 1 -W 1 nobody.test > /dev/null 2>&1 || echo unknown"), json!({"NetworkMode": "net"})),
    );
}

fn static_addresses(run: &mut Run) {
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "net", "IPAM": {"Config": [{"Subnet": "10.77.6.0/24", "IPRange": "10.77.6.128/25", "AuxiliaryAddresses": {"x": "10.77.6.130"}}]}})));
    run.get(200, "/networks/net");
    let with_address = |address: &str| {
        let mut config = with_host(waiting(), json!({"NetworkMode": "net"}));
        config["NetworkingConfig"] = json!({"EndpointsConfig": {"net": {"IPAMConfig": {"IPv4Address": address}}}});
        config
    };
    run.start("static", &with_address("10.77.6.20"));
    run.inspect("static", &["/NetworkSettings/Networks/net/IPAddress", "/NetworkSettings/Networks/net/IPAMConfig"]);
    run.start("pooled", &with_host(waiting(), json!({"NetworkMode": "net"})));
    let address =
        run.quietly("GET", "/containers/pooled/json", None).json()["NetworkSettings"]["Networks"]["net"]["IPAddress"]
            .clone();
    let last: u32 = address.as_str().unwrap_or_default().rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    run.note("the address is of the range", json!(last >= 128));
    run.create("again", &with_address("10.77.6.20"));
    let refused = run.quietly("POST", "/containers/again/start", None).status;
    run.note("an address that is taken", json!(refused));
    let outside = run.quietly("POST", "/containers/create?name=outside", Some(&with_address("10.99.0.1"))).status;
    let started = run.quietly("POST", "/containers/outside/start", None).status;
    run.note("an address from elsewhere is refused", json!(outside >= 400 || started >= 400));
}

fn internal(run: &mut Run) {
    run.ask(
        201,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "inner", "Internal": true, "IPAM": {"Config": [{"Subnet": "10.77.7.0/24"}]}})),
    );
    run.runs("web", &with_host(sh("ip route | grep -c default"), json!({"NetworkMode": "inner"})));
    run.get(200, "/networks/inner");
}

fn dual_stack(run: &mut Run) {
    let config = json!([{"Subnet": "10.77.8.0/24"}, {"Subnet": "fd77:8::/64", "Gateway": "fd77:8::1"}]);
    run.ask(
        201,
        "POST",
        "/networks/create",
        Some(&json!({"Name": "both", "EnableIPv6": true, "IPAM": {"Config": config}})),
    );
    run.get(200, "/networks/both");
    let with_address = |address: &str| {
        let ports = json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]});
        let mut config = with_host(waiting(), json!({"NetworkMode": "both", "PortBindings": ports}));
        config["NetworkingConfig"] = json!({"EndpointsConfig": {"both": {"IPAMConfig": {"IPv6Address": address}}}});
        config
    };
    run.start("server", &with_address("fd77:8::99"));
    run.inspect("server", &["/NetworkSettings/Networks/both"]);
    run.get(200, "/networks/both");
    // A kernel takes its time to find out that nobody else has the bridge's address.
    let script = "ip -6 addr show dev eth0 scope global | grep -c fd77:8; ip -6 route show default | cut -d' ' -f1-5; \
                  ping -6 -c 1 -W 2 server | head -1 | cut -d' ' -f2,3; \
                  n=0; until ping -c 1 -W 1 fd77:8::1 >/dev/null || [ $n = 20 ]; do n=$((n+1)); usleep 100000; done; \
                  ping -c 1 -W 2 fd77:8::1 | grep -c '1 packets received'";
    run.runs("asks", &with_host(sh(script), json!({"NetworkMode": "both"})));
    run.create("again", &with_address("fd77:8::99"));
    let refused = run.quietly("POST", "/containers/again/start", None).status;
    run.note("an address that is taken", json!(refused));
    run.delete(204, "/containers/server?force=1");
    run.delete(204, "/containers/again?force=1");
    run.delete(204, "/networks/both");
}

fn configurations(run: &mut Run) {
    let held = json!({"Name": "held", "ConfigOnly": true, "Options": {"com.docker.network.driver.mtu": "1400"},
        "IPAM": {"Config": [{"Subnet": "10.77.9.0/24"}]}});
    run.ask(201, "POST", "/networks/create", Some(&held));
    run.get(200, "/networks/held");
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "made", "ConfigFrom": {"Network": "held"}})));
    run.get(200, "/networks/made");
    run.runs("mtu", &with_host(sh("cat /sys/class/net/eth0/mtu"), json!({"NetworkMode": "made"})));
    run.create("on-held", &with_host(waiting(), json!({"NetworkMode": "held"})));
    let refused = run.quietly("POST", "/containers/on-held/start", None).status;
    run.note("a container on what only holds a configuration", json!(refused >= 400));
    let removed = run.quietly("DELETE", "/networks/held", None).status;
    run.note("the held one is removed while used", json!(removed));
    run.delete(204, "/networks/made");
    run.delete(204, "/networks/held");
}

/// What a script prints in a container.
fn said(run: &mut Run, name: &str, step: &str, script: &str) {
    let body = json!({"AttachStdout": true, "Tty": true, "Cmd": ["sh", "-c", script]});
    let made = run.quietly("POST", &format!("/containers/{name}/exec"), Some(&body)).json();
    let id = made["Id"].as_str().unwrap_or_default().to_owned();
    let answer = run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Tty": true})));
    run.note(step, json!(String::from_utf8_lossy(&answer.body)));
}

fn several_at_once(run: &mut Run) {
    for (name, subnet) in [("back", "10.77.10.0/24"), ("front", "10.77.11.0/24")] {
        let body = json!({"Name": name, "Internal": name == "back", "IPAM": {"Config": [{"Subnet": subnet}]}});
        run.ask(201, "POST", "/networks/create", Some(&body));
    }
    run.start("db", &with_host(waiting(), json!({"NetworkMode": "back"})));
    run.start("web", &with_host(waiting(), json!({"NetworkMode": "front"})));
    let body = json!({"Container": "web", "EndpointConfig": {"Aliases": ["backend"], "IPAMConfig": {"IPv4Address": "10.77.10.77"}}});
    run.ask(200, "POST", "/networks/back/connect", Some(&body));
    run.inspect("web", &["/NetworkSettings/Networks"]);
    said(run, "web", "both links", "ip -o -4 addr show | grep -c eth; ip route show default | grep -c 10.77.11.1");
    said(run, "web", "web asks db", "ping -c 1 -W 2 db | head -1 | cut -d' ' -f2");
    said(run, "db", "db asks web", "ping -c 1 -W 2 backend | head -1 | cut -d' ' -f2,3");
    run.ask(200, "POST", "/networks/front/disconnect", Some(&json!({"Container": "web"})));
    said(run, "web", "one link", "ip -o -4 addr show | grep -c eth");
    run.inspect("web", &["/NetworkSettings/Networks"]);
}
