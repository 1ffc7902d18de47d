//! The client's streams connected with a container's: attach, exec, logs.

use crate::client::demux::{Channel, Demux};
use crate::client::hijack::Hijacked;
use crate::client::{Call, Client};
use crate::exit::{Failure, Outcome};
use crate::terminal::{self, DetachKeys, RawMode};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How much is read at once.
const CHUNK: usize = 256 * 1024;

/// What is connected.
#[derive(Debug)]
pub struct Connect {
    /// The container has a terminal: its output is not framed.
    pub tty: bool,
    /// Standard input goes to the container.
    pub stdin: bool,
    /// Keys that leave the container.
    pub keys: Option<String>,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The container closed its output.
    Output,
    /// The user pressed the keys that leave the container.
    Detached,
}

/// Copies until the output ends or the user leaves. With a terminal on both ends, it is raw meanwhile.
pub async fn connect(stream: Hijacked, connect: &Connect) -> Outcome<Ended> {
    let raw = connect.tty && connect.stdin && terminal::stdin_is_terminal();
    let keys = DetachKeys::parse(connect.keys.as_deref().unwrap_or("ctrl-p,ctrl-q"))
        .map_err(|error| Failure::Refused(error.to_string()))?;
    let mode = match raw {
        true => Some(RawMode::enter().map_err(|cause| Failure::io("set the terminal to raw mode", cause))?),
        false => None,
    };
    let Hijacked { reader, mut writer } = stream;
    let (left, mut leaving) = mpsc::channel(1);
    let stdin = connect.stdin;
    // Not joined: a read of standard input can't be interrupted, and must not hold up the end.
    tokio::spawn(async move {
        if stdin && copy_stdin(&mut writer, connect_keys(raw, keys)).await {
            // The receiver is gone only when the command has ended.
            let _ = left.send(()).await;
        }
        // Dropping the sender says nothing more will come; the writer stays shut, the reader goes on.
        drop(left);
        std::future::pending::<()>().await;
        drop(writer);
    });
    let ended = tokio::select! {
        result = copy_output(reader, connect.tty) => result.map(|()| Ended::Output),
        Some(()) = leaving.recv() => Ok(Ended::Detached),
    };
    drop(mode);
    ended
}

fn connect_keys(raw: bool, keys: DetachKeys) -> Option<DetachKeys> {
    raw.then_some(keys)
}

/// Copies standard input and then closes that direction; true when the user left.
async fn copy_stdin(writer: &mut (impl AsyncWrite + Unpin), mut keys: Option<DetachKeys>) -> bool {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        // A failing read ends the input, as in docker: the container still has things to say.
        let count = stdin.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            break;
        }
        let written = match &mut keys {
            None => writer.write_all(&buffer[..count]).await,
            Some(keys) => {
                let (bytes, left) = keys.filter(&buffer[..count]);
                let written = writer.write_all(&bytes).await;
                if left {
                    return true;
                }
                written
            }
        };
        if written.is_err() {
            // The container has closed its input.
            return false;
        }
        let _ = writer.flush().await;
    }
    let _ = writer.shutdown().await;
    false
}

/// Copies a container's output to where it belongs.
pub async fn copy_output(mut reader: impl AsyncRead + Unpin, tty: bool) -> Outcome {
    let mut sink = Sink::new(tty);
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return sink.finish(),
            Ok(count) => sink.write(&buffer[..count]).await?,
            Err(cause) => return Err(Failure::io("read the container's output", cause)),
        }
    }
}

/// Where output goes: apart when it is framed, to standard output when it is not.
#[derive(Debug)]
pub struct Sink {
    demux: Option<Demux>,
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
}

impl Sink {
    /// A sink for a container with or without a terminal.
    pub fn new(tty: bool) -> Self {
        Self { demux: (!tty).then(Demux::default), stdout: tokio::io::stdout(), stderr: tokio::io::stderr() }
    }

