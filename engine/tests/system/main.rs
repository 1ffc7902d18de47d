//! The engine as a service: versions of its API, what it hasn't got, configuration, listeners, restarts, metrics, clients that
//! misbehave. Through the real engine with the real supervisor, shim and runtime below it.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, missing_docs)]
#![recursion_limit = "256"]

#[allow(dead_code, reason = "shared with the tests of containers, which use the rest")]
#[path = "../containers/stack.rs"]
mod stack;

mod abuse;
mod config;
mod errors;
mod fuzz;
mod listeners;
mod metrics;
mod stalled;
mod versions;

macro_rules! engine {
    () => {
        $crate::engine!("")
    };
    ($config:expr) => {
        match $crate::stack::Stack::configured($config) {
            Some(stack) => stack,
            None => return,
        }
    };
}
pub(crate) use engine;
