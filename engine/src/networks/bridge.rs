//! The bridge itself: made if it is missing, repaired if it is not what it should be.

use super::config;
use super::error::NetworkError;
use super::mac::Mac;
use super::netlink::{Batch, NetlinkError, Socket, address, link, route};
use super::subnet::Subnet;
use super::sysctl;

/// A bridge that is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bridge {
    /// The link's index.
    pub(super) index: u32,
    /// Its address and network.
    pub(super) address: Subnet,
}

/// What a bridge should be.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its address and network; none for what it has, or one of the default ones.
    pub(super) address: Option<Subnet>,
    /// MTU of the bridge and its links.
    pub(super) mtu: u32,
    /// A note on the link that says which network's it is, for those of users.
    pub(super) alias: Option<&'a str>,
}

/// Makes or repairs the bridge.
pub(super) fn ensure(socket: &mut Socket, config: &Wanted<'_>) -> Result<Bridge, NetworkError> {
    let name = config.name;
    config::check_name(name)?;
    if let Some(address) = config.address {
        address.check_bridge_address().map_err(NetworkError::BridgeAddress)?;
    }
    let failed = |cause| NetworkError::Bridge { name: name.to_owned(), cause };

    let existing = link::find(socket, name).map_err(failed)?;
    if let Some(other) = existing.as_ref().filter(|link| link.kind.as_deref() != Some("bridge")) {
        let kind = other.kind.clone().unwrap_or_else(|| "plain link".to_owned());
        return Err(NetworkError::NotABridge { name: name.to_owned(), kind });
    }
    let index = existing.map(|link| link.index);
    let present = match index {
        Some(index) => address::of_link(socket, index).map_err(failed)?,
        None => Vec::new(),
    };
    let address = choose_address(socket, config, index, &present)?;
    let index = match index {
        Some(index) => index,
        None => create(socket, config, address).map_err(failed)?,
    };
    // Before the link is up for the first time, so that it never has an IPv6 address.
    sysctl::prepare_bridge(name)?;
    let mut batch = Batch::new();
    present.iter().filter(|other| **other != address).for_each(|other| address::delete(&mut batch, index, *other));
    if !present.contains(&address) {
        address::add(&mut batch, index, address);
    }
    link::bring_up(&mut batch, name, None);
    socket.run(&mut batch).map_err(failed)?;
    Ok(Bridge { index, address })
}

/// Deletes the bridge; gone already is fine.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<(), NetworkError> {
    let mut batch = Batch::new();
    link::delete(&mut batch, name);
    socket.run(&mut batch).map(drop).map_err(|cause| NetworkError::Bridge { name: name.to_owned(), cause })
}

fn create(socket: &mut Socket, config: &Wanted<'_>, address: Subnet) -> Result<u32, NetlinkError> {
    let mut batch = Batch::new();
    link::create_bridge(&mut batch, config.name, Mac::of_address(address.address()), config.mtu);
    if let Some(alias) = config.alias {
        link::label(&mut batch, config.name, alias);
    }
    socket.run(&mut batch)?;
    let created = link::find(socket, config.name)?;
    created.map(|link| link.index).ok_or_else(|| NetlinkError::Unanswered { step: format!("look up {}", config.name) })
}

/// The address the bridge is to have: the configured one, the one it has, or the first default one that is free.
fn choose_address(
    socket: &mut Socket,
    config: &Wanted<'_>,
    index: Option<u32>,
    present: &[Subnet],
) -> Result<Subnet, NetworkError> {
    let wanted = match (config.address, present.first()) {
        (Some(wanted), _) if present.contains(&wanted) => return Ok(wanted),
        (None, Some(has)) if has.check_bridge_address().is_ok() => return Ok(*has),
        (wanted, _) => wanted,
    };
    let routes = routes_by_others(socket, index)?;
    let Some(wanted) = wanted else {
        return config::default_subnets()
            .find(|subnet| !routes.iter().any(|(to, _)| to.overlaps(*subnet)))
            .ok_or_else(|| NetworkError::NoSubnet { bridge: config.name.to_owned() });
    };
    // A network of the user may be a part of what a wider route leads to (a VPN's 10.0.0.0/8, say).
    let conflicts = |to: &Subnet| match config.alias {
        Some(_) => wanted.contains(to.network()) && to.prefix() >= wanted.prefix(),
        None => to.overlaps(wanted),
    };
    let Some((route, by)) = routes.iter().find(|(to, _)| conflicts(to)) else { return Ok(wanted) };
    let links = link::list(socket)?;
    let link = links.into_iter().find(|link| Some(link.index) == *by).map_or("no link".to_owned(), |link| link.name);
    Err(NetworkError::Overlap { bridge: config.name.to_owned(), subnet: wanted.to_network(), route: *route, link })
}

/// Subnets that this host reaches by other links. A route of a prefix of 0 is the default route and leads everywhere.
pub(super) fn routes_by_others(
    socket: &mut Socket,
    index: Option<u32>,
) -> Result<Vec<(Subnet, Option<u32>)>, NetlinkError> {
    let routes = route::list(socket)?.into_iter();
    Ok(routes
        .filter(|route| route.prefix > 0 && (index.is_none() || route.link != index))
        .filter_map(|route| Subnet::new(route.to, route.prefix).ok().map(|to| (to, route.link)))
        .collect())
}
