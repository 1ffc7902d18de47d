//! Where output goes from the beginning: opens what a stdio URI names, and writes to it.

use std::{
    cell::{Cell, RefCell},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use proto::stdio::{Delivery, FifoReader, LogFile as LogPlace, StdioUri};
use tokio::sync::Notify;

use super::{
    IoError,
    binary::Logger,
    fd::{self, Pipe},
    format::Format,
    journald::Journal,
    lines::{Lines, Stream},
    logfile::LogFile,
    pack,
    queue::{self, Queue},
    syslog::SyslogSink,
    tap::{Patience, Tap},
};
use crate::{reaper::Reaper, report::warn_line};

/// How long a container may be held up by a logging process that takes nothing.
const LOGGER_PATIENCE: Duration = Duration::from_secs(1);

/// Where output goes by default.
#[derive(Debug)]
pub(super) enum Sink {
    /// Nowhere.
    Null,
    /// To a FIFO; without a reader (EPIPE) nowhere any more.
    Fifo(Pipe, FifoReader),
    /// To the end of a file.
    File(Rc<RawFile>),
    /// To a logging process.
    Logger(Rc<Tap>),
    /// To a log, line by line.
    Log(Log, Lines),
}

impl Sink {
    /// Passes output on; waits as long as its way asks for.
    pub(super) async fn write(&mut self, data: &[u8]) {
        let result = match self {
            Self::Null => return,
            Self::Log(Log::Direct(log), lines) => return log.write(lines, data),
            Self::Log(Log::Queued(queue), lines) => {
                queue.write(lines, data);
                return queue.has_room().await;
            }
            Self::File(file) => return file.write(data),
            Self::Fifo(pipe, _) => pipe.write_all(data).await,
            Self::Logger(tap) => tap.write(data).await,
        };
        if let Err(error) = result {
            if matches!(self, Self::Logger(_)) {
                warn_line!("the logging process is gone; output is thrown away from here on");
            } else if error.kind() != io::ErrorKind::BrokenPipe {
                warn_line!("output is thrown away from here on: {error}");
            }
            *self = Self::Null;
        }
    }

    /// Nothing to write at the moment: gives memory back.
    pub(super) fn rest(&mut self) {
        if let Self::Log(Log::Direct(log), _) = self {
            log.file.borrow_mut().rest();
        }
    }

    /// The process has ended: the last line is complete, whatever it lacks.
    pub(super) fn finish(&mut self) {
        match self {
            Self::Log(Log::Direct(log), lines) => log.file.borrow_mut().finish(lines),
            Self::Log(Log::Queued(queue), lines) => queue.finish(lines),
            _ => {}
        }
    }
}

/// A log that is shared by the streams of a process.
#[derive(Debug, Clone)]
pub(super) enum Log {
    /// Written at once.
    Direct(Rc<DirectLog>),
    /// Written by and by.
    Queued(Rc<Queue>),
}

/// A file that output is written to line by line and at once.
#[derive(Debug)]
pub(super) struct DirectLog {
    file: RefCell<LogFile>,
    reaper: Rc<Reaper>,
    packing: Cell<bool>,
    packed: Notify,
}

impl DirectLog {
    fn write(self: &Rc<Self>, lines: &mut Lines, data: &[u8]) {
        self.file.borrow_mut().write(lines, data);
        self.pack();
    }

    /// Lets a file be packed if one is due.
    fn pack(self: &Rc<Self>) {
        let Some((source, target)) = self.file.borrow_mut().pack_request() else { return };
        let Some(exit) = pack::start(&source, &target, &self.reaper) else {
            return self.file.borrow_mut().packed(false);
        };
        self.packing.set(true);
        let log = self.clone();
        tokio::task::spawn_local(async move {
            let succeeded = exit.await.is_ok_and(|exit| exit.status == 0);
            log.file.borrow_mut().packed(succeeded);
            log.packing.set(false);
            log.packed.notify_one();
            log.pack();
        });
    }
}

/// A file that output is appended to as it is. What the disk doesn't take is left out and counted.
#[derive(Debug)]
pub(super) struct RawFile {
    path: PathBuf,
    file: RefCell<File>,
    lost: Cell<u64>,
}

impl RawFile {
    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o644).open(path)
    }

    fn write(&self, data: &[u8]) {
        let mut file = self.file.borrow_mut();
        let lost = self.lost.get();
        let mark = format!("\n[berth: {lost} bytes could not be written here]\n");
        if lost > 0 && !matches!(file.write(mark.as_bytes()), Ok(count) if count == mark.len()) {
            return self.lost.set(lost + data.len() as u64);
        }
        self.lost.set(0);
        let mut rest = data;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(count) if count > 0 => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                failed => {
                    if lost == 0 {
                        let error = failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                        warn_line!("write {}: {error}", self.path.display());
                    }
                    return self.lost.set(rest.len() as u64);
                }
            }
        }
    }
}

