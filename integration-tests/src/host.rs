//! A host that isn't this machine: a network namespace in which daemons run, and another one that is a computer beside it. What
//! firewalls, dockerd and stacks do to rules and links there is nobody else's, and goes with them.

use crate::{command::Outcome, eventually, run_with};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The host's address on the wire between the two.
pub const HOST: &str = "198.51.100.1";
/// The other computer's.
pub const OUTSIDE: &str = "198.51.100.2";
/// Where that one answers to HTTP, and what it says.
pub const PORT: u16 = 8000;
const PAGE: &str = "hello from outside";

/// A host with another computer beside it; goes when dropped.
#[derive(Debug)]
pub struct Host {
    namespace: PathBuf,
    outside: PathBuf,
    /// The page.
    folder: tempfile::TempDir,
    /// Where the namespaces are pinned.
    pins: tempfile::TempDir,
    server: Option<Child>,
}

// Not by `ip netns`, which makes a mount of /run/netns that stays.
fn pin(namespace: &Path) {
    fs::write(namespace, "").unwrap();
    let mut command = Command::new("unshare");
    command.arg(format!("--net={}", namespace.display())).arg("true");
    run_with(&mut command, b"", Duration::from_secs(20)).success();
}

/// A program in the network namespace that is pinned at a file. The process is the program's own: it can be signalled.
pub fn within(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
    command
}

impl Host {
    /// Makes both, with a wire in between.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("berth-host-").tempdir().unwrap();
        fs::write(folder.path().join("index.html"), PAGE).unwrap();
        let pins = tempfile::Builder::new().prefix("berth-host-").tempdir().unwrap();
        let (namespace, outside) = (pins.path().join("host"), pins.path().join("outside"));
        let mut host = Self { namespace, outside, folder, pins, server: None };
        [&host.namespace, &host.outside].into_iter().for_each(|namespace| pin(namespace));
        let peer = host.outside.display().to_string();
        host.run(["ip", "link", "add", "eth9", "type", "veth", "peer", "name", "eth9", "netns", &peer]).success();
        for (namespace, address) in [(&host.namespace, HOST), (&host.outside, OUTSIDE)] {
            run_in(namespace, ["ip", "link", "set", "lo", "up"]).success();
            run_in(namespace, ["ip", "addr", "add", &format!("{address}/24"), "dev", "eth9"]).success();
            run_in(namespace, ["ip", "link", "set", "eth9", "up"]).success();
        }
        let server = within(&host.outside, "busybox")
            .args(["httpd", "-f", "-p", &PORT.to_string(), "-h"])
            .arg(host.folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        host.server = Some(server);
        eventually("the other computer answers", || {
            host.outside(["busybox", "wget", "-q", "-O-", &format!("http://{OUTSIDE}:{PORT}/")])
                .stdout()
                .contains(PAGE)
                .then_some(())
        });
        host
    }

    /// Where its network namespace is pinned.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// A program on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        within(&self.namespace, program)
    }

    /// Runs a program on it.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Outcome {
        run_in(&self.namespace, line)
    }

    /// Runs a program on the other computer.
    pub fn outside<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Outcome {
        run_in(&self.outside, line)
    }

    /// What the other computer gets from a port of the host; empty if nothing.
    pub fn ask(&self, port: u16) -> String {
        self.outside(["timeout", "2", "busybox", "wget", "-q", "-O-", &format!("http://{HOST}:{port}/")]).stdout()
    }

    /// What programs on it see of nftables, without what is counted.
    pub fn rules(&self) -> String {
        self.run(["nft", "-s", "list", "ruleset"]).success().stdout()
    }

    /// A command for a container with busybox that asks the other computer.
    pub fn question() -> [String; 7] {
        // `wget -T` of Debian's static busybox crashes.
        ["busybox", "timeout", "2", "wget", "-q", "-O-", &format!("http://{OUTSIDE}:{PORT}/")].map(str::to_owned)
    }

    /// Whether that was answered.
    pub fn was_answered(outcome: &Outcome) -> bool {
        outcome.stdout().contains(PAGE)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

fn run_in<S: AsRef<OsStr>>(namespace: &Path, line: impl IntoIterator<Item = S>) -> Outcome {
    let mut line = line.into_iter();
    let program = line.next().expect("a program");
    run_with(within(namespace, program).args(line), b"", Duration::from_secs(60))
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().ok();
            server.wait().ok();
        }
        for pin in [&self.namespace, &self.outside] {
            Command::new("umount").args(["-l"]).arg(pin).stderr(Stdio::null()).status().ok();
        }
        fs::remove_dir_all(self.pins.path()).ok();
    }
}
