//! Making containers: bodies good and bad, defaults, what images bring along.

use crate::{
    cases,
    run::{Run, sh, with_host},
};
use serde_json::json;

cases!(
    plain,
    from_rich_image,
    entrypoints,
    names,
    bad_bodies,
    wrong_types,
    no_image,
    missing_image,
    empty_command,
    host_conflicts,
    bad_limits,
    bad_mounts,
    bad_ports,
    bad_words,
    environment,
    labels,
    working_folders,
    health_checks,
    platform,
    networking,
    nulls,
    legacy_fields,
    volumes_from
);

fn plain(run: &mut Run) {
    run.create("web", &json!({"Image": "busybox"}));
    run.get(200, "/containers/web/json");
    run.get(200, "/containers/web/json?size=1");
    run.get(200, "/containers/json?all=1");
    run.get(200, "/containers/json?all=1&size=1");
    run.delete(204, "/containers/web");
    run.refused(404, "GET", "/containers/web/json", None, "No such container: web");
}

fn from_rich_image(run: &mut Run) {
    let over = json!({
        "Image": "rich:1", "Labels": {"shared": "mine", "own": "1"}, "Env": ["RICH=2", "OWN=3"], "ExposedPorts": {"81/tcp": {}},
        "Volumes": {"/more": {}},
    });
    run.create("rich", &over);
    run.get(200, "/containers/rich/json");
    run.create("quiet", &json!({"Image": "rich:1", "Healthcheck": {"Test": ["NONE"]}, "User": "0", "WorkingDir": "/"}));
    run.get(200, "/containers/quiet/json");
}

fn entrypoints(run: &mut Run) {
    let shapes = [
        ("cmd", json!({"Image": "rich:1", "Cmd": ["-c", "id -u; pwd; echo $RICH"]})),
        ("entry", json!({"Image": "rich:1", "Entrypoint": ["echo"], "Cmd": ["a", "b"]})),
        ("entry-alone", json!({"Image": "rich:1", "Entrypoint": ["echo", "alone"]})),
        ("cleared", json!({"Image": "rich:1", "Entrypoint": [""], "Cmd": ["echo", "cleared"]})),
        ("text", json!({"Image": "rich:1", "Entrypoint": "echo", "Cmd": "text"})),
        ("empty", json!({"Image": "busybox", "Entrypoint": [], "Cmd": ["echo", "empty"]})),
    ];
    for (name, config) in shapes {
        run.runs(name, &config);
        run.inspect(name, &["/Config/Entrypoint", "/Config/Cmd", "/Path", "/Args"]);
    }
}

