//! berth against an engine that says what the test tells it to: exit codes, order of requests, streams.

#[allow(dead_code, reason = "part of it is for the other tests")]
mod fake;

use fake::{Answer, Engine, berth, finish, frame};
use std::io::{Read, Write};
use std::sync::mpsc;

const CREATED: Answer = Answer::Json(201, r#"{"Id":"abc","Warnings":["careful"]}"#);

/// An engine whose container prints and exits with this code.
fn container(output: Vec<u8>, code: &'static str) -> Engine {
    Engine::new(move |request| match request.line.as_str() {
        line if line.starts_with("POST /containers/create") => CREATED,
        line if line.contains("/attach?") => Answer::Stream(output.clone()),
        line if line.contains("/wait") => Answer::Json(200, code),
        _ => Answer::Json(204, ""),
    })
}

#[test]
fn run_attaches_and_waits_before_it_starts() {
    let mut output = frame(1, "out\n");
    output.extend(frame(2, "err\n"));
    let engine = container(output, r#"{"StatusCode":42}"#);
    let run = engine.run(&["run", "--rm", "img", "cmd"]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (Some(42), "out\n", "WARNING: careful\nerr\n"));
    assert_eq!(
        engine.requests(),
        [
            "POST /containers/create",
            "POST /containers/abc/attach?stderr=1&stdout=1&stream=1",
            "POST /containers/abc/wait?condition=removed",
            "POST /containers/abc/start",
        ]
    );
}

#[test]
fn run_detached_prints_the_id() {
    let engine = container(Vec::new(), r#"{"StatusCode":0}"#);
    let run = engine.run(&["run", "-d", "--name", "n", "img"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "abc\n"));
    assert_eq!(engine.requests(), ["POST /containers/create?name=n", "POST /containers/abc/start"]);
}

#[test]
fn codes_of_run_follow_the_engines_words() {
    for (message, code) in [
        (r#"{"message":"exec: \"x\": executable file not found in $PATH"}"#, 127),
        (r#"{"message":"exec /x: permission denied"}"#, 126),
        (r#"{"message":"port is taken"}"#, 125),
    ] {
        let engine = Engine::new(move |request| match request.line.as_str() {
            "POST /containers/create" => CREATED,
            "POST /containers/abc/start" => Answer::Json(400, message),
            line if line.contains("/attach?") => Answer::Stream(Vec::new()),
            _ => Answer::Json(200, r#"{"StatusCode":0}"#),
        });
        let run = engine.run(&["run", "img"]);
        assert_eq!(run.code, Some(code), "{run:?}");
        assert!(run.stderr.contains("berth: Error response from daemon: ") && run.stdout.is_empty(), "{run:?}");
    }
}

#[test]
fn a_missing_image_is_pulled_once() {
    let pulled = std::sync::atomic::AtomicBool::new(false);
    let engine = Engine::new(move |request| match request.line.as_str() {
        "POST /containers/create" if !pulled.load(std::sync::atomic::Ordering::SeqCst) => {
            Answer::Json(404, r#"{"message":"No such image: img:latest"}"#)
        }
        "POST /containers/create" => CREATED,
        line if line.starts_with("POST /images/create") => {
            pulled.store(true, std::sync::atomic::Ordering::SeqCst);
            Answer::Json(
                200,
                "{\"status\":\"Pulling from library/img\",\"id\":\"latest\"}\r\n{\"status\":\"Status: done\"}\r\n",
            )
        }
        _ => Answer::Json(204, ""),
    });
    let run = engine.run(&["run", "-d", "img"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "abc\n"));
    assert_eq!(
        run.stderr,
        "Unable to find image 'img:latest' locally\nlatest: Pulling from library/img\nStatus: done\nWARNING: careful\n"
    );
    assert_eq!(engine.requests()[1], "POST /images/create?fromImage=docker.io%2Flibrary%2Fimg&tag=latest");
    let never = engine.run(&["run", "--pull", "never", "-d", "img"]);
    assert_eq!(never.code, Some(0));
}

#[test]
fn a_failing_pull_is_the_failure_of_run() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "POST /containers/create" => Answer::Json(404, r#"{"message":"No such image: img:latest"}"#),
        _ => Answer::Json(200, r#"{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}"#),
    });
    let run = engine.run(&["run", "img"]);
    assert_eq!(run.code, Some(125));
    assert!(run.stderr.contains("berth: manifest unknown"), "{run:?}");
}

#[test]
fn the_end_of_stdin_leaves_the_output_open() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "POST /containers/create" => CREATED,
        line if line.contains("/attach?") => {
            fake::upgrade(&mut request.stream);
            let mut input = String::new();
            request.stream.read_to_string(&mut input).unwrap();
            request.stream.write_all(&frame(1, &format!("{input}late\n"))).unwrap();
            Answer::Done
        }
        line if line.contains("/wait") => Answer::Json(200, r#"{"StatusCode":0}"#),
        _ => Answer::Json(204, ""),
    });
    let run = engine.run_with(&["run", "-i", "img"], b"typed\n");
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "typed\nlate\n"), "{run:?}");
}

#[test]
fn signals_are_passed_on() {
    let (started, start) = mpsc::channel();
    let (killed, kill) = mpsc::channel();
    let (started, killed, kill) =
        (std::sync::Mutex::new(started), std::sync::Mutex::new(killed), std::sync::Mutex::new(kill));
    let engine = Engine::new(move |request| match request.line.as_str() {
        "POST /containers/create" => CREATED,
        line if line.contains("/attach?") => {
            fake::upgrade(&mut request.stream);
            // The container's output ends when the signal has arrived.
            kill.lock().unwrap().recv().unwrap();
            Answer::Done
        }
        line if line.contains("/wait") => Answer::Json(200, r#"{"StatusCode":143}"#),
        "POST /containers/abc/start" => {
            started.lock().unwrap().send(()).unwrap();
            Answer::Json(204, "")
        }
        "POST /containers/abc/kill?signal=TERM" => {
            killed.lock().unwrap().send(()).unwrap();
            Answer::Json(204, "")
        }
        _ => Answer::Json(500, "{}"),
    });
    let mut child = engine.command(&["run", "img"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    start.recv().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn exec_ends_with_the_code_of_the_process() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "POST /containers/c/exec" => {
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(
                (&body["Cmd"], &body["AttachStdin"]),
                (&serde_json::json!(["ls", "-l"]), &serde_json::json!(false))
            );
            Answer::Json(201, r#"{"Id":"e"}"#)
        }
        "POST /exec/e/start" => Answer::Stream(frame(2, "no\n")),
        _ => Answer::Json(200, r#"{"ExitCode":7}"#),
    });
    let run = engine.run(&["exec", "c", "ls", "-l"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(7), "no\n"));
}

#[test]
fn an_engine_that_keeps_to_http_is_named() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "POST /containers/create" => CREATED,
        _ => Answer::Json(200, "{}"),
    });
    let run = engine.run(&["run", "img"]);
    assert_eq!(run.code, Some(125));
    assert!(run.stderr.contains("unable to upgrade /containers/abc/attach to a stream"), "{run:?}");
}

#[test]
fn many_names_are_answered_in_order() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "DELETE /containers/b" => Answer::Json(404, r#"{"message":"No such container: b"}"#),
        _ => Answer::Json(204, ""),
    });
    let run = engine.run(&["rm", "a", "b", "c"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), "a\nc\n"));
    assert_eq!(run.stderr, "Error response from daemon: No such container: b\n");
    // By force, an absent container counts as removed.
    let engine = Engine::new(|_| Answer::Json(404, r#"{"message":"No such container: b"}"#));
    assert_eq!(engine.run(&["rm", "-f", "b"]).code, Some(0));
}

#[test]
fn logs_keep_the_two_streams_apart() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "GET /containers/c/json" => Answer::Json(200, r#"{"Id":"abc","Config":{"Tty":false}}"#),
        line => {
            assert_eq!(line, "GET /containers/abc/logs?follow=1&stderr=1&stdout=1&tail=all&timestamps=1");
            let mut body = frame(1, "one\n");
            body.extend(frame(2, "two\n"));
            request.stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            request.stream.write_all(&body).unwrap();
            Answer::Done
        }
    });
    let run = engine.run(&["logs", "-ft", "c"]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (Some(0), "one\n", "two\n"));
}

