//! File operations on plain folders: they take any open root.

use super::{actions, owner::Databases, *};
use pb::file_action::Action;
use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A source and a target in a folder of their own, with something beside them that nobody may touch.
struct Roots {
    folder: tempfile::TempDir,
}

impl Roots {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["source", "target"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("canary"), "alive").unwrap();
        Self { folder }
    }

    fn source(&self, path: &str) -> PathBuf {
        self.folder.path().join("source").join(path)
    }

    fn target(&self, path: &str) -> PathBuf {
        self.folder.path().join("target").join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.source(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn perform(&self, action: impl Into<Work>) -> Result<(), String> {
        let open = |path: PathBuf| OwnedFd::from(File::open(path).unwrap());
        let (source, target) = (open(self.source("")), open(self.target("")));
        let databases = Databases { users: Some(&target), groups: Some(&target) };
        let action = action.into().0;
        let work = || actions::perform(Some(&action), &target, Some(&source), databases, &Stop::default());
        let done = std::thread::scope(|scope| {
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).unwrap().join().unwrap()
        });
        assert_eq!(fs::read_to_string(self.folder.path().join("canary")).unwrap(), "alive");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 3, "something was made outside");
        done.map_err(|error| error.to_string())
    }

    /// All that is in the target: path, and what it is.
    fn shown(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.target(""), Path::new(""), &mut found);
        found
    }
}

fn list(root: &Path, path: &Path, found: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(root.join(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = path.join(name);
        let facts = fs::symlink_metadata(root.join(&path)).unwrap();
        let text = path.display();
        if facts.is_dir() {
            found.push(format!("{text}/"));
            list(root, &path, found);
        } else if facts.is_symlink() {
            found.push(format!("{text} -> {}", fs::read_link(root.join(&path)).unwrap().display()));
        } else if facts.is_file() {
            found.push(format!("{text} = {}", fs::read_to_string(root.join(&path)).unwrap()));
        } else {
            found.push(format!("{text} !"));
        }
    }
}

struct Work(Action);

impl From<pb::FileActionCopy> for Work {
    fn from(action: pb::FileActionCopy) -> Self {
        Self(Action::Copy(action))
    }
}

impl From<pb::FileActionMkDir> for Work {
    fn from(action: pb::FileActionMkDir) -> Self {
        Self(Action::Mkdir(action))
    }
}

impl From<pb::FileActionMkFile> for Work {
    fn from(action: pb::FileActionMkFile) -> Self {
        Self(Action::Mkfile(action))
    }
}

impl From<pb::FileActionRm> for Work {
    fn from(action: pb::FileActionRm) -> Self {
        Self(Action::Rm(action))
    }
}

impl From<pb::FileActionSymlink> for Work {
    fn from(action: pb::FileActionSymlink) -> Self {
        Self(Action::Symlink(action))
    }
}

/// As a Dockerfile's COPY says it.
fn copy(src: &str, dest: &str) -> pb::FileActionCopy {
    pb::FileActionCopy {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        timestamp: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..pb::FileActionCopy::default()
    }
}

#[test]
fn where_copies_go() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("/a", "/b", &["b = 1"]),
        ("/a", "/b/", &["b/", "b/a = 1"]),
        ("/a", "/x/y/z", &["x/", "x/y/", "x/y/z = 1"]),
        ("/a", "/", &["a = 1"]),
        ("/d", "/", &["e/", "e/g = 3", "f = 2"]),
        ("/d", "/t", &["t/", "t/e/", "t/e/g = 3", "t/f = 2"]),
        ("/d/", "/t/", &["t/", "t/e/", "t/e/g = 3", "t/f = 2"]),
        ("/", "/t", &["t/", "t/a = 1", "t/d/", "t/d/e/", "t/d/e/g = 3", "t/d/f = 2", "t/l -> a"]),
        ("/l", "/b", &["b = 1"]),
        ("/d/*", "/t/", &["t/", "t/f = 2", "t/g = 3"]),
        ("/?", "/t/", &["t/", "t/a = 1", "t/e/", "t/e/g = 3", "t/f = 2", "t/l = 1"]),
        ("/none*", "/t/", &[]),
        ("/../../a", "/../../b", &["b = 1"]),
    ];
    for (from, to, expected) in cases {
        let roots = Roots::new();
        roots.write("a", "1");
        roots.write("d/f", "2");
        roots.write("d/e/g", "3");
        symlink("a", roots.source("l")).unwrap();
        roots.perform(copy(from, to)).unwrap();
        assert_eq!(roots.shown(), *expected, "{from} {to}");
    }
}

