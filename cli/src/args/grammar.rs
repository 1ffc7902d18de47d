//! docker's flag grammar (pflag): bundled shorts, `--x=v`, `--x v`, `-xv`, booleans that take a value only after "=",
//! the last one of a repeated flag wins, and for run, create and exec the flags end at the first other word.
//!
//! The words are checked here against the clap definition, in docker's words, and handed to clap in one canonical form.

use super::{Cli, Globals, NOT_YET, help, values};
use crate::output::similar;
use clap::{ArgAction, CommandFactory, FromArgMatches, builder::ValueRange, error::ContextKind, error::ContextValue};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// A command as it was written: for gates, hooks and messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// "container run"
    pub command: String,
    /// Its flags, by their long names.
    pub flags: BTreeMap<String, String>,
    /// Its other words.
    pub words: Vec<String>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A command.
    Command(Box<Cli>, Line),
    /// What there is: the help of berth itself.
    Overview,
    /// This text on standard output.
    Help(String),
    /// A group without a command: its help, on standard error as docker has it.
    Group(String),
    /// One line with the version.
    Version,
}

/// Why a command line was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// A flag that is unknown, lacks its value, or has a bad one.
    #[error("{what}\n\nUsage:  {usage}\n\nRun '{path} --help' for more information")]
    Flag {
        /// What is wrong.
        what: String,
        /// Usage line of the command.
        usage: String,
        /// The command.
        path: String,
    },
    /// Too many or too few arguments.
    #[error("berth: '{path}' {what}\n\nUsage:  {usage}\n\n{hint} '{path} --help' for more information")]
    Arity {
        /// What is wrong.
        what: String,
        /// Usage line of the command.
        usage: String,
        /// The command.
        path: String,
        /// "See" or "Run": docker's own habit.
        hint: &'static str,
    },
    /// Nobody knows this command.
    #[error("berth: unknown command: {path} {word}{}{}\n\nRun '{path} --help' for more information", did_you_mean(.near), usage_of(.path))]
    Unknown {
        /// The command group.
        path: String,
        /// The word after it.
        word: String,
        /// A command with a similar name.
        near: Option<String>,
    },
    /// No help on this.
    #[error("unknown help topic: {0}")]
    Topic(String),
    /// docker has it, berth not yet.
    #[error("berth: '{0}' is not implemented yet")]
    NotYet(String),
    /// Not UTF-8.
    #[error("berth: argument {0:?} is not valid UTF-8")]
    NotUtf8(OsString),
}

/// The line under an unknown word.
pub fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!("\n\nDid you mean '{near}'?")).unwrap_or_default()
}

/// The usage of a group; of berth itself, it would say nothing.
fn usage_of(path: &str) -> String {
    if path.contains(' ') { format!("\n\nUsage:  {path}") } else { String::new() }
}

impl UsageError {
    /// Exit code: bad flags are 125 for every command, the rest is 1.
    pub fn code(&self) -> u8 {
        if matches!(self, Self::Flag { .. }) { 125 } else { 1 }
    }
}

/// Reads a command line, without the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, UsageError> {
    let words: Vec<String> =
        args.into_iter().map(|a| a.into_string().map_err(UsageError::NotUtf8)).collect::<Result<_, _>>()?;
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    let mut path = vec!["berth".to_owned()];
    let mut canonical = vec!["berth".to_owned()];
    let mut names: Vec<String> = Vec::new();
    let mut rest = words.as_slice();
    loop {
        let level = Level { command, path: path.join(" ") };
        let group = command.has_subcommands();
        let flags = level.read(rest, group || has_tail(command))?;
        if flags.help {
            let text = || Parsed::Help(help::render(command, &level.path));
            return Ok(if path.len() == 1 { Parsed::Overview } else { text() });
        }
        if flags.version {
            return Ok(Parsed::Version);
        }
        canonical.extend(flags.canonical);
        if !group {
            level.check_arity(flags.words.len())?;
            canonical.push("--".to_owned());
            canonical.extend(flags.words.iter().cloned());
            let line = Line { command: names.join(" "), flags: flags.given, words: flags.words };
            return level.finish(&root, canonical, line);
        }
        let mut after = flags.words.into_iter();
        let Some(word) = after.next() else {
            return Ok(if path.len() == 1 {
                Parsed::Overview
            } else {
                Parsed::Group(help::render(command, &level.path))
            });
        };
        if path.len() == 1 && word == "help" {
            return help_on(&root, after);
        }
        let Some(found) = command.find_subcommand(&word) else {
            let name = [&path[1..], std::slice::from_ref(&word)].concat().join(" ");
            return Err(if NOT_YET.contains(&name.as_str()) { UsageError::NotYet(name) } else { level.unknown(word) });
        };
        rest = &rest[rest.len() - after.len()..];
        canonical.push(found.get_name().to_owned());
        names.push(found.get_name().to_owned());
        path.push(word);
        command = found;
    }
}

