//! Attach and logs: framing, half-close, order, what is kept.

use super::fields::ready;
use crate::{
    cases,
    run::{Run, sh},
};
use serde_json::{Value, json};
use std::io::Read;

cases!(
    attach_before_start,
    attach_stdin,
    half_close,
    stdin_once,
    attach_terminal,
    attach_logs,
    attach_without_upgrade,
    attach_refused,
    detach_keys,
    logs_queries,
    logs_refused,
    logs_follow,
    logs_details,
    logs_of_drivers,
    logs_across_starts,
    websocket
);

fn opened(mut config: Value, tty: bool, stdin: bool, once: bool) -> Value {
    config["Tty"] = json!(tty);
    config["OpenStdin"] = json!(stdin);
    config["StdinOnce"] = json!(once);
    config
}

fn attach_before_start(run: &mut Run) {
    run.create("web", &sh("echo first; echo err >&2; seq 1 3"));
    let stream = run.upgrade("/containers/web/attach?stream=1&stdout=1&stderr=1", None);
    run.post(204, "/containers/web/start");
    run.frames("all of it", stream);
}

fn attach_stdin(run: &mut Run) {
    run.create("cat", &opened(sh("cat; echo end"), false, true, true));
    let mut stream = run.upgrade("/containers/cat/attach?stream=1&stdin=1&stdout=1&stderr=1", None);
    run.post(204, "/containers/cat/start");
    run.write(&mut stream, "hello\n", false);
    let frame = stream.frame();
    run.note("an echo", json!(frame.map(|(kind, data)| (kind, String::from_utf8_lossy(&data).into_owned()))));
    run.write(&mut stream, "bye\n", true);
    run.frames("the rest", stream);
    run.ended("cat");
}

fn half_close(run: &mut Run) {
    run.create("slow", &opened(sh("cat > /dev/null; usleep 300000; echo late"), false, true, true));
    let mut stream = run.upgrade("/containers/slow/attach?stream=1&stdin=1&stdout=1", None);
    run.post(204, "/containers/slow/start");
    run.write(&mut stream, "x", true);
    run.frames("output after the half-close", stream);
}

fn stdin_once(run: &mut Run) {
    run.create("stays", &opened(sh("read a; echo got $a; read b; echo got $b"), false, true, false));
    run.post(204, "/containers/stays/start");
    for word in ["one\n", "two\n"] {
        let mut stream = run.upgrade("/containers/stays/attach?stream=1&stdin=1", None);
        run.write(&mut stream, word, true);
        drop(stream);
        let path = "/containers/stays/logs?stdout=1";
        integration_tests::eventually("it is read", || {
            run.quietly("GET", path, None).text().contains(word).then_some(())
        });
    }
    run.ended("stays");
    run.output("stays");
}

fn attach_terminal(run: &mut Run) {
    run.create("tty", &opened(sh("echo ready; read x; echo got $x"), true, true, true));
    let mut stream = run.upgrade("/containers/tty/attach?stream=1&stdin=1&stdout=1&stderr=1", None);
    run.post(204, "/containers/tty/start");
    ready(run, "tty");
    run.write(&mut stream, "word\n", false);
    run.bytes("the terminal", stream);
    run.ended("tty");
    let answer = run.quietly("GET", "/containers/tty/logs?stdout=1&stderr=1", None);
    run.note("logs of a terminal", json!(answer.text()));
}

fn attach_logs(run: &mut Run) {
    run.start("web", &sh("echo past; echo ready; while [ ! -e /go ]; do usleep 20000; done; echo future"));
    ready(run, "web");
    let stream = run.upgrade("/containers/web/attach?logs=1&stream=1&stdout=1", None);
    let exec = run.quietly("POST", "/containers/web/exec", Some(&json!({"Cmd": ["touch", "/go"]}))).json();
    run.quietly("POST", &format!("/exec/{}/start", exec["Id"].as_str().unwrap()), Some(&json!({"Detach": true})));
    run.frames("past and future", stream);
    let stream = run.upgrade("/containers/web/attach?logs=1&stdout=1", None);
    run.frames("the log of what has ended", stream);
}

fn attach_without_upgrade(run: &mut Run) {
    run.create("web", &sh("echo plain"));
    let stream = run.open("POST", "/containers/web/attach?stream=1&stdout=1", None, "");
    run.post(204, "/containers/web/start");
    run.frames("what came", stream);
}

fn attach_refused(run: &mut Run) {
    let lost = run.quietly("POST", "/containers/nobody/attach?stream=1&stdout=1", None);
    run.note("attach to nobody", json!([lost.status, lost.text().contains("No such container: nobody")]));
    run.start("web", &crate::run::waiting());
    run.post(204, "/containers/web/pause");
    let answer =
        run.open("POST", "/containers/web/attach?stream=1&stdout=1", None, "Connection: Upgrade\r\nUpgrade: tcp\r\n");
    run.note("attach to what is paused", json!(answer.status));
    run.post(204, "/containers/web/unpause");
    let answer = run.open("POST", "/containers/web/attach?stream=1&stdout=1&detachKeys=odd-key", None, "");
    run.note("odd detach keys", json!(answer.status));
}

