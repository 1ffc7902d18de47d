//! One ingest: bytes are hashed as they are written, so that a commit only compares, syncs and renames.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::digest::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Claim, Content, ContentError,
    arriving::{Arriving, Growth},
    commit::Ready,
};
use crate::store::{Labels, Time};

/// Bytes that are gathered before the kernel is asked to begin writing them to the disk.
const PUSH: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Ticket {
    namespace: String,
    reference: String,
    total: u64,
    expected: Option<Digest>,
    started_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
}

/// How far an ingest is.
#[derive(Debug, Clone)]
pub(crate) struct IngestStatus {
    /// Whose it is.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) reference: String,
    /// Bytes written so far.
    pub(crate) offset: u64,
    /// Bytes expected; 0 if unknown.
    pub(crate) total: u64,
    /// The digest expected.
    pub(crate) expected: Option<Digest>,
    /// When it began.
    pub(crate) started_at: Time,
    /// When it was last written to.
    pub(crate) updated_at: Time,
    /// The lease under which it was begun.
    pub(crate) lease: Option<String>,
}

impl IngestStatus {
    /// Reads the status from an ingest's folder; `None` if it isn't there (any more).
    pub(crate) fn load(folder: &Path) -> Result<Option<Self>, ContentError> {
        let (Ok(ticket), Ok(data)) = (fs::read(folder.join("ticket")), fs::metadata(folder.join("data"))) else {
            return Ok(None);
        };
        // A ticket cut short by a crash makes the ingest unknown; its folder ages out.
        let Ok(ticket) = serde_json::from_slice::<Ticket>(&ticket) else { return Ok(None) };
        Ok(Some(Self {
            namespace: ticket.namespace,
            reference: ticket.reference,
            offset: data.len(),
            total: ticket.total,
            expected: ticket.expected,
            started_at: ticket.started_at,
            updated_at: data.modified().map_or(ticket.started_at, Time::from),
            lease: ticket.lease,
        }))
    }
}

/// The folder of an ingest: references hold slashes and more, hence the digest.
pub(super) fn ingest_folder(content: &Content, namespace: &str, reference: &str) -> PathBuf {
    content.ingests.join(Digest::of(format!("{namespace}\0{reference}").as_bytes()).hex())
}

/// The one writer of an ingest; dropped without commit, the bytes stay for a later one, unless the disk had no room for more:
/// half of a blob must not keep a full disk full.
pub(crate) struct Writer {
    content: Arc<Content>,
    namespace: String,
    reference: String,
    lease: Option<String>,
    folder: PathBuf,
    data: File,
    hasher: Sha256,
    offset: u64,
    total: u64,
    expected: Option<Digest>,
    started_at: Time,
    no_room: bool,
    // Up to where the kernel was asked to write to the disk.
    pushed: u64,
    growth: Option<Arc<Growth>>,
    // The last to go: until then nobody else takes the folder.
    _claim: Claim,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(growth) = &self.growth {
            growth.given_up();
        }
        if self.no_room
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(reference = self.reference, %error, "ingest that found no room left to the collector");
        }
    }
}

