//! What a session needs of a process: the ends of its stdio, and somebody who has it in hand.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::kind::chain;
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe,
    time::{Instant, timeout},
};
use tonic::async_trait;
use tracing::debug;

use super::{StreamingError, Target, mux::Inbox};

/// Read from a process at once.
const CHUNK: usize = 32 << 10;
/// More than a process can have written that has ended, and that is still on its way: what comes behind it is from its children.
const LAST_WORDS: usize = 4 << 20;

/// Which streams a client has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// To the process.
    pub(super) stdin: bool,
    /// From it.
    pub(super) stdout: bool,
    /// From it.
    pub(super) stderr: bool,
    /// Whether it is shown on a terminal: its size may change.
    pub(super) tty: bool,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Size {
    /// Columns.
    pub(super) width: u16,
    /// Rows.
    pub(super) height: u16,
}

/// A process, or a container, that a client is joined to.
pub(super) struct Process {
    /// The way in.
    pub(super) stdin: Option<pipe::Sender>,
    /// The ways out.
    pub(super) stdout: Option<pipe::Receiver>,
    /// As above.
    pub(super) stderr: Option<pipe::Receiver>,
    /// Who has it in hand.
    pub(super) handle: Arc<dyn Handle>,
    /// How long its output may be silent after its end before it counts as ended: its children may hold it open for ever.
    pub(super) grace: Duration,
}

/// What can be done about it.
#[async_trait]
pub(super) trait Handle: Send + Sync {
    /// Sets the size of its terminal.
    async fn resize(&self, size: Size);
    /// The client's input has ended, and our end of its stdin is closed.
    async fn input_ended(&self);
    /// Its exit code, once it has one; nobody asks for that of a container.
    async fn exit(&self) -> Result<Option<u32>, StreamingError>;
    /// Ends it at once.
    async fn kill(&self);
    /// It has ended, and its output was read: nothing is to stay behind.
    async fn forget(&self);
    /// The client has gone: what is to stay behind no longer than the process itself, is seen to.
    async fn abandon(&self);
}

/// Who makes processes.
#[async_trait]
pub(super) trait Backend: Send + Sync + 'static {
    /// Runs a command in a container.
    async fn exec(&self, target: &Target, command: &[String], wants: Wants) -> Result<Process, StreamingError>;
    /// Joins a client to a container's own process.
    async fn attach(&self, target: &Target, wants: Wants) -> Result<Process, StreamingError>;
}

/// Where output goes; the error stops it.
#[async_trait]
pub(super) trait Sink: Send {
    /// Takes a piece.
    async fn take(&mut self, piece: &[u8]) -> Result<(), super::mux::Gone>;
}

/// Copies what a process writes, until nobody can write any more, or nobody takes it. Once it has `ended`, what it has written is
/// copied, and what its children write isn't waited for.
pub(super) async fn copy_output(
    from: pipe::Receiver,
    mut to: impl Sink,
    mut ended: tokio::sync::watch::Receiver<bool>,
    grace: Duration,
) {
    let mut buffer = vec![0; CHUNK];
    let mut since_end = 0;
    loop {
        let over = *ended.borrow_and_update();
        match from.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                since_end += if over { count } else { 0 };
                if to.take(&buffer[..count]).await.is_err() || since_end > LAST_WORDS {
                    return;
                }
                continue;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if over {
            match timeout(grace, from.readable()).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        } else {
            tokio::select! {
                ready = from.readable() => if ready.is_err() { return },
                // An end of which nobody tells is none: the other branch goes on.
                Ok(()) = ended.changed() => {}
            }
        }
    }
}

/// Copies what a client sends. Done when the client has ended its input; what nobody reads is thrown away.
pub(super) async fn copy_input(mut from: Inbox, to: Option<pipe::Sender>, handle: &dyn Handle) {
    let mut to = to;
    while let Some(piece) = from.next().await {
        if let Some(sender) = &mut to
            && sender.write_all(&piece).await.is_err()
        {
            to = None;
        }
    }
    drop(to);
    handle.input_ended().await;
}

/// Sizes that are sent as one JSON object behind the other.
#[derive(Debug, Default)]
pub(super) struct Sizes(Vec<u8>);

