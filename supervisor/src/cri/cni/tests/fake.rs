//! Plugins that are scripts: what they are told, in which order, and what becomes of those that misbehave.

use std::process::Command;

use nix::{
    errno::Errno,
    sys::{signal::kill, wait::waitpid},
    unistd::Pid,
};
use proto::kind::ErrorKind;
use serde_json::{Value, json};

use super::*;
use crate::failure::Failure as _;

/// Prints a result with one address.
const RESULT: &str = r#"printf '{"cniVersion":"%s","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:07","sandbox":"%s"}],"ips":[{"address":"10.9.8.7/24","interface":0}],"by":"%s"}' "${VERSION:-1.0.0}" "$CNI_NETNS" "${0##*/}""#;

/// A folder with configurations and plugins.
struct Stage {
    folder: tempfile::TempDir,
    cni: Cni,
}

impl Stage {
    fn new() -> Self {
        Self::with_limit(Duration::from_secs(20))
    }

    fn with_limit(limit: Duration) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["net.d", "bin", "seen"] {
            fs::create_dir(folder.path().join(name)).expect("folder");
        }
        let programs = Programs { folders: vec!["/nonexistent".into(), folder.path().join("bin")], limit };
        let cni = Cni::over(folder.path().join("net.d"), programs);
        Self { folder, cni }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A network named `net` with plugins that do this once they have noted what they are asked. In their folder `seen` is what
    /// they were told: `calls`, and input and environment of each.
    fn network(&self, version: &str, plugins: &[(&str, &str)]) -> &Self {
        let objects: Vec<_> = plugins.iter().map(|(name, _)| json!({ "type": name })).collect();
        self.configure(&json!({ "name": "net", "cniVersion": version, "plugins": objects }));
        for (name, body) in plugins {
            self.plugin(name, body);
        }
        self
    }

    fn configure(&self, list: &Value) {
        write(&self.path("net.d/10-net.conflist"), &list.to_string());
    }

    fn plugin(&self, name: &str, body: &str) {
        let seen = self.path("seen");
        let seen = seen.display();
        let script = format!(
            "#!/bin/sh\nseen={seen}\necho \"{name} $CNI_COMMAND\" >>$seen/calls\n\
             cat >$seen/{name}.$CNI_COMMAND.input\nenv | grep ^CNI_ | sort >$seen/{name}.$CNI_COMMAND.env\n{body}\n"
        );
        testing::executable(&self.path("bin").join(name), script);
    }

    fn seen(&self, name: &str) -> String {
        fs::read_to_string(self.path("seen").join(name)).unwrap_or_default()
    }

    fn calls(&self) -> String {
        self.seen("calls").trim().replace('\n', ", ")
    }

    fn input(&self, name: &str) -> Value {
        serde_json::from_str(&self.seen(&format!("{name}.input"))).expect("input")
    }

    fn namespace(&self, name: &str) -> Namespace {
        Namespace::new(self.path(name))
    }

    /// The error of an ADD.
    fn failed(&self) -> (String, ErrorKind) {
        let namespace = self.namespace("netns");
        let error = run(self.cni.add(&pod("p1", &namespace.0))).expect_err("ADD");
        (chain(&error), error.kind())
    }
}

fn is_there(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // Whoever adopted it will reap it.
    !status.is_empty() && !status.contains(") Z ")
}

