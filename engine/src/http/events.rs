//! `GET /events`: past events from the ring, then those to come.

use super::{ApiError, ApiResult, Filters, Query};
use crate::{app::App, events::Event, time::Timestamp};
use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::header,
    response::IntoResponse,
};
use std::{convert::Infallible, sync::Arc};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;

const FILTERS: [&str; 15] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
    "label!",
];

/// `GET /events`
pub async fn events(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let filters = query.filters(&FILTERS)?;
    let moment = |key: &str| {
        let parsed = query.get(key).map(Timestamp::parse_query).transpose();
        parsed.map_err(|e| ApiError::invalid(format!("invalid value for {key}: {e}")))
    };
    let (since, until) = (moment("since")?, moment("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && until < since
    {
        return Err(ApiError::invalid(format!("`since` time ({since}) cannot be after `until` time ({until})")));
    }
    let (past, mut live) = app.events.subscribe(since);
    let (sender, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(64);
    tokio::spawn(async move {
        let late = |event: &Event| until.is_some_and(|until| event.time_nano > until.nanos());
        for event in past {
            if !late(&event) && passes(&event, &filters) && sender.send(Ok(line(&event))).await.is_err() {
                return;
            }
        }
        loop {
            let deadline = async {
                match until {
                    Some(until) => tokio::time::sleep(until.since(Timestamp::now())).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = live.recv() => event,
                () = deadline => return,
                () = sender.closed() => return,
            };
            match event {
                Ok(event) if late(&event) => return,
                Ok(event) => {
                    if passes(&event, &filters) && sender.send(Ok(line(&event))).await.is_err() {
                        return;
                    }
                }
                // A reader this slow has lost events; ending the stream tells it so.
                Err(RecvError::Lagged(_) | RecvError::Closed) => return,
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// One event with the fields that clients before 1.52 read.
fn line(event: &Event) -> Bytes {
    let mut value = serde_json::to_value(event).unwrap_or_default();
    if matches!(event.kind, "container" | "image") {
        value["status"] = event.action.clone().into();
        value["id"] = event.actor.id.clone().into();
        if let Some(image) = event.actor.attributes.get("image").filter(|_| event.kind == "container") {
            value["from"] = image.clone().into();
        }
    }
    format!("{value}\n").into()
}

fn passes(event: &Event, filters: &Filters) -> bool {
    let names = |wanted: &str| {
        let id = &event.actor.id;
        let name = event.actor.attributes.get("name");
        *id == wanted || name.is_some_and(|name| name == wanted) || (wanted.len() >= 4 && id.starts_with(wanted))
    };
    let of_kind = |kind: &str| filters.any(kind, |wanted| event.kind == kind && names(wanted));
    let image = filters.any("image", |wanted| {
        let of_container = event.actor.attributes.get("image").is_some_and(|image| same_image(image, wanted));
        of_container
            || (event.kind == "image"
                && (names(wanted) || event.actor.attributes.get("name").is_some_and(|n| same_image(n, wanted))))
    });
    let action = event.action.split(':').next().unwrap_or("");
    filters.any("type", |kind| kind == event.kind)
        && filters.any("event", |wanted| wanted == event.action || wanted == action)
        && filters.any("scope", |scope| scope == event.scope)
        && filters.labels(&event.actor.attributes)
        && image
        && ["container", "network", "volume", "daemon", "plugin", "config", "secret", "service", "node"]
            .into_iter()
            .all(of_kind)
}

/// Equal, or equal but for the tag.
fn same_image(image: &str, wanted: &str) -> bool {
    image == wanted || image.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(':') || rest.starts_with('@'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Actor;

    #[test]
    fn filters() {
        let attributes = [("name", "web"), ("image", "nginx:1"), ("team", "a")];
        let event = Event {
            kind: "container",
            action: "exec_start: sh".into(),
            actor: Actor {
                id: "abcdef".into(),
                attributes: attributes.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            },
            scope: "local",
            time: 1,
            time_nano: 1,
        };
        for (text, expected) in [
            ("{}", true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["abcd"]}"#, true),
            (r#"{"container":["x"]}"#, false),
            (r#"{"volume":["web"]}"#, false),
            (r#"{"image":["nginx"]}"#, true),
            (r#"{"event":["exec_start"]}"#, true),
            (r#"{"event":["die","start"]}"#, false),
            (r#"{"label":["team=a"]}"#, true),
            (r#"{"label":["team=b"]}"#, false),
        ] {
            assert_eq!(passes(&event, &Filters::parse(text, &FILTERS).unwrap()), expected, "{text}");
        }
        let text = String::from_utf8(line(&event).to_vec()).unwrap();
        assert!(text.contains(r#""status":"exec_start: sh""#) && text.contains(r#""from":"nginx:1""#));
    }
}
