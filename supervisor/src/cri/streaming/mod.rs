//! Exec, attach and port-forward. A call hands out an address with a token; the API server, through the kubelet, comes there with
//! an HTTP request that becomes a connection of streams.
//!
//! ```text
//! kubelet ──Exec──▶ runtime_service ──exec_url──▶ http://127.0.0.1:PORT/exec/TOKEN        tokens
//! client ──GET or POST, Upgrade──▶ server ──▶ spdy | websocket ──streams──▶ remote ──FIFOs──▶ shim    (tasks)
//!                                                                     └───▶ forward ──TCP──▶ port in the pod's network
//! ```
//! The last hop, kubelet to here, is SPDY/3.1 and stays so (KEP-4006); WebSocket is for other clients of CRI. Whoever knows a token
//! needs no other credential, and the server listens on loopback unless it is told otherwise.
//!
//! A client that leaves takes its connection with it, and the stdin of its process; the process goes on, as with containerd. What
//! clients can send is limited before it is kept: see `mux`, `spdy`, `websocket`.

mod forward;
mod mux;
mod process;
mod remote;
mod server;
mod spdy;
mod status;
mod tasks;
mod tokens;
mod websocket;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use proto::{id::NamespaceName, kind::ErrorKind, runtime::v1 as cri};
use sys::netns::NetnsError;
use tokio::{
    net::TcpListener,
    sync::{OnceCell, oneshot},
};

use self::{
    process::{Wants, run},
    server::{Desk, Order},
    tasks::Containers,
    tokens::Tokens,
};
use super::{
    NAMESPACE,
    relays::{RelayError, Relays},
};
use crate::{
    api::MESSAGE_LIMIT,
    config::Config,
    failure::Failure,
    tasks::{TaskError, Tasks},
};

/// Most output that `ExecSync` keeps: what a message holds beside the code and the lengths.
const KEPT: usize = MESSAGE_LIMIT - 1024;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Without a byte either way.
    idle: Duration,
    /// Until a client has opened its streams.
    creation: Duration,
    /// Until a client has closed, once it was told that there is no more.
    farewell: Duration,
}

const TIMES: Times =
    Times { idle: Duration::from_secs(4 * 3600), creation: Duration::from_secs(30), farewell: Duration::from_secs(10) };

/// Why something can't be streamed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamingError {
    /// The address is taken, or isn't ours.
    #[error("serve streams on {at}")]
    Listen {
        /// The address.
        at: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The folder of FIFOs.
    #[error("make FIFOs in {at}")]
    Fifos {
        /// The folder.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Request(&'static str),
    /// A port that is none.
    #[error("port {0} is not between 1 and 65535")]
    Port(i32),
    /// Nobody comes for what was asked for.
    #[error("{0} addresses for streams are waiting for their requests already")]
    TooMany(usize),
    /// The kernel's generator.
    #[error("get random bytes")]
    Random(#[source] io::Error),
    /// The task.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A command was killed.
    #[error("command not done within {} s, and killed: timeout exceeded", .0.as_secs())]
    TookTooLong(Duration),
    /// As above.
    #[error("the caller has gone, and its command was killed")]
    CallerGone,
    /// The way to a process whose shim is somebody else's.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A process without a code.
    #[error("the process has no exit code")]
    NoExit,
    /// The size of a terminal.
    #[error("read the size of a terminal")]
    Size(#[source] serde_json::Error),
    /// Nobody listens there.
    #[error("connect to port {port} on the pod's loopback")]
    Connect {
        /// The port.
        port: u16,
        /// What the kernel said, of IPv4.
        #[source]
        cause: io::Error,
    },
    /// A forwarded connection broke.
    #[error("connection to port {port}")]
    Connection {
        /// The port.
        port: u16,
        /// What happened.
        #[source]
        cause: io::Error,
    },
    /// The pod's network.
    #[error("network of the pod")]
    Netns(#[source] NetnsError),
    /// The pod's network is gone.
    #[error("the pod has no network any more: nothing is pinned at {0}")]
    NoNetns(PathBuf),
    /// A bug ended it.
    #[error("the request met a bug and was abandoned")]
    Abandoned,
}

impl Failure for StreamingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(_) | Self::Port(_) | Self::Size(_) => ErrorKind::InvalidArgument,
            Self::TooMany(_) => ErrorKind::ResourceExhausted,
            Self::Listen { cause, .. }
            | Self::Fifos { cause, .. }
            | Self::Random(cause)
            | Self::Connect { cause, .. }
            | Self::Connection { cause, .. } => ErrorKind::of_io(cause),
            Self::Task(error) => error.kind(),
            Self::TookTooLong(_) => ErrorKind::DeadlineExceeded,
            Self::CallerGone => ErrorKind::Cancelled,
            Self::NoNetns(_) => ErrorKind::FailedPrecondition,
            Self::Relay(error) => error.kind(),
            Self::NoExit | Self::Netns(_) | Self::Abandoned => ErrorKind::Internal,
        }
    }
}

/// A container, as far as it has to be known to stream with it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Its id.
    pub(super) id: String,
    /// `process` of its specification; of an exec's, `args` and `terminal` are replaced.
    pub(super) process: serde_json::Value,
    /// Whether its own process has a terminal.
    pub(super) tty: bool,
    /// Whether it has a stdin.
    pub(super) stdin: bool,
    /// Whether that ends with the first client's.
    pub(super) stdin_once: bool,
}

