//! Layers that come back: made again for nobody, or as blobs.

use std::io::{self, Read};

use proto::digest::Digest;

use super::{
    RecipeError, Remake,
    keep::{CHUNK, Keeper, Layer, OF, Original, Sink, UNCOMPRESSED},
};
use crate::{content::ContentError, images::manifest::Descriptor, transfer::gzip};

impl Keeper<'_> {
    /// The archive of a dropped layer, made as it is read.
    pub(crate) fn remake(
        &self,
        config: &Digest,
        layer: &Layer,
    ) -> Result<(Remake<std::fs::File>, Digest), RecipeError> {
        let lost = |why: &str| RecipeError::Lost { layer: layer.blob.digest, why: why.to_owned() };
        let recipe = self.named(config, layer.number)?.ok_or_else(|| lost("there is no recipe of it"))?;
        let (tree, _) = self.tree(&layer.chain)?.ok_or_else(|| lost("it is not unpacked any more"))?;
        let (file, _) = self.stores.content.reader(self.namespace, &recipe)?;
        Ok((Remake::new(file, tree).map_err(|error| lost(&error.to_string()))?, recipe))
    }

    /// Makes a dropped layer again for nobody, to see whether it comes out as it was.
    pub(crate) fn check(&self, config: &Digest, layer: &Layer) -> Result<(), RecipeError> {
        let (mut remake, _) = self.remake(config, layer)?;
        let lost = |error: io::Error| RecipeError::Lost { layer: layer.blob.digest, why: error.to_string() };
        let done = io::copy(&mut io::BufReader::with_capacity(CHUNK, remake.by_ref()), &mut io::sink());
        done.map_err(lost)?;
        if remake.digest() == layer.diff_id {
            Ok(())
        } else {
            Err(lost(io::Error::other("its recipe is of another layer")))
        }
    }

    /// Brings a dropped layer back into the store: the same blob if its compression can be repeated, else the archive itself.
    pub(crate) fn restore(&self, config: &Digest, layer: &Layer) -> Result<Descriptor, RecipeError> {
        let (_, recipe) = self.remake(config, layer)?;
        let labels = self.stores.content.info(self.namespace, &recipe)?.labels;
        let original = labels.get(&format!("{OF}{}", layer.blob.digest.hex())).map_or("lost", String::as_str);
        match Original::parse(original) {
            Original::Plain => self.rewrite(config, layer, layer.blob.clone(), false),
            Original::OurGzip => match self.rewrite(config, layer, layer.blob.clone(), true) {
                // Another release may compress in another way.
                Err(RecipeError::Content(ContentError::WrongDigest { .. } | ContentError::WrongSize { .. })) => {
                    self.rewrite(config, layer, uncompressed(layer), false)
                }
                other => other,
            },
            Original::Lost => self.rewrite(config, layer, uncompressed(layer), false),
        }
    }

    fn rewrite(
        &self,
        config: &Digest,
        layer: &Layer,
        to: Descriptor,
        compress: bool,
    ) -> Result<Descriptor, RecipeError> {
        let content = &self.stores.content;
        let reference = format!("remake-{}", to.digest);
        let mut writer = match content.writer(self.namespace, &reference, to.size, Some(to.digest), Some(self.lease)) {
            Err(ContentError::Exists(digest)) => {
                let size = content.info(self.namespace, &digest)?.size;
                return Ok(Descriptor { size, ..to });
            }
            other => other?,
        };
        writer.seek(0)?;
        let (mut remake, _) = self.remake(config, layer)?;
        let written = if compress {
            gzip(remake, |_| {}, |piece| writer.write(piece).map_err(io::Error::other))
        } else {
            io::copy(&mut remake, &mut Sink(|bytes: &[u8]| writer.write(bytes).map_err(io::Error::other))).map(drop)
        };
        if let Err(error) = written {
            writer.abort()?;
            return Err(RecipeError::Lost { layer: layer.blob.digest, why: error.to_string() });
        }
        let size = writer.offset();
        let labels = [(UNCOMPRESSED.to_owned(), layer.diff_id.to_string())].into();
        match writer.commit(0, Some(to.digest), &labels) {
            Ok(_) | Err(ContentError::Exists(_)) => Ok(Descriptor { size, ..to }),
            Err(error) => Err(error.into()),
        }
    }
}

// How a layer is described whose compression is lost. The size is found out when it is made.
fn uncompressed(layer: &Layer) -> Descriptor {
    let media_type = layer.blob.media_type.trim_end_matches("+gzip").trim_end_matches("+zstd");
    let media_type = media_type.trim_end_matches(".gzip").trim_end_matches(".zstd");
    Descriptor { media_type: media_type.to_owned(), digest: layer.diff_id, size: 0, ..layer.blob.clone() }
}
