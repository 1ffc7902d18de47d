//! `cp`: files as a tar archive, to a container or from it.

pub mod pack;
pub mod paths;
pub mod unpack;

use super::App;
use crate::args::container::CpArgs;
use crate::client::{Call, Client, Reply, call::Body, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::{self, units};
use crate::terminal;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use nix::sys::stat::SFlag;
use paths::End;
use serde::Deserialize;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How much of an archive travels at once.
const CHUNK: usize = 128 * 1024;
/// Copies that take no longer show no progress.
const SOON: Duration = Duration::from_millis(100);

/// Runs `cp`.
pub async fn run(app: &App, args: &CpArgs) -> Outcome {
    let refused = |text: &str| Err(Failure::Refused(text.to_owned()));
    if args.source.is_empty() {
        return refused("source can not be empty");
    }
    if args.destination.is_empty() {
        return refused("destination can not be empty");
    }
    let quiet = args.quiet || !terminal::stdout_is_terminal();
    match (paths::container(&args.source), paths::container(&args.destination)) {
        ((Some(container), from), (None, to)) => {
            let copy = Copy { client: app.client().await?, container, args, quiet };
            copy.copy_out(from, to).await
        }
        ((None, from), (Some(container), to)) => {
            let copy = Copy { client: app.client().await?, container, args, quiet };
            copy.copy_in(from, to).await
        }
        ((Some(_), _), (Some(_), _)) => refused("copying between containers is not supported"),
        ((None, _), (None, _)) => refused("must specify at least one container source"),
    }
}

/// What the engine tells of a path, in the header X-Docker-Container-Path-Stat.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PathStat {
    /// As Go has file modes: the kind is in the upper bits.
    mode: u32,
    link_target: String,
}

impl PathStat {
    const DIR: u32 = 1 << 31;
    const SYMLINK: u32 = 1 << 27;
    const DEVICE: u32 = 1 << 26;
    const IRREGULAR: u32 = 1 << 19;

    fn read(reply: &Reply) -> Option<Self> {
        let bytes = STANDARD.decode(reply.header("x-docker-container-path-stat")?).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn is_dir(&self) -> bool {
        self.mode & Self::DIR != 0
    }

    fn is_link(&self) -> bool {
        self.mode & Self::SYMLINK != 0
    }

    /// Where the link leads, as seen from its own folder.
    fn target(&self, path: &str) -> String {
        match self.link_target.starts_with('/') {
            true => self.link_target.clone(),
            false => paths::clean(&format!("{}/{}", paths::split(path).0, self.link_target)),
        }
    }
}

struct Copy<'a> {
    client: Client,
    container: &'a str,
    args: &'a CpArgs,
    quiet: bool,
}

