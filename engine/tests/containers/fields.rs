//! Every field of HostConfig and Config: either honoured, which shows in inspect and inside of a container (or, where this
//! kernel cannot show it, in what the runtime is told), or refused by name. The tables are complete: a test counts them.

use crate::stack::{Answer, Stack};
use serde_json::{Value, json};

/// What becomes of a field.
enum Fate {
    /// Its value is shown by inspect, and this script prints this inside of the container.
    Inside(&'static str, &'static str),
    /// The value is shown by inspect, and stands in the runtime's config.json at this place.
    Spec(&'static str, Value),
    /// It is shown by inspect. What it does is shown by the test of this name.
    Shown(&'static str),
    /// This kernel cannot: the answer to create warns with these words, and the value is dropped.
    Warns(&'static str),
    /// Refused with this status and these words.
    Refused(u16, &'static str),
}
use Fate::{Inside, Refused, Shown, Spec, Warns};

fn v1(path: &str) -> bool {
    std::path::Path::new("/sys/fs/cgroup").join(path).exists()
}

fn v2() -> bool {
    v1("cgroup.controllers")
}

/// The 69 fields of API 1.51's HostConfig.
fn host_fields() -> Vec<(&'static str, Value, Fate)> {
    let disk = disk();
    let throttle = json!([{"Path": disk, "Rate": 1_048_576}]);
    let throttled = |key: &'static str| match v2() || v1("blkio/blkio.throttle.read_bps_device") {
        true => Spec(key, json!(1_048_576)),
        false => Warns("Block"),
    };
    vec![
        (
            "Binds",
            json!(["/etc:/mnt:ro"]),
            Inside("test -e /mnt/hostname && touch /mnt/x 2>/dev/null || echo ro", "ro"),
        ),
        ("ContainerIDFile", json!("/tmp/id"), Shown("clients write it: inspect only")),
        ("LogConfig", json!({"Type": "local", "Config": {"max-size": "1m"}}), Shown("logs of the local driver")),
        ("NetworkMode", json!("none"), Inside("ls /sys/class/net | tr '\\n' ' '", "lo ")),
        (
            "PortBindings",
            json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "0"}]}),
            Shown("networks::tests::traffic"),
        ),
        (
            "RestartPolicy",
            json!({"Name": "on-failure", "MaximumRetryCount": 2}),
            Shown("restart::tests::who_starts_again"),
        ),
        ("AutoRemove", json!(true), Shown("attached_before_the_start_nothing_is_missed_and_input_ends_alone")),
        ("VolumeDriver", json!("local"), Shown("volumes_that_are_mounted_themselves")),
        ("VolumesFrom", json!(["field-other"]), Inside("cat /named/file", "named")),
        ("ConsoleSize", json!([24, 80]), Shown("consoleSize is for terminals: a_terminal_has_the_size_asked_for")),
        ("Annotations", json!({"a": "b"}), Spec("/annotations/a", json!("b"))),
        (
            "CapAdd",
            json!(["NET_ADMIN"]),
            Inside("grep CapEff /proc/self/status | tr -d '\\t'", "CapEff:00000000a80435fb"),
        ),
        ("CapDrop", json!(["ALL"]), Inside("grep CapEff /proc/self/status | tr -d '\\t'", "CapEff:0000000000000000")),
        ("CgroupnsMode", json!("private"), Inside("tail -1 /proc/self/cgroup | tr -d '0-9'", "::/")),
        ("Dns", json!(["10.9.8.7"]), Inside("grep nameserver /etc/resolv.conf", "nameserver 10.9.8.7")),
        ("DnsOptions", json!(["ndots:5"]), Inside("grep options /etc/resolv.conf", "options ndots:5")),
        ("DnsSearch", json!(["a.example"]), Inside("grep search /etc/resolv.conf", "search a.example")),
        ("ExtraHosts", json!(["db:10.1.2.3"]), Inside("grep 10.1.2.3 /etc/hosts | tr '\\t' ' '", "10.1.2.3 db")),
        ("GroupAdd", json!(["staff"]), Inside("id -G", "0 50")),
        ("IpcMode", json!("none"), Inside("test -e /dev/shm || echo none", "none")),
        ("Cgroup", json!("x"), Refused(400, "HostConfig.Cgroup")),
        ("Links", json!(["field-other:alias"]), Shown("links_are_hosts_and_variables")),
        ("OomScoreAdj", json!(123), Inside("cat /proc/self/oom_score_adj", "123")),
        ("PidMode", json!("host"), Inside("test $$ != 1 && echo not 1", "not 1")),
        (
            "Privileged",
            json!(true),
            Inside("test -e /dev/kmsg && grep Seccomp: /proc/self/status | tr -d '\\t'", "Seccomp:0"),
        ),
        ("PublishAllPorts", json!(true), Shown("ports::tests")),
        ("ReadonlyRootfs", json!(true), Inside("touch /x 2>/dev/null || echo ro", "ro")),
        (
            "SecurityOpt",
            json!(["no-new-privileges"]),
            Inside("grep NoNewPrivs /proc/self/status | tr -d '\\t'", "NoNewPrivs:1"),
        ),
        ("StorageOpt", json!({"size": "1G"}), Refused(400, "--storage-opt is supported only for overlay over xfs")),
        ("Tmpfs", json!({"/t": "size=64k"}), Inside("df /t | tail -1 | grep -c ' 64 '", "1")),
        ("UTSMode", json!("host"), Shown("what_is_not_shared_cannot_be_joined")),
        ("UsernsMode", json!("host"), Shown("what_is_not_shared_cannot_be_joined")),
        ("ShmSize", json!(1_048_576), Inside("df /dev/shm | tail -1 | grep -c ' 1024 '", "1")),
        ("Sysctls", json!({"kernel.msgmax": "8193"}), Inside("cat /proc/sys/kernel/msgmax", "8193")),
        ("Runtime", json!("nope"), Refused(400, "unknown or invalid runtime name: nope")),
        ("Isolation", json!("hyperv"), Refused(400, "linux only supports 'default'")),
        // Resources.
        ("CpuShares", json!(512), Spec("/linux/resources/cpu/shares", json!(512))),
        ("Memory", json!(67_108_864), Spec("/linux/resources/memory/limit", json!(67_108_864))),
        ("NanoCpus", json!(500_000_000), Spec("/linux/resources/cpu/quota", json!(50_000))),
        ("CgroupParent", json!("/berth-fields"), Inside("grep -q /berth-fields/ /proc/self/cgroup && echo x", "x")),
        (
            "BlkioWeight",
            json!(300),
            match v2() || v1("blkio/blkio.weight") || v1("blkio/blkio.bfq.weight") {
                true => Spec("/linux/resources/blockIO/weight", json!(300)),
                false => Warns(
                    "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
                ),
            },
        ),
        (
            "BlkioWeightDevice",
            json!([{"Path": disk, "Weight": 300}]),
            match v2() || v1("blkio/blkio.weight_device") || v1("blkio/blkio.bfq.weight_device") {
                true => Spec("/linux/resources/blockIO/weightDevice/0/weight", json!(300)),
                false => Warns("Weight-device discarded."),
            },
        ),
        ("BlkioDeviceReadBps", throttle.clone(), throttled("/linux/resources/blockIO/throttleReadBpsDevice/0/rate")),
        ("BlkioDeviceWriteBps", throttle.clone(), throttled("/linux/resources/blockIO/throttleWriteBpsDevice/0/rate")),
        ("BlkioDeviceReadIOps", throttle.clone(), throttled("/linux/resources/blockIO/throttleReadIOPSDevice/0/rate")),
        ("BlkioDeviceWriteIOps", throttle, throttled("/linux/resources/blockIO/throttleWriteIOPSDevice/0/rate")),
        ("CpuPeriod", json!(50_000), Spec("/linux/resources/cpu/period", json!(50_000))),
        ("CpuQuota", json!(25_000), Spec("/linux/resources/cpu/quota", json!(25_000))),
        (
            "CpuRealtimePeriod",
            json!(1_000_000),
            match v1("cpu/cpu.rt_runtime_us") {
                true => Spec("/linux/resources/cpu/realtimePeriod", json!(1_000_000)),
                false => Refused(400, "Your kernel does not support CPU real-time scheduler"),
            },
        ),
        ("CpuRealtimeRuntime", json!(-5), Refused(400, "cpu real-time period and runtime must not be negative")),
        (
            "CpusetCpus",
            json!("0"),
            Inside("grep Cpus_allowed_list /proc/self/status | tr -d '\\t'", "Cpus_allowed_list:0"),
        ),
        ("CpusetMems", json!("0"), Spec("/linux/resources/cpu/mems", json!("0"))),
        (
            "Devices",
            json!([{"PathOnHost": "/dev/null", "PathInContainer": "/dev/mine", "CgroupPermissions": "rw"}]),
            Inside("test -c /dev/mine && echo x > /dev/mine && echo there", "there"),
        ),
        ("DeviceCgroupRules", json!(["c 42:* rwm"]), Spec("/linux/resources/devices/12/major", json!(42))),
        (
            "DeviceRequests",
            json!([{"Driver": "cdi", "DeviceIDs": ["x"]}]),
            Refused(400, "invalid CDI device name \"x\""),
        ),
        ("MemoryReservation", json!(33_554_432), Spec("/linux/resources/memory/reservation", json!(33_554_432))),
        ("MemorySwap", json!(-1), Spec("/linux/resources/memory/swap", json!(-1))),
        (
            "MemorySwappiness",
            json!(40),
            if v2() {
                Warns("Memory swappiness discarded")
            } else {
                Spec("/linux/resources/memory/swappiness", json!(40))
            },
        ),
        (
            "OomKillDisable",
            json!(true),
            if v2() {
                Warns("OomKillDisable discarded")
            } else {
                Spec("/linux/resources/memory/disableOOMKiller", json!(true))
            },
        ),
        ("PidsLimit", json!(77), Spec("/linux/resources/pids/limit", json!(77))),
        (
            "Ulimits",
            json!([{"Name": "nofile", "Soft": 123, "Hard": 456}]),
            Inside("ulimit -Sn; ulimit -Hn", "123\n456"),
        ),
        ("CpuCount", json!(1), Shown("of Windows: shown, as by dockerd on Linux")),
        ("CpuPercent", json!(5), Shown("of Windows: shown, as by dockerd on Linux")),
        ("IOMaximumIOps", json!(5), Refused(400, "linux does not support configuration of maximum IOPs")),
        ("IOMaximumBandwidth", json!(5), Refused(400, "linux does not support configuration of maximum bandwidth")),
        ("Mounts", json!([{"Type": "tmpfs", "Target": "/m"}]), Inside("mount | grep -c ' /m '", "1")),
        ("MaskedPaths", json!(["/proc/uptime"]), Inside("cat /proc/uptime; mount | grep -c /proc/uptime", "1")),
        ("ReadonlyPaths", json!(["/bin"]), Inside("touch /bin/x 2>/dev/null || echo ro", "ro")),
        ("Init", json!(true), Inside("cat /proc/1/comm", "docker-init")),
    ]
}

