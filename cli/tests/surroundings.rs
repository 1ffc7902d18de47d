//! berth with what is around it: API versions, headers, config.json, completions, suggestions.

#[allow(dead_code, reason = "part of it is for the other tests")]
mod fake;

use fake::{Answer, Engine, berth, finish};
use std::process::Command;
use std::sync::{Arc, Mutex};

const CONTAINERS: &str = r#"[{"Id":"a","Names":["/web1"],"Image":"busybox","State":"running"},
    {"Id":"b","Names":["/db"],"Image":"busybox","State":"running"}]"#;

/// An engine with two containers, an image, a network and a volume; there is nothing else.
fn engine() -> Engine {
    Engine::new(|request| match request.line.split('?').next().unwrap_or_default() {
        "GET /containers/json" => Answer::Json(200, CONTAINERS),
        "GET /images/json" => Answer::Json(200, r#"[{"Id":"i","RepoTags":["busybox:latest","reg:5000/app:1"]}]"#),
        "GET /networks" => Answer::Json(200, r#"[{"Name":"front","Driver":"bridge"}]"#),
        "GET /volumes" => Answer::Json(200, r#"{"Volumes":[{"Name":"data","Driver":"local"}]}"#),
        line if line.contains("/images/") => Answer::Json(404, r#"{"message":"No such image: busybxo:latest"}"#),
        _ => Answer::Json(404, r#"{"message":"No such container: web"}"#),
    })
}

#[test]
fn the_nearest_name_is_suggested() {
    let engine = engine();
    let run = engine.run(&["stop", "web"]);
    let said = "Error response from daemon: No such container: web; did you mean web1?\n";
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), said));
    assert!(engine.requests().iter().any(|line| line.starts_with("GET /containers/json?all=1")));
    let run = engine.run(&["rmi", "busybxo"]);
    assert_eq!(run.stderr, "Error response from daemon: No such image: busybxo:latest; did you mean busybox?\n");
    let far = Engine::new(|request| match request.line.as_str() {
        line if line.starts_with("GET /containers/json") => Answer::Json(200, CONTAINERS),
        _ => Answer::Json(404, r#"{"message":"No such container: elsewhere"}"#),
    });
    assert_eq!(far.run(&["stop", "elsewhere"]).stderr, "Error response from daemon: No such container: elsewhere\n");
}

#[test]
fn names_are_completed() {
    let engine = engine();
    for (words, said) in [
        (&["stop", ""][..], "db\tbusybox\nweb1\tbusybox\n:4\n"),
        (&["stop", "w"], "web1\tbusybox\n:4\n"),
        (&["run", "--rm", "-it", ""], "busybox\nreg:5000/app:1\n:4\n"),
        (&["run", "--network=f"], "--network=front\tbridge\n:4\n"),
        (&["volume", "rm", ""], "data\tlocal\n:4\n"),
        (&["cp", "w"], "web1:\tbusybox\n:4\n"),
        (&["cp", "./"], ":0\n"),
        (&["context", "use", ""], "default\n:4\n"),
        (&["run", "--pull", "m"], "missing\n:4\n"),
        (&["contai"], "container\tManage containers\n:4\n"),
        (&["run", "busybox", ""], ":0\n"),
    ] {
        assert_eq!(engine.run(&[&["__complete"], words].concat()).stdout, said, "{words:?}");
    }
    // Nobody answers: no names, no noise, and soon.
    let run = finish(berth(&["__complete", "stop", ""]), b"");
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (Some(0), ":4\n", ""));
}

/// The scripts are sound, and bash's gives what berth says.
#[test]
fn shells_complete() {
    let engine = engine();
    let shell =
        |name: &str| std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join(name).exists());
    for (name, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = finish(berth(&["completion", name]), b"");
        assert!(script.code == Some(0) && script.stdout.contains("__complete"), "{script:?}");
        if !shell(name) {
            eprintln!("{name} is not installed: its script is not read by it");
            continue;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script.stdout).unwrap();
        let mut command = Command::new(name);
        command.arg(check).arg(file.path());
        let read = finish(command, b"");
        assert_eq!((read.code, read.stderr.as_str()), (Some(0), ""), "{name}");
    }
    let ask = |line: &str| {
        let mut command = engine.command(&[]);
        let (program, variables) = (command.get_program().to_owned(), envs(&mut command));
        let mut bash = Command::new("bash");
        let script = format!(
            "source <(\"$0\" completion bash); berth() {{ \"$0\" \"$@\"; }}; COMP_WORDS=(\"$0\" {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _berth; printf '%s ' \"${{COMPREPLY[@]}}\""
        );
        bash.args(["--norc", "-c", &script]).arg(program).envs(variables);
        finish(bash, b"").stdout
    };
    assert_eq!(ask("stop ''"), "db web1 ");
    assert_eq!(ask("container logs w"), "web1 ");
    assert_eq!(ask("run --netw"), "--network --network-alias ");
}

fn envs(command: &mut Command) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

#[test]
fn older_engines_are_spoken_to_in_their_version() {
    for (offered, prefix, refused) in [
        ("1.24", "/v1.24", "\"--init\" requires API version 1.25, but the Docker daemon API version is 1.24\n"),
        ("", "/v1.24", "\"--init\" requires API version 1.25, but the Docker daemon API version is 1.24\n"),
        ("1.41", "/v1.41", "\"--annotation\" requires API version 1.43, but the Docker daemon API version is 1.41\n"),
        ("1.99", "", "Error response from daemon: x\n"),
    ] {
        let paths = Arc::new(Mutex::new(Vec::new()));
        let seen = paths.clone();
        let engine = Engine::of_version(offered, move |request| {
            seen.lock().unwrap().push(request.line.clone());
            Answer::Json(
                if request.line.contains("/create") { 500 } else { 200 },
                if request.line.contains("/create") { r#"{"message":"x"}"# } else { "[]" },
            )
        });
        assert_eq!(engine.run(&["ps", "-q"]).code, Some(0));
        let path = format!("GET {prefix}/containers/json");
        assert!(paths.lock().unwrap()[0].starts_with(&path), "{offered}: {:?}", paths.lock().unwrap());
        let run = engine.run(&["create", "--init", "--annotation", "a=b", "img"]);
        assert!(run.stderr.ends_with(refused) && run.code == Some(1), "{offered}: {run:?}");
        assert!(
            paths.lock().unwrap().iter().filter(|line| line.contains("/create")).count()
                == usize::from(offered == "1.99")
        );
    }
    let ancient = Engine::of_version("1.12", |_| Answer::Json(200, "[]"));
    let run = ancient.run(&["ps"]);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (Some(1), "engine's API version 1.12 is too old: at least 1.24 is needed\n")
    );
    let fixed = Engine::of_version("1.51", |_| Answer::Json(200, "[]"));
    let mut command = fixed.command(&["ps", "-q"]);
    command.env("DOCKER_API_VERSION", "1.30");
    finish(command, b"");
    assert_eq!(fixed.requests(), ["GET /v1.30/containers/json"]);
}

#[test]
fn the_users_headers_are_sent() {
    let headers = Arc::new(Mutex::new(Vec::new()));
    let seen = headers.clone();
    let engine = Engine::new(move |request| {
        let of = |name: &str| request.header(name).to_owned();
        seen.lock().unwrap().push([of("x-from"), of("user-agent")]);
        Answer::Json(200, "[]")
    });
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"HttpHeaders":{"X-From":"file","User-Agent":"mine"},"psFormat":"{{.ID}}!"}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let run = |custom: &str| {
        let mut command = engine.command(&["ps"]);
        command.env("DOCKER_CONFIG", dir.path()).env("DOCKER_CUSTOM_HEADERS", custom);
        finish(command, b"")
    };
    assert_eq!(run("").code, Some(0));
    assert_eq!(run("X-From=variable,User-Agent=own").code, Some(0));
    let seen = headers.lock().unwrap().clone();
    assert!(seen[0][0] == "file" && seen[0][1].starts_with("berth/"), "{seen:?}");
    assert_eq!(seen[1], ["variable", "own"]);
    let bad = run("x");
    assert!(bad.code == Some(1) && bad.stderr.contains("missing \"=\" in key=value pair: 'x'"), "{bad:?}");
}

#[test]
fn a_malformed_config_file_is_a_warning() {
    let engine = Engine::new(|_| Answer::Json(200, "[]"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let said = |text: &str, words: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let mut command = engine.command(words);
        command.env("DOCKER_CONFIG", dir.path());
        let run = finish(command, b"");
        assert_eq!(run.code, Some(0), "{run:?}");
        run.stderr.replace(&path.display().to_string(), "FILE")
    };
    assert_eq!(said("{", &["ps"]), "WARNING: Error parsing config file (FILE): unexpected EOF\n");
    assert_eq!(
        said(r#"{"psFormat":3}"#, &["ps"]),
        "WARNING: Error parsing config file (FILE): json: cannot unmarshal number into Go struct field ConfigFile.psFormat of type string\n"
    );
    assert_eq!(said(r#"{"unknown":[{}]}"#, &["ps"]), "");
    let debug = said("{}", &["-D", "ps"]);
    assert!(
        debug.contains("DEBU engine at unix://") && debug.contains("DEBU GET /containers/json -> 200 after "),
        "{debug}"
    );
    let run = finish(berth(&["-l", "loud", "ps"]), b"");
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), "Unable to parse logging level: loud\n"));
}
