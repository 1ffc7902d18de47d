//! Streaming service: side channels that a transfer takes by their name.

use std::{pin::Pin, sync::Arc};

use prost_types::Any;
use proto::{
    containerd::services::streaming::v1::{StreamInit, streaming_server},
    typeurl,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{
    failure::{namespace, status},
    transfer::{Streams, pair},
};

/// The service over the streams that wait for a transfer.
pub(crate) struct StreamingService(Arc<Streams>);

impl StreamingService {
    /// The service over these streams.
    pub(crate) fn new(streams: Arc<Streams>) -> Self {
        Self(streams)
    }
}

#[async_trait]
impl streaming_server::Streaming for StreamingService {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Any, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let namespace = namespace(&request)?;
        let mut inbound = request.into_inner();
        let (ours, to_us, to_client) = pair();
        let streams = self.0.clone();
        tokio::spawn(async move {
            let outbound = ours.outbound.clone();
            let opened = async {
                let first =
                    inbound.message().await?.ok_or_else(|| Status::invalid_argument("stream without a name"))?;
                let init: StreamInit = typeurl::unpack(&first)
                    .and_then(Result::ok)
                    .ok_or_else(|| Status::invalid_argument("first message of a stream must be a StreamInit"))?;
                streams.register(namespace.as_str(), &init.id, ours).map_err(status)
            };
            if let Err(error) = opened.await {
                let _ = outbound.send(Err(error)).await;
                return;
            }
            // It may be referred to from now on.
            let ready = Any { type_url: "google.protobuf.Empty".into(), value: Vec::new() };
            if outbound.send(Ok(ready)).await.is_err() {
                return;
            }
            // The transfer's end of it decides when the stream ends.
            drop(outbound);
            loop {
                let message = match inbound.message().await {
                    Ok(Some(any)) => Ok(any),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let last = message.is_err();
                if to_us.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(to_client))))
    }
}
