//! Several readers at once, slow ones among them; and what a process may do with its own end of stdio.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use common::{Shim, Stage, eventually, log_text, processes_with};
use proto::{
    berth::streams::v1::{AttachRequest, Lag},
    containerd::task::v3::{CloseIoRequest, ResizePtyRequest},
};

/// Opens the read end as an engine does, before the call.
fn open_read(path: &Path) -> File {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).expect("read end");
    // Only opening must not wait.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).expect("blocking");
    file
}

/// Reads to the end, in pieces with a pause after each.
fn read_slowly(mut file: File, piece: usize, pause: Duration) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; piece]);
        loop {
            match file.read(&mut buffer).expect("read") {
                0 => return bytes,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
            std::thread::sleep(pause);
        }
    })
}

async fn attach(shim: &Shim, stdout: &Path, lag: Lag) {
    let stdout = stdout.display().to_string();
    let request = AttachRequest { container_id: shim.id.clone(), stdout, lag: lag.into(), ..Default::default() };
    shim.streams.clone().attach(request).await.expect("attach");
}

/// A container that logs, and reads stdin from the FIFO that is given back.
async fn logged(stage: &Stage, id: &str, args: &[&str]) -> (Shim, std::path::PathBuf, std::path::PathBuf) {
    let (log, input) = (stage.path(&format!("{id}.log")), stage.fifo(&format!("{id}.in")));
    let bundle = stage.bundle(id, args, |_| ());
    let mut shim = stage.shim(id, bundle.clone()).await;
    let mut request = stage.create(id, &bundle);
    request.stdin = input.display().to_string();
    request.stdout = format!("cri://{}", log.display());
    request.stderr = request.stdout.clone();
    shim.create(request).await.expect("create");
    (shim, log, input)
}

