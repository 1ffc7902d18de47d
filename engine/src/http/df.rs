//! `GET /system/df`: what takes how much on disk.

use super::{ApiError, ApiResult, ApiVersion, Query, json, volumes};
use crate::{app::App, build::api::http as build, containers::list, http::Filters, images::list::ListOptions};
use axum::{
    extract::{Extension, RawQuery, State},
    http::StatusCode,
};
use serde_json::{Value, json};
use std::sync::Arc;

const KINDS: [&str; 4] = ["container", "image", "volume", "build-cache"];

/// `GET /system/df`
pub async fn df(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    RawQuery(query): RawQuery,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let wanted: Vec<&str> = if version.at_least(42) { query.all("type").collect() } else { Vec::new() };
    if let Some(unknown) = wanted.iter().find(|kind| !KINDS.contains(kind)) {
        return Err(ApiError::invalid(format!("unknown object type: {unknown}")));
    }
    let wants = |kind: &str| wanted.is_empty() || wanted.contains(&kind);
    let failed = |e: crate::supervisor::SupervisorError| ApiError::of(e.kind(), &e);
    let mut body = json!({"LayersSize": 0, "Images": null, "Containers": null, "Volumes": null, "BuildCache": null});
    if wants("image") {
        let options = ListOptions { shared_size: true, ..ListOptions::default() };
        let mut images = app.images.list(&options, version).await?;
        let counts = app.containers.image_counts();
        for image in &mut images {
            image.count_containers(counts.get(image.id()).copied().unwrap_or(0));
        }
        body["Images"] = json!(images);
        body["LayersSize"] = json!(app.images.disk_usage().await.map_err(failed)?);
    }
    if wants("container") {
        let options = list::Options { all: true, limit: 0, filters: Filters::default(), size: true };
        let mut rows = Vec::new();
        list::list(&app, &options, |row| rows.push(row)).await?;
        body["Containers"] = Value::Array(rows);
    }
    if wants("volume") {
        let owner = app.clone();
        let rows = tokio::task::spawn_blocking(move || volumes::with_usage(&owner)).await;
        body["Volumes"] = Value::Array(rows.map_err(|e| ApiError::unexpected(&e))?);
    }
    let (rows, size) = match wants("build-cache") {
        true => build::usage(&app, version).await?,
        false => (Vec::new(), 0),
    };
    if wants("build-cache") {
        body["BuildCache"] = Value::Array(rows);
    }
    if !version.at_least(42) {
        body["BuilderSize"] = json!(size);
    }
    Ok(json(StatusCode::OK, &body))
}
