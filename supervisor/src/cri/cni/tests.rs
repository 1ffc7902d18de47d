//! What plugins are made to do, and what they can do to us: with scripts (`fake`), and with those of Debian (`real`).

mod fake;
mod real;

use std::{fs, path::Path};

use super::*;

/// A namespace that a pod would have; gone when dropped.
struct Namespace(PathBuf);

impl Namespace {
    fn new(at: PathBuf) -> Self {
        netns::create(&at, || ()).expect("network namespace");
        Self(at)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = netns::delete(&self.0) {
            eprintln!("left over: {error}");
        }
    }
}

fn pod(id: &str, netns: &Path) -> Pod {
    Pod {
        id: id.to_owned(),
        netns: netns.to_owned(),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        uid: "u1".to_owned(),
        ..Pod::default()
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

fn write(at: &Path, text: &str) {
    fs::create_dir_all(at.parent().expect("folder")).expect("folder");
    fs::write(at, text).expect("write");
}

#[test]
fn a_pod_is_what_the_sandbox_says() {
    let metadata =
        cri::PodSandboxMetadata { name: "web".into(), uid: "u1".into(), namespace: "default".into(), attempt: 3 };
    let port = cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() };
    let linux = cri::LinuxPodSandboxConfig { cgroup_parent: "/kubepods".into(), ..Default::default() };
    let config = cri::PodSandboxConfig {
        metadata: Some(metadata),
        port_mappings: vec![port.clone()],
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        dns_config: Some(cri::DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() }),
        linux: Some(linux),
        ..Default::default()
    };
    let pod = Pod::new("p1", "/run/x/net".into(), &config);
    assert_eq!((&*pod.id, &*pod.netns), ("p1", Path::new("/run/x/net")));
    assert_eq!((&*pod.name, &*pod.namespace, &*pod.uid, &*pod.cgroup_parent), ("web", "default", "u1", "/kubepods"));
    assert_eq!((pod.port_mappings, &*pod.annotations["a"], pod.dns), (vec![port], "b", config.dns_config));
}

#[test]
fn settings_arrive() {
    use clap::Parser as _;
    let folder = tempfile::tempdir().expect("folder");
    let at = folder.path().join("c.toml");
    write(&at, "[cri]\ncni-conf-dir = '/c'\ncni-bin-dirs = ['/a', '/b']\ncni-plugin-limit = '3s'\n");
    let args =
        |at: &Path| crate::config::Args::parse_from(["berth-supervisor".as_ref(), "--config".as_ref(), at.as_os_str()]);
    let cni = Cni::new(&args(&at).into_config().expect("configuration"));
    assert_eq!(cni.folder, Path::new("/c"));
    assert_eq!(cni.programs.folders, [Path::new("/a"), Path::new("/b")]);
    assert_eq!(cni.programs.limit, Duration::from_secs(3));
    write(&at, "\n[cri]\ncni-bin-dirs = ['/a:/b']\n");
    let error = args(&at).into_config().expect_err("a colon").to_string();
    assert!(error.contains("line 3: cri.cni-bin-dirs /a:/b has a colon"), "{error}");
}
