//! Which path goes where. What Docker's API has and Berth lacks answers 501 by name; what nobody has answers 404.

use super::{
    absent, adapt, containers, df,
    error::ApiError,
    events, exec, filesystem, images, networks, registry, system,
    version::{ApiVersion, Manner, negotiate, stamp},
    volumes,
};
use crate::{access::Passage, app::App, build::api::http as build};
use axum::{
    Router,
    body::Body,
    extract::Extension,
    http::{Method, Request, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use futures_util::{FutureExt, StreamExt};
use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio::sync::watch;
use tower::ServiceExt;

/// All routes that are served.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/_ping", get(system::ping).head(system::ping_head))
        .route("/version", get(system::version))
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(images::load))
        .route("/images/prune", post(images::prune))
        .route("/images/get", get(images::get_many))
        .route("/images/search", get(registry::search))
        .route("/images/verify", post(images::verify))
        .route("/distribution/{*name}", get(registry::distribution))
        .route("/auth", post(registry::auth))
        .route("/images/{*name}", get(images::get_one).post(images::post_one).delete(images::remove))
        .route("/info", get(system::info))
        .route("/system/df", get(df::df))
        .route("/system/check", get(system::check))
        .route("/build", post(build::build))
        .route("/build/cancel", post(build::cancel))
        .route("/build/prune", post(build::prune))
        .route("/session", post(build::session))
        .route("/grpc", post(crate::build::api::grpc::take_over))
        .route("/debug/vars", get(system::variables))
        .route("/events", get(events::events))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}", delete(containers::remove))
        .route("/containers/{id}/{alias}", delete(containers::remove_link))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/pause", post(containers::pause))
        .route("/containers/{id}/unpause", post(containers::unpause))
        .route("/containers/{id}/update", post(containers::update))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/resize", post(containers::resize))
        .route("/containers/{id}/top", get(containers::top))
        .route("/containers/{id}/attach", post(containers::attach))
        .route("/containers/{id}/attach/ws", get(containers::attach_websocket))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/logs", get(containers::logs))
        .route("/containers/{id}/stats", get(containers::stats))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/containers/{id}/changes", get(filesystem::changes))
        .route("/containers/{id}/export", get(filesystem::export))
        .route(
            "/containers/{id}/archive",
            get(filesystem::get_archive).head(filesystem::stat).put(filesystem::put_archive),
        )
        .route("/commit", post(filesystem::commit))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/networks", get(networks::list))
        .route("/networks/", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/{id}/disconnect", post(networks::disconnect))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
        .route("/volumes/{name}/export", get(volumes::export))
        .route("/volumes/{name}/import", post(volumes::import))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(app)
}

/// Answers whose end is the end of something that may last for ever: they end when the engine does, other requests first finish.
const ENDLESS: &[(&str, &str)] = &[
    ("GET", "/events"),
    ("GET", "/containers/{id}/logs"),
    ("GET", "/containers/{id}/stats"),
    ("POST", "/containers/{id}/wait"),
];

/// One request of a client of this engine: answered, counted, and ended when the engine ends.
pub async fn serve_for(
    app: &App,
    router: Router,
    passage: Option<Arc<Passage>>,
    mut stopped: watch::Receiver<bool>,
    request: Request<Body>,
) -> Result<Response, Infallible> {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path();
    let path = super::version::versioned(path).map_or(path, |(_, rest)| rest).to_owned();
    let response = serve(router, passage, app.config.manner.clone(), request).await?;
    app.metrics.answered(&method, &path, response.status().as_u16(), begun.elapsed());
    if response.extensions().get::<Panicked>().is_some() {
        app.metrics.panics.fetch_add(1, Ordering::Relaxed);
    }
    if !ENDLESS.iter().any(|(m, pattern)| *m == method.as_str() && matches(pattern, &path)) {
        return Ok(response);
    }
    let told = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    Ok(response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(told)))))
}

/// Marks the answer of a request whose handler panicked.
#[derive(Debug, Clone, Copy)]
struct Panicked;

