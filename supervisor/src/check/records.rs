//! Records that can't be read, and names that lead nowhere.

use std::collections::BTreeMap;

use super::{Check, CheckError, Database, StoreError, names};
use crate::{
    containers::CONTAINERS,
    content::CONTENT,
    cri,
    images::IMAGES,
    snapshots::SNAPSHOTS,
    store::{Codec, Table},
};

impl Check {
    /// Takes out what can't be read: one bad record would spoil every list.
    pub(super) fn records(&mut self, db: &Database) -> Result<(), CheckError> {
        self.table(db, "image", &IMAGES)?;
        self.table(db, "content", &CONTENT)?;
        self.table(db, "snapshot", &SNAPSHOTS)?;
        self.table(db, "container", &CONTAINERS)?;
        self.table(db, "CRI sandbox", &cri::SANDBOXES)?;
        self.table(db, "CRI container", &cri::CONTAINERS)?;
        self.table(db, "CRI name", &cri::NAMES)?;
        self.table(db, "CRI node", &cri::NODE)
    }

    fn table<T, C: Codec<T>>(&mut self, db: &Database, kind: &str, table: &Table<T, C>) -> Result<(), CheckError> {
        let (_, bad) = db.read(|tx| table.examine(tx))?;
        for (number, (full, bytes, why)) in bad.into_iter().enumerate() {
            let name = full.replace('\0', "/");
            self.tell(format_args!("{kind} record {name:?} is damaged: {why}"), Some("moved aside"));
            if self.repair {
                self.keep(&format!("records/{kind}-{number}"), &bytes)?;
                db.write(|tx| table.remove_full(tx, &full).map(drop).map_err(CheckError::from))?;
            }
        }
        Ok(())
    }

    /// Images whose manifest isn't there. Only a pull can help them, and it needs the name.
    pub(super) fn images(&mut self, db: &Database) -> Result<(), CheckError> {
        let read = db.read(|tx| Ok::<_, StoreError>((IMAGES.list_all(tx)?, CONTENT.list_all(tx)?)));
        let (images, content) = read?;
        let known: std::collections::HashSet<_> = content.iter().map(|(ns, digest, _)| (ns, digest)).collect();
        let mut missing = BTreeMap::<String, Vec<String>>::new();
        for (namespace, name, record) in &images {
            let digest = record.target.digest.to_string();
            if !known.contains(&(namespace, &digest)) {
                missing.entry(digest).or_default().push(format!("{namespace}/{name}"));
            }
        }
        for (digest, images) in missing {
            // Not counted as left: the next pull is the repair.
            println!("manifest {digest} is not there; to be pulled again: {}", names(&images));
        }
        Ok(())
    }
}
