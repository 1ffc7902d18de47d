//! Manifests, indexes and configurations: what of them we read, and what is refused (image-spec, docker schema 2).

use std::collections::BTreeMap;

use proto::{
    containerd::types::{Descriptor as ProtoDescriptor, Platform as ProtoPlatform},
    digest::{Digest, chain_id},
    kind::ErrorKind,
};
use serde::{Deserialize, Serialize};

use crate::{failure::Failure, store::Labels};

/// Largest manifest or index that is read.
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;
/// Largest configuration that is read.
pub(crate) const CONFIG_LIMIT: u64 = 8 << 20;

/// Media type of an OCI manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a docker manifest.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a docker manifest list.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of docker's image configuration.
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media type of docker's uncompressed layers.
pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Why a document is not one that describes an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Not JSON, or not with the fields it must have.
    #[error("{what} {digest} is malformed: {why}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// The document.
        digest: Digest,
        /// What is wrong.
        why: String,
    },
    /// Manifest and index in one: which of them counts would be the reader's choice (CVE-2021-41190).
    #[error("{0} is both a manifest and an index, which is not allowed")]
    Ambiguous(Digest),
    /// A document of another kind than it claims to be.
    #[error("{digest} claims to be {claimed:?} but is {actual}")]
    OtherType {
        /// The document.
        digest: Digest,
        /// Its media type.
        claimed: String,
        /// What its fields say.
        actual: &'static str,
    },
    /// Docker's schema 1.
    #[error("{0} is a docker schema 1 manifest, which is not supported: push the image again with a current tool")]
    Schema1(Digest),
    /// No image for the platform.
    #[error("{digest} has no image for {wanted}, only for {present}")]
    Platform {
        /// The index.
        digest: Digest,
        /// What was asked for.
        wanted: String,
        /// What is there.
        present: String,
    },
    /// The numbers of layers don't agree.
    #[error("{config} lists {diff_ids} layers, the manifest {layers}")]
    LayerCount {
        /// The configuration.
        config: Digest,
        /// Layers in the configuration.
        diff_ids: usize,
        /// Layers in the manifest.
        layers: usize,
    },
}

impl Failure for ManifestError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed { .. } | Self::Ambiguous(_) | Self::OtherType { .. } | Self::LayerCount { .. } => {
                ErrorKind::DataLoss
            }
            Self::Schema1(_) => ErrorKind::Unimplemented,
            Self::Platform { .. } => ErrorKind::NotFound,
        }
    }
}

/// A blob by media type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub(crate) media_type: String,
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size.
    pub(crate) size: u64,
    /// Notes about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// For which platform it is, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    /// Where else than in a registry it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) urls: Option<Vec<String>>,
}

impl Descriptor {
    /// A descriptor without notes.
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: None, platform: None, urls: None }
    }

    /// Whether it is a layer that its maker doesn't want in other registries (image-spec, non-distributable layers).
    pub(crate) fn is_foreign(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }

    /// Encrypted addresses where it can be had besides.
    pub(crate) fn foreign_urls(&self) -> impl Iterator<Item = &str> {
        self.urls.iter().flatten().map(String::as_str).filter(|url| url.starts_with("https://"))
    }

    /// The descriptor as a protocol message.
    pub(crate) fn to_proto(&self) -> ProtoDescriptor {
        ProtoDescriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.to_string(),
            size: self.size as i64,
            annotations: self.annotations.clone().unwrap_or_default().into_iter().collect(),
        }
    }

    /// The descriptor of a protocol message; the error says what is wrong with it.
    pub(crate) fn from_proto(message: ProtoDescriptor) -> Result<Self, String> {
        let annotations: BTreeMap<_, _> = message.annotations.into_iter().collect();
        Ok(Self {
            media_type: message.media_type,
            digest: message.digest.parse().map_err(|e: proto::digest::DigestError| e.to_string())?,
            size: u64::try_from(message.size).map_err(|_| "size is negative".to_owned())?,
            annotations: (!annotations.is_empty()).then_some(annotations),
            platform: None,
            urls: None,
        })
    }
}

