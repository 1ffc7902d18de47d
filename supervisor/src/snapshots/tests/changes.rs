//! Random trees and random changes to them: what a layer says of a change makes the same change.

use std::{collections::BTreeMap, ffi::OsStr};

use nix::{
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat},
};
use proptest::prelude::*;

use super::*;

/// Something done to a tree; what can't be done is not.
#[derive(Debug, Clone)]
enum Act {
    Write(String, u8, usize),
    /// Other bytes, with size and times as before.
    Forge(String),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Fifo(String),
    Device(String),
    Remove(String),
    Rename(String, String),
    Chmod(String, u32),
    Chown(String, u32),
    Attribute(String, bool, u8),
    /// A default ACL: what is made in the directory from now on has one, too.
    Acl(String),
    Time(String, i64, i64),
}

fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "-"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (paths(), any::<u8>(), 0..3000_usize).prop_map(|(p, b, n)| Act::Write(p, b, n)),
        1 => paths().prop_map(Act::Forge),
        4 => paths().prop_map(Act::Directory),
        1 => (paths(), paths()).prop_map(|(p, q)| Act::Symlink(p, q)),
        2 => (paths(), paths()).prop_map(|(p, q)| Act::HardLink(p, q)),
        1 => paths().prop_map(Act::Fifo),
        1 => paths().prop_map(Act::Device),
        3 => paths().prop_map(Act::Remove),
        2 => (paths(), paths()).prop_map(|(p, q)| Act::Rename(p, q)),
        1 => (paths(), 0..0o10000_u32).prop_map(|(p, mode)| Act::Chmod(p, mode)),
        1 => (paths(), 0..100_000_u32).prop_map(|(p, owner)| Act::Chown(p, owner)),
        1 => (paths(), any::<bool>(), any::<u8>()).prop_map(|(p, user, b)| Act::Attribute(p, user, b)),
        1 => paths().prop_map(Act::Acl),
        1 => (paths(), -10_000..2_000_000_000_i64, 0..3_i64).prop_map(|(p, s, n)| Act::Time(p, s, n * 1000)),
    ];
    prop::collection::vec(act, 0..40)
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = TimeSpec::new(seconds, nanos);
    let _ = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink);
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

impl Act {
    fn perform(&self, tree: &Tree) {
        let at = |path: &String| tree.path(path);
        let is_file = |path: &String| fs::symlink_metadata(at(path)).is_ok_and(|meta| meta.is_file());
        match self {
            Self::Write(path, byte, size) => {
                if !fs::symlink_metadata(at(path)).is_ok_and(|meta| !meta.is_file()) {
                    let _ = fs::write(at(path), vec![*byte; *size]);
                }
            }
            Self::Forge(path) => {
                if is_file(path) {
                    let meta = fs::metadata(at(path)).unwrap();
                    let size = meta.len() as usize;
                    let file = fs::File::options().write(true).open(at(path)).unwrap();
                    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xfe; size], 0).unwrap();
                    set_time(&at(path), meta.mtime(), meta.mtime_nsec());
                }
            }
            Self::Directory(path) => drop(fs::create_dir(at(path))),
            Self::Symlink(path, to) => drop(std::os::unix::fs::symlink(to, at(path))),
            Self::HardLink(path, to) => drop(fs::hard_link(at(to), at(path))),
            Self::Fifo(path) => drop(mknod(&at(path), SFlag::S_IFIFO, Mode::S_IRUSR, 0)),
            Self::Device(path) => drop(mknod(&at(path), SFlag::S_IFCHR, Mode::S_IRUSR, 0x103)),
            Self::Remove(path) => {
                if fs::symlink_metadata(at(path)).is_ok_and(|meta| meta.is_dir()) {
                    let _ = fs::remove_dir_all(at(path));
                } else {
                    let _ = fs::remove_file(at(path));
                }
            }
            Self::Rename(path, to) => drop(fs::rename(at(path), at(to))),
            Self::Chmod(path, mode) => {
                if !fs::symlink_metadata(at(path)).is_ok_and(|meta| meta.is_symlink()) {
                    let _ = fs::set_permissions(at(path), fs::Permissions::from_mode(*mode));
                }
            }
            Self::Chown(path, owner) => {
                let (uid, gid) = (Uid::from_raw(*owner), Gid::from_raw(*owner + 1));
                let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
                let _ = fchownat(nix::fcntl::AT_FDCWD, &at(path), Some(uid), Some(gid), flags);
            }
            Self::Attribute(path, user, byte) => {
                let name = if *user { c"user.berth" } else { c"trusted.berth" };
                let _ = match byte % 4 {
                    0 => sys::xattr::lremove(&c_path(&at(path)), name),
                    _ => sys::xattr::lset(&c_path(&at(path)), name, &[*byte; 9]),
                };
            }
            Self::Acl(path) => {
                // Version 2, then tag, permissions and id: owner, user 7, group, mask, others (linux/posix_acl_xattr.h).
                let mut acl = vec![2, 0, 0, 0];
                for (tag, allowed, id) in [(1, 7, -1), (2, 5, 7), (4, 1, -1), (16, 5, -1), (32, 4, -1_i32)] {
                    acl.extend([tag, 0, allowed, 0]);
                    acl.extend(id.to_le_bytes());
                }
                let _ = sys::xattr::lset(&c_path(&at(path)), c"system.posix_acl_default", &acl);
            }
            Self::Time(path, seconds, nanos) => set_time(&at(path), *seconds, *nanos),
        }
    }
}

