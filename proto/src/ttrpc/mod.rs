//! ttrpc: containerd's small RPC between a daemon and its shims, and between shims and the daemon's event service.
//!
//! ```text
//!   frame    length:4  stream:4  kind:1  flags:1   data      (big endian; data has at most 4 MiB)
//!   client   Request { service, method, payload, timeout, metadata } ──▶
//!            ◀── Response { status, payload }                          server, same stream
//! ```
//! Streams that a client opens have odd, growing numbers. Unary calls only: no service of the shim contract that is spoken
//! over ttrpc has another kind.
//!
//! It is written here and not taken from the crate `ttrpc`: that one brings rust-protobuf, a second set of all messages beside
//! prost's and a code generator of its own into every shim, of which a thousand run on a machine. The protocol itself is
//! ten bytes of header. Only programs that ask for the feature `ttrpc` of this crate get any of it.

mod client;
mod frame;
pub mod mux;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, ConnectError};
pub use frame::MESSAGE_LIMIT;
pub use server::{Call, serve};

/// The metadata key under which a namespace travels.
pub const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";
/// The task service as parents before containerd 2 call it; its messages are those of v3.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// The task service since containerd 1.7.
pub const TASK_V3: &str = "containerd.task.v3.Task";
/// The event service of a daemon's ttrpc socket; its messages are those of `containerd.services.events.v1`.
pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";

/// What the frames carry.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod message {
    pub use crate::generated::ttrpc::*;
}