#[test]
fn folders_themselves_without_contents() {
    let roots = Roots::new();
    roots.write("d/f", "2");
    let whole = |to: &str| pb::FileActionCopy { dir_copy_contents: false, ..copy("/d", to) };
    roots.perform(whole("/new")).unwrap();
    roots.perform(whole("/new")).unwrap();
    assert_eq!(roots.shown(), ["new/", "new/d/", "new/d/f = 2", "new/f = 2"]);
}

#[test]
fn what_is_there_is_replaced_by_its_kind() {
    let roots = Roots::new();
    roots.write("file", "new");
    roots.write("tree/file", "new");
    fs::create_dir_all(roots.target("folder/file")).unwrap();
    fs::write(roots.target("plain"), "old").unwrap();
    fs::hard_link(roots.target("plain"), roots.target("other")).unwrap();
    symlink("other", roots.target("link")).unwrap();
    let error = |action: pb::FileActionCopy| roots.perform(action).unwrap_err();
    assert_eq!(error(copy("/tree", "/folder")), "cannot replace to directory /folder/file with file");
    assert_eq!(error(copy("/tree", "/plain")), "cannot copy to non-directory: /plain");
    assert_eq!(error(copy("/nothing", "/")), "lstat /nothing: no such file or directory");
    roots.perform(copy("/file", "/plain")).unwrap();
    assert_eq!(fs::read_to_string(roots.target("other")).unwrap(), "old", "the other name of what was there");
    // The path that was asked for is followed, inside.
    roots.perform(copy("/file", "/link")).unwrap();
    assert_eq!(fs::read_to_string(roots.target("other")).unwrap(), "new");
    let replacing =
        |from: &str, to: &str| pb::FileActionCopy { always_replace_existing_dest_paths: true, ..copy(from, to) };
    roots.perform(replacing("/tree", "/folder")).unwrap();
    roots.perform(replacing("/tree", "/plain")).unwrap();
    let expected = ["folder/", "folder/file = new", "link -> other", "other = new", "plain/", "plain/file = new"];
    assert_eq!(roots.shown(), expected);
}

#[test]
fn facts_go_along() {
    let roots = Roots::new();
    roots.write("d/set", "x");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::set_permissions(roots.source("d/set"), Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(roots.source("d/set"), Some(7), Some(8)).unwrap();
    fs::set_permissions(roots.source("d/set"), Permissions::from_mode(0o6755)).unwrap();
    File::open(roots.source("d/set")).unwrap().set_modified(time).unwrap();
    fs::hard_link(roots.source("d/set"), roots.source("d/same")).unwrap();
    symlink("/nowhere", roots.source("d/link")).unwrap();
    let fifo = nix::sys::stat::Mode::from_bits_truncate(0o640);
    nix::unistd::mkfifo(&roots.source("d/fifo"), fifo).unwrap();
    let device = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&roots.source("d/null"), nix::sys::stat::SFlag::S_IFCHR, fifo, device).unwrap();
    let attribute = std::ffi::CString::new(roots.source("d/set").to_str().unwrap()).unwrap();
    let has_attributes = sys::xattr::lset(&attribute, c"user.note", b"kept").is_ok();
    fs::set_permissions(roots.source("d"), Permissions::from_mode(0o1700)).unwrap();
    File::open(roots.source("d")).unwrap().set_modified(time).unwrap();
    roots.perform(copy("/", "/")).unwrap();
    let facts = |path: &str| fs::symlink_metadata(roots.target(path)).unwrap();
    let set = facts("d/set");
    assert_eq!((set.mode() & 0o7777, set.uid(), set.gid(), set.modified().unwrap()), (0o6755, 7, 8, time));
    assert_eq!(facts("d/same").ino(), set.ino());
    assert_eq!((facts("d").mode() & 0o7777, facts("d").modified().unwrap()), (0o1700, time));
    assert!(facts("d/fifo").file_type().is_fifo());
    assert_eq!((facts("d/null").rdev(), facts("d/null").mode() & 0o7777), (device, 0o640));
    assert_eq!(fs::read_link(roots.target("d/link")).unwrap(), Path::new("/nowhere"));
    if has_attributes {
        let copied = std::ffi::CString::new(roots.target("d/set").to_str().unwrap()).unwrap();
        assert_eq!(sys::xattr::lget(&copied, c"user.note"), Ok(Some(b"kept".to_vec())));
    }
}

