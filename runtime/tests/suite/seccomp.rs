//! System call filters: every action, 32-bit programs, calls newer than the profile, the same answers as runc's, and agents
//! that answer calls.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use sys::Errno;
use sys::notify::{Answer, filter_of, receive, respond};

use super::bpf::{self, Call};
use super::bundle::{Bundle, is_ours, texts};
use super::elf::{Machine, probe};

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

fn default_profile() -> Value {
    serde_json::from_str(include_str!("data/default-profile.json")).expect("json")
}

/// A profile that allows everything but what the rule says about mkdir.
fn about_mkdir(action: &str, more: Value) -> Value {
    let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": action});
    rule.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [rule]})
}

#[test]
fn every_action_does_what_it_says() {
    for (action, more, words) in [
        ("SCMP_ACT_ERRNO", json!({}), "Operation not permitted"),
        ("SCMP_ACT_ERRNO", json!({"errnoRet": 27}), "File too large"),
        ("SCMP_ACT_KILL", json!({}), "status 159"),
        ("SCMP_ACT_KILL_THREAD", json!({}), "status 159"),
        ("SCMP_ACT_KILL_PROCESS", json!({}), "status 159"),
        ("SCMP_ACT_TRAP", json!({}), "status 159"),
        ("SCMP_ACT_TRACE", json!({"errnoRet": 7}), "Function not implemented"), // for want of a tracer
        ("SCMP_ACT_LOG", json!({}), "status 0"),
        ("SCMP_ACT_ALLOW", json!({}), "status 0"),
    ] {
        let Some(bundle) = Bundle::new() else { return };
        let bundle = bundle.shell("mkdir /data/x; echo status $?").set("/linux/seccomp", about_mkdir(action, more));
        let (stdout, stderr) = texts(&bundle.run());
        assert!(format!("{stdout}{stderr}").contains(words), "{action}: {stdout}\n{stderr}");
    }
}

#[test]
fn arguments_are_compared() {
    // umask(2) with an argument that has a bit of 0o070, or is exactly 0o7.
    let test = |op: &str, value: u64, two: u64| json!([{"index": 0, "value": value, "valueTwo": two, "op": op}]);
    let rule = |args: Value| json!({"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 27, "args": args});
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        rule(test("SCMP_CMP_MASKED_EQ", 0o070, 0o020)), rule(test("SCMP_CMP_EQ", 0o7, 0)),
    ]});
    let number = 95; // umask
    for (argument, code) in [(0o22, 27), (0o7, 27), (0o27, 27), (0o20, 27), (0o2, 0), (0o70, 0)] {
        // The answer is the mask before: none.
        let profile = profile.clone();
        let Some(status) = outcome(Machine::X86_64, number, &[argument], profile) else { return };
        let expected = if code == 0 { 256 - 0o22 } else { code };
        assert_eq!(status, expected, "umask({argument:#o})");
    }
}

#[test]
fn a_filter_need_not_allow_more_than_the_program_needs() {
    if !is_ours() {
        return; // others go on for a while after loading it
    }
    for no_new_privs in [true, false] {
        let profile = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [
            {"names": ["execve", "getpid", "exit_group"], "action": "SCMP_ACT_ALLOW"},
        ]});
        let Some(bundle) = probing(Machine::X86_64, 39, &[], profile) else { return };
        let output = bundle.set("/process/noNewPrivileges", json!(no_new_privs)).run();
        assert_eq!(output.status.code(), Some(255), "{no_new_privs}: {output:?}");
    }
}

#[test]
fn the_capability_to_load_a_filter_is_not_kept() {
    for (uid, bounding, expected) in [(0, json!(["CAP_KILL"]), 1 << 5), (1000, json!(["CAP_KILL", "CAP_SYS_ADMIN"]), 0)]
    {
        let Some(bundle) = Bundle::new() else { return };
        let list = json!(["CAP_KILL"]);
        let bundle = bundle
            .shell("grep -E 'CapPrm|CapEff' /proc/self/status")
            .set("/linux/seccomp", about_mkdir("SCMP_ACT_ERRNO", json!({})))
            .set("/process/user", json!({"uid": uid, "gid": 0}))
            .set("/process/noNewPrivileges", json!(false))
            .set("/process/capabilities", json!({"bounding": bounding, "effective": list, "permitted": list}));
        let text = bundle.run_ok();
        for name in ["CapPrm", "CapEff"] {
            assert!(text.contains(&format!("{name}:\t{expected:016x}")), "{uid}: {text}");
        }
    }
}

