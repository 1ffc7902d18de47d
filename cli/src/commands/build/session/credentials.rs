//! Credentials for the registries that a build pulls from and pushes to.

use crate::credentials::{self, Credentials, host_of};
use proto::moby::filesync::v1::auth_server::Auth as AuthService;
use proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Docker Hub, as builders name it.
const HUB_HOST: &str = "registry-1.docker.io";

/// Looks credentials up for exactly the registry that is asked for.
pub struct Auth {
    credentials: Arc<Credentials>,
}

impl Auth {
    /// Those of the user.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials }
    }
}

#[tonic::async_trait]
impl AuthService for Auth {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let credentials = self.credentials.clone();
        // A helper is a program: it takes as long as it takes.
        let found = tokio::task::spawn_blocking(move || {
            let host = host_of(&host);
            credentials.of(if host == HUB_HOST { credentials::HUB_KEY } else { credentials::key_of(host) })
        });
        let found = found.await.map_err(|error| Status::internal(format!("look credentials up: {error}")))?;
        let (username, secret) = match found.identity_token.as_str() {
            "" => (found.username, found.password),
            token => (String::new(), token.to_owned()),
        };
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    // Tokens are fetched by the builder itself, which then asks for credentials.

    async fn fetch_token(&self, _: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("the client fetches no tokens"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("the client fetches no tokens"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("the client fetches no tokens"))
    }
}
