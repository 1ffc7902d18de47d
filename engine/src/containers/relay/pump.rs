//! Copies output: from the task's FIFOs to the log and to the FIFOs of attachments.

use super::log::LogFile;
use crate::containers::frames::Stream;
use std::{io, os::fd::AsFd as _};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

/// Largest piece that is copied at once.
const PIECE: usize = 64 << 10;

/// Reading ends of the task's FIFOs; one that has ended is taken out.
#[derive(Debug)]
pub struct Sources {
    /// Standard output, or the terminal.
    pub stdout: Option<pipe::Receiver>,
    /// Standard error.
    pub stderr: Option<pipe::Receiver>,
}

/// Writing ends towards one client.
#[derive(Debug)]
pub struct Attachment {
    /// Gets standard output.
    pub stdout: Option<pipe::Sender>,
    /// Gets standard error.
    pub stderr: Option<pipe::Sender>,
}

impl Attachment {
    // A client that has gone is dropped; one that is slow is waited for, as docker does.
    async fn write(&mut self, stream: Stream, piece: &[u8]) {
        let end = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if let Some(sender) = end
            && sender.write_all(piece).await.is_err()
        {
            *end = None;
        }
    }

    fn has_gone(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }
}

/// Copies until both streams have ended, or until `ended` says that there will be no more than what is in the pipes.
pub async fn run(
    mut sources: Sources,
    mut log: Option<LogFile>,
    mut joining: mpsc::UnboundedReceiver<Attachment>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut attachments: Vec<Attachment> = Vec::new();
    let mut buffer = vec![0; PIECE];
    let mut over = false;
    while sources.stdout.is_some() || sources.stderr.is_some() {
        let stream = if over {
            None
        } else {
            tokio::select! {
                _ = readable(sources.stdout.as_ref()) => Some(Stream::Stdout),
                _ = readable(sources.stderr.as_ref()) => Some(Stream::Stderr),
                joined = joining.recv() => {
                    match joined {
                        Some(attachment) => attachments.push(attachment),
                        // The relay was dropped without an end.
                        None => over = true,
                    }
                    continue;
                }
                _ = &mut ended => { over = true; continue }
            }
        };
        let mut any = false;
        for stream in stream.map_or(vec![Stream::Stdout, Stream::Stderr], |stream| vec![stream]) {
            let count = read_piece(&mut sources, stream, over, &mut buffer);
            if count == 0 {
                continue;
            }
            any = true;
            // Whoever joined before this was read gets it.
            while let Ok(attachment) = joining.try_recv() {
                attachments.push(attachment);
            }
            if let Some(log) = &mut log {
                log.write(stream, &buffer[..count]);
            }
            for attachment in &mut attachments {
                attachment.write(stream, &buffer[..count]).await;
            }
            attachments.retain(|attachment| !attachment.has_gone());
        }
        if over && !any {
            break;
        }
    }
    if let Some(log) = &mut log {
        log.finish();
    }
}

async fn readable(receiver: Option<&pipe::Receiver>) -> io::Result<()> {
    match receiver {
        Some(receiver) => receiver.readable().await,
        None => std::future::pending().await,
    }
}

// Zero if there is nothing now; a stream that has ended is taken out. The `last` time the pipe itself is asked: tokio answers
// "nothing" as long as it hasn't heard that there is something, and what was written a moment ago would be lost.
fn read_piece(sources: &mut Sources, stream: Stream, last: bool, buffer: &mut [u8]) -> usize {
    let end = match stream {
        Stream::Stdout => &mut sources.stdout,
        Stream::Stderr => &mut sources.stderr,
    };
    let Some(receiver) = end else { return 0 };
    let read = match last {
        true => nix::unistd::read(receiver.as_fd(), buffer).map_err(io::Error::from),
        false => receiver.try_read(buffer),
    };
    match read {
        Ok(0) => *end = None,
        Ok(count) => return count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => *end = None,
    }
    0
}
