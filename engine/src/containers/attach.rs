//! Joining a client to the stdio of a container: at once if its process lives, else when it starts.

use super::{
    Container, follow,
    frames::DetachKeys,
    log_config, logs, rules,
    streams::{ClientStream, Ended, Ends, Fifos, Framing, Wants, copy_input, pump, write_frame},
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    ids,
    supervisor::SupervisorError,
};
use proto::{
    berth::streams::v1::{AttachRequest, Lag},
    kind::chain,
};
use std::{sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, sync::oneshot};
use tracing::{debug, warn};

/// How long output may still come after the process has ended: a child of it may hold its pipes.
const AFTER_EXIT: Duration = Duration::from_secs(2);

/// A client that waits for the process to exist.
#[derive(Debug)]
pub struct Waiting {
    fifos: Fifos,
    ends: Ends,
    close_stdin: bool,
    joined: oneshot::Sender<Result<Ends, ApiError>>,
}

/// A client's wish, before its connection is taken over.
#[derive(Debug)]
pub struct Joining {
    container: Arc<Container>,
    joined: Option<oneshot::Receiver<Result<Ends, ApiError>>>,
    replay: Replay,
    wants: Wants,
    /// Framing of the output.
    pub framing: Framing,
    keys: Option<DetachKeys>,
}

/// Where old output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replay {
    /// None is wanted.
    No,
    /// The log, before the stream.
    First,
    /// The log, which then is the stream as well: nothing is told twice, and nothing falls between the two.
    Log(log_config::Format),
}

/// What a client asks for in its query.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Streams.
    pub wants: Wants,
    /// Old output first.
    pub logs: bool,
    /// Output to come.
    pub stream: bool,
    /// Keys that end the attachment.
    pub detach_keys: &'a str,
}

/// Joins, or queues up for the start. After this nothing that the process writes is missed.
pub async fn join(app: &Arc<App>, container: &Arc<Container>, ask: Ask<'_>) -> ApiResult<Joining> {
    let keys = DetachKeys::parse(ask.detach_keys)
        .ok_or_else(|| ApiError::invalid(format!("Invalid detach keys ({}) provided", ask.detach_keys)))?;
    let (tty, open_stdin, once) = {
        let live = container.live();
        if live.record.state.phase == super::record::Phase::Removing {
            rules::decide(rules::Operation::Exec, live.record.state.phase, &container.id, &live.record.name)?;
        }
        if live.record.state.phase == super::record::Phase::Paused && ask.stream {
            return Err(ApiError::conflict(format!(
                "container {} is paused, unpause the container before attach",
                container.id
            )));
        }
        (live.record.config.tty, live.record.config.open_stdin, live.record.config.stdin_once)
    };
    let wants = Wants { stdin: ask.wants.stdin && open_stdin, ..ask.wants };
    // A terminal has one output.
    let fifo_wants = if tty { Wants { stdout: wants.stdout || wants.stderr, stderr: false, ..wants } } else { wants };
    let readable = log_config::readable(&container.live().record.host.log_config.kind);
    let replay = match (ask.logs, readable) {
        (false, _) => Replay::No,
        // The log has whole lines only; at a terminal half of one counts.
        (true, Some(format)) if ask.stream && !tty && (wants.stdout || wants.stderr) => Replay::Log(format),
        (true, _) => Replay::First,
    };
    let fifo_wants =
        if matches!(replay, Replay::Log(_)) { Wants { stdin: wants.stdin, ..Wants::default() } } else { fifo_wants };
    let mut joining = Joining {
        container: container.clone(),
        joined: None,
        replay,
        wants,
        framing: if tty { Framing::Raw } else { Framing::Multiplexed },
        keys: (tty && wants.stdin).then_some(keys),
    };
    if ask.stream && (fifo_wants.stdin || fifo_wants.stdout || fifo_wants.stderr) {
        let name = ids::random_id().map_err(|e| ApiError::unexpected(&e))?;
        let (fifos, ends) = Fifos::make(&app.containers.streams, ids::short(&name), fifo_wants)
            .map_err(|e| ApiError::internal(format!("attach to {}: make FIFOs: {e}", container.id)))?;
        let (joined, receiver) = oneshot::channel();
        let waiting = Waiting { fifos, ends, close_stdin: once && wants.stdin, joined };
        joining.joined = Some(receiver);
        // Under the lock that a start takes before it looks for those who wait: none slips between.
        let now = {
            let live = container.live();
            let up = live.record.state.phase == super::record::Phase::Running && !live.starting;
            if up {
                Some(waiting)
            } else {
                super::lock(&container.waiting).push(waiting);
                None
            }
        };
        if let Some(waiting) = now {
            connect(app, &container.id, waiting).await;
        }
    }
    app.events.publish("container", "attach", &container.id, container.attributes());
    Ok(joining)
}

