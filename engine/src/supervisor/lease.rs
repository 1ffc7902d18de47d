//! Leases: what an operation of several calls has made so far is kept from the collector.

use super::{Client, SupervisorError};
use crate::time::Timestamp;
use proto::{
    containerd::services::{leases::v1 as leases, snapshots::v1::RemoveSnapshotRequest},
    kind::chain,
};
use std::collections::HashMap;
use tracing::warn;

/// Label of the engine's leases.
const LABEL: &str = "berth/engine.operation";

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
        Self::create(client, id, [("containerd.io/gc.expire".to_owned(), expiry)].into()).await
    }

    /// The same without an end: for what lasts as long as this engine. The next one gives it back.
    pub async fn take_for_good(client: &Client, id: &str) -> Result<Self, SupervisorError> {
        Self::create(client, id, HashMap::new()).await
    }

    async fn create(client: &Client, id: &str, mut labels: HashMap<String, String>) -> Result<Self, SupervisorError> {
        labels.insert(LABEL.to_owned(), "true".to_owned());
        client.leases().create(leases::CreateRequest { id: id.to_owned(), labels }).await?;
        Ok(Self { client: client.with_lease(id)?, id: id.to_owned() })
    }

    /// Ends those of engines before this one: what their operations had made so far goes.
    pub async fn sweep(client: &Client) -> Result<(), SupervisorError> {
        let list = leases::ListRequest { filters: vec![format!("labels.\"{LABEL}\"")] };
        let listed = client.retry(list, |client, request| async move { client.leases().list(request).await }).await?;
        // Looked at again: a peer may not know the filter.
        for lease in listed.leases.into_iter().filter(|lease| lease.labels.contains_key(LABEL)) {
            let lease = Self { client: client.clone(), id: lease.id };
            if let Err(error) = lease.remove_snapshots().await {
                warn!(error = %chain(&error), "snapshots of an interrupted operation left to the collector");
            }
            lease.give_back().await;
        }
        Ok(())
    }

    /// Removes the snapshots that the operation worked in, which begin with its name. The collector would leave them for a
    /// while: what is fresh may still get a container.
    async fn remove_snapshots(&self) -> Result<(), SupervisorError> {
        let list = leases::ListResourcesRequest { id: self.id.clone() };
        let call = |client: Client, request| async move { client.leases().list_resources(request).await };
        for resource in self.client.retry(list, call).await?.resources {
            let Some(snapshotter) = resource.r#type.strip_prefix("snapshots/") else { continue };
            if !resource.id.starts_with(&self.id) {
                continue;
            }
            let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: resource.id };
            let call = |client: Client, request| async move { client.snapshots().remove(request).await };
            match self.client.retry(request, call).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Gives it back: what nothing else refers to by now is collected before this returns.
    pub async fn give_back(self) {
        // Synchronous: after a failure nothing is left when the user reads why.
        self.end(true).await;
    }

    /// Gives it back; the collector comes when it comes.
    pub async fn give_back_later(self) {
        self.end(false).await;
    }

    async fn end(self, sync: bool) {
        let request = leases::DeleteRequest { id: self.id, sync };
        if let Err(error) =
            self.client.retry(request, |client, request| async move { client.leases().delete(request).await }).await
        {
            warn!(error = %chain(&error), "lease left to its expiry");
        }
    }
}
