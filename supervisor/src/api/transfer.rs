//! Transfer service: pull, push, import, tag and export.

use std::sync::Arc;

use proto::containerd::services::transfer::v1::{TransferRequest, transfer_server};
use tonic::{Request, Response, Status, async_trait};

use super::required;
use crate::{
    failure::{namespace, status},
    registry::Registries,
    store::Stores,
    transfer::{Context, Streams},
};

/// The service over stores and streams.
pub(crate) struct TransferService {
    stores: Arc<Stores>,
    streams: Arc<Streams>,
    registries: Arc<Registries>,
}

impl TransferService {
    /// The service over these stores, with the streams of the Streaming service.
    pub(crate) fn new(stores: Arc<Stores>, streams: Arc<Streams>, registries: Arc<Registries>) -> Self {
        Self { stores, streams, registries }
    }
}

#[async_trait]
impl transfer_server::Transfer for TransferService {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let (source, destination) =
            (required(request.source, "source")?, required(request.destination, "destination")?);
        let progress = request.options.unwrap_or_default().progress_stream;
        let (stores, streams, registries) = (self.stores.clone(), self.streams.clone(), self.registries.clone());
        // Dropped with this future: a client that goes away ends its transfer.
        let run = Context::run(stores, streams, registries, namespace.as_str(), &source, &destination, &progress);
        run.await.map_err(status)?;
        Ok(Response::new(()))
    }
}
