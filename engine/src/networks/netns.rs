//! The network namespaces of containers: pinned by the container's id, so that they are found again, whoever restarts.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::NetworkError;
use super::netlink::{Batch, Family, Socket, link};
use super::sysctl;

/// The folder of pins of one run root.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

/// A new namespace with lo up.
#[derive(Debug)]
pub(super) struct Namespace {
    /// The namespace.
    pub(super) fd: OwnedFd,
    /// A socket in it.
    pub(super) socket: Socket,
}

impl Pins {
    /// The folder below the run root, made if it is missing.
    pub(super) fn open(run_root: &Path) -> Result<Self, NetworkError> {
        let folder = run_root.join("engine/netns");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|cause| NetworkError::Io {
            what: "create",
            path: folder.clone(),
            cause,
        })?;
        Ok(Self { folder })
    }

    /// Where the namespace of a container is pinned.
    pub(super) fn path(&self, id: &str) -> Result<PathBuf, NetworkError> {
        if id.is_empty() || id.starts_with('.') || id.contains(['/', '\0']) {
            return Err(NetworkError::Id(id.to_owned()));
        }
        Ok(self.folder.join(id))
    }

    /// Makes the namespace of a container, with lo up, and with or without IPv6 on links to come.
    pub(super) fn create(&self, pin: &Path, ipv6: bool) -> Result<Namespace, NetworkError> {
        let (fd, prepared) = sys::netns::create(pin, move || prepare(ipv6))?;
        match prepared {
            Ok(socket) => Ok(Namespace { fd, socket }),
            Err(error) => {
                sys::netns::delete(pin)?;
                Err(error)
            }
        }
    }

    /// The ids that have a pin, or the remains of one.
    pub(super) fn list(&self) -> Result<Vec<String>, NetworkError> {
        let failed = |cause: io::Error| NetworkError::Io { what: "list", path: self.folder.clone(), cause };
        fs::read_dir(&self.folder)
            .map_err(failed)?
            .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Removes the folder if it is empty.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Runs on a thread in the new namespace.
fn prepare(ipv6: bool) -> Result<Socket, NetworkError> {
    sysctl::prepare_namespace(ipv6)?;
    let mut socket = Socket::open(Family::Route)?;
    let mut batch = Batch::new();
    link::bring_up_loopback(&mut batch);
    socket.run(&mut batch)?;
    Ok(socket)
}
