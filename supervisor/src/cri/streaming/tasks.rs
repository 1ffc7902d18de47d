//! Processes of real containers, as tasks have them: `exec` and `attach` over FIFOs.
//!
//! Each exec has a folder `RUN/supervisor/streams/EXEC@CONTAINER`, which holds the FIFOs until both sides have opened them, and stays
//! until the process is deleted: by these names the next supervisor finds what to see to. Bytes go straight between the shim and
//! us; when we go, the shim drops what it can't write, and a process's stdin ends. A shim that isn't Berth's waits for a reader of what
//! it can't write: there the FIFOs of output stay in the folder, and without a client somebody reads them into nothing.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::FcntlArg,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use proto::{
    berth::streams::v1::{AttachRequest, Lag},
    containerd::{services::tasks::v1::ExecProcessRequest, v1::types::Status},
    digest::hex,
    id::NamespaceName,
    kind::{ErrorKind, chain},
    stdio::{FifoReader, StdioUri},
    typeurl,
};
use serde_json::Value;
use tokio::{
    net::unix::pipe::{self, OpenOptions},
    task::JoinSet,
};
use tonic::async_trait;
use tracing::{debug, warn};

use super::{
    super::relays::Relays,
    StreamingError, Target,
    process::{Backend, Handle, Process, Size, Wants},
    tokens::random,
};
use crate::{
    failure::Failure as _,
    tasks::{TaskError, Tasks},
};

/// Read at once of what nobody wants.
const CHUNK: usize = 32 << 10;
/// Capacity asked for each FIFO of output.
const PIPE_SIZE: i32 = 1 << 20;
/// What Berth's shim has passed on when it tells of an end is all there is; it only has to be noticed.
const OWN_GRACE: Duration = Duration::from_millis(250);
/// Another shim may still be copying.
const FOREIGN_GRACE: Duration = Duration::from_secs(2);
/// How long one may take to open the input of a process that it has started, and how often that is looked at.
const READER_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);
/// Begins the id of an exec that a client streams.
const STREAMED: &str = "exec-";
/// Begins the id of one that a call waits for: without the call, nobody needs it.
const WAITED_FOR: &str = "sync-";

/// The containers of this node.
pub(super) struct Containers {
    tasks: Arc<Tasks>,
    relays: Arc<Relays>,
    namespace: NamespaceName,
    folder: PathBuf,
}

/// FIFOs on their way to the shim. Their names go with this value; what is open stays open.
struct Fifos {
    folder: PathBuf,
    ends: Ends,
    // Those of output keep their names.
    stay: bool,
}

#[derive(Default)]
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

const NAMES: [&str; 3] = ["stdin", "stdout", "stderr"];

impl Fifos {
    /// Makes FIFOs in a folder and opens our ends, the reading ones before anybody can write.
    fn make(folder: PathBuf, wants: Wants) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        // From here on they go again, whatever fails.
        let mut fifos = Self { folder, ends: Ends::default(), stay: false };
        let make = |name| {
            let path = fifos.folder.join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            Ok::<_, io::Error>(path)
        };
        let read = |name| {
            let receiver = OpenOptions::new().open_receiver(make(name)?)?;
            // Refused when the user's share of pipe memory is used up; the usual 64 KiB do as well.
            let _ = nix::fcntl::fcntl(receiver.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
            Ok::<_, io::Error>(receiver)
        };
        let [stdin, stdout, stderr] = NAMES;
        let mut ends = Ends::default();
        if wants.stdin {
            // Read and write: neither waits for a reader nor lets one see an end before we have written.
            ends.stdin = Some(OpenOptions::new().read_write(true).open_sender(make(stdin)?)?);
        }
        if wants.stdout {
            ends.stdout = Some(read(stdout)?);
        }
        if wants.stderr {
            ends.stderr = Some(read(stderr)?);
        }
        fifos.ends = ends;
        Ok(fifos)
    }

    fn path(&self, name: &str) -> String {
        let there = match name {
            "stdin" => self.ends.stdin.is_some(),
            "stdout" => self.ends.stdout.is_some(),
            _ => self.ends.stderr.is_some(),
        };
        if there { self.folder.join(name).display().to_string() } else { String::new() }
    }

