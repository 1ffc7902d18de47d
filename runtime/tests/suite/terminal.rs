//! Terminals: handed to a console socket, or served in the foreground.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use serde_json::json;

use super::bundle::Bundle;

/// Receives the master as a shim does.
fn receive(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().expect("accept");
    let (_, mut fds) = sys::fd::recv_fds(&stream, &mut [0; 4096]).expect("receive");
    assert_eq!(fds.len(), 1);
    fds.remove(0)
}

/// Everything that comes out until the other end closes.
fn drain(master: OwnedFd) -> String {
    let mut text = Vec::new();
    let mut file = std::fs::File::from(master);
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = file.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}

#[test]
fn the_console_socket_gets_the_master() {
    let Some(bundle) = Bundle::new() else { return };
    let script = "tty; stty size; stat -c %t:%T /dev/console; test /dev/console -ef /dev/pts/0 && echo same; read x; echo got $x; ls -1 /proc/$$/fd; true";
    let bundle = bundle
        .shell(script)
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 33, "width": 77}));
    let path = bundle.path("console.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let waiting = std::thread::spawn(move || receive(&listener));
    assert!(bundle.create(&["--console-socket", path.to_str().expect("utf-8")]));
    let master = waiting.join().expect("master");
    let mut input = std::fs::File::from(master.try_clone().expect("clone"));
    bundle.ok(&["start", &bundle.id]);
    input.write_all(b"hello\n").expect("write");
    drop(input);
    let text = drain(master);
    assert!(text.contains("/dev/pts/0\n"), "{text}");
    assert!(text.contains("33 77\n") || !super::bundle::is_ours(), "{text}");
    assert!(text.contains("88:0\n"), "console is the pty: {text}");
    assert!(text.contains("got hello"), "{text}");
    assert!(text.ends_with("got hello\n0\n1\n2\n") || text.ends_with("got hello\n0\n1\n10\n2\n"), "{text}");
}

#[test]
fn exec_gets_a_terminal_of_its_own() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let path = bundle.path("console.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let waiting = std::thread::spawn(move || receive(&listener));
    let process =
        json!({"args": ["sh", "-c", "tty; echo $((40+2))"], "cwd": "/", "env": ["PATH=/bin"], "terminal": true});
    let file = bundle.path("process.json");
    std::fs::write(&file, process.to_string()).expect("write");
    bundle.ok(&[
        "exec",
        "--process",
        file.to_str().expect("utf-8"),
        "--detach",
        "--console-socket",
        path.to_str().expect("utf-8"),
        &bundle.id,
    ]);
    let text = drain(waiting.join().expect("master"));
    assert!(text.contains("/dev/pts/") && text.contains("42"), "{text}");
}

#[test]
fn run_serves_the_terminal_itself() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("tty; exit 5").set("/process/terminal", json!(true));
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("/dev/pts/0"), "{output:?}");
}

#[test]
fn a_terminal_that_nobody_serves_is_refused() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.set("/process/terminal", json!(true));
    assert!(!bundle.create(&[]));
    bundle.assert_nothing_left();
}

#[test]
fn the_size_of_the_console_is_set_for_run_and_exec() {
    if !super::bundle::is_ours() {
        println!("skipped: newer than runc 1.1");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("stty size; exit 0")
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 21, "width": 43}));
    let text = String::from_utf8_lossy(&bundle.run().stdout).replace('\r', "");
    assert_eq!(text, "21 43\n");
    let bundle = bundle.shell("sleep 1000").set("/process/terminal", json!(false));
    bundle.start();
    let process = json!({"args": ["stty", "size"], "cwd": "/", "env": ["PATH=/bin"], "terminal": true,
        "consoleSize": {"height": 60, "width": 13}});
    let file = bundle.path("process.json");
    std::fs::write(&file, process.to_string()).expect("write");
    let text = bundle.ok(&["exec", "--process", file.to_str().expect("utf-8"), &bundle.id]);
    assert_eq!(text.trim(), "60 13");
}
