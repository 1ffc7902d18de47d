//! The attacks of the past on container runtimes, each with its test; the CVE is part of the test's name.
//!
//! Every test has a host of its own to look after (`host.rs`): a mount namespace, and a folder whose every change would be seen. Races are
//! short here; `BERTH_RACE_SECONDS` makes them long (`make soak-runtime`).

mod attacker;
mod caps;
mod cgroup;
mod console;
mod descriptors;
mod devices;
pub(crate) mod host;
mod ids;
mod links;
mod masks;
mod proc;
mod races;
mod rootfs;
mod self_exe;
mod users;