    /// To be called once the shim holds its ends: from now on our closing of stdin is an end to its reader.
    fn settle(mut self) -> io::Result<Ends> {
        if self.ends.stdin.is_some() {
            // Ours for both directions is still a reader, so this waits for nobody and always finds one.
            self.ends.stdin = Some(OpenOptions::new().open_sender(self.folder.join("stdin"))?);
        }
        Ok(std::mem::take(&mut self.ends))
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for name in NAMES.into_iter().filter(|name| !self.stay || *name == "stdin") {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }
}

impl Containers {
    /// The containers of a namespace; folders are made in `folder`. What an earlier supervisor has left there is seen to.
    pub(super) fn new(
        tasks: Arc<Tasks>,
        relays: Arc<Relays>,
        namespace: NamespaceName,
        folder: PathBuf,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let containers = Self { tasks, relays, namespace, folder };
        for entry in std::fs::read_dir(&containers.folder)? {
            containers.take_over(entry?.path());
        }
        Ok(containers)
    }

    // A process that an earlier supervisor had started, and that nobody speaks for any more.
    fn take_over(&self, folder: PathBuf) {
        let name = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('@'));
        let Some((exec, container)) = name else { return remove(&folder) };
        let _ = std::fs::remove_file(folder.join("stdin"));
        let exec = self.one(container, exec, &folder);
        tokio::spawn(async move {
            let _drain = exec.drain();
            let known = exec.tasks.get(&exec.namespace, &exec.container, &exec.exec).await;
            // One that was never started never ends.
            let lives = known.is_ok_and(|process| matches!(process.status(), Status::Running | Status::Paused));
            if lives {
                if exec.exec.starts_with(WAITED_FOR) {
                    exec.kill().await;
                }
                let _ = exec.exit().await;
            }
            exec.forget().await;
        });
    }

    fn one(&self, container: &str, exec: &str, folder: &Path) -> Exec {
        Exec {
            tasks: self.tasks.clone(),
            namespace: self.namespace.clone(),
            container: container.to_owned(),
            exec: exec.to_owned(),
            folder: folder.to_owned(),
            own: self.tasks.has_own_shim(&self.namespace, container),
        }
    }

    async fn start(
        &self,
        target: &Target,
        command: &[String],
        wants: Wants,
        prefix: &str,
    ) -> Result<Process, StreamingError> {
        let spec = process(&target.process, command, wants.tty)?;
        let id = random::<16>().map_err(StreamingError::Random)?;
        let id = format!("{prefix}{}", hex(&id));
        let folder = self.folder.join(format!("{id}@{}", target.id));
        let exec = self.one(&target.id, &id, &folder);
        let started = self.launch(&exec, spec, wants).await;
        match started {
            Ok(ends) => {
                let grace = if exec.own { OWN_GRACE } else { FOREIGN_GRACE };
                let Ends { stdin, stdout, stderr } = ends;
                Ok(Process { stdin, stdout, stderr, handle: Arc::new(exec), grace })
            }
            Err(error) => {
                exec.forget().await;
                Err(error)
            }
        }
    }

    async fn launch(&self, exec: &Exec, spec: Vec<u8>, wants: Wants) -> Result<Ends, StreamingError> {
        let failed = |cause| StreamingError::Fifos { at: exec.folder.clone(), cause };
        let mut fifos = Fifos::make(exec.folder.clone(), wants).map_err(failed)?;
        proto::fault!("supervisor.stream.fifos_made");
        // Output doesn't wait for us: if we die, the process goes on. Other shims know plain paths only.
        let uri = |name, reader| match fifos.path(name) {
            path if path.is_empty() || !exec.own => path,
            path => StdioUri::Fifo { path: path.into(), reader }.to_string(),
        };
        let request = ExecProcessRequest {
            container_id: exec.container.clone(),
            exec_id: exec.exec.clone(),
            terminal: wants.tty,
            stdin: uri("stdin", FifoReader::Awaited),
            stdout: uri("stdout", FifoReader::Optional),
            stderr: uri("stderr", FifoReader::Optional),
            spec: Some(typeurl::pack_json(typeurl::PROCESS, spec)),
        };
        self.tasks.exec(&self.namespace, request).await?;
        proto::fault!("supervisor.stream.exec_added");
        self.tasks.start(&self.namespace, &exec.container, &exec.exec).await?;
        fifos.stay = !exec.own;
        proto::fault!("supervisor.stream.exec_started");
        let ends = fifos.settle().map_err(failed)?;
        if let Some(stdin) = ends.stdin.as_ref().filter(|_| !exec.own) {
            exec.await_reader(stdin).await;
        }
        Ok(ends)
    }

