//! `linux.netDevices`: links of the runtime's network namespace become the container's. The runtime runs in a namespace of the
//! test's own, with a pair of veth in it.

use std::process::{Command, Output};

use serde_json::json;

use super::bundle::{Bundle, is_ours, texts};

/// `None`, with a reason, where this cannot be tried.
fn bundle() -> Option<Bundle> {
    if !is_ours() {
        println!("skipped: runc has it since 1.4");
        return None;
    }
    let bundle = Bundle::new()?;
    let output = within(LINKS, &["true"]);
    if !output.status.success() {
        println!("skipped: needs unshare, ip and veth: {}", texts(&output).1);
        return None;
    }
    Some(bundle)
}

const LINKS: &str = "ip link set lo up && ip link add suite0 type veth peer name suite1 && ip link set suite1 up \
                     && ip addr add 192.0.2.7/24 brd + dev suite0 && ip addr add 198.51.100.7/32 dev suite0 \
                     && ip addr add 2001:db8::7/64 nodad dev suite0 && ip link set suite0 up";

/// Runs something in a new network namespace, after `script`.
fn within(script: &str, command: &[&str]) -> Output {
    let script = format!("{script} && exec \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["-n", "sh", "-c", &script, "sh"]).args(command);
    unshare.output().expect("unshare runs")
}

fn run(bundle: &Bundle, script: &str, after: &str) -> Output {
    bundle.write_config();
    let folder = bundle.path("bundle");
    let command = bundle.command(&["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str().expect("utf-8")).collect();
    let wrap = format!("\"$@\"; code=$?; {after}; exit $code");
    let wrapped = [&["sh", "-c", &wrap, "sh"], words.as_slice()].concat();
    within(script, &wrapped)
}

#[test]
fn a_link_moves_with_its_addresses_under_a_new_name() {
    let Some(bundle) = bundle() else { return };
    let bundle = bundle
        .shell("busybox ip addr show dev lan0; echo; cat /proc/sys/net/ipv4/conf/lan0/forwarding")
        .set("/linux/sysctl", json!({"net/ipv4/conf/lan0/forwarding": "1"}))
        .set("/linux/netDevices", json!({"suite0": {"name": "lan0"}}));
    let output = run(&bundle, LINKS, "ip -br link");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for wanted in
        ["lan0", ",UP", "192.0.2.7/24 brd 192.0.2.255 scope global", "198.51.100.7/32", "2001:db8::7/64 scope global"]
    {
        assert!(stdout.contains(wanted), "{wanted}: {stdout}");
    }
    assert!(stdout.contains("\n\n1\n"), "its sysctls can be set: {stdout}");
    // Afterwards, outside: a veth goes with the container's namespace.
    assert!(!stdout.contains("suite0"), "{stdout}");
}

#[test]
fn a_link_keeps_its_name_and_several_move() {
    let Some(bundle) = bundle() else { return };
    let bundle =
        bundle.shell("cat /proc/net/dev").set("/linux/netDevices", json!({"suite0": {}, "suite1": {"name": "other"}}));
    let output = run(&bundle, LINKS, "true");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("suite0:") && stdout.contains("other:") && stdout.contains("lo:"), "{stdout}");
}

#[test]
fn links_move_into_a_user_namespace_and_into_a_joined_one() {
    let Some(bundle) = bundle() else { return };
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let bundle = bundle
        .shell("busybox ip addr show dev suite0")
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set("/linux/netDevices", json!({"suite0": {}}));
    let output = run(&bundle, LINKS, "true");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stdout.contains("192.0.2.7/24"), "{stdout}\n{stderr}");

    let Some(holder) = Bundle::new() else { return };
    let holder = holder.shell("sleep 1000");
    holder.start();
    let Some(second) = Bundle::new() else { return };
    let mut second =
        second.shell("busybox ip addr show dev lan").set("/linux/netDevices", json!({"suite0": {"name": "lan"}}));
    let namespaces = second.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "network") {
        namespace["path"] = json!(format!("/proc/{}/ns/net", holder.pid()));
    }
    let output = run(&second, LINKS, "true");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stdout.contains("192.0.2.7/24"), "{stdout}\n{stderr}");
}

#[test]
fn what_cannot_move_is_said() {
    for (devices, message) in [
        (json!({"nosuch": {}}), "linux.netDevices: \"nosuch\" is not in the runtime's network namespace"),
        (json!({"suite0": {"name": "lo"}}), "\"suite0\" cannot be \"lo\""),
        (json!({"lo": {"name": "lo2"}}), "linux.netDevices: move \"lo\""),
        (json!({"suite0": {"name": "a/b"}}), "is no name of a network device"),
    ] {
        let Some(bundle) = bundle() else { return };
        let bundle = bundle.set("/linux/netDevices", devices);
        let output = run(&bundle, LINKS, "ip -br link");
        let (stdout, stderr) = texts(&output);
        assert!(!output.status.success(), "{message}");
        let plain = stderr.replace("\\\"", "\"");
        assert!(plain.contains(message), "{message}: {stderr}");
        assert!(stdout.contains("suite0"), "it is still where it was: {stdout}");
        bundle.assert_nothing_left();
    }
}

#[test]
fn links_do_not_move_to_where_they_are() {
    let Some(bundle) = bundle() else { return };
    let mut bundle = bundle.set("/linux/netDevices", json!({"suite0": {}}));
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|namespace| namespace["type"] != "network");
    let error = texts(&run(&bundle, LINKS, "true")).1;
    assert!(error.contains("linux.netDevices needs a private network namespace"), "{error}");
    let bundle = bundle.set("/linux/namespaces/-", json!({"type": "network", "path": "/proc/self/ns/net"}));
    let error = texts(&run(&bundle, LINKS, "true")).1;
    assert!(error.contains("is the runtime's own namespace: linux.netDevices would change the host"), "{error}");
}
