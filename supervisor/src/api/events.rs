//! The event bus at the edge: clients publish and subscribe, shims forward.

use std::{pin::Pin, sync::Arc, time::SystemTime};

use proto::containerd::services::events::v1::{
    Envelope, ForwardRequest, PublishRequest, SubscribeRequest, events_server,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{filters, required};
use crate::{
    events::{EventBus, EventError, Replay, Wanted, field},
    failure::{blocking, namespace, status},
    tasks::Tasks,
};

/// `containerd.services.events.v1.Events`.
pub(crate) struct EventsService {
    bus: Arc<EventBus>,
    tasks: Arc<Tasks>,
}

impl EventsService {
    /// The edge of `bus`; what shims forward is shown to `tasks` first.
    pub(crate) fn new(bus: Arc<EventBus>, tasks: Arc<Tasks>) -> Self {
        Self { bus, tasks }
    }
}

#[tonic::async_trait]
impl events_server::Events for EventsService {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let PublishRequest { topic, event } = request.into_inner();
        let timestamp = Some(SystemTime::now().into());
        self.bus
            .forward(Envelope { timestamp, namespace: namespace.into(), topic, event, sequence: 0 })
            .map_err(status)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = required(request.into_inner().envelope, "envelope")?;
        // Our own facts first: who hears of an exit and asks us must get the same answer.
        if self.tasks.observe(&envelope) {
            self.bus.forward(envelope).map_err(status)?;
        }
        Ok(Response::new(()))
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let since = since(&request)?;
        let filters = filters(&request.into_inner().filters)?;
        let wanted: Wanted = Arc::new(move |envelope: &Envelope| filters.accept(|path| field(envelope, path)));
        // The stream is live when the answer's headers are out: whoever subscribes before acting misses nothing.
        let Some(since) = since else {
            let events = self.bus.subscribe(wanted).map_err(status)?.map(|event| {
                // Numbers are for those who ask for them.
                event.map(|event| Envelope { sequence: 0, ..Arc::unwrap_or_clone(event) }).map_err(status)
            });
            return Ok(Response::new(Box::pin(events)));
        };
        let (bus, asked) = (self.bus.clone(), wanted.clone());
        let (replay, live) = blocking(move || bus.subscribe_since(asked, since).map_err(status)).await?;
        let live = live.map(|event| event.map(Arc::unwrap_or_clone).map_err(status));
        Ok(Response::new(Box::pin(past(replay, wanted).chain(live))))
    }
}

/// Metadata key by which a subscriber asks for what came after an event that it knows by its number; 0 asks for everything
/// that is kept. Its answers carry numbers.
const SINCE_HEADER: &str = "berth-since-sequence";

fn since<T>(request: &Request<T>) -> Result<Option<u64>, Status> {
    let Some(value) = request.metadata().get(SINCE_HEADER) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Status::invalid_argument(format!("{SINCE_HEADER} is not a number")))
}

/// Events of the past, read some at a time on a thread that may wait for the disk.
fn past(replay: Replay, wanted: Wanted) -> impl Stream<Item = Result<Envelope, Status>> {
    let lots = futures_util::stream::unfold(Some(replay), move |replay| {
        let wanted = wanted.clone();
        async move {
            let mut replay = replay?;
            let read = blocking(move || {
                let mut lot = Vec::new();
                while lot.len() < 64 {
                    match replay.next() {
                        Ok(Some(envelope)) if wanted(&envelope) => lot.push(Ok(envelope)),
                        Ok(Some(_)) => {}
                        Ok(None) => return Ok((lot, None)),
                        Err(error) => return Err(status(EventError::Log(error.to_string()))),
                    }
                }
                Ok((lot, Some(replay)))
            });
            Some(read.await.unwrap_or_else(|error| (vec![Err(error)], None)))
        }
    });
    futures_util::StreamExt::flat_map(lots, tokio_stream::iter)
}
