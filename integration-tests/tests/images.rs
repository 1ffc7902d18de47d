//! Images made, pushed and pulled through the real docker client and Berth's own, against a real registry; other programs
//! see the same ids.

use integration_tests::{
    Outcome, Stack,
    programs::{peer_or_skip, program},
    registry::Registry,
    run, run_with,
    stack::has_docker,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

fn clients() -> Vec<PathBuf> {
    let mut found = vec![program("berth")];
    if has_docker() {
        found.push("docker".into());
    }
    found
}

fn cli(stack: &Stack, client: &Path, args: &[&str]) -> Outcome {
    run_with(stack.client(client).args(args), b"", Duration::from_secs(60))
}

fn id_of(stack: &Stack, name: &str) -> String {
    stack.api().get(&format!("/images/{name}/json")).expect(200).json()["Id"].as_str().unwrap().to_owned()
}

#[test]
fn commit_diff_export_and_import() {
    let stack = Stack::with_busybox();
    for client in clients() {
        let docker = |args: &[&str]| cli(&stack, &client, args).success().stdout();
        let script = "echo new >/new; rm /www/index.html; mkdir /srv; chmod 600 /etc/passwd; sleep 1000";
        docker(&["run", "-d", "--name", "source", "busybox", "sh", "-c", script]);
        integration_tests::eventually("it has written", || {
            docker(&["diff", "source"]).contains("/etc/passwd").then_some(())
        });
        let diff = docker(&["diff", "source"]);
        assert_eq!(diff, "C /etc\nC /etc/passwd\nA /new\nA /srv\nC /www\nD /www/index.html", "{}", client.display());
        let change = ["-c", "ENTRYPOINT [\"cat\"]", "-c", "CMD [\"/new\"]", "-c", "ENV A=b", "-c", "EXPOSE 80"];
        let id = docker(&[&["commit", "-a", "me", "-m", "note"][..], &change, &["source", "made:1"]].concat());
        assert_eq!(id, id_of(&stack, "made:1"));
        assert_eq!(docker(&["inspect", "-f", "{{.State.Status}}", "source"]), "running");
        assert_eq!(docker(&["run", "--rm", "made:1"]), "new");
        let history = docker(&["history", "--format", "{{.Comment}}|{{.CreatedBy}}", "--no-trunc", "made:1"]);
        assert!(history.starts_with("note|sh -c echo new"), "{history}");
        let archive = stack.path().join("exported.tar");
        docker(&["export", "-o", &archive.display().to_string(), "source"]);
        docker(&["import", "-c", "CMD [\"cat\", \"/new\"]", &archive.display().to_string(), "flat:1"]);
        assert_eq!(docker(&["run", "--rm", "flat:1"]), "new");
        assert_eq!(docker(&["run", "--rm", "flat:1", "stat", "-c", "%a", "/etc/passwd"]), "600");
        cli(&stack, &client, &["run", "--rm", "flat:1", "cat", "/www/index.html"]).expect_code(1);
        docker(&["rm", "-f", "source"]);
        docker(&["rmi", "made:1", "flat:1"]);
    }
}

#[test]
fn push_and_pull_keep_the_id() {
    if peer_or_skip("docker-registry").is_none() {
        return;
    }
    let stack = Stack::with_busybox();
    let registry = Registry::start(stack.path());
    let host = registry.host();
    for (number, client) in clients().into_iter().enumerate() {
        let docker = |args: &[&str]| cli(&stack, &client, args).success();
        let name = format!("{host}/made{number}/app");
        docker(&["run", "--name", "source", "busybox", "sh", "-c", &format!("echo {number} >/mark")]);
        // The new layer is stored uncompressed, and compressed for the push.
        docker(&["commit", "source", &format!("{name}:1")]);
        let id = id_of(&stack, &format!("{name}:1"));
        let pushed = docker(&["push", &format!("{name}:1")]).stdout();
        assert!(pushed.starts_with(&format!("The push refers to repository [{name}]")), "{pushed}");
        assert!(pushed.contains("Pushed") && pushed.contains("1: digest: sha256:"), "{pushed}");
        let again = docker(&["push", &format!("{name}:1")]).stdout();
        assert!(again.contains("Layer already exists") && !again.contains("Pushed"), "{again}");
        let digest = again.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().to_owned();
        let digests = docker(&["inspect", "-f", "{{json .RepoDigests}}", &format!("{name}:1")]).stdout();
        assert!(digests.contains(&format!("{name}@{digest}")), "{digests}");
        // In another repository the registry has it already.
        let other = format!("{host}/other{number}/app");
        docker(&["tag", &format!("{name}:1"), &format!("{other}:1")]);
        let mounted = docker(&["push", &format!("{other}:1")]).stdout();
        assert!(mounted.contains(&format!("Mounted from made{number}/app")), "{mounted}");
        // All tags.
        docker(&["tag", "busybox", &format!("{name}:2")]);
        let all = docker(&["push", "-a", &name]).stdout();
        assert!(all.contains("1: digest: ") && all.contains("2: digest: "), "{all}");
        let missing = cli(&stack, &client, &["push", &format!("{host}/no/such:1")]);
        assert_ne!(missing.code(), 0);
        assert!(missing.stderr().contains("An image does not exist locally with the tag: "), "{missing}");

        if peer_or_skip("skopeo").is_some() {
            let source = format!("docker://{name}:1");
            let raw = run("skopeo", ["inspect", "--tls-verify=false", "--raw", &source]).success().stdout();
            let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
            assert_eq!(manifest["config"]["digest"], id);
            let types = manifest["layers"].as_array().unwrap().iter().map(|l| l["mediaType"].as_str().unwrap());
            assert!(types.clone().all(|kind| kind.ends_with("gzip")), "{manifest}");
        }
        docker(&["rm", "source"]);
        let names: Vec<String> = [format!("{name}:1"), format!("{name}:2"), format!("{other}:1")].into();
        for name in &names {
            docker(&["rmi", name]);
        }
        docker(&["pull", "-a", &name]);
        assert_eq!(id_of(&stack, &format!("{name}:1")), id);
        assert_eq!(id_of(&stack, &format!("{name}:2")), id_of(&stack, "busybox"));
        assert_eq!(docker(&["run", "--rm", &format!("{name}:1"), "cat", "/mark"]).stdout(), number.to_string());
        // By digest, and what the registry says of it.
        docker(&["pull", &format!("{other}@{digest}")]);
        assert_eq!(id_of(&stack, &format!("{other}@{digest}")), id);
        let told = stack.api().get(&format!("/distribution/{name}:1/json")).expect(200).json();
        assert_eq!(told["Descriptor"]["digest"], digest);
    }
}

#[test]
fn disk_usage_and_prune() {
    let stack = Stack::with_busybox();
    for client in clients() {
        let docker = |args: &[&str]| cli(&stack, &client, args).success().stdout();
        let before = docker(&["system", "df", "--format", "{{.Type}} {{.Size}}"]);
        docker(&["run", "--name", "source", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1000000", "count=5"]);
        assert!(docker(&["ps", "-as", "--format", "{{.Size}}"]).starts_with("5."), "{}", docker(&["ps", "-as"]));
        docker(&["commit", "source", "made"]);
        docker(&["commit", "source", "made"]);
        assert_ne!(docker(&["system", "df", "--format", "{{.Type}} {{.Size}}"]), before);
        let table = docker(&["system", "df", "-v"]);
        assert!(table.contains("Images space usage") && table.contains("made"), "{table}");
        docker(&["rm", "source"]);
        // The first of the two has lost its name to the second.
        let pruned = docker(&["image", "prune", "-f"]);
        assert!(pruned.to_lowercase().contains("deleted: sha256:"), "{pruned}");
        docker(&["rmi", "made"]);
        assert_eq!(docker(&["system", "df", "--format", "{{.Type}} {{.Size}}"]), before);
    }
}

/// PyPI's `docker`, if this machine's python3 has it.
#[test]
fn docker_py_pushes_commits_saves_and_loads() {
    let python = std::env::var("BERTH_PYTHON").unwrap_or_else(|_| "python3".into());
    if peer_or_skip("docker-registry").is_none() {
        return;
    }
    if !std::process::Command::new(&python).args(["-c", "import docker"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} has no module docker (pip install docker; BERTH_PYTHON names another python)");
        return;
    }
    let stack = Stack::with_busybox();
    let registry = Registry::start(stack.path());
    let script = r#"
import docker, sys, io
client = docker.from_env(timeout=60)
host = sys.argv[1]
box = client.containers.run("busybox", ["sh", "-c", "echo py >/new"], detach=True)
assert box.wait()["StatusCode"] == 0
assert {"Path": "/new", "Kind": 1} in box.diff(), box.diff()
image = box.commit(host + "/py/app", "1", message="m", author="a", changes=["ENV A=b", "CMD cat /new"])
assert "A=b" in image.attrs["Config"]["Env"]
assert client.containers.run(image.id, remove=True) == b"py\n"
lines = list(client.images.push(host + "/py/app", tag="1", stream=True, decode=True))
assert not [l for l in lines if "error" in l], lines
aux = [l["aux"] for l in lines if "aux" in l][0]
assert aux["Tag"] == "1" and aux["Digest"].startswith("sha256:") and aux["Size"] > 0
data = client.images.get_registry_data(host + "/py/app:1")
assert data.id == aux["Digest"], (data.id, aux)
assert data.has_platform("linux/amd64") or data.has_platform("linux/arm64")
saved = b"".join(image.save(named=True))
client.images.remove(image.id, force=True)
loaded = client.images.load(saved)
assert loaded[0].id == image.id and loaded[0].tags == [host + "/py/app:1"], loaded
client.images.remove(image.id, force=True)
pulled = client.images.pull(host + "/py/app", tag="1")
assert pulled.id == image.id
every = client.images.pull(host + "/py/app", all_tags=True)
assert [i.id for i in every] == [image.id]
exported = b"".join(box.export())
assert len(exported) > 1000000
usage = client.df()
assert usage["LayersSize"] > 0 and usage["Containers"][0]["SizeRw"] > 0
box.remove()
try:
    client.images.push(host + "/no/such", tag="1")
    client.images.get_registry_data(host + "/no/such:1")
    raise SystemExit("found what is not there")
except docker.errors.NotFound:
    pass
print("done")
"#;
    let file = stack.path().join("script.py");
    std::fs::write(&file, script).unwrap();
    let mut command = stack.client(&python);
    let outcome = run_with(command.arg(&file).arg(registry.host()), b"", Duration::from_secs(90)).success();
    assert_eq!(outcome.stdout(), "done");
}

#[test]
fn search_and_login() {
    let stack = Stack::with_busybox();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    // As much of a registry as both need: the old search, and a door that stands open.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve_search(stream));
        }
    });
    for client in clients() {
        let found = cli(&stack, &client, &["search", "--no-trunc", "--filter", "stars=3", &format!("{host}/web")]);
        let found = found.success().stdout();
        assert!(found.contains("web") && found.contains("a server of pages") && found.contains("30"), "{found}");
        assert!(!found.contains("team/web"), "{found}");
        cli(&stack, &client, &["search", "--limit", "200", &format!("{host}/web")])
            .expect_code(1)
            .expect_error("outside the range of [1, 100]");
        let mut login = stack.client(&client);
        let login = login.args(["login", "-u", "user", "--password-stdin", &host]);
        let said = run_with(login, b"secret\n", Duration::from_secs(60)).success();
        assert!(said.stdout().contains("Login Succeeded"), "{said}");
    }
}

fn serve_search(stream: std::net::TcpStream) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
        while reader.read_line(&mut line)? > 2 {}
        let entry = |name: &str, stars: u32| {
            serde_json::json!({
                "name": name, "description": "a server of pages", "star_count": stars, "is_official": stars > 9,
                "is_automated": false,
            })
        };
        let body = match path.split('?').next() {
            Some("/v1/search") => {
                serde_json::json!({"num_results": 2, "results": [entry("web", 30), entry("team/web", 2)]})
            }
            _ => serde_json::json!({}),
        };
        let body = body.to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        writer.write_all((head + &body).as_bytes())?;
    }
}
