//! `wait`

use super::{App, run::status};
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output;

/// Runs `wait`: one after the other, each code on a line.
pub async fn run(app: &App, names: &[String]) -> Outcome {
    let client = app.client().await?;
    let mut errors = Vec::new();
    for name in names {
        let result = match client.send(Call::post(format!("/containers/{}/wait", escape(name, false)))).await {
            Ok(reply) => status(reply).await,
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(code) => output::print_line(&code.to_string())?,
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}