/// Reads the flags before the command only: for commands that are somebody else's.
pub fn globals(args: &[OsString]) -> Result<Globals, UsageError> {
    let words: Vec<String> =
        args.iter().map(|a| a.clone().into_string().map_err(UsageError::NotUtf8)).collect::<Result<_, _>>()?;
    let mut root = Cli::command();
    root.build();
    let level = Level { command: &root, path: "berth".to_owned() };
    let flags = level.read(&words, true)?;
    let mut canonical = vec!["berth".to_owned()];
    canonical.extend(flags.canonical);
    // Any command will do: its arguments are not looked at.
    canonical.extend(["context".to_owned(), "show".to_owned()]);
    let matches = root.clone().try_get_matches_from(canonical).map_err(|error| level.value_error(&error))?;
    Ok(Cli::from_arg_matches(&matches).map_err(|error| level.value_error(&error))?.globals)
}

/// Where the command begins, behind the global flags; nothing if there is none, or the flags are wrong.
pub fn command_at(args: &[OsString]) -> Option<usize> {
    let words: Vec<String> = args.iter().map(|word| word.to_str().map(str::to_owned)).collect::<Option<_>>()?;
    let mut root = Cli::command();
    root.build();
    let flags = Level { command: &root, path: "berth".to_owned() }.read(&words, true).ok()?;
    (!flags.words.is_empty()).then(|| words.len() - flags.words.len())
}

fn help_on(root: &clap::Command, words: impl Iterator<Item = String>) -> Result<Parsed, UsageError> {
    let (mut command, mut path) = (root, "berth".to_owned());
    let words: Vec<String> = words.collect();
    for word in &words {
        command = command.find_subcommand(word).ok_or_else(|| UsageError::Topic(words.join(" ")))?;
        path = format!("{path} {word}");
    }
    Ok(if words.is_empty() { Parsed::Overview } else { Parsed::Help(help::render(command, &path)) })
}

/// One command or group and the words that lead to it.
struct Level<'a> {
    command: &'a clap::Command,
    path: String,
}

/// What was read of one level.
#[derive(Default)]
struct Flags {
    canonical: Vec<String>,
    words: Vec<String>,
    /// By their long names.
    given: BTreeMap<String, String>,
    help: bool,
    version: bool,
}

