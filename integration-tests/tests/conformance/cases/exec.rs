//! Commands in running containers.

use crate::{
    cases,
    run::{Run, sh, waiting},
};
use serde_json::{Value, json};

cases!(output, input, options, terminal, detached, failures, refusals, inspects);

fn made(run: &mut Run, name: &str, body: &Value) -> String {
    let answer = run.ask(201, "POST", &format!("/containers/{name}/exec"), Some(body));
    answer["Id"].as_str().unwrap_or_default().to_owned()
}

fn started(run: &mut Run, step: &str, id: &str, body: &Value) {
    // The id is masked: the path of a step has to be the same on both.
    let stream = run.upgrade(&format!("/exec/{id}/start"), Some(body));
    run.frames(step, stream);
    code(run, step, id);
}

fn code(run: &mut Run, step: &str, id: &str) {
    let path = format!("/exec/{id}/json");
    let code = integration_tests::eventually("the exec ends", || {
        let exec = run.quietly("GET", &path, None).json();
        (exec["Running"] == json!(false)).then(|| exec["ExitCode"].clone())
    });
    run.note(&format!("{step}: code"), code);
}

fn output(run: &mut Run) {
    run.start("box", &waiting());
    let both =
        json!({"AttachStdout": true, "AttachStderr": true, "Cmd": ["sh", "-c", "echo out; echo err >&2; exit 5"]});
    let id = made(run, "box", &both);
    started(run, "both", &id, &json!({"Detach": false, "Tty": false}));
    let id = made(run, "box", &json!({"AttachStderr": true, "Cmd": ["sh", "-c", "echo out; echo err >&2"]}));
    started(run, "stderr alone", &id, &json!({}));
    let id = made(run, "box", &json!({"AttachStdout": true, "Cmd": ["seq", "1", "2000"]}));
    let answer = run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": false})));
    run.note("without upgrade", json!([answer.status, answer.header("content-type"), answer.body.len() > 8000]));
}

fn input(run: &mut Run) {
    run.start("box", &waiting());
    let id =
        made(run, "box", &json!({"AttachStdin": true, "AttachStdout": true, "Cmd": ["sh", "-c", "wc -c; echo after"]}));
    let mut stream = run.upgrade(&format!("/exec/{id}/start"), Some(&json!({})));
    run.write(&mut stream, "12345\n", true);
    run.frames("half closed", stream);
}

fn options(run: &mut Run) {
    run.start("box", &waiting());
    let bodies = [
        json!({"User": "1000:50", "Cmd": ["id"]}),
        json!({"User": "user", "Cmd": ["id", "-un"]}),
        json!({"WorkingDir": "/etc", "Cmd": ["pwd"]}),
        json!({"Env": ["A=1", "B=2"], "Cmd": ["sh", "-c", "echo $A$B $PATH"]}),
        json!({"Cmd": ["grep", "CapEff", "/proc/self/status"]}),
        json!({"User": "1000", "Cmd": ["grep", "CapEff", "/proc/self/status"]}),
    ];
    for mut body in bodies {
        let step = body.to_string();
        body["AttachStdout"] = json!(true);
        body["AttachStderr"] = json!(true);
        let id = made(run, "box", &body);
        started(run, &step, &id, &json!({}));
    }
}

fn terminal(run: &mut Run) {
    run.start("box", &waiting());
    let id = made(
        run,
        "box",
        &json!({"AttachStdout": true, "Tty": true, "Cmd": ["sh", "-c", "tty > /dev/null && echo terminal; echo $TERM"]}),
    );
    let stream = run.upgrade(&format!("/exec/{id}/start"), Some(&json!({"Tty": true})));
    run.bytes("terminal", stream);
    let id = made(
        run,
        "box",
        &json!({"AttachStdin": true, "AttachStdout": true, "Tty": true, "Cmd": ["sh", "-c", "stty size; read x; stty size"]}),
    );
    let mut stream = run.upgrade(&format!("/exec/{id}/start"), Some(&json!({"Tty": true})));
    let resized = integration_tests::eventually("resized", || {
        let answer = run.quietly("POST", &format!("/exec/{id}/resize?h=33&w=99"), None);
        (answer.status < 400).then_some(answer.status)
    });
    run.note("resize", json!(resized));
    run.write(&mut stream, "\n", false);
    let mut text = Vec::new();
    std::io::Read::read_to_end(stream.raw(), &mut text).ok();
    run.note("the size arrived", json!(String::from_utf8_lossy(&text).contains("33 99")));
    run.post(404, "/exec/nobody/resize?h=1&w=1");
}

