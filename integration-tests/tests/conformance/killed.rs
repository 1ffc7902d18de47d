//! The engine is killed at random moments while clients do everything with containers, networks, volumes and images. Each keeps a
//! ledger of what it was told: what was answered holds for good, what was refused did not happen, and what was not answered did
//! either. In the end the engine and the supervisor list the same things, and nothing is left on the machine.
//!
//! | variable | meaning |
//! |---|---|
//! | `BERTH_SOAK_SECONDS=N` | for so long (`make soak-engine`), the cases of the conformance suite too; else a short form |
//! | `BERTH_SOAK_SEED=N` | the same choices again; the seed is printed |

use crate::{
    cases,
    engine::Engine,
    run::{Run, waiting},
};
use integration_tests::{Daemon, Dice, Stack, http::Answer, images::add_file, stack::Setup};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const CLIENTS: usize = 4;
/// The thread that plays cases while the engine dies.
const PLAYER: &str = "player";

/// What a client knows of a thing: that it is there, that it isn't, or neither after an answer that did not come.
type Known = Option<bool>;

struct Client<'a> {
    stack: &'a Stack,
    number: usize,
    dice: Dice,
    ledger: BTreeMap<String, Known>,
    /// The memory limit of a container, if it is certain.
    memory: BTreeMap<String, Option<u64>>,
    wrong: &'a Mutex<Vec<String>>,
    answered: &'a AtomicUsize,
    lost: &'a AtomicUsize,
}

