//! Access rules end to end: users with rules of their own talk to an engine over its socket, each a process with its own ids.

use crate::stack::Stack;
use serde_json::{Value, json};
use std::process::Command;

const CONFIG: &str = "audit = true
[[access]]
users = ['12345', '12346']
allow = 'own'
[[access]]
groups = ['23456']
allow = 'read-only'
";

/// Somebody who isn't root.
struct User<'a> {
    stack: &'a Stack,
    uid: u32,
    groups: &'static str,
}

impl User<'_> {
    fn send(&self, method: &str, target: &str, body: &Value, extra: &[&str]) -> (u16, String) {
        let groups =
            if self.groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={}", self.groups) };
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={}", self.uid), format!("--regid={}", self.uid), groups])
            .args([
                "curl",
                "-sS",
                "--path-as-is",
                "-w",
                "\n%{http_code}",
                "-X",
                method,
                "-H",
                "Content-Type: application/json",
            ])
            .arg("--unix-socket")
            .arg(self.stack.run().join("engine.sock"))
            .args(extra);
        if !body.is_null() {
            command.args(["-d", &body.to_string()]);
        }
        let output = command.arg(format!("http://d{target}")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (text, status) =
            text.rsplit_once('\n').unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        (status.parse().unwrap(), text.to_owned())
    }

    fn get(&self, target: &str) -> (u16, String) {
        self.send("GET", target, &Value::Null, &[])
    }

    fn post(&self, target: &str, body: Value) -> (u16, String) {
        self.send("POST", target, &body, &[])
    }

    fn names(&self) -> Vec<String> {
        let (status, text) = self.get("/v1.51/containers/json?all=1");
        assert_eq!(status, 200, "{text}");
        let list: Value = serde_json::from_str(&text).unwrap();
        let mut names: Vec<String> =
            list.as_array().unwrap().iter().map(|c| c["Names"][0].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn refused(&self, answer: (u16, String), part: &str) {
        let message = serde_json::from_str::<Value>(&answer.1).map(|m| m["message"].to_string()).unwrap_or_default();
        assert_eq!(answer.0, 403, "{}", answer.1);
        assert!(message.contains(&format!("uid {}", self.uid)) && message.contains(part), "{message}");
    }
}

fn stack() -> Option<Stack> {
    for program in ["setpriv", "curl"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
    }
    let stack = Stack::configured(CONFIG)?;
    stack.open_socket();
    Some(stack)
}

#[test]
fn users_have_what_their_rule_gives_them() {
    let Some(stack) = stack() else { return };
    let user = |uid, groups| User { stack: &stack, uid, groups };
    let (own, other, looks, nobody) = (user(12345, ""), user(12346, ""), user(777, "1,23456"), user(778, ""));
    let body = || json!({"Image": "test", "Cmd": ["sleep", "1000"], "Env": ["TOKEN=very-secret"]});
    let with = |host: Value| {
        let mut body = body();
        body["HostConfig"] = host;
        body
    };
    let roots = stack.create("?name=roots", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container("roots");

    nobody.refused(nobody.get("/containers/json"), "no access rule of the engine names this user");
    nobody.refused(nobody.get("/_ping"), "may not GET /_ping");

    // One's own containers, from create to remove.
    let (status, text) =
        own.post("/v1.51/containers/create?name=mine&x=query-secret", with(json!({"NetworkMode": "none"})));
    assert_eq!(status, 201, "{text}");
    let mine = serde_json::from_str::<Value>(&text).unwrap()["Id"].as_str().unwrap().to_owned();
    assert_eq!(own.post("/containers/mine/start", Value::Null).0, 204);
    assert_eq!(stack.inspect("mine")["Config"]["Labels"]["berth.owner.uid"], "12345");
    let (status, text) = own.post("/containers/mine/exec", json!({"Cmd": ["true"]}));
    assert_eq!(status, 201, "{text}");
    let exec = serde_json::from_str::<Value>(&text).unwrap()["Id"].as_str().unwrap().to_owned();
    assert_eq!(own.post(&format!("/exec/{exec}/start"), json!({"Detach": true})).0, 200);
    other.refused(other.get(&format!("/exec/{exec}/json")), "is not theirs");
    own.refused(own.post("/containers/mine/exec", json!({"Cmd": ["true"], "Privileged": true})), "Privileged");

    // Others' containers, by whatever spelling.
    for name in ["roots", &roots, &roots[..12], "%72oots", "/roots", "%2Froots"] {
        own.refused(own.get(&format!("/containers/{name}/json")), "is not theirs");
        own.refused(
            own.post(&format!("/v1.44/containers/{name}/stop?t=0"), Value::Null),
            "(access rule 1 allows \\\"own\\\")",
        );
    }
    other.refused(other.send("DELETE", "/containers/mine?force=1", &Value::Null, &[]), "is not theirs");
    assert_eq!(own.get("/containers/none-such/json").0, 404);
    assert_eq!((own.names(), other.names()), (vec!["/mine".to_owned()], vec![]));
    own.refused(own.post("/containers/prune", Value::Null), "everybody's");

    // Ways to the host, also in a body without a length.
    for host in [
        json!({"Privileged": true}),
        json!({"Binds": ["/:/host"]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/", "Target": "/h"}]}),
        json!({"PidMode": "host"}),
        json!({"NetworkMode": "container:roots"}),
        json!({"Binds": ["roots-data:/x"]}),
    ] {
        own.refused(own.post("/containers/create", with(host.clone())), "may not POST /containers/create");
        let chunked = own.send("POST", "/containers/create", &with(host), &["-H", "Transfer-Encoding: chunked"]);
        own.refused(chunked, "may not POST /containers/create");
    }
    let mut padded = with(json!({"Privileged": true}));
    padded["Labels"] = json!({"pad": "x".repeat(2 << 20)});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), padded.to_string()).unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let large = own.send(
        "POST",
        "/containers/create",
        &Value::Null,
        &["--data-binary", &format!("@{}", file.path().display())],
    );
    own.refused(large, "Privileged");

    // An image says whose its containers are: that counts for nothing.
    let target = "/images/create?fromSrc=-&repo=claims&changes=LABEL%20berth.owner.uid=12345";
    let archive = std::process::Command::new("tar").args(["c", "-T", "/dev/null"]).output().unwrap().stdout;
    assert_eq!(stack.request("POST", target, "application/x-tar", &archive).status, 200);
    let answer = stack.post("/containers/create?name=claimed", &json!({"Image": "claims", "Cmd": ["x"]}));
    assert_eq!(answer.status, 201, "{}", answer.text());
    own.refused(own.get("/containers/claimed/json"), "is not theirs");
    assert_eq!(own.names(), ["/mine"]);

    // Images are everybody's: none becomes another one.
    own.refused(own.post("/images/create?fromImage=test&tag=latest", Value::Null), "here already");
    own.refused(own.post("/images/create?fromImage=test", Value::Null), "pull one tag");
    own.refused(own.post("/images/create?fromSrc=-&repo=test", Value::Null), "shared by all users");
    own.refused(own.post("/images/test/tag?repo=other", Value::Null), "shared by all users");
    own.refused(own.send("DELETE", "/images/test", &Value::Null, &[]), "shared by all users");
    assert_ne!(own.post("/images/create?fromImage=127.0.0.1:1/new&tag=1", Value::Null).0, 403);

    // Volumes: those one has made.
    own.refused(own.post("/containers/create", with(json!({"Binds": ["data:/d"]}))), "make it first");
    assert_eq!(own.post("/volumes/create", json!({"Name": "data"})).0, 201);
    assert_eq!(
        own.post("/containers/create?name=kept", with(json!({"Binds": ["data:/d"], "NetworkMode": "none"}))).0,
        201
    );
    other.refused(other.post("/containers/create", with(json!({"Binds": ["data:/d"]}))), "volume data is not theirs");
    other.refused(other.post("/volumes/create", json!({"Name": "data"})), "volume data is not theirs");

    // Who may look, looks.
    assert_eq!(looks.names(), ["/claimed", "/kept", "/mine", "/roots"]);
    assert_eq!(looks.get("/containers/mine/json").0, 200);
    looks.refused(looks.post("/containers/mine/stop", Value::Null), "changes something");
    looks.refused(looks.get("/containers/mine/archive?path=/etc/passwd"), "secrets");
    looks.refused(
        looks.post("/containers/mine/exec", json!({"Cmd": ["sh"]})),
        "(access rule 2 allows \\\"read-only\\\")",
    );

    assert_eq!(own.send("DELETE", &format!("/containers/{mine}?force=1"), &Value::Null, &[]).0, 204);
    audited(&stack);
}

fn audited(stack: &Stack) {
    let text = std::fs::read_to_string(stack.data().join("audit.log")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |want: Value| {
        let fits = |line: &&Value| want.as_object().unwrap().iter().all(|(key, value)| line[key] == *value);
        assert!(lines.iter().any(|line| fits(&line)), "{want} is not in\n{text}");
    };
    has(json!({"uid": 12345, "method": "POST", "path": "/containers/create", "decision": "allowed", "status": 201}));
    has(json!({"uid": 12345, "method": "POST", "path": "/containers/create", "decision": "refused", "status": 403}));
    has(json!({"uid": 778, "method": "GET", "path": "/_ping", "decision": "refused", "status": 403}));
    has(
        json!({"uid": 0, "user": "root", "method": "POST", "path": "/containers/roots/start", "decision": "allowed", "status": 204}),
    );
    assert!(lines.iter().all(|line| line["pid"].as_i64() > Some(0) && line["time"].is_string()));
    for secret in ["very-secret", "query-secret"] {
        assert!(!text.contains(secret), "{secret} is in the trail");
    }
}
