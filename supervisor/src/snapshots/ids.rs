//! Snapshots for containers in a user namespace: labels say whose files are to be shown as whose, in containerd's words.

use sys::userns::Maps;

use super::{Record, SnapshotError};
use crate::store::Labels;

/// The users' ids, as `INSIDE:OUTSIDE:LENGTH`.
pub(crate) const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
/// The groups' ids.
pub(crate) const GID_MAP: &str = "containerd.io/snapshot/gidmapping";

fn words(labels: &Labels) -> Option<(&str, &str)> {
    let word = |name| labels.get(name).map(String::as_str);
    match (word(UID_MAP), word(GID_MAP)) {
        (None, None) => None,
        (uids, gids) => Some((uids.unwrap_or_default(), gids.unwrap_or_default())),
    }
}

/// Refuses labels that are no ids.
pub(super) fn check(key: &str, labels: &Labels) -> Result<(), SnapshotError> {
    match words(labels) {
        Some((uids, gids)) if Maps::parse(uids, gids).is_none() => Err(SnapshotError::Invalid(format!(
            "snapshot {key:?}: labels {UID_MAP} {uids:?} and {GID_MAP} {gids:?} have to be two lists of INSIDE:OUTSIDE:LENGTH"
        ))),
        _ => Ok(()),
    }
}

impl Record {
    /// Its ids, if it has some.
    pub(super) fn maps(&self) -> Option<Maps> {
        words(&self.labels).and_then(|(uids, gids)| Maps::parse(uids, gids))
    }

    /// The same as options of its mounts.
    pub(super) fn map_options(&self) -> Vec<String> {
        let options = |(uids, gids)| vec![format!("uidmap={uids}"), format!("gidmap={gids}")];
        words(&self.labels).map(options).unwrap_or_default()
    }
}
