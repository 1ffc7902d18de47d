//! What a command says, on its way to those who watch the build: line by line, and no more than anybody reads.

use nix::{sys::stat::Mode, unistd::mkfifo};
use proto::moby::buildkit::v1::VertexLog;
use solver::Step;
use std::{
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    net::unix::pipe::{self, OpenOptions},
    sync::watch,
    task::JoinSet,
};

/// Most bytes that are shown of one command, and of one second of it: BuildKit's limits.
const MOST: usize = 2 << 20;
const MOST_PER_SECOND: usize = 200 << 10;
/// A line that has come so far in half is shown after this time: a question, or dots that tell of progress.
const PATIENCE: Duration = Duration::from_millis(250);
/// Largest piece that is read at once, and that is kept waiting for the end of its line.
const PIECE: usize = 64 << 10;

/// The pipes of a command.
#[derive(Debug)]
pub struct Output {
    /// What the shim opens.
    pub stdout: String,
    /// The same of the other stream.
    pub stderr: String,
    /// Writing ends that stand in for the shim's until it has opened its own.
    held: Vec<pipe::Sender>,
    over: watch::Sender<bool>,
    reading: JoinSet<()>,
}

impl Output {
    /// Makes the pipes in `folder`, and begins to read.
    pub fn open(folder: &Path, step: &Step) -> io::Result<Self> {
        let (over, ended) = watch::channel(false);
        let budget = Arc::new(Mutex::new(Budget::new(Instant::now())));
        let (mut held, mut reading, mut paths) = (Vec::new(), JoinSet::new(), Vec::new());
        for (name, stream) in [("stdout", 1), ("stderr", 2)] {
            let path = folder.join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let source = OpenOptions::new().open_receiver(&path)?;
            held.push(OpenOptions::new().open_sender(&path)?);
            let teller = Teller { step: step.clone(), stream, budget: budget.clone() };
            reading.spawn(read(source, teller, ended.clone()));
            paths.push(path.display().to_string());
        }
        let (stderr, stdout) = (paths.pop().unwrap_or_default(), paths.pop().unwrap_or_default());
        Ok(Self { stdout, stderr, held, over, reading })
    }

    /// The shim has opened its ends: their closing is the end from now on.
    pub fn settle(&mut self) {
        self.held.clear();
    }

    /// The command has ended, and the shim is gone: what is still in the pipes is told before this returns.
    pub async fn finish(mut self) {
        self.held.clear();
        self.over.send_replace(true);
        while self.reading.join_next().await.is_some() {}
    }
}

async fn read(source: pipe::Receiver, teller: Teller, mut ended: watch::Receiver<bool>) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; PIECE];
    loop {
        let last = *ended.borrow();
        if !last {
            tokio::select! {
                _ = source.readable() => {}
                // An error means that whoever would say so is gone: the same.
                _ = ended.wait_for(|over| *over) => continue,
                () = tokio::time::sleep(PATIENCE), if lines.has_part() => {
                    lines.flush(&mut |line| teller.tell(line));
                    continue;
                }
            }
        }
        // The last time the pipe itself is asked: tokio says "nothing" until it has heard that there is something.
        let got = match last {
            true => nix::unistd::read(source.as_fd(), &mut buffer).map_err(io::Error::from),
            false => source.try_read(&mut buffer),
        };
        match got {
            Ok(count @ 1..) => lines.add(&buffer[..count], &mut |line| teller.tell(line)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !last => {}
            _ => break,
        }
    }
    lines.flush(&mut |line| teller.tell(line));
}

/// Puts lines together.
#[derive(Debug, Default)]
struct Lines {
    part: Vec<u8>,
}

impl Lines {
    fn has_part(&self) -> bool {
        !self.part.is_empty()
    }

    /// Tells all whole lines at once; a beginning waits for its end.
    fn add(&mut self, bytes: &[u8], tell: &mut impl FnMut(Vec<u8>)) {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole > 0 {
            let mut told = std::mem::take(&mut self.part);
            told.extend_from_slice(&bytes[..whole]);
            tell(told);
        }
        self.part.extend_from_slice(&bytes[whole..]);
        if self.part.len() >= PIECE {
            self.flush(tell);
        }
    }

    fn flush(&mut self, tell: &mut impl FnMut(Vec<u8>)) {
        if self.has_part() {
            tell(std::mem::take(&mut self.part));
        }
    }
}

struct Teller {
    step: Step,
    stream: i64,
    budget: Arc<Mutex<Budget>>,
}

impl Teller {
    fn tell(&self, mut msg: Vec<u8>) {
        let (take, words) = {
            let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
            budget.spend(msg.len(), Instant::now())
        };
        msg.truncate(take);
        if let Some(words) = words {
            if !msg.is_empty() && !msg.ends_with(b"\n") {
                msg.push(b'\n');
            }
            msg.extend_from_slice(format!("[output clipped, log limit {words} reached]\n").as_bytes());
        }
        if msg.is_empty() {
            return;
        }
        let now = crate::time::Timestamp::now();
        let nanos = i32::try_from(now.subsec_nanos()).unwrap_or_default();
        self.step.progress.log(VertexLog {
            vertex: self.step.digest.clone(),
            timestamp: Some(prost_types::Timestamp { seconds: now.seconds(), nanos }),
            stream: self.stream,
            msg,
        });
    }
}

/// How much may still be told.
#[derive(Debug)]
struct Budget {
    since: Instant,
    spent: usize,
    clipped: bool,
}

impl Budget {
    fn new(since: Instant) -> Self {
        Self { since, spent: 0, clipped: false }
    }

    /// How many of so many bytes may be told; and the limit that was reached, when it begins to be.
    fn spend(&mut self, wanted: usize, now: Instant) -> (usize, Option<&'static str>) {
        let seconds = usize::try_from(now.duration_since(self.since).as_secs()).unwrap_or(usize::MAX).saturating_add(1);
        let so_far = seconds.saturating_mul(MOST_PER_SECOND);
        let (limit, words) = if so_far < MOST { (so_far, "200KiB/s") } else { (MOST, "2MiB") };
        let take = wanted.min(limit.saturating_sub(self.spent));
        self.spent += take;
        if take == wanted {
            self.clipped = false;
            return (take, None);
        }
        let news = !std::mem::replace(&mut self.clipped, true);
        (take, news.then_some(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_whole() {
        let mut lines = Lines::default();
        let mut told = Vec::new();
        let mut tell = |line: Vec<u8>| told.push(String::from_utf8(line).unwrap());
        for piece in ["one\ntw", "o\n", "th", "ree"] {
            lines.add(piece.as_bytes(), &mut tell);
        }
        lines.flush(&mut tell);
        lines.flush(&mut tell);
        assert_eq!(told, ["one\n", "two\n", "three"]);
    }

    #[test]
    fn floods_are_clipped_by_second_and_in_all() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert_eq!(budget.spend(100, start), (100, None));
        assert_eq!(budget.spend(MOST_PER_SECOND, start), (MOST_PER_SECOND - 100, Some("200KiB/s")));
        assert_eq!(budget.spend(10, start), (0, None), "said once");
        let later = start + Duration::from_secs(1);
        assert_eq!(budget.spend(10, later), (10, None));
        let much_later = start + Duration::from_secs(100);
        assert_eq!(budget.spend(MOST, much_later), (MOST - MOST_PER_SECOND - 10, Some("2MiB")));
        assert_eq!(budget.spend(1, much_later), (0, None));
    }
}
