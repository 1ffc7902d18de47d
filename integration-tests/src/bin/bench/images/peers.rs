//! Who is compared: the same works, each in its own way.

use super::{Command, Path, fs, ran, rounds, shell};
use crate::engines::Dockerd;
use integration_tests::{
    Stack,
    http::Api,
    programs::{peer, program},
    stack::Setup,
};
use std::path::PathBuf;

/// Somebody who has images.
pub trait Engine {
    /// Their name in the table.
    fn name(&self) -> &'static str;
    /// Fetches and unpacks.
    fn pull(&self, image: &str) -> bool;
    /// Removes the image and all that it consists of; one that isn't there is fine.
    fn remove(&self, image: &str) -> bool;
    /// Writes an archive.
    fn save(&self, image: &str, archive: &Path) -> bool;
    /// Reads one.
    fn load(&self, archive: &Path) -> bool;
    /// Gives the image the name under which it is pushed, where pushing needs that.
    fn name_for_push(&self, _image: &str, _to: &str) -> bool {
        true
    }
    /// Pushes the image under that name.
    fn push(&self, image: &str, to: &str) -> bool;
    /// The time to commit a container of the image in which 100 MB were written.
    fn commit(&self, image: &str) -> Option<f64>;
}

/// Runs a client against a docker API.
fn client(program: &Path, socket: &Path, args: &[&str]) -> bool {
    ran(Command::new(program).arg("-H").arg(format!("unix://{}", socket.display())).args(args))
}

const WRITE: &str = "head -c 100000000 /dev/urandom > /var/tmp/new";

fn docker_commit(run: &dyn Fn(&[&str]) -> bool, image: &str) -> Option<f64> {
    let made = run(&["run", "--name", "bench-commit", "--net", "none", image, "sh", "-c", WRITE]);
    let time = if made {
        rounds(|| run(&["rmi", "-f", "bench-committed"]) | true, || run(&["commit", "bench-commit", "bench-committed"]))
    } else {
        None
    };
    run(&["rm", "-f", "bench-commit"]);
    run(&["rmi", "-f", "bench-committed"]);
    time
}

/// Berth, by its own client.
pub struct Berth<'a> {
    stack: &'a Stack,
    api: Api,
    client: PathBuf,
}

impl<'a> Berth<'a> {
    /// The stack's engine.
    pub fn new(stack: &'a Stack) -> Self {
        Self { stack, api: stack.api(), client: program("berth") }
    }

    fn run(&self, args: &[&str]) -> bool {
        client(&self.client, &self.stack.engine_socket(), args)
    }

    /// Most memory (resident, MB) of engine and supervisor together during `work`.
    pub fn peak(&self, work: impl FnOnce() -> bool) -> Option<f64> {
        let pids = [self.stack.engine_pid(), self.stack.supervisor_pid()];
        // clear_refs 5: the high water mark begins anew (proc_pid_clear_refs).
        for pid in pids {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").ok()?;
        }
        let of = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        work().then(|| pids.iter().filter_map(|pid| of(*pid)).sum::<f64>() / 1000.0)
    }
}

impl Engine for Berth<'_> {
    fn name(&self) -> &'static str {
        "berth"
    }

    fn pull(&self, image: &str) -> bool {
        self.run(&["pull", "-q", image])
    }

    fn remove(&self, image: &str) -> bool {
        matches!(self.api.delete(&format!("/images/{image}?force=1")).status, 200 | 404)
    }

    fn save(&self, image: &str, archive: &Path) -> bool {
        self.run(&["save", "-o", &archive.display().to_string(), image])
    }

    fn load(&self, archive: &Path) -> bool {
        self.run(&["load", "-q", "-i", &archive.display().to_string()])
    }

    fn name_for_push(&self, image: &str, to: &str) -> bool {
        self.run(&["tag", image, to])
    }

    fn push(&self, _image: &str, to: &str) -> bool {
        self.run(&["push", "-q", to])
    }

    fn commit(&self, image: &str) -> Option<f64> {
        docker_commit(&|args| self.run(args), image)
    }
}

/// Debian's dockerd, by the docker client.
pub struct Docker {
    socket: PathBuf,
    api: Api,
}

impl Docker {
    /// This dockerd.
    pub fn new(dockerd: &Dockerd) -> Self {
        Self { socket: dockerd.socket(), api: Api::new(dockerd.socket()) }
    }

    fn run(&self, args: &[&str]) -> bool {
        client(Path::new("docker"), &self.socket, args)
    }
}

