//! Both sides against each other, and receivers against senders that mean harm.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use filesync::{
    index::Index,
    mode,
    receive::{Options, ReceiveError, Received, receive},
    send::{Filter, SendError, send},
};
use proptest::prelude::*;
use proto::fsutil::types::{Packet, Stat, packet::PacketType};
use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tokio::sync::mpsc;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// Sends one folder into another.
fn sync(
    from: &Path,
    to: &Path,
    filter: &Filter,
    known: Index,
) -> (Result<Received, ReceiveError>, Result<(), SendError>) {
    let options = Options { known, digests: true, ..Options::default() };
    runtime().block_on(async {
        let (a_out, b_in) = mpsc::channel(256);
        let (b_out, a_in) = mpsc::channel(256);
        let (received, sent) = tokio::join!(receive(open(to), b_in, b_out, options), send(from, filter, a_in, a_out));
        (received, sent)
    })
}

fn sync_well(from: &Path, to: &Path, known: Index) -> Received {
    let (received, sent) = sync(from, to, &Filter::default(), known);
    sent.unwrap();
    received.unwrap()
}

/// All that is to be the same on both sides.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, folder: &Path, all: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let content = match () {
                () if kind.is_file() => format!("{:?}", fs::read(&path).unwrap()),
                () if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                () => format!("{kind:?}"),
            };
            let text = format!(
                "{:o} {}:{} {}.{:09} {} {} {content}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.mtime(),
                stat.mtime_nsec(),
                if kind.is_dir() { 0 } else { stat.nlink() },
                if kind.is_dir() { 0 } else { stat.rdev() },
            );
            all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            if kind.is_dir() {
                walk(root, &path, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

#[derive(Debug, Clone)]
enum Node {
    File { content: Vec<u8>, mode: u32 },
    Folder { mode: u32 },
    Link(String),
    HardLink(usize),
    Pipe,
}

/// Paths with what is there: names that sort differently with and without slashes.
fn trees() -> impl Strategy<Value = Vec<(String, Node)>> {
    let name = prop::sample::select(vec!["a", "b", "a-b", "a.b", "A", "ü", "a b", ".x", "z"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let node = prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..300), prop::sample::select(vec![0o644, 0o755, 0o600, 0o4755, 0o444]))
            .prop_map(|(content, mode)| Node::File { content, mode }),
        3 => prop::sample::select(vec![0o755, 0o700, 0o1777, 0o2755]).prop_map(|mode| Node::Folder { mode }),
        1 => "[a-z./]{1,12}".prop_map(Node::Link),
        1 => (0..20usize).prop_map(Node::HardLink),
        1 => Just(Node::Pipe),
    ];
    prop::collection::vec((path, node), 0..25)
}

fn build(root: &Path, tree: &[(String, Node)]) {
    let mut files: Vec<PathBuf> = Vec::new();
    for (path, node) in tree {
        let path = root.join(path);
        if fs::create_dir_all(path.parent().unwrap()).is_err() || fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        let parent = path.parent().unwrap().canonicalize().unwrap();
        if !parent.starts_with(root.canonicalize().unwrap()) {
            continue;
        }
        match node {
            Node::File { content, mode } => {
                fs::write(&path, content).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                files.push(path);
            }
            Node::Folder { mode } => {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Node::Link(to) => symlink(to, &path).unwrap(),
            Node::HardLink(which) if !files.is_empty() => fs::hard_link(&files[which % files.len()], &path).unwrap(),
            Node::HardLink(_) => {}
            Node::Pipe => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_folder_becomes_any_other(first in trees(), second in trees()) {
        let (one, two, to) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
        build(one.path(), &first);
        build(two.path(), &second);
        let received = sync_well(one.path(), to.path(), Index::default());
        prop_assert_eq!(describe(one.path()), describe(to.path()));
        // The same again: nothing is asked for, nothing is written.
        let again = sync_well(one.path(), to.path(), received.index.clone());
        prop_assert_eq!((again.fetched, again.removed, again.changed), (0, 0, false));
        prop_assert_eq!(again.index.digest(), received.index.digest());
        let decoded = Index::decode(&again.index.encode());
        prop_assert_eq!(decoded.as_ref(), Some(&again.index));
        // With what a look at the folder tells, which has no digests, it comes to the same.
        let scanned = Index::scan(open(to.path())).unwrap();
        let third = sync_well(one.path(), to.path(), scanned);
        prop_assert_eq!(third.index.digest(), received.index.digest());
        let other = sync_well(two.path(), to.path(), third.index);
        // A folder's time alone is no change.
        if other.changed {
            prop_assert_eq!(describe(two.path()), describe(to.path()));
        }
        let fresh = TempDir::new().unwrap();
        prop_assert_eq!(other.index.digest(), sync_well(two.path(), fresh.path(), Index::default()).index.digest());
    }
}

fn paths(root: &Path) -> Vec<String> {
    describe(root).keys().map(|path| path.to_str().unwrap().to_owned()).collect()
}

#[test]
fn filters() {
    let from = TempDir::new().unwrap();
    for folder in ["src/deep", "docs/x", "target", "empty", "links"] {
        fs::create_dir_all(from.path().join(folder)).unwrap();
    }
    for file in ["src/main.rs", "src/deep/lib.rs", "docs/a.md", "docs/x/b.md", "target/out", "README.md", "links/real"]
    {
        fs::write(from.path().join(file), file).unwrap();
    }
    symlink("../src/deep", from.path().join("links/code")).unwrap();
    symlink("/docs/a.md", from.path().join("top")).unwrap();
    symlink("loop", from.path().join("loop")).unwrap();
    symlink("../../../../etc/passwd", from.path().join("out")).unwrap();
    type Words<'a> = &'a [&'a str];
    let cases: &[(Words, Words, Words, Words)] = &[
        (
            &[],
            &["target", "links", "loop", "out", "top"],
            &[],
            &[
                "README.md",
                "docs",
                "docs/a.md",
                "docs/x",
                "docs/x/b.md",
                "empty",
                "src",
                "src/deep",
                "src/deep/lib.rs",
                "src/main.rs",
            ],
        ),
        (&[], &["*", "!docs/x"], &[], &["docs", "docs/x", "docs/x/b.md"]),
        (&[], &["**", "!**/*.rs"], &[], &["src", "src/deep", "src/deep/lib.rs", "src/main.rs"]),
        (&["src/*.rs"], &[], &[], &["src", "src/main.rs"]),
        (&["**/b.md", "empty"], &[], &[], &["docs", "docs/x", "docs/x/b.md", "empty"]),
        (&["src", "docs"], &["**/*.md", "src/deep"], &[], &["docs", "docs/x", "src", "src/main.rs"]),
        (&["nothing"], &[], &[], &[]),
        (&[], &[], &["links/code/lib.rs"], &["links", "links/code", "src", "src/deep", "src/deep/lib.rs"]),
        (&[], &[], &["top"], &["docs", "docs/a.md", "top"]),
        (&[], &[], &["t*"], &["docs", "docs/a.md", "target", "target/out", "top"]),
        (&["README.md"], &[], &["loop", "out", "none"], &["README.md", "loop", "out"]),
    ];
    for (include, exclude, follow, expected) in cases {
        let to = TempDir::new().unwrap();
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let filter =
            Filter { include: words(include), exclude: words(exclude), follow: words(follow), owned_by_root: true };
        let (received, sent) = sync(from.path(), to.path(), &filter, Index::default());
        sent.unwrap();
        received.unwrap();
        assert_eq!(paths(to.path()), *expected, "{include:?} {exclude:?} {follow:?}");
    }
    let bad = Filter { exclude: vec!["[".into()], ..Filter::default() };
    let to = TempDir::new().unwrap();
    let (received, sent) = sync(from.path(), to.path(), &bad, Index::default());
    assert_eq!(proto::kind::chain(&sent.unwrap_err()), "invalid exclude patterns: [: syntax error in pattern");
    assert!(matches!(received, Err(ReceiveError::Refused(text)) if text.contains("syntax error in pattern")));
}

#[test]
fn sockets_stay_where_they_are() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("s")).unwrap();
    fs::write(from.path().join("f"), "x").unwrap();
    assert!(fs::metadata(from.path().join("s")).unwrap().file_type().is_socket());
    sync_well(from.path(), to.path(), Index::default());
    assert_eq!(paths(to.path()), ["f"]);
}

#[test]
fn large_files_and_many() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for i in 0..2000 {
        let folder = from.path().join(format!("d{}", i % 40));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("f{i}")), format!("content {i}")).unwrap();
    }
    let large: Vec<u8> = (0..9_000_001_u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(from.path().join("large"), &large).unwrap();
    let begun = std::time::Instant::now();
    let received = sync_well(from.path(), to.path(), Index::default());
    let first = begun.elapsed();
    assert_eq!((received.entries, received.fetched), (2041, 2001));
    assert_eq!(fs::read(to.path().join("large")).unwrap(), large);
    let begun = std::time::Instant::now();
    let again = sync_well(from.path(), to.path(), received.index);
    eprintln!("first {first:?}, unchanged {:?}", begun.elapsed());
    assert!(!again.changed);
    fs::write(from.path().join("d7/f7"), "changed!").unwrap();
    let third = sync_well(from.path(), to.path(), again.index);
    assert_eq!((third.fetched, third.bytes, third.removed), (1, 8, 0));
}

#[test]
fn attributes_travel() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(from.path().join("f"), "x").unwrap();
    let path = |root: &Path| std::ffi::CString::new(root.join("f").to_str().unwrap()).unwrap();
    if sys::xattr::lset(&path(from.path()), c"user.berth", b"yes").is_err() {
        eprintln!("no attributes on this file system");
        return;
    }
    sys::xattr::lset(&path(from.path()), c"trusted.berth", b"no").unwrap();
    let received = sync_well(from.path(), to.path(), Index::default());
    assert_eq!(sys::xattr::lget(&path(to.path()), c"user.berth").unwrap().as_deref(), Some(&b"yes"[..]));
    assert_eq!(sys::xattr::lget(&path(to.path()), c"trusted.berth").unwrap(), None);
    sys::xattr::lset(&path(from.path()), c"user.berth", b"changed").unwrap();
    assert!(sync_well(from.path(), to.path(), received.index).changed);
    assert_eq!(sys::xattr::lget(&path(to.path()), c"user.berth").unwrap().as_deref(), Some(&b"changed"[..]));
}

