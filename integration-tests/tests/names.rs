//! Names of containers under load, as a program in a container sees it, and what an operator sees of it.

use std::os::fd::AsFd;
use std::time::Duration;

use integration_tests::{Stack, dns, http::Api, stack::Setup};

/// A number of the metrics' page.
fn counted(page: &str, result: &str) -> u64 {
    let name = format!("berth_engine_dns_questions_total{{result=\"{result}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{name} in {page}")).parse().unwrap()
}

#[test]
fn a_container_may_ask_a_lot_and_it_is_counted() {
    let folder = tempfile::Builder::new().prefix("berth-metrics-").tempdir().unwrap();
    let metrics = folder.path().join("metrics.sock");
    let engine_args = vec!["--metrics-addr".to_owned(), format!("unix://{}", metrics.display())];
    let stack = Stack::start_with(Setup { engine_args, ..Setup::default() });
    stack.load_busybox();
    let page = || Api::new(&metrics).get("/metrics").expect(200).text();
    assert!(!page().contains("berth_engine_dns"), "no resolver is needed yet");
    stack.berth(["network", "create", "net"]).success();
    for name in ["asker", "web"] {
        let run = ["run", "-d", "--name", name, "--network", "net", "--stop-timeout", "0"];
        stack.berth(run.iter().chain(&["busybox", "sleep", "100000"])).success();
    }
    let pid = stack.inspect("asker")["State"]["Pid"].as_u64().unwrap();
    let namespace = dns::namespace_of(pid.try_into().unwrap()).unwrap();
    let load = |kind, outstanding| {
        let names = ["web", "asker.net"];
        let load =
            dns::Load { server: dns::RESOLVER, names: &names, kind, outstanding, lasting: Duration::from_secs(1) };
        let figures = dns::load_within(namespace.as_fd(), &load).unwrap();
        eprintln!("{outstanding} at once: {:.0} questions/s, {figures:?}", figures.rate());
        figures
    };
    let (one, many) = (load(dns::A, 1), load(dns::A, 100));
    for figures in [&one, &many] {
        assert!(figures.answered > 500 && (figures.failed, figures.lost) == (0, 0), "{figures:?}");
    }
    let nothing = load(dns::AAAA, 100);
    assert!(nothing.answered == 0 && nothing.failed > 500 && nothing.lost == 0, "no such addresses: {nothing:?}");
    let page = page();
    let least = one.answered + many.answered + nothing.failed;
    assert!(counted(&page, "answered") >= least, "{page}");
    assert_eq!(["cached", "failed", "forwarded"].map(|result| counted(&page, result)), [0; 3], "{page}");
    stack.remove_all();
    stack.berth(["network", "rm", "net"]).success();
}
