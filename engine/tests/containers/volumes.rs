//! Volumes of the local driver: what they are made of, filled with, and taken to and from archives; bind mounts of all kinds of
//! sources. What can be done with mounts is in `mounts`.

use crate::stack::Stack;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn run(stack: &Stack, script: &str, host: Value) -> (i64, String, String) {
    let id = stack.create("", &json!({"Cmd": ["sh", "-c", script], "HostConfig": host}));
    stack.start_container(&id);
    let code = stack.wait(&id, "not-running");
    let (out, err) = stack.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).streams();
    (code, out, err)
}

fn output(stack: &Stack, script: &str, host: Value) -> String {
    let (code, out, err) = run(stack, script, host);
    assert_eq!(code, 0, "{script}: {out}{err}");
    out
}

fn volume(stack: &Stack, body: Value) -> PathBuf {
    let made = stack.post("/volumes/create", &body);
    assert_eq!(made.status, 201, "{}", made.text());
    made.json()["Mountpoint"].as_str().unwrap().into()
}

fn import(stack: &Stack, name: &str, archive: &[u8]) -> (u16, String) {
    let answer = stack.request("POST", &format!("/volumes/{name}/import"), "application/x-tar", archive);
    (answer.status, if answer.status < 300 { String::new() } else { answer.message() })
}

/// Paths below a folder with everything that an archive is to keep of them.
fn listing(folder: &Path) -> BTreeSet<String> {
    fn walk(root: &Path, path: &Path, all: &mut BTreeSet<String>) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let content = match () {
            () if kind.is_file() => format!("{:?} {}", std::fs::read(path).unwrap(), meta.nlink()),
            () if kind.is_symlink() => format!("{:?}", std::fs::read_link(path).unwrap()),
            () => format!("{} {}", meta.rdev(), kind.is_fifo()),
        };
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        let attribute = sys::xattr::lget(&name, c"user.berth").unwrap_or_default();
        all.insert(format!(
            "{:?} {:o} {}:{} {} {attribute:?} {content}",
            path.strip_prefix(root).unwrap(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
        ));
        if kind.is_dir() {
            std::fs::read_dir(path).unwrap().for_each(|entry| walk(root, &entry.unwrap().path(), all));
        }
    }
    let mut all = BTreeSet::new();
    walk(folder, folder, &mut all);
    all
}

