//! One complete stack: supervisor and engine with roots, bridge and subnet of their own.

use crate::{
    command::{Outcome, run_with},
    eventually,
    eventually::patience,
    eventually_within, host,
    http::Api,
    images, leftovers,
    programs::{bin_dir, peer},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

/// How long a client's command may take.
const LIMIT: Duration = Duration::from_secs(120);

/// How a stack is started.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Further arguments of the engine.
    pub engine_args: Vec<String>,
    /// Debian's containerd instead of Berth's supervisor, on the same socket.
    pub containerd: bool,
    /// Length of the bridge's network prefix instead of 24.
    pub prefix: Option<u8>,
    /// A folder that already holds a data root, for stacks that start on what others left.
    pub folder: Option<PathBuf>,
    /// The engine neither starts nor revives the supervisor: only the test does.
    pub keep_supervisor: bool,
    /// The network namespace that the daemons run in, if not this machine's.
    pub namespace: Option<PathBuf>,
    /// Further variables in the engine's environment.
    pub variables: Vec<(String, String)>,
    /// Where the programs are, if not where `BERTH_BIN_DIR` says.
    pub bin_dir: Option<PathBuf>,
}

/// One of the two daemons of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// `berth-supervisor`.
    Supervisor,
    /// `berth-engine`.
    Engine,
}

/// A running stack; ends itself when dropped, and then checks that nothing is left.
#[derive(Debug)]
pub struct Stack {
    folder: tempfile::TempDir,
    number: Number,
    setup: Setup,
    engine: Mutex<Option<Child>>,
    supervisor: Mutex<Option<Child>>,
    programs: Mutex<PathBuf>,
    engine_args: Mutex<Vec<String>>,
    supervisor_args: Mutex<Vec<String>>,
}

// A number that no other test process uses: it names the bridge and the subnet.
#[derive(Debug)]
struct Number {
    value: u8,
    claim: PathBuf,
}

impl Number {
    fn claim() -> Self {
        let folder = Path::new("/tmp/berth-test-numbers");
        for value in 0..250u8 {
            // Whoever gives back the last number removes the folder.
            fs::create_dir_all(folder).unwrap();
            let claim = folder.join(value.to_string());
            let taken = fs::read_to_string(&claim).ok().and_then(|pid| pid.trim().parse::<i32>().ok());
            if taken.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_err()) {
                fs::remove_file(&claim).ok();
            }
            let pid_file = folder.join(format!(".{}-{value}", std::process::id()));
            if fs::write(&pid_file, std::process::id().to_string()).is_err() {
                continue;
            }
            // link(2) fails if the name exists: the claim appears with its content, or not at all.
            let claimed = fs::hard_link(&pid_file, &claim).is_ok();
            fs::remove_file(&pid_file).ok();
            if claimed {
                return Self { value, claim };
            }
        }
        panic!("250 stacks are running already: see {}", folder.display());
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        fs::remove_file(&self.claim).ok();
        self.claim.parent().map(fs::remove_dir);
    }
}

impl Stack {
    /// Starts supervisor and engine and waits until the engine answers.
    pub fn start() -> Self {
        Self::start_with(Setup::default())
    }

