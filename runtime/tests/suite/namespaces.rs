//! Namespaces: all kinds, new and joined, and what is done in them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours, texts};

/// Name in config.json and name below /proc/PID/ns.
const KINDS: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

/// Those that the runtime under test knows.
fn kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    // runc 1.1 knows no time namespace.
    KINDS.into_iter().filter(|(kind, _)| is_ours() || *kind != "time")
}

fn links() -> String {
    kinds().map(|(_, file)| format!("readlink /proc/self/ns/{file}; ")).collect()
}

fn link(pid: &str, file: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("link").display().to_string()
}

fn with_maps(bundle: Bundle) -> Bundle {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
}

fn namespaces(list: impl Iterator<Item = Value>) -> Value {
    Value::Array(list.collect())
}

/// A process that holds new namespaces open, and is gone with the test.
struct Holder(Child);

impl Holder {
    fn new(flags: &[&str]) -> Self {
        let child = Command::new("unshare").args(flags).args(["sleep", "1000"]).stdin(Stdio::null()).spawn();
        let holder = Self(child.expect("unshare runs"));
        let comm = format!("/proc/{}/comm", holder.0.id());
        eventually("the namespaces are there", || std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"));
        holder
    }

    fn path(&self, file: &str) -> PathBuf {
        format!("/proc/{}/ns/{file}", self.0.id()).into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn all_kinds_can_be_new() {
    let Some(bundle) = Bundle::new() else { return };
    let list = namespaces(kinds().map(|(kind, _)| json!({"type": kind})));
    let text = with_maps(bundle).set("/linux/namespaces", list).shell(&links()).run_ok();
    for ((kind, file), found) in kinds().zip(text.lines()) {
        assert!(found.starts_with(&format!("{file}:[")), "{kind}: {text}");
        assert_ne!(found, link("self", file), "{kind}");
    }
    assert_eq!(text.lines().count(), kinds().count());
}

#[test]
fn all_kinds_can_be_joined() {
    let Some(first) = Bundle::new() else { return };
    let list = namespaces(kinds().map(|(kind, _)| json!({"type": kind})));
    let first = with_maps(first).set("/linux/namespaces", list).shell("sleep 1000");
    first.start();
    let pid = first.pid().to_string();
    let Some(mut second) = Bundle::new() else { return };
    second.config.as_object_mut().expect("object").remove("hostname");
    let list = namespaces(kinds().map(|(kind, file)| match kind {
        "mount" => json!({"type": kind}),
        _ => json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}),
    }));
    // runc 1.1 wants maps for a user namespace that has some.
    let second = if is_ours() { second } else { with_maps(second) };
    let second = second.set("/linux/namespaces", list).shell(&format!("{} id -u", links()));
    let text = second.run_ok();
    for ((kind, file), found) in kinds().zip(text.lines()).filter(|((kind, _), _)| *kind != "mount") {
        assert_eq!(found, link(&pid, file), "{kind}: {text}");
    }
    assert!(text.ends_with("\n0"), "root of the user namespace: {text}");
    assert_eq!(first.state()["status"], "running");
}

#[test]
fn a_mount_namespace_can_be_joined() {
    let Some(mut bundle) = Bundle::new() else { return };
    // Private, lest what is mounted there comes out.
    let holder = Holder::new(&["--mount", "--propagation", "private"]);
    let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    for namespace in list.iter_mut().filter(|namespace| namespace["type"] == "mount") {
        namespace["path"] = json!(holder.path("mnt"));
    }
    let text = bundle.shell("readlink /proc/self/ns/mnt; ls /etc/secret").run_ok();
    assert_eq!(text, format!("{}\n/etc/secret", link(&holder.0.id().to_string(), "mnt")));
}

#[test]
fn what_cannot_be_is_refused() {
    let mount = json!({"type": "mount"});
    for (list, message) in [
        (json!([mount, mount]), "linux.namespaces: \"mount\" is there twice"),
        (json!([mount, {"type": "uts"}, {"type": "uts", "path": "/proc/self/ns/uts"}]), "\"uts\" is there twice"),
        (json!([{"type": "uts"}]), "linux.namespaces needs a private mount namespace"),
        (json!([mount, {"type": "user"}]), "linux.uidMappings is missing"),
        (json!([mount, {"type": "ipc", "path": "/proc/self/ns/net"}]), "is not a namespace of the kind"),
        (json!([mount, {"type": "ipc", "path": "/etc/passwd"}]), "is not a namespace of the kind"),
    ] {
        let Some(mut bundle) = Bundle::new() else { return };
        if !is_ours() && message.contains("mount namespace") {
            continue; // runc mounts on the host then
        }
        bundle.config.as_object_mut().expect("object").remove("hostname");
        let error = bundle.set("/linux/namespaces", list).run_fails().replace("\\\"", "\"");
        assert!(!is_ours() || error.contains(message), "{message}: {error}");
    }
}

#[test]
fn both_clocks_are_shifted_with_and_without_a_user_namespace() {
    if !is_ours() {
        return println!("skipped: runc has it since 1.2");
    }
    for user in [false, true] {
        let Some(bundle) = Bundle::new() else { return };
        let bundle = if user { with_maps(bundle).set("/linux/namespaces/-", json!({"type": "user"})) } else { bundle };
        let offsets = json!({"monotonic": {"secs": 2_000_000, "nanosecs": 5}, "boottime": {"secs": 1_000_000}});
        let bundle = bundle
            .shell("cat /proc/uptime /proc/self/timens_offsets")
            .set("/linux/namespaces/-", json!({"type": "time"}))
            .set("/linux/timeOffsets", offsets);
        let text = bundle.run_ok();
        let mut words = text.split_whitespace();
        let uptime: f64 = words.next().expect("uptime").parse().expect("a number");
        assert!(uptime > 1_000_000.0, "{text}");
        let rest: Vec<_> = words.skip(1).collect();
        assert_eq!(rest, ["monotonic", "2000000", "5", "boottime", "1000000", "0"], "{text}");
    }
}

#[test]
fn a_shifted_clock_is_shared_by_joining() {
    let Some(first) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc has it since 1.2");
    }
    let first = first
        .shell("sleep 1000")
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set("/linux/timeOffsets", json!({"boottime": {"secs": 3_000_000}}));
    first.start();
    let uptime = |text: &str| text.split_whitespace().next().expect("uptime").parse::<f64>().expect("a number");
    assert!(uptime(&first.ok(&["exec", &first.id, "cat", "/proc/uptime"])) > 3_000_000.0, "exec is in it too");
    let Some(second) = Bundle::new() else { return };
    let path = format!("/proc/{}/ns/time", first.pid());
    let second = second.shell("cat /proc/uptime").set("/linux/namespaces/-", json!({"type": "time", "path": path}));
    assert!(uptime(&second.run_ok()) > 3_000_000.0);
}