fn detach_keys(run: &mut Run) {
    run.create("tty", &opened(sh("echo ready; while :; do usleep 20000; done"), true, true, false));
    let mut stream = run.upgrade("/containers/tty/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-a,x", None);
    run.post(204, "/containers/tty/start");
    ready(run, "tty");
    run.write(&mut stream, "\u{1}x", false);
    let mut text = Vec::new();
    stream.raw().read_to_end(&mut text).ok();
    run.note("the stream ended", json!(true));
    run.inspect("tty", &["/State/Running"]);
}

fn logs_queries(run: &mut Run) {
    run.runs("web", &sh("for i in 1 2 3 4 5; do echo out $i; usleep 1000; done; echo err >&2; printf unfinished"));
    for query in [
        "stdout=1",
        "stderr=1",
        "stdout=1&tail=2",
        "stdout=1&stderr=1&tail=0",
        "stdout=1&tail=all",
        "stdout=1&tail=odd",
        "stdout=true",
        "stdout=1&since=1",
        "stdout=1&until=1",
        "stdout=1&since=9999999999",
        "stdout=1&follow=1",
        "stdout=1&timestamps=1&tail=1",
        "stdout=1&tail=-3",
    ] {
        run.logs("web", query);
    }
}

fn logs_refused(run: &mut Run) {
    run.create("web", &sh("true"));
    run.get(400, "/containers/web/logs");
    run.get(400, "/containers/web/logs?stdout=0");
    run.get(400, "/containers/web/logs?stdout=1&since=odd");
    run.get(404, "/containers/nobody/logs?stdout=1");
    run.logs("web", "stdout=1");
}

fn logs_follow(run: &mut Run) {
    run.start("web", &sh("echo before; while [ ! -e /go ]; do usleep 20000; done; echo after; exit 2"));
    let mut stream = run.open("GET", "/containers/web/logs?stdout=1&follow=1", None, "");
    let first = stream.chunk();
    run.note("the first line", json!(first.map(|bytes| String::from_utf8_lossy(&bytes[8..]).into_owned())));
    let exec = run.quietly("POST", "/containers/web/exec", Some(&json!({"Cmd": ["touch", "/go"]}))).json();
    run.quietly("POST", &format!("/exec/{}/start", exec["Id"].as_str().unwrap()), Some(&json!({"Detach": true})));
    run.frames("the rest, then the end", stream);
}

fn logs_details(run: &mut Run) {
    let mut config = sh("echo line");
    config["Labels"] = json!({"team": "x y", "other": "2"});
    config["Env"] = json!(["STAGE=test"]);
    config["HostConfig"] = json!({"LogConfig": {"Type": "json-file", "Config": {"labels": "team", "env": "STAGE", "max-size": "10k", "max-file": "2"}}});
    run.start("web", &config);
    run.ended("web");
    run.logs("web", "stdout=1&details=1");
    run.logs("web", "stdout=1");
}

fn logs_of_drivers(run: &mut Run) {
    for driver in ["none", "local", "json-file"] {
        let mut config = sh("echo line");
        config["HostConfig"] = json!({"LogConfig": {"Type": driver}});
        let name = format!("driver-{driver}");
        run.start(&name, &config);
        run.ended(&name);
        let answer = run.quietly("GET", &format!("/containers/{name}/logs?stdout=1"), None);
        run.note(&format!("logs of {driver}"), json!([answer.status, answer.text().contains("line")]));
        run.inspect(&name, &["/HostConfig/LogConfig"]);
    }
}

fn logs_across_starts(run: &mut Run) {
    run.create("web", &sh("echo run"));
    for _ in 0..2 {
        run.post(204, "/containers/web/start");
        run.ended("web");
    }
    run.output("web");
}

fn websocket(run: &mut Run) {
    run.create("web", &sh("echo socket"));
    let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://localhost\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut stream = run.open("GET", "/containers/web/attach/ws?stream=1&stdout=1&logs=1", None, headers);
    let accept = stream.headers.iter().find(|(name, _)| name == "sec-websocket-accept").map(|(_, value)| value.clone());
    run.note("the key is answered", json!(accept));
    if stream.status == 101 {
        run.post(204, "/containers/web/start");
        let mut frame = [0; 9];
        stream.raw().read_exact(&mut frame).ok();
        run.note("a frame", json!(frame));
    }
    run.open("GET", "/containers/nobody/attach/ws?stream=1", None, headers);
}
