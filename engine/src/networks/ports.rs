//! Host ports: who has which, and how they are kept from others.
//!
//! Packets for a published port never reach a socket of the host: nftables sends them to the container before the host
//! looks for a receiver. The socket held here only *occupies* the port, so that two programs can't both believe they
//! have it. The resolver, which outlives the engine, has a copy of each (`names::held`): ports stay taken while no engine is there, and the
//! next one gets the sockets back with [`Ports::adopt`] and [`Ports::restore`].
//!
//! ::1 is the exception, for the kernel can't lead packets from there: a socket that receives what is sent there is listened at by the
//! resolver, and knows where it leads. A TCP port that was published without an address, for a container without IPv6, has such a socket at
//! ::1 *beside*, if that port is free: clients that look up `localhost` get ::1 first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::endpoint::Targets;

/// Where host ports come from that nobody chose; docker's range when the kernel's own is not changed.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol's name as in `80/tcp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The protocol's number in an IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Which host port is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPort {
    /// Any free one.
    Ephemeral,
    /// This one.
    Exact(u16),
    /// The first free one of these.
    Range {
        /// The first to try.
        first: u16,
        /// The last to try.
        last: u16,
    },
}

/// A port to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// The protocol.
    pub protocol: Protocol,
    /// The port in the container.
    pub container_port: u16,
    /// The host's address to publish it on; `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// The port on the host.
    pub host_port: HostPort,
}

impl PortRequest {
    /// Whether a port that is published is what is asked for.
    pub(super) fn is_met_by(&self, port: &PublishedPort) -> bool {
        let host_port = match self.host_port {
            HostPort::Ephemeral | HostPort::Exact(0) => true,
            HostPort::Exact(wanted) => wanted == port.host_port,
            HostPort::Range { first, last } => (first..=last).contains(&port.host_port),
        };
        let same = self.protocol == port.protocol && self.container_port == port.container_port;
        same && host_port && self.host_ip.is_none_or(|ip| ip == port.host_ip)
    }
}

/// A request, and the addresses of the host on which it is to be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) request: PortRequest,
    pub(crate) ips: Vec<IpAddr>,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port in the container.
    pub container_port: u16,
    /// The host's address; 0.0.0.0 for all of IPv4, :: for all of IPv6.
    pub host_ip: IpAddr,
    /// The port on the host; 0 where the container's own address is known outside.
    pub host_port: u16,
}

/// Why a host port can't be had. The texts are docker's: clients look for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Another container of this engine has it.
    #[error("Bind for {} failed: port is already allocated", SocketAddr::new(*ip, *port))]
    Allocated {
        /// The address asked for.
        ip: IpAddr,
        /// The port asked for.
        port: u16,
    },
    /// Each one of a range is taken.
    #[error("Bind for {}-{last} failed: all ports are allocated", SocketAddr::new(*ip, *first))]
    RangeAllocated {
        /// The address asked for.
        ip: IpAddr,
        /// First of the range.
        first: u16,
        /// Last of the range.
        last: u16,
    },
    /// Nothing leads from there.
    #[error(
        "publish port {container_port}/{protocol} on ::1: the kernel leads no packets from ::1 to a container, and only TCP is carried on; publish it on 127.0.0.1"
    )]
    Loopback {
        /// The protocol's name.
        protocol: &'static str,
        /// The port in the container.
        container_port: u16,
    },
    /// The container has no address of that family.
    #[error("publish port {container_port} on {ip}: the container has no {} address", if ip.is_ipv4() { "IPv4" } else { "IPv6" })]
    Family {
        /// The address asked for.
        ip: IpAddr,
        /// The port in the container.
        container_port: u16,
    },
    /// The kernel refuses: a process has it, or the address isn't the host's.
    #[error(
        "listen {protocol}{} {}: bind: {}", if ip.is_ipv4() { 4 } else { 6 }, SocketAddr::new(*ip, *port), in_words(*cause)
    )]
    Bind {
        /// The protocol's name.
        protocol: &'static str,
        /// The address asked for.
        ip: IpAddr,
        /// The port asked for.
        port: u16,
        /// What the kernel said.
        cause: Errno,
    },
}

