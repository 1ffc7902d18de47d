//! Networks: what it takes to join and leave one, what passes through it, names, and ranges of ports. Berth beside dockerd and
//! beside a bridge, two links and four rules made by hand; all are up together, take turns, and are measured by the same sockets
//! in the namespaces of their containers.

mod place;
mod traffic;

use crate::{
    engines::{create, run_rm},
    table::{Table, pss_mb, settle, timed},
};
use integration_tests::{dns, eventually};
use place::{Ends, NETWORK, Netns, Place, batch, enter, exposed};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, os::fd::AsFd, process::Command, time::Duration};
use traffic::Way;

/// Rounds of a median of things that take milliseconds.
const ROUNDS: usize = 15;
/// Rounds of a median of traffic.
const TRAFFIC_ROUNDS: usize = 5;
/// Endpoints beside which the others are measured; a bridge has room for 1,023.
const MANY: usize = 1000;
/// Ports of a range.
const RANGE: u16 = 1000;
const RANGE_FROM: u16 = 20_000;
/// Questions on their way.
const OUTSTANDING: u16 = 64;

/// A place and its containers.
struct Side {
    ends: Ends,
    place: Place,
}

fn middle(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

/// Medians of the figures that `work` finds on each side, by turns; whoever is first changes. `None` for a side that failed once.
fn by_turns<const N: usize>(
    count: usize,
    sides: &[Side],
    mut work: impl FnMut(&Side) -> Option<[f64; N]>,
) -> [Vec<Option<f64>>; N] {
    // Once without counting.
    let mut found: Vec<Option<Vec<[f64; N]>>> = sides.iter().map(|side| work(side).map(|_| Vec::new())).collect();
    for round in 0..count {
        for turn in 0..sides.len() {
            let index = (round + turn) % sides.len();
            if let Some(list) = &mut found[index] {
                match work(&sides[index]) {
                    Some(figures) => list.push(figures),
                    None => found[index] = None,
                }
            }
        }
    }
    let median = |list: &[[f64; N]], figure: usize| middle(list.iter().map(|figures| figures[figure]).collect());
    std::array::from_fn(|figure| {
        found.iter().map(|list| list.as_ref().map(|list| median(list, figure))).collect::<Vec<_>>()
    })
}

/// A row of what was found on each side.
fn row(table: &mut Table, sides: &[Side], work: &str, unit: &'static str, found: &[Option<f64>], goal: &str) {
    let all: Vec<(&str, Option<f64>)> =
        sides.iter().zip(found).map(|(side, figure)| (side.place.name, *figure)).collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| *name == "berth");
    // A side that has no engine takes no part in what engines do.
    let theirs: Vec<_> = theirs.into_iter().filter(|(name, figure)| figure.is_some() || *name != "by hand").collect();
    table.row(work, unit, ours.first().and_then(|(_, figure)| *figure), &theirs, goal);
}

fn join_and_leave(side: &Side) -> Option<[f64; 1]> {
    let Some(api) = side.place.api() else {
        return timed(|| side.place.join_and_leave_by_hand()).map(|time| [time]);
    };
    let body = json!({ "Container": "other" });
    let ask = |what: &str| api.post(&format!("/v1.41/networks/{NETWORK}/{what}"), Some(&body)).status == 200;
    timed(|| ask("connect") && ask("disconnect")).map(|time| [time])
}

fn create_and_remove(side: &Side) -> Option<[f64; 1]> {
    let api = side.place.api()?;
    timed(|| {
        api.post("/v1.41/networks/create", Some(&json!({ "Name": "passing" }))).status == 201
            && api.delete("/v1.41/networks/passing").status == 204
    })
    .map(|time| [time])
}

/// How much longer `run --rm true` takes with a network than without. Which of them is first changes: what the kernel takes down of
/// one is paid for by the next.
fn more_than_without(network: &str) -> impl FnMut(&Side) -> Option<[f64; 1]> {
    let mut reversed: HashMap<&str, bool> = HashMap::new();
    move |side| {
        let api = side.place.api()?;
        let reversed = reversed.entry(side.place.name).or_default();
        *reversed = !*reversed;
        let run = |network: &str| timed(|| run_rm(&api, network, &["true"]).is_some());
        let (with, without) = if *reversed {
            let without = run("none")?;
            (run(network)?, without)
        } else {
            (run(network)?, run("none")?)
        };
        Some([with - without])
    }
}

