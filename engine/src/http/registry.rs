//! What is asked of registries: `/distribution/{name}/json`, `/images/search`, `/auth`.

use super::{ApiError, ApiResult, Query, json, json_body};
use crate::{
    api::serial::nullable,
    app::App,
    images::{
        ImageError,
        pull::decode_auth,
        registry::{Lookup, Search},
    },
    supervisor::Credentials,
};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
};
use proto::{berth::registry::v1::Auth, kind::ErrorKind};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// What the header says, as far as it can be read.
pub fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok()).and_then(decode_auth)
}

/// `GET /distribution/{name}/json`; `manifest=1` and `insecure=1` are Berth's own.
pub async fn distribution(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> ApiResult {
    let name = path.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let query = Query::parse(query.as_deref());
    let lookup = Lookup { manifest: query.flag("manifest"), insecure: query.flag("insecure") };
    Ok(json(StatusCode::OK, &app.images.distribution(name, lookup, credentials(&headers)).await?))
}

/// `GET /images/search`
pub async fn search(State(app): State<Arc<App>>, RawQuery(query): RawQuery, headers: HeaderMap) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let filters = query.filters(&["is-automated", "is-official", "stars"])?;
    let limit = query.number::<i32>("limit")?.unwrap_or(0);
    if !(0..=100).contains(&limit) {
        return Err(ApiError::invalid(format!("limit {limit} is outside the range of [1, 100]")));
    }
    let mut stars = 0;
    for text in filters.values("stars") {
        let number: i64 = text.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'stars={text}'")))?;
        stars = stars.max(number);
    }
    let term = query.get("term").ok_or_else(|| ApiError::invalid("search: no term is given"))?.to_owned();
    let search = Search {
        term,
        limit: if limit == 0 { 25 } else { limit },
        official: filters.boolean("is-official")?,
        automated: filters.boolean("is-automated")?,
        stars,
    };
    let found = app.images.search(search, credentials(&headers)).await?;
    let rows: Vec<Value> = found
        .into_iter()
        .map(|found| {
            json!({
                "star_count": found.star_count, "is_official": found.is_official, "name": found.name,
                "is_automated": found.is_automated, "description": found.description,
            })
        })
        .collect();
    Ok(json(StatusCode::OK, &rows))
}

/// Body of a login.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthConfig {
    #[serde(deserialize_with = "nullable")]
    username: String,
    #[serde(deserialize_with = "nullable")]
    password: String,
    #[serde(deserialize_with = "nullable")]
    serveraddress: String,
    #[serde(deserialize_with = "nullable")]
    identitytoken: String,
    #[serde(deserialize_with = "nullable")]
    registrytoken: String,
}

/// `POST /auth`
pub async fn auth(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> ApiResult {
    let config: AuthConfig = json_body(&headers, body).await?;
    let auth = Auth {
        username: config.username,
        password: config.password,
        identity_token: config.identitytoken,
        registry_token: config.registrytoken,
    };
    let (status, token) = match app.images.login(&config.serveraddress, auth).await {
        // Said by the registry about these credentials: nothing needs to stand before it.
        Err(ImageError::Supervisor { cause, .. }) if cause.kind() == ErrorKind::Unauthenticated => {
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, cause.to_string()));
        }
        answer => answer?,
    };
    let status = if status.is_empty() { "Login Succeeded".to_owned() } else { status };
    Ok(json(StatusCode::OK, &json!({"Status": status, "IdentityToken": token})))
}
