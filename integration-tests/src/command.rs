//! Runs a program to its end, with a limit, and keeps what it said.

use std::{
    ffi::OsStr,
    fmt,
    io::{Read, Write},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How a program ended and what it printed.
#[derive(Debug, Clone)]
pub struct Outcome {
    line: String,
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    took: Duration,
}

impl Outcome {
    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.code.unwrap_or(-1)
    }

    /// Standard output as text, without the last line's end.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Standard output as it came.
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard error as text, without the last line's end.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end_matches('\n').to_owned()
    }

    /// How long it ran.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Panics, showing everything, unless the exit code was 0.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code(), 0, "{self}");
        self
    }

    /// Panics, showing everything, unless the exit code was `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Panics unless standard error holds `text` and is one line.
    #[track_caller]
    pub fn expect_error(self, text: &str) -> Self {
        let stderr = self.stderr();
        assert!(stderr.contains(text), "standard error lacks {text:?}: {self}");
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {:?} after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.code,
            self.took,
            self.stdout(),
            self.stderr()
        )
    }
}

/// Runs `program` with `args`; two minutes at most.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Outcome {
    let mut command = Command::new(program);
    command.args(args);
    run_with(&mut command, b"", Duration::from_secs(120))
}

/// Runs a prepared command, feeds it `stdin`, and kills it when `limit` is over (then the code is -1).
pub fn run_with(command: &mut Command, stdin: &[u8], limit: Duration) -> Outcome {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let begun = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("run `{line}`: {e}"));
    let mut input = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    thread::spawn(move || drop(input.write_all(&bytes)));
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let out = thread::spawn(move || {
        let mut text = Vec::new();
        out.read_to_end(&mut text).map(|_| text).unwrap_or_default()
    });
    let err = thread::spawn(move || {
        let mut text = Vec::new();
        err.read_to_end(&mut text).map(|_| text).unwrap_or_default()
    });
    let mut pause = Duration::from_micros(200);
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if begun.elapsed() > limit {
            child.kill().ok();
            child.wait().ok();
            break None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let took = begun.elapsed();
    Outcome { line, code, stdout: out.join().unwrap(), stderr: err.join().unwrap(), took }
}