/// What a sink needs beside its pump: it can be asked for a new file, and has an end.
#[derive(Debug, Clone)]
pub(super) enum Keeper {
    /// A log.
    Log(Log),
    /// A plain file.
    File(Rc<RawFile>),
    /// A logging process.
    Logger(Rc<Logger>),
}

impl Keeper {
    /// Goes on in a new file at the same path; `None` if it is no file.
    pub(super) async fn reopen(&self) -> Option<(PathBuf, io::Result<()>)> {
        match self {
            Self::Log(Log::Direct(log)) => {
                let mut file = log.file.borrow_mut();
                Some((file.path().to_owned(), file.reopen()))
            }
            Self::Log(Log::Queued(queue)) => {
                let path = queue.file()?.to_owned();
                Some((path, queue.reopen().await))
            }
            Self::File(raw) => {
                let opened = RawFile::open(&raw.path).map(|file| drop(raw.file.replace(file)));
                Some((raw.path.clone(), opened))
            }
            Self::Logger(_) => None,
        }
    }

    /// Done when what was written is where it belongs, or can't get there at the moment.
    pub(super) async fn flushed(&self) {
        if let Self::Log(Log::Queued(queue)) = self {
            queue.flushed().await;
        }
    }

    /// Nothing more will come; done when nothing is left to do.
    pub(super) async fn end(&self) {
        match self {
            Self::Log(Log::Queued(queue)) => {
                queue.close();
                queue.flushed().await;
            }
            Self::Log(Log::Direct(log)) => {
                while log.packing.get() {
                    log.packed.notified().await;
                }
            }
            Self::File(_) => {}
            Self::Logger(logger) => logger.end().await,
        }
    }
}

/// Opens sinks for one process.
pub(super) struct Opener<'a> {
    /// Whose output it is.
    pub(super) container: &'a str,
    /// In which namespace.
    pub(super) namespace: &'a str,
    /// Waits for processes that are started.
    pub(super) reaper: &'a Rc<Reaper>,
}

