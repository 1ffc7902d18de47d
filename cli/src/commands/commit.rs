//! `commit`

use super::App;
use crate::args::image::CommitArgs;
use crate::client::Call;
use crate::exit::{Failure, Outcome};
use crate::output;
use proto::image_ref::ImageRef;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
}

/// Runs `commit`.
pub async fn run(app: &App, args: &CommitArgs) -> Outcome {
    let reference = match args.reference.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse::<ImageRef>()?),
        None => None,
    };
    if reference.as_ref().is_some_and(|reference| reference.digest().is_some()) {
        return Err(Failure::Refused("refusing to create a tag with a digest reference".to_owned()));
    }
    let reference = reference.map(ImageRef::with_default_tag);
    let mut call = Call::post("/commit")
        .maybe("author", args.author.as_deref())
        .query("container", &args.container)
        .maybe("comment", args.message.as_deref())
        .maybe("repo", reference.as_ref().map(ImageRef::familiar_repository))
        .maybe("tag", reference.as_ref().and_then(ImageRef::tag));
    for change in &args.change {
        call = call.query("changes", change);
    }
    if args.no_pause || !args.pause {
        call = call.query("pause", "0");
    }
    let made: Made = app.client().await?.send(call).await?.json().await?;
    output::print_line(&made.id)
}
