//! `pull`

use super::App;
use crate::args::image::PullArgs;
use crate::client::{Call, Client};
use crate::exit::{Failure, Outcome};
use crate::output::{self, progress};
use proto::image_ref::ImageRef;

/// Runs `pull`.
pub async fn run(app: &App, args: &PullArgs) -> Outcome {
    let mut reference: ImageRef = args.reference.parse()?;
    trust(args.disable_content_trust)?;
    if args.all_tags && (reference.tag().is_some() || reference.digest().is_some()) {
        return Err(Failure::Refused("tag can't be used with --all-tags/-a".to_owned()));
    }
    if !args.all_tags && reference.tag().is_none() && reference.digest().is_none() {
        reference = reference.with_default_tag();
        if !args.quiet {
            output::print_line("Using default tag: latest")?;
        }
    }
    let client = app.client().await?;
    let platform = args.platform.clone().or_else(|| app.config.default_platform.clone());
    let reply = client.send(call(app, &reference, platform.as_deref())?).await?;
    if args.quiet {
        progress::drain(reply).await?;
    } else {
        progress::show(reply, progress::Sink::Stdout).await?;
    }
    output::print_line(&reference.to_string())
}

/// Pulls what `run` or `create` lack; the progress goes to standard error.
pub async fn implicit(
    app: &App,
    client: &Client,
    reference: &ImageRef,
    platform: Option<&str>,
    quiet: bool,
) -> Outcome {
    let reply = client.send(call(app, reference, platform)?).await?;
    if quiet {
        return progress::drain(reply).await;
    }
    progress::show(reply, progress::Sink::Stderr).await
}

/// Refuses what nobody would notice to be missing: signatures.
pub fn trust(disabled: bool) -> Outcome {
    if disabled {
        return Ok(());
    }
    let text = "--disable-content-trust=false is not supported: berth neither makes nor checks notary signatures";
    Err(Failure::Refused(text.to_owned()))
}

fn call(app: &App, reference: &ImageRef, platform: Option<&str>) -> Outcome<Call> {
    let digest = reference.digest().map(|digest| digest.to_string());
    Ok(Call::post("/images/create")
        .query("fromImage", reference.repository())
        .maybe("platform", platform.filter(|p| !p.is_empty()))
        .maybe("tag", digest.as_deref().or(reference.tag()))
        .header("x-registry-auth", app.config.credentials.header(reference.domain())))
}
