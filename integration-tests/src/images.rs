//! Images made on the spot, from a static busybox: no registry, no download.

use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};

const APPLETS: &str = "sh ls cat echo sleep true false id env pwd hostname ps kill mkdir rm touch head tail wc seq nc wget httpd ip ping stat \
    mount umount dd sync test uname printf grep sed awk tr sort date vi stty tty trap nslookup readlink ln cp mv chmod chown df du find free top yes sha256sum usleep setsid";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The sha256 of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

/// Appends a regular file to a tar.
pub fn add_file(archive: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8], mode: u32) {
    archive.append_data(&mut header(tar::EntryType::Regular, data.len() as u64, mode), path, data).unwrap();
}

fn add_dir(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32) {
    archive.append_data(&mut header(tar::EntryType::Directory, 0, mode), path, &b""[..]).unwrap();
}

/// A root filesystem with busybox and its applets, as a tar.
pub fn busybox_rootfs() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is not installed: make deps-test");
    let mut archive = tar::Builder::new(Vec::new());
    for folder in ["bin", "etc", "proc", "sys", "dev", "root", "var", "www"] {
        add_dir(&mut archive, folder, 0o755);
    }
    add_dir(&mut archive, "tmp", 0o1777);
    add_file(&mut archive, "bin/busybox", &busybox, 0o755);
    for applet in APPLETS.split_whitespace() {
        archive
            .append_link(&mut header(tar::EntryType::Symlink, 0, 0o777), format!("bin/{applet}"), "busybox")
            .unwrap();
    }
    add_file(&mut archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n", 0o644);
    add_file(&mut archive, "etc/group", b"root:x:0:\nuser:x:1000:\nstaff:x:50:user\n", 0o644);
    add_file(&mut archive, "www/index.html", b"hello from berth\n", 0o644);
    archive.into_inner().unwrap()
}

/// A docker-archive with one layer, named `name`; `config` is merged into the image's `config` object.
pub fn docker_archive(name: &str, layer: &[u8], config: serde_json::Value) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": config, "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(layer))] },
        "history": [{ "created": "2024-01-01T00:00:00Z", "created_by": "test harness" }],
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let layer_name = format!("{}/layer.tar", sha256(layer));
    let manifest =
        serde_json::json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    add_file(&mut archive, &config_name, config.as_bytes(), 0o644);
    add_file(&mut archive, &layer_name, layer, 0o644);
    add_file(&mut archive, "manifest.json", manifest.as_bytes(), 0o644);
    archive.into_inner().unwrap()
}

/// Writes the busybox image (`busybox:latest`) as a docker-archive into `folder` and gives its path.
pub fn busybox_archive(folder: &Path) -> PathBuf {
    let path = folder.join("busybox.tar");
    let config = serde_json::json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    fs::write(&path, docker_archive("busybox:latest", &busybox_rootfs(), config)).unwrap();
    path
}

/// Unpacks the busybox root into `folder`, for tests that need a bundle rather than an image.
pub fn busybox_folder(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    tar::Archive::new(&busybox_rootfs()[..]).unpack(folder).unwrap();
}
