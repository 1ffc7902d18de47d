//! What may follow on a command line: `berth __complete WORDS...` prints a candidate per line, with what it means after a tab,
//! and last a directive of cobra's protocol, which docker's plugins speak, too. The scripts of the shells ask this.

pub mod names;
pub mod scripts;

use crate::args::{Cli, Globals, grammar};
use crate::config::Config;
use crate::plugins::{Plugin, Plugins};
use clap::{Arg, CommandFactory};
use names::{Kind, States};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::{Command, Stdio};

/// The shell may complete with names of files.
const FILES: u8 = 0;
/// It must not.
const NO_FILES: u8 = 4;

/// A candidate and what it means.
type Candidate = (String, String);

/// What comes next at a place of the command line.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// These words.
    Words(Vec<Candidate>),
    /// Names that the engine or the client knows.
    Names(Kind),
    /// Files.
    Files,
    /// A plugin knows.
    Plugin(String),
}

/// Answers `__complete`: the words before the cursor, the last one as far as it is typed.
pub async fn run(words: &[String]) -> String {
    let mut root = Cli::command();
    root.build();
    let globals = globals_of(words);
    let config = Config::load_quietly(&globals);
    let plugins = config.as_ref().map(Plugins::find).unwrap_or_default();
    let names: BTreeSet<&str> = plugins.names().collect();
    let current = words.last().map(String::as_str).unwrap_or_default();
    let (mut candidates, directive) = match wanted(&root, words, &names) {
        Wanted::Files => (Vec::new(), FILES),
        Wanted::Words(words) => (words, NO_FILES),
        Wanted::Plugin(name) => {
            return plugins.get(&name).map(|plugin| asked(&plugin, &name, words)).unwrap_or_default();
        }
        Wanted::Names(kind) => {
            let files = kind == Kind::ContainerOrFile && (current.contains('/') || current.starts_with(['.', '~']));
            match &config {
                Some(config) if !files => (names::of(config, &kind).await, NO_FILES),
                _ => (Vec::new(), FILES),
            }
        }
    };
    // `--flag=value` is one word: its candidates are, too.
    let (prefix, typed) = match current.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => (format!("{flag}="), value),
        _ => (String::new(), current),
    };
    candidates.retain(|(word, _)| word.starts_with(typed));
    candidates.sort();
    candidates.dedup_by(|a, b| a.0 == b.0);
    let mut out = String::new();
    for (word, about) in candidates {
        // A tab or a new line would end the candidate.
        let about = about.replace(['\t', '\n'], " ");
        out.push_str(&if about.is_empty() {
            format!("{prefix}{word}\n")
        } else {
            format!("{prefix}{word}\t{about}\n")
        });
    }
    out + &format!(":{directive}\n")
}

/// The flags before the command, as far as they can be read.
fn globals_of(words: &[String]) -> Globals {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    (0..words.len()).rev().find_map(|end| grammar::globals(&words[..end]).ok()).unwrap_or_default()
}

/// Asks a plugin, which gets the words from its name on.
fn asked(plugin: &Plugin, name: &str, words: &[String]) -> String {
    let at = words.iter().position(|word| word == name).unwrap_or(0);
    let output = Command::new(&plugin.path)
        .arg("__complete")
        .args(&words[at..])
        .env(crate::plugins::ORIGINAL, crate::plugins::original())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn about(command: &clap::Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// Finds out what may stand at the end.
fn wanted(root: &clap::Command, words: &[String], plugins: &BTreeSet<&str>) -> Wanted {
    let Some((current, before)) = words.split_last() else { return Wanted::Words(Vec::new()) };
    let mut command = root;
    let mut path: Vec<&str> = Vec::new();
    let mut positionals = 0;
    let mut only_words = false;
    let mut value_of: Option<&Arg> = None;
    for word in before {
        if value_of.take().is_some() {
            continue;
        }
        if only_words || !word.starts_with('-') || word == "-" {
            match command.find_subcommand(word) {
                Some(found) if command.has_subcommands() => {
                    command = found;
                    path.push(found.get_name());
                }
                None if path.is_empty() && plugins.contains(word.as_str()) => return Wanted::Plugin(word.clone()),
                _ => {
                    positionals += 1;
                    // Of a command in a container nothing is known.
                    only_words |= command.get_positionals().any(Arg::is_trailing_var_arg_set);
                }
            }
        } else if word == "--" {
            only_words = true;
        } else {
            value_of = flag_with_value(command, word);
        }
    }
    if let Some(flag) = value_of {
        return value(&path, flag);
    }
    if !only_words && current.starts_with('-') {
        if let Some((name, _)) = current.split_once('=')
            && let Some(flag) = by_name(command, name)
        {
            return value(&path, flag);
        }
        return Wanted::Words(flags(command));
    }
    if command.has_subcommands() {
        let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
        let mut words: Vec<Candidate> = visible.map(|c| (c.get_name().to_owned(), about(c))).collect();
        if path.is_empty() {
            words.extend(plugins.iter().map(|name| ((*name).to_owned(), "(plugin)".to_owned())));
        }
        return Wanted::Words(words);
    }
    positional(command, &path, positionals)
}

fn by_name<'c>(command: &'c clap::Command, word: &str) -> Option<&'c Arg> {
    let long = word.strip_prefix("--");
    let short = word.strip_prefix('-').and_then(|rest| rest.chars().last());
    command.get_arguments().filter(|arg| !arg.is_positional()).find(|arg| match long {
        Some(long) => arg.get_long() == Some(long),
        None => short.is_some() && arg.get_short() == short,
    })
}

