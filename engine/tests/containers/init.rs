//! `--init`: what process 1 of a container does for it.

use crate::stack::{Stack, eventually};
use serde_json::{Value, json};

fn with_init(cmd: &Value, tty: bool) -> Value {
    json!({"Cmd": cmd, "Tty": tty, "HostConfig": {"Init": true}})
}

fn sh(script: &str) -> Value {
    with_init(&json!(["sh", "-c", script]), false)
}

fn run(stack: &Stack, body: &Value) -> (i64, String, String) {
    let id = stack.create("", body);
    stack.start_container(&id);
    let code = stack.wait(&id, "not-running");
    let (out, err) = stack.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).streams();
    (code, out, err)
}

#[test]
fn it_is_process_1_and_ends_as_its_child_does() {
    let Some(stack) = Stack::start() else { return };
    let (code, out, err) = run(&stack, &sh("cat /proc/1/comm; cat /proc/1/cmdline | tr '\\0' ' '; exit 7"));
    assert_eq!(code, 7, "{err}");
    assert_eq!(
        out,
        "docker-init\n/sbin/docker-init -- sh -c cat /proc/1/comm; cat /proc/1/cmdline | tr '\\0' ' '; exit 7 "
    );
    assert_eq!(run(&stack, &sh("kill -9 $$")).0, 137);
    // What whoever started the daemons ignores, containers ignore: compared with one that has no such process.
    let signals = "grep -E '^Sig(Blk|Ign):' /proc/self/status | cut -f 2";
    let (_, out, _) = run(&stack, &sh(signals));
    let (_, without, _) = run(&stack, &json!({"Cmd": ["sh", "-c", signals]}));
    assert_eq!(out, without, "signals as without it");
    let (code, _, err) = run(&stack, &with_init(&json!(["nowhere"]), false));
    assert!(code == 127 && err.contains("exec nowhere"), "{code} {err}");
    let (code, _, err) = run(&stack, &with_init(&json!(["/etc/passwd"]), false));
    assert!(code == 126 && err.contains("/etc/passwd"), "{code} {err}");
    let id = stack.create("", &sh("sleep 1000"));
    assert_eq!(stack.inspect(&id)["HostConfig"]["Init"], true);
    assert_eq!(stack.inspect(&id)["Path"], "sh", "the command is the user's");
    stack.start_container(&id);
    let processes = stack.get(&format!("/containers/{id}/top")).json()["Processes"].to_string();
    assert!(processes.contains("docker-init"), "{processes}");
}

#[test]
fn orphans_are_reaped() {
    let Some(stack) = Stack::start() else { return };
    // Each child's own child outlives it, and is process 1's from then on.
    let script = "i=0; while test $i -lt 50; do sh -c 'sh -c true &' ; i=$((i+1)); done; echo ready; exec sleep 1000";
    let id = stack.create("", &sh(script));
    stack.start_container(&id);
    eventually("all are started", || {
        match stack.get(&format!("/containers/{id}/logs?stdout=1")).streams().0.as_str() {
            "ready\n" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    eventually("no zombie is left", || {
        let processes = stack.get(&format!("/containers/{id}/top")).json()["Processes"].clone();
        match processes.as_array().unwrap().len() {
            2 => Ok(()),
            _ => Err(processes.to_string()),
        }
    });
}

#[test]
fn signals_reach_the_command() {
    let Some(stack) = Stack::start() else { return };
    let script = "trap 'echo got term; exit 3' TERM; trap 'echo got usr1' USR1; trap 'echo got rt' 42; echo ready; while true; do usleep 1000; done";
    let id = stack.create("", &sh(script));
    stack.start_container(&id);
    let says = |text: &str| {
        eventually(text, || match stack.get(&format!("/containers/{id}/logs?stdout=1")).streams().0 {
            out if out.contains(text) => Ok(()),
            out => Err(out),
        });
    };
    says("ready");
    for signal in ["USR1", "42"] {
        assert_eq!(stack.post(&format!("/containers/{id}/kill?signal={signal}"), &Value::Null).status, 204);
        says(if signal == "USR1" { "got usr1" } else { "got rt" });
    }
    assert_eq!(stack.post(&format!("/containers/{id}/stop?t=20"), &Value::Null).status, 204);
    says("got term");
    assert_eq!(stack.inspect(&id)["State"]["ExitCode"], 3);
    // A program without a handler: as process 1 it would not end at SIGTERM, as a child of one it does.
    let id = stack.create("", &with_init(&json!(["sleep", "1000"]), false));
    stack.start_container(&id);
    let begun = std::time::Instant::now();
    assert_eq!(stack.post(&format!("/containers/{id}/stop?t=20"), &Value::Null).status, 204);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert_eq!(stack.inspect(&id)["State"]["ExitCode"], 143);
}

#[test]
fn the_terminal_is_the_commands() {
    let Some(stack) = Stack::start() else { return };
    // Reading from a terminal whose foreground another group has would stop it.
    let config = json!({"Cmd": ["sh", "-c", "tty; read line; echo read $line"], "Tty": true, "OpenStdin": true,
        "HostConfig": {"Init": true}});
    let id = stack.create("", &config);
    let (_, mut stream) = stack.hijack(&format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1"), "");
    stack.start_container(&id);
    std::io::Write::write_all(&mut stream, b"words\n").unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    assert!(text.contains("read words"), "{text}");
    assert_eq!(stack.wait(&id, "not-running"), 0);
}

#[test]
fn the_daemons_default_holds_unless_a_container_says_otherwise() {
    let Some(stack) = Stack::configured("init = true\n") else { return };
    let comm = |host: Value| run(&stack, &json!({"Cmd": ["cat", "/proc/1/comm"], "HostConfig": host})).1;
    assert_eq!(comm(json!({})), "docker-init\n");
    assert_eq!(comm(json!({"Init": false})), "cat\n");
    assert_eq!(comm(json!({"ReadonlyRootfs": true})), "docker-init\n");
    let id = stack.create("", &json!({"Cmd": ["true"]}));
    assert_eq!(stack.inspect(&id)["HostConfig"]["Init"], true, "filled in at create");
    // With processes of others, somebody else is process 1.
    assert_ne!(comm(json!({"PidMode": "host"})), "docker-init\n");
}

#[test]
fn an_init_of_the_administrators_and_one_that_is_missing() {
    let other = ["/usr/bin/tini", "/usr/bin/docker-init"].into_iter().find(|path| std::path::Path::new(path).exists());
    let Some(other) = other else {
        eprintln!("skipped: there is neither tini nor docker-init");
        return;
    };
    let Some(stack) = Stack::configured(&format!("init-path = '{other}'\n")) else { return };
    let id = stack.create("", &sh("exit 9"));
    // Debian's is linked against libraries the image hasn't: which one was mounted shows in how it fails.
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    if answer.status == 204 {
        assert_eq!(stack.wait(&id, "not-running"), 9);
    } else {
        assert!(answer.message().contains("/sbin/docker-init"), "{}", answer.text());
    }
    drop(stack);
    let Some(stack) = Stack::configured("init-path = '/nowhere/init'\n") else { return };
    let id = stack.create("", &sh("true"));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(answer.status, 500);
    assert!(answer.message().contains("init-path /nowhere/init is not a file"), "{}", answer.text());
}
