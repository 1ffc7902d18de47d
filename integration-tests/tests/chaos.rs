//! Containers made, run, exec'd into and removed by many clients at once, while daemons and shims are killed at random. Then every
//! container has its true state, and nothing is lost, leaked or stuck.
//!
//! | variable | meaning |
//! |---|---|
//! | `BERTH_SOAK_SECONDS=N` | the full form (`make soak-stack`): 500 containers, 16 clients, N seconds; else a short one |
//! | `BERTH_SOAK_SEED=N` | the same choices again; the seed is printed |

use integration_tests::{Daemon, Dice, Stack, eventually_within, stack::Setup};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const CLIENTS: usize = 16;

/// What a client knows of a container of its own.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Asked for, and answered or not.
    started: bool,
    /// Pid after a start that was answered.
    pid: Option<u64>,
    /// A signal may have been sent.
    ended: bool,
    /// A removal was asked for, and perhaps not answered.
    removing: bool,
    /// The code it ends with at SIGTERM.
    code: i64,
}

struct Chaos<'a> {
    stack: &'a Stack,
    until: Instant,
    /// Containers that are still to be made.
    budget: AtomicUsize,
    made: AtomicUsize,
    execs: AtomicUsize,
    removed: AtomicUsize,
    /// Ids of containers whose shim was killed.
    shot: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
}

/// An answer, or nothing if the engine was away or could not do it.
type Heard = Option<(u16, Value)>;

