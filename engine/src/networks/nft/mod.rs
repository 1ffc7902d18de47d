//! The firewall table of one engine, family inet, named `berth_BRIDGE` after its default bridge. Everything in it is ours and
//! nothing outside it is touched, so that any number of stacks, dockerd and the host's own rules live side by side.
//!
//! ```text
//! table inet berth_BRIDGE
//!   bridges, internal_bridges    sets of links: all bridges, those of internal networks
//!   passing_links                pairs of a link and a bridge: each bridge and itself, and links that a network trusts
//!   guard        filter input      to 127.0.0.0/8 and not by lo: drop, but for answers of what 127.0.0.1 has asked of a container
//!   prerouting   nat prerouting ┐  to an address of this host (but not ::1, and not to 127.0.0.0/8 by another link than lo):
//!   output       nat output     ┘  goto published
//!   published                      rewrite the destination by one of two maps for each family:
//!                                    protocol . address . port -> container . port
//!                                    protocol . port           -> container . port
//!   forward      filter forward    known connections pass; jump user;
//!                                  into a bridge: pairs of passing_links, published and routed ports pass, the
//!                                  rest is dropped, also what comes from another bridge (isolation);
//!                                  out of an internal bridge: drop; out of other bridges: pass
//!   user                           empty, and left alone: the host's owner may add rules
//!   postrouting  nat postrouting   for each network: out of its bridge by another link: masquerade, or the source address that
//!                                  the network was given;
//!                                  into the bridge by a published port from the bridge itself or from 127.0.0.0/8:
//!                                  masquerade, so that the answer comes back by us
//! ```
//!
//! A container's ports are elements of the maps, a network's bridge is an element of the sets: publishing costs one transaction
//! however many ports there are, and a packet costs a few hash lookups however many networks there are. (The rules of
//! `postrouting` are one by one, but only a connection's first packet meets them.) The guard is at the input, and again where ports are
//! led away from there: packets from container to container, which pass neither, are looked at in `forward` alone.
//!
//! What goes to ::1 can't be led to a container: there is no `route_localnet` for IPv6. It is left to the sockets of the host, of
//! which some are the resolver's (`names::held`).
//!
//! *Accepting* a packet in one table doesn't save it from another. Where the forward chain of iptables has the policy drop
//! (dockerd sets it when it switches forwarding on, and ufw does), it is made to let our bridges through: see [`foreign`]. firewalld is
//! told of them (`firewalld`). Other firewalls have to be told by the host's owner.

mod constants;
pub(super) mod foreign;
pub(super) mod inside;
mod links;
mod map;
mod rule;
mod shown;
mod transaction;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use tracing::{debug, warn};

use self::links::LinkSet;
use self::map::{Elements, Key, Kind, Map, elements};
use self::rule::{Is, Rule};
use self::shown::Shown;
use self::transaction::{Hook, Transaction};
use super::conntrack;
use super::endpoint::Targets;
use super::netlink::{Family, NetlinkError, Socket};
use super::options::GatewayMode;
use super::ports::{Protocol, PublishedPort};
use super::subnet::Subnet;

/// The family that has both IPv4 and IPv6.
const FAMILY: i32 = libc::NFPROTO_INET;
/// Before all that others filter.
const PRIORITY_GUARD: i32 = -300;
const PRIORITY_DESTINATION: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE: i32 = 100;

const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const PUBLISHED: &str = "published";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";
/// Rules of the host's owner.
const USER: &str = "user";

/// The chains that are ours to fill.
const OWN: [&str; 6] = [GUARD, PREROUTING, OUTPUT, PUBLISHED, FORWARD, POSTROUTING];

/// A bridge as far as rules are about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeRules {
    /// Its name.
    pub(crate) link: String,
    /// Nothing leads out of it, or into it.
    pub(crate) internal: bool,
    /// Links by which all of it may be reached.
    pub(crate) trusted: Vec<String>,
    /// Its networks.
    pub(crate) subnets: Vec<SubnetRules>,
}

