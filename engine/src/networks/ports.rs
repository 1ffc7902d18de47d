//! Host ports: who has which, and how they are kept from others.
//!
//! Packets for a published port never reach a socket of the host: nftables sends them to the container before the host
//! looks for a receiver. The socket held here only *occupies* the port, so that two programs can't both believe they
//! have it: it is bound and never listens. It is all that is lost when the engine dies; it comes back with `restore`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

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
    /// The host's address to publish it on; `None` for all IPv4 addresses.
    pub host_ip: Option<Ipv4Addr>,
    /// The port on the host.
    pub host_port: HostPort,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port in the container.
    pub container_port: u16,
    /// The host's address; 0.0.0.0 for all.
    pub host_ip: Ipv4Addr,
    /// The port on the host.
    pub host_port: u16,
}

/// Why a host port can't be had. The texts are docker's: clients look for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Another container of this engine has it.
    #[error("Bind for {ip}:{port} failed: port is already allocated")]
    Allocated {
        /// The address asked for.
        ip: Ipv4Addr,
        /// The port asked for.
        port: u16,
    },
    /// Each one of a range is taken.
    #[error("Bind for {ip}:{first}-{last} failed: all ports are allocated")]
    RangeAllocated {
        /// The address asked for.
        ip: Ipv4Addr,
        /// First of the range.
        first: u16,
        /// Last of the range.
        last: u16,
    },
    /// The kernel refuses: a process has it, or the address isn't the host's.
    #[error("listen {protocol}4 {ip}:{port}: bind: {}", in_words(*cause))]
    Bind {
        /// The protocol's name.
        protocol: &'static str,
        /// The address asked for.
        ip: Ipv4Addr,
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

/// A host port in use.
#[derive(Debug)]
struct Hold {
    ip: Ipv4Addr,
    owner: String,
    /// The socket that occupies the port. None when the kernel lacks the protocol, or when somebody took the port
    /// while the engine was away.
    _socket: Option<OwnedFd>,
}

/// The host ports of one engine.
#[derive(Debug)]
pub(crate) struct Ports {
    holds: BTreeMap<(Protocol, u16), Vec<Hold>>,
    /// Where the search for an ephemeral port begins.
    next: u16,
}

impl Ports {
    /// None in use.
    pub(crate) fn new() -> Self {
        Self { holds: BTreeMap::new(), next: *EPHEMERAL.start() }
    }

    /// Takes a host port for each request: all of them or none.
    pub(crate) fn acquire(&mut self, owner: &str, requests: &[PortRequest]) -> Result<Vec<PublishedPort>, PortError> {
        let mut published = Vec::with_capacity(requests.len());
        // Fixed ports first, so that an ephemeral one never takes what the same container asks for by number.
        let (fixed, free): (Vec<_>, Vec<_>) =
            requests.iter().enumerate().partition(|(_, request)| matches!(request.host_port, HostPort::Exact(1..)));
        for (position, request) in fixed.into_iter().chain(free) {
            match self.acquire_one(owner, request) {
                Ok(port) => published.push((position, port)),
                Err(error) => {
                    published.iter().for_each(|(_, port)| self.release(owner, port));
                    return Err(error);
                }
            }
        }
        published.sort_by_key(|(position, _)| *position);
        Ok(published.into_iter().map(|(_, port)| port).collect())
    }

    /// Takes back a port that was published before the engine was restarted. An error says who has it meanwhile; the
    /// port counts as taken all the same, as traffic for it still goes to the container. May be tried again.
    pub(crate) fn restore(&mut self, owner: &str, port: &PublishedPort) -> Result<(), PortError> {
        // What an earlier attempt got, or didn't.
        self.release(owner, port);
        if self.conflicts(port.protocol, port.host_ip, port.host_port) {
            return Err(PortError::Allocated { ip: port.host_ip, port: port.host_port });
        }
        let (socket, result) = match occupy(port.protocol, port.host_ip, port.host_port) {
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
            holds.retain(|hold| !(hold.ip == port.host_ip && hold.owner == owner));
            if holds.is_empty() {
                self.holds.remove(&key);
            }
        }
    }

    fn acquire_one(&mut self, owner: &str, request: &PortRequest) -> Result<PublishedPort, PortError> {
        let ip = request.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let with = |host_port| PublishedPort {
            protocol: request.protocol,
            container_port: request.container_port,
            host_ip: ip,
            host_port,
        };
        let (candidates, first, last): (Vec<u16>, _, _) = match request.host_port {
            HostPort::Exact(port @ 1..) => {
                if self.conflicts(request.protocol, ip, port) {
                    return Err(PortError::Allocated { ip, port });
                }
                let port = with(port);
                let socket = occupy(port.protocol, ip, port.host_port)?;
                self.insert(owner, &port, socket);
                return Ok(port);
            }
            HostPort::Range { first, last } => ((first.max(1)..=last).collect(), first, last),
            HostPort::Ephemeral | HostPort::Exact(0) => {
                let (first, last) = EPHEMERAL.into_inner();
                ((self.next..=last).chain(first..self.next).collect(), first, last)
            }
        };
        for candidate in candidates {
            if self.conflicts(request.protocol, ip, candidate) {
                continue;
            }
            let port = with(candidate);
            match occupy(request.protocol, ip, candidate) {
                Ok(socket) => {
                    self.insert(owner, &port, socket);
                    if !matches!(request.host_port, HostPort::Range { .. }) {
                        self.next = if candidate >= last { first } else { candidate + 1 };
                    }
                    return Ok(port);
                }
                Err(PortError::Bind { cause: Errno::EADDRINUSE, .. }) => {}
                // An address that isn't the host's stays so for every port.
                Err(error) => return Err(error),
            }
        }
        Err(PortError::RangeAllocated { ip, first, last })
    }

    fn insert(&mut self, owner: &str, port: &PublishedPort, socket: Option<OwnedFd>) {
        let hold = Hold { ip: port.host_ip, owner: owner.to_owned(), _socket: socket };
        self.holds.entry((port.protocol, port.host_port)).or_default().push(hold);
    }

    /// Whether a container has the port on the same address, or one of the two has it on all addresses.
    fn conflicts(&self, protocol: Protocol, ip: Ipv4Addr, port: u16) -> bool {
        self.holds.get(&(protocol, port)).is_some_and(|holds| {
            holds.iter().any(|hold| hold.ip == ip || hold.ip.is_unspecified() || ip.is_unspecified())
        })
    }
}

/// Binds a socket to the port. None when the kernel doesn't know the protocol: then no process can have the port either.
fn occupy(protocol: Protocol, ip: Ipv4Addr, port: u16) -> Result<Option<OwnedFd>, PortError> {
    let refused = |cause| PortError::Bind { protocol: protocol.name(), ip, port, cause };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        // Opening an SCTP socket loads a module that most hosts never use; our own table has to do.
        Protocol::Sctp => return Ok(None),
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, number).map_err(refused)?;
    // While binding, TCP connections in TIME_WAIT of a server that is gone don't count (servers bind that way, too, and
    // an active listener counts nevertheless). Afterwards the option is off, so that nobody can share the port with us:
    // whoever binds it with SO_REUSEADDR is then refused at listen(2).
    let reuse = |on: bool| match protocol {
        Protocol::Tcp => setsockopt(&socket, sockopt::ReuseAddr, &on),
        Protocol::Udp | Protocol::Sctp => Ok(()),
    };
    reuse(true).map_err(refused)?;
    let address = SockaddrIn::from(SocketAddrV4::new(ip, port));
    bind(socket.as_raw_fd(), &address).map_err(refused)?;
    reuse(false).map_err(refused)?;
    Ok(Some(socket))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

    fn request(protocol: Protocol, host_port: HostPort) -> PortRequest {
        PortRequest { protocol, container_port: 80, host_ip: Some(LOCAL), host_port }
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
            let wanted = request(protocol, HostPort::Exact(free_port()));
            let HostPort::Exact(port) = wanted.host_port else { unreachable!() };
            let first = ports.acquire("a", &[wanted]).expect("free");
            let error = ports.acquire("b", &[wanted]).expect_err("taken");
            assert_eq!(error.to_string(), format!("Bind for 127.0.0.77:{port} failed: port is already allocated"));
            let on_all = PortRequest { host_ip: None, ..wanted };
            assert!(matches!(ports.acquire("b", &[on_all]), Err(PortError::Allocated { .. })), "{protocol:?}");
            ports.release("b", &first[0]);
            assert!(ports.acquire("b", &[wanted]).is_err(), "only the owner gives back");
            ports.release("a", &first[0]);
            eventually(|| ports.acquire("b", &[wanted]).is_ok());
        }
    }

    #[test]
    fn processes_and_containers_keep_each_other_out() {
        let mut ports = Ports::new();
        let listener = TcpListener::bind((LOCAL, 0)).expect("listener");
        let port = listener.local_addr().expect("address").port();
        let wanted = request(Protocol::Tcp, HostPort::Exact(port));
        let error = ports.acquire("a", &[wanted]).expect_err("a process has it");
        assert_eq!(error.to_string(), format!("listen tcp4 127.0.0.77:{port}: bind: address already in use"));

        drop(listener);
        eventually(|| ports.acquire("a", &[wanted]).is_ok());
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
        let two = ports.acquire("a", &[any, any]).expect("two");
        assert_ne!(two[0].host_port, two[1].host_port);
        assert!(two.iter().all(|port| EPHEMERAL.contains(&port.host_port)));

        let first = two[1].host_port;
        let range = request(Protocol::Tcp, HostPort::Range { first, last: first });
        let error = ports.acquire("b", &[range]).expect_err("the only one is taken");
        assert_eq!(error, PortError::RangeAllocated { ip: LOCAL, first, last: first });
        ports.release("a", &two[1]);
        eventually(|| ports.acquire("b", &[range]).is_ok_and(|got| got[0].host_port == first));
    }

    #[test]
    fn all_or_none_in_the_order_asked_for() {
        let mut ports = Ports::new();
        let port = free_port();
        let exact = request(Protocol::Tcp, HostPort::Exact(port));
        let taken = ports.acquire("a", &[exact]).expect("free");
        let other = request(Protocol::Udp, HostPort::Exact(port));
        assert!(ports.acquire("b", &[other, exact]).is_err());
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
        let port = PublishedPort { protocol: Protocol::Tcp, container_port: 80, host_ip: LOCAL, host_port };
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
        let elsewhere =
            PortRequest { host_ip: Some(Ipv4Addr::new(192, 0, 2, 1)), ..request(Protocol::Tcp, HostPort::Ephemeral) };
        let error = Ports::new().acquire("a", &[elsewhere]).expect_err("not ours");
        assert!(error.to_string().ends_with("bind: cannot assign requested address"), "{error}");
    }
}