impl Level<'_> {
    fn unknown(&self, word: String) -> UsageError {
        let commands = self.command.get_subcommands().filter(|c| !c.is_hide_set()).map(clap::Command::get_name);
        let near = similar::nearest(&word, commands).map(str::to_owned);
        UsageError::Unknown { path: self.path.clone(), word, near }
    }

    fn bad(&self, what: String) -> UsageError {
        UsageError::Flag { what, usage: help::usage(self.command, &self.path), path: self.path.clone() }
    }

    /// Reads flags; with `stop`, up to the first word that is none.
    fn read(&self, words: &[String], stop: bool) -> Result<Flags, UsageError> {
        let mut flags = Flags::default();
        let mut given: Vec<(&clap::Arg, String)> = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                flags.words.extend(words.cloned());
                break;
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                if name.is_empty() || name.starts_with('-') {
                    return Err(self.bad(format!("bad flag syntax: {word}")));
                }
                let Some(arg) = self.long(name) else {
                    match name {
                        "help" => flags.help = true,
                        "version" if self.path == "berth" => flags.version = true,
                        _ => return Err(self.bad(format!("unknown flag: --{name}"))),
                    }
                    continue;
                };
                let value = match value {
                    Some(value) => value.to_owned(),
                    None if is_switch(arg) => "true".to_owned(),
                    None => {
                        words.next().cloned().ok_or_else(|| self.bad(format!("flag needs an argument: --{name}")))?
                    }
                };
                given.push((arg, value));
            } else if word.len() > 1 && word.starts_with('-') {
                self.read_shorts(word, &mut words, &mut given, &mut flags)?;
            } else if stop {
                flags.words.push(word.clone());
                flags.words.extend(words.cloned());
                break;
            } else {
                flags.words.push(word.clone());
            }
        }
        let long = |arg: &clap::Arg| arg.get_long().unwrap_or_default().to_owned();
        flags.given = given.iter().map(|(arg, value)| (long(arg), value.clone())).collect();
        flags.canonical = self.canonical(given)?;
        Ok(flags)
    }

    fn read_shorts<'c>(
        &'c self,
        word: &str,
        words: &mut std::slice::Iter<'_, String>,
        given: &mut Vec<(&'c clap::Arg, String)>,
        flags: &mut Flags,
    ) -> Result<(), UsageError> {
        for (at, short) in word.char_indices().skip(1) {
            let rest = &word[at + short.len_utf8()..];
            let Some(arg) = self.command.get_arguments().find(|a| a.get_short() == Some(short)) else {
                match short {
                    'h' => flags.help = true,
                    'v' if self.path == "berth" => flags.version = true,
                    _ => {
                        return Err(self.bad(format!("unknown shorthand flag: '{short}' in -{}", &word[at..])));
                    }
                }
                return Ok(());
            };
            if let Some(value) = rest.strip_prefix('=') {
                given.push((arg, value.to_owned()));
                return Ok(());
            }
            if is_switch(arg) {
                given.push((arg, "true".to_owned()));
                continue;
            }
            let value = if rest.is_empty() {
                let missing = || self.bad(format!("flag needs an argument: '{short}' in -{}", &word[at..]));
                words.next().cloned().ok_or_else(missing)?
            } else {
                rest.to_owned()
            };
            given.push((arg, value));
            return Ok(());
        }
        Ok(())
    }

    fn long(&self, name: &str) -> Option<&clap::Arg> {
        self.command
            .get_arguments()
            .find(|a| a.get_long() == Some(name) || a.get_all_aliases().is_some_and(|all| all.contains(&name)))
    }

    fn canonical(&self, given: Vec<(&clap::Arg, String)>) -> Result<Vec<String>, UsageError> {
        let mut out: Vec<(&clap::Id, String)> = Vec::new();
        for (arg, value) in given {
            let name = arg.get_long().unwrap_or_default();
            if !matches!(arg.get_action(), ArgAction::Append) {
                out.retain(|(id, _)| *id != arg.get_id());
            }
            if !is_switch(arg) {
                out.push((arg.get_id(), format!("--{name}={value}")));
                continue;
            }
            let on = values::boolean(&value)
                .map_err(|error| self.bad(format!("invalid argument {value:?} for {:?} flag: {error}", title(arg))))?;
            match arg.get_action() {
                ArgAction::SetTrue if on => out.push((arg.get_id(), format!("--{name}"))),
                ArgAction::SetTrue => {}
                _ => out.push((arg.get_id(), format!("--{name}={on}"))),
            }
        }
        Ok(out.into_iter().map(|(_, text)| text).collect())
    }

    fn check_arity(&self, count: usize) -> Result<(), UsageError> {
        let (mut min, mut max) = (0, 0usize);
        for arg in self.command.get_positionals() {
            let range = arg.get_num_args().unwrap_or(ValueRange::SINGLE);
            if arg.is_required_set() {
                min += range.min_values();
            }
            let many = matches!(arg.get_action(), ArgAction::Append);
            max = if many { usize::MAX } else { max.saturating_add(range.max_values()) };
        }
        if (min..=max).contains(&count) {
            return Ok(());
        }
        let plural = |n: usize| if n == 1 { "1 argument".to_owned() } else { format!("{n} arguments") };
        let what = match (min, max) {
            (0, 0) => "accepts no arguments".to_owned(),
            (0, max) => format!("requires at most {}", plural(max)),
            (min, usize::MAX) => format!("requires at least {}", plural(min)),
            (min, max) if min == max => format!("requires {}", plural(min)),
            (min, max) => format!("requires at least {min} and at most {}", plural(max)),
        };
        let hint = if min > 0 && max == usize::MAX { "See" } else { "Run" };
        Err(UsageError::Arity { what, usage: help::usage(self.command, &self.path), path: self.path.clone(), hint })
    }

    fn finish(&self, root: &clap::Command, canonical: Vec<String>, line: Line) -> Result<Parsed, UsageError> {
        let matches = root.clone().try_get_matches_from(canonical).map_err(|error| self.value_error(&error))?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| self.value_error(&error))?;
        Ok(Parsed::Command(Box::new(cli), line))
    }

    /// What clap says about a value, in docker's words.
    fn value_error(&self, error: &clap::Error) -> UsageError {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let flag = text(ContextKind::InvalidArg)
            .and_then(|shown| shown.strip_prefix("--"))
            .and_then(|shown| self.long(shown.split([' ', '=']).next().unwrap_or(shown)));
        let cause = std::error::Error::source(error).map(ToString::to_string);
        match (flag, text(ContextKind::InvalidValue), cause) {
            (Some(flag), Some(value), Some(cause)) => {
                self.bad(format!("invalid argument {value:?} for {:?} flag: {cause}", title(flag)))
            }
            _ => {
                let shown = error.to_string();
                let line = shown.lines().next().unwrap_or_default();
                self.bad(line.strip_prefix("error: ").unwrap_or(line).to_owned())
            }
        }
    }
}