/// The 25 fields of Config, and MacAddress of clients before 1.52.
fn config_fields() -> Vec<(&'static str, Value, Fate)> {
    vec![
        ("Hostname", json!("named"), Inside("cat /etc/hostname; cat /proc/sys/kernel/hostname", "named\nnamed")),
        ("Domainname", json!("a.example"), Inside("cat /proc/sys/kernel/domainname", "a.example")),
        ("User", json!("www:staff"), Inside("id -u; id -g", "33\n50")),
        ("AttachStdin", json!(true), Shown("attached_before_the_start_nothing_is_missed_and_input_ends_alone")),
        ("AttachStdout", json!(true), Shown("clients read it: inspect only")),
        ("AttachStderr", json!(true), Shown("clients read it: inspect only")),
        ("ExposedPorts", json!({"81/tcp": {}}), Shown("links_are_hosts_and_variables")),
        ("Tty", json!(true), Inside("tty", "/dev/pts/0\r")),
        ("OpenStdin", json!(true), Shown("attached_before_the_start_nothing_is_missed_and_input_ends_alone")),
        ("StdinOnce", json!(true), Shown("attached_before_the_start_nothing_is_missed_and_input_ends_alone")),
        ("Env", json!(["OWN=value", "FROM=mine"]), Inside("echo $OWN $FROM", "value mine")),
        ("Cmd", json!(["sh", "-c", "echo command"]), Inside("", "command")),
        ("Healthcheck", json!({"Test": ["NONE"]}), Shown("health")),
        ("ArgsEscaped", json!(true), Shown("of Windows: shown, as by dockerd on Linux")),
        ("Image", json!("test"), Shown("a_life_from_create_to_remove")),
        ("Volumes", json!({"/data": {}}), Inside("mount | grep -c ' /data '", "1")),
        ("WorkingDir", json!("/made/here"), Inside("pwd", "/made/here")),
        ("Entrypoint", json!(["echo", "entry"]), Inside("x", "entry sh -c x")),
        ("NetworkDisabled", json!(true), Inside("ls /sys/class/net | tr '\\n' ' '", "lo ")),
        ("OnBuild", json!(["RUN x"]), Shown("of builds: shown")),
        ("Labels", json!({"l": "v"}), Shown("list filters")),
        ("StopSignal", json!("SIGUSR1"), Shown("what_runs_is_protected_and_stops_with_grace")),
        ("StopTimeout", json!(3), Shown("validate::stop_timeout")),
        ("Shell", json!(["/bin/sh", "-c"]), Shown("of builds and health checks: shown")),
        ("MacAddress", json!("02:42:ac:11:00:99"), Inside("cat /sys/class/net/eth0/address", "02:42:ac:11:00:99")),
    ]
}

