//! A table as the kernel shows it, and how two of them differ. What a table has to be isn't written down a second time: the kernel is given it
//! once more, in a network namespace that nothing else is in, and both are read back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use nix::errno::Errno;
use nix::libc;

use super::super::netlink::{Batch, NetlinkError, Socket, attribute, attributes, text};
use super::super::ports::Protocol;
use super::constants::{self as c, data, set};
use super::links::LinkSet;
use super::map::{Kind, Map};
use super::transaction::has_table;
use super::{FAMILY, USER};

/// Length of `struct nfgenmsg`, and what nftables' messages are numbered from.
const NFGENMSG: usize = 4;
const NFTABLES: u16 = 10 << 8;

/// Key and value of an element.
type Element = (Vec<u8>, Vec<u8>);

/// What is in a table.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Chains, and where packets come to them.
    chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// Their rules: comment and expressions.
    rules: BTreeMap<String, Vec<(String, Vec<u8>)>>,
    /// Maps and sets.
    sets: BTreeMap<&'static str, BTreeSet<Element>>,
}

impl Shown {
    /// Reads a table; none where it isn't there.
    pub(super) fn read(socket: &mut Socket, table: &str) -> Result<Option<Self>, NetlinkError> {
        if !has_table(socket, FAMILY, table)? {
            return Ok(None);
        }
        let mut shown = Self::default();
        let of_table = |payload: &[u8], kind| {
            payload.first() == Some(&(FAMILY as u8))
                && attribute(payload, NFGENMSG, kind).map(text).as_deref() == Some(table)
        };
        for answer in list(socket, "chains", libc::NFT_MSG_GETCHAIN, table, None)? {
            let of = |kind| attribute(&answer, NFGENMSG, kind);
            if let Some(name) = of(c::chain::NAME).map(text).filter(|_| of_table(&answer, c::chain::TABLE)) {
                let hook = [c::chain::HOOK, c::chain::TYPE, c::chain::POLICY]
                    .map(|kind| of(kind).unwrap_or_default().to_vec());
                shown.chains.insert(name, hook.into());
            }
        }
        for answer in list(socket, "rules", libc::NFT_MSG_GETRULE, table, None)? {
            let of = |kind| attribute(&answer, NFGENMSG, kind);
            if let Some(chain) = of(c::rule::CHAIN).map(text).filter(|_| of_table(&answer, c::rule::TABLE)) {
                let comment = of(c::rule::USERDATA).and_then(|user| user.get(2..)).map(text).unwrap_or_default();
                let expressions = of(c::rule::EXPRESSIONS).unwrap_or_default().to_vec();
                shown.rules.entry(chain).or_default().push((comment, expressions));
            }
        }
        for name in names() {
            let answers = match list(socket, "elements", libc::NFT_MSG_GETSETELEM, table, Some(name)) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
                answers => answers?,
            };
            let found = answers.iter().filter_map(|answer| attribute(answer, NFGENMSG, set::LIST_ELEMENTS));
            let found = found.flat_map(|elements| attributes(elements, 0)).map(|(_, element)| {
                let value = |kind| attribute(attribute(element, 0, kind)?, 0, data::VALUE).map(<[u8]>::to_vec);
                (value(set::ELEMENT_KEY).unwrap_or_default(), value(set::ELEMENT_DATA).unwrap_or_default())
            });
            shown.sets.insert(name, found.collect());
        }
        Ok(Some(shown))
    }

    /// What of `wanted` isn't so, a line each.
    pub(super) fn differences(&self, wanted: &Self, table: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, hook) in &wanted.chains {
            match self.chains.get(name) {
                None => {
                    lines.push(format!("chain {name} of table inet {table} is missing"));
                    continue;
                }
                Some(other) if other != hook => {
                    lines.push(format!("chain {name} of table inet {table} has another hook, priority or policy"));
                }
                Some(_) => {}
            }
            if name != USER {
                self.differences_of_chain(wanted, name, table, &mut lines);
            }
        }
        for (name, elements) in &wanted.sets {
            let Some(present) = self.sets.get(name) else {
                lines.push(format!("{name} of table inet {table} is missing"));
                continue;
            };
            let all = elements.difference(present).map(|element| (element, "is missing from"));
            let all = all.chain(present.difference(elements).map(|element| (element, "doesn't belong into")));
            lines.extend(
                all.map(|(element, what)| format!("{} {what} {name} of table inet {table}", describe(name, element))),
            );
        }
        lines
    }

    fn differences_of_chain(&self, wanted: &Self, chain: &str, table: &str, lines: &mut Vec<String>) {
        let rules = |of: &Self| of.rules.get(chain).cloned().unwrap_or_default();
        let (has, wants) = (rules(self), rules(wanted));
        let before = lines.len();
        let missing = wants.iter().filter(|rule| !has.contains(rule));
        let foreign = has.iter().filter(|rule| !wants.contains(rule));
        lines.extend(
            missing.map(|(comment, _)| format!("rule {comment:?} is missing from chain {chain} of table inet {table}")),
        );
        lines.extend(
            foreign.map(|(comment, _)| {
                format!("rule {comment:?} doesn't belong into chain {chain} of table inet {table}")
            }),
        );
        if lines.len() == before && has != wants {
            lines.push(format!("chain {chain} of table inet {table} has its rules in another order, or twice"));
        }
    }
}

