//! Where clients come in: socket files, the service manager's sockets, TCP with TLS. A connection is served the same on all of
//! them; what differs is who is on its other end.

mod certificate;
mod half;
mod serve;
mod tls;

pub use half::HalfOpen;
pub use serve::{Door, serve};
pub use tls::{Certificates, TlsError};

use crate::{
    app::make_folder,
    config::{Address, Config},
    launch,
};
use std::{
    fs::Permissions,
    io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// Clients of this machine, whom the kernel knows.
    Unix(UnixListener),
    /// Clients anywhere; known by their certificates, or not at all.
    Tcp(TcpListener, Option<Arc<Certificates>>),
}

/// All of them, and the files that are to be removed at the end.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The sockets.
    pub sockets: Vec<Listener>,
    /// Files that we made.
    pub files: Vec<PathBuf>,
    /// What TLS works with, to be read again.
    pub certificates: Option<Arc<Certificates>>,
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen on {path}")]
    Listen {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("listen on {0}: somebody else serves there")]
    Served(PathBuf),
    #[error("listen on fd://{0}: the service manager has passed no such socket (is berth-engine.socket started?)")]
    NotPassed(String),
    #[error("listen on {path}: there is no group {group}")]
    NoGroup { path: PathBuf, group: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Listeners {
    /// Opens what the configuration names. Sockets that were passed are served in any case, and are nobody's to remove.
    pub async fn open(config: &Config, passed: Vec<(String, OwnedFd)>) -> Result<Self, ListenError> {
        let mut all = Self::default();
        if config.tls.on {
            all.certificates = Some(Arc::new(Certificates::read(&config.tls)?));
        }
        for address in &config.listen {
            if let Address::Passed(name) = address {
                let number = |(at, (own, _)): (usize, &(String, OwnedFd))| own == name || (at + 3).to_string() == *name;
                if passed.is_empty() || !(name.is_empty() || name == "*" || passed.iter().enumerate().any(number)) {
                    return Err(ListenError::NotPassed(name.clone()));
                }
            }
        }
        let mut taken = Vec::new();
        for (name, socket) in passed {
            let (listener, path) = take(&name, socket, all.certificates.clone())?;
            all.sockets.push(listener);
            taken.extend(path);
        }
        let default = [Address::Unix(config.default_socket())];
        let wanted = if all.sockets.is_empty() && config.listen.is_empty() { &default[..] } else { &config.listen };
        for address in wanted {
            match address {
                Address::Passed(_) => {}
                Address::Unix(path) if taken.contains(path) => {}
                Address::Unix(path) => {
                    all.sockets.push(Listener::Unix(unix(path, config).await?));
                    all.files.push(path.clone());
                }
                Address::Tcp(at) => {
                    let bound = TcpListener::bind(at).await;
                    let listener = bound.map_err(|cause| ListenError::Listen { path: at.into(), cause })?;
                    if !config.tls.verify {
                        warn!(address = at, "whoever can connect to this port is root on this machine");
                    }
                    all.sockets.push(Listener::Tcp(listener, all.certificates.clone()));
                }
            }
        }
        Ok(all)
    }
}

/// A socket that the service manager listens on for us already, and its file.
fn take(
    name: &str,
    socket: OwnedFd,
    certificates: Option<Arc<Certificates>>,
) -> Result<(Listener, Option<PathBuf>), ListenError> {
    let failed = |cause| ListenError::Listen { path: format!("passed socket {name:?}").into(), cause };
    let address: Result<nix::sys::socket::SockaddrStorage, _> =
        nix::sys::socket::getsockname(std::os::fd::AsRawFd::as_raw_fd(&socket));
    if address.is_ok_and(|address| address.as_sockaddr_in().is_some() || address.as_sockaddr_in6().is_some()) {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        if certificates.is_none() {
            warn!(socket = name, "whoever can connect to this port is root on this machine");
        }
        return Ok((Listener::Tcp(listener, certificates), None));
    }
    let listener = std::os::unix::net::UnixListener::from(socket);
    // Neither a file nor a stream socket has this answer.
    let address = listener.local_addr().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok((Listener::Unix(listener), address.as_pathname().map(Path::to_owned)))
}

/// A socket for its owner and a group; what a dead engine left there goes.
async fn unix(path: &Path, config: &Config) -> Result<UnixListener, ListenError> {
    let failed = |cause| ListenError::Listen { path: path.to_owned(), cause };
    if let Some(parent) = path.parent() {
        make_folder(parent, 0o711).map_err(|error| failed(io::Error::other(error)))?;
    }
    let group = match config.group.parse::<u32>() {
        Ok(number) => Some(number),
        Err(_) => group_id(&config.group),
    };
    if group.is_none() && config.group_chosen {
        return Err(ListenError::NoGroup { path: path.to_owned(), group: config.group.clone() });
    }
    if launch::listens(path).await {
        return Err(ListenError::Served(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Nobody may connect between bind and chmod: born under another umask-proof name it would still be reachable, so
    // it is bound in a state that only root can use.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound.map_err(failed)?;
    if let Some(gid) = group {
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    }
    Ok(listener)
}

/// Looked up in the file itself: a static program has no name service switch.
fn group_id(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Who is on the other end of a TCP connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// From where.
    pub address: SocketAddr,
    /// The name in the certificate that was checked; none without TLS.
    pub certificate: Option<String>,
}