#[test]
fn load_streams_its_input() {
    let engine = Engine::new(|request| {
        assert_eq!((request.line.as_str(), request.body.len()), ("POST /images/load?quiet=1", 1_000_000));
        Answer::Json(200, "{\"stream\":\"Loaded image: x:y\\n\"}\r\n")
    });
    let run = engine.run_with(&["load"], &vec![7; 1_000_000]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Loaded image: x:y\n"), "{run:?}");
}

#[test]
fn lists_and_inspect() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "GET /containers/json" => Answer::Json(
            200,
            r#"[{"Id":"0123456789abcdef","Names":["/n"],"Image":"i","Command":"c","Created":1,"Status":"Up","State":"running"}]"#,
        ),
        "GET /containers/n/json" => Answer::Json(200, r#"{"Id":"x","Zeta":[],"Alpha":{"k":1}}"#),
        _ => Answer::Json(404, r#"{"message":"nothing"}"#),
    });
    assert_eq!(engine.run(&["ps", "--format", "{{.ID}} {{.Names}}"]).stdout, "0123456789ab n\n");
    assert_eq!(engine.run(&["ps", "-q"]).stdout, "0123456789ab\n");
    let run = engine.run(&["inspect", "n", "gone"]);
    assert_eq!(
        run.stdout,
        "[\n    {\n        \"Id\": \"x\",\n        \"Zeta\": [],\n        \"Alpha\": {\n            \"k\": 1\n        }\n    }\n]\n"
    );
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), "Error: No such object: gone\n"));
}

