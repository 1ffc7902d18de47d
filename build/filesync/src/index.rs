//! What is in a folder: what was told of it, and digests of the contents. Who keeps it needs neither look at the files again nor
//! read them.

use crate::{
    mode,
    walk::{Filtered, WalkError, walk},
};
use proto::{digest::Digest, fsutil::types::Stat};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, os::fd::AsFd};

/// Begins the form in which it is kept; the number is the form's.
const MAGIC: &[u8] = b"berth-files 1\n";

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What was told of it.
    pub stat: Stat,
    /// Of a file that isn't a link to another: SHA-256 of its content, if it is known.
    pub content: Option<[u8; 32]>,
}

/// All of a folder, in order of the protocol.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Index {
    entries: Vec<Entry>,
}

/// The order of the protocol: that of the bytes, with '/' before all others.
pub(crate) fn order(a: &str, b: &str) -> std::cmp::Ordering {
    let key = |byte: u8| if byte == b'/' { 0 } else { byte };
    a.bytes().map(key).cmp(b.bytes().map(key))
}

impl Index {
    /// Of entries in order.
    pub(crate) fn of(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// What is in a folder now; no digests.
    pub fn scan(folder: impl AsFd) -> Result<Self, WalkError> {
        let mut entries = Vec::new();
        walk(folder.as_fd(), &Filtered::default(), &mut |stat| {
            entries.push(Entry { stat, content: None });
            Ok::<_, WalkError>(())
        })?;
        Ok(Self { entries })
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is at a path.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| order(&entry.stat.path, path)).ok()?;
        self.entries.get(at)
    }

    pub(crate) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        let files = self.entries.iter().filter(|e| mode::is_file(e.stat.mode) && e.stat.linkname.is_empty());
        files.map(|e| u64::try_from(e.stat.size).unwrap_or_default()).sum()
    }

    /// Digest of paths, modes, owners, links, attributes and contents; no times. Nothing if the digest of a content is missing.
    pub fn digest(&self) -> Option<Digest> {
        let mut hash = Sha256::new();
        let field = |hash: &mut Sha256, bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        for Entry { stat, content } in &self.entries {
            field(&mut hash, stat.path.as_bytes());
            for number in [stat.mode, stat.uid, stat.gid] {
                hash.update(number.to_be_bytes());
            }
            for number in [stat.devmajor, stat.devminor] {
                hash.update(number.to_be_bytes());
            }
            field(&mut hash, stat.linkname.as_bytes());
            let attributes: BTreeMap<_, _> = stat.xattrs.iter().collect();
            hash.update((attributes.len() as u64).to_be_bytes());
            for (name, value) in attributes {
                field(&mut hash, name.as_bytes());
                field(&mut hash, value);
            }
            if mode::is_file(stat.mode) && stat.linkname.is_empty() {
                hash.update(content.as_ref()?);
            }
        }
        Some(Digest::from_bytes(hash.finalize().into()))
    }

    /// As bytes that [`Self::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        use prost::Message;
        let mut bytes = MAGIC.to_vec();
        for Entry { stat, content } in &self.entries {
            // A Vec takes whatever it is given.
            let _ = stat.encode_length_delimited(&mut bytes);
            bytes.push(u8::from(content.is_some()));
            bytes.extend_from_slice(content.as_ref().map_or(&[][..], |c| &c[..]));
        }
        bytes.extend_from_slice(&Sha256::digest(&bytes));
        bytes
    }

    /// Reads what [`Self::encode`] wrote; nothing if it isn't that, whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        use prost::Message;
        let (bytes, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Sha256::digest(bytes).as_slice() != sum {
            return None;
        }
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let stat = Stat::decode_length_delimited(&mut rest).ok()?;
            let (known, after) = rest.split_first()?;
            rest = after;
            let content = match known {
                0 => None,
                _ => {
                    let (content, after) = rest.split_first_chunk::<32>()?;
                    rest = after;
                    Some(*content)
                }
            };
            entries.push(Entry { stat, content });
        }
        Some(Self { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, mode: u32, content: Option<u8>) -> Entry {
        Entry { stat: Stat { path: path.into(), mode, ..Stat::default() }, content: content.map(|c| [c; 32]) }
    }

    #[test]
    fn kept_and_read_again() {
        let index = Index::of(vec![entry("a", mode::DIR | 0o755, None), entry("a/b", 0o644, Some(7))]);
        let bytes = index.encode();
        assert_eq!(Index::decode(&bytes), Some(index));
        for damaged in [&bytes[..bytes.len() - 1], &bytes[1..], b""] {
            assert_eq!(Index::decode(damaged), None);
        }
        let mut flipped = bytes;
        flipped[MAGIC.len() + 3] ^= 1;
        assert_eq!(Index::decode(&flipped), None);
    }

    #[test]
    fn digests_are_of_content_not_of_times() {
        let index = |time, content, mode| {
            let mut entry = entry("f", mode, content);
            entry.stat.mod_time = time;
            Index::of(vec![entry]).digest()
        };
        assert_eq!(index(1, Some(1), 0o644), index(2, Some(1), 0o644));
        assert_ne!(index(1, Some(1), 0o644), index(1, Some(2), 0o644));
        assert_ne!(index(1, Some(1), 0o644), index(1, Some(1), 0o600));
        assert_eq!(index(1, None, 0o644), None);
        assert_ne!(Index::default().digest(), index(1, Some(1), 0o644));
    }

    #[test]
    fn slashes_before_all_else() {
        let mut paths = ["b", "a-b", "a/x", "a", "a/x/y", "a\u{1}"];
        paths.sort_by(|a, b| order(a, b));
        assert_eq!(paths, ["a", "a/x", "a/x/y", "a\u{1}", "a-b", "b"]);
    }
}
