//! Every field of HostConfig and Config: what inspect gives back, and what a process in the container sees of it.

use crate::{
    cases,
    run::{Run, sh, with_host},
};
use serde_json::{Value, json};

cases!(
    round_trip,
    limits_seen,
    identity_seen,
    mounts_seen,
    security_seen,
    network_files_seen,
    devices_seen,
    namespaces_seen,
    stop_settings,
    init_seen,
    published
);

fn seen(run: &mut Run, name: &str, host: Value, script: &str) {
    run.runs(name, &with_host(sh(script), host));
}

fn round_trip(run: &mut Run) {
    let root = run.folder().join("bound").display().to_string();
    std::fs::create_dir_all(&root).unwrap();
    let host = json!({
        "Binds": [format!("{root}:/bound:ro")], "Memory": 134_217_728, "MemorySwap": 268_435_456, "MemoryReservation": 67_108_864,
        "MemorySwappiness": 10, "OomKillDisable": true, "OomScoreAdj": 100, "CpuShares": 512, "CpuPeriod": 100_000, "CpuQuota": 50_000,
        "CpusetCpus": "0", "CpusetMems": "0", "PidsLimit": 64, "BlkioWeight": 300,
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}], "CapAdd": ["NET_ADMIN"], "CapDrop": ["MKNOD"],
        "Dns": ["10.77.0.1"], "DnsSearch": ["example.test"], "DnsOptions": ["ndots:2"], "ExtraHosts": ["db:10.77.0.2"],
        "GroupAdd": ["50"], "IpcMode": "private", "PidMode": "host", "UTSMode": "", "CgroupnsMode": "private",
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, "PublishAllPorts": false,
        "Privileged": false, "ReadonlyRootfs": true, "SecurityOpt": ["no-new-privileges"], "ShmSize": 1_048_576,
        "Sysctls": {"net.ipv4.ip_forward": "1"}, "Tmpfs": {"/t": "size=1m,mode=700"}, "Init": true,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nil", "CgroupPermissions": "rw"}],
        "DeviceCgroupRules": ["c 1:3 rwm"], "AutoRemove": false, "VolumeDriver": "local",
        "Mounts": [{"Type": "tmpfs", "Target": "/m", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 493}}],
    });
    let config = json!({
        "Image": "busybox", "Hostname": "host", "Domainname": "domain.test", "User": "1000:50", "AttachStdin": false, "AttachStdout": true,
        "AttachStderr": true, "ExposedPorts": {"81/udp": {}}, "Tty": true, "OpenStdin": true, "StdinOnce": true, "Env": ["A=b"],
        "Cmd": ["sh"], "Volumes": {"/anonymous": {}}, "WorkingDir": "/tmp", "Labels": {"a": "b"}, "StopSignal": "SIGUSR1",
        "StopTimeout": 3, "Shell": ["/bin/sh"], "HostConfig": host,
    });
    run.create("all", &config);
    run.inspect("all", &["/Config", "/HostConfig", "/Mounts", "/NetworkSettings"]);
}

fn limits_seen(run: &mut Run) {
    let host = json!({"Memory": 33_554_432, "MemorySwap": 33_554_432, "CpuShares": 256, "CpuPeriod": 50_000, "CpuQuota": 25_000,
        "PidsLimit": 30, "CpusetCpus": "0", "MemorySwappiness": 20, "CgroupnsMode": "host", "MemoryReservation": 16_777_216,
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}, {"Name": "core", "Soft": 0, "Hard": 0}], "OomScoreAdj": 77,
        "ShmSize": 1_048_576});
    let script = "c=/sys/fs/cgroup; cat $c/memory/memory.limit_in_bytes $c/memory/memory.swappiness $c/memory/memory.soft_limit_in_bytes \
        $c/cpu/cpu.shares $c/cpu/cpu.cfs_period_us $c/cpu/cpu.cfs_quota_us $c/pids/pids.max $c/cpuset/cpuset.cpus; \
        ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; df -k /dev/shm | tail -1 | awk '{print $2}'";
    seen(run, "limited", host, script);
    seen(
        run,
        "nano",
        json!({"NanoCpus": 250_000_000}),
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us",
    );
    run.inspect("nano", &["/HostConfig/NanoCpus", "/HostConfig/CpuQuota", "/HostConfig/CpuPeriod"]);
    seen(run, "hungry", json!({"Memory": 8_388_608, "MemorySwap": 8_388_608}), "x=aaaaaaaa; while :; do x=$x$x; done");
    run.inspect("hungry", &["/State/OOMKilled", "/State/ExitCode", "/State/Status"]);
}

