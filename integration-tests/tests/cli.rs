//! berth and the real docker client side by side, on berth-engine: the same words lead to the same output, errors and codes.

use integration_tests::{Outcome, Stack, dockerd::Dockerd, eventually, programs::program, run_with, stack::has_docker};
use std::{fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

/// An engine that clients talk to.
trait Host {
    fn command(&self, program: &Path) -> Command;
}

impl Host for Stack {
    fn command(&self, program: &Path) -> Command {
        self.client(program)
    }
}

impl Host for Dockerd {
    fn command(&self, program: &Path) -> Command {
        self.client(program)
    }
}

fn berth(host: &dyn Host, args: &[&str]) -> Outcome {
    run_with(host.command(&program("berth")).args(args), b"", LIMIT)
}

fn docker(stack: &Stack, args: &[&str]) -> Outcome {
    run_with(stack.client("docker").env("DOCKER_BUILDKIT", "0").args(args), b"", LIMIT)
}

/// What one client says, without its name.
fn said(outcome: &Outcome) -> (i32, String, String) {
    let plain = |text: String| {
        // Two slips of docker's: a word that is not meant to be seen, and a typing error.
        let text = text.trim_end_matches("\nexit status 1").replace("\nSRun", "\nRun");
        without_ids(&text.replace("docker", "berth").replace("Docker", "Berth"))
    };
    (outcome.code(), outcome.stdout(), plain(outcome.stderr()))
}

/// Ids of containers that each client made for itself.
fn without_ids(text: &str) -> String {
    let id = |word: &str| {
        word.trim_matches(':').len() == 64 && word.trim_matches(':').bytes().all(|b| b.is_ascii_hexdigit())
    };
    text.split(' ').map(|word| if id(word) { "ID" } else { word }).collect::<Vec<_>>().join(" ")
}

/// How the two clients differ.
fn difference(stack: &Stack, line: &str) -> Option<String> {
    let args: Vec<&str> = line.split(' ').collect();
    let (ours, theirs) = (said(&berth(stack, &args)), said(&docker(stack, &args)));
    (ours != theirs).then(|| format!("{line}\n  berth  {ours:?}\n  docker {theirs:?}\n"))
}

#[test]
fn both_clients_say_the_same() {
    if !has_docker() {
        println!("skipped: no docker client here");
        return;
    }
    let stack = Stack::with_busybox();
    berth(&stack, &["run", "-d", "--name", "web", "-l", "a=b", "-p", "0:80", "busybox", "sleep", "1000"]).success();
    berth(&stack, &["create", "--name", "idle", "-v", "data:/d", "busybox"]).success();
    berth(&stack, &["tag", "busybox", "busybox:v2"]).success();
    let lines = [
        "ps -aq",
        "ps -n 1 -q --no-trunc",
        "ps -l -q",
        "ps --filter status=created -a",
        "ps --filter nonsense=1",
        "ps --format {{.Names}}\\t{{.State}}\\t{{.Ports}}\\t{{.Labels}}\\t{{.Mounts}}\\t{{.Networks}}",
        "ps --format table\\t{{.Names}}\\t{{.Image}}",
        "images",
        "images -q",
        "images -a --no-trunc",
        "images --digests",
        "images busybox:v2",
        "images --format {{.ID}}:{{.Repository}}:{{.Tag}}:{{.Size}}:{{.CreatedAt}}:{{.Digest}}",
        "images --filter dangling=true",
        "history busybox",
        "history -q --no-trunc busybox",
        "history --format {{.Size}} -H=false busybox",
        "port web",
        "port web 80",
        "port web 81",
        "port web x",
        "top web",
        "top web -o pid,args",
        "diff web",
        "wait nope",
        "logs web",
        "logs nope",
        "inspect zzzzzz",
        "inspect web",
        "inspect -f {{.State.Status}} web zzzzzz",
        "inspect -f {{.Nope}} web",
        "inspect --type image web",
        "inspect --type nonsense web",
        "inspect -s -f {{.SizeRw}} web",
        "container inspect nope web",
        "image inspect busybox",
        "network ls --format {{.Name}}:{{.Driver}}:{{.Scope}}",
        "network inspect nope",
        "network rm nope",
        "network create",
        "network create --subnet 10.1.0.0/16 --gateway 1.2.3.4 n",
        "volume ls",
        "volume ls -q --filter name=data",
        "volume ls --format json",
        "volume inspect data nope",
        "volume rm nope",
        "volume rm -f nope",
        "volume create a b",
        "stop nope web2",
        "rm -f nope",
        "rm nope",
        "rm web",
        "kill idle",
        "pause idle",
        "unpause web",
        "rename web idle",
        "exec idle true",
        "exec web nope",
        "exec -it web true",
        "run -it busybox true",
        "run --rm --name x busybox nope",
        "run --rm --name x busybox /etc",
        "run --name web busybox",
        "run --no-such-flag busybox",
        "run --memory 1x busybox",
        "run -v :bad busybox",
        "run --restart always --rm busybox",
        "attach idle",
        "start nope",
        "update web",
        "update -m 64m nope",
        "cp web:/nope /tmp",
        "cp a b",
        "cp web:/a idle:/b",
        "cp web:/etc /nope/x",
        "node ls",
        "swarm leave",
        "service ls",
        "secret ls",
        "config ls",
        "stack ls",
        "plugin ls",
        "plugin inspect x",
        "search",
        "system prune --volumes --filter until=1h",
        "container prune -f --filter nonsense=1",
        "rmi nope",
        "tag nope a",
        "save nope",
        "events --since 0 --until 1",
        "events --filter nonsense=1 --until 1",
        "version --format {{.Server.Version}}",
        "info --format {{.Driver}}:{{.NCPU}}",
    ];
    let differences: Vec<String> = lines.iter().filter_map(|line| difference(&stack, line)).collect();
    assert!(differences.is_empty(), "{}", differences.concat());
    let tree = berth(&stack, &["images", "--tree"]).success();
    assert!(tree.stdout().contains("busybox:latest") && tree.stdout().contains("└─ linux/"), "{tree}");
    berth(&stack, &["rm", "-f", "web", "idle"]).success();
    berth(&stack, &["volume", "prune", "-a", "-f"]).success();
}

#[test]
fn files_go_in_and_out() {
    copy_files(&Stack::with_busybox());
}

#[test]
fn files_go_in_and_out_of_dockerds_containers() {
    if let Some(dockerd) = Dockerd::with_busybox() {
        copy_files(&dockerd);
    }
}

fn copy_files(stack: &dyn Host) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir_all(at("src/sub")).unwrap();
    fs::write(at("src/f"), "text").unwrap();
    fs::write(at("src/sub/g"), vec![7; 300_000]).unwrap();
    fs::hard_link(at("src/f"), at("src/h")).unwrap();
    symlink("f", at("src/l")).unwrap();
    berth(stack, &["run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000"]).success();
    let inside = |script: &str| berth(stack, &["exec", "box", "sh", "-c", script]).success().stdout();
    let cp = |from: &str, to: &str| berth(stack, &["cp", from, to]);
    cp(&at("src"), "box:/tmp").success();
    cp(&at("src"), "box:/tmp/new").success();
    cp(&at("src/."), "box:/tmp/new2").success();
    cp(&at("src/f"), "box:/tmp/file").success();
    let listed = inside("cd /tmp; find src new new2 file | sort; cat file; readlink new/l; md5sum < new2/sub/g");
    let md5 = run_with(std::process::Command::new("md5sum").arg(at("src/sub/g")), b"", LIMIT).success().stdout();
    let want = "file new new/f new/h new/l new/sub new/sub/g new2 new2/f new2/h new2/l new2/sub new2/sub/g src src/f src/h src/l src/sub src/sub/g";
    assert_eq!(listed.split_whitespace().take(19).collect::<Vec<_>>().join(" "), want);
    assert!(listed.contains("text") && listed.contains(md5.split(' ').next().unwrap()), "{listed}");
    cp("box:/tmp/new", &at("back")).success();
    assert_eq!(fs::read_to_string(at("back/f")).unwrap(), "text");
    assert_eq!(fs::read_link(at("back/l")).unwrap(), Path::new("f"));
    assert_eq!(fs::read(at("back/sub/g")).unwrap().len(), 300_000);
    let archive = berth(stack, &["cp", "box:/tmp/src", "-"]).success();
    let mut names: Vec<String> = tar::Archive::new(archive.stdout_bytes())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["src/", "src/f", "src/h", "src/l", "src/sub/", "src/sub/g"]);
    let mut command = stack.command(&program("berth"));
    run_with(command.args(["cp", "-", "box:/srv"]), archive.stdout_bytes(), LIMIT).expect_code(1);
    inside("mkdir /srv");
    let mut command = stack.command(&program("berth"));
    run_with(command.args(["cp", "-", "box:/srv"]), archive.stdout_bytes(), LIMIT).success();
    assert_eq!(inside("ls /srv/src"), "f\nh\nl\nsub");
    // A link is copied as a link, or followed when asked.
    cp("box:/tmp/new/l", &at("link")).success();
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    berth(stack, &["cp", "-L", "box:/tmp/new/l", &at("followed")]).success();
    assert_eq!(fs::read_to_string(at("followed")).unwrap(), "text");
    // Owners stay by -a.
    inside("echo o > /tmp/owned; chown 1234:1235 /tmp/owned");
    berth(stack, &["cp", "-a", "box:/tmp/owned", &at("owned")]).success();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(at("owned")).unwrap()), 1234);
    cp("box:/nope", &at("x")).expect_code(1).expect_error("Could not find the file /nope in container box");
    cp(&at("src"), "box:/tmp/file").expect_code(1).expect_error("cannot copy directory");
    cp(&at("src/f"), "box:/no/such/").expect_code(1).expect_error("no such directory");
    berth(stack, &["rm", "-f", "box"]).success();
}

