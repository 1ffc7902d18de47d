//! The real docker clients: Debian's 20.10, which has a BuildKit client of its own, and whichever is on the PATH with the classic
//! builder.

use crate::project::{Project, read};
use integration_tests::{Outcome, Stack, programs::peer, run_with};
use std::{fs, path::Path, process::Command, time::Duration};

fn build(stack: &Stack, client: &Path, buildkit: bool, project: &Project, args: &[&str]) -> Outcome {
    let mut command = stack.client(client);
    command.env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" }).arg("build").args(args).arg(project.path());
    run_with(&mut command, b"", Duration::from_secs(120))
}

/// Clients, and whether they build by BuildKit's protocol.
fn clients() -> Vec<(std::path::PathBuf, bool)> {
    let mut found = Vec::new();
    if let Some(client) = peer("docker") {
        found.push((client, false));
    }
    let debian = Path::new("/usr/bin/docker");
    let said = Command::new(debian).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    if String::from_utf8_lossy(&said).contains(" 20.10.") {
        found.push((debian.into(), true));
    } else {
        eprintln!("skipped: BuildKit by docker's client needs Debian's 20.10 as /usr/bin/docker");
    }
    found
}

#[test]
fn docker_builds() {
    let stack = Stack::with_busybox();
    for (client, buildkit) in clients() {
        let project = Project::new(
            "FROM busybox AS one\nARG WHO=nobody\nCOPY . /ctx/\nRUN echo $WHO > /who\nFROM busybox\nLABEL made=here\n\
             COPY --from=one /who /ctx/a /\nCMD [\"cat\", \"/who\"]\n",
        );
        project.write("a", "text\n");
        project.write("ignored", "x\n");
        project.write(".dockerignore", "ignored\n");
        let args = ["--build-arg", "WHO=me", "-t", "made", "-t", "also:1", "--label", "more=1"];
        let built = build(&stack, &client, buildkit, &project, &args).success();
        assert_eq!(read(&stack, "made", "/a"), "text", "{built}");
        assert_eq!(stack.berth(["run", "--rm", "--net", "none", "also:1"]).success().stdout(), "me");
        let labels = stack.berth(["image", "inspect", "-f", "{{json .Config.Labels}}", "made"]).success().stdout();
        assert!(labels.contains(r#""made":"here""#) && labels.contains(r#""more":"1""#), "{labels}");
        let quiet = build(&stack, &client, buildkit, &project, &[&args[..], &["-q"]].concat()).success();
        assert!(quiet.stdout().starts_with("sha256:"), "{quiet}");

        // A command that fails, and one that isn't there.
        let project = Project::new("FROM busybox\nRUN echo said before; exit 7\n");
        let failed = build(&stack, &client, buildkit, &project, &[]);
        let said = failed.stdout() + &failed.stderr();
        assert!(failed.code() != 0 && said.contains("said before") && said.contains('7'), "{said}");
        let failed = build(&stack, &client, buildkit, &Project::new("FROM busybox\nNOPE x\n"), &[]);
        assert!(failed.code() != 0 && (failed.stdout() + &failed.stderr()).contains("NOPE"), "{failed}");
    }
}

#[test]
fn docker_gives_secrets_and_takes_folders() {
    let stack = Stack::with_busybox();
    for (client, _) in clients().into_iter().filter(|(_, buildkit)| *buildkit) {
        let project = Project::new(
            "FROM busybox AS made\nRUN --mount=type=secret,id=word wc -c < /run/secrets/word > /length\nFROM scratch\nCOPY --from=made /length /out/\n",
        );
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("word"), "12345").unwrap();
        let secret = format!("id=word,src={}", outside.path().join("word").display());
        let into = outside.path().join("into");
        build(&stack, &client, true, &project, &["--secret", &secret, "-o", into.to_str().unwrap()]).success();
        assert_eq!(fs::read_to_string(into.join("out/length")).unwrap().trim(), "5");
        let again = build(&stack, &client, true, &project, &["--progress", "plain", "--secret", &secret]).success();
        assert!((again.stdout() + &again.stderr()).contains("CACHED"), "{again}");
    }
}
