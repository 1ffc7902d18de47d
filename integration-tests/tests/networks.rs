//! Networks of users through the real docker client: names, isolation, changes while containers live, what survives the engine,
//! and what is left afterwards.

use integration_tests::{
    Dice, Outcome, Stack, eventually,
    programs::peer_or_skip,
    run,
    stack::{Setup, has_docker},
};
use serde_json::{Value, json};
use std::{
    net::{Ipv6Addr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// Names of busybox containers that sleep.
fn sleeper(stack: &Stack, name: &str, args: &[&str]) {
    let run = ["run", "-d", "--name", name, "--stop-timeout", "0"];
    stack.docker(run.iter().chain(args).chain(&["busybox", "sleep", "100000"])).success();
}

fn exec(stack: &Stack, container: &str, command: &[&str]) -> Outcome {
    stack.docker(["exec", container].iter().chain(command))
}

/// The IPv4 addresses that a name has for a container.
fn resolve(stack: &Stack, container: &str, name: &str) -> Vec<String> {
    let output = exec(stack, container, &["nslookup", "-type=a", name, "127.0.0.11"]).stdout();
    // The server's own address comes first.
    let answer = output.split("\n\n").skip(1).collect::<Vec<_>>().join("\n");
    let mut found: Vec<String> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("Address").and_then(|rest| rest.split(": ").nth(1)))
        .map(|address| address.split_whitespace().next().unwrap_or_default().to_owned())
        .collect();
    found.sort();
    found
}

fn address(stack: &Stack, container: &str, network: &str) -> String {
    let inspect = stack.inspect(container);
    inspect["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap_or_default().to_owned()
}

fn reaches(stack: &Stack, from: &str, to: &str) -> bool {
    exec(stack, from, &["ping", "-c1", "-W1", to]).code() == 0
}

fn remove(stack: &Stack, networks: &[&str]) {
    stack.remove_all();
    stack.docker(["network", "rm"].iter().chain(networks)).success();
}

#[test]
fn containers_find_each_other_by_name_alias_and_id() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    stack.docker(["network", "create", "front"]).success();
    sleeper(&stack, "web", &["--network", "front", "--network-alias", "www", "--network-alias", "shared"]);
    sleeper(&stack, "db", &["--network", "front", "--network-alias", "shared", "--hostname", "database"]);
    let (web, db) = (address(&stack, "web", "front"), address(&stack, "db", "front"));
    let id = stack.inspect("web")["Id"].as_str().unwrap()[..12].to_owned();
    for name in ["web", "www", "WEB", "web.front", &id] {
        assert_eq!(resolve(&stack, "db", name), std::slice::from_ref(&web), "{name}");
    }
    assert_eq!(resolve(&stack, "web", "database"), std::slice::from_ref(&db));
    let mut both = vec![web.clone(), db.clone()];
    both.sort();
    assert_eq!(resolve(&stack, "web", "shared"), both);
    assert!(reaches(&stack, "db", &web) && reaches(&stack, "web", &db));
    let reverse = exec(&stack, "web", &["nslookup", &db, "127.0.0.11"]).stdout();
    assert!(reverse.contains("db.front"), "{reverse}");
    let file = exec(&stack, "web", &["cat", "/etc/resolv.conf"]).stdout();
    assert!(
        file.starts_with("nameserver 127.0.0.11") && file.contains("options ") && file.contains("ndots:"),
        "{file}"
    );
    let hosts = exec(&stack, "db", &["cat", "/etc/hosts"]).stdout();
    assert!(hosts.contains(&format!("{db}\tdatabase")), "{hosts}");
    let shown = &stack.inspect("web")["NetworkSettings"]["Networks"]["front"];
    assert_eq!(shown["Aliases"], json!(["www", "shared"]));
    assert_eq!(shown["DNSNames"], json!(["web", "www", "shared", id]));

    stack.docker(["rename", "web", "site"]).success();
    assert_eq!(resolve(&stack, "db", "site"), [web]);
    assert!(resolve(&stack, "db", "web").is_empty());
    stack.docker(["stop", "-t", "0", "db"]).success();
    assert!(resolve(&stack, "site", "database").is_empty());
    remove(&stack, &["front"]);
}

#[test]
fn networks_are_apart_until_a_container_joins_both() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    for name in ["front", "back"] {
        stack.docker(["network", "create", name]).success();
    }
    sleeper(&stack, "web", &["--network", "front"]);
    sleeper(&stack, "db", &["--network", "back"]);
    let db = address(&stack, "db", "back");
    assert!(!reaches(&stack, "web", &db) && resolve(&stack, "web", "db").is_empty());
    stack.docker(["network", "connect", "--alias", "frontend", "back", "web"]).success();
    assert!(reaches(&stack, "web", &db));
    assert_eq!(resolve(&stack, "web", "db"), std::slice::from_ref(&db));
    assert_eq!(resolve(&stack, "db", "frontend"), [address(&stack, "web", "back")]);
    let links = exec(&stack, "web", &["ip", "-o", "addr"]).stdout();
    assert!(links.contains("eth0") && links.contains("eth1"), "{links}");
    let again = stack.docker(["network", "connect", "back", "web"]).expect_code(1);
    assert!(again.stderr().contains("endpoint with name web already exists in network back"), "{again}");
    let used = stack.docker(["network", "rm", "back"]).expect_code(1);
    assert!(used.stderr().contains("has active endpoints"), "{used}");
    let shown: Value = stack.api().get("/networks/back").json();
    let mut names: Vec<_> = shown["Containers"].as_object().unwrap().values().map(|c| c["Name"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["db", "web"]);

    stack.docker(["network", "disconnect", "front", "web"]).success();
    assert!(reaches(&stack, "web", &db), "by the network that is left");
    assert_eq!(resolve(&stack, "web", "db"), std::slice::from_ref(&db));
    stack.docker(["network", "disconnect", "back", "web"]).success();
    assert!(!reaches(&stack, "web", &db));
    let missing = stack.docker(["network", "disconnect", "back", "web"]).expect_code(1);
    assert!(missing.stderr().contains("is not connected to"), "{missing}");
    // It has what it is left with after a restart, too.
    stack.docker(["network", "connect", "front", "web"]).success();
    stack.docker(["restart", "-t", "0", "web"]).success();
    let networks = stack.inspect("web")["NetworkSettings"]["Networks"].clone();
    assert_eq!(networks.as_object().unwrap().keys().collect::<Vec<_>>(), ["front"]);
    // The client cuts relative times down to seconds: until the next but one, so that what was just done is in it.
    let until = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 2;
    let until = until.to_string();
    let events =
        stack.docker(["events", "--since", "0", "--until", &until, "--filter", "type=network"]).success().stdout();
    for action in ["network create", "network connect", "network disconnect"] {
        assert!(events.contains(action), "{events}");
    }
    remove(&stack, &["front", "back"]);
}

#[test]
fn names_and_links_outlive_engine_and_supervisor() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    stack.docker(["network", "create", "--subnet", "10.235.77.0/24", "net"]).success();
    sleeper(&stack, "web", &["--network", "net", "--ip", "10.235.77.40"]);
    // Counts how often it did not get an answer, for as long as it is let.
    let script = "n=0; f=0; while [ ! -e /stop ]; do n=$((n+1)); nslookup -type=a web 127.0.0.11 | grep -q 10.235.77.40 || f=$((f+1)); \
                  ping -c1 -W2 10.235.77.40 >/dev/null || f=$((f+1)); done; echo $n $f";
    stack.docker(["run", "-d", "--name", "asker", "--network", "net", "busybox", "sh", "-c", script]).success();
    for _ in 0..3 {
        stack.kill_engine();
        stack.kill_supervisor();
        std::thread::sleep(std::time::Duration::from_millis(500));
        stack.start_supervisor();
        stack.start_engine();
        assert_eq!(address(&stack, "web", "net"), "10.235.77.40");
        assert_eq!(resolve(&stack, "asker", "web"), ["10.235.77.40"]);
    }
    // Detached: the loop may end, and the container with it, before this has.
    stack.docker(["exec", "-d", "asker", "touch", "/stop"]).success();
    stack.docker(["wait", "asker"]).success();
    let counted = stack.docker(["logs", "asker"]).success().stdout();
    let counts: Vec<u32> = counted.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(counts[0] > 5 && counts[1] == 0, "of {} rounds {} failed", counts[0], counts[1]);
    // The one that was asked for, also when the container starts anew.
    stack.docker(["restart", "-t", "0", "web"]).success();
    assert_eq!(address(&stack, "web", "net"), "10.235.77.40");
    remove(&stack, &["net"]);
}

