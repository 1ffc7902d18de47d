//! The forward chains of iptables, as far as they would keep our packets from passing.
//!
//! A packet has to be accepted by all tables. On hosts where the chain `FORWARD` of iptables (`table ip filter`, `table ip6 filter`) has
//! the policy drop, as ufw and dockerd set it, nothing would pass to or from a container. There, and only there, a rule for each
//! of our bridges is added at the *end* of the chain: only what the chain's own rules don't decide is let through, and `forward` of our
//! own table decides on it. So what the host's owner denies stays denied.
//!
//! `DOCKER-USER` is where people put rules that are to be asked before docker's. Where that chain is there and nobody jumps to it, `FORWARD`
//! is made to, first of all.
//!
//! All rules are of the forms that iptables writes itself, so that it still understands its tables. Tables of the old kernel interface
//! (iptables-legacy) can't be seen from here.

use std::collections::BTreeSet;

use nix::libc;

use super::super::netlink::{Batch, NetlinkError, Socket, attribute, attributes, text};
use super::constants::{self as c, data, expression as x};
use super::rule::{Is, Rule};
use super::transaction::{Transaction, has_table};

/// The table of both families.
pub(in super::super) const TABLE: &str = "filter";
const FORWARD: &str = "FORWARD";
/// firewalld's table, or a chain of it in the table of iptables.
pub(in super::super) const FIREWALLD: &str = "firewalld";
const FIREWALLD_CHAIN: &str = "FORWARD_ZONES";
/// A chain that ufw has when it is enabled.
const UFW_CHAIN: &str = "ufw-before-input";
/// Packets for this host itself.
const INPUT: u32 = libc::NF_INET_LOCAL_IN as u32;
const USER: &str = "DOCKER-USER";
/// Length of `struct nfgenmsg`, and what nftables' messages are numbered from.
const NFGENMSG: usize = 4;
const NFTABLES: u16 = 10 << 8;

/// A rule of the chain.
#[derive(Debug)]
struct Found {
    handle: u64,
    /// The bridge that one of ours is about, with its direction; or the jump.
    ours: Option<String>,
    /// The chain that it jumps to.
    jumps_to: Option<String>,
}

/// Makes the chains let these bridges through, where they wouldn't. Changes nothing where that is so already.
pub(super) fn follow(socket: &mut Socket, owner: &str, bridges: &[&str]) -> Result<(), NetlinkError> {
    for family in [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6] {
        follow_family(socket, family, owner, bridges)?;
    }
    Ok(())
}

/// What of that isn't so, a line each.
pub(super) fn differences(socket: &mut Socket, owner: &str, bridges: &[&str]) -> Result<Vec<String>, NetlinkError> {
    let mut lines = Vec::new();
    for (family, name) in [(libc::NFPROTO_IPV4, "ip"), (libc::NFPROTO_IPV6, "ip6")] {
        let Some(Chained { there, wanted, .. }) = chained(socket, family, owner, bridges)? else { continue };
        let chain = format!("chain {FORWARD} of table {name} {TABLE}");
        lines.extend(wanted.difference(&there).map(|ours| format!("rule \"{owner} {ours}\" is missing from {chain}")));
        lines.extend(there.difference(&wanted).map(|ours| format!("rule \"{owner} {ours}\" isn't needed in {chain}")));
    }
    Ok(lines)
}

/// The rules of the chain, and those of ours that are in it and that have to be.
struct Chained {
    rules: Vec<Found>,
    there: BTreeSet<String>,
    wanted: BTreeSet<String>,
}

fn chained(socket: &mut Socket, family: i32, owner: &str, bridges: &[&str]) -> Result<Option<Chained>, NetlinkError> {
    let chains = chains(socket, family)?;
    let Some((_, policy)) = chains.iter().find(|(name, policy)| name == FORWARD && policy.is_some()) else {
        return Ok(None);
    };
    let rules = rules(socket, family, owner)?;
    let drops = *policy == Some(c::DROP);
    let mut wanted = BTreeSet::new();
    if drops {
        wanted.extend(bridges.iter().flat_map(|bridge| [format!("from {bridge}"), format!("to {bridge}")]));
    }
    let has_user = chains.iter().any(|(name, _)| name == USER);
    let others_jump = rules.iter().any(|rule| rule.ours.is_none() && rule.jumps_to.as_deref() == Some(USER));
    if has_user && !others_jump && !bridges.is_empty() {
        wanted.insert(USER.to_owned());
    }
    let there = rules.iter().filter_map(|rule| rule.ours.clone()).collect();
    Ok(Some(Chained { rules, there, wanted }))
}

fn follow_family(socket: &mut Socket, family: i32, owner: &str, bridges: &[&str]) -> Result<(), NetlinkError> {
    let Some(Chained { rules, there, wanted }) = chained(socket, family, owner, bridges)? else { return Ok(()) };
    if there == wanted {
        return Ok(());
    }
    let mut transaction = Transaction::new(family, TABLE);
    for rule in rules.iter().filter(|rule| rule.ours.as_ref().is_some_and(|ours| !wanted.contains(ours))) {
        transaction.delete_rule(FORWARD, rule.handle);
    }
    for ours in wanted.difference(&there) {
        let comment = format!("{owner} {ours}");
        match ours.split_once(' ') {
            Some((direction, bridge)) => {
                let rule = Rule::commented(comment);
                let rule = if direction == "from" {
                    rule.came_by(Is::Exactly, bridge)
                } else {
                    rule.leaves_by(Is::Exactly, bridge)
                };
                transaction.add_rule(FORWARD, &rule.counted().accept());
            }
            None => transaction.insert_rule(FORWARD, &Rule::commented(comment).counted().jump(USER)),
        }
    }
    transaction.commit(socket)
}

