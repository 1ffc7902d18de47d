//! `logs`

use super::App;
use crate::args::container::LogsArgs;
use crate::client::{Call, call::escape};
use crate::exit::Outcome;
use crate::output::time;
use crate::streams::Sink;

/// Runs `logs`.
pub async fn run(app: &App, args: &LogsArgs) -> Outcome {
    let since = args.since.as_deref().map(|text| time::point("since", text)).transpose()?;
    let until = args.until.as_deref().map(|text| time::point("until", text)).transpose()?;
    let client = app.client().await?;
    let name = escape(&args.container, false);
    let container = client.send(Call::get(format!("/containers/{name}/json"))).await?.value().await?;
    let tty = container.at(&["Config", "Tty"]).and_then(|v| v.as_bool()).unwrap_or(false);
    let call = Call::get(format!("/containers/{}/logs", container.text(&["Id"])))
        .switch("details", args.details)
        .switch("follow", args.follow)
        .maybe("since", since)
        .query("stderr", "1")
        .query("stdout", "1")
        .query("tail", &args.tail)
        .switch("timestamps", args.timestamps)
        .maybe("until", until);
    let mut reply = client.send(call).await?;
    let mut sink = Sink::new(tty);
    while let Some(data) = reply.chunk().await? {
        sink.write(&data).await?;
    }
    sink.finish()
}
