//! `docker save`: images as an archive, written by the supervisor and passed on as it comes.

use super::{ImageError, Images, ResolvedImage, names::dangling_name, platform::Platform};
use crate::supervisor::{Step, SupervisorError, Transfer, transfer::Download};
use bytes::Bytes;
use futures_util::{Stream, stream};
use proto::{
    containerd::types::transfer::{ImageExportStream, ImageStore},
    kind::chain,
    typeurl,
};
use std::io;

/// An archive whose beginning is there.
pub struct Saved {
    transfer: Transfer,
    download: Download,
    first: Option<Bytes>,
}

impl Images {
    /// Begins to write the images that `names` mean; what fails before the first byte is still an error status. Gives the
    /// images, too.
    pub async fn begin_save(
        &self,
        names: &[&str],
        platforms: Vec<Platform>,
    ) -> Result<(Saved, Vec<ResolvedImage>), ImageError> {
        if names.is_empty() {
            return Err(ImageError::Invalid("save: no image is named".into()));
        }
        let mut images = Vec::new();
        let mut export = Vec::new();
        for name in names {
            let image = self.resolve(name).await?;
            let record = match &image.name {
                Some(name) => name.to_string(),
                None => self.any_record(&image).await?,
            };
            if !export.contains(&record) {
                export.push(record);
            }
            images.push(image);
        }
        let failed = |error| ImageError::supervisor("save", names.join(" "), error);
        let store = ImageStore { export_images: export, ..ImageStore::default() };
        let wanted = if platforms.is_empty() { vec![Platform::host()] } else { platforms };
        let platforms = wanted.iter().map(Platform::to_proto).collect();
        let destination =
            |stream| typeurl::pack(&ImageExportStream { stream, platforms, ..ImageExportStream::default() });
        let (mut transfer, mut download) = Transfer::save(&self.client, store, destination).await.map_err(failed)?;
        let first = match download.next().await {
            Some(bytes) => Some(bytes),
            None => {
                result(&mut transfer).await.map_err(failed)?;
                None
            }
        };
        Ok((Saved { transfer, download, first }, images))
    }

    // An image asked for by its id: under the record without a name if there is one, so that the archive has none either.
    async fn any_record(&self, image: &ResolvedImage) -> Result<String, ImageError> {
        let records = self.records().await?;
        let nameless = dangling_name(&image.target.digest);
        let same = |record: &&super::Record| record.target.digest == image.target.digest;
        let record = records.iter().find(|r| r.name == nameless).or_else(|| records.iter().find(same));
        record.map(|r| r.name.clone()).ok_or_else(|| ImageError::NotFound(image.id.to_string()))
    }
}

async fn result(transfer: &mut Transfer) -> Result<(), SupervisorError> {
    loop {
        match transfer.next().await {
            Some(Step::Progress(_)) => {}
            Some(Step::Done(result)) => return result,
            None => return Err(SupervisorError::Protocol("transfer without result".into())),
        }
    }
}

impl Saved {
    /// The archive. It ends with an error if the supervisor failed, so that a cut archive does not look whole.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(Some(self), async |saved| {
            let Some(mut saved) = saved else { return Ok(None) };
            let piece = match saved.first.take() {
                Some(piece) => Some(piece),
                None => saved.download.next().await,
            };
            match piece {
                Some(piece) => Ok(Some((piece, Some(saved)))),
                None => match result(&mut saved.transfer).await {
                    Ok(()) => Ok(None),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "save failed");
                        Err(io::Error::other(error))
                    }
                },
            }
        })
    }
}
