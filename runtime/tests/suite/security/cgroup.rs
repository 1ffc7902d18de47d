//! Attacks by the cgroup file system.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::host::Host;

/// CVE-2022-0492 (Linux): a cgroup v1 hierarchy mounted in a user namespace of one's own, and its release agent runs as root of the host.
#[test]
fn cve_2022_0492_release_agents_under_the_default_configuration() {
    let Some(host) = Host::new() else { return };
    let folder = tempfile::tempdir().expect("folder");
    host.bundle.ok(&["spec", "--bundle", folder.path().to_str().expect("utf-8")]);
    let text = std::fs::read_to_string(folder.path().join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_str(&text).expect("json");
    let attack = "try() { for t in memory rdma pids cpu devices freezer misc net_cls none,name=x; do \
            mount -t cgroup -o $t cgroup /data 2>/dev/null && { echo mounted $t; look /data; }; done; \
            mount -t cgroup2 cgroup /data 2>/dev/null && { echo mounted v2; look /data; }; look /sys/fs/cgroup; }; \
        look() { for f in $(/bin/busybox find $1 -name release_agent); do echo /evil 2>/dev/null >$f && echo written $f; done; }; \
        try; echo tried; \
        /bin/busybox unshare -UrmC /bin/sh /data/again 2>/dev/null; echo done";
    config["process"]["args"] = json!(["/bin/sh", "-c", attack]);
    config["process"]["terminal"] = json!(false);
    config["linux"]["cgroupsPath"] = host.bundle.config["linux"]["cgroupsPath"].clone();
    std::fs::create_dir_all(host.bundle.rootfs("bin")).expect("folder");
    let again = attack.split("try; echo").next().expect("functions");
    std::fs::write(host.bundle.rootfs("data/again"), format!("{again} try; echo tried inside")).expect("write");
    let host = host.with(|mut bundle| {
        bundle.config = config;
        bundle
    });
    let output = host.attempt("release agents").expect("runs");
    assert!(output.contains("tried\n") && output.ends_with("done"), "{output}");
    assert!(!output.contains("written"), "{output}");
    // Outside of a user namespace not even the mount works.
    let outside = output.split("tried\n").next().expect("text");
    assert!(!outside.contains("mounted"), "{output}");
}

/// CVE-2023-25809: without a cgroup namespace, and in a user namespace, /sys/fs/cgroup is the host's and must not be writable.
#[test]
fn cve_2023_25809_the_hosts_cgroups_are_read_only() {
    for user in [false, true] {
        let Some(host) = Host::of_ours() else { return };
        let script = "for f in $(/bin/busybox find /sys/fs/cgroup); do \
            if test -d $f; then mkdir $f/evil 2>/dev/null && echo made $f/evil; \
            else { echo 0 >$f; } 2>/dev/null && echo written $f; fi; done; ls /sys/fs/cgroup >/dev/null && echo looked";
        let host = host.with(|bundle| {
            let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]});
            let bundle = bundle.shell(script).set("/mounts/-", mount);
            if !user {
                return bundle;
            }
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            bundle.set("/linux/namespaces/-", json!({"type": "user"})).set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
        });
        assert_eq!(host.attempt("host cgroups").expect("runs"), "looked", "user namespace: {user}");
    }
}

/// The cgroup mount goes through links of the image like any other.
#[test]
fn cve_2024_5154_the_cgroup_mount_through_a_link() {
    let Some(host) = Host::of_ours() else { return };
    symlink(host.canary("folder"), host.bundle.rootfs("groups")).expect("link");
    let host = host.with(|bundle| {
        let mount = json!({"destination": "/groups", "type": "cgroup", "source": "cgroup", "options": ["ro"]});
        bundle
            .shell("ls /groups | head -n 1")
            .set("/mounts/-", mount)
            .set("/linux/namespaces/-", json!({"type": "cgroup"}))
    });
    assert!(!host.attempt("cgroup through a link").expect("stays inside").is_empty());
}
