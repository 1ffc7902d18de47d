//! Exec and attach: a client's streams on one side, a process on the other.

use std::future::pending;

use bytes::Bytes;
use proto::kind::chain;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::{
    StreamingError, Times,
    mux::{Connection, Inbox, Outlet},
    process::{Process, Sent, Wants, copy_input, copy_output, follow_sizes},
    spdy::{self, Headers, Incoming},
    status::Verdict,
    websocket::Direction,
};

/// The versions of the protocol over SPDY, best first.
pub(super) const PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// The number in the name of a protocol; the first one's has none.
pub(super) fn version(protocol: &str) -> u8 {
    protocol.strip_prefix('v').and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(1)
}

/// A client's streams.
pub(super) struct Channels {
    stdin: Option<Inbox>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
    error: Outlet,
    resize: Option<Inbox>,
    version: u8,
}

/// Which streams a client opens over SPDY.
fn is_known(headers: &Headers) -> Result<(), &'static str> {
    match headers.get("streamtype") {
        Some("error" | "stdin" | "stdout" | "stderr" | "resize") => Ok(()),
        Some(_) => Err("unknown type of stream"),
        None => Err("stream without a type"),
    }
}

/// Takes a connection over and waits for its streams; none if the client doesn't open them in time.
pub(super) async fn over_spdy(
    socket: super::server::Socket,
    version: u8,
    wants: Wants,
    times: Times,
) -> Option<(Connection, Channels)> {
    let (connection, mut incoming) = spdy::open(socket, is_known);
    let opened = tokio::select! {
        opened = tokio::time::timeout(times.creation, collect(&mut incoming, version, wants)) => opened.ok().flatten(),
        () = connection.over(times.idle) => None,
    };
    match opened {
        Some(channels) => Some((connection, channels)),
        None => {
            debug!("client opened not all of its streams");
            connection.farewell(times.farewell).await;
            None
        }
    }
}

async fn collect(incoming: &mut mpsc::Receiver<Incoming>, version: u8, wants: Wants) -> Option<Channels> {
    let resizes = wants.tty && version >= 3;
    let mut error = None;
    let (mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None);
    loop {
        let complete = stdin.is_some() == wants.stdin
            && stdout.is_some() == wants.stdout
            && stderr.is_some() == wants.stderr
            && resize.is_some() == resizes;
        if complete && let Some(error) = error {
            return Some(Channels { stdin, stdout, stderr, error, resize, version });
        }
        let Incoming { id, headers, inbox, outlet } = incoming.recv().await?;
        match headers.get("streamtype").unwrap_or_default() {
            "error" if error.is_none() => error = Some(outlet),
            "stdin" if wants.stdin && stdin.is_none() => stdin = Some(inbox),
            "stdout" if wants.stdout && stdout.is_none() => stdout = Some(outlet),
            "stderr" if wants.stderr && stderr.is_none() => stderr = Some(outlet),
            "resize" if resizes && resize.is_none() => resize = Some(inbox),
            kind => {
                debug!(stream = id, kind, "stream that was not asked for");
                outlet.reset(spdy::CANCEL).await;
            }
        }
    }
}

/// The channels of exec and attach over a WebSocket: stdin, stdout, stderr, error, resize.
pub(super) fn directions(wants: Wants) -> [Direction; 5] {
    let only = |wanted, direction| if wanted { direction } else { Direction::None };
    [
        only(wants.stdin, Direction::In),
        only(wants.stdout, Direction::Out),
        only(wants.stderr, Direction::Out),
        Direction::Out,
        only(wants.tty, Direction::In),
    ]
}

