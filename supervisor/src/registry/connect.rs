//! Connections: straight or through a proxy, plain or in TLS.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection as Described, HttpConnector},
    rt::TokioIo,
};
use proto::proxy::Proxy;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{
    Network,
    tls::{self, Trust},
};

/// How long the other side may take to answer a call.
const DIAL: Duration = Duration::from_secs(15);
/// How long the handshake of TLS, or a proxy's answer, may take.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Longest answer of a proxy to CONNECT.
const HEAD: usize = 16 << 10;

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Name not found, refused, no route.
    #[error("{0}")]
    Dial(String),
    /// Nobody answered in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Slow(Duration),
    /// The proxy doesn't let us through, or its address is none.
    #[error("{0}")]
    Proxy(String),
    /// The server speaks no TLS; docker's words.
    #[error(
        "http: server gave HTTP response to HTTPS client: if {0} is to be used without encryption, list it under \
         insecure-registries, or give it a hosts.toml with server = \"http://{0}\""
    )]
    Plain(String),
    /// The handshake failed, or our own certificates can't be used.
    #[error("{0}")]
    Tls(String),
}

impl ConnectError {
    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Dial(_) | Self::Slow(_))
    }
}

/// How connections to one host, and to where it redirects, are made.
pub(super) struct Security {
    /// Whom to trust.
    pub(super) trust: Trust,
    /// How long to wait for a connection.
    pub(super) dial_timeout: Option<Duration>,
    own: OnceLock<Result<Arc<ClientConfig>, String>>,
    foreign: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Security {
    /// Nothing is read yet.
    pub(super) fn new(trust: Trust, dial_timeout: Option<Duration>) -> Self {
        Self { trust, dial_timeout, own: OnceLock::new(), foreign: OnceLock::new() }
    }

    // Client certificates are credentials: they stay with the host they are for.
    fn config(&self, network: &Network, identity: bool) -> Result<Arc<ClientConfig>, String> {
        let place = if identity { &self.own } else { &self.foreign };
        place.get_or_init(|| tls::config(&self.trust, &network.roots, identity).map(Arc::new)).clone()
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open connection.
pub(super) struct Connection {
    io: TokioIo<Box<dyn Io>>,
    // To a proxy that passes on what it is asked for: requests name the whole URL.
    absolute: bool,
}

impl Described for Connection {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.absolute)
    }
}

impl Read for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    network: Arc<Network>,
    security: Arc<Security>,
    identity: bool,
    dial: HttpConnector,
}

impl Connector {
    /// With `identity`, client certificates are shown.
    pub(super) fn new(network: Arc<Network>, security: Arc<Security>, identity: bool) -> Self {
        let mut dial = HttpConnector::new();
        dial.set_connect_timeout(Some(security.dial_timeout.unwrap_or(DIAL)));
        dial.set_nodelay(true);
        dial.enforce_http(false);
        Self { network, security, identity, dial }
    }

    async fn open(self, uri: Uri) -> Result<Connection, ConnectError> {
        let secure = uri.scheme_str() == Some("https");
        let shown = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let proxy = self.network.proxies.of(secure, &host, port).map_err(ConnectError::Proxy)?;
        let mut io = match &proxy {
            None => self.dial(&host, port).await?,
            Some(proxy) => {
                let through = |error| ConnectError::Proxy(format!("proxy {}:{}: {error}", proxy.host, proxy.port));
                let mut io = self.dial(&proxy.host, proxy.port).await.map_err(through)?;
                if proxy.tls {
                    let config = tls::config(&Trust::default(), &self.network.roots, false);
                    let config = Arc::new(config.map_err(ConnectError::Tls)?);
                    io = handshake(io, &config, &proxy.host, &format!("{}:{}", proxy.host, proxy.port)).await?;
                }
                if secure {
                    tunnel(&mut io, proxy, &host, port).await.map_err(through)?;
                }
                io
            }
        };
        if secure {
            let config = self.security.config(&self.network, self.identity).map_err(ConnectError::Tls)?;
            io = handshake(io, &config, &host, &shown).await?;
        }
        Ok(Connection { io: TokioIo::new(io), absolute: proxy.is_some() && !secure })
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Io>, ConnectError> {
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
        let uri = uri.map_err(|error| ConnectError::Dial(error.to_string()))?;
        let limit = self.security.dial_timeout.unwrap_or(DIAL);
        match tokio::time::timeout(limit, self.dial.clone().call(uri)).await {
            Ok(Ok(io)) => Ok(Box::new(io.into_inner())),
            Ok(Err(error)) => Err(ConnectError::Dial(innermost(&error))),
            Err(_) => Err(ConnectError::Slow(limit)),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}

async fn handshake(
    io: Box<dyn Io>,
    config: &Arc<ClientConfig>,
    host: &str,
    shown: &str,
) -> Result<Box<dyn Io>, ConnectError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ConnectError::Tls(format!("tls: {host:?} is not a name that a certificate can have")))?;
    let connecting = TlsConnector::from(config.clone()).connect(name, io);
    let error = match tokio::time::timeout(HANDSHAKE, connecting).await {
        Ok(Ok(stream)) => return Ok(Box::new(stream)),
        Ok(Err(error)) => error,
        Err(_) => return Err(ConnectError::Slow(HANDSHAKE)),
    };
    Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        // What it said instead of a handshake's first record.
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::Plain(shown.to_owned()),
        Some(error) => ConnectError::Tls(tls::explain(error, shown)),
        None => ConnectError::Dial(format!("tls handshake: {error}")),
    })
}

// Asks the proxy to put us through (RFC 9110, 9.3.6).
async fn tunnel(io: &mut Box<dyn Io>, proxy: &Proxy, host: &str, port: u16) -> Result<(), ConnectError> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: berth\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    let asking = async {
        io.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte: what comes after the head is no longer the proxy's.
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD {
            head.push(io.read_u8().await?);
        }
        Ok::<_, io::Error>(head)
    };
    let head = match tokio::time::timeout(HANDSHAKE, asking).await {
        Ok(head) => head.map_err(|error| ConnectError::Dial(error.to_string()))?,
        Err(_) => return Err(ConnectError::Slow(HANDSHAKE)),
    };
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    if line.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
        return Ok(());
    }
    let line: String = line.chars().filter(|c| !c.is_control()).take(100).collect();
    Err(ConnectError::Proxy(format!("answered {line:?} to CONNECT {target}")))
}

/// What an error says at its bottom.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
