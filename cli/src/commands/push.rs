//! `push`

use super::{App, load::platform_json, pull::trust, require};
use crate::args::image::PushArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::{self, progress};
use proto::image_ref::ImageRef;

/// Runs `push`.
pub async fn run(app: &App, args: &PushArgs) -> Outcome {
    let mut reference: ImageRef = args.reference.parse()?;
    trust(args.disable_content_trust)?;
    let bare = reference.tag().is_none() && reference.digest().is_none();
    if args.all_tags && !bare {
        return Err(Failure::Refused("tag can't be used with --all-tags/-a".to_owned()));
    }
    if reference.digest().is_some() {
        return Err(Failure::Refused("cannot push a digest reference".to_owned()));
    }
    if !args.all_tags && bare {
        reference = reference.with_default_tag();
        if !args.quiet {
            output::print_line("Using default tag: latest")?;
        }
    }
    let client = app.client().await?;
    require(&client, "--platform", args.platform.is_some(), 46)?;
    if args.platform.is_some() {
        output::note(
            "Only the manifest of this platform is pushed: the list it is part of, with all else in it, is not.",
        );
    }
    let call = Call::post(format!("/images/{}/push", escape(&reference.familiar_repository(), true)))
        .maybe("platform", args.platform.as_deref().map(|text| platform_json(text).to_string()))
        .query("tag", if args.all_tags { "" } else { reference.tag().unwrap_or("latest") })
        .header("x-registry-auth", app.config.credentials.header(reference.domain()));
    let reply = client.send(call).await?;
    if args.quiet {
        progress::drain(reply).await?;
        return output::print_line(&reference.to_string());
    }
    progress::show(reply, progress::Sink::Stdout).await
}