/// Makes streams of a WebSocket's channels, and says that they are there.
pub(super) async fn over_websocket(channels: Vec<(Inbox, Outlet)>, version: u8, wants: Wants) -> Option<Channels> {
    let [stdin, stdout, stderr, error, resize]: [(Inbox, Outlet); 5] = channels.try_into().ok()?;
    let channels = Channels {
        stdin: wants.stdin.then_some(stdin.0),
        stdout: wants.stdout.then_some(stdout.1),
        stderr: wants.stderr.then_some(stderr.1),
        error: error.1,
        resize: wants.tty.then_some(resize.0),
        version,
    };
    // Clients wait for a first message, though it be empty.
    let first = channels.stdout.as_ref().or(channels.stderr.as_ref()).unwrap_or(&channels.error);
    first.write(Bytes::new()).await.ok()?;
    Some(channels)
}

/// Serves a client until its process has ended, or it has gone. `command` is for the words about the end.
pub(super) async fn serve(
    connection: Connection,
    channels: Channels,
    process: Result<Process, StreamingError>,
    command: &str,
    times: Times,
) {
    let Channels { stdin, stdout, stderr, error, resize, version } = channels;
    let outputs: Vec<Outlet> = [&stdout, &stderr].into_iter().flatten().cloned().collect();
    let verdict = match process {
        Err(error) => {
            debug!(error = %chain(&error), "nothing to stream");
            Some(Verdict::Failed(chain(&error)))
        }
        Ok(process) => {
            let handle = process.handle.clone();
            let verdict = tokio::select! {
                biased;
                verdict = join(process, [stdout, stderr], stdin, resize, command) => Some(verdict),
                () = connection.over(times.idle) => None,
            };
            match verdict {
                Some(verdict) => {
                    handle.forget().await;
                    Some(verdict)
                }
                None => {
                    // Its stdin ended with the client. Whether it ends as well is its own business, as with containerd.
                    handle.abandon().await;
                    None
                }
            }
        }
    };
    if let Some(verdict) = verdict {
        let telling = async {
            for output in outputs {
                output.end().await;
            }
            if let Some(text) = verdict.text(version) {
                let _ = error.write(text.into()).await;
            }
            error.end().await;
        };
        // A client that doesn't read the end won't read more.
        let _ = tokio::time::timeout(times.farewell, telling).await;
    }
    connection.farewell(times.farewell).await;
}

/// Copies in all directions until the process has ended and its output is sent.
async fn join(
    process: Process,
    [stdout, stderr]: [Option<Outlet>; 2],
    stdin: Option<Inbox>,
    resize: Option<Inbox>,
    command: &str,
) -> Verdict {
    let Process { stdin: input, stdout: out, stderr: err, handle, grace } = process;
    let (end, ended) = watch::channel(false);
    let output = |from: Option<_>, to: Option<Outlet>| {
        let ended = ended.clone();
        async move {
            if let (Some(from), Some(to)) = (from, to) {
                copy_output(from, Sent(to), ended, grace).await;
            }
        }
    };
    let outputs = async { tokio::join!(output(out, stdout), output(err, stderr)) };
    let exit = async {
        let exit = handle.exit().await;
        end.send_replace(true);
        exit
    };
    let finished = async { tokio::join!(exit, outputs).0 };
    let inputs = async {
        let input = async {
            if let Some(stdin) = stdin {
                copy_input(stdin, input, &*handle).await;
            }
        };
        let sizes = async {
            if let Some(resize) = resize {
                follow_sizes(resize, &*handle).await;
            }
        };
        tokio::join!(input, sizes);
        pending::<()>().await
    };
    tokio::select! {
        biased;
        exit = finished => match exit {
            Ok(None | Some(0)) => Verdict::Success,
            Ok(Some(code)) => Verdict::Exit { command: command.to_owned(), code },
            Err(error) => Verdict::Failed(chain(&error)),
        },
        () = inputs => Verdict::Success,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names() {
        assert_eq!(PROTOCOLS.map(version), [4, 3, 2, 1]);
        assert_eq!((version("v5.channel.k8s.io"), version("v4.base64.channel.k8s.io"), version("")), (5, 4, 1));
    }
}
