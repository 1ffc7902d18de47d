//! Images end to end: the engine over HTTP, a real supervisor below it, a registry on loopback.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

mod archive;
mod registries;
mod registry;
mod stack;

use archive::{Image, tar};
use base64::Engine as _;
use registry::Registry;
use serde_json::{Value, json};
use stack::{Stack, eventually, send_chunk};

macro_rules! stack {
    () => {
        stack!(Stack::start())
    };
    ($stack:expr) => {
        match $stack {
            Some(stack) => stack,
            None => return,
        }
    };
}

fn statuses(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["status"].as_str()).collect()
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    // xorshift: incompressible, and the same each time.
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

fn import(stack: &Stack, query: &str, archive: &[u8]) -> String {
    let answer = stack.post(&format!("/images/create?fromSrc=-{query}"), archive);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.lines()[0]["status"].as_str().unwrap().to_owned()
}

#[test]
fn import_tag_inspect_list_remove() {
    let stack = stack!();
    let archive = tar(&[("hello", b"hi"), ("bin/sh", &noise(300_000, 1))]);
    let changes = "&changes=CMD%20%5B%22/hello%22%5D&changes=ENV%20K=v&changes=LABEL%20a=b%0AEXPOSE%2080";
    let id = import(&stack, &format!("&repo=imp&tag=1&message=hi{changes}"), &archive);

    let image = stack.get("/images/imp:1/json").json();
    assert_eq!(image["Id"], json!(id));
    assert_eq!(image["RepoTags"], json!(["imp:1"]));
    assert_eq!(image["Comment"], json!("hi"));
    let config = &image["Config"];
    assert_eq!((&config["Cmd"], &config["Env"]), (&json!(["/hello"]), &json!(["K=v"])));
    assert_eq!((&config["Labels"], &config["ExposedPorts"]), (&json!({"a": "b"}), &json!({"80/tcp": {}})));
    assert_eq!(image["RootFS"]["Layers"], json!([proto::digest::Digest::of(&archive)]));
    assert!(image["Size"].as_i64().unwrap() >= 300_000, "{image}");

    // By every form of its id.
    for name in [&id[..], &id[7..], &id[7..19], &id[..19]] {
        assert_eq!(stack.get(&format!("/images/{name}/json")).json()["Id"], json!(id), "{name}");
    }
    let history = stack.get("/images/imp:1/history").json();
    assert_eq!((&history[0]["Id"], &history[0]["Comment"]), (&json!(id), &json!("hi")));

    assert_eq!(stack.post("/images/imp:1/tag?repo=team/x&tag=2", b"").status, 201);
    let list = stack.get("/images/json").json();
    assert_eq!(list[0]["RepoTags"], json!(["imp:1", "team/x:2"]));
    let filtered = stack.get("/images/json?filters=%7B%22reference%22%3A%5B%22team%2F*%22%5D%7D").json();
    assert_eq!(filtered[0]["RepoTags"], json!(["team/x:2"]));
    assert_eq!(stack.get("/images/json?filters=%7B%22label%22%3A%5B%22a%3Dc%22%5D%7D").json(), json!([]));
    assert_eq!(stack.get("/images/json?filters=%7B%22nope%22%3A%5B%22a%22%5D%7D").status, 400);

    let refused = stack.delete(&format!("/images/{}", &id[7..19]));
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.message(),
        format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
            &id[7..19]
        )
    );
    assert_eq!(stack.delete("/images/imp:1").json(), json!([{"Untagged": "imp:1"}]));
    assert_eq!(stack.delete("/images/team/x:2").json(), json!([{"Untagged": "team/x:2"}, {"Deleted": id}]));
    assert_eq!(stack.delete("/images/imp:1").message(), "No such image: imp:1");
    stack.expect_nothing_left();

    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let events = stack.get(&format!("/events?since=0&until={}", now + 1)).lines();
    let actions: Vec<_> =
        events.iter().map(|e| (e["Action"].as_str().unwrap(), e["Actor"]["ID"] == json!(id))).collect();
    assert_eq!(actions, ["tag", "import", "tag", "untag", "untag", "delete"].map(|action| (action, true)));
}

