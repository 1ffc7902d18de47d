//! What images take on disk, from the records that their removal works with: so `system df` and what a prune says it has
//! freed agree.

use super::Images;
use crate::supervisor::{Client, SupervisorError};
use proto::containerd::services::{
    content::v1::ListContentRequest,
    snapshots::v1::{Kind, ListSnapshotsRequest, StatSnapshotRequest, UsageRequest},
};

/// Bytes that a snapshot takes by itself.
pub async fn snapshot(client: &Client, snapshotter: &str, key: &str) -> Result<i64, SupervisorError> {
    let request = UsageRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let usage = client.retry(request, |client, request| async move { client.snapshots().usage(request).await }).await?;
    Ok(usage.size)
}

/// Bytes that a snapshot and all below it take.
pub async fn whole(client: &Client, snapshotter: &str, key: &str) -> Result<i64, SupervisorError> {
    let (mut sum, mut key) = (0, key.to_owned());
    while !key.is_empty() {
        sum += snapshot(client, snapshotter, &key).await?;
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        let stat =
            client.retry(request, |client, request| async move { client.snapshots().stat(request).await }).await?;
        key = stat.info.unwrap_or_default().parent;
    }
    Ok(sum)
}

impl Images {
    /// Bytes of all images: unpacked layers, and blobs as they came.
    pub async fn disk_usage(&self) -> Result<i64, SupervisorError> {
        let mut sum = 0;
        for snapshotter in self.client.snapshotters() {
            let request = ListSnapshotsRequest { snapshotter: snapshotter.clone(), filters: Vec::new() };
            let mut pages = self
                .client
                .retry(request, |client, request| async move { client.snapshots().list(request).await })
                .await?;
            let mut committed = Vec::new();
            while let Some(page) = pages.message().await? {
                let layers = page.info.into_iter().filter(|info| info.kind() == Kind::Committed);
                committed.extend(layers.map(|info| info.name));
            }
            for name in committed {
                match snapshot(&self.client, snapshotter, &name).await {
                    Ok(size) => sum += size,
                    // Gone since it was listed.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let request = ListContentRequest::default();
        let mut pages =
            self.client.retry(request, |client, request| async move { client.content().list(request).await }).await?;
        while let Some(page) = pages.message().await? {
            sum += page.info.iter().map(|info| info.size).sum::<i64>();
        }
        Ok(sum)
    }
}
