//! The commands on images and registries against an engine that says what the test tells it to.

#![expect(clippy::unwrap_used, reason = "a test: what fails here fails it")]

#[allow(dead_code, reason = "part of it is for the other tests")]
mod fake;

use fake::{Answer, Engine, finish};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// An engine that has one answer, and refuses other requests.
fn one(line: &'static str, status: u16, text: &'static str) -> Engine {
    Engine::new(move |request| match request.line == line {
        true => Answer::Json(status, text),
        false => Answer::Json(500, r#"{"message":"not this"}"#),
    })
}

/// A folder with this config.json.
fn config(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), text).unwrap();
    dir
}

/// Runs berth with a config folder, and with the toy helpers of that folder on the PATH.
fn with_config(engine: &Engine, dir: &Path, words: &[&str], input: &[u8]) -> fake::Run {
    let mut command = engine.command(words);
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    command.env("DOCKER_CONFIG", dir).env("PATH", path);
    finish(command, input)
}

fn read(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// A credential helper that keeps one secret in a file beside itself, and logs what it is asked.
fn helper(dir: &Path) {
    let script = r#"#!/bin/sh
cd "$(dirname "$0")"
in=$(cat)
echo "$1 $in" >> log
case $1 in
store) echo "$in" > secret ;;
get) [ -e secret ] && cat secret || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) rm -f secret ;;
esac
"#;
    let path = dir.join("docker-credential-toy");
    testing::executable(&path, script);
}

#[test]
fn push_sends_the_credentials_of_exactly_that_registry() {
    // u:p
    let dir = config(r#"{"auths":{"reg.test:5000":{"auth":"dTpw"}}}"#);
    for (name, repository, header) in [
        (
            "reg.test:5000/a",
            "reg.test:5000/a",
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAiLCJzZXJ2ZXJhZGRyZXNzIjoicmVnLnRlc3Q6NTAwMCJ9",
        ),
        ("reg.test/a", "reg.test/a", "e30="),
        ("a", "a", "e30="),
    ] {
        let line = format!("POST /images/{repository}/push?tag=latest");
        let engine = Engine::new(move |request| {
            assert_eq!((request.line.as_str(), request.header("x-registry-auth")), (line.as_str(), header));
            Answer::Json(
                200,
                "{\"status\":\"The push refers to repository [x]\"}\r\n{\"status\":\"Pushed\",\"progressDetail\":{},\"id\":\"aaa\"}\r\n{\"progressDetail\":{},\"aux\":{\"Tag\":\"latest\"}}\r\n",
            )
        });
        let run = with_config(&engine, dir.path(), &["push", name], b"");
        let text = "Using default tag: latest\nThe push refers to repository [x]\naaa: Pushed\n";
        assert_eq!((run.code, run.stdout.as_str()), (Some(0), text), "{run:?}");
    }
}

#[test]
fn push_and_pull_in_all_their_ways() {
    let done = "{\"status\":\"ok\"}\r\n";
    let push = one("POST /images/r:5/a/push?tag=", 200, done);
    let run = push.run(&["push", "-aq", "r:5/a"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "r:5/a\n"), "{run:?}");
    let platform = one(
        "POST /images/a/push?platform=%7B%22architecture%22:%22amd64%22%2C%22os%22:%22linux%22%7D&tag=1",
        200,
        done,
    );
    assert_eq!(platform.run(&["image", "push", "--platform", "linux/amd64", "a:1"]).stdout, "ok\n");
    let failed = one("POST /images/a/push?tag=1", 200, r#"{"errorDetail":{"message":"denied"},"error":"denied"}"#);
    let run = failed.run(&["push", "a:1"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), "denied\n"));
    let pull = one("POST /images/create?fromImage=docker.io%2Flibrary%2Fa", 200, done);
    assert_eq!(pull.run(&["pull", "-aq", "a"]).stdout, "docker.io/library/a\n");
    for (words, text) in [
        (&["push", "-a", "a:1"][..], "tag can't be used with --all-tags/-a"),
        (&["pull", "-a", "a:1"], "tag can't be used with --all-tags/-a"),
        (&["push", &format!("a@{DIGEST}")], "cannot push a digest reference"),
        (&["push", "--disable-content-trust=false", "a"], "--disable-content-trust=false is not supported"),
    ] {
        let run = push.run(words);
        assert!(run.code == Some(1) && run.stderr.contains(text), "{run:?}");
    }
}

#[test]
fn save_and_export_write_whole_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.tar");
    let out = out.to_str().unwrap();
    let save = one("GET /images/get?names=a&names=b", 200, "archive");
    assert_eq!(save.run(&["save", "a", "b"]).stdout, "archive");
    assert_eq!(save.run(&["save", "-o", out, "a", "b"]).code, Some(0));
    assert_eq!(fs::read(out).unwrap(), b"archive");
    assert_eq!(fs::metadata(out).unwrap().permissions().mode() & 0o777, 0o600);
    let run = save.run(&["save", "-o", "/dev/null", "a"]);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (Some(1), "failed to save image: cannot write to a character device file\n")
    );
    // An engine that goes away half-way leaves the old file as it was.
    let broken = Engine::new(|request| {
        use std::io::Write;
        request.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
        Answer::Done
    });
    assert_eq!(broken.run(&["export", "-o", out, "c"]).code, Some(1));
    assert_eq!(fs::read(out).unwrap(), b"archive");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(broken.requests(), ["GET /containers/c/export"]);
}

