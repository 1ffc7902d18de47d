//! Commands that are rarely used and many (swarm, plugins, checkpoints): their grammar comes from a table, `rare.txt`, and not
//! from a struct each. A line of the table is "name aliases | arguments | about", the lines below it hold the flags in the
//! notation `-s/--long=type(default)`.

use super::values;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, Subcommand};
use std::collections::BTreeMap;

/// Groups of commands.
const TABLE: &str = include_str!("rare.txt");

/// A command of the table, as it was called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invocation {
    /// "swarm"
    pub group: &'static str,
    /// "init"
    pub command: String,
    /// Arguments that are no flags.
    pub words: Vec<String>,
    flags: BTreeMap<String, Vec<String>>,
    /// Flags that stand on the command line, and are not there by default.
    given: Vec<String>,
}

impl Invocation {
    /// The value of a flag, if it is given or has a default.
    pub fn value(&self, flag: &str) -> Option<&str> {
        self.flags.get(flag).and_then(|values| values.last()).map(String::as_str)
    }

    /// The values of a flag that may be repeated.
    pub fn values(&self, flag: &str) -> &[String] {
        self.flags.get(flag).map(Vec::as_slice).unwrap_or_default()
    }

    /// A switch.
    pub fn is_on(&self, flag: &str) -> bool {
        self.value(flag) == Some("true")
    }

    /// Names of the flags that stand on the command line.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(String::as_str)
    }

    /// Filters, "key=value" each.
    pub fn filters(&self) -> Vec<(String, String)> {
        self.values("filter").iter().filter_map(|text| values::filter(text).ok()).collect()
    }
}

fn lines(group: &str) -> impl Iterator<Item = &'static str> {
    let title = format!("{group}:");
    TABLE.lines().skip_while(move |line| !line.starts_with(&title)).skip(1).take_while(|line| line.starts_with(' '))
}

fn augment(mut command: Command, group: &'static str) -> Command {
    let mut lines = lines(group).peekable();
    while let Some(line) = lines.next() {
        let mut parts = line.splitn(3, " | ").map(str::trim);
        let (names, arguments, about) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut names = names.split(' ');
        let mut leaf = Command::new(names.next().unwrap_or_default()).about(about).visible_aliases(names);
        while let Some(flags) = lines.next_if(|line| line.starts_with("    ")) {
            for text in flags.split_ascii_whitespace() {
                leaf = leaf.arg(flag(text));
            }
        }
        command = command.subcommand(positionals(leaf, arguments));
    }
    command.subcommand_required(true)
}

/// One flag, from `-s/--long=type(default)`.
fn flag(text: &'static str) -> Arg {
    let (names, kind) = text.split_once('=').unwrap_or((text, ""));
    let (names, kind, default) = match (names.split_once('('), kind.split_once('(')) {
        (Some((names, default)), _) => (names, "", Some(default.trim_end_matches(')'))),
        (None, Some((kind, default))) => (names, kind, Some(default.trim_end_matches(')'))),
        (None, None) => (names, kind, None),
    };
    let (short, long) = match names.split_once("/--") {
        Some((short, long)) => (short.chars().nth(1), long),
        None => (None, names.trim_start_matches('-')),
    };
    let mut arg = Arg::new(long).long(long);
    if let Some(short) = short {
        arg = arg.short(short);
    }
    if kind.is_empty() {
        return match default {
            Some(default) => arg.action(ArgAction::Set).default_value(default),
            None => arg.action(ArgAction::SetTrue),
        };
    }
    let many = matches!(
        kind,
        "list"
            | "csv"
            | "k=v"
            | "filter"
            | "mount"
            | "network"
            | "port"
            | "pref"
            | "secret"
            | "config"
            | "ulimit"
            | "external-ca"
            | "ipNetSlice"
    );
    arg = arg.action(if many { ArgAction::Append } else { ArgAction::Set }).value_name(match kind {
        "str" => "string",
        "csv" => "strings",
        "k=v" => "map",
        "uint64" => "uint",
        "int64" => "int",
        other => other,
    });
    arg = match kind {
        "int" | "int64" | "uint" | "uint32" | "uint64" => {
            arg.value_parser(|text: &str| values::int(text).map(|_| text.to_owned()))
        }
        "duration" => arg.value_parser(|text: &str| values::duration(text).map(|_| text.to_owned())),
        "bytes" => arg.value_parser(|text: &str| values::bytes(text).map(|_| text.to_owned())),
        "decimal" => arg.value_parser(|text: &str| values::cpus(text).map(|_| text.to_owned())),
        "filter" => arg.value_parser(|text: &str| values::filter(text).map(|_| text.to_owned())),
        _ => arg,
    };
    match default {
        Some(default) => arg.default_value(default),
        None => arg,
    }
}

