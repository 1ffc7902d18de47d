//! Runs one Transfer with its side channels: progress out, credentials and archive in.

use super::{
    Client, SupervisorError,
    auth::{self, Credentials},
    streams::{self, SideChannel},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use prost_types::Any;
use proto::{
    containerd::{
        services::transfer::v1::{TransferOptions, TransferRequest},
        types::transfer::{AuthRequest, Data, ImageStore, Progress, WindowUpdate},
    },
    image_ref::ImageRef,
    typeurl,
};
use std::pin::Pin;
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Streaming;
use tracing::debug;

/// Largest piece of an archive in one message.
const PIECE: usize = 256 << 10;

/// What the supervisor may send ahead of a slow client.
const WINDOW: i32 = 1 << 20;

/// What a running transfer reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Something moved.
    Progress(Box<Progress>),
    /// It is over; nothing follows.
    Done(Result<(), SupervisorError>),
}

/// A running transfer. Dropping it cancels the transfer in the supervisor.
pub struct Transfer {
    steps: mpsc::Receiver<Step>,
    // Ends with the value: the call and its side channels live in these tasks.
    _tasks: JoinSet<()>,
}

/// An archive sent to the supervisor; an error in it cancels the transfer.
pub type Archive = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

impl Transfer {
    /// The next report; `None` after [`Step::Done`].
    pub async fn next(&mut self) -> Option<Step> {
        self.steps.recv().await
    }

    /// Pulls the image that `source` describes for an auth stream of that name, into `store`.
    pub async fn pull(
        client: &Client,
        reference: &ImageRef,
        credentials: Option<Credentials>,
        store: ImageStore,
        source: impl FnOnce(String) -> Any,
    ) -> Result<Self, SupervisorError> {
        let (client, mut tasks) = (&client.apart(), JoinSet::new());
        let auth_stream = offer(client, &mut tasks, reference, credentials).await?;
        Self::start(client, tasks, source(auth_stream), typeurl::pack(&store), None).await
    }

    /// Pushes an image of `store` to what `destination` describes for an auth stream of that name.
    pub async fn push(
        client: &Client,
        reference: &ImageRef,
        credentials: Option<Credentials>,
        store: ImageStore,
        destination: impl FnOnce(String) -> Any,
    ) -> Result<Self, SupervisorError> {
        let (client, mut tasks) = (&client.apart(), JoinSet::new());
        let auth_stream = offer(client, &mut tasks, reference, credentials).await?;
        Self::start(client, tasks, typeurl::pack(&store), destination(auth_stream), None).await
    }

    /// Loads an archive into `store`; `source` describes it, given the name of the stream that it comes on.
    pub async fn load(
        client: &Client,
        archive: Archive,
        store: ImageStore,
        source: impl FnOnce(String) -> Any,
    ) -> Result<Self, SupervisorError> {
        let client = &client.apart();
        let channel = streams::open(client, "import").await?;
        let source = source(channel.id.clone());
        Self::start(client, JoinSet::new(), source, typeurl::pack(&store), Some((channel, archive))).await
    }

    /// Writes images of `store` into an archive; `destination` describes it, given the name of the stream that it comes on.
    pub async fn save(
        client: &Client,
        store: ImageStore,
        destination: impl FnOnce(String) -> Any,
    ) -> Result<(Self, Download), SupervisorError> {
        let client = &client.apart();
        let channel = streams::open(client, "export").await?;
        let destination = destination(channel.id.clone());
        let transfer = Self::start(client, JoinSet::new(), typeurl::pack(&store), destination, None).await?;
        Ok((transfer, Download { channel, window: 0 }))
    }

    async fn start(
        client: &Client,
        mut tasks: JoinSet<()>,
        source: Any,
        destination: Any,
        upload: Option<(SideChannel, Archive)>,
    ) -> Result<Self, SupervisorError> {
        let progress = streams::open(client, "progress").await?;
        let options = TransferOptions { progress_stream: progress.id.clone() };
        let request = TransferRequest { source: Some(source), destination: Some(destination), options: Some(options) };
        let (reports, steps) = mpsc::channel(64);
        let mut transfers = client.transfers();
        tasks.spawn(async move {
            let call = async { transfers.transfer(request).await.map(drop).map_err(SupervisorError::from) };
            let send = async {
                match upload {
                    Some((channel, archive)) => send_archive(channel, archive).await,
                    None => Ok(()),
                }
            };
            let SideChannel { sender, receiver, .. } = progress;
            let mut forward = std::pin::pin!(forward_progress(receiver, reports.clone()));
            let (mut call, mut send) = (std::pin::pin!(call), std::pin::pin!(send));
            let (mut forwarding, mut sending) = (true, true);
            let result = loop {
                tokio::select! {
                    result = &mut call => break result,
                    // A broken archive ends the call, and with it everything that the supervisor began for it.
                    result = &mut send, if sending => match result {
                        Ok(()) => sending = false,
                        Err(error) => break Err(error),
                    },
                    () = &mut forward, if forwarding => forwarding = false,
                }
            };
            // The last reports were sent before the answer to the call, but on another stream.
            if forwarding && result.is_ok() {
                drop(sender);
                if tokio::time::timeout(std::time::Duration::from_secs(2), forward).await.is_err() {
                    debug!("supervisor left the progress stream open");
                }
            }
            // A receiver that is gone has cancelled us already.
            let _ = reports.send(Step::Done(result)).await;
        });
        Ok(Self { steps, _tasks: tasks })
    }
}