#[test]
fn commit_says_what_the_engine_is_to_know() {
    let engine = one(
        "POST /commit?author=me&container=c&comment=why&repo=r:5%2Fa&tag=latest&changes=ENV%20A%3Db&changes=CMD%20x&pause=0",
        201,
        r#"{"Id":"sha256:new"}"#,
    );
    let words = ["commit", "-a", "me", "-m", "why", "-c", "ENV A=b", "-c", "CMD x", "--no-pause", "c", "r:5/a"];
    let run = engine.run(&words);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "sha256:new\n"), "{run:?}");
    let bare = one("POST /commit?container=c", 201, r#"{"Id":"x"}"#);
    assert_eq!(bare.run(&["container", "commit", "c"]).code, Some(0));
    let run = bare.run(&["commit", "c", &format!("a@{DIGEST}")]);
    assert_eq!(run.stderr, "refusing to create a tag with a digest reference\n");
}

#[test]
fn lists_about_images() {
    let diff = one(
        "GET /containers/c/changes",
        200,
        r#"[{"Path":"/a","Kind":0},{"Path":"/a/b","Kind":1},{"Path":"/c","Kind":2}]"#,
    );
    assert_eq!(diff.run(&["diff", "c"]).stdout, "C /a\nA /a/b\nD /c\n");
    let none = one("GET /containers/c/changes", 200, "null");
    assert_eq!(none.run(&["container", "diff", "c"]).stdout, "");
    let history = one(
        "GET /images/a/history",
        200,
        r#"[{"Id":"sha256:0123456789abcdef","Created":0,"CreatedBy":"RUN x","Size":1982256,"Comment":"c","Tags":null}]"#,
    );
    assert_eq!(
        history.run(&["history", "a"]).stdout,
        "IMAGE          CREATED   CREATED BY   SIZE      COMMENT\n0123456789ab   N/A       RUN x        1.98MB    c\n"
    );
    assert_eq!(
        history.run(&["image", "history", "-H=false", "--format", "{{.ID}} {{.Size}}", "a"]).stdout,
        "0123456789ab 1982256\n"
    );
    assert_eq!(history.run(&["history", "-q", "--no-trunc", "a"]).stdout, "sha256:0123456789abcdef\n");
    let search = one(
        "GET /images/search?filters=%7B%22is-official%22:%7B%22true%22:true%7D%7D&limit=3&term=x",
        200,
        r#"[{"name":"low","description":"a\nb","star_count":1,"is_official":false},{"name":"x","star_count":9,"is_official":true}]"#,
    );
    assert_eq!(
        search.run(&["search", "--limit", "3", "-f", "is-official=true", "x"]).stdout,
        "NAME      DESCRIPTION   STARS     OFFICIAL\nx                       9         [OK]\nlow       a b           1         \n"
    );
    let df = one(
        "GET /system/df",
        200,
        r#"{"LayersSize":1000,"Images":[],"Containers":null,"Volumes":[],"BuildCache":null}"#,
    );
    assert_eq!(
        df.run(&["system", "df", "--format", "{{.Type}} {{.Size}}"]).stdout,
        "Images 1kB\nContainers 0B\nLocal Volumes 0B\nBuild Cache 0B\n"
    );
}

