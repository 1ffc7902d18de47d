//! What neither engine does on one machine: swarm and plugins; and input that makes no sense anywhere.

use crate::{cases, run::Run};
use serde_json::json;

cases!(swarm, plugins, odd_requests, query_words);

fn swarm(run: &mut Run) {
    for path in [
        "/swarm",
        "/nodes",
        "/nodes/x",
        "/services",
        "/services/x",
        "/tasks",
        "/tasks/x",
        "/secrets",
        "/secrets/x",
        "/configs",
        "/configs/x",
        "/swarm/unlockkey",
    ] {
        run.refused(
            503,
            "GET",
            path,
            None,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"",
        );
    }
    for path in ["/services/create", "/secrets/create", "/configs/create"] {
        run.ask(503, "POST", path, Some(&json!({"Name": "x"})));
    }
    for path in ["/nodes/x", "/services/x", "/secrets/x", "/configs/x"] {
        run.delete(503, path);
    }
    run.post(503, "/swarm/leave");
    run.get(503, "/services/x/logs?stdout=1");
    run.get(503, "/tasks/x/logs?stdout=1");
}

fn plugins(run: &mut Run) {
    run.get(200, "/plugins");
    run.refused(404, "GET", "/plugins/nowhere/json", None, "plugin \"nowhere\" not found");
    run.delete(404, "/plugins/nowhere");
    run.post(404, "/plugins/nowhere/enable?timeout=0");
    run.post(404, "/plugins/nowhere/disable");
}

fn odd_requests(run: &mut Run) {
    run.plain(301, "GET", "/v1.41/containers//json");
    run.plain(301, "GET", "/v1.41/containers/%2e%2e/json");
    run.plain(404, "GET", "/v1.41/containers/a%00b/json");
    run.plain(301, "GET", "/v1.41/images//json");
    run.plain(404, "GET", &format!("/v1.41/containers/{}/json", "x".repeat(5000)));
    run.send(400, "POST", "/containers/create", &[0xff; 64], "Content-Type: application/json\r\n");
    let deep = "[".repeat(100_000);
    run.send(400, "POST", "/containers/create", deep.as_bytes(), "Content-Type: application/json\r\n");
}

fn query_words(run: &mut Run) {
    run.create("web", &json!({"Image": "busybox"}));
    for word in ["1", "true", "yes", "0", "no", "false", "none", "", "False", "2", "odd"] {
        let listed = run.quietly("GET", &format!("/containers/json?all={word}"), None).json();
        run.note(&format!("all={word}"), json!(listed.as_array().map(Vec::len)));
    }
    run.get(400, "/containers/json?limit=%zz");
}
