//! The HTTP server: a request with a token becomes a connection of streams, by `Upgrade` to SPDY or WebSocket.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::{debug, warn};

use super::{
    Target, Times, forward,
    process::{Backend, Wants},
    remote, spdy,
    tokens::Tokens,
    websocket,
};

/// A connection that was taken over, with what was read ahead.
pub(super) type Socket = (TcpStream, Bytes);

/// What a token stands for.
pub(super) enum Order {
    /// A command in a container.
    Exec { target: Target, command: Vec<String>, wants: Wants },
    /// A container's own process.
    Attach { target: Target, wants: Wants },
    /// Ports of a pod.
    PortForward { netns: Option<PathBuf>, ports: Vec<u16> },
}

impl Order {
    /// The path of its address.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// What requests are served with.
pub(super) struct Desk {
    /// What is waited for.
    pub(super) tokens: Tokens<Order>,
    /// Who makes processes.
    pub(super) backend: Arc<dyn Backend>,
    /// How long things may take.
    pub(super) times: Times,
}

/// Connections that have yet to show their token; more wait.
const UNKNOWN: usize = 64;
/// How long a request may take to arrive.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// After how many seconds without traffic a client is asked for a sign of life, how often, and how many may be missed. By TCP:
/// not every client answers pings.
const KEEPALIVE: [u32; 3] = [30, 15, 4];
/// Header for the protocol, in requests and answers.
const PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// Serves until the process ends.
pub(super) async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(UNKNOWN));
    loop {
        // Nobody closes it.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move {
                    // An upgraded connection lives on by itself, and gives the place back.
                    answer(stream, desk).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "connection for a stream not accepted");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, desk: Arc<Desk>) {
    if let Err(error) = prepare(&stream) {
        debug!(%error, "connection for a stream as it came");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(respond(request, &desk)) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST_LIMIT).max_buf_size(32 << 10);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        debug!(%error, "client of a stream left");
    }
}

/// Small pieces go at once, and a client that is gone without a word is found out.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    let [idle, interval, count] = KEEPALIVE;
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

type Answer = Response<Full<Bytes>>;

fn refuse(status: StatusCode, why: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(why.into() + "\n")));
    *response.status_mut() = status;
    // Said here, and not for all answers: that of an upgrade would have it as well.
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// Whether a header's lists, of which there may be several, hold a word.
fn lists(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(','));
    words.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

fn has(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    lists(headers, name.as_str()).iter().any(|known| known.eq_ignore_ascii_case(word))
}

fn respond(mut request: Request<Incoming>, desk: &Arc<Desk>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
    }
    let place = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
    let order = place.and_then(|(kind, token)| desk.tokens.take(token).filter(|order| order.path() == kind));
    let Some(order) = order else {
        return refuse(
            StatusCode::NOT_FOUND,
            "there is nothing here: an address is good for one request, for a minute",
        );
    };
    let headers = request.headers();
    if !has(headers, header::CONNECTION, "upgrade") {
        return refuse(StatusCode::BAD_REQUEST, "unable to upgrade: the request has no Connection: Upgrade");
    }
    let agreed = if has(headers, header::UPGRADE, websocket::UPGRADE) {
        agree_on_websocket(request.method(), headers, &order)
    } else if has(headers, header::UPGRADE, spdy::UPGRADE) {
        agree_on_spdy(headers, &order)
    } else {
        let why = "unable to upgrade: neither to SPDY/3.1 nor to websocket";
        Err(Box::new(refuse(StatusCode::BAD_REQUEST, why)))
    };
    match agreed {
        Ok((response, agreed)) => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(begin(upgrade, agreed, order, desk.clone()));
            response
        }
        Err(refusal) => *refusal,
    }
}

/// What was agreed on.
enum Agreed {
    Spdy(u8),
    WebSocket(websocket::Protocol),
}

/// What is answered, and what comes behind it; or a refusal.
type Agreement = Result<(Answer, Agreed), Box<Answer>>;

