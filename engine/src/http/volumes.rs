//! `/volumes`

use super::{ApiError, ApiResult, Query, json, json_body, run_to_end};
use crate::{
    api::serial::{is_zero, nullable},
    app::App,
    containers::mounts::check_volume_name,
    ids,
    volumes::Volume,
};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
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
        return Err(ApiError::not_implemented(format!(
            "volume driver {} is not implemented in berth yet",
            request.driver
        )));
    }
    if let Some(key) = request.driver_opts.keys().next() {
        return Err(ApiError::not_implemented(format!("volume driver option {key} is not implemented in berth yet")));
    }
    if let Some((key, _)) = request.other.iter().find(|(_, value)| !is_zero(value)) {
        return Err(ApiError::not_implemented(format!("volume option {key} is not implemented in berth yet")));
    }
    let anonymous = request.name.is_empty();
    let name = if anonymous { ids::random_id().map_err(|e| ApiError::unexpected(&e))? } else { request.name };
    check_volume_name(&name)?;
    let (volume, made) = app.volumes.ensure(&name, request.labels, anonymous)?;
    if made {
        app.events.publish("volume", "create", &name, BTreeMap::from([("driver".into(), "local".into())]));
    }
    Ok(json(StatusCode::CREATED, &show(&app, &volume)))
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
        "Name": volume.name, "Options": null, "Scope": "local",
    })
}
