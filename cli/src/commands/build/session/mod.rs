//! What the builder may ask of the client while it builds: files, results, credentials, secrets, ssh agents, an upload.
//!
//! The connection of `POST /session` goes on as HTTP/2 with the roles turned around: here is the gRPC server, and the builder calls.

pub mod agents;
mod credentials;
pub mod files;
pub mod results;
mod secrets;
#[cfg(test)]
mod tests;
mod upload;

use super::specs::SecretSource;
use crate::client::{Call, Client, ClientError};
use crate::credentials::Credentials;
use agents::Agents;
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proto::grpc::health::v1::health_server::{Health, HealthServer};
use proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use proto::moby::filesync::v1::{auth_server::AuthServer, file_sync_server::FileSyncServer};
use proto::moby::sshforward::v1::ssh_server::SshServer;
use proto::moby::upload::v1::upload_server::UploadServer;
use results::Results;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, service::Routes};

/// Messages of the builder are no larger: BuildKit writes results in pieces of 3 MiB.
const LARGEST: usize = 16 << 20;

/// The stream of an answer.
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a client has for its builder.
#[derive(Debug, Default)]
pub struct Offer {
    /// Folders by name.
    pub folders: BTreeMap<String, PathBuf>,
    /// Where results go.
    pub results: Results,
    /// Credentials for registries.
    pub credentials: Arc<Credentials>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Agents by name.
    pub agents: Agents,
    /// Standard input, under a name.
    pub upload: Option<(String, Vec<u8>)>,
}

/// A session of a client; it ends when this is dropped.
#[derive(Debug)]
pub struct Session {
    /// By which a build names it.
    pub id: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The calls that the builder may make.
const METHODS: &[&str] = &[
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.upload.v1.Upload/Pull",
];

/// Opens a session at the engine and serves it.
pub async fn open(client: &Client, id: String, shared_key: &str, offer: Offer) -> Result<Session, ClientError> {
    let mut call = Call::post("/session")
        .unversioned()
        .header("x-docker-expose-session-uuid", &*id)
        .header("x-docker-expose-session-name", "berth")
        .header("x-docker-expose-session-sharedkey", shared_key);
    for method in METHODS {
        call = call.header("x-docker-expose-session-grpc-method", *method);
    }
    let io = client.upgrade(call, "h2c").await?;
    let routes = routes(offer);
    let task = tokio::spawn(async move {
        if let Err(error) = serve(io, routes).await {
            crate::output::log::debug(|| format!("session: {error}"));
        }
    });
    Ok(Session { id, task })
}

async fn serve(io: impl Read + Write + Send + Unpin + 'static, routes: Routes) -> Result<(), hyper::Error> {
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(io, TowerToHyperService::new(routes))
        .await
}

fn routes(offer: Offer) -> Routes {
    let mut routes = Routes::builder();
    routes
        .add_service(HealthServer::new(Alive))
        .add_service(FileSyncServer::new(files::Files::new(offer.folders)).max_decoding_message_size(LARGEST))
        .add_service(results::Receiver::new(offer.results))
        .add_service(AuthServer::new(credentials::Auth::new(offer.credentials)))
        .add_service(SecretsServer::new(secrets::Secrets::new(offer.secrets)))
        .add_service(SshServer::new(offer.agents))
        .add_service(UploadServer::new(upload::Upload::new(offer.upload)));
    routes.routes()
}

/// Says that the client is there: the builder asks now and then, and gives a silent client up.
struct Alive;

#[tonic::async_trait]
impl Health for Alive {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    type WatchStream = Outgoing<HealthCheckResponse>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("a session's health is asked by Check"))
    }
}
