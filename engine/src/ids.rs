//! Random identifiers: 64 hex digits, as Docker gives containers, execs and anonymous volumes.

use std::io::Read;

/// A new random id of 64 lower-case hex digits.
pub fn random_id() -> std::io::Result<String> {
    Ok(proto::digest::hex(&random_bytes::<32>()?))
}

/// Bytes from the kernel's generator.
pub fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Whether `text` can be one of these.
pub fn is_full(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The first twelve digits, which is how users see an id.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
