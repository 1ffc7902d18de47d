//! The runtime as an ordinary user: a whole life, id maps of one id and of several, what takes more rights than he has.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours, texts};

/// An ordinary user with a bundle of his own.
struct Rootless {
    bundle: Bundle,
    uid: u32,
    name: String,
}

/// The first user of the host that is a person, who may have a range in /etc/subuid.
fn somebody() -> Option<(String, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let (uid, gid): (u32, u32) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        ((1000..60_000).contains(&uid) && uid == gid).then(|| (fields[0].to_owned(), uid))
    })
}

impl Rootless {
    fn new() -> Option<Self> {
        if !is_ours() {
            println!("skipped: what runc does without cgroups depends on the host");
            return None;
        }
        let bundle = Bundle::new()?;
        let (name, uid) = somebody().unwrap_or(("nobody".to_owned(), 1000));
        for folder in ["state", "run"] {
            std::fs::create_dir(bundle.path(folder)).expect("folder");
        }
        let mut made = Self { bundle, uid, name };
        made.spec();
        Some(made)
    }

    fn program(&self) -> PathBuf {
        self.bundle.program_for_users()
    }

    /// Something run by the user.
    fn user(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).uid(self.uid).gid(self.uid).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", self.bundle.path("run")).current_dir(self.bundle.path("bundle"));
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let state = self.bundle.path("state");
        let root = ["--root", state.to_str().expect("utf-8")];
        self.user(&self.program(), &[&root, arguments].concat())
    }

    fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the runtime runs")
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{arguments:?}\nstdout: {stdout}\nstderr: {stderr}");
        stdout
    }

    /// The configuration that `spec --rootless` writes, with no terminal since there is nobody to serve it.
    fn spec(&mut self) {
        let folder = self.bundle.path("");
        let status = Command::new("chown").arg("-R").arg(format!("{0}:{0}", self.uid)).arg(&folder).status();
        assert!(status.expect("chown").success());
        let _ = std::fs::remove_file(self.bundle.path("bundle/config.json"));
        self.ok(&["spec", "--rootless"]);
        let text = std::fs::read(self.bundle.path("bundle/config.json")).expect("config.json");
        self.bundle.config = serde_json::from_slice(&text).expect("json");
        self.bundle.config["process"]["terminal"] = json!(false);
    }

    fn shell(mut self, script: &str) -> Self {
        self.bundle = self.bundle.shell(script);
        self
    }

    fn set(mut self, pointer: &str, value: Value) -> Self {
        self.bundle = self.bundle.set(pointer, value);
        self
    }

    fn run(&self) -> Output {
        self.bundle.write_config();
        self.call(&["run", &self.bundle.id])
    }

    fn run_ok(&self) -> String {
        let output = self.run();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "stdout: {stdout}\nstderr: {stderr}");
        stdout
    }

    fn run_fails(&self) -> String {
        let output = self.run();
        let (stdout, stderr) = texts(&output);
        assert!(!output.status.success(), "stdout: {stdout}\nstderr: {stderr}");
        self.bundle.assert_nothing_left();
        stderr
    }

    /// `create` and `start`; the container's output goes nowhere.
    fn start(&self) {
        self.bundle.write_config();
        let mut create = self.command(&["create", &self.bundle.id]);
        assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("the runtime runs").success());
        self.ok(&["start", &self.bundle.id]);
    }

    fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", &self.bundle.id])).expect("json");
        state["status"].as_str().expect("a status").to_owned()
    }

    fn pid(&self) -> i64 {
        let state: Value = serde_json::from_str(&self.ok(&["state", &self.bundle.id])).expect("json");
        state["pid"].as_i64().expect("a pid")
    }

    /// Runs the container where the user has a range of ids of his own: for this call alone, in a mount namespace.
    fn run_with_range(&self) -> Option<Output> {
        let helpers = ["newuidmap", "newgidmap"].map(|name| Path::new("/usr/bin").join(name));
        if somebody().is_none() || helpers.iter().any(|path| !path.exists()) {
            println!("skipped: needs an ordinary user in /etc/passwd and newuidmap (package uidmap)");
            return None;
        }
        self.bundle.write_config();
        let range = self.bundle.path("range");
        std::fs::write(&range, format!("{}:200000:65536\n", self.name)).expect("file");
        // Owned by root, or shadow's tools do not trust it.
        std::os::unix::fs::chown(&range, Some(0), Some(0)).expect("chown");
        let script = "for table in subuid subgid; do [ -e /etc/$table ] && mount --bind \"$RANGE\" /etc/$table || exit 77; done; \
                      exec setpriv --reuid \"$ID\" --regid \"$ID\" --clear-groups \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(self.program()).arg("--root").arg(self.bundle.path("state"));
        command.args(["run", &self.bundle.id]).env("RANGE", range).env("ID", self.uid.to_string());
        let output = command.current_dir(self.bundle.path("bundle")).stdin(Stdio::null()).output().expect("unshare");
        if output.status.code() == Some(77) {
            println!("skipped: no /etc/subuid or /etc/subgid to mount on: {}", texts(&output).1);
            return None;
        }
        Some(output)
    }
}

