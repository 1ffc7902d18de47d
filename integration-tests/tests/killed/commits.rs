//! A container is committed while it runs; the image is run and removed.

use crate::{life, walk::Scene};
use integration_tests::faults::Fault;
use serde_json::json;

/// Create, start, commit, another container of the new image, remove everything.
pub fn commit(_: &Scene, fault: &Fault<'_>) {
    life::create(fault, "source");
    life::start(fault, "source");
    fault.arm();
    fault.ask("POST", "/commit?container=source&repo=made&tag=1", None, &[201]);
    // Frozen for the time of the commit only, whoever died.
    fault.step("it runs on", || {
        let state = life::state(fault, "source");
        if state["Status"] == "running" { Ok(()) } else { Err(state.to_string()) }
    });
    let body = json!({ "Image": "made:1", "Cmd": ["true"] });
    fault.ask("POST", "/containers/create?name=of-made", Some(&body), &[201, 409]);
    for name in ["of-made", "source"] {
        fault.ask("DELETE", &format!("/containers/{name}?force=1&v=1"), None, &[204, 404]);
    }
    fault.ask("DELETE", "/images/made:1", None, &[200, 404]);
    // Each attempt that came to its end made an image; those before the last have lost their name to it.
    fault.ask("POST", "/images/prune", None, &[200]);
    fault.settle();
    let left = fault.stack().api().get("/images/json?all=1").expect(200).text();
    assert!(!left.contains("made:1"), "{}: {left}", fault.point);
}
