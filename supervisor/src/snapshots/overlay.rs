//! The overlayfs driver: `ID/fs` holds a layer's files, `ID/work` is overlayfs' own.
//!
//! Making a snapshot is two folders and one record, whatever is below it: a container's start waits for it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::stat::SFlag};
use proto::{containerd::types::Mount, kind::chain};
use sys::userns::Maps;

use super::{
    Kind, Record, SnapshotError,
    driver::{Driver, Pace, io_error},
    folders::Folders,
};
use crate::{
    layers::{
        apply::Target,
        place::{Access, mounted},
        tree::{is_whiteout, look, remove},
    },
    store::{StoreError, make_folder},
};

/// mount(2) takes one page of options; what the caller adds (a prefix, SELinux labels) must fit too.
const OPTIONS_LIMIT: usize = 4000;

/// Layers kept as folders for overlayfs.
pub(crate) struct Overlay {
    folders: Folders,
    // Short names for `ID/fs`, used where many layers would not fit into a mount's options.
    links: PathBuf,
    index_off: bool,
    more_options: Vec<String>,
}

impl Overlay {
    /// The driver over the folders below `root`; `more_options` go into every mount.
    pub(crate) fn open(root: &Path, more_options: &[String]) -> Result<Self, StoreError> {
        let folders = Folders::open(root)?;
        let links = root.join("l");
        make_folder(&links, 0o700)?;
        // Without index, an upper folder may be used again after an unclean end, and layers be shared (overlayfs.rst).
        let index_off = Path::new("/sys/module/overlay/parameters/index").exists();
        Ok(Self { folders, links, index_off, more_options: more_options.to_vec() })
    }

    /// Whether overlayfs works on `root`: mounts one of two folders there and removes a file in it.
    ///
    /// Says why not. Tried and not asked for: kernels and file systems that can't are too many to be known by name.
    pub(crate) fn probe(root: &Path, scratch: &Path) -> Result<(), String> {
        let text = root.display().to_string();
        // They separate folders and options in a mount's data, and not every client knows how to escape them.
        if text.contains([':', ',', '\\']) {
            return Err(format!(
                "{text} holds a colon, comma or backslash, which overlayfs' options can't: choose another folder"
            ));
        }
        make_folder(root, 0o700).map_err(|error| chain(&error))?;
        let probe = root.join("probe");
        let tried = try_overlay(&probe, scratch);
        if let Err(error) = clear(root) {
            tracing::warn!(%error, folder = %probe.display(), "folder of the overlayfs probe not removed");
        }
        tried.map_err(|why| {
            format!(
                "overlayfs can't be used on {text} ({why}): put the folder on ext4, xfs (ftype=1), btrfs or tmpfs and load \
                 the overlay module, or set default = \"native\" in [snapshots]"
            )
        })
    }

    fn link(&self, id: u64) -> PathBuf {
        self.links.join(id.to_string())
    }

    /// Layers are shown with other owners, but the one that is written to has those that the kernel writes: its top, which stands for
    /// the one below, has to have them as well.
    fn give_away(&self, id: u64, maps: &Maps) -> Result<(), SnapshotError> {
        let files = self.folders.files(id);
        let failed = || io_error(format!("give snapshot folder {} to another user", files.display()));
        let top = fs::metadata(&files).map_err(failed())?;
        let Some((uid, gid)) = maps.outside(top.uid(), top.gid()) else { return Ok(()) };
        // The mode comes after the owner: a change of that takes bits away.
        std::os::unix::fs::chown(&files, Some(uid), Some(gid)).map_err(failed())?;
        fs::set_permissions(&files, top.permissions()).map_err(failed())
    }

    fn lowers(&self, key: &str, record: &Record, taken: usize) -> Result<String, SnapshotError> {
        let join = |paths: &dyn Fn(u64) -> PathBuf| {
            let paths: Vec<String> = record.chain.iter().map(|id| paths(*id).display().to_string()).collect();
            format!("lowerdir={}", paths.join(":"))
        };
        let whole = join(&|id| self.folders.files(id));
        if taken + whole.len() <= OPTIONS_LIMIT {
            return Ok(whole);
        }
        let short = join(&|id| self.link(id));
        if taken + short.len() > OPTIONS_LIMIT {
            return Err(SnapshotError::TooManyLayers { key: key.to_owned(), layers: record.chain.len() });
        }
        for id in &record.chain {
            let link = self.link(*id);
            match std::os::unix::fs::symlink(format!("../{id}/fs"), &link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error(format!("make link {}", link.display()))(error));
                }
                _ => {}
            }
        }
        Ok(short)
    }
}

