//! `/networks`

use super::{ApiError, ApiResult, Filters, Query, json, json_body, run_to_end};
use crate::{
    api::config::EndpointSettings,
    app::App,
    containers::{list, networking, remove::parse_until},
    networks::{
        Definition, Driver, Found, NetworkDescription, NetworkError, NetworkKind, NetworkRequest, Pooled, SubnetRequest,
    },
};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use proto::kind::chain;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tracing::warn;

/// Body of `POST /networks/create`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateNetwork {
    name: String,
    driver: Option<String>,
    scope: Option<String>,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    ipam: Option<Ipam>,
    internal: Option<bool>,
    attachable: Option<bool>,
    ingress: Option<bool>,
    config_only: Option<bool>,
    config_from: Option<ConfigFrom>,
    options: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    driver: Option<String>,
    options: Option<BTreeMap<String, String>>,
    config: Option<Vec<IpamConfig>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct IpamConfig {
    subnet: Option<String>,
    #[serde(rename = "IPRange")]
    ip_range: Option<String>,
    gateway: Option<String>,
    #[serde(alias = "AuxiliaryAddresses")]
    aux_address: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigFrom {
    network: String,
}

/// Body of `POST /networks/{id}/connect` and `/disconnect`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Membership {
    container: String,
    endpoint_config: Option<EndpointSettings>,
    force: Option<bool>,
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        Self::of(error.kind(), &error)
    }
}