#[test]
fn a_resolver_that_dies_is_replaced() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    stack.docker(["network", "create", "net"]).success();
    let port = 22_000 + stack.gateway().split('.').nth(2).unwrap().parse::<u16>().unwrap();
    sleeper(&stack, "one", &["--network", "net"]);
    sleeper(&stack, "two", &["--network", "net", "-p", &format!("{port}:80")]);
    let b = address(&stack, "two", "net");
    assert_eq!(resolve(&stack, "one", "two"), std::slice::from_ref(&b));
    // It listens there; nobody does in the container.
    let is_held = || TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok();
    assert!(is_held());
    let socket = stack.run_root().join("engine/names.sock").display().to_string();
    let resolver = || {
        let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
            let ours = String::from_utf8_lossy(&line).split('\0').any(|word| word == socket);
            ours.then_some(pid)
        });
        lines.collect::<Vec<_>>()
    };
    let first = resolver();
    assert_eq!(first.len(), 1, "one process for all containers");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("another resolver answers", || {
        (resolve(&stack, "one", "two") == std::slice::from_ref(&b)).then_some(())
    });
    assert_ne!(resolver(), first);
    eventually("the port is held by it", || is_held().then_some(()));
    remove(&stack, &["net"]);
}

#[test]
fn create_inspect_list_and_prune() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    let id = stack
        .docker([
            "network",
            "create",
            "--label",
            "a=b",
            "--subnet",
            "10.235.78.0/24",
            "--gateway",
            "10.235.78.9",
            "--ip-range",
            "10.235.78.64/26",
            "--aux-address",
            "router=10.235.78.70",
            "--internal",
            "-o",
            "com.docker.network.driver.mtu=1400",
            "inner",
        ])
        .success()
        .stdout();
    let shown: Value = stack.api().get(&format!("/networks/{}", &id[..8])).expect(200).json();
    assert_eq!((shown["Name"].as_str(), shown["Driver"].as_str()), (Some("inner"), Some("bridge")));
    assert_eq!(
        shown["IPAM"]["Config"],
        json!([{"Subnet": "10.235.78.0/24", "Gateway": "10.235.78.9", "IPRange": "10.235.78.64/26",
                "AuxiliaryAddresses": {"router": "10.235.78.70"}}])
    );
    assert_eq!((&shown["Internal"], &shown["Labels"]), (&json!(true), &json!({"a": "b"})));
    sleeper(&stack, "one", &["--network", "inner"]);
    assert_eq!(address(&stack, "one", "inner"), "10.235.78.64");
    let link = exec(&stack, "one", &["ip", "link", "show", "eth0"]).stdout();
    assert!(link.contains("mtu 1400"), "{link}");
    assert!(!exec(&stack, "one", &["ip", "route"]).stdout().contains("default"));

    let refusals = [
        (&["network", "create", "inner"][..], "network with name inner already exists"),
        (&["network", "create", "bridge"], "operation is not permitted on predefined bridge network"),
        (
            &["network", "create", "--subnet", "10.235.78.0/25", "x"],
            "Pool overlaps with other one on this address space",
        ),
        (&["network", "create", "-d", "nope", "x"], "plugin \"nope\" not found"),
        (&["network", "create", "-d", "macvlan", "-o", "parent=nope0", "x"], "invalid parent interface \"nope0\""),
        (&["network", "create", "--subnet", "fd00:7::/64", "x"], "IPv6 is not enabled"),
        (&["network", "create", "-o", "com.docker.network.bridge.enable_icc=x", "x"], "enable_icc"),
        (&["network", "rm", "host"], "host is a pre-defined network and cannot be removed"),
        (&["network", "rm", "nope"], "network nope not found"),
        (&["network", "connect", "host", "one"], "host network"),
        (&["network", "connect", "--ip", "10.1.1.1", "inner", "two"], "No such container: two"),
        (&["run", "--rm", "--network", "inner", "--ip", "10.9.9.9", "busybox", "true"], "no configured subnet"),
        (&["run", "--rm", "--network", "inner", "--ip", "10.235.78.64", "busybox", "true"], "already in use"),
        (&["run", "--rm", "--ip", "10.9.9.9", "busybox", "true"], "user defined networks only"),
        (&["run", "--rm", "--network", "nope", "busybox", "true"], "network nope not found"),
    ];
    for (args, text) in refusals {
        let outcome = stack.docker(args.iter());
        assert_ne!(outcome.code(), 0, "{args:?}");
        assert!(outcome.stderr().contains(text), "{args:?}: {outcome}");
    }
    stack.docker(["network", "create", "--label", "x=y", "spare"]).success();
    let list = |args: &[&str]| {
        let listed = stack.docker(["network", "ls", "--format", "{{.Name}}"].iter().chain(args)).success().stdout();
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(list(&[]), ["bridge", "host", "inner", "none", "spare"]);
    assert_eq!(list(&["--filter", "type=custom"]), ["inner", "spare"]);
    assert_eq!(list(&["--filter", "label=a=b"]), ["inner"]);
    assert_eq!(list(&["--filter", "dangling=true"]), ["spare"]);
    assert_eq!(list(&["--filter", "driver=null"]), ["none"]);
    assert_eq!(list(&["--filter", &format!("id={}", &id[..10])]), ["inner"]);
    stack.docker(["network", "prune", "-f", "--filter", "label=q"]).success();
    assert_eq!(list(&["--filter", "type=custom"]), ["inner", "spare"]);
    let pruned = stack.docker(["network", "prune", "-f"]).success().stdout();
    assert!(pruned.contains("spare") && !pruned.contains("inner"), "{pruned}");
    // What is on record is there again after a kill.
    stack.kill_engine();
    stack.start_engine();
    assert_eq!(list(&["--filter", "type=custom"]), ["inner"]);
    remove(&stack, &["inner"]);
    assert!(
        !std::fs::read_dir("/sys/class/net")
            .unwrap()
            .flatten()
            .any(|link| { link.file_name().to_string_lossy() == format!("br-{}", &id[..12]) })
    );
}

