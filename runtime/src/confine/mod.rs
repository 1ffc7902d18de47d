//! What keeps a container's processes where they are: cgroups, capabilities, seccomp, limits, ids.

pub(crate) mod caps;
pub(crate) mod cgroup;
pub(crate) mod labels;
pub(crate) mod limits;
pub(crate) mod rdt;
pub(crate) mod seccomp;
