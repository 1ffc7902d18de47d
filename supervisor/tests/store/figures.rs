//! How long a real image takes: `BERTH_ROOTFS=rootfs.tar cargo test --test store figures -- --ignored --nocapture`.

use std::{process::Command, time::Instant};

use proto::containerd::types::transfer::ImageStore;

use crate::{
    archives::{Image, gzip},
    harness::{Supervisor, unpacking},
    registries::DockerRegistry,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures, needs a root file system as tar in BERTH_ROOTFS"]
async fn import_and_pull() {
    let rootfs = std::fs::read(std::env::var_os("BERTH_ROOTFS").expect("BERTH_ROOTFS")).unwrap();
    let size = rootfs.len() >> 20;
    let plain = Image::new(std::slice::from_ref(&rootfs), <[u8]>::to_vec);
    let packed = Image::new(std::slice::from_ref(&rootfs), gzip);
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let show = |what: &str, began: Instant| {
        let seconds = began.elapsed().as_secs_f64();
        println!("{what}: {seconds:.2} s for {size} MB ({:.0} MB/s)", size as f64 / seconds);
    };
    let began = Instant::now();
    client.import(plain.docker_archive(&["plain:1"]), &ImageStore::default()).await.0.unwrap();
    show("import docker-archive, no unpack", began);
    let began = Instant::now();
    client.import(plain.docker_archive(&["plain:1"]), &unpacking()).await.0.unwrap();
    show("unpack of a layer that is there", began);
    client.remove_image("docker.io/library/plain:1").await.unwrap();
    let began = Instant::now();
    client.import(packed.docker_archive(&["packed:1"]), &unpacking()).await.0.unwrap();
    show("import and unpack, gzip layer", began);
    let began = Instant::now();
    client.remove_image("docker.io/library/packed:1").await.unwrap();
    show("remove with collection", began);
    let registry = DockerRegistry::start();
    let file = supervisor.root.join("image.tar");
    std::fs::write(&file, packed.oci_archive("org.opencontainers.image.ref.name", "x")).unwrap();
    let name = format!("127.0.0.1:{}/app:1", registry.port);
    let pushed = Command::new("skopeo")
        .args(["copy", "--dest-tls-verify=false", &format!("oci-archive:{}:x", file.display())])
        .arg(format!("docker://{name}"))
        .output()
        .unwrap();
    assert!(pushed.status.success());
    let began = Instant::now();
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    show("pull and unpack, gzip layer", began);
}
