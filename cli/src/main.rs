//! `berth`: docker's command line over the Docker Engine API.

mod args;
mod client;
mod commands;
mod config;
mod demo;
mod exit;
mod options;
mod output;
mod streams;
mod terminal;

use args::grammar::{self, Parsed};
use std::io::Write;

fn main() {
    let code = match grammar::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Command(cli)) => run(*cli),
        Ok(Parsed::Help(text)) => say(&text),
        Ok(Parsed::Group(text)) => {
            complain(text.trim_end());
            0
        }
        Ok(Parsed::Version) => say(&format!("{}\n", commands::version::LINE)),
        Err(error) => {
            complain(&error.to_string());
            error.code()
        }
    };
    // Not by returning: a thread may still be waiting for standard input.
    std::process::exit(i32::from(code));
}

fn run(cli: args::Cli) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("berth: start the event loop: {error}"));
            return 1;
        }
    };
    let outcome = runtime.block_on(commands::run(cli));
    // The runtime is left as it is, see main.
    std::mem::forget(runtime);
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            if !failure.is_silent() {
                complain(&failure.to_string());
            }
            failure.code()
        }
    }
}

fn say(text: &str) -> u8 {
    match output::print(text) {
        Ok(()) => 0,
        Err(failure) => failure.code(),
    }
}

fn complain(text: &str) {
    // Nobody is left to hear about a closed standard error.
    let _ = writeln!(std::io::stderr(), "{text}");
}