impl Writer {
    pub(super) fn open(
        content: Arc<Content>,
        namespace: &str,
        reference: &str,
        total: u64,
        expected: Option<Digest>,
        lease: Option<&str>,
    ) -> Result<Self, ContentError> {
        let folder = ingest_folder(&content, namespace, reference);
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let claim = content.claim(&name).ok_or_else(|| ContentError::Locked(reference.to_owned()))?;
        let failed = |cause| ContentError::Io { what: format!("open ingest {reference:?}"), cause };
        let (started_at, total) = match IngestStatus::load(&folder)? {
            Some(status) if total == 0 || status.total == 0 || status.total == total => {
                (status.started_at, total.max(status.total))
            }
            _ => {
                // Nothing there, or something of another size under the same name: begin anew.
                let _ = fs::remove_dir_all(&folder);
                fs::create_dir(&folder).map_err(failed)?;
                let ticket = Ticket {
                    namespace: namespace.to_owned(),
                    reference: reference.to_owned(),
                    total,
                    expected,
                    started_at: Time::now(),
                    lease: lease.map(str::to_owned),
                };
                let json = serde_json::to_vec(&ticket).map_err(|e| failed(e.into()))?;
                fs::write(folder.join("ticket"), json).map_err(failed)?;
                (ticket.started_at, total)
            }
        };
        let mut data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join("data"))
            .map_err(failed)?;
        let mut hasher = Sha256::new();
        let offset = hash_up_to(&mut data, &mut hasher, u64::MAX).map_err(failed)?;
        Ok(Self {
            content,
            namespace: namespace.to_owned(),
            reference: reference.to_owned(),
            lease: lease.map(str::to_owned),
            folder,
            data,
            hasher,
            offset,
            total,
            expected,
            started_at,
            no_room: false,
            pushed: offset,
            growth: None,
            _claim: claim,
        })
    }

    /// Bytes written so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Its name.
    pub(crate) fn reference(&self) -> &str {
        &self.reference
    }

    /// The lease under which it is written.
    pub(super) fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// A reader that follows this writer from the first byte.
    pub(crate) fn follow(&mut self) -> Result<Arriving, ContentError> {
        let growth = self.growth.get_or_insert_with(|| Arc::new(Growth::default()));
        growth.grown(self.offset);
        let what = || format!("read ingest {:?}", self.reference);
        Arriving::open(&self.folder.join("data"), growth.clone())
            .map_err(|cause| ContentError::Io { what: what(), cause })
    }

    /// Gives the ingest up, with what it holds.
    pub(crate) fn abort(self) -> Result<(), ContentError> {
        let what = format!("remove ingest {:?}", self.reference);
        fs::remove_dir_all(&self.folder).map_err(|cause| ContentError::Io { what, cause })
    }

    /// How far it is.
    pub(crate) fn status(&self) -> IngestStatus {
        IngestStatus {
            namespace: self.namespace.clone(),
            reference: self.reference.clone(),
            offset: self.offset,
            total: self.total,
            expected: self.expected,
            started_at: self.started_at,
            updated_at: Time::now(),
            lease: self.lease.clone(),
        }
    }

    /// The digest of what is written so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        self.data.write_all(bytes).map_err(|cause| {
            // A short write may have moved the end; what is hashed and what is there must agree.
            let _ = self.data.set_len(self.offset);
            let _ = self.data.seek(SeekFrom::Start(self.offset));
            self.no_room = matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            ContentError::Io { what: format!("write content of {:?}", self.reference), cause }
        })?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        if let Some(growth) = &self.growth {
            growth.grown(self.offset);
        }
        // The disk works while more arrives, so that the commit finds little left to wait for.
        if self.offset - self.pushed >= PUSH {
            if let Err(errno) = sys::writeback::start(&self.data, self.pushed, self.offset - self.pushed) {
                tracing::debug!(reference = self.reference, %errno, "early write-back refused");
            }
            self.pushed = self.offset;
        }
        Ok(())
    }

    /// Goes to `offset`, which lies before the end or at it, and drops what is behind.
    pub(crate) fn seek(&mut self, offset: u64) -> Result<(), ContentError> {
        if offset == self.offset {
            return Ok(());
        }
        if offset > self.offset {
            return Err(ContentError::Offset { reference: self.reference.clone(), offset, size: self.offset });
        }
        let failed = |cause| ContentError::Io { what: format!("truncate ingest {:?}", self.reference), cause };
        self.data.set_len(offset).map_err(failed)?;
        self.hasher = Sha256::new();
        if let Some(growth) = &self.growth {
            growth.cut(offset);
        }
        self.offset = hash_up_to(&mut self.data, &mut self.hasher, offset).map_err(failed)?;
        self.pushed = self.pushed.min(self.offset);
        Ok(())
    }

    /// Makes the ingest a blob: compares, syncs, puts it in place and records it.
    ///
    /// A `size` of 0 means unknown. Bytes that are not what was promised are dropped: resuming them would never help.
    pub(crate) fn commit(self, size: u64, expected: Option<Digest>, labels: &Labels) -> Result<Digest, ContentError> {
        let actual = self.digest();
        let size = if size == 0 { self.total } else { size };
        let refuse = |error| {
            let _ = fs::remove_dir_all(&self.folder);
            Err(error)
        };
        if size != 0 && size != self.offset {
            let reference = self.reference.clone();
            return refuse(ContentError::WrongSize { reference, actual: self.offset, expected: size });
        }
        if let Some(expected) = expected.or(self.expected)
            && expected != actual
        {
            return refuse(ContentError::WrongDigest { reference: self.reference.clone(), actual, expected });
        }
        if let Some(growth) = &self.growth {
            growth.complete();
        }
        // Its bytes go to the disk beside those of others that are committed at the same moment.
        if let Err(errno) = sys::writeback::start(&self.data, self.pushed, 0) {
            tracing::debug!(reference = self.reference, %errno, "early write-back refused");
        }
        self.content.commits.commit(
            &self.content,
            Ready {
                namespace: self.namespace.clone(),
                digest: actual,
                size: self.offset,
                labels: labels.clone(),
                lease: self.lease.clone(),
                data: self
                    .data
                    .try_clone()
                    .map_err(|cause| ContentError::Io { what: format!("store content {actual}"), cause })?,
                folder: self.folder.clone(),
            },
        )
    }
}