/// Operating system and processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    /// `linux`.
    #[serde(default)]
    pub(crate) os: String,
    /// In Go's words: `amd64`, `arm64`.
    #[serde(default)]
    pub(crate) architecture: String,
    /// `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl Platform {
    /// The platform of this machine.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "riscv64" => ("riscv64", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    /// The platform of a protocol message; an empty one is this machine's.
    pub(crate) fn from_proto(message: ProtoPlatform) -> Self {
        if message.architecture.is_empty() {
            return Self::host();
        }
        let os = if message.os.is_empty() { "linux".to_owned() } else { message.os };
        Self { os, architecture: message.architecture, variant: Some(message.variant).filter(|v| !v.is_empty()) }
    }

    /// How well `offer` suits: `None` not at all, 0 best.
    fn rank(&self, offer: &Self) -> Option<u32> {
        let (wanted, offered) = (self.normal(), offer.normal());
        if wanted.0 != offered.0 || wanted.1 != offered.1 {
            return None;
        }
        // A processor also runs what was built for its predecessors.
        match (wanted.2, offered.2) {
            (w, o) if w == o => Some(0),
            (w, o) if o < w => Some(w - o),
            _ => None,
        }
    }

    // Old names and default variants; variants as numbers.
    fn normal(&self) -> (String, &str, u32) {
        let number = |default| {
            let variant = self.variant.as_deref().unwrap_or("");
            variant.strip_prefix('v').and_then(|v| v.split('.').next()).and_then(|v| v.parse().ok()).unwrap_or(default)
        };
        let (architecture, variant) = match self.architecture.as_str() {
            "x86_64" | "x86-64" | "amd64" => ("amd64", number(1)),
            "aarch64" | "arm64" => ("arm64", number(8)),
            "armhf" => ("arm", 7),
            "armel" => ("arm", 6),
            "arm" => ("arm", number(7)),
            "i386" | "386" => ("386", 0),
            other => (other, number(0)),
        };
        (self.os.to_ascii_lowercase(), architecture, variant)
    }
}

/// What a document turned out to be.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, by platform.
    Index(Index),
}

/// One image: configuration and layers, lowest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The configuration.
    pub(crate) config: Descriptor,
    /// The layers, lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// A choice of images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Manifests, or further indexes.
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index; `media_type` is what its descriptor or the registry said, possibly nothing.
    pub(crate) fn parse(bytes: &[u8], digest: Digest, media_type: &str) -> Result<Self, ManifestError> {
        let malformed = |why: String| ManifestError::Malformed { what: "manifest", digest, why };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let claimed = raw.media_type.filter(|m| !m.is_empty()).unwrap_or_else(|| media_type.to_owned());
        if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
            return Err(ManifestError::Schema1(digest));
        }
        let is_index_type = matches!(claimed.as_str(), OCI_INDEX | DOCKER_LIST);
        let is_manifest_type = matches!(claimed.as_str(), OCI_MANIFEST | DOCKER_MANIFEST);
        match (raw.config, raw.layers, raw.manifests) {
            (None, None, Some(manifests)) => {
                if is_manifest_type {
                    return Err(ManifestError::OtherType { digest, claimed, actual: "an index" });
                }
                Ok(Self::Index(Index { manifests }))
            }
            (Some(config), layers, None) => {
                if is_index_type {
                    return Err(ManifestError::OtherType { digest, claimed, actual: "a manifest" });
                }
                Ok(Self::Manifest(Manifest { config, layers: layers.unwrap_or_default() }))
            }
            (_, _, Some(_)) => Err(ManifestError::Ambiguous(digest)),
            (None, _, None) => Err(malformed("neither config nor manifests in it".into())),
        }
    }

    /// The labels by which this document keeps what it points to (containerd, garbage collection).
    pub(crate) fn gc_labels(&self) -> Labels {
        let label = |name: String, descriptor: &Descriptor| {
            (format!("containerd.io/gc.ref.content.{name}"), descriptor.digest.to_string())
        };
        match self {
            Self::Manifest(manifest) => std::iter::once(label("config".into(), &manifest.config))
                .chain(manifest.layers.iter().enumerate().map(|(i, layer)| label(format!("l.{i}"), layer)))
                .collect(),
            Self::Index(index) => index.manifests.iter().enumerate().map(|(i, m)| label(format!("m.{i}"), m)).collect(),
        }
    }
}

impl Index {
    /// The descriptor that suits a platform best; the first of equals.
    pub(crate) fn select(&self, digest: Digest, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        // Attestations and the like are in the same list, under the platform unknown/unknown.
        let candidates = self
            .manifests
            .iter()
            .filter(|m| matches!(m.media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST));
        let ranked = candidates.clone().filter_map(|m| match &m.platform {
            Some(platform) => wanted.rank(platform).map(|rank| (rank, m)),
            // Nothing said: it may suit, if nothing else does.
            None => Some((u32::MAX, m)),
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, m)| m).ok_or_else(|| ManifestError::Platform {
            digest,
            wanted: wanted.to_string(),
            present: candidates
                .map(|m| m.platform.as_ref().map_or("unknown".to_owned(), Platform::to_string))
                .collect::<Vec<_>>()
                .join(", "),
        })
    }
}

