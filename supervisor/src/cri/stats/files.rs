//! Small files of the kernel, read one after the other into one buffer.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
    unistd::read,
};
use proto::runtime::v1 as cri;

/// Of memory.stat, the longest file that every answer needs.
const USUAL: usize = 4096;

/// Opens a folder as the place from which names are looked up.
pub(super) fn folder(at: &Path) -> Option<OwnedFd> {
    open(at, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// Reads files; what can't be read isn't there.
pub(super) struct Reader(Vec<u8>);

impl Reader {
    /// With an empty buffer.
    pub(super) fn new() -> Self {
        Self(vec![0; USUAL])
    }

    /// What a file of `folder` says, without the blanks around it.
    pub(super) fn text(&mut self, folder: impl AsFd, name: &str) -> Option<&str> {
        let file = openat(folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        let mut end = 0;
        loop {
            if end == self.0.len() {
                self.0.resize(end * 2, 0);
            }
            match read(&file, &mut self.0[end..]) {
                Ok(0) => break,
                Ok(more) => end += more,
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
        std::str::from_utf8(&self.0[..end]).ok().map(str::trim)
    }

    /// A file of one number.
    pub(super) fn number(&mut self, folder: impl AsFd, name: &str) -> Option<u64> {
        self.text(folder, name)?.parse().ok()
    }

    /// A file of one limit.
    pub(super) fn limit(&mut self, folder: impl AsFd, name: &str) -> Option<Limit> {
        Some(match self.text(folder, name)? {
            "max" => Limit::Never,
            text => match text.parse().ok()? {
                // Version 1 of memory has no word for it, but the greatest number of pages.
                number if number > 1 << 62 => Limit::Never,
                number => Limit::At(number),
            },
        })
    }

    /// Every line `name number` of a file; `false` if there is no such file.
    pub(super) fn table(&mut self, folder: impl AsFd, name: &str, mut line: impl FnMut(&str, u64)) -> bool {
        let Some(text) = self.text(folder, name) else { return false };
        for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            if let Ok(value) = value.trim().parse() {
                line(name, value);
            }
        }
        true
    }

    /// A file about pressure (proc_pressure(5)); `None` where the kernel doesn't measure it.
    pub(super) fn pressure(&mut self, folder: impl AsFd, name: &str) -> Option<cri::PsiStats> {
        pressure(self.text(folder, name)?)
    }
}

/// Up to where something may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// There is no limit.
    Never,
    /// Up to here.
    At(u64),
}

impl Limit {
    /// The number, if there is one.
    pub(super) fn number(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::At(number) => Some(number),
        }
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full` the same; of the CPU, older kernels say `some` only.
fn pressure(text: &str) -> Option<cri::PsiStats> {
    let mut stats = cri::PsiStats::default();
    for line in text.lines() {
        let (kind, values) = line.split_once(' ')?;
        let mut data = cri::PsiData::default();
        for (name, value) in values.split(' ').filter_map(|pair| pair.split_once('=')) {
            match name {
                "avg10" => data.avg10 = value.parse().ok()?,
                "avg60" => data.avg60 = value.parse().ok()?,
                "avg300" => data.avg300 = value.parse().ok()?,
                // The kernel's are microseconds.
                "total" => data.total = value.parse::<u64>().ok()?.saturating_mul(1000),
                _ => {}
            }
        }
        match kind {
            "some" => stats.some = Some(data),
            "full" => stats.full = Some(data),
            _ => {}
        }
    }
    (stats.some.is_some() || stats.full.is_some()).then_some(stats)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_read_whole_and_what_is_not_there_is_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let long: String = (0..5000).map(|n| format!("name{n} {n}\n")).collect();
        for (name, text) in
            [("long", long.as_str()), ("one", "17\n"), ("max", "max\n"), ("huge", "9223372036854771712\n")]
        {
            fs::write(temporary.path().join(name), text).unwrap();
        }
        let (at, mut reader) = (folder(temporary.path()).unwrap(), Reader::new());
        let (mut lines, mut sum) = (0, 0);
        assert!(reader.table(&at, "long", |_, number| (lines, sum) = (lines + 1, sum + number)));
        assert_eq!((lines, sum), (5000, 4999 * 5000 / 2));
        assert_eq!(
            (reader.number(&at, "one"), reader.number(&at, "max"), reader.number(&at, "none")),
            (Some(17), None, None)
        );
        let limits = ["one", "max", "huge", "none"].map(|name| reader.limit(&at, name));
        assert_eq!(limits, [Some(Limit::At(17)), Some(Limit::Never), Some(Limit::Never), None]);
        assert!(!reader.table(&at, "none", |_, _| ()));
        assert!(folder(&temporary.path().join("none")).is_none());
    }

    #[test]
    fn pressure_is_told_in_nanoseconds() {
        let text =
            "some avg10=0.25 avg60=3.31 avg300=12.54 total=102997\nfull avg10=0.00 avg60=0.46 avg300=0.62 total=7";
        let data = |total, avg10, avg60, avg300| Some(cri::PsiData { total, avg10, avg60, avg300 });
        let wanted = cri::PsiStats { some: data(102_997_000, 0.25, 3.31, 12.54), full: data(7_000, 0.0, 0.46, 0.62) };
        assert_eq!(pressure(text), Some(wanted));
        assert_eq!(pressure("some avg10=1.00 avg60=0.00 avg300=0.00 total=1").map(|stats| stats.full), Some(None));
        assert_eq!(pressure(""), None);
    }
}
