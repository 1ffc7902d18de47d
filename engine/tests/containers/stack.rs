//! An engine of this build with the supervisor that it starts itself, under roots and a bridge of their own; a client for
//! its socket; a small image with busybox.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

static STACKS: AtomicU8 = AtomicU8::new(0);

/// Both daemons. They end with the value, and what they leave on the host fails the test.
pub struct Stack {
    root: tempfile::TempDir,
    number: u8,
    engine: Option<Child>,
    /// A configuration file was written.
    configured: bool,
}

/// What the engine answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Payloads of the frames of stdout and stderr.
    pub fn streams(&self) -> (String, String) {
        split_frames(&self.body)
    }
}

/// Takes a multiplexed stream apart.
pub fn split_frames(mut bytes: &[u8]) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while bytes.len() >= 8 {
        let length = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let payload = &bytes[8..8 + length];
        match bytes[0] {
            1 => out.extend_from_slice(payload),
            2 => err.extend_from_slice(payload),
            other => panic!("stream {other}"),
        }
        bytes = &bytes[8 + length..];
    }
    assert!(bytes.is_empty(), "half a header");
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_berth-engine")).with_file_name(name)
}

impl Stack {
    /// Starts; `None`, and a line that says why, where that cannot be.
    pub fn start() -> Option<Self> {
        Self::configured("")
    }

