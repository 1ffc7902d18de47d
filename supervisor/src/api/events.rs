//! The event bus at the edge: clients publish and subscribe, shims forward.

use std::{pin::Pin, sync::Arc};

use proto::containerd::services::events::v1::{
    Envelope, ForwardRequest, PublishRequest, SubscribeRequest, events_server,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::required;
use crate::{
    events::EventBus,
    failure::{namespace, status},
};

/// `containerd.services.events.v1.Events`.
pub(crate) struct EventsService {
    bus: Arc<EventBus>,
}

impl EventsService {
    /// The edge of `bus`.
    pub(crate) fn new(bus: Arc<EventBus>) -> Self {
        Self { bus }
    }
}

#[tonic::async_trait]
impl events_server::Events for EventsService {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let PublishRequest { topic, event } = request.into_inner();
        self.bus.publish_any(&namespace, topic, event).map_err(status)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = required(request.into_inner().envelope, "envelope")?;
        self.bus.forward(envelope).map_err(status)?;
        Ok(Response::new(()))
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let filters = request.into_inner().filters;
        if !filters.is_empty() {
            return Err(Status::unimplemented("event filters are not supported yet"));
        }
        let events = self.bus.subscribe(Box::new(|_| true)).map_err(status)?;
        // The stream is live when the answer's headers are out: whoever subscribes before acting misses nothing.
        let events = events.map(|event| match event {
            Ok(event) => Ok(Arc::unwrap_or_clone(event)),
            Err(error) => Err(status(error)),
        });
        Ok(Response::new(Box::pin(events)))
    }
}
