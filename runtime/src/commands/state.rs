//! `state`: prints what the specification calls the state of a container.

use super::{CommandError, Context, only_id, print};

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let id = only_id("state", arguments)?;
    let state = context.states.load(&id)?;
    let report = state.report(context.states.status(&state)?);
    let text = serde_json::to_string_pretty(&report).map_err(|error| CommandError::Io {
        action: "print",
        path: "state".into(),
        cause: error.into(),
    })?;
    Ok(print(&format!("{text}\n")))
}
