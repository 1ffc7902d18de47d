//! What registries are asked beside single pulls, and what the configuration says about them.

use super::{noise, statuses};
use crate::{
    archive::{Image, tar},
    registry::Registry,
    stack::Stack,
};
use base64::Engine as _;
use serde_json::json;

fn auth_header(user: &str, password: &str) -> String {
    let json = json!({"username": user, "password": password}).to_string();
    base64::engine::general_purpose::URL_SAFE.encode(json)
}

#[test]
fn all_tags_of_a_repository() {
    let Some(stack) = Stack::start() else { return };
    let registry = Registry::start(None);
    let (one, two) = (
        Image::new("one", vec![tar(&[("a", &noise(50_000, 3))])]),
        Image::new("two", vec![tar(&[("a", &noise(50_000, 5))])]),
    );
    registry.push("team/app", "1", &one);
    registry.push("team/app", "2", &two);
    registry.put("/v2/team/app/tags/list", &json!({"name": "team/app", "tags": ["1", "2"]}));
    let name = format!("{}/team/app", registry.address);
    let pull = || stack.post(&format!("/images/create?fromImage={name}"), b"").lines();
    let lines = pull();
    let begun: Vec<_> =
        lines.iter().filter(|l| l["status"] == "Pulling from team/app").map(|l| l["id"].clone()).collect();
    assert_eq!(begun, [json!("1"), json!("2")]);
    assert_eq!(statuses(&lines).last(), Some(&&*format!("Status: Downloaded newer image for {name}")), "{lines:?}");
    for (tag, image) in [("1", &one), ("2", &two)] {
        assert_eq!(stack.get(&format!("/images/{name}:{tag}/json")).json()["Id"], json!(image.id()));
    }
    assert_eq!(statuses(&pull()).last(), Some(&&*format!("Status: Image is up to date for {name}")));
    let unknown = stack.post(&format!("/images/create?fromImage={}/no/such", registry.address), b"");
    assert_eq!(unknown.status, 404, "{unknown:?}");
    assert!(
        unknown.message().starts_with(&format!("repository {}/no/such not found: ", registry.address)),
        "{unknown:?}"
    );
    // One that is announced and isn't there ends it, with what came before kept.
    registry.put("/v2/team/app/tags/list", &json!({"name": "team/app", "tags": ["1", "3"]}));
    let lines = pull();
    let error = lines.last().unwrap()["error"].as_str().unwrap_or_default();
    assert!(error.contains(&format!("manifest for {name}:3 not found")), "{lines:?}");
}

#[test]
fn distribution_search_and_login() {
    let Some(stack) = Stack::start() else { return };
    let registry = Registry::start(Some(("user", "pass")));
    let host = &registry.address;
    let image = Image::new("dist", vec![tar(&[("a", b"x")])]);
    registry.push("team/app", "1", &image);
    let index = registry.push_index("team/app", "all", &[("amd64", &image), ("arm64", &image)]);
    let header = auth_header("user", "pass");
    let ask = |target: &str| stack.request("GET", target, &[("X-Registry-Auth", &header)], b"");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let one = ask(&format!("/distribution/{host}/team/app:1/json")).json();
    assert_eq!(one["Descriptor"]["digest"], json!(image.digest()));
    assert_eq!(one["Descriptor"]["size"], json!(image.manifest.len()));
    assert_eq!(one["Platforms"], json!([{"architecture": architecture, "os": "linux"}]));
    assert_eq!(one.get("Manifest"), None);
    let raw = ask(&format!("/distribution/{host}/team/app:1/json?manifest=1")).json();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, raw["Manifest"].as_str().unwrap());
    assert_eq!(bytes.unwrap(), image.manifest);
    let all = ask(&format!("/distribution/{host}/team/app:all/json")).json();
    assert_eq!(all["Descriptor"]["digest"], json!(index));
    let both = json!([{"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux"}]);
    assert_eq!(all["Platforms"], both);
    assert_eq!(ask(&format!("/distribution/{host}/team/app:none/json")).status, 404);
    assert_eq!(ask("/distribution/Bad/json").status, 400);
    let refused = stack.get(&format!("/distribution/{host}/team/app:1/json"));
    assert!(refused.status >= 400 && !refused.text.contains("pass\""), "{refused:?}");

    let login = |password: &str| {
        let body = json!({"username": "user", "password": password, "serveraddress": host}).to_string();
        stack.request("POST", "/auth", &[("Content-Type", "application/json")], body.as_bytes())
    };
    assert_eq!(login("pass").json(), json!({"Status": "Login Succeeded", "IdentityToken": ""}));
    let refused = login("wrong");
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(!refused.text.contains("wrong"), "{refused:?}");

    let open = Registry::start(None);
    let entry = |name: &str, stars: i64, official: bool| json!({"name": name, "description": "d", "star_count": stars, "is_official": official, "is_automated": false});
    let results = [entry("web", 30, true), entry("team/web", 2, false)];
    open.put("/v1/search", &json!({"query": "web", "num_results": 2, "results": results}));
    let search = |query: &str| stack.get(&format!("/images/search?term={}/web{query}", open.address));
    assert_eq!(search("").json(), json!(results));
    assert_eq!(search("&filters={%22is-official%22:[%22true%22]}").json(), json!([results[0]]));
    assert_eq!(search("&filters={%22stars%22:[%223%22]}").json(), json!([results[0]]));
    assert_eq!(search("&limit=101").message(), "limit 101 is outside the range of [1, 100]");
    assert_eq!(search("&filters={%22stars%22:[%22x%22]}").message(), "invalid filter 'stars=x'");
    assert_eq!(stack.get("/images/search").status, 400);
}

#[test]
fn insecure_registries_and_mirrors() {
    let arguments = |mirror: &str| -> Option<Stack> {
        Stack::start_with(&["--insecure-registry", "10.64.0.0/10", "--registry-mirror", mirror])
    };
    let mirror = Registry::start(None);
    let image = Image::new("mirrored", vec![tar(&[("a", b"x")])]);
    mirror.push("library/thing", "1", &image);
    let Some(stack) = arguments(&format!("http://{}", mirror.address)) else { return };
    let Some(strict) = Stack::start() else { return };
    let plain = Registry::start_at(stack.gateway(), None);
    plain.push("team/app", "1", &image);
    let target = format!("/images/create?fromImage={}/team/app&tag=1", plain.address);
    let refused = strict.post(&target, b"");
    assert!(refused.status >= 500 || refused.error().is_some(), "plain HTTP is not spoken by default: {refused:?}");
    let pulled = stack.post(&target, b"");
    assert_eq!((pulled.status, pulled.error()), (200, None), "{pulled:?}");
    assert_eq!(stack.get(&format!("/images/{}/team/app:1/json", plain.address)).json()["Id"], json!(image.id()));

    let pulled = stack.post("/images/create?fromImage=thing&tag=1", b"");
    assert_eq!((pulled.status, pulled.error()), (200, None), "{pulled:?}");
    assert_eq!(stack.get("/images/thing:1/json").json()["RepoTags"][1], "thing:1");
    assert!(mirror.log().iter().any(|line| line.contains("/v2/library/thing/manifests/1")), "{:?}", mirror.log());

    let config = stack.get("/info").json()["RegistryConfig"].clone();
    assert_eq!(config["InsecureRegistryCIDRs"], json!(["10.64.0.0/10", "::1/128", "127.0.0.0/8"]));
    assert_eq!(config["Mirrors"], json!([format!("http://{}", mirror.address)]));
    assert_eq!(config["IndexConfigs"]["docker.io"]["Secure"], true);
}