#[test]
fn prune_asks_first() {
    let engine = Engine::new(|request| {
        let line = request.line.as_str();
        assert!(line.starts_with("POST /images/prune?filters="), "{line}");
        assert_eq!(line.contains("%22false%22"), line.contains("label"), "{line}");
        Answer::Json(200, r#"{"ImagesDeleted":[{"Untagged":"a:1"},{"Deleted":"sha256:b"}],"SpaceReclaimed":1500}"#)
    });
    let question = "WARNING! This will remove all dangling images.\nAre you sure you want to continue? [y/N] ";
    for answer in ["n\n", "", "what\n"] {
        let run = engine.run_with(&["image", "prune"], answer.as_bytes());
        assert_eq!((run.code, run.stdout.as_str()), (Some(0), question));
    }
    assert!(engine.requests().is_empty());
    let report = "Deleted Images:\nuntagged: a:1\ndeleted: sha256:b\n\nTotal reclaimed space: 1.5kB\n";
    assert_eq!(engine.run_with(&["image", "prune"], b"y\n").stdout, format!("{question}{report}"));
    assert_eq!(engine.run(&["image", "prune", "-af", "--filter", "label=x"]).stdout, report);
}

#[test]
fn verify_names_what_is_damaged() {
    let sound = one(
        "POST /images/verify",
        200,
        "{\"status\":\"done\",\"blobs\":12,\"images\":1,\"snapshots\":3,\"errors\":0}\n",
    );
    let run = sound.run(&["image", "verify"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Verified 12 blobs, 1 image, 3 snapshots: no damage\n"));
    let damaged = one(
        "POST /images/verify",
        200,
        "{\"id\":\"sha256:a\",\"error\":\"digest differs\"}\n{\"status\":\"damaged\",\"blobs\":2,\"images\":1,\"snapshots\":3,\"errors\":1}\n",
    );
    let run = damaged.run(&["image", "verify"]);
    let text = "sha256:a: digest differs\nVerified 2 blobs, 1 image, 3 snapshots: 1 is damaged\n";
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), text));
    let run = damaged.run(&["image", "verify", "-q"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), "sha256:a\n"));
    let some = one("POST /images/verify?names=a&names=b:1", 200, "{\"errorDetail\":{},\"error\":\"it broke\"}\n");
    let run = some.run(&["image", "verify", "a", "b:1"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), "it broke\n"));
    let cut = one("POST /images/verify", 200, "{\"id\":\"sha256:a\",\"error\":\"x\"}\n");
    assert!(cut.run(&["image", "verify"]).stderr.contains("before everything was verified"));
}