/// One request: version, route, headers. Nothing that a handler does ends more than its own request.
pub async fn serve(
    router: Router,
    passage: Option<Arc<Passage>>,
    manner: Manner,
    request: Request<Body>,
) -> Result<Response, Infallible> {
    let mut response = match AssertUnwindSafe(answer(router, passage, manner.minimum, request)).catch_unwind().await {
        Ok(response) => response,
        // What it panicked with stands in the log already.
        Err(_) => {
            let error = ApiError::internal("the engine met a defect of its own; its log tells more");
            let mut response = error.into_response();
            response.extensions_mut().insert(Panicked);
            response
        }
    };
    stamp(&mut response, &manner);
    Ok(response)
}

async fn answer(
    router: Router,
    passage: Option<Arc<Passage>>,
    minimum: ApiVersion,
    mut request: Request<Body>,
) -> Response {
    let version = match negotiate(&mut request, minimum) {
        Ok(version) => version,
        Err(refusal) => return refusal,
    };
    if request.method() == Method::OPTIONS {
        return StatusCode::OK.into_response();
    }
    let request = match adapt::request(version, request).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match passage {
        Some(passage) => passage.pass(router.clone(), request).await,
        None => router.clone().oneshot(request).await.unwrap_or_else(|never| match never {}),
    };
    adapt::answer(version, &method, &path, &router, response).await
}

async fn unknown(Extension(version): Extension<ApiVersion>, method: Method, uri: Uri) -> Response {
    let path = uri.path();
    if let Some(response) = absent::answer(&method, path, uri.query(), version) {
        return response;
    }
    match UNBUILT.iter().find(|(m, pattern)| *m == method.as_str() && matches(pattern, path)) {
        Some((method, pattern)) => {
            ApiError::not_implemented(format!("{method} {pattern} is not implemented in berth yet")).into_response()
        }
        None => ApiError::not_found("page not found").into_response(),
    }
}

/// `{x}` stands for one segment, `{x...}` for one or more (names of images hold slashes).
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    fn walk(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((p, rest)), Some((first, _))) if p.ends_with("...}") => {
                !first.is_empty() && (1..=path.len()).any(|n| walk(rest, &path[n..]))
            }
            (Some((p, rest)), Some((segment, tail))) => {
                ((p.starts_with('{') && !segment.is_empty()) || p == segment) && walk(rest, tail)
            }
            _ => false,
        }
    }
    walk(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

/// Endpoints of Docker's API 1.51 that are routed nowhere above reach the fallback, and are known by this table.
const UNBUILT: &[(&str, &str)] = &[("GET", "/images/{name...}/attestations")];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_one_request_only() {
        async fn defect() -> StatusCode {
            panic!("a test's own panic")
        }
        let router = Router::new().route("/bad", get(defect)).route("/good", get(|| async { "fine" }));
        for (path, status) in [("/bad", 500), ("/good", 200), ("/v1.30/bad", 500), ("/v1.30/good", 200)] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let response = serve(router.clone(), None, Manner::default(), request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()["api-version"], "1.51");
        }
    }

    #[tokio::test]
    async fn preflights_are_answered_everywhere() {
        for path in ["/containers/json", "/v1.24/nonsense", "/"] {
            let request = Request::builder().method("OPTIONS").uri(path).body(Body::empty()).unwrap();
            let manner = Manner { cors: Some("*".parse().unwrap()), ..Manner::default() };
            let response = serve(Router::new(), None, manner, request).await.unwrap();
            assert_eq!(
                (response.status().as_u16(), &response.headers()["access-control-allow-origin"]),
                (200, &"*".parse().unwrap())
            );
        }
    }

    #[test]
    fn patterns() {
        let cases = [
            ("/images/{name...}/push", "/images/a/b:1/push", true),
            ("/images/{name...}/push", "/images/a/push", true),
            ("/images/{name...}/push", "/images/push", false),
            ("/images/{name...}/push", "/images//push", false),
            ("/nodes/{id}", "/nodes/x", true),
            ("/nodes/{id}", "/nodes/", false),
            ("/nodes/{id}", "/nodes/x/y", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
