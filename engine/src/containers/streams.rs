//! Bytes between a client and a process: FIFOs towards the shim, a taken-over connection towards the client.
//!
//! The names of the FIFOs exist only until both sides hold them open. Output is read in large pieces and written with
//! its frame header in one call; a slow client fills its FIFO, and from there on it is the shim's business.

use super::frames::{DetachKeys, Stream, header};
use bytes::Bytes;
use nix::{fcntl::FcntlArg, sys::stat::Mode, unistd::mkfifo};
use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{
            OwnedReadHalf, OwnedWriteHalf,
            pipe::{self, OpenOptions},
        },
    },
    sync::oneshot,
};

/// Capacity asked for each output FIFO.
const PIPE_SIZE: i32 = 1 << 20;
/// Largest payload of one frame.
const PIECE: usize = 256 << 10;
/// How often a client that has ended its input is looked at, since nothing else tells that it has left entirely.
const LEFT_CHECK: Duration = Duration::from_millis(500);

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// To write to the process.
    pub stdin: bool,
    /// To read its output.
    pub stdout: bool,
    /// To read its errors.
    pub stderr: bool,
}

/// FIFOs on their way to the shim. The names vanish with this value; what is open stays open.
#[derive(Debug)]
pub struct Fifos {
    folder: PathBuf,
    /// Path for each stream, empty if it is not wanted.
    pub stdin: String,
    /// As above.
    pub stdout: String,
    /// As above.
    pub stderr: String,
}

/// Our ends of the FIFOs.
#[derive(Debug, Default)]
pub struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    /// Dropped with stdin.
    input: Option<oneshot::Sender<()>>,
}

impl Ends {
    /// The way in alone.
    pub fn into_input(self) -> Input {
        (self.stdin, self.input)
    }

    /// Something that ends with the client's input.
    pub fn input_end(&mut self) -> oneshot::Receiver<()> {
        let (input, end) = oneshot::channel();
        self.input = Some(input);
        end
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        // Only names: a folder that is left is emptied at the next start of the engine.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Fifos {
    /// Makes FIFOs in a folder of their own and opens our ends, the reading ones before any writer can.
    pub fn make(root: &Path, name: &str, wants: Wants) -> io::Result<(Self, Ends)> {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder)?;
        let mut fifos =
            Self { folder: folder.clone(), stdin: String::new(), stdout: String::new(), stderr: String::new() };
        let mut ends = Ends::default();
        let make = |stream: &str| -> io::Result<PathBuf> {
            let path = folder.join(stream);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            Ok(path)
        };
        if wants.stdin {
            let path = make("stdin")?;
            // Read and write: neither waits for a reader nor lets one see an end before we have written.
            ends.stdin = Some(OpenOptions::new().read_write(true).open_sender(&path)?);
            fifos.stdin = path.display().to_string();
        }
        for (wanted, name, end, text) in [
            (wants.stdout, "stdout", &mut ends.stdout, &mut fifos.stdout),
            (wants.stderr, "stderr", &mut ends.stderr, &mut fifos.stderr),
        ] {
            if wanted {
                let path = make(name)?;
                let receiver = OpenOptions::new().open_receiver(&path)?;
                // Refused when the user's share of pipe memory is used up; the usual 64 KiB do as well.
                let _ = nix::fcntl::fcntl(receiver.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
                *end = Some(receiver);
                *text = path.display().to_string();
            }
        }
        Ok((fifos, ends))
    }

    /// To be called once the shim holds its ends: from now on our closing of stdin is an end to its reader.
    pub fn settle(self, ends: &mut Ends) -> io::Result<()> {
        if ends.stdin.is_some() {
            ends.stdin = OpenOptions::new().open_sender(&self.stdin).map(Some).or_else(|error| {
                // Nobody reads any more: the process has ended.
                if error.raw_os_error() == Some(nix::libc::ENXIO) { Ok(None) } else { Err(error) }
            })?;
        }
        Ok(())
    }
}

/// A connection that was taken over, with what had already been read from it.
#[derive(Debug)]
pub struct ClientStream {
    /// The connection.
    pub stream: UnixStream,
    /// First input.
    pub early: Bytes,
}

/// How output is written to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A terminal: bytes as they come.
    Raw,
    /// Frames that name the stream.
    Multiplexed,
}

