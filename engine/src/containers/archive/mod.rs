//! `docker cp`: what is at a path of a container, out of it as an archive, and an archive into it. Works on containers
//! that run and on those that don't, and sees their volumes and bind mounts.

mod extract;
mod place;
mod view;
mod volume;

pub use extract::{ExtractError, Options, extract};
pub use place::{PathStat, Place};
pub use view::View;
pub use volume::{export_volume, import_volume};

use super::{
    Container,
    export::{AHEAD, Sink, Walk},
    layers::Layers,
    record::{Phase, Record},
    rootfs,
    sources::Look,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    patience::Turn,
};
use ::spec::users::{self, Memberships};
use axum::http::StatusCode;
use bytes::Bytes;
use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder},
};
use nix::errno::Errno;
use place::Found;
use proto::kind::chain;
use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use view::{Plan, ViewError};

/// How an answer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip
    Gzip,
    /// deflate
    Deflate,
}

impl Packing {
    /// By a request's `Accept-Encoding`; gzip is preferred.
    pub fn accepted(header: &str) -> Self {
        let takes = |name: &str| {
            header.split(',').any(|item| {
                let mut parts = item.split(';').map(str::trim);
                let named = parts.next().is_some_and(|n| n.eq_ignore_ascii_case(name));
                named && !parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
            })
        };
        if takes("gzip") {
            Self::Gzip
        } else if takes("deflate") {
            Self::Deflate
        } else {
            Self::Plain
        }
    }
}

/// A body that is on its way.
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

fn missing(path: &str, container: &Record) -> ApiError {
    ApiError::not_found(format!("Could not find the file {path} in container {}", container.name))
}

fn look_up_failed(error: Errno, path: &str, record: &Record) -> ApiError {
    match error {
        Errno::ENOENT | Errno::ENOTDIR => missing(path, record),
        Errno::ELOOP => ApiError::invalid(format!("path {path} in container {}: too many symbolic links", record.name)),
        error => ApiError::internal(format!("path {path} in container {}: {error}", record.name)),
    }
}

/// How long an exit that the kernel knows of may take until it is heard of.
const NEWS: Duration = Duration::from_secs(10);

/// The container's files as they are right now. One that is ending is waited for: its files may be written to only once it has.
async fn view(app: &Arc<App>, container: &Arc<Container>, keep: bool) -> ApiResult<View> {
    let mut ends = container.ends.subscribe();
    match view_now(app, container, keep).await? {
        Some(view) => Ok(view),
        None => {
            tokio::time::timeout(NEWS, ends.changed()).await.ok();
            let ending = || ApiError::conflict(format!("container {} is ending", container.record().name));
            view_now(app, container, keep).await?.ok_or_else(ending)
        }
    }
}

async fn view_now(app: &Arc<App>, container: &Arc<Container>, keep: bool) -> ApiResult<Option<View>> {
    let record = container.record();
    let failed = |error: &ViewError| {
        ApiError::internal(format!("look into the files of container {}: {}", record.name, chain(error)))
    };
    if record.state.phase == Phase::Removing {
        return Err(ApiError::conflict(format!(
            "container {} is being removed, its files are not accessible",
            record.id
        )));
    }
    if record.state.phase.is_live() && record.state.pid != 0 {
        let (pid, id) = (record.state.pid, record.id.clone());
        let opened = tokio::task::spawn_blocking(move || View::of_process(pid, &id)).await;
        match opened.map_err(|e| ApiError::unexpected(&e))? {
            // It has ended, and that is about to be heard of. Its files are the same, but may be written to again soon.
            Err(ViewError::Ended) if !keep => {}
            Err(ViewError::Ended) => return Ok(None),
            other => return other.map(Some).map_err(|e| failed(&e)),
        }
    }
    let snapshot = rootfs::mounts(app, container, &record).await.map_err(|e| {
        ApiError::internal(format!("find the root file system of container {}: {}", record.name, chain(&e)))
    })?;
    let look = Look::open(app, &record).await?;
    let plan = Plan {
        snapshot,
        mounts: look.mounts.clone(),
        keep,
        read_only: record.host.readonly_rootfs,
        place: app.containers.streams.clone(),
    };
    let built = tokio::task::spawn_blocking(move || View::build(&plan)).await;
    let view = built.map_err(|e| ApiError::unexpected(&e))?.map_err(|e| failed(&e))?;
    Ok(Some(view.keeping(look)))
}

/// What is there.
pub async fn stat(app: &Arc<App>, container: &Arc<Container>, path: &str) -> ApiResult<PathStat> {
    let view = view(app, container, false).await?;
    let place = Place::new(path);
    let found =
        tokio::task::spawn_blocking(move || Found::look_up(&view, &place).map(|found| found.stat(&view, &place)));
    let found = found.await.map_err(|e| ApiError::unexpected(&e))?;
    found.map_err(|error| look_up_failed(error, path, &container.record()))
}