/// A network of one family on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubnetRules {
    /// The network.
    pub(crate) subnet: Subnet,
    /// How it is joined to the world.
    pub(crate) mode: GatewayMode,
    /// What leaves by another link gets that one's address.
    pub(crate) masquerade: bool,
    /// Or this one.
    pub(crate) source: Option<IpAddr>,
}

/// The firewall of one engine. Its socket stays open: closing one makes the kernel wait for work it has put off.
#[derive(Debug)]
pub(crate) struct Firewall {
    socket: Socket,
    table: String,
    bridges: Vec<BridgeRules>,
    published: Elements,
    /// Whether a table of an older engine may still be there.
    older: bool,
}

impl Firewall {
    /// A firewall that knows of no published port yet. Changes nothing.
    pub(crate) fn open(default_bridge: &str, bridges: Vec<BridgeRules>) -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
            table: format!("berth_{default_bridge}"),
            bridges,
            published: Elements::new(),
            older: true,
        })
    }

    /// The table's name.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// The number by which the kernel knows the socket.
    pub(crate) fn port(&self) -> Result<u32, NetlinkError> {
        self.socket.port()
    }

    /// Whether firewalld has its rules in this network namespace.
    pub(crate) fn has_firewalld(&mut self) -> Result<bool, NetlinkError> {
        foreign::has_firewalld(&mut self.socket)
    }

    /// The firewall of somebody else that keeps this host's ports closed unless it is told otherwise.
    pub(crate) fn closed_by(&mut self) -> Result<Option<String>, NetlinkError> {
        foreign::closed_by(&mut self.socket)
    }

    /// Whether the table is there.
    pub(crate) fn is_there(&mut self) -> Result<bool, NetlinkError> {
        transaction::has_table(&mut self.socket, FAMILY, &self.table)
    }

    /// What of the table, and of our rules in iptables' chains, isn't as it has to be: a line each.
    pub(crate) fn differences(&mut self) -> Result<Vec<String>, NetlinkError> {
        let mut lines = match Shown::read(&mut self.socket, &self.table)? {
            None => vec![format!("firewall table inet {} is missing", self.table)],
            Some(present) => present.differences(&self.wanted()?, &self.table),
        };
        let bridges: Vec<&str> = self.bridges.iter().map(|bridge| bridge.link.as_str()).collect();
        lines.extend(foreign::differences(&mut self.socket, &self.table, &bridges)?);
        Ok(lines)
    }

    /// The table as the kernel shows it when nobody else has touched it: made once more, where no packets are.
    fn wanted(&self) -> Result<Shown, NetlinkError> {
        let make = || {
            let newnet = CloneFlags::CLONE_NEWNET.bits() as u64;
            let failed = |cause| NetlinkError::Socket { step: "enter a network namespace of its own", cause };
            sys::ns::unshare(newnet).map_err(failed)?;
            let mut socket = Socket::open(Family::Netfilter)?;
            let mut whole = Transaction::new(FAMILY, &self.table);
            whole.add_table();
            self.fill(&mut whole);
            whole.publish(&self.published);
            whole.commit(&mut socket)?;
            Shown::read(&mut socket, &self.table)
        };
        let made = std::thread::scope(|scope| scope.spawn(make).join());
        let unseen = || NetlinkError::Unanswered { step: format!("make firewall table {} again", self.table) };
        made.map_err(|_| unseen())??.ok_or_else(unseen)
    }

    /// Lets the bridges through the chains of iptables. Where that fails, the host's owner has to.
    fn follow_others(&mut self, none: bool) {
        let bridges: Vec<&str> = self.bridges.iter().filter(|_| !none).map(|bridge| bridge.link.as_str()).collect();
        if let Err(error) = foreign::follow(&mut self.socket, &self.table, &bridges) {
            warn!(error = %proto::kind::chain(&error), "iptables' chain FORWARD may keep containers' packets");
        }
    }

    /// Makes the rules those of these bridges. When that fails they stay what they were.
    pub(crate) fn set_bridges(&mut self, bridges: Vec<BridgeRules>) -> Result<(), NetlinkError> {
        let before = std::mem::replace(&mut self.bridges, bridges);
        self.assert_rules().inspect_err(|_| self.bridges = before)
    }

    /// Makes chains and rules what they should be, in one transaction. Ports that are published already, perhaps by an
    /// engine before this one, stay so.
    pub(crate) fn assert_rules(&mut self) -> Result<(), NetlinkError> {
        self.follow_others(false);
        let mut kept = Transaction::new(FAMILY, &self.table);
        if self.older {
            // Engines before had a table of this name for IPv4 alone.
            kept.delete_table_of(libc::NFPROTO_IPV4);
        }
        kept.add_table();
        self.fill(&mut kept);
        let Err(error) = kept.commit(&mut self.socket) else {
            self.older = false;
            return Ok(());
        };
        // A table of the same name with chains or maps of another form: of another release, most likely.
        warn!(%error, table = self.table, "firewall table is replaced");
        self.replace_table()
    }

    /// Makes the whole table what it should be: rules, and the ports this engine has published and no others.
    pub(crate) fn assert_all(&mut self) -> Result<(), NetlinkError> {
        self.follow_others(false);
        let mut kept = Transaction::new(FAMILY, &self.table);
        kept.add_table();
        self.fill(&mut kept);
        Map::all().for_each(|map| kept.flush_map(map));
        kept.publish(&self.published);
        let Err(error) = kept.commit(&mut self.socket) else { return Ok(()) };
        warn!(%error, table = self.table, "firewall table is replaced");
        self.replace_table()
    }

    /// Notes that ports lead to a container, for the next `assert_all`.
    pub(crate) fn remember(&mut self, container: Targets, ports: &[PublishedPort]) {
        self.published.append(&mut elements(container, ports));
    }

    /// Publishes the ports of a container, in one transaction. A table that somebody has deleted comes back whole.
    pub(crate) fn publish(&mut self, container: Targets, ports: &[PublishedPort]) -> Result<(), NetlinkError> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut new = elements(container, ports);
        let mut transaction = Transaction::new(FAMILY, &self.table);
        transaction.publish(&new);
        let published = match transaction.commit(&mut self.socket) {
            Ok(()) => {
                self.published.append(&mut new);
                Ok(())
            }
            // ENOENT: no table or map. EEXIST, EBUSY: an element that leads elsewhere and that we know nothing of.
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EEXIST | Errno::EBUSY)) => {
                warn!(%error, table = self.table, "firewall table was changed by others and is restored");
                let keys: BTreeSet<Key> = new.keys().copied().collect();
                self.published.append(&mut new);
                self.assert_all().inspect_err(|_| self.published.retain(|key, _| !keys.contains(key)))
            }
            Err(error) => Err(error),
        };
        if published.is_ok() {
            self.forget_flows(|socket| conntrack::forget_flows_to_host(socket, ports), ports);
        }
        published
    }

    /// Takes the ports of a container back; gone already is fine.
    pub(crate) fn unpublish(&mut self, container: Targets, ports: &[PublishedPort]) -> Result<(), NetlinkError> {
        let mut gone = elements(container, ports);
        // What was published again for another container meanwhile isn't this one's to remove.
        gone.retain(|key, to| self.published.get(key).is_none_or(|now| now == to));
        self.published.retain(|key, _| !gone.contains_key(key));
        if gone.is_empty() {
            return Ok(());
        }
        let gone_from: Vec<IpAddr> = container.all().collect();
        let mut transaction = Transaction::new(FAMILY, &self.table);
        transaction.unpublish(&gone);
        match transaction.commit(&mut self.socket) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => self.unpublish_one_by_one(&gone),
            result => result,
        }?;
        self.forget_flows(|socket| conntrack::forget_flows_to_container(socket, &gone_from), ports);
        Ok(())
    }

    /// Deletes the table, also that of an older engine; gone already is fine. Returns whether there was one.
    pub(crate) fn delete(&mut self) -> Result<bool, NetlinkError> {
        self.follow_others(true);
        let mut deleted = false;
        for family in [FAMILY, libc::NFPROTO_IPV4] {
            let mut transaction = Transaction::new(family, &self.table);
            transaction.delete_table();
            match transaction.commit(&mut self.socket) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                result => {
                    result?;
                    deleted = true;
                }
            }
        }
        Ok(deleted)
    }

    /// Makes UDP flows that began before a change follow it. A kernel without the interface for that only lets them run
    /// out.
    fn forget_flows(&mut self, forget: impl FnOnce(&mut Socket) -> Result<(), NetlinkError>, ports: &[PublishedPort]) {
        if ports.iter().any(|port| port.protocol == Protocol::Udp)
            && let Err(error) = forget(&mut self.socket)
        {
            debug!(%error, "old UDP flows stay until they time out");
        }
    }

    /// One missing element fails a transaction as a whole; so each gets its own.
    fn unpublish_one_by_one(&mut self, gone: &Elements) -> Result<(), NetlinkError> {
        for (key, to) in gone {
            let mut transaction = Transaction::new(FAMILY, &self.table);
            transaction.unpublish(&Elements::from([(*key, *to)]));
            match transaction.commit(&mut self.socket) {
                Err(error) if error.errno() != Some(Errno::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn replace_table(&mut self) -> Result<(), NetlinkError> {
        let mut new = Transaction::new(FAMILY, &self.table);
        new.add_table(); // so that deleting finds one
        new.delete_table();
        new.add_table();
        self.fill(&mut new);
        new.publish(&self.published);
        new.commit(&mut self.socket)
    }

    /// Maps, chains and rules; rules there are go first.
    fn fill(&self, to: &mut Transaction<'_>) {
        Map::all().for_each(|map| to.add_map(map));
        LinkSet::ALL.into_iter().for_each(|links| to.add_set(links));
        let hook = |kind, number, priority| Some(Hook { kind, number, priority });
        to.add_chain(PUBLISHED, None);
        to.add_chain(GUARD, hook("filter", libc::NF_INET_LOCAL_IN, PRIORITY_GUARD));
        to.add_chain(PREROUTING, hook("nat", libc::NF_INET_PRE_ROUTING, PRIORITY_DESTINATION));
        to.add_chain(OUTPUT, hook("nat", libc::NF_INET_LOCAL_OUT, PRIORITY_DESTINATION));
        to.add_chain(FORWARD, hook("filter", libc::NF_INET_FORWARD, PRIORITY_FILTER));
        to.add_chain(POSTROUTING, hook("nat", libc::NF_INET_POST_ROUTING, PRIORITY_SOURCE));
        to.add_chain(USER, None);
        OWN.into_iter().for_each(|chain| to.flush_chain(chain));
        for links in LinkSet::ALL {
            to.fill_set(links, &self.members(links));
        }
        for (chain, rule) in rules(&self.bridges) {
            to.add_rule(chain, &rule);
        }
    }

    fn members(&self, links: LinkSet) -> Vec<Vec<&str>> {
        let bridges = self.bridges.iter();
        match links {
            LinkSet::Bridges => bridges.map(|bridge| vec![bridge.link.as_str()]).collect(),
            LinkSet::Internal => {
                bridges.filter(|bridge| bridge.internal).map(|bridge| vec![bridge.link.as_str()]).collect()
            }
            LinkSet::Pairs => {
                let mut pairs: Vec<Vec<&str>> = Vec::new();
                for bridge in bridges {
                    pairs.push(vec![&bridge.link, &bridge.link]);
                    let trusted: BTreeSet<&str> = bridge.trusted.iter().map(String::as_str).collect();
                    pairs.extend(trusted.into_iter().filter(|by| *by != bridge.link).map(|by| vec![by, &bridge.link]));
                }
                pairs
            }
        }
    }
}

/// The rules, chain by chain.
fn rules(bridges: &[BridgeRules]) -> Vec<(&'static str, Rule)> {
    use Is::{Exactly, Not};
    let rule = Rule::new;
    let from_elsewhere = |comment| rule(comment).to(Subnet::LOOPBACK).came_by(Not, "lo");
    let (ours, internal, pairs) = (LinkSet::Bridges.name(), LinkSet::Internal.name(), LinkSet::Pairs.name());
    let mut rules = vec![
        // The address first: it is what most packets fail by, and costs less to look at than a name.
        (GUARD, from_elsewhere("answers of published ports").of_published_port().accept()),
        (GUARD, from_elsewhere("loopback is this host's own").drop()),
        (PREROUTING, from_elsewhere("loopback is this host's own").accept()),
        (PREROUTING, rule("published ports, from elsewhere").for_this_host().goto(PUBLISHED)),
        (OUTPUT, rule("no way from ::1 to a container").to(loopback_v6()).accept()),
        (OUTPUT, rule("published ports, from this host").for_this_host().goto(PUBLISHED)),
    ];
    for map in Map::all().filter(|map| map.kind != Kind::Routed) {
        rules.push((PUBLISHED, rule("published").redirect_by(map)));
    }
    let into = |comment| rule(comment).leaves_by_one_of(ours);
    rules.extend([
        // First of all, for it is most packets; that of others isn't kept from anybody by an accept here.
        (FORWARD, rule("known connections").of_known_connection().accept()),
        (FORWARD, rule("what the host's owner wants").jump(USER)),
        (FORWARD, rule("within a network, or from a trusted link").passes_by_pair_of(pairs).accept()),
        (FORWARD, into("to published ports").came_by_one_of(Not, internal).of_published_port().accept()),
    ]);
    let has = |mode: GatewayMode, is_ipv4: bool| {
        let fits = |subnet: &SubnetRules| subnet.mode == mode && subnet.subnet.is_ipv4() == is_ipv4;
        bridges.iter().any(|bridge| bridge.subnets.iter().any(fits))
    };
    for is_ipv4 in [true, false] {
        if has(GatewayMode::Routed, is_ipv4) {
            let routed = Map { kind: Kind::Routed, is_ipv4 };
            let port = into("to ports of routed networks").came_by_one_of(Not, internal).for_port_of(routed);
            rules.push((FORWARD, port.accept()));
        }
    }
    for bridge in bridges.iter().filter(|bridge| !bridge.internal) {
        for subnet in &bridge.subnets {
            let to =
                |comment| rule(comment).leaves_by(Exactly, &bridge.link).came_by_one_of(Not, ours).to(subnet.subnet);
            match subnet.mode {
                GatewayMode::NatUnprotected => rules.push((FORWARD, to("to an unprotected network").accept())),
                GatewayMode::Routed => {
                    let control = to("errors and questions to a routed network").of_control(subnet.subnet.is_ipv4());
                    rules.push((FORWARD, control.accept()));
                }
                GatewayMode::Nat | GatewayMode::Isolated => {}
            }
        }
    }
    rules.extend([
        (FORWARD, into("to ports that are not published").drop()),
        (FORWARD, rule("out of internal networks").came_by_one_of(Exactly, internal).drop()),
        (FORWARD, rule("from containers").came_by_one_of(Exactly, ours).accept()),
        (
            POSTROUTING,
            rule("127.0.0.1 to a published port")
                .from(Subnet::LOOPBACK)
                .leaves_by_one_of(ours)
                .of_published_port()
                .masquerade(),
        ),
    ]);
    for BridgeRules { link, internal, subnets, .. } in bridges {
        for SubnetRules { subnet, masquerade, source, .. } in subnets {
            if *masquerade && !internal {
                let out = rule("containers to elsewhere").from(*subnet).leaves_by(Not, link);
                rules.push((
                    POSTROUTING,
                    match source {
                        Some(address) => out.set_source(*address),
                        None => out.masquerade(),
                    },
                ));
            }
            rules.push((
                POSTROUTING,
                rule("containers to a published port on the same bridge")
                    .from(*subnet)
                    .leaves_by(Exactly, link)
                    .of_published_port()
                    .masquerade(),
            ));
        }
    }
    rules
}

fn loopback_v6() -> Subnet {
    Subnet::host(Ipv6Addr::LOCALHOST.into())
}
