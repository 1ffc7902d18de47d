//! Images of what was built, in the engine's store: one layer per step.
//!
//! A layer's blob is made once and remembered at its snapshot, uncompressed: a push compresses what it sends. The files are not
//! unpacked again for containers: the snapshot that containers of the image stand on is an empty one above the build's own.

use crate::{
    build::tree::{Layer, Tree, TreeError, Trees},
    images::{ImageContent, ImageError, Images, platform::Platform, unpack},
    supervisor::{Client, Lease, SupervisorError, content},
    time::Timestamp,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::{
    containerd::{
        services::{
            diff::v1::DiffRequest,
            snapshots::v1::{
                CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            },
        },
        types,
    },
    digest::{Digest, chain_id},
    image_ref::ImageRef,
    kind::{ErrorKind, chain},
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER: &str = "application/vnd.docker.";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The filesystems.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The store of images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The supervisor refused or failed.
    #[error("{operation} {object}")]
    Supervisor {
        /// What was tried.
        operation: &'static str,
        /// With what.
        object: String,
        /// Why not.
        #[source]
        cause: SupervisorError,
    },
    /// The request.
    #[error("{0}")]
    Invalid(String),
    /// The archive can't be written.
    #[error("write {what}")]
    Write {
        /// Which part.
        what: String,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
}

fn supervisor(operation: &'static str, object: &str) -> impl FnOnce(SupervisorError) -> ExportError {
    let object = object.to_owned();
    move |cause| ExportError::Supervisor { operation, object, cause }
}

/// The result of a build for one platform.
#[derive(Clone)]
pub struct Part {
    /// Its files.
    pub tree: Tree,
    /// The configuration that the frontend made; layers, history and times are completed here.
    pub config: Vec<u8>,
    /// What it is for; by default what the configuration says.
    pub platform: Option<Platform>,
    /// Annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of its entry in the index.
    pub descriptor_annotations: BTreeMap<String, String>,
}

/// What is wanted of it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Names for it.
    pub names: Vec<ImageRef>,
    /// OCI's media types, even on an image that has docker's.
    pub oci: bool,
    /// An index even for a single platform.
    pub index: bool,
    /// Annotations of the index.
    pub index_annotations: BTreeMap<String, String>,
    /// The time of everything that has none (SOURCE_DATE_EPOCH), in seconds.
    pub epoch: Option<i64>,
    /// Whether files of what was built are no younger than that, either (`rewrite-timestamp`). A containerd doesn't do it.
    pub rewrite: bool,
    /// Whether it goes without a name and a place in the list of images: for archives and pushes.
    pub unnamed: bool,
}

/// An image that was made.
pub struct Exported {
    /// Manifest or index.
    pub target: types::Descriptor,
    /// Digest of the configuration; of several, of the first.
    pub id: Digest,
    /// Manifests by their platforms.
    pub manifests: Vec<(Option<Platform>, types::Descriptor)>,
    /// Keeps its parts from the collector. Give it back when the image has a name or is no longer wanted.
    pub lease: Lease,
}

/// Makes the image, with its names.
pub async fn image(images: &Images, trees: &Trees, parts: &[Part], options: &Options) -> Result<Exported, ExportError> {
    if parts.is_empty() {
        return Err(ExportError::Invalid("export image: nothing was built".into()));
    }
    let random = crate::ids::random_bytes::<8>();
    let random = random.map_err(|cause| ExportError::Write { what: "a name".into(), cause })?;
    let id = format!("berth-export-{}", proto::digest::hex(&random));
    let lease = Lease::take(trees.client(), &id).await.map_err(supervisor("take lease", &id))?;
    match make(images, &lease, parts, options).await {
        Ok((target, id, manifests)) => Ok(Exported { target, id, manifests, lease }),
        Err(error) => {
            lease.give_back_later().await;
            Err(error)
        }
    }
}

type Made = (types::Descriptor, Digest, Vec<(Option<Platform>, types::Descriptor)>);

async fn make(images: &Images, lease: &Lease, parts: &[Part], options: &Options) -> Result<Made, ExportError> {
    let client = &lease.client;
    let mut manifests = Vec::new();
    let mut first = None;
    for part in parts {
        let (id, manifest) = one(images, lease, part, options).await?;
        first.get_or_insert(id);
        manifests.push((part.platform.clone(), manifest));
    }
    let id = first.ok_or_else(|| ExportError::Invalid("export image: nothing was built".into()))?;
    let target = match manifests.as_slice() {
        [(_, only)] if !options.index => only.clone(),
        several => {
            let entries: Vec<Value> =
                several.iter().zip(parts).map(|((_, manifest), part)| entry(manifest, part)).collect();
            let mut index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
            annotate(&mut index, &options.index_annotations);
            let label = |(at, (_, m)): (usize, &(_, types::Descriptor))| {
                (format!("containerd.io/gc.ref.content.m.{at}"), m.digest.clone())
            };
            blob(client, OCI_INDEX, &index, several.iter().enumerate().map(label).collect()).await?
        }
    };
    if !options.unnamed {
        if options.names.is_empty() {
            images.name_new(None, &target).await?;
        }
        for name in &options.names {
            images.name_new(Some(name), &target).await?;
        }
    }
    Ok((target, id, manifests))
}

fn entry(manifest: &types::Descriptor, part: &Part) -> Value {
    let mut entry = json!({"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size});
    if let Some(Platform { os, architecture, variant }) = &part.platform {
        entry["platform"] = json!({"architecture": architecture, "os": os});
        if !variant.is_empty() {
            entry["platform"]["variant"] = variant.as_str().into();
        }
    }
    annotate(&mut entry, &part.descriptor_annotations);
    entry
}

fn annotate(value: &mut Value, annotations: &BTreeMap<String, String>) {
    if !annotations.is_empty() {
        value["annotations"] = json!(annotations);
    }
}

/// Writes a document; gives its descriptor.
async fn blob(
    client: &Client,
    media_type: &str,
    document: &Value,
    labels: HashMap<String, String>,
) -> Result<types::Descriptor, ExportError> {
    let bytes = document.to_string().into_bytes();
    let size = bytes.len() as i64;
    let digest = content::write(client, bytes, labels).await.map_err(supervisor("write", media_type))?.to_string();
    Ok(types::Descriptor { media_type: media_type.into(), digest, size, ..types::Descriptor::default() })
}

/// The image of one platform: digest of its configuration, and its manifest.
async fn one(
    images: &Images,
    lease: &Lease,
    part: &Part,
    options: &Options,
) -> Result<(Digest, types::Descriptor), ExportError> {
    let client = &lease.client;
    let base = match part.tree.base() {
        Some(base) => {
            let manifest = types::Descriptor { digest: base.manifest.to_string(), ..types::Descriptor::default() };
            Some(images.content(&manifest.digest, &manifest).await?)
        }
        None => None,
    };
    let docker = base.as_deref().is_some_and(is_docker) && !options.oci;
    let rewritten = options.epoch.filter(|_| options.rewrite);
    let own = layers(client, &part.tree, docker, rewritten).await?;
    let mut layers: Vec<Value> = Vec::new();
    let mut diff_ids: Vec<Digest> = Vec::new();
    if let Some(base) = &base {
        let shown = |layer: &crate::images::content::Descriptor| {
            let media_type = in_family(&layer.media_type, docker);
            json!({"mediaType": media_type, "digest": layer.digest, "size": layer.size})
        };
        layers.extend(base.layers.iter().map(shown));
        diff_ids.extend(&base.config.rootfs.diff_ids);
    }
    for layer in &own {
        let media_type = in_family(&layer.media_type, docker);
        layers.push(json!({"mediaType": media_type, "digest": layer.digest, "size": layer.size}));
        diff_ids.push(layer.diff_id);
    }
    let mut labels: HashMap<String, String> = HashMap::new();
    if let Some(base) = &base {
        // A supervisor that has dropped blobs of the base's layers names at its config what they can be made from again.
        let id = base.id().to_string();
        let of_base = content::labels(client, &id).await.map_err(supervisor("read labels of", &id))?;
        labels.extend(of_base.into_iter().filter(|(key, _)| crate::images::commit::is_of_recipe(key)));
    }
    if let Some(chain) = chain_id(&diff_ids) {
        match rewritten {
            None => stand(lease, &part.tree, &chain.to_string()).await?,
            // Other files than those of the build: by their times.
            Some(_) => unpack_all(lease, &own, &diff_ids).await?,
        }
        labels.insert(unpack::gc_label(client), chain.to_string());
    }
    let made: Vec<Timestamp> = own.iter().map(|layer| layer.created).collect();
    let config = complete(&part.config, base.as_deref(), &diff_ids, &made, options.epoch)?;
    let config_type = if docker { DOCKER_CONFIG } else { OCI_CONFIG };
    let config = blob(client, config_type, &config, labels).await?;
    let id: Digest =
        config.digest.parse().map_err(|_| ExportError::Invalid("export image: a digest that is none".into()))?;
    let manifest_type = if docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": {"mediaType": config_type, "digest": config.digest, "size": config.size},
        "layers": layers,
    });
    annotate(&mut manifest, &part.annotations);
    let digests = layers.iter().filter_map(|layer| layer["digest"].as_str());
    let layer_label = |(at, digest): (usize, &str)| (format!("containerd.io/gc.ref.content.l.{at}"), digest.to_owned());
    let config_label = ("containerd.io/gc.ref.content.config".to_owned(), config.digest.clone());
    let labels = digests.enumerate().map(layer_label).chain([config_label]).collect();
    Ok((id, blob(client, manifest_type, &manifest, labels).await?))
}

fn is_docker(image: &ImageContent) -> bool {
    image.layers.iter().any(|layer| layer.media_type.starts_with(DOCKER))
}

/// The name of a layer's media type in docker's or OCI's family: one of them in a manifest, some registries refuse mixtures.
fn in_family(media_type: &str, docker: bool) -> String {
    let pairs = [
        (DOCKER_LAYER, OCI_LAYER),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ];
    let found = pairs.iter().find(|(one, other)| media_type == *one || media_type == *other);
    found.map_or(media_type, |(one, other)| if docker { one } else { other }).to_owned()
}

/// Unpacks layers that are like those of the build, but not the same.
async fn unpack_all(lease: &Lease, own: &[Layer], diff_ids: &[Digest]) -> Result<(), ExportError> {
    let below = diff_ids.len() - own.len();
    for (at, layer) in own.iter().enumerate() {
        let blob = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: layer.size,
            ..types::Descriptor::default()
        };
        let key = format!("{}-{at}", lease.id());
        let found = unpack::apply(&lease.client, &key, &diff_ids[..below + at], &blob).await;
        let found = found.map_err(supervisor("unpack", &blob.digest))?;
        if found != layer.diff_id {
            let what = format!("export image: layer {}: unpacked it has digest {found}", layer.digest);
            return Err(ExportError::Invalid(what));
        }
    }
    Ok(())
}

