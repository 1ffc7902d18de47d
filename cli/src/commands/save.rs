//! `save`

use super::{App, archive::Target, load::platform_json, require};
use crate::args::image::SaveArgs;
use crate::client::Call;
use crate::exit::Outcome;

/// Runs `save`.
pub async fn run(app: &App, args: &SaveArgs) -> Outcome {
    let target = Target::new(args.output.as_deref(), "save image")?;
    let client = app.client().await?;
    require(&client, "--platform", !args.platform.is_empty(), 48)?;
    let mut call = Call::get("/images/get");
    for image in &args.images {
        call = call.query("names", image);
    }
    for platform in &args.platform {
        call = call.query("platform", platform_json(platform).to_string());
    }
    target.write(client.send(call).await?).await
}
