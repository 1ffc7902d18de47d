//! The rules in a container's own namespace: what a program in it sends to the name server goes to the port that the
//! resolver has, and answers seem to come from port 53.
//!
//! Port 53 itself is left free: a container may be a name server, and would find 0.0.0.0:53 taken otherwise. The ports are written into
//! the packets, without connection tracking and its cost.

use std::net::Ipv4Addr;

use nix::libc;

use super::super::netlink::{Family, NetlinkError, Socket};
use super::super::ports::Protocol;
use super::rule::Rule;
use super::transaction::{self, Hook, Transaction};

/// The table's name.
const TABLE: &str = "berth_names";
const CHAIN: &str = "output";
/// After programs' own rules have had their say.
const PRIORITY: i32 = 150;
/// The port of name servers.
const DOMAIN: u16 = 53;

/// Leads port 53 of an address to these ports, in the namespace of the calling thread.
pub(in super::super) fn redirect_names(address: Ipv4Addr, udp: u16, tcp: u16) -> Result<(), NetlinkError> {
    let mut socket = Socket::open(Family::Netfilter)?;
    // There is one where a container has been on such a network before.
    let there = transaction::has_table(&mut socket, libc::NFPROTO_IPV4, TABLE)?;
    table(address, udp, tcp, there).commit(&mut socket)?;
    if there {
        // Closing waits for the kernel to clean up what was deleted, some ten milliseconds, and nobody needs to wait with it. Where no
        // thread can be had, it is closed here.
        let _ = std::thread::Builder::new().name("netns".to_owned()).spawn(move || drop(socket));
    }
    Ok(())
}

fn table(address: Ipv4Addr, udp: u16, tcp: u16, replace: bool) -> Transaction<'static> {
    let mut transaction = Transaction::new(libc::NFPROTO_IPV4, TABLE);
    if replace {
        transaction.delete_table();
    }
    transaction.add_new_table();
    let hook = Hook { kind: "filter", number: libc::NF_INET_LOCAL_OUT, priority: PRIORITY };
    transaction.add_chain(CHAIN, Some(hook));
    // Whatever the container sends passes here, so that what isn't meant has to be done with at once.
    transaction.add_rule(CHAIN, &Rule::new("to elsewhere").leaves_by_another_link_than_lo().accept());
    for (protocol, port) in [(Protocol::Udp, udp), (Protocol::Tcp, tcp)] {
        let question =
            Rule::new("questions").for_socket(protocol, address, DOMAIN).set_destination_port(protocol, port);
        let answer = Rule::new("answers").of_socket(protocol, address, port).set_source_port(protocol, DOMAIN);
        transaction.add_rule(CHAIN, &question);
        transaction.add_rule(CHAIN, &answer);
    }
    transaction
}
