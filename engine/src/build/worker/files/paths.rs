//! Paths below a root that is open: links are followed inside it, wildcards are Go's.

use super::FileError;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::stat::{FileStat, SFlag, fstat, fstatat},
};
use std::{
    ffi::{CString, OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};
use sys::path::{Within, open_within};

/// Links on the way to one path.
const LINKS: usize = 255;

/// A path below a root without links, `.` and `..`; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Clean(Vec<Vec<u8>>);

impl Clean {
    /// The path without a look at the files: `..` at the root stays there.
    pub fn of(path: impl AsRef<OsStr>) -> Self {
        let mut clean = Self::default();
        for part in path.as_ref().as_bytes().split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(clean.0.pop()),
                part => clean.0.push(part.to_vec()),
            }
        }
        clean
    }

    /// One deeper.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut joined = self.clone();
        joined.0.push(name.to_vec());
        joined
    }

    /// Folder and name; nothing for the root.
    pub fn split(&self) -> Option<(Self, CString)> {
        let (name, above) = self.0.split_last()?;
        Some((Self(above.to_vec()), CString::new(name.clone()).ok()?))
    }

    /// Its last part.
    pub fn name(&self) -> Option<&[u8]> {
        self.0.last().map(Vec::as_slice)
    }

    /// Its parts.
    pub fn parts(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// For the kernel, from the root.
    pub fn relative(&self) -> OsString {
        if self.0.is_empty() { ".".into() } else { OsString::from_vec(self.0.join(&b'/')) }
    }

    /// For people: `/a/b`.
    pub fn shown(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&self.0.join(&b'/')))
    }
}

/// Follows all links; what isn't there is taken as it is written. With `last` false the end of the path isn't followed.
pub fn resolve(root: impl AsFd, path: impl AsRef<OsStr>, last: bool) -> Result<Clean, FileError> {
    let root = root.as_fd();
    let mut rest: Vec<Vec<u8>> =
        path.as_ref().as_bytes().split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
    let (mut at, mut links) = (Clean::default(), 0);
    while let Some(part) = rest.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                at.0.pop();
                continue;
            }
            _ => {}
        }
        let ends = rest.iter().all(|part| matches!(part.as_slice(), b"" | b"."));
        let next = at.join(&part);
        let followed = if ends && !last { None } else { link(root, &next)? };
        let Some(target) = followed else {
            at = next;
            continue;
        };
        links += 1;
        if links > LINKS {
            return Err(FileError::at(&Clean::of(path.as_ref()), "resolve", Errno::ELOOP));
        }
        if target.first() == Some(&b'/') {
            at = Clean::default();
        }
        rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
    }
    Ok(at)
}

/// Where a link leads; nothing if it is none, or not there.
fn link(root: impl AsFd, path: &Clean) -> Result<Option<Vec<u8>>, FileError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let file = match open_within(root, path.relative().as_os_str(), flags, 0, Within::Root) {
        Ok(file) => file,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(FileError::at(path, "open", error)),
    };
    let stat = fstat(&file).map_err(|error| FileError::at(path, "lstat", error))?;
    if kind(&stat) != SFlag::S_IFLNK {
        return Ok(None);
    }
    let target = readlinkat(&file, "").map_err(|error| FileError::at(path, "readlink", error))?;
    Ok(Some(target.into_vec()))
}

