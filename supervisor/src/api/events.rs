//! The event bus at the edge: clients publish and subscribe, shims forward.

use std::{pin::Pin, sync::Arc, time::SystemTime};

use proto::containerd::services::events::v1::{
    Envelope, ForwardRequest, PublishRequest, SubscribeRequest, events_server,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{filters, required};
use crate::{
    events::{EventBus, field},
    failure::{namespace, status},
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
        self.bus.forward(Envelope { timestamp, namespace: namespace.into(), topic, event }).map_err(status)?;
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
        let filters = filters(&request.into_inner().filters)?;
        let wanted = move |envelope: &Envelope| filters.accept(|path| field(envelope, path));
        let events = self.bus.subscribe(Box::new(wanted)).map_err(status)?;
        // The stream is live when the answer's headers are out: whoever subscribes before acting misses nothing.
        let events = events.map(|event| match event {
            Ok(event) => Ok(Arc::unwrap_or_clone(event)),
            Err(error) => Err(status(error)),
        });
        Ok(Response::new(Box::pin(events)))
    }
}
