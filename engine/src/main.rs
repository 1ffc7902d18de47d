//! `berth-engine`: serves the Docker Engine API and keeps what its users asked for. Everything that runs lives below it,
//! in the supervisor and the shims, and goes on when this program ends.

#![recursion_limit = "256"]

mod api;
mod app;
mod config;
mod containers;
mod events;
mod http;
mod identity;
mod ids;
mod images;
mod launch;
mod networks;
mod supervisor;
mod time;
mod volumes;

use clap::Parser;
use config::{Args, Config};
use proto::kind::chain;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Without it, an image import leaves megabytes behind in arenas that nobody uses any more.
    sys::memory::keep_heaps_few(2, 256 << 10);
    // First of all, while there is one thread and descriptors are as we were given them.
    let service = match sys::service::take() {
        Ok(service) => service,
        Err(error) => return fail(&error),
    };
    let config = match Config::load(Args::parse()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    tracing_subscriber::fmt()
        .with_env_filter(config.log_filter.as_str())
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(app::run(config, service)) {
        Ok(()) => {
            // Log followers and other long streams may sit in blocking reads; nothing of theirs needs saving.
            runtime.shutdown_background();
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("berth-engine: {}", chain(error));
    ExitCode::FAILURE
}
