//! Connecting a container to a network and disconnecting it, whether it lives or not.
//!
//! What shall be is on disk before anything is done (`unsettled`), and once more when it is done: an engine that dies in
//! between is followed by one that makes it so.

use super::{
    super::{
        Container,
        record::{Joining, Phase, Record},
    },
    announce_one, member_request, namespace_of, wishes, write_files, zone,
};
use crate::{
    api::config::EndpointSettings,
    app::App,
    http::{ApiError, ApiResult},
    networks::{Endpoint, Found, NetworkError, NetworkKind},
};
use axum::http::StatusCode;
use proto::kind::chain;
use std::{os::fd::AsFd, sync::Arc};
use tracing::warn;

/// Connects a container to a network.
pub async fn connect(
    app: &Arc<App>,
    network: &Found,
    container: &Arc<Container>,
    settings: Option<&EndpointSettings>,
) -> ApiResult<()> {
    let _turn = container.turn.lock().await;
    container.undone().await;
    let record = check(container, network, "connected to")?;
    if record.config.network_disabled {
        return Err(ApiError::invalid(format!("container {} has no network", record.name)));
    }
    if kind_of(app, network) == Some(NetworkKind::Host) && super::kind(&record) != NetworkKind::Host {
        return Err(conflict("container cannot be disconnected from host network or connected to host network"));
    }
    if kind_of(app, network) == Some(NetworkKind::None) {
        return Err(conflict(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ));
    }
    let mut joining = wishes::joining(&network.name, settings)?;
    joining.id.clone_from(&network.id);
    let request = member_request(app, &joining)?;
    let mut networks = wishes::of_record(app, &record);
    let before = record.state.endpoint.clone();
    let lives = record.state.phase.is_live() && before.is_some();
    let is_there = networks.iter().position(|other| other.id == network.id || other.name == network.name);
    if lives && before.as_ref().is_some_and(|endpoint| endpoint.member(&network.id).is_some()) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("endpoint with name {} already exists in network {}", record.name, network.name),
        ));
    }
    match is_there {
        Some(place) => networks[place] = joining.clone(),
        None => networks.push(joining.clone()),
    }
    let Some(before) = before.filter(|_| lives) else {
        return keep(app, container, networks, record.state.endpoint).await;
    };
    let ports = super::super::ports::requests(&record.host, &record.config.exposed_ports)?;
    let plan = {
        let (app, record, before) = (app.clone(), record.clone(), before.clone());
        let plan = move || app.networks.plan_join(&record.id, &record.name, &before, &request, &ports);
        blocking(plan).await?.map_err(|error| failed("connect", &error))?
    };
    proto::fault!("engine.connect.planned");
    keep(app, container, networks.clone(), Some(plan.clone())).await?;
    proto::fault!("engine.connect.recorded");
    if !carry_out(app, container, &record, &before, &plan, "connect").await? {
        return Ok(());
    }
    proto::fault!("engine.connect.made");
    keep(app, container, networks, Some(Endpoint { unsettled: false, ..plan })).await?;
    announce_one(app, &record.id, &joining, "connect");
    Ok(())
}

/// Disconnects a container from a network. By force also one that has left the network behind our back.
pub async fn disconnect(app: &Arc<App>, network: &Found, container: &Arc<Container>, force: bool) -> ApiResult<()> {
    let _turn = container.turn.lock().await;
    container.undone().await;
    let record = check(container, network, "disconnected from")?;
    if kind_of(app, network) == Some(NetworkKind::Host) && super::kind(&record) == NetworkKind::Host {
        return Err(conflict("container cannot be disconnected from host network or connected to host network"));
    }
    let mut networks = wishes::of_record(app, &record);
    let place = networks.iter().position(|other| other.id == network.id || other.name == network.name);
    let Some(place) = place else {
        if force {
            return Ok(());
        }
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("container {} is not connected to the network {}", record.id, network.name),
        ));
    };
    let joining = networks.remove(place);
    let before = record.state.endpoint.clone();
    let member = before.as_ref().filter(|_| record.state.phase.is_live()).and_then(|e| e.member(&network.id));
    let (Some(before), Some(_)) = (before, member) else {
        return keep(app, container, networks, record.state.endpoint).await;
    };
    let plan = app.networks.plan_leave(&before, &network.id);
    keep(app, container, networks.clone(), Some(plan.clone())).await?;
    proto::fault!("engine.disconnect.recorded");
    change(app, container, before, plan.clone()).await?;
    proto::fault!("engine.disconnect.made");
    keep(app, container, networks, Some(Endpoint { unsettled: false, ..plan })).await?;
    announce_one(app, &record.id, &joining, "disconnect");
    Ok(())
}

