//! Namespaces that containers share, looked at from inside.

use crate::stack::Stack;
use serde_json::{Value, json};

fn host(cmd: &str, host: Value) -> Value {
    json!({"Cmd": ["sh", "-c", cmd], "HostConfig": host})
}

fn output(stack: &Stack, body: &Value) -> String {
    let id = stack.create("", body);
    stack.start_container(&id);
    let code = stack.wait(&id, "not-running");
    let (out, err) = stack.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).streams();
    assert_eq!(code, 0, "{out}{err}");
    out
}

#[test]
fn processes_and_memory_of_another_container() {
    let Some(stack) = Stack::start() else { return };
    let script = "echo shared > /dev/shm/file; exec sleep 1000";
    stack.create("?name=donor", &host(script, json!({"IpcMode": "shareable", "ShmSize": 1_048_576})));
    // By name, which becomes the id: a later name is nobody's business.
    let id = stack.create(
        "?name=guest",
        &host(
            "cat /dev/shm/file; kill -0 1 && readlink /proc/1/exe",
            json!({"PidMode": "container:donor", "IpcMode": "container:donor"}),
        ),
    );
    let donor = stack.inspect("donor")["Id"].as_str().unwrap().to_owned();
    let shown = stack.inspect(&id)["HostConfig"].clone();
    assert_eq!(shown["PidMode"], format!("container:{donor}"));
    assert_eq!(shown["IpcMode"], format!("container:{donor}"));
    let refused = stack.post("/containers/guest/start", &Value::Null);
    assert_eq!(refused.status, 500);
    assert!(refused.message().contains(&format!("container {donor} is not running")), "{}", refused.text());
    stack.start_container("donor");
    let guest = host(
        "while ! test -e /dev/shm/file; do usleep 1000; done; cat /dev/shm/file; readlink /proc/1/exe; df /dev/shm | tail -1",
        json!({"PidMode": "container:donor", "IpcMode": "container:donor"}),
    );
    let seen = output(&stack, &guest);
    assert!(seen.starts_with("shared\n/bin/busybox\n"), "{seen}");
    assert!(seen.contains(" 1024 "), "the donor's size: {seen}");
    // The donor ends, its processes' namespace with it: so does whoever is in there.
    stack.create("?name=lodger", &host("exec sleep 1000", json!({"PidMode": "container:donor"})));
    stack.start_container("lodger");
    assert_eq!(stack.post("/containers/donor/kill", &Value::Null).status, 204);
    assert_eq!(stack.wait("lodger", "not-running"), 137);
    // And starts anew: a restart of the guest finds the new one.
    stack.start_container("donor");
    assert_eq!(stack.post("/containers/lodger/start", &Value::Null).status, 204);
    assert_eq!(stack.inspect("lodger")["State"]["Running"], true);
}

#[test]
fn what_is_not_shared_cannot_be_joined() {
    let Some(stack) = Stack::start() else { return };
    let sleep = |mode: &str| host("exec sleep 1000", json!({"IpcMode": mode}));
    for mode in ["private", "none"] {
        stack.create(&format!("?name={mode}"), &sleep(mode));
        stack.start_container(mode);
        stack.create(&format!("?name=join-{mode}"), &sleep(&format!("container:{mode}")));
        let refused = stack.post(&format!("/containers/join-{mode}/start"), &Value::Null);
        assert_eq!(refused.status, 500);
        let hint = "non-shareable IPC (hint: use IpcMode:shareable for the donor container)";
        assert!(refused.message().contains(hint), "{}", refused.text());
    }
    let mut missing = sleep("container:nobody");
    missing["Image"] = "test".into();
    let refused = stack.post("/containers/create", &missing);
    assert_eq!((refused.status, refused.message().as_str()), (400, "No such container: nobody"));
    // Without a /dev/shm of any kind, and with the host's.
    assert!(output(&stack, &host("test -e /dev/shm || echo none", json!({"IpcMode": "none"}))).contains("none"));
    let ours = std::fs::read_link("/proc/self/ns/ipc").unwrap().display().to_string();
    assert_eq!(output(&stack, &host("readlink /proc/self/ns/ipc", json!({"IpcMode": "host"}))).trim(), ours);
    let ours = std::fs::read_link("/proc/self/ns/uts").unwrap().display().to_string();
    assert_eq!(output(&stack, &host("readlink /proc/self/ns/uts", json!({"UTSMode": "host"}))).trim(), ours);
    let ours = std::fs::read_link("/proc/self/ns/cgroup").unwrap().display().to_string();
    assert_eq!(output(&stack, &host("readlink /proc/self/ns/cgroup", json!({"CgroupnsMode": "host"}))).trim(), ours);
    assert_ne!(output(&stack, &host("readlink /proc/self/ns/cgroup", json!({"CgroupnsMode": "private"}))).trim(), ours);
    let ours = std::fs::read_link("/proc/self/ns/user").unwrap().display().to_string();
    assert_eq!(output(&stack, &host("readlink /proc/self/ns/user", json!({"UsernsMode": "host"}))).trim(), ours);
}

#[test]
fn a_new_engine_starts_donors_before_their_guests() {
    let Some(mut stack) = Stack::start() else { return };
    let always = json!({"Name": "always"});
    // The guest's name sorts and its creation comes in either order.
    stack.create("?name=donor", &host("exec sleep 1000", json!({"RestartPolicy": always, "IpcMode": "shareable"})));
    let joins = json!({"RestartPolicy": always, "PidMode": "container:donor", "IpcMode": "container:donor"});
    stack.create("?name=guest", &host("exec sleep 1000", joins));
    stack.start_container("donor");
    stack.start_container("guest");
    stack.kill_engine();
    // As after a power cut: nothing runs any more, and nobody was told.
    stack.kill_supervisor();
    stack.kill_containers();
    stack.start_engine();
    for name in ["donor", "guest"] {
        crate::stack::eventually("it runs again", || match stack.inspect(name)["State"]["Status"].as_str() {
            Some("running") => Ok(()),
            other => Err(format!("{name}: {other:?} {}", stack.inspect(name)["State"]["Error"])),
        });
    }
}
