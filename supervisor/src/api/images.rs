//! Images service: names of images.

use std::sync::Arc;

use proto::containerd::services::images::v1::{self as api, images_server};
use tonic::{Request, Response, Status, async_trait};

use super::required;
use crate::{
    failure::{blocking, namespace, status},
    gc::expiry,
    images::{Record, manifest::Descriptor},
    labels::check,
    store::{Stores, labels_from},
};

/// The service over the image records.
pub(crate) struct ImagesService(Arc<Stores>);

impl ImagesService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

fn to_image(name: String, record: Record) -> api::Image {
    api::Image {
        name,
        labels: record.labels.into_iter().collect(),
        target: Some(record.target.to_proto()),
        created_at: Some(record.created_at.to_proto()),
        updated_at: Some(record.updated_at.to_proto()),
    }
}

fn target(image: &mut api::Image) -> Result<Option<Descriptor>, Status> {
    let bad = |why| Status::invalid_argument(format!("image {:?}: target: {why}", image.name));
    // Go's clients send an empty message for a target that they leave alone.
    let target = image.target.take().filter(|target| !target.digest.is_empty());
    target.map(Descriptor::from_proto).transpose().map_err(bad)
}

#[async_trait]
impl images_server::Images for ImagesService {
    async fn get(&self, request: Request<api::GetImageRequest>) -> Result<Response<api::GetImageResponse>, Status> {
        let namespace = namespace(&request)?;
        let name = request.into_inner().name;
        let record = self.0.images.get(namespace.as_str(), &name).map_err(status)?;
        Ok(Response::new(api::GetImageResponse { image: Some(to_image(name, record)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let namespace = namespace(&request)?;
        let found = self.0.images.list(namespace.as_str(), &request.get_ref().filters).map_err(status)?;
        let images = found.into_iter().map(|(name, record)| to_image(name, record)).collect();
        Ok(Response::new(api::ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<api::CreateImageRequest>,
    ) -> Result<Response<api::CreateImageResponse>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let mut image = required(request.into_inner().image, "image")?;
        let target = required(target(&mut image)?, "image target")?;
        blocking(move || {
            let labels = labels_from(image.labels);
            check(&labels).map_err(Status::invalid_argument)?;
            crate::recipes::images::adopt(&stores, namespace.as_str(), &target).map_err(status)?;
            let record = stores.images.create(namespace.as_str(), &image.name, target, labels).map_err(status)?;
            stores.gc.changed();
            stores.gc.expires_if(expiry(&record.labels));
            let event =
                api::ImageCreate { name: image.name.clone(), labels: record.labels.clone().into_iter().collect() };
            stores.publish(namespace.as_str(), "/images/create", &event);
            Ok(Response::new(api::CreateImageResponse { image: Some(to_image(image.name, record)) }))
        })
        .await
    }

    async fn update(
        &self,
        request: Request<api::UpdateImageRequest>,
    ) -> Result<Response<api::UpdateImageResponse>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        let mut image = required(request.image, "image")?;
        let target = target(&mut image)?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        blocking(move || {
            let labels = labels_from(image.labels);
            check(&labels).map_err(Status::invalid_argument)?;
            let record =
                stores.images.update(namespace.as_str(), &image.name, target, &labels, &paths).map_err(status)?;
            let event =
                api::ImageUpdate { name: image.name.clone(), labels: record.labels.clone().into_iter().collect() };
            stores.publish(namespace.as_str(), "/images/update", &event);
            stores.gc.schedule(); // the old target may have become unreachable
            stores.gc.expires_if(expiry(&record.labels));
            Ok(Response::new(api::UpdateImageResponse { image: Some(to_image(image.name, record)) }))
        })
        .await
    }

    async fn delete(&self, request: Request<api::DeleteImageRequest>) -> Result<Response<()>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let api::DeleteImageRequest { name, sync, target } = request.into_inner();
        let target = target.map(|target| target.digest).filter(|digest| !digest.is_empty());
        blocking(move || {
            stores.images.delete(namespace.as_str(), &name, target.as_deref()).map_err(status)?;
            stores.publish(namespace.as_str(), "/images/delete", &api::ImageDelete { name });
            if sync {
                stores.gc.collect().map_err(status)?;
            } else {
                stores.gc.schedule();
            }
            Ok(Response::new(()))
        })
        .await
    }
}
