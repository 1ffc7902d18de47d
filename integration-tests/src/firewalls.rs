//! Firewalls of distributions, for real and each on a host of its own: firewalld with a message bus, ufw with files of its own.

use crate::{command::Outcome, eventually_within, host::Host, programs::peer_or_skip, run_with};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);

/// firewalld on a host; ends when dropped.
#[derive(Debug)]
pub struct Firewalld {
    folder: tempfile::TempDir,
    namespace: PathBuf,
    bus: Child,
    daemon: Option<Child>,
}

impl Firewalld {
    /// Starts it with the configuration of its package but for the backend (`nftables`, `iptables`); where it isn't installed, says so on
    /// standard error.
    pub fn start(host: &Host, backend: &str) -> Option<Self> {
        for needed in ["firewalld", "firewall-cmd", "dbus-daemon"] {
            peer_or_skip(needed)?;
        }
        let folder = tempfile::Builder::new().prefix("berth-firewalld-").tempdir().unwrap();
        let socket = folder.path().join("bus");
        let config = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>"#,
            socket.display()
        );
        let file = folder.path().join("bus.conf");
        fs::write(&file, config).unwrap();
        let bus = host
            .command("dbus-daemon")
            .arg(format!("--config-file={}", file.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let copied = Command::new("cp").args(["-r", "/etc/firewalld"]).arg(folder.path().join("etc")).status();
        assert!(copied.unwrap().success());
        let file = folder.path().join("etc/firewalld.conf");
        let config = fs::read_to_string(&file).unwrap();
        assert!(config.contains("FirewallBackend=nftables"), "{config}");
        fs::write(&file, config.replace("FirewallBackend=nftables", &format!("FirewallBackend={backend}"))).unwrap();
        let mut firewalld = Self { folder, namespace: host.namespace().to_owned(), bus, daemon: None };
        eventually_within(LIMIT, "the bus is there", || socket.exists().then_some(()));
        firewalld.run();
        Some(firewalld)
    }

    /// What the environment of its clients has to say.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.folder.path().join("bus").display())
    }

    /// Starts the daemon, where it doesn't run.
    pub fn run(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let child = crate::host::within(&self.namespace, "firewalld")
            .args(["--nofork", "--nopid", "--log-target", "console", "--system-config"])
            .arg(self.folder.path().join("etc"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        eventually_within(LIMIT, "firewalld runs", || (self.cmd(&["--state"]).code() == 0).then_some(()));
    }

    /// Ends the daemon.
    pub fn end(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
            child.wait().ok();
        }
    }

    /// Runs `firewall-cmd`.
    pub fn cmd(&self, args: &[&str]) -> Outcome {
        let mut command = crate::host::within(&self.namespace, "firewall-cmd");
        run_with(command.args(args).env("DBUS_SYSTEM_BUS_ADDRESS", self.address()), b"", LIMIT)
    }

    /// The zone of a link; empty for none.
    pub fn zone_of(&self, link: &str) -> String {
        let found = self.cmd(&[&format!("--get-zone-of-interface={link}")]);
        if found.code() == 0 { found.stdout() } else { String::new() }
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        self.end();
        self.bus.kill().ok();
        self.bus.wait().ok();
    }
}

/// ufw on a host, with copies of its files.
#[derive(Debug)]
pub struct Ufw {
    folder: tempfile::TempDir,
    namespace: PathBuf,
}

impl Ufw {
    /// Prepares it, not enabled; where it isn't installed, says so on standard error.
    pub fn prepare(host: &Host) -> Option<Self> {
        for needed in ["ufw", "iptables-nft"] {
            peer_or_skip(needed)?;
        }
        let folder = tempfile::Builder::new().prefix("berth-ufw-").tempdir().unwrap();
        for from in ["/etc/ufw", "/etc/default"] {
            let copied = Command::new("cp").args(["-r", from]).arg(folder.path()).status();
            assert!(copied.unwrap().success());
        }
        Some(Self { folder, namespace: host.namespace().to_owned() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `ufw`, which sees its copies where it looks for its files.
    #[track_caller]
    pub fn ufw(&self, line: &str) -> Outcome {
        let script = "mount --bind $0 /etc/ufw && mount --bind $1 /etc/default && shift && exec ufw --force \"$@\"";
        let mut command = crate::host::within(&self.namespace, "unshare");
        command.args(["--mount", "sh", "-c", script]).arg(self.at("ufw")).arg(self.at("default"));
        run_with(command.args(line.split_whitespace()), b"", LIMIT).success()
    }
}