// Reads from the start and leaves the file there; gives how much there was.
fn hash_up_to(file: &mut File, hasher: &mut Sha256, end: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut chunk = vec![0; 256 << 10];
    let mut done = 0;
    while done < end {
        let want = chunk.len().min(usize::try_from(end - done).unwrap_or(usize::MAX));
        match file.read(&mut chunk[..want])? {
            0 => break,
            n => {
                hasher.update(&chunk[..n]);
                done += n as u64;
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stores;

    fn stores() -> (tempfile::TempDir, Arc<Stores>) {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
        (dir, stores)
    }

    fn ingests(dir: &tempfile::TempDir) -> usize {
        fs::read_dir(dir.path().join("supervisor/content/ingest")).unwrap().count()
    }

    #[test]
    fn resumes_where_it_was_left_and_commits_once() {
        let (dir, stores) = stores();
        let content = &stores.content;
        let digest = Digest::of(b"hello world");
        let mut writer = content.writer("ns", "layer", 11, Some(digest), None).unwrap();
        writer.write(b"hello ").unwrap();
        assert!(matches!(content.writer("ns", "layer", 11, None, None), Err(ContentError::Locked(_))));
        drop(writer);
        assert_eq!(content.status("ns", "layer").unwrap().offset, 6);
        assert!(content.status("other", "layer").is_err());
        let mut writer = content.writer("ns", "layer", 11, Some(digest), None).unwrap();
        assert_eq!(writer.offset(), 6);
        writer.seek(2).unwrap();
        assert!(writer.seek(5).is_err());
        writer.write(b"llo world").unwrap();
        assert_eq!(writer.commit(11, Some(digest), &Labels::new()).unwrap(), digest);
        assert_eq!(content.read_all("ns", &digest, 100).unwrap(), b"hello world");
        assert!(matches!(content.read_all("ns", &digest, 10), Err(ContentError::TooBig { .. })));
        assert!(matches!(content.writer("ns", "again", 11, Some(digest), None), Err(ContentError::Exists(_))));
        assert_eq!(ingests(&dir), 0);
    }

    #[test]
    fn wrong_bytes_are_refused_and_dropped() {
        let (dir, stores) = stores();
        let content = &stores.content;
        let wanted = Digest::of(b"right");
        let mut writer = content.writer("ns", "x", 5, Some(wanted), None).unwrap();
        writer.write(b"wrong").unwrap();
        let error = writer.commit(5, Some(wanted), &Labels::new()).unwrap_err().to_string();
        assert!(error.contains(&wanted.to_string()) && error.contains(&Digest::of(b"wrong").to_string()), "{error}");
        let mut writer = content.writer("ns", "x", 9, Some(wanted), None).unwrap();
        writer.write(b"right").unwrap();
        assert!(matches!(writer.commit(9, None, &Labels::new()), Err(ContentError::WrongSize { .. })));
        assert_eq!(ingests(&dir), 0);
        assert!(!content.has("ns", &wanted).unwrap());
    }

    #[test]
    fn a_file_lives_as_long_as_one_namespace_has_it() {
        let (_dir, stores) = stores();
        let content = &stores.content;
        let digest = content.put("one", b"shared", &Labels::new(), None).unwrap();
        assert!(content.reader("two", &digest).is_err());
        assert!(matches!(content.writer("two", "r", 6, Some(digest), None), Err(ContentError::Exists(_))));
        content.delete("one", &digest).unwrap();
        assert!(content.reader("one", &digest).is_err());
        assert_eq!(content.read_all("two", &digest, 10).unwrap(), b"shared");
        content.delete("two", &digest).unwrap();
        assert!(!content.file_of(&digest).exists());
    }

    #[test]
    fn leftovers_are_swept() {
        let (dir, stores) = stores();
        let content = &stores.content;
        let kept = content.put("ns", b"kept", &Labels::new(), None).unwrap();
        let stray = content.file_of(&Digest::of(b"stray"));
        fs::write(&stray, "half").unwrap();
        drop(content.writer("ns", "old", 0, None, None).unwrap());
        content.sweep_blobs().unwrap();
        let minute = std::time::Duration::from_secs(60);
        assert_eq!(content.sweep_ingests(minute, &Default::default()).unwrap().0, 0);
        assert_eq!((stray.exists(), ingests(&dir)), (false, 1));
        assert_eq!(content.sweep_ingests(std::time::Duration::ZERO, &Default::default()).unwrap().0, 1);
        assert_eq!(ingests(&dir), 0);
        assert!(content.has("ns", &kept).unwrap());
    }
}
