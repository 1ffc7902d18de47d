//! Help in docker's layout, from the clap definition.

use super::grammar::is_switch;
use clap::{Arg, ArgAction, Command};
use std::fmt::Write as _;

/// "berth rm [OPTIONS] CONTAINER [CONTAINER...]"
pub fn usage(command: &Command, path: &str) -> String {
    let mut line = path.to_owned();
    if command.has_subcommands() {
        line.push_str(if path.contains(' ') { " COMMAND" } else { " [OPTIONS] COMMAND" });
        return line;
    }
    if options(command).next().is_some() {
        line.push_str(" [OPTIONS]");
    }
    for arg in command.get_positionals().filter(|arg| !arg.is_hide_set()) {
        let name = arg.get_value_names().and_then(|names| names.first()).map_or("ARG", |name| name.as_str());
        let many = matches!(arg.get_action(), ArgAction::Append);
        let shown = match (arg.is_trailing_var_arg_set(), many, arg.is_required_set()) {
            (true, _, _) => name.to_owned(),
            (false, true, true) => format!("{name} [{name}...]"),
            (false, true, false) => format!("[{name}...]"),
            (false, false, true) => name.to_owned(),
            (false, false, false) => format!("[{name}]"),
        };
        line.push(' ');
        line.push_str(&shown);
    }
    line
}

/// The whole help of a command or group.
pub fn render(command: &Command, path: &str) -> String {
    let mut text = format!("Usage:  {}\n", usage(command, path));
    if let Some(about) = command.get_about() {
        let _ = write!(text, "\n{about}\n");
    }
    if let Some(more) = command.get_after_help() {
        let _ = write!(text, "\n{more}\n");
    }
    let aliases: Vec<String> = command
        .get_visible_aliases()
        .filter_map(|alias| path.rsplit_once(' ').map(|(parent, _)| format!("{parent} {alias}")))
        .collect();
    if !aliases.is_empty() {
        let _ = write!(text, "\nAliases:\n  {path}, {}\n", aliases.join(", "));
    }
    let (groups, leaves): (Vec<_>, Vec<_>) =
        command.get_subcommands().filter(|c| !c.is_hide_set()).partition(|c| c.has_subcommands());
    for (title, commands) in [("Management Commands", groups), ("Commands", leaves)] {
        if commands.is_empty() {
            continue;
        }
        let mut lines: Vec<_> = commands
            .iter()
            .map(|c| (c.get_name().to_owned(), c.get_about().map(ToString::to_string).unwrap_or_default()))
            .collect();
        lines.sort();
        write_commands(&mut text, title, &lines);
    }
    write_options(&mut text, command, "Options");
    if command.has_subcommands() {
        let _ = write!(text, "\nRun '{path} COMMAND --help' for more information on a command.\n");
    }
    text
}

/// Commands that people look for first, in docker's order.
const COMMON: &[&str] =
    &["run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "search", "version", "info"];
/// Groups that are about swarms.
const SWARM: &[&str] = &["config", "node", "secret", "service", "stack", "swarm"];

/// A plugin as help shows it.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    /// Its name.
    pub name: String,
    /// What it does.
    pub about: String,
    /// What is wrong with it.
    pub fault: Option<String>,
}

/// The help of berth itself; `short` leaves out what `container`, `image` and `system` have, too.
pub fn overview(root: &Command, extras: &[Extra], short: bool) -> String {
    let mut text = format!("Usage:  {}\n", usage(root, "berth"));
    if let Some(about) = root.get_about() {
        let _ = write!(text, "\n{about}\n");
    }
    let line = |c: &Command| (c.get_name().to_owned(), c.get_about().map(ToString::to_string).unwrap_or_default());
    let all: Vec<&Command> = root.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let common: Vec<_> =
        COMMON.iter().filter_map(|name| all.iter().find(|c| c.get_name() == *name)).map(|c| line(c)).collect();
    let (groups, mut rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| c.has_subcommands());
    let (swarm, groups): (Vec<_>, Vec<_>) = groups.into_iter().partition(|c| SWARM.contains(&c.get_name()));
    rest.retain(|c| !COMMON.contains(&c.get_name()));
    if short {
        rest.clear();
    }
    let (broken, extras): (Vec<&Extra>, Vec<&Extra>) = extras.iter().partition(|extra| extra.fault.is_some());
    let mut groups: Vec<_> = groups.into_iter().map(line).collect();
    groups.extend(extras.into_iter().map(|extra| (format!("{}*", extra.name), extra.about.clone())));
    let mut swarm: Vec<_> = swarm.into_iter().map(line).collect();
    let mut rest: Vec<_> = rest.into_iter().map(line).collect();
    for lines in [&mut groups, &mut swarm, &mut rest] {
        lines.sort();
    }
    let broken =
        broken.into_iter().map(|extra| (extra.name.clone(), extra.fault.clone().unwrap_or_default())).collect();
    for (title, lines) in [
        ("Common Commands", common),
        ("Management Commands", groups),
        ("Swarm Commands", swarm),
        ("Commands", rest),
        ("Invalid Plugins", broken),
    ] {
        write_commands(&mut text, title, &lines);
    }
    write_options(&mut text, root, "Global Options");
    text.push_str("\nRun 'berth COMMAND --help' for more information on a command.\n");
    text
}

fn write_commands(text: &mut String, title: &str, lines: &[(String, String)]) {
    if lines.is_empty() {
        return;
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(11);
    let _ = write!(text, "\n{title}:\n");
    for (name, about) in lines {
        let _ = writeln!(text, "  {name:width$} {about}");
    }
}

fn write_options(text: &mut String, command: &Command, title: &str) {
    let lines: Vec<(String, String)> = options(command).map(option).collect();
    if lines.is_empty() {
        return;
    }
    let _ = write!(text, "\n{title}:\n");
    let column = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0) + 3;
    for (left, right) in lines {
        let _ = writeln!(text, "{left:column$}{}", wrapped(&right, column, columns()));
    }
}

