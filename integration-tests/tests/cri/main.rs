//! CRI as a kubelet uses it: berth-supervisor on a host of its own (a network namespace with another computer beside it), with Debian's
//! CNI plugins. Root is needed, a static busybox, and `containernetworking-plugins` for what is about networks.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod cgroups;
mod checkpoint;
mod containers;
mod day;
mod devices;
mod faults;
mod foreign;
mod hostile;
mod image_mounts;
mod images;
mod life;
mod logs;
mod mounts;
mod namespaces;
mod networks;
mod nri;
mod profiles;
mod readme;
mod restarts;
mod rules;
mod sandboxes;
mod scene;
mod security;
mod stats;
mod status;
mod streams;
mod tables;
mod users;
