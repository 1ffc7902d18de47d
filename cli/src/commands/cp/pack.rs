//! Writes a file or folder of the client as a tar archive. Links are written as links; sockets are left out, as docker does.

use super::paths::{self, End};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// The one attribute that has to travel with a file: its capabilities.
const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// What becomes of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is in the archive.
    Yes,
    /// A folder that is not in it, while something in the folder may be.
    Below,
    /// Neither it nor what is in it.
    No,
}

/// What an archive holds: gets the path below the source, and whether it is a folder.
pub type Choice<'a> = &'a dyn Fn(&Path, bool) -> Keep;

/// An archive that failed, and at which file.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {cause}")]
pub struct PackError {
    operation: &'static str,
    path: String,
    cause: crate::options::Plain,
}

impl PackError {
    fn new(operation: &'static str, path: &Path, cause: io::Error) -> Self {
        Self { operation, path: path.display().to_string(), cause: crate::options::Plain(cause) }
    }

    /// Compressing it failed.
    pub fn compress(path: &Path, cause: io::Error) -> Self {
        Self::new("compress", path, cause)
    }

    /// Whoever was to receive the archive has gone: the reason is theirs.
    pub fn is_consequence(&self) -> bool {
        self.cause.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes the archive of `source`, its topmost entry called as the plan says.
pub fn pack(source: &End, rename: Option<&(String, String)>, out: impl Write) -> Result<(), PackError> {
    let (dir, base) = paths::split(&source.path);
    let name = source.name.clone().unwrap_or_else(|| base.clone());
    let name = paths::rename(name.as_bytes(), rename);
    let mut packer =
        Packer { builder: Builder::new(out), seen: HashMap::new(), choice: &|_, _| Keep::Yes, plain: false };
    packer.tree(&Path::new(&dir).join(&base), Path::new(""), &name)?;
    packer.finish(Path::new(&source.path))
}

/// Writes the archive of what is chosen in a folder, and of some files that are not there; ids of users and groups are zero.
pub fn folder(root: &Path, choice: Choice<'_>, more: &[(String, Vec<u8>)], out: impl Write) -> Result<(), PackError> {
    let mut packer = Packer { builder: Builder::new(out), seen: HashMap::new(), choice, plain: true };
    if root != Path::new("") {
        packer.children(root, Path::new(""), b"")?;
    }
    for (name, bytes) in more {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(bytes.len() as u64);
        let at = Path::new(name);
        packer
            .builder
            .append_data(&mut header, name, &bytes[..])
            .map_err(|cause| PackError::new("write", at, cause))?;
    }
    packer.finish(root)
}

struct Packer<'c, W: Write> {
    builder: Builder<W>,
    /// Files with several names: where the first one is in the archive.
    seen: HashMap<(u64, u64), Vec<u8>>,
    choice: Choice<'c>,
    /// Without owners.
    plain: bool,
}

impl<W: Write> Packer<'_, W> {
    fn finish(mut self, path: &Path) -> Result<(), PackError> {
        let end = |cause| PackError::new("write the archive of", path, cause);
        self.builder.finish().map_err(end)?;
        self.builder.get_mut().flush().map_err(end)
    }