#[test]
fn image_whose_name_moves_on_stays_without_a_name() {
    let stack = stack!();
    let old = import(&stack, "&repo=a&tag=1", &tar(&[("x", b"old")]));
    let new = import(&stack, "&repo=a&tag=1", &tar(&[("x", b"new")]));
    assert_ne!(old, new);
    assert_eq!(stack.get("/images/a:1/json").json()["Id"], json!(new));
    let dangling = stack.get("/images/json?filters=%7B%22dangling%22%3A%5B%22true%22%5D%7D").json();
    assert_eq!((&dangling[0]["Id"], &dangling[0]["RepoTags"]), (&json!(old), &json!([])));
    let ancient = stack.get("/v1.41/images/json?filters=%7B%22dangling%22%3A%5B%22true%22%5D%7D").json();
    assert_eq!(ancient[0]["RepoTags"], json!(["<none>:<none>"]));
    // A name again, and it is nameless no longer.
    assert_eq!(stack.post(&format!("/images/{old}/tag?repo=b"), b"").status, 201);
    assert_eq!(stack.get("/images/json?filters=%7B%22dangling%22%3A%5B%22true%22%5D%7D").json(), json!([]));
    assert_eq!(stack.delete("/images/b").json(), json!([{"Untagged": "b:latest"}, {"Deleted": old}]));
    let nameless = import(&stack, "", &tar(&[("x", b"none")]));
    let pruned = stack.post("/images/prune", b"").json();
    assert_eq!(pruned["ImagesDeleted"], json!([{"Deleted": nameless}]));
    assert_eq!(stack.delete("/images/a:1").status, 200);
    stack.expect_nothing_left();
}

#[test]
fn broken_imports_say_why_and_leave_nothing() {
    let stack = stack!();
    let whole = tar(&[("big", &noise(400_000, 2))]);
    let gzip_magic = [&[0x1f, 0x8b, 8, 0][..], &noise(1000, 3)].concat();
    let cases: [(&str, &[u8], u16, &str); 7] = [
        ("", &noise(5000, 4), 500, "layer is corrupt"),
        ("", &whole[..200_000], 500, "truncated"),
        ("", &gzip_magic, 500, "layer is corrupt"),
        ("", b"", 400, "it is empty"),
        ("&repo=Bad", &whole, 400, "invalid reference format"),
        ("&changes=FOO%20x", &whole, 400, "foo is not a valid change command"),
        ("&changes=EXPOSE%20xyz", &whole, 400, "Invalid containerPort: xyz"),
    ];
    for (query, archive, status, words) in cases {
        let answer = stack.post(&format!("/images/create?fromSrc=-&repo=x{query}"), archive);
        let answer = if query.starts_with("&repo") {
            stack.post(&format!("/images/create?fromSrc=-{query}"), archive)
        } else {
            answer
        };
        assert_eq!(answer.status, status, "{query} {answer:?}");
        assert!(answer.message().contains(words), "{query} {answer:?}");
        assert_eq!(answer.message().lines().count(), 1);
        if query.starts_with("&repo") {
            assert_eq!(stack.delete("/images/x").status, 200);
        }
    }
    // A client that goes away in the middle.
    let mut cut = stack.begin("POST", "/images/create?fromSrc=-&repo=cut", &[]);
    send_chunk(&mut cut, &whole[..100_000]).unwrap();
    drop(cut);
    stack.expect_nothing_left();
    assert_eq!(stack.get("/images/json").json(), json!([]));
}

#[test]
fn full_disk_is_one_line_and_everything_is_given_back() {
    let stack = stack!(Stack::start_on(Some(16 << 20)));
    let big = tar(&[("big", &noise(9 << 20, 12))]);
    let image = Image::new("full", vec![big.clone()]);
    // The blob fits, its files beside it don't; then not even the blob.
    for archive in [&big, &tar(&[("big", &noise(20 << 20, 13))])] {
        let answer = stack.post("/images/create?fromSrc=-&repo=a", archive);
        assert_eq!(answer.status, 500, "{answer:?}");
        assert!(answer.message().contains("No space left on device"), "{answer:?}");
        stack.expect_nothing_left();
    }
    let loaded = stack.post("/images/load", &image.docker_archive(&["a:1"]));
    assert!(loaded.error().unwrap().contains("No space left on device"), "{loaded:?}");
    stack.expect_nothing_left();
    let registry = Registry::start(None);
    registry.push("team/app", "1", &image);
    let pulled = stack.post(&format!("/images/create?fromImage={}/team/app&tag=1", registry.address), b"");
    assert!(pulled.error().unwrap().contains("No space left on device"), "{pulled:?}");
    stack.expect_nothing_left();
    // And there is room again for what fits.
    import(&stack, "&repo=a", &tar(&[("small", &noise(5 << 20, 14))]));
}