/// Opens a folder that is there; nothing on the way to it may be a link any more.
pub fn folder(root: impl AsFd, path: &Clean) -> Result<OwnedFd, Errno> {
    open(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// Opens what is there, never through a link.
pub fn open(root: impl AsFd, path: &Clean, flags: OFlag) -> Result<OwnedFd, Errno> {
    open_within(root, path.relative().as_os_str(), flags | OFlag::O_NOFOLLOW, 0, Within::Plain)
}

/// What is there, if something is; a link itself.
pub fn stat(root: impl AsFd, path: &Clean) -> Result<Option<FileStat>, FileError> {
    let Some((above, name)) = path.split() else {
        return fstat(root.as_fd()).map(Some).map_err(|error| FileError::at(path, "lstat", error));
    };
    let looked = open(root, &above, OFlag::O_PATH | OFlag::O_DIRECTORY)
        .and_then(|above| fstatat(&above, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW));
    match looked {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(FileError::at(path, "lstat", error)),
    }
}

/// What kind of file it is.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Whether it is a folder.
pub fn is_folder(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

/// The names in a folder, sorted by their bytes.
pub fn names(folder: &OwnedFd) -> Result<Vec<CString>, Errno> {
    Ok(crate::containers::changes::names(folder)?.into_iter().collect())
}

/// Whether a path has wildcards.
pub fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// What a path with wildcards stands for, sorted; without any, the path itself whether or not it is there. The folder before
/// the first wildcard is looked up with its links, what wildcards lead to isn't followed.
pub fn wildcards(root: impl AsFd, path: &str, follow: bool) -> Result<Vec<Clean>, FileError> {
    let root = root.as_fd();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let Some(first) = parts.iter().position(|part| has_wildcards(part)) else { return Ok(vec![Clean::of(path)]) };
    let start = resolve(root, parts[..first].join("/"), follow)?;
    let (mut found, patterns) = (vec![start], &parts[first..]);
    for (depth, pattern) in patterns.iter().enumerate() {
        let mut deeper = Vec::new();
        for path in &found {
            let folder = match folder(root, path) {
                Ok(folder) => folder,
                Err(Errno::ENOTDIR | Errno::ELOOP) if depth > 0 => continue,
                Err(Errno::ENOENT) if depth > 0 => continue,
                Err(error) => return Err(FileError::at(path, "lstat", error)),
            };
            let listed = names(&folder).map_err(|error| FileError::at(path, "readdir", error))?;
            let fitting = listed.iter().filter(|name| go_match(pattern.as_bytes(), name.to_bytes()) == Some(true));
            deeper.extend(fitting.map(|name| path.join(name.to_bytes())));
        }
        found = deeper;
    }
    Ok(found)
}

/// Go's path.Match of one part of a path; `None` for a bad pattern.
pub fn go_match(pattern: &[u8], name: &[u8]) -> Option<bool> {
    let (pattern, name) = (String::from_utf8_lossy(pattern), String::from_utf8_lossy(name));
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where the last star was, and how much it has eaten: only the last one needs to be tried again.
    let (mut p, mut n, mut star) = (0, 0, None::<(usize, usize)>);
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return Some(true),
            None => false,
            Some(_) => match name.get(n) {
                Some(c) => {
                    let (fits, next) = one(&pattern, p, *c)?;
                    if fits {
                        (p, n) = (next, n + 1);
                    }
                    fits
                }
                None => {
                    // The rest decides nothing any more, but has to be a pattern.
                    check(&pattern, p)?;
                    return Some(false);
                }
            },
        };
        if step {
            continue;
        }
        match star {
            Some((after, eaten)) if eaten < name.len() && name[eaten] != '/' => {
                star = Some((after, eaten + 1));
                (p, n) = (after, eaten + 1);
            }
            _ => {
                check(&pattern, p)?;
                return Some(false);
            }
        }
    }
}

fn check(pattern: &[char], mut at: usize) -> Option<()> {
    while at < pattern.len() {
        at = if pattern[at] == '*' { at + 1 } else { one(pattern, at, 'x')?.1 };
    }
    Some(())
}

/// Whether a character fits the part of the pattern at `at`, and where the next part is.
fn one(pattern: &[char], at: usize, c: char) -> Option<(bool, usize)> {
    match pattern[at] {
        '?' => Some((c != '/', at + 1)),
        '\\' => Some((*pattern.get(at + 1)? == c, at + 2)),
        '[' => {
            let mut at = at + 1;
            let negated = pattern.get(at) == Some(&'^');
            at += usize::from(negated);
            let (mut fits, mut ranges) = (false, 0);
            loop {
                if pattern.get(at) == Some(&']') && ranges > 0 {
                    return Some((fits != negated, at + 1));
                }
                let (low, next) = literal(pattern, at)?;
                let (mut high, mut after) = (low, next);
                if pattern.get(next) == Some(&'-') {
                    (high, after) = literal(pattern, next + 1)?;
                }
                fits |= low <= c && c <= high;
                ranges += 1;
                at = after;
            }
        }
        literal => Some((literal == c, at + 1)),
    }
}

fn literal(pattern: &[char], at: usize) -> Option<(char, usize)> {
    match *pattern.get(at)? {
        '-' | ']' => None,
        '\\' => Some((*pattern.get(at + 1)?, at + 2)),
        c => Some((c, at + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, os::unix::fs::symlink, path::Path};

    fn root(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn links_are_followed_inside() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        fs::create_dir_all(base.join("a/b")).unwrap();
        symlink("/a", base.join("absolute")).unwrap();
        symlink("../../../../a/b", base.join("a/up")).unwrap();
        symlink("not/there", base.join("dangling")).unwrap();
        symlink("loop2", base.join("loop")).unwrap();
        symlink("loop", base.join("loop2")).unwrap();
        let root = root(base);
        for (path, last, expected) in [
            ("/", true, "/"),
            ("..//./..", true, "/"),
            ("absolute/b/x", true, "/a/b/x"),
            ("absolute", false, "/absolute"),
            ("absolute/", false, "/absolute"),
            ("absolute", true, "/a"),
            ("a/up/../c", true, "/a/c"),
            ("dangling/x", true, "/not/there/x"),
            ("a/b/../../../../etc", true, "/etc"),
        ] {
            assert_eq!(resolve(&root, path, last).unwrap().shown(), expected, "{path} {last}");
        }
        assert!(resolve(&root, "loop/x", true).is_err());
        assert_eq!(resolve(&root, "loop", false).unwrap().shown(), "/loop");
    }

    #[test]
    fn matches_as_go_does() {
        for (pattern, name, expected) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            (r"a\*b", "a*b", Some(true)),
            (r"a\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            (r"[\]a]", "]", Some(true)),
            (r"[\-x]", "-", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("[^bc", "a", None),
            ("a[", "ab", None),
            ("a[", "x", None),
            ("*x", "xxx", Some(true)),
            ("", "", Some(true)),
            ("", "x", Some(false)),
        ] {
            assert_eq!(go_match(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn wildcards_lead_to_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        for path in ["a1/x.txt", "a1/y.md", "a2/x.txt", "b/x.txt", "a1/deep/x.txt"] {
            fs::create_dir_all(base.join(path).parent().unwrap()).unwrap();
            fs::write(base.join(path), "").unwrap();
        }
        symlink("/b", base.join("a3")).unwrap();
        symlink("a1", base.join("link")).unwrap();
        let root = root(base);
        let shown =
            |path: &str| -> Vec<String> { wildcards(&root, path, true).unwrap().iter().map(Clean::shown).collect() };
        assert_eq!(shown("a*/x*"), ["/a1/x.txt", "/a2/x.txt"]);
        assert_eq!(shown("/a*"), ["/a1", "/a2", "/a3"]);
        assert_eq!(shown("link/*.txt"), ["/a1/x.txt"]);
        assert_eq!(shown("../../a?/*.md"), ["/a1/y.md"]);
        assert_eq!(shown("none*"), [""; 0]);
        assert_eq!(shown("no/wildcard/../x"), ["/no/x"]);
        assert!(wildcards(&root, "nowhere/*", true).is_err());
    }

    proptest! {
        #[test]
        fn matching_ends(pattern in "[a-c*?\\[\\]\\\\^-]{0,12}", name in "[a-c]{0,12}") {
            let _ = go_match(pattern.as_bytes(), name.as_bytes());
        }

        #[test]
        fn clean_paths_stay_below(path in "[a./]{0,20}") {
            let clean = Clean::of(&path);
            prop_assert!(clean.parts().iter().all(|part| part != b".." && part != b"." && !part.is_empty()));
        }
    }
}