impl Copy<'_> {
    fn archive(&self) -> String {
        format!("/containers/{}/archive", escape(self.container, false))
    }

    async fn stat(&self, path: &str) -> Option<PathStat> {
        let reply = self.client.send(Call::head(self.archive()).query("path", path)).await.ok()?;
        PathStat::read(&reply)
    }

    async fn copy_out(&self, path: &str, to: &str) -> Outcome {
        let to = if to == "-" { to.to_owned() } else { absolute(to)? };
        check_output(&to)?;
        let mut source = End { path: path.to_owned(), exists: true, is_dir: false, name: None };
        if self.args.follow_link
            && let Some(stat) = self.stat(path).await
            && stat.is_link()
        {
            (source.path, source.name) = paths::follow(path, &stat.target(path));
        }
        let mut reply = self.client.send(Call::get(self.archive()).query("path", &source.path)).await?;
        if to == "-" {
            let mut out = io::stdout().lock();
            while let Some(data) = reply.chunk().await? {
                out.write_all(&data).map_err(|cause| Failure::io("write /dev/stdout", cause))?;
            }
            return out.flush().map_err(|cause| Failure::io("write /dev/stdout", cause));
        }
        let Some(stat) = PathStat::read(&reply) else {
            let text = format!("the engine does not say what {path} in container {} is", self.container);
            return Err(Failure::Refused(text));
        };
        source.is_dir = stat.is_dir();
        let destination = local_destination(&to)?;
        let plan = paths::plan(&source, &destination).map_err(|error| Failure::Refused(error.to_string()))?;
        // In the archive the source has the name of what was asked for; the name before a link comes after that.
        let rename = match (plan.rename, &source.name) {
            (Some((_, new)), _) => Some((paths::split(&source.path).1, new)),
            (None, Some(name)) => Some((paths::split(&source.path).1, name.clone())),
            (None, None) => None,
        };
        let progress = Progress::start(self.quiet, "from");
        let (sender, receiver) = mpsc::channel(4);
        let owners = self.args.archive;
        let unpacking = tokio::task::spawn_blocking(move || {
            unpack::unpack(Received { receiver, rest: Bytes::new() }, &plan.dir, rename.as_ref(), owners)
        });
        let mut broken = None;
        loop {
            match reply.chunk().await {
                Ok(Some(data)) => {
                    progress.add(data.len());
                    if sender.send(Ok(data)).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // Told to the thread, too: half an archive must not pass for a whole one.
                    let _ = sender.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(sender);
        let unpacked = joined(unpacking.await)?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        progress.end(&to);
        unpacked.map_err(|error| Failure::Refused(error.to_string()))
    }

    async fn copy_in(&self, from: &str, to: &str) -> Outcome {
        let shown = format!("{}:{to}", self.container);
        let mut destination = End { path: to.to_owned(), ..End::default() };
        let mut stat = self.stat(to).await;
        if let Some(link) = stat.as_ref().filter(|stat| stat.is_link()) {
            destination.path = link.target(to);
            stat = self.stat(&destination.path).await;
        }
        if let Some(stat) = &stat {
            let odd = [(PathStat::DEVICE, "a device"), (PathStat::IRREGULAR, "an irregular file")];
            if let Some((_, what)) = odd.iter().find(|(bit, _)| stat.mode & bit != 0) {
                let text = format!("destination \"{shown}\" must be a directory or a regular file: got {what}");
                return Err(Failure::Refused(text));
            }
            (destination.exists, destination.is_dir) = (true, stat.is_dir());
        }
        let progress = Progress::start(self.quiet, "to");
        if from == "-" {
            if !destination.is_dir {
                return Err(Failure::Refused(format!("destination \"{shown}\" must be a directory")));
            }
            let body = super::load::streamed(tokio::io::stdin());
            return self.put(&destination.path, body).await;
        }
        let source = local_source(&absolute(from)?, self.args.follow_link)?;
        let plan = paths::plan(&source, &destination).map_err(|error| Failure::Refused(error.to_string()))?;
        let counted = progress.count.clone();
        let (body, packing) = streamed(move |out| pack::pack(&source, plan.rename.as_ref(), out), counted);
        let result = self.put(&plan.dir, body).await;
        match packing.await {
            // What the engine says of an archive that broke off is only the consequence.
            Ok(Err(error)) if !error.is_consequence() => return Err(Failure::Refused(error.to_string())),
            other => joined(other.map(drop))?,
        }
        result?;
        progress.end(&format!("{}:{}", self.container, destination.path));
        Ok(())
    }

    async fn put(&self, dir: &str, body: Body) -> Outcome {
        let call = Call::put(self.archive())
            .query("noOverwriteDirNonDir", "true")
            .query("path", dir)
            .maybe("copyUIDGID", self.args.archive.then_some("true"))
            .header("content-type", "application/x-tar")
            .body(body);
        self.client.send(call).await?;
        Ok(())
    }
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Outcome<T> {
    result.map_err(|error| Failure::Refused(format!("the thread that reads and writes files broke off: {error}")))
}

/// The output of a function that writes, as the body of a request; it runs on a thread of its own.
pub fn streamed<E: Send + 'static>(
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
    count: Arc<AtomicU64>,
) -> (Body, JoinHandle<Result<(), E>>) {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let thread = tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(CHUNK, Sent { sender: sender.clone(), count });
        let result = write(&mut out);
        if result.is_err() {
            // The request must not end as if the archive were whole.
            let _ = sender.blocking_send(Err(io::ErrorKind::Other.into()));
            // What is still in the buffer is not to be sent.
            let _ = out.into_parts();
        } else {
            let _ = out.flush();
        }
        result
    });
    let frames =
        stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) });
    (BodyExt::boxed(StreamBody::new(frames.map(|data| data.map(Frame::data)))), thread)
}