    /// Runs a command that a call waits for, with nothing to read.
    pub(super) async fn run(&self, target: &Target, command: &[String]) -> Result<Process, StreamingError> {
        let wants = Wants { stdout: true, stderr: true, ..Wants::default() };
        self.start(target, command, wants, WAITED_FOR).await
    }
}

/// The process of an exec: the container's own, with another command.
fn process(container: &Value, command: &[String], tty: bool) -> Result<Vec<u8>, StreamingError> {
    let mut process = container.as_object().cloned().ok_or(StreamingError::Request("the container has no process"))?;
    process.insert("args".into(), command.into());
    process.insert("terminal".into(), tty.into());
    // Of the container's terminal, and of Windows.
    process.remove("consoleSize");
    process.remove("commandLine");
    if tty {
        let env = process.entry("env").or_insert_with(|| Value::Array(Vec::new()));
        if let Some(env) = env.as_array_mut()
            && !env.iter().any(|word| word.as_str().is_some_and(|word| word.starts_with("TERM=")))
        {
            env.push("TERM=xterm".into());
        }
    }
    serde_json::to_vec(&process).map_err(|_| StreamingError::Request("the container's process is not JSON"))
}

fn remove(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(folder = %folder.display(), %error, "folder of a stream left behind");
        }
        _ => {}
    }
}

#[async_trait]
impl Backend for Containers {
    async fn exec(&self, target: &Target, command: &[String], wants: Wants) -> Result<Process, StreamingError> {
        self.start(target, command, wants, STREAMED).await
    }

    async fn attach(&self, target: &Target, wants: Wants) -> Result<Process, StreamingError> {
        let own = self.tasks.has_own_shim(&self.namespace, &target.id);
        // A terminal has one stream for both; a process without stdin gets nothing.
        let wants = Wants { stdin: wants.stdin && target.stdin, stderr: wants.stderr && !target.tty, ..wants };
        let name = random::<16>().map_err(StreamingError::Random)?;
        let folder = self.folder.join(format!("attach-{}", hex(&name)));
        let joined = async {
            let failed = |cause| StreamingError::Fifos { at: folder.clone(), cause };
            let fifos = Fifos::make(folder.clone(), wants).map_err(failed)?;
            if wants.stdin || wants.stdout || wants.stderr {
                let request = AttachRequest {
                    container_id: target.id.clone(),
                    exec_id: String::new(),
                    stdin: fifos.path("stdin"),
                    stdout: fifos.path("stdout"),
                    stderr: fifos.path("stderr"),
                    close_stdin: target.stdin_once,
                    lag: Lag::Unspecified.into(),
                };
                match own {
                    true => self.tasks.attach(&self.namespace, request).await?,
                    false => self.relays.attach(request).await?,
                }
            }
            fifos.settle().map_err(failed)
        };
        let ends = joined.await;
        remove(&folder);
        let Ends { stdin, stdout, stderr } = ends?;
        let handle = Attached {
            tasks: self.tasks.clone(),
            namespace: self.namespace.clone(),
            container: target.id.clone(),
            tty: target.tty,
            closes: !own && wants.stdin && target.stdin_once,
        };
        let grace = if own { OWN_GRACE } else { FOREIGN_GRACE };
        Ok(Process { stdin, stdout, stderr, handle: Arc::new(handle), grace })
    }
}

