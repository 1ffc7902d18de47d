//! Every snapshotter by the same tests: what containerd's API promises, and that a layer made of a difference makes the same
//! difference again.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{containerd::types::Mount, kind::ErrorKind};

use super::{GID_MAP, Kind, SnapshotConfig, SnapshotError, Snapshotter, UID_MAP, set::DriverName};
use crate::{
    failure::Failure,
    layers::{
        apply::apply,
        decompress::Compression,
        diff::Difference,
        place::{Access, mounted, writable},
    },
    store::{Labels, Stores, labels_from},
};

mod changes;

/// A file system image on a loop device; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, with the reason on stderr, where the tools or the devices are missing.
    fn new(kind: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("berth-disk-").tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("at"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let run = |command: &mut Command| match command.output() {
            Ok(output) if output.status.success() => true,
            Ok(output) => {
                eprintln!("skipped: {command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
                false
            }
            Err(error) => {
                eprintln!("skipped: {command:?}: {error}");
                false
            }
        };
        let made = run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        made.then_some(Self(folder))
    }

    fn at(&self) -> PathBuf {
        self.0.path().join("at")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = || Command::new("umount").arg(self.at()).status().is_ok_and(|status| status.success());
        // What another test starts has a copy of our descriptors until it executes its program.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !unmounted() {
            if Instant::now() > deadline {
                assert!(std::thread::panicking(), "the disk is still in use");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Stores whose default is one snapshotter.
struct Lab {
    stores: Arc<Stores>,
    folder: PathBuf,
    // In this order: the folder lies on the disk.
    _dir: tempfile::TempDir,
    _disk: Option<Disk>,
}

impl Lab {
    fn new(name: DriverName) -> Option<Self> {
        let disk = match name {
            DriverName::Btrfs => Some(Disk::new("btrfs")?),
            _ => None,
        };
        // In memory: nothing here is about what a disk keeps.
        let within = disk.as_ref().map_or_else(|| PathBuf::from("/dev/shm"), Disk::at);
        let dir = tempfile::Builder::new().prefix("berth-lab-").tempdir_in(within).unwrap();
        let config = SnapshotConfig { default: Some(name), ..Default::default() };
        let stores = Stores::open(dir.path(), &config, Arc::new(|_, _, _| {})).unwrap();
        let folder = dir.path().join("supervisor/snapshots").join(stores.snapshots.usual().name());
        Some(Self { stores, folder, _dir: dir, _disk: disk })
    }

    fn all() -> impl Iterator<Item = Self> {
        [DriverName::Overlayfs, DriverName::Native, DriverName::Btrfs].into_iter().filter_map(Self::new)
    }

    fn snapshots(&self) -> &Snapshotter {
        self.stores.snapshots.usual()
    }

    fn open(&self, mounts: &[Mount]) -> Tree {
        Tree(mounted(mounts, self.stores.snapshots.scratch(), Access::AsTold).unwrap())
    }

    fn prepare(&self, key: &str, parent: &str) -> Tree {
        self.open(&self.snapshots().prepare("ns", key, parent, Labels::new(), None).unwrap())
    }

    fn commit(&self, name: &str, key: &str) {
        self.snapshots().commit("ns", name, key, Labels::new(), None).unwrap();
    }

    fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.snapshots().view("ns", key, parent, Labels::new(), None).unwrap()
    }

    fn mounts(&self, key: &str) -> Vec<Mount> {
        self.snapshots().mounts("ns", key).unwrap()
    }

    fn difference(&self, left: &[Mount], right: &[Mount], compression: Compression) -> Vec<u8> {
        let copy = self.stores.snapshots.copy_behind(left, right);
        let scratch = self.stores.snapshots.scratch();
        let mut layer = Vec::new();
        let difference =
            Difference { left, right, scratch, copy: copy.as_deref(), epoch: None, except: Default::default() };
        difference.write(&mut layer, compression).unwrap();
        layer
    }

    fn apply(&self, layer: &[u8], mounts: &[Mount]) {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, layer).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let ours = |folder: &Path| self.stores.snapshots.has_layer(folder);
        apply(file, &writable(mounts, self.stores.snapshots.scratch(), ours).unwrap(), &|_| ()).unwrap();
    }

    fn folders(&self) -> usize {
        fs::read_dir(&self.folder).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "l").count()
    }
}

/// A mounted tree that only this process sees.
struct Tree(OwnedFd);

impl Tree {
    fn path(&self, path: &str) -> PathBuf {
        // By number: programs that the tests start look at it too.
        PathBuf::from(format!("/proc/{}/fd/{}/{path}", std::process::id(), self.0.as_raw_fd()))
    }
}

fn kind_of(error: &SnapshotError) -> ErrorKind {
    error.kind()
}

#[test]
fn what_the_api_promises() {
    for lab in Lab::all() {
        let snapshots = lab.snapshots();
        let name = snapshots.name();
        let tree = lab.prepare("base work", "");
        fs::write(tree.path("file"), "from below").unwrap();
        fs::set_permissions(tree.path(""), fs::Permissions::from_mode(0o751)).unwrap();
        drop(tree);
        lab.commit("base", "base work");
        let tree = lab.prepare("work", "base");
        assert_eq!(fs::read(tree.path("file")).unwrap(), b"from below", "{name}");
        assert_eq!(fs::metadata(tree.path("")).unwrap().mode() & 0o7777, 0o751, "{name}");
        fs::write(tree.path("file"), "changed").unwrap();
        fs::write(tree.path("more"), vec![7; 100_000]).unwrap();
        drop(tree);
        // What stands on a snapshot changes nothing in it, and a view shows it, for reading alone.
        let view = lab.view("look", "base");
        let tree = lab.open(&view);
        assert_eq!(fs::read(tree.path("file")).unwrap(), b"from below", "{name}");
        let refused = fs::write(tree.path("x"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{name}");
        drop(tree);
        let (file, usage) = (100_000, snapshots.usage("ns", "work").unwrap());
        assert!(usage.bytes >= file && usage.inodes >= 2, "{name}: {usage:?}");
        lab.commit("top", "work");
        assert_eq!(snapshots.usage("ns", "top").unwrap(), usage, "{name}");
        // Three layers, so that a view is an overlay.
        let tree = lab.open(&lab.view("look at top", "top"));
        assert_eq!(fs::read(tree.path("file")).unwrap(), b"changed", "{name}");
        assert!(fs::write(tree.path("x"), "").is_err(), "{name}");
        drop(tree);
        let prepare = |key: &str, parent: &str| snapshots.prepare("ns", key, parent, Labels::new(), None).unwrap_err();
        assert_eq!(kind_of(&prepare("look", "base")), ErrorKind::AlreadyExists);
        assert_eq!(kind_of(&prepare("x", "nothing")), ErrorKind::NotFound);
        assert_eq!(kind_of(&prepare("x", "look")), ErrorKind::InvalidArgument);
        assert_eq!(kind_of(&prepare("", "base")), ErrorKind::InvalidArgument);
        let failed = |result: Result<(), SnapshotError>| kind_of(&result.unwrap_err());
        assert_eq!(failed(snapshots.remove("ns", "base")), ErrorKind::FailedPrecondition);
        assert_eq!(failed(snapshots.remove("other", "base")), ErrorKind::NotFound);
        assert_eq!(failed(snapshots.mounts("ns", "base").map(drop)), ErrorKind::FailedPrecondition);
        let commit = |name: &str, key: &str| failed(snapshots.commit("ns", name, key, Labels::new(), None));
        assert_eq!(commit("x", "look"), ErrorKind::FailedPrecondition);
        assert_eq!(commit("x", "nothing"), ErrorKind::NotFound);
        drop(lab.prepare("again", "base"));
        assert_eq!(commit("top", "again"), ErrorKind::AlreadyExists);
        // Labels by field mask, and filters.
        let labels = labels_from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        snapshots.update("ns", "top", &labels, &["labels.a".into()]).unwrap();
        assert_eq!(snapshots.stat("ns", "top").unwrap().labels, labels_from([("a".into(), "1".into())]));
        let found = |filter: &str| {
            let found = snapshots.list("ns", &[filter.to_owned()]).unwrap();
            found.into_iter().map(|(key, _)| key).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found("labels.a==1"), "top");
        assert_eq!(found("kind==committed"), "base top");
        assert_eq!(found("parent==base,kind==active"), "again");
        assert_eq!(snapshots.stat("ns", "look").unwrap().kind, Kind::View);
        for key in ["look at top", "look", "again", "top", "base"] {
            snapshots.remove("ns", key).unwrap();
        }
        assert_eq!((snapshots.list("ns", &[]).unwrap().len(), lab.folders()), (0, 0), "{name}");
    }
}

#[test]
fn a_copy_is_whole_and_shares_nothing_that_can_be_written() {
    for lab in [DriverName::Native, DriverName::Btrfs].into_iter().filter_map(Lab::new) {
        let name = lab.snapshots().name();
        let tree = lab.prepare("base work", "");
        let make = "cd $0 && d=deep/$(printf 'd%.0s' $(seq 200))/er && mkdir -p $d && echo x > $d/file && ln $d/file other \
                    && ln -s nowhere link && mkfifo pipe && mknod null c 1 3 && truncate -s 64M holes && echo end >> holes \
                    && chown -h 12:34 other link && chmod 4751 other && touch -h -d 2001-02-03T04:05:06.789 link deep holes";
        let done = Command::new("sh").args(["-c", make]).arg(tree.path("")).status().unwrap();
        assert!(done.success());
        let attribute = |path: &Path, name: &str, value: &[u8]| {
            let path = CString::new(path.as_os_str().as_bytes()).unwrap();
            sys::xattr::lset(&path, &CString::new(name).unwrap(), value).unwrap();
        };
        attribute(&tree.path("other"), "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        attribute(&tree.path("link"), "trusted.mine", b"1");
        let wanted = changes::scan(&tree.path(""));
        let ids = fs::metadata(tree.path("other")).unwrap().ino();
        drop(tree);
        lab.commit("base", "base work");
        let tree = lab.prepare("work", "base");
        assert_eq!(changes::scan(&tree.path("")), wanted, "{name}");
        let holes = fs::metadata(tree.path("holes")).unwrap();
        assert!(holes.blocks() * 512 < 1 << 20, "{name}: the holes take {} blocks", holes.blocks());
        assert!(fs::symlink_metadata(tree.path("pipe")).unwrap().file_type().is_fifo());
        let copy = fs::metadata(tree.path("other")).unwrap();
        assert!(copy.nlink() == 2 && (name == "btrfs" || copy.ino() != ids), "{name}");
        fs::write(tree.path("other"), "y").unwrap();
        assert_eq!(changes::scan(&lab.open(&lab.view("look", "base")).path("")), wanted, "{name}");
    }
}

#[test]
fn copies_share_their_blocks_where_the_file_system_can() {
    for kind in ["btrfs", "xfs"] {
        let Some(disk) = Disk::new(kind) else { continue };
        let config = SnapshotConfig { default: Some(DriverName::Native), ..Default::default() };
        let stores = Stores::open(&disk.at(), &config, Arc::new(|_, _, _| {})).unwrap();
        let snapshots = stores.snapshots.usual();
        let mounts = snapshots.prepare("ns", "a", "", Labels::new(), None).unwrap();
        fs::write(Path::new(&mounts[0].source).join("big"), vec![7; 80 << 20]).unwrap();
        snapshots.commit("ns", "base", "a", Labels::new(), None).unwrap();
        let free = || nix::sys::statvfs::statvfs(&disk.at()).unwrap().blocks_available() * 4096;
        let before = free();
        for copy in 0..8 {
            snapshots.prepare("ns", &copy.to_string(), "base", Labels::new(), None).unwrap();
        }
        // They alone would be more than the disk.
        assert!(before.saturating_sub(free()) < 40 << 20, "{kind}: {before} {}", free());
        drop(stores);
    }
}

/// Times tell what is unchanged in a copy, but only beside what it is a copy of.
#[test]
fn files_that_only_look_the_same() {
    for lab in Lab::all() {
        let name = lab.snapshots().name();
        for (key, text) in [("one", "1"), ("two", "2")] {
            let tree = lab.prepare(&format!("{key} work"), "");
            let script = "printf $1 > $0/file && touch -d @1000000000.5 $0/file";
            assert!(Command::new("sh").args(["-c", script]).arg(tree.path("")).arg(text).status().unwrap().success());
            drop(tree);
            lab.commit(key, &format!("{key} work"));
        }
        drop(lab.prepare("copy of two", "two"));
        let (one, two, copy) = (lab.view("see one", "one"), lab.view("see two", "two"), lab.mounts("copy of two"));
        let entries = |left: &[Mount], right: &[Mount]| {
            let layer = lab.difference(left, right, Compression::Plain);
            let mut reader = crate::layers::tar::TarReader::new(&layer[..]);
            std::iter::from_fn(|| reader.next_entry().unwrap().map(|entry| String::from_utf8(entry.path).unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(entries(&two, &copy), Vec::<String>::new(), "{name}");
        assert_eq!(entries(&one, &copy), ["file"], "{name}");
        assert_eq!(entries(&one, &two), ["file"], "{name}");
    }
}

#[test]
fn a_read_only_subvolume_is_what_committed_means() {
    let Some(lab) = Lab::new(DriverName::Btrfs) else { return };
    let files = |key: &str| {
        let record = lab.snapshots().stat("ns", key).unwrap();
        fs::File::open(lab.folder.join(record.id.to_string()).join("fs")).unwrap()
    };
    let tree = lab.prepare("work", "");
    // What a container may do: subvolumes of its own, read-only ones among them.
    let make = "btrfs -q subvolume create $0/inner && btrfs -q subvolume create $0/inner/most && echo x > $0/inner/most/x \
                && btrfs property set -ts $0/inner/most ro true";
    assert!(
        Command::new("sh")
            .args(["-c", make])
            .arg(tree.path(""))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    drop(tree);
    lab.commit("base", "work");
    assert_eq!(sys::btrfs::is_read_only(files("base")), Ok(true));
    drop(lab.prepare("work", "base"));
    assert_eq!(sys::btrfs::is_read_only(files("work")), Ok(false));
    // As a crash between the two steps of a commit leaves them.
    sys::btrfs::set_read_only(files("work"), true).unwrap();
    sys::btrfs::set_read_only(files("base"), false).unwrap();
    lab.snapshots().repair().unwrap();
    assert_eq!(sys::btrfs::is_read_only(files("base")), Ok(true));
    assert_eq!(sys::btrfs::is_read_only(files("work")), Ok(false));
    lab.snapshots().remove("ns", "work").unwrap();
    lab.snapshots().remove("ns", "base").unwrap();
    assert_eq!(lab.folders(), 0);
}

#[test]
fn where_overlayfs_does_not_work() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["lower", "upper", "work", "mnt"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let option = |key: &str, name: &str| format!("{key}={}", folder.path().join(name).display());
    let overlay = Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![option("lowerdir", "lower"), option("upperdir", "upper"), option("workdir", "work")],
    };
    let on_overlay = Tree(mounted(&[overlay], &folder.path().join("mnt"), Access::AsTold).unwrap());
    let open = |config: &SnapshotConfig| Stores::open(&on_overlay.path("data"), config, Arc::new(|_, _, _| {}));
    let stores = open(&SnapshotConfig::default()).unwrap();
    assert_eq!(stores.snapshots.usual().name(), "native");
    let refused = stores.snapshots.get("overlayfs").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert!(refused.to_string().contains("set default = \"native\" in [snapshots]"), "{refused}");
    let states = stores.snapshots.states().to_vec();
    assert!(states.iter().all(|state| state.default == (state.name == "native")), "{states:?}");
    assert_eq!(states.iter().filter(|state| state.skipped.is_none()).count(), 1, "{states:?}");
    let names = |name: &str| stores.snapshots.get(name).err().unwrap().to_string();
    assert_eq!(names("zfs"), "snapshotter \"zfs\" is not known: there are overlayfs, native and btrfs");
    assert_eq!(names(""), "snapshotter argument missing");
    drop(stores);
    let wanted = SnapshotConfig { default: Some(DriverName::Overlayfs), ..Default::default() };
    let error = open(&wanted).err().unwrap();
    assert!(
        error.to_string().starts_with("snapshotter \"overlayfs\", the default by the configuration, can't be used")
    );
    assert!(error.to_string().contains("put the folder on ext4"), "{error}");
}

#[test]
fn a_folder_whose_name_options_can_not_carry() {
    let folder = tempfile::Builder::new().prefix("a:b").tempdir().unwrap();
    let stores = Stores::open(folder.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
    assert_eq!(stores.snapshots.usual().name(), "native");
    assert!(stores.snapshots.get("overlayfs").err().unwrap().to_string().contains("holds a colon"));
}

#[test]
fn disabled_ones_keep_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let open = |config: &SnapshotConfig| Stores::open(folder.path(), config, Arc::new(|_, _, _| {})).unwrap();
    let stores = open(&SnapshotConfig::default());
    stores.snapshots.get("native").unwrap().prepare("ns", "a", "", Labels::new(), None).unwrap();
    stores.snapshots.get("native").unwrap().commit("ns", "b", "a", Labels::new(), None).unwrap();
    drop(stores);
    let without = SnapshotConfig { disabled: vec![DriverName::Native], ..Default::default() };
    let stores = open(&without);
    assert!(stores.snapshots.get("native").err().unwrap().to_string().contains("disabled in [snapshots]"));
    stores.gc.repair().unwrap();
    drop(stores);
    let stores = open(&SnapshotConfig::default());
    assert_eq!(stores.snapshots.get("native").unwrap().list("ns", &[]).unwrap().len(), 1);
    stores.gc.repair().unwrap();
    assert_eq!(stores.gc.collect().unwrap().snapshots, 1);
}

#[test]
fn a_number_is_not_used_again_while_its_folder_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Stores::open(folder.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
    drop(open());
    let stray = folder.path().join("supervisor/snapshots/overlayfs/1/fs");
    fs::create_dir_all(&stray).unwrap();
    let stores = open();
    let snapshots = stores.snapshots.usual();
    snapshots.prepare("ns", "a", "", Labels::new(), None).unwrap();
    assert_eq!(snapshots.stat("ns", "a").unwrap().id, 2);
    snapshots.cleanup().unwrap();
    assert!(!stray.exists());
    assert!(!snapshots.mounts("ns", "a").unwrap().is_empty());
}

/// On a disk that is full, nothing is half there, and what is removed makes room.
#[test]
fn a_full_disk() {
    for name in [DriverName::Overlayfs, DriverName::Native] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_str().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs", at]).status().unwrap();
        assert!(mounted.success());
        let config = SnapshotConfig { default: Some(name), ..Default::default() };
        let stores = Stores::open(folder.path(), &config, Arc::new(|_, _, _| {})).unwrap();
        let snapshots = stores.snapshots.usual();
        let own = folder.path().join("supervisor/snapshots").join(snapshots.name());
        let folders = || fs::read_dir(&own).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "l").count();
        let mounts = snapshots.prepare("ns", "a", "", Labels::new(), None).unwrap();
        fs::write(Path::new(&mounts[0].source).join("big"), vec![7; 8 << 20]).unwrap();
        snapshots.commit("ns", "base", "a", Labels::new(), None).unwrap();
        // To the last byte.
        let filler = folder.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
        let mut made = 0;
        while made < 2000 {
            match snapshots.prepare("ns", &format!("x{made}"), "base", Labels::new(), None) {
                Ok(_) => made += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
                    break;
                }
            }
        }
        assert!(name == DriverName::Overlayfs || made == 0, "a copy of 8 MiB can't fit");
        assert_eq!(folders(), made + 1, "{name:?}: half a snapshot is left");
        assert_eq!(snapshots.list("ns", &[]).unwrap().len(), made + 1);
        for key in 0..made {
            snapshots.remove("ns", &format!("x{key}")).unwrap();
        }
        fs::remove_file(&filler).unwrap();
        drop(file);
        snapshots.prepare("ns", "fits", "base", Labels::new(), None).unwrap();
        snapshots.commit("ns", "top", "fits", Labels::new(), None).unwrap();
        assert_eq!(folders(), 2);
        drop(stores);
        assert!(Command::new("umount").arg(at).status().unwrap().success());
    }
}

#[test]
fn files_of_somebody_else() {
    let maps = |uids: &str| {
        Labels::from([(UID_MAP.to_owned(), uids.to_owned()), (GID_MAP.to_owned(), "0:200000:65536".to_owned())])
    };
    for lab in Lab::all() {
        let name = lab.snapshots().name();
        let path = |tree: &Tree, file: &str| PathBuf::from(format!("/proc/self/fd/{}/{file}", tree.0.as_raw_fd()));
        let owner = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
        for (key, parent) in [("one", ""), ("two", "one")] {
            let tree = lab.prepare("layer", parent);
            fs::write(path(&tree, key), key).unwrap();
            drop(tree);
            lab.commit(key, "layer");
        }
        let theirs = (100_000, 200_000);
        for parent in ["one", "two"] {
            let key = format!("on-{parent}");
            let mounts = lab.snapshots().prepare("ns", &key, parent, maps("0:100000:65536"), None).unwrap();
            assert_eq!(lab.mounts(&key), mounts);
            let tree = lab.open(&mounts);
            assert_eq!((owner(&path(&tree, "one")), owner(&path(&tree, ""))), (theirs, theirs), "{name} {parent}");
            // Who only looks, as those do who read the image's users, sees what is on the disk.
            let disk = crate::layers::place::readable(&mounts, lab.stores.snapshots.scratch()).unwrap().unwrap();
            assert_eq!(owner(&path(&Tree(disk), "one")), (0, 0), "{name} {parent}");
            let view = lab.snapshots().view("ns", &format!("view-{parent}"), parent, maps("0:7:9"), None).unwrap();
            let detached = crate::layers::place::detached(&view, lab.stores.snapshots.scratch()).unwrap();
            let tree = Tree(detached);
            assert_eq!(owner(&path(&tree, "one")), (7, 200_000), "{name} {parent}");
            fs::write(path(&tree, "new"), "").unwrap_err();
        }
        let error = lab.snapshots().prepare("ns", "bad", "one", maps("0:1"), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}