#[test]
fn load_names_what_it_brought() {
    let stack = stack!();
    let layers = vec![tar(&[("a", &noise(200_000, 5))]), tar(&[("b", b"second")])];
    let image = Image::new("load", layers);
    let answer = stack.post("/images/load?quiet=0", &image.docker_archive(&["app:one", "team/app:2"]));
    assert_eq!(answer.status, 200);
    let lines = answer.lines();
    let streams: Vec<_> = lines.iter().filter_map(|line| line["stream"].as_str()).collect();
    assert_eq!(streams, ["Loaded image: app:one\n", "Loaded image: team/app:2\n"], "{lines:?}");
    assert_eq!(stack.get("/images/app:one/json").json()["Id"], json!(image.id()));
    // Once more: named again, nothing doubled.
    let again = stack.post("/images/load?quiet=1", &image.docker_archive(&["app:one"]));
    assert_eq!(again.lines(), [json!({"stream": "Loaded image: app:one\n"})]);
    assert_eq!(stack.get("/images/json").json().as_array().map(Vec::len), Some(1));
    assert_eq!(stack.delete(&format!("/images/{}?force=1", image.id())).status, 200);

    let nameless = stack.post("/images/load", &image.docker_archive(&[]));
    let expected = json!({"stream": format!("Loaded image ID: {}\n", image.id())});
    assert_eq!(nameless.lines().last(), Some(&expected), "{nameless:?}");
    assert_eq!(stack.get("/images/json").json()[0]["RepoTags"], json!([]));
    assert_eq!(stack.delete(&format!("/images/{}", image.id())).status, 200);
    stack.expect_nothing_left();
}

#[test]
fn broken_archives_end_in_an_error_line_and_leave_nothing() {
    let stack = stack!();
    let mut image = Image::new("broken", vec![tar(&[("a", &noise(200_000, 6))])]);
    let whole = image.docker_archive(&["app:one"]);
    image.layers[0][1000] ^= 1;
    let wrong_digest = image.docker_archive(&["app:one"]);
    for (what, archive) in
        [("cut", &whole[..100_000]), ("junk", &noise(3000, 7)), ("empty", &[]), ("digest", &wrong_digest)]
    {
        let answer = stack.post("/images/load?quiet=1", archive);
        assert_eq!(answer.status, 200, "{what}");
        let error = answer.error().unwrap_or_else(|| panic!("{what}: {answer:?}"));
        assert_eq!(error.lines().count(), 1, "{what}");
        assert!(error.starts_with("load archive: "), "{what}: {error}");
    }
    let mut cut = stack.begin("POST", "/images/load?quiet=1", &[]);
    send_chunk(&mut cut, &whole[..100_000]).unwrap();
    drop(cut);
    stack.expect_nothing_left();
    assert_eq!(stack.get("/images/json").json(), json!([]));
}

#[test]
fn pull_by_tag_and_by_digest() {
    let stack = stack!();
    let registry = Registry::start(None);
    let image = Image::new("pull", vec![tar(&[("a", &noise(500_000, 8))]), tar(&[("b", b"second")])]);
    registry.push("team/app", "1", &image);
    let host = &registry.address;
    let pull = |tag: &str| stack.post(&format!("/images/create?fromImage={host}/team/app&tag={tag}"), b"");

    let lines = pull("1").lines();
    assert_eq!(lines[0], json!({"status": "Pulling from team/app", "id": "1"}));
    for layer in &image.layers {
        let id = &proto::digest::Digest::of(layer).to_string()[7..19];
        let texts: Vec<_> =
            lines.iter().filter(|l| l["id"] == json!(id)).map(|l| l["status"].as_str().unwrap()).collect();
        assert_eq!((texts.first(), texts.last()), (Some(&"Pulling fs layer"), Some(&"Pull complete")), "{lines:?}");
        assert!(texts.contains(&"Download complete"), "{texts:?}");
    }
    let digest = format!("Digest: {}", image.digest());
    let news = format!("Status: Downloaded newer image for {host}/team/app:1");
    assert_eq!(statuses(&lines)[lines.len() - 2..], [&*digest, &*news]);
    let inspect = stack.get(&format!("/images/{host}/team/app:1/json")).json();
    assert_eq!(inspect["Id"], json!(image.id()));
    assert_eq!(inspect["RepoDigests"], json!([format!("{host}/team/app@{}", image.digest())]));

    let again = pull("1").lines();
    let expected = ["Pulling from team/app", &digest, &format!("Status: Image is up to date for {host}/team/app:1")];
    assert_eq!(statuses(&again), expected);

    let by_digest = pull(&image.digest()).lines();
    let name = format!("{host}/team/app@{}", image.digest());
    assert_eq!(by_digest[0]["id"], json!(name));
    assert_eq!(by_digest.last().unwrap()["error"], Value::Null, "{by_digest:?}");
    assert_eq!(stack.get(&format!("/images/{name}/json")).json()["Id"], json!(image.id()));

    // The tag moves in the registry: the old image stays, without that name.
    let newer = Image::new("newer", image.layers.clone());
    registry.push("team/app", "1", &newer);
    let lines = pull("1").lines();
    assert!(statuses(&lines).contains(&"Already exists"), "{lines:?}");
    assert_eq!(stack.get(&format!("/images/{host}/team/app:1/json")).json()["Id"], json!(newer.id()));
    assert_eq!(stack.get(&format!("/images/{}/json", image.id())).json()["Id"], json!(image.id()));
    for id in [image.id(), newer.id()] {
        assert_eq!(stack.delete(&format!("/images/{id}?force=1")).status, 200);
    }
    stack.expect_nothing_left();
}

