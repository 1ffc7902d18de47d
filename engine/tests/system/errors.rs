//! What users read when something goes wrong.

use super::engine;
use serde_json::{Value, json};

#[test]
fn errors_say_what_was_meant_and_what_to_do() {
    let stack = engine!();
    stack.create("?name=web1", &json!({"Cmd": ["true"]}));
    assert_eq!(stack.post("/volumes/create", &json!({"Name": "database"})).status, 201);
    for (method, path, status, message, code) in [
        ("GET", "/containers/web/json", 404, "No such container: web; did you mean web1?", "not_found"),
        ("POST", "/containers/wbe1/start", 404, "No such container: wbe1; did you mean web1?", "not_found"),
        ("GET", "/containers/other/json", 404, "No such container: other", "not_found"),
        ("GET", "/volumes/databse", 404, "get databse: no such volume; did you mean database?", "not_found"),
        ("DELETE", "/volumes/databse", 404, "get databse: no such volume; did you mean database?", "not_found"),
        ("GET", "/images/tset/json", 404, "No such image: tset:latest; did you mean test:latest?", "not_found"),
        ("GET", "/networks/brigde", 404, "network brigde not found; did you mean bridge?", "not_found"),
        ("GET", "/networks/elsewhere", 404, "network elsewhere not found", "not_found"),
        ("GET", "/images/far/json", 404, "No such image: far:latest", "not_found"),
    ] {
        let answer =
            if method == "POST" { stack.post(path, &Value::Null) } else { stack.request(method, path, "", b"") };
        let body = answer.json();
        assert_eq!(
            (answer.status, body["message"].as_str(), body["code"].as_str()),
            (status, Some(message), Some(code)),
            "{method} {path}"
        );
    }
    let taken = stack.post("/containers/create?name=web1", &json!({"Image": "test", "Cmd": ["true"]})).json();
    assert_eq!(
        (taken["code"].as_str(), taken["hint"].as_str()),
        (Some("conflict"), Some("berth rm web1, or another --name"))
    );
    // What docker's client makes its exit codes of.
    for (command, words, code) in [
        ("/nowhere", "no such file or directory", "command_not_found"),
        ("nothing-of-the-kind", "executable file not found", "command_not_found"),
        ("/etc/passwd", "permission denied", "command_not_executable"),
    ] {
        let id = stack.create("", &json!({"Cmd": [command]}));
        let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.message().contains(words), "{}", answer.text());
        assert_eq!(answer.json()["code"], code, "{}", answer.text());
        assert!(answer.message().lines().count() == 1 && answer.message().len() < 300, "{}", answer.text());
    }
}
