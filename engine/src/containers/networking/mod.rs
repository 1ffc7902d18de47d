//! The networks of a container: what it asks for, what it gets when it starts, how that is shown, and what changes while it
//! lives (`live`).

pub mod live;
mod options;
mod show;
mod wishes;

pub use show::{member_of, networks};
pub use wishes::{check_mode, check_ports, is_called, joinings, kind, shared_hostname};

use super::{
    Container, files, links,
    record::{Joining, Phase, Record},
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    networks::{
        AttachRequest, Endpoint, MemberRequest, NetworkError, NetworkKind, PublishedPort, Watch,
        names::{Zone, ZoneMember},
    },
};
use axum::http::StatusCode;
use nix::unistd::Pid;
use proto::kind::{ErrorKind, chain};
use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tracing::{info, warn};

/// What a failure of the network is for a client who starts a container.
fn start_failed(record: &Record, error: &NetworkError) -> ApiError {
    // Docker answers 500 for a port in use; only what was asked for wrongly is the client's fault.
    let status = match error.kind() {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, format!("start container {}: {}", record.name, chain(error)))
}

/// Gives a container its networks and the files that say so. Blocks.
pub fn attach(app: &Arc<App>, record: &Record) -> ApiResult<Option<Endpoint>> {
    let failed = |error: NetworkError| start_failed(record, &error);
    let kind = kind(record);
    let endpoint = match kind {
        NetworkKind::Host => None,
        NetworkKind::None => Some(app.networks.attach_none(&record.id).map_err(failed)?),
        NetworkKind::Container => {
            let namespace = namespace_of(wishes::shared_with(app, record)?.as_ref())?;
            Some(app.networks.attach_to(&record.id, namespace.as_fd()).map_err(failed)?)
        }
        NetworkKind::Bridge => {
            let request = AttachRequest {
                name: record.name.clone(),
                ports: super::ports::requests(&record.host, &record.config.exposed_ports)?,
                members: wanted(app, record)?,
            };
            Some(app.networks.attach(&record.id, &request).map_err(failed)?)
        }
    };
    proto::fault!("engine.start.network_attached");
    if let Some(endpoint) = &endpoint {
        warn_of_open_ports(app, &record.name, &endpoint.ports);
    }
    let prepared =
        serve_names(app, record, endpoint.as_ref()).and_then(|()| write_files(app, record, endpoint.as_ref()));
    if let Err(error) = prepared {
        if let Some(endpoint) = &endpoint {
            let _ = app.networks.detach(&record.id, endpoint);
        }
        return Err(error);
    }
    Ok(endpoint)
}

/// Says so when ports are published to everybody on a host whose owner believes that ports are closed. Blocks.
fn warn_of_open_ports(app: &App, container: &str, ports: &[PublishedPort]) {
    let open: Vec<_> = ports.iter().filter(|port| port.host_port != 0 && port.host_ip.is_unspecified()).collect();
    if open.is_empty() {
        return;
    }
    match app.networks.closed_by() {
        Ok(None) => {}
        Ok(Some(firewall)) => {
            let ports: Vec<String> = open
                .iter()
                .map(|port| {
                    format!("{}/{}", std::net::SocketAddr::new(port.host_ip, port.host_port), port.protocol.name())
                })
                .collect();
            let (ports, table) = (ports.join(", "), app.networks.table());
            warn!(
                container,
                ports,
                firewall,
                "published to all addresses of a host whose firewall keeps ports closed: that doesn't hold for these; \
                 publish on loopback (-p 127.0.0.1:..., or \"ip\" in the configuration), or say who may in chain user of table inet {table}"
            );
        }
        Err(error) => warn!(error = %chain(&error), "can't see whether the host's firewall keeps ports closed"),
    }
}

fn serve_names(app: &Arc<App>, record: &Record, endpoint: Option<&Endpoint>) -> ApiResult<()> {
    let Some(zone) = endpoint.and_then(|endpoint| zone(app, record, endpoint)) else { return Ok(()) };
    let served = app.networks.serve_names(&zone, None);
    served.map_err(|error| start_failed(record, &error))
}

