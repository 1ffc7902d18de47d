//! Attacks on /proc and /sys of a container, which the runtime writes labels and sysctls to.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::host::{Host, without};

/// CVE-2023-28642 (runc), CVE-2025-54867 (youki): a link in their place, and the mount lands wherever it leads.
#[test]
fn cve_2023_28642_and_cve_2025_54867_proc_and_sys_as_links() {
    for name in ["proc", "sys"] {
        for target in ["/", "/tmp", "../../../../../../..", "data", "/proc/self/root", "CANARY"] {
            let Some(host) = Host::new() else { return };
            std::fs::remove_dir(host.bundle.rootfs(name)).expect("remove");
            let target = if target == "CANARY" { host.canary("folder") } else { target.into() };
            symlink(&target, host.bundle.rootfs(name)).expect("link");
            host.refused(&format!("/{name} -> {}", target.display()));
        }
    }
}

/// CVE-2019-16884: a volume over /proc, and labels are written to a file of the image.
#[test]
fn cve_2019_16884_a_mount_over_proc() {
    for (kind, destination) in [
        ("tmpfs", "/proc"),
        ("tmpfs", "/proc/sys"),
        ("tmpfs", "/data/../proc/self"),
        ("bind", "/proc/self/attr"),
        ("bind", "/proc"),
        ("bind", "proc"),
    ] {
        let Some(host) = Host::new() else { return };
        let source = if kind == "bind" { host.bundle.path("bundle") } else { kind.into() };
        let options = if kind == "bind" { json!(["rbind"]) } else { json!([]) };
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        host.with(|bundle| bundle.set("/mounts/-", mount)).refused(&format!("{kind} on {destination}"));
    }
}

/// CVE-2019-19921, CVE-2023-27561: the same by a link of the image, which the name of the destination does not show.
#[test]
fn cve_2019_19921_and_cve_2023_27561_a_link_into_proc() {
    for (target, destination) in
        [("/proc", "/volume"), ("proc/self", "/volume/attr"), ("/proc/sys", "/volume"), ("/proc/self/task", "/volume")]
    {
        let Some(host) = Host::new() else { return };
        symlink(target, host.bundle.rootfs("volume")).expect("link");
        let mount = json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
        host.with(|bundle| bundle.set("/mounts/-", mount)).refused(&format!("{destination} where /volume -> {target}"));
    }
}

/// CVE-2025-52881, CVE-2025-62596: sysctls and labels are written to what the image has at /proc.
#[test]
fn cve_2025_52881_and_cve_2025_62596_a_proc_of_the_image() {
    let Some(host) = Host::of_ours() else { return };
    let fake = host.bundle.rootfs("proc/sys/net/ipv4/ip_forward");
    let attributes = host.bundle.rootfs("proc/self/attr");
    std::fs::create_dir_all(fake.parent().expect("folder")).expect("folder");
    std::fs::create_dir_all(&attributes).expect("folder");
    std::fs::write(&fake, "fake").expect("write");
    std::fs::write(attributes.join("exec"), "fake").expect("write");
    let host = host.with(|bundle| {
        without(bundle, "/proc")
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
            .shell("cat /proc/sys/net/ipv4/ip_forward")
    });
    // There is no procfs inside; the file of the image is all there is to read.
    assert_eq!(host.attempt("a fake /proc").expect("runs"), "fake");
    assert_eq!(std::fs::read_to_string(&fake).expect("read"), "fake");
    assert_eq!(std::fs::read_to_string(attributes.join("exec")).expect("read"), "fake");
    // With procfs mounted over it, the same setting can be seen.
    let Some(host) = Host::of_ours() else { return };
    let host = host.with(|bundle| {
        bundle.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})).shell("cat /proc/sys/net/ipv4/ip_forward")
    });
    assert_eq!(host.attempt("a real /proc").expect("runs"), "1");
}

/// CVE-2022-0811, CVE-2022-0532: sysctls that reach the host.
#[test]
fn cve_2022_0811_and_cve_2022_0532_sysctls_of_the_host() {
    let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    for (key, value) in [
        ("kernel.core_pattern", "|/evil"),
        ("kernel.panic", "1"),
        ("vm.swappiness", "1"),
        ("net.../../kernel/panic", "1"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/evil"),
        ("fs.mqueue./../../kernel/core_pattern", "|/evil"),
    ] {
        let Some(host) = Host::new() else { return };
        host.with(|bundle| bundle.set("/linux/sysctl", json!({key: value}))).refused(key);
    }
    let Some(host) = Host::new() else { return };
    let host = host.with(|bundle| {
        let namespaces = json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]);
        bundle.set("/linux/namespaces", namespaces).set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
    });
    host.refused("a net sysctl in the host's network namespace");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), before);
}

/// CVE-2021-43784: lengths that overflow in what the runtime says to its child.
#[test]
fn cve_2021_43784_more_than_64_kib_of_namespaces() {
    let user = |size: usize| {
        let map: Vec<_> =
            (0..size).map(|at| json!({"containerID": at * 2, "hostID": 100_000 + at * 2, "size": 1})).collect();
        json!(map)
    };
    let long = format!("/{}", "x/".repeat(40_000));
    for (what, namespace, map) in [
        ("a path of 80 KB", json!({"type": "network", "path": long}), None),
        ("a path with a NUL", json!({"type": "network", "path": "/proc/self/ns/net\u{0}x"}), None),
        ("8,000 mappings", json!({"type": "user"}), Some(user(8_000))),
        ("341 mappings", json!({"type": "user"}), Some(user(341))),
    ] {
        let Some(host) = Host::of_ours() else { return };
        let host = host.with(|bundle| {
            let mut bundle = bundle
                .set("/linux/namespaces", json!([{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, namespace]));
            if let Some(map) = map {
                bundle = bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
            }
            bundle
        });
        let error = host.refused(what);
        assert!(error.contains("config.json: linux."), "{what}: {error}");
        assert!(error.len() < 600, "{what}: {error}");
    }
}