#[test]
fn a_network_shared_with_another_container() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    stack.docker(["network", "create", "net"]).success();
    sleeper(&stack, "host", &["--network", "net", "--hostname", "shown"]);
    sleeper(&stack, "guest", &["--network", "container:host"]);
    let own = address(&stack, "host", "net");
    let links = exec(&stack, "guest", &["ip", "-o", "addr"]).stdout();
    assert!(links.contains(&own), "{links}");
    assert_eq!(exec(&stack, "guest", &["hostname"]).stdout(), "shown");
    assert_eq!(resolve(&stack, "guest", "host"), [own]);
    assert_eq!(stack.inspect("guest")["NetworkSettings"]["Networks"], json!({}));
    let refused = stack.docker(["network", "connect", "net", "guest"]).expect_code(1);
    assert!(refused.stderr().contains("container sharing network namespace"), "{refused}");
    stack.docker(["rm", "-f", "-t", "host"]).code();
    stack.docker(["stop", "-t", "0", "guest", "host"]).success();
    let refused = stack.docker(["start", "guest"]).expect_code(1);
    assert!(refused.stderr().contains("cannot join network of a non running container"), "{refused}");
    let bad = stack.docker(["run", "--network", "container:host", "-p", "80", "busybox", "true"]);
    assert!(bad.stderr().contains("conflicting options"), "{bad}");
    let disabled: Value = stack
        .api()
        .post(
            "/containers/create?name=off",
            Some(&json!({"Image": "busybox", "Cmd": ["ip", "link"], "NetworkDisabled": true})),
        )
        .expect(201)
        .json();
    assert!(disabled["Id"].is_string());
    let shown = stack.docker(["start", "-a", "off"]).success().stdout();
    assert!(shown.contains("lo:") && !shown.contains("eth0"), "{shown}");
    remove(&stack, &["net"]);
}

