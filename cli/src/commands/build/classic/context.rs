//! What a build is made from: a folder, an archive or a Dockerfile on standard input, or an address the engine fetches.

use super::ignore::Ignore;
use crate::args::build::BuildArgs;
use crate::client::call::Body;
use crate::commands::{cp, cp::paths, load};
use crate::exit::{Failure, Outcome};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

/// Longest Dockerfile that is read from standard input.
pub const LONGEST: u64 = 16 << 20;

/// Where the files come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// The engine fetches them.
    Remote(&'a str),
    /// Standard input.
    Stdin,
    /// A folder of this machine.
    Folder(&'a str),
}

impl<'a> Source<'a> {
    /// By docker's rules.
    pub fn of(text: &'a str) -> Self {
        let remote = ["http://", "https://", "git://", "git@", "github.com/", "ssh://"];
        match text {
            "-" => Self::Stdin,
            text if remote.iter().any(|prefix| text.starts_with(prefix)) => Self::Remote(text),
            text => Self::Folder(text),
        }
    }
}

/// Files of an archive that are not in the folder: name and content.
type Extra = Vec<(String, Vec<u8>)>;

/// A context that is ready to be sent.
pub struct Context {
    /// The archive, unless the engine fetches it.
    pub body: Option<Body>,
    /// What the engine fetches.
    pub remote: Option<String>,
    /// Where the Dockerfile is in it.
    pub dockerfile: String,
    /// Bytes sent so far.
    pub sent: Arc<AtomicU64>,
    /// The thread that reads the folder.
    pub packing: Option<JoinHandle<Result<(), cp::pack::PackError>>>,
}

fn refused(text: impl std::fmt::Display) -> Failure {
    Failure::Refused(format!("unable to prepare context: {text}"))
}

/// Prepares the context.
pub async fn prepare(args: &BuildArgs) -> Outcome<Context> {
    let sent = Arc::new(AtomicU64::new(0));
    let named = args.file.clone().filter(|file| !file.is_empty());
    match Source::of(&args.context) {
        Source::Stdin if named.as_deref() == Some("-") => {
            Err(Failure::Refused("invalid argument: can't use stdin for both build context and dockerfile".to_owned()))
        }
        Source::Remote(address) => Ok(Context {
            body: None,
            remote: Some(address.to_owned()),
            dockerfile: named.unwrap_or_default(),
            sent,
            packing: None,
        }),
        Source::Stdin => stdin(named, sent).await,
        Source::Folder(path) => folder(path, named.as_deref(), args.compress, sent).await,
    }
}

/// An archive goes to the engine as it comes; anything else is a Dockerfile.
async fn stdin(named: Option<String>, sent: Arc<AtomicU64>) -> Outcome<Context> {
    let mut input = tokio::io::stdin();
    let mut head = vec![0; 512];
    let mut length = 0;
    while length < head.len() {
        let count = input.read(&mut head[length..]).await.map_err(|cause| Failure::io("read standard input", cause))?;
        if count == 0 {
            break;
        }
        length += count;
    }
    head.truncate(length);
    if is_archive(&head) {
        let body = load::streamed(AsyncReadExt::chain(io::Cursor::new(head), input));
        return Ok(Context {
            body: Some(body),
            remote: None,
            dockerfile: named.unwrap_or_default(),
            sent,
            packing: None,
        });
    }
    let mut rest = AsyncReadExt::take(input, LONGEST);
    rest.read_to_end(&mut head).await.map_err(|cause| Failure::io("read standard input", cause))?;
    let name = "Dockerfile".to_owned();
    let files = vec![(name.clone(), head)];
    let (body, packing) =
        cp::streamed(move |out| cp::pack::folder(Path::new(""), &|_, _| cp::pack::Keep::No, &files, out), sent.clone());
    Ok(Context { body: Some(body), remote: None, dockerfile: name, sent, packing: Some(packing) })
}

/// gzip, bzip2, xz, zstd, or a tar header.
pub fn is_archive(head: &[u8]) -> bool {
    let magic: [&[u8]; 4] = [b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"];
    if magic.iter().any(|magic| head.starts_with(magic)) {
        return true;
    }
    let Some(header) = head.first_chunk::<512>() else { return false };
    tar::Header::from_byte_slice(header).cksum().is_ok_and(|sum| {
        let own: u32 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        own == sum
    })
}

async fn folder(path: &str, named: Option<&str>, compress: bool, sent: Arc<AtomicU64>) -> Outcome<Context> {
    let root = match fs::canonicalize(path) {
        Ok(root) if root.is_dir() => root,
        Ok(root) => return Err(refused(format!("context must be a directory: {}", root.display()))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(refused(format!("path {path:?} not found")));
        }
        Err(cause) => return Err(refused(format!("{path}: {}", crate::options::Plain(cause)))),
    };
    let (dockerfile, more) = dockerfile(&root, named)?;
    let mut ignore = match fs::read_to_string(root.join(".dockerignore")) {
        Ok(text) => Ignore::parse(&text).map_err(|error| Failure::Refused(error.to_string()))?,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ignore::default(),
        Err(cause) => return Err(refused(format!("open .dockerignore: {}", crate::options::Plain(cause)))),
    };
    // The engine reads both, and leaves them out of the image itself where the patterns say so.
    ignore.always(".dockerignore");
    ignore.always(&dockerfile);
    let write = move |out: &mut dyn Write| {
        let choice = |path: &Path, is_dir: bool| ignore.keep(&path.to_string_lossy(), is_dir);
        if compress {
            let mut out = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            cp::pack::folder(&root, &choice, &more, &mut out)?;
            return out.try_finish().map_err(|cause| cp::pack::PackError::compress(&root, cause));
        }
        cp::pack::folder(&root, &choice, &more, out)
    };
    let (body, packing) = cp::streamed(write, sent.clone());
    Ok(Context { body: Some(body), remote: None, dockerfile, sent, packing: Some(packing) })
}

/// Path of the Dockerfile in the context, and the file itself if it comes from elsewhere.
fn dockerfile(root: &Path, named: Option<&str>) -> Outcome<(String, Extra)> {
    let missing = |path: &Path, cause| {
        let cause = crate::options::Plain(cause);
        refused(format!("unable to evaluate symlinks in Dockerfile path: lstat {}: {cause}", path.display()))
    };
    let elsewhere = |bytes: Vec<u8>| {
        let name = format!(".dockerfile.{:x}", std::process::id());
        Ok((name.clone(), vec![(name, bytes)]))
    };
    let path = match named {
        Some("-") => {
            let mut bytes = Vec::new();
            let read = io::stdin().lock().take(LONGEST).read_to_end(&mut bytes);
            read.map_err(|cause| Failure::io("read standard input", cause))?;
            return elsewhere(bytes);
        }
        Some(path) => {
            let cwd = std::env::current_dir().map_err(|cause| Failure::io("get the working directory", cause))?;
            PathBuf::from(paths::clean(&cwd.join(path).to_string_lossy()))
        }
        None => {
            let usual = root.join("Dockerfile");
            let small = root.join("dockerfile");
            if !usual.exists() && small.exists() { small } else { usual }
        }
    };
    let real = fs::canonicalize(&path).map_err(|cause| missing(&path, cause))?;
    match real.strip_prefix(root) {
        Ok(inside) => Ok((inside.to_string_lossy().into_owned(), Vec::new())),
        Err(_) if named.is_none() => {
            Err(refused(format!("the Dockerfile ({}) must be within the build context", path.display())))
        }
        Err(_) => elsewhere(fs::read(&real).map_err(|cause| missing(&path, cause))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        for (text, want) in [
            ("-", Source::Stdin),
            (".", Source::Folder(".")),
            ("https://x/y.git", Source::Remote("https://x/y.git")),
            ("git@host:repo", Source::Remote("git@host:repo")),
        ] {
            assert_eq!(Source::of(text), want);
        }
    }

    #[test]
    fn archives_are_known_by_their_head() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "x", &b"y"[..]).unwrap();
        assert!(is_archive(&builder.into_inner().unwrap()) && is_archive(b"\x1f\x8b\x08\x00"));
        assert!(!is_archive(b"FROM busybox\n") && !is_archive(&[0; 512]) && !is_archive(&[b'#'; 512]));
    }

    #[test]
    fn dockerfiles() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("c");
        fs::create_dir_all(root.join("sub")).unwrap();
        let error = dockerfile(&root, None).unwrap_err().to_string();
        assert!(error.ends_with("/Dockerfile: no such file or directory"), "{error}");
        fs::write(root.join("dockerfile"), "FROM a").unwrap();
        assert_eq!(dockerfile(&root, None).unwrap().0, "dockerfile");
        fs::write(root.join("Dockerfile"), "FROM a").unwrap();
        assert_eq!(dockerfile(&root, None).unwrap().0, "Dockerfile");
        fs::write(root.join("sub/D"), "FROM a").unwrap();
        assert_eq!(dockerfile(&root, root.join("sub/D").to_str()).unwrap(), ("sub/D".to_owned(), Vec::new()));
        let outside = dir.path().join("Out");
        fs::write(&outside, "FROM b").unwrap();
        let (name, more) = dockerfile(&root, outside.to_str()).unwrap();
        assert!(name.starts_with(".dockerfile.") && more == [(name.clone(), b"FROM b".to_vec())]);
    }
}