/// CVE-2018-15664 and its kind, from the client's side: what a container holds can't make cp write elsewhere.
#[test]
fn a_hostile_container_cannot_write_outside_of_the_destination() {
    let stack = Stack::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(dir.path().join("secret"), "untouched").unwrap();
    berth(&stack, &["run", "-d", "--name", "evil", "busybox", "sleep", "1000"]).success();
    let inside = |script: &str| berth(&stack, &["exec", "evil", "sh", "-c", script]).success();
    let out = inner.display().to_string();
    // First a link that leads out, in a second copy files behind its name.
    inside("mkdir -p /a; ln -s ../.. /a/way");
    berth(&stack, &["cp", "evil:/a", &out]).success();
    inside("rm /a/way; mkdir /a/way; echo hacked > /a/way/secret");
    let refused = berth(&stack, &["cp", "evil:/a", &out]);
    assert_eq!(refused.code(), 1, "{refused}");
    assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "untouched");
    // The container's own root is a link's root: an absolute link leads to its files, not to ours.
    inside("ln -s /etc/hostname /mine");
    berth(&stack, &["cp", "-L", "evil:/mine", &format!("{out}/mine")]).success();
    let name = inside("cat /etc/hostname").stdout();
    assert_eq!(fs::read_to_string(inner.join("mine")).unwrap().trim(), name);
    berth(&stack, &["rm", "-f", "evil"]).success();
}