const SIZE: usize = 30_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_came_later_slow_nobody_down_and_learn_what_they_missed() {
    let stage = Stage::new().await;
    let script = format!("read go; yes {} | head -c {SIZE}; sleep 0.2; echo last", "x".repeat(99));
    let (mut shim, _, input) = logged(&stage, "later", &["sh", "-c", &script]).await;
    shim.start("").await.expect("start");
    let fifos = ["fast", "stuck", "slow"].map(|name| stage.fifo(name));
    let [fast, mut stuck, slow] = fifos.each_ref().map(|fifo| open_read(fifo));
    for fifo in &fifos {
        attach(&shim, fifo, Lag::Unspecified).await;
    }
    let fast = read_slowly(fast, 1 << 20, Duration::ZERO);
    let slow = read_slowly(slow, 1 << 16, Duration::from_millis(20));
    let begin = Instant::now();
    fs::write(&input, "\n").expect("go");
    assert_eq!(shim.wait("").await.exit_status, 0);
    // One of them never reads and the other one at 3 MB/s; together they may cost a second.
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let check = |name: &str, bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).expect("text");
        let (mut got, mut missed, mut marks) = (0, 0, 0);
        for line in text.lines() {
            match line.strip_prefix("[berth: ") {
                Some(rest) => {
                    missed += rest.split(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("number");
                    marks += 1;
                }
                None => got += line.len() + 1,
            }
        }
        // A mark within a line has a line feed of its own in front.
        let all = SIZE + "last\n".len();
        assert!((all..=all + marks).contains(&(got + missed)), "{name}: {got} and {missed}, {marks} marks");
        missed
    };
    assert_eq!(check("fast", fast.await.expect("reader")), 0, "who reads gets all of it");
    assert!(check("slow", slow.await.expect("reader")) > 1_000_000);
    let mut rest = Vec::new();
    stuck.read_to_end(&mut rest).expect("what its pipe held, and the mark");
    assert!(check("stuck", rest) > 20_000_000);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_that_runs_the_process_gets_every_byte_however_slow() {
    let stage = Stage::new().await;
    for (id, lag, before) in [("first", Lag::Unspecified, true), ("asked", Lag::Wait, false)] {
        let (mut shim, _, input) = logged(&stage, id, &["sh", "-c", "read go; seq 1 1000000"]).await;
        let fifo = stage.fifo(&format!("{id}.out"));
        let mut reader = open_read(&fifo);
        if before {
            attach(&shim, &fifo, lag).await;
        }
        shim.start("").await.expect("start");
        if !before {
            attach(&shim, &fifo, lag).await;
        }
        fs::write(&input, "\n").expect("go");
        // As a pager does: one screen, then nothing for a while. 6.9 MB don't fit into pipes and FIFO.
        let mut screen = vec![0; 1000];
        reader.read_exact(&mut screen).expect("a screen");
        tokio::time::sleep(Duration::from_millis(600)).await;
        shim.kill("", 0).await.expect("it waits");
        let rest = read_slowly(reader, 1 << 16, Duration::from_millis(1));
        assert_eq!(shim.wait("").await.exit_status, 0);
        let text = [screen, rest.await.expect("reader")].concat();
        let expected: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
        assert!(text == expected.as_bytes(), "{} bytes of {}", text.len(), expected.len());
        shim.finish().await;
    }
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_may_be_larger_than_any_pipe() {
    let stage = Stage::new().await;
    let script = "sleep 0.3; read line; echo $line; dd bs=1000 2>/dev/null | wc -c";
    let (mut shim, log, input) = logged(&stage, "stdin", &["sh", "-c", script]).await;
    shim.start("").await.expect("start");
    let writer = tokio::task::spawn_blocking(move || {
        let mut writer = OpenOptions::new().write(true).open(input).expect("stdin");
        writer.write_all(b"beginning\n").expect("write");
        writer.write_all(&vec![b'x'; 5_000_000]).expect("write");
    });
    writer.await.expect("all of it was taken");
    let close = CloseIoRequest { id: "stdin".into(), exec_id: String::new(), stdin: true };
    shim.task.close_io(close).await.expect("close");
    assert_eq!(shim.wait("").await.exit_status, 0);
    let text = fs::read_to_string(&log).expect("log");
    let lines: Vec<_> = text.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(lines, ["beginning", "5000000"]);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_close_its_output_and_go_on() {
    let stage = Stage::new().await;
    let script = "echo before; exec >&-; echo still >&2; read go; exit 3";
    let (mut shim, log, input) = logged(&stage, "closed", &["sh", "-c", script]).await;
    let fifo = stage.fifo("out");
    let reader = open_read(&fifo);
    attach(&shim, &fifo, Lag::Unspecified).await;
    shim.start("").await.expect("start");
    // Its reader sees the end while it runs.
    assert_eq!(read_slowly(reader, 100, Duration::ZERO).await.expect("reader"), b"before\n");
    shim.kill("", 0).await.expect("it is alive");
    let late =
        AttachRequest { container_id: "closed".into(), stdout: fifo.display().to_string(), ..Default::default() };
    let _reader = open_read(&fifo);
    let refused = shim.streams.clone().attach(late).await.expect_err("there is nothing to attach to");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    fs::write(&input, "\n").expect("go");
    assert_eq!(shim.wait("").await.exit_status, 3);
    assert!(fs::read_to_string(&log).expect("log").ends_with(" stderr F still\n"));
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_init_left_with_its_output_open_delays_nothing() {
    let stage = Stage::new().await;
    let log = stage.path("log");
    // Without a pid namespace of its own the child outlives init, until the shim kills what is left.
    let script = "(trap '' TERM HUP; while :; do echo more; sleep 0.05; done) & echo all; exit 6";
    let bundle = stage.bundle("left", &["sh", "-c", script], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let mut shim = stage.shim("left", bundle.clone()).await;
    let mut request = stage.create("left", &bundle);
    request.stdout = format!("json-file://{}", log.display());
    shim.create(request).await.expect("create");
    let fifo = stage.fifo("out");
    let reader = open_read(&fifo);
    attach(&shim, &fifo, Lag::Unspecified).await;
    shim.start("").await.expect("start");
    let reader = read_slowly(reader, 1000, Duration::ZERO);
    let begin = Instant::now();
    assert_eq!(shim.wait("").await.exit_status, 6);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert!(String::from_utf8(reader.await.expect("the end")).expect("text").contains("all\n"));
    assert!(log_text(&log, "stdout").contains("all\n"));
    shim.finish().await;
    assert!(processes_with("while :; do echo more; sleep 0.05").is_empty());
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_logged_and_shown_to_two_clients_at_once() {
    let stage = Stage::new().await;
    let log = stage.path("log");
    let script = "read line; stty size; echo $line | tr a-z A-Z; exit 2";
    let bundle = stage.bundle("tty", &["sh", "-c", script], |spec| spec["process"]["terminal"] = true.into());
    let mut shim = stage.shim("tty", bundle.clone()).await;
    let mut request = stage.create("tty", &bundle);
    (request.terminal, request.stdin) = (true, "attach:".into());
    request.stdout = format!("cri://{}", log.display());
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    let resize = ResizePtyRequest { id: "tty".into(), exec_id: String::new(), width: 99, height: 11 };
    shim.task.resize_pty(resize).await.expect("resize");
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    for name in ["one", "two"] {
        let (input, output) = (stage.fifo(&format!("{name}.in")), stage.fifo(&format!("{name}.out")));
        writers.push(OpenOptions::new().read(true).write(true).open(&input).expect("stdin"));
        let reader = open_read(&output);
        let request = AttachRequest {
            container_id: "tty".into(),
            stdin: input.display().to_string(),
            stdout: output.display().to_string(),
            ..Default::default()
        };
        shim.streams.clone().attach(request).await.expect("attach");
        readers.push(read_slowly(reader, 1000, Duration::ZERO));
    }
    // Both write to the same terminal.
    writers[0].write_all(b"from one ").expect("write");
    eventually("the echo", || (fs::read_to_string(&log).is_ok()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    writers[1].write_all(b"and two\n").expect("write");
    assert_eq!(shim.wait("").await.exit_status, 2);
    let expected = "from one and two\r\n11 99\r\nFROM ONE AND TWO\r\n";
    for reader in readers {
        assert_eq!(String::from_utf8(reader.await.expect("reader")).expect("text"), expected);
    }
    let text = fs::read_to_string(&log).expect("log");
    let lines: String =
        text.lines().filter_map(|line| line.split_once(" stdout F ")).map(|line| format!("{}\n", line.1)).collect();
    assert_eq!(lines.replace('\r', ""), expected.replace('\r', ""));
    shim.finish().await;
    stage.leaves_nothing().await;
}
