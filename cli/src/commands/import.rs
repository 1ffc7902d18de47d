//! `import`

use super::{App, load};
use crate::args::image::ImportArgs;
use crate::client::Call;
use crate::exit::Outcome;
use crate::output::progress;
use proto::image_ref::ImageRef;

/// Runs `import`.
pub async fn run(app: &App, args: &ImportArgs) -> Outcome {
    if let Some(reference) = &args.reference {
        reference.parse::<ImageRef>()?;
    }
    let remote = args.source.starts_with("http://") || args.source.starts_with("https://");
    let body = match args.source.as_str() {
        _ if remote => None,
        "-" => Some(load::streamed(tokio::io::stdin())),
        path => Some(load::file(path).await?),
    };
    let mut call = Call::post("/images/create")
        .query("fromSrc", if remote { args.source.as_str() } else { "-" })
        .query("repo", args.reference.as_deref().unwrap_or_default())
        .maybe("message", args.message.as_deref())
        .maybe("platform", args.platform.as_deref().or(app.config.default_platform.as_deref()));
    for change in &args.change {
        call = call.query("changes", change);
    }
    if let Some(body) = body {
        call = call.body(body);
    }
    let reply = app.client().await?.send(call).await?;
    progress::show(reply, progress::Sink::Stdout).await
}
