//! `/volumes`

use super::{ApiError, ApiResult, ApiVersion, Query, json, json_body, run_to_end};
use crate::{
    api::serial::{is_zero, nullable},
    app::App,
    containers::mounts::check_volume_name,
    ids,
    volumes::{NewVolume, Volume},
};
use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// Body of a create request.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateVolume {
    /// Its name; empty for an anonymous one.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Only `local`.
    #[serde(deserialize_with = "nullable")]
    pub driver: String,
    /// None so far.
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
    for (volume, users) in app.volumes.list() {
        if dangling.is_none_or(|wanted| wanted == (users == 0))
            && filters.any("driver", |driver| driver == "local")
            && filters.any("name", |name| volume.name.contains(name))
            && filters.labels(&volume.labels)
        {
            rows.push(show(&app, &volume));
        }
    }
    Ok(json(StatusCode::OK, &json!({"Volumes": rows, "Warnings": null})))
}

/// `POST /volumes/create`
pub async fn create(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> ApiResult {
    let request: CreateVolume = json_body(&headers, body).await?;
    if !matches!(request.driver.as_str(), "" | "local") {
        return Err(no_driver(&request.name, &request.driver));
    }
    if let Some((key, _)) = request.other.iter().find(|(key, value)| *key == "ClusterVolumeSpec" && !is_zero(value)) {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{key}: cluster volumes need a swarm, and this node is in none"),
        ));
    }
    let anonymous = request.name.is_empty();
    let name = if anonymous { ids::random_id().map_err(|e| ApiError::unexpected(&e))? } else { request.name };
    check_volume_name(&name)?;
    let new = NewVolume { labels: request.labels, anonymous, options: request.driver_opts };
    let (volume, made) = app.volumes.ensure(&name, new)?;
    if made {
        app.events.publish("volume", "create", &name, BTreeMap::from([("driver".into(), "local".into())]));
    }
    Ok(json(StatusCode::CREATED, &show(&app, &volume)))
}

/// The error for a driver that isn't there; there are no plugins.
pub fn no_driver(name: &str, driver: &str) -> ApiError {
    ApiError::not_found(format!(
        "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
    ))
}

/// `GET /volumes/{name}`
pub async fn inspect(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult {
    Ok(json(StatusCode::OK, &show(&app, &app.volumes.get(&name)?)))
}

/// `DELETE /volumes/{name}`
pub async fn remove(State(app): State<Arc<App>>, Path(name): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let force = Query::parse(query.as_deref()).flag("force");
    run_to_end(async move {
        let (owner, volume) = (app.clone(), name.clone());
        let removed = tokio::task::spawn_blocking(move || owner.volumes.remove(&volume)).await;
        match removed.map_err(|e| ApiError::unexpected(&e))?.map_err(ApiError::from) {
            Err(error) if force && error.status == StatusCode::NOT_FOUND => return Ok(()),
            result => result?,
        }
        app.events.publish("volume", "destroy", &name, BTreeMap::from([("driver".into(), "local".into())]));
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// All volumes with who uses them and what they take.
pub fn with_usage(app: &App) -> Vec<Value> {
    let list = app.volumes.list().into_iter();
    list.map(|(volume, users)| {
        let mut row = show(app, &volume);
        row["UsageData"] = json!({"RefCount": users, "Size": app.volumes.size(&volume.name)});
        row
    })
    .collect()
}

/// `POST /volumes/prune`: from 1.42 on anonymous ones only, unless all are asked for.
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
                if users > 0 || !(all || volume.anonymous) || !filters.labels(&volume.labels) {
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

fn show(app: &App, volume: &Volume) -> Value {
    let labels = if volume.anonymous && volume.labels.is_empty() {
        json!({"com.docker.volume.anonymous": ""})
    } else if volume.labels.is_empty() {
        json!(null)
    } else {
        json!(volume.labels)
    };
    json!({
        "CreatedAt": volume.created, "Driver": "local", "Labels": labels, "Mountpoint": app.volumes.path(&volume.name),
        "Name": volume.name, "Scope": "local",
        "Options": if volume.options.is_empty() { Value::Null } else { json!(volume.options) },
    })
}
