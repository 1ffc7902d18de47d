//! `POST /commit`: an image of what a container has written. While its files are read a running container is frozen.

use super::{
    Container, changes,
    merge::merge,
    record::{Phase, Record},
    rootfs::{self, Base},
    stop,
};
use crate::{
    api::Config,
    app::App,
    http::{ApiError, ApiResult},
    images::{
        ImageContent, changes as instructions,
        commit::{self, CommitRequest},
    },
};
use proto::{containerd::types::Descriptor, digest::Digest, image_ref::ImageRef, kind::chain};
use std::sync::Arc;
use tracing::warn;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The image's name, if it gets one.
    pub name: Option<ImageRef>,
    /// Who makes it.
    pub author: String,
    /// A note.
    pub comment: String,
    /// Whether to freeze the container.
    pub pause: bool,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// In place of the container's own.
    pub config: Option<Config>,
}

/// Makes the image; gives its id.
pub async fn commit(app: &Arc<App>, container: &Arc<Container>, request: Request) -> ApiResult<Digest> {
    let record = container.record();
    if record.state.phase == Phase::Removing {
        return Err(ApiError::conflict(format!("You cannot commit container {} which is being removed", record.id)));
    }
    let Request { name, author, comment, pause, changes: wanted, config } = request;
    let mut config = config.unwrap_or_else(|| record.config.clone());
    instructions::apply(&mut config, wanted.iter().map(String::as_str))
        .map_err(|e| ApiError::invalid(e.to_string()))?;
    merge(&mut config, &record.config);
    let parent = app.images.resolve(&record.image_id).await?.content;
    let failed = |error: &dyn std::error::Error| {
        ApiError::internal(format!("commit container {}: {}", record.name, chain(error)))
    };
    let base = Base::of(app, &record, "commit").await.map_err(|e| failed(&e))?;
    let made = async {
        let layer = layer(app, container, &record, &base, &parent, pause).await?;
        let created_by = record.config.cmd.as_deref().unwrap_or_default().join(" ");
        let request = CommitRequest { name: name.clone(), author, comment: comment.clone(), created_by, config };
        proto::fault!("engine.commit.layer_made");
        let operation = format!("{}-unpack", base.lease.id());
        Ok(app.images.commit(&base.lease.client, &operation, &parent, &layer, request).await?)
    };
    let made: ApiResult<Digest> = made.await;
    base.give_back().await;
    let id = made?;
    let shown = name.as_ref().map_or(String::new(), ImageRef::familiar);
    if let Ok(image) = app.images.resolve(&id.to_string()).await
        && name.is_some()
    {
        let mut attributes = image.content.config.config.labels.clone();
        attributes.insert("name".into(), shown.clone());
        app.events.publish("image", "tag", id.to_string(), attributes);
    }
    let mut attributes = container.attributes();
    attributes.extend([
        ("comment".to_owned(), comment),
        ("imageID".to_owned(), id.to_string()),
        ("imageRef".to_owned(), shown),
    ]);
    app.events.publish("container", "commit", &container.id, attributes);
    Ok(id)
}

async fn layer(
    app: &Arc<App>,
    container: &Arc<Container>,
    record: &Record,
    base: &Base,
    parent: &ImageContent,
    pause: bool,
) -> ApiResult<Descriptor> {
    let failed = |error: &dyn std::error::Error| {
        ApiError::internal(format!("commit container {}: {}", record.name, chain(error)))
    };
    // Nobody else may thaw, stop or remove it meanwhile.
    let _turn = container.turn.lock().await;
    let mounts = rootfs::mounts(app, container, record).await.map_err(|e| failed(&e))?;
    let frozen = pause && container.live().record.state.phase == Phase::Running;
    if frozen {
        freeze(app, container).await?;
    }
    proto::fault!("engine.commit.frozen");
    let made = match changes::made_for_mounts(&base.mounts, &mounts).await {
        Ok(except) => {
            let made = commit::layer(&base.lease.client, parent, base.mounts.clone(), mounts, &except).await;
            made.map_err(|e| failed(&e))
        }
        Err(error) => Err(failed(&error)),
    };
    if frozen {
        thaw(app, container).await;
    }
    made
}

async fn freeze(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    let record = {
        let mut live = container.live();
        live.record.state.frozen_by_commit = true;
        live.record.clone()
    };
    // On disk first: nobody else would know that it isn't the user who froze it.
    let noted = app.containers.store.put(&record).await.map_err(|e| ApiError::unexpected(&e));
    let frozen = match noted {
        Ok(()) => stop::pause_in_turn(app, container).await,
        Err(error) => Err(error),
    };
    match frozen {
        // It ended in between: there is nothing to freeze.
        Err(error) if container.live().record.state.phase == Phase::Running => {
            container.live().record.state.frozen_by_commit = false;
            app.containers.keep_soon(container);
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Thaws what a commit has frozen; the caller has the turn, or nobody else can have it yet.
pub async fn thaw(app: &Arc<App>, container: &Arc<Container>) {
    if container.live().record.state.phase == Phase::Paused
        && let Err(error) = stop::unpause_in_turn(app, container).await
    {
        warn!(id = crate::ids::short(&container.id), %error, "container not thawed after a commit");
        return;
    }
    container.live().record.state.frozen_by_commit = false;
    app.containers.keep_soon(container);
}
