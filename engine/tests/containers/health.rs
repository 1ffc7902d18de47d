//! Health checks through a real engine: states, log, events, restarts of the engine.

use super::{sh, with_host};
use crate::stack::{Stack, eventually};
use serde_json::{Value, json};
use std::io::Read;

const MS: i64 = 1_000_000;

fn checked(test: Value, script: &str) -> Value {
    let mut config = sh(script);
    config["Healthcheck"] = json!({"Test": test, "Interval": 100 * MS, "Timeout": 5000 * MS, "Retries": 2});
    config
}

fn health(stack: &Stack, name: &str) -> Value {
    stack.inspect(name)["State"]["Health"].clone()
}

fn becomes(stack: &Stack, name: &str, status: &str) {
    eventually(status, || {
        let health = health(stack, name);
        if health["Status"] == status { Ok(()) } else { Err(health.to_string()) }
    });
}

fn events(stack: &Stack, until: &str) -> String {
    let (_, mut stream) = stack.begin("GET", "/events?since=1");
    let mut text = String::new();
    eventually(until, || {
        let mut buffer = [0; 64 << 10];
        let read = stream.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if text.contains(until) { Ok(()) } else { Err(text.clone()) }
    });
    text
}

#[test]
fn healthy_and_unhealthy_with_log_events_and_filters() {
    let Some(stack) = Stack::start() else { return };
    let script = "echo x >/ok; sleep 1000";
    stack.create("?name=web", &checked(json!(["CMD-SHELL", "cat /ok && echo err >&2"]), script));
    assert_eq!(health(&stack, "web"), Value::Null);
    stack.start_container("web");
    let first = health(&stack, "web");
    assert_eq!((&first["Status"], &first["FailingStreak"]), (&json!("starting"), &json!(0)));
    assert!(first["Log"].is_array());
    becomes(&stack, "web", "healthy");
    let listed = stack.get("/containers/json").json();
    assert!(listed[0]["Status"].as_str().unwrap().ends_with(" (healthy)"), "{listed}");
    let log = health(&stack, "web")["Log"][0].clone();
    assert_eq!(log["ExitCode"], 0);
    let output = log["Output"].as_str().unwrap();
    assert!(output.contains("x\n") && output.contains("err\n"), "{output}");
    assert!(log["Start"].as_str().unwrap() < log["End"].as_str().unwrap(), "{log}");
    let filtered = |status: &str| {
        let filter = format!("%7B%22health%22:%5B%22{status}%22%5D%7D");
        stack.get(&format!("/containers/json?filters={filter}")).json().as_array().unwrap().len()
    };
    assert_eq!((filtered("healthy"), filtered("unhealthy"), filtered("none")), (1, 0, 0));
    let exec = stack.post("/containers/web/exec", &json!({"Cmd": ["busybox", "rm", "/ok"]})).json();
    assert_eq!(
        stack.post(&format!("/exec/{}/start", exec["Id"].as_str().unwrap()), &json!({"Detach": true})).status,
        200
    );
    becomes(&stack, "web", "unhealthy");
    assert_eq!((filtered("healthy"), filtered("unhealthy")), (0, 1));
    eventually("five results are kept", || {
        let health = health(&stack, "web");
        let log = health["Log"].as_array().unwrap();
        if log.len() == 5 && log.iter().all(|one| one["ExitCode"] == 1) { Ok(()) } else { Err(health.to_string()) }
    });
    let told = events(&stack, "health_status: unhealthy");
    assert!(told.contains("health_status: healthy") && told.contains("exec_create: /bin/sh -c cat /ok"), "{told}");
    // A second run begins anew; what ended is not probed.
    assert_eq!(stack.post("/containers/web/restart?t=0", &Value::Null).status, 204);
    becomes(&stack, "web", "healthy");
}

#[test]
fn a_probe_that_hangs_is_killed_and_long_output_is_cut() {
    let Some(stack) = Stack::start() else { return };
    let mut config = checked(json!(["CMD", "sh", "-c", "echo begun; sleep 1234"]), "sleep 1000");
    config["Healthcheck"]["Timeout"] = (200 * MS).into();
    stack.create("?name=slow", &config);
    stack.start_container("slow");
    becomes(&stack, "slow", "unhealthy");
    let log = health(&stack, "slow")["Log"][0].clone();
    assert_eq!(
        (&log["ExitCode"], &log["Output"]),
        (&json!(-1), &json!("Health check exceeded timeout (200ms): begun\n"))
    );
    eventually("its probes are gone", || {
        let top = stack.get("/containers/slow/top").text();
        // One may be under way.
        if top.matches("sleep 1234").count() <= 2 { Ok(()) } else { Err(top) }
    });
    stack.create("?name=long", &checked(json!(["CMD", "seq", "1", "100000"]), "sleep 1000"));
    stack.start_container("long");
    becomes(&stack, "long", "healthy");
    let output = health(&stack, "long")["Log"][0]["Output"].as_str().unwrap().to_owned();
    assert!(output.len() == 4099 && output.starts_with("1\n2\n") && output.ends_with("..."), "{}", output.len());
    // A program that is missing is a failure, not an error of the engine.
    stack.create("?name=none", &checked(json!(["CMD", "/nope"]), "sleep 1000"));
    stack.start_container("none");
    becomes(&stack, "none", "unhealthy");
    let refused = stack.post("/containers/create", &json!({"Image": "test", "Healthcheck": {"Interval": 5}}));
    assert_eq!((refused.status, refused.message().as_str()), (400, "Interval in Healthcheck cannot be less than 1ms"));
}

