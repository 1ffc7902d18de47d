//! gRPC health checking: dockerd and ctr ask here whether the server is up before they call anything else.

use std::pin::Pin;

use proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::app::Draining;

/// `grpc.health.v1.Health`. The server as a whole is healthy or it ends; single services have no state of their own.
pub(crate) struct HealthService {
    draining: Draining,
}

impl HealthService {
    /// Healthy until `draining`.
    pub(crate) fn new(draining: Draining) -> Self {
        Self { draining }
    }

    fn answer(&self, service: &str) -> HealthCheckResponse {
        let status = match service {
            "" | "grpc.health.v1.Health" if self.draining.has_begun() => ServingStatus::NotServing,
            "" | "grpc.health.v1.Health" => ServingStatus::Serving,
            name if name.starts_with("containerd.services.") => ServingStatus::Serving,
            "runtime.v1.RuntimeService" | "runtime.v1.ImageService" => ServingStatus::Serving,
            _ => ServingStatus::ServiceUnknown,
        };
        HealthCheckResponse { status: status.into() }
    }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let answer = self.answer(&request.get_ref().service);
        if answer.status() == ServingStatus::ServiceUnknown {
            return Err(Status::not_found(format!("service {:?} is not served here", request.get_ref().service)));
        }
        Ok(Response::new(answer))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // The answer changes once at most, when we drain, and then the stream ends.
        let now = self.answer(&request.get_ref().service);
        let draining = self.draining.clone();
        let later = async move {
            draining.begun().await;
            Ok(HealthCheckResponse { status: ServingStatus::NotServing.into() })
        };
        let later = futures_util::stream::once(later);
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(now)).chain(later))))
    }
}
