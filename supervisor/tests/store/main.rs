//! The stores of a real supervisor over its socket: with containerd's own client, a real registry, and hostile ones.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod archives;
mod bad;
mod clients;
mod collector;
mod content;
mod cri;
mod dropped;
mod faults;
mod figures;
mod harness;
mod hostile;
mod hosts;
mod loads;
mod matrix;
mod push;
mod registries;
mod verify;
mod weather;