fn names(run: &mut Run) {
    let body = json!({"Image": "busybox"});
    run.create("web", &body);
    run.refused(
        409,
        "POST",
        "/containers/create?name=web",
        Some(&body),
        "Conflict. The container name \"/web\" is already in use by",
    );
    run.refused(409, "POST", "/containers/create?name=/web", Some(&body), "is already in use by container");
    run.refused(
        400,
        "POST",
        "/containers/create?name=a",
        Some(&body),
        "Invalid container name (a), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
    );
    run.refused(400, "POST", "/containers/create?name=-bad", Some(&body), "Invalid container name (-bad)");
    run.refused(
        400,
        "POST",
        "/containers/create?name=a%20b",
        Some(&body),
        "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
    );
    run.create("0_9.A-z", &body);
    run.post(204, "/containers/web/rename?name=web2");
    run.get(200, "/containers/web2/json");
    run.get(404, "/containers/web/json");
    run.refused(409, "POST", "/containers/web2/rename?name=0_9.A-z", None, "already in use by container");
    run.refused(400, "POST", "/containers/web2/rename?name=-", None, "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
    run.post(400, "/containers/web2/rename?name=web2");
    run.post(400, "/containers/web2/rename");
    run.post(404, "/containers/nothing/rename?name=other");
    // A container without a name gets one.
    let made = run.ask(201, "POST", "/containers/create", Some(&body));
    let id = made["Id"].as_str().unwrap().to_owned();
    let inspected = run.quietly("GET", &format!("/containers/{id}/json"), None).json();
    let name = inspected["Name"].as_str().unwrap();
    run.note("a generated name has two words", json!(name.trim_start_matches('/').split('_').count() == 2));
    for (what, path) in
        [("short id", id[..12].to_owned()), ("prefix", id[..5].to_owned()), ("slash", "/web2".to_owned())]
    {
        let status = run.quietly("GET", &format!("/containers/{path}/json"), None).status;
        run.note(what, json!(status));
    }
}

fn bad_bodies(run: &mut Run) {
    let json_type = "Content-Type: application/json\r\n";
    run.send(400, "POST", "/containers/create", b"{", json_type);
    run.send(400, "POST", "/containers/create", b"[]", json_type);
    run.send(400, "POST", "/containers/create", b"\"x\"", json_type);
    run.send(400, "POST", "/containers/create", b"null", json_type);
    run.send(400, "POST", "/containers/create", b"", json_type);
    run.send(400, "POST", "/containers/create", b"", "");
    run.send(400, "POST", "/containers/create", b"{\"Image\":\"busybox\"}", "Content-Type: text/plain\r\n");
    run.send(400, "POST", "/containers/create", b"{\"Image\":\"busybox\"}", "");
    run.send(
        201,
        "POST",
        "/containers/create",
        b"{\"Image\":\"busybox\"}",
        "Content-Type: application/json; charset=utf-8\r\n",
    );
    run.send(201, "POST", "/containers/create", b"{\"Image\":\"busybox\", \"Unknown\": 1}", json_type);
    run.send(201, "POST", "/containers/create", b"{\"image\":\"busybox\", \"CMD\": [\"true\"]}", json_type);
}

fn wrong_types(run: &mut Run) {
    let wrong = [
        json!({"Image": 1}),
        json!({"Image": "busybox", "Cmd": {"a": 1}}),
        json!({"Image": "busybox", "Env": "A=b"}),
        json!({"Image": "busybox", "Labels": ["a=b"]}),
        json!({"Image": "busybox", "Tty": "yes"}),
        json!({"Image": "busybox", "HostConfig": []}),
        json!({"Image": "busybox", "HostConfig": {"Memory": "64m"}}),
        json!({"Image": "busybox", "HostConfig": {"Binds": "a:b"}}),
        json!({"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": "8080"}}}),
        json!({"Image": "busybox", "ExposedPorts": ["80"]}),
        json!({"Image": "busybox", "StopTimeout": "ten"}),
    ];
    for body in &wrong {
        let step = body.to_string();
        let status = run.quietly("POST", "/containers/create", Some(body)).status;
        run.note(&step, json!(status));
    }
}

fn no_image(run: &mut Run) {
    run.ask(201, "POST", "/containers/create", Some(&json!({"Cmd": ["true"]})));
    run.ask(400, "POST", "/containers/create", Some(&json!({"Image": ""})));
}

fn missing_image(run: &mut Run) {
    run.refused(404, "POST", "/containers/create", Some(&json!({"Image": "nowhere"})), "No such image: nowhere:latest");
    run.refused(
        404,
        "POST",
        "/containers/create",
        Some(&json!({"Image": "busybox:other"})),
        "No such image: busybox:other",
    );
    run.ask(400, "POST", "/containers/create", Some(&json!({"Image": "Bad Name"})));
    let digest = format!("busybox@sha256:{}", "0".repeat(64));
    run.refused(404, "POST", "/containers/create", Some(&json!({"Image": digest})), "No such image");
    run.ask(404, "POST", "/containers/create", Some(&json!({"Image": "0123456789ab"})));
}

fn empty_command(run: &mut Run) {
    let body = json!({"Image": "busybox", "Entrypoint": [""]});
    run.refused(400, "POST", "/containers/create", Some(&body), "No command specified");
}

