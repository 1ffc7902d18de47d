//! `/containers/{id}/exec` and `/exec/{id}`.

use super::{ApiResult, ApiVersion, Query, containers::size, hijack::Takeover, json, json_body, run_to_end};
use crate::{
    app::App,
    containers::{
        exec::{self, ExecConfig, ExecStart},
        frames::Stream,
        stop,
        streams::{ClientStream, Framing, write_frame},
    },
    http::ApiError,
};
use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, Request, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// `POST /containers/{id}/exec`
pub async fn create(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> ApiResult {
    let body: Map<String, Value> = json_body(&headers, body).await?;
    exec::check_unbuilt(&body)?;
    let config: ExecConfig =
        serde_json::from_value(body.into()).map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")))?;
    let container = app.containers.find(&id)?;
    let id = exec::create(&app, &container, config)?;
    Ok(json(StatusCode::CREATED, &json!({"Id": id})))
}

/// `POST /exec/{id}/start`
pub async fn start(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    mut request: Request,
) -> ApiResult {
    let headers = request.headers().clone();
    let takeover = Takeover::new(&headers, request.extensions_mut());
    let options: ExecStart = json_body(&headers, request.into_body()).await?;
    let exec = app.containers.exec(&id)?;
    let framing = if exec.config.tty { Framing::Raw } else { Framing::Multiplexed };
    let claim = exec::claim(&app, &exec)?;
    if options.detach {
        run_to_end(async move { exec::start(&app, claim, options).await.map(drop) }).await?;
        return Ok(StatusCode::OK.into_response());
    }
    // The head of the answer goes out before the process runs, as in Docker: clients that read the head through a buffer
    // (docker-py) would lose output that comes along with it. What fails from here on is told in the stream.
    let serve = async move |client: ClientStream| {
        let starting = {
            let app = app.clone();
            run_to_end(async move { exec::start(&app, claim, options).await })
        };
        match starting.await {
            Ok(running) => running.serve(app, client).await,
            Err(error) => tell(client, framing, error).await,
        }
    };
    takeover.answer(framing, version, Box::new(move |client| Box::pin(serve(client))))
}

async fn tell(client: ClientStream, framing: Framing, error: ApiError) {
    let (_reader, mut writer) = client.stream.into_split();
    let text = format!("{}\r\n", error.message);
    let written = match framing {
        Framing::Raw => writer.write_all(text.as_bytes()).await,
        Framing::Multiplexed => write_frame(&mut writer, Stream::Stderr, text.as_bytes()).await,
    };
    if written.is_ok() {
        let _ = writer.shutdown().await;
    }
}

/// `POST /exec/{id}/resize`
pub async fn resize(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let (rows, columns) = size(&Query::parse(query.as_deref()))?;
    let exec = app.containers.exec(&id)?;
    if !exec.state().running {
        return Err(ApiError::conflict(format!("exec {id} is not running")));
    }
    let container = app.containers.find(&exec.container)?;
    stop::resize(&app, &container, &exec.id, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

/// `GET /exec/{id}/json`
pub async fn inspect(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let exec = app.containers.exec(&id)?;
    let (state, config) = (exec.state(), &exec.config);
    let body = json!({
        "ID": exec.id,
        "Running": state.running,
        "ExitCode": state.exit_code,
        "ProcessConfig": {
            "tty": config.tty, "entrypoint": config.cmd[0], "arguments": config.cmd[1..], "privileged": config.privileged,
            "user": config.user,
        },
        "OpenStdin": config.attach_stdin,
        "OpenStderr": config.attach_stderr,
        "OpenStdout": config.attach_stdout,
        "CanRemove": state.exit_code.is_some(),
        "ContainerID": exec.container,
        "DetachKeys": config.detach_keys,
        "Pid": state.pid,
    });
    Ok(json(StatusCode::OK, &body))
}