#[test]
fn what_compose_sends() {
    let stack = Stack::with_busybox();
    let api = stack.api();
    let labels = json!({"com.docker.compose.project": "app", "com.docker.compose.network": "default"});
    let network = json!({"Name": "app_default", "CheckDuplicate": true, "Driver": "bridge", "Labels": labels,
                         "IPAM": {"Driver": "", "Config": null}, "Options": null, "EnableIPv6": false});
    api.post("/networks/create", Some(&network)).expect(201);
    api.post("/networks/create", Some(&network)).expect(409);
    let extra = json!({"Name": "app_extra", "Labels": labels, "IPAM": {"Config": [{"Subnet": "10.235.79.0/24"}]}});
    api.post("/networks/create", Some(&extra)).expect(201);
    let filter = "%7B%22label%22%3A%7B%22com.docker.compose.project%3Dapp%22%3Atrue%7D%7D";
    let found = api.get(&format!("/networks?filters={filter}")).expect(200).json();
    assert_eq!(found.as_array().map(Vec::len), Some(2));
    for (service, ports) in [("web", json!({"80/tcp": [{"HostPort": "", "HostIp": "127.0.0.1"}]})), ("db", json!({}))] {
        let name = format!("app-{service}-1");
        let endpoint = |priority: i64| json!({"Aliases": [name, service], "IPAMConfig": null, "GwPriority": priority});
        let body = json!({
            "Image": "busybox", "Cmd": ["sleep", "100000"], "StopTimeout": 0,
            "HostConfig": {"NetworkMode": "app_default", "PortBindings": ports},
            "NetworkingConfig": {"EndpointsConfig": {"app_default": endpoint(0), "app_extra": endpoint(5)}},
        });
        let made = api.post(&format!("/containers/create?name={name}"), Some(&body)).expect(201).json();
        api.post(&format!("/containers/{}/start", made["Id"].as_str().unwrap()), None).expect(204);
    }
    let web = stack.inspect("app-web-1");
    let networks = &web["NetworkSettings"]["Networks"];
    assert_eq!(networks["app_extra"]["GwPriority"], json!(5));
    assert!(web["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"].is_string(), "{web}");
    let route = stack.berth(["exec", "app-web-1", "ip", "route"]).success().stdout();
    assert!(route.contains("default via 10.235.79.1 dev eth1"), "{route}");
    let names = stack.berth(["exec", "app-web-1", "nslookup", "-type=a", "db", "127.0.0.11"]).success().stdout();
    // By the network that is the way out.
    assert!(names.contains("Address: 10.235.79.3"), "{names}");
    api.delete("/networks/app_default").expect(403);
    stack.remove_all();
    api.delete("/networks/app_default").expect(204);
    api.delete("/networks/app_extra").expect(204);
    api.delete("/networks/app_extra").expect(404);
}

