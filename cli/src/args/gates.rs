//! Commands and flags that not every engine knows: refused before the engine is asked, in docker's words.

use super::grammar::Line;
use crate::client::{ApiVersion, Client};
use crate::exit::{Failure, Outcome};

/// Commands as they are written in one line, flags (none: the command itself), and the minor of the API that has them.
const GATES: &[(&[&str], &[&str], u16)] = &[
    (&["run", "create"], &["cpus", "init", "stop-timeout"], 25),
    (&["run", "create"], &["health-start-period"], 29),
    (&["run", "create"], &["platform"], 32),
    (&["run", "create"], &["gpus"], 40),
    (&["run", "create"], &["cgroupns"], 41),
    (&["run", "create"], &["annotation"], 43),
    (&["run", "create"], &["health-start-interval"], 44),
    (&["exec"], &["env", "env-file"], 25),
    (&["exec"], &["workdir"], 35),
    (&["update"], &["cpu-rt-period", "cpu-rt-runtime"], 25),
    (&["update"], &["cpus"], 29),
    (&["update"], &["pids-limit"], 40),
    (&["logs"], &["until"], 35),
    (&["stop", "restart"], &["signal"], 42),
    (&["container prune", "image prune", "network prune", "volume prune", "system prune", "system df"], &[], 25),
    (&["builder prune"], &[], 31),
    (&["pull", "import"], &["platform"], 32),
    (&["push"], &["platform"], 46),
    (&["images"], &["tree"], 47),
    (&["history", "load", "save"], &["platform"], 48),
    (&["image inspect"], &["platform"], 49),
    (&["rmi"], &["platform"], 50),
    (&["network create"], &["attachable"], 25),
    (&["network create"], &["ingress"], 29),
    (&["network create"], &["config-only", "config-from", "scope"], 30),
    (&["network connect"], &["gw-priority"], 48),
    (&["volume prune"], &["all"], 42),
    (&["volume update"], &[], 42),
    (&["checkpoint create", "checkpoint ls", "checkpoint rm"], &[], 25),
];

/// Commands that are nothing without an experimental engine.
const EXPERIMENTAL: &[&str] = &["checkpoint create", "checkpoint ls", "checkpoint rm"];

/// Refuses what this engine doesn't know.
pub fn check(line: &Line, client: &Client) -> Outcome {
    refusal(line, client.version(), client.ping().experimental).map_or(Ok(()), |text| Err(Failure::Gate(text)))
}

fn refusal(line: &Line, version: ApiVersion, experimental: bool) -> Option<String> {
    let command = short(&line.command);
    let given = |flag: &&&str| line.flags.contains_key(**flag);
    for (_, flags, minor) in GATES.iter().filter(|(commands, ..)| commands.contains(&command)) {
        let needed = ApiVersion { major: 1, minor: *minor };
        if version >= needed {
            continue;
        }
        let what = match flags.iter().find(given) {
            Some(flag) => format!("\"--{flag}\""),
            None if flags.is_empty() => format!("berth {}", line.command),
            None => continue,
        };
        return Some(format!("{what} requires API version {needed}, but the Docker daemon API version is {version}"));
    }
    // An engine whose version was fixed has not been asked: it answers for itself.
    (EXPERIMENTAL.contains(&command) && !experimental).then(|| {
        format!("berth {} is only supported on a Docker daemon with experimental features enabled", line.command)
    })
}

/// The name of a command that has two.
fn short(command: &str) -> &str {
    match command {
        "image ls" => "images",
        "image rm" => "rmi",
        "container ls" => "ps",
        "image prune" | "image inspect" | "container prune" | "container inspect" => command,
        _ => command.strip_prefix("container ").or_else(|| command.strip_prefix("image ")).unwrap_or(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::CommandFactory;

    fn said(command: &str, flags: &[&str], minor: u16) -> Option<String> {
        let flags = flags.iter().map(|flag| ((*flag).to_owned(), "x".to_owned())).collect();
        let line = Line { command: command.into(), flags, words: Vec::new() };
        refusal(&line, ApiVersion { major: 1, minor }, false)
    }

    #[test]
    fn what_the_engine_lacks_is_named() {
        for (command, flags, minor, refused) in [
            (
                "run",
                &["health-start-interval"][..],
                41,
                Some(
                    "\"--health-start-interval\" requires API version 1.44, but the Docker daemon API version is 1.41",
                ),
            ),
            (
                "container run",
                &["gpus", "name"],
                39,
                Some("\"--gpus\" requires API version 1.40, but the Docker daemon API version is 1.39"),
            ),
            ("run", &["name", "rm"], 24, None),
            ("run", &["health-start-interval"], 44, None),
            (
                "volume prune",
                &["all"],
                41,
                Some("\"--all\" requires API version 1.42, but the Docker daemon API version is 1.41"),
            ),
            (
                "volume prune",
                &[],
                24,
                Some("berth volume prune requires API version 1.25, but the Docker daemon API version is 1.24"),
            ),
            (
                "image rm",
                &["platform"],
                41,
                Some("\"--platform\" requires API version 1.50, but the Docker daemon API version is 1.41"),
            ),
            (
                "container stop",
                &["signal"],
                41,
                Some("\"--signal\" requires API version 1.42, but the Docker daemon API version is 1.41"),
            ),
            (
                "checkpoint ls",
                &[],
                51,
                Some("berth checkpoint ls is only supported on a Docker daemon with experimental features enabled"),
            ),
            ("ps", &["all"], 24, None),
        ] {
            assert_eq!(said(command, flags, minor).as_deref(), refused, "{command} {flags:?}");
        }
    }

    #[test]
    fn gates_are_for_flags_that_exist() {
        let mut root = Cli::command();
        root.build();
        for (commands, flags, _) in GATES {
            for command in *commands {
                let found = command.split(' ').try_fold(&root, |c, name| c.find_subcommand(name));
                // A group that isn't built yet has no flags.
                let Some(found) = found else { continue };
                for flag in *flags {
                    assert!(found.get_arguments().any(|arg| arg.get_long() == Some(flag)), "{command} --{flag}");
                }
            }
        }
    }
}
