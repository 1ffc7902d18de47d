//! Masked paths, and the null device that hides them.

use std::os::unix::fs::symlink;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use super::host::{Host, without};

/// What containers get masked by default, as far as this machine has it.
const DEFAULT: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/etc/secret",
    "/data",
];

/// Says of every masked path what it is; the only way for it to be something else is not to be there.
fn look(paths: &[&str]) -> String {
    let paths = paths.join(" ");
    format!(
        "for p in {paths}; do test -e $p || continue; \
         if test -d $p; then test -z \"$(ls -A $p)\" || echo $p has files; touch $p/x 2>/dev/null && echo $p is writable; \
         else test \"$(stat -c %t:%T $p)\" = 1:3 || echo $p is $(stat -c '%F %t:%T' $p); fi; done; echo looked"
    )
}

/// CVE-2025-31133, CVE-2025-62161: every masked path is the null device or an empty folder.
#[test]
fn cve_2025_31133_and_cve_2025_62161_masked_paths_are_masked() {
    let Some(host) = Host::new() else { return };
    std::fs::write(host.bundle.rootfs("data/x"), "secret").expect("write");
    let host = host.with(|bundle| bundle.shell(&look(DEFAULT)).set("/linux/maskedPaths", json!(DEFAULT)));
    assert_eq!(host.attempt("masks").expect("runs"), "looked");
}

/// CVE-2025-31133: the image has something else at /dev/null, and that is what paths would be masked with.
#[test]
fn cve_2025_31133_a_null_device_that_is_none() {
    for form in ["file", "link to host", "link to proc", "other device", "block", "folder", "missing"] {
        let Some(host) = Host::of_ours() else { return };
        let null = host.bundle.rootfs("dev/null");
        let mode = Mode::from_bits_truncate(0o666);
        match form {
            "file" => std::fs::write(&null, "mine").expect("write"),
            "link to host" => symlink(host.canary("file"), &null).expect("link"),
            "link to proc" => symlink("/proc/sys/kernel/core_pattern", &null).expect("link"),
            "other device" => mknod(&null, SFlag::S_IFCHR, mode, makedev(1, 5)).expect("node"),
            "block" => mknod(&null, SFlag::S_IFBLK, mode, makedev(1, 3)).expect("node"),
            "folder" => std::fs::create_dir(&null).expect("folder"),
            _ => {}
        }
        let host = host.with(|bundle| {
            without(bundle, "/dev").shell(&look(&["/etc/secret"])).set("/linux/maskedPaths", json!(["/etc/secret"]))
        });
        if form == "missing" {
            // Made, since every container has it.
            assert_eq!(host.attempt(form).expect("runs"), "looked");
        } else {
            let error = host.refused(form);
            assert!(error.contains("/dev/null"), "{form}: {error}");
        }
    }
}

/// CVE-2025-31133: the same in a /dev that is a volume, where the runtime makes nothing.
#[test]
fn cve_2025_31133_a_dev_of_somebody_else() {
    for form in ["missing", "file"] {
        let Some(host) = Host::of_ours() else { return };
        let dev = host.bundle.path("volume");
        std::fs::create_dir(&dev).expect("folder");
        if form == "file" {
            std::fs::write(dev.join("null"), "mine").expect("write");
        }
        let host = host.with(|bundle| {
            let mount = super::host::volume(&dev, "/dev");
            without(bundle, "/dev").set("/mounts/-", mount).set("/linux/maskedPaths", json!(["/etc/secret"]))
        });
        let error = host.refused(form);
        assert!(error.contains("/dev/null"), "{form}: {error}");
    }
}

/// Masks and read-only paths given through links of the image stay inside.
#[test]
fn masks_through_links_stay_inside() {
    let Some(host) = Host::of_ours() else { return };
    symlink(host.canary("file"), host.bundle.rootfs("absolute")).expect("link");
    symlink("../../../../../../..", host.bundle.rootfs("up")).expect("link");
    let through = format!("/up{}", host.canary("file").display());
    let paths: Value = json!(["/absolute", through, "/etc/secret"]);
    let host = host.with(|bundle| {
        bundle
            .shell(&look(&["/etc/secret"]))
            .set("/linux/maskedPaths", paths.clone())
            .set("/linux/readonlyPaths", paths)
    });
    assert_eq!(host.attempt("masks through links").expect("runs"), "looked");
}
