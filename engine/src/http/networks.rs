//! `/networks`: the predefined ones, to look at.

use super::{ApiError, ApiResult, Filters, Query, json};
use crate::{
    app::App,
    containers::list,
    networks::{NetworkDescription, NetworkKind},
};
use axum::{
    extract::{Path, RawQuery, State},
    http::StatusCode,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// `GET /networks`
pub async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let filters = Query::parse(query.as_deref())
        .filters(&["dangling", "driver", "id", "label", "label!", "name", "scope", "type"])?;
    let dangling = filters.boolean("dangling")?;
    let mut rows = Vec::new();
    for network in app.networks.describe() {
        // Predefined ones are never dangling.
        if dangling != Some(true) && passes(&network, &filters) {
            rows.push(show(&app, &network, BTreeMap::new()));
        }
    }
    Ok(json(StatusCode::OK, &rows))
}

fn passes(network: &NetworkDescription, filters: &Filters) -> bool {
    filters.any("driver", |driver| driver == network.driver)
        && filters.any("id", |id| network.id.contains(id))
        && filters.any("name", |name| network.name.contains(name))
        && filters.any("scope", |scope| scope == "local")
        && filters.any("type", |kind| kind == "builtin")
        && filters.labels(&BTreeMap::new())
}

/// `GET /networks/{id}`
pub async fn inspect(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let networks = app.networks.describe();
    let found = networks.iter().find(|n| n.id == id || n.name == id).or_else(|| {
        let mut fitting = networks.iter().filter(|n| !id.is_empty() && n.id.starts_with(&id));
        fitting.next().filter(|_| fitting.next().is_none())
    });
    let network = found.ok_or_else(|| ApiError::not_found(format!("network {id} not found")))?;
    let members = list::on_network(&app, &network.id).into_iter().collect();
    Ok(json(StatusCode::OK, &show(&app, network, members)))
}

fn show(app: &App, network: &NetworkDescription, members: BTreeMap<String, Value>) -> Value {
    let ipam = match (&network.subnet, network.gateway) {
        (Some(subnet), Some(gateway)) => json!([{"Subnet": subnet.to_string(), "Gateway": gateway}]),
        _ => json!(null),
    };
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": app.started,
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": network.kind != NetworkKind::None,
        "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": null, "Config": ipam},
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": members,
        "Options": network.options,
        "Labels": {},
    })
}
