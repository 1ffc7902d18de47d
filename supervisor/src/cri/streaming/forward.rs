//! Port-forwarding: connections into a pod's network, each with a pair of streams.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use proto::kind::chain;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    StreamingError, Times,
    mux::{Inbox, Outlet, PIECE},
    server::Socket,
    spdy::{self, Headers, Incoming},
    websocket::{self, Direction},
};

/// What it is called over SPDY.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";
/// Ports that can be forwarded over one WebSocket: their channels are digits of one byte.
pub(super) const WEBSOCKET_PORTS: usize = 32;
/// Connections of one client at a time, those included whose streams it has given up already.
const CONNECTIONS: usize = 200;
/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a side that ends last may take to say more.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the pod may be silent whose client has nothing more to say.
const SILENCE: Duration = Duration::from_secs(30);

/// Connects to a port on a pod's loopback; with no network namespace, on the node's.
pub(super) async fn connect(netns: Option<PathBuf>, port: u16) -> Result<TcpStream, StreamingError> {
    let failed = |cause| StreamingError::Connect { port, cause };
    let sockets = || Ok([TcpSocket::new_v4(), TcpSocket::new_v6()]);
    // A socket stays in the network in which it was made, whoever uses it.
    let made = match netns {
        None => sockets(),
        Some(at) => {
            let within = move || within(&at, sockets);
            tokio::task::spawn_blocking(within).await.map_err(|_| StreamingError::Abandoned)?
        }
    };
    let [four, six] = made?;
    let mut result = Err(io::Error::from(io::ErrorKind::ConnectionRefused));
    for (socket, address) in
        [(four, SocketAddr::from((Ipv4Addr::LOCALHOST, port))), (six, SocketAddr::from((Ipv6Addr::LOCALHOST, port)))]
    {
        let connecting = async { socket?.connect(address).await };
        let connected = timeout(CONNECT_LIMIT, connecting).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            // A network without IPv6 says so, and nobody wants to know.
            Err(error) if address.is_ipv4() => result = Err(error),
            Err(_) => {}
        }
    }
    result.map_err(failed)
}

fn within<T: Send>(at: &Path, make: impl FnOnce() -> Result<T, StreamingError> + Send) -> Result<T, StreamingError> {
    let namespace = sys::netns::open(at).map_err(StreamingError::Netns)?;
    let namespace = namespace.ok_or_else(|| StreamingError::NoNetns(at.to_owned()))?;
    sys::netns::within(namespace.as_fd(), make).map_err(StreamingError::Netns)?
}

fn is_known(headers: &Headers) -> Result<(), &'static str> {
    if port(headers).is_none() {
        return Err("stream without a port");
    }
    match headers.get("streamtype") {
        Some("error" | "data") => Ok(()),
        _ => Err("stream that is neither for data nor for errors"),
    }
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

/// One connection: where to, and the client's two streams. Over a WebSocket streams can't be reset.
struct Pair {
    port: u16,
    data: (Inbox, Outlet),
    error: Outlet,
}

#[derive(Default)]
struct Half {
    since: Option<Instant>,
    data: Option<Incoming>,
    error: Option<Incoming>,
}

/// Serves a client until it has gone: as many connections as it opens pairs of streams.
pub(super) async fn over_spdy(socket: Socket, netns: Option<PathBuf>, times: Times) {
    let (connection, mut incoming) = spdy::open(socket, is_known);
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let oldest = halves.values().filter_map(|half| half.since).min();
        let late = oldest.map_or_else(|| Instant::now() + times.idle, |since| since + times.creation);
        tokio::select! {
            () = connection.over(times.idle) => break,
            found = incoming.recv() => match found {
                Some(stream) if forwards.len() >= CONNECTIONS => stream.outlet.reset(spdy::CANCEL).await,
                Some(stream) => {
                    if let Some(pair) = pair(&mut halves, stream).await {
                        forwards.spawn(forward(pair, netns.clone()));
                    }
                }
                None => break,
            },
            () = tokio::time::sleep_until(late) => {
                let is_late = |half: &Half| half.since.is_some_and(|since| since.elapsed() >= times.creation);
                let gone: Vec<_> = halves.extract_if(|_, half| is_late(half)).collect();
                for (request, half) in gone {
                    debug!(request, "request with one stream only");
                    give_up(half).await;
                }
            }
            Some(_) = forwards.join_next() => {}
        }
    }
    drop(forwards);
    connection.farewell(times.farewell).await;
}

