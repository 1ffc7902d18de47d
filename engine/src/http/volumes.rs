//! `/volumes`

use super::{ApiError, ApiResult, ApiVersion, Query, filesystem::pieces_of, json, json_body, run_to_end};
use crate::{
    api::serial::{is_zero, nullable},
    app::App,
    containers::{archive, mounts::check_volume_name},
    ids,
    volumes::{Described, LOCAL, NewVolume},
};
use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio_stream::wrappers::ReceiverStream;

/// Body of a create request.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateVolume {
    /// Its name; empty for an anonymous one.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// `local` or a plugin; empty for whoever has the volume, else `local`.
    #[serde(deserialize_with = "nullable")]
    pub driver: String,
    /// What the driver is told.
    #[serde(deserialize_with = "nullable")]
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// What is not known.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `GET /volumes`
pub async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let filters = Query::parse(query.as_deref()).filters(&["dangling", "driver", "label", "label!", "name"])?;
    let dangling = filters.boolean("dangling")?;
    let mut rows = Vec::new();
    let mut drivers = filters.values("driver").peekable();
    let only_local = drivers.peek().is_some() && drivers.all(|driver| driver == LOCAL);
    let (volumes, warnings) = app.volumes.list_all(only_local).await;
    for (described, users) in volumes {
        let volume = &described.volume;
        if dangling.is_none_or(|wanted| wanted == (users == 0))
            && filters.any("driver", |driver| driver == volume.driver)
            && filters.any("name", |name| volume.name.contains(name))
            && filters.labels(&volume.labels)
        {
            rows.push(show(&described));
        }
    }
    let warnings = if warnings.is_empty() { Value::Null } else { json!(warnings) };
    Ok(json(StatusCode::OK, &json!({"Volumes": rows, "Warnings": warnings})))
}

/// `POST /volumes/create`
pub async fn create(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> ApiResult {
    let request: CreateVolume = json_body(&headers, body).await?;
    if let Some((key, _)) = request.other.iter().find(|(key, value)| *key == "ClusterVolumeSpec" && !is_zero(value)) {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{key}: cluster volumes need a swarm, and this node is in none"),
        ));
    }
    let anonymous = request.name.is_empty();
    let name = if anonymous { ids::random_id().map_err(|e| ApiError::unexpected(&e))? } else { request.name };
    check_volume_name(&name)?;
    let new = NewVolume { labels: request.labels, anonymous, options: request.driver_opts, maker: None };
    let described = run_to_end(async move {
        let (volume, made) = app.volumes.make(&name, &request.driver, new).await?;
        if made {
            let driver = BTreeMap::from([("driver".into(), volume.driver.clone())]);
            app.events.publish("volume", "create", &name, driver);
        }
        match volume.is_local() {
            true => Ok(app.volumes.describe(volume)),
            false => Ok(app.volumes.look(&name).await?),
        }
    });
    Ok(json(StatusCode::CREATED, &show(&described.await?)))
}

/// `GET /volumes/{name}`
pub async fn inspect(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult {
    Ok(json(StatusCode::OK, &show(&app.volumes.look(&name).await?)))
}

/// `DELETE /volumes/{name}`
pub async fn remove(State(app): State<Arc<App>>, Path(name): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let force = Query::parse(query.as_deref()).flag("force");
    run_to_end(async move {
        let driver = match app.volumes.remove_driven(&name, force).await.map_err(ApiError::from) {
            Err(error) if force && error.status == StatusCode::NOT_FOUND => return Ok(()),
            result => result?,
        };
        app.events.publish("volume", "destroy", &name, BTreeMap::from([("driver".into(), driver)]));
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /volumes/{name}/export`: its content as a tar. Berth's own.
pub async fn export(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult {
    let pieces = archive::export_volume(&app, &name).await?;
    let kind = [(header::CONTENT_TYPE, "application/x-tar")];
    Ok((kind, Body::from_stream(ReceiverStream::new(pieces))).into_response())
}

/// `POST /volumes/{name}/import`: unpacks a tar, packed or not, into it. Berth's own.
pub async fn import(State(app): State<Arc<App>>, Path(name): Path<String>, body: Body) -> ApiResult {
    let pieces = pieces_of(body);
    run_to_end(async move {
        archive::import_volume(&app, &name, pieces).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

/// All volumes with who uses them and what they take.
pub fn with_usage(app: &App) -> Vec<Value> {
    // What plugins keep, and what is mounted, is not on this machine's disk or not for us to tell.
    let list = app.volumes.list().into_iter().filter(|(volume, _)| volume.is_local() && !volume.needs_mount());
    list.map(|(volume, users)| {
        let size = app.volumes.size(&volume.name);
        let mut row = show(&app.volumes.describe(volume));
        row["UsageData"] = json!({"RefCount": users, "Size": size});
        row
    })
    .collect()
}

/// `POST /volumes/prune`: from 1.42 on anonymous ones only, unless all are asked for; as with dockerd, none with options.
pub async fn prune(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    RawQuery(query): RawQuery,
) -> ApiResult {
    let known: &[&str] = if version.at_least(42) { &["all", "label", "label!"] } else { &["label", "label!"] };
    let filters = Query::parse(query.as_deref()).filters(known)?;
    let all = !version.at_least(42) || filters.boolean("all")? == Some(true);
    let pruned = run_to_end(async move {
        tokio::task::spawn_blocking(move || {
            let (mut removed, mut freed) = (Vec::new(), 0);
            for (volume, users) in app.volumes.list() {
                let plain = volume.is_local() && volume.options.is_empty();
                if users > 0 || !plain || !(all || volume.anonymous) || !filters.labels(&volume.labels) {
                    continue;
                }
                let size = app.volumes.size(&volume.name);
                // Somebody may have begun to use it meanwhile.
                if let Err(error) = app.volumes.remove(&volume.name) {
                    tracing::debug!(volume = volume.name, error = %proto::kind::chain(&error), "not pruned");
                    continue;
                }
                app.events.publish("volume", "destroy", &volume.name, [("driver".into(), "local".into())].into());
                removed.push(volume.name);
                freed += size;
            }
            app.events.publish("volume", "prune", "", [("reclaimed".into(), freed.to_string())].into());
            (removed, freed)
        })
        .await
        .map_err(|e| ApiError::unexpected(&e))
    });
    let (removed, freed) = pruned.await?;
    Ok(json(StatusCode::OK, &json!({"VolumesDeleted": removed, "SpaceReclaimed": freed})))
}

fn show(described: &Described) -> Value {
    let volume = &described.volume;
    let labels = if volume.anonymous && volume.labels.is_empty() {
        json!({"com.docker.volume.anonymous": ""})
    } else if volume.labels.is_empty() {
        json!(null)
    } else {
        json!(volume.labels)
    };
    let mut shown = json!({
        "Driver": volume.driver, "Labels": labels, "Mountpoint": described.mountpoint,
        "Name": volume.name, "Scope": described.scope,
        "Options": if volume.options.is_empty() { Value::Null } else { json!(volume.options) },
    });
    if let Some(created) = &described.created {
        shown["CreatedAt"] = created.clone().into();
    }
    if let Some(status) = &described.status {
        shown["Status"] = status.clone().into();
    }
    shown
}
