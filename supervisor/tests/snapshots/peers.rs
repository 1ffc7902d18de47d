//! The same change on Debian's containerd and on our supervisor: the layers made of it hold the same files.

use std::{collections::BTreeMap, io::Read, path::Path};

use crate::{
    daemon::{Daemon, installed},
    images::{archive, layer},
};

/// What a layer says of each path.
fn entries(layer: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let path = path.trim_end_matches('/').to_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        let header = entry.header();
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
        let device = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
        let device = device.0.unwrap_or(0) << 8 | device.1.unwrap_or(0);
        // A whiteout has no mode, owner or time of its own.
        let text = if path.split('/').any(|part| part.starts_with(".wh.")) {
            "whiteout".to_owned()
        } else {
            let (mode, uid, gid) = (header.mode().unwrap() & 0o7777, header.uid().unwrap(), header.gid().unwrap());
            let (kind, time) = (header.entry_type(), header.mtime().unwrap());
            format!("{kind:?} {mode:o} {uid}:{gid} {time} {device:x} {link:?} {}", proto::digest::Digest::of(&data))
        };
        assert_eq!(found.insert(path.clone(), text), None, "{path} is there twice");
    }
    found
}

/// Everything that may happen to a tree, with times that are the same wherever it happens.
const CHANGES: &str = "
    echo new > new; mkdir -p deep/er; echo x > deep/er/file; ln -s ../new deep/link; mkfifo pipe; mknod dev c 1 3
    echo changed > etc/config; rm etc/gone; rm -r tree/inner; rm -r replaced; mkdir replaced; echo y > replaced/y
    rm file; mkdir file; echo z > file/z; rm -r dir; echo now a file > dir; chmod 4711 bin/tool; chown 5:6 bin/owned
    ln bin/linked other-name; ln new new-too; mv moved away; touch empty; rm -r all; mkdir all; chmod 700 tree
    head -c 300000 /dev/zero > zeros; echo > \"$(printf 'n%.0s' $(seq 150))\"; mkdir umlaut-\u{e4}
    find . -exec touch -h -d @1700000000 {} +
";

fn base() -> [Vec<u8>; 2] {
    let below: [(&str, &[u8]); 22] = [
        ("bin/", b""),
        ("bin/tool", b"tool"),
        ("bin/owned", b"owned"),
        ("bin/linked", b"linked"),
        ("bin/untouched", b"untouched"),
        ("etc/", b""),
        ("etc/config", b"before"),
        ("etc/gone", b"gone"),
        ("tree/", b""),
        ("tree/inner/", b""),
        ("tree/inner/a", b"a"),
        ("tree/stays", b"stays"),
        ("replaced/", b""),
        ("replaced/x", b"x"),
        ("file", b"file"),
        ("dir/", b""),
        ("dir/in", b"in"),
        ("moved", b"moved"),
        ("all/", b""),
        ("all/one", b"1"),
        ("all/two", b"2"),
        ("link -> etc/config", b""),
    ];
    [layer(&below), layer(&[("etc/above", b"above"), ("all/.wh.one", b"")])]
}

fn change(daemon: &Daemon, snapshotter: &str) -> BTreeMap<String, String> {
    let file = daemon.root().join("image.tar");
    let top = archive(&file, "docker.io/library/base:1", &base());
    daemon.ctr(&["images", "import", "--snapshotter", snapshotter, file.to_str().unwrap()]);
    daemon.ctr(&["snapshots", "--snapshotter", snapshotter, "prepare", "work", &top]);
    daemon.within(snapshotter, "work", CHANGES);
    let layer = daemon.try_ctr(&["snapshots", "--snapshotter", snapshotter, "diff", "work"]).unwrap();
    // As others read it.
    let at = daemon.root().join("layer");
    std::fs::write(&at, &layer).unwrap();
    let listed = std::process::Command::new("tar").arg("-tzf").arg(&at).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    entries(&layer)
}

fn assert_same(peer: &BTreeMap<String, String>, ours: &BTreeMap<String, String>, what: &str) {
    for (path, text) in peer {
        assert_eq!(ours.get(path), Some(text), "{what}: {path}");
    }
    let more: Vec<_> = ours.keys().filter(|path| !peer.contains_key(*path)).collect();
    assert!(more.is_empty(), "{what}: {more:?}");
}

fn supervised(root: &Path, snapshotter: &str) -> BTreeMap<String, String> {
    let daemon = Daemon::supervisor(root, None);
    let changes = change(&daemon, snapshotter);
    // The same bytes each time; containerd's whiteouts have the time of the call.
    let [one, other] = [(); 2].map(|()| daemon.try_ctr(&["snapshots", "--snapshotter", snapshotter, "diff", "work"]));
    assert!(one.unwrap() == other.unwrap(), "{snapshotter}");
    changes
}

#[test]
fn a_layer_has_the_files_that_containerd_puts_into_it() {
    if !installed("containerd") || !installed("ctr") {
        return;
    }
    let roots = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let peer = change(&Daemon::containerd(roots[0].path()), "overlayfs");
    assert!(peer.len() > 30, "{peer:?}");
    assert_same(&peer, &supervised(roots[1].path(), "overlayfs"), "overlayfs");
    assert_same(&peer, &supervised(roots[2].path(), "native"), "native");
}
