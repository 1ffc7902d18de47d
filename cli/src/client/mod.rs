//! The Docker Engine API over HTTP/1.1: one connection per request, on a unix socket or plain TCP.

pub mod call;
pub mod demux;
pub mod error;
pub mod hijack;
pub mod host;

pub use call::{Call, Reply};
pub use error::ClientError;
pub use host::Host;

use hyper::{Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{fmt, io, str::FromStr};
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

/// A connection to an engine, with the API version agreed.
#[derive(Debug, Clone)]
pub struct Client {
    host: Host,
    version: ApiVersion,
}

impl Client {
    /// Asks the engine which API it speaks, and takes the newest common one. A `fixed` version is taken as it is.
    pub async fn connect(host: Host, fixed: Option<ApiVersion>) -> Result<Self, ClientError> {
        let mut client = Self { host, version: fixed.unwrap_or(NEWEST) };
        if fixed.is_some() {
            return Ok(client);
        }
        let ping = Call::head("/_ping").unversioned();
        let mut response = client.exchange(&ping, ping.to_request(&client.host, client.version)?).await?;
        if !response.status().is_success() {
            let ping = Call::get("/_ping").unversioned();
            response = client.exchange(&ping, ping.to_request(&client.host, client.version)?).await?;
        }
        let offered = response.headers().get("api-version").and_then(|v| v.to_str().ok());
        if let Some(offered) = offered.and_then(|v| v.parse::<ApiVersion>().ok()) {
            if offered < OLDEST {
                return Err(ClientError::TooOld(offered.to_string()));
            }
            client.version = offered.min(NEWEST);
        }
        Ok(client)
    }

    /// The API version agreed on.
    pub fn version(&self) -> ApiVersion {
        self.version
    }

    /// Sends a request; an answer of 400 or more is an error.
    pub async fn send(&self, mut call: Call) -> Result<Reply, ClientError> {
        let request = call.take_request(&self.host, self.version)?;
        let response = self.exchange(&call, request).await?;
        Reply::new(call, response).checked().await
    }

    /// Sends a request whose connection becomes a stream in both directions.
    pub async fn hijack(&self, mut call: Call) -> Result<hijack::Hijacked, ClientError> {
        let request = call.upgrading().take_request(&self.host, self.version)?;
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
        let upgraded = hyper::upgrade::on(response).await.map_err(|cause| call.broken(cause))?;
        Ok(hijack::Hijacked::new(upgraded))
    }

    async fn exchange(
        &self,
        call: &Call,
        request: hyper::Request<call::Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        let io: Box<dyn Transport> = match &self.host {
            Host::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(|cause| self.refused(cause))?),
            Host::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(|cause| self.refused(cause))?;
                // Keystrokes must not wait for company.
                stream.set_nodelay(true).map_err(|cause| self.refused(cause))?;
                Box::new(stream)
            }
        };
        let (mut sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(io)).await.map_err(|cause| call.broken(cause))?;
        // The connection's own errors come back through the sender and the body, so nothing is lost here.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|cause| call.broken(cause))
    }

    fn refused(&self, cause: io::Error) -> ClientError {
        let host = self.host.clone();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission { host },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { host },
            _ => ClientError::Connect { host, cause },
        }
    }
}

/// What a request can travel on.
trait Transport: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}

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
