//! What a file tree is made of, so that two of them can be compared: content, type, mode, owner, times, attributes,
//! devices, and which names are one file.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use proto::digest::Digest;

/// Every entry below a root, described by a line.
pub(super) type Tree = BTreeMap<String, String>;

/// Describes the tree below `root`.
pub(super) fn tree_of(root: &Path) -> Tree {
    let (mut tree, mut inodes) = (Tree::new(), HashMap::new());
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let stat = fs::symlink_metadata(&path).unwrap();
            if stat.is_dir() {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let line = describe(&path, &stat);
            tree.insert(name.clone(), line);
            if !stat.is_dir() && stat.nlink() > 1 {
                inodes.entry((stat.dev(), stat.ino())).or_insert_with(Vec::new).push(name);
            }
        }
    }
    // An overlay counts links of a file below that layers above have replaced.
    for mut names in inodes.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            tree.get_mut(name).unwrap().push_str(&format!(" = {}", names[0]));
        }
    }
    tree
}

fn describe(path: &Path, stat: &fs::Metadata) -> String {
    let kind = stat.file_type();
    let what = if kind.is_symlink() {
        format!("-> {}", fs::read_link(path).unwrap().display())
    } else if kind.is_dir() {
        "folder".to_owned()
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_char_device() || kind.is_block_device() {
        let letter = if kind.is_char_device() { 'c' } else { 'b' };
        format!("{letter} {}:{}", nix::sys::stat::major(stat.rdev()), nix::sys::stat::minor(stat.rdev()))
    } else {
        format!("file {} {}", stat.len(), Digest::of(&fs::read(path).unwrap()))
    };
    let at = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut attributes: Vec<_> = sys::xattr::llist(&at).unwrap_or_default();
    // How layers are put over one another is the snapshotter's own matter.
    attributes.retain(|name| !name.starts_with(b"trusted."));
    attributes.sort();
    let attributes: Vec<_> = attributes
        .into_iter()
        .map(|name| {
            let value = sys::xattr::lget(&at, &CString::new(name.clone()).unwrap()).unwrap().unwrap_or_default();
            format!("{}={value:02x?}", String::from_utf8_lossy(&name))
        })
        .collect();
    // Of folders the time of the last change within, which not everybody sets back.
    let time = if stat.is_dir() { String::new() } else { format!("{}.{:09}", stat.mtime(), stat.mtime_nsec()) };
    format!("{what} {:o} {}:{} {time} {}", stat.mode() & 0o7777, stat.uid(), stat.gid(), attributes.join(","))
}

/// Fails with what differs.
#[track_caller]
pub(super) fn assert_same(ours: &Tree, peers: &Tree, what: &str) {
    let mut wrong = Vec::new();
    for name in ours.keys().chain(peers.keys()).collect::<std::collections::BTreeSet<_>>() {
        if ours.get(name) != peers.get(name) {
            wrong.push(format!("{name}:\n  ours  {:?}\n  peers {:?}", ours.get(name), peers.get(name)));
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    assert!(ours.len() > 5, "{what}: {} entries", ours.len());
}
