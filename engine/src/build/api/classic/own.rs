//! The session of a client that has none: the engine itself serves what came in the request, the unpacked context and credentials
//! for registries, so that all builds get their files and credentials in one way.

use crate::{
    build::{
        api::grpc,
        session::{Announced, SessionError, Sessions},
    },
    http::query::percent_decode,
    supervisor::{Credentials, auth::Form},
};
use axum::http::{HeaderMap, HeaderValue};
use filesync::send::{Filter, send};
use futures_util::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use proto::{
    fsutil::types::Packet,
    grpc::health::v1::health_server::HealthServer,
    moby::filesync::v1::{
        CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
        GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
        auth_server::{Auth, AuthServer},
        file_sync_server::{FileSync, FileSyncServer},
    },
};
use std::{collections::BTreeMap, path::PathBuf, pin::Pin, sync::Arc};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

/// Packets that are on their way.
const AHEAD: usize = 64;

/// A session that ends when this is dropped.
#[derive(Debug)]
pub struct OwnSession {
    /// Its id.
    pub id: String,
    served: JoinHandle<()>,
}

impl Drop for OwnSession {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl OwnSession {
    /// Serves `folder` as context and as what the Dockerfile is in.
    pub fn open(
        sessions: &Sessions,
        id: String,
        folder: Option<PathBuf>,
        credentials: BTreeMap<String, Credentials>,
    ) -> Result<Self, SessionError> {
        let mut headers = HeaderMap::new();
        let invalid = |error: axum::http::header::InvalidHeaderValue| SessionError::Invalid(error.to_string());
        headers.insert("x-docker-expose-session-uuid", HeaderValue::from_str(&id).map_err(invalid)?);
        headers.insert("x-docker-expose-session-name", HeaderValue::from_static("build"));
        let mut methods = vec!["/moby.filesync.v1.Auth/Credentials", "/grpc.health.v1.Health/Check"];
        if folder.is_some() {
            methods.push("/moby.filesync.v1.FileSync/DiffCopy");
        }
        for method in methods {
            headers.append("x-docker-expose-session-grpc-method", HeaderValue::from_static(method));
        }
        let served = Served(Arc::new(Content { folder, credentials }));
        let mut routes =
            tonic::service::Routes::new(AuthServer::new(served.clone())).add_service(HealthServer::new(grpc::Healthy));
        if served.0.folder.is_some() {
            routes = routes.add_service(FileSyncServer::new(served));
        }
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let served = tokio::spawn(grpc::serve(TokioIo::new(theirs), routes.into_axum_router()));
        let opened = Self { id, served };
        sessions.attach(Announced::from_headers(&headers)?, ours)?;
        Ok(opened)
    }
}

#[derive(Debug)]
struct Content {
    folder: Option<PathBuf>,
    credentials: BTreeMap<String, Credentials>,
}

#[derive(Debug, Clone)]
struct Served(Arc<Content>);

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Served {
    type DiffCopyStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let metadata = request.metadata();
        let name = words(metadata, "dir-name").into_iter().next().unwrap_or_default();
        let folder = self.0.folder.clone().filter(|_| matches!(name.as_str(), "context" | "dockerfile"));
        let folder = folder.ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let filter = Filter {
            include: words(metadata, "include-patterns"),
            exclude: words(metadata, "exclude-patterns"),
            follow: words(metadata, "followpaths"),
            owned_by_root: true,
        };
        let (incoming, from_them) = mpsc::channel(AHEAD);
        let (outgoing, to_them) = mpsc::channel(AHEAD);
        let mut stream = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(packet)) = stream.next().await {
                if incoming.send(packet).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(async move {
            if let Err(error) = send(&folder, &filter, from_them, outgoing).await {
                tracing::debug!(error = %proto::kind::chain(&error), "context of a build wasn't sent");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(to_them).map(Ok))))
    }

    type TarStreamStream = Packets;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("TarStream isn't served here"))
    }
}

/// Words of a call; those that headers can't carry come as in a form.
fn words(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = metadata.get(format!("{key}-encoded")).is_some();
    let values = metadata.get_all(key).iter().filter_map(|value| value.to_str().ok());
    values.map(|value| if encoded { percent_decode(value) } else { value.to_owned() }).collect()
}

#[tonic::async_trait]
impl Auth for Served {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        // The hub has a name of its own in configurations of clients.
        let hub = ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"];
        let known = &self.0.credentials;
        let found = if hub.contains(&host.as_str()) {
            hub.iter().find_map(|name| known.get(*name))
        } else {
            let names =
                [host.clone(), format!("https://{host}"), format!("http://{host}"), format!("https://{host}/v1/")];
            names.iter().find_map(|name| known.get(name))
        };
        let answer = match found {
            // A token that is traded for others has no user.
            Some(Credentials { secret, form: Form::IdentityToken | Form::RegistryToken, .. }) => {
                CredentialsResponse { secret: secret.clone(), ..CredentialsResponse::default() }
            }
            Some(found) => CredentialsResponse { username: found.username.clone(), secret: found.secret.clone() },
            None => CredentialsResponse::default(),
        };
        Ok(Response::new(answer))
    }

    async fn fetch_token(&self, _: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by the builder itself"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by the builder itself"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by the builder itself"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn credentials_of_the_request_and_of_no_other_registry() {
        let form = Form::Password;
        let one = Credentials { username: "u".into(), secret: "s".into(), form };
        let known = [("https://index.docker.io/v1/".to_owned(), one.clone()), ("r:5000".to_owned(), one)].into();
        let served = Served(Arc::new(Content { folder: None, credentials: known }));
        for (host, user) in [("registry-1.docker.io", "u"), ("r:5000", "u"), ("r", ""), ("evil", "")] {
            let request = Request::new(CredentialsRequest { host: host.into() });
            assert_eq!(served.credentials(request).await.unwrap().into_inner().username, user, "{host}");
        }
    }

    #[tokio::test]
    async fn a_session_is_found_until_it_is_dropped() {
        let sessions = Sessions::new();
        let own = OwnSession::open(&sessions, "own1".into(), None, BTreeMap::new()).unwrap();
        let session = sessions.find("own1").await.unwrap();
        assert!(session.supports("/moby.filesync.v1.Auth/Credentials"));
        assert!(!session.supports("/moby.filesync.v1.FileSync/DiffCopy"));
        drop(own);
        tokio::time::timeout(std::time::Duration::from_secs(10), session.ended()).await.unwrap();
    }
}