/// The flag that takes the next word for its value.
fn flag_with_value<'c>(command: &'c clap::Command, word: &str) -> Option<&'c Arg> {
    if word.contains('=') {
        return None;
    }
    by_name(command, word).filter(|arg| !grammar::is_switch(arg))
}

fn flags(command: &clap::Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    let mut words: Vec<Candidate> = shown
        .filter_map(|arg| {
            Some((format!("--{}", arg.get_long()?), arg.get_help().map(ToString::to_string).unwrap_or_default()))
        })
        .collect();
    words.push(("--help".to_owned(), "Print what the command does".to_owned()));
    words
}

fn list(words: &[&str]) -> Wanted {
    Wanted::Words(words.iter().map(|word| ((*word).to_owned(), String::new())).collect())
}

/// What a flag may be given.
fn value(path: &[&str], flag: &Arg) -> Wanted {
    let command = path.last().copied().unwrap_or_default();
    match flag.get_long().unwrap_or_default() {
        "context" | "from" => Wanted::Names(Kind::Context),
        "network" => Wanted::Names(Kind::Network),
        "link" | "volumes-from" | "container" => Wanted::Names(Kind::Container(States::Any)),
        "log-level" => list(&["debug", "info", "warn", "error", "fatal"]),
        "pull" => list(&["always", "missing", "never"]),
        "restart" => list(&["no", "always", "on-failure", "unless-stopped"]),
        "signal" | "stop-signal" => {
            list(&["HUP", "INT", "KILL", "QUIT", "STOP", "TERM", "USR1", "USR2", "CONT", "WINCH"])
        }
        "log-driver" => list(&["json-file", "local", "none"]),
        "type" => list(&["container", "image", "network", "volume", "service", "node", "plugin", "secret", "config"]),
        "isolation" => list(&["default"]),
        "cgroupns" => list(&["host", "private"]),
        "platform" => list(&["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64"]),
        "format" => list(match command {
            "inspect" | "info" | "version" | "events" => &["json"],
            _ => &["table", "json"],
        }),
        "filter" => list(match command {
            "ps" | "ls" if path.first() != Some(&"network") && path.first() != Some(&"volume") => &[
                "ancestor=",
                "before=",
                "exited=",
                "expose=",
                "health=",
                "id=",
                "is-task=",
                "label=",
                "name=",
                "network=",
                "publish=",
                "since=",
                "status=",
                "volume=",
            ],
            "images" => &["before=", "dangling=", "label=", "reference=", "since=", "until="],
            "events" => &["container=", "event=", "image=", "label=", "network=", "type=", "volume="],
            "prune" => &["label=", "label!=", "until="],
            _ => &["dangling=", "driver=", "id=", "label=", "name=", "scope=", "type="],
        }),
        "config" | "tlscacert" | "tlscert" | "tlskey" | "env-file" | "label-file" | "cidfile" | "input" | "output"
        | "file" | "iidfile" | "volume" | "mount" | "device" | "security-opt" => Wanted::Files,
        _ => Wanted::Words(Vec::new()),
    }
}