/// The layers of what was built above the base, lowest first; those that nobody has asked for before are made. With files no
/// younger than `epoch`, none is remembered.
pub async fn layers(client: &Client, tree: &Tree, docker: bool, epoch: Option<i64>) -> Result<Vec<Layer>, ExportError> {
    let mut chain = Vec::new();
    let mut next = Some(tree.clone());
    while let Some(tree) = next {
        next = tree.below().await?;
        if next.is_some() {
            chain.push((tree, next.clone()));
        }
    }
    let made = chain.into_iter().rev().map(|(tree, below)| layer(client, tree, below, docker, epoch));
    stream::iter(made).buffered(AT_ONCE).try_collect().await
}

/// Layers that are made at the same time.
const AT_ONCE: usize = 4;

async fn layer(
    client: &Client,
    tree: Tree,
    below: Option<Tree>,
    docker: bool,
    epoch: Option<i64>,
) -> Result<Layer, ExportError> {
    let make = async || {
        let left = match &below {
            Some(below) => below.mounts().await?,
            None => Vec::new(),
        };
        diff(client, left, tree.mounts().await?, docker, epoch).await
    };
    if epoch.is_some() { make().await } else { tree.layer(make).await }
}

async fn diff(
    client: &Client,
    left: Vec<types::Mount>,
    right: Vec<types::Mount>,
    docker: bool,
    epoch: Option<i64>,
) -> Result<Layer, ExportError> {
    let source_date_epoch = epoch.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
    let media_type = if docker { DOCKER_LAYER } else { OCI_LAYER };
    let request =
        DiffRequest { left, right, media_type: media_type.into(), source_date_epoch, ..DiffRequest::default() };
    let made = client.diffs().diff(request).await.map_err(SupervisorError::from);
    let made = made.map_err(supervisor("make", "a layer"))?.into_inner().diff;
    let bad = |what: String| supervisor("make", "a layer")(SupervisorError::Protocol(what));
    let made = made.ok_or_else(|| bad("no layer in the answer to Diff".into()))?;
    let digest: Digest = made.digest.parse().map_err(|e| bad(format!("digest {:?}: {e}", made.digest)))?;
    Ok(Layer { media_type: made.media_type, digest, size: made.size, diff_id: digest, created: Timestamp::now() })
}

