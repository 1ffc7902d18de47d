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
/// How often everything is made anew for the figures of traffic: what the kernel puts where in memory makes some of them a tenth
/// better or worse, and stays for as long as the links do.
const PLACEMENTS: usize = 3;
/// Rounds of a median of questions.
const NAMES_ROUNDS: usize = 5;
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

/// What a side's rounds found, round by round. `None` for a side that failed once.
type Rounds<const N: usize> = Option<Vec<[f64; N]>>;

/// The figures that `work` finds on each side, by turns; whoever is first changes.
fn rounds<const N: usize>(
    count: usize,
    sides: &[Side],
    mut work: impl FnMut(&Side) -> Option<[f64; N]>,
) -> Vec<Rounds<N>> {
    // Once without counting.
    let mut found: Vec<Rounds<N>> = sides.iter().map(|side| work(side).map(|_| Vec::new())).collect();
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
    found
}

/// The median of each figure, for each side.
fn medians<const N: usize>(found: &[Rounds<N>]) -> [Vec<Option<f64>>; N] {
    let median = |list: &[[f64; N]], figure: usize| middle(list.iter().map(|figures| figures[figure]).collect());
    std::array::from_fn(|figure| found.iter().map(|list| list.as_ref().map(|list| median(list, figure))).collect())
}

/// Medians of the figures that `work` finds on each side, by turns.
fn by_turns<const N: usize>(
    count: usize,
    sides: &[Side],
    work: impl FnMut(&Side) -> Option<[f64; N]>,
) -> [Vec<Option<f64>>; N] {
    medians(&rounds(count, sides, work))
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

/// A kind of traffic that is measured.
struct Traffic {
    /// Its rows, with `{}` where the way is named; the second, if there is one, has no goal.
    rows: &'static [&'static str],
    unit: &'static str,
    goal: &'static str,
    /// Rounds in each placement.
    rounds: usize,
    once: fn(&Place, &Ends, Way) -> Option<[f64; 2]>,
}

const TRAFFIC: [Traffic; 4] = [
    Traffic {
        rows: &["TCP {}, iperf3"],
        unit: "Gbit/s",
        goal: ">= 0.95 of by hand",
        rounds: 3,
        once: |place, ends, way| traffic::throughput(place, ends, way).map(|figure| [figure, 0.0]),
    },
    Traffic {
        rows: &["round trip of a byte by TCP {}, p50", "the same, p99"],
        unit: "µs",
        goal: "<= 1.05 of by hand",
        rounds: 7,
        once: traffic::round_trips,
    },
    Traffic {
        rows: &["round trip of a byte by UDP {}, p50", "the same, p99"],
        unit: "µs",
        goal: "<= 1.05 of by hand",
        rounds: 7,
        once: traffic::round_trips_udp,
    },
    Traffic {
        rows: &["new TCP connections per second {}"],
        unit: "/s",
        goal: ">= 0.95 of by hand",
        rounds: 7,
        once: |place, ends, way| traffic::connections(place, ends, way).map(|figure| [figure, 0.0]),
    },
];

/// Takes the sides that are there for the first placement, and leaves those of the last.
fn traffic(table: &mut Table, sides: &mut Vec<Side>) {
    let kinds = || TRAFFIC.iter().flat_map(|kind| Way::ALL.map(|way| (kind, way)));
    let mut found: Vec<Vec<Rounds<2>>> = vec![vec![Some(Vec::new()); sides.len()]; kinds().count()];
    for placement in 0..PLACEMENTS {
        if placement > 0 {
            sides.clear();
            *sides = all_sides();
        }
        for ((kind, (way, _)), found) in kinds().zip(&mut found) {
            let new = rounds(kind.rounds, sides, |side| (kind.once)(&side.place, &side.ends, way));
            for (all, new) in found.iter_mut().zip(new) {
                *all = all.take().zip(new).map(|(all, new)| [all, new].concat());
            }
        }
    }
    for ((kind, (_, name)), found) in kinds().zip(&found) {
        let goals = [kind.goal, ""];
        for ((work, figures), goal) in kind.rows.iter().zip(medians(found)).zip(goals) {
            row(table, sides, &work.replace("{}", name), kind.unit, &figures, goal);
        }
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
    let [rate, unanswered] = by_turns(NAMES_ROUNDS, sides, |side| {
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

/// Everybody who is compared, each with a network and two containers.
fn all_sides() -> Vec<Side> {
    let alone = std::env::var_os("BENCH_ALONE").is_some();
    let peer = if alone { None } else { Place::dockerd() };
    let sides = [Place::berth(), peer, Place::by_hand()]
        .into_iter()
        .flatten()
        .map(|place| Side { ends: place.ends().expect("a network with two containers"), place })
        .collect();
    settle();
    sides
}

/// Measures, and adds its rows; `only` are names of parts.
pub fn measure(table: &mut Table, only: &[String]) {
    let wanted = |part: &str| only.is_empty() || only.iter().any(|one| one == part);
    let mut sides = all_sides();
    type Part = fn(&mut Table, &mut Vec<Side>);
    let parts: [(&str, Part); 4] = [
        ("setup", |table, sides| set_up(table, sides)),
        ("traffic", traffic),
        ("names", |table, sides| names(table, sides)),
        ("range", |table, sides| range(table, sides)),
    ];
    for (name, part) in parts {
        if wanted(name) {
            part(table, &mut sides);
        }
    }
}