impl Opener<'_> {
    /// Sinks for stdout and stderr; one that both name is opened once.
    pub(super) async fn open(&self, uris: [&StdioUri; 2]) -> Result<([Sink; 2], Vec<Keeper>), IoError> {
        let [out_uri, err_uri] = uris;
        let mut keepers = Vec::new();
        // A logging process has both streams, so the first one's URI is enough.
        if let StdioUri::Binary(place) = out_uri
            && (err_uri == out_uri || *err_uri == StdioUri::Null)
        {
            let sinks = self.logger("stdout", place, &mut keepers).await?;
            return Ok((sinks, keepers));
        }
        let out = self.one(Stream::Stdout, out_uri, &mut keepers).await?;
        let err = match (&out, err_uri == out_uri) {
            (Sink::Log(log, _), true) => Sink::Log(log.clone(), Lines::new(Stream::Stderr)),
            (Sink::File(file), true) => Sink::File(file.clone()),
            _ => self.one(Stream::Stderr, err_uri, &mut keepers).await?,
        };
        Ok(([out, err], keepers))
    }

    async fn logger(
        &self,
        stream: &'static str,
        place: &proto::stdio::Binary,
        keepers: &mut Vec<Keeper>,
    ) -> Result<[Sink; 2], IoError> {
        let failed = |cause| IoError::Logger { path: place.path.clone(), cause };
        let (logger, [out, err]) =
            Logger::start(place, self.container, self.namespace, self.reaper).await.map_err(failed)?;
        keepers.push(Keeper::Logger(logger));
        let tap = |end| {
            let pipe = Pipe::writer(end).map_err(|cause| IoError::Open { stream, path: place.path.clone(), cause })?;
            Ok(Sink::Logger(Tap::new(pipe, Patience::Limited(LOGGER_PATIENCE), false)))
        };
        Ok([tap(out)?, tap(err)?])
    }

    async fn one(&self, stream: Stream, uri: &StdioUri, keepers: &mut Vec<Keeper>) -> Result<Sink, IoError> {
        let name = stream.name();
        let failed = |path: &Path, cause| IoError::Open { stream: name, path: path.to_owned(), cause };
        let log = |log: Log, keepers: &mut Vec<Keeper>| {
            keepers.push(Keeper::Log(log.clone()));
            Sink::Log(log, Lines::new(stream))
        };
        Ok(match uri {
            StdioUri::Null => Sink::Null,
            StdioUri::Attach => return Err(IoError::Direction { stream: name, uri: uri.to_string() }),
            StdioUri::Fifo { path, reader: FifoReader::Awaited } => {
                // Both ends, as containerd: without a reader the bytes wait in the FIFO.
                let pipe = fd::open_both(path).and_then(Pipe::writer).map_err(|cause| failed(path, cause))?;
                Sink::Fifo(pipe, FifoReader::Awaited)
            }
            StdioUri::Fifo { path, reader: FifoReader::Optional } => match fd::open_writer(path) {
                // The reader has gone already: nobody is to wait for it.
                Err(cause) if cause.raw_os_error() == Some(nix::libc::ENXIO) => Sink::Null,
                other => {
                    let pipe = other.and_then(Pipe::writer).map_err(|cause| failed(path, cause))?;
                    Sink::Fifo(pipe, FifoReader::Optional)
                }
            },
            StdioUri::File { path } => {
                let file = RawFile::open(path).map_err(|cause| failed(path, cause))?;
                let raw = Rc::new(RawFile { path: path.clone(), file: RefCell::new(file), lost: Cell::new(0) });
                keepers.push(Keeper::File(raw.clone()));
                Sink::File(raw)
            }
            StdioUri::JsonFile(place) => log(self.file(name, place, Format::json(&place.attributes))?, keepers),
            StdioUri::Local(place) => log(self.file(name, place, Format::Local)?, keepers),
            StdioUri::Cri { path, delivery } => {
                let place = LogPlace { delivery: *delivery, ..LogPlace::new(path) };
                log(self.file(name, &place, Format::Cri)?, keepers)
            }
            StdioUri::Journald(place) => {
                let mut journal = Journal::new(place, self.container);
                journal.connect().map_err(|cause| failed(&place.socket, cause))?;
                let queue = ring(format!("journal {}", place.socket.display()), place.delivery, None);
                tokio::task::spawn_local(queue::drain(queue.clone(), journal));
                log(Log::Queued(queue), keepers)
            }
            StdioUri::Syslog(place) => {
                let syslog = SyslogSink::new(place, self.container);
                syslog.check().map_err(|(path, cause)| failed(&path, cause))?;
                let queue = ring(format!("syslog {}", place.address), place.delivery, None);
                tokio::task::spawn_local(queue::drain(queue.clone(), syslog));
                log(Log::Queued(queue), keepers)
            }
            StdioUri::Binary(place) => {
                let [out, err] = self.logger(name, place, keepers).await?;
                if stream == Stream::Stdout { out } else { err }
            }
        })
    }

    fn file(&self, stream: &'static str, place: &LogPlace, format: Format) -> Result<Log, IoError> {
        let failed = |cause| IoError::Open { stream, path: place.path.clone(), cause };
        let file = LogFile::open(place.clone(), format).map_err(failed)?;
        if let Delivery::NonBlocking { .. } = place.delivery {
            let name = format!("log {}", place.path.display());
            let queue = ring(name, place.delivery, Some(place.path.clone()));
            tokio::task::spawn_local(queue::drain_to_file(queue.clone(), file, self.reaper.clone()));
            return Ok(Log::Queued(queue));
        }
        Ok(Log::Direct(Rc::new(DirectLog {
            file: RefCell::new(file),
            reaper: self.reaper.clone(),
            packing: Cell::new(false),
            packed: Notify::new(),
        })))
    }
}

fn ring(name: String, delivery: Delivery, file: Option<PathBuf>) -> Rc<Queue> {
    match delivery {
        Delivery::Blocking => Queue::new(name, file, 1 << 20, true),
        Delivery::NonBlocking { max_buffer } => Queue::new(name, file, max_buffer, false),
    }
}
