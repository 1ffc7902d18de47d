//! Links: bridges, the veth pairs on them, links on other links, and lo.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::super::mac::Mac;
use super::super::options::LinkMode;
use super::message::{self, Attributes, Batch};
use super::socket::{NetlinkError, Socket};

/// Settings of links on other links, within `IFLA_INFO_DATA`.
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// `VETH_INFO_PEER`: the other end of a veth pair, within `IFLA_INFO_DATA`.
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE`, within `IFLA_AF_SPEC`/`AF_INET6`.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`: no link-local address.
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// Settings of a bridge's port, within `IFLA_PROTINFO` or `IFLA_INFO_SLAVE_DATA`: its state, and whether it is in hairpin
/// mode.
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
/// Forget which neighbours are behind a bridge's port.
const IFLA_BRPORT_FLUSH: u16 = 24;
/// Whether a bridge's port talks to the bridge itself only, and to ports that aren't isolated.
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// `BR_STATE_DISABLED`.
const BR_STATE_DISABLED: u8 = 0;
/// `RTEXT_FILTER_SKIP_STATS`: leave the counters out of the answer.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `IF_OPER_UP` (RFC 2863).
const IF_OPER_UP: u8 = 6;
/// lo is the first link of every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Half a second altogether, after which the link is as good as it gets.
const OPERATIONAL_ATTEMPTS: u32 = 500;
const OPERATIONAL_PAUSE: Duration = Duration::from_millis(1);

/// A link as far as networks need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<String>,
    pub(crate) master: Option<u32>,
    pub(crate) alias: Option<String>,
    /// Whether packets go through (operational state up).
    pub(crate) operational: bool,
}

/// The fixed part of a link message.
fn ifinfomsg(index: u32, flags: i32, change: i32) -> [u8; IFINFOMSG] {
    let mut fixed = [0; IFINFOMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// The link with this name, if there is one.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut batch = Batch::new();
    let what = format!("look up link {name}");
    batch
        .push(what, libc::RTM_GETLINK, 0, &ifinfomsg(0, 0, 0), |a| {
            a.text(libc::IFLA_IFNAME, name).u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        })
        .tolerating(&[Errno::ENODEV]);
    Ok(socket.run(&mut batch)?.first().and_then(|answer| parse(&answer.payload)))
}

/// Waits until packets go through a link whose other end has just come up. The kernel notices that in the background, and
/// what is sent before is lost and only repeated after a second. Asking makes it notice at once (since Linux 5.16;
/// before, this waits for it).
pub(crate) fn wait_until_operational(socket: &mut Socket, name: &str) -> Result<(), NetlinkError> {
    for _ in 0..OPERATIONAL_ATTEMPTS {
        match find(socket, name)? {
            Some(link) if !link.operational => std::thread::sleep(OPERATIONAL_PAUSE),
            _ => break,
        }
    }
    Ok(())
}

/// All links.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let mut batch = Batch::new();
    batch.push("list links", libc::RTM_GETLINK, libc::NLM_F_DUMP, &ifinfomsg(0, 0, 0), |a| {
        a.u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    Ok(socket.dump(&mut batch)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

fn parse(payload: &[u8]) -> Option<Link> {
    let index = message::u32_at(payload, 4)?;
    let mut link = Link { index, name: String::new(), kind: None, master: None, alias: None, operational: false };
    for (kind, value) in message::attributes(payload, IFINFOMSG) {
        match kind {
            libc::IFLA_IFNAME => link.name = message::text(value),
            libc::IFLA_MASTER => link.master = message::u32_at(value, 0),
            libc::IFLA_IFALIAS => link.alias = Some(message::text(value)),
            libc::IFLA_OPERSTATE => link.operational = value == [IF_OPER_UP],
            libc::IFLA_LINKINFO => {
                link.kind = message::attribute(value, 0, libc::IFLA_INFO_KIND).map(message::text);
            }
            _ => {}
        }
    }
    Some(link)
}

/// Creates a bridge, down. Its MAC is set, for otherwise it would change with the ports that come and go.
pub(crate) fn create_bridge(batch: &mut Batch, name: &str, mac: Mac, mtu: u32) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    batch.push(format!("create bridge {name}"), libc::RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0), |a| {
        a.text(libc::IFLA_IFNAME, name).u32(libc::IFLA_MTU, mtu).bytes(libc::IFLA_ADDRESS, &mac.octets());
        a.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge");
        });
    });
}