impl Engine for Docker {
    fn name(&self) -> &'static str {
        "dockerd"
    }

    fn pull(&self, image: &str) -> bool {
        self.run(&["pull", "-q", image])
    }

    fn remove(&self, image: &str) -> bool {
        matches!(self.api.delete(&format!("/images/{image}?force=1")).status, 200 | 404)
    }

    fn save(&self, image: &str, archive: &Path) -> bool {
        self.run(&["save", "-o", &archive.display().to_string(), image])
    }

    fn load(&self, archive: &Path) -> bool {
        self.run(&["load", "-q", "-i", &archive.display().to_string()])
    }

    fn name_for_push(&self, image: &str, to: &str) -> bool {
        self.run(&["tag", image, to])
    }

    fn push(&self, _image: &str, to: &str) -> bool {
        self.run(&["push", "-q", to])
    }

    fn commit(&self, image: &str) -> Option<f64> {
        docker_commit(&|args| self.run(args), image)
    }
}

/// podman on roots of its own.
pub struct Podman {
    options: Vec<String>,
}

impl Podman {
    /// podman, with its storage below `folder`.
    pub fn new(folder: &Path) -> Option<Self> {
        peer("podman")?;
        let at = |name: &str| folder.join(name).display().to_string();
        let options =
            ["--root", &at("podman"), "--runroot", &at("podman-run"), "--storage-driver", "overlay"].map(str::to_owned);
        Some(Self { options: options.into() })
    }

    fn run(&self, args: &[&str]) -> bool {
        ran(Command::new("podman").args(&self.options).args(args))
    }
}

impl Engine for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn pull(&self, image: &str) -> bool {
        self.run(&["pull", "-q", "--tls-verify=false", image])
    }

    fn remove(&self, image: &str) -> bool {
        self.run(&["rmi", "-f", "-i", image])
    }

    fn save(&self, image: &str, archive: &Path) -> bool {
        self.run(&["save", "-q", "-o", &archive.display().to_string(), image])
    }

    fn load(&self, archive: &Path) -> bool {
        self.run(&["load", "-q", "-i", &archive.display().to_string()])
    }

    fn push(&self, image: &str, to: &str) -> bool {
        self.run(&["push", "-q", "--tls-verify=false", image, &format!("docker://{to}")])
    }

    fn commit(&self, image: &str) -> Option<f64> {
        let made = self.run(&[
            "run",
            "--name",
            "bench-commit",
            "--net",
            "none",
            "--ulimit",
            "host",
            "--cgroups",
            "disabled",
            image,
            "sh",
            "-c",
            WRITE,
        ]);
        let time = if made {
            rounds(
                || self.run(&["rmi", "-f", "-i", "bench-committed"]),
                || self.run(&["commit", "-q", "bench-commit", "bench-committed"]),
            )
        } else {
            None
        };
        self.run(&["rm", "-f", "bench-commit"]);
        self.run(&["rmi", "-f", "-i", "bench-committed"]);
        time
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["system", "reset", "-f"]);
        let root = &self.options[1];
        shell(&format!("umount -q {root}/overlay {root} 2>/dev/null; true"));
    }
}

/// Debian's containerd, by ctr.
pub struct Containerd(Stack);

/// containerd on roots of its own.
pub fn containerd() -> Option<Containerd> {
    for name in ["containerd", "ctr"] {
        peer(name)?;
    }
    Some(Containerd(Stack::start_with(Setup { containerd: true, ..Setup::default() })))
}

impl Containerd {
    fn run(&self, args: &[&str]) -> bool {
        let outcome = self.0.ctr(args);
        if outcome.code() != 0 {
            eprintln!("ctr {args:?}: {outcome}");
        }
        outcome.code() == 0
    }
}

impl Engine for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn pull(&self, image: &str) -> bool {
        self.run(&["images", "pull", "--plain-http", image])
    }

    fn remove(&self, image: &str) -> bool {
        self.run(&["images", "rm", "--sync", image])
    }

    fn save(&self, image: &str, archive: &Path) -> bool {
        self.run(&["images", "export", &archive.display().to_string(), image])
    }

    fn load(&self, archive: &Path) -> bool {
        self.run(&["images", "import", &archive.display().to_string()])
    }

    fn push(&self, image: &str, to: &str) -> bool {
        self.run(&["images", "push", "--plain-http", to, image])
    }

    fn commit(&self, _: &str) -> Option<f64> {
        None // ctr has no such command
    }
}
