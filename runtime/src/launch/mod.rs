//! From a plan to a process: the parent prepares and clones, the child builds its surroundings and becomes the container's
//! process; `handshake` is what they say to each other, `gate` where a created container waits for `start`, `listener` who
//! answers its calls.

pub(crate) mod child;
mod delegate;
mod descendants;
pub(crate) mod entry;
pub(crate) mod gate;
pub(crate) mod handshake;
pub(crate) mod hooks;
pub(crate) mod id_maps;
pub(crate) mod listener;
pub(crate) mod own_namespaces;
pub(crate) mod parent;
pub(crate) mod prepared;
pub(crate) mod protect;
