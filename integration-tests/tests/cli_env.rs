//! What is around berth's commands: contexts, TLS, ssh, plugins, config.json; beside the real docker client, which has the same
//! files and protocols.

use integration_tests::{
    Outcome, Stack, eventually_within,
    programs::{peer, peer_or_skip, program},
    run, run_with,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A folder for config.json, contexts and plugins, and nothing else of the user's surroundings.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("berth-env-").tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn client(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = Command::new(program.as_ref());
        for name in
            ["DOCKER_HOST", "BERTH_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_TLS", "DOCKER_CERT_PATH"]
        {
            command.env_remove(name);
        }
        command.env("DOCKER_CONFIG", self.at("config")).env("HOME", self.folder.path()).args(args);
        fs::create_dir_all(self.at("runtime")).unwrap();
        command.env("XDG_RUNTIME_DIR", self.at("runtime"));
        command.current_dir(self.folder.path());
        command
    }

    fn berth(&self, args: &[&str]) -> Outcome {
        finish(self.client(program("berth"), args))
    }

    fn docker(&self, args: &[&str]) -> Outcome {
        finish(self.client("docker", args))
    }
}

fn finish(mut command: Command) -> Outcome {
    run_with(&mut command, b"", Duration::from_secs(60))
}

#[test]
fn contexts_are_shared_with_docker() {
    if peer_or_skip("docker").is_none() {
        return;
    }
    let home = Home::new();
    let create = |by: &dyn Fn(&[&str]) -> Outcome, name: &str| {
        by(&["context", "create", name, "--docker", "host=tcp://127.0.0.1:9999", "--description", "of one of two"])
    };
    let ours = create(&|args| home.berth(args), "ours").success();
    let theirs = create(&|args| home.docker(args), "theirs").success();
    assert_eq!((ours.stdout(), ours.stderr()), ("ours".into(), "Successfully created context \"ours\"".into()));
    assert_eq!((theirs.stdout(), theirs.stderr()), ("theirs".into(), "Successfully created context \"theirs\"".into()));
    // The same lines in every step, whoever is asked.
    for args in [
        &["context", "ls", "--format", "{{.Name}} {{.Current}} {{.Description}} {{.DockerEndpoint}} {{.Error}}"][..],
        &["context", "inspect", "ours", "theirs"],
        &["context", "inspect", "ours", "nope", "-f", "{{.Name}} {{.Endpoints.docker.Host}} {{json .TLSMaterial}}"],
        &["context", "create", "ours"],
        &["context", "create", "default"],
        &["context", "create", "x"],
        &["context", "create", "xx", "--docker", "bogus=1"],
        &["context", "create", "xx", "--from", "ours", "--docker", "host=unix:///x"],
        &["context", "create", "xx", "--docker", "skip-tls-verify=maybe,host=tcp://a:1"],
        &["context", "create", "xx", "--docker", "ca=/nope.pem,host=tcp://a:1"],
        &["context", "rm", "nope"],
        &["context", "rm", "default"],
        &["context", "use", "theirs"],
        &["context", "show"],
        &["context", "rm", "theirs"],
        &["context", "update", "theirs", "--description", "changed"],
        &["context", "inspect"],
        &["context", "ls", "-q"],
        &["context", "use", "default"],
        &["context", "rm", "-f", "nope"],
    ] {
        let (docker, berth) = (home.docker(args), home.berth(args));
        let masked = |text: String| text.replace("unix:///run/berth/engine.sock", "unix:///var/run/docker.sock");
        assert_eq!(
            (berth.code(), masked(berth.stdout()), berth.stderr()),
            (docker.code(), docker.stdout(), docker.stderr()),
            "{args:?}"
        );
    }
    home.berth(&["context", "update", "theirs", "--docker", "host=tcp://127.0.0.1:1"]).success();
    let host = home.docker(&["context", "inspect", "theirs", "-f", "{{.Endpoints.docker.Host}}"]).success();
    assert_eq!(host.stdout(), "tcp://127.0.0.1:1");
    home.berth(&["context", "create", "copy", "--from", "theirs"]).success();
    home.docker(&["context", "rm", "copy", "ours"]).success();
    assert_eq!(home.berth(&["context", "ls", "-q"]).success().stdout(), "default\ntheirs");
    // A key of config.json that neither knows is kept by `use`.
    fs::write(home.at("config/config.json"), r#"{"auths":{},"own":{"kept":[1,2]}}"#).unwrap();
    home.berth(&["context", "use", "theirs"]).success();
    let text: String = fs::read_to_string(home.at("config/config.json")).unwrap().split_whitespace().collect();
    assert_eq!(text, r#"{"auths":{},"own":{"kept":[1,2]},"currentContext":"theirs"}"#);
    assert_eq!(home.docker(&["context", "show"]).success().stdout(), "theirs");
    home.berth(&["context", "rm", "-f", "theirs"]).success();
    let text: String = fs::read_to_string(home.at("config/config.json")).unwrap().split_whitespace().collect();
    assert_eq!(text, r#"{"auths":{},"own":{"kept":[1,2]}}"#);
}

#[test]
fn contexts_travel_as_archives() {
    if peer_or_skip("docker").is_none() {
        return;
    }
    let home = Home::new();
    certificates(&home);
    let endpoint = format!("host=tcp://a:2376,ca={0}/ca.pem,cert={0}/cert.pem,key={0}/key.pem", home.at("tls"));
    home.berth(&["context", "create", "one", "--docker", &endpoint]).success();
    home.berth(&["context", "export", "one"]).success();
    home.berth(&["context", "export", "one"]).expect_code(1).expect_error("open one.dockercontext: file exists");
    assert_eq!(fs::metadata(home.at("one.dockercontext")).unwrap().permissions().mode() & 0o777, 0o600);
    home.docker(&["context", "import", "two", "one.dockercontext"]).success();
    home.docker(&["context", "export", "two", "two.tar"]).success();
    home.berth(&["context", "import", "three", "two.tar"]).success();
    let archive = home.berth(&["context", "export", "three", "-"]).success();
    let import = &mut home.client("docker", &["context", "import", "four", "-"]);
    run_with(import, archive.stdout_bytes(), Duration::from_secs(20)).success();
    for name in ["two", "three", "four"] {
        let shown = home.berth(&["context", "inspect", name, "-f", "{{json .TLSMaterial}} {{.Endpoints.docker.Host}}"]);
        assert_eq!(shown.success().stdout(), r#"{"docker":["ca.pem","cert.pem","key.pem"]} tcp://a:2376"#, "{name}");
    }
    home.berth(&["context", "import", "two", "two.tar"]).expect_code(1).expect_error("context \"two\" already exists");
}

#[test]
fn which_engine_is_meant() {
    let home = Home::new();
    for (name, port) in [("one", 1), ("two", 2)] {
        home.berth(&["context", "create", name, "--docker", &format!("host=tcp://127.0.0.1:{port}")]).success();
    }
    let asked = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = home.client(program("berth"), args);
        finish({
            command.envs(variables.iter().copied());
            command
        })
        .expect_code(1)
        .stderr()
    };
    let cannot = |where_: &str| format!("Cannot connect to the Berth engine at {where_}. Is berth-engine running?");
    let none = "unix:///nonexistent/sock";
    assert!(asked(&["-c", "one", "ps"], &[("DOCKER_HOST", none)]).starts_with(&cannot("tcp://127.0.0.1:1")));
    assert!(
        asked(&["-H", "tcp://127.0.0.1:3", "ps"], &[("DOCKER_CONTEXT", "one")])
            .starts_with(&cannot("tcp://127.0.0.1:3"))
    );
    assert!(asked(&["ps"], &[("DOCKER_HOST", none), ("DOCKER_CONTEXT", "one")]).starts_with(&cannot(none)));
    assert!(asked(&["ps"], &[("BERTH_HOST", none), ("DOCKER_HOST", "tcp://127.0.0.1:4")]).starts_with(&cannot(none)));
    assert!(asked(&["ps"], &[("DOCKER_CONTEXT", "one")]).starts_with(&cannot("tcp://127.0.0.1:1")));
    home.berth(&["context", "use", "two"]).success();
    assert!(asked(&["ps"], &[]).starts_with(&cannot("tcp://127.0.0.1:2")));
    assert!(asked(&["ps"], &[("DOCKER_CONTEXT", "one")]).starts_with(&cannot("tcp://127.0.0.1:1")));
    assert_eq!(
        asked(&["-c", "one", "-H", "tcp://x", "ps"], &[]),
        "conflicting options: cannot specify both --host and --context"
    );
    assert!(asked(&["ps"], &[("DOCKER_CONTEXT", "onee")]).contains("context \"onee\": context not found"));
    assert!(asked(&["ps"], &[("DOCKER_CONTEXT", "onee")]).contains("did you mean one?"));
    assert!(asked(&["-H", "fd://", "ps"], &[]).contains("fd:// is what systemd hands to a daemon"));
    let warned = finish({
        let mut command = home.client(program("berth"), &["context", "ls"]);
        command.env("DOCKER_HOST", none);
        command
    });
    assert!(
        warned
            .success()
            .stderr()
            .starts_with("Warning: DOCKER_HOST environment variable overrides the active context.")
    );
}

/// Every template of the list prints the same, or fails with the same words and code, in both clients.
#[test]
fn templates_are_gos() {
    if peer_or_skip("docker").is_none() {
        return;
    }
    let home = Home::new();
    home.berth(&["context", "create", "data", "--docker", "host=tcp://h:1"]).success();
    let templates: Vec<&str> = include_str!("cli_env/templates.txt").lines().collect();
    assert!(templates.len() > 200);
    let differences: Vec<String> = std::thread::scope(|scope| {
        let compare = |template: &&str| {
            let args = ["context", "inspect", "data", "-f", template];
            let (docker, berth) = (home.docker(&args), home.berth(&args));
            let said = |outcome: &Outcome| (outcome.code(), outcome.stdout_bytes().to_vec(), outcome.stderr());
            (said(&docker) != said(&berth)).then(|| format!("{template}\n{docker}\n{berth}\n"))
        };
        let halves = templates.chunks(templates.len().div_ceil(2));
        let threads: Vec<_> =
            halves.map(|half| scope.spawn(move || half.iter().filter_map(compare).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(differences.is_empty(), "{} of {} differ\n{}", differences.len(), templates.len(), differences.join("\n"));
}

/// A CA, and certificates for an engine on 127.0.0.1 and for a client, in the folder `tls`.
fn certificates(home: &Home) {
    let dir = home.at("tls");
    fs::create_dir_all(&dir).unwrap();
    let script = "set -e; cd \"$1\"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca-key.pem -out ca.pem -subj /CN=berth-test-ca -days 2
        sign() {
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1key.pem -out $1.csr -subj /CN=$1x
            printf \"$2\" > $1.ext
            openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -out $1cert.pem -days 2 -extfile $1.ext
        }
        sign server- 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=serverAuth\\n'
        sign '' 'extendedKeyUsage=clientAuth\\n'
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout other-key.pem -out other.pem -subj /CN=other -days 2";
    run("sh", ["-c", script, "sh", &dir]).success();
}

/// Debian's dockerd that wants clients' certificates, on a port of its own.
struct Dockerd {
    child: Child,
    port: u16,
}

impl Dockerd {
    fn start(home: &Home) -> Self {
        let port = testing::free_port();
        let log = fs::File::create(home.at("dockerd.log")).unwrap();
        let tls = |name: &str| home.at(&format!("tls/{name}.pem"));
        let child = Command::new("dockerd")
            .args(["-H", &format!("tcp://127.0.0.1:{port}"), "-H", &format!("unix://{}", home.at("docker.sock"))])
            .args([
                "--tlsverify",
                "--tlscacert",
                &tls("ca"),
                "--tlscert",
                &tls("server-cert"),
                "--tlskey",
                &tls("server-key"),
            ])
            .args(["--data-root", &home.at("docker"), "--exec-root", &home.at("exec"), "--pidfile", &home.at("pid")])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let dockerd = Self { child, port };
        let host = format!("unix://{}", home.at("docker.sock"));
        eventually_within(Duration::from_secs(40), "dockerd answers", || {
            (home.berth(&["-H", &host, "version"]).code() == 0).then_some(())
        });
        dockerd
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).ok();
        self.child.wait().ok();
    }
}

#[test]
fn engines_behind_tls_and_ssh() {
    for peer in ["dockerd", "docker", "openssl"] {
        if peer_or_skip(peer).is_none() {
            return;
        }
    }
    let home = Home::new();
    certificates(&home);
    let dockerd = Dockerd::start(&home);
    let tcp = format!("tcp://127.0.0.1:{}", dockerd.port);
    let version = ["version", "--format", "{{.Server.APIVersion}} {{.Client.APIVersion}}"];
    let tls = |name: &str| home.at(&format!("tls/{name}"));
    let (ca, cert, key) = (tls("ca.pem"), tls("cert.pem"), tls("key.pem"));
    let berth = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = home.client(program("berth"), &[flags, &version[..]].concat());
        command.envs(variables.iter().copied());
        finish(command)
    };
    let files = ["--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key];
    // By flags, by variables, by a context: all the same engine.
    let by_flags = berth(&[&["-H", &tcp, "--tlsverify"], &files[..]].concat(), &[]).success();
    assert_eq!(by_flags.stdout(), "1.41 1.41");
    let variables = [("DOCKER_HOST", tcp.as_str()), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", &home.at("tls"))];
    assert_eq!(berth(&[], &variables).success().stdout(), "1.41 1.41");
    let endpoint = format!("host={tcp},ca={ca},cert={cert},key={key}");
    home.berth(&["context", "create", "secure", "--docker", &endpoint]).success();
    assert_eq!(berth(&["-c", "secure"], &[]).success().stdout(), "1.41 1.41");
    let docker = home.docker(&[&["-c", "secure"], &version[..]].concat()).success();
    assert_eq!(docker.stdout(), "1.41 1.41", "the docker client uses our context");
    home.docker(&["context", "create", "docked", "--docker", &endpoint]).success();
    assert_eq!(berth(&["-c", "docked"], &[]).success().stdout(), "1.41 1.41", "we use docker's context");
    // Not verified, but encrypted, and our certificate is shown.
    let other = tls("other.pem");
    let unverified = ["-H", &tcp, "--tls", "--tlscacert", &other, "--tlscert", &cert, "--tlskey", &key];
    assert_eq!(berth(&unverified, &[]).success().stdout(), "1.41 1.41");
    // What goes wrong says how to put it right.
    for (flags, part) in [
        (
            &["-H", &tcp, "--tlsverify", "--tlscacert", &other, "--tlscert", &cert, "--tlskey", &key][..],
            "certificate signed by unknown authority: give the engine's CA by --tlscacert",
        ),
        (&["-H", &tcp, "--tlsverify", "--tlscacert", &ca], "the engine wants another client certificate"),
        (&["-H", &tcp, "--tlsverify", "--tlscacert", "/nope/ca.pem"], "open /nope/ca.pem: no such file or directory"),
        (&["-H", &tcp], "Client sent an HTTP request to an HTTPS server."),
        (
            &["-H", &format!("unix://{}", home.at("docker.sock")), "--tlsverify", "--tlscacert", &ca],
            "TLS is for tcp:// only",
        ),
    ] {
        berth(flags, &[]).expect_code(1).expect_error(part);
    }
    by_ssh(&home, &berth);
}

/// Through a program named ssh that notes its words and runs the remote command here, where the real docker client is.
/// Runs `berth` with arguments and variables.
type Run<'a> = &'a dyn Fn(&[&str], &[(&str, &str)]) -> Outcome;

fn by_ssh(home: &Home, berth: Run<'_>) {
    let bin = home.at("bin");
    fs::create_dir_all(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {0}/words\nwhile [ \"$1\" != -- ]; do shift; done\n[ \"$2\" = broken ] && {{ echo \"no route\" >&2; exit 255; }}\nshift 2\nexec env PATH={0}/remote:/usr/bin:/bin sh -c \"$*\"\n",
        home.folder.path().display()
    );
    testing::executable(Path::new(&home.at("bin/ssh")), &script);
    fs::create_dir_all(home.at("remote")).unwrap();
    std::os::unix::fs::symlink(peer("docker").unwrap(), home.at("remote/docker")).unwrap();
    let path = format!("{bin}:/usr/bin:/bin");
    let host = format!("ssh://me@box:22{}", home.at("docker.sock"));
    let there = berth(&["-H", &host], &[("PATH", &path)]).success();
    assert_eq!(there.stdout(), "1.41 1.41");
    assert_eq!(berth(&[], &[("PATH", &path), ("DOCKER_HOST", &host)]).success().stdout(), "1.41 1.41");
    let words = fs::read_to_string(home.at("words")).unwrap();
    assert!(words.starts_with("-o ConnectTimeout=30 -T -l me -p 22 -- box sh -c"), "{words}");
    assert!(words.contains(&format!("docker --host=unix://{} system dial-stdio", home.at("docker.sock"))), "{words}");
    let broken = berth(&["-H", "ssh://broken"], &[("PATH", &path)]).expect_code(1);
    assert!(
        broken.stderr().contains("make sure the URL is valid") && broken.stderr().ends_with("stderr=no route"),
        "{broken}"
    );
    berth(&["-H", "ssh://box"], &[("PATH", "/nonexistent")]).expect_code(1).expect_error("install openssh-client");
    berth(&["-H", "ssh://u:p@box"], &[])
        .expect_code(1)
        .expect_error("invalid SSH URL: plain-text password is not supported");
}

/// A plugin that tells what it is given, or waits for its end.
const PLUGIN: &str = r#"#!/bin/sh
if [ "$1" = docker-cli-plugin-metadata ]; then
    echo '{"SchemaVersion":"0.1.0","Vendor":"Berth tests","Version":"v9","ShortDescription":"Tells what it is given"}'
    exit
fi
case "$*" in
*wait-for-signal*)
    trap 'echo ended by a signal; exit 9' TERM
    echo ready; while :; do sleep 0.05; done;;
esac
echo "args: $*"
echo "host: $DOCKER_HOST"
[ -n "$DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND" ] && echo original
[ -S "$DOCKER_CLI_PLUGIN_SOCKET" ] && echo socket
exit 7
"#;

fn install(home: &Home, folder: &str, name: &str, script: &str) {
    fs::create_dir_all(home.at(folder)).unwrap();
    testing::executable(Path::new(&home.at(&format!("{folder}/docker-{name}"))), script);
}

#[test]
fn plugins_run_as_commands() {
    let home = Home::new();
    install(&home, "config/cli-plugins", "tell", PLUGIN);
    install(&home, "extra", "other", PLUGIN);
    install(&home, "extra", "broken", "#!/bin/sh\nexit 3\n");
    fs::write(home.at("config/config.json"), format!("{{\"cliPluginsExtraDirs\":[{:?}]}}", home.at("extra"))).unwrap();
    let told = home.berth(&["-D", "tell", "a", "--flag", "-x=1"]).expect_code(7);
    let default = "host: unix:///run/berth/engine.sock\noriginal\nsocket";
    assert_eq!(told.stdout(), format!("args: -D tell a --flag -x=1\n{default}"));
    let flagged = home.berth(&["-H", "tcp://127.0.0.1:5", "other"]).expect_code(7);
    assert_eq!(flagged.stdout(), "args: -H tcp://127.0.0.1:5 other\nhost: tcp://127.0.0.1:5\noriginal\nsocket");
    let variable = finish({
        let mut command = home.client(program("berth"), &["tell"]);
        command.env("BERTH_HOST", "unix:///b.sock").env("DOCKER_HOST", "unix:///d.sock");
        command
    });
    assert!(variable.stdout().contains("host: unix:///b.sock"), "{variable}");
    // The plugin finds a context by itself, as it does under docker.
    home.berth(&["context", "create", "ctx", "--docker", "host=tcp://127.0.0.1:6"]).success();
    let context = home.berth(&["-c", "ctx", "tell"]).expect_code(7);
    assert!(context.stdout().starts_with("args: -c ctx tell\nhost: \n"), "{context}");
    assert!(home.berth(&["help", "tell"]).expect_code(7).stdout().starts_with("args: tell --help\n"));
    let help = home.berth(&["--help"]).success().stdout();
    assert!(help.contains("\n  tell*       Tells what it is given\n") && help.contains("\n  other*      "), "{help}");
    assert!(help.contains("\nInvalid Plugins:\n  broken      failed to fetch metadata: exit status: 3\n"), "{help}");
    home.berth(&["broken"])
        .expect_code(1)
        .expect_error("is no plugin that can be run: failed to fetch metadata: exit status: 3");
    let info = home.berth(&["info"]);
    assert!(
        info.stdout()
            .contains(" Plugins:\n  other: Tells what it is given (Berth tests)\n    Version:  v9\n    Path:     "),
        "{info}"
    );
    assert!(info.stderr().contains("is not valid: failed to fetch metadata"), "{info}");
    home.berth(&["telll"]).expect_code(1).expect_error("berth: unknown command: berth telll");
    assert_eq!(fs::read_dir(home.at("runtime")).unwrap().count(), 0, "no socket is left");
    if peer("docker").is_some() {
        let docker = home.docker(&["-D", "tell", "a", "--flag", "-x=1"]).expect_code(7).stdout();
        assert_eq!(docker.lines().next(), told.stdout().lines().next(), "docker hands on the same words");
    }
}

#[test]
fn plugins_are_told_to_end() {
    let home = Home::new();
    install(&home, "config/cli-plugins", "tell", PLUGIN);
    let mut child = home
        .client(program("berth"), &["tell", "wait-for-signal"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "ended by a signal");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

/// Debian's docker-compose in a plugin's clothes: it reaches the engine that berth would, and no other.
#[test]
fn compose_runs_as_a_plugin() {
    if peer_or_skip("docker-compose").is_none() {
        return;
    }
    let stack = Stack::with_busybox();
    let home = Home::new();
    let script = "#!/bin/sh\nif [ \"$1\" = docker-cli-plugin-metadata ]; then\n    echo '{\"SchemaVersion\":\"0.1.0\",\"Vendor\":\"Debian\",\"Version\":\"1.29.2\",\"ShortDescription\":\"Docker Compose\"}'\n    exit\nfi\nshift\nexec docker-compose \"$@\"\n";
    install(&home, "config/cli-plugins", "compose", script);
    fs::create_dir_all(home.at("app")).unwrap();
    let service = |name: &str| {
        format!(
            "  {name}:\n    image: busybox\n    command: sh -c 'echo {name} is up; exec sleep 1000'\n    stop_grace_period: 0s\n"
        )
    };
    fs::write(
        home.at("app/docker-compose.yml"),
        format!("version: '3'\nservices:\n{}{}", service("web"), service("db")),
    )
    .unwrap();
    let compose = |args: &[&str]| {
        let mut command = home.client(program("berth"), &[&["compose", "-p", "snapapp"], args].concat());
        command.current_dir(home.at("app")).env("BERTH_HOST", format!("unix://{}", stack.engine_socket().display()));
        // Somebody else's engine: not to be asked.
        command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        run_with(&mut command, b"", Duration::from_secs(120))
    };
    compose(&["up", "-d"]).success();
    let running = stack.berth(["ps", "--format", "{{.Names}} {{.Networks}}"]).success().stdout();
    let mut lines: Vec<&str> = running.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["snapapp_db_1 snapapp_default", "snapapp_web_1 snapapp_default"]);
    let logs = compose(&["logs", "web"]).success().stdout();
    assert!(logs.contains("web is up"), "{logs}");
    assert_eq!(compose(&["exec", "-T", "web", "sh", "-c", "exit 4"]).code(), 4);
    compose(&["down"]).success();
    assert_eq!(stack.berth(["ps", "-aq"]).success().stdout(), "");
    assert!(stack.berth(["network", "ls", "-q", "--filter", "name=snapapp"]).success().stdout().is_empty());
}
