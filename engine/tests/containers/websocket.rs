//! `/containers/{id}/attach/ws`, and attachments that begin with the log.

use super::sh;
use crate::stack::{Stack, eventually, split_frames};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

/// A client's frame: whole, masked.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 1, 200, 33];
    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    frame.extend(mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}

/// The server's next frame: opcode and payload.
fn next(stream: &mut UnixStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[1] & 0x80, 0, "a server doesn't mask");
    let mut extended = vec![
        0;
        match head[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    ];
    stream.read_exact(&mut extended).unwrap();
    let length = match extended.len() {
        0 => usize::from(head[1]),
        _ => extended.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    (head[0] & 0x0f, payload)
}

#[test]
fn bytes_go_both_ways_in_frames() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &json!({"Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true}));
    assert_eq!(stack.get("/containers/box/attach/ws?stream=1").status, 400);
    let target = "/containers/box/attach/ws?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Rest:";
    let (head, mut stream) = stack.begin_open("GET", target);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    stack.start_container("box");
    stream.write_all(&masked(2, b"one ")).unwrap();
    stream.write_all(&masked(1, b"two\n")).unwrap();
    stream.write_all(&masked(9, b"are you there")).unwrap();
    let (mut text, mut pong) = (Vec::new(), false);
    while text != b"one two\n" || !pong {
        match next(&mut stream) {
            (2, payload) => text.extend(payload),
            (10, payload) => pong = payload == b"are you there",
            other => panic!("{other:?}"),
        }
    }
    // It is never multiplexed; the end of the process is the end of the stream.
    assert_eq!(stack.post("/containers/box/kill", &Value::Null).status, 204);
    assert_eq!(next(&mut stream), (8, 1000_u16.to_be_bytes().to_vec()));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn an_attachment_that_begins_with_the_log_misses_and_doubles_nothing() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &sh("n=0; while [ $n -lt 3000 ]; do echo line $n; n=$((n+1)); done; echo err >&2"));
    stack.start_container("box");
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let (head, stream) = stack.hijack("/containers/box/attach?logs=1&stream=1&stdout=1&stderr=1", "");
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            stream
        })
        .collect();
    let expected: String = (0..3000).map(|n| format!("line {n}\n")).collect();
    for mut stream in clients {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(split_frames(&bytes), (expected.clone(), "err\n".into()));
    }
    // With input too, joined before the start.
    stack.create("?name=echo", &json!({"Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true}));
    let (_, mut stream) = stack.hijack("/containers/echo/attach?logs=1&stream=1&stdin=1&stdout=1", "");
    stack.start_container("echo");
    stream.write_all(b"typed\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(split_frames(&bytes).0, "typed\n");
}

#[test]
fn detach_keys_end_attachments_and_execs_with_events() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &json!({"Cmd": ["cat"], "OpenStdin": true, "Tty": true}));
    stack.start_container("box");
    let (_, mut stream) = stack.hijack("/containers/box/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-x,y", "");
    stream.write_all(b"a\x18y").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let config =
        json!({"Cmd": ["cat"], "AttachStdin": true, "AttachStdout": true, "Tty": true, "DetachKeys": "ctrl-z"});
    let exec = stack.post("/containers/box/exec", &config).json()["Id"].as_str().unwrap().to_owned();
    let (_, mut stream) = stack.hijack(&format!("/exec/{exec}/start"), r#"{"Tty":true}"#);
    stream.write_all(b"b\x1a").unwrap();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(stack.get(&format!("/exec/{exec}/json")).json()["Running"], true);
    assert_eq!(stack.inspect("box")["State"]["Running"], true);
    let refused = stack.post("/containers/box/attach?stream=1&stdin=1&detachKeys=ctrl-what", &Value::Null);
    assert_eq!(refused.status, 400);
    eventually("both are told", || {
        let told = stack.past_events();
        if told.contains("\"Action\":\"detach\"") && told.contains("exec_detach") { Ok(()) } else { Err(told) }
    });
}
