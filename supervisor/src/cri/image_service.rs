//! `runtime.v1.ImageService`.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use proto::{
    digest::Digest,
    image_ref::{ImageRef, ImageRefError},
    runtime::v1::{self as cri, image_service_server},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::{
    NAMESPACE, Node, auth,
    images::{Image, Images},
};
use crate::{
    api::required,
    failure::{blocking, status},
    registry::Registries,
    store::Stores,
    transfer::Context,
};

/// Images in one message of a stream: far from 16 MiB, however many names each of them has.
const PER_MESSAGE: usize = 256;

/// The service over the stores.
pub(crate) struct ImageService {
    images: Images,
    node: Arc<Node>,
    registries: Arc<Registries>,
    /// Where the default snapshotter keeps its layers.
    layers: PathBuf,
}

impl ImageService {
    /// The service over these stores; `layers` is the folder whose file system images fill.
    pub(crate) fn new(stores: Arc<Stores>, node: Arc<Node>, registries: Arc<Registries>, layers: PathBuf) -> Self {
        Self { images: Images::new(stores), node, registries, layers }
    }

    async fn list(&self, filter: Option<cri::ImageFilter>) -> Result<Vec<cri::Image>, Status> {
        let (images, wanted) = (self.images.clone(), filter.and_then(|filter| filter.image).unwrap_or_default().image);
        blocking(move || {
            let found = match wanted.as_str() {
                "" => images.list().map_err(status)?,
                wanted => images.find(wanted).map_err(status)?.into_iter().collect(),
            };
            Ok(found.iter().map(Image::to_proto).collect())
        })
        .await
    }
}

/// The image that a request names.
fn named(spec: Option<cri::ImageSpec>) -> Result<cri::ImageSpec, Status> {
    let spec = required(spec, "image")?;
    if spec.image.is_empty() { Err(Status::invalid_argument("image is required")) } else { Ok(spec) }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl image_service_server::ImageService for ImageService {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let images = self.list(request.into_inner().filter).await?;
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    type StreamImagesStream = Answers<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.into_inner().filter).await?;
        let lots: Vec<_> = images
            .chunks(PER_MESSAGE)
            .map(|images| Ok(cri::StreamImagesResponse { images: images.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(lots))))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let cri::ImageStatusRequest { image, verbose } = request.into_inner();
        let (images, wanted) = (self.images.clone(), named(image)?.image);
        blocking(move || {
            let Some(found) = images.find(&wanted).map_err(status)? else {
                return Ok(Response::new(cri::ImageStatusResponse::default()));
            };
            let mut answer = cri::ImageStatusResponse { image: Some(found.to_proto()), ..Default::default() };
            if verbose {
                answer.info.insert("info".into(), images.info(&found).map_err(status)?);
            }
            Ok(Response::new(answer))
        })
        .await
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let cri::PullImageRequest { image, auth, sandbox_config: _ } = request.into_inner();
        let spec = named(image)?;
        self.node.check_handler(&spec.runtime_handler).map_err(status)?;
        // To the grammar of names it is the tag of a repository on the hub.
        if spec.image.parse::<Digest>().is_ok() {
            return Err(Status::invalid_argument(format!("{} is the id of an image, not a name", spec.image)));
        }
        let image: ImageRef =
            spec.image.parse().map_err(|error: ImageRefError| Status::invalid_argument(error.to_string()))?;
        let credentials = auth::credentials(auth, &image).map_err(status)?;
        let (stores, registries) = (self.images.stores.clone(), self.registries.clone());
        // Dropped with this future: a kubelet that gives up ends its pull.
        let target = Context::fetch(stores, registries, NAMESPACE, &image, credentials).await.map_err(status)?;
        let images = self.images.clone();
        let id = blocking(move || images.id_of(&target).map_err(status)).await?;
        Ok(Response::new(cri::PullImageResponse { image_ref: id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let (images, wanted) = (self.images.clone(), named(request.into_inner().image)?.image);
        blocking(move || {
            images.remove(&wanted).map_err(status)?;
            Ok(Response::new(cri::RemoveImageResponse {}))
        })
        .await
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let images = self.images.clone();
        let usage = blocking(move || images.usage().map_err(status)).await?;
        let value = |value| Some(cri::UInt64Value { value });
        let usage = cri::FilesystemUsage {
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as i64),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: self.layers.display().to_string() }),
            used_bytes: value(usage.bytes),
            inodes_used: value(usage.inodes),
        };
        // Containers write beside the layers they stand on: it is one file system.
        let usage = vec![usage];
        Ok(Response::new(cri::ImageFsInfoResponse { image_filesystems: usage.clone(), container_filesystems: usage }))
    }
}
