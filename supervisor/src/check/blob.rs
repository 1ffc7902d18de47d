//! One blob's file against its name: what the offline check and `Verify` have in common.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, Read},
    path::Path,
};

use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::{content::Info, images::Record, store::Labels};

const CHUNK: usize = 1 << 18;

/// What is wrong with a blob's file, if something is: the end of a sentence that begins with its name. `go_on` is asked
/// before each chunk; a blob that was given up is taken for sound.
pub(super) fn wrong(file: &Path, name: &str, size: u64, go_on: &dyn Fn() -> bool) -> io::Result<Option<String>> {
    let mut open = match File::open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("is missing".into())),
        Err(error) => return Err(error),
    };
    let length = open.metadata()?.len();
    if length != size {
        return Ok(Some(format!("is {length} bytes long instead of {size}")));
    }
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        if !go_on() {
            return Ok(None);
        }
        match open.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A sector that can't be read: the blob is as bad as one with other bytes.
            Err(error) => return Ok(Some(format!("can't be read ({error})"))),
        }
    }
    let actual = Digest::from_bytes(hasher.finalize().into()).to_string();
    Ok((actual != name).then(|| format!("is damaged (its bytes have the digest {actual})")))
}

/// Who needs what.
pub(super) struct Users<'a> {
    labels: HashMap<(&'a str, &'a str), &'a Labels>,
    /// By digest: namespace and name of the images that need it.
    pub(super) of_blob: HashMap<String, BTreeSet<(String, String)>>,
    /// By `SNAPSHOTTER/KEY`: the images whose labels name it. What it stands on isn't entered.
    pub(super) of_snapshot: HashMap<String, BTreeSet<(String, String)>>,
}

impl<'a> Users<'a> {
    /// Follows the labels of blobs from every image.
    pub(super) fn find(records: &'a [(String, String, Info)], images: &[(String, String, Record)]) -> Self {
        let labels =
            records.iter().map(|(namespace, digest, info)| ((&**namespace, &**digest), &info.labels)).collect();
        let mut users = Self { labels, of_blob: HashMap::new(), of_snapshot: HashMap::new() };
        for (namespace, name, image) in images {
            users.follow(namespace, name, image.target.digest.to_string());
        }
        users
    }

    fn follow(&mut self, namespace: &str, name: &str, target: String) {
        let (image, mut todo) = ((namespace.to_owned(), name.to_owned()), vec![target]);
        while let Some(digest) = todo.pop() {
            if !self.of_blob.entry(digest.clone()).or_default().insert(image.clone()) {
                continue;
            }
            for (label, value) in self.labels.get(&(namespace, digest.as_str())).into_iter().flat_map(|l| l.iter()) {
                if label.starts_with("containerd.io/gc.ref.content") {
                    todo.push(value.clone());
                } else if let Some(driver) = label.strip_prefix("containerd.io/gc.ref.snapshot.") {
                    let driver = driver.split(['.', '/']).next().unwrap_or(driver);
                    self.of_snapshot.entry(format!("{driver}/{value}")).or_default().insert(image.clone());
                }
            }
        }
    }
}