fn maps(own: u32, more: u32) -> Value {
    json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": 200_000, "size": more}])
}

#[test]
fn what_spec_writes_runs_as_it_is() {
    let Some(user) = Rootless::new() else { return };
    let user = user.shell("id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; touch /x 2>&1; true");
    user.bundle.write_config();
    // Without --root: state is where the user's session has its own.
    let create = user.user(&user.program(), &["run", "--keep", &user.bundle.id]).output().expect("run");
    let (stdout, stderr) = texts(&create);
    assert!(create.status.success(), "{stderr}");
    let words: Vec<_> = stdout.split_whitespace().collect();
    let uid = user.uid.to_string();
    assert_eq!(&words[..4], ["0", "0", uid.as_str(), "1"], "{stdout}");
    assert_ne!(words[4], std::fs::read_link("/proc/self/ns/user").expect("link").display().to_string());
    assert!(stdout.contains("Read-only file system"), "{stdout}");
    let state = user.bundle.path("run/berth-runtime").join(&user.bundle.id).join("state.json");
    assert!(state.exists(), "{}", state.display());
    let list = user.user(&user.program(), &["list"]).output().expect("list");
    assert!(texts(&list).0.contains(&user.name) || somebody().is_none(), "{list:?}");
    let delete = user.user(&user.program(), &["delete", &user.bundle.id]).output().expect("delete");
    assert!(delete.status.success() && !state.exists(), "{delete:?}");
}

#[test]
fn a_whole_life() {
    let Some(user) = Rootless::new() else { return };
    let id = user.bundle.id.clone();
    let user = user.shell("sleep 1000");
    user.start();
    assert_eq!(user.status(), "running");
    let inside =
        user.ok(&["exec", &id, "sh", "-c", "id -u; readlink /proc/self/ns/user; readlink /proc/self/ns/mnt; ps"]);
    let link =
        |name| std::fs::read_link(format!("/proc/{}/ns/{name}", user.pid())).expect("link").display().to_string();
    assert!(inside.starts_with(&format!("0\n{}\n{}\n", link("user"), link("mnt"))), "{inside}");
    assert!(inside.contains("sleep 1000"), "{inside}");
    assert_eq!(user.call(&["exec", &id, "sh", "-c", "exit 7"]).status.code(), Some(7));
    let pid_file = user.bundle.path("run/pid");
    // It would keep our pipes open.
    let mut exec =
        user.command(&["exec", "--detach", "--pid-file", pid_file.to_str().expect("utf-8"), &id, "sleep", "1001"]);
    assert!(exec.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("exec").success());
    let text = std::fs::read_to_string(&pid_file).expect("pid file");
    let comm = std::fs::read_to_string(format!("/proc/{text}/comm")).expect("comm");
    assert_eq!(comm.trim(), "sleep");
    assert!(texts(&user.call(&["delete", &id])).1.contains("running"));
    user.ok(&["kill", &id, "KILL"]);
    eventually("stopped", || user.status() == "stopped");
    user.ok(&["delete", &id]);
    assert!(!user.call(&["state", &id]).status.success());
    // Created and never started, and killed while it runs.
    user.bundle.write_config();
    let mut create = user.command(&["create", &id]);
    assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("create").success());
    assert_eq!(user.status(), "created");
    let namespaces = "for name in pid user mnt uts; do readlink /proc/self/ns/$name; done";
    let inside = user.ok(&["exec", &id, "sh", "-c", &format!("id -u; hostname; {namespaces}")]);
    assert_eq!(inside.lines().take(2).collect::<Vec<_>>(), ["0", "berth"], "{inside}");
    let again = user.ok(&["exec", &id, "sh", "-c", namespaces]);
    assert_eq!(inside.lines().skip(2).collect::<Vec<_>>(), again.lines().collect::<Vec<_>>());
    assert_eq!(user.status(), "created");
    user.ok(&["start", &id]);
    assert_eq!(user.ok(&["exec", &id, "sh", "-c", namespaces]), again, "of the same container");
    user.ok(&["delete", "--force", &id]);
    user.start();
    user.ok(&["delete", "--force", &id]);
    user.bundle.assert_nothing_left();
}

