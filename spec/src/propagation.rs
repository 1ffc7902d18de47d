//! Mounts that the host and a container are to share: the source must lie on a mount that shares, or nothing would ever come
//! through.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The mounts of this process's namespace (proc_pid_mountinfo(5)).
#[derive(Debug, Clone)]
pub struct MountTable(Vec<u8>);

impl MountTable {
    /// Reads it. It is long where many containers run.
    pub fn read() -> io::Result<Self> {
        std::fs::read("/proc/self/mountinfo").map(Self)
    }
}

/// What a source has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// On a mount that is shared.
    Shared,
    /// On one that is shared, or follows one that is.
    SharedOrSlave,
}

impl Need {
    /// For a propagation in the words of mount(8).
    pub fn of(propagation: &str) -> Option<Self> {
        match propagation {
            "shared" | "rshared" => Some(Self::Shared),
            "slave" | "rslave" => Some(Self::SharedOrSlave),
            _ => None,
        }
    }

    /// Whether a source, by its real path, is that. The error is the mount point of one that isn't.
    pub fn met(self, table: &MountTable, source: &Path) -> Result<(), PathBuf> {
        let Some((at, fields)) = mount_of(&table.0, source) else { return Err("/".into()) };
        let has = |word: &str| fields.iter().any(|field| field.starts_with(word));
        match has("shared:") || (self == Self::SharedOrSlave && has("master:")) {
            true => Ok(()),
            false => Err(at),
        }
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Shared { "shared" } else { "shared or slave" })
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
        let table = MountTable(
            b"21 1 8:1 / / rw - ext4 /dev/a rw\n\
            22 21 8:2 / /srv rw shared:5 - ext4 /dev/b rw\n\
            23 22 8:3 / /srv/own\\040one rw master:5 - tmpfs x rw\n\
            24 21 8:4 / /twice rw shared:7 - tmpfs x rw\n\
            25 24 8:5 / /twice rw - tmpfs y rw\n"
                .to_vec(),
        );
        let met = |need: Need, path: &str| need.met(&table, Path::new(path)).map_err(|at| at.display().to_string());
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
