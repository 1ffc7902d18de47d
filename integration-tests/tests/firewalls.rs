//! Networks beside firewalls and beside dockerd, for real: each test on a host of its own (a network namespace), with another computer
//! that asks.

use integration_tests::{
    Stack,
    dockerd::Dockerd,
    eventually,
    firewalls::{Firewalld, Ufw},
    host::{HOST, Host},
    programs,
    stack::{Setup, has_docker},
};

const HELLO: &str = "hello from berth";

/// A container that serves a page on port 80.
fn serve(stack: &Stack, name: &str, args: &[&str]) {
    let run = ["run", "-d", "--name", name, "--stop-timeout", "0"];
    let serve = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
    stack.docker(run.iter().chain(args).chain(&serve)).success();
}

/// Whether a container gets an answer from outside.
fn gets_out(stack: &Stack, container: &str) -> bool {
    let question = Host::question();
    let question = question.iter().map(String::as_str);
    Host::was_answered(&stack.docker(["exec", container].into_iter().chain(question)))
}

fn reaches(stack: &Stack, from: &str, to: &str) -> bool {
    let url = format!("http://{to}/");
    stack.docker(["exec", from, "busybox", "timeout", "2", "wget", "-q", "-O-", &url]).stdout().contains(HELLO)
}

fn log(stack: &Stack) -> String {
    std::fs::read_to_string(stack.path().join("berth-engine.log")).unwrap_or_default()
}

/// `berth-engine WORD` with the roots of a stack, on its host.
fn engine(stack: &Stack, host: &Host, variables: &[(String, String)], line: &[&str]) -> integration_tests::Outcome {
    let mut command = host.command(programs::program("berth-engine"));
    command.arg(line[0]).arg("--data-root").arg(stack.data_root()).arg("--run-root").arg(stack.run_root());
    command.args(["--bridge", &stack.bridge()]).args(&line[1..]).envs(variables.iter().cloned());
    integration_tests::run_with(&mut command, b"", std::time::Duration::from_secs(60))
}

#[test]
fn firewalld_lets_containers_through_and_its_reloads_cut_nothing() {
    beside_firewalld("nftables");
}

#[test]
fn firewalld_with_iptables_does_too() {
    beside_firewalld("iptables");
}

