//! Files that change while the runtime works: two names exchanged for each other, again and again.
//!
//! Short in every run of the suite; `make soak-runtime` gives each of them a minute or 10,000 tries.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::json;

use super::host::{Exchange, Host, tries, volume, without};
use crate::bundle::Bundle;

/// A volume that two containers share, with `dst` (a folder) and `link` (to the host) in it.
fn shared(host: &Host) -> PathBuf {
    let shared = host.bundle.path("shared");
    std::fs::create_dir_all(shared.join("dst")).expect("folder");
    symlink(host.canary("folder"), shared.join("link")).expect("link");
    shared
}

/// Runs the container until the tries are over, with two names changing places meanwhile.
fn race(host: &Host, one: &str, other: &str, mut check: impl FnMut(&str)) {
    let exchange = Exchange::start(&host.bundle.path(one), &host.bundle.path(other));
    let (mut ran, mut refused) = (0, 0);
    for _ in tries() {
        match host.attempt(&format!("{one} <-> {other}")) {
            Some(output) => {
                check(&output);
                ran += 1;
            }
            None => refused += 1,
        }
    }
    println!("{one} <-> {other}: {} exchanges, {ran} runs, {refused} refusals", exchange.count());
    assert!(exchange.count() > 10, "the attacker did nothing");
}

/// CVE-2021-30465: between the check of a destination and the mount.
#[test]
fn cve_2021_30465_mount_points_that_change() {
    let Some(host) = Host::of_ours() else { return };
    let shared = shared(&host);
    let host = host.with(|bundle| {
        let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs"});
        let bundle = bundle.set("/mounts/-", volume(&shared, "/shared"));
        (0..8).fold(bundle, |bundle, at| bundle.set("/mounts/-", tmpfs(&format!("/shared/dst/{at}/mount"))))
    });
    race(&host, "shared/dst", "shared/link", |_| {});
}

/// CVE-2024-45310: between the making of one folder and of the next.
#[test]
fn cve_2024_45310_folders_made_in_what_changes() {
    let Some(host) = Host::of_ours() else { return };
    let shared = shared(&host);
    let host = host.with(|bundle| {
        bundle
            .set("/mounts/-", volume(&shared, "/shared"))
            .set("/mounts/-", json!({"destination": "/shared/dst/a/b/c/d/e/f", "type": "tmpfs", "source": "tmpfs"}))
            .set("/process/cwd", json!("/shared/dst/g/h/i/j"))
    });
    // What was made the time before must not be there already.
    let exchange = Exchange::start(&host.bundle.path("shared/dst"), &host.bundle.path("shared/link"));
    for _ in tries() {
        host.attempt("folders");
        for name in ["dst", "link"] {
            let path = host.bundle.path("shared").join(name);
            for made in ["a", "g"] {
                // By descriptor, lest this test do what it accuses the runtime of.
                if let Ok(folder) = std::fs::File::open(&path)
                    && std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder)))
                        .is_ok_and(|path| path.starts_with(host.bundle.path("shared")))
                {
                    let below = format!("/proc/self/fd/{}/{made}", std::os::fd::AsRawFd::as_raw_fd(&folder));
                    let _ = std::fs::remove_dir_all(below);
                }
            }
        }
    }
    assert!(exchange.count() > 10);
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2025-52881, CVE-2025-62596: /proc is not the one that was looked at.
#[test]
fn cve_2019_19921_cve_2023_27561_and_cve_2025_52881_a_proc_that_changes() {
    let Some(host) = Host::of_ours() else { return };
    let fake = host.bundle.rootfs("fake");
    std::fs::create_dir_all(fake.join("sys/net/ipv4")).expect("folder");
    std::fs::create_dir_all(fake.join("self/attr")).expect("folder");
    for file in ["sys/net/ipv4/ip_forward", "self/attr/exec", "sys/kernel"] {
        std::fs::write(fake.join(file), "fake").expect("write");
    }
    symlink("/data", host.bundle.rootfs("other")).expect("link");
    // Wherever procfs has ended up: it is masked and read-only as asked for, and the sysctl is set.
    // From inside, since the names go on changing.
    let look = "for p in /proc /fake /other /data; do cd $p && test -d 1/task || continue; \
        for f in interrupts keys; do ! test -e $f || test $(stat -c %t:%T $f) = 1:3 || echo $f; done; \
        { echo 2 >sys/net/ipv4/ip_default_ttl; } 2>/dev/null && echo writable; \
        test $(cat sys/net/ipv4/ip_forward) = 1 || echo sysctl; done; echo looked";
    let host = host.with(|bundle| {
        bundle
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
            .set("/linux/maskedPaths", json!(["/proc/interrupts", "/proc/keys"]))
            .set("/linux/readonlyPaths", json!(["/proc/sys", "/proc/irq"]))
            .shell(look)
    });
    let check = |host: &Host| {
        for folder in ["fake", "proc"] {
            let file = host.bundle.rootfs(folder).join("sys/net/ipv4/ip_forward");
            if let Ok(text) = std::fs::read_to_string(file) {
                assert_eq!(text, "fake", "a sysctl went into a file of the image");
            }
        }
    };
    race(&host, "bundle/rootfs/proc", "bundle/rootfs/fake", |output| {
        assert_eq!(output, "looked");
    });
    check(&host);
    race(&host, "bundle/rootfs/proc", "bundle/rootfs/other", |output| {
        assert_eq!(output, "looked");
    });
    check(&host);
}

