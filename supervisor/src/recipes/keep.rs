//! Which layers are dropped, and how they come back.
//!
//! A recipe is a blob. The configuration of an image names the recipes of its layers by labels, which also keep them, as
//! they keep the snapshots that belong to them; the recipe says by labels of which blobs it is one:
//!
//! ```text
//! configuration   containerd.io/gc.ref.content.recipe.N = recipe's digest      N: number of the layer
//!                 containerd.io/gc.ref.snapshot.DRIVER/recipe.N = chain id
//! recipe          berth.recipe.of.HEX = COMPRESSION                           HEX: of the layer's blob
//!                 berth.recipe.chain.HEX = DRIVER                             HEX: of the snapshot's chain id
//! ```

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

use proto::{
    containerd::events::ContentDelete,
    digest::{Digest, chain_id},
};

use super::{RecipeError, Remake, record};
use crate::{
    content::{CONTENT, ContentError},
    images::manifest::{Config, Descriptor, Manifest},
    layers::decompress::{Compression, decompressed},
    leases::{self, unique},
    snapshots::{LAYER, SNAPSHOTS, SnapshotError},
    store::{Labels, Stores},
    transfer::gzip,
};

const RECIPE: &str = "containerd.io/gc.ref.content.recipe.";
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
pub(super) const OF: &str = "berth.recipe.of.";
const CHAIN: &str = "berth.recipe.chain.";
pub(super) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
pub(super) const CHUNK: usize = 256 << 10;
/// A layer that is recorded as something else than this much smaller isn't worth the work of making it again.
const WORTH: u64 = 2;

/// How the blob of a layer can be made of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Original {
    /// It is the archive.
    Plain,
    /// It was compressed by us.
    OurGzip,
    /// Somebody else compressed it, in a way that we can't repeat.
    Lost,
}

impl Original {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::OurGzip => "gzip",
            Self::Lost => "lost",
        }
    }

    pub(super) fn parse(text: &str) -> Self {
        match text {
            "plain" => Self::Plain,
            "gzip" => Self::OurGzip,
            _ => Self::Lost,
        }
    }
}

/// A layer of an image: its number, its blob, the digest of its archive, the name of its snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) number: usize,
    pub(crate) blob: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) chain: Digest,
}

/// The layers of an image, lowest first.
pub(crate) fn layers_of(manifest: &Manifest, config: &Config) -> Vec<Layer> {
    let layer = |(number, (blob, diff_id)): (usize, (&Descriptor, &Digest))| {
        let chain = chain_id(&config.diff_ids[..=number])?;
        Some(Layer { number, blob: blob.clone(), diff_id: *diff_id, chain })
    };
    manifest.layers.iter().zip(&config.diff_ids).enumerate().filter_map(layer).collect()
}

/// One namespace of the stores, under a lease that keeps what is made.
pub(crate) struct Keeper<'a> {
    pub(crate) stores: &'a Stores,
    pub(crate) namespace: &'a str,
    pub(crate) lease: &'a str,
}

fn stopped(what: &'static str) -> impl FnOnce(io::Error) -> RecipeError {
    move |cause| RecipeError::Io(what, cause)
}

