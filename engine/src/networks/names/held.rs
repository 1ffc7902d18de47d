//! Host ports that are held for engines, so that they stay taken while no engine is there; and the way from ::1 to containers.
//!
//! The kernel leads packets for published ports to containers, but none from ::1, for it has no `route_localnet` for IPv6. A port that is
//! told where it leads is therefore listened at, and connections from this host's ::1 are carried on; any other that comes to such a
//! socket was let through by changed rules, and is closed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::timeout;

use super::super::ports::{HeldPort, PortKey};

/// Connections of one port that are carried on at once.
const CLIENTS_OF_ONE: usize = 256;
/// Connections that wait to be accepted.
const WAITING: i32 = 128;
/// How long a container may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ports.
#[derive(Debug, Default)]
pub(super) struct Held(RefCell<BTreeMap<PortKey, Holding>>);

#[derive(Debug)]
struct Holding {
    socket: OwnedFd,
    to: Option<SocketAddr>,
    carrying: Option<JoinHandle<()>>,
}

impl Holding {
    /// Carries nothing on any more, and gives the socket, of which there is no other here when this returns.
    async fn end(self) -> OwnedFd {
        if let Some(carrying) = self.carrying {
            carrying.abort();
            let _ = carrying.await;
        }
        self.socket
    }
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Holds ports by the sockets that occupy them, in their order. One that is held already only leads where it leads now.
    pub(super) async fn hold(&self, ports: &[HeldPort], sockets: Vec<OwnedFd>) -> io::Result<()> {
        if ports.len() != sockets.len() {
            return Err(io::Error::other("a descriptor should come along for each port"));
        }
        for (port, mut socket) in ports.iter().zip(sockets) {
            let known = self.0.borrow().get(&port.key).map(|holding| holding.to);
            if known == Some(port.to) {
                continue;
            }
            let before = self.0.borrow_mut().remove(&port.key);
            if let Some(before) = before {
                socket = before.end().await;
            }
            let carrying = port.to.map(|to| carry_on(&socket, to)).transpose()?;
            self.0.borrow_mut().insert(port.key, Holding { socket, to: port.to, carrying });
        }
        Ok(())
    }

    /// Lets ports go; gone already is fine. They are free when this returns.
    pub(super) async fn let_go(&self, ports: &[PortKey]) {
        for key in ports {
            let gone = self.0.borrow_mut().remove(key);
            if let Some(gone) = gone {
                gone.end().await;
            }
        }
    }

    /// Lets all ports go.
    pub(super) async fn let_all_go(&self) {
        let all: Vec<PortKey> = self.0.borrow().keys().copied().collect();
        self.let_go(&all).await;
    }

    /// The ports that follow this one, this many at most, and their sockets.
    pub(super) fn list(&self, after: Option<PortKey>, most: usize) -> io::Result<(Vec<HeldPort>, Vec<OwnedFd>)> {
        let all = self.0.borrow();
        let behind = all.iter().filter(|(key, _)| after.is_none_or(|after| **key > after));
        let held = behind.take(most).map(|(key, holding)| {
            let port = HeldPort { key: *key, to: holding.to };
            Ok((port, holding.socket.try_clone()?))
        });
        held.collect()
    }
}

/// Listens at a port from now on.
fn carry_on(socket: &OwnedFd, to: SocketAddr) -> io::Result<JoinHandle<()>> {
    let listener = StdListener::from(socket.try_clone()?);
    listener.set_nonblocking(true)?;
    // What is left of connections that have ended keeps nobody from having the port again. Who listens shares nothing nevertheless.
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    listen(&listener, Backlog::new(WAITING)?)?;
    let listener = TcpListener::from_std(listener)?;
    Ok(spawn_local(accept(listener, to)))
}

async fn accept(listener: TcpListener, to: SocketAddr) {
    // Dropped with this task, and they with it.
    let mut clients = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while clients.try_join_next().is_some() {}
        let to_loopback = client.local_addr().is_ok_and(|address| address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST));
        if to_loopback && clients.len() < CLIENTS_OF_ONE {
            clients.spawn_local(async move { drop(carry(client, to).await) });
        }
    }
}

/// Carries bytes both ways until both sides have ended. A container that doesn't listen has its client reset.
async fn carry(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let connected = timeout(PATIENCE, TcpStream::connect(to)).await.map_err(io::Error::from).flatten();
    let mut container = match connected {
        Ok(container) => container,
        Err(error) => {
            #[allow(deprecated, reason = "no time at all blocks nobody")]
            client.set_linger(Some(Duration::ZERO))?;
            return Err(error);
        }
    };
    let _ = (client.set_nodelay(true), container.set_nodelay(true));
    tokio::io::copy_bidirectional(&mut client, &mut container).await.map(drop)
}