#[test]
fn index_gives_the_image_for_this_machine() {
    let stack = stack!();
    let registry = Registry::start(None);
    let ours = Image::new("ours", vec![tar(&[("a", b"ours")])]);
    let other = Image::new("other", vec![tar(&[("a", b"other")])]);
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = registry.push_index("team/app", "1", &[("s390x", &other), (host, &ours), ("unknown", &other)]);
    let name = format!("{}/team/app", registry.address);
    let lines = stack.post(&format!("/images/create?fromImage={name}&tag=1"), b"").lines();
    assert!(statuses(&lines).contains(&&*format!("Digest: {index}")), "{lines:?}");
    let inspect = stack.get(&format!("/images/{name}:1/json")).json();
    assert_eq!(inspect["Id"], json!(ours.id()));
    assert_eq!(inspect["RepoDigests"], json!([format!("{name}@{index}")]));
    assert_eq!(stack.get(&format!("/images/{name}@{index}/json")).json()["Id"], json!(ours.id()));

    registry.push_index("team/app", "foreign", &[("s390x", &other)]);
    let refused = stack.post(&format!("/images/create?fromImage={name}&tag=foreign"), b"");
    let said = if refused.status == 200 { refused.error().unwrap() } else { refused.message() };
    assert!(said.contains(&format!("linux/{host}")) && said.contains("s390x"), "{refused:?}");
    // Asked for by name, another platform is fetched, and is what is there.
    let pulled = stack.post(&format!("/images/create?fromImage={name}&tag=foreign&platform=linux/s390x"), b"");
    assert_eq!(pulled.error(), None);
    assert_eq!(stack.get(&format!("/images/{name}:foreign/json")).json()["Id"], json!(other.id()));
    for image in [&ours, &other] {
        assert_eq!(stack.delete(&format!("/images/{}", image.id())).status, 200);
    }
    stack.expect_nothing_left();
}

#[test]
fn saved_images_load_again() {
    let stack = stack!();
    let image = Image::new("save", vec![tar(&[("a", &noise(3_000_000, 11))]), tar(&[("b", b"second")])]);
    assert_eq!(stack.post("/images/load", &image.docker_archive(&["a:1", "b:2"])).error(), None);
    let saved = stack.get_bytes("/images/get?names=a:1&names=b:2");
    let one = stack.get_bytes("/images/a:1/get");
    for (archive, expected) in [(saved, &["a:1", "b:2"][..]), (one, &["a:1"])] {
        assert_eq!(stack.delete(&format!("/images/{}?force=1", image.id())).status, 200);
        stack.expect_nothing_left();
        let answer = stack.post("/images/load", &archive);
        assert_eq!(answer.error(), None);
        let list = stack.get("/images/json").json();
        assert_eq!((&list[0]["Id"], &list[0]["RepoTags"]), (&json!(image.id()), &json!(expected)));
    }
    let unknown = stack.get("/images/get?names=a:1&names=nope");
    assert_eq!((unknown.status, &*unknown.message()), (404, "No such image: nope:latest"));
}

