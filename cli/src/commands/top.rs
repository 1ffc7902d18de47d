//! `top`

use super::App;
use crate::args::container::TopArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::{self, table};
use serde::Deserialize;

/// docker's columns are wide here.
const NARROWEST: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Processes {
    #[serde(default)]
    titles: Vec<String>,
    #[serde(default)]
    processes: Option<Vec<Vec<String>>>,
}

/// Runs `top`.
pub async fn run(app: &App, args: &TopArgs) -> Outcome {
    let [container, options @ ..] = &args.words[..] else {
        return Err(Failure::Refused("a container is required".to_owned()));
    };
    let call = Call::get(format!("/containers/{}/top", escape(container, false)))
        .maybe("ps_args", (!options.is_empty()).then(|| options.join(" ")));
    let listed: Processes = app.client().await?.send(call).await?.json().await?;
    let mut rows = vec![listed.titles];
    rows.extend(listed.processes.unwrap_or_default());
    output::print(&table::align_wide(&rows, NARROWEST))
}
