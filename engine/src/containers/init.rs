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
use std::path::PathBuf;

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
    if let Some(own) = own(app).map_err(failed)? {
        return Ok(Some(own));
    }
    let other = OTHERS.iter().find_map(|name| on_path(name));
    other.map(Some).ok_or_else(|| {
        failed(format!(
            "there is neither {SHIM} nor {} on this machine; say where one is by init-path",
            OTHERS.join(" nor ")
        ))
    })
}

/// A copy of the shim for containers, if there is a shim: it is more than one program, which its name in the container chooses. An
/// error says why there is no copy.
pub fn own(app: &App) -> Result<Option<PathBuf>, String> {
    let shim = launch::beside_us(SHIM);
    let shim = if shim.is_absolute() { Some(shim) } else { on_path(SHIM) };
    let Some(shim) = shim else { return Ok(None) };
    let copy = app.config.engine_run().join("docker-init");
    ::spec::init::copy_of(&shim, &copy)
        .map_err(|error| format!("copy {} to {}: {error}", shim.display(), copy.display()))?;
    Ok(Some(copy))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_absolute() && file.is_file())
}
