//! WebSocket (RFC 6455), the server's side of it, with channels as Kubernetes makes them: the first byte of each message names
//! the channel. No extensions; messages and frames have limits.

mod frame;
mod handshake;
mod server;

pub(super) use self::{
    handshake::{Protocol, accept, protocol},
    server::{Direction, open},
};

/// What the protocol is called in `Upgrade`.
pub(super) const UPGRADE: &str = "websocket";
#[cfg(test)]
pub(super) mod client;
