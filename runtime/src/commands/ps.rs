//! `ps`: the processes of a container, as pids or through the host's ps(1).

use std::process::Command;

use super::{CommandError, Context, members, print};
use crate::args::{ArgsError, Flag, Order, Parsed, value};
use crate::state::ContainerId;

pub(super) const FLAGS: &[Flag] = &[value(&["format", "f"], "table (default) or json")];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::FlagsFirst, arguments)?;
    let Some((id, options)) = parsed.words.split_first() else {
        return Err(ArgsError::Count { command: "ps", expected: "the container's id", found: 0 }.into());
    };
    let state = context.states.load(&ContainerId::parse(id)?)?;
    let pids: Vec<i32> = members::of(&state)?.iter().map(|pid| pid.as_raw()).collect();
    match parsed.value("format").unwrap_or("table") {
        "json" => Ok(print(&format!("{pids:?}\n"))),
        "table" => table(&pids, options),
        other => {
            let allowed = "table, json";
            Err(ArgsError::NotOneOf { name: "format", value: other.to_owned(), allowed }.into())
        }
    }
}

fn table(pids: &[i32], options: &[String]) -> Result<u8, CommandError> {
    let failed = |cause| CommandError::Io { action: "run", path: "ps".into(), cause };
    let default = ["-ef".to_owned()];
    let output =
        Command::new("ps").args(if options.is_empty() { &default } else { options }).output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| failed(std::io::Error::other("its output has no PID column")))?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|text| text.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let rows: String = lines.filter(ours).map(|line| format!("{line}\n")).collect();
    Ok(print(&format!("{head}\n{rows}")))
}
