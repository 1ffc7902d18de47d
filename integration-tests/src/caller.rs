//! Foreign daemons and clients above parts of Berth: each with roots, sockets and a cgroup of its own.

use crate::{Outcome, run, run_with};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long one command of a client may take.
pub const LIMIT: Duration = Duration::from_secs(90);

/// A caller: its folder, how its client is called, and its daemon if it has one. Dropped, everything of it goes.
#[derive(Debug)]
pub struct Caller {
    folder: tempfile::TempDir,
    /// Also the name of the parent of all its cgroups.
    pub name: String,
    /// The client's command line up to its verb.
    pub client: Vec<String>,
    variables: Vec<(String, String)>,
    daemon: Option<Child>,
}

impl Caller {
    /// A caller without a daemon.
    pub fn new(who: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(&format!("berth-{who}-")).tempdir().unwrap();
        let name = format!("berth-callers-{who}-{}", std::process::id());
        // Nobody's registry credentials.
        let config = folder.path().join("client");
        fs::create_dir(&config).unwrap();
        fs::write(config.join("config.json"), "{}").unwrap();
        let variables = vec![("DOCKER_CONFIG".to_owned(), config.display().to_string())];
        Self { folder, name, client: Vec::new(), variables, daemon: None }
    }

    /// A client of a containerd that is still to be started with its `config.toml`, on a socket of its own.
    pub fn of_containerd(who: &str) -> Self {
        let mut ctr = Self::new(who);
        let socket = ctr.at("containerd.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {:?}\n",
            ctr.at("data"),
            ctr.at("run"),
            ctr.at("ttrpc.sock")
        );
        fs::write(ctr.at("config.toml"), config).unwrap();
        // The namespace is the parent of its cgroups.
        ctr.client = ["ctr", "-a", &socket, "-n", &ctr.name].map(str::to_owned).to_vec();
        ctr
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in its folder, as text.
    pub fn at(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    /// Starts its daemon, whose output is added to its log.
    pub fn start(&mut self, daemon: &mut Command) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.at("log")).unwrap();
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(daemon.spawn().unwrap());
    }

    /// Kills its daemon outright, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }

    /// Lines of its log with all of these words.
    pub fn logged(&self, words: &[&str]) -> Vec<String> {
        let text = fs::read_to_string(self.at("log")).unwrap_or_default();
        let found = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        found.map(str::to_owned).collect()
    }

    /// Processes with its folder on their command line, which ends like this.
    pub fn processes(&self, end: &str) -> Vec<i32> {
        let folder = self.path().display().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let line = |pid: &i32| {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
        };
        pids.filter(|pid| line(pid).contains(&folder) && line(pid).ends_with(end)).collect()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.at("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Runs its client.
    pub fn call<S: AsRef<str>>(&self, arguments: &[S]) -> Outcome {
        let mut command = Command::new(&self.client[0]);
        command.args(&self.client[1..]).args(arguments.iter().map(AsRef::as_ref)).envs(self.variables.clone());
        run_with(&mut command, b"", LIMIT)
    }

    /// The same, which must succeed; gives what it printed.
    #[track_caller]
    pub fn ok<S: AsRef<str>>(&self, arguments: &[S]) -> String {
        let outcome = self.call(arguments);
        assert_eq!(outcome.code(), 0, "{outcome}\n--- log\n{}", self.log());
        outcome.stdout()
    }

    /// The same, which must end with `code`.
    #[track_caller]
    pub fn code<S: AsRef<str>>(&self, arguments: &[S], code: i32) -> String {
        let outcome = self.call(arguments);
        assert_eq!(outcome.code(), code, "{outcome}\n--- log\n{}", self.log());
        outcome.stdout()
    }

    /// The same at a terminal of 33 rows and 99 columns, made by script(1), that nobody types at; code and all that was shown.
    pub fn at_terminal<S: AsRef<str>>(&self, arguments: &[S]) -> (i32, String) {
        let words = self.client.iter().map(String::as_str).chain(arguments.iter().map(AsRef::as_ref));
        let quoted: Vec<String> = words.map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let mut child = Command::new("script")
            .args(["-qec", &format!("stty rows 33 cols 99; exec {}", quoted.join(" ")), "/dev/null"])
            .envs(self.variables.clone())
            // Kept open: clients take its end for the wish to leave.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            output.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        });
        let input = child.stdin.take();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > LIMIT {
                child.kill().ok();
            }
            thread::sleep(Duration::from_millis(5));
        };
        drop(input);
        (status.code().unwrap_or(-1), reader.join().unwrap())
    }

    /// A shell at a terminal: it is one, it gets the size of the caller's, and its exit code comes back.
    #[track_caller]
    pub fn has_terminal<S: AsRef<str>>(&self, arguments: &[S]) {
        let script = "tty; until test \"$(stty size)\" = '33 99'; do usleep 20000; done; echo sized; exit 5";
        let (code, shown) =
            self.at_terminal(&arguments.iter().map(AsRef::as_ref).chain(["sh", "-c", script]).collect::<Vec<_>>());
        assert!(
            code == 5 && shown.contains("/dev/pts/0") && shown.contains("sized"),
            "{code}: {shown:?}\n{}",
            self.log()
        );
    }

    /// State that only Berth's runtime writes.
    pub fn assert_state_is_ours(&self) {
        let find = run("find", [self.path().to_str().unwrap(), "-name", "state.json"]).stdout();
        let ours = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.contains("\"ownPidNamespace\""));
        assert!(find.lines().any(ours), "no state of berth-runtime: {find}");
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).ok();
            daemon.wait().ok();
        }
        // Shims of a test that failed, and their containers.
        for pid in self.processes("start") {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([pid]) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        // Mounts that callers leave when their roots are moved, the innermost first.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(mount).starts_with(self.path()) {
                run("umount", ["-q", "-l", mount]);
            }
        }
        // Runtimes make the parents of a cgroup path and leave them: who chose the path removes them.
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = controller.path().join(&self.name);
            for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
                fs::remove_dir(child.path()).ok();
            }
            fs::remove_dir(parent).ok();
        }
    }
}