/// Writes hosts, hostname and resolv.conf of a container.
fn write_files(app: &Arc<App>, record: &Record, endpoint: Option<&Endpoint>) -> ApiResult<()> {
    if kind(record) == NetworkKind::Container {
        return share_files(app, record);
    }
    let members: Vec<_> = endpoint.map(Endpoint::members).unwrap_or_default();
    let addresses: Vec<_> = members.iter().flat_map(|member| member.address.all().map(|address| address.ip)).collect();
    let facts = files::Facts {
        hostname: &record.config.hostname,
        domainname: &record.config.domainname,
        addresses: &addresses,
        gateway: app.networks.gateway(),
        extra_hosts: &links::hosts(app, record),
        dns: &record.host.dns,
        dns_search: &record.host.dns_search,
        dns_options: &record.host.dns_options,
        host_network: kind(record) == NetworkKind::Host,
        names: endpoint.is_some_and(|endpoint| zone(app, record, endpoint).is_some()),
    };
    files::write(&app.containers.folder_of(&record.id), &facts)
        .map_err(|cause| ApiError::internal(format!("write network files of {}: {cause}", record.name)))
}

/// Gives a container the files of the one whose network it shares, as they are now.
fn share_files(app: &Arc<App>, record: &Record) -> ApiResult<()> {
    let (own, other) = (app.containers.folder_of(&record.id), wishes::shared_with(app, record)?);
    for name in ["hosts", "hostname", "resolv.conf"] {
        let _ = std::fs::remove_file(own.join(name));
        // The same file, so that a change reaches both.
        let linked = std::fs::hard_link(app.containers.folder_of(&other.id).join(name), own.join(name));
        linked.map_err(|cause| {
            ApiError::internal(format!("share {name} of {} with {}: {cause}", other.id, record.name))
        })?;
    }
    Ok(())
}

/// The namespace of a container that runs.
fn namespace_of(container: &Container) -> ApiResult<OwnedFd> {
    let pid = {
        let live = container.live();
        if !live.record.state.phase.is_live() || live.record.state.pid == 0 {
            return Err(ApiError::conflict(format!(
                "cannot join network of a non running container: {}",
                container.id
            )));
        }
        live.record.state.pid
    };
    let gone = |cause: &dyn std::fmt::Display| {
        ApiError::conflict(format!("cannot join network of a non running container: {}: {cause}", container.id))
    };
    let process = sys::process::pidfd_open(Pid::from_raw(pid.cast_signed())).map_err(|error| gone(&error))?;
    let namespace: OwnedFd = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| gone(&error))?.into();
    // Still that process: the number wasn't another's when the file was opened.
    sys::process::pidfd_send_signal(process.as_fd(), 0).map_err(|error| gone(&error))?;
    Ok(namespace)
}

/// What is asked of each network. The networks have to be there.
fn wanted(app: &App, record: &Record) -> ApiResult<Vec<MemberRequest>> {
    wishes::of_record(app, record).iter().map(|joining| member_request(app, joining)).collect()
}

/// What is asked of one network.
fn member_request(app: &App, joining: &Joining) -> ApiResult<MemberRequest> {
    let found = find(app, joining)?;
    let user = app.networks.definition(&found.id);
    wishes::check_wish(joining, user.as_ref())?;
    let options = options::read(joining)?;
    Ok(MemberRequest {
        network_id: found.id,
        mac: joining.mac.as_deref().and_then(|mac| mac.parse().ok()),
        ips: [&joining.ip, &joining.ip6].into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
        gateway_priority: joining.gateway_priority,
        interface: options.interface,
        link: options.link,
    })
}

/// The network a container joins: the one that it has joined before, else the one of that name.
fn find(app: &App, joining: &Joining) -> Result<crate::networks::Found, NetworkError> {
    let known = (!joining.id.is_empty()).then(|| app.networks.find_network(&joining.id).ok()).flatten();
    known.map_or_else(|| app.networks.find_network(&joining.name), Ok)
}