/// Arguments as a usage line has them: "NAME", "NAME [NAME...]", "[NAME]", "[NAME...]", "IMAGE [COMMAND] [ARG...]".
fn positionals(mut leaf: Command, text: &'static str) -> Command {
    if text.ends_with("[ARG...]") {
        let all = Arg::new("words").value_name(text).required(true).num_args(1..).trailing_var_arg(true);
        return leaf.arg(all.action(ArgAction::Append));
    }
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let more = words.get(at + 1).and_then(|next| next.strip_prefix('[')).and_then(|next| next.strip_suffix("...]"));
        let plain = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
        let id = ["first", "second", "third"][at.min(2)];
        let arg = match (plain.and_then(|word| word.strip_suffix("...")), plain, more) {
            (Some(name), ..) => Arg::new(id).value_name(name).action(ArgAction::Append).num_args(0..),
            (None, Some(name), _) => Arg::new(id).value_name(name),
            // "self|NODE [NODE...]": the second name is the last part of the first.
            (None, None, Some(next)) if word.ends_with(next) => {
                at += 1;
                Arg::new(id).value_name(*word).required(true).action(ArgAction::Append).num_args(1..)
            }
            (None, None, _) => Arg::new(id).value_name(*word).required(true),
        };
        leaf = leaf.arg(arg);
        at += 1;
    }
    leaf
}

fn read(group: &'static str, matches: &ArgMatches) -> Result<Invocation, clap::Error> {
    let (command, matches) = matches
        .subcommand()
        .ok_or_else(|| clap::Error::raw(clap::error::ErrorKind::MissingSubcommand, "no command"))?;
    let mut invocation = Invocation { group, command: command.to_owned(), ..Invocation::default() };
    for id in matches.ids() {
        let name = id.as_str();
        let texts: Vec<String> = match matches.try_get_many::<String>(name) {
            Ok(Some(texts)) => texts.cloned().collect(),
            _ => match matches.try_get_one::<bool>(name) {
                Ok(Some(on)) => vec![on.to_string()],
                _ => Vec::new(),
            },
        };
        if matches!(name, "first" | "second" | "third" | "words") {
            continue;
        }
        if matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine) {
            invocation.given.push(name.to_owned());
        }
        invocation.flags.insert(name.to_owned(), texts);
    }
    for id in ["first", "second", "third", "words"] {
        if let Ok(Some(texts)) = matches.try_get_many::<String>(id) {
            invocation.words.extend(texts.cloned());
        }
    }
    Ok(invocation)
}

macro_rules! groups {
    ($($kind:ident $name:literal),*) => {$(
        #[doc = concat!("`berth ", $name, " ...`")]
        #[derive(Debug)]
        pub struct $kind(pub Invocation);

        impl FromArgMatches for $kind {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                read($name, matches).map(Self)
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = read($name, matches)?;
                Ok(())
            }
        }

        impl Subcommand for $kind {
            fn augment_subcommands(command: Command) -> Command {
                augment(command, $name)
            }

            fn augment_subcommands_for_update(command: Command) -> Command {
                augment(command, $name)
            }

            fn has_subcommand(_: &str) -> bool {
                true
            }
        }
    )*};
}

groups!(
    Checkpoint "checkpoint", Config "config", Node "node", Plugin "plugin", Secret "secret", Service "service",
    Stack "stack", Swarm "swarm"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::grammar::{Parsed, parse};
    use std::ffi::OsString;

    fn of(line: &str) -> Invocation {
        match parse(line.split(' ').map(OsString::from)) {
            Ok(Parsed::Command(cli, _)) => match cli.command {
                crate::args::Command::Plugin(Plugin(invocation))
                | crate::args::Command::Swarm(Swarm(invocation))
                | crate::args::Command::Service(Service(invocation))
                | crate::args::Command::Node(Node(invocation)) => invocation,
                other => panic!("{line}: {other:?}"),
            },
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_of_the_table_are_commands() {
        let ls = of("plugin list -q --filter enabled=true --filter a=b");
        assert_eq!(
            (ls.group, ls.command.as_str(), ls.is_on("quiet"), ls.is_on("no-trunc")),
            ("plugin", "ls", true, false)
        );
        assert_eq!(ls.filters(), [("enabled".into(), "true".into()), ("a".into(), "b".into())]);
        let enable = of("plugin enable p");
        assert_eq!((enable.value("timeout"), &enable.words[..]), (Some("30"), &["p".to_owned()][..]));
        assert_eq!(of("plugin set p a=1 b=2").words, ["p", "a=1", "b=2"]);
        let create = of("service create --name x -e A=b --env C img cmd -x");
        assert_eq!(create.values("env"), ["A=b", "C"]);
        assert_eq!(create.words, ["img", "cmd", "-x"]);
        assert_eq!(of("node inspect self other").words, ["self", "other"]);
        assert_eq!(of("swarm init").value("listen-addr"), Some("0.0.0.0:2377"));
    }

    #[test]
    fn arguments_are_counted_as_docker_does() {
        for (line, text) in [
            ("node ls x", "'berth node ls' accepts no arguments"),
            ("node rm", "'berth node rm' requires at least 1 argument"),
            ("plugin set p", "'berth plugin set' requires at least 2 arguments"),
            ("swarm join", "'berth swarm join' requires 1 argument"),
            ("checkpoint create x", "'berth checkpoint create' requires 2 arguments"),
            ("service scale", "'berth service scale' requires at least 1 argument"),
        ] {
            let error = parse(line.split(' ').map(OsString::from)).unwrap_err().to_string();
            assert!(error.contains(text), "{line}: {error}");
        }
        let error = parse(["swarm", "init", "--task-history-limit", "x"].map(OsString::from)).unwrap_err();
        assert_eq!(error.code(), 125, "{error}");
    }
}
