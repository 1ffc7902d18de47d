//! daemon.json, flags, `--validate` and SIGHUP, with the real program.

use super::{
    engine,
    stack::{Stack, eventually},
};
use serde_json::{Value, json};
use std::{
    io::Read,
    path::Path,
    process::{Command, Output},
};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_berth-engine"))
}

fn validate(name: &str, text: &str, line: &[&str]) -> (Output, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    let output = program().arg("--validate").arg("--config-file").arg(&path).args(line).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn validate_says_ok_or_what_is_wrong() {
    let (output, said) =
        validate("daemon.json", r#"{"debug": true, "log-opts": {"max-size": "5m"}, "live-restore": true}"#, &[]);
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "configuration OK\n");
    for (text, line, words) in [
        (
            r#"{"debug": true}"#,
            &["--debug"][..],
            "the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true)",
        ),
        (
            r#"{"registry-mirorrs": []}"#,
            &[],
            "the following directives don't match any configuration option: registry-mirorrs (did you mean registry-mirrors?)",
        ),
        (r#"{"userns-remap": "default"}"#, &[], "userns-remap: \"default\" can't be had"),
        (r#"{"debug": 1}"#, &[], "debug: 1 is of the wrong kind"),
        ("{", &[], "EOF while parsing"),
        (
            r#"{"tls": true, "hosts": ["tcp://127.0.0.1:1"], "tlsverify": true, "tlscacert": "/nowhere"}"#,
            &[],
            "read certificate",
        ),
    ] {
        let (output, said) = validate("daemon.json", text, line);
        assert_eq!(output.status.code(), Some(1), "{text}: {said}");
        assert!(
            said.starts_with("berth-engine: ") && said.contains(words) && said.lines().count() == 1,
            "{text}: {said}"
        );
    }
    assert_eq!(program().arg("--no-such-flag").output().unwrap().status.code(), Some(2));
}

#[test]
fn dockers_defaults_reach_containers() {
    let stack = engine!(
        r#"{
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 111, "Hard": 222}}, "default-shm-size": "8M", "labels": ["rack=7"],
        "log-driver": "json-file", "log-opts": {"max-size": "1m", "max-file": "2"}, "no-new-privileges": true, "experimental": true,
        "min-api-version": "1.30", "dns": ["9.9.9.9"]
    }"#
    );
    let id = stack.create("?name=conf", &json!({"Cmd": ["sh", "-c", "ulimit -n; ulimit -Hn; cat /etc/resolv.conf"]}));
    let host = stack.inspect(&id)["HostConfig"].clone();
    assert_eq!(host["ShmSize"], 8 << 20);
    assert_eq!(host["LogConfig"], json!({"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}));
    assert_eq!(host["Ulimits"], json!([{"Name": "nofile", "Soft": 111, "Hard": 222}]));
    stack.start_container(&id);
    assert_eq!(stack.wait(&id, "not-running"), 0);
    let printed = stack.get("/containers/conf/logs?stdout=1").streams().0;
    assert!(printed.starts_with("111\n222\n") && printed.contains("nameserver 9.9.9.9"), "{printed}");
    let info = stack.get("/info");
    assert!(info.head.to_lowercase().contains("docker-experimental: true"), "{}", info.head);
    let info = info.json();
    assert_eq!((&info["Labels"], &info["ExperimentalBuild"]), (&json!(["rack=7"]), &json!(true)));
    assert!(info["SecurityOptions"].as_array().unwrap().contains(&json!("name=no-new-privileges")));
    let old = stack.get("/v1.29/info");
    assert_eq!(
        (old.status, old.message().as_str()),
        (
            400,
            "client version 1.29 is too old. Minimum supported API version is 1.30, please upgrade your client to a newer version"
        )
    );
    assert_eq!(stack.get("/version").json()["MinAPIVersion"], "1.30");
}

fn rewrite(stack: &Stack, text: &str) {
    std::fs::write(stack.root().join("engine.toml"), text).unwrap();
}

#[test]
fn sighup_reads_the_configuration_again() {
    let mut stack = engine!("labels = ['a=1']\nregistry-mirrors = ['https://one.example']\n");
    let (_, mut events) = stack.begin("GET", "/events?filters=%7B%22type%22%3A%5B%22daemon%22%5D%7D");
    rewrite(
        &stack,
        "labels = ['a=2', 'b=3']\ndebug = true\nregistry-mirrors = ['https://two.example']\nshutdown-timeout = 3\n[runtimes.other]\npath = '/bin/false'\n",
    );
    stack.signal_engine(nix::sys::signal::Signal::SIGHUP);
    let mut line = Vec::new();
    while !line.ends_with(b"\n") || !line.contains(&b'{') {
        let mut piece = [0; 4096];
        let length = events.read(&mut piece).unwrap();
        assert!(length > 0, "the stream of events ended");
        line.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let event: Value = serde_json::from_str(text.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!((&event["Type"], &event["Action"]), (&json!("daemon"), &json!("reload")));
    assert_eq!(event["Actor"]["Attributes"]["labels"], "[\"a=2\",\"b=3\"]");
    let info = stack.get("/info").json();
    assert_eq!((&info["Labels"], &info["Debug"]), (&json!(["a=2", "b=3"]), &json!(true)));
    assert_eq!(info["RegistryConfig"]["Mirrors"], json!(["https://two.example"]));
    assert_eq!(info["Runtimes"]["other"], json!({"path": "/bin/false"}));
    // A runtime that came with it is one that containers can ask for, by its name.
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Runtime": "other"}}));
    assert_ne!(stack.post(&format!("/containers/{id}/start"), &Value::Null).status, 204);

    // A bad file changes nothing, and the log says why.
    rewrite(&stack, "labels = ['c']\n");
    stack.signal_engine(nix::sys::signal::Signal::SIGHUP);
    eventually("the log tells of it", || {
        let log = std::fs::read_to_string(stack.root().join("engine.log")).unwrap();
        if log.contains("configuration stays as it was") && log.contains("bad attribute format: c") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(stack.get("/info").json()["Labels"], json!(["a=2", "b=3"]));
    rewrite(&stack, "labels = ['d=4']\n");
    stack.kill_engine();
    stack.start_engine();
    assert_eq!(stack.get("/info").json()["Labels"], json!(["d=4"]));
}

/// `systemd-analyze verify` looks for the programs, too: the units are filled in as an installation does.
#[test]
fn units_are_what_systemd_understands() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(units).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if !name.ends_with(".service") && !name.ends_with(".socket") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_berth-engine")).parent().unwrap().display().to_string();
        let text = text.replace("@BINDIR@", &bin).replace("@SYSCONFDIR@", "/etc");
        assert!(!text.contains('@'), "{name}: {text}");
        if name.ends_with(".service") {
            assert!(text.contains("KillMode=process"), "{name}: shims would be killed with the daemon");
            assert!(text.contains("Type=notify") && text.contains("ExecReload="), "{name}");
        }
        std::fs::write(folder.path().join(&name), text).unwrap();
        names.push(folder.path().join(name));
    }
    assert_eq!(names.len(), 4);
    match Command::new("systemd-analyze").arg("verify").args(["--man=no"]).args(&names).output() {
        Err(_) => eprintln!("skipped in part: there is no systemd-analyze"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("berth-")).collect();
            // Without a running systemd it can't look at the unit files of others.
            let ours: Vec<&&str> = ours
                .iter()
                .filter(|line| !line.contains("is not executable") && !line.contains("Unit berth"))
                .collect();
            assert!(ours.is_empty(), "{said}");
        }
    }
}
