//! `berth.content.v1.Store/Verify`: a sound store is sound, and every kind of damage is told by name.

use std::fs;

use proto::{
    berth::content::v1::{ObjectKind, VerifiedObject},
    containerd::services::content::v1::{DeleteContentRequest, content_client::ContentClient},
    digest::{Digest, chain_id},
};
use serde_json::json;
use tonic::Code;

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Client, Supervisor, request, unpacking},
    registries::Fake,
};

async fn imported(images: &[(&str, &Image)]) -> (Supervisor, Client) {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    for (name, image) in images {
        client.import(image.docker_archive(&[name]), &unpacking()).await.0.unwrap();
    }
    (supervisor, client)
}

fn two() -> (Image, Image) {
    let shared = layer(&[("etc/shared", b"s")]);
    let one = Image::new(&[shared.clone(), layer(&[("one", &noise(90_000))])], gzip);
    let other = Image::new(&[shared, layer(&[("two", &noise(1000))])], gzip);
    (one, other)
}

async fn faulty(client: &Client, images: &[&str]) -> Vec<(ObjectKind, String, Vec<String>, Vec<String>)> {
    let (objects, totals) = client.verify(images).await.unwrap();
    let faulty = objects.into_iter().filter(|object| !object.problems.is_empty());
    let faulty: Vec<_> = faulty
        .map(|object| (object.kind(), object))
        .map(|(kind, VerifiedObject { name, problems, images, .. })| (kind, name, problems, images))
        .collect();
    assert_eq!(totals.faulty, faulty.len() as u64);
    faulty
}

fn file_of(supervisor: &Supervisor, digest: &Digest) -> std::path::PathBuf {
    supervisor.path("content/blobs/sha256").join(digest.hex())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_store_and_each_kind_of_damage() {
    let (one, other) = two();
    let (supervisor, client) = imported(&[("a:1", &one), ("b:1", &other)]).await;
    let totals = client.assert_sound().await;
    assert_eq!((totals.images, totals.snapshots, totals.blobs), (2, 3, 2 * 2 + 3));
    let (of_one, _) = client.verify(&["docker.io/library/a:1"]).await.unwrap();
    assert_eq!(of_one.len(), 1 + 4 + 2, "{of_one:?}");
    assert_eq!(client.verify(&["nothing:1"]).await.unwrap_err().code(), Code::NotFound);

    // Other bytes of the same length in the shared layer; the own one of the first image cut short.
    let (shared, own) = (Digest::of(&one.layers[0]), Digest::of(&one.layers[1]));
    let sound = fs::read(file_of(&supervisor, &shared)).unwrap();
    let mut bytes = sound.clone();
    bytes[30] ^= 1;
    fs::write(file_of(&supervisor, &shared), &bytes).unwrap();
    fs::write(file_of(&supervisor, &own), &one.layers[1][..100]).unwrap();
    let mut found = faulty(&client, &[]).await;
    found.sort_by_key(|(_, name, ..)| *name != shared.to_string());
    let (names_a, names_b) = ("docker.io/library/a:1".to_owned(), "docker.io/library/b:1".to_owned());
    let damaged = format!("is damaged (its bytes have the digest {})", Digest::of(&bytes));
    assert_eq!(found[0], (ObjectKind::Blob, shared.to_string(), vec![damaged], vec![names_a.clone(), names_b]));
    let cut = format!("is 100 bytes long instead of {}", one.layers[1].len());
    assert_eq!(found[1], (ObjectKind::Blob, own.to_string(), vec![cut], vec![names_a.clone()]));
    assert_eq!(found.len(), 2);
    // Of the other image only one is part.
    assert_eq!(faulty(&client, &["docker.io/library/b:1"]).await.len(), 1);

    // Its file away; then its record too, which is the image's fault and no blob's.
    fs::remove_file(file_of(&supervisor, &own)).unwrap();
    fs::write(file_of(&supervisor, &shared), &sound).unwrap();
    let found = faulty(&client, &[]).await;
    assert_eq!(
        (found[0].1.as_str(), found[0].2.as_slice()),
        (own.to_string().as_str(), &["is missing".to_owned()][..])
    );
    let delete = DeleteContentRequest { digest: own.to_string() };
    ContentClient::new(client.channel.clone()).delete(request(delete)).await.unwrap();
    let found = faulty(&client, &[]).await;
    let missing = format!("layer {own} is missing; pull the image again");
    assert_eq!(found, [(ObjectKind::Image, names_a.clone(), vec![missing], vec![])]);

    // A layer's folder away: the snapshot itself, and nothing else stands on it.
    let chain =
        chain_id(&[Digest::of(&layer(&[("etc/shared", b"s")])), Digest::of(&layer(&[("one", &noise(90_000))]))]);
    let newest = supervisor.names("snapshots/overlayfs").into_iter().filter_map(|name| name.parse::<u64>().ok());
    let folder =
        newest.filter(|id| supervisor.path(&format!("snapshots/overlayfs/{id}/fs/one")).exists()).max().unwrap();
    fs::remove_dir_all(supervisor.path(&format!("snapshots/overlayfs/{folder}"))).unwrap();
    let found = faulty(&client, &[]).await;
    let name = format!("overlayfs/{}", chain.unwrap());
    assert!(
        found.contains(&(ObjectKind::Snapshot, name, vec!["has lost its folder".into()], vec![names_a])),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_that_were_not_asked_for_are_no_fault() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let (one, _) = two();
    let mut fake = Fake::of(&one);
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let mut here = descriptor("application/vnd.oci.image.manifest.v1+json", &one.manifest);
    here["platform"] = platform("amd64");
    let mut elsewhere = descriptor("application/vnd.oci.image.manifest.v1+json", b"never fetched");
    elsewhere["platform"] = platform("s390x");
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [elsewhere, here],
    });
    fake.manifests.insert("1".into(), index.to_string().into_bytes());
    fake.manifests.insert(one.digest().to_string(), one.manifest.clone());
    let (port, _) = fake.serve();
    client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap();
    let totals = client.assert_sound().await;
    assert_eq!((totals.images, totals.blobs), (1, 5));
    let delete = DeleteContentRequest { digest: one.digest().to_string() };
    ContentClient::new(client.channel.clone()).delete(request(delete)).await.unwrap();
    let found = faulty(&client, &[]).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].2, [format!("of index {} no platform is here", Digest::of(index.to_string().as_bytes()))]);
}
