//! berth-supervisor: keeps content, images, snapshots and container records, and drives one shim per container, on
//! containerd's API over a unix socket. `Args` -> `Config` -> `App` -> serve -> drain; see `config` and `app`.

mod api;
mod app;
mod check;
mod config;
mod containers;
mod content;
mod cri;
mod events;
mod failure;
mod filters;
mod gc;
mod images;
mod labels;
mod layers;
mod leases;
mod logging;
mod metrics;
mod namespaces;
mod recipes;
mod registry;
mod snapshots;
mod store;
mod tasks;
mod transfer;

use std::process::ExitCode;

use clap::Parser;
use proto::kind::chain;

use crate::{
    app::App,
    config::{Args, Command, ConfigCommand, ConfigError},
};

fn main() -> ExitCode {
    // Without it, an image import leaves megabytes behind in arenas that nobody uses any more.
    sys::memory::keep_heaps_few(2, 256 << 10);
    // A shim starts in its bundle.
    sys::process::spawn_without_fork();
    // First of all, while there is one thread and descriptors are as we were given them.
    let service = match sys::service::take() {
        Ok(service) => service,
        Err(error) => return refuse(&error),
    };
    let args = Args::parse();
    match args.command() {
        None => {}
        Some(Command::Config { action }) => return tell_config(args, action),
        Some(Command::Check { repair }) => {
            return match args.into_config() {
                Ok(config) => check::run(&config, repair),
                Err(error) => refuse(&error),
            };
        }
    }
    let config = match args.into_config() {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = logging::init(&config.log) {
        return refuse(&error);
    }
    // Two workers are enough for a daemon that mostly waits, and each thread costs a stack and a malloc arena for good;
    // blocking threads (disk, databases) end soon after their work.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_stack_size(512 * 1024)
        .thread_name("supervisor")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    let outcome = runtime.block_on(async { App::open(config, service).await?.serve().await });
    // A blocking thread that hangs in the kernel (a dead disk) must not keep the process from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

/// Answers questions about the configuration.
fn tell_config(args: Args, action: ConfigCommand) -> ExitCode {
    if action == ConfigCommand::Default {
        print!("{}", config::DEFAULT);
        return ExitCode::SUCCESS;
    }
    match (action, args.into_settings()) {
        (ConfigCommand::Dump, Ok(settings)) => match toml::to_string(&settings) {
            Ok(text) => print!("{text}"),
            Err(error) => return refuse(&error),
        },
        (_, Ok(_)) => println!("the configuration is well"),
        // One line for each, as compilers write them: editors go to the place.
        (ConfigCommand::Check, Err(ConfigError::Parse { at, problems })) => {
            for problem in problems {
                eprintln!("{}:{}: {}", at.display(), problem.line, problem.what);
            }
            return ExitCode::FAILURE;
        }
        (_, Err(error)) => return refuse(&error),
    }
    ExitCode::SUCCESS
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("berth-supervisor: {}", chain(error));
    ExitCode::FAILURE
}