fn switch(headers: [(&'static str, &str); 3]) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    for (name, value) in headers {
        if !value.is_empty()
            && let Ok(value) = value.parse()
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn agree_on_spdy(headers: &HeaderMap, order: &Order) -> Agreement {
    let ours = match order {
        Order::PortForward { .. } => &[forward::PROTOCOL][..],
        _ => &remote::PROTOCOLS,
    };
    let theirs = lists(headers, PROTOCOL);
    if theirs.is_empty() {
        return Err(Box::new(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: X-Stream-Protocol-Version is required",
        )));
    }
    let Some(protocol) = theirs.iter().find(|wanted| ours.contains(&wanted.as_str())) else {
        let why = format!("unable to upgrade: client speaks {}, server {}", theirs.join(", "), ours.join(", "));
        let mut refusal = refuse(StatusCode::FORBIDDEN, why);
        for known in ours {
            refusal.headers_mut().append(ACCEPTED, header::HeaderValue::from_static(known));
        }
        return Err(Box::new(refusal));
    };
    let response = switch([("upgrade", spdy::UPGRADE), (PROTOCOL, protocol), ("", "")]);
    Ok((response, Agreed::Spdy(remote::version(protocol))))
}

fn agree_on_websocket(method: &Method, headers: &HeaderMap, order: &Order) -> Agreement {
    if method != Method::GET {
        return Err(Box::new(refuse(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET")));
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::SEC_WEBSOCKET_VERSION) != Some("13") {
        let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, "the version of WebSocket is 13");
        refusal.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
        return Err(Box::new(refusal));
    }
    let Some(key) = text(header::SEC_WEBSOCKET_KEY) else {
        return Err(Box::new(refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is required")));
    };
    let theirs = lists(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
    let protocol = websocket::protocol(theirs.iter().map(String::as_str));
    let protocol = match order {
        // What came before the fourth never had ports, and what came behind it is for API servers.
        Order::PortForward { .. } => protocol.filter(|protocol| protocol.name.is_empty() || protocol.version == 4),
        _ => protocol,
    };
    let Some(protocol) = protocol else {
        let why = format!("unable to upgrade: no sub-protocol in {} is known", theirs.join(", "));
        return Err(Box::new(refuse(StatusCode::FORBIDDEN, why)));
    };
    if let Order::PortForward { ports, .. } = order
        && (ports.is_empty() || ports.len() > forward::WEBSOCKET_PORTS)
    {
        let why = format!("a WebSocket takes 1 to {} ports, and needs to know them", forward::WEBSOCKET_PORTS);
        return Err(Box::new(refuse(StatusCode::BAD_REQUEST, why)));
    }
    let headers = [
        ("upgrade", websocket::UPGRADE),
        ("sec-websocket-accept", &*websocket::accept(key)),
        ("sec-websocket-protocol", protocol.name),
    ];
    Ok((switch(headers), Agreed::WebSocket(protocol)))
}

async fn begin(upgrade: OnUpgrade, agreed: Agreed, order: Order, desk: Arc<Desk>) {
    let taken = upgrade.await.map(|upgraded| upgraded.downcast::<TokioIo<TcpStream>>());
    let socket = match taken {
        Ok(Ok(parts)) => (parts.io.into_inner(), parts.read_buf),
        Ok(Err(_)) => return warn!("a connection is no TCP"),
        Err(error) => return debug!(%error, "client left before its streams began"),
    };
    let times = desk.times;
    let (target, command, wants) = match order {
        Order::PortForward { netns, ports } => {
            return match agreed {
                Agreed::Spdy(_) => forward::over_spdy(socket, netns, times).await,
                Agreed::WebSocket(protocol) => {
                    forward::over_websocket(socket, protocol, (netns, ports), times).await;
                }
            };
        }
        Order::Exec { target, command, wants } => (target, Some(command), wants),
        Order::Attach { target, wants } => (target, None, wants),
    };
    let opened = match agreed {
        Agreed::Spdy(version) => remote::over_spdy(socket, version, wants, times).await,
        Agreed::WebSocket(protocol) => {
            let (connection, channels) = websocket::open(socket, protocol, &remote::directions(wants));
            let channels = remote::over_websocket(channels, protocol.version, wants).await;
            channels.map(|channels| (connection, channels))
        }
    };
    let Some((connection, channels)) = opened else { return };
    let (process, command) = match command {
        Some(command) => (desk.backend.exec(&target, &command, wants).await, command.join(" ")),
        None => (desk.backend.attach(&target, wants).await, String::new()),
    };
    remote::serve(connection, channels, process, &command, times).await;
}
