//! What BuildKit warns of, by its names for it. A [`Linter`] collects warnings: those that a Dockerfile alone gives
//! ([`Linter::file`], [`Linter::stage`]), and those that only a conversion or a context can tell, one method each.

pub mod rules;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use proto::image_ref::ImageRef;

use crate::{
    Dockerfile, Error,
    error::Span,
    expand::{Expanded, Lexer},
    instruction::{Check, Command, Instruction, Kind, Pair, Stage},
    suggest,
};
use rules::Rule;

/// Names of stages that mean something else already.
const RESERVED: [&str; 2] = ["context", "scratch"];
/// Parts of names that secrets have.
const SECRETIVE: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// Parts of names of secrets' neighbours.
const HARMLESS: [&str; 3] = ["public", "file", "version"];
/// ARGs that are for the builder, and never variables.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
const OPERATING_SYSTEMS: [&str; 6] = ["linux", "windows", "darwin", "freebsd", "netbsd", "openbsd"];

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule: `JSONArgsRecommended`.
    pub rule: &'static str,
    /// What the rule is about.
    pub description: &'static str,
    /// Where to read about it.
    pub url: &'static str,
    /// What it found here.
    pub detail: String,
    /// Where.
    pub span: Span,
}

/// Reads `skip=A,B;error=true`, of `# check=` and of the build argument BUILDKIT_DOCKERFILE_CHECK.
pub fn parse_check(text: &str) -> Result<Check, String> {
    let mut check = Check::default();
    if text.trim().is_empty() {
        return Ok(check);
    }
    let names = |value: &str| value.split(',').map(|name| name.trim().to_owned()).collect();
    for part in text.trim().splitn(3, ';') {
        let Some((name, value)) = part.split_once('=') else { return Err(format!("invalid check option {part:?}")) };
        let value = value.trim();
        match name.trim() {
            "skip" if value == "all" => check.skip_all = true,
            "skip" => check.skip = names(value),
            "experimental" => check.experimental = names(value),
            "error" => {
                check.error = match value {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                    _ => {
                        return Err(format!(
                            "failed to parse check option {part:?}: strconv.ParseBool: parsing {value:?}: invalid syntax"
                        ));
                    }
                }
            }
            name => return Err(format!("invalid check option {name:?}")),
        }
    }
    Ok(check)
}

/// What a stage has from the one that it is built on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The image has a shell of its own: a SHELL instruction, or the base image's.
    pub shell: bool,
    /// A WORKDIR of this Dockerfile came before.
    pub workdir: bool,
}

/// Collects warnings.
#[derive(Debug, Clone, Default)]
pub struct Linter {
    check: Check,
    warnings: Vec<Warning>,
}

impl Linter {
    /// Makes the checks that `check` leaves.
    pub fn new(check: &Check) -> Self {
        Self { check: check.clone(), warnings: Vec::new() }
    }

    /// What was found so far.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What was found; an error if the Dockerfile wants one for it.
    pub fn finish(self) -> Result<Vec<Warning>, Error> {
        match self.warnings.first() {
            Some(first) if self.check.error => {
                let rules: BTreeSet<_> = self.warnings.iter().map(|warning| warning.rule).collect();
                let rules: Vec<_> = rules.into_iter().collect();
                Err(Error::new(format!("lint violation found for rules: {}", rules.join(", ")), first.span))
            }
            _ => Ok(self.warnings),
        }
    }

