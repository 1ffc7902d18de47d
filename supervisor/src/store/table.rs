//! Tables of typed records, and the transactions in which they are read and changed.

use std::{
    cell::{Cell, RefCell},
    marker::PhantomData,
};

use redb::{ReadableTable, TableDefinition, TableError, TableHandle};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    StoreError,
    journal::{Changes, Record},
};

/// How values of type `T` become bytes.
pub(crate) trait Codec<T> {
    /// The bytes of `value`.
    fn encode(value: &T) -> Result<Vec<u8>, String>;
    /// The value that `bytes` hold.
    fn decode(bytes: &[u8]) -> Result<T, String>;
}

/// Values as JSON.
pub(crate) struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(value: &T) -> Result<Vec<u8>, String> {
        serde_json::to_vec(value).map_err(|e| e.to_string())
    }

    fn decode(bytes: &[u8]) -> Result<T, String> {
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }
}

/// Values as protobuf messages.
pub(crate) struct Proto;

impl<T: prost::Message + Default> Codec<T> for Proto {
    fn encode(value: &T) -> Result<Vec<u8>, String> {
        Ok(value.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<T, String> {
        T::decode(bytes).map_err(|e| e.to_string())
    }
}

/// A table of records: `const IMAGES: Table<Record> = Table::new("images");`
pub(crate) struct Table<T, C = Json> {
    name: &'static str,
    types: PhantomData<fn(T, C)>,
}

impl<T, C: Codec<T>> Table<T, C> {
    /// A table by its name in the database; it comes into being with its first record.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
        let damaged = |why| StoreError::Damaged { table: self.name, key: key.replace('\0', "/"), why };
        C::decode(bytes).map_err(damaged)
    }

    /// The record under `namespace` and `key`.
    pub(crate) fn get(&self, tx: &impl Reader, namespace: &str, key: &str) -> Result<Option<T>, StoreError> {
        let full = full_key(namespace, key);
        tx.get_bytes(self.name, &full)?.map(|bytes| self.decode(&full, &bytes)).transpose()
    }

    /// Every record of a namespace whose key begins with `prefix`, in the order of the keys.
    pub(crate) fn list(&self, tx: &impl Reader, namespace: &str, prefix: &str) -> Result<Vec<(String, T)>, StoreError> {
        let start = full_key(namespace, prefix);
        let skip = namespace.len() + 1;
        tx.scan_bytes(self.name, &start)?
            .into_iter()
            .map(|(full, bytes)| Ok((full[skip..].to_owned(), self.decode(&full, &bytes)?)))
            .collect()
    }

    /// Every record of every namespace: namespace, key, record.
    pub(crate) fn list_all(&self, tx: &impl Reader) -> Result<Vec<(String, String, T)>, StoreError> {
        tx.scan_bytes(self.name, "")?
            .into_iter()
            .map(|(full, bytes)| {
                let (namespace, key) = full.split_once('\0').unwrap_or(("", &full));
                Ok((namespace.to_owned(), key.to_owned(), self.decode(&full, &bytes)?))
            })
            .collect()
    }

    /// Writes the record, whether there was one or not.
    pub(crate) fn put(&self, tx: &WriteTx, namespace: &str, key: &str, value: &T) -> Result<(), StoreError> {
        let full = full_key(namespace, key);
        let bytes = C::encode(value).map_err(|why| StoreError::Damaged {
            table: self.name,
            key: full.replace('\0', "/"),
            why,
        })?;
        let mut table = tx.0.open_table(definition(self.name)).map_err(|error| tx.failed(error))?;
        table.insert(full.as_str(), bytes.as_slice()).map_err(|error| tx.failed(error))?;
        tx.2.borrow_mut().note(self.name, &full, Some(&bytes));
        Ok(())
    }

    /// Removes the record; tells whether there was one.
    pub(crate) fn remove(&self, tx: &WriteTx, namespace: &str, key: &str) -> Result<bool, StoreError> {
        self.remove_full(tx, &full_key(namespace, key))
    }

    /// Removes a record by its complete key.
    pub(crate) fn remove_full(&self, tx: &WriteTx, full: &str) -> Result<bool, StoreError> {
        let mut table = tx.0.open_table(definition(self.name)).map_err(|error| tx.failed(error))?;
        let found = table.remove(full).map_err(|error| tx.failed(error))?.is_some();
        if found {
            tx.2.borrow_mut().note(self.name, full, None);
        }
        Ok(found)
    }

    /// Every record that can be read; and those that can't, by complete key, with their bytes and the reason.
    pub(crate) fn examine(&self, tx: &impl Reader) -> Result<Examined<T>, StoreError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (full, bytes) in tx.scan_bytes(self.name, "")? {
            match (full.split_once('\0'), C::decode(&bytes)) {
                (Some((namespace, key)), Ok(record)) => good.push((namespace.to_owned(), key.to_owned(), record)),
                (None, Ok(_)) => bad.push((full, bytes, "its key has no namespace".to_owned())),
                (_, Err(why)) => bad.push((full, bytes, why)),
            }
        }
        Ok((good, bad))
    }
}

/// Namespace, key and record of what is well; complete key, bytes and reason of what is not.
pub(crate) type Examined<T> = (Vec<(String, String, T)>, Vec<(String, Vec<u8>, String)>);

pub(super) fn definition(name: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(name)
}

fn full_key(namespace: &str, key: &str) -> String {
    format!("{namespace}\0{key}")
}

/// A transaction in which records can be read.
pub(crate) trait Reader {
    /// The bytes under a complete key.
    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Every record whose complete key begins with `prefix`.
    fn scan_bytes(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
}

/// A view of one moment.
pub(crate) struct ReadTx(pub(super) redb::ReadTransaction);
/// A change, made whole or not at all.
///
/// Remembers whether the database itself failed, and what has changed.
pub(crate) struct WriteTx(pub(super) redb::WriteTransaction, pub(super) Cell<bool>, pub(super) RefCell<Changes>);

impl ReadTx {
    /// Every record there is.
    pub(super) fn everything(&self) -> Result<Vec<Record>, StoreError> {
        let mut all = Vec::new();
        for table in self.0.list_tables().map_err(StoreError::database)? {
            let records = self.scan_bytes(table.name(), "")?;
            all.extend(records.into_iter().map(|(key, value)| (table.name().to_owned(), key, value)));
        }
        Ok(all)
    }
}

fn get_in(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(table.get(key).map_err(StoreError::database)?.map(|value| value.value().to_vec()))
}

fn scan_in(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let mut found = Vec::new();
    for entry in table.range::<&str>(prefix..).map_err(StoreError::database)? {
        let (key, value) = entry.map_err(StoreError::database)?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(found)
}

impl Reader for ReadTx {
    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.0.open_table(definition(table)) {
            Ok(table) => get_in(&table, key),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(StoreError::database(error)),
        }
    }

    fn scan_bytes(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        match self.0.open_table(definition(table)) {
            Ok(table) => scan_in(&table, prefix),
            Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
            Err(error) => Err(StoreError::database(error)),
        }
    }
}

impl WriteTx {
    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        self.1.set(true);
        StoreError::database(error)
    }
}

impl Reader for WriteTx {
    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        get_in(&self.0.open_table(definition(table)).map_err(StoreError::database)?, key)
    }

    fn scan_bytes(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        scan_in(&self.0.open_table(definition(table)).map_err(StoreError::database)?, prefix)
    }
}