/// Whether firewalld has rules here: a table, or with its other backend chains of iptables.
pub(super) fn has_firewalld(socket: &mut Socket) -> Result<bool, NetlinkError> {
    Ok(has_table(socket, libc::NFPROTO_INET, FIREWALLD)?
        || chains(socket, libc::NFPROTO_IPV4)?.iter().any(|(name, _)| name == FIREWALLD_CHAIN))
}

/// The firewall that keeps this host's own ports closed unless it is told otherwise: somebody wants that. Only `input` tells, for dockerd
/// makes the policy of `FORWARD` drop by itself.
pub(super) fn closed_by(socket: &mut Socket) -> Result<Option<String>, NetlinkError> {
    if has_firewalld(socket)? {
        return Ok(Some("firewalld".to_owned()));
    }
    let chains = all_chains(socket, libc::NFPROTO_UNSPEC)?;
    let closed = chains.iter().find(|chain| chain.policy == Some(c::DROP) && chain.hook == Some(INPUT));
    let of_ufw = |chain: &Chain| {
        chain.table == TABLE && chains.iter().any(|other| other.table == TABLE && other.name == UFW_CHAIN)
    };
    Ok(closed.map(|chain| match of_ufw(chain) {
        true => "ufw".to_owned(),
        false => format!("chain {} of table {}", chain.name, chain.table),
    }))
}

/// The chains of the table, and the policy of those that packets come to by themselves.
fn chains(socket: &mut Socket, family: i32) -> Result<Vec<(String, Option<u32>)>, NetlinkError> {
    let all = all_chains(socket, family)?.into_iter();
    Ok(all.filter(|chain| chain.table == TABLE).map(|chain| (chain.name, chain.policy)).collect())
}

/// A chain of anybody's.
#[derive(Debug)]
struct Chain {
    table: String,
    name: String,
    /// Where packets come to it by themselves, if they do.
    hook: Option<u32>,
    policy: Option<u32>,
}

/// All chains of a family, or of all of them.
fn all_chains(socket: &mut Socket, family: i32) -> Result<Vec<Chain>, NetlinkError> {
    let mut batch = Batch::new();
    let kind = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
    batch.push("list chains", kind, libc::NLM_F_DUMP, &[family as u8, 0, 0, 0], |_| {});
    let answers = socket.dump(&mut batch)?;
    let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    let parse = |payload: &[u8]| {
        let of = |kind| attribute(payload, NFGENMSG, kind);
        let of_family = *payload.first()?;
        // Answers come for all families of nftables when the kernel is old. netdev and bridge number their hooks otherwise.
        let inet = [libc::NFPROTO_INET, libc::NFPROTO_IPV4, libc::NFPROTO_IPV6].contains(&i32::from(of_family));
        let wanted = if family == libc::NFPROTO_UNSPEC { inet } else { of_family == family as u8 };
        wanted.then_some(Chain {
            table: of(c::chain::TABLE).map(text)?,
            name: of(c::chain::NAME).map(text)?,
            hook: of(c::chain::HOOK).and_then(|hook| attribute(hook, 0, c::chain::HOOK_NUMBER)).and_then(number),
            policy: of(c::chain::POLICY).and_then(number),
        })
    };
    Ok(answers.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// The rules of the chain.
fn rules(socket: &mut Socket, family: i32, owner: &str) -> Result<Vec<Found>, NetlinkError> {
    let mut batch = Batch::new();
    let kind = NFTABLES | libc::NFT_MSG_GETRULE as u16;
    batch.push("list rules", kind, libc::NLM_F_DUMP, &[family as u8, 0, 0, 0], |a| {
        a.text(c::rule::TABLE, TABLE).text(c::rule::CHAIN, FORWARD);
    });
    let answers = socket.dump(&mut batch)?;
    Ok(answers.iter().filter_map(|answer| parse_rule(&answer.payload, owner)).collect())
}

fn parse_rule(payload: &[u8], owner: &str) -> Option<Found> {
    let of = |kind| attribute(payload, NFGENMSG, kind);
    if of(c::rule::TABLE).map(text)? != TABLE || of(c::rule::CHAIN).map(text)? != FORWARD {
        return None;
    }
    let handle = u64::from_be_bytes(of(c::rule::HANDLE)?.try_into().ok()?);
    // type, length, text
    let comment = of(c::rule::USERDATA).filter(|user| user.first() == Some(&c::rule::COMMENT));
    let comment = comment.and_then(|user| user.get(2..)).map(text);
    let ours = comment.and_then(|comment| Some(comment.strip_prefix(owner)?.strip_prefix(' ')?.to_owned()));
    let jumps_to = of(c::rule::EXPRESSIONS).and_then(|list| {
        attributes(list, 0).find_map(|(_, element)| {
            let immediate = attribute(element, 0, x::DATA)?;
            let verdict = attribute(attribute(immediate, 0, x::IMMEDIATE_DATA)?, 0, data::VERDICT)?;
            attribute(verdict, 0, data::VERDICT_CHAIN).map(text)
        })
    });
    Some(Found { handle, ours, jumps_to })
}