    /// Notes a warning, unless the Dockerfile or the `comment` right above says that it is not wanted.
    pub fn warn(&mut self, rule: &'static Rule, detail: String, span: Span, comment: &[String]) {
        let named = |names: &[String]| names.iter().any(|name| name == rule.name);
        let silent = if rule.experimental {
            !named(&self.check.experimental) && !self.check.experimental.iter().any(|name| name == "all")
        } else {
            self.check.skip_all || named(&self.check.skip)
        };
        let here = comment.iter().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            name.trim().eq_ignore_ascii_case("check").then(|| parse_check(value).ok())?
        });
        if silent || here.into_iter().any(|check| check.skip_all || named(&check.skip)) {
            return;
        }
        self.warnings.push(Warning { rule: rule.name, description: rule.description, url: rule.url, detail, span });
    }

    /// Checks the file as a whole: how it is written, names of stages, what its FROMs refer to. `predefined` are the ARGs that are
    /// there without being declared (TARGETPLATFORM…), `args` these and the global ones with what the client gave.
    pub fn file(&mut self, file: &Dockerfile, predefined: &BTreeMap<String, String>, args: &BTreeMap<String, String>) {
        for span in &file.empty_continuations {
            self.warn(&rules::NO_EMPTY_CONTINUATION, "Empty continuation line".into(), *span, &[]);
        }
        for instruction in &file.globals {
            self.written(instruction);
        }
        for stage in &file.stages {
            self.written_from(stage);
            for instruction in &stage.instructions {
                self.written(instruction);
            }
        }
        self.casing(file);
        self.stage_names(file);
        self.defaults_in_from(file, predefined);
        self.args_in_from(file, args);
    }

    /// What shows without knowing what an instruction is about.
    fn written(&mut self, instruction: &Instruction) {
        match &instruction.kind {
            Kind::Maintainer(_) => {
                let detail = "Maintainer instruction is deprecated in favor of using label".into();
                self.warn(&rules::MAINTAINER_DEPRECATED, detail, instruction.span, &instruction.comment);
            }
            Kind::Arg(args) => {
                let names: Vec<_> = args.iter().map(|arg| arg.name.as_str()).collect();
                self.comment("ARG", &names, &instruction.comment, instruction.span);
            }
            _ => {}
        }
    }

    fn written_from(&mut self, stage: &Stage) {
        let (span, comment) = (stage.span, stage.comment.as_slice());
        let Some(name) = &stage.written_name else { return };
        if name.to_lowercase() != *name {
            self.warn(&rules::STAGE_NAME_CASING, format!("Stage name '{name}' should be lowercase"), span, comment);
        }
        if let Some(word) = &stage.written_as {
            let from = &stage.keyword;
            // A keyword in mixed case has a warning of its own.
            let differs = match case(from) {
                Some(Case::Lower) => case(word) != Some(Case::Lower),
                Some(Case::Upper) => case(word) != Some(Case::Upper),
                None => false,
            };
            if differs {
                let detail = format!("'{word}' and '{from}' keywords' casing do not match");
                self.warn(&rules::FROM_AS_CASING, detail, span, comment);
            }
        }
        self.comment("FROM", &[stage.name.as_deref().unwrap_or_default()], comment, span);
    }

    /// A comment right above a definition should tell about it.
    fn comment(&mut self, instruction: &str, names: &[&str], comment: &[String], span: Span) {
        let Some(last) = comment.last() else { return };
        let about = last.split(' ').next().unwrap_or_default();
        if names.contains(&about) {
            return;
        }
        let name = if let [name] = names { name } else { "<arg_key>" };
        let detail = format!("Comment for {instruction} should follow the format: `# {name} <description>`");
        self.warn(&rules::INVALID_DEFINITION_DESCRIPTION, detail, span, comment);
    }

    fn casing(&mut self, file: &Dockerfile) {
        let keywords = |stage: &Stage| -> Vec<(String, Span, Vec<String>)> {
            let from = (stage.keyword.clone(), stage.span, stage.comment.clone());
            let rest = stage.instructions.iter();
            let rest = rest.map(|one| (one.keyword.clone(), one.span, one.comment.clone()));
            std::iter::once(from).chain(rest).collect()
        };
        let all: Vec<_> = file.stages.iter().flat_map(keywords).collect();
        let count = |wanted| all.iter().filter(|(keyword, ..)| case(keyword) == Some(wanted)).count();
        let (wanted, name) = if count(Case::Lower) > count(Case::Upper) {
            (Case::Lower, "lowercase")
        } else {
            (Case::Upper, "uppercase")
        };
        for (keyword, span, comment) in &all {
            if case(keyword) != Some(wanted) {
                let detail = format!("Command '{keyword}' should match the case of the command majority ({name})");
                self.warn(&rules::CONSISTENT_INSTRUCTION_CASING, detail, *span, comment);
            }
        }
    }

    fn stage_names(&mut self, file: &Dockerfile) {
        let mut known = BTreeSet::new();
        for stage in &file.stages {
            let Some(name) = stage.name.as_deref() else { continue };
            if RESERVED.contains(&name) {
                let detail = format!("Stage name should not use the same name as reserved stage {name:?}");
                self.warn(&rules::RESERVED_STAGE_NAME, detail, stage.span, &stage.comment);
            }
            if !known.insert(name) {
                let detail = format!("Duplicate stage name {name:?}, stage names should be unique");
                self.warn(&rules::DUPLICATE_STAGE_NAME, detail, stage.span, &stage.comment);
            }
        }
    }

    /// What FROM means if the client gives nothing.
    fn defaults_in_from(&mut self, file: &Dockerfile, predefined: &BTreeMap<String, String>) {
        let lexer = Lexer::new(file.directives.escape);
        let mut args = predefined.clone();
        for instruction in &file.globals {
            let Kind::Arg(all) = &instruction.kind else { continue };
            for arg in all {
                let Some(default) = &arg.default else { continue };
                // What cannot be filled in fails the build anyway.
                let Ok(value) = lexer.word(default, &args) else { return };
                args.insert(arg.name.clone(), value.text);
            }
        }
        for stage in &file.stages {
            let Ok(name) = lexer.word(&stage.base, &args) else { return };
            if name.text.parse::<ImageRef>().is_err() {
                let detail =
                    format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
                self.warn(&rules::INVALID_DEFAULT_ARG_IN_FROM, detail, stage.span, &stage.comment);
            }
        }
    }

    fn args_in_from(&mut self, file: &Dockerfile, args: &BTreeMap<String, String>) {
        let lexer = Lexer::new(file.directives.escape);
        let declared = file.globals.iter().filter_map(|instruction| match &instruction.kind {
            Kind::Arg(all) => Some(all.iter().map(|arg| arg.name.as_str())),
            _ => None,
        });
        let known: BTreeSet<&str> = declared.flatten().chain(args.keys().map(String::as_str)).collect();
        for stage in &file.stages {
            let Ok(name) = lexer.word(&stage.base, args) else { return };
            self.undeclared(stage, &name, &known);
            let Some(written) = &stage.platform else { continue };
            let Ok(platform) = lexer.word(written, args) else { return };
            self.undeclared(stage, &platform, &known);
            let only_target = platform.used == ["TARGETPLATFORM"] && platform.unmatched.is_empty();
            if only_target && args.get("TARGETPLATFORM") == Some(&platform.text) {
                let detail = format!(
                    "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
                );
                self.warn(&rules::REDUNDANT_TARGET_PLATFORM, detail, stage.span, &stage.comment);
            }
            if platform.used.is_empty() && platform.unmatched.is_empty() {
                self.constant_platform(stage, &platform.text, args);
            }
        }
    }

    fn undeclared(&mut self, stage: &Stage, word: &Expanded, known: &BTreeSet<&str>) {
        for name in word.unmatched.iter().filter(|name| !known.contains(name.as_str())) {
            let detail = format!("FROM argument '{name}' is not declared");
            let detail = suggest::with_hint(detail, name, known.iter().copied());
            self.warn(&rules::UNDEFINED_ARG_IN_FROM, detail, stage.span, &stage.comment);
        }
    }

    /// A stage whose name tells the platform may have a fixed one.
    fn constant_platform(&mut self, stage: &Stage, platform: &str, args: &BTreeMap<String, String>) {
        let here = |name: &str| args.get(name).map_or("", String::as_str);
        let (os, architecture) = match platform.split('/').collect::<Vec<_>>().as_slice() {
            [one] if OPERATING_SYSTEMS.contains(one) => (*one, here("BUILDARCH")),
            [one] => (here("BUILDOS"), *one),
            [os, architecture, ..] => (*os, *architecture),
            [] => return,
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        };
        let name = stage.name.as_deref().unwrap_or_default();
        if [os, architecture].iter().any(|part| !part.is_empty() && name.contains(part)) {
            return;
        }
        let detail = format!("FROM --platform flag should not use constant value {platform:?}");
        self.warn(&rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED, detail, stage.span, &stage.comment);
    }

    /// Checks the instructions of a stage that is built. Gives what it hands down to stages that are built on it.
    pub fn stage(&mut self, stage: &Stage, inherited: Inherited) -> Inherited {
        let mut state = inherited;
        let mut last: BTreeMap<&str, &Instruction> = BTreeMap::new();
        for instruction in &stage.instructions {
            let once = match &instruction.kind {
                Kind::Cmd(_) => Some("CMD"),
                Kind::Entrypoint(_) => Some("ENTRYPOINT"),
                Kind::Healthcheck(_) => Some("HEALTHCHECK"),
                _ => None,
            };
            // The place is that of the one which is in vain.
            if let Some(earlier) = once.and_then(|kind| last.insert(kind, instruction)) {
                let detail = format!(
                    "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                    instruction.keyword
                );
                self.warn(&rules::MULTIPLE_INSTRUCTIONS_DISALLOWED, detail, earlier.span, &instruction.comment);
            }
            self.instruction(instruction, &mut state);
        }
        state
    }

    fn instruction(&mut self, instruction: &Instruction, state: &mut Inherited) {
        let Instruction { keyword, span, comment, .. } = instruction;
        match &instruction.kind {
            Kind::Shell(_) => state.shell = true,
            Kind::Cmd(Command::Shell(_)) | Kind::Entrypoint(Command::Shell(_)) if !state.shell => {
                let detail = format!(
                    "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
                );
                self.warn(&rules::JSON_ARGS_RECOMMENDED, detail, *span, comment);
            }
            Kind::Workdir(path) => {
                // Only the first one: with it the others are mended. A variable in front may be anything.
                let path = path.trim_matches(['"', '\'']);
                if !state.workdir && !path.starts_with(['/', '$']) {
                    let detail =
                        format!("Relative workdir {path:?} can have unexpected results if the base image changes");
                    self.warn(&rules::WORKDIR_RELATIVE_PATH, detail, *span, comment);
                }
                state.workdir = true;
            }
            Kind::Env(pairs) => {
                self.old_form(pairs, instruction);
                for pair in pairs {
                    self.secret("ENV", &pair.name, instruction);
                }
            }
            Kind::Label(pairs) => self.old_form(pairs, instruction),
            Kind::Arg(args) => {
                for arg in args {
                    self.secret("ARG", &arg.name, instruction);
                }
            }
            Kind::Expose(ports) => {
                for port in ports.iter().filter(|port| !port.contains('$')) {
                    self.port(port, instruction);
                }
            }
            _ => {}
        }
    }

    fn old_form(&mut self, pairs: &[Pair], instruction: &Instruction) {
        if pairs.iter().any(|pair| pair.old_form) {
            let keyword = &instruction.keyword;
            let detail =
                format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
            self.warn(&rules::LEGACY_KEY_VALUE_FORMAT, detail, instruction.span, &instruction.comment);
        }
    }

    fn secret(&mut self, kind: &str, name: &str, instruction: &Instruction) {
        let name = name.trim_matches(['"', '\'']);
        let lower = name.to_lowercase();
        let has = |parts: &[&str]| lower.split('_').any(|part| parts.contains(&part));
        if has(&SECRETIVE) && !has(&HARMLESS) {
            let detail = format!("Do not use ARG or ENV instructions for sensitive data ({kind} {name:?})");
            self.warn(&rules::SECRETS_USED_IN_ARG_OR_ENV, detail, instruction.span, &instruction.comment);
        }
    }

    /// Checks a port of EXPOSE, variables filled in. [`Linter::stage`] does so for those that have none.
    pub fn port(&mut self, port: &str, instruction: &Instruction) {
        let protocol = port.rsplit(':').next().and_then(|own| own.split_once('/')).map_or("", |(_, protocol)| protocol);
        if protocol.to_lowercase() != protocol {
            let detail = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            self.warn(&rules::EXPOSE_PROTO_CASING, detail, instruction.span, &instruction.comment);
        }
        if port.rsplit_once(':').is_some_and(|(before, _)| !before.is_empty()) {
            let detail =
                format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
            self.warn(&rules::EXPOSE_INVALID_FORMAT, detail, instruction.span, &instruction.comment);
        }
    }

    /// Tells of variables that are not set: `unmatched` of what the instruction's words expanded to. `declared` are ARGs of the stage
    /// without a value, `known` variables that may have been meant.
    pub fn undefined_vars<'a>(
        &mut self,
        instruction: &Instruction,
        unmatched: &[String],
        declared: &BTreeSet<String>,
        known: impl IntoIterator<Item = &'a str> + Clone,
    ) {
        let names: BTreeSet<_> = unmatched.iter().collect();
        for name in names {
            if declared.contains(name) || NO_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let hint = suggest::nearest(name, known.clone());
            let hint = hint.map(|hint| format!(" (did you mean ${hint}?)")).unwrap_or_default();
            let detail = format!("Usage of undefined variable '${name}'{hint}");
            self.warn(&rules::UNDEFINED_VAR, detail, instruction.span, &instruction.comment);
        }
    }

    /// Tells of a source of COPY or ADD that `.dockerignore` leaves out.
    pub fn ignored_file(&mut self, instruction: &Instruction, path: &str) {
        let command = if matches!(instruction.kind, Kind::Add(_)) { "Add" } else { "Copy" };
        let detail = format!("Attempting to {command} file {path:?} that is excluded by .dockerignore");
        self.warn(&rules::COPY_IGNORED_FILE, detail, instruction.span, &instruction.comment);
    }

    /// Tells of a base image that is for another platform than was asked for; both as `os/architecture[/variant]`.
    pub fn base_platform(&mut self, stage: &Stage, image: &str, expected: &str, actual: &str) {
        if expected.split('/').take(2).ne(actual.split('/').take(2)) {
            let detail = format!(
                "Base image {image} was pulled with platform {actual:?}, expected {expected:?} for current build"
            );
            self.warn(&rules::INVALID_BASE_IMAGE_PLATFORM, detail, stage.span, &stage.comment);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Lower,
    Upper,
}

fn case(word: &str) -> Option<Case> {
    if word == word.to_lowercase() {
        Some(Case::Lower)
    } else if word == word.to_uppercase() {
        Some(Case::Upper)
    } else {
        None
    }
}
