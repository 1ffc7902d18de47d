//! Small images made in memory: docker-archive, OCI layout, and the pieces for a registry.

use std::io::Write;

use proto::digest::Digest;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// An image in pieces.
pub(crate) struct Image {
    pub(crate) config: Vec<u8>,
    /// As they travel.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
}

pub(crate) fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size as u64);
    header
}

/// A layer with these files.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, data) in files {
        builder.append_data(&mut header(EntryType::Regular, 0o644, data.len()), path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that don't compress.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

impl Image {
    /// An image of these layers; `compress` says how they travel.
    pub(crate) fn new(layers: &[Vec<u8>], compress: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let layers: Vec<_> = layers.iter().map(|layer| compress(layer)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|l| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", l)).collect::<Vec<_>>(),
        });
        Self { config, layers, manifest: manifest.to_string().into_bytes() }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// As `docker save` wrote it before version 25: the second layer's file comes first, and `manifest.json` last.
    pub(crate) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let config = format!("{}.json", Digest::of(&self.config).hex());
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let path = format!("{index}/layer.tar");
            builder.append_data(&mut header(EntryType::Regular, 0o644, layer.len()), path, &layer[..]).unwrap();
            let version = format!("{index}/VERSION");
            builder.append_data(&mut header(EntryType::Regular, 0o644, 3), version, &b"1.0"[..]).unwrap();
        }
        let data = &self.config[..];
        builder.append_data(&mut header(EntryType::Regular, 0o644, data.len()), &config, data).unwrap();
        let layers: Vec<_> = (0..self.layers.len()).map(|i| format!("{i}/layer.tar")).collect();
        let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]).to_string();
        let mut entry = header(EntryType::Regular, 0o644, manifest.len());
        builder.append_data(&mut entry, "manifest.json", manifest.as_bytes()).unwrap();
        builder.into_inner().unwrap()
    }

    /// As an OCI layout, under a name by annotation.
    pub(crate) fn oci_archive(&self, annotation: &str, name: &str) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let mut add = |path: String, data: &[u8]| {
            builder.append_data(&mut header(EntryType::Regular, 0o644, data.len()), path, data).unwrap();
        };
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest);
        entry["annotations"] = json!({annotation: name});
        add("index.json".into(), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().as_bytes());
        add("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#);
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            add(format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
        }
        builder.into_inner().unwrap()
    }
}
