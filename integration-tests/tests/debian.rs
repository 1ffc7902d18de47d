//! A real Debian with a real server in it: imported, published, pushed to a real registry, pulled by tag and by digest.

use integration_tests::{
    Stack, eventually, programs::peer_or_skip, registry::Registry, run, run_with, stack::has_docker,
};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// A Debian root with nginx, made once per machine and kept beside the build output.
fn debian_with_nginx() -> Option<PathBuf> {
    let mmdebstrap = peer_or_skip("mmdebstrap")?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test/debian-nginx.tar");
    if !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let part = path.with_extension("part");
        let mut command = Command::new(mmdebstrap);
        command.args(["--format=tar", "--variant=minbase", "--include=nginx-light", "bookworm"]).arg(&part);
        run_with(&mut command, b"", Duration::from_secs(600)).success();
        std::fs::rename(&part, &path).unwrap();
    }
    Some(path)
}

fn page(port: u16) -> String {
    run("curl", ["-s", "-m", "2", &format!("http://127.0.0.1:{port}/")]).stdout()
}

#[test]
fn debian_with_nginx_lives_and_travels() {
    let (Some(rootfs), Some(skopeo)) = (debian_with_nginx(), peer_or_skip("skopeo")) else { return };
    if peer_or_skip("docker-registry").is_none() {
        return;
    }
    let stack = Stack::start();
    let port = 22_000 + stack.gateway().split('.').nth(2).unwrap().parse::<u16>().unwrap();
    let change = r#"CMD ["nginx", "-g", "daemon off; error_log stderr info;"]"#;
    let mut import = stack.client(integration_tests::programs::program("berth"));
    import.args(["import", "-c", change, rootfs.to_str().unwrap(), "debian-nginx:1"]);
    run_with(&mut import, b"", Duration::from_secs(300)).success();

    // run -d -p, curl, exec -it, logs -f, stop
    stack.berth(["run", "-d", "--name", "web", "-p", &format!("{port}:80"), "debian-nginx:1"]).success();
    eventually("nginx serves its page", || page(port).contains("Welcome to nginx").then_some(()));
    let line = format!("{} exec -it web bash", integration_tests::programs::program("berth").display());
    let shell = run_with(
        stack.client("script").args(["-qec", &line, "/dev/null"]),
        b"cat /etc/debian_version; ps 2>/dev/null; exit 5\n",
        Duration::from_secs(30),
    );
    assert_eq!(shell.code(), 5, "{shell}");
    assert!(shell.stdout().contains("12."), "{shell}");
    let berth = integration_tests::programs::program("berth");
    let mut follow =
        stack.client(berth).args(["logs", "-f", "web"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stderr.take().unwrap()).lines();
    page(port);
    assert!(lines.any(|line| line.unwrap().contains("client")), "logs -f shows no request");
    let stopped = stack.berth(["stop", "-t", "10", "web"]).success();
    assert!(stopped.took() < Duration::from_secs(8), "nginx ends by itself on SIGTERM: {stopped}");
    follow.wait().unwrap();
    assert_eq!(stack.inspect("web")["State"]["ExitCode"], 0);
    stack.berth(["rm", "web"]).success();

    // The same root filesystem as an image in a real registry, pushed by skopeo, pulled by tag and by digest.
    let registry = Registry::start(stack.path());
    let layout = stack.path().join("layout");
    let oci = format!("oci:{}:1", layout.display());
    run("umoci", ["init", "--layout", layout.to_str().unwrap()]).success();
    run("umoci", ["new", "--image", &format!("{}:1", layout.display())]).success();
    let mut layer = Command::new("umoci");
    layer.args(["raw", "add-layer", "--image", &format!("{}:1", layout.display())]).arg(&rootfs);
    run_with(&mut layer, b"", Duration::from_secs(300)).success();
    run(
        "umoci",
        [
            "config",
            "--image",
            &format!("{}:1", layout.display()),
            "--config.cmd",
            "nginx",
            "--config.cmd",
            "-g",
            "--config.cmd",
            "daemon off;",
        ],
    )
    .success();
    let name = format!("{}/team/nginx", registry.host());
    let mut push = Command::new(skopeo);
    push.args(["copy", "-q", "--dest-tls-verify=false", &oci, &format!("docker://{name}:1")]);
    run_with(&mut push, b"", Duration::from_secs(300)).success();
    stack.berth(["pull", "-q", &format!("{name}:1")]).success();
    let digests = stack.berth(["inspect", "-f", "{{index .RepoDigests 0}}", &format!("{name}:1")]).success().stdout();
    assert!(digests.starts_with(&format!("{name}@sha256:")), "{digests}");
    stack.berth(["run", "-d", "--name", "pulled", "-p", &format!("{port}:80"), &format!("{name}:1")]).success();
    eventually("the pulled image serves its page", || page(port).contains("Welcome to nginx").then_some(()));
    stack.berth(["rm", "-f", "pulled"]).success();
    stack.berth(["rmi", "-f", &format!("{name}:1")]).success();
    stack.berth(["pull", "-q", &digests]).success();
    assert_eq!(stack.berth(["run", "--rm", &digests, "cat", "/etc/hostname"]).code(), 0);
    if has_docker() {
        let pulled = stack.docker(["pull", &format!("{name}:1")]).success();
        assert!(pulled.stdout().contains("Status: ") && pulled.stdout().contains("Digest: sha256:"), "{pulled}");
        assert!(stack.docker(["images"]).success().stdout().contains(&name));
        stack.docker(["run", "--rm", &format!("{name}:1"), "true"]).success();
    }
    let unknown = stack.berth(["pull", &format!("{name}:nope")]).expect_code(1);
    assert!(unknown.stderr().contains("not found") || unknown.stderr().contains("manifest unknown"), "{unknown}");
}