#[test]
fn failed_pulls_have_a_status_or_an_error_line() {
    let stack = stack!();
    let registry = Registry::start(None);
    let host = &registry.address;
    let pull = |target: &str| stack.post(&format!("/images/create?{target}"), b"");
    let unknown = pull(&format!("fromImage={host}/team/app&tag=nope"));
    assert_eq!(unknown.status, 404, "{unknown:?}");
    let words = format!("manifest for {host}/team/app:nope not found: manifest unknown");
    assert!(unknown.message().starts_with(&words), "{unknown:?}");
    for (target, status) in [
        ("fromImage=Bad&tag=1", 400),
        ("fromImage=a&tag=b%20c", 400),
        ("fromImage=scratch&tag=latest", 403),
        ("fromImage=a&tag=1&platform=a/b/c/d", 400),
        ("", 400),
    ] {
        assert_eq!(pull(target).status, status, "{target}");
    }
    // Nobody listens there.
    let gone = format!("127.0.0.1:{}", testing::free_port());
    let refused = pull(&format!("fromImage={gone}/a&tag=1"));
    assert!(refused.status >= 500, "{refused:?}");
    assert!(refused.message().to_lowercase().contains("refused"), "{refused:?}");

    let image = Image::new("wrong", vec![tar(&[("a", &noise(300_000, 9))])]);
    registry.push("team/app", "bad", &image);
    let mut tampered = image.layers[0].clone();
    tampered[5000] ^= 1;
    registry.replace_blob("team/app", &image.layers[0], tampered);
    let answer = pull(&format!("fromImage={host}/team/app&tag=bad"));
    let error = if answer.status == 200 { answer.error() } else { Some(answer.message()) };
    let error = error.unwrap_or_else(|| panic!("{answer:?}"));
    assert!(
        error.contains("digest") || error.contains(&proto::digest::Digest::of(&image.layers[0]).to_string()),
        "{error}"
    );
    assert_eq!(stack.get("/images/json").json(), json!([]));
    stack.expect_nothing_left();
}