#[test]
fn the_start_period_forgives() {
    let Some(stack) = Stack::start() else { return };
    let mut config = checked(json!(["CMD", "cat", "/ok"]), "sleep 1; echo >/ok; sleep 1000");
    config["Healthcheck"]["StartPeriod"] = (60_000 * MS).into();
    config["Healthcheck"]["StartInterval"] = (50 * MS).into();
    config["Healthcheck"]["Interval"] = (3_600_000 * MS).into();
    stack.create("?name=late", &config);
    stack.start_container("late");
    becomes(&stack, "late", "healthy");
    let log = health(&stack, "late")["Log"].clone();
    assert!(log.as_array().unwrap().len() >= 3, "{log}");
    assert!(!events(&stack, "health_status: healthy").contains("unhealthy"));
}

#[test]
fn it_outlives_the_engine_and_sleeps_while_paused() {
    let Some(mut stack) = Stack::start() else { return };
    stack.create("?name=web", &checked(json!(["CMD", "cat", "/bad"]), "sleep 1000"));
    stack.start_container("web");
    becomes(&stack, "web", "unhealthy");
    // Results are kept a moment later, in their turn: what is on disk when an update is answered has them before it.
    let update = stack.post("/containers/web/update", &json!({"RestartPolicy": {"Name": "no"}}));
    assert_eq!(update.status, 200, "{}", update.text());
    stack.kill_engine();
    stack.start_engine();
    let kept = health(&stack, "web");
    assert_eq!(kept["Status"], "unhealthy");
    let streak = |stack: &Stack| health(stack, "web")["FailingStreak"].as_i64().unwrap();
    let before = streak(&stack);
    eventually("probes go on", || if streak(&stack) > before { Ok(()) } else { Err("no".into()) });
    assert_eq!(stack.post("/containers/web/pause", &Value::Null).status, 204);
    assert!(stack.get("/containers/json").json()[0]["Status"].as_str().unwrap().ends_with("(Paused)"));
    assert_eq!(stack.post("/containers/web/unpause", &Value::Null).status, 204);
    let before = streak(&stack);
    eventually("probes go on", || if streak(&stack) > before + 1 { Ok(()) } else { Err("no".into()) });
}

/// user-pain 18: a label asks for a restart.
#[test]
fn unhealthy_restarts_by_label() {
    let Some(stack) = Stack::start() else { return };
    let mut config = checked(json!(["CMD", "cat", "/nope"]), "sleep 1000");
    config["Labels"] = json!({"io.berth.restart-on-unhealthy": "true"});
    config["StopTimeout"] = 0.into();
    stack.create("?name=web", &config);
    stack.start_container("web");
    let first = stack.inspect("web")["State"]["StartedAt"].clone();
    eventually("it is started again", || {
        let state = stack.inspect("web")["State"].clone();
        if state["StartedAt"] != first && state["Running"] == true { Ok(()) } else { Err(state.to_string()) }
    });
    assert_eq!(stack.delete("/containers/web?force=1").status, 204);
}

#[test]
fn the_image_says_how() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=src", &with_host(sh("true"), json!({})));
    let change = "changes=HEALTHCHECK%20--interval%3D100ms%20CMD%20true";
    let made = stack.post(&format!("/commit?container=src&repo=checked&{change}"), &Value::Null);
    assert_eq!(made.status, 201, "{}", made.text());
    for (name, own, expected) in [
        ("as-image", Value::Null, "healthy"),
        ("off", json!({"Test": ["NONE"]}), ""),
        ("other", json!({"Test": ["CMD", "false"], "Retries": 1}), "unhealthy"),
    ] {
        let mut body = json!({"Image": "checked", "Cmd": ["sleep", "1000"]});
        if !own.is_null() {
            body["Healthcheck"] = own;
        }
        let made = stack.post(&format!("/containers/create?name={name}"), &body);
        assert_eq!(made.status, 201, "{}", made.text());
        stack.start_container(name);
        match expected {
            "" => assert_eq!(health(&stack, name), Value::Null),
            status => becomes(&stack, name, status),
        }
    }
}
