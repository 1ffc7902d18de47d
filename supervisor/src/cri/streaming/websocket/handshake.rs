//! How a request becomes a connection (RFC 6455, 4.2), and which of Kubernetes' sub-protocols it speaks.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// A sub-protocol of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Protocol {
    /// What it is called; nothing if the client asked for none.
    pub(in super::super) name: &'static str,
    /// Its version, of `vN.channel.k8s.io`: 4 ends with a status, 5 can end the client's input.
    pub(in super::super) version: u8,
    /// Whether messages are text, encoded in base64, with the channel's digit before it.
    pub(in super::super) base64: bool,
}

/// What there is for exec and attach.
pub(in super::super) const PROTOCOLS: [Protocol; 6] = [
    Protocol { name: "", version: 1, base64: false },
    Protocol { name: "channel.k8s.io", version: 1, base64: false },
    Protocol { name: "base64.channel.k8s.io", version: 1, base64: true },
    Protocol { name: "v4.channel.k8s.io", version: 4, base64: false },
    Protocol { name: "v4.base64.channel.k8s.io", version: 4, base64: true },
    Protocol { name: "v5.channel.k8s.io", version: 5, base64: false },
];

/// The first of the protocols wanted that is there.
pub(in super::super) fn protocol<'a>(wanted: impl Iterator<Item = &'a str>) -> Option<Protocol> {
    let mut wanted = wanted.peekable();
    if wanted.peek().is_none() {
        return Some(PROTOCOLS[0]);
    }
    wanted.find_map(|name| PROTOCOLS[1..].iter().find(|known| known.name == name).copied())
}

/// The proof that we have understood: no secret is in it.
pub(in super::super) fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_standard() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_first_that_is_known_is_spoken() {
        let name = |wanted: &[&str]| protocol(wanted.iter().copied()).map(|found| found.name);
        assert_eq!(name(&[]), Some(""));
        assert_eq!(name(&["v6.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!((name(&["chat"]), name(&[""])), (None, None));
    }
}
