//! Snapshots service.

use std::{pin::Pin, sync::Arc};

use proto::containerd::{
    events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove},
    services::snapshots::v1::{self as api, snapshots_server},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::required;
use crate::{
    failure::{blocking, lease, namespace, status},
    snapshots::{Kind, Record, Snapshotter},
    store::{Stores, labels_from},
};

const PAGE: usize = 100;

/// The service over the snapshotters.
pub(crate) struct SnapshotsService(Arc<Stores>);

impl SnapshotsService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

/// The snapshotter that a request names.
fn driver(stores: &Stores, name: &str) -> Result<Arc<Snapshotter>, Status> {
    stores.snapshots.get(name).cloned().map_err(status)
}

fn to_info(name: String, record: Record) -> api::Info {
    api::Info {
        name,
        parent: record.parent.unwrap_or_default(),
        kind: match record.kind {
            Kind::View => api::Kind::View,
            Kind::Active => api::Kind::Active,
            Kind::Committed => api::Kind::Committed,
        }
        .into(),
        created_at: Some(record.created_at.to_proto()),
        updated_at: Some(record.updated_at.to_proto()),
        labels: record.labels.into_iter().collect(),
    }
}

#[async_trait]
impl snapshots_server::Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let (namespace, lease, stores) = (namespace(&request)?, lease(&request), self.0.clone());
        let request = request.into_inner();
        let driver = driver(&stores, &request.snapshotter)?;
        blocking(move || {
            let (key, parent) = (request.key, request.parent);
            let labels = labels_from(request.labels);
            let mounts = driver.prepare(namespace.as_str(), &key, &parent, labels, lease.as_deref()).map_err(status)?;
            stores.publish(namespace.as_str(), "/snapshot/prepare", &SnapshotPrepare { key, parent });
            Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
        })
        .await
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let (namespace, lease, stores) = (namespace(&request)?, lease(&request), self.0.clone());
        let request = request.into_inner();
        let driver = driver(&stores, &request.snapshotter)?;
        blocking(move || {
            let (key, parent) = (request.key, request.parent);
            let labels = labels_from(request.labels);
            let mounts = driver.view(namespace.as_str(), &key, &parent, labels, lease.as_deref()).map_err(status)?;
            stores.publish(namespace.as_str(), "/snapshot/prepare", &SnapshotPrepare { key, parent });
            Ok(Response::new(api::ViewSnapshotResponse { mounts }))
        })
        .await
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Result<Response<api::MountsResponse>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let driver = driver(&self.0, &request.snapshotter)?;
        let mounts = driver.mounts(namespace.as_str(), &request.key).map_err(status)?;
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let (namespace, lease, stores) = (namespace(&request)?, lease(&request), self.0.clone());
        let request = request.into_inner();
        let driver = driver(&stores, &request.snapshotter)?;
        blocking(move || {
            let (name, key) = (request.name, request.key);
            let labels = labels_from(request.labels);
            driver.commit(namespace.as_str(), &name, &key, labels, lease.as_deref()).map_err(status)?;
            stores.publish(namespace.as_str(), "/snapshot/commit", &SnapshotCommit { key, name });
            Ok(Response::new(()))
        })
        .await
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        let driver = driver(&stores, &request.snapshotter)?;
        blocking(move || {
            let key = request.key;
            driver.remove(namespace.as_str(), &key).map_err(status)?;
            stores.publish(namespace.as_str(), "/snapshot/remove", &SnapshotRemove { key });
            Ok(Response::new(()))
        })
        .await
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request));
        let request = request.into_inner();
        let driver = driver(&self.0, &request.snapshotter)?;
        let answer = |key, record| Response::new(api::StatSnapshotResponse { info: Some(to_info(key, record)) });
        let Some(lease) = lease else {
            let record = driver.stat(namespace.as_str(), &request.key).map_err(status)?;
            return Ok(answer(request.key, record));
        };
        blocking(move || {
            let record = driver.stat_under(namespace.as_str(), &request.key, &lease).map_err(status)?;
            Ok(answer(request.key, record))
        })
        .await
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let driver = driver(&self.0, &request.snapshotter)?;
        let info = required(request.info, "info")?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        blocking(move || {
            let labels = labels_from(info.labels);
            let record = driver.update(namespace.as_str(), &info.name, &labels, &paths).map_err(status)?;
            Ok(Response::new(api::UpdateSnapshotResponse { info: Some(to_info(info.name, record)) }))
        })
        .await
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let driver = driver(&self.0, &request.snapshotter)?;
        let found = driver.list(namespace.as_str(), &request.filters).map_err(status)?;
        let pages: Vec<_> = found
            .chunks(PAGE)
            .map(|page| {
                let info = page.iter().map(|(name, record)| to_info(name.clone(), record.clone())).collect();
                Ok(api::ListSnapshotsResponse { info })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Result<Response<api::UsageResponse>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let driver = driver(&self.0, &request.snapshotter)?;
        blocking(move || {
            let usage = driver.usage(namespace.as_str(), &request.key).map_err(status)?;
            Ok(Response::new(api::UsageResponse { size: usage.bytes as i64, inodes: usage.inodes as i64 }))
        })
        .await
    }

    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        let driver = driver(&self.0, &request.get_ref().snapshotter)?;
        blocking(move || driver.cleanup().map_err(status).map(Response::new)).await
    }
}
