//! Clients that misbehave: afterwards the engine has as many descriptors and tasks as before, and next to no more memory.

use super::{
    engine,
    stack::{Stack, eventually},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

/// What the engine has.
#[derive(Debug, Clone, Copy)]
struct Has {
    files: usize,
    tasks: u64,
    /// Memory of its own in kB. Not its program text: how much of that counts depends on who else runs it.
    memory: u64,
}

fn measure(stack: &Stack) -> Has {
    let pid = stack.engine_pid();
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let memory = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    Has {
        tasks: stack.get("/debug/vars").json()["tasks"].as_u64().unwrap(),
        files: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        memory: memory.split_whitespace().next().unwrap().parse().unwrap(),
    }
}

fn connect(stack: &Stack) -> UnixStream {
    let stream = UnixStream::connect(stack.run().join("engine.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Sends as much as is taken, and gives what comes back.
fn exchange(stack: &Stack, bytes: &[u8]) -> String {
    let mut stream = connect(stack);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many clients of each kind: more with `BERTH_ABUSE=N` (`make fuzz-engine`).
fn clients() -> usize {
    std::env::var("BERTH_ABUSE").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

#[test]
fn clients_that_misbehave_leave_nothing() {
    let stack = engine!();
    let chatty = stack.create(
        "?name=chatty",
        &json!({"Cmd": ["sh", "-c", "while true; do echo a line of some length that nobody reads; usleep 2000; done"], "OpenStdin": true}),
    );
    stack.start_container(&chatty);
    let each = |stack: &Stack, count: usize| {
        // Attachments that vanish: some at once, some after a piece, some half closed before.
        for number in 0..count {
            let (head, mut stream) =
                stack.hijack("/containers/chatty/attach?stream=1&stdin=1&stdout=1&stderr=1&logs=0", "");
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            match number % 3 {
                0 => {}
                1 => _ = stream.read(&mut [0; 64]).unwrap(),
                _ => _ = stream.shutdown(Shutdown::Write),
            }
        }
        // Slow readers: they ask for streams and never read them.
        let mut slow = Vec::new();
        for target in [
            "/containers/chatty/logs?stdout=1&follow=1",
            "/events",
            "/containers/chatty/stats",
            "/containers/chatty/attach?stream=1&stdout=1",
        ] {
            for _ in 0..count / 20 {
                let mut stream = connect(stack);
                let method = if target.contains("attach") { "POST" } else { "GET" };
                stream.write_all(format!("{method} {target} HTTP/1.1\r\nHost: d\r\n\r\n").as_bytes()).unwrap();
                slow.push(stream);
            }
        }
        // Waits without end, half of heads, heads without their bodies, execs that nobody starts.
        for number in 0..count / 10 {
            let mut stream = connect(stack);
            let text = match number % 4 {
                0 => "POST /containers/chatty/wait HTTP/1.1\r\nHost: d\r\n\r\n",
                1 => "GET /containers/json HTTP/1.1\r\nHo",
                2 => {
                    "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
                }
                _ => "POST /images/load HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            };
            stream.write_all(text.as_bytes()).unwrap();
            slow.push(stream);
        }
        assert_eq!(stack.get("/_ping").status, 200, "others are served meanwhile");
        assert_eq!(stack.inspect("chatty")["State"]["Running"], true);
        drop(slow);
        // Bodies and heads that are too large.
        let huge = vec![b' '; 24 << 20];
        for target in ["/containers/create", "/volumes/create", "/containers/chatty/exec"] {
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                huge.len()
            );
            let answer = exchange(stack, &[head.as_bytes(), &huge].concat());
            assert!(
                answer.starts_with("HTTP/1.1 400") && answer.contains("request body is larger than"),
                "{target}: {answer}"
            );
        }
        let many: String = (0..20_000).map(|number| format!("X-Header-{number}: {number}\r\n")).collect();
        let answer = exchange(stack, format!("GET /_ping HTTP/1.1\r\nHost: d\r\n{many}\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let long = "x".repeat(2 << 20);
        for text in [
            format!("GET /_ping HTTP/1.1\r\nHost: d\r\nLong: {long}\r\n\r\n"),
            format!("GET /{long} HTTP/1.1\r\nHost: d\r\n\r\n"),
        ] {
            let answer = exchange(stack, text.as_bytes());
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
        // What is no HTTP at all.
        for bytes in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"\0\0\0\0",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET\r\n\r\n",
            b"\r\n\r\n\r\n",
        ] {
            let answer = exchange(stack, bytes);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
        let nested = "[".repeat(200_000);
        let answer = stack.request("POST", "/containers/create", "application/json", nested.as_bytes());
        assert_eq!(answer.status, 400, "{}", answer.text());
    };
    // Once, so that what is kept for good (arenas, buffers, threads) is there.
    each(&stack, 30);
    let settled = |stack: &Stack| std::fs::read_dir(format!("/proc/{}/fd", stack.engine_pid())).unwrap().count();
    let mut before = measure(&stack);
    eventually("the first clients are gone", || {
        let now = measure(&stack);
        let still = now.files == before.files && now.tasks == before.tasks;
        before = now;
        std::thread::sleep(Duration::from_millis(100));
        if still { Ok(()) } else { Err(format!("{now:?}")) }
    });
    each(&stack, clients());
    eventually("descriptors, tasks and memory are those of before", || {
        let now = measure(&stack);
        let fine =
            now.files <= before.files + 2 && now.tasks <= before.tasks + 4 && now.memory < before.memory + (12 << 10);
        if fine { Ok(()) } else { Err(format!("{before:?} then {now:?} ({} files)", settled(&stack))) }
    });
    eprintln!("{before:?} before {} clients of each kind, {:?} after", clients(), measure(&stack));
    assert_eq!(stack.get("/debug/vars").json()["panics"], 0);
    let log = std::fs::read_to_string(stack.root().join("engine.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(stack.post("/containers/chatty/kill", &Value::Null).status, 204);
}