/// Why copying ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The process closed its output.
    Output,
    /// The client has gone.
    Client,
    /// The client typed the detach keys.
    Detached,
    /// `over` was sent: the process has ended, or never began.
    Over,
}

/// Copies in both directions until one of the ways to end.
pub async fn pump(
    client: ClientStream,
    mut ends: Ends,
    framing: Framing,
    mut keys: Option<DetachKeys>,
    over: oneshot::Receiver<()>,
) -> (Ended, OwnedWriteHalf) {
    let (mut reader, mut writer) = client.stream.into_split();
    let stdin = ends.stdin.take();
    let told = ends.input.take();
    // A client that only writes has no output whose end would be its end.
    let shows = ends.stdout.is_some() || ends.stderr.is_some();
    let ended = tokio::select! {
        written = copy_output(&mut ends, &mut writer, framing), if shows => match written {
            Ok(()) => Ended::Output,
            Err(_) => Ended::Client,
        },
        ended = copy_input(&mut reader, client.early, (stdin, told), keys.as_mut()) => ended,
        _ = over => Ended::Over,
    };
    if ended == Ended::Over {
        // What the process wrote last is in the pipes; a child of it may hold them open for ever.
        drain(&mut ends, &mut writer, framing).await;
    }
    (ended, writer)
}

/// The way into a process, and what is dropped with it.
pub type Input = (Option<pipe::Sender>, Option<oneshot::Sender<()>>);

/// Client to process. Returns only when the client leaves: the end of its input is not its end.
pub async fn copy_input(
    reader: &mut OwnedReadHalf,
    early: Bytes,
    (mut stdin, told): Input,
    mut keys: Option<&mut DetachKeys>,
) -> Ended {
    let mut buffer = vec![0; 64 << 10];
    let mut input = early.to_vec();
    loop {
        if !input.is_empty() {
            let mut leave = false;
            if let Some(keys) = keys.as_deref_mut() {
                (input, leave) = keys.filter(&input);
            }
            if let Some(sender) = &mut stdin {
                // A process that no longer reads is no reason to stop showing its output.
                if sender.write_all(&input).await.is_err() {
                    stdin = None;
                }
            }
            if leave {
                return Ended::Detached;
            }
        }
        match reader.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => input = buffer[..n].to_vec(),
            Err(_) => return Ended::Client,
        }
    }
    drop((stdin, told));
    while !has_left(reader) {
        tokio::time::sleep(LEFT_CHECK).await;
    }
    Ended::Client
}

/// Whether the peer has closed both directions.
fn has_left(reader: &OwnedReadHalf) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stream: &UnixStream = reader.as_ref();
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// Process to client until both streams have ended; the error is the client's.
async fn copy_output(ends: &mut Ends, writer: &mut OwnedWriteHalf, framing: Framing) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    if ends.stdout.is_none() && ends.stderr.is_none() {
        // Only input is wanted: nothing here ends it.
        return std::future::pending().await;
    }
    while ends.stdout.is_some() || ends.stderr.is_some() {
        let stream = tokio::select! {
            _ = readable(ends.stdout.as_ref()) => Stream::Stdout,
            _ = readable(ends.stderr.as_ref()) => Stream::Stderr,
        };
        copy_piece(ends, stream, &mut buffer, writer, framing).await?;
    }
    Ok(())
}

async fn drain(ends: &mut Ends, writer: &mut OwnedWriteHalf, framing: Framing) {
    let mut buffer = vec![0; PIECE];
    for stream in [Stream::Stdout, Stream::Stderr] {
        while matches!(copy_piece(ends, stream, &mut buffer, writer, framing).await, Ok(true)) {}
    }
}