/// A process beside a container's own.
#[derive(Clone)]
struct Exec {
    tasks: Arc<Tasks>,
    namespace: NamespaceName,
    container: String,
    exec: String,
    folder: PathBuf,
    /// Whether the shim is Berth's.
    own: bool,
}

impl Exec {
    /// Waits until somebody reads what we write, or nobody will: shims in Go open it some time after they have said that the process
    /// was started, and what is written before that is lost.
    async fn await_reader(&self, stdin: &pipe::Sender) {
        let read = async {
            let is_read = || {
                let mut ends = [PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)];
                // A writing end without a reader is an error to poll(2).
                poll(&mut ends, PollTimeout::ZERO).is_ok()
                    && ends[0].revents().is_some_and(|events| !events.contains(PollFlags::POLLERR))
            };
            while !is_read() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = read => {}
            _ = self.exit() => {}
            () = tokio::time::sleep(READER_LIMIT) => {
                debug!(id = self.container, exec = self.exec, "nobody reads the input of a process");
            }
        }
    }

    /// Reads what is left to be read, into nothing, until the value is dropped.
    fn drain(&self) -> JoinSet<()> {
        let mut readers = JoinSet::new();
        for name in ["stdout", "stderr"] {
            let Ok(fifo) = OpenOptions::new().open_receiver(self.folder.join(name)) else { continue };
            readers.spawn(async move {
                let mut buffer = vec![0; CHUNK];
                while fifo.readable().await.is_ok() {
                    match fifo.try_read(&mut buffer) {
                        Ok(0) => return,
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
            });
        }
        readers
    }

    async fn delete(&self) {
        match self.tasks.delete_process(&self.namespace, &self.container, &self.exec).await {
            Ok(_) => remove(&self.folder),
            // Its container may have ended, and all its processes with it.
            Err(error) if error.kind() == ErrorKind::NotFound => remove(&self.folder),
            // The folder stays: the next supervisor sees to it.
            Err(error) => warn!(
                id = self.container, exec = self.exec, error = %chain(&error), "process of an exec left to its container's end"
            ),
        }
    }
}

#[async_trait]
impl Handle for Exec {
    async fn resize(&self, Size { width, height }: Size) {
        let size = (u32::from(width), u32::from(height));
        if let Err(error) = self.tasks.resize(&self.namespace, &self.container, &self.exec, size).await {
            debug!(id = self.container, exec = self.exec, error = %chain(&error), "terminal not resized");
        }
    }

    async fn input_ended(&self) {
        // Another shim holds a writing end of its own, and lets go of it only when told; ours sees the end itself.
        if !self.own {
            // A process that has ended has no stdin to close.
            let _ = self.tasks.close_io(&self.namespace, &self.container, &self.exec, true).await;
        }
    }

    async fn exit(&self) -> Result<Option<u32>, StreamingError> {
        let exit = self.tasks.wait(&self.namespace, &self.container, &self.exec).await?;
        Ok(Some(exit.status))
    }

    async fn kill(&self) {
        let signal = libc::SIGKILL as u32;
        match self.tasks.kill(&self.namespace, &self.container, &self.exec, signal, false).await {
            // It was faster.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                warn!(id = self.container, exec = self.exec, error = %chain(&error), "process of an exec not killed");
            }
            Ok(()) => {}
        }
    }

    async fn forget(&self) {
        self.delete().await;
    }

    async fn abandon(&self) {
        self.input_ended().await;
        let exec = self.clone();
        tokio::spawn(async move {
            let _drain = exec.drain();
            match exec.exit().await {
                Ok(code) => debug!(id = exec.container, exec = exec.exec, code, "process ended without its client"),
                // The next supervisor goes on.
                Err(StreamingError::Task(TaskError::Draining)) => return,
                Err(error) => {
                    debug!(id = exec.container, exec = exec.exec, error = %chain(&error), "process without a client");
                }
            }
            exec.delete().await;
        });
    }
}

