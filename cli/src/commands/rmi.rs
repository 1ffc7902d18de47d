//! `rmi`

use super::{App, load::platform_json, require};
use crate::args::image::RmiArgs;
use crate::client::{Call, Client, ClientError, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output;
use serde::Deserialize;

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "Untagged")]
    untagged: Option<String>,
    #[serde(rename = "Deleted")]
    deleted: Option<String>,
}

/// Runs `rmi`, one image after the other: what one holds, the next may free.
pub async fn run(app: &App, args: &RmiArgs) -> Outcome {
    let client = app.client().await?;
    require(&client, "--platform", !args.platform.is_empty(), 50)?;
    let (mut errors, mut fatal) = (Vec::new(), false);
    for name in &args.images {
        match remove(&client, name, args).await {
            Ok(changes) => {
                for change in changes {
                    match change {
                        Change { deleted: Some(id), .. } => output::print_line(&format!("Deleted: {id}"))?,
                        Change { untagged: Some(name), .. } => output::print_line(&format!("Untagged: {name}"))?,
                        Change { .. } => {}
                    }
                }
            }
            Err(error) => {
                fatal |= !error.is_not_found();
                errors.push(error.to_string());
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    if args.force && !fatal {
        // By force, an image that does not exist is worth a note only.
        errors.iter().for_each(|error| output::note(error));
        return Ok(());
    }
    Err(Failure::Several(errors))
}

async fn remove(client: &Client, name: &str, args: &RmiArgs) -> Result<Vec<Change>, ClientError> {
    let mut call = Call::delete(format!("/images/{}", escape(name, true)))
        .switch("force", args.force)
        .switch("noprune", args.no_prune);
    for platform in &args.platform {
        call = call.query("platforms", platform_json(platform).to_string());
    }
    client.send(call).await?.json().await
}