/// Publishes the ports of a living container that its record asks for now. The record is on disk; on failure the container has what it had.
pub async fn publish(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<()> {
    let record = container.record();
    let before = record.state.endpoint.clone().filter(|_| record.state.phase.is_live());
    let Some(before) = before.filter(|before| before.network == NetworkKind::Bridge) else { return Ok(()) };
    let ports = super::super::ports::requests(&record.host, &record.config.exposed_ports)?;
    let plan = {
        let (app, record, before) = (app.clone(), record.clone(), before.clone());
        let plan = move || app.networks.plan_ports(&record.id, &record.name, &before, &ports);
        blocking(plan).await?.map_err(|error| failed("publish ports", &error))?
    };
    keep(app, container, record.networks.clone(), Some(plan.clone())).await?;
    proto::fault!("engine.publish.recorded");
    if !carry_out(app, container, &record, &before, &plan, "publish ports").await? {
        return Ok(());
    }
    proto::fault!("engine.publish.made");
    {
        let (app, name, ports) = (app.clone(), record.name.clone(), plan.ports.clone());
        blocking(move || super::warn_of_open_ports(&app, &name, &ports)).await?;
    }
    keep(app, container, record.networks.clone(), Some(Endpoint { unsettled: false, ..plan })).await
}

/// Tells the resolver the new name of a container.
pub async fn renamed(app: &Arc<App>, container: &Arc<Container>) {
    let record = container.record();
    let zone = record.state.endpoint.as_ref().and_then(|endpoint| zone(app, &record, endpoint));
    let Some(zone) = zone.filter(|_| record.state.phase.is_live()) else { return };
    let owner = app.clone();
    let told = blocking(move || owner.networks.names().change(&zone)).await;
    if let Ok(Err(error)) = told {
        warn!(id = crate::ids::short(&record.id), error = %chain(&error), "resolver not told of a new name");
    }
}

/// Makes what is on record of a living container: an engine before this one has died while it changed it. Blocks.
pub(super) fn settle(
    app: &Arc<App>,
    container: &Arc<Container>,
    record: &Record,
    endpoint: &Endpoint,
) -> ApiResult<()> {
    let namespace = namespace_of(container)?;
    let settled = app.networks.settle(&record.id, &record.name, endpoint, &namespace);
    settled.map_err(|error| failed("settle", &error))?;
    write_files(app, record, Some(endpoint))?;
    let mut live = container.live();
    if let Some(endpoint) = live.record.state.endpoint.as_mut() {
        endpoint.unsettled = false;
    }
    app.containers.store.put_soon(&live.record);
    Ok(())
}

fn check(container: &Container, network: &Found, what: &str) -> ApiResult<Record> {
    let record = container.record();
    if record.state.phase == Phase::Removing {
        return Err(ApiError::conflict(format!(
            "container {} is marked for removal and cannot be {what} the network {}",
            record.id, network.name
        )));
    }
    match super::kind(&record) {
        NetworkKind::Container => Err(conflict(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        )),
        NetworkKind::Host if network.name != "host" => {
            Err(conflict("container cannot be disconnected from host network or connected to host network"))
        }
        NetworkKind::None if network.name != "none" && record.state.phase.is_live() => Err(conflict(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        )),
        _ => Ok(record),
    }
}

fn conflict(text: &str) -> ApiError {
    ApiError::invalid(text)
}

fn kind_of(app: &App, network: &Found) -> Option<NetworkKind> {
    app.networks.describe().into_iter().find(|other| other.id == network.id).map(|other| other.kind)
}

fn failed(what: &str, error: &NetworkError) -> ApiError {
    ApiError::of(error.kind(), &Failure { what: what.to_owned(), text: chain(error) })
}

/// A failure with the operation in front.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {text}")]
struct Failure {
    what: String,
    text: String,
}

/// Keeps what shall be; durable when it returns.
async fn keep(
    app: &Arc<App>,
    container: &Container,
    networks: Vec<Joining>,
    endpoint: Option<Endpoint>,
) -> ApiResult<()> {
    let record = {
        let mut live = container.live();
        live.record.networks = networks;
        // Its end clears the endpoint, and whoever works on that has a copy.
        if live.record.state.endpoint.is_some() && !live.ending {
            live.record.state.endpoint = endpoint;
        }
        live.record.clone()
    };
    app.containers.store.put(&record).await.map_err(|error| ApiError::unexpected(&error))
}

/// Makes what a plan says that is on record; on failure, what was before is made and on record again. Returns whether the container still
/// lives: one that ended meanwhile has nothing of it.
async fn carry_out(
    app: &Arc<App>,
    container: &Arc<Container>,
    record: &Record,
    before: &Endpoint,
    plan: &Endpoint,
    what: &str,
) -> ApiResult<bool> {
    if let Err(error) = change(app, container, before.clone(), plan.clone()).await {
        // Back to what was; whatever of it fails is found by the next engine.
        let _ = change(app, container, plan.clone(), before.clone()).await;
        app.networks.drop_plan(&record.id, plan, before);
        keep(app, container, record.networks.clone(), Some(before.clone())).await?;
        return Err(error);
    }
    if container.live().record.state.endpoint.is_some() {
        return Ok(true);
    }
    // Whoever worked on its end didn't know of the plan.
    let (app, id, plan) = (app.clone(), record.id.clone(), plan.clone());
    let detached = blocking(move || app.networks.detach(&id, &plan)).await?;
    detached.map(|()| false).map_err(|error| failed(what, &error))
}

/// Makes the kernel, the resolver and the files what `to` says.
async fn change(app: &Arc<App>, container: &Arc<Container>, from: Endpoint, to: Endpoint) -> ApiResult<()> {
    let (app, container) = (app.clone(), container.clone());
    let work = move || -> ApiResult<()> {
        let record = container.record();
        let namespace = namespace_of(&container)?;
        let done = app.networks.rearrange(&record.id, &record.name, &from, &to, namespace.as_fd());
        done.map_err(|error| failed("change networks", &error))?;
        let told = match (zone(&app, &record, &from).is_some(), zone(&app, &record, &to)) {
            (true, Some(zone)) => app.networks.names().change(&zone),
            (false, Some(zone)) => app.networks.serve_names(&zone, Some(namespace.as_fd())),
            (true, None) => {
                app.networks.names().forget(&record.id);
                Ok(())
            }
            (false, None) => Ok(()),
        };
        told.map_err(|error| failed("change networks", &error))?;
        write_files(&app, &record, Some(&to))
    };
    blocking(work).await?
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> ApiResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::unexpected(&error))
}