impl Client<'_> {
    /// Asks, and gives the answer, or nothing if none came.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Answer> {
        let answer = self.stack.api().attempt(method, path, body).ok();
        let counter = if answer.is_some() { self.answered } else { self.lost };
        counter.fetch_add(1, Ordering::Relaxed);
        let Some(answer) = answer else {
            thread::sleep(Duration::from_millis(5));
            return None;
        };
        if answer.status >= 500 {
            self.complain(format!("{method} {path}: {} {}", answer.status, answer.text().trim()));
        }
        Some(answer)
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(format!("client {}: {what}", self.number));
    }

    /// Does what makes a thing or takes it away, and keeps in the ledger what the answer says of it.
    fn change(&mut self, thing: &str, there: bool, method: &str, path: &str, body: Option<&Value>) {
        let before = self.ledger.get(thing).copied().unwrap_or(Some(false));
        let answer = self.ask(method, path, body);
        let now = match answer.as_ref().map(|answer| answer.status) {
            None => None,
            Some(200..=299) => Some(there),
            // Taken names, and things that are gone: the ledger must not say otherwise.
            Some(409 | 403) if there => {
                if before == Some(false) {
                    let text = answer.map(|answer| answer.text()).unwrap_or_default();
                    self.complain(format!("{method} {path}: {thing} is not there, and: {text}"));
                }
                before
            }
            Some(404) if !there => {
                if before == Some(true) {
                    self.complain(format!("{method} {path}: {thing} is lost"));
                }
                Some(false)
            }
            Some(_) => before,
        };
        self.ledger.insert(thing.to_owned(), now);
    }

    fn is(&self, thing: &str) -> Known {
        self.ledger.get(thing).copied().unwrap_or(Some(false))
    }

    fn step(&mut self) {
        let (n, i) = (self.number, self.dice.roll(3));
        let (container, volume, network, image) =
            (format!("c{n}-{i}"), format!("v{n}-{i}"), format!("n{n}"), format!("killed/i{n}:{i}"));
        match self.dice.roll(18) {
            0..=2 => {
                let mut body = waiting();
                body["HostConfig"] = json!({"Memory": 67_108_864, "Binds": [format!("{volume}:/v")]});
                let path = format!("/containers/create?name={container}");
                let fresh = self.is(&container) == Some(false);
                self.change(&format!("container {container}"), true, "POST", &path, Some(&body));
                if fresh {
                    self.memory.insert(container, None);
                    // A container makes its volume.
                    self.ledger.insert(format!("volume {volume}"), None);
                }
            }
            3..=5 => {
                self.ask("POST", &format!("/containers/{container}/start"), None);
            }
            6 => {
                self.ask("POST", &format!("/containers/{container}/stop?t=5"), None);
            }
            7 => {
                let verb = ["pause", "unpause", "kill", "restart?t=1"][self.dice.roll(4)];
                self.ask("POST", &format!("/containers/{container}/{verb}"), None);
            }
            8 => {
                let bytes = 67_108_864 + 4_194_304 * self.dice.roll(8) as u64;
                let body = json!({"Memory": bytes, "MemorySwap": 2 * bytes});
                let answer = self.ask("POST", &format!("/containers/{container}/update"), Some(&body));
                match answer.map(|answer| answer.status) {
                    Some(200) => self.memory.insert(container, Some(bytes)),
                    None => self.memory.insert(container, None),
                    Some(_) => None,
                };
            }
            9 => {
                let path = format!("/containers/{container}?force=1");
                self.change(&format!("container {container}"), false, "DELETE", &path, None);
                if self.is(&format!("container {container}")) != Some(true) {
                    self.ledger.retain(|thing, _| !thing.starts_with(&format!("file {container}")));
                    self.ledger.retain(|thing, _| !thing.starts_with(&format!("place of {container}")));
                }
            }
            10 => {
                let body = json!({"Name": volume});
                self.change(&format!("volume {volume}"), true, "POST", "/volumes/create", Some(&body));
            }
            11 => {
                // 409: a container uses it; that is no loss.
                self.change(&format!("volume {volume}"), false, "DELETE", &format!("/volumes/{volume}"), None);
            }
            12 => {
                let body = json!({"Name": network, "CheckDuplicate": true});
                self.change(&format!("network {network}"), true, "POST", "/networks/create", Some(&body));
            }
            13 => {
                let way = self.dice.roll(2) == 0;
                let path = format!("/networks/{network}/{}", if way { "connect" } else { "disconnect" });
                self.ask("POST", &path, Some(&json!({"Container": container, "Force": true})));
            }
            14 => {
                if self.dice.roll(3) == 0 {
                    self.change(&format!("network {network}"), false, "DELETE", &format!("/networks/{network}"), None);
                }
            }
            15 => {
                let mut archive = tar::Builder::new(Vec::new());
                add_file(&mut archive, "written", b"kept\n", 0o644);
                let archive = archive.into_inner().unwrap();
                let path = format!("/containers/{container}/archive?path=/tmp");
                let stream = self.stack.api().open_bytes("PUT", &path, &archive, "Content-Type: application/x-tar\r\n");
                if stream.ok().and_then(|stream| stream.try_finish().ok()).is_some_and(|answer| answer.status == 200) {
                    self.ledger.insert(format!("file {container}"), Some(true));
                }
            }
            16 => {
                let (repo, tag) = image.split_once(':').unwrap_or_default();
                let path = if self.dice.roll(2) == 0 {
                    format!("/commit?container={container}&repo={repo}&tag={tag}")
                } else {
                    format!("/images/busybox/tag?repo={repo}&tag={tag}")
                };
                self.change(&format!("image {image}"), true, "POST", &path, None);
            }
            _ => {
                self.change(&format!("image {image}"), false, "DELETE", &format!("/images/{image}?force=1"), None);
            }
        }
    }

    /// Whether the engine agrees with the ledger.
    fn check(&self) {
        for (thing, known) in &self.ledger {
            let Some(known) = known else { continue };
            let path = match thing.split_once(' ').unwrap_or_default() {
                ("container", name) => format!("/containers/{name}/json"),
                ("volume", name) => format!("/volumes/{name}"),
                ("network", name) => format!("/networks/{name}"),
                ("image", name) => format!("/images/{name}/json"),
                ("file", name) if self.is(&format!("container {name}")) == Some(true) => {
                    format!("/containers/{name}/archive?path=/tmp/written")
                }
                _ => continue,
            };
            let Some(answer) = self.ask("GET", &path, None) else { continue };
            if (answer.status == 200) != *known {
                self.complain(format!(
                    "{thing} is {known}, and GET {path} says {} {}",
                    answer.status,
                    answer.text().trim()
                ));
            }
        }
        for (name, bytes) in &self.memory {
            let certain = self.is(&format!("container {name}")) == Some(true);
            let (true, Some(bytes)) = (certain, bytes) else { continue };
            let Some(answer) = self.ask("GET", &format!("/containers/{name}/json"), None) else { continue };
            if answer.status == 200 && answer.json()["HostConfig"]["Memory"] != json!(bytes) {
                self.complain(format!("the limit of {name} is {}, not {bytes}", answer.json()["HostConfig"]["Memory"]));
            }
        }
    }
}

fn names(listed: &Value, key: &str) -> BTreeSet<String> {
    listed.as_array().into_iter().flatten().filter_map(|item| item[key].as_str().map(str::to_owned)).collect()
}

/// Where the lists of engine and supervisor differ now: containers, tasks, volumes.
fn differences(stack: &Stack) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, engine: &BTreeSet<String>, below: &BTreeSet<String>| {
        if engine != below {
            wrong.push(format!("{what}: the engine lists {engine:?}, below it are {below:?}"));
        }
    };
    let words = |args: &[&str]| -> BTreeSet<String> {
        let listed = stack.ctr([&["-n", "berth"], args].concat()).success().stdout();
        listed.lines().map(str::to_owned).collect()
    };
    let all = stack.api().get("/containers/json?all=1").json();
    let live = stack.api().get("/containers/json").json();
    // The supervisor hears of a container at its first start.
    let (known, below) = (names(&all, "Id"), words(&["containers", "ls", "-q"]));
    let needed: BTreeSet<String> = below.union(&names(&live, "Id")).cloned().collect();
    compare("containers that run or ran", &known.intersection(&needed).cloned().collect(), &below);
    compare("tasks", &names(&live, "Id"), &words(&["tasks", "ls", "-q"]));
    let volumes = names(&stack.api().get("/volumes").json()["Volumes"], "Name");
    let folders = fs::read_dir(stack.data_root().join("engine/volumes")).into_iter().flatten().flatten();
    let folders =
        folders.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok());
    compare("volumes", &volumes, &folders.collect());
    wrong
}

