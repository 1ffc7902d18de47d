//! The supervisor as the engine sees it: the one place in this crate that knows gRPC.
//!
//! Everything goes over one HTTP/2 connection on a unix socket. It is made when first needed and again after the
//! supervisor came back; until then a call waits a bounded time, since nothing of it has been sent yet. A call that was
//! under way when the supervisor went away fails with [`SupervisorError::Lost`]: only its caller knows whether it may be
//! made twice ([`Client::retry`] is for those that may).
//!
//! The peer may be a containerd: what only Berth's supervisor offers answers with the kind `Unimplemented`.

pub mod auth;
pub mod client;
mod connect;
pub mod content;
pub mod error;
pub mod events;
pub mod lease;
pub mod snapshotters;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod transfer;

pub use auth::Credentials;
pub use client::Client;
pub use error::SupervisorError;
pub use events::{Notice, Subscription};
pub use lease::Lease;
pub use snapshotters::{DriverError, Snapshotters};
pub use transfer::{Step, Transfer};