impl Chaos<'_> {
    fn ask(&self, method: &str, path: &str, body: Option<&Value>, fine: &[u16], removing: bool) -> Heard {
        let answer = self.stack.api().attempt(method, path, body).ok()?;
        if answer.status >= 500 {
            return None;
        }
        // 404: its removal was not answered, but done.
        if !(fine.contains(&answer.status) || answer.status == 404 && removing) {
            self.complain(format!("{method} {path}: {} {}", answer.status, answer.text().trim()));
        }
        Some((answer.status, serde_json::from_slice(&answer.body).unwrap_or_default()))
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    fn client(&self, number: usize, seed: u64, limit: usize) -> BTreeMap<String, Known> {
        let mut dice = Dice::new(seed ^ (number as u64 + 1));
        let mut own: BTreeMap<String, Known> = BTreeMap::new();
        let mut serial = 0;
        while Instant::now() < self.until {
            let names: Vec<String> = own.keys().cloned().collect();
            let choice = dice.roll(10);
            if names.is_empty() || (choice < 4 && names.len() < limit) {
                if self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
                    if names.is_empty() {
                        break;
                    }
                    continue;
                }
                let name = format!("c{number}-{serial}");
                serial += 1;
                let code = 1 + dice.roll(100) as i64;
                if self.create(&name, code) {
                    own.insert(name.clone(), Known { code, ..Known::default() });
                    self.start(&name, own.get_mut(&name).unwrap());
                }
                continue;
            }
            let name = &names[dice.roll(names.len())];
            let known = own.get_mut(name).unwrap();
            match choice {
                4..=6 => self.exec(name, known),
                7 => {
                    if !known.started || known.ended {
                        self.start(name, known);
                    }
                }
                8 => {
                    known.ended = true;
                    self.ask("POST", &format!("/containers/{name}/stop?t=2"), None, &[204, 304], known.removing);
                }
                _ => {
                    // Until it is said to be gone: an answer may have been lost.
                    let heard =
                        self.ask("DELETE", &format!("/containers/{name}?force=1"), None, &[204, 404, 409], true);
                    match heard {
                        Some((204 | 404, _)) => {
                            own.remove(name);
                            self.removed.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => (known.ended, known.removing) = (true, true),
                    }
                }
            }
        }
        own
    }

    fn create(&self, name: &str, code: i64) -> bool {
        let script = format!("trap 'exit {code}' TERM; while :; do sleep 1000 & wait; done");
        let body = json!({ "Image": "busybox", "Cmd": ["sh", "-c", script] });
        // Asked again until somebody answers: the name tells whether it was made.
        while Instant::now() < self.until + Duration::from_secs(20) {
            let path = format!("/containers/create?name={name}");
            if let Some((status, answer)) = self.ask("POST", &path, Some(&body), &[201, 409], false) {
                if status == 409 && !answer.to_string().contains("already in use") {
                    self.complain(format!("{path}: {answer}"));
                }
                self.made.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.complain(format!("{name} could not be made in 20 seconds"));
        false
    }

    fn start(&self, name: &str, known: &mut Known) {
        let again = known.started;
        known.started = true;
        known.pid = None;
        if self.ask("POST", &format!("/containers/{name}/start"), None, &[204, 304, 409], known.removing).is_some()
            && !again
        {
            known.pid = self.pid(name);
        }
    }

    fn pid(&self, name: &str) -> Option<u64> {
        let (_, container) = self.ask("GET", &format!("/containers/{name}/json"), None, &[200, 404], false)?;
        container["State"]["Pid"].as_u64().filter(|pid| *pid > 0)
    }

    fn exec(&self, name: &str, known: &Known) {
        let body = json!({ "AttachStdout": true, "Cmd": ["sh", "-c", "echo hello"] });
        let Some((201, exec)) =
            self.ask("POST", &format!("/containers/{name}/exec"), Some(&body), &[201, 409], known.removing)
        else {
            return;
        };
        let path = format!("/exec/{}/start", exec["Id"].as_str().unwrap_or_default());
        // 404: the engine that knew it is no more.
        let answer = self.stack.api().attempt("POST", &path, Some(&json!({ "Detach": false })));
        if let Ok(answer) = answer
            && answer.status == 200
        {
            let fine = answer.text().ends_with("hello\n");
            // A process that died with its container has nothing to say.
            if fine {
                self.execs.fetch_add(1, Ordering::Relaxed);
            } else if !known.ended
                && !answer.body.is_empty()
                && !answer.text().contains("supervisor")
                && !self.is_shot(name)
            {
                self.complain(format!("exec in {name} said {:?}", answer.text()));
            }
        }
    }

    /// Whether the container's shim was killed, as far as anybody can tell now.
    fn is_shot(&self, name: &str) -> bool {
        let container = self.stack.api().attempt("GET", &format!("/containers/{name}/json"), None);
        let id = container.ok().filter(|answer| answer.status == 200).map(|answer| answer.json()["Id"].clone());
        id.is_none_or(|id| self.shot.lock().unwrap().contains(id.as_str().unwrap_or_default()))
    }

    /// Kills and revives.
    fn killer(&self, seed: u64) -> [usize; 4] {
        let mut dice = Dice::new(seed);
        let mut kills = [0; 4];
        while Instant::now() < self.until {
            thread::sleep(Duration::from_millis(200 + dice.roll(1500) as u64));
            let choice = dice.roll(4);
            kills[choice] += 1;
            if choice == 3 {
                let shims: Vec<_> = self.stack.shims().into_iter().collect();
                if !shims.is_empty() {
                    let (id, pid) = &shims[dice.roll(shims.len())];
                    self.shot.lock().unwrap().insert(id.clone());
                    let pid = nix::unistd::Pid::from_raw(i32::try_from(*pid).unwrap());
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
                }
                continue;
            }
            if choice != 1 {
                self.stack.kill_engine();
            }
            if choice != 0 {
                self.stack.kill_supervisor();
            }
            thread::sleep(Duration::from_millis(dice.roll(300) as u64));
            if choice != 0 {
                self.stack.launch(Daemon::Supervisor, &[]);
                self.stack.await_ready(Daemon::Supervisor);
            }
            if choice != 1 {
                self.stack.launch(Daemon::Engine, &[]);
                self.stack.await_ready(Daemon::Engine);
            }
        }
        kills
    }

    /// Whether the state of a container is one that it can have.
    fn judge(&self, name: &str, known: &Known) -> Result<(), String> {
        let answer = self.stack.api().get(&format!("/containers/{name}/json"));
        if answer.status == 404 && known.removing {
            return Ok(());
        }
        if answer.status != 200 {
            return Err(format!("{name} is lost: {} {}; {known:?}", answer.status, answer.text()));
        }
        let container = answer.json();
        let state = &container["State"];
        let shot = self.shot.lock().unwrap().contains(container["Id"].as_str().unwrap_or_default());
        let code = state["ExitCode"].as_i64().unwrap_or(-1);
        let fine = match state["Status"].as_str().unwrap_or_default() {
            "running" => {
                let pid = state["Pid"].as_u64().unwrap_or(0);
                let lives = std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&format!("exit {}'", known.code)));
                let same = known.ended || shot || known.pid.is_none_or(|was| was == pid);
                known.started && lives && same
            }
            "exited" => {
                let by_signal = known.ended && (code == known.code || code == 137);
                by_signal || (shot && code == 137)
            }
            // A start that a dying daemon cut off was undone.
            "created" => known.pid.is_none(),
            _ => false,
        };
        if fine { Ok(()) } else { Err(format!("{name}: {known:?}, shim killed: {shot}, but {state}")) }
    }
}

