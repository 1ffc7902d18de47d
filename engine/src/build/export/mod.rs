//! Outputs of a build.

pub mod archive;
pub mod image;
pub mod order;

use crate::{build::tree::Tree, containers::export};
use bytes::Bytes;
use image::ExportError;
use std::io;
use tokio_stream::wrappers::ReceiverStream;

/// The files of a build as a tar (`type=tar`); of several platforms each in a folder of its name.
pub async fn tar(trees: &[(String, Tree)]) -> Result<ReceiverStream<io::Result<Bytes>>, ExportError> {
    let mut roots = Vec::with_capacity(trees.len());
    for (name, tree) in trees {
        roots.push((name.clone().into_bytes(), tree.open().await?));
    }
    export::stream(roots).map_err(|cause| ExportError::Write { what: "a tar".into(), cause })
}
