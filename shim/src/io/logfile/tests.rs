use super::*;
use proptest::prelude::*;

struct Writer(LogFile, Lines);

impl Writer {
    fn write(&mut self, data: &[u8]) {
        self.0.write(&mut self.1, data);
    }
}

fn writer(folder: &Path, max_size: Option<u64>, max_files: u32) -> Writer {
    let place = Place { max_size, max_files, ..Place::new(folder.join("c-json.log")) };
    Writer(LogFile::open(place, Format::json(&[])).expect("log"), Lines::new(Stream::Stdout))
}

fn entries(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("log");
    assert!(text.is_empty() || text.ends_with('\n'));
    let entry =
        |line| serde_json::from_str::<serde_json::Value>(line).expect("json")["log"].as_str().map(str::to_owned);
    text.lines().map(|line| entry(line).expect("log field")).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("entry").file_name().into_string().expect("name");
    let mut names: Vec<_> = fs::read_dir(folder).expect("list").map(name).collect();
    names.sort();
    names
}

#[test]
fn files_turn_at_the_size_and_the_oldest_goes() {
    let folder = tempfile::tempdir().expect("folder");
    let mut log = writer(folder.path(), Some(200), 3);
    for number in 0..20 {
        log.write(format!("line {number}\nsame read {number}\n").as_bytes());
    }
    assert_eq!(names(folder.path()), ["c-json.log", "c-json.log.1", "c-json.log.2"]);
    let mut all = Vec::new();
    for name in ["c-json.log.2", "c-json.log.1", "c-json.log"] {
        let path = folder.path().join(name);
        assert!(fs::metadata(&path).expect("size").len() < 300);
        all.extend(entries(&path));
    }
    let expected: Vec<_> = (0..20).flat_map(|n| [format!("line {n}\n"), format!("same read {n}\n")]).collect();
    assert!(all.len() > 5 && expected.ends_with(&all), "the newest lines, each once: {all:?}");
}

#[test]
fn large_files_turn_at_the_size_and_nothing_between_is_missing() {
    const LIMIT: u64 = (1 << 20) + 4321;
    let folder = tempfile::tempdir().expect("folder");
    let mut log = writer(folder.path(), Some(LIMIT), 3);
    let lines: Vec<String> = (0..80_000).map(|n| format!("{n:0width$}\n", width = 1 + n % 40)).collect();
    // Reads end within lines.
    for piece in lines.concat().as_bytes().chunks(64 << 10) {
        log.write(piece);
    }
    assert_eq!(names(folder.path()), ["c-json.log", "c-json.log.1", "c-json.log.2"]);
    let mut all = Vec::new();
    for name in ["c-json.log.2", "c-json.log.1", "c-json.log"] {
        let path = folder.path().join(name);
        let size = fs::metadata(&path).expect("size").len();
        // The entry that makes it full is the last one.
        assert!(size < LIMIT + 200 && (size >= LIMIT || name == "c-json.log"), "{name}: {size}");
        all.extend(entries(&path));
    }
    assert!(all.len() > 10_000 && lines.ends_with(&all), "{} lines", all.len());
}

#[test]
fn a_single_file_begins_anew() {
    let folder = tempfile::tempdir().expect("folder");
    let mut log = writer(folder.path(), Some(100), 1);
    for number in 0..9 {
        log.write(format!("line {number}\n").as_bytes());
    }
    let all = entries(&folder.path().join("c-json.log"));
    assert!(all.len() < 9 && all.last().is_some_and(|line| line == "line 8\n"), "{all:?}");
}

#[test]
fn an_existing_log_is_continued() {
    let folder = tempfile::tempdir().expect("folder");
    writer(folder.path(), None, 1).write(b"before\n");
    writer(folder.path(), None, 1).write(b"after\n");
    assert_eq!(entries(&folder.path().join("c-json.log")), ["before\n", "after\n"]);
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_when_asked() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, old) = (folder.path().join("c-json.log"), folder.path().join("old"));
    let mut log = writer(folder.path(), None, 1);
    log.write(b"one\nhal");
    fs::rename(&path, &old).expect("rename");
    log.write(b"f\n");
    log.0.reopen().expect("reopen");
    log.write(b"two\n");
    assert_eq!((entries(&old), entries(&path)), (vec!["one\n".into(), "half\n".into()], vec!["two\n".into()]));
}

/// Plays the packer: what it makes is told from what it had.
fn pack(log: &mut LogFile) -> bool {
    let Some((source, target)) = log.pack_request() else { return false };
    let text = fs::read(source).expect("source");
    fs::write(target, text).expect("target");
    true
}

#[test]
fn files_may_turn_while_one_is_packed() {
    let folder = tempfile::tempdir().expect("folder");
    let place = Place { max_size: Some(1), max_files: 4, compress: true, ..Place::new(folder.path().join("l")) };
    fs::write(folder.path().join("l.gz.tmp"), "left over").expect("write");
    let mut log = Writer(LogFile::open(place, Format::Cri).expect("log"), Lines::new(Stream::Stdout));
    assert_eq!(names(folder.path()), ["l"]);
    let text = |name: &str| {
        let text = fs::read_to_string(folder.path().join(name)).expect("read");
        text.trim_end().rsplit(' ').next().expect("word").to_owned()
    };
    log.write(b"a\n");
    assert!(!pack(&mut log.0), "nothing has turned");
    log.write(b"b\n");
    assert!(pack(&mut log.0) && !pack(&mut log.0), "one at a time");
    log.write(b"c\n");
    log.0.packed(true);
    assert_eq!(names(folder.path()), ["l", "l.1", "l.2.gz"]);
    assert_eq!((text("l"), text("l.1"), text("l.2.gz")), ("c".into(), "b".into(), "a".into()));
    assert!(pack(&mut log.0));
    for line in [b"d\n", b"e\n", b"f\n"] {
        log.write(line);
    }
    // What was being packed has been turned away.
    log.0.packed(true);
    assert_eq!(names(folder.path()), ["l", "l.1", "l.2", "l.3"]);
    assert!(pack(&mut log.0));
    log.0.packed(false);
    assert!(!pack(&mut log.0), "what failed is tried again after the next turn");
    assert_eq!((text("l.3"), names(folder.path()).len()), ("c".into(), 4));
    log.write(b"g\n");
    assert!(pack(&mut log.0));
    log.0.packed(true);
    assert_eq!(
        (text("l.3.gz"), names(folder.path())),
        ("d".into(), ["l", "l.1", "l.2", "l.3.gz"].map(str::to_owned).into())
    );
}

proptest! {
    #[test]
    fn however_it_is_read_the_text_is_the_same(pieces in proptest::collection::vec("[a\n]{0,40}", 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), Some(300), 1000);
        for piece in &pieces {
            log.write(piece.as_bytes());
        }
        log.0.finish(&mut log.1);
        let mut numbers: Vec<u32> = names(folder.path()).iter()
            .filter_map(|name| name.strip_prefix("c-json.log.")?.parse().ok())
            .collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let mut text: String =
            numbers.iter().flat_map(|n| entries(&folder.path().join(format!("c-json.log.{n}")))).collect();
        text.extend(entries(&folder.path().join("c-json.log")));
        prop_assert_eq!(text, pieces.concat());
    }
}