#[test]
fn stats_of_containers() {
    let stack = Stack::with_busybox();
    berth(&stack, &["run", "-d", "--name", "busy", "-m", "64m", "busybox", "sh", "-c", "while :; do :; done"])
        .success();
    berth(&stack, &["create", "--name", "idle", "busybox"]).success();
    let once = berth(&stack, &["stats", "--no-stream", "busy"]).success().stdout();
    let mut lines = once.lines();
    let titles = lines.next().unwrap().split("   ").filter(|t| !t.is_empty()).map(str::trim).collect::<Vec<_>>();
    assert_eq!(titles, ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]);
    assert!(once.contains("/ 64MiB") && once.contains("busy"), "{once}");
    let share = berth(&stack, &["stats", "--no-stream", "--format", "{{.CPUPerc}}", "busy"]).success().stdout();
    let percent: f64 = share.trim().trim_end_matches('%').parse().unwrap();
    assert!(percent > 10.0, "a loop that never ends uses {percent}% of a processor");
    assert!(!berth(&stack, &["stats", "--no-stream"]).success().stdout().contains("idle"));
    assert!(berth(&stack, &["stats", "--no-stream", "-a"]).success().stdout().contains("idle"));
    berth(&stack, &["stats", "--no-stream", "nope"]).expect_code(1).expect_error("No such container: nope");
    // Live: drawn more than once, and over at Ctrl-C.
    let live = run_with(
        stack.client("timeout").args(["-s", "INT", "4"]).arg(program("berth")).args(["stats", "busy"]),
        b"",
        LIMIT,
    );
    assert!(live.stdout().matches("\u{1b}[H").count() > 1, "{live}");
    berth(&stack, &["rm", "-f", "busy", "idle"]).success();
}