/// What is there, and its archive. What fails before the first byte is an error status, later the archive is cut.
pub async fn read(
    app: &Arc<App>,
    container: &Arc<Container>,
    path: &str,
    packing: Packing,
) -> ApiResult<(PathStat, Pieces)> {
    let turn = Turn::take().await.map_err(|e| ApiError::unexpected(&e))?;
    let view = view(app, container, false).await?;
    let place = Place::new(path);
    let looked = tokio::task::spawn_blocking(move || {
        let found = Found::look_up(&view, &place)?;
        let stat = found.stat(&view, &place);
        Ok((view, place, found, stat))
    });
    let looked = looked.await.map_err(|e| ApiError::unexpected(&e))?;
    let (view, place, found, stat) = looked.map_err(|error| look_up_failed(error, path, &container.record()))?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let name = container.live().record.name.clone();
    let work = move || {
        let sink = Sink::new(sender.clone());
        let written = match packing {
            Packing::Plain => write(sink, &view, &found, &place).and_then(|mut sink| sink.flush()),
            Packing::Gzip => write(GzEncoder::new(sink, Compression::fast()), &view, &found, &place)
                .and_then(|packed| packed.finish()?.flush()),
            Packing::Deflate => write(DeflateEncoder::new(sink, Compression::fast()), &view, &found, &place)
                .and_then(|packed| packed.finish()?.flush()),
        };
        drop(view);
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                tracing::debug!(container = name, "copy ended by its client");
            }
            Err(error) => {
                tracing::warn!(container = name, error = %chain(&error), "copy failed");
                // A cut archive must not look whole.
                let _ = sender.blocking_send(Err(error));
            }
        }
    };
    turn.run("copy", work).map_err(|e| ApiError::internal(format!("copy: start a thread: {e}")))?;
    Ok((stat, receiver))
}

fn write<W: Write>(output: W, view: &View, found: &Found, place: &Place) -> io::Result<W> {
    let mut walk = Walk::new(output);
    // As Docker: of a running container, the devices that the runtime made are no files of its own.
    if place.path == "/" {
        walk.skipped.extend(view.identity("/dev"));
    }
    let name = place.name.as_bytes();
    match found {
        Found::Folder(folder, stat) => walk.root(folder, name, stat),
        Found::Other(parent, entry, stat) => walk.entry(parent, entry, name, stat, 0),
    }
    .map_err(|error| match error {
        super::export::ExportError::Send(cause) => cause,
        other => io::Error::other(other),
    })?;
    walk.finish()
}

/// A body read by a thread.
struct Body {
    pieces: Pieces,
    piece: Bytes,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// How an upload is to be unpacked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upload {
    /// `noOverwriteDirNonDir`
    pub keep_kinds: bool,
    /// `copyUIDGID`: all belongs to the container's user.
    pub own: bool,
}

/// Unpacks an archive into a folder.
pub async fn unpack(
    app: &Arc<App>,
    container: &Arc<Container>,
    path: &str,
    pieces: Pieces,
    upload: Upload,
) -> ApiResult<()> {
    let place = Turn::take().await.map_err(|e| ApiError::unexpected(&e))?;
    // Nobody starts it meanwhile: two mounts of one snapshot must not both be written to.
    let turn = container.turn.lock().await;
    let live = container.live().record.state.phase.is_live();
    let turn = (!live).then_some(turn);
    if turn.is_some() {
        container.undone().await;
    }
    let view = view(app, container, true).await?;
    let record = container.record();
    let destination = Place::new(path).path;
    let shown = path.to_owned();
    let (user, name) = (record.config.user.clone(), record.name.clone());
    let work = move || -> ApiResult<()> {
        let owner = match upload.own && !user.is_empty() {
            false => None,
            true => {
                let root = view.root.try_clone().map_err(|e| ApiError::unexpected(&e))?;
                let database = Layers::of_root(root).users().map_err(|e| ApiError::unexpected(&e))?;
                let user = users::find(&database, &user, Memberships::WithoutGroup, &[])?;
                Some((user.uid, user.gid))
            }
        };
        let options = Options { keep_kinds: upload.keep_kinds, owner, whole: false };
        let body = Body { pieces, piece: Bytes::new() };
        // Unpacked here and by our own code, never by a program (CVE-2026-41567).
        let plain = crate::unpack::unpacked(body).map_err(|e| refused(&shown, &name, ExtractError::Archive(e)))?;
        extract::extract(&view, &destination, plain, options).map_err(|e| refused(&shown, &name, e))
    };
    let done = place.run("copy", work).map_err(|e| ApiError::internal(format!("copy: start a thread: {e}")))?.await;
    drop(turn);
    done.map_err(|e| ApiError::unexpected(&e))?
}

fn refused(path: &str, name: &str, error: ExtractError) -> ApiError {
    let text = || format!("copy to {path} of container {name}: {}", chain(&error));
    match &error {
        ExtractError::Missing => ApiError::not_found(format!("Could not find the file {path} in container {name}")),
        ExtractError::ReadOnlyRoot | ExtractError::ReadOnlyMount => {
            ApiError::new(StatusCode::FORBIDDEN, error.to_string())
        }
        ExtractError::Kernel(_) => ApiError::new(StatusCode::FORBIDDEN, text()),
        ExtractError::NotAFolder | ExtractError::FolderInTheWay(_) | ExtractError::FileInTheWay(_) => {
            ApiError::invalid(error.to_string())
        }
        ExtractError::Outside(_) | ExtractError::Archive(_) => ApiError::invalid(text()),
        ExtractError::Write { .. } => ApiError::internal(text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packings() {
        for (header, packing) in [
            ("", Packing::Plain),
            ("identity", Packing::Plain),
            ("deflate, gzip;q=0.5", Packing::Gzip),
            ("gzip;q=0, deflate", Packing::Deflate),
            ("GZIP", Packing::Gzip),
        ] {
            assert_eq!(Packing::accepted(header), packing, "{header}");
        }
    }
}
