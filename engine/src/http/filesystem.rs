//! What is made of a container's files: `/commit`, `/containers/{id}/changes`, `/containers/{id}/export`.

use super::{ApiResult, Query, json, json_body, run_to_end};
use crate::{
    api::Config,
    app::App,
    containers::{
        archive::{self, Packing, PathStat, Upload},
        changes, commit, export,
    },
    http::ApiError,
    images::tag::new_name,
};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use serde_json::json;
use std::{io, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

/// `POST /commit`
pub async fn commit(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let config = json_body::<Option<Config>>(&headers, body).await?;
    let container = app.containers.find(query.get("container").unwrap_or_default())?;
    let name = query.get("repo").map(|repo| new_name(repo, query.get("tag"))).transpose()?;
    let text = |key: &str| query.get(key).unwrap_or_default().to_owned();
    let request = commit::Request {
        name,
        author: text("author"),
        comment: text("comment"),
        pause: query.raw("pause").is_none_or(str::is_empty) || query.flag("pause"),
        changes: query.all("changes").map(str::to_owned).collect(),
        // An empty object says as little as none.
        config: config.filter(|config| *config != Config::default()),
    };
    let id = run_to_end(async move { commit::commit(&app, &container, request).await }).await?;
    Ok(json(StatusCode::CREATED, &json!({"Id": id})))
}

/// `GET /containers/{id}/changes`
pub async fn changes(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let container = app.containers.find(&id)?;
    let changes = run_to_end(async move { changes::changes(&app, &container).await }).await?;
    Ok(json(StatusCode::OK, &Some(changes).filter(|changes| !changes.is_empty())))
}

/// `GET /containers/{id}/export`
pub async fn export(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let container = app.containers.find(&id)?;
    let archive = export::export(&app, &container).await?;
    app.events.publish("container", "export", &container.id, container.attributes());
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(archive)).into_response())
}

fn path_of(query: &Query) -> ApiResult<String> {
    let path = query.get("path").ok_or_else(|| ApiError::invalid("bad parameter: path cannot be empty"))?;
    if path.contains('\0') {
        return Err(ApiError::invalid("bad parameter: path contains a NUL character"));
    }
    Ok(path.to_owned())
}

fn path_stat(stat: &PathStat) -> ApiResult<HeaderValue> {
    let text = serde_json::to_vec(stat).map_err(|e| ApiError::unexpected(&e))?;
    HeaderValue::from_str(&STANDARD.encode(text)).map_err(|e| ApiError::unexpected(&e))
}

/// `HEAD /containers/{id}/archive`
pub async fn stat(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let path = path_of(&Query::parse(query.as_deref()))?;
    let container = app.containers.find(&id)?;
    let stat = archive::stat(&app, &container, &path).await?;
    Ok(([(PATH_STAT, path_stat(&stat)?)], StatusCode::OK).into_response())
}

/// `GET /containers/{id}/archive`
pub async fn get_archive(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> ApiResult {
    let path = path_of(&Query::parse(query.as_deref()))?;
    let container = app.containers.find(&id)?;
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("");
    let packing = Packing::accepted(accepted);
    let (stat, pieces) = archive::read(&app, &container, &path, packing).await?;
    app.events.publish("container", "archive-path", &container.id, container.attributes());
    let kind = [(PATH_STAT, path_stat(&stat)?), (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"))];
    let mut response = (kind, Body::from_stream(ReceiverStream::new(pieces))).into_response();
    let name = match packing {
        Packing::Plain => None,
        Packing::Gzip => Some("gzip"),
        Packing::Deflate => Some("deflate"),
    };
    if let Some(name) = name {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    Ok(response)
}

/// A body for a thread that reads it.
pub(super) fn pieces_of(body: Body) -> archive::Pieces {
    let (sender, pieces) = mpsc::channel(4);
    // Ends with the body, or when nobody reads it any more.
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error));
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    pieces
}

/// `PUT /containers/{id}/archive`
pub async fn put_archive(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let path = path_of(&query)?;
    let container = app.containers.find(&id)?;
    let upload = Upload { keep_kinds: query.flag("noOverwriteDirNonDir"), own: query.flag("copyUIDGID") };
    let pieces = pieces_of(body);
    run_to_end(async move {
        archive::unpack(&app, &container, &path, pieces, upload).await?;
        app.events.publish("container", "extract-to-dir", &container.id, container.attributes());
        Ok(StatusCode::OK.into_response())
    })
    .await
}
