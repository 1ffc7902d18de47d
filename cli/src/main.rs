//! `berth`: docker's command line over the Docker Engine API.

mod args;
mod client;
mod commands;
mod complete;
mod config;
mod context;
mod credentials;
mod demo;
mod exit;
mod options;
mod output;
mod plugins;
mod streams;
mod terminal;

use args::grammar::{self, Parsed, UsageError};
use config::Config;
use std::ffi::OsString;
use std::io::Write;

fn main() {
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(own) = own_build(&words) {
        words = own;
    }
    if let Some(code) = built_by_plugin(&words) {
        std::process::exit(i32::from(code));
    }
    if words.first().is_some_and(|word| word == "__complete") {
        let words: Vec<String> = words[1..].iter().map(|word| word.to_string_lossy().into_owned()).collect();
        std::process::exit(i32::from(run(async { output::print(&complete::run(&words).await) })));
    }
    let code = match grammar::parse(words.iter().cloned()) {
        Ok(Parsed::Command(cli, line)) => run(commands::run(*cli, line)),
        Ok(Parsed::Help(text)) => say(&text),
        Ok(Parsed::Overview) => say(&commands::overview(&words)),
        Ok(Parsed::Group(text)) => {
            complain(text.trim_end());
            0
        }
        Ok(Parsed::Version) => say(&format!("{}\n", commands::version::LINE)),
        Err(error) => plugin_or(&words, &error),
    };
    // Not by returning: a thread may still be waiting for standard input.
    std::process::exit(i32::from(code));
}

/// `buildx build` is Berth's own, where there is no buildx.
fn own_build(words: &[OsString]) -> Option<Vec<OsString>> {
    // Looked at first: most commands are none, and are not to wait for a search for plugins.
    if !words.iter().any(|word| word == "buildx") {
        return None;
    }
    let own = plugins::build::own(words)?;
    let config = Config::load(&grammar::globals(words).ok()?).ok()?;
    plugins::Plugins::find(&config).get("buildx").is_none().then_some(own)
}

/// Commands that only buildx has are buildx's, where it is installed.
fn built_by_plugin(words: &[OsString]) -> Option<u8> {
    // Looked at first: most commands are none, and are not to wait for a search for plugins.
    if !words.iter().any(|word| word == "builder" || word == "bake") {
        return None;
    }
    let words = plugins::build::route(words)?;
    let config = Config::load(&grammar::globals(&words).ok()?).ok()?;
    let plugin = plugins::Plugins::find(&config).get("buildx").filter(|plugin| plugin.metadata.is_ok())?;
    Some(run(commands::run_plugin(&config, &plugin, &words)))
}

/// A command nobody knows may be a plugin's.
fn plugin_or(words: &[OsString], error: &UsageError) -> u8 {
    let (name, words) = match error {
        UsageError::Unknown { path, word, .. } if path == "berth" => (word.clone(), words.to_vec()),
        UsageError::Topic(words) => {
            let topic: Vec<OsString> = words.split(' ').chain(["--help"]).map(OsString::from).collect();
            (words.split(' ').next().unwrap_or_default().to_owned(), topic)
        }
        _ => (String::new(), Vec::new()),
    };
    if !name.is_empty() {
        match grammar::globals(&words).map(|globals| Config::load(&globals)) {
            Ok(Ok(config)) => match plugins::Plugins::find(&config).get(&name) {
                Some(plugins::Plugin { metadata: Err(fault), path, .. }) => {
                    complain(&format!("berth: {} is no plugin that can be run: {fault}", path.display()));
                    return 1;
                }
                Some(plugin) => return run(commands::run_plugin(&config, &plugin, &words)),
                None => {}
            },
            Ok(Err(error)) => {
                complain(&error.to_string());
                return 1;
            }
            // What is wrong with the flags has been said by the first look at them.
            Err(_) => {}
        }
    }
    complain(&error.to_string());
    error.code()
}

fn run(command: impl Future<Output = exit::Outcome>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("berth: start the event loop: {error}"));
            return 1;
        }
    };
    let outcome = runtime.block_on(command);
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
