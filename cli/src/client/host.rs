//! Where the engine is: `unix:///PATH`, `tcp://HOST:PORT` or `ssh://[USER@]HOST[:PORT][/SOCKET]`.

use super::ssh::{SshError, SshHost};
use std::{fmt, path::PathBuf, str::FromStr};

/// Address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A unix socket.
    Unix(PathBuf),
    /// HTTP over TCP, host and port; the port is missing when it depends on TLS.
    Tcp(String),
    /// Through ssh, to whatever engine is on the other machine.
    Ssh(Box<SshHost>),
}

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// A transport that is not for clients, or not for Linux.
    #[error("unable to parse docker host `{host}`: {why}; use unix:///PATH, tcp://HOST:PORT or ssh://HOST")]
    Unusable {
        /// The address.
        host: String,
        /// What it is for instead.
        why: &'static str,
    },
    /// Not an address.
    #[error("unable to parse docker host `{0}`: expected unix:///PATH, tcp://HOST:PORT or ssh://[USER@]HOST[:PORT]")]
    Malformed(String),
    /// ssh
    #[error("ssh host connection is not valid: {0}")]
    Ssh(#[from] SshError),
}

impl Default for Host {
    fn default() -> Self {
        Self::Unix(PathBuf::from("/run/berth/engine.sock"))
    }
}

impl Host {
    /// With the port that is usual for TLS, or for none, where there is no port.
    pub fn with_port(self, tls: bool) -> Self {
        match self {
            Self::Tcp(address) if !has_port(&address) => {
                Self::Tcp(format!("{address}:{}", if tls { 2376 } else { 2375 }))
            }
            other => other,
        }
    }
}

fn has_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')))
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let text = text.trim();
        let malformed = || HostError::Malformed(text.to_owned());
        let unusable = |why| HostError::Unusable { host: text.to_owned(), why };
        let (scheme, rest) = match text.split_once("://") {
            Some(parts) => parts,
            // docker reads a bare host:port as tcp.
            None if text.contains(':') && !text.contains('/') => ("tcp", text),
            None => return Err(malformed()),
        };
        match scheme {
            "unix" if rest.is_empty() => Ok(Self::default()),
            "unix" => Ok(Self::Unix(PathBuf::from(rest))),
            "tcp" | "http" | "https" => {
                let address = rest.trim_end_matches('/');
                if address.is_empty() || address.contains(['/', '@', '?', '#']) {
                    return Err(malformed());
                }
                Ok(Self::Tcp(address.to_owned()))
            }
            "ssh" => Ok(Self::Ssh(Box::new(rest.parse()?))),
            "fd" => Err(unusable("fd:// is what systemd hands to a daemon")),
            "npipe" => Err(unusable("npipe:// is a pipe of Windows")),
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Ssh(host) => write!(f, "ssh://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("unix:///a/b.sock", "unix:///a/b.sock"),
            ("unix://", "unix:///run/berth/engine.sock"),
            ("tcp://localhost:2375", "tcp://localhost:2375"),
            ("tcp://[::1]:2375/", "tcp://[::1]:2375"),
            ("tcp://box", "tcp://box:2375"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
            ("127.0.0.1:80", "tcp://127.0.0.1:80"),
            ("ssh://me@box:22/run/x.sock", "ssh://me@box:22/run/x.sock"),
        ] {
            let host = text.parse::<Host>().map(|host| host.with_port(false).to_string());
            assert_eq!(host.as_deref(), Ok(shown), "{text}");
        }
        let tls = |text: &str| text.parse::<Host>().map(|host| host.with_port(true).to_string());
        assert_eq!(tls("tcp://box").as_deref(), Ok("tcp://box:2376"));
        assert_eq!(tls("tcp://box:2375").as_deref(), Ok("tcp://box:2375"));
        for unusable in ["fd://", "fd://docker.sock", "npipe:////./pipe/docker"] {
            assert!(matches!(unusable.parse::<Host>(), Err(HostError::Unusable { .. })), "{unusable}");
        }
        for bad in ["", "/run/x.sock", "gopher://x", "tcp://", "tcp://a:1/path", "tcp://u@a:1"] {
            assert!(matches!(bad.parse::<Host>(), Err(HostError::Malformed(_))), "{bad}");
        }
    }
}
