//! The database: whether it is well; and a new one of its journal, if it is not.

use std::fs;

use super::{Check, CheckError, Config, Database, StoreError, entries};
use crate::store::{is_empty, marker, read_journal};

impl Check {
    /// The database, as it is or rebuilt; `None` if there is none to go on with.
    pub(super) fn database(&mut self, config: &Config) -> Result<Option<Database>, CheckError> {
        let file = self.data.join("metadata.redb");
        let blobs = !entries(&self.data.join("content/blobs/sha256"))?.is_empty();
        if is_empty(&file) && !file.with_extension("journal").exists() && !blobs {
            return Ok(None); // nobody has worked here yet
        }
        let lost = is_empty(&file);
        let opened =
            if lost { Err(StoreError::Lost { file: file.clone() }) } else { Database::open(&file, &config.data_root) };
        let why = match opened {
            Ok(database) => return Ok(Some(database)),
            Err(StoreError::Corrupt { why, .. }) => format!("damaged ({why})"),
            Err(StoreError::Lost { .. }) => "missing or empty".to_owned(),
            Err(error) => return Err(error.into()),
        };
        let at = file.with_extension("journal");
        let journal = read_journal(&at).map_err(CheckError::file("read", &at))?;
        let (count, whole) = journal.as_ref().map_or((0, false), |found| (found.records.len(), found.whole));
        self.incomplete = !whole;
        let done = match (&journal, whole) {
            (Some(_), true) => format!("rebuilt from its journal, all {count} records"),
            (Some(_), false) => format!("rebuilt from its journal up to where that is damaged, {count} records"),
            (None, _) => {
                "begun anew, without a journal to rebuild it from; blobs are kept as recovered images".to_owned()
            }
        };
        self.tell(format_args!("metadata database {}: {why}", file.display()), Some(&done));
        if !self.repair {
            return Ok(None);
        }
        self.set_aside(&file)?;
        self.set_aside(&at)?;
        Database::restore(&file, journal.unwrap_or_default().records)?;
        match fs::remove_file(marker(&file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CheckError::file("remove", &marker(&file))(error));
            }
            _ => {}
        }
        Ok(Some(Database::open(&file, &config.data_root)?))
    }
}
