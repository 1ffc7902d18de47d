//! The supervisor as a service: configuration, logs, metrics, the service manager, a second one on the same roots, idleness.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod configuration;
mod daemon;
mod logs;
mod memory;
mod metrics;
mod service;
