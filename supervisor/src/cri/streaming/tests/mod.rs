//! Clients over real connections; processes are this machine's own, without containers.

mod exec;
mod forward;
mod hostile;
mod kubectl;
mod sync;
mod websocket;

use std::{
    future::Future,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{net::unix::pipe, process::Command, sync::watch};
use tonic::async_trait;

use super::{
    process::{Backend, Handle, Process, Size, Wants},
    *,
};

/// Runs commands on this machine, and remembers what else is asked of it.
#[derive(Default)]
struct Host {
    sizes: Mutex<Vec<Size>>,
    ended: AtomicUsize,
    forgotten: AtomicUsize,
    abandoned: AtomicUsize,
}

struct Child {
    host: Arc<Host>,
    pid: i32,
    code: watch::Receiver<Option<u32>>,
    coded: bool,
}

fn code(status: ExitStatus) -> u32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()) as u32
}

impl Host {
    fn run(self: &Arc<Self>, command: &[String], wants: Wants, coded: bool) -> Result<Process, StreamingError> {
        let failed = |cause| StreamingError::Fifos { at: "a pipe".into(), cause };
        let pair = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
        let mut run = Command::new(&command[0]);
        run.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if wants.stdin {
            let (reader, writer) = pair()?;
            run.stdin(reader);
            stdin = Some(pipe::Sender::from_owned_fd(writer).map_err(failed)?);
        }
        if wants.stdout {
            let (reader, writer) = pair()?;
            run.stdout(writer);
            stdout = Some(pipe::Receiver::from_owned_fd(reader).map_err(failed)?);
        }
        if wants.stderr {
            let (reader, writer) = pair()?;
            run.stderr(writer);
            stderr = Some(pipe::Receiver::from_owned_fd(reader).map_err(failed)?);
        }
        let mut child = run.spawn().map_err(failed)?;
        let (tell, code) = watch::channel(None);
        let pid = child.id().unwrap().cast_signed();
        tokio::spawn(async move {
            tell.send_replace(Some(self::code(child.wait().await.unwrap())));
        });
        let handle = Arc::new(Child { host: self.clone(), pid, code, coded });
        Ok(Process { stdin, stdout, stderr, handle, grace: Duration::from_millis(200) })
    }
}

#[async_trait]
impl Handle for Child {
    async fn resize(&self, size: Size) {
        self.host.sizes.lock().unwrap().push(size);
    }

    async fn input_ended(&self) {
        self.host.ended.fetch_add(1, SeqCst);
    }

    async fn exit(&self) -> Result<Option<u32>, StreamingError> {
        let code = *self.code.clone().wait_for(Option::is_some).await.unwrap();
        Ok(code.filter(|_| self.coded))
    }

    async fn kill(&self) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    async fn forget(&self) {
        self.host.forgotten.fetch_add(1, SeqCst);
    }

    async fn abandon(&self) {
        self.host.abandoned.fetch_add(1, SeqCst);
    }
}

struct Backing(Arc<Host>);

#[async_trait]
impl Backend for Backing {
    async fn exec(&self, _: &Target, command: &[String], wants: Wants) -> Result<Process, StreamingError> {
        self.0.run(command, wants, true)
    }

    async fn attach(&self, target: &Target, wants: Wants) -> Result<Process, StreamingError> {
        let args: Vec<String> = serde_json::from_value(target.process["args"].clone()).unwrap();
        self.0.run(&args, wants, false)
    }
}

/// A server of streams on a port of its own.
struct Server {
    address: SocketAddr,
    desk: Arc<Desk>,
    host: Arc<Host>,
}

impl Server {
    async fn new() -> Self {
        Self::with(Times { farewell: Duration::from_secs(2), ..TIMES }).await
    }

    async fn with(times: Times) -> Self {
        let host = Arc::new(Host::default());
        let desk = Desk { tokens: Tokens::default(), backend: Arc::new(Backing(host.clone())), times };
        let (address, desk) = listen("127.0.0.1:0".parse().unwrap(), desk).await.unwrap();
        Self { address, desk, host }
    }

    fn url(&self, order: Order) -> String {
        let path = order.path();
        format!("http://{}/{path}/{}", self.address, self.desk.tokens.insert(order).unwrap())
    }

    /// An address for a script.
    fn exec(&self, script: &str, streams: &str) -> String {
        let command = ["sh", "-c", script].map(str::to_owned).into();
        self.url(Order::Exec { target: target(""), command, wants: wants(streams) })
    }

    /// An address for a container that runs a script.
    fn attach(&self, script: &str, streams: &str) -> String {
        self.url(Order::Attach { target: target(script), wants: wants(streams) })
    }
}

/// Streams by their letters: i, o, e, and t for a terminal.
fn wants(letters: &str) -> Wants {
    let has = |letter| letters.contains(letter);
    Wants { stdin: has('i'), stdout: has('o'), stderr: has('e'), tty: has('t') }
}

fn target(script: &str) -> Target {
    let process = serde_json::json!({"args": ["sh", "-c", script]});
    Target { id: "web".into(), process, tty: false, stdin: true, stdin_once: false }
}

/// Waits until something is so.
async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    for _ in 0..2000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// Waits until no connection has a task any more: what is left are the server's own, and processes'.
async fn until_quiet(tasks: usize) {
    let metrics = tokio::runtime::Handle::current().metrics();
    eventually("no task is left", || {
        let metrics = metrics.clone();
        async move { metrics.num_alive_tasks() <= tasks }
    })
    .await;
}

/// How many tasks there are now.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_there_is_an_address() {
    let refused = |letters: &str| check_streams(wants(letters)).unwrap_err().to_string();
    assert!(refused("oet").contains("tty and stderr cannot both be true"));
    assert_eq!(refused("t"), "one of stdin, stdout, or stderr must be set");
    check_streams(wants("iot")).unwrap();
    for command in [&[][..], &[""], &["sh", "a\0b"]] {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(check_command(command).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let at = Server::new().await.address;
    let desk = Desk { tokens: Tokens::default(), backend: Arc::new(Backing(Arc::default())), times: TIMES };
    let taken = listen(at, desk).await.err().unwrap();
    assert_eq!(taken.to_string(), format!("serve streams on {at}"));
}
