//! Linux as safe functions: the only crate of Berth with unsafe code.
//!
//! Every function returns `Result<_, Errno>` (or a module error), takes borrowed descriptors and gives back owned ones that
//! are close-on-exec from birth. What `nix` already offers safely is not wrapped a second time.

#![allow(unsafe_code, reason = "this crate is where the workspace keeps it")]

pub use nix::errno::Errno;

pub mod bpf;
pub mod btrfs;
pub mod clock;
pub mod clone;
pub mod creds;
pub mod dbus;
pub mod executable;
pub mod fd;
pub mod idmap;
pub mod inherited;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod notify;
pub mod ns;
pub mod path;
pub mod pipe;
pub mod process;
pub mod pty;
pub mod quota;
mod raw;
pub mod reflink;
pub mod reseat;
pub mod seccomp;
pub mod service;
pub mod session;
pub mod spawn;
pub mod task;
pub mod userns;
pub mod writeback;
pub mod xattr;