fn gone(pid: &str) {
    assert!(!pid.trim().is_empty());
    let begun = Instant::now();
    while is_there(pid) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn plugins_are_called_in_order_and_told_what_concerns_them() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", RESULT), ("b", RESULT), ("c", RESULT)]);
    stage.configure(&json!({ "name": "net", "cniVersion": "1.0.0", "plugins": [
        { "type": "a", "name": "ignored", "mine": 1 },
        { "type": "b", "capabilities": { "portMappings": true, "bandwidth": false } },
        { "type": "c", "capabilities": { "cgroupPath": true, "dns": true } },
    ]}));
    let namespace = stage.namespace("netns");
    let port = cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() };
    let annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned())].into();
    let pod =
        Pod { port_mappings: vec![port], annotations, cgroup_parent: "/kubepods/p1".into(), ..pod("p1", &namespace.0) };
    let attachment = run(stage.cni.add(&pod)).expect("ADD");
    assert_eq!(stage.calls(), "a ADD, b ADD, c ADD");
    assert_eq!(attachment.addresses(), ["10.9.8.7".parse::<IpAddr>().unwrap()]);
    assert_eq!((attachment.mac(), attachment.network()), (Some("02:00:00:00:00:07"), "net"));
    let input = stage.input("a.ADD");
    assert_eq!(input, json!({ "cniVersion": "1.0.0", "name": "net", "type": "a", "mine": 1 }));
    let mappings = json!([{ "containerPort": 80, "hostPort": 8080, "protocol": "tcp" }]);
    let input = stage.input("b.ADD");
    assert_eq!(
        (&input["runtimeConfig"], &input["prevResult"]["by"]),
        (&json!({ "portMappings": mappings }), &"a".into())
    );
    let input = stage.input("c.ADD");
    let path = json!({ "cgroupPath": "/kubepods/p1" });
    assert_eq!((&input["runtimeConfig"], &input["prevResult"]["by"]), (&path, &"b".into()));
    let (netns, bin) = (namespace.0.display(), stage.path("bin"));
    let arguments =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u1";
    let wanted = format!(
        "CNI_ARGS={arguments}\nCNI_COMMAND=ADD\nCNI_CONTAINERID=p1\nCNI_IFNAME=eth0\nCNI_NETNS={netns}\n\
         CNI_PATH=/nonexistent:{}\n",
        bin.display()
    );
    assert_eq!(stage.seen("b.ADD.env"), wanted);

    // The record comes back from the disk, the pod is another's idea of it, and the configuration has gone.
    let kept = serde_json::to_string(&attachment).unwrap();
    assert!(!kept.contains("bandwidth\":{"), "not asked for, not kept: {kept}");
    let attachment: Attachment = serde_json::from_str(&kept).unwrap();
    fs::remove_file(stage.path("net.d/10-net.conflist")).unwrap();
    fs::remove_file(stage.path("seen/calls")).unwrap();
    let bare = super::pod("p1", &namespace.0);
    run(stage.cni.del(&bare, Some(&attachment))).expect("DEL");
    assert_eq!(stage.calls(), "c DEL, b DEL, a DEL");
    for name in ["a.DEL", "b.DEL", "c.DEL"] {
        assert_eq!(stage.input(name)["prevResult"]["by"], "c", "{name}");
    }
    assert_eq!(stage.input("b.DEL")["runtimeConfig"], json!({ "portMappings": mappings }));
    assert_eq!(stage.seen("b.DEL.env"), wanted.replace("=ADD", "=DEL"));
}

#[test]
fn loopback_is_up_without_a_plugin() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", RESULT)]);
    let namespace = stage.namespace("netns");
    run(stage.cni.add(&pod("p1", &namespace.0))).expect("ADD");
    let mut show = Command::new("nsenter");
    show.arg(format!("--net={}", namespace.0.display())).args(["ip", "link", "show", "lo"]);
    let lo = String::from_utf8(show.output().expect("nsenter").stdout).unwrap();
    assert!(lo.contains("LOOPBACK,UP"), "{lo}");
}

#[test]
fn results_for_del_are_for_those_who_know_them() {
    for (version, given) in [("0.3.1", false), ("0.4.0", true)] {
        let stage = Stage::new();
        stage.network(version, &[("a", &format!("VERSION={version}\n{RESULT}"))]);
        let namespace = stage.namespace("netns");
        let pod = pod("p1", &namespace.0);
        let attachment = run(stage.cni.add(&pod)).expect("ADD");
        run(stage.cni.del(&pod, Some(&attachment))).expect("DEL");
        assert_eq!(stage.input("a.DEL").get("prevResult").is_some(), given, "{version}");
    }
}

