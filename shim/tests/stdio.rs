//! What a process reads and writes, through every kind of stdio the shim serves.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{Shim, Stage, eventually, log_text, processes_with};
use proto::{
    berth::streams::v1::AttachRequest,
    containerd::task::v3::{CloseIoRequest, ExecProcessRequest, ResizePtyRequest},
};
use tonic::Code;

fn uri(path: &Path, scheme: &str, options: &str) -> String {
    format!("{scheme}://{}{options}", path.display())
}

/// Opens the read end as an engine does, before the call.
fn open_read(path: &Path) -> File {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).expect("read end");
    // Only opening must not wait.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).expect("blocking");
    file
}

/// Reads to the end in the background. Before a writer has come a FIFO reads as ended, so a first poll waits for one.
fn read_all(mut file: File) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&file), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::from(20_000u16)).expect("poll");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        bytes
    })
}

async fn logged(stage: &Stage, id: &str, args: &[&str], options: &str) -> (Shim, PathBuf) {
    let log = stage.path(&format!("{id}.log"));
    let bundle = stage.bundle(id, args, |_| ());
    let mut shim = stage.shim(id, bundle.clone()).await;
    let mut request = stage.create(id, &bundle);
    request.stdout = uri(&log, "json-file", options);
    request.stderr = request.stdout.clone();
    shim.create(request).await.expect("create");
    (shim, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_streams_are_logged_and_complete_at_the_end() {
    let stage = Stage::new().await;
    let script = "seq 1 5000; echo 'an \"error\"' >&2; head -c 20000 /dev/zero; printf 'no end'";
    let (mut shim, log) = logged(&stage, "log", &["sh", "-c", script], "?max-size=100000000&max-file=2").await;
    shim.start("").await.expect("start");
    shim.wait("").await;
    // Not eventually: the end is told when all is written.
    let numbers: String = (1..=5000).map(|number| format!("{number}\n")).collect();
    assert_eq!(log_text(&log, "stdout"), format!("{numbers}{}no end", "\0".repeat(20000)));
    assert_eq!(log_text(&log, "stderr"), "an \"error\"\n");
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifos_work_as_with_containerd() {
    let stage = Stage::new().await;
    let (input, output) = (stage.fifo("in"), stage.fifo("out"));
    let bundle = stage.bundle("fifo", &["cat"], |_| ());
    let mut shim = stage.shim("fifo", bundle.clone()).await;
    let mut request = stage.create("fifo", &bundle);
    (request.stdin, request.stdout) = (input.display().to_string(), output.display().to_string());
    let reader = open_read(&output);
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    let reader = read_all(reader);
    // A client comes, writes, and goes; another comes later. Stdin stays open until CloseIO.
    for text in ["first ", "second"] {
        let mut writer = OpenOptions::new().write(true).open(&input).expect("stdin");
        writer.write_all(text.as_bytes()).expect("write");
    }
    let close = CloseIoRequest { id: "fifo".into(), exec_id: String::new(), stdin: true };
    shim.task.close_io(close).await.expect("close");
    assert_eq!(shim.wait("").await.exit_status, 0);
    assert_eq!(String::from_utf8(reader.await.expect("reader")).expect("text"), "first second");
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_without_a_reader_waits_in_a_plain_fifo_but_not_the_end() {
    let stage = Stage::new().await;
    let output = stage.fifo("out");
    let bundle = stage.bundle("slow", &["yes"], |_| ());
    let mut shim = stage.shim("slow", bundle.clone()).await;
    let mut request = stage.create("slow", &bundle);
    request.stdout = uri(&output, "fifo", "");
    let reader = open_read(&output);
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    // Its output doesn't fit into FIFO and pipe, so the process has to wait for a reader.
    tokio::time::sleep(Duration::from_millis(200)).await;
    shim.kill("", 0).await.expect("it is alive");
    let begin = Instant::now();
    shim.kill("", 9).await.expect("kill");
    // The end is told although what it wrote can't be passed on.
    assert_eq!(shim.wait("").await.exit_status, 137);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // And what it wrote isn't lost: it comes when somebody reads.
    let text = String::from_utf8(read_all(reader).await.expect("reader")).expect("text");
    assert!(text.len() > 100_000 && text.as_bytes().chunks_exact(2).all(|line| line == b"y\n"), "{} bytes", text.len());
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_fifos_of_its_own() {
    let stage = Stage::new().await;
    let mut shim = stage.container("exec", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let (input, output, error) = (stage.fifo("in"), stage.fifo("out"), stage.fifo("err"));
    let (out, err) = (read_all(open_read(&output)), read_all(open_read(&error)));
    let mut stdin = OpenOptions::new().read(true).write(true).open(&input).expect("stdin");
    let stdio = ExecProcessRequest {
        stdin: uri(&input, "fifo", ""),
        stdout: uri(&output, "fifo", "?reader=optional"),
        stderr: uri(&error, "fifo", "?reader=optional"),
        ..ExecProcessRequest::default()
    };
    shim.exec("e", &["sh", "-c", "cat; echo problem >&2; exit 4"], stdio).await.expect("exec");
    stdin.write_all(b"to cat").expect("write");
    // The end of its client's input is the end of its input, without CloseIO.
    drop(stdin);
    assert_eq!(shim.wait("e").await.exit_status, 4);
    assert_eq!(out.await.expect("reader"), b"to cat");
    assert_eq!(err.await.expect("reader"), b"problem\n");
    shim.delete("e").await.expect("delete");
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_dies_stops_nobody() {
    let stage = Stage::new().await;
    let mut shim = stage.container("gone", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let output = stage.fifo("out");
    let reader = open_read(&output);
    let stdio = ExecProcessRequest { stdout: uri(&output, "fifo", "?reader=optional"), ..Default::default() };
    shim.exec("e", &["sh", "-c", "head -c 3000000 /dev/zero; exit 6"], stdio).await.expect("exec");
    drop(reader);
    assert_eq!(shim.wait("e").await.exit_status, 6);
    // The same for one that was gone before.
    let stdio = ExecProcessRequest { stdout: uri(&output, "fifo", "?reader=optional"), ..Default::default() };
    shim.exec("f", &["sh", "-c", "head -c 3000000 /dev/zero; exit 7"], stdio).await.expect("exec");
    assert_eq!(shim.wait("f").await.exit_status, 7);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_keeps_the_pipe_delays_nothing() {
    let stage = Stage::new().await;
    let mut shim = stage.container("child", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let output = stage.fifo("out");
    let out = read_all(open_read(&output));
    let stdio = ExecProcessRequest { stdout: uri(&output, "fifo", "?reader=optional"), ..Default::default() };
    let begin = Instant::now();
    let script = "echo all; (while :; do echo more; sleep 0.1; done) & exit 0";
    shim.exec("e", &["sh", "-c", script], stdio).await.expect("exec");
    assert_eq!(shim.wait("e").await.exit_status, 0);
    // The reader sees the end although somebody still holds the pipe.
    assert!(out.await.expect("reader").starts_with(b"all\n"));
    assert!(begin.elapsed() < Duration::from_millis(1900), "{:?}", begin.elapsed());
    shim.delete("e").await.expect("delete");
    // It writes on and isn't killed by SIGPIPE.
    let init_children = || processes_with("while :; do echo more").len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(init_children(), 1);
    shim.finish().await;
    stage.leaves_nothing().await;
}

async fn attach(shim: &Shim, request: AttachRequest) -> Result<(), tonic::Status> {
    let request = AttachRequest { container_id: shim.id.clone(), ..request };
    shim.streams.clone().attach(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_before_start_nothing_is_missed_and_a_dead_reader_is_dropped() {
    let stage = Stage::new().await;
    let script = "seq 1 100000; sleep 0.2; seq 100001 200000";
    let (mut shim, log) = logged(&stage, "attach", &["sh", "-c", script], "").await;
    let (whole, dying) = (stage.fifo("whole"), stage.fifo("dying"));
    let (reader, mut short) = (open_read(&whole), open_read(&dying));
    for fifo in [&whole, &dying] {
        let request = AttachRequest { stdout: fifo.display().to_string(), ..Default::default() };
        attach(&shim, request).await.expect("attach");
    }
    let reader = read_all(reader);
    shim.start("").await.expect("start");
    short.read_exact(&mut [0; 10]).expect("the beginning");
    drop(short);
    assert_eq!(shim.wait("").await.exit_status, 0);
    let text = String::from_utf8(reader.await.expect("reader")).expect("text");
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(text == expected, "{} bytes of {}", text.len(), expected.len());
    assert!(log_text(&log, "stdout") == expected);
    let late = AttachRequest { stdout: whole.display().to_string(), ..Default::default() };
    assert_eq!(attach(&shim, late).await.unwrap_err().code(), Code::FailedPrecondition);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_stdin_is_kept_open_or_closed_as_asked() {
    let stage = Stage::new().await;
    let log = stage.path("log");
    for (id, close_stdin) in [("keep", false), ("close", true)] {
        let bundle = stage.bundle(id, &["cat"], |_| ());
        let mut shim = stage.shim(id, bundle.clone()).await;
        let mut request = stage.create(id, &bundle);
        (request.stdin, request.stdout) = ("attach:".into(), uri(&log, "json-file", ""));
        shim.create(request).await.expect("create");
        shim.start("").await.expect("start");
        let input = stage.fifo(&format!("in-{id}"));
        let mut stdin = OpenOptions::new().read(true).write(true).open(&input).expect("stdin");
        let request = AttachRequest { stdin: input.display().to_string(), close_stdin, ..Default::default() };
        attach(&shim, request).await.expect("attach");
        stdin.write_all(format!("{id}\n").as_bytes()).expect("write");
        drop(stdin);
        if !close_stdin {
            let text = format!("{id}\n");
            eventually("the echo", || log_text(&log, "stdout").contains(&text).then_some(())).await;
            // A second one comes, and CloseIO takes what it wrote along although it holds its end open.
            let again = stage.fifo("again");
            let mut stdin = OpenOptions::new().read(true).write(true).open(&again).expect("stdin");
            let request = AttachRequest { stdin: again.display().to_string(), ..Default::default() };
            attach(&shim, request).await.expect("attach");
            stdin.write_all(b"again\n").expect("write");
            let close = CloseIoRequest { id: id.into(), exec_id: String::new(), stdin: true };
            shim.task.close_io(close).await.expect("close");
            assert_eq!(shim.wait("").await.exit_status, 0);
        }
        assert_eq!(shim.wait("").await.exit_status, 0);
        shim.finish().await;
    }
    assert_eq!(log_text(&log, "stdout"), "keep\nagain\nclose\n");
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_takes_input() {
    let stage = Stage::new().await;
    let log = stage.path("log");
    let script = "tty; read line; stty size; echo got $line; trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.02; done";
    let bundle = stage.bundle("tty", &["sh", "-c", script], |spec| spec["process"]["terminal"] = true.into());
    let mut shim = stage.shim("tty", bundle.clone()).await;
    let mut request = stage.create("tty", &bundle);
    (request.terminal, request.stdin, request.stdout) = (true, "attach:".into(), uri(&log, "json-file", ""));
    shim.create(request).await.expect("create");
    let resize = |width, height| ResizePtyRequest { id: "tty".into(), exec_id: String::new(), width, height };
    shim.task.resize_pty(resize(101, 43)).await.expect("resize");
    let (input, output) = (stage.fifo("in"), stage.fifo("out"));
    let mut stdin = OpenOptions::new().read(true).write(true).open(&input).expect("stdin");
    let reader = read_all(open_read(&output));
    let request = AttachRequest {
        stdin: input.display().to_string(),
        stdout: output.display().to_string(),
        ..Default::default()
    };
    attach(&shim, request).await.expect("attach");
    shim.start("").await.expect("start");
    stdin.write_all(b"hello\n").expect("write");
    eventually("the trap", || log_text(&log, "stdout").contains("ready").then_some(())).await;
    shim.task.resize_pty(resize(120, 50)).await.expect("resize");
    assert_eq!(shim.wait("").await.exit_status, 9);
    let text = log_text(&log, "stdout");
    // The echo of the input may come before or after the first command's output.
    let rest = text.replacen("/dev/pts/0\r\n", "", 1).replacen("hello\r\n", "", 1);
    assert_eq!(rest, "43 101\r\ngot hello\r\nready\r\n50 120\r\n", "{text}");
    assert!(text.contains("/dev/pts/0\r\n"), "{text}");
    assert_eq!(String::from_utf8(reader.await.expect("reader")).expect("text"), text);
    drop(stdin);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_may_be_closed_and_opened_again() {
    let stage = Stage::new().await;
    let log = stage.path("log");
    // Nobody has the terminal open for a while, as with an init that opens its console anew.
    let script =
        "echo before; name=$(tty); exec 0</dev/null 1>/dev/null 2>/dev/null; sleep 0.3; echo after >$name; exit 3";
    let bundle = stage.bundle("reopen", &["sh", "-c", script], |spec| spec["process"]["terminal"] = true.into());
    let mut shim = stage.shim("reopen", bundle.clone()).await;
    let mut request = stage.create("reopen", &bundle);
    (request.terminal, request.stdout) = (true, uri(&log, "json-file", ""));
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    assert_eq!(shim.wait("").await.exit_status, 3);
    assert_eq!(log_text(&log, "stdout"), "before\r\nafter\r\n");
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_can_have_a_terminal() {
    let stage = Stage::new().await;
    let mut shim = stage.container("ttyexec", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let output = stage.fifo("out");
    let reader = read_all(open_read(&output));
    let stdio = ExecProcessRequest {
        terminal: true,
        stdout: uri(&output, "fifo", "?reader=optional"),
        ..ExecProcessRequest::default()
    };
    shim.exec("e", &["sh", "-c", "tty; seq 1 2000; exit 2"], stdio).await.expect("exec");
    assert_eq!(shim.wait("e").await.exit_status, 2);
    let text = String::from_utf8(reader.await.expect("reader")).expect("text");
    assert!(text.starts_with("/dev/pts/") && text.ends_with("1999\r\n2000\r\n"), "{text}");
    let pipe = ExecProcessRequest::default();
    shim.exec("f", &["sleep", "10"], pipe).await.expect("exec");
    let resize = ResizePtyRequest { id: "ttyexec".into(), exec_id: "f".into(), width: 1, height: 1 };
    // As containerd's shim has it: what has no terminal has no size to set, which is no error.
    shim.task.resize_pty(resize).await.expect("resize");
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_three_megabytes_attached_and_logged() {
    const BYTES: usize = 53_000_000;
    let stage = Stage::new().await;
    // As fast as a program writes: lines of 100 bytes from the page cache.
    let line = format!("{}\n", "0123456789".repeat(10).split_at(99).0);
    fs::write(stage.path("image/data"), line.repeat(BYTES / line.len())).expect("data");
    let (mut shim, log) = logged(&stage, "much", &["cat", "/data"], "").await;
    let output = stage.fifo("out");
    let mut reader = open_read(&output);
    attach(&shim, AttachRequest { stdout: output.display().to_string(), ..Default::default() }).await.expect("attach");
    let counted = tokio::task::spawn_blocking(move || {
        let (mut buffer, mut count) = (vec![0; 1 << 20], 0);
        loop {
            match reader.read(&mut buffer).expect("read") {
                0 if count > 0 => return count,
                read => count += read,
            }
        }
    });
    let begin = Instant::now();
    shim.start("").await.expect("start");
    assert_eq!(counted.await.expect("reader"), BYTES);
    shim.wait("").await;
    eprintln!("53 MB attached and logged: {:?}", begin.elapsed());
    let text = fs::read(&log).expect("log");
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), BYTES / line.len());
    shim.finish().await;
    stage.leaves_nothing().await;
}

/// Seconds of processor time of the shim, in the kernel and out of it.
fn shim_time(stage: &Stage) -> (f64, f64) {
    let folder = stage.folder.path().display().to_string();
    let shims = processes_with(&folder);
    let shim = shims.iter().find(|process| process.contains("-publish-binary")).expect("a shim");
    let pid = shim.split(' ').next().expect("pid");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks") / 100.0;
    (ticks(12), ticks(11))
}

/// What the bench of the whole stack does, less engine and client: 4.8 million lines of 11 bytes, logged and attached.
/// SHIM names the build to be measured; without it nothing is, as figures of a debug build mean nothing.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_three_megabytes_in_short_lines() {
    if std::env::var_os("SHIM").is_none() {
        eprintln!("skipped: SHIM names no build to be measured");
        return;
    }
    for (scheme, options) in [
        ("json-file", "?max-size=20971520&max-file=5"),
        ("json-file", ""),
        ("local", "?max-size=20971520&max-file=5"),
        ("cri", ""),
        ("", ""),
    ] {
        let stage = Stage::new().await;
        let log = stage.path("log");
        let script = "yes 0123456789 | head -c 53000000";
        let bundle = stage.bundle("short", &["sh", "-c", script], |_| ());
        let mut shim = stage.shim("short", bundle.clone()).await;
        let mut request = stage.create("short", &bundle);
        if !scheme.is_empty() {
            request.stdout = uri(&log, scheme, options);
        }
        if let Err(status) = shim.create(request).await {
            eprintln!("{scheme}: {}", status.message());
            shim.shutdown().await;
            continue;
        }
        let output = stage.fifo("out");
        let mut reader = open_read(&output);
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20)).expect("pipe size");
        attach(&shim, AttachRequest { stdout: output.display().to_string(), ..Default::default() })
            .await
            .expect("attach");
        let before = shim_time(&stage);
        let counted = tokio::task::spawn_blocking(move || {
            let (mut buffer, mut count) = (vec![0; 256 << 10], 0);
            loop {
                match reader.read(&mut buffer).expect("read") {
                    0 if count > 0 => return count,
                    read => count += read,
                }
            }
        });
        let begin = Instant::now();
        shim.start("").await.expect("start");
        assert_eq!(counted.await.expect("reader"), 53_000_000);
        shim.wait("").await;
        let (took, after) = (begin.elapsed(), shim_time(&stage));
        let (kernel, user) = (after.0 - before.0, after.1 - before.1);
        eprintln!("{scheme:10} {options:30} {took:.2?}; the shim's processor time: {user:.2} user, {kernel:.2} kernel");
        shim.finish().await;
        stage.leaves_nothing().await;
    }
}