fn clear(root: &Path) -> Result<(), Errno> {
    let root = nix::fcntl::open(root, nix::fcntl::OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty())?;
    match remove(&root, b"probe") {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

fn try_overlay(probe: &Path, scratch: &Path) -> Result<(), String> {
    let of_io = |error: io::Error| format!("{}: {error}", probe.display());
    let folder = |name: &str| probe.join(name).display().to_string();
    for name in ["lower", "upper", "work"] {
        fs::create_dir_all(probe.join(name)).map_err(of_io)?;
    }
    fs::write(probe.join("lower/file"), "").map_err(of_io)?;
    let options = [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")];
    let mount = Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: options.iter().map(|(option, name)| format!("{option}={}", folder(name))).collect(),
    };
    let merged = mounted(std::slice::from_ref(&mount), scratch, Access::AsTold).map_err(|error| chain(&error))?;
    remove(&merged, b"file").map_err(|errno| format!("remove a file of a lower layer: {errno}"))?;
    drop(merged);
    let upper = fs::File::open(probe.join("upper")).map_err(of_io)?;
    match look(&upper, b"file") {
        Ok(Some(found)) if is_whiteout(&found) => {}
        other => return Err(format!("no whiteout was made for a removed file: {other:?}")),
    }
    // Layers are unpacked by hand: the file system must hold what overlayfs reads.
    nix::sys::stat::mknodat(&upper, "own", SFlag::S_IFCHR, nix::sys::stat::Mode::empty(), 0)
        .map_err(|errno| format!("make a whiteout: {errno}"))?;
    sys::xattr::fset(&upper, crate::layers::tree::OPAQUE, b"y").map_err(|errno| format!("set {OPAQUE_NAME}: {errno}"))
}

const OPAQUE_NAME: &str = "trusted.overlay.opaque";

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn folders(&self) -> &Folders {
        &self.folders
    }

    fn pace(&self) -> Pace {
        Pace::Instant
    }

    fn make(&self, _key: &str, record: &Record) -> Result<(), SnapshotError> {
        let folder = self.folders.make(record.id)?;
        let failed = || io_error(format!("make snapshot folder {}", folder.display()));
        fs::create_dir(folder.join("fs")).map_err(failed())?;
        self.folders.dress(record)?;
        if record.kind == Kind::Active {
            if let Some(maps) = record.maps() {
                self.give_away(record.id, &maps)?;
            }
            fs::create_dir(folder.join("work")).map_err(failed())?;
            fs::set_permissions(folder.join("work"), fs::Permissions::from_mode(0o711)).map_err(failed())?;
        }
        Ok(())
    }

    fn remove(&self, id: u64) -> Result<(), SnapshotError> {
        let _ = fs::remove_file(self.link(id));
        self.folders.remove(id)
    }

    fn mounts(&self, key: &str, record: &Record) -> Result<Vec<Mount>, SnapshotError> {
        let bind = |id, access: &str, more: Vec<String>| {
            let mut mount = bind_mount(&self.folders.files(id), access);
            mount.options.extend(more);
            vec![mount]
        };
        let mut options = record.map_options();
        match (record.kind, record.chain.as_slice()) {
            (Kind::Committed, _) => return Err(SnapshotError::NoMounts(key.to_owned())),
            // Everything in it will be its container's own.
            (Kind::Active, []) => return Ok(bind(record.id, "rw", Vec::new())),
            (Kind::View, []) => return Ok(bind(record.id, "ro", options)),
            (Kind::View, [only]) => return Ok(bind(*only, "ro", options)),
            _ => {}
        }
        if self.index_off {
            options.push("index=off".to_owned());
        }
        if record.kind == Kind::Active {
            options.push(format!("workdir={}", self.folders.folder(record.id).join("work").display()));
            options.push(format!("upperdir={}", self.folders.files(record.id).display()));
        }
        options.extend(self.more_options.iter().cloned());
        let taken = options.iter().map(|option| option.len() + 1).sum();
        options.push(self.lowers(key, record, taken)?);
        Ok(vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }])
    }

    fn fills_apart(&self) -> bool {
        true
    }

    fn target(&self, record: &Record) -> Result<Target, SnapshotError> {
        let lowers: Vec<PathBuf> = record.chain.iter().map(|id| self.folders.files(*id)).collect();
        Ok(Target::overlay(&self.folders.files(record.id), &lowers)?)
    }
}

/// A bind mount of a folder, `rw` or `ro`.
pub(super) fn bind_mount(folder: &Path, access: &str) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: folder.display().to_string(),
        target: String::new(),
        options: vec![access.into(), "rbind".into()],
    }
}
