//! Images: pulled from a docker-registry on loopback, pushed, saved, loaded and committed, by Berth, dockerd, podman and
//! containerd; and the floor, a pipeline of programs that each do one part of the work.

mod make;
mod peers;

use crate::table::{Table, timed};
use integration_tests::{Stack, registry::Registry};
use peers::{Berth, Docker, Engine, Podman, containerd};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Rounds of a median.
const ROUNDS: usize = 3;

/// Runs a command and tells whether it succeeded; says why if not.
fn ran(command: &mut Command) -> bool {
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
            false
        }
        Err(error) => {
            eprintln!("{command:?}: {error}");
            false
        }
    }
}

fn shell(script: &str) -> bool {
    ran(Command::new("bash").args(["-o", "pipefail", "-c", script]))
}

/// What was written before must not be paid for by what is measured next.
fn calm() {
    nix::unistd::sync();
}

/// The median of `work`, each time after `before`, which isn't counted.
fn rounds(mut before: impl FnMut() -> bool, mut work: impl FnMut() -> bool) -> Option<f64> {
    numbered(|_| before(), |_| work())
}

/// The same for works that need the number of the round, from 0.
fn numbered(mut before: impl FnMut(usize) -> bool, mut work: impl FnMut(usize) -> bool) -> Option<f64> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        if !before(round) {
            return None;
        }
        calm();
        times.push(timed(|| work(round))?);
    }
    times.sort_by(f64::total_cmp);
    Some(times[times.len() / 2])
}

/// Fetch, inflate, hash and plain writes, one layer after another, each step a process of its own.
fn floor(host: &str, made: &make::Made, folder: &Path) -> Option<f64> {
    let target = |round: usize| folder.join(format!("floor-{}-{round}", made.name));
    let clean = |round: usize| {
        if made.layouts.len() == 1 {
            fs::remove_dir_all(target(0)).ok();
        }
        fs::create_dir_all(target(round)).is_ok()
    };
    numbered(clean, |round| {
        shell(&format!(
            "cd {target}; curl -s http://{host}/v2/{name}/manifests/{tag} -H 'Accept: application/vnd.oci.image.manifest.v1+json' |
             jq -r '.layers[].digest' | while read digest; do
               curl -s http://{host}/v2/{name}/blobs/$digest | tee >(sha256sum > ../floor.sum) | pigz -dc |
                 tee >(sha256sum > ../floor.diff) | tar -xf - --no-same-owner; done",
            target = target(round).display(),
            name = made.name,
            tag = tag(made, round),
        ))
    })
}

/// The tag of the variant for a round.
fn tag(made: &make::Made, round: usize) -> usize {
    round % made.layouts.len() + 1
}

