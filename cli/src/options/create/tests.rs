//! What flags come to, one by one.

use super::*;
use crate::args::{Command, grammar};
use std::ffi::OsString;

fn of(words: &[&str]) -> Result<Request, String> {
    let line = ["run"].iter().chain(words).map(OsString::from);
    let Ok(grammar::Parsed::Command(cli, _)) = grammar::parse(line) else { panic!("{words:?}") };
    let Command::Run(run) = cli.command else { panic!() };
    let around = Surroundings {
        cwd: Path::new("/home/me"),
        env: &|_| None,
        extra_env: &[("HTTP_PROXY".into(), "http://p".into())],
        version: crate::client::NEWEST,
        console: (24, 80),
    };
    request(&run.container, run.detach, &around).map_err(|e| e.to_string())
}

#[test]
fn every_flag_has_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (env, label) = (file("env", "F=1\n"), file("label", "l=1\n"));
    let env = format!("--env-file {env}");
    let label = format!("--label-file {label}");
    let rate = json!([{"Path": "/dev/x", "Rate": 5}]);
    let table: &[(&str, &str, Value)] = &[
        ("--add-host a:1.2.3.4", "/HostConfig/ExtraHosts", json!(["a:1.2.3.4"])),
        ("--annotation a=b", "/HostConfig/Annotations", json!({"a": "b"})),
        ("-a stdout", "/AttachStdout", json!(true)),
        ("-a stdout", "/AttachStderr", json!(false)),
        ("--blkio-weight 10", "/HostConfig/BlkioWeight", json!(10)),
        ("--blkio-weight-device /dev/x:10", "/HostConfig/BlkioWeightDevice", json!([{"Path": "/dev/x", "Weight": 10}])),
        ("--cap-add chown", "/HostConfig/CapAdd", json!(["CAP_CHOWN"])),
        ("--cap-drop all", "/HostConfig/CapDrop", json!(["ALL"])),
        ("--cgroup-parent /x", "/HostConfig/CgroupParent", json!("/x")),
        ("--cgroupns host", "/HostConfig/CgroupnsMode", json!("host")),
        ("--cidfile f", "/HostConfig/ContainerIDFile", json!("f")),
        ("--cpu-count 1", "/HostConfig/CpuCount", json!(1)),
        ("--cpu-percent 1", "/HostConfig/CpuPercent", json!(1)),
        ("--cpu-period 1", "/HostConfig/CpuPeriod", json!(1)),
        ("--cpu-quota 1", "/HostConfig/CpuQuota", json!(1)),
        ("--cpu-rt-period 1", "/HostConfig/CpuRealtimePeriod", json!(1)),
        ("--cpu-rt-runtime 1", "/HostConfig/CpuRealtimeRuntime", json!(1)),
        ("-c 1", "/HostConfig/CpuShares", json!(1)),
        ("--cpus .5", "/HostConfig/NanoCpus", json!(500_000_000)),
        ("--cpuset-cpus 0-1", "/HostConfig/CpusetCpus", json!("0-1")),
        ("--cpuset-mems 0", "/HostConfig/CpusetMems", json!("0")),
        (
            "--device /dev/x:/dev/y:r",
            "/HostConfig/Devices",
            json!([{"PathOnHost": "/dev/x", "PathInContainer": "/dev/y", "CgroupPermissions": "r"}]),
        ),
        ("--device v.com/c=n", "/HostConfig/DeviceRequests/0/DeviceIDs", json!(["v.com/c=n"])),
        ("--device-cgroup-rule c\u{a0}1:3\u{a0}r", "/HostConfig/DeviceCgroupRules", json!(["c 1:3 r"])),
        ("--device-read-bps /dev/x:5", "/HostConfig/BlkioDeviceReadBps", rate.clone()),
        ("--device-read-iops /dev/x:5", "/HostConfig/BlkioDeviceReadIOps", rate.clone()),
        ("--device-write-bps /dev/x:5", "/HostConfig/BlkioDeviceWriteBps", rate.clone()),
        ("--device-write-iops /dev/x:5", "/HostConfig/BlkioDeviceWriteIOps", rate),
        ("--dns 1.1.1.1", "/HostConfig/Dns", json!(["1.1.1.1"])),
        ("--dns-option x", "/HostConfig/DnsOptions", json!(["x"])),
        ("--dns-opt x", "/HostConfig/DnsOptions", json!(["x"])),
        ("--dns-search x.y", "/HostConfig/DnsSearch", json!(["x.y"])),
        ("--domainname d", "/Domainname", json!("d")),
        ("--entrypoint e", "/Entrypoint", json!(["e"])),
        ("-e A=b", "/Env/0", json!("A=b")),
        (&env, "/Env/0", json!("F=1")),
        ("--expose 80", "/ExposedPorts", json!({"80/tcp": {}})),
        ("--gpus all", "/HostConfig/DeviceRequests/0/Count", json!(-1)),
        ("--group-add g", "/HostConfig/GroupAdd", json!(["g"])),
        ("--health-cmd c", "/Healthcheck/Test", json!(["CMD-SHELL", "c"])),
        ("--health-interval 1s", "/Healthcheck/Interval", json!(1_000_000_000)),
        ("--health-retries 3", "/Healthcheck/Retries", json!(3)),
        ("--health-start-interval 1s", "/Healthcheck/StartInterval", json!(1_000_000_000)),
        ("--health-start-period 1s", "/Healthcheck/StartPeriod", json!(1_000_000_000)),
        ("--health-timeout 1s", "/Healthcheck/Timeout", json!(1_000_000_000)),
        ("-h host", "/Hostname", json!("host")),
        ("--init", "/HostConfig/Init", json!(true)),
        ("-i", "/OpenStdin", json!(true)),
        ("--io-maxbandwidth 1k", "/HostConfig/IOMaximumBandwidth", json!(1024)),
        ("--io-maxiops 1", "/HostConfig/IOMaximumIOps", json!(1)),
        ("--network n --ip 1.2.3.4", "/NetworkingConfig/EndpointsConfig/n/IPAMConfig/IPv4Address", json!("1.2.3.4")),
        ("--network n --ip6 fd00::1", "/NetworkingConfig/EndpointsConfig/n/IPAMConfig/IPv6Address", json!("fd00::1")),
        ("--ipc host", "/HostConfig/IpcMode", json!("host")),
        ("--isolation default", "/HostConfig/Isolation", json!("default")),
        ("-l a=b", "/Labels/a", json!("b")),
        (&label, "/Labels/l", json!("1")),
        ("--link a:b", "/HostConfig/Links", json!(["a:b"])),
        ("--network n --link a:b", "/NetworkingConfig/EndpointsConfig/n/Links", json!(["a:b"])),
        (
            "--network n --link-local-ip 169.254.0.1",
            "/NetworkingConfig/EndpointsConfig/n/IPAMConfig/LinkLocalIPs",
            json!(["169.254.0.1"]),
        ),
        ("--log-driver d", "/HostConfig/LogConfig/Type", json!("d")),
        ("--log-opt a=b", "/HostConfig/LogConfig/Config", json!({"a": "b"})),
        (
            "--network n --mac-address 02:42:ac:11:00:02",
            "/NetworkingConfig/EndpointsConfig/n/MacAddress",
            json!("02:42:ac:11:00:02"),
        ),
        ("-m 1m", "/HostConfig/Memory", json!(1_048_576)),
        ("--memory-reservation 1m", "/HostConfig/MemoryReservation", json!(1_048_576)),
        ("--memory-swap -1", "/HostConfig/MemorySwap", json!(-1)),
        ("--memory-swappiness 5", "/HostConfig/MemorySwappiness", json!(5)),
        ("", "/HostConfig/MemorySwappiness", json!(-1)),
        ("--mount type=tmpfs,dst=/t", "/HostConfig/Mounts", json!([{"Type": "tmpfs", "Target": "/t"}])),
        ("--network host", "/HostConfig/NetworkMode", json!("host")),
        ("--net host", "/HostConfig/NetworkMode", json!("host")),
        ("--network n --network-alias x", "/NetworkingConfig/EndpointsConfig/n/Aliases", json!(["x"])),
        ("--network n --net-alias x", "/NetworkingConfig/EndpointsConfig/n/Aliases", json!(["x"])),
        ("--network name=n,gw-priority=3", "/NetworkingConfig/EndpointsConfig/n/GwPriority", json!(3)),
        ("--no-healthcheck", "/Healthcheck/Test", json!(["NONE"])),
        ("--oom-kill-disable", "/HostConfig/OomKillDisable", json!(true)),
        ("--oom-score-adj 5", "/HostConfig/OomScoreAdj", json!(5)),
        ("--pid host", "/HostConfig/PidMode", json!("host")),
        ("--pids-limit 5", "/HostConfig/PidsLimit", json!(5)),
        ("--privileged", "/HostConfig/Privileged", json!(true)),
        ("-p 81:80", "/HostConfig/PortBindings", json!({"80/tcp": [{"HostIp": "", "HostPort": "81"}]})),
        ("-P", "/HostConfig/PublishAllPorts", json!(true)),
        ("--read-only", "/HostConfig/ReadonlyRootfs", json!(true)),
        ("--restart always", "/HostConfig/RestartPolicy/Name", json!("always")),
        ("--rm", "/HostConfig/AutoRemove", json!(true)),
        ("--runtime r", "/HostConfig/Runtime", json!("r")),
        ("--security-opt label=disable", "/HostConfig/SecurityOpt", json!(["label=disable"])),
        ("--shm-size 1m", "/HostConfig/ShmSize", json!(1_048_576)),
        ("--stop-signal INT", "/StopSignal", json!("INT")),
        ("--stop-timeout 5", "/StopTimeout", json!(5)),
        ("--storage-opt a=b", "/HostConfig/StorageOpt", json!({"a": "b"})),
        ("--sysctl net.x=1", "/HostConfig/Sysctls", json!({"net.x": "1"})),
        ("--tmpfs /t:size=1", "/HostConfig/Tmpfs", json!({"/t": "size=1"})),
        ("-t", "/Tty", json!(true)),
        ("--ulimit nofile=1:2", "/HostConfig/Ulimits", json!([{"Name": "nofile", "Soft": 1, "Hard": 2}])),
        ("-u me", "/User", json!("me")),
        ("--userns host", "/HostConfig/UsernsMode", json!("host")),
        ("--uts host", "/HostConfig/UTSMode", json!("host")),
        ("-v /a:/b:ro", "/HostConfig/Binds", json!(["/a:/b:ro"])),
        ("--volume-driver d", "/HostConfig/VolumeDriver", json!("d")),
        ("--volumes-from c", "/HostConfig/VolumesFrom", json!(["c"])),
        ("-w /w", "/WorkingDir", json!("/w")),
    ];
    for (flags, pointer, want) in table {
        // A blank inside of a value is written as one that does not break.
        let flags: Vec<String> = flags.split(' ').filter(|f| !f.is_empty()).map(|f| f.replace('\u{a0}', " ")).collect();
        let mut words: Vec<&str> = flags.iter().map(String::as_str).collect();
        words.push("img");
        let request = of(&words).unwrap();
        assert_eq!(request.body.pointer(pointer), Some(want), "{flags:?} {pointer}: {}", request.body);
    }
    // What the table does not hold is either the client's own affair or tested beside it.
    let own = [
        "detach",
        "detach-keys",
        "sig-proxy",
        "name",
        "platform",
        "pull",
        "quiet",
        "use-api-socket",
        "disable-content-trust",
        "kernel-memory",
    ];
    let mut root = <crate::args::Cli as clap::CommandFactory>::command();
    root.build();
    let run = root.find_subcommand("run").unwrap();
    let tested = |arg: &clap::Arg| {
        let long = arg.get_long().unwrap_or_default();
        let short = arg.get_short().map(|short| format!("-{short}"));
        let words = || table.iter().flat_map(|(flags, ..)| flags.split(' '));
        own.contains(&long) || words().any(|word| word == format!("--{long}") || Some(word) == short.as_deref())
    };
    let missing: Vec<_> =
        run.get_arguments().filter(|a| !a.is_positional() && !tested(a)).map(clap::Arg::get_id).collect();
    assert!(missing.is_empty(), "flags without a row: {missing:?}");
}

