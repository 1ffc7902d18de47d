//! Looking names up elsewhere: a question is passed on as it came, and so is the answer.
//!
//! Name servers of the host are asked from the host's namespace, so that one on its loopback (systemd-resolved's 127.0.0.53)
//! can be reached; those that a container was given are asked from its own, where its routes lead.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::message::{self, Question};

/// How long one server has for an answer. Clients wait five seconds, as a rule.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers that are tried.
const ATTEMPTS: usize = 3;
/// Where the host names its servers.
const HOST: &str = "/etc/resolv.conf";
/// As glibc, where it names none.
const FALLBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The port of name servers.
const DOMAIN: u16 = 53;
/// Longest answer by UDP.
const LONGEST: usize = 4096;

/// The name servers of the host, read again when the file has changed.
#[derive(Debug, Default)]
pub(super) struct HostServers {
    read: RefCell<Option<(SystemTime, Vec<IpAddr>)>>,
}

impl HostServers {
    /// What the file says now.
    pub(super) fn get(&self) -> Vec<IpAddr> {
        let changed = fs::metadata(HOST).and_then(|meta| meta.modified()).ok();
        let mut read = self.read.borrow_mut();
        if let (Some(changed), Some((then, servers))) = (changed, read.as_ref())
            && changed == *then
        {
            return servers.clone();
        }
        let servers = parse(&fs::read_to_string(Path::new(HOST)).unwrap_or_default());
        *read = changed.map(|changed| (changed, servers.clone()));
        servers
    }
}

fn parse(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.split('%').next()?.parse().ok()).flatten()
    };
    let found: Vec<IpAddr> = text.lines().filter_map(server).collect();
    if found.is_empty() { vec![FALLBACK] } else { found }
}

/// Asks one server after the other until one has an answer. None when there is none.
pub(super) async fn ask(
    servers: &[IpAddr],
    namespace: Option<&OwnedFd>,
    message: &[u8],
    question: &Question,
    by_udp: bool,
) -> Option<Vec<u8>> {
    let mut last = None;
    for server in servers.iter().take(ATTEMPTS) {
        let to = SocketAddr::new(*server, DOMAIN);
        let attempt = async {
            if by_udp {
                by_datagram(to, namespace, message, question).await
            } else {
                by_stream(to, namespace, message).await
            }
        };
        match timeout(PATIENCE, attempt).await {
            Ok(Ok(reply)) if message::answers(&reply, message, question) => {
                if !message::is_failure(&reply) {
                    return Some(reply);
                }
                last = Some(reply);
            }
            // Not there, silent, or not talking sense: the next one may be better.
            Ok(Ok(_) | Err(_)) | Err(_) => {}
        }
    }
    last
}

/// A socket in the namespace of the container, or of the host.
fn open(to: SocketAddr, namespace: Option<&OwnedFd>, kind: SockType) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = || socket(family, kind, flags, None).map_err(io::Error::from);
    match namespace {
        None => open(),
        Some(namespace) => sys::netns::within(namespace.as_fd(), open).map_err(|error| error.cause)?,
    }
}

async fn by_datagram(
    to: SocketAddr,
    namespace: Option<&OwnedFd>,
    message: &[u8],
    question: &Question,
) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(open(to, namespace, SockType::Datagram)?.into())?;
    // Connected: what others send isn't heard. The kernel takes a port that can't be guessed.
    socket.connect(to).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if message::answers(&buffer[..length], message, question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_stream(to: SocketAddr, namespace: Option<&OwnedFd>, message: &[u8]) -> io::Result<Vec<u8>> {
    let socket = TcpSocket::from_std_stream(open(to, namespace, SockType::Stream)?.into());
    let mut stream = socket.connect(to).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_host() {
        let text = "# x\nnameserver 127.0.0.53\nsearch a\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n";
        let expected: Vec<IpAddr> = ["127.0.0.53", "fe80::1"].iter().map(|ip| ip.parse().expect("ip")).collect();
        assert_eq!(parse(text), expected);
        assert_eq!(parse("search a\n"), [FALLBACK]);
    }
}
