//! Log drivers from end to end: what `--log-driver` and `--log-opt` say is what the shim writes and `logs` reads.

use integration_tests::{Stack, eventually};
use std::{fs, os::unix::net::UnixDatagram, time::Duration};

/// `count` numbers after each beginning, a line each; without the last line feed, as the harness gives output.
fn numbers(beginnings: impl Iterator<Item = u32>, count: u32) -> String {
    let lines: Vec<_> = beginnings.flat_map(|begin| begin + 1..=begin + count).map(|n| n.to_string()).collect();
    lines.join("\n")
}

#[test]
fn local_and_packed_logs_are_read_back() {
    let stack = Stack::with_busybox();
    for (name, driver, file) in [("binary", "local", "container.log"), ("lines", "json-file", "json.log")] {
        let options = ["--log-driver", driver, "--log-opt", "max-size=100k", "--log-opt", "compress=true"];
        let script = "for i in 1 2 3 4; do seq ${i}0001 ${i}2000; sleep 0.2; done; echo oops >&2";
        let args = ["run", "--name", name, "--network", "none"];
        let command = ["--log-opt", "max-file=20", "busybox", "sh", "-c", script];
        let attached = stack.berth(args.into_iter().chain(options).chain(command)).success();
        let all = numbers((1..=4).map(|i| i * 10_000), 2000);
        assert_eq!(attached.stdout(), all);
        let logs = stack.berth(["logs", name]).success();
        assert!(logs.stdout() == all, "{driver}: {} bytes of {}", logs.stdout().len(), all.len());
        assert_eq!(logs.stderr(), "oops");
        let tail = stack.berth(["logs", "--tail", "3000", name]).success();
        assert!(all.ends_with(&tail.stdout()) && tail.stdout().lines().count() == 2999, "{driver}");
        let id = stack.inspect(name)["Id"].as_str().expect("id").to_owned();
        let folder = stack.data_root().join("engine/containers").join(&id);
        let list =
            || fs::read_dir(&folder).expect("folder").flatten().map(|e| e.file_name().into_string().expect("name"));
        assert!(list().any(|name| name.ends_with(file)), "{:?}", list().collect::<Vec<_>>());
        assert!(list().any(|name| name.ends_with(".1.gz")), "{:?}", list().collect::<Vec<_>>());
        assert!(!list().any(|name| name.ends_with(".tmp")));
        stack.berth(["rm", name]).success();
        assert!(!folder.exists());
    }
}

#[test]
fn syslog_has_the_tag_and_the_journal_must_be_there() {
    let stack = Stack::with_busybox();
    let path = stack.path().join("log");
    let daemon = UnixDatagram::bind(&path).expect("bind");
    daemon.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let address = format!("syslog-address=unixgram://{}", path.display());
    let args = ["run", "--name", "sys", "--network", "none", "--log-driver", "syslog", "--log-opt", &address];
    let options = ["--log-opt", "tag={{.ImageName}}/{{.Name}}", "--log-opt", "syslog-facility=local0"];
    let outcome = stack.berth(args.into_iter().chain(options).chain(["busybox", "echo", "hello"])).success();
    assert_eq!(outcome.stdout(), "hello");
    let mut buffer = [0; 4096];
    let count = daemon.recv(&mut buffer).expect("a message");
    let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
    assert!(
        message.starts_with("<134>") && message.contains(" busybox/sys[") && message.ends_with("]: hello\n"),
        "{message}"
    );
    stack.berth(["logs", "sys"]).expect_code(1).expect_error("configured logging driver does not support reading");
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        let outcome = stack.berth(["run", "--rm", "--network", "none", "--log-driver", "journald", "busybox", "true"]);
        outcome.expect_code(125).expect_error("/run/systemd/journal/socket");
    }
    stack
        .berth(["run", "--rm", "--log-opt", "max-sizes=1", "busybox", "true"])
        .expect_code(125)
        .expect_error("max-sizes");
}

#[test]
fn a_local_log_is_followed_over_its_turns() {
    let stack = Stack::with_busybox();
    let script = "for i in $(seq 1 40); do seq ${i}001 ${i}100; sleep 0.05; done";
    let args =
        ["run", "-d", "--name", "follow", "--network", "none", "--log-driver", "local", "--log-opt", "max-size=20k"];
    stack.berth(args.into_iter().chain(["--log-opt", "max-file=50", "busybox", "sh", "-c", script])).success();
    let followed = stack.berth(["logs", "-f", "follow"]).success();
    let all = numbers((1..=40).map(|i| i * 1000), 100);
    assert!(followed.stdout() == all, "{} bytes of {}", followed.stdout().len(), all.len());
    eventually("its end", || (stack.inspect("follow")["State"]["Running"] == false).then_some(()));
}