fn identity_seen(run: &mut Run) {
    for user in ["", "0", "1000", "user", "user:staff", "1000:50", "1234:4321", ":50"] {
        let mut config = sh("id; echo $HOME");
        config["User"] = json!(user);
        config["HostConfig"] = json!({"GroupAdd": ["staff", "4242"]});
        let name = format!("user-{}x", user.replace(':', "."));
        run.runs(&name, &config);
    }
    let mut lost = sh("id");
    lost["User"] = json!("nobody-here");
    run.create("lost", &lost);
    run.refused(
        400,
        "POST",
        "/containers/lost/start",
        None,
        "unable to find user nobody-here: no matching entries in passwd file",
    );
    let mut names = sh(
        "hostname; cat /etc/hostname; grep named /etc/hosts | awk '{print $2, $3}'; cat /proc/sys/kernel/domainname",
    );
    names["Hostname"] = json!("named");
    names["Domainname"] = json!("domain.test");
    run.runs("named", &names);
}

fn mounts_seen(run: &mut Run) {
    let root = run.folder().join("seen");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("file"), "from the host\n").unwrap();
    let root = root.display().to_string();
    let host = json!({"Binds": [format!("{root}:/rw"), format!("{root}:/ro:ro"), format!("{root}/made:/made"), "named:/named"],
        "Mounts": [{"Type": "bind", "Source": format!("{root}/file"), "Target": "/one", "ReadOnly": true},
            {"Type": "tmpfs", "Target": "/mt", "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 0o750}},
            {"Type": "volume", "Source": "second", "Target": "/second", "VolumeOptions": {"Labels": {"a": "b"}}}],
        "Tmpfs": {"/t": "size=64k,mode=1700"}});
    let script = "cat /ro/file /one; touch /rw/new && echo rw; touch /ro/x 2>&1; echo x > /one; ls -d /made; stat -c '%a' /t /mt; touch /named/x; \
        df -k /t | tail -1 | awk '{print $2}'; grep -E ' /(rw|ro|one|t|mt|named) ' /proc/mounts | awk '{print $2, $3, substr($4,1,2)}' | grep -v ext4 | sort";
    seen(run, "mounts", host, script);
    run.inspect("mounts", &["/Mounts"]);
    run.get(200, "/volumes/second");
    // What the image has under a fresh volume is copied into it.
    seen(run, "copied", json!({"Binds": ["filled:/www"]}), "cat /www/index.html");
    seen(run, "not-copied", json!({"Binds": ["bare:/www:nocopy"]}), "ls /www");
    seen(
        run,
        "read-only",
        json!({"ReadonlyRootfs": true, "Tmpfs": {"/tmp": ""}}),
        "touch /x 2>&1; touch /tmp/y && echo fine",
    );
    run.inspect("read-only", &["/HostConfig/ReadonlyRootfs"]);
}

fn security_seen(run: &mut Run) {
    let caps = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    seen(run, "default", json!({}), caps);
    seen(run, "dropped", json!({"CapDrop": ["ALL"]}), caps);
    seen(run, "chosen", json!({"CapDrop": ["all"], "CapAdd": ["CAP_NET_ADMIN", "sys_time"]}), caps);
    run.inspect("chosen", &["/HostConfig/CapAdd", "/HostConfig/CapDrop"]);
    run.create("privileged", &with_host(sh("true"), json!({"Privileged": true})));
    run.inspect("privileged", &["/HostConfig/SecurityOpt", "/HostConfig/MaskedPaths", "/HostConfig/ReadonlyPaths"]);
    seen(run, "no-new", json!({"SecurityOpt": ["no-new-privileges"]}), caps);
    seen(run, "unconfined", json!({"SecurityOpt": ["seccomp=unconfined"]}), caps);
    let mut user = sh(caps);
    user["User"] = json!("1000");
    run.runs("plain-user", &user);
    seen(
        run,
        "masked",
        json!({}),
        "cat /proc/kcore | wc -c; ls /proc/scsi /sys/firmware | grep -v : ; echo 1 > /proc/sys/kernel/domainname",
    );
    seen(run, "unmasked", json!({"MaskedPaths": [], "ReadonlyPaths": []}), "grep -c ' /proc/' /proc/mounts");
    run.inspect("unmasked", &["/HostConfig/MaskedPaths", "/HostConfig/ReadonlyPaths"]);
    seen(
        run,
        "sysctl",
        json!({"Sysctls": {"net.ipv4.ip_forward": "0", "kernel.msgmax": "12345"}}),
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax",
    );
}

fn network_files_seen(run: &mut Run) {
    let host = json!({"Dns": ["10.77.0.1"], "DnsSearch": ["example.test"], "DnsOptions": ["ndots:2"],
        "ExtraHosts": ["db:10.77.0.2", "db6:fe80::1"], "NetworkMode": "bridge"});
    seen(run, "files", host, "cat /etc/resolv.conf; grep -E 'db|localhost' /etc/hosts; ls /.dockerenv");
    seen(run, "none", json!({"NetworkMode": "none"}), "ls /sys/class/net; grep -c . /etc/hosts");
    run.inspect("none", &["/NetworkSettings"]);
    seen(run, "gateway", json!({"ExtraHosts": ["up:host-gateway"]}), "grep -c 'up$' /etc/hosts");
    run.start("other", &crate::run::waiting());
    seen(run, "joined", json!({"NetworkMode": "container:other"}), "ls /sys/class/net | sort");
    run.inspect("joined", &["/NetworkSettings/Networks", "/NetworkSettings/SandboxKey", "/Config/Hostname"]);
    seen(run, "linked", json!({"Links": ["other:friend"]}), "grep -c friend /etc/hosts; env | grep ^FRIEND_NAME");
    run.inspect("linked", &["/HostConfig/Links"]);
}

