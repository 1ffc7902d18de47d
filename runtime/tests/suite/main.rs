//! The runtime from outside: real bundles with a busybox root, as root. `RUNTIME=/path/to/runc` runs the same tests on another one.

#![allow(clippy::disallowed_methods, reason = "tests are the host: its files are theirs")]

mod apparmor;
mod badinput;
mod bpf;
mod bundle;
mod cgroups;
mod checkpoint;
mod claims;
mod cli;
mod confine;
mod criu;
mod elf;
mod errors;
mod events;
mod exec;
mod faults;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod netdev;
mod peers;
mod process;
mod rdt;
mod rootless;
mod rootless_delegated;
mod sd_notify;
mod seccomp;
mod security;
mod systemd;
mod terminal;
mod update;
mod v2;
