//! Records of snapshots, and the rules that hold inside one transaction.

use super::{Record, SnapshotError};
use crate::store::{Reader, StoreError, Table, WriteTx};

/// Records of snapshots: namespace and `driver NUL key`.
pub(crate) const SNAPSHOTS: Table<Record> = Table::new("snapshots");
const COUNTERS: Table<u64> = Table::new("counters");

/// The key of a record.
pub(crate) fn full(driver: &str, key: &str) -> String {
    format!("{driver}\0{key}")
}

/// Driver and key of a record's key.
pub(crate) fn split(full: &str) -> (&str, &str) {
    full.split_once('\0').unwrap_or(("", full))
}

/// The record of a snapshot that must be there and complete.
pub(super) fn get(tx: &impl Reader, driver: &str, namespace: &str, key: &str) -> Result<Record, SnapshotError> {
    let record = SNAPSHOTS.get(tx, namespace, &full(driver, key))?;
    let record = record.ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
    if record.making { Err(SnapshotError::Making(key.to_owned())) } else { Ok(record) }
}

/// A number that no folder has: above every one given before, and above `used`.
pub(super) fn next_id(tx: &WriteTx, used: u64) -> Result<u64, StoreError> {
    let id = COUNTERS.get(tx, "", "snapshots")?.unwrap_or(0).max(used) + 1;
    COUNTERS.put(tx, "", "snapshots", &id)?;
    Ok(id)
}

/// Removes the record in an open transaction; gives the folder to remove once that is committed.
pub(crate) fn remove_in(tx: &WriteTx, driver: &str, namespace: &str, key: &str) -> Result<u64, SnapshotError> {
    let at = full(driver, key);
    let record = SNAPSHOTS.get(tx, namespace, &at)?.ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
    if record.children > 0 {
        return Err(SnapshotError::HasChildren { key: key.to_owned(), children: record.children });
    }
    if let Some(parent) = &record.parent
        && let Some(mut below) = SNAPSHOTS.get(tx, namespace, &full(driver, parent))?
    {
        below.children = below.children.saturating_sub(1);
        SNAPSHOTS.put(tx, namespace, &full(driver, parent), &below)?;
    }
    SNAPSHOTS.remove(tx, namespace, &at)?;
    Ok(record.id)
}