/// How wide help is: the terminal, or 80 columns.
fn columns() -> usize {
    match crate::terminal::size().1 {
        0 => 80,
        columns => usize::from(columns),
    }
}

/// Breaks a text that begins at a column, by pflag's rules: lines may be longer by a little, so that no word stands alone.
fn wrapped(text: &str, column: usize, columns: usize) -> String {
    const NARROWEST: usize = 24;
    const SLOP: usize = 5;
    let (mut indent, mut out) = (column, String::new());
    let mut room = (columns.saturating_sub(1)).saturating_sub(indent);
    if room < NARROWEST {
        indent = 16;
        room = columns.saturating_sub(1 + indent);
        if room < NARROWEST {
            return text.to_owned();
        }
        out = format!("\n{:indent$}", "");
    }
    let room = room - SLOP;
    let mut rest: Vec<char> = text.chars().collect();
    loop {
        let blank = rest.iter().take(room).rposition(|c| c.is_whitespace()).filter(|at| *at > 0);
        match blank {
            Some(at) if room + SLOP <= rest.len() => {
                out.extend(&rest[..at]);
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent));
                rest.drain(..=at);
            }
            _ => {
                out.extend(&rest);
                return out;
            }
        }
    }
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let mut all: Vec<&Arg> = command.get_arguments().filter(|a| !a.is_positional() && !a.is_hide_set()).collect();
    all.sort_by_key(|arg| arg.get_long());
    all.into_iter()
}

fn option(arg: &Arg) -> (String, String) {
    let long = arg.get_long().unwrap_or_default();
    let mut left = arg.get_short().map_or_else(|| format!("      --{long}"), |short| format!("  -{short}, --{long}"));
    if !is_switch(arg) {
        let kind = arg.get_value_names().and_then(|names| names.first()).map_or("string", |name| name.as_str());
        let _ = write!(left, " {kind}");
    }
    let mut right = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = arg.get_default_values().first().and_then(|value| value.to_str()).filter(|value| *value != "false");
    if let Some(default) = default.filter(|_| !arg.is_hide_default_value_set() && !right.contains("(default")) {
        let text = arg.get_value_names().and_then(|n| n.first()).is_some_and(|name| name.as_str() == "string");
        let _ = if text { write!(right, " (default {default:?})") } else { write!(right, " (default {default})") };
    }
    (left, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::CommandFactory;

    fn of(names: &[&str]) -> String {
        let mut root = Cli::command();
        root.build();
        let command = names.iter().fold(&root, |c, name| c.find_subcommand(name).unwrap());
        render(command, &format!("berth {}", names.join(" ")))
    }

    #[test]
    fn usage_lines_are_dockers() {
        for (names, line) in [
            (&["rm"][..], "Usage:  berth rm [OPTIONS] CONTAINER [CONTAINER...]"),
            (&["run"], "Usage:  berth run [OPTIONS] IMAGE [COMMAND] [ARG...]"),
            (&["wait"], "Usage:  berth wait CONTAINER [CONTAINER...]"),
            (&["port"], "Usage:  berth port CONTAINER [PRIVATE_PORT[/PROTO]]"),
            (&["images"], "Usage:  berth images [OPTIONS] [REPOSITORY[:TAG]]"),
            (&["container"], "Usage:  berth container COMMAND"),
        ] {
            assert_eq!(of(names).lines().next(), Some(line));
        }
    }

    #[test]
    fn the_overview_is_in_groups() {
        let mut root = Cli::command();
        root.build();
        let extra = |name: &str, fault: Option<&str>| Extra {
            name: name.into(),
            about: "Does things".into(),
            fault: fault.map(Into::into),
        };
        let text = overview(&root, &[extra("compose", None), extra("bad", Some("no"))], false);
        let titles: Vec<_> = text.lines().filter(|line| line.ends_with(':') && !line.starts_with(' ')).collect();
        assert_eq!(
            titles.iter().filter(|title| **title != "Swarm Commands:").copied().collect::<Vec<_>>(),
            ["Common Commands:", "Management Commands:", "Commands:", "Invalid Plugins:", "Global Options:"]
        );
        for line in [
            "  run         Create and run a new container from an image",
            "  compose*    Does things",
            "  bad         no",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
        assert!(!overview(&root, &[], true).contains("\nCommands:"));
    }

    #[test]
    fn long_texts_are_wrapped_as_pflag_does() {
        let text = "Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with \"docker context use\")";
        let want = [
            "Name of the context to use to connect to the",
            "                           daemon (overrides DOCKER_HOST env var and",
            "                           default context set with \"docker context use\")",
        ];
        assert_eq!(wrapped(text, 27, 80), want.join("\n"));
        assert_eq!(wrapped("short", 27, 80), "short");
        assert_eq!(wrapped("a b", 60, 50), "\n                a b");
        assert_eq!(wrapped("aaaa bbbb", 30, 20), "aaaa bbbb");
    }

    #[test]
    fn flags_show_type_and_default() {
        let help = of(&["logs"]);
        let tail = help.lines().find(|l| l.contains("--tail")).unwrap();
        assert!(tail.starts_with("  -n, --tail string") && tail.ends_with("(default \"all\")"), "{tail}");
        let follow = help.lines().find(|l| l.contains("--follow")).unwrap();
        assert!(follow.starts_with("  -f, --follow  ") && !follow.contains("default"), "{follow}");
        assert!(of(&["run"]).contains("(default true)"));
    }
}