#[test]
fn inspect_finds_everything_that_has_a_name() {
    let stack = Stack::with_busybox();
    berth(&stack, &["create", "--name", "box", "-v", "vol:/v", "busybox"]).success();
    for (name, template, want) in [
        ("box", "{{.Name}}", "/box"),
        ("busybox", "{{index .RepoTags 0}}", "busybox:latest"),
        ("vol", "{{.Driver}}", "local"),
        ("host", "{{.Scope}}", "local"),
    ] {
        assert_eq!(berth(&stack, &["inspect", "-f", template, name]).success().stdout(), want, "{name}");
    }
    assert_eq!(berth(&stack, &["inspect", "--type", "volume", "-f", "{{.Name}}", "vol"]).success().stdout(), "vol");
    let sized = berth(&stack, &["inspect", "-s", "-f", "{{json .SizeRootFs}}", "box"]).success().stdout();
    assert!(sized.parse::<u64>().is_ok(), "{sized}");
    let missing = berth(&stack, &["inspect", "box", "nope"]).expect_code(1);
    assert!(missing.stdout().contains("\"/box\"") && missing.stderr().contains("nope"), "{missing}");
    berth(&stack, &["rm", "-v", "box"]).success();
    berth(&stack, &["volume", "rm", "vol"]).success();
}

#[test]
fn a_volume_goes_out_to_a_file_and_into_another() {
    let stack = Stack::with_busybox();
    let fill = "echo content > /v/file; chown 7:8 /v/file; ln -s file /v/link";
    berth(&stack, &["run", "--rm", "-v", "from:/v", "busybox", "sh", "-c", fill]).success();
    let archive = stack.path().join("volume.tar");
    let file = archive.to_str().unwrap();
    berth(&stack, &["volume", "export", "-o", file, "from"]).success();
    berth(&stack, &["volume", "create", "to"]).success();
    berth(&stack, &["volume", "import", "to", file]).success();
    berth(&stack, &["volume", "create", "piped"]).success();
    let bytes = std::fs::read(&archive).unwrap();
    run_with(stack.client(program("berth")).args(["volume", "import", "piped"]), &bytes, LIMIT).success();
    for volume in ["to", "piped"] {
        let bind = format!("{volume}:/v:ro");
        let seen =
            berth(&stack, &["run", "--rm", "-v", &bind, "busybox", "sh", "-c", "cat /v/link; stat -c %u:%g /v/file"]);
        assert_eq!(seen.success().stdout(), "content\n7:8", "{volume}");
    }
    let missing = berth(&stack, &["volume", "import", "nowhere", file]).expect_code(1);
    assert!(missing.stderr().contains("get nowhere: no such volume"), "{missing}");
    berth(&stack, &["volume", "rm", "from", "to", "piped"]).success();
}

#[test]
fn dial_stdio_is_a_connection_to_the_engine() {
    let stack = Stack::start();
    let mut command = stack.client(program("berth"));
    let request = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = run_with(command.args(["system", "dial-stdio"]), request, LIMIT).success();
    assert!(answer.stdout().starts_with("HTTP/1.1 200") && answer.stdout().ends_with("OK"), "{answer}");
}

