//! `diff`

use super::App;
use crate::args::image::DiffArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output;
use serde::Deserialize;
use std::fmt::Write as _;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    path: String,
    kind: u8,
}

/// Runs `diff`.
pub async fn run(app: &App, args: &DiffArgs) -> Outcome {
    if args.container.is_empty() {
        return Err(Failure::Refused("Container name cannot be empty".to_owned()));
    }
    let call = Call::get(format!("/containers/{}/changes", escape(&args.container, false)));
    // A container that has changed nothing is null.
    let changes: Option<Vec<Change>> = app.client().await?.send(call).await?.json().await?;
    let mut text = String::new();
    for change in changes.iter().flatten() {
        let kind = match change.kind {
            0 => "C",
            1 => "A",
            2 => "D",
            _ => "",
        };
        let _ = writeln!(text, "{kind} {}", change.path);
    }
    output::print(&text)
}
