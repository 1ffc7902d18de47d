//! Logs: every option, over restarts of the container and of the engine, over rotation.

use super::{sh, with_host};
use crate::stack::{Stack, eventually, split_frames};
use serde_json::{Value, json};
use std::io::Read;

#[test]
fn since_until_tail_timestamps_and_details_over_restarts() {
    let Some(mut stack) = Stack::start() else { return };
    let mut config = with_host(
        sh("echo out; echo err >&2"),
        json!({"LogConfig": {"Type": "json-file", "Config": {"labels": "team"}}}),
    );
    config["Labels"] = json!({"team": "a b"});
    stack.create("?name=box", &config);
    for round in 0..3 {
        stack.start_container("box");
        stack.wait("box", "not-running");
        if round == 1 {
            stack.kill_engine();
            stack.start_engine();
        }
    }
    let logs = |query: &str| stack.get(&format!("/containers/box/logs?{query}"));
    assert_eq!(logs("stdout=1&stderr=1").streams(), ("out\n".repeat(3), "err\n".repeat(3)));
    let stamped = logs("stdout=1&timestamps=1").streams().0;
    let times: Vec<&str> = stamped.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(times.iter().all(|time| time.len() == 30 && time.ends_with('Z')) && times.is_sorted(), "{stamped}");
    // From the second run's line on, to the second run's line.
    assert_eq!(logs(&format!("stdout=1&since={}", times[1])).streams().0, "out\nout\n");
    assert_eq!(logs(&format!("stdout=1&until={}", times[1])).streams().0, "out\nout\n");
    assert_eq!(logs(&format!("stdout=1&since={0}&until={0}", times[1])).streams().0, "out\n");
    for (tail, lines) in [("0", 0), ("2", 2), ("all", 3), ("what", 3), ("-1", 3), ("99", 3)] {
        assert_eq!(logs(&format!("stdout=1&tail={tail}")).streams().0.lines().count(), lines, "{tail}");
    }
    let details = logs("stdout=1&details=1&tail=1").streams().0;
    assert_eq!(details, "team=a+b out\n");
    assert_eq!(logs("stdout=1&since=x").status, 400);
    assert_eq!(stack.get("/containers/nope/logs?stdout=1").status, 404);
}

#[test]
fn followed_over_rotation_and_restarts_by_policy() {
    let Some(stack) = Stack::start() else { return };
    let script = "n=0; while [ $n -lt 2000 ]; do echo a line of some length $n; n=$((n+1)); done; exit 1";
    let host = json!({
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "64k", "max-file": "9"}},
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1},
    });
    stack.create("?name=box", &with_host(sh(script), host));
    let (head, mut stream) = stack.begin("GET", "/containers/box/logs?stdout=1&stderr=1&follow=1");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stack.start_container("box");
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let followed = split_frames(&dechunked(&text)).0;
    let run: String = (0..2000).map(|n| format!("a line of some length {n}\n")).collect();
    // Docker's follow ends with the first run; ours may go on with the policy's next one.
    assert!(followed == run || followed == run.repeat(2), "{} of {} bytes", followed.len(), run.len());
    eventually("it has ended for good", || {
        let state = stack.inspect("box")["State"]["Status"].clone();
        if state == "exited" { Ok(()) } else { Err(state.to_string()) }
    });
    let tail = stack.get("/containers/box/logs?stdout=1&tail=10").streams().0;
    assert!(tail.ends_with("length 1999\n") && tail.lines().count() == 10, "{tail}");
}

/// The body of an answer in chunks.
fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        body.extend_from_slice(&bytes[line + 2..line + 2 + size]);
        bytes = &bytes[line + 2 + size + 2..];
    }
    body
}

/// user-pain 3: nobody has to ask for rotation.
#[test]
fn logs_are_rotated_unless_told_otherwise() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &sh("busybox head -c 4000000 /dev/zero | busybox tr '\\0' x; echo; echo end"));
    stack.start_container("box");
    stack.wait("box", "not-running");
    let path = stack.inspect("box")["LogPath"].as_str().unwrap().to_owned();
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["log"].is_string() && line["stream"] == "stdout" && line["time"].is_string());
    }
    assert_eq!(stack.get("/containers/box/logs?stdout=1&tail=1").streams().0, "end\n");
}