#[test]
fn a_failed_add_is_undone_by_all() {
    let stage = Stage::new();
    let refuses = r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":11,"msg":"busy","details":"come back"}'; exit 1; }"#;
    stage.network("1.0.0", &[("a", RESULT), ("b", refuses), ("c", RESULT)]);
    let (error, kind) = stage.failed();
    assert_eq!(error, "network net: plugin b ADD: busy (code 11): come back");
    assert_eq!(kind, ErrorKind::Unavailable);
    assert_eq!(stage.calls(), "a ADD, b ADD, c DEL, b DEL, a DEL");
    assert_eq!(stage.input("a.DEL").get("prevResult"), None);
}

#[test]
fn del_goes_on_past_failures_and_tells_the_first() {
    let stage = Stage::new();
    let fails = |word| format!("[ $CNI_COMMAND = ADD ] || {{ echo {word} >&2; exit 3; }}\n{RESULT}");
    stage.network("1.0.0", &[("a", RESULT), ("b", &fails("first")), ("c", &fails("second"))]);
    let namespace = stage.namespace("netns");
    let pod = pod("p1", &namespace.0);
    let attachment = run(stage.cni.add(&pod)).expect("ADD");
    let error = run(stage.cni.del(&pod, Some(&attachment))).expect_err("DEL");
    assert_eq!(chain(&error), "network net: plugin c DEL: failed with exit code 3; it said \"second\"");
    assert!(stage.calls().ends_with("c DEL, b DEL, a DEL"), "{}", stage.calls());
}

#[test]
fn without_an_attachment_the_configuration_of_now_tells_how_to_detach() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", RESULT), ("b", "exit 0")]);
    let namespace = stage.namespace("netns");
    run(stage.cni.del(&pod("p1", &namespace.0), None)).expect("DEL");
    assert_eq!(stage.calls(), "b DEL, a DEL");
    // What no plugin could be told of can go.
    run(stage.cni.del(&Pod { name: "x;y".into(), ..pod("p1", &namespace.0) }, None)).expect("DEL");
    fs::remove_file(stage.path("net.d/10-net.conflist")).unwrap();
    run(stage.cni.del(&pod("p1", &namespace.0), None)).expect("DEL");
    assert_eq!(stage.calls(), "b DEL, a DEL");
}

#[test]
fn after_a_reboot_there_is_no_namespace_to_name() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", RESULT)]);
    let namespace = stage.namespace("netns");
    let pod = pod("p1", &namespace.0);
    let attachment = run(stage.cni.add(&pod)).expect("ADD");
    drop(namespace);
    write(&pod.netns, "");
    run(stage.cni.del(&pod, Some(&attachment))).expect("DEL");
    assert!(stage.seen("a.DEL.env").contains("CNI_NETNS=\n"), "{}", stage.seen("a.DEL.env"));
    let error = run(stage.cni.add(&pod)).expect_err("ADD");
    assert!(chain(&error).contains("is no network namespace"), "{}", chain(&error));
    assert_eq!(stage.calls(), "a ADD, a DEL");
}

#[test]
fn what_hangs_is_killed_with_all_it_started() {
    let stage = Stage::with_limit(Duration::from_millis(700));
    let hangs =
        "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! >$seen/child\necho $$ >$seen/parent\nsleep 1000";
    stage.network("1.0.0", &[("a", hangs)]);
    let (error, kind) = stage.failed();
    assert_eq!(error, "network net: plugin a ADD: did not end within 700ms and was killed");
    assert_eq!(kind, ErrorKind::DeadlineExceeded);
    gone(&stage.seen("parent"));
    gone(&stage.seen("child"));
    assert_eq!(stage.calls(), "a ADD, a DEL");
}