#[test]
fn prunes_ask_first_and_tell_what_is_gone() {
    let stack = Stack::with_busybox();
    berth(&stack, &["create", "--name", "old", "-v", "kept:/d", "busybox"]).success();
    for kind in ["container", "image", "volume", "network"] {
        let no = run_with(stack.client(program("berth")).args([kind, "prune"]), b"n\n", LIMIT).success();
        assert!(no.stdout().trim_end().ends_with("Are you sure you want to continue? [y/N]"), "{no}");
    }
    let id = berth(&stack, &["ps", "-aq", "--no-trunc"]).success().stdout();
    let yes = run_with(stack.client(program("berth")).args(["container", "prune"]), b"y\n", LIMIT).success();
    assert!(yes.stdout().contains(&format!("Deleted Containers:\n{id}\n\nTotal reclaimed space: ")), "{yes}");
    assert!(!berth(&stack, &["volume", "prune", "-f"]).success().stdout().contains("kept"), "it has a name of its own");
    let all = berth(&stack, &["system", "prune", "-f", "-a", "--volumes"]).success().stdout();
    assert!(all.contains("untagged: busybox:latest") && all.contains("Total reclaimed space:"), "{all}");
    let gone = berth(&stack, &["volume", "prune", "-f", "-a"]).success().stdout();
    assert!(gone.contains("Deleted Volumes:\nkept\n"), "{gone}");
    eventually("no image is left", || berth(&stack, &["images", "-q"]).success().stdout().is_empty().then_some(()));
}

