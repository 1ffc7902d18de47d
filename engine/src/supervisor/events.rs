//! The supervisor's events, with word of when the subscription was interrupted.

use super::{Client, SupervisorError, client::NAMESPACE};
use proto::containerd::services::events::v1::{Envelope, SubscribeRequest};
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Streaming;

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// From here on nothing is missed; events from before were not heard, so look at the state now.
    Connected,
    /// Something happened.
    Event(Box<Envelope>),
    /// The connection is gone; it is being made again.
    Lost(SupervisorError),
}

/// A subscription that lasts until it is dropped.
pub struct Subscription {
    notices: mpsc::Receiver<Notice>,
    // Ends with the value.
    _task: JoinSet<()>,
}

impl Subscription {
    /// Subscribes to everything that happens in the engine's namespace.
    pub fn new(client: Client) -> Self {
        let (sender, notices) = mpsc::channel(1024);
        let mut task = JoinSet::new();
        task.spawn(run(client, sender));
        Self { notices, _task: task }
    }

    /// The next notice; waits as long as it takes.
    pub async fn next(&mut self) -> Option<Notice> {
        self.notices.recv().await
    }
}

async fn run(client: Client, notices: mpsc::Sender<Notice>) {
    let mut pause = Duration::from_millis(10);
    loop {
        let error = match listen(&client, &notices).await {
            Ok(()) => return,
            Err(error) => error,
        };
        // After a connection that worked, the next attempt comes at once; the connector then waits for the socket.
        pause = if error.is_disconnect() { Duration::from_millis(10) } else { (pause * 2).min(Duration::from_secs(5)) };
        if notices.send(Notice::Lost(error)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

// Ends with Ok when nobody listens to us any more.
async fn listen(client: &Client, notices: &mpsc::Sender<Notice>) -> Result<(), SupervisorError> {
    let filters = vec![format!("namespace=={NAMESPACE}")];
    let mut events = client.events();
    let mut opening = std::pin::pin!(events.subscribe(SubscribeRequest { filters }));
    // Berth's supervisor answers when the subscription stands. A Go server sends its headers only with the first event,
    // but has subscribed as soon as it got the request: the version call, answered after it, is as good a sign.
    let mut early = None;
    tokio::select! {
        biased;
        answer = &mut opening => early = Some(answer?.into_inner()),
        answer = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            client.version_service().version(()).await
        } => drop(answer?),
    }
    if notices.send(Notice::Connected).await.is_err() {
        return Ok(());
    }
    let mut stream: Streaming<Envelope> = match early {
        Some(stream) => stream,
        None => opening.await?.into_inner(),
    };
    while let Some(envelope) = stream.message().await? {
        if envelope.namespace == NAMESPACE && notices.send(Notice::Event(Box::new(envelope))).await.is_err() {
            return Ok(());
        }
    }
    Err(SupervisorError::Lost("the supervisor ended the event stream".into()))
}