    /// The same, with further arguments.
    pub fn start_with(setup: Setup) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir().unwrap();
        let programs = Mutex::new(setup.bin_dir.clone().unwrap_or_else(bin_dir));
        let (engine, supervisor) = (Mutex::new(None), Mutex::new(None));
        let (engine_args, supervisor_args) = (Mutex::new(setup.engine_args.clone()), Mutex::default());
        let number = Number::claim();
        let stack = Self { folder, number, setup, engine, supervisor, programs, engine_args, supervisor_args };
        stack.start_supervisor();
        stack.start_engine();
        stack
    }

    /// A stack that has the busybox image loaded.
    pub fn with_busybox() -> Self {
        let stack = Self::start();
        stack.load_busybox();
        stack
    }

    /// Loads `busybox:latest` into the stack.
    pub fn load_busybox(&self) {
        let archive = images::busybox_archive(self.path());
        self.berth(["load", "-q", "-i", archive.to_str().unwrap()]).success();
    }

    /// The stack's folder; everything of it is below.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The data root.
    pub fn data_root(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The run root.
    pub fn run_root(&self) -> PathBuf {
        self.path().join("run")
    }

    /// The engine's socket.
    pub fn engine_socket(&self) -> PathBuf {
        self.run_root().join("engine.sock")
    }

    /// The supervisor's socket.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run_root().join("supervisor.sock")
    }

    /// The bridge's name.
    pub fn bridge(&self) -> String {
        format!("bt{}", self.number.value)
    }

    /// The bridge's own address, the gateway of its containers.
    pub fn gateway(&self) -> String {
        format!("10.233.{}.1", self.number.value)
    }

    /// Where networks of this stack get their subnets from: sixteen small ones that no other stack has.
    pub fn pool(&self) -> String {
        format!("base=10.234.{}.0/24,size=28", self.number.value)
    }

    // Engines of older releases, which some tests start, have no user networks.
    fn knows_pools(&self) -> bool {
        let help = Command::new(self.bin_dir().join("berth-engine")).arg("--help").output();
        help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--default-address-pool"))
    }

    /// The Engine API of this stack.
    pub fn api(&self) -> Api {
        Api::new(self.engine_socket())
    }

    /// Daemons that are started from now on are those of another folder.
    pub fn use_programs(&self, folder: &Path) {
        *self.programs.lock().unwrap() = folder.to_owned();
    }

    /// Daemons of a kind that are started from now on get these further arguments, an engine instead of the setup's.
    pub fn use_args<S: Into<String>>(&self, daemon: Daemon, args: impl IntoIterator<Item = S>) {
        let slot = match daemon {
            Daemon::Supervisor => &self.supervisor_args,
            Daemon::Engine => &self.engine_args,
        };
        *slot.lock().unwrap() = args.into_iter().map(Into::into).collect();
    }

    /// Starts a daemon with further variables in its environment, and doesn't wait for it.
    pub fn launch(&self, daemon: Daemon, variables: &[(&str, &OsStr)]) {
        let (slot, child) = match daemon {
            Daemon::Supervisor if self.setup.containerd => (&self.supervisor, self.containerd()),
            Daemon::Supervisor => {
                let args = self.supervisor_args.lock().unwrap().clone();
                (&self.supervisor, self.daemon("berth-supervisor", &args, variables))
            }
            Daemon::Engine => {
                let bip = format!("{}/{}", self.gateway(), self.setup.prefix.unwrap_or(24));
                let mut args = vec!["--bridge".into(), self.bridge(), "--bip".into(), bip];
                if self.knows_pools() {
                    args.extend(["--default-address-pool".into(), self.pool()]);
                }
                if self.setup.keep_supervisor {
                    args.extend([
                        "--supervisor".into(),
                        format!("unix://{}/../run/supervisor.sock", self.run_root().display()),
                    ]);
                }
                args.extend(self.engine_args.lock().unwrap().iter().cloned());
                (&self.engine, self.daemon("berth-engine", &args, variables))
            }
        };
        *slot.lock().unwrap() = Some(child);
    }

    /// Waits until a daemon that was launched answers.
    #[track_caller]
    pub fn await_ready(&self, daemon: Daemon) {
        match daemon {
            Daemon::Supervisor => {
                let socket = self.supervisor_socket();
                self.await_daemon("supervisor answers", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
            }
            Daemon::Engine => {
                let api = self.api();
                self.await_daemon("engine answers", || {
                    api.open("GET", "/_ping", None, "").is_ok_and(|answer| answer.status == 200)
                });
            }
        }
    }

    /// Whether a daemon that was started has ended; reaps it.
    pub fn has_ended(&self, daemon: Daemon) -> bool {
        let slot = match daemon {
            Daemon::Supervisor => &self.supervisor,
            Daemon::Engine => &self.engine,
        };
        let mut slot = slot.lock().unwrap();
        let ended = slot.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            *slot = None;
        }
        ended
    }

    fn daemon(&self, name: &str, args: &[String], variables: &[(&str, &OsStr)]) -> Child {
        let roots = [OsStr::new("--data-root"), self.data_root().as_os_str(), OsStr::new("--run-root")]
            .map(OsStr::to_owned)
            .into_iter()
            .chain([self.run_root().into_os_string()]);
        let program = self.bin_dir().join(name);
        assert!(program.exists(), "{} is not built: make build", program.display());
        let mut command = match &self.setup.namespace {
            Some(namespace) => host::within(namespace, program),
            None => Command::new(program),
        };
        command.args(roots).args(args).envs(variables.iter().copied());
        self.spawn(name, command.envs(self.setup.variables.iter().map(|(name, value)| (name, value))))
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Child {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.path().join(format!("{name}.log"))).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // A group of its own: a Ctrl-C in the terminal ends the test, which then ends the daemons in order.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("start {name}: {e}"))
    }

    /// Starts the supervisor and waits for its socket.
    pub fn start_supervisor(&self) {
        self.launch(Daemon::Supervisor, &[]);
        self.await_ready(Daemon::Supervisor);
    }

    fn containerd(&self) -> Child {
        let at = |name: &str| self.path().join(name);
        fs::create_dir_all(self.run_root()).unwrap();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            at("containerd-root"),
            at("containerd-state"),
            self.supervisor_socket(),
        );
        fs::write(at("containerd.toml"), config).unwrap();
        self.spawn("containerd", Command::new("containerd").arg("--config").arg(at("containerd.toml")))
    }

    /// Starts the engine and waits until it answers.
    pub fn start_engine(&self) {
        self.launch(Daemon::Engine, &[]);
        self.await_ready(Daemon::Engine);
    }

    #[track_caller]
    fn await_daemon(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually_within(Duration::from_secs(60), what, || ready().then_some(()));
        }));
        assert!(result.is_ok(), "{what}: no\n{}", self.logs());
    }

    /// Kills the engine with SIGKILL and reaps it.
    pub fn kill_engine(&self) {
        end(&self.engine, Signal::SIGKILL);
    }

    /// Kills the supervisor with SIGKILL and reaps it.
    pub fn kill_supervisor(&self) {
        end(&self.supervisor, Signal::SIGKILL);
    }

    /// Asks the engine to end (SIGTERM) and waits for it.
    pub fn stop_engine(&self) {
        end(&self.engine, Signal::SIGTERM);
    }

    /// Asks the supervisor to end (SIGTERM) and waits for it.
    pub fn stop_supervisor(&self) {
        end(&self.supervisor, Signal::SIGTERM);
    }

    /// The process id of the engine.
    pub fn engine_pid(&self) -> u32 {
        self.engine.lock().unwrap().as_ref().map(Child::id).expect("the engine is not running")
    }

    /// The process id of the supervisor.
    pub fn supervisor_pid(&self) -> u32 {
        self.supervisor.lock().unwrap().as_ref().map(Child::id).expect("the supervisor is not running")
    }

    /// The last lines of both daemons' logs.
    pub fn logs(&self) -> String {
        ["berth-engine", if self.setup.containerd { "containerd" } else { "berth-supervisor" }]
            .map(|name| {
                let text = fs::read_to_string(self.path().join(format!("{name}.log"))).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                format!("--- {name}.log\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"))
            })
            .concat()
    }

    /// A client program, prepared to talk to this stack's engine.
    pub fn client(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("DOCKER_HOST", format!("unix://{}", self.engine_socket().display()))
            .env("DOCKER_CONFIG", self.path().join("client"))
            .env_remove("BERTH_HOST")
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs Berth's own client.
    pub fn berth<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        run_with(self.client(self.bin_dir().join("berth")).args(args), b"", LIMIT * patience())
    }

    /// Runs the real docker client.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        run_with(self.client("docker").args(args), b"", LIMIT * patience())
    }

    /// Runs containerd's `ctr` on the supervisor's socket.
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.supervisor_socket()).args(args);
        run_with(&mut command, b"", LIMIT * patience())
    }

    /// What `inspect` says of a container.
    #[track_caller]
    pub fn inspect(&self, container: &str) -> Value {
        self.api().get(&format!("/containers/{container}/json")).expect(200).json()
    }

    /// Waits until the container's `State.Status` is `status`.
    #[track_caller]
    pub fn await_status(&self, container: &str, status: &str) {
        eventually(&format!("{container} is {status}"), || {
            (self.inspect(container)["State"]["Status"] == json!(status)).then_some(())
        });
    }

    /// Removes every container by force.
    pub fn remove_all(&self) {
        let api = self.api();
        let all = api.get("/containers/json?all=1").json();
        for container in all.as_array().into_iter().flatten() {
            let id = container["Id"].as_str().unwrap_or_default();
            api.delete(&format!("/containers/{id}?force=1&v=1"));
        }
    }

    /// The folder of the programs under test.
    pub fn bin_dir(&self) -> PathBuf {
        self.programs.lock().unwrap().clone()
    }
}

