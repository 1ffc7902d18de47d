//! The command line: spellings, help, versions, what callers parse, descriptors and sockets that are handed over.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours, texts};

/// Runs a command line in a shell that prepares it: `"$@"` is the runtime with its arguments.
fn in_shell(bundle: &Bundle, script: &str, arguments: &[&str]) -> std::process::Output {
    let command = bundle.command(arguments);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    shell.output().expect("a shell")
}

fn utf8(path: &std::path::Path) -> &str {
    path.to_str().expect("utf-8")
}

#[test]
fn versions_are_what_callers_parse() {
    let Some(bundle) = Bundle::new() else { return };
    for flag in ["--version", "-v"] {
        let text = bundle.ok(&[flag]);
        let first = text.lines().next().expect("a line");
        let words: Vec<&str> = first.split_whitespace().collect();
        assert_eq!((words.len(), words[1]), (3, "version"), "{first}");
        for prefix in ["commit: ", "spec: "] {
            assert!(text.lines().any(|line| line.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty())), "{text}");
        }
        // Built together, unless RUNTIME names another one.
        let built_here = std::env::var_os("RUNTIME").is_none_or(|name| name.is_empty());
        if let Some(commit) = option_env!("BERTH_COMMIT").filter(|commit| built_here && !commit.is_empty()) {
            assert!(text.contains(&format!("commit: {commit}\n")), "{text}");
        }
    }
}

#[test]
fn every_command_explains_itself() {
    let Some(bundle) = Bundle::new() else { return };
    let general = bundle.ok(&["--help"]);
    for command in [
        "create",
        "delete",
        "events",
        "exec",
        "kill",
        "list",
        "pause",
        "ps",
        "resume",
        "run",
        "spec",
        "start",
        "state",
        "update",
        "checkpoint",
        "restore",
    ] {
        assert!(general.contains(command), "{general}");
        let text = bundle.ok(&[command, "--help"]);
        assert!(text.contains(command), "{text}");
        assert_eq!(bundle.ok(&[command, "-h"]), text);
    }
    // The flags that callers look for.
    for (command, flags) in [
        (
            "create",
            &["--bundle", "--console-socket", "--pid-file", "--no-pivot", "--no-new-keyring", "--preserve-fds"][..],
        ),
        ("run", &["--detach", "--keep", "--no-subreaper", "--bundle"]),
        ("exec", &["--process", "--cap", "--cgroup", "--ignore-paused", "--additional-gids", "--preserve-fds"]),
        ("delete", &["--force"]),
        ("update", &["--resources", "--memory"]),
    ] {
        let text = bundle.ok(&[command, "--help"]);
        for flag in flags {
            assert!(text.contains(flag), "{command} {flag}: {text}");
        }
    }
}

#[test]
fn features_follow_the_specification() {
    let Some(bundle) = Bundle::new() else { return };
    let features: Value = serde_json::from_str(&bundle.ok(&["features"])).expect("json");
    let words = |pointer: &str| -> Vec<String> {
        let list =
            features.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer}: {features}"));
        list.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    assert_eq!(words("/hooks"), kinds);
    for (pointer, word) in [
        ("/mountOptions", "rro"),
        ("/linux/namespaces", "cgroup"),
        ("/linux/capabilities", "CAP_CHECKPOINT_RESTORE"),
        ("/linux/seccomp/actions", "SCMP_ACT_ERRNO"),
        ("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ"),
        ("/linux/seccomp/archs", if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" }),
    ] {
        assert!(words(pointer).iter().any(|found| found == word), "{pointer}: no {word}");
    }
    for pointer in ["/linux/cgroup/v1", "/linux/cgroup/v2", "/linux/seccomp/enabled", "/linux/apparmor/enabled"] {
        assert_eq!(features.pointer(pointer), Some(&json!(true)), "{pointer}");
    }
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string());
    if !is_ours() {
        return;
    }
    assert_eq!(features["ociVersionMax"], "1.3.0");
    for pointer in [
        "/linux/cgroup/systemd",
        "/linux/cgroup/systemdUser",
        "/linux/mountExtensions/idmap/enabled",
        "/linux/netDevices/enabled",
    ] {
        assert_eq!(features.pointer(pointer), Some(&json!(true)), "{pointer}");
    }
    assert!(words("/linux/memoryPolicy/modes").contains(&"MPOL_WEIGHTED_INTERLEAVE".to_owned()));
    assert!(words("/linux/memoryPolicy/flags").contains(&"MPOL_F_STATIC_NODES".to_owned()));
    for pointer in ["/linux/intelRdt/enabled", "/linux/intelRdt/schemata", "/linux/intelRdt/monitoring"] {
        assert!(features.pointer(pointer).is_some_and(Value::is_boolean), "{pointer}");
    }
    assert!(words("/potentiallyUnsafeConfigAnnotations").contains(&"org.systemd.property.".to_owned()));
    assert!(words("/linux/seccomp/knownFlags").contains(&"SECCOMP_FILTER_FLAG_LOG".to_owned()));
    assert!(!words("/linux/seccomp/supportedFlags").is_empty());
}

