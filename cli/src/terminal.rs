//! The client's own terminal: raw mode, its size, and keys that leave a container.

use nix::sys::termios::{self, SetArg, Termios};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

/// Standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Rows and columns of standard output's terminal; zeros without one.
pub fn size() -> (u16, u16) {
    match sys::pty::size(io::stdout().as_fd()) {
        Ok(size) => (size.rows, size.columns),
        Err(_) => (0, 0),
    }
}

/// Standard input in raw mode: every key is a byte for the container. Undone on drop.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Turns it on.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; there is nobody left to tell.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// Standard input without echo, for passwords. Undone on drop.
#[derive(Debug)]
pub struct NoEcho {
    before: Termios,
}

impl NoEcho {
    /// Turns the echo off.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut silent = before.clone();
        silent.local_flags.remove(termios::LocalFlags::ECHO);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &silent)?;
        Ok(Self { before })
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        // The terminal may be gone; there is nobody left to tell.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// Keys that were not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid detach keys ({keys}): unknown key {key:?}")]
pub struct KeysError {
    keys: String,
    key: String,
}

/// Keys that leave a container and let it run: a sequence, held back until it is complete or broken.
#[derive(Debug)]
pub struct DetachKeys {
    sequence: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads "ctrl-p,ctrl-q".
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut sequence = Vec::new();
        for key in text.split(',') {
            let byte = match key.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([letter @ b'a'..=b'z']) => letter - b'a' + 1,
                Some(b"@") => 0,
                Some([sign @ b'['..=b'_']) => sign - b'A' + 1,
                None if key.len() == 1 => key.as_bytes()[0],
                _ if key == "DEL" => 127,
                _ => return Err(KeysError { keys: text.to_owned(), key: key.to_owned() }),
            };
            sequence.push(byte);
        }
        Ok(Self { sequence, matched: 0 })
    }

    /// Takes keys; gives what is for the container, and whether the sequence is complete.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len());
        for byte in input {
            if self.sequence.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.sequence.len() {
                    self.matched = 0;
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.sequence[..self.matched]);
            self.matched = usize::from(self.sequence.first() == Some(byte));
            if self.matched == 0 {
                out.push(*byte);
            } else if self.sequence.len() == 1 {
                return (out, true);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q").unwrap().sequence, [16, 17]);
        assert_eq!(DetachKeys::parse("a,ctrl-[,ctrl-@,ctrl-_").unwrap().sequence, [b'a', 27, 0, 31]);
        assert!(DetachKeys::parse("ctrl-P").is_err() && DetachKeys::parse("").is_err());
    }

    #[test]
    fn a_broken_sequence_reaches_the_container() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11zz"), (b"\x10".to_vec(), true));
        let mut one = DetachKeys::parse("x").unwrap();
        assert_eq!(one.filter(b"axb"), (b"a".to_vec(), true));
    }
}
