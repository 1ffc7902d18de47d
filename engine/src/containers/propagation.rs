//! Mounts that the host and a container are to share. Docker's checks at the start, in its words.

use super::record::Record;
use crate::http::{ApiError, ApiResult};
use ::spec::propagation::{MountTable, Need};
use std::path::Path;

/// Whether all sources have the propagation that is asked for.
pub fn check(record: &Record) -> ApiResult<()> {
    let wishes = record.mounts.iter().filter_map(|mount| Some((mount, Need::of(&mount.propagation)?)));
    let wishes: Vec<_> = wishes.collect();
    // The table is long where many containers run, and hardly anybody asks.
    if wishes.is_empty() {
        return Ok(());
    }
    let table = MountTable::read().map_err(|e| ApiError::unexpected(&e))?;
    for (mount, need) in wishes {
        let failed = |error| ApiError::internal(format!("bind source path {}: {error}", mount.source));
        let source = Path::new(&mount.source).canonicalize().map_err(failed)?;
        if let Err(at) = need.met(&table, &source) {
            return Err(ApiError::internal(format!(
                "path {} is mounted on {} but it is not a {need} mount",
                mount.source,
                at.display()
            )));
        }
    }
    Ok(())
}
