//! `export`

use super::{App, archive::Target};
use crate::args::image::ExportArgs;
use crate::client::{Call, call::escape};
use crate::exit::Outcome;

/// Runs `export`.
pub async fn run(app: &App, args: &ExportArgs) -> Outcome {
    let target = Target::new(args.output.as_deref(), "export container")?;
    let call = Call::get(format!("/containers/{}/export", escape(&args.container, false)));
    target.write(app.client().await?.send(call).await?).await
}