#[test]
fn dockerds_classic_builder_builds() {
    let Some(dockerd) = Dockerd::with_busybox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir_all(at("c/drop/in")).unwrap();
    for (name, text) in [
        ("c/kept", "1"),
        ("c/x.log", "2"),
        ("c/drop/gone", "3"),
        ("c/drop/in/back", "4"),
        ("c/.dockerignore", "drop\n!drop/in/back\n*.log\n"),
        ("c/Dockerfile", "FROM busybox\nARG V=0\nCOPY . /ctx\nRUN cd /ctx && find . | sort && echo v=$V\n"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let build = |args: &[&str], input: &[u8]| {
        let mut command = dockerd.command(&program("berth"));
        run_with(command.env("DOCKER_BUILDKIT", "0").args(["build", "--network", "none"]).args(args), input, LIMIT)
    };
    let (context, iid) = (at("c"), at("iid"));
    let built =
        build(&["-t", "built:1", "--build-arg", "V=7", "--label", "a=b", "--iidfile", &iid, &context], b"").success();
    let listed = "\n.\n./.dockerignore\n./Dockerfile\n./drop\n./drop/in\n./drop/in/back\n./kept\nv=7\n";
    assert!(built.stdout().contains(listed) && built.stdout().contains("Successfully tagged built:1"), "{built}");
    let id = berth(&dockerd, &["inspect", "-f", "{{.Id}} {{.Config.Labels.a}}", "built:1"]).success().stdout();
    assert_eq!(id, format!("{} b", fs::read_to_string(&iid).unwrap()));
    let quiet = build(&["-q", "--compress", &context], b"").success();
    assert!(quiet.stdout().starts_with("sha256:") && quiet.stdout().len() == 71, "{quiet}");
    // From standard input: a Dockerfile, whose failing command gives its code; a Dockerfile beside a folder.
    let failed = build(&["--no-cache", "-"], b"FROM busybox\nRUN exit 7\n").expect_code(7);
    assert!(failed.stderr().contains("returned a non-zero code: 7"), "{failed}");
    build(&["-f", "-", &context], b"FROM busybox\nCOPY kept /k\n").success();
    build(&["nowhere"], b"").expect_code(1).expect_error("unable to prepare context: path \"nowhere\" not found");
    build(&["-t", "UP", &context], b"").expect_code(125).expect_error("invalid argument \"UP\" for \"-t, --tag\" flag");
}

/// The same client, by BuildKit's own protocol, with a BuildKit that isn't ours.
#[test]
fn dockerds_buildkit_builds() {
    let Some(dockerd) = Dockerd::with_busybox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir_all(at("c/drop")).unwrap();
    fs::create_dir_all(at("out")).unwrap();
    for (name, text) in [
        ("c/kept", "1"),
        ("c/drop/gone", "3"),
        ("c/.dockerignore", "drop\n"),
        ("secret", "s3cret"),
        ("out/old", "old"),
        (
            "c/Dockerfile",
            "FROM busybox AS all\nARG V=0\nCOPY . /ctx\nRUN --mount=type=secret,id=s cd /ctx && find . | sort && echo v=$V && wc -c < /run/secrets/s > /n\n\
             FROM scratch\nCOPY --from=all /n /ctx/kept /\n",
        ),
        ("Outside", "FROM busybox\nRUN echo before; exit 7\n"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let build = |args: &[&str], input: &[u8]| {
        let mut command = dockerd.command(&program("berth"));
        command.env("DOCKER_BUILDKIT", "1").env_remove("BUILDKIT_PROGRESS");
        run_with(command.args(["build", "--network", "none"]).args(args), input, LIMIT)
    };
    let (context, iid, facts) = (at("c"), at("iid"), at("facts"));
    let secret = format!("id=s,src={}", at("secret"));
    let flags = ["--secret", &secret, "--build-arg", "V=7", "--target", "all", "--label", "a=b", &context];
    let image = ["-t", "built:1", "--iidfile", &iid, "--metadata-file", &facts];
    let built = build(&[&image[..], &flags[..]].concat(), b"").success();
    let said = built.stderr();
    for part in [
        "#1 [internal] load build definition from Dockerfile\n",
        " ./kept\n",
        " v=7\n",
        " naming to docker.io/library/built:1",
    ] {
        assert!(said.contains(part), "{part}: {built}");
    }
    assert!(!said.contains("gone") && built.stdout().is_empty(), "{built}");
    let id = berth(&dockerd, &["inspect", "-f", "{{.Id}} {{.Config.Labels.a}}", "built:1"]).success().stdout();
    assert_eq!(id, format!("{} b", fs::read_to_string(&iid).unwrap()));
    assert!(fs::read_to_string(&facts).unwrap().contains("\"buildx.build.ref\": "));
    // Once more: everything is known, and the id is all that is said.
    let again = build(&[&["-q"][..], &flags[..]].concat(), b"").success();
    assert_eq!((again.stdout(), again.stderr()), (fs::read_to_string(&iid).unwrap(), String::new()));
    let cached = build(&flags, b"").success();
    assert!(cached.stderr().matches(" CACHED\n").count() >= 2, "{cached}");
    // Results that come here: a folder, which keeps what it has, and an archive.
    let out = at("out");
    build(&["--secret", &secret, "-o", &out, &context], b"").success();
    let text = |name: &str| fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    assert_eq!((text("n").trim(), text("kept").as_str(), text("old").as_str()), ("6", "1", "old"));
    let archive = build(&["--secret", &secret, "-o", "-", &context], b"").success();
    assert!(archive.stdout().contains("kept"), "{archive}");
    // From standard input: a Dockerfile without a context, and an archive.
    build(&["-q", "-"], b"FROM busybox\nENV a=b\n").success();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", &context).unwrap();
    build(&["--secret", &secret, "-"], &tar.into_inner().unwrap()).success();
    // What fails says which step, what it said, and why.
    let failed = build(&["--progress", "plain", "-f", &at("Outside"), &context], b"").expect_code(1);
    let said = failed.stderr();
    assert!(
        said.contains("------\n > [2/2] RUN echo before; exit 7:\n") && said.contains(" before\n------\n"),
        "{failed}"
    );
    assert!(
        said.trim_end().ends_with("exit code: 7") && said.contains("\nERROR: failed to build: failed to solve: "),
        "{failed}"
    );
    let raw = build(&["--progress", "rawjson", "-f", &at("Outside"), &context], b"").expect_code(1);
    let first = raw.stderr().lines().next().unwrap_or_default().to_owned();
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert!(first["vertexes"][0]["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{first}");
    build(&["nowhere"], b"").expect_code(1).expect_error("unable to prepare context: path \"nowhere\" not found");
    build(&["--check", &context], b"").expect_code(1).expect_error("the builder doesn't answer frontend.lint");
    let used = berth(&dockerd, &["builder", "du"]).success().stdout();
    assert!(used.starts_with("ID") && used.contains("\nTotal:\t\t"), "{used}");
    berth(&dockerd, &["builder", "prune", "-af"]).success();
}
