//! Blobs: each is read whole and compared with its name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{self, Read},
    path::Path,
};

use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::{Check, CheckError, Database, StoreError, entries, names};
use crate::{
    content::{CONTENT, Info},
    images::{
        IMAGES, Record,
        manifest::{Descriptor, Document, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST},
    },
    namespaces,
    store::{Labels, Time},
};

/// Where what was found without a record is put.
const RECOVERED: &str = "berth";

impl Check {
    /// Looks at every blob: those with records, and those without.
    pub(super) fn content(&mut self, db: &Database) -> Result<(), CheckError> {
        let read = db.read(|tx| Ok::<_, StoreError>((CONTENT.list_all(tx)?, IMAGES.list_all(tx)?)));
        let (records, images) = read?;
        let users = users(&records, &images);
        let mut by_digest = BTreeMap::<&String, (u64, Vec<&String>)>::new();
        for (namespace, digest, info) in &records {
            by_digest.entry(digest).or_insert((info.size, Vec::new())).1.push(namespace);
        }
        let folder = self.data.join("content/blobs/sha256");
        for (name, (size, namespaces)) in &by_digest {
            let file = folder.join(name.strip_prefix("sha256:").unwrap_or(name));
            let Some(why) = wrong(&file, name, *size)? else { continue };
            let none = BTreeSet::new();
            let users = names(users.get(*name).unwrap_or(&none));
            let what = format!("blob {name} {why}; it is part of {users}");
            self.tell(what, Some("record dropped, so that the next pull fetches it anew"));
            if self.repair {
                self.set_aside(&file)?;
                db.write(|tx| {
                    let mut each = namespaces.iter();
                    each.try_for_each(|namespace| CONTENT.remove(tx, namespace, name).map(drop))
                })
                .map_err(|error: StoreError| CheckError::from(error))?;
            }
        }
        let strays: Vec<String> = entries(&folder)?
            .into_iter()
            .map(|hex| format!("sha256:{hex}"))
            .filter(|name| !by_digest.contains_key(name))
            .collect();
        if self.incomplete { self.recover(db, &folder, &strays) } else { Ok(()) }
    }

    /// Gives blobs that no record knows a record again, and names to those that stand at the top.
    fn recover(&mut self, db: &Database, folder: &Path, strays: &[String]) -> Result<(), CheckError> {
        let mut sound = Vec::<(Digest, u64, Labels, Option<Descriptor>)>::new();
        for name in strays {
            let Ok(digest) = name.parse::<Digest>() else { continue };
            let file = folder.join(digest.hex());
            let size = file.metadata().map_err(CheckError::file("look at", &file))?.len();
            if let Some(why) = wrong(&file, name, size)? {
                self.tell(format_args!("blob {name} {why}"), Some("moved aside"));
                if self.repair {
                    self.set_aside(&file)?;
                }
                continue;
            }
            let document = document(&file, digest, size)?;
            let labels = document.as_ref().map(Document::gc_labels).unwrap_or_default();
            let target = document.map(|document| Descriptor::new(media_type(&document), digest, size));
            sound.push((digest, size, labels, target));
        }
        // What another one refers to needs no name of its own.
        let below: BTreeSet<String> = sound.iter().flat_map(|(_, _, labels, _)| labels.values().cloned()).collect();
        let now = Time::now();
        db.write(|tx| {
            for (digest, size, labels, target) in &sound {
                let key = digest.to_string();
                let info = Info { size: *size, created_at: now, updated_at: now, labels: labels.clone() };
                CONTENT.put(tx, RECOVERED, &key, &info)?;
                if let Some(target) = target.as_ref().filter(|_| !below.contains(&key)) {
                    let (labels, target) = (Labels::new(), target.clone());
                    let record = Record { target, labels, created_at: now, updated_at: now };
                    IMAGES.put(tx, RECOVERED, &format!("recovered@{key}"), &record)?;
                }
            }
            if sound.is_empty() { Ok(()) } else { namespaces::touch_in(tx, RECOVERED) }
        })?;
        let images =
            sound.iter().filter(|(digest, _, _, target)| target.is_some() && !below.contains(&digest.to_string()));
        for (digest, ..) in images {
            println!("image {RECOVERED}/recovered@{digest}: found by its blobs; give it its name again");
        }
        Ok(())
    }
}

fn media_type(document: &Document) -> &'static str {
    match document {
        Document::Manifest(_) => OCI_MANIFEST,
        Document::Index(_) => OCI_INDEX,
    }
}

/// The manifest or index that a file holds, if it does.
fn document(file: &Path, digest: Digest, size: u64) -> Result<Option<Document>, CheckError> {
    if size > MANIFEST_LIMIT {
        return Ok(None);
    }
    let bytes = std::fs::read(file).map_err(CheckError::file("read", file))?;
    let is_document = bytes.trim_ascii_start().starts_with(b"{");
    Ok(if is_document { Document::parse(&bytes, digest, "").ok() } else { None })
}

/// What is wrong with a blob's file, if something is.
fn wrong(file: &Path, name: &str, size: u64) -> Result<Option<String>, CheckError> {
    let mut open = match File::open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("is missing".into())),
        Err(error) => return Err(CheckError::file("open", file)(error)),
    };
    let length = open.metadata().map_err(CheckError::file("look at", file))?.len();
    if length != size {
        return Ok(Some(format!("is {length} bytes long instead of {size}")));
    }
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match open.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            // A sector that can't be read: the blob is as bad as one with other bytes.
            Err(error) => return Ok(Some(format!("can't be read ({error})"))),
        }
    }
    let actual = Digest::from_bytes(hasher.finalize().into()).to_string();
    Ok((actual != name).then(|| format!("is damaged (its bytes have the digest {actual})")))
}

/// By digest: the images that need it.
fn users(records: &[(String, String, Info)], images: &[(String, String, Record)]) -> HashMap<String, BTreeSet<String>> {
    let labels: HashMap<(&str, &str), &Labels> =
        records.iter().map(|(namespace, digest, info)| ((&**namespace, &**digest), &info.labels)).collect();
    let mut users = HashMap::<String, BTreeSet<String>>::new();
    for (namespace, name, image) in images {
        let (name, mut todo) = (format!("image {namespace}/{name}"), vec![image.target.digest.to_string()]);
        while let Some(digest) = todo.pop() {
            if !users.entry(digest.clone()).or_default().insert(name.clone()) {
                continue;
            }
            let references = labels.get(&(namespace, &digest)).into_iter().flat_map(|labels| labels.iter());
            let content = references.filter(|(label, _)| label.starts_with("containerd.io/gc.ref.content"));
            todo.extend(content.map(|(_, digest)| digest.clone()));
        }
    }
    users
}
