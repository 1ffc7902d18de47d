//! An image is pulled, tagged, and removed.

use crate::walk::Scene;
use integration_tests::{Stack, faults::Fault, images, registry::Registry, run};
use serde_json::json;

fn reference(registry: &Registry) -> String {
    format!("{}/two", registry.host())
}

/// Puts an image into the registry.
pub fn publish(stack: &Stack, registry: &Registry) {
    let name = format!("{}:latest", reference(registry));
    let mut layer = tar::Builder::new(Vec::new());
    images::add_file(&mut layer, "hello", &vec![7; 200_000], 0o644);
    let config = json!({ "Cmd": ["sh"] });
    let archive = stack.path().join("two.tar");
    std::fs::write(&archive, images::docker_archive(&name, &layer.into_inner().unwrap(), config)).unwrap();
    let (from, to) = (format!("docker-archive:{}", archive.display()), format!("docker://{name}"));
    run("skopeo", ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", &from, &to]).success();
}

/// Pull, tag, create a container from it, remove everything.
pub fn pull(scene: &Scene, fault: &Fault<'_>) {
    let Some(registry) = &scene.registry else { return };
    let name = reference(registry);
    fault.arm();
    fault.step("pull", || {
        let path = format!("/images/create?fromImage={name}&tag=latest");
        let answer = fault.stack().api().attempt("POST", &path, None).map_err(|error| error.to_string())?;
        let text = answer.text();
        if text.contains("\"Status: ") || text.contains("Status: ") { Ok(()) } else { Err(text) }
    });
    fault.ask("POST", &format!("/images/{name}:latest/tag?repo=other&tag=1"), None, &[201]);
    let body = json!({ "Image": "other:1", "Cmd": ["x"] });
    fault.ask("POST", "/containers/create?name=pulled", Some(&body), &[201, 409]);
    fault.ask("DELETE", "/containers/pulled", None, &[204, 404]);
    for name in ["other:1".to_owned(), format!("{name}:latest")] {
        fault.ask("DELETE", &format!("/images/{name}"), None, &[200, 404]);
    }
    fault.settle();
    let left = fault.stack().api().get("/images/json").expect(200).text();
    assert!(!left.contains("other:1") && !left.contains("/two"), "{}: {left}", fault.point);
}
