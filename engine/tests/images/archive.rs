//! Tars and images made by hand, so that tests can break them where they like.

use proto::digest::Digest;
use serde_json::{Value, json};

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, data) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000755");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// An image: its layers are plain tars, so each layer's digest is its diff id.
pub struct Image {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    /// `mark` makes it another image.
    pub fn new(mark: &str, layers: Vec<Vec<u8>>) -> Self {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = encode(&json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["/hello"], "Env": ["A=b"], "Labels": {"mark": mark}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": layers.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
        }));
        let descriptor = |kind: &str, blob: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": Digest::of(blob), "size": blob.len(),
            })
        };
        let manifest = encode(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect::<Vec<_>>(),
        }));
        Self { config, manifest, layers }
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub fn digest(&self) -> String {
        Digest::of(&self.manifest).to_string()
    }

    /// As `docker save` writes it.
    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
        let index = encode(&json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]));
        let mut files: Vec<(&str, &[u8])> =
            names.iter().map(String::as_str).zip(self.layers.iter().map(Vec::as_slice)).collect();
        files.push(("config.json", &self.config));
        files.push(("manifest.json", &index));
        tar(&files)
    }
}

fn encode(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}
