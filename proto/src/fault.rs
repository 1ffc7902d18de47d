//! Points where a program may be made to die, so that tests can try them all and not a sample (design, section 2).
//!
//! `proto::fault!("shim.create.mounted")` names an instruction. Nothing happens there unless the process was started with
//!
//! | variable | meaning |
//! |---|---|
//! | `BERTH_FAULT=NAME` | at that point the process kills itself with SIGKILL |
//! | `BERTH_FAULT=NAME:N` | at the N-th pass, counted from 1 |
//! | `BERTH_FAULT=NAME:N:stop` | it stops itself (SIGSTOP) instead: a process that hangs |
//! | `BERTH_FAULT_ONCE=FILE` | only if FILE could be created just now, so that of all the processes that inherit the variables one dies, once; the file also proves that the point was reached |
//!
//! A name is `PROGRAM.OPERATION.STEP`, the step in the past tense: what is done when the point is reached. Each name stands at
//! one place. The list of all points is read from the sources ([`points`]), hence can't be incomplete.
//!
//! Release builds carry none of it: the macro is empty there.

use std::{
    fs, io,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::sys::signal::{Signal, raise};

/// Names an instruction at which tests may kill the process; see [`fault`](mod@crate::fault).
#[macro_export]
macro_rules! fault {
    ($name:literal) => {{
        #[cfg(debug_assertions)]
        $crate::fault::pass($name);
    }};
}

#[derive(Debug, PartialEq, Eq)]
struct Armed {
    name: String,
    pass: u64,
    signal: Signal,
}

fn parse(text: &str) -> Option<Armed> {
    let mut parts = text.split(':');
    let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let pass = parts.next().map_or(Some(1), |number| number.parse().ok().filter(|number| *number > 0))?;
    let signal = match parts.next() {
        None | Some("kill") => Signal::SIGKILL,
        Some("stop") => Signal::SIGSTOP,
        Some(_) => return None,
    };
    parts.next().is_none().then_some(Armed { name, pass, signal })
}

/// The process is at point `name`. Called by [`fault!`](crate::fault!) alone.
pub fn pass(name: &str) {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    static PASSES: AtomicU64 = AtomicU64::new(0);
    let armed = ARMED.get_or_init(|| std::env::var("BERTH_FAULT").ok().as_deref().and_then(parse));
    let Some(armed) = armed.as_ref().filter(|armed| armed.name == name) else { return };
    if PASSES.fetch_add(1, Ordering::Relaxed) + 1 != armed.pass {
        return;
    }
    if let Some(mark) = std::env::var_os("BERTH_FAULT_ONCE")
        && fs::File::create_new(mark).is_err()
    {
        return;
    }
    // Either signal stops every thread; the one that raised it does not return before.
    let _ = raise(armed.signal);
}

/// Every point named in the sources below `folder`, sorted. A test that walks a program calls it with the `src` folder of the
/// program's crate.
pub fn points(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            names.extend(points(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(points_of(&fs::read_to_string(&path)?).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

fn points_of(source: &str) -> impl Iterator<Item = &str> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter_map(|line| line.split_once("fault!(\"")?.1.split_once("\")").map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn what_the_variable_says() {
        let armed = |name: &str, pass, signal| Some(Armed { name: name.into(), pass, signal });
        for (text, wanted) in [
            ("a.b.c", armed("a.b.c", 1, Signal::SIGKILL)),
            ("a.b.c:3", armed("a.b.c", 3, Signal::SIGKILL)),
            ("a.b.c:2:stop", armed("a.b.c", 2, Signal::SIGSTOP)),
            ("", None),
            (":1", None),
            ("a:0", None),
            ("a:x", None),
            ("a:1:sleep", None),
            ("a:1:stop:x", None),
        ] {
            assert_eq!(parse(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn points_are_found_in_code_and_not_in_comments() {
        let source =
            concat!("// proto::fault", "!(\"x.y.z\");\n    proto::fault", "!(\"a.b.c\");\nfault", "!(name);\n");
        assert_eq!(points_of(source).collect::<Vec<_>>(), ["a.b.c"]);
    }

    /// What the test below starts: a program with two points.
    #[test]
    #[ignore = "kills its own process"]
    fn program_with_points() {
        for round in 0..3 {
            pass("x.loop.other");
            pass("x.loop.begun");
            println!("round {round}");
        }
    }

    #[test]
    fn a_process_dies_at_the_pass_it_was_told_and_only_one_does() {
        let folder = tempfile::tempdir().expect("folder");
        let mark = folder.path().join("mark");
        let run = |fault: &str| {
            let mut command = std::process::Command::new(std::env::current_exe().expect("exe"));
            command.args(["--exact", "--ignored", "--nocapture", "fault::tests::program_with_points"]);
            let output = command.env("BERTH_FAULT", fault).env("BERTH_FAULT_ONCE", &mark).output().expect("run");
            let rounds = String::from_utf8_lossy(&output.stdout).matches("round ").count();
            (std::os::unix::process::ExitStatusExt::signal(&output.status), rounds)
        };
        assert_eq!(run("x.loop.never"), (None, 3));
        assert!(!mark.exists());
        assert_eq!(run("x.loop.begun:2"), (Some(9), 1));
        assert!(mark.exists(), "proof that the point was reached");
        assert_eq!(run("x.loop.begun:2"), (None, 3));
    }

    /// Two points of one name would be one point to a test; a name of another form would be walked by none.
    #[test]
    fn every_point_of_every_program_has_a_name_of_its_own() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace");
        let mut seen = HashSet::new();
        for (krate, program) in [("shim", "shim"), ("supervisor", "supervisor"), ("engine", "engine")] {
            for name in points(&root.join(krate).join("src")).expect("sources") {
                let mut parts = name.split('.');
                assert_eq!(parts.next(), Some(program), "{name} is in crate {krate}");
                let plain =
                    |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
                let rest: Vec<_> = parts.collect();
                assert!(rest.len() == 2 && rest.iter().all(|part| !part.is_empty() && plain(part)), "{name}");
                assert!(seen.insert(name.clone()), "{name} stands at two places");
            }
        }
    }
}
