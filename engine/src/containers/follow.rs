//! A container's log on its way to a client: what is there, then what comes, over rotations, until the container ends.

use super::{Container, log_config, logs, record::Phase, streams::Framing};
use crate::{app::App, time::Timestamp};
use bytes::Bytes;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::mpsc;

/// Sends a log in pieces, and goes on while the container runs if it is to be followed.
pub async fn send(
    app: Arc<App>,
    container: Arc<Container>,
    options: logs::Options,
    follow: bool,
    framing: Framing,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
) {
    let mut ends = container.ends.subscribe();
    ends.mark_unchanged();
    let is_up = || super::is_up(container.live().record.state.phase) || container.live().starting;
    // Before the first look, so that nothing is written unseen between look and watch.
    let watch = if follow { logs::Watch::new(&app.containers.folder_of(&container.id)).ok() } else { None };
    let log = log_config::path(&app.containers.folder_of(&container.id), &container.id, options.format.driver());
    // Packed files are unpacked on the way.
    let opening = options.clone();
    let Ok(mut reader) = tokio::task::spawn_blocking(move || logs::Reader::open(&log, &opening)).await else { return };
    let until = options.until;
    loop {
        // Asked before reading: what is written before the end is then surely read.
        let last = !follow || !(is_up() || container.live().record.state.phase == Phase::Created);
        loop {
            // A large log is read from disk: in pieces, off the async threads.
            let read = tokio::task::spawn_blocking(move || {
                let piece = read_piece(&mut reader, framing);
                (reader, piece)
            });
            let Ok((back, piece)) = read.await else { return };
            reader = back;
            if piece.is_empty() {
                break;
            }
            if sender.send(Ok(piece.into())).await.is_err() {
                return;
            }
        }
        if last || until.is_some_and(|until| Timestamp::now() > until) {
            return;
        }
        let Some(watch) = &watch else { return };
        tokio::select! {
            changed = watch.changed() => if changed.is_err() { return },
            _ = ends.changed() => {}
            () = sender.closed() => return,
            () = sleep_until(until) => {}
        }
        let looked = tokio::task::spawn_blocking(move || {
            reader.look_for_rotation();
            reader
        });
        let Ok(back) = looked.await else { return };
        reader = back;
    }
}

async fn sleep_until(until: Option<Timestamp>) {
    match until {
        Some(until) => tokio::time::sleep(until.since(Timestamp::now())).await,
        None => std::future::pending().await,
    }
}

fn read_piece(reader: &mut logs::Reader, framing: Framing) -> Vec<u8> {
    let mut piece = Vec::new();
    while piece.len() < 64 << 10 {
        let Some((stream, text)) = reader.next_line() else { break };
        if framing == Framing::Multiplexed {
            piece.extend_from_slice(&super::frames::header(stream, text.len()));
        }
        piece.extend_from_slice(&text);
    }
    piece
}
