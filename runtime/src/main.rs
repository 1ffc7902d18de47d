//! `berth-runtime`: an OCI runtime. It builds a container from a bundle and exits; one thread, nothing stays.
//!
//! ```text
//! args -> commands/* -> spec -> plan -> launch (parent | child) -> rootfs, confine        state: what is known on disk
//! ```

#![forbid(unsafe_code)]
// Tests make and break files of their own; what is under test is held to the bans (clippy.toml).
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod args;
mod commands;
mod confine;
mod criu;
mod launch;
mod log;
mod netdev;
mod plan;
mod rootfs;
mod spec;
mod state;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    ExitCode::from(commands::run(&arguments))
}
