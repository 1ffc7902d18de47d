//! Recipes: what a layer's archive holds beside the files that are unpacked anyway, so that its blob need not be kept.
//!
//! ```text
//! archive:  header  payload  padding  header  payload ... end
//! recipe:   bytes   file     bytes           file         bytes   size, digest       (zstd)
//! ```
//!
//! Bytes stand in the recipe itself; a file is a path, an offset and a length in the folder of the layer's own snapshot.
//! What the unpacked tree doesn't have any more (the first of two entries of one name, say) is in the recipe as well: it is
//! compared byte by byte as it is written. `record` writes one, `remake` gives the archive again, `keep` decides for whole
//! images what is dropped and when it is needed again.
//!
//! Nothing is dropped before its recipe has been read back and has given the same digest.

mod format;
pub(crate) mod images;
pub(crate) mod keep;
mod record;
mod remake;
mod restore;

use std::io;

use proto::{digest::Digest, kind::ErrorKind};

pub(crate) use self::{record::record, remake::Remake};
use crate::{
    content::ContentError,
    failure::Failure,
    images::manifest::ManifestError,
    layers::{LayerError, tar::TarError},
    snapshots::SnapshotError,
    store::StoreError,
};

/// Why a layer could not be recorded, or not be made again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecipeError {
    /// The archive can't be read.
    #[error("read the layer")]
    Tar(#[from] TarError),
    /// The layer's blob can't be inflated.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The recipe can't be written or read.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// A blob.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A document.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was dropped, and can't be made again.
    #[error("layer {layer} was dropped after it was unpacked, and can't be made again ({why}): pull the image again")]
    Lost {
        /// The blob.
        layer: Digest,
        /// Why not.
        why: String,
    },
}

impl Failure for RecipeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Tar(_) | Self::Lost { .. } => ErrorKind::DataLoss,
            Self::Layer(error) => error.kind(),
            Self::Io(_, cause) => ErrorKind::of_io(cause),
            Self::Content(error) => error.kind(),
            Self::Manifest(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::OwnedFd,
        path::Path,
    };

    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header};

    use super::*;
    use crate::layers::apply::{Target, apply};

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header
    }

    fn noise(size: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(size)
        .collect()
    }

    /// Unpacks an archive, records it, and makes it again: the size of the recipe.
    fn there_and_back(archive: &[u8]) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let (blob, tree) = (dir.path().join("blob"), dir.path().join("tree"));
        std::fs::write(&blob, archive).unwrap();
        std::fs::create_dir(&tree).unwrap();
        apply(File::open(&blob).unwrap(), &Target::overlay(&tree, &[]).unwrap(), &|_| {}).unwrap();
        let recipe = recorded(archive, &tree);
        assert!(remade(&recipe, &tree).unwrap() == archive, "other bytes");
        recipe.len()
    }

    fn open(tree: &Path) -> OwnedFd {
        File::open(tree).unwrap().into()
    }

    fn recorded(archive: &[u8], tree: &Path) -> Vec<u8> {
        let (mut recipe, digest) = (Vec::new(), Digest::of(archive));
        let done = record(archive, &open(tree), &mut recipe).unwrap();
        assert_eq!(done.diff_id, digest);
        recipe
    }

    fn remade(recipe: &[u8], tree: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Remake::new(recipe, open(tree))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn everything_that_a_layer_can_have_comes_out_byte_for_byte() {
        let mut tar = Builder::new(Vec::new());
        let big = noise(900_000, 3);
        let mut add = |kind, path: &str, data: &[u8]| {
            tar.append_data(&mut header(kind, data.len() as u64), path, data).unwrap();
        };
        add(EntryType::Directory, "a/", b"");
        add(EntryType::Regular, "a/big", &big);
        // The first of these two is nowhere on disk afterwards.
        add(EntryType::Regular, "twice", &noise(300_000, 4));
        add(EntryType::Regular, "twice", &noise(200_000, 5));
        // The beginning is the same, the end is not.
        add(EntryType::Regular, "grows", &big[..400_000]);
        add(EntryType::Regular, "grows", &big);
        add(EntryType::Regular, "becomes-folder", &noise(5000, 6));
        add(EntryType::Directory, "becomes-folder", b"");
        add(EntryType::Regular, "empty", b"");
        add(EntryType::Regular, "small", b"inline");
        add(EntryType::Regular, "a/.wh.gone", b"");
        add(EntryType::Regular, "a/.wh..wh..opq", b"");
        add(EntryType::Regular, &format!("long/{}", "x".repeat(180)), &noise(70_000, 7));
        let mut link = header(EntryType::Link, 0);
        tar.append_link(&mut link, "a/link", "a/big").unwrap();
        let mut link = header(EntryType::Symlink, 0);
        tar.append_link(&mut link, "a/symlink", "big").unwrap();
        tar.append_data(&mut header(EntryType::Fifo, 0), "pipe", &b""[..]).unwrap();
        let mut archive = tar.into_inner().unwrap();
        // What stands behind the end belongs to the digest, too.
        archive.extend_from_slice(&noise(777, 8));
        let size = there_and_back(&archive);
        // What is nowhere on disk any more, and little else.
        assert!((305_000..310_000).contains(&size), "{size}");
    }

    #[test]
    fn sparse_files_and_empty_archives() {
        let dir = tempfile::tempdir().unwrap();
        let script = "cd \"$0\" && mkdir in && truncate -s 4M in/s && printf x | dd of=in/s bs=1 seek=2000000 conv=notrunc \
             status=none && head -c 300000 /dev/urandom >> in/s && for f in gnu posix; do \
             tar --format=$f --sparse -C in -cf $f.tar . ; done";
        let made = std::process::Command::new("sh").args(["-euc", script]).arg(dir.path()).status().unwrap();
        assert!(made.success());
        for name in ["gnu.tar", "posix.tar"] {
            let size = there_and_back(&std::fs::read(dir.path().join(name)).unwrap());
            assert!(size < 5000, "{name}: {size}");
        }
        assert!(there_and_back(&[0; 10240]) < 200);
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let mut tar = Builder::new(Vec::new());
        let data = noise(100_000, 1);
        tar.append_data(&mut header(EntryType::Regular, data.len() as u64), "f", &data[..]).unwrap();
        let archive = tar.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, &data).unwrap();
        let recipe = recorded(&archive, dir.path());
        assert!(remade(&recipe, dir.path()).is_ok());
        let mut open = File::options().write(true).open(&file).unwrap();
        open.write_all(b"other").unwrap();
        let error = remade(&recipe, dir.path()).unwrap_err();
        assert!(error.to_string().contains("has the digest"), "{error}");
        std::fs::write(&file, b"short").unwrap();
        assert!(remade(&recipe, dir.path()).unwrap_err().to_string().contains("is shorter"));
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert!(remade(&recipe, dir.path()).unwrap_err().to_string().contains("\"f\""));
        for end in [0, 4, recipe.len() / 2, recipe.len() - 1] {
            assert!(remade(&recipe[..end], dir.path()).is_err(), "{end}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_read_as_recipe_ends(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let dir = tempfile::tempdir().unwrap();
            let packed = zstd::encode_all(&bytes[..], 1).unwrap();
            let _ = remade(&[&b"BRTHRCP1"[..], &packed].concat(), dir.path());
            let _ = remade(&bytes, dir.path());
        }
    }
}
