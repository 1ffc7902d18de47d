//! Images in and out through the clients: the same words do the same with Berth's client and with the real docker, against a
//! registry that wants a password.

use integration_tests::{
    Outcome, Stack,
    programs::{peer_or_skip, program},
    registry::Registry,
    run_with,
    stack::has_docker,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// A client with a config folder of its own.
struct Client<'a> {
    stack: &'a Stack,
    program: PathBuf,
    config: PathBuf,
}

impl Client<'_> {
    fn with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.stack.client(&self.program);
        run_with(command.args(args).env("DOCKER_CONFIG", &self.config), input, Duration::from_secs(60))
    }

    fn run(&self, args: &[&str]) -> Outcome {
        self.with_input(args, b"")
    }

    fn id_of(&self, image: &str) -> String {
        self.run(&["image", "inspect", "-f", "{{.Id}}", image]).success().stdout()
    }
}

/// Both clients, as far as they are here.
fn clients(stack: &Stack) -> Vec<Client<'_>> {
    let mut programs = vec![program("berth")];
    if has_docker() {
        programs.push("docker".into());
    }
    let client = |(number, program): (usize, PathBuf)| {
        let config = stack.path().join(format!("config{number}"));
        Client { stack, program, config }
    };
    programs.into_iter().enumerate().map(client).collect()
}

