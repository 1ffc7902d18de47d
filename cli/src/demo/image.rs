//! The demo image: a docker-archive made in memory, with this program as its only program.

use proto::digest::Digest;
use serde_json::json;

/// Its name.
pub const NAME: &str = "berth/demo:latest";
/// Label with the build of the program inside, to see whether the engine's image is of this one.
pub const LABEL: &str = "berth.demo.program";

/// A build of this program.
#[derive(Debug, Clone)]
pub struct Build {
    /// Tells it from other builds: size and time, since a digest would cost more than the container.
    pub name: String,
    /// When it was made, RFC 3339.
    pub made: String,
}

impl Build {
    /// The running program's.
    pub fn running() -> std::io::Result<Self> {
        let facts = std::fs::metadata("/proc/self/exe")?;
        let made = jiff::Timestamp::try_from(facts.modified()?).map_err(std::io::Error::other)?;
        Ok(Self { name: format!("{}-{}", facts.len(), made.as_nanosecond()), made: made.to_string() })
    }
}

/// A docker-archive of the image. The same build gives the same image.
pub fn archive(program: &[u8], build: &Build) -> Vec<u8> {
    let layer = layer(program);
    let diff_id = Digest::of(&layer);
    let config = json!({
        "architecture": crate::commands::version::go_arch(),
        "os": "linux",
        "created": build.made,
        "config": {
            "Entrypoint": ["/bin/berth", "demo-guest"],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/",
            "ExposedPorts": { "80/tcp": {} },
            "Labels": { LABEL: build.name },
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] },
        "history": [{ "created": build.made, "created_by": "berth demo" }],
    })
    .to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let layer_name = format!("{}/layer.tar", diff_id.hex());
    let manifest = json!([{ "Config": config_name, "RepoTags": [NAME], "Layers": [layer_name] }]).to_string();
    let mut tar = Tar::default();
    tar.file(&config_name, 0o644, config.as_bytes());
    tar.folder(&format!("{}/", diff_id.hex()), 0o755);
    tar.file(&layer_name, 0o644, &layer);
    tar.file("manifest.json", 0o644, manifest.as_bytes());
    tar.finish()
}

fn layer(program: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    for (folder, mode) in
        [("bin/", 0o755), ("dev/", 0o755), ("etc/", 0o755), ("proc/", 0o555), ("sys/", 0o555), ("tmp/", 0o1777)]
    {
        tar.folder(folder, mode);
    }
    tar.file("bin/berth", 0o755, program);
    tar.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/berth\nguest:x:1000:1000:guest:/:/bin/berth\n");
    tar.file("etc/group", 0o644, b"root:x:0:\nguest:x:1000:\n");
    tar.finish()
}

/// A tar archive under way, in the ustar form of POSIX.
#[derive(Default)]
struct Tar {
    out: Vec<u8>,
}

const BLOCK: usize = 512;

impl Tar {
    fn folder(&mut self, name: &str, mode: u32) {
        self.header(name, mode, 0, b'5');
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.header(name, mode, content.len(), b'0');
        self.out.extend_from_slice(content);
        self.out.resize(self.out.len().next_multiple_of(BLOCK), 0);
    }

    /// One block: name, mode, owner, size, time, checksum, type, magic. All names here are shorter than 100 bytes.
    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8) {
        let mut block = [0u8; BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, &name[..name.len().min(100)]);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        // The checksum is counted as if its own field were blank.
        put(148, "        ");
        put(257, "ustar");
        put(263, "00");
        block[156] = kind;
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.extend_from_slice(&block);
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.resize(self.out.len() + 2 * BLOCK, 0);
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Lists an archive by tar(1), which checks the checksums.
    fn list(archive: &[u8]) -> String {
        let mut tar =
            Command::new("tar").arg("-tvf").arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn tar_reads_the_archive() {
        let build = Build::running().unwrap();
        let names: Vec<String> = list(&archive(b"program", &build))
            .lines()
            .filter_map(|l| l.split_whitespace().last())
            .map(str::to_owned)
            .collect();
        assert_eq!(names.len(), 4);
        assert!(names[0].ends_with(".json") && names[2].ends_with("/layer.tar") && names[3] == "manifest.json");
        let layer = list(&layer(&[7; 1000]));
        assert!(layer.contains("-rwxr-xr-x 0/0            1000 1970-01-01 00:00 bin/berth"), "{layer}");
        assert!(layer.contains("drwxrwxrwt"), "{layer}");
        assert_eq!(archive(b"a", &build), archive(b"a", &build));
    }
}
