//! Records on disk. One thread writes; what queues up while it syncs goes into one transaction, so that many
//! containers cost few fsyncs.

use super::record::Record;
use crate::networks::Definition;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    path::{Path, PathBuf},
    sync::mpsc,
};
use tokio::sync::oneshot;
use tracing::{error, warn};

const CONTAINERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("containers");
const NETWORKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("networks");
/// Writes that share one transaction at most.
const BATCH: usize = 256;

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("open container store {path}")]
    Open {
        path: PathBuf,
        #[source]
        cause: Box<redb::Error>,
    },
    #[error("start the writer of the container store")]
    Thread(#[source] std::io::Error),
    #[error("write {id} to the store: {cause}")]
    Write { id: String, cause: String },
}

/// The store. Its thread ends, with everything written, when it is dropped.
#[derive(Debug)]
pub struct Store {
    writes: Option<mpsc::Sender<Write>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
    Container,
    Network,
}

struct Write {
    thing: Thing,
    id: String,
    /// None removes.
    record: Option<Vec<u8>>,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

impl Store {
    /// Opens or makes the store, and reads all records. One that cannot be read is left alone and reported.
    pub fn open(path: &Path) -> Result<(Self, Vec<Record>, Vec<Definition>), StoreError> {
        let failed = |cause: redb::Error| StoreError::Open { path: path.to_owned(), cause: Box::new(cause) };
        let database = redb::Builder::new().set_cache_size(4 << 20).create(path).map_err(|e| failed(e.into()))?;
        let records = read_all(&database, CONTAINERS).map_err(failed)?;
        let networks = read_all(&database, NETWORKS).map_err(failed)?;
        let (writes, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_all(&database, &queue))
            .map_err(StoreError::Thread)?;
        Ok((Self { writes: Some(writes), thread: Some(thread) }, records, networks))
    }

    /// Keeps a record; durable when it returns.
    pub async fn put(&self, record: &Record) -> Result<(), StoreError> {
        self.write(Thing::Container, &record.id, Some(encode(&record.id, record)?)).await
    }

    /// Keeps a network; durable when it returns.
    pub async fn put_network(&self, network: &Definition) -> Result<(), StoreError> {
        self.write(Thing::Network, &network.id, Some(encode(&network.id, network)?)).await
    }

    /// Forgets a network; durable when it returns.
    pub async fn remove_network(&self, id: &str) -> Result<(), StoreError> {
        self.write(Thing::Network, id, None).await
    }

    async fn write(&self, thing: Thing, id: &str, record: Option<Vec<u8>>) -> Result<(), StoreError> {
        let (done, result) = oneshot::channel();
        self.send(Write { thing, id: id.to_owned(), record, done: Some(done) });
        let lost = || "its writer has ended".to_owned();
        let written = result.await.map_err(|_| lost()).and_then(|r| r);
        written.map_err(|cause| StoreError::Write { id: id.to_owned(), cause })
    }

    /// Keeps a record soon: for facts that are found again by asking the supervisor.
    pub fn put_soon(&self, record: &Record) {
        let thing = Thing::Container;
        match encode(&record.id, record) {
            Ok(bytes) => self.send(Write { thing, id: record.id.clone(), record: Some(bytes), done: None }),
            Err(error) => error!(%error, "container record not kept"),
        }
    }

    /// Forgets a record soon. If that is lost, the next start of the engine finds it half removed and goes on.
    pub fn remove_soon(&self, id: &str) {
        self.send(Write { thing: Thing::Container, id: id.to_owned(), record: None, done: None });
    }

    fn send(&self, write: Write) {
        if let Some(writes) = &self.writes {
            // The writer only ends when we are dropped; `done` then tells the caller.
            let _ = writes.send(write);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn encode(id: &str, record: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|e| StoreError::Write { id: id.to_owned(), cause: e.to_string() })
}

fn read_all<T: serde::de::DeserializeOwned>(
    database: &Database,
    table: TableDefinition<'_, &str, &[u8]>,
) -> Result<Vec<T>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(table) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (id, bytes) = entry?;
        match serde_json::from_slice(bytes.value()) {
            Ok(record) => records.push(record),
            Err(error) => warn!(id = id.value(), %error, "record cannot be read, left alone"),
        }
    }
    Ok(records)
}

fn write_all(database: &Database, queue: &mpsc::Receiver<Write>) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match queue.try_recv() {
                Ok(write) => batch.push(write),
                Err(_) => break,
            }
        }
        let result = commit(database, &batch).map_err(|error| error.to_string());
        proto::fault!("engine.store.committed");
        for write in batch {
            match (write.done, &result) {
                (Some(done), result) => drop(done.send(result.clone())),
                (None, Err(error)) => error!(id = %write.id, %error, "container record not written"),
                (None, Ok(())) => {}
            }
        }
    }
}

fn commit(database: &Database, batch: &[Write]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut containers = transaction.open_table(CONTAINERS)?;
        let mut networks = transaction.open_table(NETWORKS)?;
        for write in batch {
            let table = match write.thing {
                Thing::Container => &mut containers,
                Thing::Network => &mut networks,
            };
            match &write.record {
                Some(bytes) => drop(table.insert(write.id.as_str(), bytes.as_slice())?),
                None => drop(table.remove(write.id.as_str())?),
            }
        }
    }
    proto::fault!("engine.store.written");
    Ok(transaction.commit()?)
}
