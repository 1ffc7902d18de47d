//! Namespaces service.

use std::sync::Arc;

use proto::{
    containerd::{
        events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate},
        services::namespaces::v1::{self as api, namespaces_server},
    },
    id::NamespaceName,
};
use tonic::{Request, Response, Status, async_trait};

use super::required;
use crate::{
    failure::{blocking, status},
    store::{Labels, Stores, labels_from},
};

/// The service over the namespaces.
pub(crate) struct NamespacesService(Arc<Stores>);

impl NamespacesService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

fn to_namespace(name: &str, labels: Labels) -> api::Namespace {
    api::Namespace { name: name.to_owned(), labels: labels.into_iter().collect() }
}

fn checked(name: String) -> Result<String, Status> {
    NamespaceName::new(name).map(String::from).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[async_trait]
impl namespaces_server::Namespaces for NamespacesService {
    async fn get(
        &self,
        request: Request<api::GetNamespaceRequest>,
    ) -> Result<Response<api::GetNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        let labels = self.0.namespaces.get(&name).map_err(status)?;
        Ok(Response::new(api::GetNamespaceResponse { namespace: Some(to_namespace(&name, labels)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListNamespacesRequest>,
    ) -> Result<Response<api::ListNamespacesResponse>, Status> {
        let filters = crate::filters::Filters::parse(&[request.into_inner().filter])
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut found = self.0.namespaces.list().map_err(status)?;
        found.retain(|(name, labels)| filters.accept_labelled(labels, |f| (f == "name").then(|| name.clone())));
        let namespaces = found.into_iter().map(|(name, labels)| to_namespace(&name, labels)).collect();
        Ok(Response::new(api::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::CreateNamespaceResponse>, Status> {
        let message = required(request.into_inner().namespace, "namespace")?;
        let (name, labels, stores) = (checked(message.name)?, labels_from(message.labels), self.0.clone());
        blocking(move || {
            stores.namespaces.create(&name, labels.clone()).map_err(status)?;
            let event = NamespaceCreate { name: name.clone(), labels: labels.clone().into_iter().collect() };
            stores.publish(&name, "/namespaces/create", &event);
            Ok(Response::new(api::CreateNamespaceResponse { namespace: Some(to_namespace(&name, labels)) }))
        })
        .await
    }

    async fn update(
        &self,
        request: Request<api::UpdateNamespaceRequest>,
    ) -> Result<Response<api::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let message = required(request.namespace, "namespace")?;
        let (name, labels, stores) = (checked(message.name)?, labels_from(message.labels), self.0.clone());
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        blocking(move || {
            let labels = stores.namespaces.update(&name, &labels, &paths).map_err(status)?;
            let event = NamespaceUpdate { name: name.clone(), labels: labels.clone().into_iter().collect() };
            stores.publish(&name, "/namespaces/update", &event);
            Ok(Response::new(api::UpdateNamespaceResponse { namespace: Some(to_namespace(&name, labels)) }))
        })
        .await
    }

    async fn delete(&self, request: Request<api::DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let (name, stores) = (request.into_inner().name, self.0.clone());
        blocking(move || {
            stores.namespaces.delete(&name).map_err(status)?;
            stores.publish(&name, "/namespaces/delete", &NamespaceDelete { name: name.clone() });
            Ok(Response::new(()))
        })
        .await
    }
}
