//! What goes wrong with cgroups.

use std::path::PathBuf;

use sys::Errno;

use super::{ROOT, systemd};

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// Limits without anything to hold them.
    #[error("linux.resources has limits, which --cgroup-manager disabled leaves nobody to keep")]
    Disabled,
    /// No cgroup filesystem.
    #[error("no cgroup filesystem on {ROOT}")]
    NotMounted(#[source] Errno),
    /// A directory could not be made.
    #[error("make cgroup {path}")]
    Make {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// Somebody else's processes are in it.
    #[error("cgroup {0} already has processes")]
    Occupied(PathBuf),
    /// A file could not be written.
    #[error("write {value:?} to {file}")]
    Write {
        file: String,
        value: String,
        #[source]
        cause: Errno,
    },
    /// A file could not be read.
    #[error("read {file}")]
    Read {
        file: String,
        #[source]
        cause: Errno,
    },
    /// It is what another container has left, or is about to enter.
    #[error("cgroup /{path} is that of container {id}; delete that one first, or choose another linux.cgroupsPath")]
    OfContainer { path: String, id: String },
    /// A limit was asked for that no mounted controller can keep.
    #[error("{field} needs the cgroup controller {controller:?}, which is not there")]
    NoController { field: &'static str, controller: &'static str },
    /// The same on cgroup2, where it may be there and not here.
    #[error(
        "{file} needs the cgroup controller {controller:?}, which {path} does not have; it has to be in cgroup.subtree_control of \
         all cgroups above (systemd: Delegate=)"
    )]
    NotHandedDown { file: String, controller: String, path: PathBuf },
    /// `exec --cgroup` with a controller that is no v1 hierarchy.
    #[error("--cgroup: there is no v1 hierarchy with controller {0:?}; on cgroup2 a path alone is enough")]
    NoHierarchy(String),
    /// `exec --cgroup` with a cgroup that is not there.
    #[error("--cgroup: {0} does not exist; it has to be made first")]
    NoSubCgroup(PathBuf),
    /// The device filter was refused.
    #[error("load the device filter of cgroup {path}")]
    DeviceFilter {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// It would not go.
    #[error("remove cgroup {path}")]
    Remove {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A limit could not be changed; all others are as before.
    #[error("cannot set {field}")]
    Update {
        field: String,
        #[source]
        cause: Box<CgroupError>,
    },
    /// A change that cannot be.
    #[error("{field}: {why}")]
    Refused { field: &'static str, why: String },
    /// Nothing to be asked or changed.
    #[error("the container has no cgroup of its own: it was made without the right, or the wish, to make one")]
    NoneOfItsOwn,
    /// It is frozen: whoever joins it would stand still.
    #[error("cgroup {0} exists and is frozen; thaw it, or choose another linux.cgroupsPath")]
    Frozen(PathBuf),
    /// Limits are asked for where none can be set.
    #[error(
        "linux.resources asks for limits, and cgroup {0} may not be made by this user; leave the limits out, or run with \
         --systemd-cgroup or in a delegated cgroup (systemd-run --user --scope -p Delegate=yes)"
    )]
    NotPermitted(String),
    /// A file could not be given away.
    #[error("give {file} to user {owner}")]
    Delegate {
        file: String,
        owner: u32,
        #[source]
        cause: Errno,
    },
    /// The systemd driver.
    #[error(transparent)]
    Systemd(#[from] systemd::BusError),
    /// systemd did something else than it said.
    #[error("systemd started {unit}, but the process is in cgroup {found:?}, not in {expected:?}")]
    NotMoved { unit: String, found: String, expected: String },
    /// Freezing did not end.
    #[error("freeze cgroup {0}: still not frozen after 10 s")]
    NotFrozen(PathBuf),
}

impl CgroupError {
    /// Whether the cgroup is somebody else's, and so not ours to remove.
    pub(crate) fn is_anothers(&self) -> bool {
        match self {
            Self::Occupied(_) | Self::Frozen(_) | Self::OfContainer { .. } => true,
            Self::Systemd(error) => error.is("UnitExists"),
            _ => false,
        }
    }
}