/// Joins all who wait; called between create and start of the process.
pub async fn connect_waiting(app: &Arc<App>, container: &Container) {
    let waiting = std::mem::take(&mut *super::lock(&container.waiting));
    for waiting in waiting {
        if !waiting.joined.is_closed() {
            connect(app, &container.id, waiting).await;
        }
    }
}

/// Sends everybody away who waits for a start that failed.
pub fn dismiss_waiting(container: &Container, error: &ApiError) {
    for waiting in std::mem::take(&mut *super::lock(&container.waiting)) {
        let _ = waiting.joined.send(Err(ApiError::new(error.status, error.message.clone())));
    }
}

async fn connect(app: &Arc<App>, id: &str, waiting: Waiting) {
    let Waiting { fifos, mut ends, close_stdin, joined } = waiting;
    if let Some(relay) = app.containers.relays.get(id) {
        let attached = relay.attach(&app.supervisor, id, &fifos, close_stdin).and_then(|()| fifos.settle(&mut ends));
        let failed = |e| ApiError::internal(format!("attach to {id}: open FIFOs: {e}"));
        let _ = joined.send(attached.map(|()| ends).map_err(failed));
        return;
    }
    let request = AttachRequest {
        container_id: id.to_owned(),
        exec_id: String::new(),
        stdin: fifos.stdin.clone(),
        stdout: fifos.stdout.clone(),
        stderr: fifos.stderr.clone(),
        close_stdin,
        // The shim knows which client came before the start, and so runs the container.
        lag: Lag::Unspecified.into(),
    };
    let answer = app.supervisor.streams().attach(request).await.map_err(SupervisorError::from);
    let result = match answer {
        Ok(_) => fifos
            .settle(&mut ends)
            .map(|()| ends)
            .map_err(|e| ApiError::internal(format!("attach to {id}: open stdin: {e}"))),
        Err(error) => {
            warn!(id = ids::short(id), error = %chain(&error), "attach failed");
            Err(ApiError::of(error.kind(), &error))
        }
    };
    let _ = joined.send(result);
}

