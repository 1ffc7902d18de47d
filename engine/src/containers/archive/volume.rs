//! A volume's content as an archive, out of it and into it: Berth's own, docker has no such call. Owners are numbers, extended
//! attributes and hard links come along. A volume that containers use may be exported, as it is while it is read, and imported into:
//! what they have open stays theirs, and files of the archive take the place of those of the same name.

use super::{AHEAD, Body, ExtractError, Options, Pieces, Sink, Walk, extract::extract, view::View};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    ids,
    patience::Turn,
    volumes::{VolumeError, Volumes},
};
use axum::http::StatusCode;
use bytes::Bytes;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::{Mode, fstat},
};
use proto::kind::chain;
use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::mpsc;

/// A volume that stays where it is until this is dropped.
struct Kept {
    volumes: Arc<Volumes>,
    name: String,
    user: String,
    runtime: tokio::runtime::Handle,
}

impl Kept {
    async fn open(app: &App, name: &str) -> ApiResult<(Self, OwnedFd)> {
        let volumes = app.volumes.clone();
        // Known to a plugin alone, it is on record from now on.
        let described = volumes.look(name).await?;
        if !described.volume.is_local() {
            volumes.make(name, &described.volume.driver, crate::volumes::NewVolume::default()).await?;
        }
        let user = format!("archive-{}", ids::random_id().map_err(|e| ApiError::unexpected(&e))?);
        volumes.hold(name, &user);
        let kept = Self { volumes: volumes.clone(), name: name.to_owned(), user, runtime: app.runtime.clone() };
        let at = volumes.mount_driven(name, &kept.user).await?;
        let (name, user) = (name.to_owned(), kept.user.clone());
        let opened = tokio::task::spawn_blocking(move || -> Result<OwnedFd, VolumeError> {
            volumes.mount(&name, &user)?;
            let at: PathBuf = at.unwrap_or_else(|| volumes.path(&name));
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let failed =
                |cause: nix::Error| VolumeError::Io { operation: "open", name: name.clone(), cause: cause.into() };
            open(&at, flags, Mode::empty()).map_err(failed)
        });
        let root = opened.await.map_err(|e| ApiError::unexpected(&e))??;
        Ok((kept, root))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let (volumes, name, user) = (self.volumes.clone(), self.name.clone(), self.user.clone());
        self.runtime.spawn(async move {
            let (owner, volume, by) = (volumes.clone(), name.clone(), user.clone());
            let unmounted = tokio::task::spawn_blocking(move || owner.unmount(&volume, &by)).await;
            if let Ok(Err(error)) = unmounted {
                tracing::warn!(volume = name, error = %chain(&error), "volume stays mounted");
            }
            volumes.unmount_driven(&user).await;
            volumes.release(&user);
        });
    }
}

/// The archive, written while it is sent. What fails before its first byte is an error status, later it is cut.
pub async fn export_volume(app: &Arc<App>, name: &str) -> ApiResult<Pieces> {
    let turn = Turn::take().await.map_err(|e| ApiError::unexpected(&e))?;
    let (kept, root) = Kept::open(app, name).await?;
    let stat = fstat(&root).map_err(|e| ApiError::unexpected(&e))?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let work = move || {
        let mut walk = Walk::new(Sink::new(sender.clone()));
        let written = walk
            .root(&root, b"./", &stat)
            .map_err(|error| match error {
                crate::containers::export::ExportError::Send(cause) => cause,
                other => io::Error::other(other),
            })
            .and_then(|()| walk.finish()?.flush());
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                tracing::debug!(volume = kept.name, "export ended by its client");
            }
            Err(error) => {
                tracing::warn!(volume = kept.name, error = %chain(&error), "export failed");
                // A cut archive must not look whole.
                let _ = sender.blocking_send(Err(error));
            }
        }
    };
    turn.run("export", work).map_err(|e| ApiError::internal(format!("export: start a thread: {e}")))?;
    Ok(receiver)
}

/// Unpacks an archive, packed or not, into a volume.
pub async fn import_volume(app: &Arc<App>, name: &str, pieces: Pieces) -> ApiResult<()> {
    let turn = Turn::take().await.map_err(|e| ApiError::unexpected(&e))?;
    let (kept, root) = Kept::open(app, name).await?;
    let work = move || -> ApiResult<()> {
        let view = View::of_folder(root);
        let body = Body { pieces, piece: Bytes::new() };
        // Unpacked here and by our own code, never by a program (CVE-2026-41567).
        let plain = crate::unpack::unpacked(body).map_err(|e| refused(&kept.name, &ExtractError::Archive(e)))?;
        let options = Options { whole: true, ..Options::default() };
        extract(&view, "/", plain, options).map_err(|e| refused(&kept.name, &e))
    };
    let done = turn.run("import", work).map_err(|e| ApiError::internal(format!("import: start a thread: {e}")))?.await;
    done.map_err(|e| ApiError::unexpected(&e))?
}

fn refused(name: &str, error: &ExtractError) -> ApiError {
    let text = format!("import into volume {name}: {}", chain(error));
    match error {
        ExtractError::ReadOnlyRoot | ExtractError::ReadOnlyMount => {
            ApiError::new(StatusCode::FORBIDDEN, format!("import into volume {name}: it is read-only"))
        }
        ExtractError::Kernel(_) => ApiError::new(StatusCode::FORBIDDEN, text),
        ExtractError::Write { .. } | ExtractError::Missing => ApiError::internal(text),
        _ => ApiError::invalid(text),
    }
}
