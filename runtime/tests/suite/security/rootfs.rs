//! Images made to harm, by table: every place that a runtime touches, as every kind of thing that it could be instead.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

use super::host::{Host, SECRET, volume, without};

/// Where an image may have something unexpected.
const PLACES: &[&str] = &[
    "proc",
    "sys",
    "dev",
    "dev/null",
    "dev/pts",
    "dev/console",
    "dev/shm",
    "dev/mqueue",
    "dev/ptmx",
    "dev/fd",
    "etc",
    "etc/passwd",
    "work",
    "volume",
    "volume/deep",
    "file",
    "masked",
    "hidden",
    "readonly",
    "bin",
];

/// What it may be.
const FORMS: &[&str] =
    &["absolute", "absolute file", "dots", "dangling", "loop", "fifo", "device", "file", "huge", "folder", "magic"];

fn plant(host: &Host, place: &str, form: &str) {
    let at = host.bundle.rootfs(place);
    let parent = at.parent().expect("a parent");
    std::fs::create_dir_all(parent).expect("folder");
    let _ = std::fs::remove_file(&at);
    if at.is_dir() && !at.is_symlink() {
        std::fs::remove_dir_all(&at).expect("remove");
    }
    let mode = Mode::from_bits_truncate(0o666);
    match form {
        "absolute" => symlink(host.canary("folder"), &at).expect("link"),
        "absolute file" => symlink(host.canary("passwd"), &at).expect("link"),
        "dots" => symlink(format!("../../../../../../../../..{}", host.canary("folder").display()), &at).expect("link"),
        "dangling" => symlink("/nowhere/at/all", &at).expect("link"),
        "loop" => symlink(at.file_name().expect("name"), &at).expect("link"),
        "fifo" => nix::unistd::mkfifo(&at, mode).expect("fifo"),
        "device" => mknod(&at, SFlag::S_IFCHR, mode, makedev(1, 5)).expect("device"),
        "file" => std::fs::write(&at, "mine").expect("file"),
        "huge" => std::fs::File::create(&at).and_then(|file| file.set_len(1 << 42)).expect("file"),
        "folder" => std::fs::create_dir(&at).expect("folder"),
        "magic" => symlink("/proc/self/root/proc/1/root", &at).expect("link"),
        form => panic!("{form}?"),
    }
}

/// Section 7b of the reference: each combination is refused in so many words, or stays inside; the host is as it was, nothing is left.
#[test]
fn hostile_rootfs() {
    let (mut ran, mut refused) = (0, 0);
    let Some(host) = Host::of_ours() else { return };
    let mut host = host;
    std::fs::create_dir(host.bundle.path("volume")).expect("folder");
    std::fs::write(host.bundle.path("single"), "single").expect("file");
    let whole = host.bundle.rootfs("");
    let kept = host.bundle.path("kept");
    std::fs::rename(&whole, &kept).expect("rename");
    let (folder, file) = (host.bundle.path("volume"), host.bundle.path("single"));
    host = host.with(|bundle| {
        let mount = |destination: &str, kind: &str| json!({"destination": destination, "type": kind, "source": kind});
        bundle
            .shell("for f in /etc/passwd /file /volume/x /work/x /work/deeper/x /masked /readonly/x; do test -f $f && head -c 99 $f; done; \
                 ls /volume /work /hidden /dev/console; pwd; test -d /volume/deep && echo x >/volume/deep/y")
            .set("/process/cwd", json!("/work"))
            .set("/mounts/-", volume(&folder, "/volume"))
            .set("/mounts/-", mount("/volume/deep", "tmpfs"))
            .set("/mounts/-", volume(&file, "/file"))
            .set("/linux/maskedPaths", json!(["/masked", "/hidden", "/proc/kcore"]))
            .set("/linux/readonlyPaths", json!(["/readonly", "/proc/sys"]))
    });
    let with_dev = host.bundle.config["mounts"].clone();
    host = host.with(|bundle| without(bundle, "/dev"));
    let without_dev = host.bundle.config["mounts"].clone();
    let mut with_terminal = without_dev.clone();
    let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]});
    let mqueue = json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"});
    with_terminal.as_array_mut().expect("list").extend([pts, mqueue]);
    // Hundreds of runs: an emulated machine would need a quarter of an hour for them, so that it gets every seventh.
    let every = if crate::bundle::patience() > 1 { 7 } else { 1 };
    if every > 1 {
        println!(
            "skipped in part: one combination in {every}, since BERTH_TEST_PATIENCE says that this machine is slow"
        );
    }
    let mut number = 0;
    for place in PLACES {
        for form in FORMS {
            number += 1;
            if number % every != 0 {
                continue;
            }
            let variants = [
                ("own /dev", &with_dev, false),
                ("/dev of the image", &without_dev, false),
                ("terminal", &with_terminal, true),
            ];
            for (variant, mounts, terminal) in variants {
                // A tmpfs on /dev covers what is in there.
                if place.starts_with("dev/") && variant == "own /dev"
                    || !place.starts_with("dev") && variant == "terminal"
                {
                    continue;
                }
                fresh(&kept, &whole);
                plant(&host, place, form);
                host =
                    host.with(|bundle| bundle.set("/mounts", mounts.clone()).set("/process/terminal", json!(terminal)));
                let what = format!("{place} as {form}, {variant}");
                let output = host.run();
                let (stdout, stderr) = crate::bundle::texts(&output);
                host.assert_untouched(&what);
                host.bundle.assert_nothing_left();
                assert!(
                    !stdout.contains(SECRET) && !stderr.contains(SECRET),
                    "{what}: read from the host: {stdout} {stderr}"
                );
                assert!(!stderr.contains("panicked"), "{what}: {stderr}");
                // The shell's own complaints come without the name of the runtime.
                if stderr.lines().last().is_some_and(|line| line.starts_with("berth-runtime: ")) {
                    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
                    refused += 1;
                } else {
                    assert!(output.status.code().is_some_and(|code| code < 3), "{what}: {output:?}");
                    ran += 1;
                }
            }
            let left: Vec<_> =
                std::fs::read_dir(&folder).expect("volume").flatten().map(|entry| entry.file_name()).collect();
            assert!(left.iter().all(|name| name == "deep"), "{place} as {form}: {left:?} in the volume");
        }
    }
    println!("{ran} combinations stayed inside, {refused} were refused");
    let enough = 50 / every;
    assert!(ran > enough && refused > enough, "{ran} ran, {refused} were refused: the table has lost its teeth");
}

/// The root as it was, by links: names are what is attacked, never contents.
fn fresh(kept: &Path, whole: &Path) {
    if whole.exists() {
        std::fs::remove_dir_all(whole).expect("remove");
    }
    std::fs::create_dir(whole).expect("folder");
    std::fs::set_permissions(whole, std::fs::Permissions::from_mode(0o755)).expect("mode");
    for entry in std::fs::read_dir(kept).expect("read").flatten() {
        let to = whole.join(entry.file_name());
        if !entry.file_type().expect("type").is_dir() {
            std::fs::hard_link(entry.path(), to).expect("link");
            continue;
        }
        std::fs::create_dir(&to).expect("folder");
        for entry in std::fs::read_dir(entry.path()).expect("read").flatten() {
            std::fs::hard_link(entry.path(), to.join(entry.file_name())).expect("link");
        }
    }
}
