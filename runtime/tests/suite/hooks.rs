//! Hooks: where each kind runs, what it is told, and what comes of those that fail.

use std::path::Path;

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours, texts};

/// The kinds whose failure keeps a container from coming to be.
const EARLY: [&str; 4] = ["prestart", "createRuntime", "createContainer", "startContainer"];

fn shell(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
}

fn note(bundle: &Bundle, word: &str) -> Value {
    shell(&format!("echo {word} >> {}", bundle.path("notes").display()))
}

fn notes(bundle: &Bundle) -> String {
    std::fs::read_to_string(bundle.path("notes")).unwrap_or_default()
}

#[test]
fn each_kind_is_told_status_and_pid() {
    let Some(bundle) = Bundle::new() else { return };
    let mut hooks = json!({});
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        hooks[kind] = shell(&format!("cat > {}", bundle.path(kind).display()));
    }
    hooks["startContainer"] = shell("cat > /data/startContainer");
    let bundle = bundle.shell("sleep 1000").set("/hooks", hooks).set("/annotations", json!({"who": "suite"}));
    assert!(bundle.create(&[]));
    let pid = bundle.pid();
    // runc 1.1 runs poststart hooks at the end of create.
    assert!(!bundle.path("poststart").exists() || !is_ours());
    assert!(!bundle.rootfs("data/startContainer").exists());
    bundle.ok(&["start", &bundle.id]);
    let read = |path: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).expect("the hook ran")).expect("json")
    };
    let check = |path: &Path, status: &str, pid: i32| {
        let state = read(path);
        assert_eq!(state["status"], status, "{state}");
        assert_eq!(state["pid"].as_i64().unwrap_or(0), i64::from(pid), "{state}");
        assert_eq!((&state["id"], &state["annotations"]["who"]), (&json!(bundle.id), &json!("suite")));
        assert_eq!(state["bundle"], json!(bundle.path("bundle")));
        assert!(state["ociVersion"].is_string());
    };
    for kind in ["prestart", "createRuntime", "createContainer"] {
        check(&bundle.path(kind), "creating", pid);
    }
    // runc 1.1 tells it the pid that the container knows.
    if is_ours() {
        check(&bundle.rootfs("data/startContainer"), "created", pid);
    }
    check(&bundle.path("poststart"), "running", pid);
    assert!(!bundle.path("poststop").exists());
    bundle.ok(&["delete", "--force", &bundle.id]);
    check(&bundle.path("poststop"), "stopped", 0);
}

#[test]
fn each_kind_runs_in_its_namespaces() {
    let Some(bundle) = Bundle::new() else { return };
    let links = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/net";
    let mut hooks = json!({});
    for kind in ["prestart", "createRuntime", "createContainer", "poststart"] {
        hooks[kind] = shell(&format!("({links}) > {}", bundle.path(kind).display()));
    }
    hooks["startContainer"] = shell(&format!("({links}) > /data/startContainer"));
    let bundle = bundle.shell("sleep 1000").set("/hooks", hooks);
    bundle.start();
    let lines = |pid: &str| {
        let link = |name| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a link").display().to_string();
        format!("{}\n{}\n", link("mnt"), link("net"))
    };
    let (host, container) = (lines("self"), lines(&bundle.pid().to_string()));
    assert_ne!(host, container);
    for (path, expected) in [
        (bundle.path("prestart"), &host),
        (bundle.path("createRuntime"), &host),
        // The container's namespaces, but a path of the host.
        (bundle.path("createContainer"), &container),
        (bundle.rootfs("data/startContainer"), &container),
        (bundle.path("poststart"), &host),
    ] {
        assert_eq!(&std::fs::read_to_string(&path).expect("the hook ran"), expected, "{}", path.display());
    }
}

