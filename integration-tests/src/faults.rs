//! A stack one daemon of which dies at a named point (`proto::fault`), and comes back without the fault, while somebody goes on
//! asking it for things.

use crate::{Daemon, Stack, eventually_within};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long a step may take, the restart of the daemons included.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which daemons die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deaths {
    /// The one that has the point.
    One,
    /// The other one too, as soon as the first is gone.
    Both,
}

/// One fault in one stack.
#[derive(Debug)]
pub struct Fault<'a> {
    stack: &'a Stack,
    /// The point's name.
    pub point: &'a str,
    daemon: Daemon,
    deaths: Deaths,
    mark: PathBuf,
    recovered: AtomicBool,
    over: AtomicBool,
    /// Counts restarts, so that a request knows of one that came in between.
    restarts: AtomicU32,
}

/// The daemon of a point, by the first part of its name.
pub fn daemon_of(point: &str) -> Daemon {
    match point.split('.').next() {
        Some("supervisor") => Daemon::Supervisor,
        Some("engine") => Daemon::Engine,
        _ => panic!("{point} is in no daemon"),
    }
}

impl<'a> Fault<'a> {
    /// Runs `scenario` on a stack whose daemon dies when it reaches `point`. Tells whether it did.
    pub fn run(stack: &'a Stack, point: &'a str, deaths: Deaths, scenario: impl FnOnce(&Self)) -> bool {
        let fault = Self {
            stack,
            point,
            daemon: daemon_of(point),
            deaths,
            mark: stack.path().join("fault"),
            recovered: AtomicBool::new(false),
            over: AtomicBool::new(false),
            restarts: AtomicU32::new(0),
        };
        fs::remove_file(&fault.mark).ok();
        thread::scope(|scope| {
            let guardian = scope.spawn(|| fault.guard());
            // Also when the scenario panics: the guardian must end.
            let over = Over(&fault.over);
            scenario(&fault);
            drop(over);
            guardian.join().expect("the daemons come back");
        });
        fault.fired()
    }

    /// The stack.
    pub fn stack(&self) -> &Stack {
        self.stack
    }

    /// Whether the point was reached.
    pub fn fired(&self) -> bool {
        self.mark.exists()
    }

    /// Restarts the daemon with the fault in it. Scenarios call it when the stack is as they want it.
    pub fn arm(&self) {
        match self.daemon {
            Daemon::Supervisor => self.stack.kill_supervisor(),
            Daemon::Engine => self.stack.kill_engine(),
        }
        let variables = [("BERTH_FAULT", OsStr::new(self.point)), ("BERTH_FAULT_ONCE", self.mark.as_os_str())];
        self.stack.launch(self.daemon, &variables);
        // It may die before it answers.
        let ready = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually_within(PATIENCE, "the daemon is up, or dead", || {
                (self.fired() || self.answers(self.daemon)).then_some(())
            });
        }));
        assert!(ready.is_ok(), "{}: the daemon does not start\n{}", self.point, self.stack.logs());
    }

    fn answers(&self, daemon: Daemon) -> bool {
        match daemon {
            Daemon::Supervisor => std::os::unix::net::UnixStream::connect(self.stack.supervisor_socket()).is_ok(),
            Daemon::Engine => self.stack.api().attempt("GET", "/_ping", None).is_ok_and(|answer| answer.status == 200),
        }
    }

    // Brings the dead back.
    fn guard(&self) {
        while !self.over.load(Ordering::Acquire) {
            if self.fired() && self.stack.has_ended(self.daemon) {
                if self.deaths == Deaths::Both {
                    self.stack.kill_engine();
                    self.stack.kill_supervisor();
                }
                for daemon in [Daemon::Supervisor, Daemon::Engine] {
                    if self.deaths == Deaths::Both || daemon == self.daemon {
                        self.stack.launch(daemon, &[]);
                        self.stack.await_ready(daemon);
                    }
                }
                self.restarts.fetch_add(1, Ordering::AcqRel);
                self.recovered.store(true, Ordering::Release);
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the daemons are back, if one died.
    pub fn settle(&self) {
        let begun = Instant::now();
        while self.fired() && !self.recovered.load(Ordering::Acquire) {
            assert!(begun.elapsed() < PATIENCE, "{}: the daemons do not come back\n{}", self.point, self.stack.logs());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tries `attempt` until it succeeds; it may fail as long as a daemon may be away.
    #[track_caller]
    pub fn step<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
        let begun = Instant::now();
        loop {
            let restarts = self.restarts.load(Ordering::Acquire);
            let error = match attempt() {
                Ok(value) => return value,
                Err(error) => error,
            };
            self.settle();
            let excused = self.restarts.load(Ordering::Acquire) != restarts;
            assert!(
                excused && begun.elapsed() < PATIENCE,
                "{} ({:?}): {what}: {error} after {:?}\n{}",
                self.point,
                self.deaths,
                begun.elapsed(),
                self.stack.logs()
            );
        }
    }

    /// Asks the engine until it answers with one of `statuses`.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>, statuses: &[u16]) -> Value {
        self.step(&format!("{method} {path}"), || {
            let answer = self.stack.api().attempt(method, path, body).map_err(|error| error.to_string())?;
            if statuses.contains(&answer.status) {
                Ok(serde_json::from_slice(&answer.body).unwrap_or_default())
            } else {
                Err(format!("{} {}", answer.status, answer.text().trim()))
            }
        })
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