/// Links on the bridge of each side's network; their other ends are in a namespace that is nobody's.
struct Crowd {
    far: Vec<Netns>,
}

// Else each new link's multicasts go to all others: a million packets, which is what would be measured.
fn without_ipv6(value: bool) {
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", if value { "1" } else { "0" }).expect("turn IPv6 off");
}

impl Crowd {
    fn new(sides: &[Side]) -> Self {
        let mut far = Vec::new();
        for side in sides {
            let (bridge, netns) = (side.place.bridge(), Netns::new());
            let peer = netns.name();
            {
                let _inside = enter(netns.fd());
                without_ipv6(true);
            }
            let _inside = enter(side.place.host());
            without_ipv6(true);
            let add = (0..MANY).map(|n| {
                let link = format!("crowd{n}");
                let add = format!("link add {link} master {bridge} type veth peer name {link} netns {peer}");
                format!("{add}\nlink set {link} up\n")
            });
            batch(&add.collect::<String>());
            without_ipv6(false);
            let _far = enter(netns.fd());
            batch(&(0..MANY).map(|n| format!("link set crowd{n} up\n")).collect::<String>());
            far.push(netns);
        }
        settle();
        Self { far }
    }

    /// Removes them, and waits until they are gone.
    fn leave(self, sides: &[Side]) {
        drop(self.far);
        for side in sides {
            let _inside = enter(side.place.host());
            eventually("the crowd is gone", || {
                let links = Command::new("ip").args(["-o", "link"]).output().ok()?.stdout;
                (!String::from_utf8_lossy(&links).contains(" crowd")).then_some(())
            });
        }
    }
}

fn set_up(table: &mut Table, sides: &[Side]) {
    let other = json!({ "Image": "busybox", "Cmd": ["sleep", "100000"], "StopTimeout": 0 });
    for api in sides.iter().filter_map(|side| side.place.api()) {
        let started = create(&api, "other", &other);
        assert!(started && api.post("/v1.41/containers/other/start", None).status == 204, "another container");
        run_rm(&api, "bridge", &["true"]);
    }
    let goal = "<= 6 ms";
    let [found] = by_turns(2 * ROUNDS, sides, more_than_without("bridge"));
    row(table, sides, "run --rm true: what the bridge adds to --net none", "ms", &found, goal);
    let [found] = by_turns(2 * ROUNDS, sides, more_than_without(NETWORK));
    row(table, sides, "run --rm true: what a network of the user adds", "ms", &found, goal);
    let [found] = by_turns(ROUNDS, sides, join_and_leave);
    row(table, sides, "network connect + disconnect of a running container", "ms", &found, "as by hand");
    let [found] = by_turns(ROUNDS, sides, create_and_remove);
    row(table, sides, "network create + rm", "ms", &found, "");
    let crowd = Crowd::new(sides);
    let [found] = by_turns(2 * ROUNDS, sides, more_than_without(NETWORK));
    row(table, sides, "what the network adds to run, 1,000 other links on its bridge (by hand)", "ms", &found, goal);
    let [found] = by_turns(ROUNDS, sides, join_and_leave);
    row(table, sides, "connect + disconnect, 1,000 other links on the bridge", "ms", &found, "as by hand");
    crowd.leave(sides);
}

fn traffic(table: &mut Table, sides: &[Side]) {
    for (way, name) in Way::ALL {
        let throughput = |side: &Side| traffic::throughput(&side.place, &side.ends, way).map(|figure| [figure]);
        let [found] = by_turns(TRAFFIC_ROUNDS, sides, throughput);
        row(table, sides, &format!("TCP {name}, iperf3"), "Gbit/s", &found, ">= 0.95 of by hand");
    }
    type Measure = fn(&Place, &Ends, Way) -> Option<[f64; 2]>;
    let kinds: [(&str, Measure); 2] = [("TCP", traffic::round_trips), ("UDP", traffic::round_trips_udp)];
    for (way, name) in Way::ALL {
        for (kind, measure) in kinds {
            let trips = |side: &Side| measure(&side.place, &side.ends, way);
            let [p50, p99] = by_turns(ROUNDS, sides, trips);
            let work = format!("round trip of a byte by {kind} {name}, p50");
            row(table, sides, &work, "µs", &p50, "<= 1.05 of by hand");
            row(table, sides, "the same, p99", "µs", &p99, "");
        }
    }
    for (way, name) in Way::ALL {
        let connections = |side: &Side| traffic::connections(&side.place, &side.ends, way).map(|figure| [figure]);
        let [found] = by_turns(ROUNDS, sides, connections);
        row(table, sides, &format!("new TCP connections per second {name}"), "/s", &found, ">= 0.95 of by hand");
    }
}