async fn readable(receiver: Option<&pipe::Receiver>) -> io::Result<()> {
    match receiver {
        Some(receiver) => receiver.readable().await,
        None => std::future::pending().await,
    }
}

/// Copies what is there; true if there was something. An ended stream is taken out of `ends`.
async fn copy_piece(
    ends: &mut Ends,
    stream: Stream,
    buffer: &mut [u8],
    writer: &mut OwnedWriteHalf,
    framing: Framing,
) -> io::Result<bool> {
    let end = match stream {
        Stream::Stdout => &mut ends.stdout,
        Stream::Stderr => &mut ends.stderr,
    };
    let Some(receiver) = end else { return Ok(false) };
    match receiver.try_read(buffer) {
        Ok(0) => *end = None,
        Ok(n) => {
            match framing {
                Framing::Raw => writer.write_all(&buffer[..n]).await?,
                Framing::Multiplexed => write_frame(writer, stream, &buffer[..n]).await?,
            }
            return Ok(true);
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => *end = None,
    }
    Ok(false)
}

/// Writes one frame, header and payload together.
pub async fn write_frame(writer: &mut OwnedWriteHalf, stream: Stream, payload: &[u8]) -> io::Result<()> {
    let head = header(stream, payload.len());
    let mut slices = [IoSlice::new(&head), IoSlice::new(payload)];
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = writer.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Write};

    fn client() -> (ClientStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ClientStream { stream: ours, early: Bytes::new() }, theirs)
    }

    #[tokio::test]
    async fn output_is_framed_and_input_arrives_with_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let wants = Wants { stdin: true, stdout: true, stderr: true };
        let (fifos, mut ends) = Fifos::make(folder.path(), "x", wants).unwrap();
        let write = |path: &str| File::options().write(true).open(path).unwrap();
        let (mut out, mut err) = (write(&fifos.stdout), write(&fifos.stderr));
        let input = std::fs::File::open(&fifos.stdin).unwrap();
        fifos.settle(&mut ends).unwrap();
        assert!(!folder.path().join("x").exists());
        let (ours, mut theirs) = client();
        let (_over, stop) = oneshot::channel();
        let pumping = tokio::spawn(pump(ours, ends, Framing::Multiplexed, None, stop));
        theirs.write_all(b"typed").await.unwrap();
        theirs.shutdown().await.unwrap();
        let read = tokio::task::spawn_blocking(move || io::read_to_string(input).unwrap());
        assert_eq!(read.await.unwrap(), "typed");
        // The client's input has ended; output must go on.
        out.write_all(b"one").unwrap();
        drop(out);
        let mut frame = [0; 11];
        theirs.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\x01\0\0\0\0\0\0\x03one");
        err.write_all(b"2").unwrap();
        drop(err);
        assert_eq!(pumping.await.unwrap().0, Ended::Output);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x02\0\0\0\0\0\0\x012");
    }

    #[tokio::test]
    async fn a_client_that_leaves_and_one_that_detaches_end_it() {
        let folder = tempfile::tempdir().unwrap();
        for (keys, expected) in [(None, Ended::Client), (DetachKeys::parse(""), Ended::Detached)] {
            let wants = Wants { stdin: true, stdout: true, stderr: false };
            let (fifos, ends) = Fifos::make(folder.path(), "x", wants).unwrap();
            let _writer = File::options().write(true).open(&fifos.stdout).unwrap();
            let (ours, mut theirs) = client();
            let (_over, stop) = oneshot::channel();
            let pumping = tokio::spawn(pump(ours, ends, Framing::Raw, keys, stop));
            theirs.write_all(b"a\x10\x11").await.unwrap();
            if expected == Ended::Client {
                drop(theirs);
            }
            assert_eq!(pumping.await.unwrap().0, expected);
        }
    }
}