#[test]
fn login_keeps_what_the_registry_accepts() {
    let engine = Engine::new(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(request.line, "POST /auth");
        match body["password"].as_str() {
            Some("p") => Answer::Json(200, r#"{"Status":"Login Succeeded","IdentityToken":""}"#),
            Some("t") => Answer::Json(200, r#"{"Status":"Login Succeeded","IdentityToken":"token"}"#),
            _ => Answer::Json(401, r#"{"message":"unauthorized: incorrect username or password"}"#),
        }
    });
    let dir = config(r#"{"credsStore":"","z":{"kept":true},"auths":{"other":{"auth":"eDp5"}}}"#);
    let login = |words: &[&str], input: &[u8]| with_config(&engine, dir.path(), words, input);
    let run = login(&["login", "-u", "u", "--password-stdin", "https://reg.test:5000/v2/"], b"p\n");
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Login Succeeded\n"), "{run:?}");
    assert!(run.stderr.contains("WARNING! Your credentials are stored unencrypted in '"), "{run:?}");
    let now = read(dir.path());
    assert_eq!(now["auths"], json!({"other":{"auth":"eDp5"},"reg.test:5000":{"auth":"dTpw"}}));
    assert_eq!((&now["z"], &now["credsStore"]), (&json!({"kept":true}), &json!("")));
    assert_eq!(fs::metadata(dir.path().join("config.json")).unwrap().permissions().mode() & 0o777, 0o600);
    // What is known is tried again without a question.
    let run = login(&["login", "reg.test:5000"], b"");
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Login Succeeded\n"), "{run:?}");
    assert!(run.stderr.starts_with("Authenticating with existing credentials... [Username: u]\n"), "{run:?}");
    let run = login(&["login", "-u", "u", "-p", "bad", "reg.test:5000"], b"");
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.ends_with("Error response from daemon: unauthorized: incorrect username or password\n"),
        "{run:?}"
    );
    assert_eq!(read(dir.path())["auths"]["reg.test:5000"]["auth"], "dTpw", "a refused login changes nothing");
    // An identity token takes the place of the password.
    assert_eq!(login(&["login", "-u", "u", "--password-stdin"], b"t").code, Some(0));
    assert_eq!(
        read(dir.path())["auths"]["https://index.docker.io/v1/"],
        json!({"auth":"dTo=","identitytoken":"token"})
    );
    let run = login(&["logout", "reg.test:5000"], b"");
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Removing login credentials for reg.test:5000\n"));
    let run = login(&["logout"], b"");
    assert_eq!(run.stdout, "Removing login credentials for https://index.docker.io/v1/\n");
    assert_eq!(read(dir.path()), json!({"credsStore":"","z":{"kept":true},"auths":{"other":{"auth":"eDp5"}}}));
}

#[test]
fn login_refuses_what_it_cannot_ask_for() {
    let engine = Engine::new(|_| Answer::Json(500, "{}"));
    for (words, text) in [
        (&["login", "r"][..], "Error: Cannot perform an interactive login from a non TTY device\n"),
        (&["login", "-u", "u", "r"], "Error: Cannot perform an interactive login from a non TTY device\n"),
        (&["login", "--password-stdin", "r"], "the --password-stdin option requires --username to be set\n"),
        (
            &["login", "-u", "u", "-p", "p", "--password-stdin", "r"],
            "conflicting options: cannot specify both --password and --password-stdin\n",
        ),
        (
            &["login", "-u", "u", "--password-stdin", "r"],
            "Error: Cannot perform an interactive login from a non TTY device\n",
        ),
    ] {
        let run = engine.run(words);
        assert_eq!((run.code, run.stderr.as_str()), (Some(1), text));
    }
    assert!(engine.requests().is_empty(), "nothing was sent to anybody");
}

#[test]
fn a_password_typed_is_not_shown() {
    if std::process::Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: script(1) is not installed");
        return;
    }
    let engine = Engine::new(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!((&body["username"], &body["password"]), (&json!("ann"), &json!("hush")));
        Answer::Json(200, r#"{"Status":"Login Succeeded"}"#)
    });
    let dir = config("{}");
    let mut berth = engine.command(&["login", "reg.test"]);
    berth.env("DOCKER_CONFIG", dir.path());
    let mut script = std::process::Command::new("script");
    let line = format!("{} login reg.test; stty -a", berth.get_program().to_str().unwrap());
    script.args(["-qec", &line, "/dev/null"]);
    script.envs(berth.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = String::new();
    // Typed when asked for, as people do: what is typed before the echo is off is echoed.
    for (question, answer) in [("Username: ", "ann\n"), ("Password: ", "hush\n")] {
        use std::io::{Read, Write};
        let mut byte = [0];
        while !shown.ends_with(question) {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{shown}");
            shown.push(char::from(byte[0]));
        }
        if question == "Password: " {
            echo_is_off(&child);
        }
        stdin.write_all(answer.as_bytes()).unwrap();
    }
    std::io::Read::read_to_string(&mut stdout, &mut shown).unwrap();
    child.wait().unwrap();
    assert!(shown.contains("Login Succeeded") && !shown.contains("hush"), "{shown}");
    assert!(shown.contains(" echo ") && !shown.contains(" -echo "), "the echo is on again: {shown}");
    assert_eq!(read(dir.path())["auths"]["reg.test"]["auth"], "YW5uOmh1c2g=");
}

/// Waits until the terminal of the program below `script` has no echo.
fn echo_is_off(script: &std::process::Child) {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let children = format!("/proc/{0}/task/{0}/children", script.id());
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_secs(20) {
        let pid = fs::read_to_string(&children).unwrap_or_default();
        let terminal = fs::File::open(format!("/proc/{}/fd/0", pid.trim()));
        let attributes = terminal.ok().and_then(|terminal| tcgetattr(terminal).ok());
        if attributes.is_some_and(|attributes| !attributes.local_flags.contains(LocalFlags::ECHO)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the echo is still on");
}

#[test]
fn helpers_keep_secrets_and_give_them_back() {
    let engine = Engine::new(|request| match request.line.as_str() {
        "POST /auth" => Answer::Json(200, r#"{"Status":"Login Succeeded","IdentityToken":"id"}"#),
        _ => {
            // {"serveraddress":"reg.test","identitytoken":"id"}
            let known = "eyJzZXJ2ZXJhZGRyZXNzIjoicmVnLnRlc3QiLCJpZGVudGl0eXRva2VuIjoiaWQifQ==";
            assert_eq!(
                request.header("x-registry-auth"),
                if request.line.contains("reg.test") { known } else { "e30=" }
            );
            Answer::Json(200, "{\"status\":\"ok\"}\r\n")
        }
    });
    let dir = config(r#"{"credHelpers":{"reg.test":"toy"}}"#);
    helper(dir.path());
    let berth = |words: &[&str], input: &[u8]| with_config(&engine, dir.path(), words, input);
    let run = berth(&["login", "-u", "u", "--password-stdin", "reg.test"], b"p");
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "no warning: {run:?}");
    assert_eq!(read(dir.path())["auths"], json!({"reg.test":{}}));
    assert_eq!(berth(&["push", "-q", "reg.test/a:1"], b"").code, Some(0));
    assert_eq!(berth(&["pull", "-q", "reg.test/a:1"], b"").code, Some(0));
    assert_eq!(berth(&["pull", "-q", "other.test/a:1"], b"").code, Some(0));
    assert_eq!(berth(&["logout", "reg.test"], b"").code, Some(0));
    assert_eq!(read(dir.path())["auths"], json!({}));
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    let store = r#"store {"ServerURL":"reg.test","Username":"<token>","Secret":"id"}"#;
    assert_eq!(log.lines().collect::<Vec<_>>(), [store, "get reg.test", "get reg.test", "erase reg.test"]);
}

#[test]
fn a_broken_helper_sends_no_credentials_anywhere() {
    // CVE-2021-41092: credentials went to Docker Hub when the helper of another registry could not be run.
    let engine = Engine::new(|request| {
        assert_eq!(request.header("x-registry-auth"), "e30=");
        Answer::Json(200, "{\"status\":\"ok\"}\r\n")
    });
    let dir = config(
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}},"credHelpers":{"reg.test":"no-such-helper"}}"#,
    );
    let run = with_config(&engine, dir.path(), &["pull", "-q", "reg.test/a:1"], b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.starts_with("WARNING: no credentials are sent to reg.test: "), "{run:?}");
    let before = fs::read(dir.path().join("config.json")).unwrap();
    let accepting = one("POST /auth", 200, r#"{"Status":"Login Succeeded"}"#);
    let run = with_config(&accepting, dir.path(), &["login", "-u", "x", "--password-stdin", "reg.test"], b"y");
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.starts_with("Error saving credentials: docker-credential-no-such-helper store: "), "{run:?}");
    assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), before);
}

