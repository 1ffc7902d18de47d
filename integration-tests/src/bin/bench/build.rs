//! Builds: Berth beside dockerd's classic builder, dockerd's BuildKit and buildah.

use crate::table::Table;
use integration_tests::{Stack, dockerd::Dockerd, images, programs};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// Rounds of a median.
const ROUNDS: usize = 7;
const GOAL: &str = "<= 0.5 of the best";

/// Who builds.
struct Side {
    name: &'static str,
    /// The command in front of `-t NAME FOLDER`.
    words: Box<dyn Fn() -> Command>,
}

impl Side {
    /// Milliseconds of a build; nothing if it fails.
    fn build(&self, folder: &Path, args: &[&str]) -> Option<f64> {
        let begun = Instant::now();
        let output = (self.words)()
            .args(args)
            .args(["-t", "bench"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        if !output.status.success() {
            eprintln!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(took)
    }
}

/// A Dockerfile and its context.
fn context(dockerfile: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("berth-bench-build-").tempdir().unwrap();
    fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
    folder
}

/// The median of what `work` finds on each side, by turns; `work` gets the round.
fn by_turns(sides: &[Side], rounds: usize, mut work: impl FnMut(&Side, usize) -> Option<f64>) -> Vec<Option<f64>> {
    let mut found: Vec<Option<Vec<f64>>> = sides.iter().map(|_| Some(Vec::new())).collect();
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let index = (round + turn) % sides.len();
            if let Some(list) = &mut found[index] {
                match work(&sides[index], round) {
                    Some(time) => list.push(time),
                    None => found[index] = None,
                }
            }
        }
    }
    let middle = |mut list: Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    };
    found.into_iter().map(|list| list.map(middle)).collect()
}

fn row(table: &mut Table, sides: &[Side], work: &str, found: &[Option<f64>], goal: &str) {
    let all: Vec<_> = sides.iter().zip(found).map(|(side, figure)| (side.name, *figure)).collect();
    table.row(work, "ms", all[0].1, &all[1..], goal);
}

/// Files in folders of twenty.
fn many(folder: &Path, count: usize) {
    for number in 0..count {
        let path = folder.join(format!("src/{}/{number}.txt", number / 20));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("file {number}\n").repeat(50)).unwrap();
    }
}

/// Measures all of it.
pub fn measure(table: &mut Table) {
    let stack = Stack::with_busybox();
    let dockerd = Dockerd::with_busybox();
    let home = tempfile::Builder::new().prefix("berth-bench-buildah-").tempdir().unwrap();
    let sides = sides(&stack, dockerd.as_ref(), home.path());
    small_steps(table, &sides);
    unchanged(table, &sides);
    one_file(table, &sides);
    stages(table, &sides);
    gigabyte(table, &sides);
    if programs::peer("buildah").is_some() {
        Command::new("buildah").args(storage(home.path())).args(["rmi", "--all", "--force"]).output().ok();
    }
}

fn storage(home: &Path) -> Vec<String> {
    let at = |name: &str| home.join(name).display().to_string();
    ["--root", &at("root"), "--runroot", &at("run"), "--storage-driver", "overlay"].map(str::to_owned).to_vec()
}

fn sides(stack: &Stack, dockerd: Option<&Dockerd>, home: &Path) -> Vec<Side> {
    let (berth, socket) = (stack.bin_dir().join("berth"), format!("unix://{}", stack.engine_socket().display()));
    let mut sides = vec![Side {
        name: "berth",
        words: Box::new(move || {
            let mut command = Command::new(&berth);
            command.args(["-H", &socket, "build", "-q"]);
            command
        }),
    }];
    let client = PathBuf::from("/usr/bin/docker");
    if let Some(dockerd) = dockerd {
        let socket = format!("unix://{}", dockerd.socket().display());
        for (name, buildkit) in [("BuildKit", "1"), ("dockerd classic", "0")] {
            let (client, socket) = (client.clone(), socket.clone());
            sides.push(Side {
                name,
                words: Box::new(move || {
                    let mut command = Command::new(&client);
                    command.args(["-H", &socket, "build", "-q"]).env("DOCKER_BUILDKIT", buildkit);
                    command
                }),
            });
        }
    }
    if let Some(buildah) = programs::peer_or_skip("buildah") {
        let storage = storage(home);
        let archive = images::busybox_archive(home);
        let pulled = Command::new(&buildah)
            .args(&storage)
            .args(["pull", "-q", &format!("docker-archive:{}", archive.display())])
            .output();
        if pulled.is_ok_and(|output| output.status.success()) {
            sides.push(Side {
                name: "buildah",
                words: Box::new(move || {
                    let mut command = Command::new(&buildah);
                    // crun refuses this machine's hybrid cgroups.
                    command.args(&storage).args(["bud", "-q", "--layers", "--pull-never", "--runtime", "runc"]);
                    command
                }),
            });
        }
    }
    sides
}

