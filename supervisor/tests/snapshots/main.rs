//! Snapshotters and the Diff service of a real supervisor, with containerd's own client; killed at each step, on a full disk,
//! and beside Debian's containerd.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod crashes;
mod daemon;
mod images;
mod peers;
