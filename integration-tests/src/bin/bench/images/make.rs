//! The images of the bench, as OCI layouts: made once per machine and kept beside the build output.

use flate2::{Compression, write::GzEncoder};
use integration_tests::{images::sha256, programs::peer};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

/// An image of the bench.
pub struct Made {
    /// Its name in the registry.
    pub name: &'static str,
    /// What it stands for.
    pub what: &'static str,
    /// The folders of its OCI layouts. Several differ in a few bytes of each layer, so that each is news to those who know the
    /// others: where many files were removed a moment ago, ext4 is slow to make new ones, whoever asks.
    pub layouts: Vec<PathBuf>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test/bench-images")
}

type Fill = fn(&mut Layout) -> Option<()>;

/// All images; one whose tool is missing is left out.
pub fn all() -> Vec<Made> {
    fs::create_dir_all(folder()).expect("folder of the bench's images");
    let list: [(&str, &str, usize, Fill); 4] = [
        ("debian", "a Debian root", 7, debian),
        ("layers", "40 small layers", 4, layers),
        ("files", "60,000 small files", 4, files),
        ("big", "one layer of 1 GB", 1, big),
    ];
    let made = |(name, what, variants, fill): (&'static str, &'static str, usize, Fill)| {
        let layouts = (1..=variants).map(|variant| Layout::of(name, variant, fill)).collect::<Option<_>>()?;
        Some(Made { name, what, layouts })
    };
    list.into_iter().filter_map(made).collect()
}

/// An OCI layout that is being written.
struct Layout {
    folder: PathBuf,
    variant: usize,
    layers: Vec<serde_json::Value>,
    diff_ids: Vec<String>,
}

impl Layout {
    fn of(name: &str, variant: usize, fill: Fill) -> Option<PathBuf> {
        let path = folder().join(format!("{name}{variant}"));
        if path.join("index.json").exists() {
            return Some(path);
        }
        eprintln!("making the image {name}, variant {variant}");
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(path.join("blobs/sha256")).ok()?;
        let mut layout = Self { folder: path.clone(), variant, layers: Vec::new(), diff_ids: Vec::new() };
        fill(&mut layout)?;
        layout.finish().ok()?;
        Some(path)
    }

    // A gzip layer of what `fill` writes as a tar.
    fn layer(&mut self, fill: impl FnOnce(&mut tar::Builder<&mut dyn Write>) -> io::Result<()>) -> io::Result<()> {
        let part = self.folder.join("part");
        let mut file = Hashed::new(BufWriter::new(File::create(&part)?));
        let mut gzip = Hashed::new(GzEncoder::new(&mut file, Compression::new(6)));
        let mut archive = tar::Builder::new(&mut gzip as &mut dyn Write);
        entry(&mut archive, "variant", self.variant.to_string().as_bytes())?;
        fill(&mut archive)?;
        archive.finish()?;
        drop(archive);
        let (gzip, diff_id, _) = gzip.into_parts();
        gzip.finish()?;
        let (mut file, digest, size) = file.into_parts();
        file.flush()?;
        fs::rename(&part, self.folder.join("blobs/sha256").join(&digest))?;
        self.layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{digest}"), "size": size,
        }));
        self.diff_ids.push(format!("sha256:{diff_id}"));
        Ok(())
    }

    fn finish(&self) -> io::Result<()> {
        let blob = |text: &str| {
            let digest = sha256(text.as_bytes());
            fs::write(self.folder.join("blobs/sha256").join(&digest), text)?;
            Ok::<_, io::Error>((format!("sha256:{digest}"), text.len()))
        };
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["true"] },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        let (config, config_size) = blob(&config.to_string())?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": self.layers,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        });
        let (manifest, manifest_size) = blob(&manifest.to_string())?;
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }] });
        fs::write(self.folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(self.folder.join("index.json"), index.to_string())
    }
}

/// Counts and hashes what passes.
struct Hashed<W> {
    inner: W,
    hasher: sha2::Sha256,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: sha2::Digest::new(), size: 0 }
    }

    fn into_parts(self) -> (W, String, u64) {
        let digest: [u8; 32] = sha2::Digest::finalize(self.hasher).into();
        (self.inner, digest.iter().map(|b| format!("{b:02x}")).collect(), self.size)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        sha2::Digest::update(&mut self.hasher, &bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn debian(layout: &mut Layout) -> Option<()> {
    let mmdebstrap = peer("mmdebstrap")?;
    let root = folder().join("debian.tar");
    if !root.exists() {
        let part = root.with_extension("part");
        let mut command = Command::new(mmdebstrap);
        command.args(["--format=tar", "--variant=minbase", "bookworm"]).arg(&part);
        if !command.status().ok()?.success() {
            return None;
        }
        fs::rename(&part, &root).ok()?;
    }
    // As it is: the builder only passes its bytes on.
    let part = File::open(&root).ok()?;
    layout.layer(|archive| io::copy(&mut io::BufReader::new(part), archive.get_mut()).map(drop)).ok()
}

fn entry(archive: &mut tar::Builder<&mut dyn Write>, path: &str, data: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    archive.append_data(&mut header, path, data)
}

/// Bytes that compress about as well as programs do: words of a small set, and some noise.
struct Text(u64);

impl Text {
    fn next(&mut self) -> u64 {
        // xorshift: the same bytes on every machine.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(length + 16);
        while out.len() < length {
            let n = self.next();
            if n % 5 < 2 {
                out.extend_from_slice(&n.to_le_bytes());
            } else {
                let word = 1 + n % 977;
                out.extend_from_slice(&word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
                out.extend_from_slice(&word.wrapping_mul(0xC2B2_AE3D_27D4_EB4F).to_le_bytes());
            }
        }
        out.truncate(length);
        out
    }
}

fn layers(layout: &mut Layout) -> Option<()> {
    let mut text = Text(1);
    for layer in 0..40 {
        layout
            .layer(|archive| {
                (0..20).try_for_each(|file| entry(archive, &format!("app/{layer}/file{file}"), &text.bytes(5000)))
            })
            .ok()?;
    }
    Some(())
}

fn files(layout: &mut Layout) -> Option<()> {
    let mut text = Text(2);
    layout
        .layer(|archive| {
            (0..60_000).try_for_each(|file| {
                let size = 200 + (text.next() % 3000) as usize;
                entry(archive, &format!("data/{}/{}/file{file}.txt", file / 3000, file / 60 % 50), &text.bytes(size))
            })
        })
        .ok()
}

fn big(layout: &mut Layout) -> Option<()> {
    let mut text = Text(3);
    layout
        .layer(|archive| (0..16).try_for_each(|file| entry(archive, &format!("big/part{file}"), &text.bytes(64 << 20))))
        .ok()
}
