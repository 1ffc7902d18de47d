//! Leases: what an operation of several calls has made so far is kept from the collector.

use super::{Client, SupervisorError};
use crate::time::Timestamp;
use proto::{containerd::services::leases::v1 as leases, kind::chain};
use tracing::warn;

/// Keeps what is being made from the collector.
pub struct Lease {
    /// Makes its calls under the lease.
    pub client: Client,
    id: String,
}

impl Lease {
    /// Takes a lease of that name; it expires by itself if the engine dies.
    pub async fn take(client: &Client, id: &str) -> Result<Self, SupervisorError> {
        // Given back when done; the expiry is for an engine that dies meanwhile.
        let expiry = Timestamp::from_parts(Timestamp::now().seconds() + 6 * 3600, 0).to_string();
        let request = leases::CreateRequest {
            id: id.to_owned(),
            labels: [("containerd.io/gc.expire".to_owned(), expiry)].into(),
        };
        client.leases().create(request).await?;
        Ok(Self { client: client.with_lease(id)?, id: id.to_owned() })
    }

    /// Gives it back: what nothing else refers to by now is collected before this returns.
    pub async fn give_back(self) {
        // Synchronous: after a failure nothing is left when the user reads why.
        let request = leases::DeleteRequest { id: self.id, sync: true };
        if let Err(error) =
            self.client.retry(request, |client, request| async move { client.leases().delete(request).await }).await
        {
            warn!(error = %chain(&error), "lease left to its expiry");
        }
    }
}
