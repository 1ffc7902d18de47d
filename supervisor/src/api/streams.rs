//! Attachments and requests for new log files at the edge. They are the shim's business; bytes never come this way.

use std::sync::Arc;

use proto::berth::streams::v1::{AttachRequest, AttachResponse, ReopenLogRequest, ReopenLogResponse, streams_server};
use tonic::{Request, Response, Status};

use crate::{
    failure::{namespace, status},
    tasks::Tasks,
};

/// `berth.streams.v1.Streams`.
pub(crate) struct StreamsService {
    tasks: Arc<Tasks>,
}

impl StreamsService {
    /// The edge of `tasks`.
    pub(crate) fn new(tasks: Arc<Tasks>) -> Self {
        Self { tasks }
    }
}

#[tonic::async_trait]
impl streams_server::Streams for StreamsService {
    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let namespace = namespace(&request)?;
        self.tasks.attach(&namespace, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(AttachResponse {}))
    }

    async fn reopen_log(&self, request: Request<ReopenLogRequest>) -> Result<Response<ReopenLogResponse>, Status> {
        let namespace = namespace(&request)?;
        self.tasks.reopen_log(&namespace, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(ReopenLogResponse {}))
    }
}
