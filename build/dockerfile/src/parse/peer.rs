//! What BuildKit reads: `peer.jsonl` has Dockerfiles, by hand and by dice, and what Debian's dockerd 20.10 made of each: the
//! configuration of the image, or nothing where it refused. Words, quotes, escapes and variables have to come out the same here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::parse;
use crate::{
    expand::Lexer,
    instruction::{Command, Healthcheck, Instruction, Kind, Stage},
};

/// Where BuildKit has changed its mind since, or we are stricter: what it says now.
const SINCE: &[(&str, &str)] = &[
    ("${x-d}", "modifiers need no colon"),
    ("${x+d}", "modifiers need no colon"),
    ("[\"a\"] b", "JSON is all of the line, or a shell's"),
    ("[\"a\"]#", "JSON is all of the line, or a shell's"),
    ("VOLUME []ba", "JSON is all of the line, or a shell's"),
    ("--interval=0", "nothing is the default"),
    ("ARG ----", "an unknown flag; BuildKit looks away"),
];

#[derive(Default)]
struct Config {
    variables: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    config: Map<String, Value>,
    shell: Option<Vec<String>>,
}

impl Config {
    fn set(&mut self, name: String, value: String) {
        self.variables.insert(name.clone(), value.clone());
        match self.environment.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.environment.push((name, value)),
        }
    }

    fn command(&self, command: &Command) -> Value {
        match command {
            Command::Exec(words) => json!(words),
            Command::Shell(text) => {
                let shell = self.shell.clone().unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
                json!([shell, vec![text.clone()]].concat())
            }
        }
    }

    fn add(
        &mut self,
        instruction: &Instruction,
        lexer: &Lexer,
        globals: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        // All words of an instruction see what was there before it.
        let before = self.variables.clone();
        let word = |text: &str| lexer.word(text, &before).map(|word| word.text).map_err(|error| error.to_string());
        let mut put = |name: &str, value: Value| drop(self.config.insert(name.into(), value));
        match &instruction.kind {
            Kind::Env(pairs) => {
                for pair in pairs {
                    self.set(word(&pair.name)?, word(&pair.value)?);
                }
            }
            Kind::Label(pairs) => {
                let labels = self.config.entry("Labels").or_insert_with(|| json!({}));
                for pair in pairs {
                    labels[word(&pair.name)?] = json!(word(&pair.value)?);
                }
            }
            Kind::Arg(args) => {
                for arg in args {
                    let name = word(&arg.name)?;
                    let default = arg.default.as_deref().map(word).transpose()?;
                    let value = default.or_else(|| globals.get(&name).cloned());
                    self.variables.extend(value.map(|value| (name, value)));
                }
            }
            Kind::Cmd(command) => drop(self.config.insert("Cmd".into(), self.command(command))),
            Kind::Entrypoint(command) => drop(self.config.insert("Entrypoint".into(), self.command(command))),
            Kind::Shell(words) => {
                put("Shell", json!(words));
                self.shell = Some(words.clone());
            }
            Kind::User(user) => put("User", json!(word(user)?)),
            Kind::Volume(paths) => {
                let mut paths = paths.iter().map(|path| word(path)).collect::<Result<Vec<_>, _>>()?;
                paths.sort();
                paths.dedup();
                put("Volumes", json!(paths));
            }
            Kind::Onbuild(text) => put("OnBuild", json!([text])),
            Kind::Healthcheck(Healthcheck::None) => put("Healthcheck", json!({"Test": ["NONE"]})),
            Kind::Healthcheck(Healthcheck::Cmd { command, interval, timeout, start_period, retries, .. }) => {
                let test = match command {
                    Command::Exec(words) => [vec!["CMD".to_owned()], words.clone()].concat(),
                    Command::Shell(text) => vec!["CMD-SHELL".into(), text.clone()],
                };
                let retries = retries.map(u64::from);
                let mut check = json!({"Test": test});
                for (name, value) in
                    [("Interval", interval), ("Timeout", timeout), ("StartPeriod", start_period), ("Retries", &retries)]
                {
                    if let Some(value) = value {
                        check[name] = json!(value);
                    }
                }
                put("Healthcheck", check);
            }
            Kind::Expose(ports) => {
                for port in ports {
                    lexer.words(port, &before).map_err(|error| error.to_string())?;
                }
            }
            Kind::Copy(copy) => {
                for path in copy.sources.paths.iter().chain([&copy.sources.target]) {
                    word(path)?;
                }
            }
            Kind::Workdir(text) | Kind::Stopsignal(text) => drop(word(text)?),
            Kind::Add(_) | Kind::Maintainer(_) | Kind::Run(_) => {}
        }
        Ok(())
    }
}

fn config(text: &str) -> Result<Value, String> {
    let file = parse(text.as_bytes()).map_err(|error| error.to_string())?;
    let lexer = Lexer::new(file.directives.escape);
    let mut globals = BTreeMap::new();
    for instruction in &file.globals {
        let Kind::Arg(args) = &instruction.kind else { continue };
        for arg in args {
            let Some(default) = &arg.default else { continue };
            let value = lexer.word(default, &globals).map_err(|error| error.to_string())?.text;
            globals.insert(arg.name.clone(), value);
        }
    }
    let [Stage { base, instructions, .. }] = file.stages.as_slice() else { return Err("stages".into()) };
    let base = lexer.word(base, &globals).map_err(|error| error.to_string())?;
    if base.text != "scratch" {
        return Err(format!("no image {:?}", base.text));
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut all = Config { variables: [("PATH".into(), path.into())].into(), ..Config::default() };
    for instruction in instructions {
        all.add(instruction, &lexer, &globals)?;
    }
    if !all.environment.is_empty() {
        let written = all.environment.iter().map(|(name, value)| format!("{name}={value}"));
        all.config.insert("Env".into(), json!(written.collect::<Vec<_>>()));
    }
    // An image says nothing of what is empty.
    all.config.retain(|_, value| ![json!([]), json!(""), json!({})].contains(value));
    Ok(all.config.into())
}

#[test]
fn reads_what_buildkit_reads() {
    let (mut count, mut excused) = (0, BTreeMap::new());
    for line in include_str!("peer.jsonl").lines() {
        let (text, theirs): (String, Option<Value>) = serde_json::from_str(line).unwrap();
        let ours = config(&text);
        count += 1;
        if ours.as_ref().ok() == theirs.as_ref() {
            continue;
        }
        let (part, why) = SINCE
            .iter()
            .find(|(part, _)| text.contains(part))
            .unwrap_or_else(|| panic!("{text:?}: here {ours:?}, there {theirs:?}"));
        excused.insert(part, why);
    }
    assert_eq!(excused.len(), SINCE.len(), "only {excused:?} differ");
    assert!(count > 1000, "{count}");
}