/// Has a snapshot of the name that containers of the image look for: without files of its own, above the build's.
async fn stand(lease: &Lease, tree: &Tree, name: &str) -> Result<(), ExportError> {
    let client = &lease.client;
    let snapshotter = tree.snapshotter().to_owned();
    let request = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: name.to_owned() };
    match client.retry(request, |client, request| async move { client.snapshots().stat(request).await }).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(supervisor("look up snapshot", name)(error)),
    }
    // Begins with the lease's name: an engine that dies here leaves it to the next one's sweep.
    let key = format!("{}-{}", lease.id(), &name[name.len().saturating_sub(12)..]);
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
        parent: tree.snapshot_key().unwrap_or_default().to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    client.snapshots().prepare(prepare).await.map_err(SupervisorError::from).map_err(supervisor("prepare", &key))?;
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter.clone(),
        name: name.to_owned(),
        key: key.clone(),
        ..CommitSnapshotRequest::default()
    };
    let committed = client.snapshots().commit(commit).await.map_err(SupervisorError::from);
    let Err(error) = committed else { return Ok(()) };
    let remove = RemoveSnapshotRequest { snapshotter, key: key.clone() };
    if let Err(error) =
        client.retry(remove, |client, request| async move { client.snapshots().remove(request).await }).await
    {
        tracing::warn!(error = %chain(&error), "snapshot left to the collector");
    }
    match error.kind() {
        ErrorKind::AlreadyExists => Ok(()),
        _ => Err(supervisor("commit snapshot", name)(error)),
    }
}