/// A block device of this machine.
fn disk() -> String {
    let names = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let paths = names.map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()));
    paths.into_iter().find(|path| std::path::Path::new(path).exists()).unwrap_or_else(|| "/dev/loop0".into())
}

fn create(stack: &Stack, config: &Value) -> Answer {
    let mut body = config.clone();
    if body["Image"].is_null() {
        body["Image"] = "test".into();
    }
    stack.post("/containers/create", &body)
}

/// What a container printed, and how it ended.
fn run(stack: &Stack, id: &str, tty: bool) -> (i64, String) {
    let started = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(started.status, 204, "{}", started.text());
    let code = stack.wait(id, "not-running");
    let log = stack.get(&format!("/containers/{id}/logs?stdout=1&stderr=1"));
    let out = if tty {
        log.text()
    } else {
        let (out, err) = log.streams();
        out + &err
    };
    (code, out.trim_end_matches('\n').to_owned())
}

/// The specification that the runtime is given when the container starts.
fn spec_of(stack: &Stack, id: &str) -> Value {
    let started = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(started.status, 204, "{}", started.text());
    let path = stack.run().join(format!("supervisor/tasks/berth/{id}/config.json"));
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn check(stack: &Stack, key: &str, value: &Value, fate: &Fate, of_host: bool) {
    let script = match fate {
        Inside(script, _) => script,
        _ => "exec sleep 1000",
    };
    let mut config = json!({"Cmd": ["sh", "-c", script], "HostConfig": {}});
    let place = if of_host { &mut config["HostConfig"] } else { &mut config };
    place[key] = value.clone();
    // What some fields need beside them.
    match key {
        "MemorySwap" => config["HostConfig"]["Memory"] = 67_108_864.into(),
        "VolumeDriver" => config["HostConfig"]["Binds"] = json!(["driven:/d"]),
        _ => {}
    }
    let answer = create(stack, &config);
    if let Refused(status, words) = fate {
        assert_eq!(answer.status, *status, "{key}: {}", answer.text());
        assert!(answer.message().contains(words), "{key}: {}", answer.text());
        return;
    }
    assert_eq!(answer.status, 201, "{key}: {}", answer.text());
    let (created, id) = (answer.json(), answer.json()["Id"].as_str().unwrap().to_owned());
    let warnings = created["Warnings"].to_string();
    let shown = stack.inspect(&id);
    let shown = if of_host { &shown["HostConfig"][key] } else { &shown["Config"][key] };
    if let Warns(words) = fate {
        assert!(warnings.contains(words), "{key}: {warnings}");
        assert_ne!(shown, value, "{key}: dropped, but shown");
    } else {
        let shown = match key {
            // Names, in dockerd's form; a command that was given is kept.
            "Links" => json!(["field-other:alias"]),
            "VolumesFrom" => json!(["field-other"]),
            "Env" => json!(shown.as_array().unwrap().iter().take(2).collect::<Vec<_>>()),
            "Volumes" => json!({"/data": shown["/data"]}),
            _ => shown.clone(),
        };
        assert_eq!(&shown, value, "{key} in inspect");
        assert!(matches!(key, "OomKillDisable") || created["Warnings"] == json!([]), "{key}: {warnings}");
    }
    match fate {
        Inside(_, expected) => {
            let (_, out) = run(stack, &id, key == "Tty");
            assert_eq!(out, *expected, "{key}");
        }
        Spec(place, expected) => {
            let spec = spec_of(stack, &id);
            let found = spec.pointer(place).unwrap_or_else(|| panic!("{key}: nothing at {place} of {spec}"));
            assert_eq!(found, expected, "{key} at {place}");
        }
        _ => {}
    }
    if let Shown(test) = fate {
        assert!(!test.is_empty(), "{key}: what it does is shown nowhere");
    }
    assert_eq!(stack.delete(&format!("/containers/{id}?force=1&v=1")).status, 204, "{key}");
}

fn other(stack: &Stack) {
    let config = json!({"Cmd": ["sh", "-c", "echo named > /named/file; exec sleep 1000"], "ExposedPorts": {"80/tcp": {}},
        "Env": ["WORD=there"], "HostConfig": {"Binds": ["field-named:/named"]}});
    stack.create("?name=field-other", &config);
    stack.start_container("field-other");
}

#[test]
fn every_field_of_the_host_side() {
    let fields = host_fields();
    let names: std::collections::BTreeSet<_> = fields.iter().map(|(key, ..)| *key).collect();
    assert_eq!((fields.len(), names.len()), (69, 69), "a field is missing or comes twice");
    let Some(stack) = Stack::start() else { return };
    other(&stack);
    for (key, value, fate) in &fields {
        check(&stack, key, value, fate, true);
    }
    // A parent that somebody names stays, as docker leaves it: more of theirs may be to come.
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for root in hierarchies.chain(["/sys/fs/cgroup".into()]) {
        std::fs::remove_dir(root.join("berth-fields")).ok();
    }
}

#[test]
fn every_field_of_the_container_side() {
    let fields = config_fields();
    let names: std::collections::BTreeSet<_> = fields.iter().map(|(key, ..)| *key).collect();
    assert_eq!((fields.len(), names.len()), (25, 25), "a field is missing or comes twice");
    let Some(stack) = Stack::start() else { return };
    for (key, value, fate) in &fields {
        check(&stack, key, value, fate, false);
    }
}

#[test]
fn unset_fields_are_shown_as_docker_shows_them() {
    let Some(stack) = Stack::start() else { return };
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Ulimits": [], "NoSuchField": 1}}));
    let shown = stack.inspect(&id)["HostConfig"].clone();
    for (key, value) in [
        ("Binds", json!(null)),
        ("VolumesFrom", json!(null)),
        ("CapAdd", json!(null)),
        ("Dns", json!(null)),
        ("ExtraHosts", json!(null)),
        ("Links", json!(null)),
        ("SecurityOpt", json!(null)),
        ("PortBindings", json!(null)),
        ("Devices", json!(null)),
        ("DeviceRequests", json!(null)),
        ("BlkioWeightDevice", json!(null)),
        ("Ulimits", json!([])),
        ("BlkioWeight", json!(0)),
        ("PidsLimit", json!(null)),
        ("MemorySwappiness", json!(null)),
        ("Isolation", json!("")),
        ("UsernsMode", json!("")),
        ("Cgroup", json!("")),
        ("IpcMode", json!("private")),
        ("ShmSize", json!(67_108_864)),
        ("CgroupnsMode", json!(if v2() { "private" } else { "host" })),
        ("ConsoleSize", json!([0, 0])),
        ("OomKillDisable", if v2() { json!(null) } else { json!(false) }),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
    assert!(shown["MaskedPaths"].as_array().unwrap().contains(&json!("/proc/kcore")), "{}", shown["MaskedPaths"]);
    assert!(shown["ReadonlyPaths"].as_array().unwrap().contains(&json!("/proc/sys")));
    for absent in ["NoSuchField", "Init", "Mounts", "Tmpfs", "Sysctls", "StorageOpt", "Annotations", "KernelMemory"] {
        assert!(shown.get(absent).is_none(), "{absent}");
    }
    assert!(stack.inspect(&id)["Config"]["Env"].is_array(), "the image has some");
    let open = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Privileged": true}}));
    assert!(stack.inspect(&open)["HostConfig"]["MaskedPaths"].is_null());
    let capitals = create(&stack, &json!({"Cmd": ["true"], "HostConfig": {"privileged": true}}));
    assert!(capitals.status == 400 && capitals.message().contains("did you mean Privileged"), "{}", capitals.text());
}

#[test]
fn links_are_hosts_and_variables() {
    let Some(stack) = Stack::start() else { return };
    other(&stack);
    let script =
        "grep -c ' *alias .* field-other' /etc/hosts; env | grep ^ALIAS_ ; while test -e /wait; do usleep 1000; done";
    let id = stack
        .create("?name=linked", &json!({"Cmd": ["sh", "-c", script], "HostConfig": {"Links": ["field-other:alias"]}}));
    assert_eq!(stack.inspect(&id)["HostConfig"]["Links"], json!(["/field-other:/linked/alias"]));
    let (_, out) = run(&stack, &id, false);
    let ip = stack.inspect("field-other")["NetworkSettings"]["IPAddress"].as_str().unwrap().to_owned();
    assert!(out.starts_with("1\n"), "{out}");
    for line in [
        format!("ALIAS_PORT=tcp://{ip}:80"),
        format!("ALIAS_PORT_80_TCP_ADDR={ip}"),
        "ALIAS_NAME=/linked/alias".into(),
        "ALIAS_ENV_WORD=there".into(),
    ] {
        assert!(out.lines().any(|have| have == line), "{line} in {out}");
    }
    // One that changes its address is found again.
    let id =
        stack.create("?name=watches", &json!({"Cmd": ["sleep", "1000"], "HostConfig": {"Links": ["field-other"]}}));
    stack.start_container(&id);
    assert_eq!(stack.post("/containers/field-other/kill", &Value::Null).status, 204);
    stack.wait("field-other", "not-running");
    let taker = stack.create("", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container(&taker);
    stack.start_container("field-other");
    let now = stack.inspect("field-other")["NetworkSettings"]["IPAddress"].as_str().unwrap().to_owned();
    let hosts = stack.inspect(&id)["HostsPath"].as_str().unwrap().to_owned();
    crate::stack::eventually("the address is told", || {
        let text = std::fs::read_to_string(&hosts).unwrap();
        match text.lines().any(|line| line.starts_with(&format!("{now}\tfield-other "))) {
            true => Ok(()),
            false => Err(text),
        }
    });
    assert_eq!(stack.delete("/containers/watches?link=1").status, 500);
    assert_eq!(stack.delete("/containers/watches/field-other?link=1").status, 204);
    assert_eq!(stack.delete("/containers/watches/field-other?link=1").status, 404);
    assert!(stack.inspect("watches")["HostConfig"]["Links"].is_null());
    assert!(!std::fs::read_to_string(&hosts).unwrap().contains("field-other"));
    // Who is not there, or not running, is said.
    let missing = create(&stack, &json!({"Cmd": ["true"], "HostConfig": {"Links": ["nobody"]}}));
    assert!(
        missing.status == 400 && missing.message().starts_with("could not get container for nobody: No such container")
    );
    assert_eq!(stack.post("/containers/field-other/kill", &Value::Null).status, 204);
    stack.wait("field-other", "not-running");
    let answer = stack.post("/containers/linked/start", &Value::Null);
    assert_eq!(answer.status, 500);
    assert!(
        answer.message().contains("Cannot link to a non running container: /field-other AS /linked/alias"),
        "{}",
        answer.text()
    );
    let on_host = create(&stack, &json!({"Cmd": ["true"], "HostConfig": {"NetworkMode": "host", "Links": ["linked"]}}));
    assert!(on_host.status == 400 && on_host.message().starts_with("conflicting options: host type networking"));
}

#[test]
fn devices_by_description() {
    let folder = tempfile::tempdir().unwrap();
    let text = "cdiVersion: 0.5.0\nkind: berth.test/thing\ncontainerEdits:\n  env: [ALL=1]\ndevices:\n- name: one\n  containerEdits:\n\
                \x20   env: [ONE=1]\n    deviceNodes:\n    - {path: /dev/thing, hostPath: /dev/null, permissions: rw}\n    mounts:\n\
                \x20   - hostPath: /etc\n      containerPath: /mnt\n      options: [ro]\n    hooks:\n    - hookName: createRuntime\n\
                \x20     path: /bin/sh\n      args: [sh, -c, 'cat > FOLDER/state']\n";
    let text = text.replace("FOLDER", &folder.path().display().to_string());
    std::fs::write(folder.path().join("thing.yaml"), text).unwrap();
    let Some(stack) = Stack::configured(&format!("cdi-spec-dirs = ['{}']\n", folder.path().display())) else { return };
    let ask = |name: &str| {
        json!({"Cmd": ["sh", "-c", "echo $ALL$ONE; test -c /dev/thing && echo x > /dev/thing && test -e /mnt/hostname && echo there"],
        "HostConfig": {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [name]}]}})
    };
    let id = stack.create("", &ask("berth.test/thing=one"));
    assert_eq!(run(&stack, &id, false), (0, "11\nthere".into()));
    let state = std::fs::read_to_string(folder.path().join("state")).unwrap();
    assert!(state.contains(&id), "the hook was given the state: {state}");
    let id = stack.create("", &ask("berth.test/thing=two"));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(answer.status, 500);
    let text = answer.message();
    assert!(text.contains("CDI device injection failed: unresolvable CDI devices berth.test/thing=two"), "{text}");
    let gpus = json!({"Cmd": ["true"], "HostConfig": {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}});
    let id = stack.create("", &gpus);
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(answer.status, 500);
    let text = answer.message();
    assert!(text.contains("could not select device driver \"\" with capabilities: [[gpu]]"), "{text}");
}

#[test]
fn who_runs_and_what_is_missing_in_the_image() {
    let Some(stack) = Stack::start() else { return };
    let of = |user: &str, groups: Value| json!({"User": user, "Cmd": ["sh", "-c", "id -u; id -g; id -G; echo $HOME"], "HostConfig": {"GroupAdd": groups}});
    for (user, groups, seen) in [
        ("www", json!([]), "33\n33\n33 50\n/srv"),
        ("33:staff", json!([]), "33\n50\n50\n/srv"),
        ("1234:77", json!(["staff", "9"]), "1234\n77\n77 9 50\n/"),
        ("", json!([]), "0\n0\n0\n/root"),
    ] {
        let id = stack.create("", &of(user, groups));
        assert_eq!(run(&stack, &id, false), (0, seen.into()), "{user}");
    }
    for (user, groups, text) in [
        ("nope", json!([]), "unable to find user nope: no matching entries in passwd file"),
        ("www:nope", json!([]), "unable to find group nope: no matching entries in group file"),
        ("www", json!(["nogr"]), "nable to find group nogr: no matching entries in group file"),
    ] {
        let id = stack.create("", &of(user, groups));
        let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
        assert!(answer.status >= 400 && answer.message().contains(text), "{user}: {}", answer.text());
    }
}

#[test]
fn security_options_and_the_daemons_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let profile = |name: &str, call: &str| {
        let path = folder.path().join(name);
        let text =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [call], "action": "SCMP_ACT_ERRNO"}]});
        std::fs::write(&path, text.to_string()).unwrap();
        (path, text.to_string())
    };
    let (file, _) = profile("default.json", "mkdir");
    let (_, text) = profile("own.json", "rmdir");
    let config = format!("seccomp-profile = '{}'\nno-new-privileges = true\n", file.display());
    let Some(stack) = Stack::configured(&config) else { return };
    let script = "busybox mkdir /d 2>/dev/null && echo made; busybox rmdir /d 2>/dev/null && echo gone; grep -E 'NoNewPrivs' /proc/self/status | tr -d '\\t'";
    let with = |options: Value| {
        let id = stack.create("", &json!({"Cmd": ["sh", "-c", script], "HostConfig": {"SecurityOpt": options}}));
        run(&stack, &id, false).1
    };
    assert_eq!(with(json!([])), "NoNewPrivs:1", "the daemon's own");
    assert_eq!(with(json!(["no-new-privileges=false", format!("seccomp={text}")])), "made\nNoNewPrivs:0");
    assert_eq!(with(json!(["seccomp=unconfined"])), "made\ngone\nNoNewPrivs:1");
    assert_eq!(with(json!(["seccomp=builtin", "label=disable", "apparmor=unconfined"])), "made\ngone\nNoNewPrivs:1");
    let id = stack.create("", &json!({"Cmd": ["sh", "-c", "grep -c /proc/ /proc/self/mounts; true"], "HostConfig": {"SecurityOpt": ["systempaths=unconfined"]}}));
    assert_eq!(run(&stack, &id, false).1, "0");
    let writable = json!({"Cmd": ["sh", "-c", "mount | grep -c '/sys/fs/cgroup.*(ro' ; true"],
        "HostConfig": {"SecurityOpt": ["writable-cgroups"], "CgroupnsMode": "private"}});
    let id = stack.create("", &writable);
    assert_eq!(run(&stack, &id, false).1.lines().next(), Some("0"));
}

#[test]
fn runtimes_by_name() {
    let Some(runc) = ["/usr/bin/runc", "/usr/sbin/runc"].into_iter().find(|path| std::path::Path::new(path).exists())
    else {
        eprintln!("skipped: there is no runc");
        return;
    };
    let config =
        format!("[runtimes.mine]\npath = '{runc}'\n[runtimes.noisy]\npath = '{runc}'\nruntimeArgs = ['--debug']\n");
    let Some(stack) = Stack::configured(&config) else { return };
    for name in ["mine", "noisy", "runc", "berth-runtime"] {
        let id = stack.create("", &json!({"Cmd": ["echo", "ran"], "HostConfig": {"Runtime": name}}));
        assert_eq!(stack.inspect(&id)["HostConfig"]["Runtime"], name);
        assert_eq!(run(&stack, &id, false), (0, "ran".into()), "{name}");
    }
    let script = std::fs::read_to_string(stack.run().join("engine/runtimes/noisy")).unwrap();
    assert_eq!(script, format!("#!/bin/sh\nexec '{runc}' '--debug' \"$@\"\n"));
}