/// Names of all maps and sets.
fn names() -> impl Iterator<Item = &'static str> {
    Map::all().map(Map::name).chain(LinkSet::ALL.map(LinkSet::name))
}

fn list(
    socket: &mut Socket,
    what: &str,
    kind: i32,
    table: &str,
    of_set: Option<&str>,
) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let mut batch = Batch::new();
    let what = format!("list {what} of firewall table {table}");
    batch.push(what, NFTABLES | kind as u16, libc::NLM_F_DUMP, &[FAMILY as u8, 0, 0, 0], |a| {
        // The table's attribute has the same number in all of them.
        a.text(c::rule::TABLE, table);
        if let Some(name) = of_set {
            a.text(set::LIST_SET, name);
        }
    });
    Ok(socket.dump(&mut batch)?.into_iter().map(|answer| answer.payload).collect())
}

/// An element in words.
fn describe(name: &str, (key, value): &Element) -> String {
    let Some(map) = Map::all().find(|map| map.name() == name) else {
        let links = key.chunks(libc::IFNAMSIZ).map(|name| text(name).trim_end_matches('\0').to_owned());
        return format!("link {}", links.collect::<Vec<_>>().join(" to "));
    };
    let protocol = match key.first() {
        Some(number) if *number == Protocol::Tcp.number() => "tcp",
        Some(number) if *number == Protocol::Udp.number() => "udp",
        _ => "sctp",
    };
    let length = if map.kind == Kind::OnAllAddresses { 0 } else { map.address_length() as usize };
    let from = address(key.get(4..4 + length)).map_or_else(String::new, |ip| format!("{ip} "));
    let port = |bytes: Option<&[u8]>| bytes.and_then(|two| Some(u16::from_be_bytes(two.try_into().ok()?)));
    let at = port(key.get(4 + length..6 + length)).unwrap_or_default();
    let length = map.address_length() as usize;
    match (address(value.get(..length)), port(value.get(length..length + 2))) {
        (Some(ip), Some(to)) => format!("port {from}{at}/{protocol} to {}", std::net::SocketAddr::new(ip, to)),
        _ => format!("port {from}{at}/{protocol}"),
    }
}

fn address(bytes: Option<&[u8]>) -> Option<IpAddr> {
    match bytes? {
        [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d])),
        sixteen => Some(Ipv6Addr::from(<[u8; 16]>::try_from(sixteen).ok()?).into()),
    }
}
