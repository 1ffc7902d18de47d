//! Stdio of containers whose shim isn't Berth's: the engine itself stands between the process and its log.
//!
//! Berth's shim writes logs and serves attachments. Another one (containerd-shim-runc-v2), or any shim below a supervisor
//! that is not Berth's, knows FIFOs only. For such a container the engine makes one FIFO per stream, writes what comes out of
//! them to the log, and copies it to those who are attached:
//!
//! ```text
//! process ─▶ shim ─▶ RUN/engine/relays/ID/stdout ─▶ relay ─┬─▶ log file
//!                                                           └─▶ FIFOs of attachments
//! ```
//!
//! The FIFOs have names for as long as the task is there. While the engine is away the shim holds both ends open: output waits in
//! the pipe (the process waits too, once it is full), and the next engine reads on. Only stdin ends with the engine, since no
//! other process holds its writing end.

mod log;
mod pump;

pub use log::LogPlace;

use super::{lock, streams::Fifos};
use crate::supervisor::Client;
use nix::{sys::stat::Mode, unistd::mkfifo};
use proto::containerd::services::tasks::v1::CloseIoRequest;
use pump::{Attachment, Sources};
use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::{self, OpenOptions},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tracing::warn;

/// How long the rest of the output may take to be written once the task is gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a relay has to carry.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One stream instead of two.
    pub tty: bool,
    /// Whether the process has a stdin.
    pub stdin: bool,
    /// Where output is kept.
    pub log: Option<LogPlace>,
}

/// Paths of the FIFOs, as a task's stdio fields take them; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// To the process.
    pub stdin: String,
    /// From it.
    pub stdout: String,
    /// From it.
    pub stderr: String,
}

/// The stdio of one task.
#[derive(Debug)]
pub struct Relay {
    /// What the shim opens.
    pub paths: Paths,
    folder: PathBuf,
    attachments: mpsc::UnboundedSender<Attachment>,
    stdin: Arc<tokio::sync::Mutex<Option<pipe::Sender>>>,
    /// Writing ends that stand in for the shim's until it has opened its own.
    held: Mutex<Vec<pipe::Sender>>,
    ending: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Relay {
    fn open(folder: PathBuf, plan: &Plan, fresh: bool) -> io::Result<Self> {
        let mut held = Vec::new();
        let path = |name: &str| folder.join(name);
        if fresh {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::create_dir_all(&folder)?;
        }
        let output = |name: &str, held: &mut Vec<pipe::Sender>| -> io::Result<(pipe::Receiver, String)> {
            let path = path(name);
            if fresh {
                mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            }
            let receiver = OpenOptions::new().open_receiver(&path)?;
            if fresh {
                held.push(OpenOptions::new().open_sender(&path)?);
            }
            Ok((receiver, path.display().to_string()))
        };
        let (stdout, stdout_path) = output("stdout", &mut held)?;
        let (stderr, stderr_path) = match plan.tty {
            true => (None, String::new()),
            false => output("stderr", &mut held).map(|(receiver, path)| (Some(receiver), path))?,
        };
        let (stdin, stdin_path) = if plan.stdin {
            let path = path("stdin");
            if fresh {
                mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            }
            // Read and write: it waits for no reader, and the shim sees no end before we mean one.
            let sender = OpenOptions::new().read_write(true).open_sender(&path)?;
            (Some(sender), path.display().to_string())
        } else {
            (None, String::new())
        };
        let log = plan.log.clone().map(log::LogFile::open).transpose()?;
        let (attachments, joining) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let sources = Sources { stdout: Some(stdout), stderr };
        let pumping = tokio::spawn(pump::run(sources, log, joining, ended));
        Ok(Self {
            paths: Paths { stdin: stdin_path, stdout: stdout_path, stderr: stderr_path },
            folder,
            attachments,
            stdin: Arc::new(tokio::sync::Mutex::new(stdin)),
            held: Mutex::new(held),
            ending: Mutex::new(Some((end, pumping))),
        })
    }

    /// To be called once the shim has opened its ends: from now on their closing is the end of the output.
    pub fn settle(&self) {
        lock(&self.held).clear();
    }

    /// Joins a client's FIFOs. With `close_stdin`, the end of its input is the end of the process's.
    pub fn attach(&self, client: &Client, id: &str, fifos: &Fifos, close_stdin: bool) -> io::Result<()> {
        let open = |path: &str| match path {
            "" => Ok(None),
            path => OpenOptions::new().open_sender(path).map(Some),
        };
        let attachment = Attachment { stdout: open(&fifos.stdout)?, stderr: open(&fifos.stderr)? };
        if !fifos.stdin.is_empty() {
            let input = OpenOptions::new().open_receiver(&fifos.stdin)?;
            let stdin = self.stdin.clone();
            let (client, id) = (client.clone(), id.to_owned());
            tokio::spawn(async move {
                copy_input(input, &stdin).await;
                if close_stdin && stdin.lock().await.take().is_some() {
                    let request = CloseIoRequest { container_id: id, stdin: true, ..CloseIoRequest::default() };
                    // A task that has ended meanwhile has no stdin to close.
                    let _ = client.tasks().close_io(request).await;
                }
            });
        }
        // The pump has gone only if the output has ended: then dropping the FIFOs' ends tells the client so.
        let _ = self.attachments.send(attachment);
        Ok(())
    }

    /// The task is gone: what is still in the pipes goes to the log and to those attached, then the FIFOs are removed.
    async fn end(&self) {
        self.settle();
        let ending = lock(&self.ending).take();
        if let Some((end, pumping)) = ending {
            let _ = end.send(());
            let stop = pumping.abort_handle();
            if tokio::time::timeout(LAST_WORDS, pumping).await.is_err() {
                // A client that reads nothing.
                stop.abort();
            }
        }
        self.remove_names();
    }

    fn remove_names(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(folder = %self.folder.display(), %error, "FIFOs left behind");
        }
    }
}

