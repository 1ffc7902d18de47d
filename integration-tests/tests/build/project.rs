//! A Dockerfile with its context, built by Berth, and which of its steps were done.

use integration_tests::{Outcome, Stack, run_with};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long a build may take.
const LIMIT: Duration = Duration::from_secs(180);

/// A folder with a Dockerfile.
pub struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    pub fn new(dockerfile: &str) -> Self {
        let project = Self { folder: tempfile::Builder::new().prefix("berth-project-").tempdir().unwrap() };
        project.write("Dockerfile", dockerfile);
        project
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, stack: &Stack, args: &[&str]) -> Command {
        let mut command = stack.client(stack.bin_dir().join("berth"));
        command.arg("build").args(args).arg(self.path()).env_remove("BUILDKIT_PROGRESS");
        command
    }

    /// Builds it.
    pub fn build(&self, stack: &Stack, args: &[&str]) -> Outcome {
        run_with(&mut self.command(stack, args), b"", LIMIT)
    }

    /// Begins to build it.
    pub fn begin(&self, stack: &Stack, args: &[&str]) -> Child {
        let mut command = self.command(stack, args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Builds it, and tells what was done.
    #[track_caller]
    pub fn steps(&self, stack: &Stack, args: &[&str]) -> Steps {
        let outcome = self.build(stack, &[&["--progress", "rawjson"], args].concat()).success();
        Steps::read(&(outcome.stdout() + "\n" + &outcome.stderr()))
    }
}

/// Steps of a build by their names.
#[derive(Debug, Default)]
pub struct Steps {
    done: BTreeMap<String, bool>,
}

impl Steps {
    fn read(text: &str) -> Self {
        let mut steps = Self::default();
        for line in text.lines() {
            let Ok(status) = serde_json::from_str::<Value>(line) else { continue };
            for vertex in status["vertexes"].as_array().into_iter().flatten() {
                let name = vertex["name"].as_str().unwrap_or_default();
                if name.starts_with("[internal]") || vertex["completed"].is_null() {
                    continue;
                }
                let cached = vertex["cached"].as_bool().unwrap_or(false);
                steps.done.insert(name.to_owned(), cached);
            }
        }
        steps
    }

    /// Those of an instruction that were done: `RUN`, `COPY`.
    pub fn done(&self, keyword: &str) -> Vec<&str> {
        self.of(keyword, false)
    }

    /// Those that were known already.
    pub fn known(&self, keyword: &str) -> Vec<&str> {
        self.of(keyword, true)
    }

    fn of(&self, keyword: &str, cached: bool) -> Vec<&str> {
        let mark = format!("] {keyword} ");
        let all = self.done.iter().filter(|(name, known)| name.contains(&mark) && **known == cached);
        all.map(|(name, _)| name.as_str()).collect()
    }
}

/// What a file of an image says.
#[track_caller]
pub fn read(stack: &Stack, image: &str, path: &str) -> String {
    stack.berth(["run", "--rm", "--net", "none", image, "cat", path]).success().stdout()
}