/// Everything about an entry that a layer is to keep, as text.
pub(super) fn scan(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = root.join(&path);
        // With the slash, the top itself and not the link that leads to it.
        let meta = fs::symlink_metadata(&at).unwrap();
        if meta.is_dir() {
            for entry in fs::read_dir(&at).unwrap() {
                todo.push(path.join(entry.unwrap().file_name()));
            }
        } else if meta.nlink() > 1 {
            names.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
        }
        let mut attributes: Vec<_> = sys::xattr::llist(&c_path(&at)).unwrap();
        attributes.retain(|name| crate::layers::apply::is_layers(name));
        attributes.sort();
        let attributes: Vec<_> = attributes
            .into_iter()
            .map(|name| {
                (
                    OsStr::from_bytes(&name).to_owned(),
                    sys::xattr::lget(&c_path(&at), &CString::new(name.clone()).unwrap()),
                )
            })
            .collect();
        let content = match meta.file_type() {
            kind if kind.is_symlink() => fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes(),
            kind if kind.is_file() => fs::read(&at).unwrap(),
            _ => Vec::new(),
        };
        let content = proto::digest::Digest::of(&content);
        // Whatever happens in a tree moves the time of its top.
        let time = if path.as_os_str().is_empty() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        let device = if meta.file_type().is_char_device() { meta.rdev() } else { 0 };
        let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
        found.insert(path, format!("{mode:o} {uid}:{gid} {device} {time:?} {attributes:?} {content}"));
    }
    for group in names.into_values().filter(|group| group.len() > 1) {
        for path in &group {
            if let Some(text) = found.get_mut(path) {
                let mut group = group.clone();
                group.sort();
                *text += &format!(" one file: {group:?}");
            }
        }
    }
    found
}