fn host_conflicts(run: &mut Run) {
    let refused = [
        (
            json!({"AutoRemove": true, "RestartPolicy": {"Name": "always"}}),
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            json!({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}}),
            "maximum retry count cannot be used with restart policy 'always'",
        ),
        (
            json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -1}}),
            "maximum retry count cannot be negative",
        ),
        (json!({"RestartPolicy": {"Name": "sometimes"}}), "invalid restart policy"),
    ];
    for (host, text) in refused {
        let body = with_host(sh("true"), host.clone());
        let answer = run.quietly("POST", "/containers/create", Some(&body));
        let says = answer.json()["message"].as_str().unwrap_or_default().contains(text);
        run.note(&host.to_string(), json!([answer.status, says]));
    }
    let modes = [
        json!({"NetworkMode": "container:"}),
        json!({"NetworkMode": "container:nobody"}),
        json!({"IpcMode": "container:nobody"}),
        json!({"IpcMode": "odd"}),
        json!({"PidMode": "container:nobody"}),
        json!({"PidMode": "odd"}),
        json!({"UTSMode": "odd"}),
        json!({"UsernsMode": "odd"}),
        json!({"CgroupnsMode": "odd"}),
        json!({"NetworkMode": "host", "Links": ["a:b"]}),
        json!({"Runtime": "nowhere"}),
        json!({"Isolation": "hyperv"}),
        json!({"StorageOpt": {"size": "1G"}}),
        json!({"LogConfig": {"Type": "odd"}}),
        json!({"LogConfig": {"Type": "json-file", "Config": {"odd": "1"}}}),
        json!({"LogConfig": {"Type": "json-file", "Config": {"max-size": "x"}}}),
        json!({"SecurityOpt": ["odd"]}),
        json!({"SecurityOpt": ["seccomp={"]}),
        json!({"CapAdd": ["ODD"]}),
        json!({"VolumesFrom": ["nobody"]}),
        json!({"Sysctls": {"kernel.shmmax": "1"}}),
        json!({"ShmSize": -1}),
        json!({"OomScoreAdj": 2000}),
        json!({"Devices": [{"PathOnHost": "/dev/nothing", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}]}),
        json!({"DeviceCgroupRules": ["odd"]}),
        json!({"ExtraHosts": ["odd"]}),
        json!({"Dns": ["odd"]}),
        json!({"CgroupParent": "relative"}),
        json!({"Ulimits": [{"Name": "odd", "Soft": 1, "Hard": 1}]}),
        json!({"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}),
        json!({"Tmpfs": {"relative": ""}}),
        json!({"Tmpfs": {"/t": "odd=1"}}),
        json!({"GroupAdd": ["nogroup-here"]}),
        json!({"Links": ["nobody:alias"]}),
        json!({"MaskedPaths": [], "ReadonlyPaths": []}),
        json!({"ConsoleSize": [10, 20]}),
    ];
    for host in modes {
        let body = with_host(sh("true"), host.clone());
        let answer = run.quietly("POST", "/containers/create?name=odd", Some(&body));
        run.note(&format!("create with {host}"), json!(answer.status));
        if answer.status == 201 {
            let started = run.quietly("POST", "/containers/odd/start", None).status;
            run.note(&format!("start with {host}"), json!(started));
            run.quietly("DELETE", "/containers/odd?force=1&v=1", None);
        }
    }
}

fn bad_limits(run: &mut Run) {
    let limits = [
        json!({"Memory": 1024}),
        json!({"Memory": -5}),
        json!({"Memory": 67_108_864, "MemorySwap": 1024}),
        json!({"MemorySwap": 67_108_864}),
        json!({"MemoryReservation": 134_217_728, "Memory": 67_108_864}),
        json!({"MemoryReservation": 1024}),
        json!({"MemorySwappiness": 101}),
        json!({"CpuPeriod": 1}),
        json!({"CpuQuota": 1}),
        json!({"CpuShares": 1}),
        json!({"NanoCpus": 1_000_000_000_000_i64}),
        json!({"NanoCpus": 500_000_000, "CpuPeriod": 100_000}),
        json!({"NanoCpus": 500_000_000, "CpuQuota": 50_000}),
        json!({"CpusetCpus": "99"}),
        json!({"CpusetCpus": "odd"}),
        json!({"CpusetMems": "9"}),
        json!({"BlkioWeight": 5}),
        json!({"BlkioWeightDevice": [{"Path": "/dev/nothing", "Weight": 100}]}),
        json!({"BlkioDeviceReadBps": [{"Path": "/dev/nothing", "Rate": 100}]}),
        json!({"PidsLimit": -1}),
        json!({"KernelMemory": 1}),
        json!({"CpuRealtimePeriod": 1000}),
        json!({"CpuCount": 1}),
    ];
    for host in limits {
        let body = with_host(sh("true"), host.clone());
        let answer = run.quietly("POST", "/containers/create?name=limited", Some(&body));
        let warnings = if answer.status == 201 { answer.json()["Warnings"].clone() } else { json!(null) };
        run.note(&format!("create with {host}"), json!([answer.status, warnings]));
        if answer.status == 201 {
            let path = "/containers/limited/json";
            let host: serde_json::Value = run.quietly("GET", path, None).json()["HostConfig"].clone();
            let kept = ["Memory", "MemorySwap", "CpuShares", "PidsLimit", "BlkioWeight"].map(|key| host[key].clone());
            run.note(&format!("kept of {body}"), json!(kept));
            run.quietly("DELETE", "/containers/limited?force=1", None);
        }
    }
}

fn bad_mounts(run: &mut Run) {
    let root = run.folder().display().to_string();
    let mounts = [
        json!({"Binds": ["relative/path:/x"]}),
        json!({"Binds": ["/a:relative"]}),
        json!({"Binds": ["/a:/b:odd"]}),
        json!({"Binds": ["/a:/b:ro,rw"]}),
        json!({"Binds": ["/a:/b", "/c:/b"]}),
        json!({"Binds": [":/b"]}),
        json!({"Binds": ["/a:/"]}),
        json!({"Binds": ["name:/ok:ro"]}),
        json!({"Binds": ["bad name:/x"]}),
        json!({"Mounts": [{"Type": "bind", "Source": format!("{root}/nothing-here"), "Target": "/x"}]}),
        json!({"Mounts": [{"Type": "bind", "Target": "/x"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": root, "Target": "x"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": root, "Target": "/x", "VolumeOptions": {"NoCopy": true}}]}),
        json!({"Mounts": [{"Type": "bind", "Source": root, "Target": "/x", "BindOptions": {"Propagation": "odd"}}]}),
        json!({"Mounts": [{"Type": "volume", "Target": "/x"}]}),
        json!({"Mounts": [{"Type": "volume", "Source": "named", "Target": ""}]}),
        json!({"Mounts": [{"Type": "volume", "Source": "named", "Target": "/x", "BindOptions": {"Propagation": "private"}}]}),
        json!({"Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 448}}]}),
        json!({"Mounts": [{"Type": "tmpfs", "Source": "/a", "Target": "/x"}]}),
        json!({"Mounts": [{"Type": "odd", "Target": "/x"}]}),
        json!({"Mounts": [{"Type": "npipe", "Source": "a", "Target": "/x"}]}),
        json!({"Mounts": [{"Target": "/x"}]}),
        json!({"Binds": ["name:/x"], "Tmpfs": {"/x": ""}}),
    ];
    for host in mounts {
        let body = with_host(sh("true"), host.clone());
        let answer = run.quietly("POST", "/containers/create?name=mounted", Some(&body));
        run.note(&format!("create with {host}"), json!(answer.status));
        if answer.status == 201 {
            run.inspect("mounted", &["/Mounts"]);
            run.quietly("DELETE", "/containers/mounted?force=1&v=1", None);
        }
    }
    run.ask(201, "POST", "/containers/create", Some(&json!({"Image": "busybox", "Volumes": {"relative": {}}})));
    run.ask(201, "POST", "/containers/create", Some(&json!({"Image": "busybox", "Volumes": {"/": {}}})));
}

fn bad_ports(run: &mut Run) {
    let ports = [
        json!({"PortBindings": {"80": [{"HostPort": ""}]}}),
        json!({"PortBindings": {"80/odd": [{"HostPort": "1"}]}}),
        json!({"PortBindings": {"70000/tcp": [{"HostPort": "1"}]}}),
        json!({"PortBindings": {"80/tcp": [{"HostPort": "70000"}]}}),
        json!({"PortBindings": {"80/tcp": [{"HostPort": "odd"}]}}),
        json!({"PortBindings": {"80/tcp": [{"HostPort": "9-1"}]}}),
        json!({"PortBindings": {"": [{"HostPort": "1"}]}}),
        json!({"PortBindings": {"80/tcp": []}}),
        json!({"PortBindings": {"80/tcp": null}}),
    ];
    for host in ports {
        let body = with_host(sh("true"), host.clone());
        let answer = run.quietly("POST", "/containers/create?name=ported", Some(&body));
        run.note(&format!("create with {host}"), json!(answer.status));
        if answer.status == 201 {
            run.inspect("ported", &["/HostConfig/PortBindings", "/Config/ExposedPorts"]);
            run.quietly("DELETE", "/containers/ported?force=1", None);
        }
    }
    run.ask(201, "POST", "/containers/create", Some(&json!({"Image": "busybox", "ExposedPorts": {"odd": {}}})));
}

fn bad_words(run: &mut Run) {
    let configs = [
        json!({"Hostname": "a".repeat(64)}),
        json!({"Hostname": "odd name"}),
        json!({"Hostname": "-x"}),
        json!({"StopSignal": "ODD"}),
        json!({"StopSignal": "SIGUSR1"}),
        json!({"StopSignal": "15"}),
        json!({"StopTimeout": -1}),
        json!({"WorkingDir": "relative"}),
        json!({"Env": ["=x"]}),
        json!({"Env": [""]}),
        json!({"Env": ["ONLY"]}),
        json!({"MacAddress": "odd"}),
        json!({"MacAddress": "02:42:ac:11:00:77"}),
        json!({"User": "odd-user"}),
        json!({"Healthcheck": {"Test": ["CMD", "true"], "Interval": 5}}),
        json!({"Healthcheck": {"Test": ["CMD", "true"], "Retries": -1}}),
        json!({"Healthcheck": {"Test": ["CMD", "true"], "Timeout": -1}}),
        json!({"Healthcheck": {"Test": ["ODD", "true"]}}),
    ];
    for mut config in configs {
        let step = config.to_string();
        config["Image"] = json!("busybox");
        let answer = run.quietly("POST", "/containers/create?name=worded", Some(&config));
        run.note(&format!("create with {step}"), json!(answer.status));
        if answer.status == 201 {
            let path = "/containers/worded/json";
            let kept = run.quietly("GET", path, None).json()["Config"].clone();
            let key = step.split('"').nth(1).unwrap_or_default();
            run.note(&format!("kept of {step}"), kept[key].clone());
            run.quietly("DELETE", "/containers/worded?force=1", None);
        }
    }
}

fn environment(run: &mut Run) {
    let body = json!({"Image": "rich:1", "User": "0", "Env": ["A=1", "EMPTY=", "RICH", "A=2", "SPACE= x y "], "Cmd": ["-c", "env | grep -v ^SHLVL | sort"]});
    run.runs("env", &body);
    run.inspect("env", &["/Config/Env"]);
    let mut tty = sh("env | grep -v ^SHLVL | sort");
    tty["Tty"] = json!(true);
    tty["Hostname"] = json!("named");
    run.start("tty", &tty);
    run.ended("tty");
    run.logs("tty", "stdout=1");
}

fn labels(run: &mut Run) {
    let body = json!({"Image": "rich:1", "Labels": {"a": "", "b.c/d": "x=y", "ü": "ß"}});
    run.create("labelled", &body);
    run.inspect("labelled", &["/Config/Labels"]);
    run.get(200, "/containers/json?all=1&filters=%7B%22label%22%3A%7B%22a%22%3Atrue%7D%7D");
}

fn working_folders(run: &mut Run) {
    let body = json!({"Image": "busybox", "WorkingDir": "/made/for/it", "Cmd": ["pwd"]});
    run.runs("folder", &body);
    run.inspect("folder", &["/Config/WorkingDir"]);
}

fn health_checks(run: &mut Run) {
    let body = json!({"Image": "busybox", "Healthcheck": {"Test": ["CMD-SHELL", "exit 0"], "Interval": 2_000_000_000_i64,
        "Timeout": 1_000_000_000, "Retries": 2, "StartPeriod": 1_000_000_000}});
    run.create("healthy", &body);
    run.inspect("healthy", &["/Config/Healthcheck", "/State/Health"]);
    run.create("inherits", &json!({"Image": "rich:1", "Healthcheck": {"Retries": 5}}));
    run.inspect("inherits", &["/Config/Healthcheck"]);
}

fn platform(run: &mut Run) {
    let body = json!({"Image": "busybox"});
    run.ask(201, "POST", "/containers/create?platform=linux/amd64", Some(&body));
    run.ask(404, "POST", "/containers/create?platform=linux/arm64", Some(&body));
    run.ask(400, "POST", "/containers/create?platform=a/b/c/d/e", Some(&body));
}

fn networking(run: &mut Run) {
    let two = json!({"Image": "busybox", "NetworkingConfig": {"EndpointsConfig": {"bridge": {}, "none": {}}}});
    run.ask(400, "POST", "/containers/create", Some(&two));
    run.create("disabled", &json!({"Image": "busybox", "NetworkDisabled": true}));
    run.get(200, "/containers/disabled/json");
    for mode in ["none", "host", "bridge", "default", ""] {
        let name = format!("net-{mode}x");
        run.create(&name, &with_host(json!({"Image": "busybox"}), json!({"NetworkMode": mode})));
        run.inspect(&name, &["/HostConfig/NetworkMode", "/NetworkSettings", "/Config/Hostname"]);
    }
    let lost = with_host(json!({"Image": "busybox"}), json!({"NetworkMode": "nowhere"}));
    let created = run.quietly("POST", "/containers/create?name=lost", Some(&lost)).status;
    let started = run.quietly("POST", "/containers/lost/start", None).status;
    run.note("a network that isn't there is refused", json!(created.max(started)));
}

fn nulls(run: &mut Run) {
    let body = json!({"Image": "busybox", "Cmd": null, "Entrypoint": null, "Env": null, "Labels": null, "Volumes": null,
        "ExposedPorts": null, "Healthcheck": null, "OnBuild": null, "HostConfig": null, "NetworkingConfig": null});
    run.create("nulls", &body);
    run.inspect("nulls", &["/Config", "/HostConfig"]);
    let host = json!({"Binds": null, "PortBindings": null, "CapAdd": null, "Dns": null, "RestartPolicy": {}, "LogConfig": {},
        "Ulimits": null, "Mounts": null, "Devices": null, "Memory": 0, "MemorySwappiness": -1, "PidsLimit": 0, "OomKillDisable": false});
    run.create("zeros", &with_host(json!({"Image": "busybox"}), host));
    run.inspect("zeros", &["/HostConfig"]);
    let empties = json!({"Binds": [], "PortBindings": {}, "CapAdd": [], "Dns": [], "DnsOptions": [], "DnsSearch": [], "Mounts": [],
        "Devices": [], "Ulimits": [], "SecurityOpt": [], "Tmpfs": {}, "Sysctls": {}, "Links": [], "GroupAdd": [], "VolumesFrom": []});
    run.create("empties", &with_host(json!({"Image": "busybox", "Cmd": [], "Env": [], "Labels": {}}), empties));
    run.inspect("empties", &["/Config", "/HostConfig"]);
}

fn legacy_fields(run: &mut Run) {
    let body = json!({"Image": "busybox", "HostConfig": {"LxcConf": null, "DiskQuota": 0, "PublishService": "", "IOMaximumIOps": 0,
        "CpuCount": 0, "CpuPercent": 0, "Isolation": "", "ContainerIDFile": "/tmp/x"}});
    run.create("legacy", &body);
    run.inspect("legacy", &["/HostConfig"]);
}

fn volumes_from(run: &mut Run) {
    let root = run.folder().join("shared").display().to_string();
    std::fs::create_dir_all(&root).unwrap();
    let host = json!({"Binds": [format!("{root}:/bound:ro"), "named:/named"], "Tmpfs": {"/tmpfs": "size=64k"}});
    let mut body = with_host(sh("true"), host);
    body["Volumes"] = json!({"/anonymous": {}});
    run.create("giver", &body);
    run.create("taker", &with_host(sh("true"), json!({"VolumesFrom": ["giver"]})));
    run.create("reader", &with_host(sh("true"), json!({"VolumesFrom": ["giver:ro"]})));
    for name in ["giver", "taker", "reader"] {
        run.inspect(name, &["/Mounts", "/Config/Volumes", "/HostConfig/VolumesFrom"]);
    }
    run.ask(400, "POST", "/containers/create", Some(&with_host(sh("true"), json!({"VolumesFrom": ["giver:odd"]}))));
}