/// The output of a program that is fed with bytes.
fn piped(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(command[0]).args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = input.to_vec();
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn content_goes_out_and_in_as_an_archive() {
    let Some(stack) = Stack::start() else { return };
    let from = volume(&stack, json!({"Name": "from"}));
    std::fs::create_dir(from.join("folder")).unwrap();
    std::fs::write(from.join("folder/set-id"), "text").unwrap();
    std::fs::hard_link(from.join("folder/set-id"), from.join("same")).unwrap();
    chown(from.join("folder/set-id"), Some(1234), Some(70_000)).unwrap();
    std::fs::set_permissions(from.join("folder/set-id"), PermissionsExt::from_mode(0o4751)).unwrap();
    symlink("/etc/passwd", from.join("link")).unwrap();
    nix::unistd::mkfifo(&from.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let sparse = std::fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    let _ = sys::xattr::fset(&sparse, c"user.berth", b"kept");
    chown(&from, Some(33), Some(44)).unwrap();
    std::fs::set_permissions(&from, PermissionsExt::from_mode(0o1770)).unwrap();
    let answer = stack.get("/volumes/from/export");
    assert_eq!(answer.status, 200);
    let listed = String::from_utf8(piped(&["tar", "-tf", "-"], &answer.body)).unwrap();
    assert!(listed.lines().any(|line| line == "./folder/set-id"), "{listed}");

    let packed: Vec<_> = [&["cat"][..], &["gzip", "-c"], &["xz", "-c"], &["zstd", "-qc"]]
        .iter()
        .filter(|command| {
            let there = Command::new(command[0]).arg("--version").stdout(Stdio::null()).status().is_ok();
            if !there {
                eprintln!("skipped: {} is not installed", command[0]);
            }
            there
        })
        .map(|command| piped(command, &answer.body))
        .collect();
    for (at, archive) in packed.iter().enumerate() {
        let name = format!("into{at}");
        let into = volume(&stack, json!({ "Name": name }));
        assert_eq!(import(&stack, &name, archive), (204, String::new()));
        assert_eq!(listing(&into), listing(&from));
    }
    // Into one that a container has, over what is there; and out of one.
    let id =
        stack.create("?name=user", &json!({"Cmd": ["sleep", "1000"], "HostConfig": {"Binds": ["used:/used:nocopy"]}}));
    stack.start_container(&id);
    let used = PathBuf::from(stack.get("/volumes/used").json()["Mountpoint"].as_str().unwrap());
    std::fs::write(used.join("same"), "before").unwrap();
    std::fs::write(used.join("other"), "stays").unwrap();
    assert_eq!(import(&stack, "used", &answer.body).0, 204);
    assert_eq!(std::fs::read_to_string(used.join("same")).unwrap(), "text");
    assert!(used.join("other").exists());
    assert_eq!(stack.get("/volumes/used/export").status, 200);
    // What has to be mounted is, for as long as it takes.
    let memory =
        volume(&stack, json!({"Name": "memory", "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=8m"}}));
    assert_eq!(import(&stack, "memory", &answer.body).0, 204);
    crate::stack::eventually("it is unmounted", || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        if mounts.contains(memory.to_str().unwrap()) { Err(mounts) } else { Ok(()) }
    });
    assert!(!memory.join("same").exists());
    crate::stack::eventually("it is free", || match stack.delete("/volumes/memory").status {
        204 => Ok(()),
        status => Err(status.to_string()),
    });
    assert_eq!(stack.get("/volumes/nothing/export").status, 404);
    assert_eq!(import(&stack, "nothing", &answer.body).0, 404);
}