#[test]
fn credentials_of_the_environment_win() {
    let engine = Engine::new(|request| {
        // {"username":"e","password":"v","serveraddress":"reg.test"}
        let want = "eyJ1c2VybmFtZSI6ImUiLCJwYXNzd29yZCI6InYiLCJzZXJ2ZXJhZGRyZXNzIjoicmVnLnRlc3QifQ==";
        assert_eq!(request.header("x-registry-auth"), want);
        Answer::Json(200, "{\"status\":\"ok\"}\r\n")
    });
    let mut command = engine.command(&["pull", "-q", "reg.test/a:1"]);
    command.env("DOCKER_AUTH_CONFIG", r#"{"auths":{"reg.test":{"auth":"ZTp2"}}}"#);
    assert_eq!(finish(command, b"").code, Some(0));
}

#[test]
fn manifests_come_through_the_engine() {
    // {"schemaVersion":2,"layers":[]}
    const IMAGE: &str = r#"{"Descriptor":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:d","size":31},
        "Platforms":[{"architecture":"amd64","os":"linux"}],"Manifest":"eyJzY2hlbWFWZXJzaW9uIjoyLCJsYXllcnMiOltdfQ=="}"#;
    let engine = Engine::new(|request| match request.line.as_str() {
        "GET /distribution/a:1/json?manifest=1" | "GET /distribution/a:1/json?insecure=1&manifest=1" => {
            Answer::Json(200, IMAGE)
        }
        line if line.contains(DIGEST) => Answer::Json(200, IMAGE),
        // {"manifests":[{"digest":"sha256:e3b0…","platform":{"os":"linux","architecture":"arm64"}}]}
        "GET /distribution/list:latest/json?manifest=1" => Answer::Json(
            200,
            r#"{"Descriptor":{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:i","size":9},"Platforms":[],
            "Manifest":"eyJtYW5pZmVzdHMiOlt7ImRpZ2VzdCI6InNoYTI1NjplM2IwYzQ0Mjk4ZmMxYzE0OWFmYmY0Yzg5OTZmYjkyNDI3YWU0MWU0NjQ5YjkzNGNhNDk1OTkxYjc4NTJiODU1IiwicGxhdGZvcm0iOnsib3MiOiJsaW51eCIsImFyY2hpdGVjdHVyZSI6ImFybTY0In19XX0="}"#,
        ),
        "GET /distribution/old:latest/json?manifest=1" => {
            Answer::Json(200, r#"{"Descriptor":{"mediaType":"x","digest":"sha256:d","size":31},"Platforms":null}"#)
        }
        _ => Answer::Json(404, r#"{"message":"not found"}"#),
    });
    assert_eq!(engine.run(&["manifest", "inspect", "a:1"]).stdout, "{\n\t\"schemaVersion\": 2,\n\t\"layers\": []\n}\n");
    let run = engine.run(&["manifest", "inspect", "-v", "--insecure", "a:1"]);
    let shown: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&shown["Ref"], &shown["Descriptor"]["platform"]["os"]),
        (&json!("docker.io/library/a:1"), &json!("linux"))
    );
    assert_eq!(shown["OCIManifest"]["schemaVersion"], 2);
    let run = engine.run(&["manifest", "inspect", "-v", "some/list", "list"]);
    let shown: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&shown[0]["Ref"], &shown[0]["Descriptor"]["platform"]["architecture"]),
        (&json!(format!("docker.io/library/list:latest@{DIGEST}")), &json!("arm64"))
    );
    let run = engine.run(&["manifest", "inspect", "gone"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), "no such manifest: gone:latest\n"));
    let run = engine.run(&["manifest", "inspect", "old"]);
    assert!(run.stderr.contains("needs an engine that passes manifests on"), "{run:?}");
}

#[test]
fn load_and_import_read_files() {
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("x.tar");
    fs::write(&tar, "data").unwrap();
    let tar = tar.to_str().unwrap();
    let engine = Engine::new(|request| {
        assert_eq!(request.body, b"data");
        match request.line.as_str() {
            "POST /images/load?quiet=1" => Answer::Json(200, "{\"stream\":\"Loaded image: x:y\\n\"}\r\n"),
            line => {
                assert_eq!(line, "POST /images/create?fromSrc=-&repo=r:1&message=m&changes=CMD%20x");
                Answer::Json(200, "{\"status\":\"sha256:new\"}\r\n")
            }
        }
    });
    assert_eq!(engine.run(&["load", "-i", tar]).stdout, "Loaded image: x:y\n");
    assert_eq!(engine.run(&["import", "-c", "CMD x", "-m", "m", tar, "r:1"]).stdout, "sha256:new\n");
    let run = engine.run(&["load", "-i", dir.path().to_str().unwrap()]);
    assert!(run.code == Some(1) && run.stderr.contains("is a directory"), "{run:?}");
}
