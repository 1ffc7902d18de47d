//! Where the engine is: `unix:///PATH` or `tcp://HOST:PORT`.

use std::{fmt, path::PathBuf, str::FromStr};

/// Address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A unix socket.
    Unix(PathBuf),
    /// Plain HTTP over TCP, without TLS.
    Tcp(String),
}

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// A transport berth can't speak yet.
    #[error("{host}: {scheme}:// is not supported yet; use unix:///PATH or tcp://HOST:PORT")]
    NotYet {
        /// The address.
        host: String,
        /// Its scheme.
        scheme: String,
    },
    /// Not an address.
    #[error("unable to parse engine host {0:?}; expected unix:///PATH or tcp://HOST:PORT")]
    Malformed(String),
}

impl Default for Host {
    fn default() -> Self {
        Self::Unix(PathBuf::from("/run/berth/engine.sock"))
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let malformed = || HostError::Malformed(text.to_owned());
        let (scheme, rest) = match text.trim().split_once("://") {
            Some(parts) => parts,
            // docker reads a bare host:port as tcp.
            None if text.contains(':') && !text.contains('/') => ("tcp", text.trim()),
            None => return Err(malformed()),
        };
        match scheme {
            "unix" if rest.is_empty() => Ok(Self::default()),
            "unix" => Ok(Self::Unix(PathBuf::from(rest))),
            "tcp" | "http" => {
                let address = rest.trim_end_matches('/');
                if address.is_empty() || address.contains('/') {
                    return Err(malformed());
                }
                let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port { address.to_owned() } else { format!("{address}:2375") }))
            }
            "ssh" | "https" | "npipe" | "fd" => {
                Err(HostError::NotYet { host: text.to_owned(), scheme: scheme.to_owned() })
            }
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
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
            ("127.0.0.1:80", "tcp://127.0.0.1:80"),
        ] {
            assert_eq!(text.parse::<Host>().map(|h| h.to_string()).as_deref(), Ok(shown), "{text}");
        }
        assert!(matches!("ssh://a@b".parse::<Host>(), Err(HostError::NotYet { .. })));
        for bad in ["", "/run/x.sock", "gopher://x", "tcp://", "tcp://a:1/path"] {
            assert!(matches!(bad.parse::<Host>(), Err(HostError::Malformed(_))), "{bad}");
        }
    }
}