    /// Writes what has arrived.
    pub async fn write(&mut self, data: &[u8]) -> Outcome {
        let fault = |cause| Failure::io("write /dev/stdout", cause);
        let stderr_fault = |cause| Failure::io("write /dev/stderr", cause);
        let Some(demux) = &mut self.demux else {
            self.stdout.write_all(data).await.map_err(fault)?;
            return self.stdout.flush().await.map_err(fault);
        };
        let mut pieces = Vec::new();
        let result = demux.push(data, &mut pieces);
        for (channel, bytes) in pieces {
            // Flushed one after the other: the order of the two is the container's.
            match channel {
                Channel::Stdout => {
                    self.stdout.write_all(&bytes).await.map_err(fault)?;
                    self.stdout.flush().await.map_err(fault)?;
                }
                Channel::Stderr => {
                    self.stderr.write_all(&bytes).await.map_err(stderr_fault)?;
                    self.stderr.flush().await.map_err(stderr_fault)?;
                }
            }
        }
        Ok(result?)
    }

    /// The stream has ended.
    pub fn finish(&self) -> Outcome {
        Ok(self.demux.as_ref().map_or(Ok(()), Demux::finish)?)
    }
}

/// Passes every signal on to a container, until dropped.
pub fn proxy_signals(client: &Client, id: &str) -> Proxy {
    // Not among them: CHLD, PIPE and URG, which mean the client itself, and those that can't or must not be caught.
    const SIGNALS: [(i32, &str); 16] = [
        (nix::libc::SIGHUP, "HUP"),
        (nix::libc::SIGINT, "INT"),
        (nix::libc::SIGQUIT, "QUIT"),
        (nix::libc::SIGTRAP, "TRAP"),
        (nix::libc::SIGUSR1, "USR1"),
        (nix::libc::SIGUSR2, "USR2"),
        (nix::libc::SIGALRM, "ALRM"),
        (nix::libc::SIGTERM, "TERM"),
        (nix::libc::SIGCONT, "CONT"),
        (nix::libc::SIGTSTP, "TSTP"),
        (nix::libc::SIGTTIN, "TTIN"),
        (nix::libc::SIGTTOU, "TTOU"),
        (nix::libc::SIGVTALRM, "VTALRM"),
        (nix::libc::SIGPROF, "PROF"),
        (nix::libc::SIGWINCH, "WINCH"),
        (nix::libc::SIGIO, "IO"),
    ];
    let tasks = SIGNALS.iter().filter_map(|(number, name)| {
        let mut arrivals = signal(SignalKind::from_raw(*number)).ok()?;
        let (client, path) = (client.clone(), format!("/containers/{id}/kill"));
        Some(tokio::spawn(async move {
            while arrivals.recv().await.is_some() {
                // The container may have exited in this moment; its exit is being waited for elsewhere.
                let _ = client.send(Call::post(&*path).query("signal", name)).await;
            }
        }))
    });
    Proxy { tasks: tasks.collect() }
}

/// Signals are passed on while this lives.
#[derive(Debug)]
pub struct Proxy {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Tells a container's terminal the size of the client's: now, and whenever it changes.
pub fn follow_size(client: &Client, path: String) -> Proxy {
    let client = client.clone();
    let task = tokio::spawn(async move {
        // The process may not exist yet, so the first one is tried some more times.
        for attempt in 0..10u64 {
            if send_size(&client, &path).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10 * (attempt + 1))).await;
        }
        let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
        while changes.recv().await.is_some() {
            send_size(&client, &path).await;
        }
    });
    Proxy { tasks: vec![task] }
}

async fn send_size(client: &Client, path: &str) -> bool {
    let (rows, columns) = terminal::size();
    if rows == 0 && columns == 0 {
        return true;
    }
    let call = Call::post(path).query("h", rows.to_string()).query("w", columns.to_string());
    client.send(call).await.is_ok()
}
