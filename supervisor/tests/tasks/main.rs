//! The life of tasks through the real supervisor, the real shim and an OCI runtime: `BERTH_TEST_RUNTIME`, else
//! berth-runtime. Root is needed, and a static busybox.

mod crash;
mod life;
mod pods;
mod spec;
mod speed;
mod stack;
