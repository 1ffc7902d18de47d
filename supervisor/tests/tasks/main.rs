//! The life of tasks through the real supervisor, the real shim and an OCI runtime: `BERTH_TEST_RUNTIME`, else
//! berth-runtime. Root is needed, and a static busybox.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod checkpoint;
mod crash;
mod cri;
mod faults;
mod introspection;
mod life;
mod machine;
mod memory;
mod oom;
mod pods;
mod replay;
mod restore;
mod runtime_faults;
mod spec;
mod speed;
mod stack;
mod stuck;