/// The words of strerror(3) for what bind(2) refuses with, as other programs print them.
fn in_words(errno: Errno) -> String {
    match errno {
        Errno::EADDRINUSE => "address already in use".to_owned(),
        Errno::EADDRNOTAVAIL => "cannot assign requested address".to_owned(),
        Errno::EACCES => "permission denied".to_owned(),
        other => other.desc().to_lowercase(),
    }
}

/// A port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PortKey {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) ip: IpAddr,
}

/// A port of the host that is held, and where connections to it at ::1 are carried on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldPort {
    pub(crate) key: PortKey,
    pub(crate) to: Option<SocketAddr>,
}

impl PublishedPort {
    fn key(&self) -> PortKey {
        PortKey { protocol: self.protocol, port: self.host_port, ip: self.host_ip }
    }
}

/// A host port in use.
#[derive(Debug)]
struct Hold {
    ip: IpAddr,
    owner: String,
    /// The socket that occupies the port. None when the kernel lacks the protocol, or when somebody took the port
    /// while the engine was away.
    socket: Option<OwnedFd>,
    /// At ::1, beside a port that is published on all addresses of IPv4.
    beside: bool,
    /// Where connections to it at ::1 are carried on to.
    to: Option<SocketAddr>,
}

impl Hold {
    /// Whether it is had for this port.
    fn is_for(&self, owner: &str, port: &PublishedPort) -> bool {
        let ip = if self.beside { UNSPECIFIED } else { self.ip };
        ip == port.host_ip && self.owner == owner
    }
}

/// All addresses of IPv4.
const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// What the kernel leads nowhere.
pub(super) const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The host ports of one engine.
#[derive(Debug)]
pub(crate) struct Ports {
    holds: BTreeMap<(Protocol, u16), Vec<Hold>>,
    /// Where the search for an ephemeral port begins.
    next: u16,
    /// What the resolver has held while no engine was there, and nobody has taken up yet.
    adopted: BTreeMap<PortKey, OwnedFd>,
}

impl Ports {
    /// None in use.
    pub(crate) fn new() -> Self {
        Self { holds: BTreeMap::new(), next: *EPHEMERAL.start(), adopted: BTreeMap::new() }
    }

    /// Takes a host port for each request on each of its addresses, the same on all of them: all of them or none.
    pub(crate) fn acquire(&mut self, owner: &str, wanted: &[Wanted]) -> Result<Vec<PublishedPort>, PortError> {
        let mut published = Vec::with_capacity(wanted.len());
        // Fixed ports first, so that an ephemeral one never takes what the same container asks for by number.
        let (fixed, free): (Vec<_>, Vec<_>) =
            wanted.iter().enumerate().partition(|(_, wanted)| matches!(wanted.request.host_port, HostPort::Exact(1..)));
        for (position, wanted) in fixed.into_iter().chain(free) {
            match self.acquire_one(owner, wanted) {
                Ok(ports) => published.extend(ports.into_iter().map(|port| (position, port))),
                Err(error) => {
                    published.iter().for_each(|(_, port)| self.release(owner, port));
                    return Err(error);
                }
            }
        }
        // Last, so that they are in nobody's way.
        for (position, port) in &published {
            if wanted[*position].request.host_ip.is_none() {
                self.take_beside(owner, port);
            }
        }
        published.sort_by_key(|(position, _)| *position);
        Ok(published.into_iter().map(|(_, port)| port).collect())
    }

    /// Takes up what was held while no engine was there, for ports that are restored now.
    pub(crate) fn adopt(&mut self, held: impl IntoIterator<Item = (HeldPort, OwnedFd)>) {
        self.adopted.extend(held.into_iter().map(|(port, socket)| (port.key, socket)));
    }

