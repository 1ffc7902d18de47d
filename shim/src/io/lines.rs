//! Cuts output into entries of a log: lines, or pieces of lines that are too long (docker's copier, containerd's CRI logger).

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// Longest piece of a line in one entry.
pub(super) const LINE_LIMIT: usize = 16 << 10;

/// Which of its two outputs a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in every format.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An entry's place in a line that has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partial {
    /// The same for all pieces of a line.
    pub(super) id: u64,
    /// 1 for the first.
    pub(super) ordinal: u32,
    /// The line's end has come.
    pub(super) last: bool,
}

/// What becomes one message of a log; without the line feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// Where it was written to.
    pub(super) stream: Stream,
    /// The bytes.
    pub(super) text: &'a [u8],
    /// Set if it isn't a line of its own.
    pub(super) partial: Option<Partial>,
}

impl Entry<'_> {
    /// Whether a line ends with it.
    pub(super) fn ends_line(&self) -> bool {
        self.partial.is_none_or(|partial| partial.last)
    }
}

/// One stream on its way into a log.
#[derive(Debug)]
pub(super) struct Lines {
    stream: Stream,
    /// The beginning of a line whose end hasn't come; less than [`LINE_LIMIT`].
    pending: Vec<u8>,
    /// The piece that comes next, if the line has been cut already.
    partial: Option<Partial>,
}

impl Lines {
    /// Of an output.
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new(), partial: None }
    }

    /// The output.
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether what comes next begins a line.
    pub(super) fn at_begin(&self) -> bool {
        self.pending.is_empty() && self.partial.is_none()
    }

    /// Gives all entries that are complete to `take`, and keeps the rest.
    pub(super) fn cut(&mut self, data: &[u8], mut take: impl FnMut(Entry<'_>)) {
        let mut rest = data;
        while !rest.is_empty() {
            rest = self.step(rest, &mut take);
        }
    }

    /// Gives the first entry of `data` to `take`, or keeps the beginning of one; returns what comes after it.
    #[inline]
    pub(super) fn step<'a>(&mut self, data: &'a [u8], mut take: impl FnMut(Entry<'_>)) -> &'a [u8] {
        let room = LINE_LIMIT - self.pending.len();
        let window = &data[..data.len().min(room)];
        let Some(end) = memchr::memchr(b'\n', window) else {
            self.pending.extend_from_slice(window);
            if self.pending.len() == LINE_LIMIT {
                self.cut_off(&mut take);
            }
            return &data[window.len()..];
        };
        if self.at_begin() {
            take(Entry { stream: self.stream, text: &window[..end], partial: None });
        } else {
            self.pending.extend_from_slice(&window[..end]);
            let partial = self.partial.take().map(|partial| Partial { last: true, ..partial });
            take(Entry { stream: self.stream, text: &self.pending, partial });
            // Lines in pieces are the exception; memory is counted.
            self.pending = Vec::new();
        }
        &data[end + 1..]
    }

    /// The stream has ended: what is left of its last line is an entry.
    pub(super) fn finish(&mut self, mut take: impl FnMut(Entry<'_>)) {
        if !self.pending.is_empty() {
            self.cut_off(&mut take);
        }
        self.partial = None;
    }

    fn cut_off(&mut self, take: &mut impl FnMut(Entry<'_>)) {
        let first = || Partial { id: RandomState::new().build_hasher().finish(), ordinal: 1, last: false };
        let partial = self.partial.get_or_insert_with(first);
        take(Entry { stream: self.stream, text: &self.pending, partial: Some(*partial) });
        partial.ordinal += 1;
        self.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(usize, Option<(u32, bool)>)> {
        let mut lines = Lines::new(Stream::Stdout);
        let mut found = Vec::new();
        let mut ids = Vec::new();
        let mut take = |entry: Entry<'_>| {
            ids.extend(entry.partial.map(|partial| partial.id));
            found.push((entry.text.len(), entry.partial.map(|partial| (partial.ordinal, partial.last))));
        };
        for piece in pieces {
            lines.cut(piece, &mut take);
        }
        lines.finish(&mut take);
        ids.dedup();
        assert!(ids.len() <= 1, "one line was cut");
        found
    }

    #[test]
    fn lines_are_put_together_and_cut() {
        let long = [b'x'; 2 * LINE_LIMIT + 3];
        assert_eq!(cut(&[b"one\ntw", b"o\n\n"]), [(3, None), (3, None), (0, None)]);
        let pieces = [(LINE_LIMIT, Some((1, false))), (LINE_LIMIT, Some((2, false))), (3, Some((3, true))), (1, None)];
        assert_eq!(cut(&[&long, b"\ny\n"]), pieces);
        assert_eq!(cut(&[b"no ", b"end"]), [(6, Some((1, false)))]);
        // A line that is as long as an entry may be: its end comes as a piece without text.
        assert_eq!(cut(&[&long[..LINE_LIMIT], b"\n"]), [(LINE_LIMIT, Some((1, false))), (0, Some((2, true)))]);
    }
}
