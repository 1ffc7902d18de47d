//! Relays between FIFOs that the test opens as a shim would.

use super::*;
use crate::containers::streams::{Fifos, Wants};
use std::path::Path;
use std::{fs::File, io::Write as _};

fn plan(folder: &Path) -> Plan {
    let log = LogPlace { path: folder.join("log"), max_size: None, max_files: 1 };
    Plan { tty: false, stdin: true, log: Some(log) }
}

fn lines(folder: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder.join("log")).unwrap();
    let entry = |line: &str| -> (String, String) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        (value["stream"].as_str().unwrap().to_owned(), value["log"].as_str().unwrap().to_owned())
    };
    text.lines().map(entry).collect()
}

fn writer(path: &str) -> File {
    File::options().write(true).open(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn output_goes_to_the_log_and_to_who_is_attached() {
    let folder = tempfile::tempdir().unwrap();
    let relays = Relays::new(folder.path().join("relays"));
    let relay = relays.make("one", &plan(folder.path())).unwrap();
    let (mut out, mut err) = (writer(&relay.paths.stdout), writer(&relay.paths.stderr));
    let mut input = File::open(&relay.paths.stdin).unwrap();
    relay.settle();
    let wants = Wants { stdin: true, stdout: true, stderr: false };
    let (fifos, mut ends) = Fifos::make(folder.path(), "client", wants).unwrap();
    let client = Client::new(folder.path().join("nobody"));
    relay.attach(&client, "one", &fifos, false).unwrap();
    fifos.settle(&mut ends).unwrap();
    let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
    let (_over, stop) = oneshot::channel();
    let stream = super::super::streams::ClientStream { stream: ours, early: "typed".into() };
    let framing = super::super::streams::Framing::Raw;
    let pumping = tokio::spawn(super::super::streams::pump(stream, ends, framing, None, stop));
    out.write_all(b"first\nsec").unwrap();
    let mut seen = [0; 9];
    theirs.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"first\nsec");
    err.write_all(b"bad\n").unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = [0; 5];
        io::Read::read_exact(&mut input, &mut text).map(|()| text)
    });
    assert_eq!(&read.await.unwrap().unwrap(), b"typed");
    out.write_all(b"ond\nrest").unwrap();
    drop((out, err));
    relays.end("one").await;
    pumping.await.unwrap();
    let mut kept = lines(folder.path());
    kept.sort();
    let expected = [("stderr", "bad\n"), ("stdout", "first\n"), ("stdout", "rest"), ("stdout", "second\n")];
    assert_eq!(kept, expected.map(|(stream, text)| (stream.to_owned(), text.to_owned())));
    assert!(!folder.path().join("relays/one").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_engine_reads_on() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("relays");
    let relay = Relays::new(place.clone()).make("one", &plan(folder.path())).unwrap();
    // As a shim does: both ends, so that it never sees the other side gone.
    let mut out = File::options().read(true).write(true).open(&relay.paths.stdout).unwrap();
    relay.settle();
    out.write_all(b"before\n").unwrap();
    while lines(folder.path()).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (end, pumping) = lock(&relay.ending).take().unwrap();
    pumping.abort();
    let _ = pumping.await;
    drop((end, relay));
    out.write_all(b"meanwhile\n").unwrap();
    let relays = Relays::new(place);
    relays.sweep_is_for_strangers(&plan(folder.path()));
    out.write_all(b"after\n").unwrap();
    drop(out);
    relays.end("one").await;
    let texts: Vec<_> = lines(folder.path()).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["before\n", "meanwhile\n", "after\n"]);
}

impl Relays {
    // Resumes `one`, and sees that only others are swept.
    fn sweep_is_for_strangers(&self, plan: &Plan) {
        std::fs::create_dir_all(self.folder.join("stranger")).unwrap();
        assert!(self.resume("one", plan).unwrap().is_some());
        assert!(self.resume("none", plan).unwrap().is_none());
        self.sweep();
        assert!(self.folder.join("one").exists() && !self.folder.join("stranger").exists());
    }
}

#[test]
fn logs_are_cut_and_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let place = LogPlace { path: folder.path().join("log"), max_size: Some(100), max_files: 2 };
    let mut log = log::LogFile::open(place).unwrap();
    for line in ["one", "two", "three"] {
        log.write(crate::containers::frames::Stream::Stdout, format!("{line} {}\n", "x".repeat(80)).as_bytes());
    }
    let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(file("log").contains("three") && file("log.1").contains("two"));
    let mut log = log::LogFile::open(LogPlace { path: folder.path().join("l"), max_size: None, max_files: 1 }).unwrap();
    log.write(crate::containers::frames::Stream::Stdout, &[b'y'; 40_000]);
    log.finish();
    let sizes: Vec<_> = file("l").lines().map(|l| l.matches('y').count()).collect();
    assert_eq!(sizes, [16 << 10, 16 << 10, 40_000 - (32 << 10)]);
}