#[test]
fn the_environment_is_exactly_the_hooks() {
    let Some(bundle) = Bundle::new() else { return };
    let (with, without) = (bundle.path("with"), bundle.path("without"));
    // A program that adds nothing of its own, as a shell does.
    let dump = |path: &Path| {
        json!(["env", "-u", "none", "/usr/bin/dd", "if=/proc/self/environ", format!("of={}", path.display())])
    };
    let hooks = json!({"createRuntime": [
        {"path": "/usr/bin/env", "args": dump(&with), "env": ["Z=last", "A=first", "EMPTY="]},
        {"path": "/usr/bin/env", "args": dump(&without)},
    ]});
    let bundle = bundle.set("/hooks", hooks);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut command = bundle.command(&["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    let output = command.env("OURS", "secret").output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let read = |path: &Path| std::fs::read_to_string(path).expect("the hook ran");
    assert_eq!(read(&with), "Z=last\0A=first\0EMPTY=\0");
    // runc 1.1 gives its own to hooks that have none.
    assert!(read(&without).is_empty() || !is_ours());
}

#[test]
fn hooks_get_no_descriptor_but_stdio() {
    let Some(bundle) = Bundle::new() else { return };
    let path = bundle.path("fds");
    let script = format!("cd /proc/$$/fd; echo * > {}", path.display());
    let bundle = bundle.set("/hooks", json!({"createRuntime": shell(&script)}));
    bundle.write_config();
    let folder = bundle.path("bundle");
    // Two descriptors meant for the container.
    let script = "exec \"$@\" 3</dev/null 4</dev/null";
    let program = bundle.command(&[]).get_program().to_owned();
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(program).arg("--root").arg(bundle.path("state"));
    command.args(["run", "--preserve-fds", "2", "--bundle"]).arg(&folder).arg(&bundle.id);
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&path).expect("the hook ran");
    let numbers: Vec<&str> = text.split_whitespace().collect();
    // The folder that the shell lists is one more.
    assert_eq!(numbers, ["0", "1", "2", "3"], "{text}");
}

#[test]
fn a_failing_early_hook_undoes_everything_and_poststop_runs() {
    for kind in EARLY {
        let Some(bundle) = Bundle::new() else { return };
        let mut hooks = json!({"poststop": note(&bundle, "poststop"), "poststart": note(&bundle, "poststart")});
        hooks[kind] = shell("echo because of $0 >&2; exit 3");
        let bundle = bundle.shell("touch /data/ran").set("/hooks", hooks);
        let error = bundle.run_fails();
        assert!(error.contains("because of sh"), "{kind}: {error}");
        assert!(error.contains(kind) || !is_ours(), "{kind}: {error}");
        assert!(!bundle.rootfs("data/ran").exists(), "{kind}");
        // runc 1.1 runs poststart hooks before those of startContainer.
        assert!(
            notes(&bundle) == "poststop\n" || (!is_ours() && kind == "startContainer"),
            "{kind}: {}",
            notes(&bundle)
        );
    }
}

#[test]
fn a_failing_early_hook_fails_create_or_start() {
    for kind in EARLY {
        let Some(bundle) = Bundle::new() else { return };
        let mut hooks = json!({"poststop": note(&bundle, "poststop")});
        hooks[kind] = shell("exit 3");
        let bundle = bundle.shell("touch /data/ran; sleep 1000").set("/hooks", hooks);
        if kind == "startContainer" {
            assert!(bundle.create(&[]));
            if is_ours() {
                bundle.fails(&["start", &bundle.id]);
            } else {
                bundle.call(&["start", &bundle.id]);
            }
            // The caller goes on to delete it.
            bundle.wait_for("stopped");
            assert_eq!(notes(&bundle), "");
            bundle.ok(&["delete", &bundle.id]);
        } else {
            assert!(!bundle.create(&[]), "{kind}");
        }
        bundle.assert_nothing_left();
        assert!(!bundle.rootfs("data/ran").exists(), "{kind}");
        assert_eq!(notes(&bundle), "poststop\n", "{kind}");
    }
}

#[test]
fn a_failing_poststart_hook_stops_the_container() {
    if !is_ours() {
        println!("skipped: specification 1.3");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let hooks = json!({"poststart": shell("echo no >&2; exit 1"), "poststop": note(&bundle, "poststop")});
    let bundle = bundle.shell("sleep 1000").set("/hooks", hooks);
    assert!(bundle.create(&[]));
    let error = bundle.fails(&["start", &bundle.id]);
    assert!(error.contains("poststart hook /bin/sh: exit status 1, stderr: no"), "{error}");
    bundle.wait_for("stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(notes(&bundle), "poststop\n");
    bundle.run_fails();
    assert_eq!(notes(&bundle), "poststop\npoststop\n");
}

#[test]
fn a_failing_poststop_hook_is_logged_and_the_others_run() {
    let Some(bundle) = Bundle::new() else { return };
    let mut list = shell("echo no >&2; exit 1").as_array().expect("a list").clone();
    list.extend(note(&bundle, "second").as_array().expect("a list").clone());
    let bundle = bundle.shell("sleep 1000").set("/hooks", json!({"poststop": list}));
    bundle.start();
    let output = bundle.call(&["delete", "--force", &bundle.id]);
    assert!(output.status.success(), "{output:?}");
    if is_ours() {
        assert!(texts(&output).1.contains("poststop hook /bin/sh: exit status 1, stderr: no"), "{output:?}");
        // runc 1.1 stops at the first one.
        assert_eq!(notes(&bundle), "second\n");
    }
}

#[test]
fn poststart_runs_when_the_program_does() {
    let Some(bundle) = Bundle::new() else { return };
    let seen = bundle.path("seen");
    let script = format!(
        "read -r state; pid=${{state#*\\\"pid\\\":}}; pid=${{pid%%,*}}; tr '\\0' ' ' < /proc/$pid/cmdline > {}",
        seen.display()
    );
    let bundle =
        bundle.set("/process/args", json!(["sleep", "1000"])).set("/hooks", json!({"poststart": shell(&script)}));
    bundle.start();
    let text = std::fs::read_to_string(&seen).expect("the hook ran");
    assert!(text.trim() == "sleep 1000" || !is_ours(), "after the execve of the program: {text}");
}

#[test]
fn a_timeout_ends_the_hook_and_its_children() {
    if !is_ours() {
        println!("skipped: runc waits for the children, which hold the hook's stderr open");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let pids = bundle.path("pids");
    let script = format!("sleep 1000 & echo $! > {}; wait", pids.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 1}]);
    let bundle = bundle.set("/hooks", json!({"createRuntime": hook}));
    let error = bundle.run_fails();
    assert!(error.contains("no end within 1 s"), "{error}");
    let child = std::fs::read_to_string(&pids).expect("the hook ran").trim().to_owned();
    eventually("the hook's child is gone", || {
        std::fs::read_to_string(format!("/proc/{child}/stat")).map_or(true, |text| text.contains(") Z "))
    });
}

#[test]
fn a_timeout_ends_what_has_a_session_of_its_own() {
    if !is_ours() {
        println!("skipped: runc waits for the children, which hold the hook's stderr open");
        return;
    }
    for kind in ["createRuntime", "createContainer", "poststart"] {
        let Some(bundle) = Bundle::new() else { return };
        let folder = bundle.path("pids");
        std::fs::create_dir(&folder).expect("folder");
        // A child in a new session, and a daemon: a grandchild whose parent is gone, in another new session.
        let note = |name: &str| format!("echo $$ > {}", folder.join(name).display());
        let script = format!(
            "setsid sh -c '{}; exec sleep 1000' & setsid sh -c 'setsid sh -c \"{}; exec sleep 1000\" & exit' & sleep 1000",
            note("session"),
            note("daemon").replace('$', "\\$"),
        );
        let hook =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 1}]);
        // In the host's pid namespace, where no namespace's end ends them.
        let namespaces = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
        let mut hooks = json!({});
        hooks[kind] = hook;
        let bundle = bundle.shell("sleep 1000").set("/linux/namespaces", namespaces).set("/hooks", hooks);
        let error = bundle.run_fails();
        assert!(error.contains("no end within 1 s"), "{kind}: {error}");
        for name in ["session", "daemon"] {
            let text = std::fs::read_to_string(folder.join(name)).expect("it was started");
            let stat = format!("/proc/{}/stat", text.trim());
            eventually(&format!("{kind}: {name} is gone"), || {
                std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "))
            });
        }
    }
}
