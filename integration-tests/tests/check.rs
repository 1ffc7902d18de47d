//! `berth-engine check`: while the engine runs and while it doesn't, it says what of links, rules and names is missing.

use integration_tests::{
    Outcome, Stack, eventually,
    host::Host,
    programs, run_with,
    stack::{Setup, has_docker},
};
use std::{path::Path, time::Duration};

fn check(host: &Host, data: &Path, stack: &Stack) -> Outcome {
    let mut command = host.command(programs::program("berth-engine"));
    command.arg("check").arg("--data-root").arg(data).arg("--run-root").arg(stack.run_root());
    let bip = format!("{}/24", stack.gateway());
    run_with(command.args(["--bridge", &stack.bridge(), "--bip", &bip]), b"", Duration::from_secs(60))
}

#[test]
fn what_is_missing_is_named() {
    if !has_docker() {
        return;
    }
    let host = Host::new();
    let stack = Stack::start_with(Setup { namespace: Some(host.namespace().to_owned()), ..Setup::default() });
    stack.load_busybox();
    stack.docker(["network", "create", "--ipv6", "front"]).success();
    let front = stack.docker(["network", "inspect", "-f", "br-{{slice .Id 0 12}}", "front"]).stdout();
    for (name, network) in [("web", "front"), ("plain", "bridge")] {
        let port = if name == "web" { "8080:80" } else { "127.0.0.1:8081:81/udp" };
        let run = ["run", "-d", "--name", name, "--network", network, "-p", port, "--stop-timeout", "0"];
        stack.docker(run.iter().chain(&["busybox", "sleep", "100000"])).success();
    }
    let address = stack.inspect("web")["NetworkSettings"]["Networks"]["front"]["IPAddress"].clone();
    let address = address.as_str().unwrap();
    let same = |when: &str| {
        eventually(&format!("{when}: nothing differs"), || {
            let outcome = check(&host, &stack.data_root(), &stack);
            (outcome.code() == 0 && outcome.stdout().is_empty()).then_some(()).or_else(|| {
                eprintln!("{when}: {outcome}");
                None
            })
        });
    };
    let differs = |line: &str| {
        let outcome = check(&host, &stack.data_root(), &stack).expect_code(1);
        assert!(outcome.stdout().lines().any(|one| one == line), "{line}: {outcome}");
    };
    same("with the engine");
    stack.kill_engine();
    same("without the engine");

    let table = format!("berth_{}", stack.bridge());
    host.run(["nft", "flush", "map", "inet", &table, "published_on_all_addresses"]).success();
    differs(&format!("port 8080/tcp to {address}:80 is missing from published_on_all_addresses of table inet {table}"));
    host.run(["nft", "delete", "table", "inet", &table]).success();
    differs(&format!("firewall table inet {table} is missing"));
    host.run(["ip", "link", "del", &front]).success();
    differs(&format!("link {front} of network front is missing"));
    let log = std::fs::read_to_string(stack.path().join("berth-engine.log")).unwrap();
    let resolver = log.lines().rev().find_map(|line| line.split_once("resolver of names started pid=")).unwrap().1;
    let resolver = nix::unistd::Pid::from_raw(resolver.trim().parse().unwrap());
    nix::sys::signal::kill(resolver, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("names are missed", || {
        let outcome = check(&host, &stack.data_root(), &stack);
        outcome.stdout().contains("names aren't answered for container web").then_some(())
    });

    stack.start_engine();
    same("with the next engine");
    stack.remove_all();
    same("with nothing attached");
    stack.docker(["network", "rm", "front"]).success();
    stack.stop_engine();
    same("when nothing is left");
    let none = check(&host, &stack.path().join("none"), &stack).expect_code(2);
    assert!(none.stderr().contains("no engine has used"), "{none}");
}