#[test]
fn flags_in_every_spelling() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("exec sleep 1000");
    bundle.write_config();
    let (folder, pid_file) = (bundle.path("bundle"), bundle.path("pid"));
    let pid_flag = format!("--pid-file={}", utf8(&pid_file));
    let arguments = ["create", "-bundle", utf8(&folder), &pid_flag, "--no-pivot=false", &bundle.id];
    let status = bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("runs").success());
    assert_eq!(std::fs::read_to_string(&pid_file).expect("a pid file"), bundle.pid().to_string());
    bundle.ok(&["start", &bundle.id]);
    let text =
        bundle.ok(&["exec", "--env", "A=1", "--env=B=2", "-cwd", "/tmp", &bundle.id, "sh", "-c", "echo $A$B; pwd"]);
    assert_eq!(text, "12\n/tmp");
    assert_eq!(bundle.ok(&["exec", "--", &bundle.id, "echo", "-n", "--", "x"]), "-- x");
    if is_ours() {
        // As getopt(3) has it, and with it crun.
        let arguments = ["exec", "-dt", "--console-socket", "/no/such", &bundle.id, "true"];
        let error = bundle.fails(&arguments);
        assert!(error.contains("/no/such"), "{error}");
        assert_eq!(bundle.ok(&["exec", "-eC=3", &bundle.id, "sh", "-c", "echo $C"]), "3");
    }
    bundle.ok(&["delete", "-f", &bundle.id]);
}

#[test]
fn a_pidfd_is_handed_over() {
    if !is_ours() {
        println!("skipped: newer than runc 1.1");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("exec sleep 1000");
    bundle.write_config();
    let path = bundle.path("pidfd.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let receive = || -> (String, i32) {
        let (stream, _) = listener.accept().expect("accept");
        let mut buffer = [0; 100];
        let (length, fds) = sys::fd::recv_fds(&stream, &mut buffer).expect("receive");
        let [pidfd]: [OwnedFd; 1] = fds.try_into().expect("one descriptor");
        let number = std::os::fd::AsRawFd::as_raw_fd(&pidfd.as_fd());
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).expect("fdinfo");
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a pidfd").trim().parse();
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), pid.expect("a pid"))
    };
    assert!(bundle.create(&["--pidfd-socket", utf8(&path)]));
    assert_eq!(receive(), ("standard".to_owned(), bundle.pid()));
    bundle.ok(&["start", &bundle.id]);
    let pid_file = bundle.path("pid");
    let arguments =
        ["exec", "--detach", "--pidfd-socket", utf8(&path), "--pid-file", utf8(&pid_file), &bundle.id, "sleep", "1000"];
    let status = bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("runs").success());
    let pid: i32 = std::fs::read_to_string(&pid_file).expect("pid file").parse().expect("a pid");
    assert_eq!(receive(), ("setns".to_owned(), pid));
    let error = bundle.fails(&["exec", "--pidfd-socket", "/no/such", &bundle.id, "true"]);
    assert!(error.contains("connect to pidfd socket /no/such"), "{error}");
}