#[test]
fn nothing_is_lost_while_daemons_and_shims_are_killed_at_random() {
    let seconds: Option<u64> = env::var("BERTH_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = env::var("BERTH_SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
    println!("BERTH_SOAK_SEED={seed}");
    let total = if seconds.is_some() { 500 } else { 40 };
    // More containers than a /24 has addresses.
    let prefix = seconds.map(|_| 16);
    let stack = Stack::start_with(Setup { prefix, keep_supervisor: true, ..Setup::default() });
    stack.load_busybox();
    let chaos = Chaos {
        stack: &stack,
        until: Instant::now() + Duration::from_secs(seconds.unwrap_or(12)),
        budget: AtomicUsize::new(if seconds.is_some() { usize::MAX } else { total }),
        made: AtomicUsize::new(0),
        execs: AtomicUsize::new(0),
        removed: AtomicUsize::new(0),
        shot: Mutex::default(),
        wrong: Mutex::default(),
    };
    let (own, kills) = thread::scope(|scope| {
        let chaos = &chaos;
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || chaos.client(number, seed, total / CLIENTS + 1))).collect();
        let killer = scope.spawn(move || chaos.killer(seed));
        let own: BTreeMap<String, Known> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (own, killer.join().unwrap())
    });
    println!(
        "made {:?}, exec'd {:?}, removed {:?}, left {}; killed: engine {}, supervisor {}, both {}, shims {}",
        chaos.made,
        chaos.execs,
        chaos.removed,
        own.len(),
        kills[0],
        kills[1],
        kills[2],
        kills[3]
    );
    let wrong = chaos.wrong.lock().unwrap().clone();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stack.logs());
    stack.assert_sound(1, "after the chaos");
    let mut judged = Vec::new();
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually_within(Duration::from_secs(10), "states are true", || {
            judged = own.iter().filter_map(|(name, known)| chaos.judge(name, known).err()).collect();
            judged.is_empty().then_some(())
        });
    }));
    assert!(settled.is_ok(), "{judged:#?}\n{}", stack.logs());
    let begun = Instant::now();
    let listed = stack.api().get("/containers/json?all=1").expect(200).json();
    assert!(begun.elapsed() < Duration::from_secs(1), "ps took {:?}", begun.elapsed());
    let gone = own.values().filter(|known| known.removing).count();
    let count = listed.as_array().map_or(0, Vec::len);
    assert!((own.len() - gone..=own.len()).contains(&count), "{count} of {}: {listed}", own.len());
    for name in own.keys() {
        let answer = stack.api().delete(&format!("/containers/{name}?force=1"));
        assert!(answer.status == 204 || (answer.status == 404 && own[name].removing), "{name}: {}", answer.text());
    }
    stack.assert_sound(1, "after everything was removed");
    // Names and ids are free again.
    for name in own.keys().take(5) {
        stack.berth(["run", "--rm", "--name", name, "busybox", "true"]).success();
    }
    stack.assert_sound(1, "at the end");
}