/// The real docker client, or a reason on standard error why the test is skipped.
pub fn has_docker() -> bool {
    let found = peer("docker").is_some();
    if !found {
        eprintln!("skipped: no docker client on the PATH (make deps-test)");
    }
    found
}

fn end(slot: &Mutex<Option<Child>>, signal: Signal) {
    if let Some(mut child) = slot.lock().unwrap().take() {
        kill(Pid::from_raw(child.id().cast_signed()), signal).ok();
        child.wait().unwrap();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let panicking = thread::panicking();
        if panicking {
            eprintln!("{}", self.logs());
        }
        // A test may have left either daemon dead: what they minded is cleaned up through them.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if self.supervisor.lock().unwrap().is_none() {
                self.start_supervisor();
            }
            if self.engine.lock().unwrap().is_none() {
                self.start_engine();
            }
            self.remove_all();
        }));
        self.stop_engine();
        self.stop_supervisor();
        // The links of another host go with it.
        let bridge = self.setup.namespace.is_none().then(|| self.bridge());
        let found = leftovers::of_stack(self.path(), bridge.as_deref());
        if !panicking {
            assert!(result.is_ok(), "the stack could not be cleaned up\n{}", self.logs());
            assert!(found.is_empty(), "left behind: {found:#?}\n{}", self.logs());
        }
    }
}
