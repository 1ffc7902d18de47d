//! A network and registries of every kind of bad weather: a proxy of our own stands before a real registry, and does at chosen
//! bytes of chosen requests what networks and registries do on bad days. All cases end right: with the image, or with one
//! clear error, nothing half visible, and the next pull as it should be.

mod sky;

pub(crate) use sky::{Act, Rule, Sky, rule, under};

use std::{
    collections::HashSet,
    io::Read,
    time::{Duration, Instant},
};

use proto::{
    berth::registry::v1::{TagsRequest, registry_client::RegistryClient},
    digest::Digest,
};
use serde_json::json;
use tonic::Code;

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Client, Supervisor, eventually, request, unpacking},
    push::fill,
    registries::{DockerRegistry, Fake},
};

fn image() -> Image {
    Image::new(&[layer(&[("big", &noise(3 << 20))]), layer(&[("small", b"x")])], gzip)
}

const CONFIG: &str = "[registry]\nsilence = \"800ms\"\nconfig-path = []\n";

async fn nothing_is_visible(client: &Client) {
    assert!(client.images().await.is_empty() && client.snapshots().await.is_empty());
}

/// Pulls through each weather in a store of its own: which must end with the image at once.
#[tokio::test(flavor = "multi_thread")]
async fn bad_weather_that_passes() {
    let registry = DockerRegistry::start();
    let image = image();
    fill(&image, &format!("127.0.0.1:{}/app:1", registry.port));
    let other = DockerRegistry::start();
    fill(&image, &format!("127.0.0.1:{}/app:1", other.port));
    let (elsewhere, other_sky) = under(other.port, Sky::default());
    let big = image.layers[0].len();
    let layer = &format!("GET blobs/{}", Digest::of(&image.layers[0]));
    let weather: Vec<(&str, Vec<Rule>, Option<usize>)> = vec![
        ("cut twice", vec![rule(layer, 2, Act::Cut(1_000_000))], None),
        ("cut at once", vec![rule("GET blobs", 3, Act::Cut(0))], None),
        ("cut before the last byte", vec![rule(layer, 1, Act::Cut(big - 1))], None),
        ("cut in the manifest", vec![rule("GET manifests", 2, Act::Cut(10))], None),
        ("stall", vec![rule(layer, 1, Act::Stall(500_000))], None),
        ("stall in the manifest", vec![rule("GET manifests", 1, Act::Stall(5))], None),
        ("slow answers", vec![rule("GET", 3, Act::Delay(Duration::from_millis(200)))], None),
        ("500 thrice", vec![rule("GET blobs", 3, Act::Status("500 Internal Server Error", ""))], None),
        ("503 with a time", vec![rule("GET manifests", 1, Act::Status("503 x", "Retry-After: 1\r\n"))], Some(1000)),
        ("429 with a time", vec![rule("GET blobs", 1, Act::Status("429 x", "Retry-After: 1\r\n"))], Some(1000)),
        ("redirect", vec![rule("GET blobs", 9, Act::Redirect(elsewhere))], None),
        (
            "redirect after a cut",
            vec![rule(layer, 1, Act::Cut(77)), rule("GET blobs", 9, Act::Redirect(elsewhere))],
            None,
        ),
    ];
    for (name, rules, at_least) in weather {
        let supervisor = Supervisor::start_with(CONFIG);
        let client = supervisor.client().await;
        let (port, sky) = under(registry.port, Sky { rules, ..Sky::default() });
        let began = Instant::now();
        let (done, _) = client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await;
        done.unwrap_or_else(|error| panic!("{name}: {error:?}\n{}", supervisor.log()));
        assert!(began.elapsed() >= Duration::from_millis(at_least.unwrap_or(0) as u64), "{name}");
        assert_eq!(client.snapshots().await.len(), 2, "{name}");
        let sky = sky.lock().unwrap();
        if name == "cut twice" {
            assert!(sky.count("GET range=bytes=") >= 2, "not resumed: {:?}", sky.seen);
        }
        assert!(name.starts_with("redirect") || sky.rules.iter().all(|rule| rule.times == 0), "{name}: {:?}", sky.seen);
    }
    assert!(other_sky.lock().unwrap().count("GET blobs") >= 3);
}