/// The server of streams, and who may come to it.
pub(crate) struct Streaming {
    wanted: SocketAddr,
    // Where it listens: a supervisor that nobody has asked for streams has no port open.
    address: OnceCell<SocketAddr>,
    desk: Arc<Desk>,
    containers: Arc<Containers>,
}

impl Streaming {
    /// Sees to the processes that clients of an earlier supervisor have left. Where the configuration says it listens from the first
    /// address on that is asked for.
    pub(crate) fn open(config: &Config, tasks: Arc<Tasks>, relays: Arc<Relays>) -> Result<Arc<Self>, StreamingError> {
        let folder = config.run().join("streams");
        let namespace = NamespaceName::new(NAMESPACE).map_err(TaskError::Id)?;
        let failed = |cause| StreamingError::Fifos { at: folder.clone(), cause };
        let containers = Arc::new(Containers::new(tasks, relays, namespace, folder.clone()).map_err(failed)?);
        let desk = Arc::new(Desk { tokens: Tokens::default(), backend: containers.clone(), times: TIMES });
        Ok(Arc::new(Self { wanted: config.streaming, address: OnceCell::new(), desk, containers }))
    }

    async fn url(&self, order: Order) -> Result<String, StreamingError> {
        let address = self.address.get_or_try_init(|| listen(self.wanted, self.desk.clone())).await?;
        Ok(format!("http://{address}/{}/{}", order.path(), self.desk.tokens.insert(order)?))
    }

    /// An address where a command is run.
    pub(super) async fn exec_url(
        &self,
        container: Target,
        request: cri::ExecRequest,
    ) -> Result<String, StreamingError> {
        let cri::ExecRequest { cmd, tty, stdin, stdout, stderr, .. } = request;
        let wants = check_streams(Wants { stdin, stdout, stderr, tty })?;
        self.url(Order::Exec { target: container, command: check_command(cmd)?, wants }).await
    }

    /// An address where a container's own process can be reached.
    pub(super) async fn attach_url(
        &self,
        container: Target,
        request: cri::AttachRequest,
    ) -> Result<String, StreamingError> {
        let cri::AttachRequest { stdin, tty, stdout, stderr, .. } = request;
        let wants = check_streams(Wants { stdin, stdout, stderr, tty })?;
        self.url(Order::Attach { target: container, wants }).await
    }

    /// An address where ports of a pod can be reached; of the node, for a pod that has no network of its own.
    pub(super) async fn port_forward_url(
        &self,
        netns: Option<PathBuf>,
        request: cri::PortForwardRequest,
    ) -> Result<String, StreamingError> {
        let port = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0).ok_or(StreamingError::Port(port));
        let ports = request.port.into_iter().map(port).collect::<Result<_, _>>()?;
        self.url(Order::PortForward { netns, ports }).await
    }

    /// Runs a command to its end and answers what it wrote. If the call is dropped, so is the command.
    pub(super) async fn exec_sync(
        &self,
        container: Target,
        request: cri::ExecSyncRequest,
    ) -> Result<cri::ExecSyncResponse, StreamingError> {
        let command = check_command(request.cmd)?;
        let patience = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let containers = self.containers.clone();
        let (caller, gone) = oneshot::channel::<()>();
        let work = tokio::spawn(async move {
            let process = containers.run(&container, &command).await?;
            let gone = async {
                // Nothing is ever sent.
                let _ = gone.await;
            };
            run(process, patience, KEPT, gone).await
        });
        let ran = work.await.map_err(|_| StreamingError::Abandoned)?;
        drop(caller);
        let mut ran = ran?;
        share(&mut ran.stdout, &mut ran.stderr, KEPT);
        Ok(cri::ExecSyncResponse { stdout: ran.stdout, stderr: ran.stderr, exit_code: ran.code.cast_signed() })
    }
}

/// Cuts two outputs to what there is room for together; neither gets less than half of it for the other's sake.
fn share(one: &mut Vec<u8>, other: &mut Vec<u8>, room: usize) {
    let for_one = room.saturating_sub(other.len()).max(room / 2);
    one.truncate(for_one);
    other.truncate(room - one.len());
}

/// Begins to serve; answers where.
async fn listen(at: SocketAddr, desk: Arc<Desk>) -> Result<SocketAddr, StreamingError> {
    let failed = |cause| StreamingError::Listen { at, cause };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(server::serve(listener, desk));
    Ok(address)
}

fn check_command(command: Vec<String>) -> Result<Vec<String>, StreamingError> {
    match command.first() {
        Some(program) if !program.is_empty() => {}
        _ => return Err(StreamingError::Request("cmd is required")),
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(StreamingError::Request("cmd holds a NUL"));
    }
    Ok(command)
}

fn check_streams(wants: Wants) -> Result<Wants, StreamingError> {
    if wants.tty && wants.stderr {
        return Err(StreamingError::Request("tty and stderr cannot both be true: a terminal has one stream"));
    }
    if !wants.stdin && !wants.stdout && !wants.stderr {
        return Err(StreamingError::Request("one of stdin, stdout, or stderr must be set"));
    }
    Ok(wants)
}

#[cfg(test)]
mod tests;
