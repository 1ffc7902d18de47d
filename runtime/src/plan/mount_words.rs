//! The words of `mounts[].options` that mean something to whoever mounts; all others are options of the file system.

use sys::mount::{Propagation, Reach, attr};

/// What a word asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word<'a> {
    /// `bind`, `rbind`
    Bind(Reach),
    /// `private`, `rshared` ...
    Propagation(Propagation, Reach),
    /// `ro`, `rnosuid` ...: attributes to set and to clear.
    Attributes(Reach, u64, u64),
    /// `sync`, `lazytime` ...: belongs to the file system as a whole. False for one that says what is the case anyway.
    Superblock(&'static str, bool),
    /// `iversion`, which only some file systems have, by another name.
    Iversion,
    /// `remount`
    Remount,
    /// `tmpcopyup`
    CopyUp,
    /// `idmap`, `ridmap`, with crun's `=uids=..;gids=..` if it is there.
    IdMap(Reach, Option<&'a str>),
    /// `copy-symlink` (crun): a source that is a link is made again as a link.
    CopySymlink,
    /// `src-nofollow` (crun)
    SourceNoFollow,
    /// `dest-nofollow` (crun)
    DestinationNoFollow,
    /// Without any effect on what is mounted.
    Nothing,
}

/// Every word known, for `features`, sorted.
pub(crate) const KNOWN: &[&str] = &[
    "async",
    "atime",
    "bind",
    "copy-symlink",
    "defaults",
    "dest-nofollow",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "src-nofollow",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Reads a word; `None` if it is an option of the file system itself.
pub(super) fn read(word: &str) -> Option<Word<'_>> {
    let propagation = |kind, reach| Some(Word::Propagation(kind, reach));
    match word {
        "bind" => Some(Word::Bind(Reach::One)),
        "rbind" => Some(Word::Bind(Reach::Tree)),
        "private" => propagation(Propagation::Private, Reach::One),
        "rprivate" => propagation(Propagation::Private, Reach::Tree),
        "shared" => propagation(Propagation::Shared, Reach::One),
        "rshared" => propagation(Propagation::Shared, Reach::Tree),
        "slave" => propagation(Propagation::Slave, Reach::One),
        "rslave" => propagation(Propagation::Slave, Reach::Tree),
        "unbindable" => propagation(Propagation::Unbindable, Reach::One),
        "runbindable" => propagation(Propagation::Unbindable, Reach::Tree),
        "sync" => Some(Word::Superblock("sync", true)),
        "async" => Some(Word::Superblock("async", false)),
        "dirsync" => Some(Word::Superblock("dirsync", true)),
        "lazytime" => Some(Word::Superblock("lazytime", true)),
        "nolazytime" => Some(Word::Superblock("nolazytime", false)),
        "mand" => Some(Word::Superblock("mand", true)),
        "nomand" => Some(Word::Superblock("nomand", false)),
        "iversion" => Some(Word::Iversion),
        "remount" => Some(Word::Remount),
        "tmpcopyup" => Some(Word::CopyUp),
        "copy-symlink" => Some(Word::CopySymlink),
        "src-nofollow" => Some(Word::SourceNoFollow),
        "dest-nofollow" => Some(Word::DestinationNoFollow),
        // silent and loud are about the kernel's log; no other file system than those above has an iversion to switch off.
        "defaults" | "silent" | "loud" | "noiversion" | "norelatime" | "rnorelatime" => Some(Word::Nothing),
        _ => id_map(word).or_else(|| attributes(word)),
    }
}

fn id_map(word: &str) -> Option<Word<'_>> {
    let (reach, rest) = match word.strip_prefix("idmap") {
        Some(rest) => (Reach::One, rest),
        None => (Reach::Tree, word.strip_prefix("ridmap")?),
    };
    match rest.split_once('=') {
        None => rest.is_empty().then_some(Word::IdMap(reach, None)),
        Some(("", ids)) => Some(Word::IdMap(reach, Some(ids))),
        Some(_) => None,
    }
}

fn attributes(word: &str) -> Option<Word<'_>> {
    if let Some((set, clear)) = attribute(word) {
        return Some(Word::Attributes(Reach::One, set, clear));
    }
    let (set, clear) = attribute(word.strip_prefix('r')?)?;
    Some(Word::Attributes(Reach::Tree, set, clear))
}

/// What a word sets and clears.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "noatime" => (attr::NOATIME, 0),
        // The relative policy is the kernel's default, and what is left when another is taken away.
        "relatime" | "atime" | "nostrictatime" => (0, attr::ATIME),
        "strictatime" => (attr::STRICTATIME, 0),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_word_is_read_and_sorted() {
        for word in KNOWN {
            assert!(read(word).is_some(), "{word}");
        }
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn what_is_left_is_the_file_systems() {
        for word in ["mode=755", "size=1m", "rsize=8", "rsync", "r", "", "idmapped", "private-users", "rbindx"] {
            assert_eq!(read(word), None, "{word}");
        }
    }

    #[test]
    fn recursive_words_have_an_r() {
        for (word, reach, set, clear) in [
            ("ro", Reach::One, attr::RDONLY, 0),
            ("rro", Reach::Tree, attr::RDONLY, 0),
            ("rrw", Reach::Tree, 0, attr::RDONLY),
            ("rrelatime", Reach::Tree, 0, attr::ATIME),
            ("relatime", Reach::One, 0, attr::ATIME),
            ("rnosymfollow", Reach::Tree, attr::NOSYMFOLLOW, 0),
        ] {
            assert_eq!(read(word), Some(Word::Attributes(reach, set, clear)), "{word}");
        }
        assert_eq!(read("ridmap"), Some(Word::IdMap(Reach::Tree, None)));
        assert_eq!(read("idmap=uids=0-1-2"), Some(Word::IdMap(Reach::One, Some("uids=0-1-2"))));
    }
}
