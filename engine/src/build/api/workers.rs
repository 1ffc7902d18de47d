//! What a builder tells of itself: labels, and the platforms that can be run here.

use crate::build::frontend::llb_platform;
use crate::{build::Builder, images::platform::Platform};
use proto::{moby::buildkit::v1::types::WorkerRecord, pb};
use std::{collections::HashMap, path::Path};

const BINFMT: &str = "/proc/sys/fs/binfmt_misc";

/// Machines by the names that emulators are registered under (QEMU's), and by docker's.
const MACHINES: &[(&str, &str)] = &[
    ("x86_64", "linux/amd64"),
    ("aarch64", "linux/arm64"),
    ("arm", "linux/arm/v7"),
    ("i386", "linux/386"),
    ("ppc64le", "linux/ppc64le"),
    ("s390x", "linux/s390x"),
    ("riscv64", "linux/riscv64"),
    ("loongarch64", "linux/loong64"),
    ("mips64el", "linux/mips64le"),
    ("mips64", "linux/mips64"),
];

/// The record of this machine.
pub fn describe(id: &str, snapshotter: &str, host_name: &str, gateway: Option<std::net::IpAddr>) -> WorkerRecord {
    let mut labels = HashMap::from([
        ("org.mobyproject.buildkit.worker.executor".to_owned(), "containerd".to_owned()),
        ("org.mobyproject.buildkit.worker.hostname".to_owned(), host_name.to_owned()),
        ("org.mobyproject.buildkit.worker.snapshotter".to_owned(), snapshotter.to_owned()),
        ("org.mobyproject.buildkit.worker.network".to_owned(), "host".to_owned()),
        ("org.mobyproject.buildkit.worker.containerd.uuid".to_owned(), id.to_owned()),
        ("org.mobyproject.buildkit.worker.containerd.namespace".to_owned(), "berth".to_owned()),
    ]);
    if let Some(gateway) = gateway {
        labels.insert("org.mobyproject.buildkit.worker.moby.host-gateway-ip".to_owned(), gateway.to_string());
    }
    WorkerRecord {
        id: id.to_owned(),
        labels,
        platforms: platforms(Path::new(BINFMT)),
        buildkit_version: Some(Builder::version()),
        ..WorkerRecord::default()
    }
}

/// This machine's platforms, and those that a binfmt_misc handler is there for now.
pub fn platforms(binfmt: &Path) -> Vec<pb::Platform> {
    let host = Platform::host();
    let mut all = vec![llb_platform(&host)];
    let mut add = |text: &str| {
        if let Ok(platform) = Platform::parse(text) {
            let platform = llb_platform(&platform);
            if !all.contains(&platform) {
                all.push(platform);
            }
        }
    };
    if host.architecture == "amd64" {
        // The processor itself runs it.
        add("linux/386");
    }
    let mut found: Vec<&str> = Vec::new();
    for entry in std::fs::read_dir(binfmt).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = MACHINES.iter().find(|(machine, _)| name.strip_prefix("qemu-").unwrap_or(&name) == *machine);
        let Some((_, platform)) = known else { continue };
        if std::fs::read_to_string(entry.path()).is_ok_and(|text| text.lines().next() == Some("enabled")) {
            found.push(platform);
        }
    }
    found.sort_unstable();
    for platform in found {
        add(platform);
        if platform == "linux/arm/v7" {
            add("linux/arm/v6");
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::frontend::platform_name;

    #[test]
    fn emulated_platforms() {
        let folder = tempfile::tempdir().unwrap();
        let host = platform_name(&llb_platform(&Platform::host()));
        for (name, text) in [
            ("qemu-riscv64", "enabled\ninterpreter /usr/bin/qemu-riscv64\n"),
            ("qemu-s390x", "disabled\n"),
            ("python3.11", "enabled\n"),
            ("qemu-arm", "enabled\n"),
            ("register", ""),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let names: Vec<String> = platforms(folder.path()).iter().map(platform_name).collect();
        assert_eq!(names[0], host);
        assert!(names.contains(&"linux/riscv64".to_owned()) && names.contains(&"linux/arm/v6".to_owned()), "{names:?}");
        assert!(!names.contains(&"linux/s390x".to_owned()));
        assert!(!platforms(Path::new("/does/not/exist")).is_empty());
    }
}
