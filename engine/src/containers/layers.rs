//! A look into a container's root file system while nothing of it is mounted: a detached mount of the same layers that
//! only this process sees and that vanishes with its descriptor, even by SIGKILL. Paths are resolved within it, never
//! out of it.

use super::overlay;
use ::spec::users::{Database, ReadError};
use nix::{errno::Errno, fcntl::OFlag};
use proto::containerd::types::Mount;
use std::{os::fd::OwnedFd, path::Path};
use sys::{
    mount::{Reach, attr, clone_tree},
    path::{Within, open_within},
};

/// Why the layers cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    #[error("snapshot mount of type {0:?} is not understood")]
    Kind(String),
    #[error("look into the snapshot: {step}")]
    Mount {
        step: &'static str,
        #[source]
        cause: Errno,
    },
    #[error("read {path} of the image")]
    Read {
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error(transparent)]
    Users(#[from] ReadError),
}

/// Read-only view of a root file system.
#[derive(Debug)]
pub struct Layers(OwnedFd);

impl Layers {
    /// Opens the view of what a snapshot's mounts describe.
    pub fn open(mounts: &[Mount]) -> Result<Self, LayersError> {
        Self::open_for(mounts, attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
    }

    /// The same with other attributes, for more than a look.
    pub fn open_for(mounts: &[Mount], attributes: u64) -> Result<Self, LayersError> {
        let failed = |step| move |cause| LayersError::Mount { step, cause };
        let Some(mount) = mounts.first() else { return Err(LayersError::Kind("none".into())) };
        match mount.r#type.as_str() {
            "bind" => {
                clone_tree(nix::fcntl::AT_FDCWD, Path::new(&mount.source), Reach::One).map(Self).map_err(failed("bind"))
            }
            "overlay" => {
                let folders = overlay_folders(&mount.options);
                // One folder is no overlay to the kernel.
                if let [only] = folders.as_slice() {
                    return clone_tree(nix::fcntl::AT_FDCWD, Path::new(only), Reach::One)
                        .map(Self)
                        .map_err(failed("bind"));
                }
                overlay::detached(&folders, None, attributes).map(Self).map_err(failed("mount its layers"))
            }
            other => Err(LayersError::Kind(other.to_owned())),
        }
    }

    /// What is below a root that is open already.
    pub fn of_root(root: OwnedFd) -> Self {
        Self(root)
    }

    /// The mount itself.
    pub fn root(&self) -> &OwnedFd {
        &self.0
    }

    /// The view a living process has.
    pub fn of_process(pid: u32) -> Result<Self, LayersError> {
        let root = format!("/proc/{pid}/root");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(root.as_str(), flags, nix::sys::stat::Mode::empty())
            .map(Self)
            .map_err(|cause| LayersError::Mount { step: "open the root of its process", cause })
    }

    /// The passwd and group files; absent ones are empty.
    pub fn users(&self) -> Result<Database, LayersError> {
        Ok(Database::read(&self.0)?)
    }

    /// A folder within, for copying out of it. None if there is no such folder.
    pub fn folder(&self, path: &str) -> Result<Option<OwnedFd>, LayersError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        match open_within(&self.0, relative(path), flags, 0, Within::Root) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(cause) => Err(LayersError::Read { path: path.to_owned(), cause: cause.into() }),
        }
    }
}

/// Upper folder first, then the lower ones from top to bottom.
fn overlay_folders(options: &[String]) -> Vec<&str> {
    let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
    let upper = value("upperdir=").into_iter();
    upper.chain(value("lowerdir=").into_iter().flat_map(|list| list.split(':'))).filter(|f| !f.is_empty()).collect()
}

fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn overlay(folders: [&Path; 2]) -> Vec<Mount> {
        let options = vec![
            "workdir=/unused".to_owned(),
            format!("upperdir={}", folders[0].display()),
            format!("lowerdir={}", folders[1].display()),
        ];
        vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }

    #[test]
    fn the_upper_layer_wins_and_links_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let (upper, lower) = (folder.path().join("u"), folder.path().join("l"));
        for path in [upper.join("etc"), lower.join("etc"), lower.join("data")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(lower.join("etc/passwd"), "lower").unwrap();
        std::fs::write(upper.join("etc/passwd"), "upper").unwrap();
        symlink("/etc/shadow", lower.join("etc/group")).unwrap();
        symlink("/", lower.join("data/out")).unwrap();
        let layers = Layers::open(&overlay([&upper, &lower])).unwrap();
        let users = layers.users().unwrap();
        assert_eq!((users.passwd.as_str(), users.group.as_str()), ("upper", ""));
        let climbed = layers.folder("/data/out/../../..").unwrap().unwrap();
        let inside = std::fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&climbed)));
        assert_eq!(inside.unwrap().count(), 2);
        assert!(layers.folder("/none").unwrap().is_none());
    }

    #[test]
    fn a_fifo_or_a_huge_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (upper, lower) = (folder.path().join("u"), folder.path().join("l"));
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::create_dir_all(&lower).unwrap();
        nix::unistd::mkfifo(&upper.join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let users = || Layers::open(&overlay([&upper, &lower])).unwrap().users();
        assert!(matches!(users(), Err(LayersError::Users(ReadError::NotAFile { .. }))));
        std::fs::remove_file(upper.join("etc/passwd")).unwrap();
        std::fs::File::create(upper.join("etc/passwd")).unwrap().set_len(2 << 30).unwrap();
        assert!(matches!(users(), Err(LayersError::Users(ReadError::TooLarge { .. }))));
    }
}
