//! The firewall table of one engine, family ip, named `berth_BRIDGE` after its default bridge. Everything in it is ours and
//! nothing outside it is touched, so that any number of stacks, dockerd and the host's own rules live side by side.
//!
//! ```text
//! table ip berth_BRIDGE
//!   bridges, internal_bridges, same_bridge    sets of links: all bridges, those of internal networks, pairs of a bridge and itself
//!   guard        raw prerouting    to 127.0.0.0/8 and not by lo: drop
//!   prerouting   nat prerouting ┐  to an address of this host: goto published
//!   output       nat output     ┘
//!   published                      rewrite the destination by one of two maps:
//!                                    protocol . address . port -> container . port
//!                                    protocol . port           -> container . port
//!   forward      filter forward    into a bridge: known connections, packets of the same bridge and published ports pass, the
//!                                  rest is dropped, also what comes from another bridge (isolation);
//!                                  out of an internal bridge: drop; out of other bridges: pass
//!   postrouting  nat postrouting   for each network: out of its bridge by another link: masquerade;
//!                                  into the bridge by a published port from the bridge itself or from 127.0.0.0/8:
//!                                  masquerade, so that the answer comes back by us
//! ```
//!
//! A container's ports are elements of the maps, a network's bridge is an element of the sets: publishing costs one transaction
//! however many ports there are, and a packet costs a few hash lookups however many networks there are. (The rules of
//! `postrouting` are one by one, but only a connection's first packet meets them.)
//!
//! *Accepting* a packet in one table doesn't save it from another: where the host's own forward chain has the policy drop
//! (dockerd sets it when it switches forwarding on, and ufw does), the host has to let the bridge through.

mod constants;
pub(super) mod inside;
mod links;
mod map;
mod rule;
mod transaction;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use nix::errno::Errno;
use nix::libc;
use tracing::{debug, warn};

use self::links::LinkSet;
use self::map::{Elements, Key, Map};
use self::rule::{Is, Rule};
use self::transaction::{Hook, Transaction};
use super::conntrack;
use super::netlink::{Family, NetlinkError, Socket};
use super::ports::{Protocol, PublishedPort};
use super::subnet::Subnet;

/// Before connection tracking.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DESTINATION: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE: i32 = 100;

const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const PUBLISHED: &str = "published";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";

/// A bridge as far as rules are about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeRules {
    /// Its name.
    pub(crate) link: String,
    /// Its network.
    pub(crate) subnet: Subnet,
    /// Nothing leads out of it, or into it.
    pub(crate) internal: bool,
    /// What leaves by another link gets that one's address.
    pub(crate) masquerade: bool,
}

/// The firewall of one engine. Its socket stays open: closing one makes the kernel wait for work it has put off.
#[derive(Debug)]
pub(crate) struct Firewall {
    socket: Socket,
    table: String,
    bridges: Vec<BridgeRules>,
    published: Elements,
}

