//! Archives that are written: to a file that appears when it is complete, or to standard output.

use crate::client::Reply;
use crate::exit::{Failure, Outcome};
use crate::terminal;
use nix::sys::stat::{SFlag, stat};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Where an archive goes.
#[derive(Debug)]
pub enum Target<'a> {
    /// To standard output.
    Stdout,
    /// To a file.
    File(&'a Path),
}

impl<'a> Target<'a> {
    /// Checks what can be checked before the engine is asked for anything. `what` names the operation.
    pub fn new(output: Option<&'a str>, what: &str) -> Outcome<Self> {
        let Some(output) = output.filter(|path| !path.is_empty()) else {
            if terminal::stdout_is_terminal() {
                let text = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
                return Err(Failure::Refused(text.to_owned()));
            }
            return Ok(Self::Stdout);
        };
        let refused = |why: String| Failure::Refused(format!("failed to {what}: {why}"));
        let path = Path::new(output);
        let dir = folder(path);
        if let Err(cause) = fs::metadata(dir) {
            let cause = crate::options::Plain(cause);
            return Err(refused(format!("invalid output path: stat {}: {cause}", dir.display())));
        }
        let kind = match stat(path) {
            Ok(stat) => SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
            Err(nix::errno::Errno::ENOENT) => return Ok(Self::File(path)),
            Err(errno) => return Err(refused(format!("stat {output}: {}", errno.desc()))),
        };
        let what = match kind {
            SFlag::S_IFREG => return Ok(Self::File(path)),
            SFlag::S_IFDIR => "directory",
            SFlag::S_IFCHR => "character device file",
            SFlag::S_IFIFO => "named pipe file",
            SFlag::S_IFSOCK => "socket file",
            _ => "device file",
        };
        Err(refused(format!("cannot write to a {what}")))
    }

    /// Writes the body of an answer.
    pub async fn write(&self, mut reply: Reply) -> Outcome {
        let Self::File(path) = self else {
            let mut out = io::stdout().lock();
            while let Some(data) = reply.chunk().await? {
                out.write_all(&data).map_err(|cause| Failure::io("write /dev/stdout", cause))?;
            }
            return out.flush().map_err(|cause| Failure::io("write /dev/stdout", cause));
        };
        let fault = |cause| Failure::io(format!("write {}", path.display()), cause);
        // What was begun must not stay behind as a file that looks like an archive.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
        let mut file = Unfinished::create(path).map_err(fault)?;
        loop {
            let data = tokio::select! {
                data = reply.chunk() => data?,
                _ = interrupt.recv() => return Err(Failure::Exit(130)),
                _ = terminate.recv() => return Err(Failure::Exit(143)),
            };
            match data {
                Some(data) => file.file.write_all(&data).map_err(fault)?,
                None => return file.finish(path).map_err(fault),
            }
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside its destination; goes away unless it is finished.
struct Unfinished {
    file: File,
    path: Option<PathBuf>,
}

impl Unfinished {
    fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder(path).join(format!(".{name}.{}.partial", std::process::id()));
        // 0600: what is in an image is its owner's business.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, path: Some(temporary) })
    }

    fn finish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(temporary) = &self.path {
            fs::rename(temporary, path)?;
        }
        self.path = None;
        File::open(folder(path))?.sync_all()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The failure that led here is the one to be told.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("old"), "x").unwrap();
        assert!(Target::new(Some(&at("old")), "save image").is_ok() && Target::new(Some(&at("new")), "x").is_ok());
        for (path, text) in [
            (
                at("no/such"),
                format!("failed to save image: invalid output path: stat {}: no such file or directory", at("no")),
            ),
            (at(""), "failed to save image: cannot write to a directory".to_owned()),
            ("/dev/null".to_owned(), "failed to save image: cannot write to a character device file".to_owned()),
        ] {
            assert_eq!(Target::new(Some(&path), "save image").unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn only_what_is_finished_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        drop(Unfinished::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut file = Unfinished::create(&path).unwrap();
        file.file.write_all(b"x").unwrap();
        file.finish(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (b"x".to_vec(), 1));
    }
}