fn stat(path: &str, mode: u32, size: i64, link: &str) -> Packet {
    let stat = Stat { path: path.into(), mode, size, linkname: link.into(), ..Stat::default() };
    Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() }
}

fn end() -> Packet {
    Packet { r#type: PacketType::PacketStat.into(), ..Packet::default() }
}

fn data(id: u32, data: &'static [u8]) -> Packet {
    Packet { r#type: PacketType::PacketData.into(), id, data: data.into(), ..Packet::default() }
}

fn fin() -> Packet {
    Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() }
}

/// What a receiver says to packets that come whatever it answers.
fn hostile(to: &Path, packets: Vec<Packet>) -> Result<Received, ReceiveError> {
    runtime().block_on(async {
        let (sender, incoming) = mpsc::channel(packets.len().max(1));
        let (outgoing, _answers) = mpsc::channel(1000);
        for packet in packets {
            sender.send(packet).await.unwrap();
        }
        drop(sender);
        receive(open(to), incoming, outgoing, Options::default()).await
    })
}

#[test]
fn senders_that_mean_harm() {
    let outside = TempDir::new().unwrap();
    let victim = outside.path().join("victim");
    let folder = |name: &str| stat(name, mode::DIR | 0o755, 0, "");
    let out = outside.path().to_str().unwrap().to_owned();
    let cases: Vec<(&str, Vec<Packet>, &str)> = vec![
        ("up", vec![stat("../victim", 0o644, 0, "")], "invalid path"),
        ("up further down", vec![folder("a"), stat("a/../../victim", 0o644, 0, "")], "invalid path"),
        ("absolute", vec![stat(victim.to_str().unwrap(), 0o644, 0, "")], "invalid path"),
        ("dot", vec![folder(".")], "invalid path"),
        ("empty", vec![folder("")], "invalid path"),
        ("slash at the end", vec![folder("a/")], "invalid path"),
        ("zero", vec![stat("a\0b", 0o644, 0, "")], "invalid path"),
        ("twice", vec![stat("a", 0o644, 0, ""), stat("a", 0o644, 0, "")], "out of order"),
        ("order", vec![stat("b", 0o644, 0, ""), stat("a", 0o644, 0, "")], "out of order"),
        ("order of slashes", vec![folder("a"), stat("a-b", 0o644, 0, ""), stat("a/b", 0o644, 0, "")], "out of order"),
        ("no folder", vec![stat("a/b", 0o644, 0, "")], "in no folder"),
        ("below a file", vec![stat("a", 0o644, 0, ""), stat("a/b", 0o644, 0, "")], "in no folder"),
        (
            "below a link",
            vec![stat("a", mode::SYMLINK | 0o777, 0, &out), stat("a/victim", 0o644, 0, "")],
            "in no folder",
        ),
        ("hard link out", vec![stat("a", 0o644, 0, "../x")], "unknown path"),
        ("hard link to what comes later", vec![stat("a", 0o644, 0, "b"), stat("b", 0o644, 0, "")], "unknown path"),
        ("hard link to a folder", vec![folder("a"), stat("b", 0o644, 0, "a")], "unknown path"),
        (
            "hard link to a link",
            vec![stat("a", mode::SYMLINK | 0o777, 0, "/etc/passwd"), stat("b", 0o644, 0, "a")],
            "unknown path",
        ),
        ("link to nothing", vec![stat("a", mode::SYMLINK | 0o777, 0, "")], "link to nothing"),
        ("type", vec![stat("a", mode::SOCKET | 0o777, 0, "")], "unknown mode"),
        ("two types", vec![stat("a", mode::DIR | mode::SYMLINK, 0, "x")], "unknown mode"),
        ("size", vec![stat("a", 0o644, -1, "")], "the size -1"),
        ("long name", vec![stat(&"x".repeat(256), 0o644, 0, "")], "too long"),
        ("long path", vec![stat(&"x/".repeat(2100), 0o644, 0, "")], "too long"),
        ("unasked", vec![stat("a", 0o644, 5, ""), data(7, b"x")], "nobody asked for"),
        ("unasked folder", vec![folder("a"), data(0, b"x")], "nobody asked for"),
        (
            "more after its end",
            vec![stat("a", 0o644, 1, ""), data(0, b"x"), data(0, b""), data(0, b"x")],
            "nobody asked for",
        ),
        ("files after the end", vec![stat("b", 0o644, 1, ""), end(), stat("c", 0o644, 0, "")], "after the last one"),
        ("early end", vec![stat("a", 0o644, 1, ""), end(), fin()], "ends before"),
        ("late data", vec![end(), data(0, b"x")], "after the end"),
        ("short", vec![stat("a", 0o644, 3, ""), end(), data(0, b"x"), data(0, b"")], "1 bytes of the 3"),
        ("questions", vec![Packet { r#type: PacketType::PacketReq.into(), ..Packet::default() }], "asks for files"),
        ("gone", vec![stat("a", 0o644, 3, ""), end(), data(0, b"x")], "the sender has gone"),
        ("gone at once", vec![], "the sender has gone"),
        ("no FIN", vec![end()], "the sender has gone"),
    ];
    for (name, packets, expected) in cases {
        let to = TempDir::new().unwrap();
        let error = hostile(to.path(), packets).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(!victim.exists(), "{name}");
        let left: Vec<String> = paths(to.path()).into_iter().filter(|path| path.contains(".berth-")).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let path = prop::sample::select(vec![
        "a",
        "a/b",
        "a/b/c",
        "b",
        "..",
        "../out",
        "a/../../out",
        "/out",
        "a/",
        "",
        ".",
        "c",
        "a/link",
        "a/link/out",
        "x\0y",
    ]);
    let kind = prop::sample::select(vec![
        0,
        mode::DIR,
        mode::SYMLINK,
        mode::NAMED_PIPE,
        mode::SOCKET,
        mode::IRREGULAR,
        mode::DIR | mode::SYMLINK,
        u32::MAX,
    ]);
    let link = prop::sample::select(vec!["", "", "a", "a/b", "..", "../out", "/", "b"]);
    let one = (path, kind, prop::sample::select(vec![0, 1, 5, -1, i64::MAX]), link);
    prop_oneof![
        6 => one.prop_map(|(path, kind, size, link)| stat(path, kind | 0o644, size, link)),
        3 => (0..6_u32, prop::sample::select(vec![&b""[..], b"x", b"12345"])).prop_map(|(id, part)| data(id, part)),
        1 => Just(end()),
        1 => Just(fin()),
        1 => (-2..9_i32).prop_map(|kind| Packet { r#type: kind, ..Packet::default() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_sender_says_stays_in_the_folder(packets in prop::collection::vec(any_packet(), 0..16)) {
        let outer = TempDir::new().unwrap();
        let to = outer.path().join("to");
        fs::create_dir(&to).unwrap();
        let result = hostile(&to, packets);
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
        let left: Vec<String> = paths(&to).into_iter().filter(|path| path.contains(".berth-")).collect();
        prop_assert!(left.is_empty(), "{:?}", left);
        if let Ok(received) = result {
            prop_assert_eq!(received.entries as usize, paths(&to).len());
        }
    }
}

#[test]
fn a_file_without_end() {
    let to = TempDir::new().unwrap();
    let megabyte: &'static [u8] = vec![0; 1 << 20].leak();
    let mut packets = vec![stat("a", 0o644, 1, ""), end()];
    packets.extend((0..70).map(|_| data(0, megabyte)));
    let error = hostile(to.path(), packets).unwrap_err().to_string();
    assert!(error.contains("has no end"), "{error}");
    assert!(paths(to.path()).is_empty());
}

#[test]
fn links_that_are_in_the_way() {
    let (outside, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(outside.path().join("f"), "mine").unwrap();
    // A folder of somebody else's, as `--output type=local` writes into: its links aren't followed.
    symlink(outside.path(), to.path().join("d")).unwrap();
    symlink(outside.path().join("f"), to.path().join("f")).unwrap();
    fs::create_dir_all(to.path().join("x/y")).unwrap();
    let from = TempDir::new().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "theirs").unwrap();
    fs::write(from.path().join("f"), "theirs").unwrap();
    fs::write(from.path().join("x"), "theirs").unwrap();
    sync_well(from.path(), to.path(), Index::default());
    assert_eq!(fs::read_to_string(outside.path().join("f")).unwrap(), "mine");
    assert_eq!(describe(from.path()), describe(to.path()));
}

#[test]
fn what_was_there_before_stays() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(to.path().join("other"), "stays").unwrap();
    fs::write(from.path().join("f"), "new").unwrap();
    sync_well(from.path(), to.path(), Index::default());
    assert_eq!(paths(to.path()), ["f", "other"]);
}

#[test]
fn a_folder_that_is_made_only_when_it_is_needed() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "x").unwrap();
    let index = sync_well(from.path(), to.path(), Index::default()).index;
    let run = |known: Index| {
        let (made, asked) = std::sync::mpsc::channel();
        let (path, from) = (to.path().to_owned(), from.path().to_owned());
        let folder = filesync::receive::Folder::later(move || {
            made.send(()).unwrap();
            Ok((open(&path), ()))
        });
        let options = Options { known, digests: true, ..Options::default() };
        runtime().block_on(async {
            let ((a_out, b_in), (b_out, a_in)) = (mpsc::channel(8), mpsc::channel(8));
            let filter = Filter::default();
            let (received, sent) =
                tokio::join!(receive(folder, b_in, b_out, options), send(&from, &filter, a_in, a_out));
            sent.unwrap();
            (received.unwrap(), asked.try_iter().count())
        })
    };
    let (received, asked) = run(index);
    assert_eq!((received.changed, asked), (false, 0));
    fs::remove_file(from.path().join("d/f")).unwrap();
    let (received, asked) = run(received.index);
    assert_eq!((received.changed, received.removed, asked), (true, 1, 1));
    assert_eq!(describe(from.path()), describe(to.path()));
}

#[test]
fn senders_answer_only_what_they_have_told() {
    let from = TempDir::new().unwrap();
    fs::write(from.path().join("f"), "secret").unwrap();
    fs::write(from.path().join("g"), "12345").unwrap();
    let cases: &[(&[u32], &str)] = &[(&[7], "invalid file id 7"), (&[1, 1], "invalid file id 1")];
    for (questions, expected) in cases {
        runtime().block_on(async {
            let ((out, mut packets), (answers, incoming)) = (mpsc::channel::<Packet>(64), mpsc::channel::<Packet>(8));
            let filter = Filter { exclude: vec!["f".into()], ..Filter::default() };
            let ask = async {
                while packets.recv().await.is_some_and(|packet: Packet| packet.stat.is_some()) {}
                for id in *questions {
                    // It counts from 0: g alone is told of.
                    let id = if *id == 1 { 0 } else { *id };
                    let request = Packet { r#type: PacketType::PacketReq.into(), id, ..Packet::default() };
                    let _ = answers.send(request).await;
                }
                while packets.recv().await.is_some() {}
            };
            let (sent, ()) = tokio::join!(send(from.path(), &filter, incoming, out), ask);
            let error = sent.unwrap_err().to_string();
            assert!(error.contains(&expected.replace("id 1", "id 0")), "{error}");
        });
    }
}

#[test]
fn files_that_vanish_or_shrink_are_told_of() {
    for shrink in [false, true] {
        let from = TempDir::new().unwrap();
        let file = from.path().join("f");
        fs::write(&file, "12345").unwrap();
        runtime().block_on(async {
            let ((out, mut packets), (answers, incoming)) = (mpsc::channel::<Packet>(64), mpsc::channel::<Packet>(8));
            let ask = async {
                while packets.recv().await.is_some_and(|packet: Packet| packet.stat.is_some()) {}
                if shrink {
                    fs::write(&file, "1").unwrap();
                } else {
                    fs::remove_file(&file).unwrap();
                }
                let request = Packet { r#type: PacketType::PacketReq.into(), ..Packet::default() };
                answers.send(request).await.unwrap();
                let mut told = String::new();
                while let Some(packet) = packets.recv().await {
                    if packet.r#type() == PacketType::PacketErr {
                        told = String::from_utf8(packet.data.to_vec()).unwrap();
                    }
                }
                told
            };
            let filter = Filter::default();
            let (sent, told) = tokio::join!(send(from.path(), &filter, incoming, out), ask);
            let expected = if shrink {
                "f changed while it was sent: 1 bytes of the 5 that it had"
            } else {
                "read f: No such file"
            };
            assert!(told.starts_with(expected), "{told}");
            assert_eq!(proto::kind::chain(&sent.unwrap_err()), told);
        });
    }
}