/// More pulls than the runtime has threads that may wait (16), all in the middle of a layer: whoever wants something else gets it.
#[tokio::test(flavor = "multi_thread")]
async fn registries_that_stall_hold_up_nobody_else() {
    const PULLS: usize = 24;
    let supervisor = Supervisor::start_with("[registry]\nsilence = \"60s\"\nconfig-path = []\n");
    let client = supervisor.client().await;
    let mut pulls = tokio::task::JoinSet::new();
    let mut skies = Vec::new();
    for number in 0..PULLS {
        let image = Image::new(&[layer(&[(&format!("file{number}"), &noise(300_000))])], gzip);
        let stalls = rule(&format!("GET blobs/{}", Digest::of(&image.layers[0])), 1, Act::Stall(100_000));
        let (upstream, _) = Fake::of(&image).serve();
        let (port, sky) = under(upstream, Sky { rules: vec![stalls], ..Sky::default() });
        skies.push(sky);
        // Each over a connection of its own, as clients have them.
        let client = supervisor.client().await;
        pulls.spawn(async move { client.pull_silently(&format!("127.0.0.1:{port}/app:1")).await });
    }
    eventually("all pulls stall", async || skies.iter().all(|sky| !sky.lock().unwrap().held.is_empty())).await;
    // Each takes a thread that may wait for the disk, and so may come behind those who wait for the network.
    let others = async {
        for number in 0..20 {
            client.lease(&format!("lease{number}")).await;
            client.images().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), others).await.expect("pulls that stall hold up others");
    assert_eq!(pulls.len(), PULLS, "{:?}", pulls.try_join_next());
    // Given up, they go, and what they had made.
    pulls.shutdown().await;
    eventually("nothing is left of the pulls", async || {
        client.images().await.is_empty() && client.snapshots().await.is_empty()
    })
    .await;
}

/// What no patience helps against: one clear error, nothing half visible, and all is well when the weather is.
#[tokio::test(flavor = "multi_thread")]
async fn bad_weather_that_does_not_pass() {
    let registry = DockerRegistry::start();
    let image = image();
    fill(&image, &format!("127.0.0.1:{}/app:1", registry.port));
    let big = image.layers[0].len();
    let layer = &format!("GET blobs/{}", Digest::of(&image.layers[0]));
    let weather: Vec<(Rule, Code, &str)> = vec![
        (rule(layer, 1, Act::Corrupt(2_000_000)), Code::DataLoss, "with digest"),
        (rule("GET manifests", 1, Act::Corrupt(20)), Code::DataLoss, "sent manifest \"1\" with digest"),
        (rule("GET manifests", 1, Act::Swap(b"{}")), Code::DataLoss, "sent manifest \"1\" with digest"),
        (rule("GET manifests", 1, Act::Endless), Code::DataLoss, "manifest \"1\" from 127.0.0.1"),
        (rule(layer, 9, Act::Endless), Code::DataLoss, "sent more than the"),
        (rule(layer, 9, Act::Claim(big as u64 + 7)), Code::DataLoss, "sent more than the"),
        (rule(layer, 9, Act::Claim(10)), Code::DataLoss, "has only 10 bytes of blob"),
        (rule("GET blobs", 99, Act::Status("500 x", "")), Code::Unavailable, "answered 500 Internal Server Error"),
        (rule("GET blobs", 99, Act::Stall(0)), Code::Unavailable, "was cut off: silent for 0.8 s"),
        (
            rule(
                "GET",
                99,
                Act::Status(
                    "429 x",
                    "Retry-After: 9999\r\nRateLimit-Limit: 100;w=21600\r\nRateLimit-Remaining: 0;w=21600\r\n",
                ),
            ),
            Code::ResourceExhausted,
            "(100 requests in 6 h, 0 left, again in 9999 s): wait, log in for a higher limit, or name a mirror",
        ),
        (rule("GET blobs", 9, Act::Status("404 x", "")), Code::NotFound, "blob sha256:"),
        (rule("GET", 99, Act::Redirect(1)), Code::Unavailable, "registry 127.0.0.1:1 can't be reached"),
        (
            rule("GET", 99, Act::Status("302 x", "Location: ftp://x/\r\n")),
            Code::Internal,
            "redirect: \"ftp://x/\" is not",
        ),
    ];
    let mut supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let mut names = Vec::new();
    for (index, (rule, code, words)) in weather.into_iter().enumerate() {
        let (port, sky) = under(registry.port, Sky { rules: vec![rule], ..Sky::default() });
        let name = format!("127.0.0.1:{port}/app:1");
        let error = client.pull(&name, None, &unpacking()).await.0.unwrap_err();
        assert!(error.code() == code && error.message().contains(words), "{index}: {error:?}");
        nothing_is_visible(&client).await;
        sky.lock().unwrap().rules.clear();
        names.push(name);
    }
    for name in names {
        client.pull(&name, None, &unpacking()).await.0.unwrap();
        client.remove_image(&name).await.unwrap();
    }
    supervisor.kill();
    let (is_well, said) = supervisor.check(&[]);
    assert!(is_well, "{said}");
}