fn beside_firewalld(backend: &str) {
    if !has_docker() {
        return;
    }
    let host = Host::new();
    let Some(mut firewalld) = Firewalld::start(&host, backend) else { return };
    let variables = vec![("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), firewalld.address())];
    let setup =
        Setup { namespace: Some(host.namespace().to_owned()), variables: variables.clone(), ..Setup::default() };
    let stack = Stack::start_with(setup);
    stack.load_busybox();
    stack.docker(["network", "create", "front"]).success();
    let front = stack.docker(["network", "inspect", "-f", "{{slice .Id 0 12}}", "front"]).stdout();
    let front = format!("br-{front}");
    serve(&stack, "web", &["-p", "8080:80", "--network", "front"]);
    serve(&stack, "db", &["--network", "front"]);
    serve(&stack, "plain", &["-p", "8081:80"]);
    let check = |when: &str| {
        for bridge in [&front, &stack.bridge()] {
            eventually(&format!("{when}: zone"), || (firewalld.zone_of(bridge) == "berth").then_some(()));
        }
        eventually(&format!("{when}: out"), || gets_out(&stack, "web").then_some(()));
        eventually(&format!("{when}: out of the default network"), || gets_out(&stack, "plain").then_some(()));
        for port in [8080, 8081] {
            eventually(&format!("{when}: in to {port}"), || host.ask(port).contains(HELLO).then_some(()));
        }
        assert!(reaches(&stack, "web", "db"), "{when}: to each other");
        assert!(reaches(&stack, "plain", &format!("{HOST}:8080")), "{when}: by a published port");
    };
    check("at first");
    if backend == "nftables" {
        // A change of iptables' table is seen, and the zone made good at once.
        firewalld.cmd(&["--zone=berth", &format!("--remove-interface={front}")]).success();
        assert!(!gets_out(&stack, "web"), "it is the zone that lets it out");
    }
    firewalld.cmd(&["--reload"]).success();
    check("after --reload");
    firewalld.cmd(&["--complete-reload"]).success();
    check("after --complete-reload");
    let address = stack.inspect("db")["NetworkSettings"]["Networks"]["front"]["IPAddress"].as_str().unwrap().to_owned();
    host.outside(["ip", "route", "add", &format!("{address}/32"), "via", HOST]).success();
    let direct = host.outside(["timeout", "1", "busybox", "wget", "-q", "-O-", &format!("http://{address}/")]);
    assert!(!direct.stdout().contains(HELLO), "what isn't published stays closed, also with the zone");
    // What the host's owner has said holds.
    firewalld.cmd(&["--zone=trusted", &format!("--change-interface={front}")]).success();
    stack.docker(["network", "create", "back"]).success();
    assert_eq!(firewalld.zone_of(&front), "trusted");
    stack.docker(["network", "rm", "back"]).success();

    let info = stack.docker(["info"]);
    assert!(format!("{info}").contains("WARNING: firewalld keeps ports of this host closed"), "{info}");
    assert!(log(&stack).contains("container=\"web\" ports=\"0.0.0.0:8080/tcp\""), "{}", log(&stack));

    firewalld.end();
    eventually("without firewalld", || gets_out(&stack, "web").then_some(()));
    firewalld.run();
    eventually("firewalld again", || (firewalld.zone_of(&front) == "berth").then_some(()));
    eventually("out again", || gets_out(&stack, "web").then_some(()));

    stack.remove_all();
    stack.docker(["network", "rm", "front"]).success();
    assert_eq!(firewalld.zone_of(&front), "", "a network that goes leaves the zone");
    stack.kill_engine();
    let removed = engine(&stack, &host, &variables, &["cleanup"]).success();
    assert!(removed.stdout().contains("removed zone and policy of firewalld"), "{removed}");
    assert_eq!(firewalld.zone_of(&stack.bridge()), "");
    let permanent = firewalld.cmd(&["--permanent", "--get-zones"]).stdout();
    assert!(!permanent.contains("berth"), "{permanent}");
    let permanent = firewalld.cmd(&["--permanent", "--get-policies"]).stdout();
    assert!(!permanent.contains("berth"), "{permanent}");
}

#[test]
fn ufw_lets_containers_through_but_for_what_it_denies() {
    if !has_docker() {
        return;
    }
    let host = Host::new();
    let Some(ufw) = Ufw::prepare(&host) else { return };
    ufw.ufw("default deny incoming");
    ufw.ufw("default deny routed");
    ufw.ufw("enable");
    let stack = Stack::start_with(Setup { namespace: Some(host.namespace().to_owned()), ..Setup::default() });
    stack.load_busybox();
    stack.docker(["network", "create", "front"]).success();
    serve(&stack, "web", &["-p", "8080:80", "--network", "front"]);
    serve(&stack, "db", &["--network", "front"]);
    let check = |when: &str| {
        eventually(&format!("{when}: out"), || gets_out(&stack, "web").then_some(()));
        eventually(&format!("{when}: in"), || host.ask(8080).contains(HELLO).then_some(()));
        assert!(reaches(&stack, "web", "db"), "{when}: to each other");
    };
    check("at first");
    ufw.ufw("reload");
    check("after reload");
    ufw.ufw("disable");
    check("disabled");
    assert!(!format!("{}", stack.docker(["info"])).contains("keeps ports of this host closed"), "nothing to say then");
    ufw.ufw("enable");
    check("enabled again");
    // ufw sees packets after their destination was rewritten: the container's port.
    ufw.ufw("route deny proto tcp to any port 80");
    eventually("ufw denies it", || host.ask(8080).is_empty().then_some(()));
    assert!(gets_out(&stack, "web"), "nothing else is denied");
    ufw.ufw("route delete deny proto tcp to any port 80");
    eventually("and allows it", || host.ask(8080).contains(HELLO).then_some(()));
    // The owner's own chain here, by the port that was asked for.
    let table = format!("berth_{}", stack.bridge());
    let deny = format!("add rule inet {table} user iifname eth9 meta l4proto tcp ct original proto-dst 8080 drop");
    host.run(["nft", &deny]).success();
    eventually("chain user denies it", || host.ask(8080).is_empty().then_some(()));
    host.run(["nft", "flush", "chain", "inet", &table, "user"]).success();

    // A default that rejects is a rule of ufw's and decides, which one that denies leaves to others.
    ufw.ufw("default reject routed");
    eventually("ufw rejects", || (host.ask(8080).is_empty() && !gets_out(&stack, "web")).then_some(()));
    ufw.ufw("default deny routed");
    check("denied by default again");

    let info = stack.docker(["info"]);
    assert!(format!("{info}").contains("WARNING: ufw keeps ports of this host closed"), "{info}");
    let said = log(&stack);
    let line = said.lines().find(|line| line.contains("container=\"web\"")).unwrap_or_default();
    assert!(line.contains("8080/tcp") && line.contains("firewall=\"ufw\"") && line.contains("WARN"), "{said}");
    assert!(!said.contains("container=\"db\""), "nothing is published there: {said}");
    let rules = host.run(["iptables-nft", "-S", "FORWARD"]).success();
    stack.remove_all();
    stack.docker(["network", "rm", "front"]).success();
    stack.stop_engine();
    let left = host.rules();
    assert!(!left.contains("berth") && !left.contains(&stack.bridge()), "{rules} {left}");
    assert!(left.contains("ufw-before-forward"), "{left}");
}

#[test]
fn a_default_address_of_loopback_keeps_published_ports_on_the_host() {
    if !has_docker() {
        return;
    }
    let host = Host::new();
    let setup = Setup {
        namespace: Some(host.namespace().to_owned()),
        engine_args: vec!["--ip".to_owned(), "127.0.0.1".to_owned()],
        ..Setup::default()
    };
    let stack = Stack::start_with(setup);
    stack.load_busybox();
    serve(&stack, "quiet", &["-p", "8080:80"]);
    serve(&stack, "open", &["-p", "0.0.0.0:8081:80"]);
    eventually("said to be open", || host.ask(8081).contains(HELLO).then_some(()));
    assert_eq!(host.ask(8080), "", "nothing was said");
    let here = host.run(["timeout", "2", "busybox", "wget", "-q", "-O-", "http://127.0.0.1:8080/"]);
    assert!(here.stdout().contains(HELLO), "{here}");
    assert!(!log(&stack).contains("keeps ports closed"), "there is no firewall: {}", log(&stack));
}

/// The rules of a table, without what is counted and without those that one of ours has put there.
fn rules_of_others(host: &Host, stack: &Stack) -> Vec<String> {
    let (mut ours, mut others) = (false, Vec::new());
    for line in host.rules().lines() {
        if line.starts_with("table ") {
            ours = line.contains("berth_");
        }
        if !ours && !line.contains(&format!("berth_{}", stack.bridge())) {
            others.push(line.to_owned());
        }
    }
    others
}

/// That dockerd's rules are as they were.
#[track_caller]
fn assert_same(before: &[String], now: &[String]) {
    let gone: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
    let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
    assert!(before == now, "gone: {gone:#?}, new: {new:#?}, or in another order: {now:#?}");
}

#[test]
fn dockerd_and_a_stack_live_on_one_host() {
    if !has_docker() {
        return;
    }
    let host = Host::new();
    // dockerd makes the policy of FORWARD drop when it is the one who turns forwarding on.
    host.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]).success();
    let Some(mut dockerd) = Dockerd::start_on(&host) else { return };
    assert!(host.run(["iptables-nft", "-S", "FORWARD"]).stdout().contains("-P FORWARD DROP"));
    dockerd.load_busybox();
    let serving = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
    dockerd.docker(["run", "-d", "--name", "theirs", "-p", "9090:80"].iter().chain(&serving)).success();
    dockerd.docker(["network", "create", "their-net"]).success();
    dockerd
        .docker(["run", "-d", "--name", "theirs2", "--network", "their-net", "-p", "9091:80"].iter().chain(&serving))
        .success();
    let get = Host::question();
    let their_out = |dockerd: &Dockerd, name: &str| {
        Host::was_answered(&dockerd.docker(["exec", name].into_iter().chain(get.iter().map(String::as_str))))
    };
    let check_theirs = |dockerd: &Dockerd, when: &str| {
        for (name, port) in [("theirs", 9090), ("theirs2", 9091)] {
            eventually(&format!("{when}: {name} is published"), || host.ask(port).contains(HELLO).then_some(()));
            assert!(their_out(dockerd, name), "{when}: {name} gets out");
        }
    };
    check_theirs(&dockerd, "before");

    let stack = Stack::start_with(Setup { namespace: Some(host.namespace().to_owned()), ..Setup::default() });
    let before = rules_of_others(&host, &stack);
    stack.load_busybox();
    stack.docker(["network", "create", "front"]).success();
    serve(&stack, "web", &["-p", "8080:80", "--network", "front"]);
    serve(&stack, "plain", &["-p", "8081:80"]);
    let check_ours = |when: &str| {
        for (name, port) in [("web", 8080), ("plain", 8081)] {
            eventually(&format!("{when}: {name} is published"), || host.ask(port).contains(HELLO).then_some(()));
            eventually(&format!("{when}: {name} gets out"), || gets_out(&stack, name).then_some(()));
        }
    };
    check_ours("beside dockerd");
    check_theirs(&dockerd, "beside the stack");
    assert_same(&before, &rules_of_others(&host, &stack));
    let subnets = |line: String| line.lines().map(str::to_owned).collect::<Vec<_>>();
    let routes = subnets(host.run(["ip", "-o", "route"]).success().stdout());
    let to: std::collections::BTreeSet<_> = routes.iter().map(|route| route.split(' ').next().unwrap()).collect();
    assert_eq!(to.len(), routes.len(), "no two links of one subnet: {routes:#?}");

    // Theirs goes and comes.
    dockerd.end();
    check_ours("while dockerd is away");
    dockerd.start_again();
    for name in ["theirs", "theirs2"] {
        dockerd.docker(["start", name]).success();
    }
    check_ours("after dockerd came back");
    check_theirs(&dockerd, "after it came back");
    // Ours goes and comes, in both ways.
    let before = rules_of_others(&host, &stack);
    stack.kill_engine();
    check_theirs(&dockerd, "without our engine");
    stack.start_engine();
    check_ours("with our engine again");
    stack.remove_all();
    stack.docker(["network", "rm", "front"]).success();
    stack.kill_engine();
    let removed = engine(&stack, &host, &[], &["cleanup"]).success();
    assert!(!removed.stdout().contains("docker"), "{removed}");
    check_theirs(&dockerd, "after our clean-up");
    assert_same(&before, &rules_of_others(&host, &stack));
    let left = host.run(["ip", "-o", "link"]).success().stdout();
    assert!(!left.contains(&stack.bridge()), "{left}");
    drop(stack);
    drop(dockerd);
}