#[test]
fn several_ids_are_mapped_by_newuidmap() {
    let Some(user) = Rootless::new() else { return };
    let uid = user.uid;
    let user = user
        .shell("id -u; id -G; cat /proc/self/uid_map /proc/self/gid_map")
        .set("/linux/uidMappings", maps(uid, 100))
        .set("/linux/gidMappings", maps(uid, 50))
        .set("/process/user", json!({"uid": 5, "gid": 6, "additionalGids": [7, 8]}));
    let Some(output) = user.run_with_range() else { return };
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let words: Vec<_> = stdout.split_whitespace().map(|word| word.parse::<u32>().expect("a number")).collect();
    assert_eq!(words, [5, 6, 7, 8, 0, uid, 1, 1, 200_000, 100, 0, uid, 1, 1, 200_000, 50]);
    // More than the range has.
    let user = user.set("/linux/uidMappings", maps(uid, 100_000));
    let Some(output) = user.run_with_range() else { return };
    let (_, stderr) = texts(&output);
    assert!(stderr.contains("linux.uidMappings: newuidmap: ") && stderr.contains("/etc/subuid"), "{stderr}");
    user.bundle.assert_nothing_left();
}

#[test]
fn a_missing_newuidmap_is_named_with_its_package() {
    let Some(user) = Rootless::new() else { return };
    let uid = user.uid;
    // One in the bundle, where the runtime is started, must not be taken for it.
    let trap = user.bundle.path("bundle/newuidmap");
    std::fs::write(&trap, "#!/bin/sh\ntouch taken\n").expect("file");
    std::fs::set_permissions(&trap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let user = user.set("/linux/uidMappings", maps(uid, 100));
    user.bundle.write_config();
    for path in ["/no/such", "", "."] {
        let output = user.command(&["run", &user.bundle.id]).env("PATH", path).output().expect("run");
        let (_, stderr) = texts(&output);
        assert!(stderr.contains("newuidmap, which is not in PATH (Debian: package uidmap)"), "{stderr}");
    }
    assert!(!user.bundle.path("bundle/taken").exists());
    user.bundle.assert_nothing_left();
}

#[test]
fn groups_cannot_be_had_without_a_range() {
    let Some(user) = Rootless::new() else { return };
    let uid = user.uid;
    let user = user.set("/process/user", json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
    let error = user.run_fails();
    assert!(error.contains("process.user.additionalGids: not allowed in this user namespace"), "{error}");
    let user = user.shell("cat /proc/self/setgroups").set("/process/user", json!({"uid": 0, "gid": 0}));
    assert_eq!(user.run_ok(), "deny", "uid {uid}");
}

#[test]
fn what_takes_more_rights_is_said() {
    let Some(user) = Rootless::new() else { return };
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    let mut user = user.set("/linux/namespaces", json!(namespaces));
    for map in ["uidMappings", "gidMappings"] {
        user.bundle.config["linux"].as_object_mut().expect("linux").remove(map);
    }
    let error = user.run_fails();
    assert!(error.contains("this takes root, or a user namespace in linux.namespaces"), "{error}");

    let Some(user) = Rootless::new() else { return };
    let missing = json!({"destination": "/tmp", "type": "bind", "source": "/no/such", "options": ["rbind"]});
    let number = user.bundle.config["mounts"].as_array().expect("mounts").len();
    let error = user.set("/mounts/-", missing).run_fails();
    assert!(error.contains(&format!("mounts[{number}].source /no/such: ENOENT")), "{error}");

    // The root has mounts below, and what lies under them must not be seen.
    let Some(user) = Rootless::new() else { return };
    let root = json!({"destination": "/tmp", "type": "bind", "source": "/", "options": ["bind"]});
    let error = user.set("/mounts/-", root).run_fails();
    assert!(error.contains("mounts[") && error.contains("rbind"), "{error}");

    let Some(user) = Rootless::new() else { return };
    let source = user.bundle.path("bundle");
    let mapped = json!({"destination": "/tmp", "type": "bind", "source": source, "options": ["bind", "idmap"]});
    let error = user.set("/mounts/-", mapped).run_fails();
    assert!(error.contains("map the ids of"), "{error}");
}

#[test]
fn nothing_of_the_hosts_cgroups_can_be_written() {
    let Some(user) = Rootless::new() else { return };
    let mount =
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]});
    let script = "cat /proc/self/mountinfo";
    for with_mount in [false, true] {
        let Some(user) = Rootless::new() else { return };
        let user = if with_mount { user.set("/mounts/-", mount.clone()) } else { user };
        let text = user.shell(script).run_ok();
        let below: Vec<_> = text.lines().filter(|line| line.contains(" /sys")).collect();
        assert!(!below.is_empty(), "{text}");
        for line in below {
            let options = line.split(' ').nth(5).expect("options");
            assert!(options.split(',').any(|option| option == "ro"), "{line}");
        }
    }
    drop(user);
}

