//! An image for each snapshotter, a container on it, and what `ctr` shows of them.

use std::{fs, path::Path, process::Command};

use tar::{Builder, EntryType, Header};

use crate::daemon::{Daemon, Disk};

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    header.set_size(size as u64);
    header
}

/// A layer of files; a name with a slash at its end is a directory, one with an arrow a link.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, data) in files {
        if let Some((path, to)) = path.split_once(" -> ") {
            builder.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, to).unwrap();
        } else if path.ends_with('/') {
            builder.append_data(&mut header(EntryType::Directory, 0o755, 0), path, &b""[..]).unwrap();
        } else {
            builder.append_data(&mut header(EntryType::Regular, 0o755, data.len()), path, *data).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// An archive as `docker save` makes it, and the chain id of its topmost layer.
pub(crate) fn archive(at: &Path, name: &str, layers: &[Vec<u8>]) -> String {
    use proto::digest::{Digest, chain_id};
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let names: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": names},
    });
    let files: Vec<String> = (0..layers.len()).map(|index| format!("{index}.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": files}]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let mut builder = Builder::new(fs::File::create(at).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        builder.append_data(&mut header(EntryType::Regular, 0o644, data.len()), name, data).unwrap();
    };
    add("config.json", config.as_bytes());
    for (file, layer) in files.iter().zip(layers) {
        add(file, layer);
    }
    add("manifest.json", manifest.as_bytes());
    builder.finish().unwrap();
    chain_id(&diff_ids).unwrap().to_string()
}

fn runs_on(root: &Path, snapshotter: &str) {
    let daemon = Daemon::supervisor(root, None);
    let ours = Path::new(env!("CARGO_BIN_EXE_berth-supervisor"));
    assert!(ours.with_file_name("berth-shim").is_file(), "berth-shim is missing: cargo build -p shim -p runtime first");
    let busybox = fs::read("/bin/busybox").unwrap();
    let below: [(&str, &[u8]); 9] = [
        ("bin/", b""),
        ("bin/busybox", &busybox),
        ("bin/sh -> busybox", b""),
        ("bin/cat -> busybox", b""),
        ("etc/", b""),
        ("etc/gone", b"x"),
        ("proc/", b""),
        ("dev/", b""),
        ("sys/", b""),
    ];
    let layers = [layer(&below), layer(&[("etc/words", b"from above"), ("etc/.wh.gone", b"")])];
    let file = root.join("image.tar");
    let top = archive(&file, "docker.io/library/box:1", &layers);
    daemon.ctr(&["images", "import", "--snapshotter", snapshotter, file.to_str().unwrap()]);
    assert!(daemon.snapshots(snapshotter).iter().any(|(key, kind)| *key == top && kind == "Committed"));
    let run =
        ["run", "--rm", "--snapshotter", snapshotter, "--runtime", "io.containerd.berth.v1", "docker.io/library/box:1"];
    let script = "cat /etc/words; [ -e /etc/gone ] || echo and nothing else; echo mine > /etc/words";
    for round in 0..2 {
        let said = daemon.ctr(&[&run[..], &[&format!("c{round}"), "/bin/sh", "-c", script]].concat());
        // The second one sees nothing of the first.
        assert_eq!(said, "from aboveand nothing else\n", "{snapshotter}");
    }
    assert_eq!(daemon.snapshots(snapshotter).len(), 2, "{snapshotter}: the containers' snapshots are gone");
    let usage = daemon.ctr(&["snapshots", "--snapshotter", snapshotter, "usage", &top]);
    assert!(usage.contains("KiB") || usage.contains("MiB"), "{usage}");
    daemon.ctr(&["images", "rm", "--sync", "docker.io/library/box:1"]);
    let mut gone = Vec::new();
    for _ in 0..200 {
        gone = daemon.snapshots(snapshotter);
        if gone.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(gone.is_empty(), "{snapshotter}: {gone:?}");
}

#[test]
fn a_container_on_overlayfs() {
    runs_on(tempfile::tempdir().unwrap().path(), "overlayfs");
}

#[test]
fn a_container_on_native() {
    runs_on(tempfile::tempdir().unwrap().path(), "native");
}

#[test]
fn a_container_on_btrfs() {
    if let Some(disk) = Disk::btrfs() {
        runs_on(&disk.at(), "btrfs");
    }
}

#[test]
fn what_is_there_and_what_is_skipped() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("config.toml"), "[snapshots]\ndefault = 'native'\n").unwrap();
    let daemon = Daemon::supervisor(root.path(), None);
    let plugins = daemon.ctr(&["plugins", "ls"]);
    let state = |name: &str| {
        let line = plugins.lines().find(|line| line.contains("io.containerd.snapshotter.v1") && line.contains(name));
        line.and_then(|line| line.split_whitespace().last()).map(str::to_owned)
    };
    assert_eq!(state("overlayfs").as_deref(), Some("ok"), "{plugins}");
    assert_eq!(state("native").as_deref(), Some("ok"), "{plugins}");
    assert_eq!(state("btrfs").as_deref(), Some("skip"), "{plugins}");
    let why = daemon.ctr(&["plugins", "ls", "-d", "id==btrfs"]);
    assert!(why.contains("is not on btrfs"), "{why}");
    let error = daemon.try_ctr(&["snapshots", "--snapshotter", "btrfs", "ls"]).unwrap_err();
    assert!(error.contains("snapshotter \"btrfs\" is not loaded") && error.contains("[snapshots.btrfs]"), "{error}");
    drop(daemon);
    fs::write(root.path().join("config.toml"), "[snapshots]\ndefault = 'btrfs'\n").unwrap();
    let mut refused = Command::new(env!("CARGO_BIN_EXE_berth-supervisor"));
    refused.args(["--data-root"]).arg(root.path().join("data")).arg("--run-root").arg(root.path().join("run"));
    let output = refused.arg("--config").arg(root.path().join("config.toml")).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && words.contains("snapshotter \"btrfs\", the default by the configuration"),
        "{words}"
    );
}