#[test]
fn descriptors_are_preserved_after_those_of_socket_activation() {
    let Some(bundle) = Bundle::new() else { return };
    let list = "cat <&3; cat <&4; cd /proc/$$/fd; echo $(ls | sort -n | head -n 6)";
    let bundle = bundle.shell(&format!("{list}; echo $LISTEN_FDS $LISTEN_PID"));
    bundle.write_config();
    std::fs::write(bundle.path("three"), "3\n").expect("write");
    std::fs::write(bundle.path("four"), "4\n").expect("write");
    let open = format!("exec 3<{} 4<{} 5</dev/null", bundle.path("three").display(), bundle.path("four").display());
    let folder = bundle.path("bundle");
    // `exec` keeps the pid, which is the one that the descriptors are for.
    let script = format!("{open}; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"");
    let arguments = ["run", "--preserve-fds", "1", "--bundle", utf8(&folder), &bundle.id];
    let output = in_shell(&bundle, &script, &arguments);
    // The shell's own reading of the folder opens one that is gone when it is told.
    let (text, error) = texts(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[1]), ("3", "4"), "{text} {error}");
    assert!(lines[2].starts_with("0 1 2 3 4") && !lines[2].contains(" 5 6"), "{text}");
    assert_eq!(lines[3], "1 1", "{text}");
    if is_ours() {
        // Meant for another process.
        let script = format!("{open}; export LISTEN_FDS=1 LISTEN_PID=1; exec \"$@\"");
        let arguments = ["run", "--preserve-fds", "2", "--bundle", utf8(&folder), &bundle.id];
        let (text, error) = texts(&in_shell(&bundle, &script, &arguments));
        assert!(text.lines().nth(2).is_some_and(|line| line.starts_with("0 1 2 3 4")), "{text} {error}");
        // One that nobody opened must not be one of the runtime's own, which the log file would be.
        let log = bundle.path("log");
        let arguments = ["--log", utf8(&log), "run", "--preserve-fds", "3", "--bundle", utf8(&folder), &bundle.id];
        let output = in_shell(&bundle, "exec 3</dev/null 4<&- 5<&-; exec \"$@\"", &arguments);
        assert!(texts(&output).1.contains("descriptor 4 is not open"), "{output:?}");
        bundle.assert_nothing_left();
    }
}

#[test]
fn exec_preserves_descriptors() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("exec sleep 1000");
    bundle.start();
    std::fs::write(bundle.path("three"), "3\n").expect("write");
    let script = format!("exec 3<{}; exec \"$@\"", bundle.path("three").display());
    let output = in_shell(&bundle, &script, &["exec", "--preserve-fds", "1", &bundle.id, "sh", "-c", "cat <&3"]);
    assert_eq!(texts(&output).0, "3", "{output:?}");
}

#[test]
fn lists_and_processes_as_table_and_json() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("exec sleep 1000");
    bundle.start();
    let pid = bundle.pid();
    let table = bundle.ok(&["list"]);
    let mut lines = table.lines();
    let head: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    assert_eq!(head, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row: Vec<&str> = lines.next().expect("a row").split_whitespace().collect();
    assert_eq!((row[0], row[1], row[2], row[5]), (bundle.id.as_str(), pid.to_string().as_str(), "running", "root"));
    let list: Value = serde_json::from_str(&bundle.ok(&["list", "-f", "json"])).expect("json");
    assert_eq!((&list[0]["id"], &list[0]["owner"]), (&json!(bundle.id), &json!("root")));
    assert_eq!(bundle.ok(&["list", "--quiet"]).trim(), bundle.id);
    let pids: Vec<i32> = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).expect("json");
    assert_eq!(pids, [pid]);
    if Command::new("ps").arg("-V").output().is_err() {
        println!("skipped: the table needs ps");
        return;
    }
    for options in [&[][..], &["-o", "pid,args"], &["aux"]] {
        let text = bundle.ok(&[&["ps", bundle.id.as_str()], options].concat());
        assert!(text.lines().count() == 2 && text.contains("PID") && text.contains("sleep 1000"), "{text}");
    }
    bundle.fails(&["list", "--format", "yaml"]);
    bundle.fails(&["ps", "--format", "yaml", &bundle.id]);
}