fn title(arg: &clap::Arg) -> String {
    let long = arg.get_long().unwrap_or_default();
    arg.get_short().map_or_else(|| format!("--{long}"), |short| format!("-{short}, --{long}"))
}

/// A flag that needs no value. One that is on by default is the only switch that clap is given a value for.
pub fn is_switch(arg: &clap::Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
        || arg.get_num_args().is_some_and(|range| range.min_values() == 0)
        || matches!(arg.get_action(), ArgAction::Set) && arg.get_default_values().iter().any(|v| v == "true")
}

fn has_tail(command: &clap::Command) -> bool {
    command.get_positionals().any(clap::Arg::is_trailing_var_arg_set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    fn words(line: &str) -> Result<Parsed, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn command(line: &str) -> Command {
        match words(line) {
            Ok(Parsed::Command(cli, _)) => cli.command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_run_end_at_the_image() {
        let Command::Run(run) = command("run -itd --name=x -e A=b --rm=false --env C img -d --rm -- x") else {
            panic!()
        };
        let create = &run.container;
        assert!(run.detach && create.process.tty && create.process.interactive && !create.process.rm && run.sig_proxy);
        assert_eq!(create.name.as_deref(), Some("x"));
        assert_eq!(create.process.env, ["A=b", "C"]);
        assert_eq!(create.words, ["img", "-d", "--rm", "--", "x"]);
        let Command::Run(run) = command("run --sig-proxy=0 -h host -w/tmp -u=1 --name a --name b -- img") else {
            panic!()
        };
        let create = run.container;
        assert!(!run.sig_proxy);
        assert_eq!((create.network.hostname.as_str(), create.process.workdir.as_str()), ("host", "/tmp"));
        assert_eq!((create.process.user.as_str(), create.name.as_deref()), ("1", Some("b")));
        assert_eq!(create.words, ["img"]);
    }

    #[test]
    fn other_commands_take_flags_anywhere() {
        let Command::Rm(rm) = command("rm a -f b -v") else { panic!() };
        assert!(rm.force && rm.volumes && rm.containers == ["a", "b"]);
        let Command::Stop(stop) = command("stop a --time 3") else { panic!() };
        assert_eq!(stop.timeout, Some(3));
        let Command::Container(crate::args::ContainerCommand::Ls(ps)) = command("container ps -qa -n3") else {
            panic!()
        };
        assert!(ps.quiet && ps.all && ps.last == 3);
    }

    #[test]
    fn refusals() {
        for (line, first, code) in [
            ("run --bad", "unknown flag: --bad", 125),
            ("run -zi img", "unknown shorthand flag: 'z' in -zi", 125),
            ("run --name", "flag needs an argument: --name", 125),
            ("run -itw", "flag needs an argument: 'w' in -w", 125),
            ("run -m 1x img", "invalid argument \"1x\" for \"-m, --memory\" flag: invalid suffix: 'x'", 125),
            (
                "run -i=x img",
                "invalid argument \"x\" for \"-i, --interactive\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
                125,
            ),
            ("ps -H x", "unknown shorthand flag: 'H' in -H", 125),
            ("ps x", "berth: 'berth ps' accepts no arguments", 1),
            ("rm", "berth: 'berth rm' requires at least 1 argument", 1),
            ("tag a", "berth: 'berth tag' requires 2 arguments", 1),
            ("port", "berth: 'berth port' requires at least 1 and at most 2 arguments", 1),
            ("images a b", "berth: 'berth images' requires at most 1 argument", 1),
            ("exec a", "berth: 'berth exec' requires at least 2 arguments", 1),
            ("foo", "berth: unknown command: berth foo", 1),
            ("container foo", "berth: unknown command: berth container foo", 1),
            ("trust ls", "berth: 'trust' is not implemented yet", 1),
        ] {
            let error = words(line).map(|_| line).unwrap_err();
            assert_eq!((error.to_string().lines().next(), error.code()), (Some(first), code), "{line}");
        }
    }

    #[test]
    fn similar_commands_are_named() {
        let said = |line: &str| words(line).unwrap_err().to_string();
        assert_eq!(
            said("pss"),
            "berth: unknown command: berth pss\n\nDid you mean 'ps'?\n\nRun 'berth --help' for more information"
        );
        assert!(said("container strat").contains("Did you mean 'start'?"));
        assert!(!said("xyzzy").contains("mean"));
    }

    #[test]
    fn the_line_is_kept_for_others() {
        let Ok(Parsed::Command(_, line)) = words("-D container run -d --name x --pull=always img a -b") else {
            panic!()
        };
        let flags: Vec<_> = line.flags.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(line.command, "container run");
        assert_eq!(
            (flags.join(" ").as_str(), line.words.join(" ").as_str()),
            ("detach=true name=x pull=always", "img a -b")
        );
        let globals = |line: &str| globals(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        let read = globals("--tls=false --tlsverify -c ctx --config /x compose up --nope").unwrap();
        assert_eq!((read.tls, read.tlsverify, read.context.as_deref()), (Some(false), Some(true), Some("ctx")));
        assert_eq!(globals("--bad compose").unwrap_err().code(), 125);
    }

    #[test]
    fn help_in_every_place() {
        for line in ["--help", "help", "", "-D"] {
            assert!(matches!(words(line), Ok(Parsed::Overview)), "{line}");
        }
        assert_eq!(words("help foo bar").unwrap_err(), UsageError::Topic("foo bar".into()));
        for line in ["run --help", "help run", "container ls --help", "ps -h"] {
            assert!(matches!(words(line), Ok(Parsed::Help(_))), "{line}");
        }
        assert!(matches!(words("container"), Ok(Parsed::Group(_))));
        assert!(matches!(words("-v"), Ok(Parsed::Version)));
    }
}