/// CVE-2025-52881: a container that shares its mounts with another's covers /proc/self/attr and /proc/sys while that one starts.
#[test]
fn cve_2025_52881_shared_mounts_that_come_and_go() {
    let Some(host) = Host::of_ours() else { return };
    let shared = host.bundle.path("shared");
    std::fs::create_dir_all(shared.join("proc")).expect("folder");
    let volume = json!({"destination": "/data", "type": "bind", "source": shared, "options": ["rbind", "rshared"]});
    symlink("data/proc", host.bundle.rootfs("link")).expect("link");
    let host = host.with(|bundle| {
        bundle
            .set("/mounts/-", volume)
            .set("/linux/rootfsPropagation", json!("rshared"))
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
            .shell("cat /proc/sys/net/ipv4/ip_forward")
    });
    // The attacker is root of the host's side of the shared volume: whatever it mounts there appears inside.
    let (stop, target) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), shared.join("proc"));
    let attacker = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            use nix::mount::{MntFlags, MsFlags, mount, umount2};
            let mut count = 0_u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), None::<&str>).is_ok() {
                    count += 1;
                    let _ = umount2(&target, MntFlags::MNT_DETACH);
                }
            }
            count
        })
    };
    let mut outputs = Vec::new();
    for _ in tries() {
        let output = host.run();
        outputs.push((output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned()));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(attacker.join().expect("thread") > 10);
    assert!(outputs.iter().all(|(good, text)| *good && text == "1"), "{outputs:?}");
    host.assert_untouched("shared mounts");
}

/// CVE-2025-31133, CVE-2025-62161: the null device becomes something else once it has been looked at.
#[test]
fn cve_2025_31133_and_cve_2025_62161_a_null_device_that_changes() {
    for form in ["link", "file"] {
        let Some(host) = Host::of_ours() else { return };
        let other = host.bundle.rootfs("dev/other");
        match form {
            "link" => symlink("/proc/sys/kernel/core_pattern", other).expect("link"),
            _ => std::fs::write(other, "mine").expect("file"),
        }
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        let number = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(&host.bundle.rootfs("dev/null"), nix::sys::stat::SFlag::S_IFCHR, mode, number)
            .expect("node");
        let paths = json!(["/etc/secret", "/etc/passwd", "/proc/kcore"]);
        let host = host.with(|bundle| {
            let script = "stat -c %t:%T /etc/secret /etc/passwd; { echo x >/etc/secret; } && cat /etc/secret";
            without(bundle, "/dev").set("/linux/maskedPaths", paths).shell(script)
        });
        race(&host, "bundle/rootfs/dev/null", "bundle/rootfs/dev/other", |output| {
            assert_eq!(output, "1:3\n1:3", "{form}: a mask is not the null device");
        });
    }
}

/// CVE-2025-52565: /dev/console, and /dev/pts, become something else while a terminal is made.
#[test]
fn cve_2025_52565_a_console_that_changes() {
    for (name, target) in [("console", "/proc/sys/kernel/core_pattern"), ("pts", "/proc/sys"), ("console", "CANARY")] {
        let Some(host) = Host::of_ours() else { return };
        let target = if target == "CANARY" { host.canary("file") } else { target.into() };
        symlink(target, host.bundle.rootfs("dev/other")).expect("link");
        match name {
            "pts" => std::fs::create_dir(host.bundle.rootfs("dev/pts")).expect("folder"),
            _ => std::fs::write(host.bundle.rootfs("dev/console"), "").expect("file"),
        }
        let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]});
        let host = host.with(|bundle| {
            without(bundle, "/dev")
                .set("/mounts/-", pts)
                .set("/process/terminal", json!(true))
                .shell("test -t 0 && stat -L -c %t /proc/self/fd/0")
        });
        let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
        race(&host, &format!("bundle/rootfs/dev/{name}"), "bundle/rootfs/dev/other", |output| {
            assert!(output.trim_end().ends_with("88"), "stdin is a terminal of devpts: {output:?}");
        });
        assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), before);
    }
}

/// CVE-2026-41579, CVE-2026-47766: /dev becomes a link while nodes are made in it.
#[test]
fn cve_2026_41579_and_cve_2026_47766_a_dev_that_changes() {
    let Some(host) = Host::of_ours() else { return };
    symlink(host.canary("folder"), host.bundle.rootfs("other")).expect("link");
    let host = host.with(|bundle| without(bundle, "/dev").shell("true"));
    race(&host, "bundle/rootfs/dev", "bundle/rootfs/other", |_| {});
}

/// CVE-2024-21626, CVE-2016-9962 by exec: the working directory and the program change while a process enters.
#[test]
fn cve_2024_21626_a_working_directory_that_changes() {
    let Some(host) = Host::of_ours() else { return };
    std::fs::create_dir(host.bundle.rootfs("data/dst")).expect("folder");
    symlink("/proc/self/fd/5", host.bundle.rootfs("data/link")).expect("link");
    let host = host.with(|bundle| bundle.shell("sleep 1000"));
    let bundle: &Bundle = &host.bundle;
    bundle.start();
    let exchange = Exchange::start(&bundle.rootfs("data/dst"), &bundle.rootfs("data/link"));
    let mut entered = 0;
    for _ in tries() {
        let output =
            bundle.call(&["exec", "--cwd", "/data/dst", &bundle.id, "sh", "-c", "pwd; ls -d /proc/self/cwd/etc"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains("etc"), "{text}");
        if !text.is_empty() {
            assert!(text.starts_with("/data/"), "{text}");
            entered += 1;
        }
    }
    assert!(exchange.count() > 10 && entered > 0);
    host.assert_untouched("exec");
}