#[test]
fn signals_by_name_and_number() {
    let Some(bundle) = Bundle::new() else { return };
    let signals = ["HUP", "USR1", "USR2", "WINCH"];
    let traps: String = signals.iter().map(|name| format!("trap 'echo {name} >> /data/got' {name}; ")).collect();
    let bundle = bundle.shell(&format!(
        "{traps} trap 'echo RT >> /data/got' 37; sleep 1000 & touch /data/ready; while :; do wait; done"
    ));
    bundle.start();
    eventually("traps are set", || bundle.rootfs("data/ready").exists());
    let got = || std::fs::read_to_string(bundle.rootfs("data/got")).unwrap_or_default();
    let mut expected = String::new();
    let mut sent = vec![("HUP", "HUP"), ("SIGUSR1", "USR1"), ("12", "USR2"), ("winch", "WINCH")];
    if is_ours() {
        sent.extend([("RTMIN+3", "RT"), ("SIGRTMAX-27", "RT"), ("37", "RT")]);
    }
    for (signal, name) in sent {
        bundle.ok(&["kill", &bundle.id, signal]);
        expected.push_str(name);
        expected.push('\n');
        eventually(signal, || got() == expected);
    }
    bundle.fails(&["kill", &bundle.id, "MOON"]);
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
}

#[test]
fn logs_go_where_they_are_sent() {
    let Some(bundle) = Bundle::new() else { return };
    let log = bundle.path("new.log");
    let output = bundle.call(&["--log", utf8(&log), "--debug", "state", "none"]);
    assert_eq!(output.status.code(), Some(1));
    let text = std::fs::read_to_string(&log).expect("the log is made");
    let last = text.lines().last().expect("a line");
    assert!(last.starts_with("time=\"") && last.contains("level=error msg=\"") && last.ends_with('"'), "{last}");
    assert_eq!(texts(&output).1.lines().count(), 1, "and on stderr");
    let error = bundle.fails(&["--log-format", "xml", "state", "none"]);
    assert!(error.contains("xml"), "{error}");
    let error = bundle.fails(&["--log", "/no/such/folder/log", "state", "none"]);
    assert!(error.contains("/no/such/folder/log"), "{error}");
    if !is_ours() {
        return;
    }
    let bundle = bundle.shell("exec sleep 1000");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let json = bundle.path("log.json");
    let globals = ["--log", utf8(&json), "--log-format=json", "--debug"];
    let call = |arguments: &[&str]| {
        let arguments = [&globals[..], arguments].concat();
        let status = bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("runs").success(), "{arguments:?}");
    };
    call(&["create", "--bundle", utf8(&folder), &bundle.id]);
    call(&["start", &bundle.id]);
    let text = std::fs::read_to_string(&json).expect("log");
    let messages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
    assert!(messages.len() >= 3 && messages.iter().all(|line| line["level"] == "debug"), "{text}");
}

#[test]
fn exit_codes_tell_who_failed() {
    let Some(bundle) = Bundle::new() else { return };
    assert_eq!(bundle.call(&["state", "none"]).status.code(), Some(1));
    assert_eq!(bundle.call(&["exec", "none", "true"]).status.code().map(|code| code != 0), Some(true));
    let bundle = bundle.shell("exit 77");
    assert_eq!(bundle.run().status.code(), Some(77));
    // The first process of a pid namespace can be killed from outside only.
    let bundle = bundle.shell("exec sleep 1000");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let arguments = ["run", "--bundle", utf8(&folder), &bundle.id];
    let mut run = bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
    eventually("it runs", || {
        bundle.path("state").join(&bundle.id).join("state.json").exists() && bundle.state()["status"] == "running"
    });
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    assert_eq!(run.wait().expect("wait").code(), Some(128 + 9));
    bundle.assert_nothing_left();
}