impl Joining {
    /// Serves the client on its own connection until one side is done.
    pub async fn serve(self, app: Arc<App>, client: ClientStream) {
        let id = self.container.id.clone();
        let mut client = client;
        if let Replay::Log(format) = self.replay {
            return self.serve_log(app, client, format).await;
        }
        if self.replay == Replay::First {
            let options =
                logs::Options { stdout: self.wants.stdout, stderr: self.wants.stderr, ..logs::Options::default() };
            match self.replay(&app, &options, client).await {
                Some(back) => client = back,
                None => return,
            }
        }
        let Some(joined) = self.joined else { return };
        let mut removal = self.container.ends.subscribe();
        let gone = async {
            // Nobody starts a container that has been removed.
            let _ = removal.wait_for(|ends| ends.removed).await;
        };
        let joined = tokio::select! {
            // First: what a client wrote before it left is passed on.
            biased;
            joined = joined => joined,
            () = gone => return,
            () = left(&client) => return,
        };
        // A failed start is told by the answer to the start; here the stream just ends.
        let Ok(Ok(ends)) = joined else { return };
        let (over, stop) = oneshot::channel();
        let mut exits = self.container.ends.subscribe();
        exits.mark_unchanged();
        let watcher = tokio::spawn(async move {
            if exits.changed().await.is_ok() {
                tokio::time::sleep(AFTER_EXIT).await;
            }
            let _ = over.send(());
        });
        let (ended, mut writer) = pump(client, ends, self.framing, self.keys, stop).await;
        watcher.abort();
        let _ = writer.shutdown().await;
        if ended == Ended::Detached {
            app.events.publish("container", "detach", &id, self.container.attributes());
        }
        debug!(id = ids::short(&id), ?ended, "attachment ended");
    }

    /// Output from the log, as it is and as it grows; input as ever.
    async fn serve_log(self, app: Arc<App>, client: ClientStream, format: log_config::Format) {
        let id = self.container.id.clone();
        let options =
            logs::Options { stdout: self.wants.stdout, stderr: self.wants.stderr, format, ..logs::Options::default() };
        let (sender, mut pieces) = tokio::sync::mpsc::channel(4);
        tokio::spawn(follow::send(app.clone(), self.container.clone(), options, true, self.framing, sender));
        let ClientStream { stream, early } = client;
        let (mut reader, mut writer) = stream.into_split();
        let output = async {
            while let Some(Ok(piece)) = pieces.recv().await {
                if writer.write_all(&piece).await.is_err() {
                    return Ended::Client;
                }
            }
            Ended::Output
        };
        let joined = self.joined;
        let mut keys = self.keys;
        let input = async {
            let stdin = match joined {
                // A failed start ends the log as well.
                Some(joined) => joined.await.ok().and_then(Result::ok).map(Ends::into_input),
                None => None,
            };
            copy_input(&mut reader, early, stdin.unwrap_or_default(), keys.as_mut()).await
        };
        let ended = tokio::select! {
            ended = output => ended,
            ended = input => ended,
        };
        let _ = writer.shutdown().await;
        if ended == Ended::Detached {
            app.events.publish("container", "detach", &id, self.container.attributes());
        }
        debug!(id = ids::short(&id), ?ended, "attachment ended");
    }

    async fn replay(&self, app: &App, options: &logs::Options, client: ClientStream) -> Option<ClientStream> {
        let ClientStream { stream, early } = client;
        let (reader, mut writer) = stream.into_split();
        let kind = self.container.live().record.host.log_config.kind.clone();
        // As Docker: nothing is shown of a log that can't be read back.
        let mut log = match log_config::readable(&kind) {
            None => return reader.reunite(writer).ok().map(|stream| ClientStream { stream, early }),
            Some(format) => {
                let options = logs::Options { format, ..options.clone() };
                let place = log_config::path(&app.containers.folder_of(&self.container.id), &self.container.id, &kind);
                tokio::task::spawn_blocking(move || logs::Reader::open(&place, &options)).await.ok()?
            }
        };
        while let Some((stream, text)) = log.next_line() {
            let written = match self.framing {
                Framing::Raw => writer.write_all(&text).await,
                Framing::Multiplexed => write_frame(&mut writer, stream, &text).await,
            };
            written.ok()?;
        }
        // Both halves are of the same stream, so they fit.
        reader.reunite(writer).ok().map(|stream| ClientStream { stream, early })
    }
}

/// Returns when the client has gone entirely; what it types meanwhile stays unread.
async fn left(client: &ClientStream) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        {
            let mut fds = [PollFd::new(client.stream.as_fd(), PollFlags::empty())];
            let hung_up = PollFlags::POLLHUP | PollFlags::POLLERR;
            if poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|e| e.intersects(hung_up)) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
