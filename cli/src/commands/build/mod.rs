//! `build`: by BuildKit's protocol, or with DOCKER_BUILDKIT=0 by the engine's classic builder.

mod classic;
pub mod du;
mod failure;
mod inputs;
mod questions;
mod request;
mod session;
mod solve;
mod specs;

use super::App;
use crate::args::build::BuildArgs;
use crate::args::values;
use crate::config;
use crate::exit::{Failure, Outcome};
use std::fs;
use std::io::{self, Read};

/// What is said of `bake` without its plugin.
pub fn no_bake() -> Failure {
    Failure::Refused(
        "berth: 'bake' is a command of the plugin buildx, which is not installed: install docker's buildx plugin"
            .to_owned(),
    )
}

/// Runs `build`.
pub async fn run(app: &App, args: &BuildArgs) -> Outcome {
    let buildkit = match config::variable("DOCKER_BUILDKIT") {
        None => true,
        Some(text) => values::boolean(&text)
            .map_err(|_| Failure::Refused("DOCKER_BUILDKIT environment variable expects boolean value".to_owned()))?,
    };
    if buildkit { solve::run(app, args).await } else { classic::run(app, args).await }
}

/// A name that nobody guesses: of a build, a session, a file under way.
fn random_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