impl Firewall {
    /// A firewall that knows of no published port yet. Changes nothing.
    pub(crate) fn open(default_bridge: &str, bridges: Vec<BridgeRules>) -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
            table: format!("berth_{default_bridge}"),
            bridges,
            published: Elements::new(),
        })
    }

    /// Makes the rules those of these bridges. When that fails they stay what they were.
    pub(crate) fn set_bridges(&mut self, bridges: Vec<BridgeRules>) -> Result<(), NetlinkError> {
        let before = std::mem::replace(&mut self.bridges, bridges);
        self.assert_rules().inspect_err(|_| self.bridges = before)
    }

    /// Makes chains and rules what they should be, in one transaction. Ports that are published already, perhaps by an
    /// engine before this one, stay so.
    pub(crate) fn assert_rules(&mut self) -> Result<(), NetlinkError> {
        let mut kept = Transaction::new(&self.table);
        kept.add_table();
        self.fill(&mut kept);
        let Err(error) = kept.commit(&mut self.socket) else { return Ok(()) };
        // A table of the same name with chains or maps of another form: of another release, most likely.
        warn!(%error, table = self.table, "firewall table is replaced");
        self.replace_table()
    }

    /// Makes the whole table what it should be: rules, and the ports this engine has published and no others.
    pub(crate) fn assert_all(&mut self) -> Result<(), NetlinkError> {
        let mut kept = Transaction::new(&self.table);
        kept.add_table();
        self.fill(&mut kept);
        Map::BOTH.into_iter().for_each(|map| kept.flush_map(map));
        kept.publish(&self.published);
        let Err(error) = kept.commit(&mut self.socket) else { return Ok(()) };
        warn!(%error, table = self.table, "firewall table is replaced");
        self.replace_table()
    }

    /// Notes that ports lead to a container, for the next `assert_all`.
    pub(crate) fn remember(&mut self, container: Ipv4Addr, ports: &[PublishedPort]) {
        self.published.append(&mut elements(container, ports));
    }

    /// Publishes the ports of a container, in one transaction. A table that somebody has deleted comes back whole.
    pub(crate) fn publish(&mut self, container: Ipv4Addr, ports: &[PublishedPort]) -> Result<(), NetlinkError> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut new = elements(container, ports);
        let mut transaction = Transaction::new(&self.table);
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
    pub(crate) fn unpublish(&mut self, container: Ipv4Addr, ports: &[PublishedPort]) -> Result<(), NetlinkError> {
        let mut gone = elements(container, ports);
        // What was published again for another container meanwhile isn't this one's to remove.
        gone.retain(|key, to| self.published.get(key).is_none_or(|now| now == to));
        self.published.retain(|key, _| !gone.contains_key(key));
        if gone.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::new(&self.table);
        transaction.unpublish(&gone);
        match transaction.commit(&mut self.socket) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => self.unpublish_one_by_one(&gone),
            result => result,
        }?;
        self.forget_flows(|socket| conntrack::forget_flows_to_container(socket, container), ports);
        Ok(())
    }

    /// Deletes the table; gone already is fine.
    pub(crate) fn delete(&mut self) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new(&self.table);
        transaction.delete_table();
        match transaction.commit(&mut self.socket) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            result => result,
        }
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
            let mut transaction = Transaction::new(&self.table);
            transaction.unpublish(&Elements::from([(*key, *to)]));
            match transaction.commit(&mut self.socket) {
                Err(error) if error.errno() != Some(Errno::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn replace_table(&mut self) -> Result<(), NetlinkError> {
        let mut new = Transaction::new(&self.table);
        new.add_table(); // so that deleting finds one
        new.delete_table();
        new.add_table();
        self.fill(&mut new);
        new.publish(&self.published);
        new.commit(&mut self.socket)
    }

    /// Maps, chains and rules; rules there are go first.
    fn fill(&self, to: &mut Transaction<'_>) {
        Map::BOTH.into_iter().for_each(|map| to.add_map(map));
        LinkSet::ALL.into_iter().for_each(|links| to.add_set(links));
        let hook = |kind, number, priority| Some(Hook { kind, number, priority });
        to.add_chain(PUBLISHED, None);
        to.add_chain(GUARD, hook("filter", libc::NF_INET_PRE_ROUTING, PRIORITY_RAW));
        to.add_chain(PREROUTING, hook("nat", libc::NF_INET_PRE_ROUTING, PRIORITY_DESTINATION));
        to.add_chain(OUTPUT, hook("nat", libc::NF_INET_LOCAL_OUT, PRIORITY_DESTINATION));
        to.add_chain(FORWARD, hook("filter", libc::NF_INET_FORWARD, PRIORITY_FILTER));
        to.add_chain(POSTROUTING, hook("nat", libc::NF_INET_POST_ROUTING, PRIORITY_SOURCE));
        to.flush_rules();
        for links in LinkSet::ALL {
            let fits = |bridge: &&BridgeRules| links != LinkSet::Internal || bridge.internal;
            to.fill_set(links, self.bridges.iter().filter(fits).map(|bridge| bridge.link.as_str()));
        }
        for (chain, rule) in rules(&self.bridges) {
            to.add_rule(chain, &rule);
        }
    }
}

/// The rules, chain by chain.
fn rules(bridges: &[BridgeRules]) -> Vec<(&'static str, Rule)> {
    use Is::{Exactly, Not};
    let rule = Rule::new;
    let (ours, internal, same) = (LinkSet::Bridges.name(), LinkSet::Internal.name(), LinkSet::Same.name());
    let mut rules = vec![
        (GUARD, rule("loopback is this host's own").came_by(Not, "lo").to(Subnet::LOOPBACK).drop()),
        (PREROUTING, rule("published ports, from elsewhere").for_this_host().goto(PUBLISHED)),
        (OUTPUT, rule("published ports, from this host").for_this_host().goto(PUBLISHED)),
        (PUBLISHED, rule("on one address").redirect_by(Map::OnOneAddress.name(), true)),
        (PUBLISHED, rule("on all addresses").redirect_by(Map::OnAllAddresses.name(), false)),
        (FORWARD, rule("answers to containers").leaves_by_one_of(ours).of_known_connection().accept()),
        (FORWARD, rule("within a network").passes_by_pair_of(same).accept()),
        (
            FORWARD,
            rule("to published ports")
                .leaves_by_one_of(ours)
                .came_by_one_of(Not, internal)
                .of_published_port()
                .accept(),
        ),
        (FORWARD, rule("to ports that are not published").leaves_by_one_of(ours).drop()),
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
    ];
    for BridgeRules { link, subnet, internal, masquerade } in bridges {
        if *masquerade && !internal {
            rules.push((POSTROUTING, rule("containers to elsewhere").from(*subnet).leaves_by(Not, link).masquerade()));
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
    rules
}

fn elements(container: Ipv4Addr, ports: &[PublishedPort]) -> Elements {
    ports.iter().map(|port| (Key::of(port), SocketAddrV4::new(container, port.container_port))).collect()
}