    fn tree(&mut self, path: &Path, below: &Path, name: &[u8]) -> Result<(), PackError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            // It went away while the folder was read; the topmost one was there a moment ago.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && below != Path::new("") => return Ok(()),
            Err(cause) => return Err(PackError::new("lstat", path, cause)),
        };
        self.entry(path, name, &metadata)?;
        if metadata.is_dir() { self.children(path, below, &[name, b"/"].concat()) } else { Ok(()) }
    }

    fn children(&mut self, path: &Path, below: &Path, prefix: &[u8]) -> Result<(), PackError> {
        let fault = |cause| PackError::new("open", path, cause);
        let mut names = fs::read_dir(path)
            .map_err(fault)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(fault)?;
        names.sort();
        for name in names {
            let (child, below) = (path.join(&name), below.join(&name));
            let is_dir = fs::symlink_metadata(&child).is_ok_and(|m| m.is_dir());
            let name = [prefix, name.as_bytes()].concat();
            match (self.choice)(&below, is_dir) {
                Keep::Yes => self.tree(&child, &below, &name)?,
                Keep::Below if is_dir => self.children(&child, &below, &[&name[..], b"/"].concat())?,
                Keep::Below | Keep::No => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &[u8], metadata: &Metadata) -> Result<(), PackError> {
        let fault = |cause| PackError::new("read", path, cause);
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if self.plain {
            header.set_uid(0);
            header.set_gid(0);
        }
        header.set_size(0);
        let as_path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        if kind.is_dir() {
            let name = [name, b"/"].concat();
            return self.builder.append_data(&mut header, as_path(&name), io::empty()).map_err(fault);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(fault)?;
            header.set_entry_type(EntryType::Symlink);
            return self.builder.append_link(&mut header, as_path(name), target).map_err(fault);
        }
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.seen.get(&inode) {
                header.set_entry_type(EntryType::Link);
                return self.builder.append_link(&mut header, as_path(name), as_path(first)).map_err(fault);
            }
            self.seen.insert(inode, name.to_vec());
        }
        if !kind.is_file() {
            return self.builder.append_data(&mut header, as_path(name), io::empty()).map_err(fault);
        }
        let file = File::open(path).map_err(|cause| PackError::new("open", path, cause))?;
        if let Some(capability) = capability(path) {
            let pax = [("SCHILY.xattr.security.capability", &capability[..])];
            self.builder.append_pax_extensions(pax).map_err(fault)?;
        }
        header.set_size(metadata.len());
        // A file that grows or shrinks meanwhile must not shift what comes after it.
        let exact = Exact { file, left: metadata.len() };
        self.builder.append_data(&mut header, as_path(name), exact).map_err(fault)
    }
}

fn capability(path: &Path) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    sys::xattr::lget(&path, CAPABILITY).ok().flatten()
}

/// Exactly as many bytes as were promised: cut off, or an error when there are fewer.
struct Exact {
    file: File,
    left: u64,
}

impl io::Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().map(|link| format!(" -> {}", link.display())).unwrap_or_default();
            format!("{}{link}", entry.path().unwrap().display())
        });
        entries.collect()
    }

    #[test]
    fn folders_links_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("src");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("a"), "x").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        symlink("/etc/passwd", root.join("sub/l")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("sock")).unwrap();
        let of = |path: String, rename: Option<(&str, &str)>| {
            let mut out = Vec::new();
            let source = End { path, exists: true, is_dir: true, name: None };
            let rename = rename.map(|(a, b)| (a.to_owned(), b.to_owned()));
            pack(&source, rename.as_ref(), &mut out).unwrap();
            names(&out)
        };
        let root = root.display().to_string();
        assert_eq!(of(root.clone(), None), ["src/", "src/a", "src/b -> src/a", "src/sub/", "src/sub/l -> /etc/passwd"]);
        assert_eq!(of(root.clone(), Some(("src", "n")))[..3], ["n/", "n/a", "n/b -> n/a"]);
        assert_eq!(of(format!("{root}/."), Some((".", "n")))[..2], ["n/", "n/a"]);
        assert_eq!(of(format!("{root}/."), None)[..2], ["./", "a"]);
        assert_eq!(of(format!("{root}/a"), Some(("a", "z"))), ["z"]);
        let missing = End { path: format!("{root}/no"), ..End::default() };
        let error = pack(&missing, None, io::sink()).unwrap_err().to_string();
        assert_eq!(error, format!("lstat {root}/no: no such file or directory"));
    }

    #[test]
    fn long_names_and_lengths_survive() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n".repeat(200);
        fs::write(dir.path().join(&long), vec![7; 70_000]).unwrap();
        let mut out = Vec::new();
        folder(dir.path(), &|_, _| Keep::Yes, &[("extra".to_owned(), b"e".to_vec())], &mut out).unwrap();
        assert_eq!(names(&out), [long.as_str(), "extra"]);
        let mut short = Exact { file: File::open(dir.path().join(&long)).unwrap(), left: 70_001 };
        assert!(io::copy(&mut short, &mut io::sink()).is_err());
    }
}