fn round_trip(lab: &Lab, before: &[Act], after: &[Act]) -> Result<(), TestCaseError> {
    let tree = lab.prepare("base work", "");
    before.iter().for_each(|act| act.perform(&tree));
    drop(tree);
    lab.commit("base", "base work");
    let tree = lab.prepare("changed", "base");
    after.iter().for_each(|act| act.perform(&tree));
    let (left, right) = (lab.view("look", "base"), lab.mounts("changed"));
    let layer = lab.difference(&left, &right, Compression::Plain);
    prop_assert!(layer == lab.difference(&left, &right, Compression::Plain), "the same trees give the same layer");
    drop(lab.prepare("again", "base"));
    lab.apply(&layer, &lab.mounts("again"));
    let (wanted, found) = (scan(&tree.path("")), scan(&lab.open(&lab.mounts("again")).path("")));
    for (path, text) in &wanted {
        prop_assert_eq!(Some(text), found.get(path), "{}", path.display());
    }
    prop_assert_eq!(wanted.len(), found.len(), "{:?}", found.keys());
    // What has been applied differs from what was by the same, and from what is by nothing.
    let none = lab.difference(&right, &lab.mounts("again"), Compression::Plain);
    let mut reader = crate::layers::tar::TarReader::new(&none[..]);
    prop_assert!(reader.next_entry().unwrap().is_none());
    drop(tree);
    // The first layer is one as well: of everything.
    let whole = lab.difference(&[], &left, Compression::Zstd);
    let from_nothing = lab.prepare("from nothing", "");
    drop(from_nothing);
    lab.apply(&whole, &lab.mounts("from nothing"));
    let (wanted, found) = (scan(&lab.open(&left).path("")), scan(&lab.open(&lab.mounts("from nothing")).path("")));
    prop_assert_eq!(wanted, found);
    for key in ["from nothing", "look", "again", "changed", "base"] {
        lab.snapshots().remove("ns", key).unwrap();
    }
    Ok(())
}

fn run(name: DriverName, cases: u32) {
    let Some(lab) = Lab::new(name) else { return };
    // For long runs: PROPTEST_CASES.
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&(acts(), acts()), |(before, after)| {
        // What a failed case has left.
        for (key, _) in lab.snapshots().list("ns", &[]).unwrap().into_iter().rev() {
            let _ = lab.snapshots().remove("ns", &key);
        }
        let _ = lab.snapshots().remove("ns", "base");
        round_trip(&lab, &before, &after)
    });
    if let Err(error) = outcome {
        panic!("{}: {error}", lab.snapshots().name());
    }
}

#[test]
fn a_layer_makes_its_change_again_on_overlayfs() {
    run(DriverName::Overlayfs, 150);
}

#[test]
fn a_layer_makes_its_change_again_on_native() {
    run(DriverName::Native, 100);
}

#[test]
fn a_layer_makes_its_change_again_on_btrfs() {
    run(DriverName::Btrfs, 25);
}

/// Changes that a run of random ones meets only now and then.
#[test]
fn names_that_are_joined_and_parted() {
    let time = |path: &str| Act::Time(path.into(), 1_000_000_000, 5000);
    let write = |path: &str| Act::Write(path.into(), 7, 100);
    let link = |path: &str, to: &str| Act::HardLink(path.into(), to.into());
    let remove = |path: &str| Act::Remove(path.into());
    let acl = |path: &str| Act::Acl(path.into());
    let dir = |path: &str| Act::Directory(path.into());
    let cases = [
        // What is made in a directory inherits, but only once, and only if it was made there.
        (vec![dir("a"), write("a/a"), acl("a")], vec![write("a/b"), dir("a/c"), write("a/c/a"), time("a/a")]),
        (vec![], vec![dir("a"), write("a/a"), acl("a"), link("a/b", "a/a")]),
        // Two files that look the same become one.
        (vec![write("a"), time("a"), write("b"), time("b")], vec![remove("b"), link("b", "a")]),
        // One becomes two that look the same.
        (vec![write("a"), link("b", "a"), time("a")], vec![remove("b"), write("b"), time("b")]),
        // Another name for a while: overlayfs has parted the file from its other name then.
        (vec![write("a"), link("b", "a")], vec![link("c", "a"), remove("c")]),
        // A new name in another folder than the old one, whose folder's time is to stay.
        (vec![dir("c"), write("c/a"), time("c/a"), time("c")], vec![link("a", "c/a")]),
        (vec![dir("a"), write("a/a"), time("a")], vec![link("b", "a/a")]),
    ];
    for lab in Lab::all() {
        for (before, after) in &cases {
            round_trip(&lab, before, after)
                .unwrap_or_else(|error| panic!("{}: {after:?}: {error}", lab.snapshots().name()));
        }
    }
}