#[test]
fn loopback_is_up_in_a_new_network_namespace_only() {
    let Some(bundle) = Bundle::new() else { return };
    let mut bundle = bundle.shell("busybox ip link show lo");
    assert!(bundle.run_ok().contains("LOOPBACK,UP"));
    let holder = Holder::new(&["--net"]);
    let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    for namespace in list.iter_mut().filter(|namespace| namespace["type"] == "network") {
        namespace["path"] = json!(holder.path("net"));
    }
    let text = bundle.run_ok();
    assert!(text.contains("LOOPBACK") && !text.contains("UP"), "somebody else's is left alone: {text}");
}

#[test]
fn the_hosts_own_namespaces_are_not_changed_by_another_name() {
    for (kind, file, pointer, value) in [
        ("network", "net", "/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
        ("ipc", "ipc", "/linux/sysctl", json!({"kernel.shmmni": "100"})),
        ("uts", "uts", "/hostname", json!("berth-suite-must-not")),
    ] {
        let Some(mut bundle) = Bundle::new() else { return };
        if !is_ours() && kind != "network" {
            continue; // runc looks at the network only
        }
        bundle.config.as_object_mut().expect("object").remove("hostname");
        let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        for namespace in list.iter_mut().filter(|namespace| namespace["type"] == kind) {
            namespace["path"] = json!(format!("/proc/self/ns/{file}"));
        }
        let error = bundle.set(pointer, value).run_fails();
        assert!(!is_ours() || error.contains("is the runtime's own namespace"), "{kind}: {error}");
    }
}

#[test]
fn sysctls_are_set_in_their_namespaces() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max")
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "111", "fs.mqueue.msg_max": "13"}));
    assert_eq!(bundle.run_ok(), "1\n111\n13");
}

#[test]
fn sysctls_of_users_need_a_user_namespace() {
    if !is_ours() {
        return println!("skipped: runc has it since 1.5");
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("cat /proc/sys/user/max_net_namespaces")
        .set("/linux/sysctl", json!({"user.max_net_namespaces": "7"}));
    let error = bundle.run_fails();
    assert!(error.contains("linux.sysctl user.max_net_namespaces needs a private user namespace"), "{error}");
    let bundle = with_maps(bundle).set("/linux/namespaces/-", json!({"type": "user"}));
    assert_eq!(bundle.run_ok(), "7");
}

#[test]
fn malformed_sysctls_are_refused() {
    for (key, value) in [
        ("net.ipv4.ip_forward\n", "1"),
        ("net.ipv4.ip_forward", "1\n0"),
        ("net.ipv4.ip_forward\u{0}", "1"),
        ("net/../kernel/core_pattern", "x"),
        ("net.ipv4..ip_forward", "1"),
        ("kernel.core_pattern", "x"),
    ] {
        let Some(bundle) = Bundle::new() else { return };
        if !is_ours() && key != "kernel.core_pattern" {
            continue;
        }
        let error = bundle.set("/linux/sysctl", json!({key: value})).run_fails();
        assert!(!is_ours() || error.contains("linux.sysctl"), "{key:?}: {error}");
    }
}

#[test]
fn ids_of_the_process_have_to_be_mapped() {
    for (user, field) in [
        (json!({"uid": 5000, "gid": 0}), "process.user.uid"),
        (json!({"uid": 0, "gid": 5000}), "process.user.gid"),
        (json!({"uid": 0, "gid": 0, "additionalGids": [1, 5000]}), "process.user.additionalGids"),
    ] {
        let Some(bundle) = Bundle::new() else { return };
        let bundle = with_maps(bundle).set("/linux/namespaces/-", json!({"type": "user"})).set("/process/user", user);
        let error = bundle.run_fails();
        assert!(!is_ours() || error.contains(field), "{error}");
    }
}

#[test]
fn groups_are_set_in_a_user_namespace_with_a_map() {
    let Some(bundle) = Bundle::new() else { return };
    let user = json!({"uid": 3, "gid": 4, "additionalGids": [5, 6]});
    let bundle = with_maps(bundle).set("/linux/namespaces/-", json!({"type": "user"})).set("/process/user", user);
    assert_eq!(bundle.shell("id -u; id -G").run_ok(), "3\n4 5 6");
}

#[test]
fn devices_of_the_host_are_bound_in_a_user_namespace() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = with_maps(bundle)
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .shell("stat -c %t:%T /dev/null /dev/zero /dev/full; echo x > /dev/null && head -c 3 /dev/zero");
    let output = bundle.run();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.starts_with("1:3\n1:5\n1:7\n\0\0\0"), "{stdout:?}");
}