#[test]
fn a_caller_that_goes_away_leaves_no_plugin_behind() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", "sleep 1000 & echo $! >$seen/child; echo $$ >$seen/parent.new; mv $seen/parent.new $seen/parent; sleep 1000")]);
    let namespace = stage.namespace("netns");
    let pod = pod("p1", &namespace.0);
    run(async {
        let add = stage.cni.add(&pod);
        let started = async {
            while stage.seen("parent").is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = add => panic!("it hangs"),
            () = started => {}
        }
        let reaped = async {
            while is_there(&stage.seen("parent")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reaped).await.expect("killed");
    });
    gone(&stage.seen("child"));
}

#[test]
fn what_a_plugin_may_print_has_an_end() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", "echo $$ >$seen/pid\nexec yes")]);
    let (error, kind) = stage.failed();
    assert_eq!(
        (&*error, kind),
        ("network net: plugin a ADD: printed more than 262144 bytes and was killed", ErrorKind::Internal)
    );
    gone(&stage.seen("pid"));
}

#[test]
fn what_is_no_result_is_an_error_and_undone() {
    for (body, words) in [
        ("true", "printed no result: nothing at all"),
        ("echo hello", "printed no result: expected value at line 1 column 1; it said \"hello\""),
        ("echo null", "printed no result: invalid type: null"),
        ("kill -9 $$", "was ended by signal 9"),
        ("echo oh dear >&2; kill -11 $$", "was ended by signal 11; it said \"oh dear\""),
        ("exit 7", "failed with exit code 7"),
        ("echo out; echo err >&2; exit 7", "failed with exit code 7; it said \"out\""),
        ("echo '{}'; echo >&2 'more\nthan one line'; exit 7", "failed with exit code 7; it said \"{}\""),
        ("echo '{}'", "network net: its plugins gave pod p1 no address at eth0"),
        (r#"echo '{"cniVersion":"9.9.9"}'"#, "cniVersion \"9.9.9\" is none that is known here"),
        (r#"echo '{"code":1,"msg":"incompatible CNI versions"}'; exit 1"#, "incompatible CNI versions (code 1)"),
    ] {
        let stage = Stage::new();
        stage.network("1.0.0", &[("a", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{body}"))]);
        let (error, _) = stage.failed();
        assert!(error.contains(words), "{body}: {error}");
        assert_eq!(stage.calls(), "a ADD, a DEL", "{body}");
    }
}

#[test]
fn streams_are_served_at_the_same_time() {
    let stage = Stage::new();
    // A result before the input is read, and more of it than a pipe holds; an error stream that nobody needs all of.
    let noisy = format!("head -c 3000000 /dev/zero | tr '\\0' x >&2 || exit 9\n{RESULT}");
    stage.network("1.0.0", &[("a", &noisy)]);
    let padding = "x".repeat(300_000);
    stage.configure(&json!({ "name": "net", "cniVersion": "1.0.0", "plugins": [{ "type": "a", "padding": padding }, { "type": "b" }] }));
    // It reads nothing at all.
    testing::executable(&stage.path("bin/b"), format!("#!/bin/sh\n{RESULT}"));
    let namespace = stage.namespace("netns");
    run(stage.cni.add(&pod("p1", &namespace.0))).expect("ADD");
    assert_eq!(stage.input("a.ADD")["padding"], padding);
}

#[test]
fn what_a_plugin_leaves_running_is_not_waited_for() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", &format!("sleep 1000 & echo $! >$seen/helper\n{RESULT}"))]);
    let namespace = stage.namespace("netns");
    let begun = Instant::now();
    run(stage.cni.add(&pod("p1", &namespace.0))).expect("ADD");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let helper = stage.seen("helper");
    assert!(is_there(&helper), "it is the plugin's own affair");
    kill(Pid::from_raw(helper.trim().parse().unwrap()), nix::sys::signal::SIGKILL).expect("kill");
}

#[test]
fn what_outlives_a_plugin_that_died_does_not_work_on() {
    let stage = Stage::new();
    stage
        .network("1.0.0", &[("a", "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! >$seen/helper\nkill -9 $$")]);
    stage.failed();
    gone(&stage.seen("helper"));
}

#[test]
fn a_program_that_is_missing_is_named_before_anything_is_done() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", RESULT), ("b", RESULT)]);
    assert_eq!(run(stage.cni.ready()), Ok(()));
    let namespace = stage.namespace("netns");
    let pod = pod("p1", &namespace.0);
    let attachment = run(stage.cni.add(&pod)).expect("ADD");
    fs::remove_file(stage.path("bin/b")).unwrap();
    fs::remove_file(stage.path("seen/calls")).unwrap();
    let missing = format!("there is no such program in /nonexistent or {}", stage.path("bin").display());
    assert_eq!(run(stage.cni.ready()), Err(format!("network net: plugin b: {missing}")));
    let error = run(stage.cni.add(&pod)).expect_err("ADD");
    assert_eq!((error.kind(), &*stage.calls()), (ErrorKind::FailedPrecondition, ""));
    let error = run(stage.cni.del(&pod, Some(&attachment))).expect_err("DEL");
    assert_eq!(chain(&error), format!("network net: plugin b DEL: {missing}"));
    assert_eq!(stage.calls(), "a DEL");
}

#[test]
fn what_is_no_program_is_named() {
    let stage = Stage::new();
    stage.network("1.0.0", &[("a", RESULT)]);
    fs::write(stage.path("bin/a"), "").unwrap();
    let (error, kind) = stage.failed();
    assert!(
        error.starts_with(&format!("network net: plugin a ADD: run {}: ", stage.path("bin/a").display())),
        "{error}"
    );
    assert_eq!(kind, ErrorKind::Internal);
}

#[test]
fn readiness_follows_the_folder() {
    let stage = Stage::new();
    let net_d = stage.path("net.d");
    let nothing = format!("there is no network for pods: {} holds no .conflist, .conf or .json", net_d.display());
    assert_eq!(run(stage.cni.ready()), Err(nothing.clone()));
    let error = run(stage.cni.add(&pod("p1", &net_d))).expect_err("ADD");
    assert_eq!((chain(&error), error.kind()), (nothing, ErrorKind::FailedPrecondition));
    stage.network("1.0.0", &[("a", RESULT)]);
    assert_eq!(run(stage.cni.ready()), Ok(()));
    write(&net_d.join("10-net.conflist"), "{");
    assert!(run(stage.cni.ready()).unwrap_err().contains("10-net.conflist: EOF"));
    fs::remove_dir_all(&net_d).unwrap();
    assert!(run(stage.cni.ready()).unwrap_err().contains("holds no"));
    stage.network("1.0.0", &[("b", RESULT)]);
    assert_eq!(run(stage.cni.ready()), Ok(()));
    assert_eq!(stage.calls(), "", "nobody is asked before 1.1.0");
}

#[test]
fn plugins_say_themselves_whether_they_are_ready() {
    let stage = Stage::new();
    let not_ready = r#"[ -e $seen/ready ] || { echo '{"code":50,"msg":"no agent"}'; exit 1; }"#;
    stage.network("1.1.0", &[("a", "true"), ("b", not_ready)]);
    assert_eq!(run(stage.cni.ready()), Err("network net: plugin b STATUS: no agent (code 50)".to_owned()));
    write(&stage.path("seen/ready"), "");
    assert!(run(stage.cni.ready()).is_err(), "the answer is good for a while");
    assert_eq!(stage.calls(), "a STATUS, b STATUS");
    // A network that has changed is another one.
    stage.configure(&json!({ "name": "net", "cniVersion": "1.1.0", "plugins": [{ "type": "b", "x": 1 }] }));
    assert_eq!(run(stage.cni.ready()), Ok(()));
    assert_eq!(stage.calls(), "a STATUS, b STATUS, b STATUS");
    assert_eq!(stage.input("b.STATUS"), json!({ "cniVersion": "1.1.0", "name": "net", "type": "b", "x": 1 }));
}

#[test]
fn of_several_versions_the_newest_that_all_speak_is_used() {
    let speaks = |versions: &str| {
        format!("[ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\":[{versions}]}}'; exit 0; }}\n{RESULT}")
    };
    let stage = Stage::new();
    stage.network("", &[("a", &speaks(r#""0.4.0","1.0.0","1.1.0","7.0.0""#)), ("b", &speaks(r#""0.4.0","1.0.0""#))]);
    let list = json!({
        "name": "net", "cniVersion": "0.4.0", "cniVersions": ["1.1.0", "1.0.0", "2.0.0"],
        "plugins": [{ "type": "a" }, { "type": "b" }],
    });
    stage.configure(&list);
    let namespace = stage.namespace("netns");
    let pod = pod("p1", &namespace.0);
    run(stage.cni.add(&pod)).expect("ADD");
    run(stage.cni.add(&pod)).expect("ADD");
    assert_eq!(stage.input("b.ADD")["cniVersion"], "1.0.0");
    assert_eq!(stage.calls(), "a VERSION, b VERSION, a ADD, b ADD, a ADD, b ADD", "asked once");

    let stage = Stage::new();
    stage.network(
        "",
        &[("a", &speaks(r#""1.1.0""#)), ("b", r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#)],
    );
    stage.configure(&list);
    let error = run(stage.cni.ready()).unwrap_err();
    assert_eq!(error, "network net allows cniVersion 1.1.0, 1.0.0, 0.4.0: not all of its plugins speak one of them");
}

#[test]
fn one_thing_at_a_time_for_a_pod_and_pods_side_by_side() {
    let stage = Stage::new();
    let alone =
        format!("mkdir $seen/at.$CNI_CONTAINERID || exit 3\nsleep 0.1\nrmdir $seen/at.$CNI_CONTAINERID\n{RESULT}");
    stage.network("1.0.0", &[("a", &alone)]);
    let namespace = stage.namespace("netns");
    let pods = [pod("p1", &namespace.0), pod("p2", &namespace.0)];
    run(async {
        let (one, two, three) =
            tokio::join!(stage.cni.add(&pods[0]), stage.cni.del(&pods[0], None), stage.cni.add(&pods[0]));
        assert!(one.is_ok() && two.is_ok() && three.is_ok(), "{one:?} {two:?} {three:?}");
    });
    // Each waits for the other.
    let together = format!(
        "touch $seen/by.$CNI_CONTAINERID\nwhile [ ! -e $seen/by.p1 -o ! -e $seen/by.p2 ]; do sleep 0.01; done\n{RESULT}"
    );
    stage.plugin("a", &together);
    run(async {
        let (one, two) = tokio::join!(stage.cni.add(&pods[0]), stage.cni.add(&pods[1]));
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    });
    assert!(stage.cni.turns.lock().unwrap().len() <= 2);
}

/// Descriptors are counted in a process that does nothing else.
#[test]
fn neither_descriptors_nor_zombies_are_left() {
    let mut alone = Command::new(std::env::current_exe().expect("this program"));
    alone.args(["--exact", "cri::cni::tests::fake::alone_in_its_process", "--ignored", "--nocapture"]);
    let output = alone.output().expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by neither_descriptors_nor_zombies_are_left, in a process of its own"]
fn alone_in_its_process() {
    let stage = Stage::with_limit(Duration::from_millis(500));
    let namespace = stage.namespace("netns");
    let pod = pod("p1", &namespace.0);
    let descriptors = || fs::read_dir("/proc/self/fd").expect("descriptors").count();
    run(async {
        let mut before = 0;
        for round in 0..4 {
            for body in [RESULT, "exit 1", "kill -9 $$", "exec sleep 1000", "exec yes", "echo x"] {
                stage.network("1.0.0", &[("a", body)]);
                let _ = stage.cni.add(&pod).await;
            }
            if round == 0 {
                before = descriptors();
            }
        }
        assert_eq!(descriptors(), before);
        assert_eq!(waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)), Err(Errno::ECHILD));
    });
}