/// `GET /networks`
pub async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let filters = Query::parse(query.as_deref())
        .filters(&["dangling", "driver", "id", "label", "label!", "name", "scope", "type"])?;
    let dangling = filters.boolean("dangling")?;
    for kind in filters.values("type") {
        if !matches!(kind, "builtin" | "custom") {
            return Err(ApiError::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let mut rows = Vec::new();
    for network in app.networks.describe() {
        // Predefined ones are never dangling.
        let fits = |wanted: bool| {
            let is_dangling = network.definition.is_some() && list::on_network(&app, &network.id).is_empty();
            if wanted { is_dangling } else { network.definition.is_none() || !is_dangling }
        };
        if dangling.is_none_or(fits) && passes(&network, &filters) {
            rows.push(show(&app, &network, BTreeMap::new()));
        }
    }
    Ok(json(StatusCode::OK, &rows))
}

fn passes(network: &NetworkDescription, filters: &Filters) -> bool {
    let none = BTreeMap::new();
    let kind_of = if network.definition.is_some() { "custom" } else { "builtin" };
    filters.any("driver", |driver| driver == network.driver)
        && filters.any("id", |id| network.id.contains(id))
        && filters.any("name", |name| network.name.contains(name))
        && filters.any("scope", |scope| scope == "local")
        && filters.any("type", |kind| kind == kind_of)
        && filters.labels(network.definition.as_ref().map_or(&none, |definition| &definition.labels))
}

/// `GET /networks/{id}`
pub async fn inspect(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let found = app.networks.find_network(&id)?;
    // Nothing here is of a swarm.
    let elsewhere = query.get("scope").is_some_and(|scope| scope != "local");
    let network = app.networks.describe().into_iter().find(|network| network.id == found.id && !elsewhere);
    let network = network.ok_or_else(|| ApiError::from(NetworkError::NotFound(id)))?;
    let members = list::on_network(&app, &network.id).into_iter().collect();
    Ok(json(StatusCode::OK, &show(&app, &network, members)))
}

/// `POST /networks/create`
pub async fn create(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> ApiResult {
    let request: CreateNetwork = json_body(&headers, body).await?;
    let request = checked(request, &app.config.network_options)?;
    let id = run_to_end(make(app, request)).await?;
    Ok(json(StatusCode::CREATED, &json!({"Id": id, "Warning": ""})))
}

/// What is asked for, checked as far as that goes without knowing of other networks; completed by what the engine was told of networks that
/// say nothing.
fn checked(request: CreateNetwork, defaults: &BTreeMap<String, BTreeMap<String, String>>) -> ApiResult<NetworkRequest> {
    let forbidden = |text: String| Err(ApiError::new(StatusCode::FORBIDDEN, text));
    let driver = match request.driver.as_deref().unwrap_or_default() {
        "" | "default" | "bridge" => Driver::Bridge,
        "macvlan" => Driver::Macvlan,
        "ipvlan" => Driver::Ipvlan,
        driver @ ("host" | "null") => {
            return forbidden(format!("only one instance of \"{driver}\" network is allowed"));
        }
        "overlay" => return Err(super::absent::no_swarm()),
        driver => {
            return Err(ApiError::not_found(format!(
                "could not find plugin {driver} in v1 plugin registry: plugin \"{driver}\" not found"
            )));
        }
    };
    match request.scope.as_deref().unwrap_or_default() {
        "" | "local" => {}
        "swarm" | "global" => return Err(super::absent::no_swarm()),
        scope => return Err(ApiError::invalid(format!("invalid scope {scope:?} of a network"))),
    }
    if request.ingress == Some(true) {
        return Err(super::absent::no_swarm());
    }
    let config_from = request.config_from.map(|from| from.network).filter(|name| !name.is_empty());
    let config_only = request.config_only.unwrap_or_default();
    let ipam = request.ipam.unwrap_or_default();
    if let driver @ Some(name) = ipam.driver.as_deref()
        && !matches!(driver, Some("" | "default"))
    {
        return Err(ApiError::not_found(format!("could not find IPAM driver {name}: berth has default alone")));
    }
    let subnets = ipam.config.unwrap_or_default().into_iter().map(|config| SubnetRequest {
        subnet: config.subnet.unwrap_or_default(),
        range: config.ip_range.unwrap_or_default(),
        gateway: config.gateway.unwrap_or_default(),
        auxiliary: config.aux_address.unwrap_or_default(),
    });
    let mut options = request.options.unwrap_or_default();
    if config_from.is_none() && !config_only {
        for (key, value) in defaults.get(driver.name()).into_iter().flatten() {
            options.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    Ok(NetworkRequest {
        name: request.name,
        driver,
        enable_ipv4: request.enable_ipv4,
        enable_ipv6: request.enable_ipv6,
        internal: request.internal.unwrap_or_default(),
        attachable: request.attachable.unwrap_or_default(),
        config_only,
        config_from,
        labels: request.labels.unwrap_or_default(),
        options,
        ipam_options: ipam.options.unwrap_or_default(),
        subnets: subnets.filter(|subnet| *subnet != SubnetRequest::default()).collect(),
    })
}

async fn make(app: Arc<App>, request: NetworkRequest) -> ApiResult<String> {
    let owner = app.clone();
    let reserved = blocking(move || owner.networks.reserve_network(request, &owner.config.pools)).await?;
    let definition = reserved.map_err(|error| match error {
        NetworkError::Predefined(name) => {
            ApiError::new(StatusCode::FORBIDDEN, format!("operation is not permitted on predefined {name} network"))
        }
        error => error.into(),
    })?;
    proto::fault!("engine.network.reserved");
    let id = definition.id.clone();
    if let Err(error) = app.containers.store.put_network(&definition).await {
        let _ = app.networks.forget_network(&id);
        return Err(ApiError::unexpected(&error));
    }
    proto::fault!("engine.network.recorded");
    let (owner, key) = (app.clone(), id.clone());
    if let Err(error) = blocking(move || owner.networks.build_network(&key)).await? {
        let _ = app.networks.forget_network(&id);
        let owner = app.clone();
        if let Err(razing) = blocking(move || owner.networks.raze_network(&definition)).await? {
            warn!(id, error = %chain(&razing), "network that wasn't made is left in part");
        }
        if let Err(forgetting) = app.containers.store.remove_network(&id).await {
            warn!(id, error = %chain(&forgetting), "network that wasn't made stays on record");
        }
        return Err(error.into());
    }
    proto::fault!("engine.network.built");
    tell(&app, "create", &definition);
    Ok(id)
}

/// `DELETE /networks/{id}`
pub async fn remove(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult {
    let found = app.networks.find_network(&id)?;
    run_to_end(unmake(app, found)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn unmake(app: Arc<App>, found: Found) -> ApiResult<()> {
    if app.networks.definition(&found.id).is_none() {
        let text = format!("{} is a pre-defined network and cannot be removed", found.name);
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    let definition = app.networks.forget_network(&found.id).map_err(|error| {
        let names: Vec<String> = list::on_network(&app, &found.id)
            .into_values()
            .filter_map(|member| Some(format!("name:{:?}", member["Name"].as_str()?)))
            .collect();
        match error {
            NetworkError::Active { .. } if !names.is_empty() => {
                ApiError::new(StatusCode::FORBIDDEN, format!("{error} ({})", names.join(", ")))
            }
            error => error.into(),
        }
    })?;
    proto::fault!("engine.network.forgotten");
    if let Err(error) = app.containers.store.remove_network(&found.id).await {
        app.networks.remember_network(definition);
        return Err(ApiError::unexpected(&error));
    }
    proto::fault!("engine.network.off_record");
    let (owner, gone) = (app.clone(), definition.clone());
    // It is off the record: what is left of it the next start removes.
    if let Err(error) = blocking(move || owner.networks.raze_network(&gone)).await? {
        warn!(id = found.id, error = %chain(&error), "bridge of a removed network stays");
    }
    proto::fault!("engine.network.razed");
    tell(&app, "destroy", &definition);
    Ok(())
}

/// `POST /networks/{id}/connect`
pub async fn connect(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> ApiResult {
    let request: Membership = json_body(&headers, body).await?;
    let found = app.networks.find_network(&id)?;
    let container = app.containers.find(&request.container)?;
    let work =
        async move { networking::live::connect(&app, &found, &container, request.endpoint_config.as_ref()).await };
    run_to_end(work).await?;
    Ok(StatusCode::OK.into_response())
}

/// `POST /networks/{id}/disconnect`
pub async fn disconnect(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let request: Membership = json_body(&headers, body).await?;
    let found = app.networks.find_network(&id)?;
    let container = app.containers.find(&request.container)?;
    let force = request.force.unwrap_or_default();
    run_to_end(async move { networking::live::disconnect(&app, &found, &container, force).await }).await?;
    Ok(StatusCode::OK.into_response())
}

/// `POST /networks/prune`
pub async fn prune(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let filters = Query::parse(query.as_deref()).filters(&["label", "label!", "until"])?;
    let mut until = None;
    for value in filters.values("until") {
        until = Some(parse_until(value)?);
    }
    let removed = run_to_end(async move {
        let mut removed = Vec::new();
        for network in app.networks.describe() {
            let Some(definition) = &network.definition else { continue };
            let fits = filters.labels(&definition.labels) && until.is_none_or(|until| definition.created < until);
            let found = Found { id: network.id.clone(), name: network.name.clone() };
            // One that is used says so, as does one that somebody has begun to use meanwhile.
            if fits && unmake(app.clone(), found).await.is_ok() {
                removed.push(network.name);
            }
        }
        app.events.publish("network", "prune", "", [("reclaimed".into(), "0".into())].into());
        Ok::<_, ApiError>(removed)
    });
    let removed = removed.await?;
    let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
    Ok(json(StatusCode::OK, &json!({"NetworksDeleted": removed})))
}

fn tell(app: &App, action: &'static str, network: &Definition) {
    let driver = network.driver.name().to_owned();
    let attributes = BTreeMap::from([("name".into(), network.name.clone()), ("type".into(), driver)]);
    app.events.publish("network", action, &network.id, attributes);
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> ApiResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::unexpected(&error))
}

fn show(app: &App, network: &NetworkDescription, members: BTreeMap<String, Value>) -> Value {
    let user = network.definition.as_ref();
    let ipam = if let Some(held) = user.filter(|user| user.config_only) {
        held.requested.iter().map(requested).collect()
    } else if let Some(user) = user {
        user.subnets.iter().map(pooled).collect()
    } else {
        let own = network.subnets.iter();
        own.map(|own| json!({"Subnet": own.to_network().to_string(), "Gateway": own.address()})).collect::<Vec<_>>()
    };
    let is_ipv4 = |user: &Definition| user.ipv4;
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": user.map_or(app.started, |user| user.created),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": user.map_or(network.kind != NetworkKind::None, is_ipv4),
        "EnableIPv6": network.subnets.iter().any(|subnet| !subnet.is_ipv4()) || user.is_some_and(|user| user.ipv6),
        "IPAM": {
            "Driver": "default",
            "Options": user.map(|user| &user.ipam_options),
            "Config": if ipam.is_empty() { Value::Null } else { ipam.into() },
        },
        "Internal": user.is_some_and(|user| user.internal),
        "Attachable": user.is_some_and(|user| user.attachable),
        "Ingress": false,
        "ConfigFrom": {"Network": user.and_then(|user| user.config_from.as_deref()).unwrap_or_default()},
        "ConfigOnly": user.is_some_and(|user| user.config_only),
        "Containers": members,
        "Options": network.options,
        "Labels": user.map_or_else(|| json!({}), |user| json!(user.labels)),
    })
}

/// A subnet of a network.
fn pooled(subnet: &Pooled) -> Value {
    let mut config = json!({"Subnet": subnet.address.to_network().to_string(), "Gateway": subnet.address.address()});
    if let Some(range) = subnet.range {
        config["IPRange"] = range.to_string().into();
    }
    if !subnet.auxiliary.is_empty() {
        config["AuxiliaryAddresses"] = json!(subnet.auxiliary);
    }
    config
}

/// A subnet that networks are to be made with.
fn requested(subnet: &SubnetRequest) -> Value {
    let mut config = json!({});
    for (key, text) in [("Subnet", &subnet.subnet), ("IPRange", &subnet.range), ("Gateway", &subnet.gateway)] {
        if !text.is_empty() {
            config[key] = text.clone().into();
        }
    }
    if !subnet.auxiliary.is_empty() {
        config["AuxiliaryAddresses"] = json!(subnet.auxiliary);
    }
    config
}