struct Sent {
    sender: mpsc::Sender<io::Result<Bytes>>,
    count: Arc<AtomicU64>,
}

impl Write for Sent {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.count.fetch_add(data.len() as u64, Ordering::Relaxed);
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What arrives of an archive, for the thread that unpacks it.
struct Received {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(data) => self.rest = data?,
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// How much was copied: on a terminal, while it lasts and at the end.
struct Progress {
    quiet: bool,
    count: Arc<AtomicU64>,
    shown: Option<JoinHandle<()>>,
    drawn: Arc<AtomicBool>,
}

impl Progress {
    fn start(quiet: bool, direction: &'static str) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let drawn = Arc::new(AtomicBool::new(false));
        let (counted, draws) = (count.clone(), drawn.clone());
        let shown = (!quiet && io::IsTerminal::is_terminal(&io::stderr())).then(|| {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(SOON).await;
                    draws.store(true, Ordering::Relaxed);
                    let size = human(counted.load(Ordering::Relaxed));
                    let _ = write!(io::stderr(), "\r\x1b[KCopying {direction} container - {size}");
                }
            })
        });
        Self { quiet, count, shown, drawn }
    }

    fn add(&self, bytes: usize) {
        self.count.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn end(&self, to: &str) {
        if !self.quiet {
            let clear = if self.drawn.load(Ordering::Relaxed) { "\r\x1b[K" } else { "" };
            output::note(&format!("{clear}Successfully copied {} to {to}", human(self.count.load(Ordering::Relaxed))));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.shown.take() {
            task.abort();
        }
    }
}

fn human(bytes: u64) -> String {
    units::size(i64::try_from(bytes).unwrap_or(i64::MAX), 3)
}

/// Absolute, with its "/" or "/." kept.
fn absolute(path: &str) -> Outcome<String> {
    if path.starts_with('/') {
        return Ok(paths::keep_end(paths::clean(path), path));
    }
    let cwd = std::env::current_dir().map_err(|cause| Failure::io("get the working directory", cause))?;
    Ok(paths::keep_end(paths::clean(&format!("{}/{path}", cwd.display())), path))
}

/// What can be known to be no place for files, before the engine is asked.
fn check_output(path: &str) -> Outcome {
    if path == "-" {
        return Ok(());
    }
    let dir = paths::split(&paths::clean(path)).0;
    if fs::metadata(&dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Err(Failure::Refused(format!("invalid output path: directory \"{dir}\" does not exist")));
    }
    let kind = match nix::sys::stat::stat(path) {
        Ok(stat) => SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
        Err(_) => return Ok(()),
    };
    if kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK {
        let text = format!("invalid output path: \"{path}\" must be a directory or a regular file: got a device");
        return Err(Failure::Refused(text));
    }
    Ok(())
}

/// The source on the client's side; its folder is followed through links, its last part only by `-L`.
fn local_source(path: &str, follow: bool) -> Outcome<End> {
    let fault = |path: &str| {
        let path = path.to_owned();
        move |cause: io::Error| Failure::Refused(format!("lstat {path}: {}", crate::options::Plain(cause)))
    };
    let mut end = End { path: path.to_owned(), exists: true, is_dir: false, name: None };
    // "LINK/" and "LINK/." name what the link leads to.
    if follow || paths::names_directory(path) {
        let real = fs::canonicalize(path).map_err(fault(path))?;
        (end.path, end.name) = paths::follow(path, &real.to_string_lossy());
        if paths::is_dot(path) {
            end.name = None;
        }
    }
    end.is_dir = fs::symlink_metadata(&end.path).map_err(fault(&end.path))?.is_dir();
    Ok(end)
}

/// The destination on the client's side: links are followed, its folder exists.
fn local_destination(path: &str) -> Outcome<End> {
    let mut end = End { path: path.to_owned(), ..End::default() };
    for _ in 0..40 {
        match fs::symlink_metadata(end.path.trim_end_matches('/')) {
            Ok(metadata) if metadata.is_symlink() => {
                let link = end.path.trim_end_matches('/').to_owned();
                let target = fs::read_link(&link).map_err(|cause| Failure::io(format!("readlink {link}"), cause))?;
                let target = target.to_string_lossy();
                end.path = match target.starts_with('/') {
                    true => target.into_owned(),
                    false => format!("{}/{target}", paths::split(&link).0),
                };
            }
            Ok(metadata) => {
                (end.exists, end.is_dir) = (true, metadata.is_dir());
                return Ok(end);
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let dir = paths::split(&paths::clean(&end.path)).0;
                return match fs::metadata(Path::new(&dir)) {
                    Ok(metadata) if metadata.is_dir() => Ok(end),
                    Ok(_) => Err(Failure::Refused("not a directory".to_owned())),
                    Err(cause) => Err(Failure::io(format!("lstat {dir}"), cause)),
                };
            }
            Err(cause) => return Err(Failure::io(format!("lstat {}", end.path), cause)),
        }
    }
    Err(Failure::Refused(format!("too many symbolic links at {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn ends_on_the_clients_side() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir(at("d")).unwrap();
        fs::write(at("f"), "x").unwrap();
        symlink("f", at("l")).unwrap();
        symlink("gone", at("dangling")).unwrap();
        symlink("d", at("ld")).unwrap();
        let source = |name: &str, follow| local_source(&at(name), follow).map(|e| (e.path, e.is_dir, e.name));
        assert_eq!(source("d", false).unwrap(), (at("d"), true, None));
        assert_eq!(source("l", false).unwrap(), (at("l"), false, None));
        assert_eq!(source("l", true).unwrap(), (at("f"), false, Some("l".into())));
        assert_eq!(source("ld/.", false).unwrap(), (at("d/."), true, None));
        let error = source("no", false).unwrap_err().to_string();
        assert_eq!(error, format!("lstat {}: no such file or directory", at("no")));
        let to = |name: &str| local_destination(&at(name)).map(|e| (e.path, e.exists, e.is_dir));
        assert_eq!(to("l").unwrap(), (at("f"), true, false));
        assert_eq!(to("ld").unwrap(), (at("d"), true, true));
        assert_eq!(to("dangling").unwrap(), (at("gone"), false, false));
        assert_eq!(to("new").unwrap(), (at("new"), false, false));
        assert_eq!(to("f/new").unwrap_err().to_string(), format!("lstat {}: not a directory", at("f/new")));
        assert!(check_output("/dev/null").unwrap_err().to_string().ends_with("got a device"));
        let error = check_output("/no/such/x").unwrap_err().to_string();
        assert_eq!(error, "invalid output path: directory \"/no/such\" does not exist");
    }

    #[test]
    fn modes_are_gos() {
        let stat: PathStat = serde_json::from_str(r#"{"name":"x","mode":2147484141,"linkTarget":""}"#).unwrap();
        assert!(stat.is_dir() && !stat.is_link());
        let link = PathStat { mode: PathStat::SYMLINK, link_target: "../b".to_owned() };
        assert_eq!((link.is_link(), link.target("/x/a/l").as_str()), (true, "/x/b"));
    }
}