    /// After the last port is restored: what is beside them is taken up, too. Gives the ports that nobody has any more.
    pub(crate) fn adopted(&mut self) -> Vec<PortKey> {
        let mut left = Vec::new();
        for (key, socket) in std::mem::take(&mut self.adopted) {
            let all = self.holds.entry((key.protocol, key.port)).or_default();
            let owner = all.iter().find(|hold| hold.ip == UNSPECIFIED).map(|hold| hold.owner.clone());
            match owner.filter(|_| key.ip == LOOPBACK) {
                Some(owner) => all.push(Hold { ip: key.ip, owner, socket: Some(socket), beside: true, to: None }),
                None => left.push(key),
            }
        }
        self.holds.retain(|_, holds| !holds.is_empty());
        left
    }

    /// What the resolver has to hold for these ports of a container, which lead to these addresses.
    pub(crate) fn held(&mut self, owner: &str, ports: &[PublishedPort], targets: Targets) -> Vec<(HeldPort, OwnedFd)> {
        let mut held = Vec::new();
        for port in ports {
            let Some(all) = self.holds.get_mut(&(port.protocol, port.host_port)) else { continue };
            for hold in all.iter_mut().filter(|hold| hold.is_for(owner, port)) {
                let is_loopback = hold.beside || hold.ip == LOOPBACK || hold.ip == Ipv6Addr::UNSPECIFIED;
                let target =
                    targets.of(port.host_ip.is_ipv4()).filter(|_| is_loopback && port.protocol == Protocol::Tcp);
                hold.to = target.map(|ip| SocketAddr::new(ip, port.container_port));
                let Some(socket) = &hold.socket else { continue };
                let key = PortKey { ip: hold.ip, ..port.key() };
                match socket.try_clone() {
                    Ok(socket) => held.push((HeldPort { key, to: hold.to }, socket)),
                    Err(error) => warn!(%error, ?key, "host port is held by the engine alone"),
                }
            }
        }
        held
    }

    /// By which ports the resolver knows what a container has of these.
    pub(crate) fn keys(&self, owner: &str, ports: &[PublishedPort]) -> Vec<PortKey> {
        let mut keys = Vec::new();
        for port in ports {
            let all = self.holds.get(&(port.protocol, port.host_port)).into_iter().flatten();
            let own = all.filter(|hold| hold.is_for(owner, port) && hold.socket.is_some());
            keys.extend(own.map(|hold| PortKey { ip: hold.ip, ..port.key() }));
        }
        keys
    }

