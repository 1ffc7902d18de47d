//! The bridge itself: made if it is missing, repaired if it is not what it should be.

use super::config;
use super::error::NetworkError;
use super::mac::Mac;
use super::netlink::{Batch, NetlinkError, Socket, address, link, route};
use super::subnet::Subnet;
use super::sysctl;

/// What a bridge should be.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its addresses and their networks.
    pub(super) addresses: Vec<Subnet>,
    /// Networks of which it has no address, and which containers have all the same.
    pub(super) silent: Vec<Subnet>,
    /// IPv6 is on.
    pub(super) ipv6: bool,
    /// MTU of the bridge and its links.
    pub(super) mtu: u32,
    /// A note on the link that says which network's it is, for those of users.
    pub(super) alias: Option<&'a str>,
    /// It is somebody else's: other addresses stay.
    pub(super) adopted: bool,
}

/// Makes or repairs the bridge, and gives its index.
pub(super) fn ensure(socket: &mut Socket, wanted: &Wanted<'_>) -> Result<u32, NetworkError> {
    let name = wanted.name;
    config::check_name(name)?;
    for address in &wanted.addresses {
        address.check_bridge_address().map_err(NetworkError::BridgeAddress)?;
    }
    let failed = |cause| NetworkError::Bridge { name: name.to_owned(), cause };
    let index = find(socket, name)?;
    let present = match index {
        Some(index) => address::of_link(socket, index).map_err(failed)?,
        None => Vec::new(),
    };
    let new: Vec<Subnet> = wanted.addresses.iter().filter(|address| !present.contains(address)).copied().collect();
    check_routes(socket, wanted, index, &new)?;
    let index = match index {
        Some(index) => index,
        None => create(socket, wanted).map_err(failed)?,
    };
    // Before the link is up for the first time, so that it never has an IPv6 address that it shouldn't have.
    sysctl::prepare_bridge(name, wanted.ipv6)?;
    let mut batch = Batch::new();
    if !wanted.adopted {
        let others = present.iter().filter(|other| !wanted.addresses.contains(other));
        others.for_each(|other| address::delete(&mut batch, index, *other));
    }
    new.iter().for_each(|address| address::add(&mut batch, index, *address));
    link::bring_up(&mut batch, name, None);
    socket.run(&mut batch).map_err(failed)?;
    Ok(index)
}

/// The index of a bridge, if it is there; something else of that name is an error.
fn find(socket: &mut Socket, name: &str) -> Result<Option<u32>, NetworkError> {
    let found = link::find(socket, name).map_err(|cause| NetworkError::Bridge { name: name.to_owned(), cause })?;
    match found {
        Some(other) if other.kind.as_deref() != Some("bridge") => {
            let kind = other.kind.unwrap_or_else(|| "plain link".to_owned());
            Err(NetworkError::NotABridge { name: name.to_owned(), kind })
        }
        found => Ok(found.map(|link| link.index)),
    }
}

/// The address of a default bridge that nobody chose one for: what it has, or the first of docker's that is free.
pub(super) fn default_address(socket: &mut Socket, name: &str) -> Result<Subnet, NetworkError> {
    config::check_name(name)?;
    let index = find(socket, name)?;
    if let Some(index) = index {
        let has = address::of_link(socket, index)?.into_iter().find(|address| address.is_ipv4());
        if let Some(has) = has.filter(|has| has.check_bridge_address().is_ok()) {
            return Ok(has);
        }
    }
    let routes = routes_by_others(socket, index)?;
    config::default_subnets()
        .find(|subnet| !routes.iter().any(|(to, _)| to.overlaps(*subnet)))
        .ok_or_else(|| NetworkError::NoSubnet { bridge: name.to_owned() })
}

/// Deletes the bridge; gone already is fine.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<(), NetworkError> {
    let mut batch = Batch::new();
    link::delete(&mut batch, name);
    socket.run(&mut batch).map(drop).map_err(|cause| NetworkError::Bridge { name: name.to_owned(), cause })
}

fn create(socket: &mut Socket, wanted: &Wanted<'_>) -> Result<u32, NetlinkError> {
    let mut batch = Batch::new();
    let first = wanted.addresses.iter().chain(&wanted.silent).next();
    // A bridge without an address of its own needs none of the containers' MAC addresses either.
    let mac = first.map_or(Mac::of_address([127, 0, 0, 1].into()), |first| Mac::of_address(first.address()));
    link::create_bridge(&mut batch, wanted.name, mac, wanted.mtu);
    if let Some(alias) = wanted.alias {
        link::label(&mut batch, wanted.name, alias);
    }
    socket.run(&mut batch)?;
    let created = link::find(socket, wanted.name)?;
    created.map(|link| link.index).ok_or_else(|| NetlinkError::Unanswered { step: format!("look up {}", wanted.name) })
}

/// Refuses networks that this host reaches by other links.
fn check_routes(
    socket: &mut Socket,
    wanted: &Wanted<'_>,
    index: Option<u32>,
    new: &[Subnet],
) -> Result<(), NetworkError> {
    if new.is_empty() {
        return Ok(());
    }
    let routes = routes_by_others(socket, index)?;
    for subnet in new {
        // A network of the user may be a part of what a wider route leads to (a VPN's 10.0.0.0/8, say).
        let conflicts = |to: &Subnet| match wanted.alias {
            Some(_) => subnet.contains(to.network()) && to.prefix() >= subnet.prefix(),
            None => to.overlaps(*subnet),
        };
        let Some((route, by)) = routes.iter().find(|(to, _)| conflicts(to)) else { continue };
        let links = link::list(socket)?;
        let link = links.into_iter().find(|link| Some(link.index) == *by);
        return Err(NetworkError::Overlap {
            bridge: wanted.name.to_owned(),
            subnet: subnet.to_network(),
            route: *route,
            link: link.map_or("no link".to_owned(), |link| link.name),
        });
    }
    Ok(())
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