/// Thirty commands that do next to nothing, each time others.
fn small_steps(table: &mut Table, sides: &[Side]) {
    let write = |tag: &str, count: usize| {
        let mut text = String::from("FROM busybox\n");
        for number in 0..count {
            text += &format!("RUN echo {tag} {number} > /f{number}\n");
        }
        text
    };
    let folder = context("");
    let time = |count: usize, rounds: usize| {
        by_turns(sides, rounds, |side, round| {
            fs::write(folder.path().join("Dockerfile"), write(&format!("{}-{count}-{round}", side.name), count))
                .unwrap();
            side.build(folder.path(), &[])
        })
    };
    let (one, all) = (time(1, 5), time(31, 3));
    row(table, sides, "30 small RUN steps (31 less 1)", &difference(&one, &all), GOAL);
    let each: Vec<_> = difference(&one, &all).iter().map(|time| time.map(|time| time / 30.0)).collect();
    row(table, sides, "one RUN step", &each, "<= 30 ms");
}

fn difference(less: &[Option<f64>], more: &[Option<f64>]) -> Vec<Option<f64>> {
    less.iter().zip(more).map(|(less, more)| Some((*more)? - (*less)?)).collect()
}

/// A build of which everything is known.
fn unchanged(table: &mut Table, sides: &[Side]) {
    let folder =
        context("FROM busybox\nWORKDIR /app\nCOPY src src\nRUN cat src/*/* | wc -c > /count\nENV A=1\nCMD [\"sh\"]\n");
    many(folder.path(), 200);
    for side in sides {
        side.build(folder.path(), &[]);
    }
    row(
        table,
        sides,
        "a rebuild without a change",
        &by_turns(sides, ROUNDS, |side, _| side.build(folder.path(), &[])),
        GOAL,
    );
}

/// One file of 2,000 has changed.
fn one_file(table: &mut Table, sides: &[Side]) {
    let folder = context("FROM busybox\nCOPY src /src\n");
    many(folder.path(), 2000);
    for side in sides {
        side.build(folder.path(), &[]);
    }
    let found = by_turns(sides, ROUNDS, |side, round| {
        fs::write(folder.path().join("src/7/150.txt"), format!("{} {round}\n", side.name)).unwrap();
        side.build(folder.path(), &[])
    });
    row(table, sides, "one file of 2,000 changed", &found, GOAL);
}

/// Ten stages that don't wait for each other, each of them busy or asleep for a while.
fn stages(table: &mut Table, sides: &[Side]) {
    let folder = context("");
    let found = by_turns(sides, 3, |side, round| {
        let mut text = String::new();
        for number in 0..10 {
            text += &format!("FROM busybox AS s{number}\nRUN sleep 0.5 && echo {}-{round}-{number} > /s\n", side.name);
        }
        text += "FROM busybox\n";
        for number in 0..10 {
            text += &format!("COPY --from=s{number} /s /s{number}\n");
        }
        fs::write(folder.path().join("Dockerfile"), text).unwrap();
        side.build(folder.path(), &[])
    });
    row(table, sides, "ten stages, each half a second asleep", &found, GOAL);
}

/// A file of 1 GB is copied from stage to stage and from the context.
fn gigabyte(table: &mut Table, sides: &[Side]) {
    let folder = context("FROM busybox\nCOPY big /big\n");
    let big = folder.path().join("big");
    let mut dice = integration_tests::Dice::new(1);
    let found = by_turns(sides, 3, |side, _| {
        // Not compressible, as what is big seldom is; each time another one, so that nobody knows it yet.
        let mut block: Vec<u8> = Vec::with_capacity(1 << 20);
        while block.len() < 1 << 20 {
            block.extend_from_slice(&(dice.roll(usize::MAX) as u64).to_le_bytes());
        }
        let mut file = fs::File::create(&big).unwrap();
        for number in 0..1024u32 {
            block[..4].copy_from_slice(&number.to_le_bytes());
            std::io::Write::write_all(&mut file, &block).unwrap();
        }
        drop(file);
        side.build(folder.path(), &[])
    });
    row(table, sides, "COPY of 1 GB", &found, GOAL);
}
