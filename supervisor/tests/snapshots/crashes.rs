//! SIGKILL at every point of prepare, commit and remove: afterwards each snapshot is there or gone, with its folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::daemon::{Daemon, Disk};

fn points() -> Vec<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut names = proto::fault::points(&sources).unwrap();
    names.retain(|name| name.starts_with("supervisor.snapshot_"));
    assert!(names.len() >= 9, "{names:?}");
    names
}

/// Points that a snapshotter doesn't come to: the others prepare in another way.
fn is_reached(snapshotter: &str, point: &str) -> bool {
    match point.rsplit('.').next().unwrap() {
        "made" => snapshotter == "overlayfs",
        "reserved" => snapshotter != "overlayfs",
        "copied" => snapshotter == "native",
        "cloned" => snapshotter == "btrfs",
        _ => true,
    }
}

fn folders(root: &Path, snapshotter: &str) -> Vec<String> {
    let at = root.join("data/supervisor/snapshots").join(snapshotter);
    let names = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "l").collect()
}

/// Everything that is to be killed at some point, one after the other; what fails, fails.
fn work(daemon: &mut Daemon, snapshotter: &str) {
    for step in [
        &["prepare", "work", "base"][..],
        &["commit", "top", "work"],
        &["prepare", "gone", "base"],
        &["rm", "gone"],
        &["view", "look", "base"],
    ] {
        let done = daemon.try_ctr(&[&["snapshots", "--snapshotter", snapshotter], step].concat());
        if done.is_err() {
            break;
        }
    }
    // A point after the last change: the answer may be out before the process is dead.
    for _ in 0..100 {
        if daemon.has_died() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn killed_at_each_step(root: &Path, snapshotter: &str) {
    let ctr =
        |daemon: &Daemon, args: &[&str]| daemon.ctr(&[&["snapshots", "--snapshotter", snapshotter], args].concat());
    let daemon = Daemon::supervisor(root, None);
    ctr(&daemon, &["prepare", "first", ""]);
    daemon.within(snapshotter, "first", "mkdir d; echo whole > d/file; ln d/file other; truncate -s 1M holes");
    ctr(&daemon, &["commit", "base", "first"]);
    ctr(&daemon, &["label", "base", "containerd.io/gc.root=true"]);
    drop(daemon);
    let mut reached = 0;
    for point in points() {
        let mark: PathBuf = root.join(format!("mark-{point}"));
        let mut daemon = Daemon::supervisor(root, Some((&point, &mark)));
        work(&mut daemon, snapshotter);
        assert_eq!(mark.exists(), is_reached(snapshotter, &point), "{snapshotter}: {point}");
        reached += usize::from(mark.exists());
        assert_eq!(daemon.has_died(), mark.exists(), "{snapshotter}: {point}");
        let daemon = daemon.again();
        let there = daemon.snapshots(snapshotter);
        assert_eq!(folders(root, snapshotter).len(), there.len(), "{snapshotter}: {point}: {there:?}");
        // What is there is whole, and what isn't can be made.
        for (key, kind) in there.iter().filter(|(key, _)| key != "base") {
            if kind != "Committed" {
                let text = daemon.within(snapshotter, key, "cat d/file other; stat -c %h other");
                assert_eq!(text, "whole\nwhole\n2\n", "{snapshotter}: {point}: {key}");
            }
            ctr(&daemon, &["rm", key]);
        }
        for key in ["work", "gone", "look"] {
            ctr(&daemon, &["prepare", key, "base"]);
        }
        ctr(&daemon, &["commit", "top", "work"]);
        for key in ["gone", "look", "top"] {
            ctr(&daemon, &["rm", key]);
        }
        assert_eq!(folders(root, snapshotter).len(), 1, "{snapshotter}: {point}");
    }
    assert!(reached >= 6, "{snapshotter}: {reached}");
}

#[test]
fn killed_at_each_step_of_overlayfs() {
    let root = tempfile::tempdir().unwrap();
    killed_at_each_step(root.path(), "overlayfs");
}

#[test]
fn killed_at_each_step_of_native() {
    let root = tempfile::tempdir().unwrap();
    killed_at_each_step(root.path(), "native");
}

#[test]
fn killed_at_each_step_of_btrfs() {
    let Some(disk) = Disk::btrfs() else { return };
    killed_at_each_step(&disk.at(), "btrfs");
}

#[test]
fn layers_kept_elsewhere() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| elsewhere.path().join(name);
    let config = format!("[snapshots.overlayfs]\nroot = {:?}\n[snapshots.native]\nroot = {:?}\n", at("o"), at("n"));
    fs::write(root.path().join("config.toml"), config).unwrap();
    let daemon = Daemon::supervisor(root.path(), None);
    for snapshotter in ["overlayfs", "native"] {
        daemon.ctr(&["snapshots", "--snapshotter", snapshotter, "prepare", "a", ""]);
        daemon.within(snapshotter, "a", "echo here > file");
    }
    assert!(at("o/1/fs/file").exists() && at("n/2/fs/file").exists());
    let daemon = daemon.stopped();
    for args in [&["check"][..], &["check", "--repair"]] {
        let mut check = daemon.program();
        let output = check.args(args).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "all is well\n", "{args:?}");
    }
    let daemon = daemon.again();
    for snapshotter in ["overlayfs", "native"] {
        assert_eq!(daemon.within(snapshotter, "a", "cat file"), "here\n");
    }
    // One that is gone is found, and the rest is kept where it was.
    let daemon = daemon.stopped();
    fs::remove_dir_all(at("n/2")).unwrap();
    let output = daemon.program().args(["check", "--repair"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.contains("snapshot tests/a (native) has lost its folder"), "{words}");
    let daemon = daemon.again();
    assert_eq!((daemon.snapshots("native").len(), daemon.snapshots("overlayfs").len()), (0, 1));
}

#[test]
fn a_layer_that_does_not_fit() {
    let disk = Disk::tmpfs("24m");
    let daemon = Daemon::supervisor(&disk.at(), None);
    daemon.ctr(&["snapshots", "prepare", "a", ""]);
    daemon.within("overlayfs", "a", "echo x > small");
    daemon.ctr(&["snapshots", "commit", "base", "a"]);
    daemon.ctr(&["snapshots", "prepare", "work", "base"]);
    daemon.within("overlayfs", "work", "head -c 16M /dev/urandom > large");
    let error = daemon.try_ctr(&["snapshots", "diff", "work"]).unwrap_err();
    assert!(error.to_lowercase().contains("no space left"), "{error}");
    let ingests = disk.at().join("data/supervisor/content/ingest");
    assert_eq!(fs::read_dir(ingests).unwrap().count(), 0, "half a layer is left");
    daemon.within("overlayfs", "work", "rm large");
    assert!(!daemon.try_ctr(&["snapshots", "diff", "work"]).unwrap().is_empty());
    drop(daemon);
}
