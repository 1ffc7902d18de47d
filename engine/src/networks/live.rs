//! Changing the networks of a container that lives.
//!
//! ```text
//! plan_join / plan_leave   leases only; gives the endpoint as it will be, marked as unsettled
//!   (the caller writes it down)
//! rearrange                links, addresses, default route, ports: from what was to what shall be
//!   (the caller writes down that it is settled)
//! ```
//!
//! An engine that dies in between is followed by one that reads the unsettled endpoint and calls [`Networks::settle`]:
//! the record wins, the kernel follows.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tracing::warn;

use super::attach::{Planned, configure_inside, prepare_links, random_id};
use super::endpoint::{Endpoint, Member, MemberRequest};
use super::error::NetworkError;
use super::netlink::{Batch, Family, Socket, link};
use super::ports::{PortRequest, PublishedPort};
use super::{Networks, locked};

impl Networks {
    /// Leases what a further network takes. The ports are those of the container, for when it hasn't been able to publish them.
    pub fn plan_join(
        &self,
        id: &str,
        name: &str,
        endpoint: &Endpoint,
        wanted: &MemberRequest,
        ports: &[PortRequest],
    ) -> Result<Endpoint, NetworkError> {
        let endpoint_id = random_id()?;
        let mut leases = locked(&self.leases);
        let mut next = endpoint.clone();
        let plan = leases.plan(id, wanted, endpoint_id, endpoint)?;
        next.add(plan.member.clone());
        leases.find_ways_out(&mut next);
        next.unsettled = true;
        if endpoint.ports.is_empty() && !ports.is_empty() {
            match leases.acquire_ports(id, name, &next, ports) {
                Ok(taken) => next.ports = taken,
                Err(error) => {
                    leases.release(&plan.member, id);
                    return Err(error);
                }
            }
        }
        Ok(next)
    }

    /// What is left without a network. Nothing is given back yet.
    pub fn plan_leave(&self, endpoint: &Endpoint, network_id: &str) -> Endpoint {
        let mut next = endpoint.clone();
        next.remove(network_id);
        locked(&self.leases).find_ways_out(&mut next);
        next.unsettled = true;
        let targets = next.targets();
        next.ports.retain(|port| targets.of(port.host_ip.is_ipv4()).is_some());
        next
    }

    /// Takes the host ports that are wanted now: those of them that the container has it keeps. Nothing is given back yet.
    pub fn plan_ports(
        &self,
        id: &str,
        name: &str,
        endpoint: &Endpoint,
        ports: &[PortRequest],
    ) -> Result<Endpoint, NetworkError> {
        let mut leases = locked(&self.leases);
        let mut next = endpoint.clone();
        next.unsettled = true;
        next.ports.clear();
        let mut fresh = Vec::new();
        for request in ports {
            let kept: Vec<PublishedPort> =
                endpoint.ports.iter().filter(|port| request.is_met_by(port)).copied().collect();
            let used = kept.iter().any(|port| next.ports.contains(port));
            if kept.is_empty() || used {
                fresh.push(*request);
            } else {
                next.ports.extend(kept);
            }
        }
        next.ports.extend(leases.acquire_ports(id, name, endpoint, &fresh)?);
        Ok(next)
    }