    /// Takes back a port that was published before the engine was restarted. An error says who has it meanwhile; the
    /// port counts as taken all the same, as traffic for it still goes to the container. May be tried again.
    pub(crate) fn restore(&mut self, owner: &str, port: &PublishedPort) -> Result<(), PortError> {
        // What an earlier attempt got, or didn't.
        self.release(owner, port);
        if self.conflicts(port.protocol, port.host_ip, port.host_port) {
            return Err(PortError::Allocated { ip: port.host_ip, port: port.host_port });
        }
        let held = self.adopted.remove(&port.key());
        let taken = held.map_or_else(|| occupy(port.protocol, port.host_ip, port.host_port), |held| Ok(Some(held)));
        let (socket, result) = match taken {
            Ok(socket) => (socket, Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.insert(owner, port, socket);
        result
    }

    /// Gives a port back, if it is `owner`'s.
    pub(crate) fn release(&mut self, owner: &str, port: &PublishedPort) {
        let key = (port.protocol, port.host_port);
        if let Some(holds) = self.holds.get_mut(&key) {
            holds.retain(|hold| !hold.is_for(owner, port));
            if holds.is_empty() {
                self.holds.remove(&key);
            }
        }
    }

    fn acquire_one(&mut self, owner: &str, wanted: &Wanted) -> Result<Vec<PublishedPort>, PortError> {
        let Some(ip) = wanted.ips.first().copied() else { return Ok(Vec::new()) };
        let (candidates, first, last): (Vec<u16>, _, _) = match wanted.request.host_port {
            HostPort::Exact(port @ 1..) => return self.take(owner, wanted, port),
            HostPort::Range { first, last } => ((first.max(1)..=last).collect(), first, last),
            HostPort::Ephemeral | HostPort::Exact(0) => {
                let (first, last) = EPHEMERAL.into_inner();
                ((self.next..=last).chain(first..self.next).collect(), first, last)
            }
        };
        for candidate in candidates {
            match self.take(owner, wanted, candidate) {
                Ok(ports) => {
                    if !matches!(wanted.request.host_port, HostPort::Range { .. }) {
                        self.next = if candidate >= last { first } else { candidate + 1 };
                    }
                    return Ok(ports);
                }
                Err(PortError::Allocated { .. } | PortError::Bind { cause: Errno::EADDRINUSE, .. }) => {}
                // An address that isn't the host's stays so for every port.
                Err(error) => return Err(error),
            }
        }
        Err(PortError::RangeAllocated { ip, first, last })
    }

    /// Takes one port on all addresses that are wanted, or on none.
    fn take(&mut self, owner: &str, wanted: &Wanted, host_port: u16) -> Result<Vec<PublishedPort>, PortError> {
        let mut taken = Vec::with_capacity(wanted.ips.len());
        for ip in &wanted.ips {
            let PortRequest { protocol, container_port, .. } = wanted.request;
            if self.conflicts(protocol, *ip, host_port) {
                taken.iter().for_each(|port| self.release(owner, port));
                return Err(PortError::Allocated { ip: *ip, port: host_port });
            }
            let port = PublishedPort { protocol, container_port, host_ip: *ip, host_port };
            match occupy(protocol, *ip, host_port) {
                Ok(socket) => self.insert(owner, &port, socket),
                Err(error) => {
                    taken.iter().for_each(|port| self.release(owner, port));
                    return Err(error);
                }
            }
            taken.push(port);
        }
        Ok(taken)
    }

    fn insert(&mut self, owner: &str, port: &PublishedPort, socket: Option<OwnedFd>) {
        let hold = Hold { ip: port.host_ip, owner: owner.to_owned(), socket, beside: false, to: None };
        self.holds.entry((port.protocol, port.host_port)).or_default().push(hold);
    }

    /// Takes the port at ::1, too, of what is published on all addresses of IPv4 alone; if it is free.
    pub(crate) fn take_beside(&mut self, owner: &str, port: &PublishedPort) {
        let PublishedPort { protocol, host_ip, host_port, .. } = *port;
        if protocol != Protocol::Tcp || host_ip != UNSPECIFIED || self.conflicts(protocol, LOOPBACK, host_port) {
            return;
        }
        if let Ok(socket @ Some(_)) = occupy(protocol, LOOPBACK, host_port) {
            let hold = Hold { ip: LOOPBACK, owner: owner.to_owned(), socket, beside: true, to: None };
            self.holds.entry((protocol, host_port)).or_default().push(hold);
        }
    }

    /// Whether a container has the port on the same address, or one of the two has it on all addresses.
    fn conflicts(&self, protocol: Protocol, ip: IpAddr, port: u16) -> bool {
        self.holds.get(&(protocol, port)).is_some_and(|holds| {
            let mut same_family = holds.iter().filter(|hold| hold.ip.is_ipv4() == ip.is_ipv4());
            same_family.any(|hold| hold.ip == ip || hold.ip.is_unspecified() || ip.is_unspecified())
        })
    }
}

/// Binds a socket to the port. None when the kernel doesn't know the protocol: then no process can have the port either.
fn occupy(protocol: Protocol, ip: IpAddr, port: u16) -> Result<Option<OwnedFd>, PortError> {
    let refused = |cause| PortError::Bind { protocol: protocol.name(), ip, port, cause };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        // Opening an SCTP socket loads a module that most hosts never use; our own table has to do.
        Protocol::Sctp => return Ok(None),
    };
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = match socket(family, kind, SockFlag::SOCK_CLOEXEC, number) {
        // A kernel without IPv6: no process can have the port either.
        Err(Errno::EAFNOSUPPORT) if !ip.is_ipv4() => return Ok(None),
        other => other.map_err(refused)?,
    };
    if !ip.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true).map_err(refused)?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(ip, port));
    match bind(socket.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) if protocol == Protocol::Tcp => {}
        other => return other.map(|()| Some(socket)).map_err(refused),
    }
    // TCP connections in TIME_WAIT of a server that is gone don't count (servers bind that way, too, and an active listener counts
    // nevertheless). Afterwards the option is off, so that nobody can share the port with us: whoever binds it with SO_REUSEADDR is then
    // refused at listen(2). Not at once, for kernels remember of a port that its first socket was bound so, and don't look again.
    setsockopt(&socket, sockopt::ReuseAddr, &true).map_err(refused)?;
    bind(socket.as_raw_fd(), &address).map_err(refused)?;
    setsockopt(&socket, sockopt::ReuseAddr, &false).map_err(refused)?;
    Ok(Some(socket))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

    fn request(protocol: Protocol, host_port: HostPort) -> Wanted {
        on(protocol, host_port, &[LOCAL.into()])
    }

    fn on(protocol: Protocol, host_port: HostPort, ips: &[IpAddr]) -> Wanted {
        Wanted { request: PortRequest { protocol, container_port: 80, host_ip: None, host_port }, ips: ips.to_vec() }
    }

    /// Waits for a port that was given back: a program that another test is just starting holds a copy of every
    /// descriptor until it is executed.
    fn eventually(mut done: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed().as_secs() < 10, "the port doesn't become free");
            std::thread::yield_now();
        }
    }

    /// A port that was free a moment ago, on an address of the host that nothing else uses.
    fn free_port() -> u16 {
        TcpListener::bind((LOCAL, 0)).and_then(|listener| listener.local_addr()).expect("free port").port()
    }

    #[test]
    fn a_port_is_had_once_and_given_back() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let mut ports = Ports::new();
            let port = free_port();
            let wanted = [request(protocol, HostPort::Exact(port))];
            let first = ports.acquire("a", &wanted).expect("free");
            let error = ports.acquire("b", &wanted).expect_err("taken");
            assert_eq!(error.to_string(), format!("Bind for 127.0.0.77:{port} failed: port is already allocated"));
            let on_all = on(protocol, HostPort::Exact(port), &[Ipv4Addr::UNSPECIFIED.into()]);
            assert!(matches!(ports.acquire("b", &[on_all]), Err(PortError::Allocated { .. })), "{protocol:?}");
            ports.release("b", &first[0]);
            assert!(ports.acquire("b", &wanted).is_err(), "only the owner gives back");
            ports.release("a", &first[0]);
            eventually(|| ports.acquire("b", &wanted).is_ok());
        }
    }

    #[test]
    fn processes_and_containers_keep_each_other_out() {
        let mut ports = Ports::new();
        let listener = TcpListener::bind((LOCAL, 0)).expect("listener");
        let port = listener.local_addr().expect("address").port();
        let wanted = [request(Protocol::Tcp, HostPort::Exact(port))];
        let error = ports.acquire("a", &wanted).expect_err("a process has it");
        assert_eq!(error.to_string(), format!("listen tcp4 127.0.0.77:{port}: bind: address already in use"));

        drop(listener);
        eventually(|| ports.acquire("a", &wanted).is_ok());
        // std binds with SO_REUSEADDR, like most servers.
        assert!(TcpListener::bind((LOCAL, port)).is_err(), "a process can't take it");
        assert!(TcpStream::connect((LOCAL, port)).is_err(), "nobody answers");

        let datagrams = UdpSocket::bind((LOCAL, 0)).expect("socket");
        let port = datagrams.local_addr().expect("address").port();
        let error = ports.acquire("a", &[request(Protocol::Udp, HostPort::Exact(port))]).expect_err("taken");
        assert!(error.to_string().ends_with("address already in use"), "{error}");
    }

    #[test]
    fn connections_of_a_server_that_is_gone_do_not_keep_a_port() {
        let listener = TcpListener::bind((LOCAL, 0)).expect("listener");
        let address = listener.local_addr().expect("address");
        let client = TcpStream::connect(address).expect("connect");
        let (served, _) = listener.accept().expect("accept");
        // The server closes first: its side goes to TIME_WAIT once the client has closed, too.
        drop(served);
        drop(client);
        drop(listener);
        // TIME_WAIT lasts for a minute.
        eventually(|| Ports::new().acquire("a", &[request(Protocol::Tcp, HostPort::Exact(address.port()))]).is_ok());
    }

    #[test]
    fn ephemeral_ports_and_ranges() {
        let mut ports = Ports::new();
        let any = request(Protocol::Tcp, HostPort::Ephemeral);
        let two = ports.acquire("a", &[any.clone(), any]).expect("two");
        assert_ne!(two[0].host_port, two[1].host_port);
        assert!(two.iter().all(|port| EPHEMERAL.contains(&port.host_port)));

        let first = two[1].host_port;
        let range = [request(Protocol::Tcp, HostPort::Range { first, last: first })];
        let error = ports.acquire("b", &range).expect_err("the only one is taken");
        assert_eq!(error, PortError::RangeAllocated { ip: LOCAL.into(), first, last: first });
        ports.release("a", &two[1]);
        eventually(|| ports.acquire("b", &range).is_ok_and(|got| got[0].host_port == first));
    }

    #[test]
    fn all_or_none_in_the_order_asked_for() {
        let mut ports = Ports::new();
        let port = free_port();
        let exact = request(Protocol::Tcp, HostPort::Exact(port));
        let taken = ports.acquire("a", std::slice::from_ref(&exact)).expect("free");
        let other = request(Protocol::Udp, HostPort::Exact(port));
        assert!(ports.acquire("b", &[other.clone(), exact]).is_err());
        let got =
            ports.acquire("b", &[request(Protocol::Tcp, HostPort::Ephemeral), other]).expect("udp was given back");
        assert_eq!(got.iter().map(|port| port.protocol).collect::<Vec<_>>(), [Protocol::Tcp, Protocol::Udp]);
        assert_eq!(got[1].host_port, taken[0].host_port);
    }

    #[test]
    fn restoring_can_be_tried_again() {
        let mut ports = Ports::new();
        let thief = TcpListener::bind((LOCAL, 0)).expect("listener");
        let host_port = thief.local_addr().expect("address").port();
        let port = PublishedPort { protocol: Protocol::Tcp, container_port: 80, host_ip: LOCAL.into(), host_port };
        assert!(matches!(ports.restore("a", &port), Err(PortError::Bind { .. })));
        let other = ports.acquire("b", &[request(Protocol::Tcp, HostPort::Exact(host_port))]);
        assert!(matches!(other, Err(PortError::Allocated { .. })), "it counts as taken");
        drop(thief);
        eventually(|| ports.restore("a", &port).is_ok());
        ports.restore("a", &port).expect("twice");
        assert!(matches!(ports.restore("b", &port), Err(PortError::Allocated { .. })), "it is the other's");
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        let elsewhere = on(Protocol::Tcp, HostPort::Ephemeral, &[[192, 0, 2, 1].into()]);
        let error = Ports::new().acquire("a", &[elsewhere]).expect_err("not ours");
        assert!(error.to_string().ends_with("bind: cannot assign requested address"), "{error}");
    }

    #[test]
    fn the_same_port_for_both_families() {
        let mut ports = Ports::new();
        let both = [IpAddr::from(LOCAL), Ipv6Addr::LOCALHOST.into()];
        let got = ports.acquire("a", &[on(Protocol::Tcp, HostPort::Ephemeral, &both)]).expect("both");
        assert_eq!(got.iter().map(|port| port.host_ip).collect::<Vec<_>>(), both);
        assert_eq!(got[0].host_port, got[1].host_port);
        // Taken in one family: neither is had.
        let port = got[0].host_port;
        ports.release("a", &got[0]);
        let error = ports.acquire("b", &[on(Protocol::Tcp, HostPort::Exact(port), &both)]).expect_err("taken");
        assert_eq!(error.to_string(), format!("Bind for [::1]:{port} failed: port is already allocated"));
        eventually(|| ports.acquire("b", &[on(Protocol::Tcp, HostPort::Exact(port), &both[..1])]).is_ok());
    }
}