async fn copy_input(mut input: pipe::Receiver, stdin: &tokio::sync::Mutex<Option<pipe::Sender>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = input.read(&mut buffer).await {
        let mut sender = stdin.lock().await;
        let Some(open) = sender.as_mut() else { return };
        if open.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// The relays of this engine.
#[derive(Debug)]
pub struct Relays {
    folder: PathBuf,
    live: Mutex<HashMap<String, Arc<Relay>>>,
}

impl Relays {
    /// `folder` holds a folder with FIFOs for each task that has a relay.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, live: Mutex::default() }
    }

    /// Makes the FIFOs of a task that is about to be created.
    pub fn make(&self, id: &str, plan: &Plan) -> io::Result<Arc<Relay>> {
        self.put(id, plan, true)
    }

    /// Takes up what an engine before us has made; none if it made nothing.
    pub fn resume(&self, id: &str, plan: &Plan) -> io::Result<Option<Arc<Relay>>> {
        if self.get(id).is_some() || !self.folder.join(id).join("stdout").exists() {
            return Ok(None);
        }
        self.put(id, plan, false).map(Some)
    }

    fn put(&self, id: &str, plan: &Plan, fresh: bool) -> io::Result<Arc<Relay>> {
        let relay = Arc::new(Relay::open(self.folder.join(id), plan, fresh)?);
        lock(&self.live).insert(id.to_owned(), relay.clone());
        Ok(relay)
    }

    /// The relay of a task, if it has one.
    pub fn get(&self, id: &str) -> Option<Arc<Relay>> {
        lock(&self.live).get(id).cloned()
    }

    /// Ends the relay of a task that is gone; returns when its output has been written.
    pub async fn end(&self, id: &str) {
        let relay = lock(&self.live).remove(id);
        if let Some(relay) = relay {
            relay.end().await;
        }
    }

    /// Removes FIFOs that nobody needs, after all that are needed were resumed.
    pub fn sweep(&self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|id| self.get(id).is_none()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests;
