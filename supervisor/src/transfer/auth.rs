//! Asks the client of a transfer for credentials, when a registry wants some.

use std::{sync::Arc, time::Duration};

use proto::{
    containerd::types::transfer::{AuthRequest, AuthResponse, AuthType, RegistryResolver},
    typeurl,
};
use tokio::sync::Mutex;
use tonic::async_trait;

use super::{Context, TransferError, streams::Stream};
use crate::registry::{Anonymous, Credential, Credentials};

/// A client that never answers would hold the transfer for ever.
const PATIENCE: Duration = Duration::from_secs(120);

impl Context {
    /// Who knows the credentials for `reference`: the client, if it has opened a stream for that.
    pub(super) async fn credentials(
        &self,
        resolver: &RegistryResolver,
        reference: &str,
    ) -> Result<Arc<dyn Credentials>, TransferError> {
        Ok(match resolver.auth_stream.as_str() {
            "" => Arc::new(Anonymous),
            id => {
                let stream = Mutex::new(self.streams.take(&self.namespace, id).await?);
                Arc::new(AuthStream { stream, reference: reference.to_owned() })
            }
        })
    }
}

struct AuthStream {
    stream: Mutex<Stream>,
    reference: String,
}

#[async_trait]
impl Credentials for AuthStream {
    async fn credential(&self, host: &str, challenges: &[String]) -> Option<Credential> {
        let request = AuthRequest {
            host: host.to_owned(),
            reference: self.reference.clone(),
            wwwauthenticate: challenges.to_vec(),
        };
        let mut stream = self.stream.lock().await;
        stream.outbound.send(Ok(typeurl::pack(&request))).await.ok()?;
        let any = tokio::time::timeout(PATIENCE, stream.inbound.recv()).await.ok()??.ok()?;
        let answer: AuthResponse = typeurl::unpack(&any)?.ok()?;
        match answer.auth_type() {
            AuthType::None => None,
            AuthType::Credentials if answer.secret.is_empty() && answer.username.is_empty() => None,
            AuthType::Credentials => Some(Credential::Password { user: answer.username, secret: answer.secret }),
            AuthType::Refresh => Some(Credential::Refresh(answer.secret)),
            AuthType::Header => Some(Credential::Header(answer.secret)),
        }
    }
}
