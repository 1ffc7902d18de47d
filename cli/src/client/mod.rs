//! The Docker Engine API over HTTP/1.1: one connection per request, on a unix socket, TCP with or without TLS, or ssh.

pub mod call;
pub mod demux;
pub mod error;
pub mod hijack;
pub mod host;
pub mod ssh;
pub mod tls;

pub use call::{Call, Reply};
pub use error::ClientError;
pub use host::Host;

use crate::output;
use hyper::{Response, body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use std::{fmt, io, str::FromStr, sync::Arc, time::Instant};
use tokio::net::{TcpStream, UnixStream};

/// Newest API berth speaks.
pub const NEWEST: ApiVersion = ApiVersion { major: 1, minor: 51 };
/// Oldest API berth speaks.
const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// "1.51"
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Before the point.
    pub major: u16,
    /// After the point.
    pub minor: u16,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        Ok(Self { major: major.parse()?, minor: minor.parse()? })
    }
}

/// Where an engine is, and how to talk with it.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// Its address.
    pub host: Host,
    /// TLS, if it is spoken there.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
}

/// What an engine says about itself when it is pinged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ping {
    /// Experimental features are on.
    pub experimental: bool,
}

/// A connection to an engine, with the API version agreed.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    version: ApiVersion,
    ping: Ping,
}

impl Client {
    /// Asks the engine which API it speaks, and takes the newest common one. A `fixed` version is taken as it is.
    pub async fn connect(endpoint: Endpoint, fixed: Option<ApiVersion>) -> Result<Self, ClientError> {
        let endpoint = Arc::new(endpoint);
        let mut client = Self { endpoint, version: fixed.unwrap_or(NEWEST), ping: Ping::default() };
        if fixed.is_some() {
            return Ok(client);
        }
        let ping = Call::head("/_ping").unversioned();
        let mut response = client.exchange(&ping, ping.to_request(&client.endpoint, client.version)?).await?;
        if !response.status().is_success() {
            let ping = Call::get("/_ping").unversioned();
            response = client.exchange(&ping, ping.to_request(&client.endpoint, client.version)?).await?;
        }
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        client.ping = Ping { experimental: header("docker-experimental") == Some("true") };
        let offered = header("api-version");
        // An engine that doesn't say is from before it was asked for.
        let offered = offered.and_then(|v| v.parse::<ApiVersion>().ok()).unwrap_or(OLDEST);
        if offered < OLDEST {
            return Err(ClientError::TooOld(offered.to_string()));
        }
        client.version = offered.min(NEWEST);
        output::log::debug(|| {
            format!("engine at {} offers API {offered}, using {}", client.endpoint.host, client.version)
        });
        Ok(client)
    }

    /// What the engine said about itself; nothing when the API version was fixed.
    pub fn ping(&self) -> &Ping {
        &self.ping
    }

    /// The API version agreed on.
    pub fn version(&self) -> ApiVersion {
        self.version
    }

    /// Sends a request; an answer of 400 or more is an error.
    pub async fn send(&self, mut call: Call) -> Result<Reply, ClientError> {
        let request = call.take_request(&self.endpoint, self.version)?;
        let response = self.exchange(&call, request).await?;
        Reply::new(call, response).checked().await
    }

    /// Sends a request whose connection becomes a stream in both directions.
    pub async fn hijack(&self, call: Call) -> Result<hijack::Hijacked, ClientError> {
        Ok(hijack::Hijacked::new(self.upgrade(call, "tcp").await?))
    }

    /// Sends a request whose connection goes on in another protocol ("h2c").
    pub async fn upgrade(&self, mut call: Call, protocol: &str) -> Result<Upgraded, ClientError> {
        let request = call.upgrading(protocol).take_request(&self.endpoint, self.version)?;
        let response = self.exchange(&call, request).await?;
        let status = response.status().as_u16();
        if status >= 400 {
            return match Reply::new(call, response).checked().await {
                Err(error) => Err(error),
                Ok(reply) => Err(ClientError::NotUpgraded { path: reply.path().to_owned(), status }),
            };
        }
        if status != 101 {
            return Err(ClientError::NotUpgraded { path: call.path().to_owned(), status });
        }
        hyper::upgrade::on(response).await.map_err(|cause| call.broken(cause))
    }

    async fn exchange(
        &self,
        call: &Call,
        request: hyper::Request<call::Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        let io = self.open(call).await?;
        let (mut sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(io)).await.map_err(|cause| call.broken(cause))?;
        // The connection's own errors come back through the sender and the body, so nothing is lost here.
        tokio::spawn(connection.with_upgrades());
        let begun = Instant::now();
        let response = sender.send_request(request).await.map_err(|cause| self.broken(call, cause))?;
        output::log::debug(|| format!("{call} -> {} after {:.1?}", response.status().as_u16(), begun.elapsed()));
        Ok(response)
    }

    /// A connection to the engine.
    async fn open(&self, call: &Call) -> Result<Box<dyn Transport>, ClientError> {
        let address = match &self.endpoint.host {
            Host::Unix(path) => {
                return Ok(Box::new(UnixStream::connect(path).await.map_err(|cause| self.refused(cause))?));
            }
            Host::Ssh(ssh) => return Ok(Box::new(ssh.connect().map_err(|cause| self.refused_by_ssh(cause))?)),
            Host::Tcp(address) => address,
        };
        let stream = TcpStream::connect(address).await.map_err(|cause| self.refused(cause))?;
        // Keystrokes must not wait for company.
        stream.set_nodelay(true).map_err(|cause| self.refused(cause))?;
        let Some(config) = &self.endpoint.tls else { return Ok(Box::new(stream)) };
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let failed =
            |cause: String| ClientError::Tls { call: call.to_string(), host: self.endpoint.host.clone(), cause };
        let name = rustls::pki_types::ServerName::try_from(host).map_err(|error| failed(error.to_string()))?;
        let connected = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await;
        let stream = connected.map_err(|error| failed(tls::explain(&error).unwrap_or_else(|| error.to_string())))?;
        Ok(Box::new(stream))
    }

    fn refused_by_ssh(&self, cause: io::Error) -> ClientError {
        let cause = match cause.kind() {
            io::ErrorKind::NotFound => io::Error::other("there is no ssh on the PATH: install openssh-client"),
            _ => cause,
        };
        ClientError::Connect { host: self.endpoint.host.clone(), cause }
    }

    /// A connection that broke before the answer; what TLS or ssh says of it is more than what HTTP says.
    fn broken(&self, call: &Call, cause: hyper::Error) -> ClientError {
        let mut source = std::error::Error::source(&cause);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let host = self.endpoint.host.clone();
                if let Some(cause) = tls::explain(error) {
                    return ClientError::Tls { call: call.to_string(), host, cause };
                }
                if matches!(host, Host::Ssh(_)) {
                    return ClientError::Connect { host, cause: io::Error::other(error.to_string()) };
                }
            }
            source = error.source();
        }
        call.broken(cause)
    }

    fn refused(&self, cause: io::Error) -> ClientError {
        let host = self.endpoint.host.clone();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission { host },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { host },
            _ => ClientError::Connect { host, cause },
        }
    }

    /// A connection to the engine on which nothing has been said.
    pub async fn raw(&self) -> Result<Box<dyn Transport>, ClientError> {
        self.open(&Call::get("/")).await
    }
}

/// What a request can travel on.
pub trait Transport: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Transport for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let of = |text: &str| text.parse::<ApiVersion>().unwrap();
        assert!(of("1.9") < of("1.41") && of("1.51") == NEWEST && of("2") > NEWEST);
        assert!("x".parse::<ApiVersion>().is_err());
    }
}