    /// The same with a configuration file.
    pub fn configured(config: &str) -> Option<Self> {
        for name in ["berth-supervisor", "berth-shim", "berth-runtime"] {
            if !program(name).exists() {
                eprintln!("skipped: {name} is not built");
                return None;
            }
        }
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: containers need root");
            return None;
        }
        if busybox().is_none() {
            eprintln!("skipped: there is no static busybox to make an image of");
            return None;
        }
        let root = tempfile::Builder::new().prefix("berth-engine-").tempdir().unwrap();
        let number = STACKS.fetch_add(1, Ordering::Relaxed);
        std::fs::write(root.path().join("engine.toml"), config).unwrap();
        let mut stack = Self { root, number, engine: None, configured: !config.is_empty() };
        stack.start_engine();
        stack.import_image();
        Some(stack)
    }

    pub fn bridge(&self) -> String {
        format!("bec{}x{}", std::process::id() % 10_000, self.number)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(program("berth-engine"));
        command
            .arg("--data-root")
            .arg(self.data())
            .arg("--run-root")
            .arg(self.run())
            .args(["--bridge", &self.bridge()])
            .args(["--bip", &format!("10.{}.{}.1/24", 100 + std::process::id() % 100, self.number)])
            .stdin(Stdio::null());
        if self.configured {
            command.arg("--config").arg(self.root.path().join("engine.toml"));
        }
        command
    }

    /// Lets everybody open the socket.
    pub fn open_socket(&self) {
        use std::os::unix::fs::PermissionsExt;
        for (path, mode) in [(self.root.path().to_owned(), 0o711), (self.run().join("engine.sock"), 0o666)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    pub fn data(&self) -> PathBuf {
        self.root.path().join("D")
    }

    pub fn run(&self) -> PathBuf {
        self.root.path().join("R")
    }

    pub fn start_engine(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.root.path().join("engine.log")).unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log).env("BERTH_LOG", "berth_engine=debug");
        self.engine = Some(command.spawn().unwrap());
        let socket = self.run().join("engine.sock");
        eventually("the engine serves", || UnixStream::connect(&socket).map(drop).map_err(|e| e.to_string()));
    }

    /// How many descriptors the engine has open.
    pub fn engine_descriptors(&self) -> usize {
        let pid = self.engine.as_ref().unwrap().id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    /// SIGKILL for the engine.
    pub fn kill_engine(&mut self) {
        let mut engine = self.engine.take().unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
    }

    /// SIGKILL for the supervisor.
    pub fn kill_supervisor(&self) {
        let pid = self.supervisor_pid().expect("a supervisor runs");
        kill(pid, Signal::SIGKILL).unwrap();
        eventually("the supervisor is gone", || match std::fs::metadata(format!("/proc/{pid}/exe")) {
            Ok(_) => Err("it lives".into()),
            Err(_) => Ok(()),
        });
    }

    /// SIGKILL for all shims, and for the first process of each container.
    pub fn kill_containers(&self) {
        let run = self.run().display().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids: Vec<i32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let line = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_shim = |pid: &&i32| {
            let line = String::from_utf8_lossy(&line(pid)).into_owned();
            line.contains("berth-shim") && line.contains(&run)
        };
        let shims: Vec<i32> = pids.iter().filter(is_shim).copied().collect();
        let children = |parent: &i32| {
            let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
            text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()).collect::<Vec<_>>()
        };
        assert!(!shims.is_empty(), "no shim runs");
        let first: Vec<i32> = shims.iter().flat_map(children).collect();
        for pid in shims.iter().chain(&first) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        eventually("they are gone", || {
            let left = first.iter().filter(|pid| !line(pid).is_empty()).count();
            if left == 0 { Ok(()) } else { Err(format!("{left} live")) }
        });
    }

    fn supervisor_pid(&self) -> Option<Pid> {
        let wanted = self.data();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut ours = pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words[0].ends_with(b"berth-supervisor") && words.contains(&wanted.as_os_str().as_encoded_bytes())
        });
        ours.next().map(Pid::from_raw)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.run().join("engine.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub fn request(&self, method: &str, target: &str, kind: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(body);
        let mut bytes = Vec::new();
        // An engine that answers before it has read the body resets the connection behind its answer.
        let ended = stream.read_to_end(&mut bytes);
        parse(&bytes)
            .unwrap_or_else(|| panic!("{method} {target}: {ended:?} after {}", String::from_utf8_lossy(&bytes)))
    }

    pub fn get(&self, target: &str) -> Answer {
        self.request("GET", target, "", b"")
    }

    pub fn delete(&self, target: &str) -> Answer {
        self.request("DELETE", target, "", b"")
    }

    pub fn post(&self, target: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        self.request("POST", target, "application/json", &body)
    }

    /// Makes a container; gives its id.
    pub fn create(&self, query: &str, body: &Value) -> String {
        let mut body = body.clone();
        body["Image"] = "test".into();
        let answer = self.post(&format!("/containers/create{query}"), &body);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["Id"].as_str().unwrap().to_owned()
    }

    pub fn start_container(&self, id: &str) {
        let answer = self.post(&format!("/containers/{id}/start"), &Value::Null);
        assert_eq!(answer.status, 204, "{}", answer.text());
    }

    pub fn wait(&self, id: &str, condition: &str) -> i64 {
        let answer = self.post(&format!("/containers/{id}/wait?condition={condition}"), &Value::Null);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["StatusCode"].as_i64().unwrap()
    }

    pub fn inspect(&self, id: &str) -> Value {
        let answer = self.get(&format!("/containers/{id}/json"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Takes a connection over; gives it after the head of the answer.
    pub fn hijack(&self, target: &str, body: &str) -> (String, UnixStream) {
        let mut stream = self.connect();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let head = read_head(&mut stream);
        (head, stream)
    }

    /// Begins a request whose answer does not end at once; gives the connection after its head.
    pub fn begin(&self, method: &str, target: &str) -> (String, UnixStream) {
        let mut stream = self.connect();
        stream
            .write_all(format!("{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let head = read_head(&mut stream);
        (head, stream)
    }

    /// As [`Stack::begin`], but the target may bring headers of its own, which say what becomes of the connection.
    pub fn begin_open(&self, method: &str, target: &str) -> (String, UnixStream) {
        let mut stream = self.connect();
        stream.write_all(format!("{method} {target} HTTP/1.1\r\nHost: d\r\n\r\n").as_bytes()).unwrap();
        let head = read_head(&mut stream);
        (head, stream)
    }

    /// Everything that has happened so far, one event in a line.
    pub fn past_events(&self) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        self.get(&format!("/events?since=1&until={}.{:09}", now.as_secs(), now.subsec_nanos())).text()
    }

    fn import_image(&self) {
        let archive = image();
        let target = "/images/create?fromSrc=-&repo=test&changes=ENV%20FROM=image&changes=VOLUME%20/vol";
        let answer = self.request("POST", target, "application/x-tar", &archive);
        assert!(answer.status == 200 && !answer.text().contains("error"), "{}", answer.text());
    }

    fn remove_all(&self) {
        for container in self.get("/containers/json?all=1").json().as_array().unwrap() {
            let id = container["Id"].as_str().unwrap();
            assert_eq!(self.delete(&format!("/containers/{id}?force=1&v=1")).status, 204);
        }
    }

    /// What is still on the host of containers that are gone.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let run = self.run();
        for folder in [run.join("engine/netns"), run.join("engine/streams"), run.join("supervisor/tasks/berth")] {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = self.root.path().display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&root)).map(str::to_owned));
        left
    }
}

#[allow(dead_code, reason = "for the tests of the system, which share this file")]
impl Stack {
    /// Folder of everything that belongs to this stack.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Number of the engine's process.
    pub fn engine_pid(&self) -> Pid {
        Pid::from_raw(self.engine.as_ref().expect("an engine runs").id() as i32)
    }

