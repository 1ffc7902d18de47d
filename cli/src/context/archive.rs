//! Contexts as tar archives, docker's for `context export` and `context import`.

use super::{Context, TLS_FILES};
use crate::output::{json, value::Value};
use std::io::{self, Read};

/// Largest archive: a context is a few kilobytes.
const LARGEST: u64 = 10 << 20;

/// Why an archive is no context.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not tar, or broken.
    #[error("read the archive: {0}")]
    Io(#[from] io::Error),
    /// A zip.
    #[error("zip archives are not supported: pack meta.json and tls/ into a tar archive")]
    Zip,
    /// Something that no context has.
    #[error("unexpected context file {0:?} in the archive")]
    Unexpected(String),
    /// No meta.json.
    #[error("invalid context: no metadata found")]
    NoMeta,
    /// meta.json
    #[error("meta.json in the archive: {0}")]
    Json(#[from] serde_json::Error),
    /// Too large.
    #[error("the archive is larger than 10 MiB")]
    TooLarge,
}

/// Packs a context. The same context gives the same bytes.
pub fn pack(context: &Context) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, data: Option<&[u8]>| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(data.map_or(0, |data| data.len() as u64));
        header.set_entry_type(if data.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
        tar.append_data(&mut header, name, data.unwrap_or_default())
    };
    add("meta.json", 0o644, Some(json::line(&context.meta).as_bytes()))?;
    add("tls", 0o700, None)?;
    if !context.tls.is_empty() {
        add("tls/docker", 0o700, None)?;
    }
    for (name, data) in &context.tls {
        add(&format!("tls/docker/{name}"), 0o600, Some(data))?;
    }
    tar.into_inner()
}

/// Unpacks a context under another name. Nothing is written: what an archive names is only compared.
pub fn unpack(name: &str, input: impl Read) -> Result<Context, ArchiveError> {
    let mut data = Vec::new();
    input.take(LARGEST + 1).read_to_end(&mut data)?;
    if data.len() as u64 > LARGEST {
        return Err(ArchiveError::TooLarge);
    }
    if data.starts_with(b"PK\x03\x04") {
        return Err(ArchiveError::Zip);
    }
    // docker leaves out what fills up the last block, and the two empty blocks at the end.
    data.resize(data.len().next_multiple_of(512) + 1024, 0);
    let mut context = Context::new(name);
    let mut meta = None;
    let mut archive = tar::Archive::new(data.as_slice());
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_dir() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let unexpected = || ArchiveError::Unexpected(path.clone());
        if !entry.header().entry_type().is_file() {
            return Err(unexpected());
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        if path == "meta.json" {
            meta = Some(serde_json::from_slice::<Value>(&text)?);
            continue;
        }
        let file = path.strip_prefix("tls/docker/").ok_or_else(unexpected)?;
        if !TLS_FILES.contains(&file) {
            return Err(unexpected());
        }
        context.tls.push((file.to_owned(), text));
    }
    context.meta = meta.ok_or(ArchiveError::NoMeta)?;
    context.rename(name);
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut context = Context::new("one");
        context.describe("d");
        context.tls = vec![("ca.pem".into(), b"C".to_vec()), ("key.pem".into(), b"K".to_vec())];
        let archive = pack(&context).unwrap();
        assert_eq!(pack(&context).unwrap(), archive);
        let other = unpack("two", archive.as_slice()).unwrap();
        assert_eq!((other.name.as_str(), other.meta.text(&["Name"]), other.description()), ("two", "two", "d"));
        assert_eq!(other.tls, context.tls);
    }

    #[test]
    fn other_archives_are_refused() {
        let of = |name: &str, data: &[u8]| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, data).unwrap();
            unpack("x", tar.into_inner().unwrap().as_slice()).unwrap_err().to_string()
        };
        for (name, text, part) in [
            ("../meta.json", "{}", "unexpected context file \"../meta.json\""),
            ("tls/docker/../../x", "", "unexpected context file"),
            ("tls/docker/x.pem", "", "unexpected context file"),
            ("meta.json", "{", "meta.json in the archive: "),
            ("tls/docker/ca.pem", "", "no metadata found"),
        ] {
            let error = of(name, text.as_bytes());
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(matches!(unpack("x", &b"PK\x03\x04zip"[..]), Err(ArchiveError::Zip)));
        assert!(matches!(unpack("x", &b"no tar at all"[..]), Err(ArchiveError::Io(_) | ArchiveError::NoMeta)));
    }
}
