//! The trail: one line of JSON per request, appended with one write before the answer goes out. Bounded: full files become
//! older ones, and the oldest goes. Query, headers and bodies are never in it.

use super::peer::Peer;
use crate::time::Timestamp;
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// How large a file grows.
const FULL: u64 = 16 << 20;
/// How many full files are kept.
const OLDER: usize = 4;
/// No path that is served is longer; what is sent may be.
const LONGEST: usize = 1024;

/// Why there is no trail.
#[derive(Debug, thiserror::Error)]
#[error("open {path}")]
pub struct AuditError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// An open trail.
#[derive(Debug)]
pub struct Trail {
    path: PathBuf,
    full: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    size: u64,
}

/// What is to be told of a request.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Who.
    pub peer: &'a Peer,
    /// What.
    pub method: &'a str,
    /// On what; without query.
    pub path: &'a str,
    /// Why it was refused, if it was.
    pub refused: Option<&'a str>,
    /// Status of the answer.
    pub status: u16,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    uid: Option<u32>,
    pid: i32,
    user: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    decision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    status: u16,
}

impl Trail {
    /// Opens it, or goes on with the one that is there.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::with_limit(path, FULL)
    }

    fn with_limit(path: &Path, full: u64) -> Result<Self, AuditError> {
        let opened = open(path).and_then(|file| Ok(State { size: file.metadata()?.len(), file }));
        let state = opened.map_err(|cause| AuditError { path: path.to_owned(), cause })?;
        Ok(Self { path: path.to_owned(), full, state: Mutex::new(state) })
    }

    /// Appends a line.
    pub fn append(&self, entry: &Entry<'_>) -> io::Result<()> {
        let line = Line {
            time: Timestamp::now().to_string(),
            uid: entry.peer.uid,
            pid: entry.peer.pid,
            user: entry.peer.name.as_deref(),
            method: cut(entry.method, 32),
            path: cut(entry.path, LONGEST),
            decision: if entry.refused.is_some() { "refused" } else { "allowed" },
            reason: entry.refused,
            status: entry.status,
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.size > 0 && state.size + text.len() as u64 > self.full {
            self.turn(&mut state)?;
        }
        // One write of a short line to a file in the page cache: shorter than handing it to somebody else would be.
        state.file.write_all(&text)?;
        state.size += text.len() as u64;
        Ok(())
    }

    /// The full file becomes the first of the older ones.
    fn turn(&self, state: &mut State) -> io::Result<()> {
        let older = |number: usize| {
            let mut path = self.path.clone().into_os_string();
            path.push(format!(".{number}"));
            PathBuf::from(path)
        };
        state.file.sync_data()?;
        for number in (1..OLDER).rev() {
            match std::fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, older(1))?;
        *state = State { file: open(&self.path)?, size: 0 };
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // No link is followed: who may write beside it must not choose what is written to.
    let flags = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)
}

fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::os::unix::fs::PermissionsExt;

    fn peer() -> Peer {
        Peer { uid: Some(7), pid: 8, name: Some("eve".into()), groups: vec![7], group_names: vec![] }
    }

    fn append(trail: &Trail, path: &str, refused: Option<&str>) {
        trail.append(&Entry { peer: &peer(), method: "POST", path, refused, status: 403 }).unwrap();
    }

    #[test]
    fn a_line_per_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        append(&Trail::open(&path).unwrap(), "/a\n\"b", Some("no"));
        append(&Trail::open(&path).unwrap(), &"é".repeat(2000), None);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&lines[0]["path"], &lines[0]["decision"], &lines[0]["reason"]),
            (&json!("/a\n\"b"), &json!("refused"), &json!("no"))
        );
        assert_eq!(
            (&lines[0]["uid"], &lines[0]["pid"], &lines[0]["user"], &lines[0]["status"]),
            (&json!(7), &json!(8), &json!("eve"), &json!(403))
        );
        assert!(lines[1]["path"].as_str().unwrap().len() <= LONGEST && lines[1].get("reason").is_none());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let trail = Trail::with_limit(&path, 400).unwrap();
        for number in 0..40 {
            append(&trail, &format!("/{number}"), None);
        }
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"]);
        for name in names {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= 400);
        }
        assert!(std::fs::read_to_string(&path).unwrap().contains("/39"));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("other"), dir.path().join("audit.log")).unwrap();
        assert!(Trail::open(&dir.path().join("audit.log")).is_err());
    }
}