/// A container's own process.
struct Attached {
    tasks: Arc<Tasks>,
    namespace: NamespaceName,
    container: String,
    tty: bool,
    /// Another shim has to be told that the client's end is that of stdin.
    closes: bool,
}

#[async_trait]
impl Handle for Attached {
    async fn resize(&self, Size { width, height }: Size) {
        let size = (u32::from(width), u32::from(height));
        if self.tty
            && let Err(error) = self.tasks.resize(&self.namespace, &self.container, "", size).await
        {
            debug!(id = self.container, error = %chain(&error), "terminal not resized");
        }
    }

    // The shim was told what the end of a client's input means; somebody else's only knows the relay's writing end and its own.
    async fn input_ended(&self) {
        if self.closes {
            // A process that has ended has no stdin to close.
            let _ = self.tasks.close_io(&self.namespace, &self.container, "", true).await;
        }
    }

    async fn exit(&self) -> Result<Option<u32>, StreamingError> {
        // How it ended is told by the container's status.
        self.tasks.wait(&self.namespace, &self.container, "").await?;
        Ok(None)
    }

    async fn kill(&self) {}

    async fn forget(&self) {}

    async fn abandon(&self) {
        self.input_ended().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::{fs::File, io::Write as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn made(container: &Value, tty: bool) -> Value {
        let command = ["ls", "-l"].map(str::to_owned);
        serde_json::from_slice(&process(container, &command, tty).unwrap()).unwrap()
    }

    #[test]
    fn an_exec_is_the_container_s_process_with_another_command() {
        let container = json!({
            "args": ["main"], "terminal": true, "consoleSize": {"height": 1, "width": 2}, "cwd": "/", "env": ["A=b"],
            "user": {"uid": 7, "gid": 8}, "capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": true,
        });
        let mut expected = container.clone();
        expected["args"] = json!(["ls", "-l"]);
        expected["terminal"] = json!(false);
        expected.as_object_mut().unwrap().remove("consoleSize");
        assert_eq!(made(&container, false), expected);
        assert_eq!(made(&container, true)["env"], json!(["A=b", "TERM=xterm"]));
        let known = json!({"env": ["TERM=vt100"]});
        assert_eq!(
            (&made(&known, true)["env"], &made(&json!({}), true)["env"]),
            (&known["env"], &json!(["TERM=xterm"]))
        );
        assert_eq!(process(&json!(null), &[], false).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[tokio::test]
    async fn names_of_fifos_go_and_what_is_open_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("exec-1@web");
        let wants = Wants { stdin: true, stdout: true, stderr: false, tty: false };
        let fifos = Fifos::make(at.clone(), wants).unwrap();
        assert_eq!(fifos.path("stderr"), "");
        let mut output = File::options().write(true).open(fifos.path("stdout")).unwrap();
        let input = File::open(fifos.path("stdin")).unwrap();
        let Ends { stdin, stdout, stderr } = fifos.settle().unwrap();
        assert!(stderr.is_none() && std::fs::read_dir(&at).unwrap().next().is_none(), "the folder stays, and is empty");
        output.write_all(b"said").unwrap();
        drop(output);
        let mut said = String::new();
        stdout.unwrap().read_to_string(&mut said).await.unwrap();
        let mut stdin = stdin.unwrap();
        stdin.write_all(b"heard").await.unwrap();
        drop(stdin);
        let heard = tokio::task::spawn_blocking(move || io::read_to_string(input).unwrap()).await.unwrap();
        assert_eq!((&*said, &*heard), ("said", "heard"));
        // Nobody reads any more: the process has ended already.
        let fifos = Fifos::make(at.clone(), wants).unwrap();
        let mut stdin = fifos.settle().unwrap().stdin.unwrap();
        assert_eq!(stdin.write(b"lost").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        // One that fails leaves nothing: the names are taken.
        let kept = Fifos::make(at.clone(), Wants { stdout: true, ..Wants::default() }).unwrap();
        assert!(Fifos::make(at.clone(), wants).is_err());
        drop(kept);
        assert!(std::fs::read_dir(&at).unwrap().next().is_none());
        remove(&at);
        assert!(!at.exists());
    }
}
