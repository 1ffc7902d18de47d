//! The collector beside those who pull and remove: it takes everything that nobody needs, and nothing else.

use std::{process::Command, sync::Arc, thread};

use proto::containerd::services::{
    leases::v1::{
        AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource, leases_client::LeasesClient,
    },
    snapshots::v1::{StatSnapshotRequest, snapshots_client::SnapshotsClient},
};

use crate::{
    archives::{Image, gzip, layer, noise},
    harness::{Supervisor, eventually, request, unpacking},
    registries::DockerRegistry,
};

#[tokio::test(flavor = "multi_thread")]
async fn pulls_and_removes_beside_collections_that_never_end() {
    let supervisor = Arc::new(Supervisor::start());
    let registry = DockerRegistry::start();
    let base = layer(&[("base", &noise(300_000))]);
    let names: Vec<_> = (0..3).map(|n| format!("127.0.0.1:{}/app{n}:1", registry.port)).collect();
    for (n, name) in names.iter().enumerate() {
        // One layer is the same for all of them: who removes one image must not take it from the others.
        let image = Image::new(&[base.clone(), layer(&[("own", &[n as u8; 1000])])], gzip);
        let file = supervisor.root.join("image.tar");
        std::fs::write(&file, image.oci_archive("org.opencontainers.image.ref.name", "x")).unwrap();
        let from = format!("oci-archive:{}:x", file.display());
        let to = format!("docker://{name}");
        let pushed =
            Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", &from, &to]).output().unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    }
    let work = |name: String| {
        let supervisor = supervisor.clone();
        thread::spawn(move || {
            for _ in 0..5 {
                supervisor.ctr(&["images", "pull", "--plain-http", &name])?;
                // Every `--sync` of the others is a collection.
                let checked = supervisor.ctr(&["images", "check", &format!("name=={name}")])?;
                if !checked.contains("complete (3/3)") || !checked.trim_end().ends_with("true") {
                    return Err(format!("{name} is not whole: {checked}"));
                }
                supervisor.ctr(&["images", "rm", "--sync", &name])?;
            }
            Ok(())
        })
    };
    let workers: Vec<_> = names.into_iter().map(work).collect();
    for worker in workers {
        worker.join().unwrap().unwrap_or_else(|error: String| panic!("{error}\n{}", supervisor.log()));
    }
    // Nobody asks for a collection any more: the deletions of the last leases lead to it.
    eventually("everything is gone", async || {
        supervisor.names("content/blobs/sha256").is_empty()
            && supervisor.names("content/ingest").is_empty()
            && supervisor.names("snapshots/overlayfs").is_empty()
    })
    .await;
    assert!(supervisor.log().contains("garbage collected"), "{}", supervisor.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_keeps_until_it_expires_and_nobody_has_to_ask() {
    let mut supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let mut leases = LeasesClient::new(client.channel.clone());
    let image = Image::new(&[layer(&[("a", b"1")])], gzip);
    client.import(image.docker_archive(&["web:1"]), &Default::default()).await.0.unwrap();
    let blobs = client.blobs().await;
    let soon = prost_types::Timestamp::from(std::time::SystemTime::now() + std::time::Duration::from_secs(3));
    let labels = [("containerd.io/gc.expire".to_owned(), soon.to_string())].into();
    leases.create(request(CreateRequest { id: "brief".into(), labels })).await.unwrap();
    for digest in &blobs {
        let resource = Some(Resource { id: digest.clone(), r#type: "content".into() });
        leases.add_resource(request(AddResourceRequest { id: "brief".into(), resource })).await.unwrap();
    }
    let odd = Some(Resource { id: "x".into(), r#type: "weather".into() });
    let refused =
        leases.add_resource(request(AddResourceRequest { id: "brief".into(), resource: odd })).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented, "{refused}");
    client.remove_image("docker.io/library/web:1").await.unwrap();
    assert_eq!(client.blobs().await, blobs, "kept by the lease, over a restart too");
    supervisor.kill_and_restart();
    let client = supervisor.client().await;
    let mut leases = LeasesClient::new(client.channel.clone());
    assert_eq!(client.blobs().await, blobs);
    eventually("the lease and what it kept are gone", async || client.blobs().await.is_empty()).await;
    let left = leases.list(request(ListRequest::default())).await.unwrap().into_inner().leases;
    assert!(left.is_empty(), "{left:?}");
    let gone = leases.delete(request(DeleteRequest { id: "brief".into(), sync: false })).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
}

/// A client that unpacks looks whether a layer is there, and builds on it: what it found under its lease must stay.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_looked_for_under_a_lease_stays() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")])], gzip);
    client.import(image.docker_archive(&["web:1"]), &unpacking()).await.0.unwrap();
    let [found] = &client.snapshots().await[..] else { panic!("one layer") };
    let mut leases = LeasesClient::new(client.channel.clone());
    leases.create(request(CreateRequest { id: "build".into(), ..CreateRequest::default() })).await.unwrap();
    let mut snapshots = SnapshotsClient::new(client.channel.clone());
    for (key, code) in [(found.name.clone(), None), ("sha256:none".to_owned(), Some(tonic::Code::NotFound))] {
        let mut stat = request(StatSnapshotRequest { snapshotter: "overlayfs".into(), key });
        stat.metadata_mut().insert("containerd-lease", "build".parse().unwrap());
        assert_eq!(snapshots.stat(stat).await.err().map(|status| status.code()), code);
    }
    client.remove_image("docker.io/library/web:1").await.unwrap();
    eventually("all else is collected", async || client.blobs().await.is_empty()).await;
    assert_eq!(client.snapshots().await.len(), 1);
    leases.delete(request(DeleteRequest { id: "build".into(), sync: true })).await.unwrap();
    eventually("it goes with the lease", async || client.snapshots().await.is_empty()).await;
}
