//! `tag`

use super::App;
use crate::args::image::TagArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use proto::image_ref::ImageRef;

/// Runs `tag`.
pub async fn run(app: &App, args: &TagArgs) -> Outcome {
    let target: ImageRef = args.target.parse().map_err(|error| {
        let target = &args.target;
        Failure::Refused(format!("Error parsing reference: {target:?} is not a valid repository/tag: {error}"))
    })?;
    if target.digest().is_some() {
        return Err(Failure::Refused("refusing to create a tag with a digest reference".to_owned()));
    }
    let target = target.with_default_tag();
    let call = Call::post(format!("/images/{}/tag", escape(&args.source, true)))
        .query("repo", target.familiar_repository())
        .query("tag", target.tag().unwrap_or("latest"));
    app.client().await?.send(call).await?;
    Ok(())
}