/// Longest object that can be meant.
const SIZE_LIMIT: usize = 1 << 10;

impl Sizes {
    /// Takes bytes, and answers the last size that is complete; none if there is none. The error says that no more will come.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Option<Size>, StreamingError> {
        let mut last = None;
        // In parts, so that no more than what is incomplete has to be held.
        for part in bytes.chunks(SIZE_LIMIT) {
            self.0.extend_from_slice(part);
            let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
            let incomplete = loop {
                match objects.next() {
                    Some(Ok(size)) => last = Some(size),
                    Some(Err(error)) if !error.is_eof() => return Err(StreamingError::Size(error)),
                    Some(Err(_)) | None => break objects.byte_offset(),
                }
            };
            self.0.drain(..incomplete);
            if self.0.len() > SIZE_LIMIT {
                return Err(StreamingError::Request("the size of a terminal is two numbers"));
            }
        }
        Ok(last)
    }
}

/// Sets the size of a terminal as often as a client sends one.
pub(super) async fn follow_sizes(mut from: Inbox, handle: &dyn Handle) {
    let mut sizes = Sizes::default();
    while let Some(piece) = from.next().await {
        match sizes.take(&piece) {
            Ok(Some(size)) => handle.resize(size).await,
            Ok(None) => {}
            Err(error) => {
                debug!(error = %chain(&error), "sizes of a terminal end");
                break;
            }
        }
    }
    // What still comes is thrown away, lest the connection waits for it.
    while from.next().await.is_some() {}
}

/// Output that is kept, up to a limit; the rest is read and thrown away.
pub(super) struct Kept<'a> {
    /// What was kept.
    pub(super) bytes: &'a mut Vec<u8>,
    /// How much may be.
    pub(super) limit: usize,
}

#[async_trait]
impl Sink for Kept<'_> {
    async fn take(&mut self, piece: &[u8]) -> Result<(), super::mux::Gone> {
        let room = self.limit.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        Ok(())
    }
}

/// Output that goes to a client.
pub(super) struct Sent(pub(super) super::mux::Outlet);

#[async_trait]
impl Sink for Sent {
    async fn take(&mut self, piece: &[u8]) -> Result<(), super::mux::Gone> {
        self.0.write(Bytes::copy_from_slice(piece)).await
    }
}

/// A command that has run by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// Its exit code.
    pub(super) code: u32,
    /// What it wrote.
    pub(super) stdout: Vec<u8>,
    /// As above.
    pub(super) stderr: Vec<u8>,
}

/// How long a process may take to die.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Runs a process to its end, or until it has taken so long, or the caller has gone: then it is killed. The most of each stream that
/// is kept is `limit`.
pub(super) async fn run(
    process: Process,
    patience: Option<Duration>,
    limit: usize,
    caller: impl Future<Output = ()> + Send,
) -> Result<Ran, StreamingError> {
    let Process { stdin: _, stdout, stderr, handle, grace } = process;
    let (end, ended) = tokio::sync::watch::channel(false);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let copy = |from: Option<pipe::Receiver>, bytes| {
        let ended = ended.clone();
        async move {
            if let Some(from) = from {
                copy_output(from, Kept { bytes, limit }, ended, grace).await;
            }
        }
    };
    let copied = async { tokio::join!(copy(stdout, &mut out), copy(stderr, &mut err)) };
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let waiting = async {
        let stopped = tokio::select! {
            biased;
            exit = handle.exit() => return exit,
            () = elapsed(deadline) => StreamingError::TookTooLong(patience.unwrap_or_default()),
            () = caller => StreamingError::CallerGone,
        };
        handle.kill().await;
        if timeout(KILL_LIMIT, handle.exit()).await.is_err() {
            debug!("a process does not die");
        }
        Err(stopped)
    };
    let exit = async {
        let exit = waiting.await;
        end.send_replace(true);
        exit
    };
    let (exit, _) = tokio::join!(exit, copied);
    handle.forget().await;
    let code = exit?.ok_or(StreamingError::NoExit)?;
    Ok(Ran { code, stdout: out, stderr: err })
}

async fn elapsed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
