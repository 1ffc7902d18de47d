//! Every kind of log that the shim writes, as those read it who are to: docker's readers, kubelet, journald, syslog daemons.

mod common;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    net::{TcpListener, UdpSocket},
    os::{
        fd::AsFd as _,
        unix::{
            fs::FileExt as _,
            net::{UnixDatagram, UnixListener},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{Shim, Stage, eventually, log_text, processes_with};
use prost::Message as _;
use proto::berth::streams::v1::ReopenLogRequest;
use tonic::{Code, Status};

/// A container whose two outputs go to `uri`.
async fn create(stage: &Stage, id: &str, args: &[&str], uri: &str) -> Result<Shim, Status> {
    let bundle = stage.bundle(id, args, |_| ());
    let mut shim = stage.shim(id, bundle.clone()).await;
    let mut request = stage.create(id, &bundle);
    (request.stdout, request.stderr) = (uri.into(), uri.into());
    match shim.create(request).await {
        Ok(_) => Ok(shim),
        Err(status) => {
            shim.shutdown().await;
            Err(status)
        }
    }
}

/// Runs a container to its end; gives its exit status and how long it ran.
async fn run(stage: &Stage, id: &str, args: &[&str], uri: &str) -> (u32, Duration) {
    let mut shim = create(stage, id, args, uri).await.expect("create");
    let begin = Instant::now();
    shim.start("").await.expect("start");
    let exit = shim.wait("").await.exit_status;
    let took = begin.elapsed();
    shim.finish().await;
    (exit, took)
}

fn uri(scheme: &str, path: &Path, options: &str) -> String {
    format!("{scheme}://{}{options}", path.display())
}

fn numbers(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

fn unpack(path: &Path) -> Vec<u8> {
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(File::open(path).expect("gzip file")).read_to_end(&mut unpacked).expect("gzip");
    unpacked
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_refused_at_create() {
    let stage = Stage::new().await;
    for (number, (uri, code, text)) in [
        ("gelf://127.0.0.1:1", Code::Unimplemented, "stdio scheme \"gelf\" is not supported"),
        ("json-file:///x?max-sizes=1", Code::InvalidArgument, "\"max-sizes=1\""),
        ("local:///x?mode=lazy", Code::InvalidArgument, "\"mode=lazy\""),
        ("syslog://?address=tcp%2Btls://127.0.0.1:1", Code::InvalidArgument, "address="),
        ("syslog://?address=unix:///no/such", Code::NotFound, "open /no/such for stdout"),
        ("journald:///no/such", Code::NotFound, "open /no/such for stdout"),
        ("cri:///no/such/folder/log", Code::NotFound, "open /no/such/folder/log"),
        ("binary:///no/such", Code::NotFound, "start logging process /no/such"),
    ]
    .into_iter()
    .enumerate()
    {
        let Err(status) = create(&stage, &format!("bad{number}"), &["true"], uri).await else { panic!("{uri}") };
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(text), "{uri}: {}", status.message());
    }
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_files_are_packed_beside_the_output() {
    let stage = Stage::new().await;
    for (id, options) in [("direct", ""), ("ring", "&mode=non-blocking&max-buffer-size=10000000")] {
        let log = stage.path(&format!("{id}.log"));
        let place = uri("json-file", &log, &format!("?max-size=400000&max-file=4&compress=true{options}"));
        // Slow enough that files are packed before they are turned away.
        let script = "for i in 0 1 2 3 4 5; do seq ${i}0000 ${i}9999; sleep 0.1; done";
        assert_eq!(run(&stage, id, &["sh", "-c", script], &place).await.0, 0);
        let mut names: Vec<_> = fs::read_dir(stage.folder.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
            .filter(|name| name.starts_with(&format!("{id}.log")))
            .collect();
        names.sort();
        let expected = ["", ".1.gz", ".2.gz", ".3.gz"].map(|end| format!("{id}.log{end}"));
        assert_eq!(names, expected, "all packed, nothing left over, when the container is removed");
        let mut text = String::new();
        for number in (1..4).rev() {
            let whole = stage.path(&format!("{id}.whole"));
            fs::write(&whole, unpack(&stage.path(&format!("{id}.log.{number}.gz")))).expect("write");
            text.push_str(&log_text(&whole, "stdout"));
        }
        text.push_str(&log_text(&log, "stdout"));
        let all: String = (0..6).flat_map(|i| (i * 10_000..i * 10_000 + 10_000).map(|n| format!("{n}\n"))).collect();
        assert!(text.len() > 60_000 && all.ends_with(&text), "{} bytes: the newest, each once", text.len());
    }
    stage.leaves_nothing().await;
}

/// Docker's record (moby, api/types/plugins/logdriver/entry.proto).
#[derive(Clone, PartialEq, prost::Message)]
struct LogEntry {
    #[prost(string, tag = "1")]
    source: String,
    #[prost(int64, tag = "2")]
    time_nano: i64,
    #[prost(bytes, tag = "3")]
    line: Vec<u8>,
    #[prost(bool, tag = "4")]
    partial: bool,
    #[prost(message, optional, tag = "5")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(bool, tag = "1")]
    last: bool,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(int32, tag = "3")]
    ordinal: i32,
}

/// Reads from the end, as docker does for `--tail`: by the length behind each record.
fn read_backwards(bytes: &[u8]) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    let mut end = bytes.len();
    while end > 0 {
        let length = u32::from_be_bytes(bytes[end - 4..end].try_into().expect("a length")) as usize;
        let begin = end - length - 8;
        assert_eq!(bytes[begin..begin + 4], bytes[end - 4..end], "both lengths are the same");
        entries.push(LogEntry::decode(&bytes[begin + 4..end - 4]).expect("a record"));
        end = begin;
    }
    entries.reverse();
    entries
}

fn text_of(entries: &[LogEntry], source: &str) -> String {
    let mut text = Vec::new();
    for entry in entries.iter().filter(|entry| entry.source == source) {
        assert_eq!(entry.partial, entry.metadata.is_some());
        text.extend_from_slice(&entry.line);
        if entry.metadata.as_ref().is_none_or(|metadata| metadata.last) {
            text.push(b'\n');
        }
    }
    String::from_utf8(text).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_format_is_dockers() {
    let stage = Stage::new().await;
    let log = stage.path("container.log");
    let script = "seq 1 3000; echo problem >&2; head -c 40000 /dev/zero; echo; printf 'no end'";
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").as_nanos() as i64;
    let place = uri("local", &log, "?max-size=20000000&max-file=5&compress=true");
    assert_eq!(run(&stage, "local", &["sh", "-c", script], &place).await.0, 0);
    let entries = read_backwards(&fs::read(&log).expect("log"));
    assert_eq!(text_of(&entries, "stdout"), format!("{}{}\nno end", numbers(1..=3000), "\0".repeat(40000)));
    assert_eq!(text_of(&entries, "stderr"), "problem\n");
    assert!(entries.iter().all(|entry| (before..before + 60_000_000_000).contains(&entry.time_nano)));
    let pieces: Vec<_> = entries.iter().filter_map(|entry| entry.metadata.clone()).collect();
    let orders: Vec<_> = pieces.iter().map(|piece| (piece.ordinal, piece.last)).collect();
    assert_eq!(orders, [(1, false), (2, false), (3, true), (1, false)]);
    assert!(pieces[0].id == pieces[2].id && pieces[0].id != pieces[3].id && pieces[0].id.len() == 64);
    stage.leaves_nothing().await;
}

async fn reopen(shim: &Shim, exec: &str) -> Result<(), Status> {
    let request = ReopenLogRequest { container_id: shim.id.clone(), exec_id: exec.into() };
    shim.streams.clone().reopen_log(request).await.map(drop)
}

fn cri_lines(path: &Path) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(path).expect("log");
    let line = |line: &str| {
        let mut parts = line.splitn(4, ' ');
        let mut next = || parts.next().expect("four parts").to_owned();
        let time = next();
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        (next(), next(), next())
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn cri_logs_are_cut_and_reopened() {
    let stage = Stage::new().await;
    for (id, options) in [("cri", ""), ("criring", "?mode=non-blocking")] {
        let (log, old) = (stage.path(&format!("{id}.log")), stage.path(&format!("{id}.old")));
        let script = "head -c 20000 /dev/zero | tr '\\0' x; echo; echo oops >&2; read go; echo more; printf end";
        let bundle = stage.bundle(id, &["sh", "-c", script], |_| ());
        let mut shim = stage.shim(id, bundle.clone()).await;
        let mut request = stage.create(id, &bundle);
        let input = stage.fifo(&format!("{id}.in"));
        request.stdin = input.display().to_string();
        (request.stdout, request.stderr) = (uri("cri", &log, options), uri("cri", &log, options));
        shim.create(request).await.expect("create");
        shim.start("").await.expect("start");
        eventually("the first lines", || (fs::read(&log).is_ok_and(|text| text.ends_with(b"oops\n"))).then_some(()))
            .await;
        // As kubelet does it: rename, then ask.
        fs::rename(&log, &old).expect("rename");
        reopen(&shim, "").await.expect("reopen");
        assert_eq!(fs::read(&log).expect("it is there with the answer"), b"");
        fs::write(&input, "\n").expect("go");
        assert_eq!(shim.wait("").await.exit_status, 0);
        let part = |stream: &str, tag: &str, text: &str| (stream.to_owned(), tag.to_owned(), text.to_owned());
        let first = cri_lines(&old);
        let of = |name: &str| first.iter().filter(|line| line.0 == name).cloned().collect::<Vec<_>>();
        let expected = [part("stdout", "P", &"x".repeat(16384)), part("stdout", "F", &"x".repeat(20000 - 16384))];
        assert_eq!((of("stdout"), of("stderr")), (expected.to_vec(), vec![part("stderr", "F", "oops")]));
        assert_eq!(cri_lines(&log), [part("stdout", "F", "more"), part("stdout", "P", "end")]);
        assert_eq!(reopen(&shim, "").await.expect_err("it has ended").code(), Code::FailedPrecondition);
        shim.finish().await;
    }
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_are_reopened() {
    let stage = Stage::new().await;
    let mut shim = stage.container("nofile", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let status = reopen(&shim, "").await.expect_err("no file");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reopen(&shim, "none").await.expect_err("no exec").code(), Code::NotFound);
    shim.finish().await;
    let raw = stage.path("raw");
    let mut shim =
        create(&stage, "raw", &["sh", "-c", "echo 1; sleep 100"], &uri("file", &raw, "")).await.expect("create");
    shim.start("").await.expect("start");
    eventually("output", || (fs::read(&raw).is_ok_and(|text| text == b"1\n")).then_some(())).await;
    fs::rename(&raw, stage.path("raw.old")).expect("rename");
    reopen(&shim, "").await.expect("reopen");
    assert_eq!(fs::read(&raw).expect("new file"), b"");
    shim.finish().await;
    stage.leaves_nothing().await;
}

/// A file system that is full soon.
struct Small(PathBuf);

impl Small {
    fn new(stage: &Stage, size: &str) -> Self {
        let path = stage.path("small");
        fs::create_dir(&path).expect("folder");
        let options = format!("size={size}");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), flags, Some(options.as_str())).expect("mount");
        Self(path)
    }

    fn fill(&self) {
        let file = File::create(self.0.join("filler")).expect("create");
        let mut at = 0;
        while file.write_at(&[0; 4096], at).is_ok() {
            at += 4096;
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_nobody_and_what_was_lost_is_counted() {
    let stage = Stage::new().await;
    let small = Small::new(&stage, "256k");
    for (id, scheme) in [("full", "json-file"), ("fulllocal", "local")] {
        let log = small.0.join(id);
        let input = stage.fifo(&format!("{id}.in"));
        let script = "echo first; read go; seq 1 20000; echo done >&2; read go; echo last";
        let bundle = stage.bundle(id, &["sh", "-c", script], |_| ());
        let mut shim = stage.shim(id, bundle.clone()).await;
        let mut request = stage.create(id, &bundle);
        let error = stage.path(&format!("{id}.err"));
        request.stdin = input.display().to_string();
        (request.stdout, request.stderr) = (uri(scheme, &log, ""), uri("file", &error, ""));
        shim.create(request).await.expect("create");
        shim.start("").await.expect("start");
        eventually("the first line", || (fs::metadata(&log).is_ok_and(|log| log.len() > 0)).then_some(())).await;
        small.fill();
        fs::write(&input, "\n").expect("go");
        // It got through all of its output although its log takes none of it.
        eventually("the end of the lines", || (fs::read(&error).is_ok_and(|text| text == b"done\n")).then_some(()))
            .await;
        fs::remove_file(small.0.join("filler")).expect("make room");
        fs::write(&input, "\n").expect("go");
        assert_eq!(shim.wait("").await.exit_status, 0);
        shim.finish().await;
        let entries: Vec<(String, String)> = if scheme == "local" {
            let entries = read_backwards(&fs::read(&log).expect("log"));
            entries.into_iter().map(|entry| (entry.source, String::from_utf8(entry.line).expect("text"))).collect()
        } else {
            // One line may have been cut: it stands alone.
            let text = fs::read_to_string(&log).expect("log");
            let whole = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let field = |entry: &serde_json::Value, name: &str| entry[name].as_str().expect(name).trim_end().to_owned();
            whole.map(|entry| (field(&entry, "stream"), field(&entry, "log"))).collect()
        };
        let out: Vec<_> = entries.iter().filter(|entry| entry.0 == "stdout").map(|entry| entry.1.as_str()).collect();
        assert_eq!((out.first(), out.last()), (Some(&"first"), Some(&"last")));
        let mark = &entries.iter().find(|entry| entry.0 == "stderr").expect("a mark").1;
        let lost: usize = mark.split(' ').nth(1).expect("a number").parse().expect("a number");
        assert!(mark.contains("could not be written"), "{mark}");
        assert_eq!(lost + out.len(), 20_002, "{mark}");
        fs::remove_file(&log).expect("remove");
    }
    drop(small);
    stage.leaves_nothing().await;
}

type Fields = HashMap<String, Vec<u8>>;

fn fields(mut message: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !message.is_empty() {
        let end = message.iter().position(|byte| matches!(byte, b'=' | b'\n')).expect("a name");
        let name = String::from_utf8(message[..end].to_vec()).expect("name");
        let (value, rest) = if message[end] == b'=' {
            let stop = message.iter().position(|byte| *byte == b'\n').expect("the end of a field");
            (&message[end + 1..stop], &message[stop + 1..])
        } else {
            let length = u64::from_le_bytes(message[end + 1..end + 9].try_into().expect("a length")) as usize;
            assert_eq!(message[end + 9 + length], b'\n');
            (&message[end + 9..end + 9 + length], &message[end + 10 + length..])
        };
        assert!(fields.insert(name, value.to_vec()).is_none());
        message = rest;
    }
    fields
}

/// One message of a journal that we play; large ones come as a sealed file.
fn receive(journal: &UnixDatagram) -> Fields {
    let mut buffer = vec![0; 1 << 20];
    let (count, files) = sys::fd::recv_fds(journal, &mut buffer).expect("a message");
    let Some(file) = files.into_iter().next() else { return fields(&buffer[..count]) };
    assert_eq!(count, 0);
    let seals = nix::fcntl::fcntl(file.as_fd(), nix::fcntl::FcntlArg::F_GET_SEALS).expect("seals");
    assert_eq!(seals, 0b1111, "nobody can change it any more");
    let file = File::from(file);
    let mut content = vec![0; file.metadata().expect("size").len() as usize];
    file.read_exact_at(&mut content, 0).expect("content");
    fields(&content)
}

fn journal(path: &Path) -> UnixDatagram {
    let journal = UnixDatagram::bind(path).expect("bind");
    journal.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    journal
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_gets_dockers_fields() {
    let stage = Stage::new().await;
    let socket = stage.path("journal");
    let journal = journal(&socket);
    let options = "?tag=t%20g&name=web&image=img:1&attr.com.example.key=two%0Alines";
    let id = "0123456789abcdef0123";
    let script = "echo hello; sleep 0.1; echo error >&2; sleep 0.1; head -c 20000 /dev/zero | tr '\\0' x; echo";
    let mut shim = create(&stage, id, &["sh", "-c", script], &uri("journald", &socket, options)).await.expect("create");
    shim.start("").await.expect("start");
    let messages = tokio::task::spawn_blocking(move || (0..4).map(|_| receive(&journal)).collect::<Vec<_>>());
    assert_eq!(shim.wait("").await.exit_status, 0);
    let messages = messages.await.expect("reader");
    let text = |number: usize, name: &str| {
        messages[number].get(name).map(|value| String::from_utf8(value.clone()).expect("text")).unwrap_or_default()
    };
    for number in 0..4 {
        for (name, value) in [
            ("CONTAINER_ID", "0123456789ab"),
            ("CONTAINER_ID_FULL", id),
            ("CONTAINER_NAME", "web"),
            ("CONTAINER_TAG", "t g"),
            ("SYSLOG_IDENTIFIER", "t g"),
            ("IMAGE_NAME", "img:1"),
            ("COM_EXAMPLE_KEY", "two\nlines"),
        ] {
            assert_eq!(text(number, name), value);
        }
        assert_eq!(text(number, "CONTAINER_LOG_ORDINAL"), (number + 1).to_string());
        assert!(text(number, "SYSLOG_TIMESTAMP").ends_with('Z'));
    }
    assert_eq!((text(0, "MESSAGE"), text(0, "PRIORITY")), ("hello".into(), "6".into()));
    assert_eq!((text(1, "MESSAGE"), text(1, "PRIORITY")), ("error".into(), "3".into()));
    assert_eq!(text(2, "MESSAGE") + &text(3, "MESSAGE"), "x".repeat(20_000));
    let partial =
        |number| ["MESSAGE", "ORDINAL", "LAST"].map(|name| text(number, &format!("CONTAINER_PARTIAL_{name}")));
    assert_eq!(partial(2), ["true", "1", "false"]);
    assert_eq!(partial(3), ["", "2", "true"]);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_datagram_holds_goes_to_the_journal_as_a_sealed_file() {
    let stage = Stage::new().await;
    let socket = stage.path("journal");
    let journal = journal(&socket);
    let long = "v".repeat(400_000);
    let place = uri("journald", &socket, &format!("?attr.large={long}"));
    let mut shim = create(&stage, "large", &["echo", "hello"], &place).await.expect("create");
    shim.start("").await.expect("start");
    let message = tokio::task::spawn_blocking(move || receive(&journal)).await.expect("reader");
    assert_eq!((message["MESSAGE"].as_slice(), message["LARGE"].len()), (&b"hello"[..], long.len()));
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_away_stops_nobody_and_hears_what_it_missed() {
    let stage = Stage::new().await;
    let socket = stage.path("journal");
    let first = journal(&socket);
    let (input, error) = (stage.fifo("in"), stage.path("err"));
    let script = "echo first; read go; seq 1 50000; echo done >&2; read go; echo last";
    let bundle = stage.bundle("away", &["sh", "-c", script], |_| ());
    let mut shim = stage.shim("away", bundle.clone()).await;
    let mut request = stage.create("away", &bundle);
    request.stdin = input.display().to_string();
    (request.stdout, request.stderr) = (uri("journald", &socket, "?max-buffer-size=20000"), uri("file", &error, ""));
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    let text = |message: &Fields| String::from_utf8(message["MESSAGE"].clone()).expect("text");
    assert_eq!(text(&receive(&first)), "first");
    drop(first);
    fs::remove_file(&socket).expect("remove");
    fs::write(&input, "\n").expect("go");
    eventually("the end of the lines", || (fs::read(&error).is_ok_and(|text| text == b"done\n")).then_some(())).await;
    let second = journal(&socket);
    let (mut seen, mut lost) = (0, 0);
    let mut go = Some(input);
    loop {
        let message = text(&receive(&second));
        if message == "last" {
            break;
        }
        match message.parse::<u32>() {
            // What the ring held is whole and in order.
            Ok(number) => seen = if number == seen + 1 { number } else { panic!("{number} after {seen}") },
            Err(_) => {
                lost = message.split(' ').nth(1).expect("a number").parse().expect("a number");
                assert!(message.contains("were dropped here"), "{message}");
                fs::write(go.take().expect("one mark"), "\n").expect("go");
            }
        }
    }
    assert_eq!(seen + lost, 50_000);
    assert!(seen > 100);
    assert_eq!(shim.wait("").await.exit_status, 0);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_never_comes_back_delays_no_end() {
    let stage = Stage::new().await;
    let socket = stage.path("journal");
    drop(journal(&socket));
    // The socket is there and refuses, as between stop and start of journald.
    let (exit, took) = run(&stage, "never", &["sh", "-c", "seq 1 100000; exit 5"], &uri("journald", &socket, "")).await;
    assert_eq!(exit, 5);
    assert!(took < Duration::from_secs(2), "{took:?}");
    stage.leaves_nothing().await;
}

/// The parts of a message behind its priority, which is checked.
fn syslog_parts(message: &str, priority: u32) -> &str {
    message.strip_prefix(&format!("<{priority}>")).unwrap_or_else(|| panic!("{priority}: {message}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_by_every_way_and_in_every_format() {
    let stage = Stage::new().await;
    let host = nix::unistd::gethostname().expect("host").into_string().expect("name");
    let script = "echo out; sleep 0.1; echo err >&2";
    let check = |messages: [String; 2], format: &str, facility: u32, tag: &str| {
        for (message, (severity, text)) in messages.iter().zip([(6, "out"), (3, "err")]) {
            let rest = syslog_parts(message, facility * 8 + severity);
            let rest = rest.strip_suffix(&format!("{text}\n")).unwrap_or_else(|| panic!("{message}"));
            let words: Vec<_> = rest.split_whitespace().collect();
            let pid = |word: &str| assert!(word.trim_matches(['[', ']', ':']).parse::<u32>().is_ok(), "{message}");
            match format {
                "" | "rfc3164" => {
                    assert!(
                        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
                            .contains(&words[0])
                    );
                    assert_eq!(words[2].len(), "07:08:09".len());
                    if format == "rfc3164" {
                        assert_eq!((words[3], words.len()), (host.as_str(), 5), "{message}");
                    }
                    pid(words[words.len() - 1].strip_prefix(tag).expect("tag"));
                }
                _ => {
                    assert_eq!((words[0], words[2], words[3], words[5], words[6]), ("1", host.as_str(), tag, tag, "-"));
                    pid(words[4]);
                    assert_eq!(words[1].contains('.'), format == "rfc5424micro", "{message}");
                }
            }
        }
    };
    let receive = |socket: &UnixDatagram| {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..count].to_vec()).expect("text")
    };
    let path = stage.path("log");
    let daemon = journal(&path);
    let place = format!("syslog://?address=unixgram://{}", path.display());
    assert_eq!(run(&stage, "unixgram", &["sh", "-c", script], &place).await.0, 0);
    check([receive(&daemon), receive(&daemon)], "", 3, "unixgram");
    // `unix` is a stream where there is one, and else what there is.
    let place = format!("syslog://?address=unix://{}&format=rfc3164&facility=local7&tag=me", path.display());
    assert_eq!(run(&stage, "unixdgram", &["sh", "-c", script], &place).await.0, 0);
    check([receive(&daemon), receive(&daemon)], "rfc3164", 23, "me");
    let path = stage.path("stream");
    let listener = UnixListener::bind(&path).expect("bind");
    let place = format!("syslog://?address=unix://{}&format=rfc5424", path.display());
    assert_eq!(run(&stage, "unix", &["sh", "-c", script], &place).await.0, 0);
    let mut lines = BufReader::new(listener.accept().expect("connection").0).lines();
    let mut next = || format!("{}\n", lines.next().expect("a line").expect("a line"));
    check([next(), next()], "rfc5424", 3, "unix");
    let daemon = UdpSocket::bind("127.0.0.1:0").expect("bind");
    daemon.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let place = format!("syslog://?address=udp://{}&format=rfc5424micro", daemon.local_addr().expect("address"));
    assert_eq!(run(&stage, "udp", &["sh", "-c", script], &place).await.0, 0);
    let receive = || {
        let mut buffer = [0; 4096];
        let count = daemon.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..count].to_vec()).expect("text")
    };
    check([receive(), receive()], "rfc5424micro", 3, "udp");
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syslog_peer_that_reads_nothing_stops_nobody() {
    let stage = Stage::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let place = format!("syslog://?address=tcp://{}&tag=slow", listener.local_addr().expect("address"));
    let reader = std::thread::spawn(move || listener.accept().expect("a connection").0);
    let script = "head -c 30000000 /dev/zero | tr '\\0' '\\n'; sleep 1; echo last; exit 4";
    let mut shim = create(&stage, "slow", &["sh", "-c", script], &place).await.expect("create");
    shim.start("").await.expect("start");
    let connection = tokio::task::spawn_blocking(move || reader.join().expect("connection")).await.expect("join");
    let begin = Instant::now();
    assert_eq!(shim.wait("").await.exit_status, 4);
    // 30 million messages would be 1.5 GB; a second is the script's own, two the log's at the end.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let memory = fs::read_to_string(format!("/proc/{}/status", shim_pid(&stage))).expect("status");
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("number");
    assert!(peak < 24_000, "a bounded ring: {peak} kB");
    drop(connection);
    shim.finish().await;
    stage.leaves_nothing().await;
}

fn shim_pid(stage: &Stage) -> u32 {
    let folder = stage.folder.path().display().to_string();
    let shims = processes_with(&folder);
    let shim = shims.iter().find(|process| process.contains("-publish-binary")).expect("a shim");
    shim.split(' ').next().expect("pid").parse().expect("pid")
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_over_tcp_survives_a_daemon_that_is_started_again() {
    let stage = Stage::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let input = stage.fifo("in");
    let bundle = stage.bundle("tcp", &["sh", "-c", "echo first; while read line; do echo $line; done"], |_| ());
    let mut shim = stage.shim("tcp", bundle.clone()).await;
    let mut request = stage.create("tcp", &bundle);
    (request.stdin, request.stdout) = (input.display().to_string(), format!("syslog://?address=tcp://{address}"));
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    let line = |listener: TcpListener| {
        tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(listener.accept().expect("connection").0).read_line(&mut line).expect("line");
            line
        })
    };
    assert!(line(listener).await.expect("reader").ends_with("]: first\n"));
    // Connection and listener are gone. A message or two may get lost in the old connection, as always with syslog.
    let listener = {
        let mut attempt = 0;
        loop {
            fs::write(&input, format!("try{attempt}\n")).expect("write");
            attempt += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if attempt == 5 {
                break TcpListener::bind(address).expect("bind again");
            }
        }
    };
    assert!(line(listener).await.expect("reader").contains("]: try"));
    shim.finish().await;
    stage.leaves_nothing().await;
}

fn script(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let path = stage.path(name);
    testing::executable(&path, format!("#!/bin/sh\nexport PATH=/bin:/usr/bin\n{text}\n"));
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logging_process_gets_both_streams_and_ends_with_its_container() {
    let stage = Stage::new().await;
    let out = stage.path("logged");
    let text = "echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $#:$1=$2\" >$2.env; exec 5>&-; cat <&3 >$2.out & cat <&4 >$2.err & wait";
    let logger = script(&stage, "logger", text);
    let place = uri("binary", &logger, &format!("?file={}", out.display()));
    assert_eq!(run(&stage, "bin", &["sh", "-c", "seq 1 50000; echo oops >&2"], &place).await.0, 0);
    let read = |end: &str| fs::read_to_string(stage.path(&format!("logged.{end}"))).expect(end);
    assert_eq!(read("env"), format!("bin {} 2:file={}\n", common::NAMESPACE, out.display()));
    assert!(read("out") == numbers(1..=50000), "complete when the container is removed");
    assert_eq!(read("err"), "oops\n");
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logging_process_that_dies_or_hangs_stops_nobody() {
    let stage = Stage::new().await;
    let lines = ["sh", "-c", "seq 1 1000000; exit 7"];
    for (name, text, most) in [
        ("dies", "exec 5>&-; head -n 3 <&3 >/dev/null", 10),
        ("hangs", "exec 5>&-; trap '' TERM; exec sleep 1098765 3<&3 4<&4", 10),
    ] {
        let logger = script(&stage, name, text);
        let mut shim = create(&stage, name, &lines, &uri("binary", &logger, "")).await.expect("create");
        let begin = Instant::now();
        shim.start("").await.expect("start");
        assert_eq!(shim.wait("").await.exit_status, 7);
        assert!(begin.elapsed() < Duration::from_secs(most), "{name}: {:?}", begin.elapsed());
        if name == "hangs" {
            // It ignores what it is asked; it isn't left behind all the same.
            let hanging = || processes_with("sleep 1098765").len();
            assert_eq!(hanging(), 1);
            shim.finish().await;
            assert_eq!(hanging(), 0);
        } else {
            shim.finish().await;
        }
    }
    // One that doesn't come up is an error of create.
    let logger = script(&stage, "fails", "exit 1");
    let gone = create(&stage, "fails", &["true"], &uri("binary", &logger, "")).await;
    // containerd takes the end of the pipe for readiness, and so do its loggers.
    gone.expect("the end of the pipe is readiness").finish().await;
    stage.leaves_nothing().await;
}