/// What of an image's configuration the store needs.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    /// Reads a configuration.
    pub(crate) fn parse(bytes: &[u8], digest: Digest) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<Digest>,
        }
        #[derive(Deserialize)]
        struct Raw {
            rootfs: Option<RootFs>,
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed {
            what: "image configuration",
            digest,
            why: error.to_string(),
        })?;
        Ok(Self { diff_ids: raw.rootfs.map(|r| r.diff_ids).unwrap_or_default() })
    }

    /// The snapshot of the whole image; `None` without layers.
    pub(crate) fn chain_id(&self) -> Option<Digest> {
        chain_id(&self.diff_ids)
    }

    /// Checks that manifest and configuration speak of the same layers.
    pub(crate) fn check(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        if self.diff_ids.len() != manifest.layers.len() {
            return Err(ManifestError::LayerCount {
                config: manifest.config.digest,
                diff_ids: self.diff_ids.len(),
                layers: manifest.layers.len(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(json: &str, media_type: &str) -> Result<Document, ManifestError> {
        Document::parse(json.replace('D', D).as_bytes(), Digest::of(b""), media_type)
    }

    #[test]
    fn tells_manifest_from_index() {
        let manifest = r#"{"schemaVersion":2,"config":{"digest":"D","size":1},"layers":[{"digest":"D","size":2}]}"#;
        let index = r#"{"schemaVersion":2,"manifests":[{"digest":"D","size":1}]}"#;
        let Ok(Document::Manifest(found)) = parse(manifest, OCI_MANIFEST) else { panic!() };
        assert_eq!(found.layers[0].size, 2);
        assert!(matches!(parse(index, ""), Ok(Document::Index(_))));
        assert!(matches!(parse(index, OCI_MANIFEST), Err(ManifestError::OtherType { .. })));
        assert!(matches!(parse(manifest, DOCKER_LIST), Err(ManifestError::OtherType { .. })));
        let labels = parse(manifest, "").unwrap().gc_labels();
        assert_eq!(
            labels.keys().collect::<Vec<_>>(),
            ["containerd.io/gc.ref.content.config", "containerd.io/gc.ref.content.l.0"]
        );
    }

    #[test]
    fn refuses() {
        let both = r#"{"config":{"digest":"D","size":1},"layers":[],"manifests":[]}"#;
        assert!(matches!(parse(both, ""), Err(ManifestError::Ambiguous(_))));
        assert!(matches!(parse(r#"{"layers":[],"manifests":[]}"#, ""), Err(ManifestError::Ambiguous(_))));
        assert!(matches!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#, ""), Err(ManifestError::Schema1(_))));
        for bad in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"config":{"digest":"sha256:x","size":1}}"#,
            r#"{"config":{"digest":"D","size":-1}}"#,
        ] {
            assert!(matches!(parse(bad, ""), Err(ManifestError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn platforms() {
        let entry = |architecture: &str, variant: Option<&str>, size| Descriptor {
            platform: Some(Platform {
                os: "linux".into(),
                architecture: architecture.into(),
                variant: variant.map(Into::into),
            }),
            ..Descriptor::new(OCI_MANIFEST, Digest::of(b""), size)
        };
        let index = Index {
            manifests: vec![
                entry("unknown", None, 9),
                entry("amd64", None, 1),
                entry("amd64", Some("v3"), 2),
                entry("arm64", Some("v8"), 3),
                entry("arm", Some("v6"), 4),
                entry("arm", Some("v5"), 5),
            ],
        };
        let select = |architecture: &str, variant: Option<&str>| {
            let wanted =
                Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(Into::into) };
            index.select(Digest::of(b""), &wanted).map(|d| d.size)
        };
        assert_eq!(select("amd64", None), Ok(1));
        assert_eq!(select("x86_64", Some("v2")), Ok(1));
        assert_eq!(select("amd64", Some("v3")), Ok(2));
        assert_eq!(select("arm64", None), Ok(3));
        assert_eq!(select("arm", Some("v7")), Ok(4));
        assert!(matches!(select("s390x", None), Err(ManifestError::Platform { .. })));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes, Digest::of(b""), "");
            let _ = Config::parse(&bytes, Digest::of(b""));
        }
    }
}
