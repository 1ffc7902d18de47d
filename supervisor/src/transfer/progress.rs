//! How far a transfer is, told on a stream of the client. Telling never holds the transfer up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use prost_types::Any;
use proto::{containerd::types::transfer::Progress as Message, digest::Digest, typeurl};
use tokio::sync::mpsc;
use tonic::Status;

use super::streams::Stream;
use crate::images::manifest::Descriptor;

/// Messages that a client may be behind.
pub(super) const QUEUE: usize = 1024;
/// Room that is kept for what must not be missed: beginnings and ends.
const RESERVE: usize = 512;
/// Between two messages about the same blob.
const INTERVAL_MS: u64 = 100;

/// Where progress is told; clones tell it to the same client.
#[derive(Clone)]
pub(crate) struct Progress {
    outbound: Option<mpsc::Sender<Result<Any, Status>>>,
    began: Instant,
}

impl Progress {
    /// Nobody wants to know.
    pub(super) fn silent() -> Self {
        Self { outbound: None, began: Instant::now() }
    }

    /// To this stream; what the client sends on it is not read.
    pub(super) fn to(stream: Stream) -> Self {
        Self { outbound: Some(stream.outbound), began: Instant::now() }
    }

    fn send(&self, message: &Message, keep: usize) {
        if let Some(outbound) = &self.outbound
            && outbound.capacity() > keep
        {
            // Full or gone: the client misses it, and the transfer goes on.
            let _ = outbound.try_send(Ok(typeurl::pack(message)));
        }
    }

    /// Something about a blob: `waiting`, `already exists`, `complete`, `extracted`.
    pub(super) fn blob(&self, event: &str, blob: &Descriptor, progress: u64) {
        self.send(&message(event, &blob.digest.to_string(), blob, progress), 0);
    }

    /// Something about an image: `saved`.
    pub(super) fn image(&self, event: &str, name: &str, target: &Descriptor) {
        self.send(&message(event, name, target, 0), 0);
    }

    /// Something about a blob that the client knows by another digest, `name`: a layer that was compressed for a push.
    pub(super) fn pushed(&self, event: &str, name: &Digest, blob: &Descriptor, progress: u64, parent: Option<String>) {
        let message =
            Message { parents: parent.into_iter().collect(), ..message(event, &name.to_string(), blob, progress) };
        self.send(&message, 0);
    }

    /// A meter for the bytes of such a blob.
    pub(super) fn push_meter(
        &self,
        event: &'static str,
        name: &Digest,
        blob: &Descriptor,
    ) -> Arc<dyn Fn(u64) + Send + Sync> {
        Arc::new(self.meter_named(event, name.to_string(), blob))
    }

    /// A meter for the bytes of a blob, which passes on a few of the numbers it is told.
    pub(super) fn meter(&self, event: &'static str, blob: &Descriptor) -> impl Fn(u64) + Send + Sync + 'static {
        self.meter_named(event, blob.digest.to_string(), blob)
    }

    fn meter_named(
        &self,
        event: &'static str,
        name: String,
        blob: &Descriptor,
    ) -> impl Fn(u64) + Send + Sync + 'static {
        let (progress, blob, last) = (self.clone(), blob.clone(), Arc::new(AtomicU64::new(0)));
        move |bytes| {
            let now = progress.began.elapsed().as_millis() as u64;
            let before = last.load(Ordering::Relaxed);
            if before == 0 || now.saturating_sub(before) >= INTERVAL_MS {
                last.store(now.max(1), Ordering::Relaxed);
                progress.send(&message(event, &name, &blob, bytes), RESERVE);
            }
        }
    }
}

fn message(event: &str, name: &str, blob: &Descriptor, progress: u64) -> Message {
    Message {
        event: event.to_owned(),
        name: name.to_owned(),
        parents: Vec::new(),
        progress: progress as i64,
        total: blob.size as i64,
        desc: Some(blob.to_proto()),
    }
}