/// The configuration with its layers, a history that has as many, and times. The same for the same layers, whenever it is made.
fn complete(
    config: &[u8],
    base: Option<&ImageContent>,
    diff_ids: &[Digest],
    made: &[Timestamp],
    epoch: Option<i64>,
) -> Result<Value, ExportError> {
    let bad = |e: serde_json::Error| ExportError::Invalid(format!("export image: its configuration: {e}"));
    let mut config: Map<String, Value> = match config {
        b"" => Map::new(),
        bytes => serde_json::from_slice(bytes).map_err(bad)?,
    };
    let host = Platform::host();
    for (key, value) in [("architecture", host.architecture), ("os", host.os)] {
        config.entry(key).or_insert_with(|| value.into());
    }
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
    let mut history: Vec<Value> = match config.remove("history") {
        Some(Value::Array(history)) => history,
        _ => Vec::new(),
    };
    let is_layer = |step: &Value| !step["empty_layer"].as_bool().unwrap_or(false);
    let mut told = history.iter().filter(|step| is_layer(step)).count();
    // More than there are: those at the bottom can't be.
    for step in history.iter_mut().filter(|step| is_layer(step)) {
        if told <= diff_ids.len() {
            break;
        }
        step["empty_layer"] = true.into();
        told -= 1;
    }
    for _ in told..diff_ids.len() {
        history.push(json!({"created_by": "unknown", "comment": "not in the history of the build"}));
    }
    let epoch = epoch.map(|seconds| Timestamp::from_parts(seconds, 0));
    let before = base.map(|base| base.config.created).filter(|time| time.is_set());
    let (mut now, below) = (before, diff_ids.len() - made.len().min(diff_ids.len()));
    let mut at = 0;
    for step in &mut history {
        if is_layer(step) {
            if at >= below {
                now = made.get(at - below).copied().or(now);
            }
            at += 1;
        }
        if step["created"].is_null()
            && let Some(time) = epoch.or(now)
        {
            step["created"] = time.to_string().into();
        }
    }
    if config.get("created").is_none_or(Value::is_null) {
        let created = epoch.or(now).unwrap_or_else(Timestamp::now);
        config.insert("created".into(), created.to_string().into());
    }
    config.insert("history".into(), history.into());
    Ok(config.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_completed() {
        let digests = [Digest::of(b"1"), Digest::of(b"2")];
        let times = [Timestamp::from_parts(1000, 0), Timestamp::from_parts(2000, 0)];
        let given = br#"{"architecture":"arm64","os":"linux","config":{"Cmd":["x"]},"moby.unknown":1,
            "history":[{"created_by":"COPY"},{"created_by":"CMD","empty_layer":true},{"created_by":"RUN"}]}"#;
        let done = complete(given, None, &digests, &times, None).unwrap();
        assert_eq!(done["rootfs"], json!({"type": "layers", "diff_ids": digests}));
        assert_eq!((&done["architecture"], &done["moby.unknown"]), (&json!("arm64"), &json!(1)));
        let created: Vec<_> = done["history"].as_array().unwrap().iter().map(|step| step["created"].clone()).collect();
        assert_eq!(created, ["1970-01-01T00:16:40Z", "1970-01-01T00:16:40Z", "1970-01-01T00:33:20Z"]);
        assert_eq!(done["created"], "1970-01-01T00:33:20Z");
        assert_eq!(done, complete(given, None, &digests, &times, None).unwrap());
        let reproducible = complete(given, None, &digests, &times, Some(7)).unwrap();
        assert_eq!(reproducible["history"][2]["created"], "1970-01-01T00:00:07Z");
        assert_eq!(reproducible["created"], "1970-01-01T00:00:07Z");
    }

    #[test]
    fn history_and_layers_agree() {
        let digests = [Digest::of(b"1"), Digest::of(b"2")];
        let layers = |config: &str, count: usize| -> Vec<bool> {
            let done = complete(config.as_bytes(), None, &digests[..count], &[], None).unwrap();
            let steps = done["history"].as_array().unwrap().clone();
            steps.iter().map(|step| !step["empty_layer"].as_bool().unwrap_or(false)).collect()
        };
        assert_eq!(layers("{}", 2), [true, true]);
        assert_eq!(layers(r#"{"history":[{"created_by":"a"},{"created_by":"b"}]}"#, 1), [false, true]);
        assert_eq!(layers(r#"{"history":null}"#, 0), [false; 0]);
        assert!(complete(b"[]", None, &digests, &[], None).is_err());
    }

    #[test]
    fn families_of_media_types() {
        assert_eq!(in_family(OCI_LAYER, true), DOCKER_LAYER);
        assert_eq!(in_family(DOCKER_LAYER, false), OCI_LAYER);
        assert_eq!(
            in_family("application/vnd.oci.image.layer.v1.tar+gzip", false),
            "application/vnd.oci.image.layer.v1.tar+gzip"
        );
        assert_eq!(in_family("x/y", true), "x/y");
    }
}
