//! `/containers`: decode, call the rules, encode.

use super::{
    ApiError, ApiResult, ApiVersion, Query, Rows,
    hijack::{Takeover, content_type},
    json, json_body, run_to_end,
};
use crate::{
    api::CreateRequest,
    app::App,
    containers::{
        attach, create, follow, inspect, links,
        list::{self, FILTERS},
        log_config, logs, remove, size, start, stats, stop,
        streams::{Framing, Wants},
        update,
    },
    time::Timestamp,
};
use axum::{
    body::{Body, Bytes},
    extract::{Extension, Path, RawQuery, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Limited};
use serde_json::json;
use spec::signal;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// `GET /containers/json`
pub async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let filters = query.filters(&FILTERS)?;
    // Isolation is of Windows: on Linux dockerd takes the filter and lists all the same.
    let limit = query.number::<i64>("limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let options = list::Options { all: query.flag("all"), limit, filters, size: query.flag("size") };
    let mut rows = Rows::default();
    list::list(&app, &options, |row| rows.push(&row)).await?;
    Ok(rows.answer())
}

/// `POST /containers/create`
pub async fn create(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let request: CreateRequest = json_body(&headers, body).await?;
    create::check_query(&query)?;
    let created =
        run_to_end(async move { create::create(&app, query.get("name"), query.get("platform"), request).await })
            .await?;
    Ok(json(StatusCode::CREATED, &json!({"Id": created.id, "Warnings": created.warnings})))
}

/// `GET /containers/{id}/json`
pub async fn inspect(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let container = app.containers.find(&id)?;
    let mut shown = inspect::inspect(&app, &container)?;
    if Query::parse(query.as_deref()).flag("size") {
        let record = container.record();
        let sizes = size::Layers::default().sizes_or_none(&app, &record).await;
        let sizes = sizes.map_err(|e| ApiError::of(e.kind(), &e))?;
        shown["SizeRw"] = sizes.written.into();
        shown["SizeRootFs"] = sizes.root.into();
    }
    Ok(json(StatusCode::OK, &shown))
}

/// `POST /containers/{id}/start`
pub async fn start(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> ApiResult {
    no_body(body).await?;
    create::check_query(&Query::parse(query.as_deref()))?;
    let container = app.containers.find(&id)?;
    run_to_end(async move { start::start(&app, &container).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Settings that came with a start were docker's way once. What some clients send in place of nothing (`{}`, `null`) is read away.
async fn no_body(body: Body) -> ApiResult<()> {
    const NOTHING: usize = 7;
    let refused = "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24";
    let read = Limited::new(body, NOTHING).collect().await;
    read.map(drop).map_err(|_| ApiError::invalid(refused))
}

fn stop_options(query: &Query) -> ApiResult<stop::Options> {
    let signal = query.get("signal").map(signal::parse).transpose()?;
    Ok(stop::Options { signal, timeout: query.number("t")? })
}

/// `POST /containers/{id}/stop`
pub async fn stop(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let options = stop_options(&Query::parse(query.as_deref()))?;
    let container = app.containers.find(&id)?;
    let hint = run_to_end(async move { stop::stop(&app, &container, options).await }).await?;
    Ok(with_hint(hint))
}

/// `POST /containers/{id}/restart`
pub async fn restart(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let options = stop_options(&Query::parse(query.as_deref()))?;
    let container = app.containers.find(&id)?;
    let hint = run_to_end(async move { stop::restart(&app, &container, options).await }).await?;
    Ok(with_hint(hint))
}

/// A header that clients may show: what the user can do better.
fn with_hint(hint: Option<String>) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let text = hint.and_then(|hint| format!("299 berth-engine \"{hint}\"").parse().ok());
    if let Some(text) = text {
        response.headers_mut().insert(header::WARNING, text);
    }
    response
}

/// `POST /containers/{id}/kill`
pub async fn kill(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let signal = signal::parse(query.get("signal").unwrap_or("KILL"))?;
    let container = app.containers.find(&id)?;
    run_to_end(async move { stop::kill(&app, &container, signal).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /containers/{id}/pause`
pub async fn pause(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let container = app.containers.find(&id)?;
    run_to_end(async move { stop::pause(&app, &container).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /containers/{id}/unpause`
pub async fn unpause(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let container = app.containers.find(&id)?;
    run_to_end(async move { stop::unpause(&app, &container).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /containers/{id}/rename`
pub async fn rename(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let container = app.containers.find(&id)?;
    run_to_end(async move { stop::rename(&app, &container, query.get("name").unwrap_or("")).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /containers/{id}/update`
pub async fn update(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> ApiResult {
    let request: serde_json::Map<String, serde_json::Value> = json_body(&headers, body).await?;
    let container = app.containers.find(&id)?;
    let warnings = run_to_end(async move { update::update(&app, &container, &request).await }).await?;
    // As Docker: null where there are none.
    let warnings = (!warnings.is_empty()).then_some(warnings);
    Ok(json(StatusCode::OK, &json!({ "Warnings": warnings })))
}

/// Height and width of a terminal, both required.
pub fn size(query: &Query) -> ApiResult<(u32, u32)> {
    let number = |key: &str| {
        query.number::<u32>(key)?.ok_or_else(|| ApiError::invalid(format!("invalid resize {key}: it is not given")))
    };
    Ok((number("h")?, number("w")?))
}

/// `POST /containers/{id}/resize`
pub async fn resize(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let (rows, columns) = size(&Query::parse(query.as_deref()))?;
    let container = app.containers.find(&id)?;
    stop::resize(&app, &container, "", rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

/// `GET /containers/{id}/top`
pub async fn top(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let (titles, processes) = stop::top(&app, &app.containers.find(&id)?, query.get("ps_args").unwrap_or("")).await?;
    Ok(json(StatusCode::OK, &json!({"Titles": titles, "Processes": processes})))
}

/// `DELETE /containers/{id}`
pub async fn remove(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    if query.flag("link") {
        // A name without a slash in it is the container's own, which is no link.
        app.containers.find(&id)?;
        return Err(ApiError::internal("Conflict, cannot remove the default link name of the container"));
    }
    let options = remove::Options { force: query.flag("force"), volumes: query.flag("v") };
    let container = app.containers.find(&id)?;
    run_to_end(async move { remove::remove(&app, &container, options).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /containers/{parent}/{alias}?link=1`
pub async fn remove_link(
    State(app): State<Arc<App>>,
    Path((parent, alias)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> ApiResult {
    if !Query::parse(query.as_deref()).flag("link") {
        return Err(ApiError::not_found(format!("No such container: {parent}/{alias}")));
    }
    run_to_end(async move { links::remove(&app, &parent, &alias).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /containers/prune`
pub async fn prune(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let filters = Query::parse(query.as_deref()).filters(&["until", "label", "label!"])?;
    let (removed, freed) = run_to_end(async move { remove::prune(&app, &filters).await }).await?;
    let removed = if removed.is_empty() { json!(null) } else { json!(removed) };
    Ok(json(StatusCode::OK, &json!({"ContainersDeleted": removed, "SpaceReclaimed": freed})))
}

/// `POST /containers/{id}/attach`
pub async fn attach(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    mut request: Request,
) -> ApiResult {
    let query = Query::parse(request.uri().query());
    let takeover = Takeover::new(&request.headers().clone(), request.extensions_mut());
    let container = app.containers.find(&id)?;
    let ask = attach::Ask {
        wants: Wants { stdin: query.flag("stdin"), stdout: query.flag("stdout"), stderr: query.flag("stderr") },
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        detach_keys: query.get("detachKeys").unwrap_or(""),
    };
    let joining = attach::join(&app, &container, ask).await?;
    let framing = joining.framing;
    takeover.answer(framing, version, Box::new(move |client| Box::pin(joining.serve(app, client))))
}

/// `GET /containers/{id}/attach/ws`: bytes as they are, in binary frames.
pub async fn attach_websocket(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    mut request: Request,
) -> ApiResult {
    let query = Query::parse(request.uri().query());
    let headers = request.headers().clone();
    let takeover = Takeover::new(&headers, request.extensions_mut());
    let container = app.containers.find(&id)?;
    // Clients before 1.42 get all streams, whatever they say.
    let wants = |key: &str| !version.at_least(42) || query.flag(key);
    let ask = attach::Ask {
        wants: Wants { stdin: wants("stdin"), stdout: wants("stdout"), stderr: wants("stderr") },
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        detach_keys: query.get("detachKeys").unwrap_or(""),
    };
    let mut joining = attach::join(&app, &container, ask).await?;
    joining.framing = Framing::Raw;
    takeover.answer_websocket(&headers, Box::new(move |client| Box::pin(joining.serve(app, client))))
}

/// `POST /containers/{id}/wait`: the header at once, the result when it is there.
pub async fn wait(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let container = app.containers.find(&id)?;
    let mut ends = container.ends.subscribe();
    let seen = *ends.borrow_and_update();
    // Both at once, for an end is on the record a moment before it is told.
    let (up, exit_code) = {
        let state = &container.live().record.state;
        (crate::containers::is_up(state.phase), state.exit_code)
    };
    let condition = query.get("condition").unwrap_or("not-running");
    if !matches!(condition, "not-running" | "next-exit" | "removed") {
        return Err(ApiError::invalid(format!("invalid condition: \"{condition}\"")));
    }
    let removal = condition == "removed";
    let at_once = condition == "not-running" && !up;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    // The body is a stream, so that the header goes out before there is a result.
    tokio::spawn(async move {
        let code = if at_once {
            exit_code
        } else {
            let over = |now: &crate::containers::Ends| now.removed || (!removal && now.count != seen.count);
            tokio::select! {
                ended = ends.wait_for(over) => ended.map_or(seen.code, |ends| ends.code),
                () = sender.closed() => return,
            }
        };
        let text = format!("{}\n", json!({"StatusCode": code}));
        let _ = sender.send(Ok(text.into())).await;
    });
    Ok(stream(StatusCode::OK, "application/json", receiver))
}

fn stream(status: StatusCode, kind: &'static str, receiver: mpsc::Receiver<Result<Bytes, Infallible>>) -> Response {
    (status, [(header::CONTENT_TYPE, kind)], Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

/// `GET /containers/{id}/logs`
pub async fn logs(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let container = app.containers.find(&id)?;
    let moment = |key: &str| {
        let parsed = query.get(key).filter(|t| *t != "0").map(Timestamp::parse_query).transpose();
        parsed.map_err(|e| ApiError::invalid(format!("invalid value for \"{key}\": {e}")))
    };
    let mut options = logs::Options {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        since: moment("since")?,
        until: moment("until")?,
        // As Docker: what is no number means all.
        tail: query.get("tail").and_then(|text| text.parse().ok()),
        timestamps: query.flag("timestamps"),
        details: query.flag("details"),
        ..logs::Options::default()
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let (tty, kind) = {
        let live = container.live();
        (live.record.config.tty, live.record.host.log_config.kind.clone())
    };
    options.format = log_config::readable(&kind)
        .ok_or_else(|| ApiError::not_implemented("configured logging driver does not support reading"))?;
    let framing = if tty { Framing::Raw } else { Framing::Multiplexed };
    let (sender, receiver) = mpsc::channel(16);
    let follow = query.flag("follow");
    tokio::spawn(follow::send(app, container, options, follow, framing, sender));
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, content_type(framing, version))], body).into_response())
}

/// `GET /containers/{id}/stats`
pub async fn stats(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let container = app.containers.find(&id)?;
    let streaming = query.flag_or("stream", true);
    let one_shot = query.flag("one-shot");
    if streaming && one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(stats::send(app, container, streaming, one_shot, sender));
    Ok(stream(StatusCode::OK, "application/json", receiver))
}
