//! `--help`: of the program, and of each command from the very table by which its flags are read.

use std::fmt::Write;

use super::{COMMANDS, GLOBAL, build, checkpoint, delete, events, exec, kill, list, ps, restore, run, spec, update};
use crate::args::{Flag, Order, Parsed, Takes, switch};

/// A command: its name, what it takes besides flags, what it does, and its flags.
type Entry = (&'static str, &'static str, &'static str, &'static [&'static [Flag]]);

const ENTRIES: &[Entry] = &[
    (
        "checkpoint",
        "ID",
        "writes the container to disk with criu, and ends it",
        &[checkpoint::COMMON, checkpoint::FLAGS],
    ),
    ("create", "ID", "builds a container, whose process waits for start", &[build::FLAGS]),
    ("delete", "ID", "removes what is left of a container", &[delete::FLAGS]),
    ("events", "ID", "prints memory events and usage of a container", &[events::FLAGS]),
    ("exec", "ID COMMAND [ARG...], or --process FILE ID", "runs one more process in a container", &[exec::FLAGS]),
    ("features", "", "prints what this runtime can do, as JSON", &[]),
    ("kill", "ID [SIGNAL]", "sends a signal (default TERM) to a container's process", &[kill::FLAGS]),
    ("list", "", "lists the containers below --root", &[list::FLAGS]),
    ("pause", "ID", "suspends all processes of a container", &[]),
    ("ps", "ID [PS OPTIONS]", "shows the processes of a container", &[ps::FLAGS]),
    ("restore", "ID", "brings a container back that checkpoint wrote", &[checkpoint::COMMON, restore::FLAGS]),
    ("resume", "ID", "lets a paused container go on", &[]),
    ("run", "ID", "creates and starts a container, and waits for its end", &[build::FLAGS, run::MORE]),
    ("spec", "", "writes a config.json to begin with", &[spec::FLAGS]),
    ("start", "ID", "runs the program of a created container", &[]),
    ("state", "ID", "prints the state of a container, as JSON", &[]),
    ("update", "ID", "changes the limits of a container", &[update::FLAGS]),
];

/// The help text that a command line asks for, if it does: `--help` where a flag of the command may stand.
pub(super) fn asked(name: &str, rest: &[String]) -> Option<String> {
    if !rest.iter().any(|word| matches!(word.as_str(), "--help" | "-help" | "-h")) {
        return None;
    }
    let entry = ENTRIES.iter().find(|(known, ..)| *known == name)?;
    let table = [entry.3.concat(), vec![HELP]].concat();
    let order = if matches!(name, "exec" | "ps") { Order::FlagsFirst } else { Order::Mixed };
    Parsed::parse(&table, order, rest).is_ok_and(|parsed| parsed.is_on("help")).then(|| of_command(entry))
}

const HELP: Flag = switch(&["help", "h"], "print this text");

/// Help for one command by name, or for the program.
pub(super) fn of(name: Option<&str>) -> String {
    let entry = name.and_then(|name| ENTRIES.iter().find(|(known, ..)| *known == name));
    entry.map_or_else(program, of_command)
}

fn program() -> String {
    let mut text = String::from(
        "berth-runtime: an OCI runtime\n\nusage: berth-runtime [global flags] COMMAND [flags] [ID] ...\n\ncommands:\n",
    );
    for (name, ..) in COMMANDS {
        let about = ENTRIES.iter().find(|(known, ..)| known == name).map_or("", |(_, _, about, _)| about);
        let _ = writeln!(text, "  {name:<12} {about}");
    }
    text.push_str("\nglobal flags:\n");
    text.push_str(&flags(GLOBAL));
    text
}

fn of_command((name, takes, about, tables): &Entry) -> String {
    let table = [tables.concat(), vec![HELP]].concat();
    format!(
        "berth-runtime {name}: {about}\n\nusage: berth-runtime [global flags] {name} [flags] {takes}\n\nflags:\n{}",
        flags(&table)
    )
}

fn flags(table: &[Flag]) -> String {
    let spelling = |flag: &Flag| {
        let dashed = |name: &&str| if name.len() == 1 { format!("-{name}") } else { format!("--{name}") };
        let names: Vec<String> = flag.names.iter().map(dashed).collect();
        names.join(", ") + if flag.takes == Takes::Value { " VALUE" } else { "" }
    };
    let width = table.iter().map(|flag| spelling(flag).len()).max().unwrap_or(0);
    table.iter().fold(String::new(), |mut text, flag| {
        let _ = writeln!(text, "  {:<width$}  {}", spelling(flag), flag.help);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help() {
        for (name, ..) in COMMANDS {
            let text = asked(name, &["--help".to_owned()]).expect(name);
            assert!(text.starts_with(&format!("berth-runtime {name}: ")), "{text}");
            assert!(program().contains(&format!("\n  {name} ")), "{name}");
        }
        assert_eq!(ENTRIES.len(), COMMANDS.len());
    }

    #[test]
    fn help_is_asked_for_where_flags_may_stand() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (name, rest, expected) in [
            ("create", "web -h", true),
            ("create", "--bundle --help web", false),
            ("exec", "-t -h", true),
            ("exec", "web ls -h", false),
            ("exec", "web ls --help", false),
            ("ps", "web -h", false),
            ("kill", "web", false),
        ] {
            assert_eq!(asked(name, &words(rest)).is_some(), expected, "{name} {rest}");
        }
        let text = of(Some("delete"));
        assert!(text.contains("  --force, -f  "), "{text}");
    }
}
