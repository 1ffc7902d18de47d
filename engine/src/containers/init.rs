//! The init process of a container (`--init`): process 1 that reaps what nobody waits for, passes signals on and ends as its
//! child does. It is Berth's shim under another name ("docker-init"): static, so it runs in any image.
//!
//! Containers get a copy below the run root and not the shim itself: one with the right to mount could make its view of the
//! file writable, and the shim is run on the host.

use super::record::Record;
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    launch,
};
use std::{
    fs::{File, Metadata, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Where the container sees it, as with Docker.
pub const IN_CONTAINER: &str = "/sbin/docker-init";
const SHIM: &str = "berth-shim";
/// What serves below a supervisor that isn't Berth's.
const OTHERS: [&str; 2] = ["docker-init", "tini"];

/// Whether an init runs in a container. Where processes are shared, somebody else is process 1.
pub fn is_wanted(record: &Record) -> bool {
    record.host.init == Some(true) && matches!(record.host.pid_mode.as_str(), "" | "private")
}

/// The file to be mounted into the container, if it is to have an init.
pub fn program(app: &App, record: &Record) -> ApiResult<Option<PathBuf>> {
    if !is_wanted(record) {
        return Ok(None);
    }
    let failed = |why: String| ApiError::internal(format!("start container {}: its init: {why}", record.name));
    if let Some(path) = app.config.containers.init_path() {
        return match path.is_file() {
            true => Ok(Some(path)),
            false => Err(failed(format!("init-path {} is not a file", path.display()))),
        };
    }
    let shim = launch::beside_us(SHIM);
    let shim = if shim.is_absolute() { Some(shim) } else { on_path(SHIM) };
    if let Some(shim) = shim {
        let copy = app.config.engine_run().join("docker-init");
        copy_of(&shim, &copy)
            .map_err(|error| failed(format!("copy {} to {}: {error}", shim.display(), copy.display())))?;
        return Ok(Some(copy));
    }
    let other = OTHERS.iter().find_map(|name| on_path(name));
    other.map(Some).ok_or_else(|| {
        failed(format!(
            "there is neither {SHIM} nor {} on this machine; say where one is by init-path",
            OTHERS.join(" nor ")
        ))
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_absolute() && file.is_file())
}

/// Copies unless that is done; one that containers run from already is replaced, not written to.
fn copy_of(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let meta = source.metadata()?;
    let is_same = |copy: Metadata| copy.len() == meta.len() && copy.modified().ok() == meta.modified().ok();
    if std::fs::metadata(to).is_ok_and(is_same) {
        return Ok(());
    }
    // One of each start: two may copy at once.
    let random = crate::ids::random_bytes::<6>().map_err(io::Error::other)?;
    let part = to.with_extension(proto::digest::hex(&random));
    let made = (|| {
        let mut target = File::create_new(&part)?;
        io::copy(&mut &source, &mut target)?;
        target.set_permissions(Permissions::from_mode(0o755))?;
        target.set_modified(meta.modified()?)?;
        drop(target);
        std::fs::rename(&part, to)
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn copied_once_and_again_when_there_is_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, "one").unwrap();
        copy_of(&from, &to).unwrap();
        let first = std::fs::metadata(&to).unwrap();
        assert_eq!(first.mode() & 0o777, 0o755);
        copy_of(&from, &to).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().ino(), first.ino());
        std::fs::write(&from, "another").unwrap();
        copy_of(&from, &to).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "another");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
