//! Links of an image, where the runtime makes something or reads something.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::host::{Host, SECRET, volume, without};

/// CVE-2019-18837, CVE-2021-30465: mount points through links that lead to the host.
#[test]
fn cve_2019_18837_and_cve_2021_30465_mount_points_through_links() {
    let Some(host) = Host::new() else { return };
    std::fs::create_dir(host.bundle.path("volume")).expect("folder");
    std::fs::write(host.bundle.path("single"), "mine").expect("file");
    let rootfs = |below: &str| host.bundle.rootfs(below);
    symlink(host.canary("folder"), rootfs("absolute")).expect("link");
    symlink(format!("../../../../../../..{}", host.canary("folder").display()), rootfs("relative")).expect("link");
    symlink("/absolute/deeper", rootfs("twice")).expect("link");
    symlink(host.canary("file"), rootfs("file")).expect("link");
    let (folder, file) = (host.bundle.path("volume"), host.bundle.path("single"));
    let host = host.with(|bundle| {
        bundle
            .set("/mounts/-", volume(&folder, "/absolute/a"))
            .set("/mounts/-", json!({"destination": "/relative/b", "type": "tmpfs", "source": "tmpfs"}))
            .set("/mounts/-", volume(&file, "/twice/c"))
            .set("/mounts/-", volume(&file, "/file"))
            .shell("cat /twice/c /file")
    });
    let inside = host.canary("folder");
    let output = host.attempt("links to the host").expect("what is missing is made inside");
    assert_eq!(output, "minemine");
    let inside = inside.strip_prefix("/").expect("absolute");
    for made in ["a", "b", "deeper/c"] {
        assert!(host.bundle.path("bundle/rootfs").join(inside).join(made).exists(), "{made} is made inside");
    }
}

/// CVE-2026-41579 (runc), CVE-2026-47766 (crun): /dev itself is a link, and nodes are made through it.
#[test]
fn cve_2026_41579_and_cve_2026_47766_dev_as_a_link() {
    for tty in [false, true] {
        let Some(host) = Host::new() else { return };
        std::fs::remove_dir(host.bundle.rootfs("dev")).expect("remove");
        symlink(host.canary("folder"), host.bundle.rootfs("dev")).expect("link");
        let device = json!([{"type": "c", "path": "/dev/extra/one", "major": 1, "minor": 3}]);
        let host = host.with(|bundle| {
            let bundle = without(bundle, "/dev").set("/linux/devices", device).shell("true");
            // A terminal needs devpts, which goes through the link as well.
            let pts =
                json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]});
            if tty { bundle.set("/process/terminal", json!(true)).set("/mounts/-", pts) } else { bundle }
        });
        host.attempt("/dev -> host");
        assert!(!host.canary("folder/null").exists());
    }
}

/// CVE-2024-45310, CVE-2026-55686: the working directory is made through a link.
#[test]
fn cve_2024_45310_and_cve_2026_55686_folders_made_through_links() {
    let Some(mut host) = Host::new() else { return };
    symlink(host.canary("folder"), host.bundle.rootfs("escape")).expect("link");
    symlink("../../../../../../../..", host.bundle.rootfs("up")).expect("link");
    symlink("loop", host.bundle.rootfs("loop")).expect("link");
    for cwd in
        ["/escape/cwd", "/up/berth-was-here/x", "/up/../up/berth-was-here", "/loop/x", "/data/../../../berth-was-here"]
    {
        host = host.with(|bundle| bundle.set("/process/cwd", json!(cwd)));
        host.attempt(cwd);
        assert!(!Path::new("/berth-was-here").exists(), "{cwd}");
    }
}

/// CVE-2025-24965, in general: a file that the runtime reads or writes inside, and that is a link. This one is for HOME.
#[test]
fn cve_2025_24965_and_cve_2024_9676_passwd_as_something_else() {
    for form in ["absolute", "dots", "magic", "fifo", "huge", "folder", "dangling", "loop"] {
        let Some(host) = Host::of_ours() else { return };
        let passwd = host.bundle.rootfs("etc/passwd");
        std::fs::remove_file(&passwd).expect("remove");
        let canary = host.canary("passwd");
        match form {
            "absolute" => symlink(canary, &passwd).expect("link"),
            "dots" => symlink(format!("../../../../../../..{}", canary.display()), &passwd).expect("link"),
            "magic" => symlink("/proc/1/root/etc/passwd", &passwd).expect("link"),
            "fifo" => nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("fifo"),
            "huge" => std::fs::File::create(&passwd).and_then(|file| file.set_len(1 << 40)).expect("file"),
            "folder" => std::fs::create_dir(&passwd).expect("folder"),
            "dangling" => symlink("nowhere", &passwd).expect("link"),
            _ => symlink("passwd", &passwd).expect("link"),
        }
        let host = host.with(|bundle| bundle.shell("echo $HOME"));
        let home = host.attempt(form).expect("runs");
        assert_eq!(home, "/", "{form}");
        assert!(!home.contains(SECRET));
    }
}

/// Whatever the image has at /dev/mqueue: queues are those of the container's own namespace.
#[test]
fn mqueue_is_the_containers_own() {
    let Some(host) = Host::new() else { return };
    symlink(host.canary("folder"), host.bundle.rootfs("queues")).expect("link");
    let mount = json!({"destination": "/queues", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "nodev", "noexec"]});
    let host = host.with(|bundle| bundle.set("/mounts/-", mount).shell("touch /queues/mine && ls /queues"));
    assert_eq!(host.attempt("mqueue through a link").expect("stays inside"), "mine");
}