    /// Makes the kernel's state of a living container from one endpoint into another. On failure the state is between the
    /// two; calling it the other way round leads back.
    pub fn rearrange(
        &self,
        id: &str,
        name: &str,
        from: &Endpoint,
        to: &Endpoint,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        // A port that leads where it has led stays published meanwhile.
        let stays = |port: &PublishedPort, other: &Endpoint| {
            let is_ipv4 = port.host_ip.is_ipv4();
            from.targets().of(is_ipv4) == to.targets().of(is_ipv4) && other.ports.contains(port)
        };
        let (gone_ports, new_ports): (Vec<PublishedPort>, Vec<PublishedPort>) = (
            from.ports.iter().filter(|port| !stays(port, to)).copied().collect(),
            to.ports.iter().filter(|port| !stays(port, from)).copied().collect(),
        );
        self.unpublish(id, from.targets(), &gone_ports)?;
        proto::fault!("engine.rearrange.unpublished");
        let gone: Vec<Member> = from
            .members()
            .into_iter()
            .filter(|member| to.member(&member.network_id).as_ref() != Some(member))
            .collect();
        if !gone.is_empty() {
            self.delete_links(&gone, namespace)?;
            let mut leases = locked(&self.leases);
            gone.iter().for_each(|member| leases.release(member, id));
            drop(leases);
            let mut homes = locked(&self.homes);
            gone.iter().for_each(|member| drop(homes.remove(&member.address.host_link)));
        }
        proto::fault!("engine.rearrange.links_deleted");
        let planned: Vec<Planned> = {
            let leases = locked(&self.leases);
            let fresh = |member: &Member| from.member(&member.network_id).as_ref() != Some(member);
            to.members().into_iter().filter(fresh).map(|member| leases.planned(member)).collect()
        };
        self.connect_all(id, name, &planned, !to.ports.is_empty(), namespace)?;
        proto::fault!("engine.rearrange.links_made");
        let ways = locked(&self.leases).ways(to);
        if !planned.is_empty() {
            prepare_links(&planned, namespace)?;
        }
        let mut socket = sys::netns::within(namespace, || Socket::open(Family::Route))??;
        configure_inside(&mut socket, &planned, &ways)?;
        self.limit(&planned)?;
        planned.iter().try_for_each(|planned| self.wait_for_link(&planned.member))?;
        proto::fault!("engine.rearrange.configured");
        if from.ports.is_empty() != to.ports.is_empty() || !gone.is_empty() {
            let mut batch = Batch::new();
            let members = to.members();
            let on_bridges = members.iter().filter(|member| !member.address.host_link.is_empty());
            on_bridges.for_each(|m| link::set_hairpin(&mut batch, &m.address.host_link, !to.ports.is_empty()));
            locked(&self.route).run(&mut batch)?;
        }
        let published = locked(&self.firewall).publish(to.targets(), &new_ports);
        published.map_err(|cause| NetworkError::Publish { endpoint: name.to_owned(), cause })?;
        self.hold_ports(id, to);
        self.release_ports(id, &only_of(from, to));
        Ok(())
    }

    /// Deletes the links of members: by their ends on the host, or those that have none in the container.
    fn delete_links(&self, gone: &[Member], namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let (inside, here): (Vec<&Member>, Vec<&Member>) =
            gone.iter().partition(|member| member.address.host_link.is_empty());
        let mut batch = Batch::new();
        here.iter().for_each(|member| link::delete(&mut batch, &member.address.host_link));
        locked(&self.route).run(&mut batch)?;
        if inside.is_empty() {
            return Ok(());
        }
        let mut socket = sys::netns::within(namespace, || Socket::open(Family::Route))??;
        let mut batch = Batch::new();
        inside.iter().for_each(|member| link::delete(&mut batch, &member.interface));
        Ok(socket.run(&mut batch).map(drop)?)
    }

    /// Gives back what a plan has leased that isn't carried out: what `plan` has and `kept` hasn't.
    pub fn drop_plan(&self, id: &str, plan: &Endpoint, kept: &Endpoint) {
        let mut leases = locked(&self.leases);
        for member in plan.members() {
            if kept.member(&member.network_id).as_ref() != Some(&member) {
                leases.release(&member, id);
            }
        }
        drop(leases);
        self.release_ports(id, &only_of(plan, kept));
    }

    /// Finishes a change that an engine before this one had written down and perhaps not made. [`Networks::restore`] has
    /// removed links that are on no record, and has published the ports of the record.
    pub fn settle(&self, id: &str, name: &str, endpoint: &Endpoint, namespace: &OwnedFd) -> Result<(), NetworkError> {
        let links = link::list(&mut locked(&self.route))?;
        let mut there = endpoint.clone();
        for member in endpoint.members() {
            let host_link = &member.address.host_link;
            if !host_link.is_empty() && !links.iter().any(|link| link.name == *host_link) {
                there.remove(&member.network_id);
            }
        }
        // Ports are the same in both, so that nothing is published twice; the address they lead to may have changed.
        there.ports.clone_from(&endpoint.ports);
        // A link without its address: the engine died in between. It is made again.
        let socket = sys::netns::within(namespace.as_fd(), || Socket::open(Family::Route))?;
        let mut socket = socket?;
        for member in there.members() {
            let found = link::find(&mut socket, &member.interface)?;
            let complete = match found {
                Some(found) => {
                    let has = super::netlink::address::of_link(&mut socket, found.index)?;
                    member.address.all().all(|own| has.iter().any(|other| other.address() == own.ip))
                }
                None => false,
            };
            if !complete {
                warn!(id, link = member.address.host_link, "half-made link is made again");
                self.delete_links(std::slice::from_ref(&member), namespace.as_fd())?;
                there.remove(&member.network_id);
            }
        }
        self.rearrange(id, name, &there, endpoint, namespace.as_fd())
    }
}

/// The ports of one endpoint that another one hasn't.
fn only_of(one: &Endpoint, other: &Endpoint) -> Vec<PublishedPort> {
    one.ports.iter().filter(|port| !other.ports.contains(port)).copied().collect()
}
