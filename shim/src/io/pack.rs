//! Packs rotated logs: a process of its own, so that neither the container's output nor the shim's memory knows of it.
//!
//! It is this very program with another action. It writes beside the log; what it made is put in place by the shim, which
//! knows where the file has turned to meanwhile. If the shim is gone by then, the file simply stays as it was.

use std::{
    ffi::{CString, OsString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::Path,
    process::ExitCode,
};

use flate2::{Compression, GzBuilder};
use tokio::sync::oneshot;

use crate::{
    clock,
    reaper::{Exit, Reaper},
    report::{report, warn_line},
};

/// The word on the command line; nobody else's to use, so it isn't among the actions.
pub(crate) const ACTION: &str = "pack-log";

/// Starts a packer. Its exit comes through the reaper. The process is given the open file: by the time that it runs, another one
/// may have that name.
pub(super) fn start(source: &Path, target: &Path, reaper: &Reaper) -> Option<oneshot::Receiver<Exit>> {
    let begin = || -> io::Result<u32> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
        let args = [
            text(b"berth-shim")?,
            text(ACTION.as_bytes())?,
            text(source.as_os_str().as_bytes())?,
            text(target.as_os_str().as_bytes())?,
        ];
        let file = File::open(source)?;
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        let stderr = io::stderr();
        let stdio = [file.as_fd(), null.as_fd(), stderr.as_fd()];
        let program = sys::spawn::Program {
            path: c"/proc/self/exe",
            args: &args,
            env: &[],
            stdio,
            further: &[],
            dies_with_parent: false,
        };
        Ok(sys::spawn::spawn(&program)?.as_raw().unsigned_abs())
    };
    match begin() {
        // Nothing is awaited in between, so the reaper can't have seen it yet.
        Ok(pid) => Some(reaper.claim(pid)),
        Err(error) => {
            warn_line!("start a process to pack {}: {error}", source.display());
            None
        }
    }
}

/// The process's part: `berth-shim pack-log NAME TARGET`, with the file of that name as standard input.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let [source, target] = args else {
        report(format_args!("{ACTION} is for the shim's own use"));
        return ExitCode::from(2);
    };
    // Whatever else there is to do is more urgent.
    let _ = sys::process::set_nice(19);
    let packed = io::stdin().as_fd().try_clone_to_owned().and_then(|file| pack(File::from(file), Path::new(target)));
    match packed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(format_args!("pack {}: {error}", Path::new(source).display()));
            ExitCode::FAILURE
        }
    }
}

/// Docker's form: gzip whose header says when the last entry was written, so that a reader that wants newer ones can pass it by.
fn pack(mut source: File, target: &Path) -> io::Result<()> {
    let last = clock::rfc3339_nano(source.metadata()?.modified()?);
    let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(target)?;
    let extra = format!("{{\"lastTime\":\"{last}\"}}");
    let mut packed = GzBuilder::new().extra(extra).write(target, Compression::default());
    io::copy(&mut source, &mut packed)?;
    packed.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_packed_log_is_gzip_and_knows_its_last_time() {
        let folder = tempfile::tempdir().expect("folder");
        let (source, target) = (folder.path().join("s"), folder.path().join("t"));
        let text = "some text that comes again and again\n".repeat(10_000);
        std::fs::write(&source, &text).expect("write");
        pack(File::open(&source).expect("open"), &target).expect("pack");
        let mut reader = flate2::read::GzDecoder::new(File::open(&target).expect("open"));
        let mut unpacked = String::new();
        reader.read_to_string(&mut unpacked).expect("gzip");
        assert!(unpacked == text && std::fs::metadata(&target).expect("target").len() < 10_000);
        let extra = reader.header().and_then(flate2::GzHeader::extra).expect("extra");
        let extra: serde_json::Value = serde_json::from_slice(extra).expect("json");
        let time = clock::parse_rfc3339_nano(extra["lastTime"].as_str().expect("time"));
        assert_eq!(time, std::fs::metadata(&source).expect("source").modified().ok());
    }
}
