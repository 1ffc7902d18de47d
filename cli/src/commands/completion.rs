//! `completion` and `man`: both from the clap definition.

use crate::args::Cli;
use crate::args::system::{CompletionArgs, ManArgs};
use crate::complete::scripts;
use crate::exit::{Failure, Outcome};
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;

/// Prints a completion script.
pub fn completion(args: &CompletionArgs) -> Outcome {
    match args.shell {
        Shell::Bash => output::print(scripts::BASH),
        Shell::Zsh => output::print(scripts::ZSH),
        Shell::Fish => output::print(scripts::FISH),
        other => {
            let mut script = Vec::new();
            clap_complete::generate(other, &mut Cli::command(), "berth", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Writes a man page per command.
pub fn man(args: &ManArgs) -> Outcome {
    let fault = |cause| Failure::io(format!("write man pages to {}", args.dir.display()), cause);
    std::fs::create_dir_all(&args.dir).map_err(fault)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(fault)
}
