//! Blobs: each is read whole and compared with its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proto::digest::Digest;

use super::{
    Check, CheckError, Database, StoreError,
    blob::{self, Users},
    entries, names,
};
use crate::{
    content::{CONTENT, Info},
    images::{
        self, IMAGES,
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
        let users = Users::find(&records, &images).of_blob;
        let mut by_digest = BTreeMap::<&String, (u64, Vec<&String>)>::new();
        for (namespace, digest, info) in &records {
            by_digest.entry(digest).or_insert((info.size, Vec::new())).1.push(namespace);
        }
        let folder = self.data.join("content/blobs/sha256");
        for (name, (size, namespaces)) in &by_digest {
            let file = folder.join(name.strip_prefix("sha256:").unwrap_or(name));
            let Some(why) = wrong(&file, name, *size)? else { continue };
            let none = BTreeSet::new();
            let users = users.get(*name).unwrap_or(&none);
            let users: Vec<_> = users.iter().map(|(namespace, name)| format!("image {namespace}/{name}")).collect();
            let users = names(&users);
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
                    let record = images::Record { target, labels, created_at: now, updated_at: now };
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

fn wrong(file: &Path, name: &str, size: u64) -> Result<Option<String>, CheckError> {
    blob::wrong(file, name, size, &|| true).map_err(CheckError::file("read", file))
}
