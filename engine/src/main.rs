//! `berth-engine`: serves the Docker Engine API and keeps what its users asked for. Everything that runs lives below it,
//! in the supervisor and the shims, and goes on when this program ends.

#![recursion_limit = "256"]

mod access;
mod api;
mod app;
mod budget;
#[allow(dead_code, reason = "its parts come together")]
mod build;
mod check;
mod cleanup;
mod config;
mod containers;
mod events;
mod http;
mod identity;
mod ids;
mod images;
mod launch;
mod listen;
mod metrics;
mod networks;
mod patience;
mod registries;
mod supervisor;
mod tar;
mod tide;
mod time;
mod unpack;
mod untar;
mod volumes;

use clap::Parser;
use config::{Args, Config};
use proto::kind::chain;
use std::process::ExitCode;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

fn main() -> ExitCode {
    // Without it, an image import leaves megabytes behind in arenas that nobody uses any more.
    sys::memory::keep_heaps_few(2, 256 << 10);
    let mut arguments = std::env::args_os().skip(1);
    let word = arguments.next().unwrap_or_default();
    if word == networks::names::ARGUMENT {
        return match networks::names::main(arguments.next().unwrap_or_default().as_ref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    if word == volumes::mounter::ARGUMENT {
        return match volumes::mounter::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    if word == cleanup::ARGUMENT {
        return match cleanup::run(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    if word == check::ARGUMENT {
        return match check::run(arguments) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                fail(&error);
                ExitCode::from(check::FAILED)
            }
        };
    }
    // First of all, while there is one thread and descriptors are as we were given them.
    let service = match sys::service::take() {
        Ok(service) => service,
        Err(error) => return fail(&error),
    };
    let args = Args::parse();
    let validate = args.validate;
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if validate {
        if config.tls.on
            && let Err(error) = listen::Certificates::read(&config.tls)
        {
            return fail(&error);
        }
        // In dockerd's words, and where it says them.
        eprintln!("configuration OK");
        return ExitCode::SUCCESS;
    }
    let set_filter = start_log(&config);
    // Threads that waited for the disk end soon after their work: each has a stack, and there may be hundreds after a rush.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(app::run(config, service, set_filter)) {
        Ok(()) => {
            // Log followers and other long streams may sit in blocking reads; nothing of theirs needs saving.
            runtime.shutdown_background();
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// Logs to stderr; gives what changes the filter later.
fn start_log(config: &Config) -> app::SetFilter {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&config.live.log_filter));
    let lines = fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    let lines = if config.json_log { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Box::new(move |text| _ = handle.reload(EnvFilter::new(text)))
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("berth-engine: {}", chain(error));
    ExitCode::FAILURE
}