fn names(table: &mut Table, sides: &[Side]) {
    let load = dns::Load {
        server: dns::RESOLVER,
        names: &["server"],
        kind: dns::A,
        outstanding: OUTSTANDING.into(),
        lasting: Duration::from_secs(1),
    };
    let [rate, unanswered] = by_turns(TRAFFIC_ROUNDS, sides, |side| {
        side.place.api()?;
        let figures = dns::load_within(side.ends.a.as_fd(), &load).ok()?;
        let without = figures.failed + figures.lost;
        Some([figures.rate(), without as f64 * 1e6 / (figures.answered + without) as f64])
    });
    row(table, sides, "DNS answers per second for one container, 64 questions on their way", "/s", &rate, ">= 20,000");
    row(table, sides, "of a million of these questions, without an answer", "", &unanswered, "0");
}

/// What a range of published ports costs.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    start: Option<f64>,
    removal: Option<f64>,
    memory: Option<f64>,
    processes: Option<f64>,
}

fn range_of(side: &Side) -> Cost {
    let Some(api) = side.place.api() else { return Cost::default() };
    let bindings: Value = (RANGE_FROM..RANGE_FROM + RANGE)
        .map(|port| (format!("{port}/tcp"), json!([{ "HostPort": port.to_string() }])))
        .collect();
    let body = json!({ "Image": "busybox", "Cmd": ["sleep", "100000"], "StopTimeout": 0, "ExposedPorts": exposed(&bindings),
        "HostConfig": { "PortBindings": bindings } });
    if !create(&api, "range", &body) {
        return Cost::default();
    }
    settle();
    let (memory, processes) = (pss_mb(&side.place.pids()), side.place.pids().len() as f64);
    let asked = |method: &str, path: &str| api.attempt(method, path, None).is_ok_and(|answer| answer.status == 204);
    let start = timed(|| asked("POST", "/v1.41/containers/range/start"));
    settle();
    let after = side.place.pids();
    let grown = start.map(|_| (pss_mb(&after) - memory, after.len() as f64 - processes));
    let removal = timed(|| asked("DELETE", "/v1.41/containers/range?force=1"));
    Cost { start, removal, memory: grown.map(|g| g.0), processes: grown.map(|g| g.1) }
}

fn range(table: &mut Table, sides: &[Side]) {
    let costs: Vec<Cost> = sides.iter().map(range_of).collect();
    let mut row = |work: &str, unit: &'static str, pick: &dyn Fn(&Cost) -> Option<f64>| {
        row(table, sides, work, unit, &costs.iter().map(pick).collect::<Vec<_>>(), "");
    };
    row("start with a published range of 1,000 ports", "ms", &|cost| cost.start);
    row("removal of it by force", "ms", &|cost| cost.removal);
    row("growth of the daemons by it, PSS, proxies included", "MB", &|cost| cost.memory);
    row("processes that it takes besides the container's", "", &|cost| cost.processes);
}

/// Measures, and adds its rows; `only` are names of parts.
pub fn measure(table: &mut Table, only: &[String]) {
    let wanted = |part: &str| only.is_empty() || only.iter().any(|one| one == part);
    let alone = std::env::var_os("BENCH_ALONE").is_some();
    let peer = if alone { None } else { Place::dockerd() };
    let sides: Vec<Side> = [Place::berth(), peer, Place::by_hand()]
        .into_iter()
        .flatten()
        .map(|place| Side { ends: place.ends().expect("a network with two containers"), place })
        .collect();
    settle();
    type Part = fn(&mut Table, &[Side]);
    let parts: [(&str, Part); 4] = [("setup", set_up), ("traffic", traffic), ("names", names), ("range", range)];
    for (name, part) in parts {
        if wanted(name) {
            part(table, &sides);
        }
    }
}