    pub fn signal_engine(&self, signal: Signal) {
        kill(self.engine_pid(), signal).unwrap();
    }

    /// SIGTERM for the engine, and its end.
    pub fn stop_engine(&mut self) {
        self.signal_engine(Signal::SIGTERM);
        assert!(self.engine.take().unwrap().wait().unwrap().success());
    }

    /// A request to an engine that may die over it.
    pub fn try_request(&self, method: &str, target: &str, body: &Value) -> Option<Answer> {
        let mut stream = UnixStream::connect(self.run().join("engine.sock")).ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        parse(&bytes)
    }

    /// Waits for the end of an engine that dies by itself.
    pub fn reap_engine(&mut self) {
        self.engine.take().unwrap().wait().unwrap();
    }

    /// An engine that was started elsewhere with this stack's folders.
    pub fn adopt(&mut self, engine: Child) {
        self.engine = Some(engine);
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // All containers first, so that nothing outlives the test.
        if std::thread::panicking() {
            // On a thread of its own, since it may panic too.
            let _ = std::thread::scope(|scope| scope.spawn(|| self.remove_all()).join());
        } else {
            self.remove_all();
            eventually("nothing is left", || match self.leftovers() {
                left if left.is_empty() => Ok(()),
                left => Err(format!("{left:?}")),
            });
        }
        if let Some(mut engine) = self.engine.take() {
            let _ = kill(Pid::from_raw(engine.id() as i32), Signal::SIGTERM);
            let _ = engine.wait();
        }
        if let Some(pid) = self.supervisor_pid() {
            let _ = kill(pid, Signal::SIGTERM);
        }
        if std::thread::panicking() {
            for log in ["engine.log", "D/supervisor.log"] {
                eprintln!("{log}:\n{}", std::fs::read_to_string(self.root.path().join(log)).unwrap_or_default());
            }
            return;
        }
        let link = PathBuf::from("/sys/class/net").join(self.bridge());
        assert!(!link.exists(), "the bridge is left behind");
    }
}

/// Tries until it works, for a bounded time.
pub fn eventually(what: &str, mut attempt: impl FnMut() -> Result<(), String>) {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return,
            Err(why) if started.elapsed() > Duration::from_secs(30) => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut rest = &bytes[end + 4..];
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Some(Answer { status, head, body: rest.to_vec() });
    }
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Some(Answer { status, head, body });
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists())
}

/// A tar archive with busybox, its users and a folder to be copied into a volume.
fn image() -> Vec<u8> {
    let mut tar = Vec::new();
    let program = std::fs::read(busybox().unwrap()).unwrap();
    entry(&mut tar, "bin/", b'5', 0o755, "", b"");
    entry(&mut tar, "bin/busybox", b'0', 0o755, "", &program);
    for name in [
        "sh", "cat", "echo", "sleep", "id", "true", "false", "seq", "ls", "usleep", "tty", "kill", "readlink", "test",
        "df", "tail", "tr", "mount", "stat", "touch", "env", "hostname", "dd", "grep", "ps", "ln", "mkdir", "wc",
    ] {
        entry(&mut tar, &format!("bin/{name}"), b'2', 0o777, "busybox", b"");
    }
    entry(&mut tar, "etc/", b'5', 0o755, "", b"");
    entry(&mut tar, "etc/passwd", b'0', 0o644, "", b"root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/sh\n");
    entry(&mut tar, "etc/group", b'0', 0o644, "", b"root:x:0:\nstaff:x:50:www\n");
    entry(&mut tar, "vol/", b'5', 0o755, "", b"");
    entry(&mut tar, "vol/file", b'0', 0o640, "", b"from the image\n");
    tar.extend_from_slice(&[0; 1024]);
    tar
}

/// One ustar header with its data.
fn entry(tar: &mut Vec<u8>, name: &str, kind: u8, mode: u32, link: &str, data: &[u8]) {
    let mut head = [0_u8; 512];
    head[..name.len()].copy_from_slice(name.as_bytes());
    let mut number = |at: usize, width: usize, value: usize| {
        let text = format!("{value:0>width$o}", width = width - 1);
        head[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    number(100, 8, mode as usize);
    number(108, 8, 0);
    number(116, 8, 0);
    number(124, 12, data.len());
    number(136, 12, 0);
    head[156] = kind;
    head[157..157 + link.len()].copy_from_slice(link.as_bytes());
    head[257..265].copy_from_slice(b"ustar\x0000");
    head[148..156].copy_from_slice(b"        ");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend_from_slice(&head);
    tar.extend_from_slice(data);
    tar.extend(std::iter::repeat_n(0, data.len().div_ceil(512) * 512 - data.len()));
}