#[test]
fn nobody_at_the_socket() {
    let line = "Cannot connect to the Berth engine at unix:///nonexistent/engine.sock. Is berth-engine running? There is no such socket.";
    let run = finish(berth(&["ps"]), b"");
    assert_eq!((run.code, run.stderr.trim_end()), (Some(1), line));
    let run = finish(berth(&["run", "img"]), b"");
    assert_eq!(run.code, Some(125));
    assert!(run.stderr.starts_with(&format!("berth: {line}\n")), "{run:?}");
    let run = finish(berth(&["version"]), b"");
    assert!(run.code == Some(1) && run.stdout.starts_with("Client:\n"), "{run:?}");
    let mut docker_host = berth(&["ps"]);
    docker_host.env_remove("BERTH_HOST").env("DOCKER_HOST", "unix:///nonexistent/other.sock");
    assert!(finish(docker_host, b"").stderr.contains("/nonexistent/other.sock"));
    let run = finish(berth(&["-H", "fd://", "ps"]), b"");
    assert!(run.stderr.contains("fd:// is what systemd hands to a daemon"), "{run:?}");
}

#[test]
fn words_without_an_engine() {
    for (words, code, part) in [
        (&["run", "--bad"][..], 125, "unknown flag: --bad"),
        (&["rm"], 1, "requires at least 1 argument"),
        (&["run", "--pid=x", "img"], 125, ""),
    ] {
        let run = finish(berth(words), b"");
        assert!(run.code == Some(code) && run.stderr.contains(part), "{run:?}");
    }
    let run = finish(berth(&["completion", "bash"]), b"");
    assert!(run.code == Some(0) && run.stdout.contains("__complete"), "{:?}", run.stderr);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(finish(berth(&["man", dir.path().to_str().unwrap()]), b"").code, Some(0));
    for page in ["berth-run.1", "berth-container-ls.1", "berth-image-verify.1", "berth-login.1", "berth-system-df.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
}

#[test]
fn the_demo_image_is_loaded_when_it_is_missing() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "GET /images/berth/demo:latest/json" => Answer::Json(404, r#"{"message":"No such image: berth/demo:latest"}"#),
        "POST /images/load?quiet=1" => {
            let manifest = request.body.windows(13).position(|w| w == b"manifest.json");
            assert!(manifest.is_some() && request.body.len().is_multiple_of(512));
            Answer::Json(200, "{\"stream\":\"Loaded image: berth/demo:latest\\n\"}\r\n")
        }
        "POST /containers/create" => {
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(body["Image"], "berth/demo:latest");
            assert_eq!(body["Cmd"], serde_json::json!(["count", "3"]));
            CREATED
        }
        line if line.contains("/attach?") => Answer::Stream(frame(1, "1\n2\n3\n")),
        _ => Answer::Json(200, r#"{"StatusCode":0}"#),
    });
    let run = engine.run(&["demo", "count", "3"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "1\n2\n3\n"), "{run:?}");
}

#[test]
fn the_api_socket_is_given_on_request() {
    let (sender, bodies) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let engine = Engine::new(move |request| {
        let _ = sender.lock().unwrap().send((request.line.clone(), request.body.clone()));
        if request.line.starts_with("POST /containers/create") { CREATED } else { Answer::Json(200, "") }
    });
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("config.json"), r#"{"auths":{"reg.test":{"auth":"dTpw"}}}"#).unwrap();
    let mut command = engine.command(&["create", "--use-api-socket", "img"]);
    command.env("DOCKER_CONFIG", config.path());
    assert_eq!(finish(command, b"").code, Some(0));
    let seen: Vec<(String, Vec<u8>)> = bodies.try_iter().collect();
    let body: serde_json::Value = serde_json::from_slice(&seen[0].1).unwrap();
    assert_eq!(body["HostConfig"]["Mounts"][0]["Target"], "/var/run/docker.sock");
    assert_eq!(body["Env"][0], "DOCKER_CONFIG=/run/secrets/docker");
    assert_eq!(seen[1].0, "PUT /containers/abc/archive?path=%2F");
    let mut archive = tar::Archive::new(&seen[1].1[..]);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("run/secrets/docker/config.json"));
    let mut text = String::new();
    entry.read_to_string(&mut text).unwrap();
    assert_eq!(text, r#"{"auths":{"reg.test":{"auth":"dTpw"}}}"#);
}