async fn give_up(half: Half) {
    if let Some(error) = &half.error {
        let _ = error.outlet.write(Bytes::from_static(b"timed out waiting for streams")).await;
        error.outlet.end().await;
    }
    if let Some(data) = &half.data {
        data.outlet.reset(spdy::CANCEL).await;
    }
}

/// Adds a stream; with the second one of a request, the pair is complete.
async fn pair(halves: &mut HashMap<String, Half>, stream: Incoming) -> Option<Pair> {
    let is_error = stream.headers.get("streamtype") == Some("error");
    // Clients of old give no request ids, but open both streams one behind the other, the one for errors first.
    let id = stream.headers.get("requestid").map(str::to_owned);
    let id = id.unwrap_or_else(|| (stream.id - if is_error { 0 } else { 2.min(stream.id) }).to_string());
    let half = halves.entry(id.clone()).or_default();
    half.since.get_or_insert_with(Instant::now);
    let place = if is_error { &mut half.error } else { &mut half.data };
    if place.is_some() {
        debug!(request = id, "request with a third stream");
        stream.outlet.reset(spdy::CANCEL).await;
        return None;
    }
    *place = Some(stream);
    if half.data.is_none() || half.error.is_none() {
        return None;
    }
    let Half { data: Some(data), error: Some(error), .. } = halves.remove(&id)? else { return None };
    Some(Pair { port: port(&data.headers)?, data: (data.inbox, data.outlet), error: error.outlet })
}

/// Serves a client that named its ports beforehand, each a pair of channels.
pub(super) async fn over_websocket(
    socket: Socket,
    protocol: websocket::Protocol,
    (netns, ports): (Option<PathBuf>, Vec<u16>),
    times: Times,
) {
    let directions: Vec<_> = ports.iter().flat_map(|_| [Direction::Both, Direction::Out]).collect();
    let (connection, channels) = websocket::open(socket, protocol, &directions);
    let mut forwards = JoinSet::new();
    let mut channels = channels.into_iter();
    for port in ports {
        let (Some(data), Some((_, error))) = (channels.next(), channels.next()) else { break };
        for outlet in [&data.1, &error] {
            // Which of the ports it is.
            let _ = outlet.write(Bytes::copy_from_slice(&port.to_le_bytes())).await;
        }
        forwards.spawn(forward(Pair { port, data, error }, netns.clone()));
    }
    tokio::select! {
        () = connection.over(times.idle) => {}
        () = async { while forwards.join_next().await.is_some() {} } => {}
    }
    drop(forwards);
    connection.farewell(times.farewell).await;
}

async fn forward(pair: Pair, netns: Option<PathBuf>) {
    let Pair { port, data: (inbox, outlet), error } = pair;
    let forwarded = match connect(netns, port).await {
        Ok(stream) => copy(stream, inbox, &outlet).await.map_err(|cause| StreamingError::Connection { port, cause }),
        Err(error) => Err(error),
    };
    match forwarded {
        Ok(()) => outlet.end().await,
        Err(failed) => {
            let failed = chain(&failed);
            debug!(port, error = failed, "port not forwarded");
            let _ = error.write(format!("error forwarding port {port}: {failed}").into()).await;
            outlet.reset(spdy::CANCEL).await;
        }
    }
    error.end().await;
}

/// Copies until both sides have ended, or one has and the other has nothing more to say.
async fn copy(mut stream: TcpStream, mut inbox: Inbox, outlet: &Outlet) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    // When the pod last said something, or the client last had something to say.
    let heard = Mutex::new(Instant::now());
    let hear = || *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    let silence = || heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
    let up = async {
        while let Some(piece) = inbox.next().await {
            writer.write_all(&piece).await?;
        }
        if inbox.was_reset() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        writer.shutdown().await?;
        hear();
        Ok::<_, io::Error>(())
    };
    let down = async {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = reader.read(&mut buffer).await?;
            hear();
            if count == 0 {
                return Ok::<_, io::Error>(());
            }
            if outlet.write(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    };
    tokio::pin!(up, down);
    tokio::select! {
        sent = &mut up => {
            sent?;
            // What it asked for is still to come.
            loop {
                tokio::select! {
                    received = &mut down => return received,
                    () = tokio::time::sleep(SILENCE.saturating_sub(silence())) => {
                        if silence() >= SILENCE {
                            return Ok(());
                        }
                    }
                }
            }
        }
        received = &mut down => {
            received?;
            // It has answered, and may still take the rest; the client is to hear of the end now.
            outlet.end().await;
            timeout(LAST_WORDS, &mut up).await.unwrap_or(Ok(()))
        }
    }
}