fn devices_seen(run: &mut Run) {
    seen(run, "default", json!({}), "cd /dev; ls | sort | tr '\\n' ' '; ls -l null zero | awk '{print $1, $5, $6}'");
    let host =
        json!({"Devices": [{"PathOnHost": "/dev/zero", "PathInContainer": "/dev/other", "CgroupPermissions": "r"}]});
    seen(
        run,
        "mapped",
        host,
        "head -c 3 /dev/other | wc -c; echo x > /dev/other; ls -l /dev/other | awk '{print $1, $5, $6}'",
    );
    seen(
        run,
        "rules",
        json!({"DeviceCgroupRules": ["c 1:1 rwm"]}),
        "grep 'c 1:1 ' /sys/fs/cgroup/devices/devices.list",
    );
}

fn namespaces_seen(run: &mut Run) {
    run.start("first", &with_host(crate::run::waiting(), json!({"IpcMode": "shareable"})));
    seen(run, "pid", json!({"PidMode": "container:first"}), "ps | grep -q '[t]rap' && test $$ != 1 && echo shared");
    seen(run, "ipc", json!({"IpcMode": "container:first"}), "df /dev/shm | tail -1 | awk '{print $6}'");
    run.inspect("ipc", &["/HostConfig/IpcMode", "/HostConfig/ShmSize"]);
    run.start("closed", &with_host(crate::run::waiting(), json!({"IpcMode": "private"})));
    let body = with_host(sh("true"), json!({"IpcMode": "container:closed"}));
    let created = run.quietly("POST", "/containers/create?name=refused", Some(&body)).status;
    let started = run.quietly("POST", "/containers/refused/start", None).status;
    run.note("a private ipc namespace isn't shared", json!([created, started >= 400]));
    seen(
        run,
        "host",
        json!({"PidMode": "host", "UTSMode": "host", "IpcMode": "host", "CgroupnsMode": "host"}),
        "test $(ps | wc -l) -gt 8 && echo many",
    );
    run.inspect(
        "host",
        &[
            "/HostConfig/PidMode",
            "/HostConfig/UTSMode",
            "/HostConfig/IpcMode",
            "/HostConfig/CgroupnsMode",
            "/Config/Hostname",
        ],
    );
    seen(
        run,
        "cgroup-private",
        json!({"CgroupnsMode": "private"}),
        "grep -c ':/$' /proc/self/cgroup | awk '{print ($1 > 3)}'",
    );
}

fn stop_settings(run: &mut Run) {
    let mut config =
        sh("trap 'echo usr1; exit 3' USR1; trap 'echo term; exit 4' TERM; echo ready; while :; do usleep 20000; done");
    config["StopSignal"] = json!("SIGUSR1");
    config["StopTimeout"] = json!(1);
    run.start("signal", &config);
    ready(run, "signal");
    run.post(204, "/containers/signal/stop");
    run.output("signal");
    run.inspect("signal", &["/State/ExitCode"]);
    let mut deaf = sh("trap '' TERM; echo ready; while :; do usleep 20000; done");
    deaf["StopTimeout"] = json!(0);
    run.start("deaf", &deaf);
    ready(run, "deaf");
    run.post(204, "/containers/deaf/stop");
    run.inspect("deaf", &["/State/ExitCode", "/State/Status"]);
}

/// Waits until the container has said `ready`.
pub fn ready(run: &mut Run, name: &str) {
    let path = format!("/containers/{name}/logs?stdout=1");
    integration_tests::eventually("ready", || run.quietly("GET", &path, None).text().contains("ready").then_some(()));
}

fn init_seen(run: &mut Run) {
    seen(run, "init", json!({"Init": true}), "test $$ = 1 || echo child; ls /proc/1/exe > /dev/null && echo there");
    run.inspect("init", &["/HostConfig/Init"]);
    seen(run, "bare", json!({"Init": false}), "test $$ = 1 && echo first");
}

fn published(run: &mut Run) {
    let mut config = with_host(
        crate::run::waiting(),
        json!({"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}], "81/udp": [{}]}}),
    );
    config["ExposedPorts"] = json!({"80/tcp": {}, "81/udp": {}, "82/tcp": {}});
    run.start("published", &config);
    run.inspect("published", &["/NetworkSettings/Ports", "/HostConfig/PortBindings", "/Config/ExposedPorts"]);
    run.get(200, "/containers/json");
    config["HostConfig"] = json!({"PublishAllPorts": true});
    run.start("all-ports", &config);
    run.inspect("all-ports", &["/NetworkSettings/Ports", "/HostConfig/PublishAllPorts"]);
    run.post(204, "/containers/published/stop?t=5");
    run.inspect("published", &["/NetworkSettings"]);
}