#[test]
fn hostile_archives_stay_in_the_volume() {
    let Some(stack) = Stack::start() else { return };
    let outside = tempfile::tempdir().unwrap();
    let data = volume(&stack, json!({"Name": "data"}));
    let source = tempfile::tempdir().unwrap();
    let tar = |args: &[&str]| {
        let output = Command::new("tar").args(args).current_dir(source.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    // A link out, then a file through it.
    symlink(outside.path(), source.path().join("way")).unwrap();
    let mut archive = tar(&["-b1", "-cf", "-", "way"]);
    archive.truncate(512);
    std::fs::remove_file(source.path().join("way")).unwrap();
    std::fs::create_dir(source.path().join("way")).unwrap();
    std::fs::write(source.path().join("way/evil"), "evil").unwrap();
    archive.extend(tar(&["-cf", "-", "way/evil"]));
    let answer = import(&stack, "data", &archive);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{answer:?}");
    // Names that lead out, and links to what is outside.
    std::fs::write(source.path().join("file"), "evil").unwrap();
    for transform in ["s,file,../file,", "s,file,a/../../file,"] {
        let archive = tar(&["-P", "--transform", transform, "-cf", "-", "file"]);
        let (status, text) = import(&stack, "data", &archive);
        assert!(status == 400 && text.contains("leads out of the folder"), "{status} {text}");
    }
    assert!(!data.parent().unwrap().join("file").exists());
    let (status, text) = import(&stack, "data", b"no archive at all, but some bytes");
    assert!(status == 400 && text.starts_with("import into volume data: read the archive"), "{status} {text}");
    let bound = json!({"Name": "bound", "DriverOpts": {"type": "none", "device": outside.path(), "o": "bind,ro"}});
    volume(&stack, bound);
    let good = tar(&["-cf", "-", "file"]);
    assert_eq!(import(&stack, "bound", &good), (403, "import into volume bound: it is read-only".into()));
}

#[test]
fn filled_once_with_everything_that_the_image_has() {
    let Some(stack) = Stack::start() else { return };
    // Empty: filled; not empty, or not wanted: not.
    assert_eq!(output(&stack, "cat /vol/file", json!({"Binds": ["one:/vol"]})), "from the image\n");
    assert_eq!(output(&stack, "ls /vol | wc -l", json!({"Binds": ["two:/vol:nocopy"]})), "0\n");
    let own = volume(&stack, json!({"Name": "own"}));
    std::fs::write(own.join("mine"), "").unwrap();
    assert_eq!(output(&stack, "ls /vol", json!({"Binds": ["own:/vol"]})), "mine\n");
    let file = PathBuf::from(stack.get("/volumes/one").json()["Mountpoint"].as_str().unwrap()).join("file");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    // What was emptied by somebody is filled again, what was begun by nobody isn't marked.
    assert!(!file.parent().unwrap().with_file_name("unfinished").exists());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(output(&stack, "cat /vol/file", json!({"Binds": ["one:/vol"]})), "from the image\n");
}

#[test]
fn a_create_that_fails_takes_its_volumes_back() {
    let Some(stack) = Stack::start() else { return };
    let body = json!({"Image": "test", "Cmd": ["true"], "HostConfig": {"Binds": ["kept:/kept", "/anonymous"],
        "Mounts": [{"Type": "image", "Source": "nothing:here", "Target": "/x"}]}});
    assert_eq!(stack.post("/containers/create", &body).status, 404);
    crate::stack::eventually("anonymous volumes are gone", || {
        let volumes = stack.get("/volumes").json()["Volumes"].clone();
        let names: Vec<_> = volumes.as_array().unwrap().iter().map(|v| v["Name"].clone()).collect();
        if names == ["kept"] { Ok(()) } else { Err(format!("{names:?}")) }
    });
}

#[test]
fn sizes_and_network_file_systems_are_had_or_refused_clearly() {
    let Some(stack) = Stack::start() else { return };
    let sized = stack.post("/volumes/create", &json!({"Name": "sized", "DriverOpts": {"size": "1m"}}));
    match sized.status {
        201 => {
            let (code, _, err) =
                run(&stack, "dd if=/dev/zero of=/s/file bs=64k count=32", json!({"Binds": ["sized:/s"]}));
            assert!(code != 0 && err.contains("quota exceeded"), "{err}");
        }
        status => {
            let text = sized.message();
            assert!(status == 400 && text.contains("quota size requested but no quota support"), "{status} {text}");
            eprintln!("skipped: no project quotas here: {text}");
            assert_eq!(stack.get("/volumes/sized").status, 404);
        }
    }
    for (size, words) in [("much", "invalid size: \"much\""), ("-1", "invalid size")] {
        let answer = stack.post("/volumes/create", &json!({"Name": "odd", "DriverOpts": {"size": size}}));
        assert!(answer.status == 400 && answer.message().contains(words), "{}", answer.text());
    }
    // Nobody serves them here; what was handed to mount(2) is in the error.
    for (name, kind, device, options, words) in [
        (
            "nfs",
            "nfs",
            ":/export",
            "addr=127.0.0.1,ro,nfsvers=4,soft,timeo=1,retrans=1",
            "data: addr=127.0.0.1,nfsvers=4",
        ),
        (
            "cifs",
            "cifs",
            "//localhost/share",
            "addr=localhost,username=u,password=secret",
            "data: addr=127.0.0.1,username=u,password=********:",
        ),
    ] {
        volume(&stack, json!({"Name": name, "DriverOpts": {"type": kind, "device": device, "o": options}}));
        let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Binds": [format!("{name}:/n:nocopy")]}}));
        let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
        let text = answer.message();
        assert!(
            answer.status == 500 && text.contains("failed to mount local volume") && !text.contains("secret"),
            "{text}"
        );
        assert!(text.contains(words), "{text}");
        if text.contains("no such device") {
            eprintln!("skipped: a mount that works: this kernel has no {kind}");
        }
    }
}

#[test]
fn copies_from_containers_that_do_not_run_see_what_has_to_be_mounted() {
    let Some(stack) = Stack::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
    std::fs::write(folder.path().join("a/b/file"), "bound\n").unwrap();
    volume(&stack, json!({"Name": "bound", "DriverOpts": {"type": "none", "device": folder.path(), "o": "bind"}}));
    let host = json!({"Mounts": [
        {"Type": "volume", "Source": "bound", "Target": "/all", "VolumeOptions": {"NoCopy": true}},
        {"Type": "volume", "Source": "bound", "Target": "/below", "VolumeOptions": {"NoCopy": true, "Subpath": "a/b"}},
        {"Type": "image", "Source": "test", "Target": "/image"}]});
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": host}));
    for (path, text) in
        [("/all/a/b/file", "bound\n"), ("/below/file", "bound\n"), ("/image/vol/file", "from the image\n")]
    {
        let answer = stack.get(&format!("/containers/{id}/archive?path={path}"));
        assert!(answer.status == 200 && answer.text().contains(text), "{path}: {}", answer.text());
    }
    crate::stack::eventually("nothing stays mounted", || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = stack.root().display().to_string();
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(&root)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn sources_of_binds() {
    let Some(stack) = Stack::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(folder.path().join("real")).unwrap();
    std::fs::write(folder.path().join("real/file"), "through a link\n").unwrap();
    std::fs::write(folder.path().join("single"), "a file\n").unwrap();
    symlink("real", folder.path().join("link")).unwrap();
    symlink("nowhere", folder.path().join("dangling")).unwrap();
    let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let host = json!({"Binds": [format!("{}:/dir", at("link")), format!("{}:/one:ro", at("single")), format!("{}:/sock", at("socket")),
        format!("{}:/made", at("missing/deep"))]});
    let script =
        "cat /dir/file /one; test -S /sock && test -d /made && echo there; touch /one 2>/dev/null || echo read-only";
    assert_eq!(output(&stack, script, host), "through a link\na file\nthere\nread-only\n");
    // Made by -v, as root's, with the parents; --mount refuses in docker's words.
    let made = std::fs::metadata(folder.path().join("missing/deep")).unwrap();
    assert!(made.is_dir() && made.mode() & 0o7777 == 0o755 && made.uid() == 0);
    let mount = |source: &str| json!({"Image": "test", "Cmd": ["true"], "HostConfig": {"Mounts": [{"Type": "bind", "Source": source, "Target": "/b"}]}});
    let answer = stack.post("/containers/create", &mount(&at("absent")));
    assert_eq!(
        (answer.status, answer.message()),
        (400, format!("invalid mount config for type \"bind\": bind source path does not exist: {}", at("absent")))
    );
    assert!(!folder.path().join("absent").exists());
    // What goes between create and start is no reason to make it.
    std::fs::write(folder.path().join("fleeting"), "").unwrap();
    let id = stack.post("/containers/create", &mount(&at("fleeting"))).json()["Id"].as_str().unwrap().to_owned();
    std::fs::remove_file(folder.path().join("fleeting")).unwrap();
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert!(answer.status >= 400 && answer.message().contains("fleeting"), "{}", answer.text());
    assert!(!folder.path().join("fleeting").exists());
}

#[test]
fn what_is_to_be_shared_must_lie_on_a_shared_mount() {
    let Some(stack) = Stack::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let none = None::<&str>;
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(folder.path()), folder.path(), none, bind, none).unwrap();
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    let _unmount = Unmount(folder.path());
    nix::mount::mount(none, folder.path(), none, nix::mount::MsFlags::MS_PRIVATE, none).unwrap();
    let start = |propagation: &str| {
        let bind = format!("{}:/b:{propagation}", folder.path().display());
        let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Binds": [bind]}}));
        let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
        if answer.status == 204 {
            stack.wait(&id, "not-running");
            return "started".to_owned();
        }
        answer.message()
    };
    let at = folder.path().display();
    assert_eq!(start("rshared"), format!("path {at} is mounted on {at} but it is not a shared mount"));
    assert_eq!(start("slave"), format!("path {at} is mounted on {at} but it is not a shared or slave mount"));
    assert_eq!(start("rprivate"), "started");
    nix::mount::mount(none, folder.path(), none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
    assert_eq!((start("rshared").as_str(), start("rslave").as_str()), ("started", "started"));
}