/// A program that makes one call, under a profile.
fn probing(machine: Machine, number: u32, arguments: &[u32], profile: Value) -> Option<Bundle> {
    if cfg!(not(target_arch = "x86_64")) {
        println!("skipped: the program is made of x86 instructions");
        return None;
    }
    let bundle = Bundle::new()?;
    let path = bundle.rootfs("data/probe");
    testing::executable(&path, probe(machine, number, arguments));
    Some(bundle.set("/process/args", json!(["/data/probe"])).set("/linux/seccomp", profile))
}

/// Runs a program that makes one call, under a profile: the exit code is the errno, or 256 less the result.
fn outcome(machine: Machine, number: u32, arguments: &[u32], profile: Value) -> Option<i32> {
    let output = probing(machine, number, arguments, profile)?.run();
    Some(output.status.code().unwrap_or_else(|| panic!("{output:?}")))
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    for (machine, number, expected) in [
        (Machine::X86_64, 1000, Errno::ENOSYS),
        (Machine::X86_64, 250, Errno::EPERM), // keyctl
        (Machine::X86, 1000, Errno::ENOSYS),
        (Machine::X86, 288, Errno::EPERM), // keyctl
    ] {
        let mut profile = default_profile();
        profile["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
        let Some(status) = outcome(machine, number, &[9999], profile) else { return };
        assert_eq!(status, expected as i32, "{machine:?} {number:#x}");
    }
}

#[test]
fn programs_of_32_bits_run_under_the_default_profile() {
    const SOCKET: u32 = 359;
    const SOCKETCALL: u32 = 102;
    let run = |number, arguments: &[u32]| outcome(Machine::X86, number, arguments, default_profile());
    let Some(pid) = run(20, &[]) else { return };
    assert_eq!(pid, 255, "getpid says 1");
    assert_eq!(run(SOCKET, &[1, 1, 0]), Some(253), "a unix socket gets number 3");
    assert_eq!(run(SOCKET, &[38, 5, 0]), Some(Errno::EPERM as i32), "AF_ALG");
    // By socketcall, with arguments in memory: connect on no socket goes through to the kernel.
    assert_eq!(run(SOCKETCALL, &[3, probe::WORDS, u32::MAX, 0, 0]), Some(Errno::EBADF as i32));
    if is_ours() {
        // libseccomp would let every family through this door.
        assert_eq!(run(SOCKETCALL, &[1, probe::WORDS, 38, 5, 0]), Some(Errno::EPERM as i32), "AF_ALG");
    }
}

#[test]
fn an_architecture_that_is_not_named_is_killed() {
    for (machine, number) in [(Machine::X86, 20), (Machine::X86_64, 0x4000_0027)] {
        // getpid, once by interrupt and once as x32 numbers it.
        let mut profile = default_profile();
        profile["architectures"] = json!(["SCMP_ARCH_X86_64"]);
        let Some(status) = outcome(machine, number, &[], profile) else { return };
        assert_eq!(status, 128 + 31, "{machine:?}");
    }
}

/// The default profile as the kernel got it from us and from runc, over all numbers of all architectures.
#[test]
fn the_default_profile_gives_the_answers_that_runc_gives() {
    const RUNC: &str = "/usr/sbin/runc";
    if !is_ours() || !Path::new(RUNC).exists() {
        println!("skipped: compares berth-runtime with {RUNC}");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000").set("/linux/seccomp", default_profile());
    bundle.start();
    let ours = filter_of(nix::unistd::Pid::from_raw(bundle.pid())).expect("our filter");
    let runc = |arguments: &[&str]| {
        let mut command = Command::new(RUNC);
        command.arg("--root").arg(bundle.path("runc")).args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let id = format!("{}-runc", bundle.id);
    let mut config = bundle.config.clone();
    config["linux"]["cgroupsPath"] = json!(format!("/berth-{id}"));
    std::fs::write(bundle.path("bundle/config.json"), config.to_string()).expect("config.json");
    let folder = bundle.path("bundle");
    let pid_file = bundle.path("runc.pid");
    let run = [
        "run",
        "--detach",
        "--bundle",
        folder.to_str().expect("utf-8"),
        "--pid-file",
        pid_file.to_str().expect("utf-8"),
        &id,
    ];
    let started = runc(&run).status().expect("runc runs").success();
    let theirs = started.then(|| {
        let pid = std::fs::read_to_string(&pid_file).expect("pid file").parse().expect("a pid");
        filter_of(nix::unistd::Pid::from_raw(pid))
    });
    let deleted = runc(&["delete", "--force", &id]).status();
    assert!(deleted.expect("runc runs").success(), "runc delete");
    let Some(theirs) = theirs else {
        println!("skipped: runc does not start a container here");
        return;
    };
    let theirs = theirs.expect("their filter");
    println!("instructions: {} ours, {} theirs", ours.len(), theirs.len());
    for (name, number) in [("read", 0), ("write", 1), ("getpid", 39), ("futex", 202), ("openat", 257)] {
        let call = Call { number, arch: X86_64, arguments: [0; 6] };
        println!("{name}: {} steps ours, {} theirs", bpf::run(&ours, &call).1, bpf::run(&theirs, &call).1);
    }
    let arguments = [0, 1, 8, 38, 39, 40, 0x20008, 0x0200_0000, 0x1_0000_0000, 0xffff_ffff, u64::MAX];
    let mut differences = Vec::new();
    for (arch, marker) in [(X86_64, 0), (X86_64, 0x4000_0000), (X86, 0)] {
        // uretprobe and what is beyond 448 Debian's libseccomp does not know; socketcall has a test of its own.
        let apart = if arch == X86 { 102 } else { 335 };
        for number in (0..449).chain([1000]).filter(|number| *number != apart) {
            for argument in arguments {
                // The registers of x32 are whole for the kernel and for us, and halves for libseccomp.
                if marker != 0 && argument > u64::from(u32::MAX) {
                    continue;
                }
                let call = Call { number: number | marker, arch, arguments: [argument, 0, 0, 0, 0, 0] };
                let (mine, other) = (bpf::run(&ours, &call).0, bpf::run(&theirs, &call).0);
                if mine != other {
                    differences.push(format!("{call:x?}: {mine:#x}, runc {other:#x}"));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// An agent that answers mkdir: what it was told about each process, in order.
struct Agent {
    path: PathBuf,
    thread: JoinHandle<Vec<Value>>,
}

impl Agent {
    /// Waits for as many processes as there are answers, and answers one call of each.
    fn new(bundle: &Bundle, answers: Vec<Answer>) -> Self {
        let path = bundle.path("agent");
        let listener = UnixListener::bind(&path).expect("agent");
        let thread = std::thread::spawn(move || {
            let serve = |answer: &Answer| {
                let (mut connection, _) = listener.accept().expect("a connection");
                let mut buffer = vec![0; 65536];
                let (count, fds) = sys::fd::recv_fds(&connection, &mut buffer).expect("a message");
                buffer.truncate(count);
                if is_ours() {
                    // As the specification has it; runc closes when it ends.
                    assert_eq!(connection.read_to_end(&mut buffer).expect("the end"), 0, "one message, then closed");
                }
                let [descriptor]: [OwnedFd; 1] = fds.try_into().expect("one descriptor");
                let call = receive(descriptor.as_fd()).expect("a call");
                respond(descriptor.as_fd(), call.id, *answer).expect("answer");
                serde_json::from_slice(&buffer).expect("json")
            };
            answers.iter().map(serve).collect()
        });
        Self { path, thread }
    }

    fn profile(&self) -> Value {
        let mut profile = about_mkdir("SCMP_ACT_NOTIFY", json!({}));
        profile["listenerPath"] = json!(self.path);
        profile["listenerMetadata"] = json!("what for");
        profile
    }

    fn told(self) -> Vec<Value> {
        self.thread.join().expect("the agent")
    }
}

#[test]
fn an_agent_answers_calls_of_container_and_exec() {
    let Some(bundle) = Bundle::new() else { return };
    let agent = Agent::new(&bundle, vec![Answer::Error(Errno::EFBIG), Answer::Continue]);
    let bundle = bundle
        .shell("mkdir /data/first 2> /data/said; sleep 1000")
        .set("/linux/seccomp", agent.profile())
        .set("/annotations", json!({"a": "b"}));
    bundle.start();
    let pid = bundle.pid();
    super::bundle::eventually("the answer", || {
        std::fs::read_to_string(bundle.rootfs("data/said")).is_ok_and(|text| text.contains("File too large"))
    });
    bundle.ok(&["exec", &bundle.id, "mkdir", "/data/second"]);
    assert!(bundle.rootfs("data/second").is_dir() && !bundle.rootfs("data/first").exists());
    let told = agent.told();
    for told in &told {
        assert_eq!(told["fds"], json!(["seccompFd"]), "{told}");
        assert_eq!(told["metadata"], "what for", "{told}");
        assert_eq!(told["state"]["id"], bundle.id.as_str(), "{told}");
        assert_eq!(told["state"]["annotations"]["a"], "b", "{told}");
        assert!(told["ociVersion"].is_string() && told["state"]["bundle"].is_string(), "{told}");
    }
    assert_eq!((&told[0]["pid"], &told[0]["state"]["pid"]), (&json!(pid), &json!(pid)), "{told:?}");
    assert_ne!(told[1]["pid"], json!(pid), "{told:?}");
    assert_eq!((&told[1]["state"]["pid"], &told[1]["state"]["status"]), (&json!(pid), &json!("running")), "{told:?}");
    if is_ours() {
        assert_eq!(told[0]["state"]["status"], "created", "the filter is loaded as late as possible");
    }
}

#[test]
fn an_agent_answers_calls_of_run_with_and_without_no_new_privs() {
    for no_new_privs in [true, false] {
        let Some(bundle) = Bundle::new() else { return };
        let agent = Agent::new(&bundle, vec![Answer::Error(Errno::EFBIG)]);
        let mut profile = agent.profile();
        if is_ours() {
            // Which runc 1.1 does not know.
            profile["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_LOG"]);
        }
        let bundle = bundle
            .shell("mkdir /data/x; ls /proc/$$/fd; grep -E 'CapEff|Seccomp:' /proc/self/status")
            .set("/linux/seccomp", profile)
            .set("/process/noNewPrivileges", json!(no_new_privs));
        let (stdout, stderr) = texts(&bundle.run());
        assert!(stderr.contains("File too large"), "{stdout}\n{stderr}");
        assert!(stdout.starts_with("0\n1\n2\n") && stdout.contains("CapEff:\t00000000280000e3"), "{stdout}");
        assert_eq!(agent.told().len(), 1);
    }
}

#[test]
fn a_missing_agent_is_an_early_error() {
    let Some(bundle) = Bundle::new() else { return };
    let mut profile = about_mkdir("SCMP_ACT_NOTIFY", json!({}));
    profile["listenerPath"] = json!(bundle.path("nobody"));
    let bundle = bundle.shell("touch /data/ran").set("/linux/seccomp", profile);
    let error = bundle.run_fails();
    assert!(!bundle.rootfs("data/ran").exists());
    if is_ours() {
        assert!(error.contains("connect to linux.seccomp.listenerPath") && error.contains("ENOENT"), "{error}");
        assert!(!bundle.path("state").join(&bundle.id).exists());
    }
}

#[test]
fn an_agent_that_left_before_start_is_an_error_too() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return; // runc talks to the agent in `create`
    }
    let listener = UnixListener::bind(bundle.path("agent")).expect("agent");
    let mut profile = about_mkdir("SCMP_ACT_NOTIFY", json!({}));
    profile["listenerPath"] = json!(bundle.path("agent"));
    let bundle = bundle.shell("sleep 1000").set("/linux/seccomp", profile);
    assert!(bundle.create(&[]), "create");
    drop(listener);
    let error = bundle.fails(&["start", &bundle.id]);
    assert!(error.contains("listenerPath") && error.contains("ECONNREFUSED"), "{error}");
    bundle.wait_for("stopped");
}

#[test]
fn unknown_names_are_told_when_debugging_only() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let mut profile = about_mkdir("SCMP_ACT_ERRNO", json!({}));
    profile["syscalls"][0]["names"] = json!(["no_such_call", "mkdir", "nor_this"]);
    let bundle = bundle.set("/linux/seccomp", profile);
    assert_eq!(texts(&bundle.run()), (String::new(), String::new()));
    let folder = bundle.path("bundle");
    let output = bundle.call(&["--debug", "run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    assert!(texts(&output).1.contains("no such system calls here: no_such_call nor_this"), "{output:?}");
}
