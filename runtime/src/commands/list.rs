//! `list`: all containers of a root.

use super::{CommandError, Context, print};
use crate::args::{ArgsError, Flag, Order, Parsed, switch, value};

pub(super) const FLAGS: &[Flag] =
    &[value(&["format", "f"], "table (default) or json"), switch(&["quiet", "q"], "ids only")];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    if !parsed.words.is_empty() {
        return Err(ArgsError::Count { command: "list", expected: "no", found: parsed.words.len() }.into());
    }
    let ids = context.states.list()?;
    if parsed.is_on("quiet") {
        return Ok(print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>()));
    }
    let mut reports = Vec::with_capacity(ids.len());
    for id in ids {
        // One that is half made, or being removed this very moment, must not hide the others.
        match context.states.load(&id).and_then(|state| Ok(state.report(context.states.status(&state)?))) {
            Ok(mut report) => {
                report.owner = context.states.owner(&id);
                reports.push(report);
            }
            Err(error) => context.log.warn(&format!("list {id}: {}", crate::launch::handshake::chain(&error))),
        }
    }
    match parsed.value("format").unwrap_or("table") {
        "json" => {
            let text = serde_json::to_string(&reports).map_err(|error| CommandError::Io {
                action: "print",
                path: "list".into(),
                cause: error.into(),
            })?;
            Ok(print(&format!("{text}\n")))
        }
        "table" => {
            let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
            let row = |report: &crate::state::Report| {
                let text = |value: &dyn std::fmt::Display| value.to_string();
                [
                    text(&report.id),
                    text(&report.pid),
                    text(&report.status),
                    text(&report.bundle.display()),
                    report.created.clone(),
                    report.owner.clone(),
                ]
            };
            let rows: Vec<[String; 6]> = std::iter::once(head).chain(reports.iter().map(row)).collect();
            Ok(print(&table(&rows)))
        }
        other => {
            let allowed = "table, json";
            Err(ArgsError::NotOneOf { name: "format", value: other.to_owned(), allowed }.into())
        }
    }
}

fn table(rows: &[[String; 6]]) -> String {
    // Those who read columns by their place know runc's, which are at least as wide.
    let mut widths = [12; 6];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}