/// Where they still differ when the last engine has looked after what ended while nobody minded.
fn disagreement(stack: &Stack) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let found = differences(stack);
        if found.is_empty() || begun.elapsed() > Duration::from_secs(60) {
            return found;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn killer(stack: &Stack, dice: &mut Dice, longest: usize, end: &dyn Fn() -> bool) -> usize {
    let mut kills = 0;
    while !end() {
        thread::sleep(Duration::from_millis(100 + dice.roll(longest) as u64));
        stack.kill_engine();
        kills += 1;
        thread::sleep(Duration::from_millis(dice.roll(100) as u64));
        stack.launch(Daemon::Engine, &[]);
        stack.await_ready(Daemon::Engine);
    }
    kills
}

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = env::var("BERTH_SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
    println!("BERTH_SOAK_SEED={seed}");
    seed
}

fn seconds() -> Option<u64> {
    env::var("BERTH_SOAK_SECONDS").ok().and_then(|text| text.parse().ok())
}

fn cleaned(stack: &Stack) {
    stack.remove_all();
    let api = stack.api();
    for volume in names(&api.get("/volumes").json()["Volumes"], "Name") {
        api.delete(&format!("/volumes/{volume}?force=1"));
    }
    api.post("/networks/prune", None);
    for image in api.get("/images/json").json().as_array().into_iter().flatten() {
        for tag in image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !["busybox:latest", "rich:1"].contains(&tag) {
                api.delete(&format!("/images/{tag}?force=1"));
            }
        }
    }
    api.post("/images/prune", None);
}

#[test]
fn what_was_answered_holds_while_the_engine_is_killed_at_random() {
    let seed = seed();
    let stack = Stack::start_with(Setup { keep_supervisor: true, ..Setup::default() });
    stack.load_busybox();
    let until = Instant::now() + Duration::from_secs(seconds().map_or(15, |seconds| seconds / 2));
    let (wrong, answered, lost) = (Mutex::default(), AtomicUsize::new(0), AtomicUsize::new(0));
    let kills = thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (stack, wrong, answered, lost) = (&stack, &wrong, &answered, &lost);
            scope.spawn(move || {
                let dice = Dice::new(seed ^ (number as u64 + 1));
                let (ledger, memory) = (BTreeMap::new(), BTreeMap::new());
                let mut client = Client { stack, number, dice, ledger, memory, wrong, answered, lost };
                while Instant::now() < until {
                    client.step();
                    if client.dice.roll(12) == 0 {
                        client.check();
                    }
                }
                stack.await_ready(Daemon::Engine);
                client.check();
            });
        }
        let mut dice = Dice::new(seed);
        killer(&stack, &mut dice, 900, &|| Instant::now() >= until)
    });
    println!("{kills} kills, {answered:?} answers, {lost:?} that did not come");
    let mut wrong: Vec<String> = wrong.into_inner().unwrap();
    assert!(lost.load(Ordering::Relaxed) > 0 && answered.load(Ordering::Relaxed) > 100, "the engine was not hit");
    wrong.extend(disagreement(&stack));
    assert!(wrong.is_empty(), "{wrong:#?}");
    cleaned(&stack);
    stack.assert_sound(1, "after everything was removed");
}

#[test]
fn conformance_cases_leave_nothing_behind_when_the_engine_is_killed() {
    let seed = seed();
    let engine = Engine::berth().expect("berth");
    let Engine::Berth(stack) = &engine else { return };
    let until = Instant::now() + Duration::from_secs(seconds().map_or(15, |seconds| seconds / 2));
    let over = AtomicBool::new(false);
    let all = cases::all();
    // What its cases panic with would bury what this test says.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if thread::current().name() != Some(PLAYER) {
            usual(panic);
        }
    }));
    let (kills, played) = thread::scope(|scope| {
        let player = thread::Builder::new().name(PLAYER.into());
        let player = player.spawn_scoped(scope, || {
            let (mut dice, mut played) = (Dice::new(seed ^ 7), 0);
            // What a case says while the engine dies is not judged here; that it comes to an end and leaves nothing is.
            while Instant::now() < until {
                stack.await_ready(Daemon::Engine);
                let case = &all[dice.roll(all.len())];
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Run::play(&engine, case)));
                played += 1;
            }
            over.store(true, Ordering::Relaxed);
            played
        });
        let player = player.unwrap();
        let mut dice = Dice::new(seed);
        let kills = killer(stack, &mut dice, 2500, &|| over.load(Ordering::Relaxed));
        (kills, player.join().unwrap())
    });
    println!("{kills} kills during {played} cases");
    let wrong = disagreement(stack);
    assert!(wrong.is_empty(), "{wrong:#?}");
    cleaned(stack);
    stack.assert_sound(1, "after everything was removed");
}