/// Measures, and adds its rows; `only` are names of images and of works.
pub fn measure(table: &mut Table, only: &[String]) {
    let mut images = make::all();
    let named = |name: &&String| images.iter().any(|image| image.name == **name);
    let works: Vec<String> = only.iter().filter(|name| !named(name)).cloned().collect();
    let wanted = |work: &str| works.is_empty() || works.iter().any(|one| one == work);
    if only.iter().any(|name| named(&name)) {
        images.retain(|image| only.iter().any(|name| name == image.name));
    }
    let folder = tempfile::Builder::new().prefix("berth-bench-images-").tempdir().expect("folder");
    let registry = Registry::start(folder.path());
    for image in &images {
        for (layout, variant) in image.layouts.iter().zip(1..) {
            let from = format!("oci:{}:latest", layout.display());
            let to = format!("docker://{}/{}:{variant}", registry.host(), image.name);
            assert!(ran(Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", &from, &to])), "{to}");
        }
    }
    let stack = Stack::start();
    let berth = Berth::new(&stack);
    let others = std::env::var_os("BENCH_ALONE").is_none();
    let dockerd = others.then(crate::engines::Dockerd::start).flatten();
    let docker = dockerd.as_ref().map(Docker::new);
    let podman = if others { Podman::new(folder.path()) } else { None };
    let containerd = if others { containerd() } else { None };
    let mut peers: Vec<&dyn Engine> = Vec::new();
    peers.extend(docker.as_ref().map(|docker| docker as &dyn Engine));
    peers.extend(podman.as_ref().map(|podman| podman as &dyn Engine));
    peers.extend(containerd.as_ref().map(|containerd| containerd as &dyn Engine));

    let name = |image: &make::Made, round: usize| format!("{}/{}:{}", registry.host(), image.name, tag(image, round));
    for image in images.iter().filter(|_| wanted("pull")) {
        let floor = if others { floor(&registry.host(), image, folder.path()) } else { None };
        let clean = |engine: &dyn Engine, round: usize| image.layouts.len() > 1 || engine.remove(&name(image, round));
        compare(table, &berth, &peers, &format!("pull of {}", image.what), floor, "<= 1/2, 1.5x floor", &|engine| {
            numbered(|round| clean(engine, round), |round| engine.pull(&name(image, round)))
        });
        let peak = berth.peak(|| clean(&berth, ROUNDS) && berth.pull(&name(image, ROUNDS)));
        table.row(&format!("memory at its peak meanwhile, {}", image.what), "MB", peak, &[], "<= 64 MB");
    }
    for image in images.iter().filter(|image| !matches!(image.name, "layers" | "files")) {
        let first = name(image, 0);
        let archive = |round: usize| folder.path().join(format!("saved{round}.tar"));
        let save = |engine: &dyn Engine| {
            let before = || {
                fs::remove_file(archive(0)).ok();
                engine.pull(&first)
            };
            rounds(before, || engine.save(&first, &archive(0)))
        };
        let load = |engine: &dyn Engine| {
            if image.layouts.len() == 1 {
                fs::remove_file(archive(0)).ok();
                let saved = engine.pull(&first) && engine.save(&first, &archive(0));
                return if saved { rounds(|| engine.remove(&first), || engine.load(&archive(0))) } else { None };
            }
            // Variants that nobody has pulled.
            let write = |round: usize| {
                fs::remove_file(archive(round)).ok();
                let from = format!("oci:{}:latest", image.layouts[ROUNDS + 1 + round].display());
                let to = format!("docker-archive:{}:loaded:{round}", archive(round).display());
                ran(Command::new("skopeo").args(["copy", "-q", &from, &to]))
            };
            numbered(write, |round| engine.load(&archive(round)))
        };
        let push = |engine: &dyn Engine| {
            // Each time to a registry that has nothing of it.
            let fresh = Fresh::start();
            let target = format!("{}/{}:latest", fresh.host(), image.name);
            let named = engine.pull(&first) && engine.name_for_push(&first, &target);
            let pushed = if named { rounds(|| fresh.clear(), || engine.push(&first, &target)) } else { None };
            engine.remove(&target);
            pushed
        };
        let commit = |engine: &dyn Engine| if engine.pull(&first) { engine.commit(&first) } else { None };
        let works: [(&str, &str, Work<'_>); 4] = [
            ("save", "save of", &save),
            ("load", "load of", &load),
            ("push", "push of", &push),
            ("commit", "commit of 100 MB of new files on", &commit),
        ];
        for (work, title, measure) in works {
            if wanted(work) && (work != "commit" || image.name == "debian") {
                compare(table, &berth, &peers, &format!("{title} {}", image.what), None, "<= 1", measure);
            }
        }
        for round in 0..ROUNDS {
            fs::remove_file(archive(round)).ok();
        }
    }
    for engine in std::iter::once(&berth as &dyn Engine).chain(peers.iter().copied()) {
        for image in &images {
            for round in 0..image.layouts.len() {
                engine.remove(&name(image, round));
            }
        }
        for round in 0..ROUNDS {
            engine.remove(&format!("loaded:{round}"));
        }
    }
}

type Work<'a> = &'a dyn Fn(&dyn Engine) -> Option<f64>;

/// A registry that is emptied between rounds.
struct Fresh {
    folder: tempfile::TempDir,
    registry: Registry,
}

impl Fresh {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("berth-bench-registry-").tempdir().expect("folder");
        let registry = Registry::start(folder.path());
        Self { folder, registry }
    }

    fn host(&self) -> String {
        self.registry.host()
    }

    fn clear(&self) -> bool {
        let blobs = self.folder.path().join("registry");
        !blobs.exists() || fs::remove_dir_all(blobs).is_ok()
    }
}

fn compare(
    table: &mut Table,
    berth: &Berth<'_>,
    peers: &[&dyn Engine],
    work: &str,
    floor: Option<f64>,
    goal: &str,
    measure: Work<'_>,
) {
    let ours = measure(berth);
    let mut theirs: Vec<(&str, Option<f64>)> = peers.iter().map(|peer| (peer.name(), measure(*peer))).collect();
    if floor.is_some() {
        theirs.push(("floor", floor));
    }
    table.row(work, "ms", ours, &theirs, goal);
}
