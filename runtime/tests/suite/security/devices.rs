//! Devices that a container must not get at.

use serde_json::json;

use super::host::Host;

/// GHSA-g54h-m393-cpwq: without rules nothing is denied, unless the runtime begins with deny-all.
#[test]
fn ghsa_g54h_m393_cpwq_no_rules_means_no_devices() {
    for resources in [json!(null), json!({}), json!({"devices": null}), json!({"devices": []})] {
        let Some(host) = Host::new() else { return };
        // Disk, memory, kernel log: as nodes of its own making (which is allowed, as in runc: a node alone does nothing), and of the
        // image's.
        let script = "for d in 'b 8 0' 'c 1 1' 'c 1 11' 'b 7 0' 'c 10 200'; do mknod /data/node $d; \
            dd if=/data/node of=/dev/null bs=1 count=1 && echo read $d; { echo x >/data/node; } && echo written $d; busybox rm -f /data/node; done; \
            dd if=/data/disk of=/dev/null bs=1 count=1 && echo read; { echo x >/data/memory; } && echo written; \
            dd if=/dev/zero of=/dev/null bs=1 count=1 && echo fine";
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&host.bundle.rootfs("data/disk"), SFlag::S_IFBLK, mode, makedev(8, 0)).expect("node");
        mknod(&host.bundle.rootfs("data/memory"), SFlag::S_IFCHR, mode, makedev(1, 1)).expect("node");
        let host = host.with(|bundle| bundle.shell(script).set("/linux/resources", resources.clone()));
        assert_eq!(host.attempt("no rules").expect("runs"), "fine", "{resources}");
    }
}

/// The same for `exec`, and after an `update` that says nothing about devices.
#[test]
fn ghsa_g54h_m393_cpwq_by_exec_and_after_update() {
    let Some(host) = Host::new() else { return };
    let host = host.with(|bundle| bundle.shell("sleep 1000").set("/linux/resources", json!({})));
    let bundle = &host.bundle;
    bundle.start();
    for _ in 0..2 {
        let script = "mknod /data/node b 8 0; dd if=/data/node of=/dev/null bs=1 count=1";
        let error = bundle.fails(&["exec", &bundle.id, "sh", "-c", script]);
        assert!(error.contains("Operation not permitted"), "{error}");
        bundle.ok(&["exec", &bundle.id, "busybox", "rm", "/data/node"]);
        bundle.ok(&["update", "--pids-limit", "100", &bundle.id]);
    }
}