fn detached(run: &mut Run) {
    run.start("box", &waiting());
    let id = made(run, "box", &json!({"Cmd": ["sh", "-c", "echo x > /tmp/made; exit 6"]}));
    let answer = run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": true})));
    run.note("detached", json!([answer.status, answer.text()]));
    code(run, "detached", &id);
    let id = made(run, "box", &json!({"AttachStdout": true, "Cmd": ["cat", "/tmp/made"]}));
    started(run, "what it made", &id, &json!({}));
}

fn failures(run: &mut Run) {
    run.start("box", &waiting());
    for cmd in [json!(["no-such-program"]), json!(["/no/such"]), json!(["/etc"])] {
        let id = made(run, "box", &json!({"AttachStdout": true, "AttachStderr": true, "Cmd": cmd}));
        let mut stream = run.upgrade(&format!("/exec/{id}/start"), Some(&json!({})));
        let mut text = Vec::new();
        std::io::Read::read_to_end(stream.raw(), &mut text).ok();
        run.note(&format!("{cmd} says something"), json!(!text.is_empty()));
        code(run, &cmd.to_string(), &id);
    }
    for extra in [json!({"User": "nobody-here"}), json!({"WorkingDir": "/no/such"})] {
        let mut body = json!({"AttachStdout": true, "Cmd": ["true"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = run.quietly("POST", "/containers/box/exec", Some(&body));
        run.note(&format!("create with {extra}"), json!(answer.status));
        if answer.status == 201 {
            let id = answer.json()["Id"].as_str().unwrap().to_owned();
            let started = run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({})));
            run.note(&format!("start with {extra}"), json!(started.status));
            code(run, &extra.to_string(), &id);
        }
    }
}

fn refusals(run: &mut Run) {
    run.create("box", &waiting());
    run.refused(409, "POST", "/containers/box/exec", Some(&json!({"Cmd": ["true"]})), "is not running");
    run.post(204, "/containers/box/start");
    run.ask(400, "POST", "/containers/box/exec", Some(&json!({"Cmd": []})));
    run.ask(400, "POST", "/containers/box/exec", Some(&json!({})));
    run.send(400, "POST", "/containers/box/exec", b"{", "Content-Type: application/json\r\n");
    run.ask(404, "POST", "/containers/nobody/exec", Some(&json!({"Cmd": ["true"]})));
    run.refused(404, "POST", "/exec/nobody/start", Some(&json!({})), "No such exec instance");
    run.refused(404, "GET", "/exec/nobody/json", None, "No such exec instance");
    let id = made(run, "box", &json!({"Cmd": ["true"]}));
    run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": true})));
    code(run, "first", &id);
    let again = run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": true})));
    run.note("a second start", json!(again.status));
    let id = made(run, "box", &json!({"Cmd": ["true"]}));
    run.post(204, "/containers/box/stop?t=5");
    let late = run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": true})));
    run.note("a start in what has stopped", json!(late.status));
}

fn inspects(run: &mut Run) {
    run.start("box", &sh("while :; do usleep 20000; done"));
    let id = made(
        run,
        "box",
        &json!({"AttachStdin": true, "AttachStdout": true, "Tty": true, "Env": ["A=b"], "User": "0", "DetachKeys": "ctrl-a,a",
        "WorkingDir": "/tmp", "Cmd": ["sleep", "1000"]}),
    );
    let before = run.quietly("GET", &format!("/exec/{id}/json"), None).json();
    run.note("before", before);
    run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": true, "Tty": true})));
    let during = run.quietly("GET", &format!("/exec/{id}/json"), None).json();
    run.note("during", during);
    run.inspect("box", &["/ExecIDs/0"]);
    let id = made(run, "box", &json!({"Cmd": ["sh", "-c", "exit 9"]}));
    run.quietly("POST", &format!("/exec/{id}/start"), Some(&json!({"Detach": true})));
    code(run, "after", &id);
    let after = run.quietly("GET", &format!("/exec/{id}/json"), None).json();
    run.note("after", after);
}
