//! Two hundred clients pull and remove images that share layers, while what nobody needs is collected: the store is whole all
//! the time, and empty at the end.

use integration_tests::{Stack, images, programs::peer_or_skip, registry::Registry, run_with};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

const CLIENTS: usize = 200;
const IMAGES: usize = 12;

/// An OCI layout with one image for each number: `n` shares its lowest layers with those that have the same remainders.
fn publish(folder: &Path, registry: &Registry) {
    let blobs = folder.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = images::sha256(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        json!({ "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let layer = |name: &str| {
        let mut archive = tar::Builder::new(Vec::new());
        for file in 0..20 {
            images::add_file(&mut archive, &format!("{name}/file{file}"), name.repeat(300 + file).as_bytes(), 0o644);
        }
        archive.into_inner().unwrap()
    };
    let manifests: Vec<Value> = (0..IMAGES)
        .map(|number| {
            let layers = [
                layer("base"),
                layer(&format!("two{}", number % 2)),
                layer(&format!("three{}", number % 6)),
                layer(&format!("own{number}")),
            ];
            let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", images::sha256(layer))).collect();
            let described: Vec<_> = layers
                .iter()
                .map(|layer| {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    std::io::Write::write_all(&mut gzip, layer).unwrap();
                    let mut descriptor = blob(&gzip.finish().unwrap());
                    descriptor["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
                    descriptor
                })
                .collect();
            let config = json!({
                "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh"] },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            });
            let mut config = blob(config.to_string().as_bytes());
            config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            let manifest =
                json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": described });
            let mut manifest = blob(manifest.to_string().as_bytes());
            manifest["mediaType"] = json!(media_type);
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("n{number}") });
            manifest
        })
        .collect();
    let layout = folder.join("layout");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": manifests }).to_string()).unwrap();
    for number in 0..IMAGES {
        let (from, to) =
            (format!("oci:{}:n{number}", layout.display()), format!("docker://{}/n{number}:1", registry.host()));
        let mut command = Command::new("skopeo");
        command.args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", &from, &to]);
        run_with(&mut command, b"", Duration::from_secs(60)).success();
    }
}

/// What `verify` found: damage by object, and the last line.
fn verify(stack: &Stack) -> (BTreeMap<String, String>, Value) {
    let text = stack.api().post("/images/verify", None).expect(200).text();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let last = lines.pop().expect("a last line");
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (lines.iter().map(|line| (word(&line["id"]), word(&line["error"]))).collect(), last)
}

fn entries(at: &Path) -> Vec<String> {
    let names = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "l").collect()
}

#[test]
fn two_hundred_clients_pull_and_remove_what_overlaps() {
    if peer_or_skip("docker-registry").and(peer_or_skip("skopeo")).is_none() {
        return;
    }
    let stack = Stack::start();
    let registry = Registry::start(stack.path());
    publish(stack.path(), &registry);
    let (pulled, removed, begun) = (AtomicUsize::new(0), AtomicUsize::new(0), std::sync::Barrier::new(CLIENTS));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stack, registry, pulled, removed, begun) = (&stack, &registry, &pulled, &removed, &begun);
            scope.spawn(move || {
                let name = format!("{}/n{}", registry.host(), client * 7 % IMAGES);
                begun.wait();
                let answer = stack.api().post(&format!("/images/create?fromImage={name}&tag=1"), None);
                let text = answer.text();
                // Another client may have removed it between its arrival and our look at it.
                let gone = text.contains("No such image");
                assert!(
                    answer.status == 200 && (text.contains("Status: ") || gone),
                    "{client}: {} {text}",
                    answer.status
                );
                pulled.fetch_add(usize::from(!gone), Ordering::Relaxed);
                if client % 4 != 0 {
                    let answer = stack.api().delete(&format!("/images/{name}:1"));
                    assert!(matches!(answer.status, 200 | 404), "{client}: {} {}", answer.status, answer.text());
                    removed.fetch_add(usize::from(answer.status == 200), Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} pulled, {} removed", pulled.load(Ordering::Relaxed), removed.load(Ordering::Relaxed));
    assert!(removed.load(Ordering::Relaxed) > 10);
    let (damage, last) = verify(&stack);
    assert!(damage.is_empty() && last["errors"] == 0, "{damage:#?} {last}");

    // What is there is whole: pulled once more, each has all of its files.
    for number in 0..IMAGES {
        let name = format!("{}/n{number}", registry.host());
        let text = stack.api().post(&format!("/images/create?fromImage={name}&tag=1"), None).expect(200).text();
        assert!(text.contains("Status: "), "{text}");
    }
    let (damage, last) = verify(&stack);
    assert!(damage.is_empty() && last["errors"] == 0 && last["images"] == IMAGES, "{damage:#?} {last}");
    assert_eq!(last["snapshots"], 1 + 2 + 6 + IMAGES, "{last}");
    let folders = stack.data_root().join("supervisor/snapshots/overlayfs");
    let files: usize = entries(&folders).iter().map(|id| walk(&folders.join(id).join("fs"))).sum();
    assert_eq!(files, 20 * (1 + 2 + 6 + IMAGES));

    for number in 0..IMAGES {
        stack.api().delete(&format!("/images/{}/n{number}:1", registry.host())).expect(200);
    }
    let blobs = stack.data_root().join("supervisor/content/blobs/sha256");
    integration_tests::eventually("the store is empty", || {
        let left = (entries(&blobs).len(), entries(&folders).len());
        (left == (0, 0)).then_some(())
    });
}

/// The number of files below a folder.
fn walk(at: &Path) -> usize {
    fs::read_dir(at)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() { walk(&entry.path()) } else { 1 }
        })
        .sum()
}
