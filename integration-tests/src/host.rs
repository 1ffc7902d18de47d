//! A host that isn't this machine: a network namespace in which daemons run, and another one that is a computer beside it. What
//! firewalls, dockerd and stacks do to rules and links there is nobody else's, and goes with them.

use crate::{command::Outcome, eventually, run_with};
use std::{
    ffi::OsStr,
    fs,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

/// The host's address on the wire between the two.
pub const HOST: &str = "198.51.100.1";
/// The other computer's.
pub const OUTSIDE: &str = "198.51.100.2";
/// Where that one answers to HTTP, and what it says.
pub const PORT: u16 = 8000;
const PAGE: &str = "hello from outside";

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A host with another computer beside it; goes when dropped.
#[derive(Debug)]
pub struct Host {
    name: String,
    outside: String,
    folder: tempfile::TempDir,
    server: Option<Child>,
}

fn ip(args: &str) {
    let line = args.split_whitespace();
    run_with(Command::new("ip").args(line), b"", Duration::from_secs(20)).success();
}

/// A program in a network namespace that has a name. The process is the program's own: it can be signalled.
pub fn within(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

impl Host {
    /// Makes both, with a wire in between.
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("berth-host-{}-{number}", std::process::id());
        let outside = format!("{name}-out");
        let folder = tempfile::Builder::new().prefix("berth-host-").tempdir().unwrap();
        fs::write(folder.path().join("index.html"), PAGE).unwrap();
        let mut host = Self { name, outside, folder, server: None };
        let (name, outside) = (host.name.as_str(), host.outside.as_str());
        ip(&format!("netns add {name}"));
        ip(&format!("netns add {outside}"));
        ip(&format!("-n {name} link add eth9 type veth peer name eth9 netns {outside}"));
        for (namespace, address) in [(name, HOST), (outside, OUTSIDE)] {
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} addr add {address}/24 dev eth9"));
            ip(&format!("-n {namespace} link set eth9 up"));
        }
        let folder = host.folder.path();
        let server = within(outside, "busybox")
            .args(["httpd", "-f", "-p", &PORT.to_string(), "-h"])
            .arg(folder)
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

    /// The name of its network namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        within(&self.name, program)
    }

    /// Runs a program on it.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Outcome {
        run_in(&self.name, line)
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

fn run_in<S: AsRef<OsStr>>(namespace: &str, line: impl IntoIterator<Item = S>) -> Outcome {
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
        for name in [&self.name, &self.outside] {
            Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status().ok();
        }
    }
}
