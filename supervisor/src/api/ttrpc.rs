//! The ttrpc socket: shims of others send their events there (`Forward`), and nothing else is served on it.

use std::sync::Arc;

use prost::Message as _;
use proto::{
    containerd::services::events::v1::ForwardRequest,
    ttrpc::{self, Call, EVENTS},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Status};

use super::events::EventsService;
use crate::app::Draining;
use proto::containerd::services::events::v1::events_server::Events as _;

/// Serves every connection that comes in until the supervisor drains.
pub(crate) async fn serve<S>(
    callers: impl Stream<Item = std::io::Result<S>>,
    events: Arc<EventsService>,
    draining: Draining,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut callers = std::pin::pin!(callers);
    let mut end = std::pin::pin!(draining.clone().begun());
    loop {
        let stream = tokio::select! {
            () = &mut end => return,
            Some(Ok(stream)) = callers.next() => stream,
            else => return,
        };
        let (events, draining) = (events.clone(), draining.clone());
        tokio::spawn(async move {
            let ended = ttrpc::serve(stream, draining.begun(), move |call| answer(events.clone(), call)).await;
            if let Err(error) = ended {
                tracing::debug!(%error, "ttrpc connection ended");
            }
        });
    }
}

async fn answer(events: Arc<EventsService>, call: Call) -> Result<Vec<u8>, Status> {
    match (call.service(), call.method()) {
        (EVENTS, "Forward") => {
            let request: ForwardRequest = call.message()?;
            events.forward(Request::new(request)).await?;
            Ok(().encode_to_vec())
        }
        _ => Err(call.unimplemented()),
    }
}