/// A token that runs out in the middle is renewed, and no other host sees one.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_run_out_in_the_middle() {
    let registry = DockerRegistry::start();
    // One layer: with several at once, who uses up which token would be chance.
    let image = Image::new(&[layer(&[("big", &noise(3 << 20))])], gzip);
    fill(&image, &format!("127.0.0.1:{}/app:1", registry.port));
    let (elsewhere, other) = under(registry.port, Sky::default());
    let rules = vec![
        rule(&format!("GET blobs/{}", Digest::of(&image.layers[0])), 2, Act::Cut(500_000)),
        rule("GET blobs", 1, Act::Redirect(elsewhere)),
    ];
    let (port, sky) = under(registry.port, Sky { rules, token_uses: Some(1), ..Sky::default() });
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap();
    let sky = sky.lock().unwrap();
    assert!(sky.tokens >= 4, "{:?}", sky.seen);
    let used: HashSet<&str> = sky.seen.iter().filter_map(|line| line.split("auth=Bearer ").nth(1)).collect();
    assert!(used.len() >= 4);
    let other = other.lock().unwrap();
    assert!(other.count("GET blobs auth=-") == other.seen.len() && !other.seen.is_empty(), "{:?}", other.seen);
}

/// Manifests that lie about what they list.
#[tokio::test(flavor = "multi_thread")]
async fn lying_manifests() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let image = image();
    let mut fake = Fake::of(&image);
    let lie = |size: i64, digest: Option<Digest>| {
        let mut layers = image
            .layers
            .iter()
            .map(|l| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", l))
            .collect::<Vec<_>>();
        layers[0]["size"] = (image.layers[0].len() as i64 + size).into();
        if let Some(digest) = digest {
            layers[0]["digest"] = digest.to_string().into();
        }
        let config = descriptor("application/vnd.oci.image.config.v1+json", &image.config);
        json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().into_bytes()
    };
    let strange = Digest::of(b"strange");
    fake.blobs.insert(strange, image.layers[0].clone());
    for (tag, manifest) in [("short", lie(5, None)), ("long", lie(-5, None)), ("other", lie(0, Some(strange)))] {
        fake.manifests.insert(tag.into(), manifest);
    }
    let (port, _) = fake.serve();
    for (tag, words) in [
        ("short", format!("has only {} bytes of blob", image.layers[0].len())),
        ("long", format!("sent more than the {} bytes of blob", image.layers[0].len() - 5)),
        ("other", format!("with digest {}, expected {strange}", Digest::of(&image.layers[0]))),
    ] {
        let error = client.pull(&format!("127.0.0.1:{port}/app:{tag}"), None, &unpacking()).await.0.unwrap_err();
        assert!(error.code() == Code::DataLoss && error.message().contains(&words), "{tag}: {error:?}");
        nothing_is_visible(&client).await;
    }
    client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_tags_in_pages() {
    let tags: Vec<String> = (0..10_000).map(|i| format!("v{i:05}")).collect();
    let (port, sky) = under(1, Sky { tags: tags.clone(), ..Sky::default() });
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let reference = format!("127.0.0.1:{port}/many");
    let asked = TagsRequest { reference, ..Default::default() };
    let mut registries = RegistryClient::new(client.channel.clone());
    let found = registries.tags(request(asked)).await.unwrap().into_inner().tags;
    assert!(found == tags && sky.lock().unwrap().count("tags/list") == 100);
}

/// A client that goes away ends its transfer at once, whatever that is waiting for.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_ends_everything() {
    let registry = DockerRegistry::start();
    let image = image();
    fill(&image, &format!("127.0.0.1:{}/app:1", registry.port));
    let layer = format!("/{}", Digest::of(&image.layers[0]));
    let supervisor = Supervisor::start_with(&CONFIG.replace("800ms", "1h"));
    let archive = image.oci_archive("io.containerd.image.name", "docker.io/library/mine:1");
    supervisor.client().await.import(archive, &unpacking()).await.0.unwrap();
    let stopped = Supervisor::start_with(&CONFIG.replace("800ms", "1h"));
    for (words, pulls) in
        [(&format!("GET blobs {layer}")[..], true), ("GET manifests", true), ("PATCH", false), ("PUT manifests", false)]
    {
        let empty = DockerRegistry::start();
        let upstream = if pulls { registry.port } else { empty.port };
        let (port, sky) = under(upstream, Sky { rules: vec![rule(words, 1, Act::Stall(0))], ..Sky::default() });
        let name = format!("127.0.0.1:{port}/app:1");
        let client = if pulls { stopped.client().await } else { supervisor.client().await };
        let call = tokio::spawn(async move {
            if pulls {
                let _ = client.pull_silently(&name).await;
            } else {
                let _ = client.push_silently("docker.io/library/mine:1", &name).await;
            }
        });
        eventually("stalled", async || !sky.lock().unwrap().held.is_empty()).await;
        call.abort();
        // The connection is closed from the other side.
        let mut held = sky.lock().unwrap().held.pop().unwrap();
        held.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let ended = tokio::task::spawn_blocking(move || held.read(&mut [0]).map(|n| n == 0)).await.unwrap();
        assert!(
            matches!(ended, Ok(true)) || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{words}"
        );
    }
}
