//! Leases service.

use std::sync::Arc;

use proto::containerd::services::leases::v1::{self as api, leases_server};
use tonic::{Request, Response, Status, async_trait};

use super::required;
use crate::{
    failure::{blocking, namespace, status},
    filters::Filters,
    gc::expiry,
    labels::check,
    leases::{Lease, Resource},
    store::{Stores, labels_from},
};

/// The service over the leases.
pub(crate) struct LeasesService(Arc<Stores>);

impl LeasesService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

fn to_lease(id: String, lease: Lease) -> api::Lease {
    api::Lease { id, created_at: Some(lease.created_at.to_proto()), labels: lease.labels.into_iter().collect() }
}

fn resource(message: Option<api::Resource>) -> Result<Resource, Status> {
    let message = required(message, "resource")?;
    Resource::new(message.r#type, message.id).map_err(status)
}

#[async_trait]
impl leases_server::Leases for LeasesService {
    async fn create(&self, request: Request<api::CreateRequest>) -> Result<Response<api::CreateResponse>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        blocking(move || {
            let labels = labels_from(request.labels);
            check(&labels).map_err(Status::invalid_argument)?;
            let (id, lease) = stores.leases.create(namespace.as_str(), &request.id, labels).map_err(status)?;
            stores.gc.changed();
            stores.gc.expires_if(expiry(&lease.labels));
            Ok(Response::new(api::CreateResponse { lease: Some(to_lease(id, lease)) }))
        })
        .await
    }

    async fn delete(&self, request: Request<api::DeleteRequest>) -> Result<Response<()>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        blocking(move || {
            stores.leases.delete(namespace.as_str(), &request.id).map_err(status)?;
            if request.sync {
                stores.gc.collect().map_err(status)?;
            } else {
                stores.gc.schedule();
            }
            Ok(Response::new(()))
        })
        .await
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListResponse>, Status> {
        let namespace = namespace(&request)?;
        let filters =
            Filters::parse(&request.get_ref().filters).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut found = self.0.leases.list(namespace.as_str()).map_err(status)?;
        found.retain(|(id, lease)| filters.accept_labelled(&lease.labels, |f| (f == "id").then(|| id.clone())));
        let leases = found.into_iter().map(|(id, lease)| to_lease(id, lease)).collect();
        Ok(Response::new(api::ListResponse { leases }))
    }

    async fn add_resource(&self, request: Request<api::AddResourceRequest>) -> Result<Response<()>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        let resource = resource(request.resource)?;
        let add = move || stores.leases.add(namespace.as_str(), &request.id, &resource);
        blocking(move || add().map_err(status).map(Response::new)).await
    }

    async fn delete_resource(&self, request: Request<api::DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        let resource = resource(request.resource)?;
        blocking(move || {
            stores.leases.remove(namespace.as_str(), &request.id, &resource).map_err(status)?;
            stores.gc.schedule();
            Ok(Response::new(()))
        })
        .await
    }

    async fn list_resources(
        &self,
        request: Request<api::ListResourcesRequest>,
    ) -> Result<Response<api::ListResourcesResponse>, Status> {
        let namespace = namespace(&request)?;
        let found = self.0.leases.resources(namespace.as_str(), &request.get_ref().id).map_err(status)?;
        let resources = found.into_iter().map(|r| api::Resource { id: r.id, r#type: r.kind }).collect();
        Ok(Response::new(api::ListResourcesResponse { resources }))
    }
}