#[test]
fn owner_mode_and_time_as_asked_for() {
    let roots = Roots::new();
    roots.write("d/f", "x");
    fs::create_dir(roots.target("etc")).unwrap();
    fs::write(roots.target("etc/passwd"), "root:x:0:0::/:\nweb:x:33:34::/:\n").unwrap();
    fs::write(roots.target("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
    let named = |name: &str| {
        let user = pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.into(), input: 0 });
        Some(pb::UserOpt { user: Some(user) })
    };
    let number = |id| Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) });
    for (user, group, expected) in [
        (named("web"), None, (33, 34)),
        (named("web"), named("staff"), (33, 50)),
        (named("nobody"), None, (0, 0)),
        (number(1234), None, (1234, 1234)),
        (number(1234), number(5), (1234, 5)),
    ] {
        let owner = Some(pb::ChownOpt { user, group });
        let asked = pb::FileActionCopy { owner, mode: 0o4711, timestamp: 5_000_000_007, ..copy("/d", "/made/here") };
        roots.perform(asked).unwrap();
        for path in ["made", "made/here", "made/here/f"] {
            let facts = fs::metadata(roots.target(path)).unwrap();
            assert_eq!((facts.uid(), facts.gid()), expected, "{path}");
        }
        let facts = fs::metadata(roots.target("made/here/f")).unwrap();
        assert_eq!((facts.mode() & 0o7777, facts.mtime(), facts.mtime_nsec()), (0o4711, 5, 7));
        fs::remove_dir_all(roots.target("made")).unwrap();
    }
    let symbolic = pb::FileActionCopy { mode_str: "u=rwX,go=".into(), ..copy("/", "/made") };
    roots.perform(symbolic).unwrap();
    assert_eq!(fs::metadata(roots.target("made/d")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(roots.target("made/d/f")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn users_files_that_are_none() {
    let roots = Roots::new();
    roots.write("f", "x");
    fs::create_dir(roots.target("etc")).unwrap();
    let user = pb::user_opt::User::ByName(pb::NamedUserOpt { name: "web".into(), input: 0 });
    let owner = Some(pb::ChownOpt { user: Some(pb::UserOpt { user: Some(user) }), group: None });
    let asked = || pb::FileActionCopy { owner: owner.clone(), ..copy("/f", "/g") };
    nix::unistd::mkfifo(&roots.target("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(roots.perform(asked()).unwrap_err().contains("not a regular file"));
    fs::remove_file(roots.target("etc/passwd")).unwrap();
    File::create(roots.target("etc/passwd")).unwrap().set_len(2 << 30).unwrap();
    assert!(roots.perform(asked()).unwrap_err().contains("larger than"));
    fs::remove_file(roots.target("etc/passwd")).unwrap();
    // Never the machine's own.
    symlink("../../../../../../../../etc/passwd", roots.target("etc/passwd")).unwrap();
    roots.perform(asked()).unwrap_err();
}

#[test]
fn patterns_choose() {
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&[], &["*.md"], &["d/", "d/e/", "d/e/x.md = 1", "d/f = 1", "d/x.md = 1", "empty/"]),
        (&[], &["**/*.md", "empty"], &["d/", "d/e/", "d/f = 1"]),
        (&["d/e/x.md"], &[], &["d/", "d/e/", "d/e/x.md = 1"]),
        (&["**/x.md"], &["d/x.md"], &["d/", "d/e/", "d/e/x.md = 1", "x.md = 1"]),
        (&["d"], &["d/e"], &["d/", "d/f = 1", "d/x.md = 1"]),
        (&["d"], &["d/e", "!d/e/x.md"], &["d/", "d/e/", "d/e/x.md = 1", "d/f = 1", "d/x.md = 1"]),
        (&["nothing"], &[], &[]),
    ];
    for (include, exclude, expected) in cases {
        let roots = Roots::new();
        for path in ["x.md", "d/f", "d/x.md", "d/e/x.md"] {
            roots.write(path, "1");
        }
        fs::create_dir(roots.source("empty")).unwrap();
        fs::set_permissions(roots.source("d/e"), Permissions::from_mode(0o710)).unwrap();
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let (include_patterns, exclude_patterns) = (owned(include), owned(exclude));
        roots.perform(pb::FileActionCopy { include_patterns, exclude_patterns, ..copy("/", "/") }).unwrap();
        assert_eq!(roots.shown(), *expected, "{include:?} {exclude:?}");
        if let Ok(facts) = fs::metadata(roots.target("d/e")) {
            assert_eq!(facts.mode() & 0o777, 0o710);
        }
    }
    let roots = Roots::new();
    let bad = pb::FileActionCopy { exclude_patterns: vec!["[".into()], ..copy("/", "/") };
    assert_eq!(roots.perform(bad).unwrap_err(), "invalid excludepatterns: [[]");
}

#[test]
fn holes_stay_holes() {
    let roots = Roots::new();
    let file = File::create(roots.source("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", 500 << 20).unwrap();
    roots.perform(copy("/sparse", "/")).unwrap();
    let facts = fs::metadata(roots.target("sparse")).unwrap();
    assert_eq!(facts.len(), 1 << 30);
    assert!(facts.blocks() < 4096, "{} blocks", facts.blocks());
    let mut text = [0; 13];
    let copied = File::open(roots.target("sparse")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&copied, &mut text, 500 << 20).unwrap();
    assert_eq!(&text, b"in the middle");
}

#[test]
fn archives_are_unpacked_where_asked() {
    let roots = Roots::new();
    roots.write("in/f", "packed");
    let tar = |flags: &str, name: &str| {
        let mut command = std::process::Command::new("tar");
        let status = command.arg(flags).arg(roots.source(name)).arg("-C").arg(roots.source("in")).arg(".").status();
        assert!(status.unwrap().success());
    };
    for (flags, name) in [("-cf", "a.tar"), ("-czf", "a.tgz"), ("-cjf", "a.bz2"), ("-cJf", "a.xz")] {
        tar(flags, name);
        let unpacking = |to: &str| pb::FileActionCopy {
            attempt_unpack_docker_compatibility: true,
            ..copy(&format!("/{name}"), to)
        };
        roots.perform(unpacking(&format!("/{name}"))).unwrap();
        assert_eq!(fs::read_to_string(roots.target(name).join("f")).unwrap(), "packed", "{name}");
        roots.perform(copy(&format!("/{name}"), "/plain")).unwrap();
        assert!(fs::metadata(roots.target("plain")).unwrap().is_file());
        fs::remove_file(roots.target("plain")).unwrap();
    }
    roots.write("text", "no archive");
    let unpacking = pb::FileActionCopy { attempt_unpack_docker_compatibility: true, ..copy("/text", "/text") };
    roots.perform(unpacking).unwrap();
    assert_eq!(fs::read_to_string(roots.target("text")).unwrap(), "no archive");
}

#[test]
fn links_never_lead_out() {
    let roots = Roots::new();
    let outside = roots.folder.path().join("canary");
    roots.write("f", "x");
    for (name, to) in [("abs", outside.to_str().unwrap()), ("up", "../canary"), ("folder", "..")] {
        symlink(to, roots.source(name)).unwrap();
        symlink(to, roots.target(name)).unwrap();
    }
    // What links lead to is looked for inside.
    for name in ["/abs", "/up", "/folder/canary", "/folder/../../canary"] {
        let error = roots.perform(copy(name, "/copied")).unwrap_err();
        assert!(error.contains("no such file"), "{name}: {error}");
    }
    roots.perform(copy("/f", "/folder/canary")).unwrap();
    assert_eq!(fs::read_to_string(roots.target("canary")).unwrap(), "x");
    roots.perform(copy("/f", "/up")).unwrap();
    roots.perform(copy("/f", "/abs")).unwrap();
    roots
        .perform(pb::FileActionMkDir {
            path: "/folder/../../made".into(),
            mode: 0o755,
            timestamp: -1,
            ..Default::default()
        })
        .unwrap();
    assert!(roots.target("made").is_dir());
    let file =
        pb::FileActionMkFile { path: "/up".into(), mode: 0o644, data: b"y".to_vec(), timestamp: -1, owner: None };
    roots.perform(file).unwrap();
    for path in ["../canary", "/../../canary", "/folder/../canary", "/*/canary", "/folder", "/up", "/abs"] {
        let _ = roots.perform(pb::FileActionRm { path: path.into(), allow_not_found: true, allow_wildcard: true });
    }
    assert!(!roots.target("folder").exists() && fs::symlink_metadata(roots.target("up")).is_err());
    roots.perform(pb::FileActionRm { path: "/".into(), allow_not_found: false, allow_wildcard: false }).unwrap_err();
}

#[test]
fn folders_files_links_and_removal() {
    let roots = Roots::new();
    let folder = |path: &str, make_parents| pb::FileActionMkDir {
        path: path.into(),
        mode: 0o750,
        make_parents,
        timestamp: 3_000_000_000,
        owner: None,
    };
    assert_eq!(roots.perform(folder("/a/b", false)).unwrap_err(), "mkdir /a/b: no such file or directory");
    roots.perform(folder("/a/b", true)).unwrap();
    roots.perform(folder("/a/b", false)).unwrap();
    let facts = fs::metadata(roots.target("a/b")).unwrap();
    assert_eq!((facts.mode() & 0o777, facts.mtime()), (0o750, 3));
    let file = |path: &str, text: &str| pb::FileActionMkFile {
        path: path.into(),
        mode: 0o600,
        data: text.into(),
        timestamp: -1,
        owner: None,
    };
    roots.perform(file("/a/f", "one")).unwrap();
    fs::set_permissions(roots.target("a/f"), Permissions::from_mode(0o644)).unwrap();
    roots.perform(file("/a/f", "two")).unwrap();
    assert_eq!(fs::metadata(roots.target("a/f")).unwrap().mode() & 0o777, 0o644);
    assert_eq!(roots.perform(file("/a", "x")).unwrap_err(), "open /a: is a directory");
    assert_eq!(roots.perform(file("/no/f", "x")).unwrap_err(), "open /no/f: no such file or directory");
    let link = |to: &str, at: &str| pb::FileActionSymlink {
        oldpath: to.into(),
        newpath: at.into(),
        timestamp: 4_000_000_000,
        owner: None,
    };
    roots.perform(link("f", "/a/l")).unwrap();
    assert_eq!(roots.perform(link("f", "/a/l")).unwrap_err(), "symlink /a/l: file exists");
    assert_eq!(roots.shown(), ["a/", "a/b/", "a/f = two", "a/l -> f"]);
    let removal = |path: &str, allow_not_found, allow_wildcard| pb::FileActionRm {
        path: path.into(),
        allow_not_found,
        allow_wildcard,
    };
    assert_eq!(roots.perform(removal("/x", false, false)).unwrap_err(), "remove /x: no such file or directory");
    roots.perform(removal("/x", true, false)).unwrap();
    roots.perform(removal("/a/l", false, false)).unwrap();
    roots.perform(removal("/a/?", false, true)).unwrap();
    assert_eq!(roots.shown(), ["a/"]);
}

#[test]
fn deep_trees_end_in_an_error() {
    let roots = Roots::new();
    let deep = roots.source(&"d/".repeat(450));
    fs::create_dir_all(deep).unwrap();
    assert!(roots.perform(copy("/", "/")).unwrap_err().contains("too long"));
}

#[test]
fn work_stops_when_nobody_wants_it() {
    let roots = Roots::new();
    roots.write("f", "x");
    let open = |path: PathBuf| OwnedFd::from(File::open(path).unwrap());
    let stop = Stop::default();
    drop(Stopper(stop.clone()));
    let action = Action::Copy(copy("/", "/"));
    let (source, target) = (open(roots.source("")), open(roots.target("")));
    let done = actions::perform(Some(&action), &target, Some(&source), Databases::default(), &stop);
    assert!(matches!(done, Err(FileError::Stopped)));
}
