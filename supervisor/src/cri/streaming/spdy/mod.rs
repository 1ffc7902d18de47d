//! SPDY/3.1, the server's side of it, as far as Kubernetes' clients speak it (moby/spdystream): streams that the client opens,
//! data, resets, pings. Windows are ignored, as they ignore them; priorities too. What a client sends is limited in every way
//! before it is kept (CVE-2026-35469): control frames, header blocks compressed and not, the number of streams.

mod frame;
mod headers;
mod server;

pub(super) use self::{
    headers::Headers,
    server::{Incoming, open},
};

/// What the protocol is called in `Upgrade`.
pub(super) const UPGRADE: &str = "SPDY/3.1";

/// Why a stream is reset: what it carried came to no good end, or nobody wants it any more.
pub(super) const CANCEL: u32 = 5;
#[cfg(test)]
pub(super) mod client;