#[test]
fn clocks_names_and_sysctls_are_his_own() {
    let Some(user) = Rootless::new() else { return };
    let user = user
        .shell("cat /proc/uptime; hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; cat /proc/self/oom_score_adj")
        .set("/domainname", json!("his.own"))
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set("/linux/namespaces/-", json!({"type": "network"}))
        .set("/linux/timeOffsets", json!({"boottime": {"secs": 1_000_000}}))
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
        .set("/process/oomScoreAdj", json!(900));
    let text = user.run_ok();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].split('.').next().and_then(|uptime| uptime.parse::<u64>().ok()) > Some(1_000_000), "{text}");
    assert_eq!(&lines[1..], ["berth", "his.own", "1", "900"]);
}

#[test]
fn root_of_his_own_user_namespace_is_enough() {
    // As podman calls: a user namespace and a mount namespace are there already, and config.json has no other.
    let Some(mut user) = Rootless::new() else { return };
    let kinds = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    user.bundle.config["linux"]["namespaces"] = json!(kinds);
    for map in ["uidMappings", "gidMappings"] {
        user.bundle.config["linux"].as_object_mut().expect("linux").remove(map);
    }
    let caps = json!(["CAP_KILL"]);
    let user = user
        .set("/process/capabilities", json!({"bounding": caps, "effective": caps, "permitted": caps}))
        .shell("id -u; echo x > /dev/null && stat -c %t:%T /dev/null /dev/zero; cat /proc/self/uid_map");
    user.bundle.write_config();
    let program = user.program();
    let arguments = ["--user", "--map-root-user", "--mount", program.to_str().expect("utf-8"), "run", "--keep"];
    let mut unshare = user.user(Path::new("unshare"), &arguments);
    let output = unshare.arg(&user.bundle.id).env("USER", &user.name).output().expect("unshare");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let words: Vec<_> = stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "1:3", "1:5", "0", &user.uid.to_string(), "1"]);
    let state = user.bundle.path("run/berth-runtime").join(&user.bundle.id).join("state.json");
    assert!(state.exists(), "his state is not in root's folder");
}

#[test]
fn namespaces_of_his_other_container_can_be_joined() {
    let Some(first) = Rootless::new() else { return };
    let first = first.shell("sleep 1000");
    first.start();
    let pid = first.pid();
    let Some(second) = Rootless::new() else { return };
    let join = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    let list =
        json!([{"type": "mount"}, join("pid", "pid"), join("uts", "uts"), join("ipc", "ipc"), join("user", "user")]);
    let mut second = second.shell("ps; readlink /proc/self/ns/user").set("/linux/namespaces", list);
    second.bundle.config.as_object_mut().expect("object").remove("hostname");
    let text = second.run_ok();
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/user")).expect("link");
    assert!(text.contains("sleep 1000") && text.ends_with(&theirs.display().to_string()), "{text}");
    first.ok(&["delete", "--force", &first.bundle.id]);
}