/// A veth pair to create: one end on the bridge, the other in a container.
pub(crate) struct VethPair<'a> {
    /// Name of the end on the host.
    pub(crate) host_name: &'a str,
    /// A note on the host end that says whose it is.
    pub(crate) alias: &'a str,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    /// The container's namespace.
    pub(crate) namespace: BorrowedFd<'a>,
    /// Name of the end in the container.
    pub(crate) peer_name: &'a str,
    /// MAC of the end in the container.
    pub(crate) mac: Mac,
    /// MTU of both.
    pub(crate) mtu: u32,
    /// Whether the container may meet itself by a port that it publishes. Where bridged packets go through the firewall
    /// (br_netfilter), their destination is rewritten inside the bridge, which by itself sends nothing back to where it
    /// came from.
    pub(crate) hairpin: bool,
    /// Whether it reaches the bridge alone, and no other container on it.
    pub(crate) isolated: bool,
}

/// Creates a veth pair with the peer already in its namespace and under its final name; then brings the host end up.
/// Several messages: `IFLA_IFALIAS` and `IFLA_AF_SPEC` aren't looked at while a link is created, and IPv6 has to be
/// told to stay quiet before the link is up.
pub(crate) fn create_veth(batch: &mut Batch, pair: &VethPair<'_>) {
    let name = pair.host_name;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    batch.push(format!("create veth {name}"), libc::RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0), |a| {
        a.text(libc::IFLA_IFNAME, name).u32(libc::IFLA_MTU, pair.mtu).u32(libc::IFLA_MASTER, pair.bridge);
        a.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest_after(VETH_INFO_PEER, &ifinfomsg(0, 0, 0), |peer| {
                    peer.text(libc::IFLA_IFNAME, pair.peer_name)
                        .bytes(libc::IFLA_ADDRESS, &pair.mac.octets())
                        .u32(libc::IFLA_MTU, pair.mtu)
                        .bytes(libc::IFLA_NET_NS_FD, &pair.namespace.as_raw_fd().to_ne_bytes());
                });
            });
        });
    });
    let change = |batch: &mut Batch, what: &str, flags: i32, attributes: &dyn Fn(&mut Attributes<'_>)| {
        let fixed = ifinfomsg(0, flags, flags);
        batch.push(format!("{what} {name}"), libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed, |a| {
            a.text(libc::IFLA_IFNAME, name);
            attributes(a);
        });
    };
    change(batch, "label", 0, &|a| {
        a.text(libc::IFLA_IFALIAS, pair.alias);
    });
    change(batch, "keep IPv6 off", 0, &|a| {
        a.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET6 as u16, |inet6| {
                inet6.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
            });
        });
    });
    // A host without IPv6 has nothing to keep off.
    batch.tolerating(&[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]);
    if pair.hairpin {
        change_port(batch, &format!("allow hairpin on {name}"), name, IFLA_BRPORT_MODE, 1);
    }
    if pair.isolated {
        change_port(batch, &format!("isolate {name}"), name, IFLA_BRPORT_ISOLATED, 1);
    }
    change(batch, "bring up", libc::IFF_UP, &|_| {});
}

/// A link on a link of the host's to create in a container.
pub(crate) struct Parented<'a> {
    /// Index of the host's link.
    pub(crate) parent: u32,
    /// How they share it.
    pub(crate) mode: LinkMode,
    /// The container's namespace.
    pub(crate) namespace: BorrowedFd<'a>,
    /// Its name in the container.
    pub(crate) name: &'a str,
    /// Its MAC, where it has one of its own.
    pub(crate) mac: Mac,
    /// Its MTU; none for that of the host's link.
    pub(crate) mtu: Option<u32>,
}

/// Creates a link on a link of the host's, in the container's namespace and under its final name.
pub(crate) fn create_parented(batch: &mut Batch, wanted: &Parented<'_>) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    let (kind, what) = match wanted.mode {
        LinkMode::Macvlan(_) => ("macvlan", "create macvlan link"),
        LinkMode::Ipvlan(..) => ("ipvlan", "create ipvlan link"),
    };
    batch.push(format!("{what} {}", wanted.name), libc::RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0), |a| {
        a.text(libc::IFLA_IFNAME, wanted.name)
            .u32(libc::IFLA_LINK, wanted.parent)
            .bytes(libc::IFLA_NET_NS_FD, &wanted.namespace.as_raw_fd().to_ne_bytes());
        if let Some(mtu) = wanted.mtu {
            a.u32(libc::IFLA_MTU, mtu);
        }
        if let LinkMode::Macvlan(_) = wanted.mode {
            a.bytes(libc::IFLA_ADDRESS, &wanted.mac.octets());
        }
        a.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, kind);
            info.nest(libc::IFLA_INFO_DATA, |data| match wanted.mode {
                LinkMode::Macvlan(mode) => drop(data.u32(IFLA_MACVLAN_MODE, mode)),
                LinkMode::Ipvlan(mode, flags) => {
                    data.bytes(IFLA_IPVLAN_MODE, &mode.to_ne_bytes()).bytes(IFLA_IPVLAN_FLAGS, &flags.to_ne_bytes());
                }
            });
        });
    });
}

