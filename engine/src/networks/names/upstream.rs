//! Looking names up elsewhere: a question is passed on as it came, but for its id, and so is the answer.
//!
//! Name servers of the host are asked from the host's namespace, so that one on its loopback (systemd-resolved's 127.0.0.53)
//! can be reached; those that a container was given are asked from its own, where its routes lead.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, timeout};

use super::doors::{Doors, open_here};
use super::message::{self, Question};

/// The port of name servers.
pub(super) const DOMAIN: u16 = 53;
/// How long one server has for an answer, where nothing else is said. Clients wait five seconds, as a rule.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long all of them have.
const PATIENCE_WITH_ALL: Duration = Duration::from_secs(10);
/// How often each is asked, where nothing else is said.
const ATTEMPTS: u8 = 2;
/// Servers that are asked, as by glibc.
const MOST: usize = 3;
/// How long a server that was silent is asked after all others.
const DISTRUST: Duration = Duration::from_secs(10);

/// Name servers, and how they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Servers {
    pub(super) addresses: Vec<SocketAddr>,
    /// How long one of them has for an answer.
    pub(super) patience: Duration,
    /// How often each is asked.
    pub(super) attempts: u8,
    /// Whether each question begins with another one.
    pub(super) rotate: bool,
}

impl Servers {
    pub(super) fn of(addresses: &[IpAddr]) -> Self {
        let addresses = addresses.iter().map(|ip| SocketAddr::new(*ip, DOMAIN)).collect();
        Self { addresses, patience: PATIENCE, attempts: ATTEMPTS, rotate: false }
    }
}

/// A question on its way to a name server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) message: &'a [u8],
    pub(super) question: &'a Question,
    /// By UDP, or by TCP.
    pub(super) by_udp: bool,
    /// From there; none for the host's.
    pub(super) namespace: Option<&'a Doors>,
}

/// What all questions of a resolver share.
#[derive(Debug)]
pub(super) struct Means {
    /// Ids have to be hard to guess: answers are kept for others, and a container that could choose the id of its question could
    /// help to forge one.
    random: File,
    /// Where datagrams are received. Nobody holds it while waiting.
    buffer: RefCell<Vec<u8>>,
}

impl Means {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { random: File::open("/dev/urandom")?, buffer: RefCell::new(vec![0; usize::from(u16::MAX)]) })
    }
}

/// Which servers were silent lately, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Experience {
    silent: RefCell<HashMap<SocketAddr, Instant>>,
    turn: Cell<usize>,
}

impl Experience {
    /// The servers in the order in which they are to be asked.
    fn order(&self, servers: &Servers, now: Instant) -> Vec<SocketAddr> {
        let mut order: Vec<SocketAddr> = servers.addresses.iter().take(MOST).copied().collect();
        if servers.rotate && !order.is_empty() {
            self.turn.set(self.turn.get().wrapping_add(1));
            let by = self.turn.get() % order.len();
            order.rotate_left(by);
        }
        let silent = self.silent.borrow();
        order.sort_by_key(|server| silent.get(server).is_some_and(|until| now < *until));
        order
    }

    fn note(&self, server: SocketAddr, silent: bool, now: Instant) {
        let mut all = self.silent.borrow_mut();
        if silent {
            all.insert(server, now + DISTRUST);
        } else {
            all.remove(&server);
        }
    }

    pub(super) fn forget(&self) {
        self.silent.borrow_mut().clear();
    }
}

/// Asks one server after the other until one has an answer, which has the id of the question. None when there is none.
pub(super) async fn ask(
    servers: &Servers,
    experience: &Experience,
    means: &Means,
    asked: Asked<'_>,
) -> Option<Vec<u8>> {
    let mut id = [0; 2];
    (&means.random).read_exact(&mut id).ok()?;
    let mut message = asked.message.to_vec();
    message[..2].copy_from_slice(&id);
    let own = Asked { message: &message, ..asked };
    let deadline = Instant::now() + PATIENCE_WITH_ALL;
    let mut last = None;
    for _ in 0..servers.attempts {
        let mut was_silent = false;
        for server in experience.order(servers, Instant::now()) {
            let patience = servers.patience.min(deadline.saturating_duration_since(Instant::now()));
            if patience.is_zero() {
                return last;
            }
            let answered = timeout(patience, ask_one(server, means, own)).await;
            was_silent |= answered.is_err();
            experience.note(server, answered.is_err(), Instant::now());
            // Not there, silent, or not talking sense: the next one may be better.
            let Ok(Ok(mut reply)) = answered else { continue };
            let failed = message::is_failure(&reply);
            message::readdress(&mut reply, asked.message, asked.question);
            if !failed {
                return Some(reply);
            }
            last = Some(reply);
        }
        // Who has answered would answer the same again.
        if !was_silent {
            break;
        }
    }
    last
}

async fn ask_one(to: SocketAddr, means: &Means, asked: Asked<'_>) -> io::Result<Vec<u8>> {
    if asked.by_udp {
        return by_datagram(to, means, asked).await;
    }
    let reply = by_stream(to, asked).await?;
    let fits = message::answers(&reply, asked.message, asked.question);
    if fits { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A socket in the namespace of the container, or of the host.
async fn open(to: SocketAddr, namespace: Option<&Doors>, kind: SockType) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    match namespace {
        None => open_here(family, kind),
        Some(doors) => doors.open(family, kind).await,
    }
}

async fn by_datagram(to: SocketAddr, means: &Means, asked: Asked<'_>) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(open(to, asked.namespace, SockType::Datagram).await?.into())?;
    // Connected: what others send isn't heard. The kernel takes a port that can't be guessed.
    socket.connect(to).await?;
    socket.send(asked.message).await?;
    loop {
        socket.readable().await?;
        let mut buffer = means.buffer.borrow_mut();
        match socket.try_recv(&mut buffer) {
            Ok(length) if message::answers(&buffer[..length], asked.message, asked.question) => {
                return Ok(buffer[..length].to_vec());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn by_stream(to: SocketAddr, asked: Asked<'_>) -> io::Result<Vec<u8>> {
    let socket = TcpSocket::from_std_stream(open(to, asked.namespace, SockType::Stream).await?.into());
    let mut stream = socket.connect(to).await?;
    let length = u16::try_from(asked.message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), asked.message].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_servers_come_last_for_a_while() {
        let all: Vec<IpAddr> = (1..=4u8).map(|n| [10, 0, 0, n].into()).collect();
        let mut servers = Servers::of(&all);
        let experience = Experience::default();
        let now = Instant::now();
        let last_bytes = |servers: &Servers, at: Instant| -> Vec<String> {
            let order = experience.order(servers, at);
            order.iter().map(|server| server.to_string().replace("10.0.0.", "").replace(":53", "")).collect()
        };
        assert_eq!(last_bytes(&servers, now), ["1", "2", "3"]);
        experience.note(servers.addresses[0], true, now);
        assert_eq!(last_bytes(&servers, now), ["2", "3", "1"]);
        assert_eq!(last_bytes(&servers, now + DISTRUST), ["1", "2", "3"]);
        experience.note(servers.addresses[1], true, now);
        experience.note(servers.addresses[0], false, now);
        assert_eq!(last_bytes(&servers, now), ["1", "3", "2"]);
        experience.forget();
        servers.rotate = true;
        let firsts: Vec<String> = (0..3).map(|_| last_bytes(&servers, now)[0].clone()).collect();
        assert_eq!(firsts, ["2", "3", "1"]);
    }
}
