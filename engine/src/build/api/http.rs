//! Docker's own endpoints that have to do with builds, without `POST /build` itself: the cache, and giving up.

use crate::{
    app::App,
    build::FILTERS,
    config::duration,
    http::{ApiError, ApiResult, ApiVersion, Query, json},
    time::Timestamp,
};
use axum::{
    body::Body,
    extract::{RawQuery, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use proto::moby::buildkit::v1::{PruneRequest, UsageRecord};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

pub use super::classic::build;

/// `POST /session`
pub async fn session(State(app): State<Arc<App>>, request: Request<Body>) -> ApiResult {
    crate::build::session::take_over(&app.sessions, request)
}

/// `POST /build/cancel`
pub async fn cancel(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let id = query.get("id").ok_or_else(|| ApiError::invalid("build ID not specified"))?;
    // As dockerd: one that isn't there needs no end.
    app.builder.cancel(id);
    Ok(StatusCode::OK.into_response())
}

/// `POST /build/prune`
pub async fn prune(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let request = prune_request(&Query::parse(query.as_deref()))?;
    let removed = app.builder.prune(&request).await?;
    let ids: Vec<&str> = removed.iter().map(|record| record.id.as_str()).collect();
    let bytes: i64 = removed.iter().map(|record| record.size).sum();
    let attributes = [("reclaimed".to_owned(), bytes.to_string())];
    app.events.publish("builder", "prune", String::new(), attributes.into());
    let deleted = if ids.is_empty() { Value::Null } else { json!(ids) };
    Ok(json(StatusCode::OK, &json!({"CachesDeleted": deleted, "SpaceReclaimed": bytes})))
}

/// The query of a prune in BuildKit's words.
fn prune_request(query: &Query) -> ApiResult<PruneRequest> {
    let mut known = FILTERS.to_vec();
    known.extend(["until", "unused-for"]);
    let filters = query.filters(&known)?;
    let size = |key: &str| query.number::<i64>(key).map(|number| number.unwrap_or(0));
    let mut request = PruneRequest {
        all: query.flag("all"),
        reserved_space: match size("reserved-space")? {
            0 => size("keep-storage")?,
            bytes => bytes,
        },
        max_used_space: size("max-used-space")?,
        min_free_space: size("min-free-space")?,
        ..PruneRequest::default()
    };
    let mut ages = filters.values("until").chain(filters.values("unused-for"));
    if let Some(age) = ages.next() {
        if ages.next().is_some() {
            return Err(ApiError::invalid("filters until and unused-for: one age is enough"));
        }
        let bad = || ApiError::invalid(format!("until filter value {age:?} is neither a duration nor a time"));
        let age = duration(age).or_else(|| Some(Timestamp::parse_query(age).ok()?.elapsed())).ok_or_else(bad)?;
        request.keep_duration = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
    }
    let mut parts = Vec::new();
    for key in FILTERS {
        let values: Vec<&str> = filters.values(key).collect();
        match values[..] {
            [] => {}
            [""] => parts.push((*key).to_owned()),
            [value] if *key == "id" => parts.push(format!("id~={value}")),
            [value] if matches!(*key, "inuse" | "shared" | "private" | "mutable" | "immutable") => {
                // A value other than true is the opposite.
                let on = crate::build::is_true(value);
                let on = on.ok_or_else(|| ApiError::invalid(format!("invalid filter '{key}=[{value}]'")))?;
                parts.push(if on { (*key).to_owned() } else { format!("{key}==false") });
            }
            [value] => parts.push(format!("{key}=={value}")),
            _ => return Err(ApiError::invalid(format!("filters expect only one value: {key}: {values:?}"))),
        }
    }
    if !parts.is_empty() {
        request.filter = vec![parts.join(",")];
    }
    Ok(request)
}

/// How long something hasn't been used.
pub fn unused_for(record: &UsageRecord) -> Option<Duration> {
    let last = record.last_used_at.or(record.created_at)?;
    std::time::SystemTime::try_from(last).ok()?.elapsed().ok()
}

/// Rows of `docker system df`.
pub async fn usage(app: &App, version: ApiVersion) -> ApiResult<(Vec<Value>, i64)> {
    let records = app.builder.usage().await?;
    let total = records.iter().filter(|record| !record.shared).map(|record| record.size).sum();
    Ok((records.iter().map(|record| row(record, version)).collect(), total))
}

fn row(record: &UsageRecord, version: ApiVersion) -> Value {
    let time = |at: Option<prost_types::Timestamp>| {
        at.map(|at| Timestamp::from_parts(at.seconds, i64::from(at.nanos)).to_string())
    };
    let mut row = json!({
        "ID": record.id, "Type": record.record_type, "Description": record.description, "InUse": record.in_use,
        "Shared": record.shared, "Size": record.size, "CreatedAt": time(record.created_at),
        "LastUsedAt": time(record.last_used_at), "UsageCount": record.usage_count,
    });
    if version.at_least(42) {
        if !record.parents.is_empty() {
            row["Parents"] = json!(record.parents);
        }
    } else {
        row["Parent"] = json!(record.parents.first().cloned().unwrap_or_default());
    }
    row
}

impl From<crate::build::BuildError> for ApiError {
    fn from(error: crate::build::BuildError) -> Self {
        Self::of(error.kind, &error)
    }
}

/// An answer of JSON lines.
pub fn stream(body: Body) -> Response {
    ([(axum::http::header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> ApiResult<PruneRequest> {
        prune_request(&Query::parse(Some(query)))
    }

    #[test]
    fn prune_in_buildkits_words() {
        let request = read(
            "all=1&keep-storage=7&max-used-space=9&filters={\"type\":[\"regular\"],\"id\":[\"ab\"],\"until\":[\"2h\"]}",
        );
        let request = request.unwrap();
        assert_eq!((request.all, request.reserved_space, request.max_used_space), (true, 7, 9));
        assert_eq!(request.filter, ["id~=ab,type==regular"]);
        assert_eq!(request.keep_duration, 7_200_000_000_000);
        assert_eq!(read("filters={\"inuse\":[\"true\"]}").unwrap().filter, ["inuse"]);
        for bad in [
            "filters={\"x\":[\"y\"]}",
            "filters={\"type\":[\"a\",\"b\"]}",
            "filters={\"until\":[\"whenever\"]}",
            "filters={\"until\":[\"1h\"],\"unused-for\":[\"2h\"]}",
            "filters={\"inuse\":[\"perhaps\"]}",
            "keep-storage=x",
        ] {
            assert_eq!(read(bad).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn rows_of_both_kinds() {
        let record = UsageRecord { id: "a".into(), parents: vec!["b".into()], size: 3, ..UsageRecord::default() };
        assert_eq!(row(&record, ApiVersion::CURRENT)["Parents"], json!(["b"]));
        assert_eq!(row(&record, ApiVersion::v1(41))["Parent"], "b");
    }
}