#[test]
fn images_go_in_and_out() {
    if peer_or_skip("docker-registry").is_none() {
        return;
    }
    let stack = Stack::with_busybox();
    let registry = Registry::with_password(stack.path());
    let host = registry.host();
    for client in clients(&stack) {
        let name = |repository: &str| format!("{host}/{repository}");
        client.run(&["create", "--name", "box", "busybox", "sh", "-c", "echo data > /made"]).success();
        client.run(&["start", "box"]).success();
        client.run(&["wait", "box"]).success();

        let changes = client.run(&["diff", "box"]).success().stdout();
        assert!(changes.lines().any(|line| line == "A /made"), "{changes}");

        // From a container to an image, and to a registry.
        let words = ["commit", "-a", "me", "-m", "why", "-c", "ENV MADE=yes", "box", &name("team/app")];
        let id = client.run(&words).success().stdout();
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(client.id_of(&name("team/app")), id);
        let history = client.run(&["history", "--format", "{{.Comment}}", &id]).success().stdout();
        assert_eq!(history.lines().next(), Some("why"));
        client.run(&["push", &name("team/app")]).expect_code(1);
        client.with_input(&["login", "-u", "u", "--password-stdin", &host], b"wrong\n").expect_code(1);
        let login = client.with_input(&["login", "-u", "u", "--password-stdin", &host], b"p\n").success();
        assert_eq!(login.stdout(), "Login Succeeded");
        let mode = fs::metadata(client.config.join("config.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pushed = client.run(&["push", &name("team/app")]).success();
        assert!(pushed.stdout().contains("latest: digest: sha256:"), "{pushed}");
        let again = client.run(&["push", &name("team/app:latest")]).success();
        assert!(again.stdout().contains("Layer already exists"), "{again}");
        client.run(&["tag", &name("team/app"), &name("team/app:two")]).success();
        assert_eq!(client.run(&["push", "-aq", &name("team/app")]).success().stdout(), name("team/app"));

        // And back, by name and by digest.
        client.run(&["rmi", "-f", &id]).success();
        assert_eq!(client.run(&["pull", "-q", &name("team/app:two")]).success().stdout(), name("team/app:two"));
        assert_eq!(client.id_of(&name("team/app:two")), id);
        let digest = client.run(&["image", "inspect", "-f", "{{index .RepoDigests 0}}", &id]).success().stdout();
        client.run(&["rmi", "-f", &id]).success();
        client.run(&["pull", &digest]).success();
        client.run(&["rmi", &digest]).success();
        client.run(&["pull", "-a", &name("team/app")]).success();
        let tags = client.run(&["images", "--format", "{{.Tag}}", &name("team/app")]).success().stdout();
        let mut tags: Vec<&str> = tags.lines().collect();
        tags.sort_unstable();
        assert_eq!(tags, ["latest", "two"]);

        // Through archives.
        let archive = stack.path().join("saved.tar");
        let archive = archive.to_str().unwrap();
        client.run(&["save", "-o", archive, &name("team/app:two")]).success();
        client.run(&["rmi", "-f", &id]).success();
        let loaded = client.run(&["load", "-i", archive]).success();
        assert_eq!(loaded.stdout(), format!("Loaded image: {}", name("team/app:two")));
        assert_eq!(client.id_of(&name("team/app:two")), id);
        let root = stack.path().join("root.tar");
        let root = root.to_str().unwrap();
        client.run(&["export", "-o", root, "box"]).success();
        let imported = client.run(&["import", "-c", "CMD [\"true\"]", root, "flat:1"]).success().stdout();
        assert_eq!(client.id_of("flat:1"), imported);
        client.run(&["run", "--rm", "--net", "none", "flat:1"]).success();

        // What is told of it all.
        let df = client.run(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]).success().stdout();
        assert!(df.starts_with("Images ") && df.contains("Containers 1"), "{df}");
        client.run(&["system", "df", "-v"]).success();
        client.run(&["rm", "box"]).success();
        client.run(&["rmi", "flat:1"]).success();
        let pruned = client.run(&["image", "prune", "-af", "--filter", "label!=keep"]).success().stdout();
        assert!(pruned.contains("untagged: ") && pruned.contains("Total reclaimed space: "), "{pruned}");
        client.run(&["logout", &host]).success();
        client.run(&["pull", &name("team/app:two")]).expect_code(1);
        stack.load_busybox();
    }
}

#[test]
fn berths_own_words() {
    if peer_or_skip("docker-registry").is_none() {
        return;
    }
    let stack = Stack::with_busybox();
    let registry = Registry::with_password(stack.path());
    let name = format!("{}/app:1", registry.host());
    let berth = clients(&stack).remove(0);
    berth.with_input(&["login", "-u", "u", "--password-stdin", &registry.host()], b"p").success();
    berth.run(&["tag", "busybox", &name]).success();
    berth.run(&["push", "-q", &name]).success();
    let shown = berth.run(&["manifest", "inspect", &name]).success().stdout();
    let manifest: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(manifest["schemaVersion"], 2, "{shown}");
    let shown = berth.run(&["manifest", "inspect", "-v", "--insecure", &name]).success().stdout();
    let described: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(described["Ref"], name.as_str(), "{shown}");
    assert_eq!(described["Descriptor"]["platform"]["os"], "linux", "{shown}");
    berth.run(&["manifest", "inspect", &format!("{}/gone:1", registry.host())]).expect_error("no such manifest: ");

    let sound = berth.run(&["image", "verify"]).success().stdout();
    assert!(sound.starts_with("Verified ") && sound.ends_with(": no damage"), "{sound}");
    // The layer as it was pushed is the one that the name stands for.
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    fs::write(blob(&stack.data_root(), digest), "damaged").unwrap();
    let damaged = berth.run(&["image", "verify"]).expect_code(1);
    assert!(damaged.stdout().contains(digest) && damaged.stdout().ends_with("damaged"), "{damaged}");
    berth.run(&["image", "verify", &name]).expect_code(1);

    // On a terminal the whole is summed up, and nothing wraps.
    let line = format!("stty cols 50 rows 8; {} pull {name}", berth.program.display());
    berth.run(&["rmi", "-f", &name, "busybox"]);
    let mut script = stack.client("script");
    script.args(["-qec", &line, "/dev/null"]).env("DOCKER_CONFIG", &berth.config).env("TERM", "xterm");
    let pulled = run_with(&mut script, b"", Duration::from_secs(60)).success().stdout();
    assert!(pulled.contains("Pull complete") && pulled.contains("\u{1b}[K"), "{pulled:?}");
}

fn blob(data_root: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    let path = data_root.join("supervisor/content/blobs").join(algorithm).join(hex);
    assert!(path.exists(), "{} is missing", path.display());
    path
}
