//! Mounts that the host and a container are to share: the source must lie on a mount that shares, or nothing would ever come
//! through. Docker's checks at the start, in its words.

use super::record::Record;
use crate::http::{ApiError, ApiResult};
use std::path::{Path, PathBuf};

/// Whether all sources have the propagation that is asked for.
pub fn check(record: &Record) -> ApiResult<()> {
    let wishes = record.mounts.iter().filter_map(|mount| Some((mount, Need::of(&mount.propagation)?)));
    let wishes: Vec<_> = wishes.collect();
    // The table is long where many containers run, and hardly anybody asks.
    if wishes.is_empty() {
        return Ok(());
    }
    let table = std::fs::read("/proc/self/mountinfo").map_err(|e| ApiError::unexpected(&e))?;
    for (mount, need) in wishes {
        let failed = |error| ApiError::internal(format!("bind source path {}: {error}", mount.source));
        let source = Path::new(&mount.source).canonicalize().map_err(failed)?;
        if let Err(at) = need.met(&table, &source) {
            let kind = if need == Need::Shared { "shared" } else { "shared or slave" };
            return Err(ApiError::internal(format!(
                "path {} is mounted on {} but it is not a {kind} mount",
                mount.source,
                at.display()
            )));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Shared,
    SharedOrSlave,
}

impl Need {
    fn of(propagation: &str) -> Option<Self> {
        match propagation {
            "shared" | "rshared" => Some(Self::Shared),
            "slave" | "rslave" => Some(Self::SharedOrSlave),
            _ => None,
        }
    }

    /// The mount point of one that isn't.
    fn met(self, table: &[u8], source: &Path) -> Result<(), PathBuf> {
        let Some((at, fields)) = mount_of(table, source) else { return Err("/".into()) };
        let has = |word: &str| fields.iter().any(|field| field.starts_with(word));
        match has("shared:") || (self == Self::SharedOrSlave && has("master:")) {
            true => Ok(()),
            false => Err(at),
        }
    }
}

/// The mount that a path lies on: its mount point and optional fields.
fn mount_of(table: &[u8], source: &Path) -> Option<(PathBuf, Vec<String>)> {
    let mut found: Option<(PathBuf, Vec<String>)> = None;
    for line in String::from_utf8_lossy(table).lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(at) = fields.next().map(|text| PathBuf::from(unescaped(text))) else { continue };
        let optional = fields.skip(1).take_while(|field| *field != "-").map(str::to_owned).collect();
        // Of several at one place the last one is what is seen.
        let nearer = found.as_ref().is_none_or(|(best, _)| at.components().count() >= best.components().count());
        if source.starts_with(&at) && nearer {
            found = Some((at, optional));
        }
    }
    found
}

/// The kernel writes blanks and the like as `\040`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_is_seen_counts() {
        let table = b"21 1 8:1 / / rw - ext4 /dev/a rw\n\
            22 21 8:2 / /srv rw shared:5 - ext4 /dev/b rw\n\
            23 22 8:3 / /srv/own\\040one rw master:5 - tmpfs x rw\n\
            24 21 8:4 / /twice rw shared:7 - tmpfs x rw\n\
            25 24 8:5 / /twice rw - tmpfs y rw\n";
        let met = |need: Need, path: &str| need.met(table, Path::new(path)).map_err(|at| at.display().to_string());
        for (path, shared, slave) in [
            ("/srv/data", Ok(()), Ok(())),
            ("/srv/own one/x", Err("/srv/own one"), Ok(())),
            ("/srvx", Err("/"), Err("/")),
            ("/twice/a", Err("/twice"), Err("/twice")),
            ("/", Err("/"), Err("/")),
        ] {
            assert_eq!(met(Need::Shared, path), shared.map_err(str::to_owned), "{path}");
            assert_eq!(met(Need::SharedOrSlave, path), slave.map_err(str::to_owned), "{path}");
        }
    }
}
