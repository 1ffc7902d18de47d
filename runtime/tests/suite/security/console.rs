//! The console: a terminal of the container's own devpts, whatever the image has in its place.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::host::{Host, without};

/// What the container finds at /dev/console must be a terminal of devpts (major 136).
pub(super) const LOOK: &str = "test $(stat -c %t /dev/console) = 88 && test -t 0 && echo terminal";

/// CVE-2025-52565: the peer of the terminal is opened, or mounted, by a path of the image.
#[test]
fn cve_2025_52565_what_the_image_has_at_dev_console() {
    for form in ["link to host", "link to proc", "file", "fifo", "folder", "dangling", "loop"] {
        for own_dev in [false, true] {
            let Some(host) = Host::of_ours() else { return };
            let console = host.bundle.rootfs("dev/console");
            match form {
                "link to host" => symlink(host.canary("file"), &console).expect("link"),
                "link to proc" => symlink("/proc/sys/kernel/core_pattern", &console).expect("link"),
                "file" => std::fs::write(&console, "mine").expect("write"),
                "fifo" => nix::unistd::mkfifo(&console, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("fifo"),
                "folder" => std::fs::create_dir(&console).expect("folder"),
                "dangling" => symlink("/data/nowhere", &console).expect("link"),
                _ => symlink("console", &console).expect("link"),
            }
            let host = host.with(|bundle| {
                let bundle = bundle.shell(LOOK).set("/process/terminal", json!(true));
                if own_dev {
                    return bundle; // a tmpfs covers what the image has
                }
                let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]});
                without(bundle, "/dev").set("/mounts/-", pts)
            });
            let what = format!("{form}, {}", if own_dev { "own /dev" } else { "/dev of the image" });
            if let Some(output) = host.attempt(&what) {
                assert!(output.contains("terminal"), "{what}: {output}");
            } else {
                assert!(!own_dev, "{what}: has to run");
            }
        }
    }
}

/// CVE-2025-52565: /dev/pts is not devpts, so terminals would come from somebody else's files.
#[test]
fn cve_2025_52565_a_devpts_that_is_none() {
    for kind in ["tmpfs", "missing"] {
        let Some(host) = Host::of_ours() else { return };
        let host = host.with(|bundle| {
            let bundle = without(bundle, "/dev/pts").set("/process/terminal", json!(true));
            let mount = json!({"destination": "/dev/pts", "type": "tmpfs", "source": "tmpfs"});
            if kind == "tmpfs" { bundle.set("/mounts/-", mount) } else { bundle }
        });
        let error = host.refused(kind);
        assert!(error.contains("/dev/pts"), "{kind}: {error}");
    }
}