#[test]
fn streams_follow_the_flags() {
    for (words, streams, once) in [
        (&["img"][..], (false, true, true), false),
        (&["-i", "img"], (true, true, true), true),
        (&["-d", "-i", "img"], (false, false, false), false),
        (&["-a", "stdout", "-i", "img"], (false, true, false), false),
        (&["-a", "STDIN", "-a", "stderr", "-i", "img"], (true, false, true), true),
    ] {
        let request = of(words).unwrap();
        assert_eq!((request.stdin, request.stdout, request.stderr), streams, "{words:?}");
        assert_eq!(request.body["StdinOnce"], json!(once), "{words:?}");
    }
}

#[test]
fn flags_become_fields() {
    let request = of(&[
        "-m",
        "64m",
        "--cpus",
        "1.5",
        "-p",
        "8080:80",
        "-v",
        "./a:/b:ro",
        "-v",
        "/anon",
        "--tmpfs",
        "/t:size=1m",
        "--restart",
        "on-failure:3",
        "--entrypoint",
        "",
        "--network",
        "none",
        "-e",
        "A=b",
        "-e",
        "HTTP_PROXY=mine",
        "--security-opt",
        "systempaths=unconfined",
        "--init",
        "--device",
        "/dev/null",
        "--health-cmd",
        "x",
        "img",
        "a",
    ])
    .unwrap();
    let (body, host) = (&request.body, &request.body["HostConfig"]);
    for (value, want) in [
        (&body["Cmd"], json!(["a"])),
        (&body["Entrypoint"], json!([""])),
        (&body["Env"], json!(["A=b", "HTTP_PROXY=mine"])),
        (&body["ExposedPorts"], json!({"80/tcp": {}})),
        (&body["Volumes"], json!({"/anon": {}})),
        (&body["Healthcheck"], json!({"Test": ["CMD-SHELL", "x"]})),
        (&host["Memory"], json!(64 << 20)),
        (&host["NanoCpus"], json!(1_500_000_000)),
        (&host["Binds"], json!(["/home/me/a:/b:ro"])),
        (&host["Tmpfs"], json!({"/t": "size=1m"})),
        (&host["NetworkMode"], json!("none")),
        (&host["RestartPolicy"], json!({"Name": "on-failure", "MaximumRetryCount": 3})),
        (&host["MaskedPaths"], json!([])),
        (&host["Init"], json!(true)),
        (&host["ConsoleSize"], json!([24, 80])),
    ] {
        assert_eq!(*value, want);
    }
    assert!(of(&["img"]).unwrap().body["HostConfig"].get("MaskedPaths").is_none());
}

#[test]
fn contradictions() {
    for (words, message) in [
        (&["--rm", "--restart", "always", "x"][..], "conflicting options: cannot specify both --restart and --rm"),
        (&["--pid", "foo", "x"], "--pid: invalid PID mode"),
        (&["--uts", "foo", "x"], "--uts: invalid UTS mode"),
        (&["--log-driver", "none", "--log-opt", "a=b", "x"], "invalid logging opts for driver none"),
        (&["--no-healthcheck", "--health-cmd", "x", "x"], "--no-healthcheck conflicts with --health-* options"),
        (&["--restart", "on-failure:x", "x"], "invalid restart policy format: maximum retry count must be an integer"),
        (&["-p", "a", "x"], "invalid containerPort: a"),
    ] {
        assert_eq!(of(words).unwrap_err(), message);
    }
}
