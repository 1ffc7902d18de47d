//! One small process per container or pod: it owns stdio, logs and the exit status, and outlives the supervisor.
//!
//! It speaks containerd's shim contract: actions `start` and `delete` on the command line, `containerd.task.v3.Task` over gRPC
//! and `containerd.task.v2.Task` over ttrpc on one socket (`bootstrap`, `connections`), and beside it `berth.streams.v1.Streams` for attaching. The container itself is built by an OCI runtime,
//! berth-runtime or any other with runc's command line.
//!
//! One thread, one async runtime, nothing that only a busy server needs: a thousand shims run on one machine. Transparent
//! huge pages are not switched off here, although they cost other shims megabytes: the switch is inherited by the container,
//! and a heap this small with a single thread never has room for a huge page.

mod args;
mod bootstrap;
mod bundle;
mod calls;
mod cgroup;
mod cleanup;
mod clock;
mod connections;
mod create;
mod desk;
mod env;
mod error;
mod events;
mod forward;
mod group;
mod info;
mod init;
mod io;
mod journal;
mod local;
mod mounts;
mod oci;
mod oom;
mod options;
mod process;
mod reaper;
mod relay;
mod report;
mod rules;
mod server;
mod socket;
mod start;
mod stats;
mod task;

use std::{io::Write as _, process::ExitCode};

use args::Action;
use prost::Message as _;
use proto::kind::chain;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let words: Vec<_> = words.collect();
    match std::path::Path::new(&name).file_name() {
        Some(name) if name == init::NAME => return init::main(words),
        Some(name) if name == init::PAUSE => return init::pause(),
        Some(name) if name == env::NAME => return env::main(words),
        _ => {}
    }
    if let Some((action, rest)) = words.split_first()
        && action == io::pack::ACTION
    {
        return io::pack::main(rest);
    }
    if let Some((action, rest)) = words.split_first()
        && action == relay::ACTION
    {
        return relay::main(rest);
    }
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => return failed(2, &error),
    };
    if args.version || args.info {
        let text = if args.info {
            info::info(&start::read_stdin().unwrap_or_default()).encode_to_vec()
        } else {
            format!("containerd-shim-berth-v1:\n  Version:  {}\n", env!("CARGO_PKG_VERSION")).into_bytes()
        };
        // Nobody reads it: nobody misses it.
        let _ = std::io::stdout().write_all(&text);
        return ExitCode::SUCCESS;
    }
    match args.action {
        Some(Action::Start) => start::start(&args).map_or_else(|error| failed(1, &error), |()| ExitCode::SUCCESS),
        Some(Action::Delete) => cleanup::delete(&args).map_or_else(|error| failed(1, &error), |()| ExitCode::SUCCESS),
        None => failed(2, &args::ArgsError::Action(String::new())),
    }
}

fn failed(code: u8, error: &dyn std::error::Error) -> ExitCode {
    report::report(format_args!("{}", chain(error)));
    ExitCode::from(code)
}
