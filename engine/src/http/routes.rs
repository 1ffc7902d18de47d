//! Which path goes where. What Docker's API has and Berth lacks answers 501 by name; what nobody has answers 404.

use super::{
    containers,
    error::ApiError,
    events, exec, images, networks, system,
    version::{negotiate, stamp},
    volumes,
};
use crate::app::App;
use axum::{
    Router,
    body::Body,
    http::{Method, Request, Uri},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use std::{convert::Infallible, sync::Arc};
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
        // More specific than the pattern below; not built.
        .route("/images/search", get(unknown))
        .route("/images/{*name}", get(images::get_one).post(images::post_one).delete(images::remove))
        .route("/info", get(system::info))
        .route("/events", get(events::events))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}", delete(containers::remove))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/pause", post(containers::pause))
        .route("/containers/{id}/unpause", post(containers::unpause))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/resize", post(containers::resize))
        .route("/containers/{id}/top", get(containers::top))
        .route("/containers/{id}/attach", post(containers::attach))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/logs", get(containers::logs))
        .route("/containers/{id}/stats", get(containers::stats))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/networks", get(networks::list))
        .route("/networks/", get(networks::list))
        .route("/networks/{id}", get(networks::inspect))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(app)
}

/// One request: version, route, headers.
pub async fn serve(router: Router, mut request: Request<Body>) -> Result<Response, Infallible> {
    let mut response = match negotiate(&mut request) {
        Ok(()) => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
        Err(refusal) => refusal,
    };
    stamp(&mut response);
    Ok(response)
}

async fn unknown(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    // There are no plugins, so none has this name; `docker inspect NAME` asks for one last and wants a plain 404.
    if method == Method::GET && matches("/plugins/{name...}/json", path) {
        return ApiError::not_found(format!(
            "plugin {:?} not found",
            &path["/plugins/".len()..path.len() - "/json".len()]
        ))
        .into_response();
    }
    match UNBUILT.iter().find(|(m, pattern)| *m == method.as_str() && matches(pattern, path)) {
        Some((method, pattern)) => {
            ApiError::not_implemented(format!("{method} {pattern} is not implemented in berth yet")).into_response()
        }
        None => ApiError::not_found("page not found").into_response(),
    }
}

/// `{x}` stands for one segment, `{x...}` for one or more (names of images hold slashes).
fn matches(pattern: &str, path: &str) -> bool {
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
const UNBUILT: &[(&str, &str)] = &[
    ("POST", "/containers/{id}/update"),
    ("GET", "/containers/{id}/changes"),
    ("GET", "/containers/{id}/export"),
    ("GET", "/containers/{id}/attach/ws"),
    ("HEAD", "/containers/{id}/archive"),
    ("GET", "/containers/{id}/archive"),
    ("PUT", "/containers/{id}/archive"),
    ("GET", "/containers/{id}/checkpoints"),
    ("POST", "/containers/{id}/checkpoints"),
    ("DELETE", "/containers/{id}/checkpoints/{checkpoint}"),
    ("GET", "/images/search"),
    ("GET", "/images/{name...}/attestations"),
    ("POST", "/images/{name...}/push"),
    ("POST", "/commit"),
    ("POST", "/build"),
    ("POST", "/build/prune"),
    ("POST", "/build/cancel"),
    ("POST", "/networks/create"),
    ("DELETE", "/networks/{id}"),
    ("POST", "/networks/{id}/connect"),
    ("POST", "/networks/{id}/disconnect"),
    ("POST", "/networks/prune"),
    ("PUT", "/volumes/{name}"),
    ("POST", "/volumes/prune"),
    ("GET", "/system/df"),
    ("POST", "/auth"),
    ("POST", "/session"),
    ("POST", "/grpc"),
    ("GET", "/distribution/{name...}/json"),
    ("GET", "/plugins"),
    ("GET", "/plugins/privileges"),
    ("POST", "/plugins/pull"),
    ("POST", "/plugins/create"),
    ("DELETE", "/plugins/{name...}"),
    ("POST", "/plugins/{name...}/enable"),
    ("POST", "/plugins/{name...}/disable"),
    ("POST", "/plugins/{name...}/upgrade"),
    ("POST", "/plugins/{name...}/push"),
    ("POST", "/plugins/{name...}/set"),
    ("GET", "/swarm"),
    ("POST", "/swarm/init"),
    ("POST", "/swarm/join"),
    ("POST", "/swarm/leave"),
    ("POST", "/swarm/update"),
    ("GET", "/swarm/unlockkey"),
    ("POST", "/swarm/unlock"),
    ("GET", "/nodes"),
    ("GET", "/nodes/{id}"),
    ("DELETE", "/nodes/{id}"),
    ("POST", "/nodes/{id}/update"),
    ("GET", "/services"),
    ("POST", "/services/create"),
    ("GET", "/services/{id}"),
    ("DELETE", "/services/{id}"),
    ("POST", "/services/{id}/update"),
    ("GET", "/services/{id}/logs"),
    ("GET", "/tasks"),
    ("GET", "/tasks/{id}"),
    ("GET", "/tasks/{id}/logs"),
    ("GET", "/secrets"),
    ("POST", "/secrets/create"),
    ("GET", "/secrets/{id}"),
    ("DELETE", "/secrets/{id}"),
    ("POST", "/secrets/{id}/update"),
    ("GET", "/configs"),
    ("POST", "/configs/create"),
    ("GET", "/configs/{id}"),
    ("DELETE", "/configs/{id}"),
    ("POST", "/configs/{id}/update"),
];

#[cfg(test)]
mod tests {
    use super::*;

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
