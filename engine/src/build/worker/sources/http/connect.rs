//! Connections to web servers: straight or through a proxy, plain or in TLS.

use hyper::Uri;
use proto::{
    proxy::{Proxies, Proxy},
    tls,
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// How long the other side, or a proxy, may take for each step.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer of a proxy to CONNECT.
const HEAD: usize = 16 << 10;

/// Either kind of connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How the world outside is reached.
pub struct Network {
    proxies: Proxies,
    trust: OnceLock<Result<Arc<ClientConfig>, String>>,
}

/// An open connection.
pub struct Connection {
    /// The bytes.
    pub io: Box<dyn Io>,
    /// To a proxy that passes requests on: these name the whole URL.
    pub proxy: Option<Proxy>,
}

fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

impl Network {
    /// Through these proxies.
    pub fn new(proxies: Proxies) -> Self {
        Self { proxies, trust: OnceLock::new() }
    }

    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let make = || {
            let roots = tls::system_roots().map_err(|error| error.to_string())?;
            let builder = tls::client(Some(Arc::new(roots))).map_err(|error| error.to_string())?;
            Ok(Arc::new(builder.with_no_client_auth()))
        };
        self.trust.get_or_init(make).clone().map_err(other)
    }

    /// Opens a connection to the server of a URL.
    pub async fn open(&self, url: &Uri) -> io::Result<Connection> {
        let secure = url.scheme_str() == Some("https");
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let proxy = self.proxies.of(secure, &host, port).map_err(other)?;
        let mut io = match &proxy {
            None => dial(&host, port).await?,
            Some(proxy) => {
                let through = |error| other(format!("proxy {}:{}: {error}", proxy.host, proxy.port));
                let mut io = dial(&proxy.host, proxy.port).await.map_err(through)?;
                if proxy.tls {
                    io = self.handshake(io, &proxy.host).await.map_err(through)?;
                }
                if secure {
                    tunnel(&mut io, proxy, &host, port).await.map_err(through)?;
                }
                io
            }
        };
        if secure {
            io = self.handshake(io, &host).await?;
        }
        Ok(Connection { io, proxy: proxy.filter(|_| !secure) })
    }

    async fn handshake(&self, io: Box<dyn Io>, host: &str) -> io::Result<Box<dyn Io>> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| other(format!("{host:?} is not a name that a certificate can have")))?;
        let connecting = TlsConnector::from(self.config()?).connect(name, io);
        let stream = in_time("tls handshake", connecting).await?;
        Ok(Box::new(stream))
    }
}

async fn in_time<T>(what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}"))),
        Err(_) => Err(other(format!("{what}: no answer within {} s", PATIENCE.as_secs()))),
    }
}

async fn dial(host: &str, port: u16) -> io::Result<Box<dyn Io>> {
    let stream = in_time(&format!("connect to {host}:{port}"), TcpStream::connect((host, port))).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// Asks the proxy to put us through (RFC 9110, 9.3.6).
async fn tunnel(io: &mut Box<dyn Io>, proxy: &Proxy, host: &str, port: u16) -> io::Result<()> {
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
        Ok(head)
    };
    let head = in_time("ask to be put through", asking).await?;
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(()),
        _ => Err(other(format!("it doesn't put us through to {target}: {line}"))),
    }
}
