//! Clients that stall in the middle of a copy, an export, a load or a save: they keep nobody from anything else, neither in the
//! engine nor in the supervisor, whose threads for the disk are few.

use super::{
    engine,
    stack::{Stack, eventually},
};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

/// More than the engine's runtime has threads that may wait (512).
const COPIES: usize = 540;
/// More than the supervisor's has (16), and than fit into the window of one connection to it.
const TRANSFERS: usize = 40;

fn ask(stack: &Stack, text: &str) -> UnixStream {
    let mut stream = UnixStream::connect(stack.run().join("engine.sock")).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// A container is made, started, waited for, read and removed, and an image is listed.
fn others_are_served(stack: &Stack, while_what: &str) {
    let fresh = stack.create("", &json!({"Cmd": ["echo", "served"]}));
    stack.start_container(&fresh);
    assert_eq!(stack.wait(&fresh, "not-running"), 0, "{while_what}");
    assert_eq!(stack.get(&format!("/containers/{fresh}/logs?stdout=1")).streams().0, "served\n", "{while_what}");
    assert_eq!(stack.delete(&format!("/containers/{fresh}")).status, 204, "{while_what}");
    assert_eq!(stack.get("/images/json").status, 200, "{while_what}");
}

/// A container, and an image, with more in it than all buffers on the way take.
fn large(stack: &Stack) {
    let large =
        stack.create("?name=large", &json!({"Cmd": ["dd", "if=/dev/urandom", "of=/large", "bs=1M", "count=24"]}));
    stack.start_container(&large);
    assert_eq!(stack.wait(&large, "not-running"), 0);
    let answer = stack.request("POST", "/commit?container=large&repo=large", "application/json", b"");
    assert_eq!(answer.status, 201, "{}", answer.text());
}

fn settle(stack: &Stack, files: usize) {
    let folder = format!("/proc/{}/fd", stack.engine_pid());
    eventually("the clients are gone", || match std::fs::read_dir(&folder).unwrap().count() {
        now if now <= files + 2 => Ok(()),
        now => Err(format!("{files} files then {now}")),
    });
}

#[test]
fn copies_that_nobody_reads_or_ends_hold_up_nobody() {
    let stack = engine!();
    large(&stack);
    let running = stack.create("?name=running", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container(&running);
    let files = std::fs::read_dir(format!("/proc/{}/fd", stack.engine_pid())).unwrap().count();
    let mut stalled = Vec::new();
    for number in 0..COPIES {
        stalled.push(match number % 3 {
            0 => ask(&stack, "GET /containers/large/export HTTP/1.1\r\nHost: d\r\n\r\n"),
            1 => ask(&stack, "GET /containers/large/archive?path=/large HTTP/1.1\r\nHost: d\r\n\r\n"),
            _ => ask(
                &stack,
                "PUT /containers/running/archive?path=/tmp HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            ),
        });
    }
    // In the order of their coming: whoever is served now comes behind all of them.
    assert_eq!(stack.get("/containers/running/json").status, 200);
    others_are_served(&stack, "copies stall");
    drop(stalled);
    settle(&stack, files);
    // A copy is served again, too.
    let answer = stack.get("/containers/large/archive?path=/etc/passwd");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn loads_and_saves_that_stall_hold_up_nobody() {
    let stack = engine!();
    large(&stack);
    let saved = stack.get("/images/large/get");
    assert!(saved.status == 200 && saved.body.len() > 24 << 20, "{} {}", saved.status, saved.body.len());
    let files = std::fs::read_dir(format!("/proc/{}/fd", stack.engine_pid())).unwrap().count();
    let loads = |stalled: &mut Vec<UnixStream>| {
        for _ in 0..TRANSFERS {
            let head = format!(
                "POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
                saved.body.len()
            );
            let mut stream = ask(&stack, &head);
            // As much as is taken.
            let _ = stream.write_all(&saved.body[..1 << 20]);
            stalled.push(stream);
        }
    };
    let saves = |stalled: &mut Vec<UnixStream>| {
        for _ in 0..TRANSFERS {
            stalled.push(ask(&stack, "GET /images/large/get HTTP/1.1\r\nHost: d\r\n\r\n"));
        }
    };
    type Stalling<'a> = &'a dyn Fn(&mut Vec<UnixStream>);
    for (what, stalling) in [("loads stall", &loads as Stalling<'_>), ("saves stall", &saves)] {
        let mut stalled = Vec::new();
        stalling(&mut stalled);
        others_are_served(&stack, what);
        for stream in &stalled {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(stalled);
        settle(&stack, files);
    }
    let answer = stack.request("POST", "/images/load", "application/x-tar", &saved.body);
    assert!(answer.status == 200 && answer.text().contains("Loaded image"), "{}", answer.text());
}

#[test]
fn a_client_that_has_ended_its_side_gets_its_answer() {
    let stack = engine!();
    for number in 0..200 {
        let mut client = ask(&stack, "GET /info HTTP/1.1\r\nHost: d\r\n\r\n");
        client.shutdown(Shutdown::Write).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("}\n"), "{number}: {answer:?}");
    }
}