/// Serves credentials to a transfer; gives the name of the stream.
async fn offer(
    client: &Client,
    tasks: &mut JoinSet<()>,
    reference: &ImageRef,
    credentials: Option<Credentials>,
) -> Result<String, SupervisorError> {
    // Opened only with credentials: otherwise the supervisor would wait for an answer that says nothing.
    let Some(credentials) = credentials else { return Ok(String::new()) };
    let channel = streams::open(client, "auth").await?;
    let id = channel.id.clone();
    tasks.spawn(serve_credentials(channel, reference.clone(), credentials));
    Ok(id)
}

/// The archive that a transfer writes.
pub struct Download {
    channel: SideChannel,
    // What the supervisor may still send.
    window: i32,
}

impl Download {
    /// The next piece; `None` when the supervisor has closed the stream, for whatever reason.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.window < WINDOW / 2 {
                let update = WindowUpdate { update: WINDOW - self.window };
                self.channel.sender.send(typeurl::pack(&update)).await.ok()?;
                self.window = WINDOW;
            }
            let any = self.channel.receiver.message().await.ok()??;
            if let Some(Ok(Data { data })) = typeurl::unpack::<Data>(&any) {
                self.window = self.window.saturating_sub(i32::try_from(data.len()).unwrap_or(i32::MAX));
                return Some(data.into());
            }
        }
    }
}

async fn forward_progress(mut receiver: Streaming<Any>, reports: mpsc::Sender<Step>) {
    // An error here is the same broken connection that the call itself reports.
    while let Ok(Some(any)) = receiver.message().await {
        match typeurl::unpack::<Progress>(&any) {
            Some(Ok(progress)) => {
                if reports.send(Step::Progress(Box::new(progress))).await.is_err() {
                    return;
                }
            }
            _ => debug!(type_url = any.type_url, "not a progress message"),
        }
    }
}

async fn serve_credentials(mut channel: SideChannel, reference: ImageRef, credentials: Credentials) {
    while let Ok(Some(any)) = channel.receiver.message().await {
        let Some(Ok(request)) = typeurl::unpack::<AuthRequest>(&any) else { continue };
        debug!(host = request.host, "credentials asked for");
        let answer = auth::answer(&request, &reference, Some(&credentials));
        if channel.sender.send(typeurl::pack(&answer)).await.is_err() {
            return;
        }
    }
}

// Sends no more than the supervisor has allowed with WindowUpdate messages, so that neither side buffers an archive.
async fn send_archive(channel: SideChannel, mut archive: Archive) -> Result<(), SupervisorError> {
    let SideChannel { sender, mut receiver, .. } = channel;
    let mut window: usize = 0;
    let mut piece = Bytes::new();
    loop {
        while piece.is_empty() {
            match archive.next().await {
                Some(Ok(bytes)) => piece = bytes,
                Some(Err(error)) => {
                    return Err(SupervisorError::Refused {
                        kind: proto::kind::ErrorKind::Cancelled,
                        message: format!("read archive from the client: {error}"),
                    });
                }
                None => {
                    drop(sender);
                    // Stays open for what the supervisor still says; the answer to the call ends it.
                    while let Ok(Some(_)) = receiver.message().await {}
                    return Ok(());
                }
            }
        }
        while window == 0 {
            match receiver.message().await {
                Ok(Some(any)) => {
                    if let Some(Ok(update)) = typeurl::unpack::<WindowUpdate>(&any) {
                        window += usize::try_from(update.update).unwrap_or(0);
                    }
                }
                // The supervisor wants no more: it is done, or failed and says so in the answer to the call.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        let data = piece.split_to(piece.len().min(window).min(PIECE));
        window -= data.len();
        if sender.send(typeurl::pack(&Data { data: data.into() })).await.is_err() {
            return Ok(());
        }
    }
}