#[test]
fn run_keeps_what_it_is_told_to_keep() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("exit 4");
    bundle.write_config();
    let folder = bundle.path("bundle");
    if bundle.call(&["run", "--help"]).stdout.windows(6).all(|word| word != b"--keep") {
        println!("skipped: this runtime has no --keep");
        return;
    }
    let output = bundle.call(&["run", "--keep", "--bundle", utf8(&folder), &bundle.id]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(bundle.state()["status"], "stopped");
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn the_specs_it_writes_run_as_they_are() {
    let Some(bundle) = Bundle::new() else { return };
    let folder = bundle.path("bundle");
    bundle.ok(&["spec", "--bundle", utf8(&folder)]);
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).expect("config")).expect("json");
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert!(config["process"]["capabilities"].get("inheritable").is_none(), "CVE-2022-29162");
    bundle.fails(&["spec", "--bundle", utf8(&folder)]); // what is there is somebody's work
    if !is_ours() {
        println!("skipped: run with a terminal wants one itself");
        return;
    }
    let mut command = bundle.command(&["run", "--bundle", utf8(&folder), &bundle.id]);
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    std::io::Write::write_all(&mut run.stdin.take().expect("stdin"), b"tty; hostname; exit 3\n").expect("write");
    let output = run.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dev/pts/0") && text.contains("berth"), "{text}");
    std::fs::remove_file(folder.join("config.json")).expect("remove");
    bundle.ok(&["spec", "--rootless", "-b", utf8(&folder)]);
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).expect("config")).expect("json");
    assert_eq!(config["linux"]["uidMappings"][0]["size"], 1);
    assert!(config["linux"].get("resources").is_none());
}

#[test]
fn cruns_cgroup_manager_is_understood() {
    if !is_ours() {
        println!("skipped: a flag of crun's");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let mut bundle = bundle.shell("cat /proc/self/cgroup");
    bundle.config["linux"].as_object_mut().expect("object").remove("resources");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let run = |manager: &str| bundle.call(&["--cgroup-manager", manager, "run", "--bundle", utf8(&folder), &bundle.id]);
    let (text, _) = texts(&run("cgroupfs"));
    assert!(text.contains(&format!("/berth-{}", bundle.id)), "{text}");
    let (text, error) = texts(&run("disabled"));
    assert_eq!(text, std::fs::read_to_string("/proc/self/cgroup").expect("cgroup").trim_end(), "{error}");
    let error = texts(&run("moon")).1;
    assert!(error.contains("--cgroup-manager") && error.contains("moon"), "{error}");
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 10}});
    bundle.write_config();
    let output = bundle.call(&["--cgroup-manager", "disabled", "run", "--bundle", utf8(&folder), &bundle.id]);
    assert!(texts(&output).1.contains("linux.resources"), "{output:?}");
    bundle.assert_nothing_left();
}

#[test]
fn an_ordinary_users_root_is_kept_from_tidying() {
    if !is_ours() {
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let run = bundle.path("xdg");
    std::fs::create_dir(&run).expect("folder");
    nix::unistd::chown(&run, Some(1000.into()), Some(1000.into())).expect("chown");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).expect("mode");
    let program = bundle.program_for_users();
    // It fails for want of a config.json that an ordinary user could run, or it works: the folder is made first either way.
    bundle.write_config();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]).arg(&program).env("XDG_RUNTIME_DIR", &run);
    command.args(["run", "--bundle"]).arg(bundle.path("bundle")).arg(&bundle.id);
    let Ok(output) = command.output() else {
        println!("skipped: needs setpriv");
        return;
    };
    let Ok(found) = std::fs::metadata(run.join("berth-runtime")) else {
        println!("skipped: nothing was made: {}", texts(&output).1);
        return;
    };
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o1700, 1000), "{output:?}");
}
