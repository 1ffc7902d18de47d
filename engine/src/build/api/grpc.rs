//! `POST /grpc`: the client's connection becomes HTTP/2, and BuildKit's services are served on it.
//!
//! Traces of clients (OTLP) are taken and dropped, as a BuildKit without a collector does: clients send them whether or not
//! somebody wants them, and fail if they can't.

use super::{control::ControlService, gateway::GatewayService};
use crate::{
    app::App,
    build::Builder,
    http::{ApiError, ApiResult},
};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    service::TowerToHyperService,
};
use proto::{
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus,
        health_server::{Health, HealthServer},
    },
    moby::buildkit::v1::{control_server::ControlServer, frontend::llb_bridge_server::LlbBridgeServer},
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tonic::Status;
use tower::ServiceExt as _;
use tracing::debug;

/// The largest message: BuildKit's limit.
const MESSAGE: usize = 16 << 20;
/// Clients that are gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// `POST /grpc`
pub async fn take_over(State(app): State<Arc<App>>, mut request: Request<Body>) -> ApiResult {
    let wanted = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !wanted.eq_ignore_ascii_case("h2c") {
        return Err(ApiError::invalid(format!("unsupported protocol {wanted:?}: this endpoint upgrades to h2c only")));
    }
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(ApiError::invalid("this connection can't be taken over"));
    };
    let services = services(app.builder.clone());
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => serve(connection, services).await,
            Err(error) => debug!(%error, "client left before the upgrade"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "h2c")
        .body(Body::empty())
        .map_err(|error| ApiError::unexpected(&error))
}

/// Serves one connection until it ends.
pub async fn serve<I>(connection: I, services: Router)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = services.map_request(|request: Request<hyper::body::Incoming>| request.map(Body::new));
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .serve_connection(connection, TowerToHyperService::new(service));
    if let Err(error) = served.await {
        debug!(%error, "connection of a build's client ended");
    }
}

/// Everything that is served there.
pub fn services(builder: Arc<Builder>) -> Router {
    let control = ControlServer::new(ControlService(builder.clone()));
    let gateway = LlbBridgeServer::new(GatewayService(builder));
    let routes =
        tonic::service::Routes::new(control.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(gateway.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(HealthServer::new(Healthy));
    routes
        .into_axum_router()
        .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post(drop_trace))
        .route("/containerd.services.content.v1.Content/{call}", post(no_content))
}

/// An answer without content, which is an `ExportTraceServiceResponse` too.
async fn drop_trace(request: Request<Body>) -> Response {
    let drained = http_body_util::BodyExt::collect(http_body_util::Limited::new(request.into_body(), MESSAGE)).await;
    if drained.is_err() {
        return Status::resource_exhausted("a trace is too large").into_http::<Body>().into_response();
    }
    let mut trailers = axum::http::HeaderMap::new();
    trailers.insert("grpc-status", axum::http::HeaderValue::from_static("0"));
    let empty = http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]));
    let body = http_body_util::BodyExt::with_trailers(empty, std::future::ready(Some(Ok(trailers))));
    ([(header::CONTENT_TYPE, "application/grpc")], Body::new(body)).into_response()
}

async fn no_content(axum::extract::Path(call): axum::extract::Path<String>) -> Response {
    let text = format!("containerd's Content.{call} is not implemented in berth: the history keeps no blobs");
    Status::unimplemented(text).into_http::<Body>().into_response()
}

/// Says that all is well.
#[derive(Debug, Clone)]
pub struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let known = ["", "moby.buildkit.v1.Control", "moby.buildkit.v1.frontend.LLBBridge"];
        if !known.contains(&service.as_str()) {
            return Err(Status::not_found(format!("unknown service {service}")));
        }
        Ok(tonic::Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    type WatchStream = Pin<Box<dyn futures_util::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let now = self.check(request).await?.into_inner();
        // It stays so until the connection ends.
        let stream =
            futures_util::StreamExt::chain(futures_util::stream::iter([Ok(now)]), futures_util::stream::pending());
        Ok(tonic::Response::new(Box::pin(stream)))
    }
}
