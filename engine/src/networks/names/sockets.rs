//! The sockets by which a container reaches the resolver: opened inside its namespace, used outside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};

use super::super::error::NetworkError;
use super::super::nft::inside::redirect_names;

/// The address of the resolver in every container that has one.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Bytes of questions that may wait: some thousand, where the usual room is for two hundred. A burst is answered, not dropped.
const ROOM: usize = 2 << 20;

/// The sockets of one container.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: OwnedFd,
    pub(super) tcp: OwnedFd,
}

/// Opens them and leads port 53 of the resolver's address to them.
pub(super) fn open(namespace: BorrowedFd<'_>) -> Result<Sockets, NetworkError> {
    sys::netns::within(namespace, || {
        let failed = |cause| NetworkError::Names { what: "open sockets in the container's namespace", cause };
        let any = (RESOLVER, 0);
        let udp = UdpSocket::bind(any).map_err(failed)?;
        // Without the privilege it stays as it is.
        let _ = setsockopt(&udp, sockopt::RcvBufForce, &ROOM);
        let tcp = TcpListener::bind(any).map_err(failed)?;
        let port = |address: io::Result<SocketAddr>| address.map(|address| address.port()).map_err(failed);
        redirect_names(RESOLVER, port(udp.local_addr())?, port(tcp.local_addr())?)?;
        udp.set_nonblocking(true).map_err(failed)?;
        tcp.set_nonblocking(true).map_err(failed)?;
        Ok(Sockets { udp: udp.into(), tcp: tcp.into() })
    })?
}
