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
    for arg in command.get_positionals() {
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
        let width = commands.iter().map(|c| c.get_name().len()).max().unwrap_or(0);
        let _ = write!(text, "\n{title}:\n");
        for c in commands {
            let about = c.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {:width$}   {about}", c.get_name());
        }
    }
    let lines: Vec<(String, String)> = options(command).map(option).collect();
    if !lines.is_empty() {
        let _ = write!(text, "\n{}:\n", if path.contains(' ') { "Options" } else { "Global Options" });
        let width = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
        for (left, right) in lines {
            let _ = writeln!(text, "{left:width$}   {right}");
        }
    }
    if command.has_subcommands() {
        let _ = write!(text, "\nRun '{path} COMMAND --help' for more information on a command.\n");
    }
    text
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
    fn flags_show_type_and_default() {
        let help = of(&["logs"]);
        let tail = help.lines().find(|l| l.contains("--tail")).unwrap();
        assert!(tail.starts_with("  -n, --tail string") && tail.ends_with("(default \"all\")"), "{tail}");
        let follow = help.lines().find(|l| l.contains("--follow")).unwrap();
        assert!(follow.starts_with("  -f, --follow  ") && !follow.contains("default"), "{follow}");
        assert!(of(&["run"]).lines().any(|l| l.contains("--sig-proxy ") && l.ends_with("(default true)")));
    }
}
