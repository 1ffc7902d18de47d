//! `berth-engine cleanup`: what a killed engine has left on the host goes, and the host is as it was.

use integration_tests::{Stack, eventually, programs, run, stack::has_docker};

/// Links, rules and namespaces of this machine that have to do with a stack.
fn traces(stack: &Stack) -> Vec<String> {
    let bridge = stack.bridge();
    let links = run("ip", ["-o", "link", "show"]).stdout();
    let of_links =
        links.lines().filter(|line| line.contains(&format!(" {bridge}")) || line.contains(&format!("berth {bridge} ")));
    let tables = run("nft", ["list", "tables"]).stdout();
    let of_tables = tables.lines().filter(|line| line.ends_with(&format!("berth_{bridge}")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let pins = stack.run_root().join("engine/netns");
    let of_mounts = mounts.lines().filter(|line| line.contains(&*pins.to_string_lossy()));
    of_links.chain(of_tables).chain(of_mounts).map(str::to_owned).collect()
}

#[test]
fn nothing_of_a_killed_engine_stays() {
    if !has_docker() {
        return;
    }
    let stack = Stack::with_busybox();
    stack.docker(["network", "create", "--ipv6", "both"]).success();
    let run_detached = ["run", "-d", "--name", "web", "-p", "127.0.0.1::80", "--network", "both"];
    stack.docker(run_detached.iter().chain(&["--stop-timeout", "0", "busybox", "sleep", "100000"])).success();
    let cleanup = |more: &[&str]| {
        let roots = [
            "cleanup".to_owned(),
            "--data-root".to_owned(),
            stack.data_root().display().to_string(),
            "--run-root".to_owned(),
            stack.run_root().display().to_string(),
            "--bridge".to_owned(),
            stack.bridge(),
        ];
        run(programs::program("berth-engine"), roots.iter().map(String::as_str).chain(more.iter().copied()))
    };
    let running = cleanup(&[]);
    assert!(running.code() != 0 && !traces(&stack).is_empty(), "an engine runs: {}", running.stderr());
    stack.kill_engine();
    let refused = cleanup(&[]);
    assert!(refused.stderr().contains("containers are running: web"), "{}", refused.stderr());
    let forced = cleanup(&["--force"]);
    assert!(forced.stdout().contains("removed firewall table"), "{} {}", forced.stdout(), forced.stderr());
    eventually("nothing is left", || traces(&stack).is_empty().then_some(()));
    // The record stays: the next engine makes the network again.
    stack.start_engine();
    assert!(stack.docker(["network", "ls"]).stdout().contains("both"));
    stack.docker(["rm", "-f", "web"]).success();
    stack.docker(["run", "--rm", "--network", "both", "busybox", "true"]).success();
    stack.docker(["network", "rm", "both"]).success();
}