/// The system calls of the engine that make processes or run programs, while `work` is done.
fn processes_started(stack: &Stack, work: impl FnOnce()) -> Vec<String> {
    let trace = stack.path().join("trace");
    let pid = stack.engine_pid().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=execve,execveat,clone,clone3,fork,vfork", "-p", &pid, "-o"]).arg(&trace);
    let mut strace = strace.spawn().unwrap();
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    eventually("every thread is traced", || {
        let traced = |status: String| status.contains(&format!("TracerPid:\t{}\n", strace.id()));
        threads().all(|t| std::fs::read_to_string(t.path().join("status")).is_ok_and(traced)).then_some(())
    });
    work();
    // SIGINT: it detaches and ends.
    let tracer = nix::unistd::Pid::from_raw(strace.id().cast_signed());
    nix::sys::signal::kill(tracer, nix::sys::signal::Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(&trace).unwrap();
    // Threads aren't processes; that the call was seen shows that it is traced.
    assert!(text.contains("CLONE_THREAD"), "nothing was traced: {text}");
    // What ended in another line was begun in one that has the flags.
    let process = |line: &&str| !line.contains("CLONE_THREAD") && !line.contains("resumed>");
    text.lines().filter(|line| line.contains('(')).filter(process).map(str::to_owned).collect()
}

#[test]
fn set_up_starts_no_process() {
    if peer_or_skip("strace").is_none() {
        return;
    }
    let stack = Stack::with_busybox();
    let api = stack.api();
    api.post("/networks/create", Some(&json!({"Name": "before"}))).expect(201);
    let body = |network: &str, port: u16| {
        let ports = json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]});
        json!({"Image": "busybox", "Cmd": ["sleep", "100000"], "StopTimeout": 0,
               "HostConfig": {"NetworkMode": network, "PortBindings": ports}})
    };
    api.post("/containers/create?name=member", Some(&body("before", 0))).expect(201);
    api.post("/containers/member/start", None).expect(204);
    let started = processes_started(&stack, || {
        api.post("/networks/create", Some(&json!({"Name": "during"}))).expect(201);
        let member = json!({"Container": "member"});
        api.post("/networks/during/connect", Some(&member)).expect(200);
        api.post("/networks/during/disconnect", Some(&member)).expect(200);
        api.post("/containers/create?name=other", Some(&body("during", 0))).expect(201);
        api.post("/containers/other/start", None).expect(204);
        api.delete("/containers/other?force=1").expect(204);
        api.delete("/networks/during").expect(204);
    });
    assert!(started.is_empty(), "{started:#?}");
    stack.remove_all();
    api.delete("/networks/before").expect(204);
}

