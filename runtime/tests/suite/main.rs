//! The runtime from outside: real bundles with a busybox root, as root. `RUNTIME=/path/to/runc` runs the same tests on another one.

mod apparmor;
mod bpf;
mod bundle;
mod cgroups;
mod checkpoint;
mod confine;
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
mod seccomp;
mod security;
mod systemd;
mod terminal;
mod update;
mod v2;