/// Creates a link to nowhere, or one that tags packets with a VLAN's number on another link of the host's; down.
pub(crate) fn create_parent(batch: &mut Batch, name: &str, vlan: Option<(u32, u16)>) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    batch.push(format!("create link {name}"), libc::RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0), |a| {
        a.text(libc::IFLA_IFNAME, name);
        if let Some((on, _)) = vlan {
            a.u32(libc::IFLA_LINK, on);
        }
        a.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, if vlan.is_some() { "vlan" } else { "dummy" });
            if let Some((_, number)) = vlan {
                info.nest(libc::IFLA_INFO_DATA, |data| {
                    data.bytes(IFLA_VLAN_ID, &number.to_ne_bytes());
                });
            }
        });
    });
}

/// Notes on a link whose it is.
pub(crate) fn label(batch: &mut Batch, name: &str, alias: &str) {
    batch.push(format!("label {name}"), libc::RTM_SETLINK, libc::NLM_F_ACK, &ifinfomsg(0, 0, 0), |a| {
        a.text(libc::IFLA_IFNAME, name).text(libc::IFLA_IFALIAS, alias);
    });
}

/// Lets a port of a bridge send back to where a packet came from, or not: see [`VethPair::hairpin`].
pub(crate) fn set_hairpin(batch: &mut Batch, name: &str, on: bool) {
    change_port(batch, &format!("set hairpin of {name}"), name, IFLA_BRPORT_MODE, u8::from(on));
    batch.tolerating(&[Errno::ENODEV, Errno::EINVAL, Errno::EOPNOTSUPP]);
}

/// Cuts a link off its bridge at once: nothing goes in or out any more. Gone already, or off the bridge, is fine.
///
/// Deleting a link makes the caller wait some 20 ms for the rest of the kernel to let go of it; this takes 20 us.
pub(crate) fn cut_off(socket: &mut Socket, name: &str) -> Result<(), NetlinkError> {
    let Some(link) = find(socket, name)?.filter(|link| link.master.is_some()) else { return Ok(()) };
    let mut fixed = ifinfomsg(link.index, 0, 0);
    // The state can be set by the bridge's own form of the message only, which knows links by index.
    fixed[0] = libc::AF_BRIDGE as u8;
    let mut batch = Batch::new();
    batch
        .push(format!("cut off {name}"), libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed, |a| {
            a.nest(libc::IFLA_PROTINFO, |port| {
                // Else the bridge would go on sending here what is for the next one with this address.
                port.u8(IFLA_BRPORT_STATE, BR_STATE_DISABLED).bytes(IFLA_BRPORT_FLUSH, &[]);
            });
        })
        .tolerating(&[Errno::ENODEV, Errno::ENETDOWN, Errno::EINVAL]);
    socket.run(&mut batch).map(drop)
}

/// Changes a setting of a link as a port of its bridge.
fn change_port(batch: &mut Batch, what: &str, name: &str, setting: u16, value: u8) {
    batch.push(what.to_owned(), libc::RTM_NEWLINK, libc::NLM_F_ACK, &ifinfomsg(0, 0, 0), |a| {
        a.text(libc::IFLA_IFNAME, name).nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_SLAVE_KIND, "bridge").nest(libc::IFLA_INFO_SLAVE_DATA, |port| {
                port.u8(setting, value);
            });
        });
    });
}

/// Brings a link up and, where given, puts it on a bridge.
pub(crate) fn bring_up(batch: &mut Batch, name: &str, bridge: Option<u32>) {
    let fixed = ifinfomsg(0, libc::IFF_UP, libc::IFF_UP);
    batch.push(format!("bring up {name}"), libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed, |a| {
        a.text(libc::IFLA_IFNAME, name);
        if let Some(bridge) = bridge {
            a.u32(libc::IFLA_MASTER, bridge);
        }
    });
}

/// Brings lo up.
pub(crate) fn bring_up_loopback(batch: &mut Batch) {
    let fixed = ifinfomsg(LOOPBACK, libc::IFF_UP, libc::IFF_UP);
    batch.push("bring up lo", libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed, |_| {});
}

/// Deletes a link; gone already is fine. A veth takes its peer along.
pub(crate) fn delete(batch: &mut Batch, name: &str) {
    batch
        .push(format!("delete link {name}"), libc::RTM_DELLINK, libc::NLM_F_ACK, &ifinfomsg(0, 0, 0), |a| {
            a.text(libc::IFLA_IFNAME, name);
        })
        .tolerating(&[Errno::ENODEV]);
}