/// Asks again and again until it is told to stop; how often, and what went wrong.
fn asks(over: &AtomicBool, mut once: impl FnMut() -> Result<(), String>) -> (usize, Vec<String>) {
    let (mut times, mut failures) = (0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        times += 1;
        failures.extend(once().err());
    }
    (times, failures)
}

#[test]
fn names_and_ports_serve_through_ten_kills() {
    const KILLS: usize = 10;
    let stack = Stack::start_with(Setup { keep_supervisor: true, ..Setup::default() });
    stack.load_busybox();
    let api = stack.api();
    let port = testing::free_port();
    api.post("/networks/create", Some(&json!({"Name": "net"}))).expect(201);
    let start = |name: &str, command: Value, host: Value| {
        let body = json!({"Image": "busybox", "Cmd": command, "StopTimeout": 0, "HostConfig": host});
        api.post(&format!("/containers/create?name={name}"), Some(&body)).expect(201);
        api.post(&format!("/containers/{name}/start"), None).expect(204);
    };
    let ports = json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]});
    start("web", json!(["httpd", "-f", "-h", "/www"]), json!({"NetworkMode": "net", "PortBindings": ports}));
    // One line for each failure, and the number of rounds at the end. (A limit of its own is what busybox's static wget crashes on.)
    let script = "n=0; while [ ! -e /stop ]; do n=$((n+1)); \
         nslookup -type=a web 127.0.0.11 >/tmp/said 2>&1 || echo round $n: name: $(cat /tmp/said); \
         wget -q -O- http://web/index.html >/tmp/said 2>&1 && grep -q 'hello from berth' /tmp/said || echo round $n: page: $(cat /tmp/said); \
         done; echo rounds $n";
    start("asker", json!(["sh", "-c", script]), json!({"NetworkMode": "net"}));
    let before = [stack.inspect("web"), stack.inspect("asker")];

    let over = AtomicBool::new(false);
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    println!("seed {clock}");
    let (times, failures) = thread::scope(|scope| {
        let fetches = scope.spawn(|| {
            asks(&over, || {
                let page = run("curl", ["-sS", "-m", "5", &format!("http://127.0.0.1:{port}/index.html")]);
                (page.stdout() == "hello from berth").then_some(()).ok_or_else(|| page.to_string())
            })
        });
        // Whatever happens, the loop ends.
        let killed = catch_unwind(AssertUnwindSafe(|| {
            let mut dice = Dice::new(clock.into());
            for kill in 0..KILLS {
                // A moment by chance, not a wait for anything.
                thread::sleep(Duration::from_millis(dice.roll(300) as u64));
                stack.kill_engine();
                thread::sleep(Duration::from_millis(dice.roll(100) as u64));
                stack.kill_supervisor();
                thread::sleep(Duration::from_millis(dice.roll(300) as u64));
                stack.start_supervisor();
                stack.start_engine();
                for was in &before {
                    let name = was["Name"].as_str().unwrap();
                    let is = stack.inspect(&name[1..]);
                    for place in ["/State/Pid", "/State/Status", "/NetworkSettings/Networks", "/NetworkSettings/Ports"]
                    {
                        assert_eq!(is.pointer(place), was.pointer(place), "{name} {place} after kill {kill}");
                    }
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        let found = fetches.join().unwrap();
        killed.unwrap_or_else(|panic| resume_unwind(panic));
        found
    });
    assert!(failures.is_empty(), "of {times} fetches through the port failed: {failures:#?}");
    // Detached: the loop may end, and the container with it, before this has.
    stack.berth(["exec", "-d", "asker", "touch", "/stop"]).success();
    stack.berth(["wait", "asker"]).success();
    let said = stack.berth(["logs", "asker"]).success().stdout();
    let rounds = said.strip_prefix("rounds ").and_then(|rest| rest.parse::<usize>().ok());
    assert!(rounds.is_some(), "the container's loop says:\n{said}");
    println!("{times} fetches through the port, {rounds:?} rounds in the container");
    assert!(times > KILLS && rounds.unwrap() > KILLS, "{times} and {rounds:?} in {KILLS} kills are too few to tell");
    stack.remove_all();
    api.delete("/networks/net").expect(204);
}

#[test]
fn both_families_and_ipv6_alone() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    stack.docker(["network", "create", "--ipv6", "both"]).success();
    // Docker's client of 20.10 has no word for it.
    let six = json!({"Name": "six", "EnableIPv4": false, "EnableIPv6": true});
    stack.api().post("/networks/create", Some(&six)).expect(201);
    let shown: Value = serde_json::from_str(&stack.docker(["network", "inspect", "both", "six"]).stdout()).unwrap();
    let subnets = |n: usize| shown[n]["IPAM"]["Config"].as_array().map_or(0, Vec::len);
    assert_eq!((subnets(0), subnets(1)), (2, 1), "{shown}");
    assert_eq!((&shown[1]["EnableIPv4"], &shown[1]["EnableIPv6"]), (&json!(false), &json!(true)));
    sleeper(&stack, "web", &["--network", "both", "-p", "8080"]);
    sleeper(&stack, "other", &["--network", "both"]);
    let ports = stack.docker(["port", "web"]).success().stdout();
    assert!(ports.contains("8080/tcp -> 0.0.0.0:") && ports.contains("8080/tcp -> [::]:"), "{ports}");
    let both = stack.inspect("web")["NetworkSettings"]["Networks"]["both"].clone();
    let six = both["GlobalIPv6Address"].as_str().unwrap().to_owned();
    assert!(six.starts_with("fd") && both["IPv6Gateway"].as_str().unwrap().ends_with("::1"), "{both}");
    let answer = exec(&stack, "other", &["nslookup", "-type=aaaa", "web", "127.0.0.11"]).stdout();
    assert!(answer.contains(&six), "{answer}");
    assert_eq!(exec(&stack, "other", &["ping", "-6", "-c1", "-W2", "web"]).code(), 0);
    assert_eq!(exec(&stack, "other", &["ping", "-4", "-c1", "-W2", "web"]).code(), 0);
    sleeper(&stack, "lone", &["--network", "six"]);
    assert_eq!(exec(&stack, "lone", &["ip", "-4", "-o", "addr", "show", "eth0"]).stdout(), "");
    // Joined and left while it lives; names of both networks then.
    stack.docker(["network", "connect", "both", "lone"]).success();
    assert_eq!(exec(&stack, "lone", &["ping", "-6", "-c1", "-W2", "web"]).code(), 0);
    assert_eq!(exec(&stack, "lone", &["ping", "-4", "-c1", "-W2", "web"]).code(), 0);
    stack.kill_engine();
    stack.start_engine();
    assert_eq!(exec(&stack, "other", &["ping", "-6", "-c1", "-W2", "lone"]).code(), 0);
    stack.docker(["network", "disconnect", "both", "lone"]).success();
    assert_ne!(exec(&stack, "lone", &["ping", "-6", "-c1", "-W1", &six]).code(), 0);
    // A name that one container alone has for another.
    stack.docker(["network", "connect", "--link", "web:store", "both", "lone"]).success();
    assert_eq!(resolve(&stack, "lone", "store"), [address(&stack, "web", "both")]);
    assert_eq!(resolve(&stack, "other", "store"), Vec::<String>::new());
    remove(&stack, &["both", "six"]);
}
