//! The log drivers gelf and fluentd: what arrives, a receiver that is away, an engine that dies.

use super::{sh, with_host};
use crate::stack::{Stack, eventually};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    time::Duration,
};

fn driver(kind: &str, options: Value) -> Value {
    json!({"LogConfig": {"Type": kind, "Config": options}})
}

#[test]
fn gelf_messages_arrive_and_logs_are_readable() {
    let Some(stack) = Stack::start() else { return };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let address = format!("udp://{}", socket.local_addr().unwrap());
    let options = json!({"gelf-address": address, "gelf-compression-type": "none", "tag": "{{.Name}}", "env": "FROM"});
    let id = stack.create("?name=box", &with_host(sh("echo one; echo two >&2; echo"), driver("gelf", options)));
    stack.start_container("box");
    stack.wait("box", "not-running");
    let next = || {
        let mut buffer = vec![0; 65536];
        let length = socket.recv(&mut buffer).unwrap();
        serde_json::from_slice::<Value>(&buffer[..length]).unwrap()
    };
    let messages = [next(), next()];
    for (text, level) in [("one", 6), ("two", 3)] {
        let message = messages.iter().find(|message| message["short_message"] == text).unwrap();
        assert_eq!((&message["level"], &message["version"]), (&json!(level), &json!("1.1")));
        assert_eq!((&message["_container_id"], &message["_tag"]), (&json!(id), &json!("box")));
        assert_eq!((&message["_image_name"], &message["_FROM"]), (&json!("test"), &json!("image")));
        assert!(message["_command"].as_str().unwrap().starts_with("sh -c echo one"));
    }
    let logs = stack.get("/containers/box/logs?stdout=1&stderr=1").streams();
    assert_eq!(logs, ("one\n\n".into(), "two\n".into()));
    for (kind, options, status, text) in [
        ("gelf", json!({}), 400, "gelf-address is a required parameter"),
        ("gelf", json!({"gelf-address": "x"}), 400, "gelf-address"),
        (
            "fluentd",
            json!({"fluentd-buffer-limit": "1m"}),
            400,
            "unknown log opt 'fluentd-buffer-limit' for fluentd log driver",
        ),
        ("splunk", json!({}), 501, "splunk"),
    ] {
        let body = json!({"Image": "test", "HostConfig": driver(kind, options)});
        let refused = stack.post("/containers/create", &body);
        assert_eq!(refused.status, status, "{kind}: {}", refused.text());
        assert!(refused.message().contains(text), "{}", refused.text());
    }
}

/// Values of `log` in what arrived: the key is followed by a short string each time.
fn lines(bytes: &[u8]) -> Vec<String> {
    let key = b"\xa3log";
    let places = bytes.windows(key.len()).enumerate().filter(|(_, window)| window == key).map(|(at, _)| at + key.len());
    let text = |at: usize| {
        let length = usize::from(bytes.get(at)? & 0x1f);
        Some(String::from_utf8(bytes.get(at + 1..at + 1 + length)?.to_vec()).unwrap())
    };
    places.filter_map(text).collect()
}

/// Takes one connection until it ends or there is enough; acknowledges everything.
fn receive(listener: &TcpListener, arrived: &mut BTreeSet<String>, enough: usize) {
    let key = b"\xa5chunk";
    eventually("enough has arrived", || {
        let Ok((mut stream, _)) = listener.accept() else {
            return if arrived.len() >= enough { Ok(()) } else { Err(format!("{} arrived", arrived.len())) };
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (mut seen, mut answered) = (Vec::new(), 0);
        for _ in 0..200 {
            let mut buffer = [0; 65536];
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => seen.extend_from_slice(&buffer[..read]),
                Err(_) => {}
            }
            // 16 bytes are 24 characters.
            let chunks: Vec<&[u8]> = seen
                .windows(key.len())
                .enumerate()
                .filter(|(_, window)| window == key)
                .filter_map(|(at, _)| seen.get(at + key.len() + 1..at + key.len() + 25))
                .collect();
            arrived.extend(lines(&seen));
            for chunk in &chunks[answered..] {
                if stream.write_all(&[b"\x81\xa3ack\xb8".as_slice(), chunk].concat()).is_err() {
                    return Err("it has hung up".into());
                }
            }
            answered = chunks.len();
            if arrived.len() >= enough {
                return Ok(());
            }
        }
        Err(format!("{} arrived", arrived.len()))
    });
}

#[test]
fn fluentd_may_be_away_and_the_engine_may_die() {
    let Some(mut stack) = Stack::start() else { return };
    // Nobody listens yet, but the port is ours.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let options = json!({"fluentd-address": address.to_string(), "fluentd-request-ack": "true"});
    let script = "n=0; while [ $n -lt 600 ]; do echo line $n; n=$((n+1)); busybox usleep 3000; done";
    stack.create("?name=box", &with_host(sh(script), driver("fluentd", options)));
    // A receiver that is away holds nothing up.
    stack.start_container("box");
    eventually("it writes", || {
        let out = stack.get("/containers/box/logs?stdout=1").streams().0;
        if out.lines().count() > 20 { Ok(()) } else { Err(out) }
    });
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut arrived = BTreeSet::new();
    receive(&listener, &mut arrived, 50);
    stack.kill_engine();
    stack.start_engine();
    stack.wait("box", "not-running");
    receive(&listener, &mut arrived, 600);
    let expected: BTreeSet<String> = (0..600).map(|n| format!("line {n}")).collect();
    assert_eq!(arrived, expected);
}

#[test]
fn fluentd_acknowledges() {
    let Some(stack) = Stack::start() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options =
        json!({"fluentd-address": format!("tcp://{}", listener.local_addr().unwrap()), "fluentd-request-ack": "true"});
    stack.create("?name=box", &with_host(sh("echo hello"), driver("fluentd", options)));
    stack.start_container("box");
    let receive = |answer: bool| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut seen = Vec::new();
        let key = b"\xa5chunk";
        let chunk = loop {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0);
            seen.extend_from_slice(&buffer[..read]);
            // 16 bytes are 24 characters.
            if let Some(at) = seen.windows(key.len()).position(|window| window == key)
                && let Some(chunk) = seen.get(at + key.len() + 1..at + key.len() + 25)
            {
                break chunk.to_vec();
            }
        };
        if answer {
            stream.write_all(&[b"\x81\xa3ack\xb8".as_slice(), &chunk].concat()).unwrap();
        }
        lines(&seen)
    };
    // Not acknowledged, so it is sent again.
    assert_eq!(receive(false), ["hello"]);
    assert_eq!(receive(true), ["hello"]);
    stack.wait("box", "not-running");
}