/// What an argument may be, by the name that it has in the usage line.
fn positional(command: &clap::Command, path: &[&str], at: usize) -> Wanted {
    let all: Vec<&Arg> = command.get_positionals().collect();
    let Some(arg) = all.get(at).or_else(|| all.last().filter(|arg| many(arg))) else {
        return Wanted::Words(Vec::new());
    };
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    let first = name.split([' ', '[', '|', ':']).next().unwrap_or_default();
    if name.contains(' ') && at > 0 {
        // "IMAGE [COMMAND] [ARG...]": what is after the first word is the container's.
        return Wanted::Files;
    }
    let leaf = path.last().copied().unwrap_or_default();
    match first {
        "CONTAINER" if leaf == "cp" => Wanted::Names(Kind::ContainerOrFile),
        "CONTAINER" => Wanted::Names(Kind::Container(match leaf {
            "start" => States::Startable,
            "stop" | "kill" | "exec" | "attach" | "pause" | "top" | "port" | "stats" => States::Running,
            "unpause" => States::Paused,
            _ => States::Any,
        })),
        "IMAGE" | "SOURCE_IMAGE" | "TARGET_IMAGE" => Wanted::Names(Kind::Image),
        "REPOSITORY" | "NAME" if path.contains(&"push") || leaf == "images" || path.contains(&"image") => {
            Wanted::Names(Kind::Image)
        }
        "NAME" if leaf == "inspect" => Wanted::Names(Kind::Any),
        "NETWORK" => Wanted::Names(Kind::Network),
        "VOLUME" if leaf != "create" => Wanted::Names(Kind::Volume),
        "CONTEXT" if !matches!(leaf, "create" | "import") => Wanted::Names(Kind::Context),
        "SHELL" => list(&["bash", "elvish", "fish", "powershell", "zsh"]),
        "FILE" | "file" | "PATH" | "DIR" => Wanted::Files,
        _ => Wanted::Words(Vec::new()),
    }
}

fn many(arg: &Arg) -> bool {
    matches!(arg.get_action(), clap::ArgAction::Append) || arg.is_trailing_var_arg_set()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Wanted {
        let mut root = Cli::command();
        root.build();
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        wanted(&root, &words, &["compose"].into())
    }

    fn words(line: &str) -> Vec<String> {
        match of(line) {
            Wanted::Words(words) => words.into_iter().map(|(word, _)| word).collect(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_comes_next() {
        for (line, want) in [
            ("stop ", Wanted::Names(Kind::Container(States::Running))),
            ("stop a b", Wanted::Names(Kind::Container(States::Running))),
            ("container start ", Wanted::Names(Kind::Container(States::Startable))),
            ("unpause ", Wanted::Names(Kind::Container(States::Paused))),
            ("rm -f ", Wanted::Names(Kind::Container(States::Any))),
            ("logs --tail 5 ", Wanted::Names(Kind::Container(States::Any))),
            ("run --rm -it ", Wanted::Names(Kind::Image)),
            ("run --network ", Wanted::Names(Kind::Network)),
            ("run --network=", Wanted::Names(Kind::Network)),
            ("run busybox ", Wanted::Files),
            ("run -it --env-file ", Wanted::Files),
            ("exec -it ", Wanted::Names(Kind::Container(States::Running))),
            ("exec web ", Wanted::Files),
            ("rmi ", Wanted::Names(Kind::Image)),
            ("images ", Wanted::Names(Kind::Image)),
            ("network rm ", Wanted::Names(Kind::Network)),
            ("volume rm a ", Wanted::Names(Kind::Volume)),
            ("context use ", Wanted::Names(Kind::Context)),
            ("-c ", Wanted::Names(Kind::Context)),
            ("inspect ", Wanted::Names(Kind::Any)),
            ("cp ", Wanted::Names(Kind::ContainerOrFile)),
            ("load -i ", Wanted::Files),
            ("compose up ", Wanted::Plugin("compose".into())),
        ] {
            assert_eq!(of(line), want, "{line:?}");
        }
        assert!(words("").contains(&"run".to_owned()) && words("").contains(&"compose".to_owned()));
        assert!(!words("").contains(&"demo-guest".to_owned()));
        assert!(words("container ").contains(&"ls".to_owned()));
        assert_eq!(words("run --pull "), ["always", "missing", "never"]);
        assert!(words("context create ").is_empty());
    }

    /// Every command has its flags, the shells' scripts ask for them, and each has a page.
    #[test]
    fn every_command_is_completed_and_has_a_page() {
        let mut root = Cli::command();
        root.build();
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
        let mut commands = vec![(Vec::<String>::new(), &root)];
        let mut count = 0;
        while let Some((path, command)) = commands.pop() {
            for inner in command.get_subcommands() {
                commands.push(([&path[..], &[inner.get_name().to_owned()]].concat(), inner));
            }
            if command.is_hide_set() {
                continue;
            }
            count += 1;
            let line = [&path[..], &["--".to_owned()]].concat().join(" ");
            let given = words(&line);
            for arg in command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set()) {
                let long = format!("--{}", arg.get_long().unwrap());
                assert!(given.contains(&long), "{line} {long}");
            }
            let page = dir.path().join(format!("{}.1", [&["berth".to_owned()], &path[..]].concat().join("-")));
            let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{}", page.display());
        }
        assert!(count > 100, "{count}");
    }
}