/// What others on its networks call a container. None without a network of the user.
pub fn zone(app: &App, record: &Record, endpoint: &Endpoint) -> Option<Zone> {
    let joinings = wishes::of_record(app, record);
    let mut gateway_first = endpoint.members();
    let gateway = endpoint.main_network();
    gateway_first.sort_by_key(|member| Some(&member.network_id) != gateway.as_ref());
    let mut internal = true;
    let mut members = Vec::new();
    for member in gateway_first {
        let Some(definition) = app.networks.definition(&member.network_id) else {
            internal = false;
            continue;
        };
        internal &= definition.internal;
        let joining = joinings.iter().find(|joining| joining.id == definition.id || joining.name == definition.name);
        members.push(ZoneMember {
            names: wishes::dns_names(record, joining),
            network: definition.id,
            network_name: definition.name,
            addresses: member.address.all().map(|address| address.ip).collect(),
        });
    }
    let ndots = |option: &String| option.strip_prefix("ndots:").and_then(|n| n.parse::<u8>().ok()).unwrap_or(0) > 0;
    let options = &record.host.dns_options;
    (!members.is_empty()).then(|| Zone {
        id: record.id.clone(),
        members,
        upstreams: record.host.dns.iter().filter_map(|server| server.parse().ok()).collect(),
        forwards: !internal,
        completes: (!options.is_empty()).then(|| options.iter().any(ndots)),
        links: links::in_networks(record, &joinings),
    })
}

/// Tells of a container that it has joined its networks, or left them.
pub fn announce(app: &App, record: &Record, action: &'static str) {
    for joining in wishes::of_record(app, record) {
        announce_one(app, &record.id, &joining, action);
    }
}

fn announce_one(app: &App, container: &str, joining: &Joining, action: &'static str) {
    let all = app.networks.describe();
    let network = all.iter().find(|network| network.id == joining.id);
    let Some(network) = network.or_else(|| all.iter().find(|network| network.name == joining.name)) else { return };
    let attributes = BTreeMap::from([
        ("container".to_owned(), container.to_owned()),
        ("name".to_owned(), network.name.clone()),
        ("type".to_owned(), network.driver.to_owned()),
    ]);
    app.events.publish("network", action, &network.id, attributes);
}

/// Brings resolver and living containers together: after a start of the engine, and when the resolver has died. Finishes
/// changes of networks that an engine before this one has begun.
pub async fn resume(app: &Arc<App>) {
    let owner = app.clone();
    let work = move || {
        let mut served = owner.networks.names().served();
        for container in owner.containers.all() {
            let record = container.record();
            let Some(endpoint) = record.state.endpoint.clone() else { continue };
            if endpoint.unsettled
                && record.state.phase.is_live()
                && let Err(error) = live::settle(&owner, &container, &record, &endpoint)
            {
                warn!(id = crate::ids::short(&record.id), %error, "networks of a container are not what they should be");
            }
            if record.state.phase.is_live() {
                owner.networks.hold_ports(&record.id, &endpoint);
            }
            let Some(zone) = zone(&owner, &record, &endpoint) else { continue };
            let told = if served.remove(&record.id) {
                owner.networks.names().change(&zone)
            } else {
                let namespace = match record.state.phase {
                    Phase::Running | Phase::Paused => namespace_of(&container).ok(),
                    _ => owner.networks.held_namespace(&record.id),
                };
                match namespace {
                    Some(namespace) => owner.networks.serve_names(&zone, Some(namespace.as_fd())),
                    None => continue,
                }
            };
            if let Err(error) = told {
                warn!(id = crate::ids::short(&record.id), error = %chain(&error), "names of a container aren't served");
            }
        }
        for gone in served {
            info!(id = crate::ids::short(&gone), "names of a former container forgotten");
            owner.networks.names().forget(&gone);
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        warn!(%error, "names of containers aren't served");
    }
}

/// Serves names again whenever the resolver has died.
pub async fn follow_resolver(app: Arc<App>) {
    loop {
        app.networks.names().died().await;
        resume(&app).await;
    }
}

/// Least time between two repairs: somebody may undo them again and again.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);

/// Makes bridges and rules what they should be, whenever somebody else has changed them. A thread that sleeps.
pub fn follow_host(app: &Arc<App>) {
    let app = app.clone();
    let follow = move || {
        let watch = Watch::open()?;
        loop {
            watch.wait(&app.networks)?;
            match app.networks.repair() {
                Ok(_) => info!("networks are as they should be, after others changed them"),
                Err(error) => warn!(error = %chain(&error), "networks can't be repaired"),
            }
            std::thread::sleep(REPAIR_PAUSE);
        }
    };
    let follow = move || {
        let ended: Result<(), NetworkError> = follow();
        if let Err(error) = ended {
            warn!(error = %chain(&error), "changes of networks by others aren't seen");
        }
    };
    let started = std::thread::Builder::new().name("watch".into()).stack_size(256 * 1024).spawn(follow);
    if let Err(error) = started {
        warn!(%error, "changes of networks by others aren't seen");
    }
}
