//! `POST /build`: a context in the request, or somewhere in the world, or with the client's session; the answer is a stream of
//! JSON, in the old builder's words or, with `version=2`, BuildKit's messages. The work is done as for everybody else.

mod own;
mod params;
mod print;

use super::{control::messages, http::stream};
use crate::{
    app::App,
    build::{Begun, BuildError, Response as Outcome, Wanted},
    containers::archive::unpack_below,
    http::{ApiError, ApiResult, Query},
    ids::random_id,
    images::{
        progress::{Line, Lines},
        pull::decode_registry_config,
    },
};
use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::HeaderMap,
};
use base64::Engine as _;
use futures_util::StreamExt as _;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use own::OwnSession;
use params::{Context, Params};
use print::Printer;
use prost::Message as _;
use proto::{digest::Digest, kind::ErrorKind, moby::buildkit::v1::StatusResponse};
use serde_json::json;
use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc;
use tracing::warn;

/// Pieces of a context that wait to be unpacked.
const AHEAD: usize = 16;

/// `POST /build`
pub async fn build(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let gateway = app.networks.gateway();
    let params = Params::read(&query, app.config.manner.experimental, gateway)?;
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("application/x-tar");
    if params.context == Context::Body
        && !["application/x-tar", "application/tar", "application/octet-stream"].contains(&kind)
    {
        return Err(ApiError::invalid(format!(
            "Content-Type {kind:?} is not that of a build context, application/x-tar"
        )));
    }
    let config = headers.get("X-Registry-Config").and_then(|value| value.to_str().ok());
    // As for pulls: what can't be read counts as none.
    let credentials = config.and_then(decode_registry_config).unwrap_or_default();
    let folder = match params.context {
        Context::Body => Some(receive(&app.builder.contexts, body).await?),
        Context::Session | Context::Remote => None,
    };
    let own = match &params.session {
        Some(_) => None,
        None => {
            let id = random_id().map_err(|error| ApiError::unexpected(&error))?;
            let at = folder.as_ref().map(|folder| folder.0.clone());
            Some(OwnSession::open(&app.sessions, id, at, credentials).map_err(|e| ApiError::of(e.kind(), &e))?)
        }
    };
    let id = match &params.id {
        Some(id) => id.clone(),
        None => random_id().map_err(|error| ApiError::unexpected(&error))?,
    };
    let sessions = own.as_ref().map(|own| own.id.clone()).into_iter().chain(params.session.clone()).collect();
    let wanted = Wanted {
        id,
        sessions,
        frontend: "dockerfile.v0".to_owned(),
        options: params.options.clone(),
        exporters: params.exporters.clone(),
        entitlements: params.entitlements.clone(),
        ..Wanted::default()
    };
    let begun = app.builder.begin(wanted)?;
    let (lines, answer) = Lines::new();
    tokio::spawn(async move {
        let (folder, own) = (folder, own);
        run(begun, &params, &lines).await;
        // Only now nobody asks for them any more.
        drop((own, folder));
    });
    Ok(stream(Body::from_stream(answer)))
}

/// Runs a build and tells of it until it ends, or the client is gone.
async fn run(begun: Begun, params: &Params, lines: &Lines) {
    let build = begun.build.clone();
    let told = async {
        if params.trace {
            trace(&build, lines).await;
            return;
        }
        let mut printer = Printer::default();
        let mut told = std::pin::pin!(messages(build.progress.listen()));
        let mut plan = build.plan.subscribe();
        while let Some(message) = told.next().await {
            if let Some(plan) = plan.has_changed().unwrap_or(false).then(|| plan.borrow_and_update().clone()).flatten()
            {
                printer.set_plan(&plan);
            }
            if write(lines, printer.take(message), params.quiet).await.is_err() {
                return;
            }
        }
        if let Some(plan) = plan.has_changed().unwrap_or(false).then(|| plan.borrow_and_update().clone()).flatten() {
            printer.set_plan(&plan);
        }
        // Of one that failed, what comes after the failed step is none of the user's business.
        let rest = printer.take(StatusResponse::default());
        let _ = write(lines, rest, params.quiet).await;
        if build.succeeded() {
            let _ = write(lines, printer.finish(), params.quiet).await;
        }
    };
    let work = async {
        tokio::select! {
            result = begun.run() => result,
            () = lines.gone() => Err(BuildError::cancelled()),
        }
    };
    // Output comes to its end by itself once the build does.
    let (result, ()) = tokio::join!(work, told);
    let end = match &result {
        Ok(outcome) => succeeded(outcome, params, lines).await,
        Err(error) => failed(error, lines).await,
    };
    if end.is_err() {
        tracing::debug!(build = build.id, "client left before the end of its build");
    }
}