#[test]
fn credentials_open_the_registry_they_are_for() {
    let stack = stack!();
    let registry = Registry::start(Some(("user", "pa:ss")));
    let image = Image::new("private", vec![tar(&[("a", b"secret")])]);
    registry.push("team/app", "1", &image);
    let target = format!("/images/create?fromImage={}/team/app&tag=1", registry.address);
    let pull = |auth: &str| {
        let header = base64::engine::general_purpose::URL_SAFE.encode(auth);
        stack.request("POST", &target, &[("X-Registry-Auth", &header)], b"")
    };
    for auth in ["{}", r#"{"username":"user","password":"wrong"}"#] {
        let refused = pull(auth);
        assert_eq!(refused.status, 404, "{refused:?}");
        assert!(refused.message().starts_with("pull access denied for "), "{refused:?}");
        assert!(!refused.message().contains("wrong"));
    }
    let answer = pull(r#"{"username":"user","password":"pa:ss"}"#);
    assert_eq!((answer.status, answer.error()), (200, None), "{answer:?}");
    assert_eq!(stack.delete(&format!("/images/{}", image.id())).status, 200);
    stack.expect_nothing_left();
}

#[test]
fn client_that_goes_away_cancels_its_pull() {
    let stack = stack!();
    let registry = Registry::start(None);
    let image = Image::new("stall", vec![tar(&[("a", &noise(2_000_000, 10))])]);
    registry.push("team/app", "1", &image);
    registry.stall(true);
    let target = format!("/images/create?fromImage={}/team/app&tag=1", registry.address);
    let mut client = stack.begin("POST", &target, &[]);
    std::io::Write::write_all(&mut client, b"0\r\n\r\n").unwrap();
    eventually("the layer is on its way", || {
        let layer = proto::digest::Digest::of(&image.layers[0]).to_string();
        let asked = registry.log().iter().any(|line| line.starts_with("GET") && line.ends_with(&layer));
        if asked { Ok(()) } else { Err(format!("{:?}", registry.log())) }
    });
    drop(client);
    // The registry still holds back the second half: only a cancelled transfer ends. What has come of the layer is kept to
    // go on from, and goes with the image.
    eventually("only the beginning of the layer is left", || {
        let left: Vec<_> =
            stack.left().into_iter().filter(|path| !path.to_string_lossy().contains("/ingest/")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!(stack.get("/images/json").json(), json!([]));
    registry.stall(false);
    assert_eq!(stack.post(&target, b"").error(), None);
    assert_eq!(stack.delete(&format!("/images/{}", image.id())).status, 200);
    stack.expect_nothing_left();
}

#[test]
fn images_outlive_a_killed_supervisor() {
    let mut stack = stack!();
    let id = import(&stack, "&repo=a", &tar(&[("x", b"y")]));
    stack.restart_supervisor();
    // Without waiting for it: the request does.
    let list = stack.get("/images/json");
    assert_eq!((list.status, &list.json()[0]["Id"]), (200, &json!(id)), "{list:?}");
    let id = import(&stack, "&repo=b", &tar(&[("x", b"z")]));
    assert_eq!(stack.get("/images/b/json").json()["Id"], json!(id));
}

#[test]
fn verify_names_what_is_damaged() {
    let stack = stack!();
    let id = import(&stack, "&repo=good", &tar(&[("x", &noise(100_000, 21))]));
    let bad = import(&stack, "&repo=bad", &tar(&[("x", &noise(100_000, 41))]));
    let well = stack.post("/images/verify", b"").lines();
    assert_eq!((well.len(), &well[0]["errors"], &well[0]["images"]), (1, &json!(0), &json!(2)), "{well:?}");
    let layer = stack.get("/images/bad/json").json()["RootFS"]["Layers"][0].as_str().unwrap().to_owned();
    let mut blobs = stack.left().into_iter().filter(|path| path.ends_with(&layer["sha256:".len()..]));
    let blob = blobs.next_back().expect("the layer's blob");
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let lines = stack.post("/images/verify", b"").lines();
    let (totals, faults) = lines.split_last().unwrap();
    assert!(
        totals["errors"].as_i64().unwrap() >= 1 && totals["status"].as_str().unwrap().contains("damaged"),
        "{totals}"
    );
    assert!(faults.iter().any(|line| line["id"] == json!(layer) && line["error"].is_string()), "{faults:?}");
    // The other image is as it should be.
    let good = stack.post("/images/verify?names=good", b"").lines();
    assert_eq!((good.len(), &good[0]["errors"]), (1, &json!(0)), "{good:?}");
    assert_eq!(stack.post("/images/verify?names=nope", b"").status, 404);
    for id in [id, bad] {
        assert_eq!(stack.delete(&format!("/images/{id}")).status, 200);
    }
    stack.expect_nothing_left();
}

#[test]
fn commit_above_layers_whose_blobs_are_dropped() {
    let stack = stack!(Stack::start_configured("[content]\nkeep-layers = false\n"));
    let image = Image::new("base", vec![tar(&[("a", &noise(300_000, 51))]), tar(&[("b", b"second")])]);
    assert_eq!(stack.post("/images/load", &image.docker_archive(&["base:1"])).error(), None);
    let has_blobs = || {
        let names: Vec<_> = image.layers.iter().map(|layer| proto::digest::Digest::of(layer).hex()).collect();
        stack.left().iter().filter(|path| names.iter().any(|name| path.ends_with(name))).count()
    };
    assert_eq!(has_blobs(), 0, "{:?}", stack.left());
    let body = json!({"Image": "base:1", "Cmd": ["/hello"]}).to_string();
    let json_type = [("Content-Type", "application/json")];
    let made = stack.request("POST", "/containers/create?name=source", &json_type, body.as_bytes());
    assert_eq!(made.status, 201, "{made:?}");
    let committed = stack.post("/commit?container=source&repo=made&tag=1", b"");
    assert_eq!(committed.status, 201, "{committed:?}");
    let id = committed.json()["Id"].clone();
    // The base goes; what its layers can be made from stays with what stands on them.
    assert_eq!(stack.delete("/containers/source").status, 204);
    assert_eq!(stack.delete("/images/base:1").status, 200);
    let well = stack.post("/images/verify", b"").lines();
    assert_eq!((well.len(), &well[0]["errors"], &well[0]["remakeable"]), (1, &json!(0), &json!(2)), "{well:?}");
    let saved = stack.get_bytes("/images/made:1/get");
    assert_eq!(stack.delete("/images/made:1").status, 200);
    stack.expect_nothing_left();
    assert_eq!(stack.post("/images/load", &saved).error(), None);
    let loaded = stack.get("/images/made:1/json").json();
    assert_eq!(loaded["Id"], id);
    assert_eq!(loaded["RootFS"]["Layers"].as_array().unwrap().len(), 2);
}
