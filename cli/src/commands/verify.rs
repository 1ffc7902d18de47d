//! `image verify`: berth's own. The engine reads everything that is stored and says what is damaged.

use super::App;
use crate::args::image::VerifyArgs;
use crate::client::{Call, Reply};
use crate::exit::{Failure, Outcome};
use crate::output;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A line of the answer: something damaged, or at the end the sum of it all.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    id: String,
    error: String,
    status: Option<String>,
    blobs: u64,
    images: u64,
    snapshots: u64,
    errors: u64,
}

/// Runs `image verify`.
pub async fn run(app: &App, args: &VerifyArgs) -> Outcome {
    let json = match args.format.as_deref() {
        None | Some("") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::Refused(format!("unknown format {other:?}: only \"json\" is known here"))),
    };
    let call = args.images.iter().fold(Call::post("/images/verify"), |call, image| call.query("names", image));
    let mut reply: Reply = app.client().await?.send(call).await?;
    let mut damaged = 0u64;
    while let Some(raw) = reply.object::<Box<RawValue>>().await? {
        let line: Line = serde_json::from_str(raw.get())
            .map_err(|cause| crate::client::ClientError::Decode { path: reply.path().to_owned(), cause })?;
        if line.id.is_empty() && line.status.is_none() {
            // The work itself has failed, and not something that it looked at.
            return Err(Failure::Refused(line.error));
        }
        if json {
            output::print_line(raw.get())?;
        }
        if line.status.is_none() {
            damaged += 1;
            match (json, args.quiet) {
                (true, _) => {}
                (false, true) => output::print_line(&line.id)?,
                (false, false) => output::print_line(&format!("{}: {}", line.id, line.error))?,
            }
            continue;
        }
        // One object may have several lines.
        let bad = if line.errors > 0 { line.errors } else { damaged };
        if !json && !args.quiet {
            let verdict = match bad {
                0 => "no damage".to_owned(),
                1 => "1 is damaged".to_owned(),
                n => format!("{n} are damaged"),
            };
            let count = |n: u64, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
            output::print_line(&format!(
                "Verified {}, {}, {}: {verdict}",
                count(line.blobs, "blob"),
                count(line.images, "image"),
                count(line.snapshots, "snapshot")
            ))?;
        }
        return if bad == 0 { Ok(()) } else { Err(Failure::Exit(1)) };
    }
    Err(Failure::Refused("the engine ended its answer before everything was verified".to_owned()))
}
