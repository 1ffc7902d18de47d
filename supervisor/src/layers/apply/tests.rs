//! Layers as builders make them, and as attackers do.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::layers::tree::is_opaque;

/// A layer folder, the folders below it, and a canary beside them all.
struct Ground {
    dir: tempfile::TempDir,
    upper: PathBuf,
    lowers: Vec<PathBuf>,
}

impl Ground {
    fn new(lowers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        fs::set_permissions(dir.path().join("canary"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(dir.path().join("upper")).unwrap();
        let lowers: Vec<_> = (0..lowers).map(|i| dir.path().join(format!("lower{i}"))).collect();
        lowers.iter().for_each(|lower| fs::create_dir(lower).unwrap());
        let upper = dir.path().join("upper");
        Self { dir, upper, lowers }
    }

    fn apply(&self, archive: &[u8]) -> Result<Applied, LayerError> {
        let is_empty = fs::read_dir(&self.upper).unwrap().next().is_none();
        let applied = apply(archive, &Target::overlay(&self.upper, &self.lowers).unwrap(), &|_| ());
        if is_empty && applied.is_ok() {
            self.assert_same_apart(archive);
        }
        applied
    }

    // A layer that is unpacked before those below it are known comes out the same.
    fn assert_same_apart(&self, archive: &[u8]) {
        let twin = tempfile::tempdir().unwrap();
        // As a new snapshot has it.
        fs::set_permissions(twin.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let known = Target::overlay(twin.path(), &self.lowers).unwrap();
        match apply(archive, &Target::apart(twin.path()).unwrap(), &|_| ()) {
            Ok(applied) => dress(&known, &applied.implied).unwrap(),
            Err(LayerError::NeedsBelow) => {
                assert!(!self.lowers.is_empty());
                return;
            }
            Err(error) => panic!("apart: {error}"),
        }
        let (mut here, mut there) = (tree(&self.upper), tree(twin.path()));
        if self.lowers.is_empty() {
            // The lowest layer is never unpacked so: what it hides doesn't matter to it.
            for tree in [&mut here, &mut there] {
                tree.retain(|_, (mode, ..)| *mode & 0o170000 != 0o020000);
                tree.values_mut().for_each(|entry| entry.4 = false);
            }
            here.remove("");
            there.remove("");
        } else {
            // The top of the one was made by the test, not as a snapshot is.
            let (top, below) = (&there[""], fs::metadata(&self.lowers[0]).unwrap());
            let described = here[""] == *top;
            assert!(described || top.0 == below.mode(), "top: {top:?}");
            here.remove("");
            there.remove("");
        }
        assert_eq!(here, there);
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.upper.join(path)
    }

    fn assert_untouched(&self) {
        let canary = self.dir.path().join("canary");
        assert_eq!(fs::read(&canary).unwrap(), b"alive");
        let meta = canary.metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o640, 1));
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with("lower"));
        names.sort();
        assert_eq!(names, ["canary", "upper"]);
    }
}

type Looks = (u32, u32, u32, Vec<u8>, bool);

/// What is below a folder: mode, owner, group, content or target or device, whether it is opaque.
fn tree(root: &Path) -> std::collections::BTreeMap<String, Looks> {
    fn walk(root: &Path, at: &Path, found: &mut std::collections::BTreeMap<String, Looks>) {
        let meta = at.symlink_metadata().unwrap();
        let content = match meta.mode() & 0o170000 {
            0o100000 => fs::read(at).unwrap(),
            0o120000 => fs::read_link(at).unwrap().into_os_string().into_encoded_bytes(),
            _ => meta.rdev().to_string().into_bytes(),
        };
        let opaque = meta.is_dir() && {
            // Held open while it is asked about.
            let dir = fs::File::open(at).unwrap();
            is_opaque(&dir).unwrap()
        };
        let name = at.strip_prefix(root).unwrap().display().to_string();
        found.insert(name, (meta.mode(), meta.uid(), meta.gid(), content, opaque));
        if meta.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                walk(root, &entry.unwrap().path(), found);
            }
        }
    }
    let mut found = std::collections::BTreeMap::new();
    walk(root, root, &mut found);
    found
}

struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    // Names go in as they are: the builder's own setters refuse hostile ones.
    fn add(mut self, kind: EntryType, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        if !link.is_empty() {
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.add(EntryType::Regular, path, "", 0o644, data.as_bytes())
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, path, "", mode, b"")
    }

    fn symlink(self, path: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, path, to, 0o777, b"")
    }

    fn hard_link(self, path: &str, to: &str) -> Self {
        self.add(EntryType::Link, path, to, 0o644, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn xattr(path: &Path, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    sys::xattr::lget(&path, name).unwrap()
}

#[test]
fn an_ordinary_layer() {
    let ground = Ground::new(0);
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = Layer::new()
        .dir("./", 0o751)
        .dir("tmp", 0o1777)
        .file("tmp/a", "aaa")
        .add(EntryType::Regular, "bin/su", "", 0o4755, b"su")
        .hard_link("bin/su2", "bin/su")
        .symlink("link", "/etc/passwd")
        .add(EntryType::Fifo, "pipe", "", 0o600, b"")
        .pax(&[("SCHILY.xattr.security.capability", capability), ("mtime", b"1000.5")])
        .file("bin/ping", "ping")
        .file("bin/../late", "x")
        .end();
    let applied = ground.apply(&archive).unwrap();
    assert_eq!((applied.diff_id, applied.size), (Digest::of(&archive), archive.len() as u64));
    let meta = |path: &str| ground.upper(path).symlink_metadata().unwrap();
    assert_eq!(meta("").mode() & 0o7777, 0o751);
    assert_eq!((meta("tmp").mode() & 0o7777, meta("tmp").mtime()), (0o1777, 1_000_000));
    assert_eq!((meta("bin/su").mode() & 0o7777, meta("bin/su").nlink()), (0o4755, 2));
    assert_eq!(fs::read_link(ground.upper("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(xattr(&ground.upper("bin/ping"), c"security.capability").unwrap(), capability);
    assert_eq!((meta("bin/ping").mtime(), meta("bin/ping").mtime_nsec()), (1000, 500_000_000));
    assert_eq!(fs::read(ground.upper("late")).unwrap(), b"x");
    let (_, inodes) = crate::layers::usage::usage(&ground.upper).unwrap();
    assert_eq!(inodes, 9);
}

#[test]
fn whiteouts_and_what_replaces_them() {
    let ground = Ground::new(1);
    fs::create_dir(ground.lowers[0].join("etc")).unwrap();
    fs::set_permissions(ground.lowers[0].join("etc"), fs::Permissions::from_mode(0o705)).unwrap();
    let archive = Layer::new()
        .file("etc/.wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/stays", "")
        .file("a/.wh.dir", "")
        .dir("a/dir", 0o755)
        .dir("b/dir", 0o755)
        .file("b/.wh.dir", "")
        .file("c/.wh.file", "")
        .file("c/file", "new")
        .file("d/file", "new")
        .file("d/.wh.file", "")
        .file(".wh..wh.plnk", "")
        .file("e/.wh.x", "")
        .file("e/x/deep", "new")
        .end();
    ground.apply(&archive).unwrap();
    let gone = ground.upper("etc/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(ground.upper("etc").metadata().unwrap().mode() & 0o7777, 0o705);
    for opaque in ["opaque", "a/dir", "b/dir", "e/x"] {
        assert_eq!(xattr(&ground.upper(opaque), OPAQUE).as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert!(ground.upper("opaque/stays").is_file());
    assert_eq!(fs::read(ground.upper("c/file")).unwrap(), b"new");
    assert_eq!(fs::read(ground.upper("d/file")).unwrap(), b"new");
    assert!(!ground.upper(".wh..wh.plnk").exists());
}

#[test]
fn a_layer_without_others_below_needs_no_whiteouts() {
    let ground = Ground::new(0);
    ground.apply(&Layer::new().file("a/.wh.x", "").file("a/.wh..wh..opq", "").end()).unwrap();
    assert_eq!(fs::read_dir(ground.upper("a")).unwrap().count(), 0);
}

#[test]
fn nothing_leaves_the_folder() {
    let hostile = [
        Layer::new().file("../canary", "dead"),
        Layer::new().file("/../../canary", "dead"),
        Layer::new().file("a/../../../canary", "dead"),
        Layer::new().symlink("x", "..").file("x/canary", "dead"),
        Layer::new().symlink("x", "../..").file("x/upper/../canary", "dead"),
        Layer::new().symlink("x", "../canary").file("x", "replaced"),
        Layer::new().symlink("x", "../canary").add(EntryType::Link, "y", "x", 0o777, b"").file("y", "dead"),
        Layer::new().hard_link("x", "../canary"),
        Layer::new().symlink("d", "..").hard_link("x", "d/canary"),
        Layer::new().symlink("x", "/").dir("x/made", 0o777),
        Layer::new().dir("x", 0o755).symlink("x", "..").file("x/canary", "dead"),
        Layer::new().dir("x", 0o755).file("x/f", "").symlink("x", "../").dir("x", 0o000),
        Layer::new().symlink("x", "../canary").dir("x/", 0o000),
        Layer::new().file(".wh...", ""),
        Layer::new().file("a/.wh..", ""),
        Layer::new().file(".wh.", ""),
        Layer::new().symlink("x", "..").file("x/.wh.canary", ""),
        Layer::new().symlink("x", "..").file("x/.wh..wh..opq", ""),
        Layer::new().symlink("./", "/"),
        Layer::new().file("./", "root"),
        Layer::new().symlink("proc", "/proc/self/root").file("proc/canary", "dead"),
        Layer::new().symlink("a", "b").symlink("b", "a").file("a/canary", "dead"),
        Layer::new().pax(&[("path", b"../../canary")]).file("x", "dead"),
        Layer::new().pax(&[("path", b"../upper/../canary")]).file("x", "dead"),
        Layer::new().pax(&[("linkpath", b"../canary")]).hard_link("x", "y"),
    ];
    for (index, layer) in hostile.into_iter().enumerate() {
        let ground = Ground::new(1);
        let done = ground.apply(&layer.end());
        ground.assert_untouched();
        if let Err(error) = done {
            assert!(!proto::kind::chain(&error).is_empty(), "{index}");
        }
    }
}

#[test]
fn the_root_must_stay_a_directory() {
    let refused = Ground::new(0).apply(&Layer::new().symlink("./", "/").end()).unwrap_err();
    assert_eq!(refused.kind_for_test(), proto::kind::ErrorKind::InvalidArgument);
}

#[test]
fn overlayfs_attributes_are_not_the_images_to_set() {
    let ground = Ground::new(1);
    let layer = Layer::new().pax(&[
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.trusted.mine", b"1"),
    ]);
    ground.apply(&layer.dir("d", 0o755).end()).unwrap();
    assert_eq!(xattr(&ground.upper("d"), c"trusted.overlay.redirect"), None);
    assert_eq!(xattr(&ground.upper("d"), OPAQUE), None);
    assert_eq!(xattr(&ground.upper("d"), c"trusted.mine").as_deref(), Some(&b"1"[..]));
}

#[test]
fn later_entries_replace_earlier_ones() {
    let ground = Ground::new(0);
    let archive = Layer::new()
        .dir("d", 0o755)
        .file("d/x", "old")
        .file("d", "now a file")
        .file("f", "old")
        .dir("f", 0o700)
        .file("f/y", "in")
        .file("h", "data")
        .hard_link("h", "h")
        .hard_link("h2", "h")
        .file("h", "other")
        .end();
    ground.apply(&archive).unwrap();
    assert_eq!(fs::read(ground.upper("d")).unwrap(), b"now a file");
    assert_eq!(fs::read(ground.upper("f/y")).unwrap(), b"in");
    assert_eq!(
        (fs::read(ground.upper("h")).unwrap(), fs::read(ground.upper("h2")).unwrap()),
        (b"other".to_vec(), b"data".to_vec())
    );
}

#[test]
fn links_of_lower_layers_do_not_redirect() {
    let ground = Ground::new(1);
    symlink(ground.dir.path(), ground.lowers[0].join("way")).unwrap();
    ground.apply(&Layer::new().file("way/canary", "dead").end()).unwrap();
    ground.assert_untouched();
    assert_eq!(fs::read(ground.upper("way/canary")).unwrap(), b"dead");
}

#[test]
fn damage_is_told() {
    let archive = Layer::new().file("a", &"x".repeat(100_000)).end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&archive[..], 1).unwrap();
    for whole in [&archive, &gzip, &zstd] {
        assert_eq!(Ground::new(0).apply(whole).unwrap().diff_id, Digest::of(&archive));
        let cut = Ground::new(0).apply(&whole[..whole.len() / 2]).unwrap_err();
        assert_eq!(cut.kind_for_test(), proto::kind::ErrorKind::DataLoss, "{cut:?}");
    }
    let mut bent = gzip.clone();
    let at = bent.len() - 6; // in the checksum
    bent[at] ^= 1;
    assert_eq!(Ground::new(0).apply(&bent).unwrap_err().kind_for_test(), proto::kind::ErrorKind::DataLoss);
    let text = proto::kind::chain(&Ground::new(0).apply(&[b'x'; 2000]).unwrap_err());
    assert!(text.contains("checksum"), "{text}");
}

impl LayerError {
    fn kind_for_test(&self) -> proto::kind::ErrorKind {
        crate::failure::Failure::kind(self)
    }
}

fn hostile_path() -> impl Strategy<Value = String> {
    let part =
        prop::sample::select(vec!["a", "b", "..", ".", "", "canary", ".wh.a", ".wh..wh..opq", "upper", "lower0"]);
    (any::<bool>(), prop::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
        let path = parts.join("/");
        if absolute { format!("/{path}") } else { path }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_order_nothing_leaves(entries in prop::collection::vec((0..5_u8, hostile_path(), hostile_path()), 1..12)) {
        let ground = Ground::new(1);
        let mut layer = Layer::new();
        for (kind, path, link) in &entries {
            layer = match kind {
                0 => layer.file(path, "dead"),
                1 => layer.dir(path, 0o777),
                2 => layer.symlink(path, link),
                3 => layer.hard_link(path, link),
                _ => layer.add(EntryType::Fifo, path, "", 0o666, b""),
            };
        }
        let _ = ground.apply(&layer.end());
        ground.assert_untouched();
        prop_assert_eq!(fs::read_dir(&ground.lowers[0]).unwrap().count(), 0);
    }
}