type Told = Result<(), crate::images::progress::Gone>;

async fn write(lines: &Lines, texts: Vec<String>, quiet: bool) -> Told {
    for text in texts.into_iter().filter(|_| !quiet) {
        lines.write(Line::stream(text)).await?;
    }
    Ok(())
}

/// BuildKit's messages, as docker 18.09 to 20.10 read them.
async fn trace(build: &crate::build::running::Build, lines: &Lines) {
    let mut told = std::pin::pin!(messages(build.progress.listen()));
    while let Some(message) = told.next().await {
        let bytes = base64::engine::general_purpose::STANDARD.encode(message.encode_to_vec());
        if lines.write_value(&json!({"id": "moby.buildkit.trace", "aux": bytes})).await.is_err() {
            return;
        }
    }
}

async fn succeeded(outcome: &Outcome, params: &Params, lines: &Lines) -> Told {
    let id = outcome.get("containerimage.config.digest").or_else(|| outcome.get("containerimage.digest"));
    let Some(id) = id else { return Ok(()) };
    if params.trace {
        lines.write_value(&json!({"id": "moby.image.id", "aux": {"ID": id}})).await?;
        // With -q, the client prints the lines of text and nothing else.
        return if params.quiet { lines.write(Line::stream(format!("{id}\n"))).await } else { Ok(()) };
    }
    let short = id.parse::<Digest>().map_or_else(|_| id.clone(), |digest| crate::ids::short(&digest.hex()).to_owned());
    if params.quiet {
        return lines.write(Line::stream(format!("{id}\n"))).await;
    }
    lines.write_value(&json!({"aux": {"ID": id}})).await?;
    lines.write(Line::stream(format!("Successfully built {short}\n"))).await?;
    for tag in &params.tags {
        lines.write(Line::stream(format!("Successfully tagged {}\n", tag.familiar()))).await?;
    }
    Ok(())
}

async fn failed(error: &BuildError, lines: &Lines) -> Told {
    let excerpt = error.excerpt();
    let message = if error.kind == ErrorKind::Cancelled { "build cancelled".to_owned() } else { error.message.clone() };
    let text = if excerpt.is_empty() { message } else { format!("{message}\n{}", excerpt.trim_end()) };
    lines.write(Line::error(text)).await
}

/// A folder that goes when this is dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        // It may hold a great deal.
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&path) {
                warn!(path = %path.display(), %error, "context of a build left behind");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("context".into()).spawn(remove) {
            warn!(%error, "context of a build left behind");
        }
    }
}

/// Unpacks the body. Clients that get an answer before they have sent all think that the connection broke, hence the rest of a
/// body that is refused is read, too.
async fn receive(contexts: &Path, body: Body) -> ApiResult<Folder> {
    let name = random_id().map_err(|error| ApiError::unexpected(&error))?;
    let folder = Folder(contexts.join(name));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder.0);
    made.map_err(|cause| ApiError::of(ErrorKind::of_io(&cause), &cause))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&folder.0, flags, Mode::empty()).map_err(|cause| ApiError::unexpected(&cause))?;
    let free =
        nix::sys::statvfs::fstatvfs(&root).map_or(u64::MAX, |stat| stat.blocks_available() * stat.fragment_size());
    let (sender, pieces) = mpsc::channel(AHEAD);
    let feed = async move {
        let mut data = body.into_data_stream();
        while let Some(piece) = data.next().await {
            // One that nobody takes any more was refused.
            let _ = sender.send(piece.map_err(io::Error::other)).await;
        }
    };
    let (unpacked, ()) = tokio::join!(unpack_below(root, pieces, free / 10 * 9), feed);
    unpacked
        .map_err(|error| ApiError::invalid(format!("Error processing tar file: {}", proto::kind::chain(&error))))?;
    Ok(folder)
}