impl Keeper<'_> {
    fn has(&self, digest: &Digest) -> Result<bool, RecipeError> {
        match self.stores.content.info(self.namespace, digest) {
            Ok(_) => Ok(true),
            Err(ContentError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn keep(&self, digest: &Digest) -> Result<(), RecipeError> {
        let done =
            self.stores.db.write(|tx| leases::add_in(tx, self.namespace, self.lease, "content", &digest.to_string()));
        Ok(done?)
    }

    // The folder into which a layer was unpacked, and by whom.
    pub(super) fn tree(&self, chain: &Digest) -> Result<Option<(OwnedFd, &'static str)>, RecipeError> {
        for snapshotter in self.stores.snapshots.loaded() {
            match snapshotter.open_committed(self.namespace, &chain.to_string()) {
                Ok(tree) => return Ok(Some((tree, snapshotter.name()))),
                Err(SnapshotError::NotFound(_) | SnapshotError::Making(_) | SnapshotError::NotCommitted(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The recipe that an image's configuration names for a layer, if that is there.
    pub(crate) fn named(&self, config: &Digest, number: usize) -> Result<Option<Digest>, RecipeError> {
        let info = match self.stores.content.info(self.namespace, config) {
            Err(ContentError::NotFound(_)) => return Ok(None),
            other => other?,
        };
        let named = info.labels.get(&format!("{RECIPE}{number}")).and_then(|digest| digest.parse().ok());
        Ok(match named {
            Some(digest) if self.has(&digest)? => Some(digest),
            _ => None,
        })
    }

    /// A recipe of the layer that any image has, for the same place in the stack of snapshots.
    pub(crate) fn find(&self, layer: &Layer) -> Result<Option<Digest>, RecipeError> {
        let (of, chain) = (format!("{OF}{}", layer.blob.digest.hex()), format!("{CHAIN}{}", layer.chain.hex()));
        let all = self.stores.db.read(|tx| CONTENT.list(tx, self.namespace, ""))?;
        let found = all.into_iter().find(|(_, info)| info.labels.contains_key(&of) && info.labels.contains_key(&chain));
        Ok(found.and_then(|(digest, _)| digest.parse().ok()))
    }

    // Lets an image's configuration name a recipe, and keep the snapshot that it needs.
    fn name(&self, config: &Digest, layer: &Layer, recipe: &Digest, driver: &str) -> Result<(), RecipeError> {
        self.keep(recipe)?;
        let number = layer.number;
        let labels: Labels = [
            (format!("{RECIPE}{number}"), recipe.to_string()),
            (format!("{SNAPSHOT}{driver}/recipe.{number}"), layer.chain.to_string()),
        ]
        .into();
        Ok(self.stores.content.add_labels(self.namespace, config, &labels)?)
    }

    /// Whether a layer's blob was dropped and there is a recipe of it; the image's configuration then names it.
    pub(crate) fn lost_and_found(&self, config: &Digest, layer: &Layer) -> Result<bool, RecipeError> {
        if self.has(&layer.blob.digest)? {
            return Ok(false);
        }
        if let Some(recipe) = self.named(config, layer.number)? {
            return self.keep(&recipe).map(|()| true);
        }
        match (self.find(layer)?, self.tree(&layer.chain)?) {
            (Some(recipe), Some((_, driver))) => self.name(config, layer, &recipe, driver).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Drops the blob of a layer, once there is a recipe by which it can be made again; gives the bytes that are free then.
    pub(crate) fn drop_layer(&self, config: &Digest, layer: &Layer) -> Result<u64, RecipeError> {
        let info = match self.stores.content.info(self.namespace, &layer.blob.digest) {
            Err(ContentError::NotFound(_)) => {
                // Dropped with another image: ours has it by the same recipe.
                self.lost_and_found(config, layer)?;
                return Ok(0);
            }
            other => other?,
        };
        let Some((tree, driver)) = self.tree(&layer.chain)? else { return Ok(0) };
        let known = match self.named(config, layer.number)? {
            Some(recipe) => Some(recipe),
            None => self.find(layer)?,
        };
        let recipe = match known {
            Some(recipe) => recipe,
            None => match self.record(layer, tree, info.size)? {
                Some(recipe) => recipe,
                None => return Ok(0),
            },
        };
        self.keep(&recipe)?;
        let of = format!("{OF}{}", layer.blob.digest.hex());
        let mut labels: Labels = [(format!("{CHAIN}{}", layer.chain.hex()), driver.to_owned())].into();
        if !self.stores.content.info(self.namespace, &recipe)?.labels.contains_key(&of) {
            labels.insert(of, self.original(layer)?.as_str().to_owned());
        }
        self.stores.content.add_labels(self.namespace, &recipe, &labels)?;
        self.name(config, layer, &recipe, driver)?;
        proto::fault!("supervisor.recipes.named");
        Ok(if self.forget(&layer.blob.digest)? { info.size } else { 0 })
    }

    // Writes the recipe and reads it back; `None` if it would not be much smaller than the blob.
    fn record(&self, layer: &Layer, tree: OwnedFd, size: u64) -> Result<Option<Digest>, RecipeError> {
        let content = &self.stores.content;
        let (blob, _) = content.reader(self.namespace, &layer.blob.digest)?;
        let (archive, _) = decompressed(blob)?;
        let reference = unique("recipe");
        let mut writer = content.writer(self.namespace, &reference, 0, None, Some(self.lease))?;
        let limit = size / WORTH;
        let mut too_big = false;
        let recorded = record(
            archive,
            &tree,
            Sink(|bytes: &[u8]| {
                if writer.offset() + bytes.len() as u64 > limit.max(4096) {
                    too_big = true;
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                writer.write(bytes).map_err(io::Error::other)
            }),
        );
        let wrong = match recorded {
            Err(_) if too_big => {
                writer.abort()?;
                return Ok(None);
            }
            Err(error) => Some(error),
            Ok(recorded) if recorded.diff_id != layer.diff_id => Some(
                crate::layers::LayerError::WrongDiffId { actual: recorded.diff_id, expected: layer.diff_id }.into(),
            ),
            Ok(_) => None,
        };
        if let Some(error) = wrong {
            writer.abort()?;
            return Err(error);
        }
        let recipe = match writer.commit(0, None, &Labels::new()) {
            Err(ContentError::Exists(digest)) => digest,
            other => other?,
        };
        proto::fault!("supervisor.recipes.written");
        let (file, _) = content.reader(self.namespace, &recipe)?;
        let mut remake = Remake::new(file, tree).map_err(stopped("read the recipe back"))?;
        io::copy(&mut remake, &mut io::sink()).map_err(stopped("read the recipe back"))?;
        Ok(Some(recipe))
    }

    // Whether what compressed the layer can be had again: by trying it, up to the first byte that differs.
    fn original(&self, layer: &Layer) -> Result<Original, RecipeError> {
        if layer.blob.digest == layer.diff_id {
            return Ok(Original::Plain);
        }
        let open = || self.stores.content.reader(self.namespace, &layer.blob.digest);
        let (archive, compression) = decompressed(open()?.0)?;
        if compression != Compression::Gzip {
            return Ok(Original::Lost);
        }
        let (mut blob, mut theirs) = (io::BufReader::with_capacity(CHUNK, open()?.0), Vec::new());
        let same = gzip(
            archive,
            |_| {},
            |ours| {
                theirs.resize(ours.len(), 0);
                blob.read_exact(&mut theirs)?;
                if theirs == ours { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
            },
        );
        let is_whole = same.is_ok() && blob.read(&mut [0]).map_err(stopped("read the layer"))? == 0;
        Ok(if is_whole { Original::OurGzip } else { Original::Lost })
    }

    // Removes a blob from the namespace if all that need it have its recipe. Decided and done in one transaction: who comes
    // later finds it gone, who was first has a lease on it.
    fn forget(&self, blob: &Digest) -> Result<bool, RecipeError> {
        let (namespace, key) = (self.namespace, blob.to_string());
        let removed = self.stores.db.write(|tx| {
            for (lease, _) in leases::list_in(tx, namespace)? {
                let of_other = lease != self.lease;
                let resources = if of_other { leases::resources_in(tx, namespace, &lease)? } else { Vec::new() };
                if resources.iter().any(|resource| resource.kind == "content" && resource.id == key) {
                    return Ok(false);
                }
            }
            // Until its files are on the disk, a power cut is answered by unpacking the blob again.
            let unsynced = SNAPSHOTS.list(tx, namespace, "")?;
            if unsynced.iter().any(|(_, record)| record.labels.get(LAYER) == Some(&key)) {
                return Ok(false);
            }
            for (_, info) in CONTENT.list(tx, namespace, "")? {
                for (label, _) in info.labels.iter().filter(|(_, value)| **value == key) {
                    let Some(part) = label.strip_prefix("containerd.io/gc.ref.content.") else { continue };
                    if part == "gzip" {
                        continue; // the uncompressed form of the same layer
                    }
                    let config = info.labels.get("containerd.io/gc.ref.content.config");
                    let config = config.map(|config| CONTENT.get(tx, namespace, config)).transpose()?.flatten();
                    let number = part.strip_prefix("l.").unwrap_or(part);
                    if !config.is_some_and(|config| config.labels.contains_key(&format!("{RECIPE}{number}"))) {
                        return Ok(false);
                    }
                }
            }
            let removed = CONTENT.remove(tx, namespace, &key)?;
            leases::remove_in(tx, namespace, self.lease, "content", &key)?;
            Ok::<_, crate::store::StoreError>(removed)
        })?;
        if removed {
            proto::fault!("supervisor.recipes.unrecorded");
            self.stores.content.remove_files(&[*blob])?;
            self.stores.publish(namespace, "/content/delete", &ContentDelete { digest: key });
        }
        Ok(removed)
    }
}

/// A writer that hands on what is written.
pub(super) struct Sink<F>(pub(super) F);

impl<F: FnMut(&[u8]) -> io::Result<()>> io::Write for Sink<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
