use super::*;
use crate::build::worker::sources::testing::{Clients, step};
use std::{os::unix::fs::symlink, process::Child, process::Command as Sync};

/// A repository, and a daemon that serves it on loopback.
pub(crate) struct Served {
    pub(crate) folder: tempfile::TempDir,
    daemon: Child,
    port: u16,
}

impl Served {
    pub(crate) fn new() -> Option<Self> {
        if Sync::new("git").arg("daemon").arg("-h").output().is_err() {
            eprintln!("skipped: git is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["lib", "main"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            git(&folder.path().join(name), &["init", "-q", "-b", "main"]);
        }
        // Free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let daemon = Sync::new("git")
            .args(["daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", folder.path().display()))
            .arg(folder.path())
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let served = Self { folder, daemon, port };
        let begun = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "git daemon doesn't listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(served)
    }

    pub(crate) fn main(&self) -> PathBuf {
        self.folder.path().join("main")
    }

    fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }

    pub(crate) fn commit(&self, name: &str) -> String {
        let at = self.folder.path().join(name);
        git(&at, &["add", "-A"]);
        git(&at, &["commit", "-q", "--allow-empty", "-m", "words"]);
        git(&at, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub(crate) fn source(&self, fragment: &str, attrs: &[(&str, &str)]) -> pb::SourceOp {
        let mut all: std::collections::BTreeMap<String, String> =
            attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        all.insert(FULL_URL.into(), self.url("main"));
        pb::SourceOp { identifier: format!("git://127.0.0.1/main#{fragment}"), attrs: all }
    }
}

use std::os::unix::process::CommandExt as _;

impl Drop for Served {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.daemon.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.daemon.wait();
    }
}

fn git(at: &Path, words: &[&str]) -> String {
    let output = Sync::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.allow=always"])
        .args(words)
        .current_dir(at)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Place {
    _folder: tempfile::TempDir,
    git: Git,
    out: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let git = Git::at(folder.path().join("git"), Vec::new()).unwrap();
    Place { out: folder.path().join("out"), _folder: folder, git }
}

impl Place {
    async fn pin(&self, source: &pb::SourceOp) -> Result<Pin, StepError> {
        self.git.pin(source, &Arc::new(Clients::default()), &step()).await
    }

    /// As a fetch does, but into a plain folder.
    async fn check_out(&self, source: &pb::SourceOp) -> Result<String, StepError> {
        let pinned = self.pin(source).await?.source;
        let wish = Wish::read(&pinned)?;
        let commit = pinned.attrs[COMMIT].clone();
        let _ = fs::remove_dir_all(&self.out);
        fs::create_dir(&self.out).unwrap();
        let leave = self.git.leave(&wish, &Arc::new(Clients::default()), &step()).await?;
        let repository = self.git.repository(&wish, &digest_of(&wish.url), &commit, &leave).await?;
        self.git.check_out(&wish, &repository, &commit, &self.out, &leave).await?;
        Ok(commit)
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.out.join(path)).is_ok()
    }
}

#[tokio::test]
async fn branches_tags_and_commits() {
    let Some(served) = Served::new() else { return };
    let place = place();
    fs::write(served.main().join("file"), "1").unwrap();
    let first = served.commit("main");
    git(&served.main(), &["tag", "-a", "v1", "-m", "words"]);
    fs::write(served.main().join("file"), "2").unwrap();
    let second = served.commit("main");
    for (reference, commit, text) in
        [("", &second, "2"), ("main", &second, "2"), ("v1", &first, "1"), (first.as_str(), &first, "1")]
    {
        assert_eq!(&place.check_out(&served.source(reference, &[])).await.unwrap(), commit, "{reference}");
        assert_eq!(fs::read_to_string(place.out.join("file")).unwrap(), text);
        assert!(!place.has(".git"));
    }
    place.check_out(&served.source("v1", &[(KEEP_DIR, "true")])).await.unwrap();
    assert_eq!(git(&place.out, &["-c", "safe.directory=*", "rev-parse", "HEAD"]).trim(), first);
    let keys = [("main", ""), ("main:sub", ""), ("main", KEEP_DIR), ("v1", "")].map(|(fragment, key)| {
        let source = served.source(fragment, &[(key, "true")]);
        let place = &place;
        async move { place.pin(&source).await.unwrap().key }
    });
    let mut all = Vec::new();
    for key in keys {
        all.push(key.await);
    }
    all.dedup();
    assert_eq!(all.len(), 4);
    let missing = place.pin(&served.source("nowhere", &[])).await.unwrap_err();
    assert!(missing.to_string().contains("does not contain ref nowhere"), "{missing}");
    let wrong = place.pin(&served.source("v1", &[(CHECKSUM, "0123456789")])).await.unwrap_err();
    assert!(wrong.to_string().contains("expected checksum to match 0123456789"), "{wrong}");
    place.pin(&served.source("v1", &[(CHECKSUM, &first[..10])])).await.unwrap();
    // Without the server: it is known.
    drop(served);
}

#[tokio::test]
async fn submodules_come_along_but_not_from_this_machine() {
    let Some(served) = Served::new() else { return };
    let place = place();
    fs::write(served.folder.path().join("lib/lib.c"), "x").unwrap();
    served.commit("lib");
    git(&served.main(), &["submodule", "--quiet", "add", &served.url("lib"), "third/lib"]);
    served.commit("main");
    place.check_out(&served.source("", &[])).await.unwrap();
    assert!(place.has("third/lib/lib.c") && !place.has("third/lib/.git"));
    place.check_out(&served.source("", &[(SKIP_SUBMODULES, "true")])).await.unwrap();
    assert!(!place.has("third/lib/lib.c"));
    let local = format!("file://{}", served.folder.path().join("lib").display());
    git(&served.main(), &["submodule", "--quiet", "add", "--name", "evil", &local, "evil"]);
    served.commit("main");
    let error = place.check_out(&served.source("", &[])).await.unwrap_err();
    assert!(proto::kind::chain(&error).contains("transport 'file' not allowed"), "{}", proto::kind::chain(&error));
}

#[tokio::test]
async fn hooks_filters_and_links_of_a_repository_do_nothing() {
    let Some(served) = Served::new() else { return };
    let place = place();
    let main = served.main();
    fs::create_dir_all(main.join("real/deep")).unwrap();
    fs::write(main.join("real/deep/file"), "x").unwrap();
    symlink("/etc", main.join("abs")).unwrap();
    symlink("real", main.join("link")).unwrap();
    fs::write(main.join(".gitattributes"), "* filter=evil\n").unwrap();
    // Looks like a repository itself, with programs to be run.
    let canary = served.folder.path().join("canary");
    let touch = format!("touch {}", canary.display());
    fs::write(main.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    let config = format!(
        "[core]\n\tbare = true\n\tfsmonitor = {touch}\n\tsshCommand = {touch}\n[filter \"evil\"]\n\tsmudge = {touch}\n"
    );
    fs::write(main.join("config"), config).unwrap();
    for folder in ["refs/heads", "objects/info"] {
        fs::create_dir_all(main.join(folder)).unwrap();
        fs::write(main.join(folder).join("x"), "x").unwrap();
    }
    served.commit("main");
    place.check_out(&served.source("", &[])).await.unwrap();
    assert!(place.has("objects/info/x") && place.has("config") && !canary.exists());
    assert!(subfolder(&place.out, "real/deep").is_ok());
    for path in ["abs", "link", "link/deep", "nowhere"] {
        assert!(subfolder(&place.out, path).is_err(), "{path}");
    }
}

#[test]
fn addresses_and_references_that_are_something_else() {
    let read = |id: &str, url: &str| {
        let attrs = [(FULL_URL.to_owned(), url.to_owned())].into();
        Wish::read(&pb::SourceOp { identifier: id.to_owned(), attrs })
    };
    for url in ["https://h/x.git", "git@h:x/y.git", "ssh://git@h:22/x", "git://h/x", "http://h/x"] {
        assert!(read("git://h/x", url).is_ok(), "{url}");
    }
    for url in [
        "file:///etc",
        "/etc",
        "ext::sh -c x",
        "ext::sh",
        "--upload-pack=x",
        "ssh://-oProxyCommand=x/y",
        "git@-oProxyCommand=x:y",
        "fd::3",
        "https://",
        "http://h/a b",
    ] {
        assert!(matches!(read("git://h/x", url), Err(StepError::Invalid(_))), "{url}");
    }
    for fragment in ["--x", "a..b", "a b", "main:../x", "main:a/../../b", "main:.git", "a~1", "a^{}", "refs/*"] {
        assert!(
            matches!(read(&format!("git://h/x#{fragment}"), "https://h/x"), Err(StepError::Invalid(_))),
            "{fragment}"
        );
    }
    let wish = read("git://h/x#main:/a/b/", "https://user:pass@h/x").unwrap();
    assert_eq!((wish.reference.as_str(), wish.subdir.as_str()), ("main", "a/b"));
    assert!(!wish.what("fetch").contains("pass"));
    assert_eq!(read("git://github.com/a/b#c", "").unwrap().url, "https://github.com/a/b");
}
