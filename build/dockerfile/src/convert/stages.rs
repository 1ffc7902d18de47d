//! Stages, and which of them need each other. What they begin with is asked for in `begin`; `walk` goes through their
//! instructions.

use super::{
    NamedContext, Options,
    image::Image,
    llb::{Graph, Output, Tree},
    platform,
    vars::Vars,
};
use crate::{
    Error,
    error::Span,
    expand::Lexer,
    instruction::{self, Dockerfile, Instruction, Kind, MountKind},
    lint::{self, Inherited, Linter},
    suggest,
};
use proto::pb;
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// The image that is nothing.
pub(super) const SCRATCH: &str = "scratch";

/// An instruction, and the stages that it takes something from.
#[derive(Debug, Clone)]
pub(super) struct Step<'a> {
    pub(super) instruction: Cow<'a, Instruction>,
    /// COPY: one at most; RUN: one per mount.
    pub(super) sources: Vec<Option<usize>>,
    /// Whether it comes from an ONBUILD of the base.
    pub(super) trigger: bool,
}

impl Step<'_> {
    pub(super) fn span(&self) -> Span {
        self.instruction.span
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::new(message, self.span())
    }
}

/// A stage, or an image or context that something is only copied from.
#[derive(Debug, Default)]
pub(super) struct Stage<'a> {
    pub(super) written: Option<&'a instruction::Stage>,
    pub(super) span: Span,
    /// For the user; empty if there is only one.
    pub(super) label: String,
    /// The image.
    pub(super) base_name: String,
    /// The stage, if it is one.
    pub(super) base: Option<usize>,
    /// What the client gave in place of the whole stage, and its name.
    pub(super) replaced: Option<(&'a str, &'a NamedContext)>,
    pub(super) steps: Vec<Step<'a>>,
    pub(super) needs: Vec<(usize, Span)>,
    pub(super) resolved: bool,
    pub(super) triggered: bool,
    pub(super) dispatched: bool,
    /// Its first step, and what it is called. That has a number, which is known when the triggers are.
    pub(super) from: Option<(Output, String)>,
    /// Steps that are shown, and how many of them were.
    pub(super) total: usize,
    pub(super) shown: usize,
    pub(super) ignore_cache: bool,
    /// What of a client's folder is used, if that is what it begins with.
    pub(super) paths: BTreeSet<String>,
    pub(super) folder: Option<(Output, &'a str, &'a str, &'a [String])>,
    pub(super) platform: Option<pb::Platform>,
    pub(super) tree: Tree,
    pub(super) env: Vars,
    pub(super) dir: String,
    pub(super) user: String,
    pub(super) image: Image,
    pub(super) base_config: Option<Arc<Vec<u8>>>,
    /// Stages that are built on it and not gone through yet.
    pub(super) heirs: usize,
    /// ARG, in their order.
    pub(super) args: Vec<(String, Option<String>)>,
    pub(super) cmd_set: bool,
    /// For the linter.
    pub(super) inherited: Inherited,
}

impl Stage<'_> {
    /// Its name for the user.
    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

/// One run of [`super::convert`].
pub(super) struct Converter<'a> {
    pub(super) options: &'a Options,
    pub(super) lexer: Lexer,
    pub(super) globals: Vars,
    pub(super) graph: Graph,
    pub(super) stages: Vec<Stage<'a>>,
    pub(super) by_name: HashMap<String, usize>,
    /// What is only copied from.
    pub(super) others: HashMap<String, usize>,
    pub(super) target: usize,
    /// The main context, once something uses it, and what is used of it.
    pub(super) context: Option<Tree>,
    pub(super) context_folder: Option<Output>,
    pub(super) context_paths: BTreeSet<String>,
    pub(super) proxy: Option<pb::ProxyEnv>,
    pub(super) linter: Linter,
    pub(super) ignored: &'a (dyn Fn(&str) -> bool + Sync),
    pub(super) epoch: Option<i64>,
    /// How many bytes it came to so far, and how many of them for hints.
    pub(super) size: usize,
    pub(super) hints: usize,
}

impl<'a> Converter<'a> {
    /// Finds the stages, and what they need of each other.
    pub(super) fn new(
        file: &'a Dockerfile,
        options: &'a Options,
        ignored: &'a (dyn Fn(&str) -> bool + Sync),
    ) -> Result<Self, Error> {
        let whole = |message: String| Error { message, span: None, column: None };
        let last = file.stages.last().ok_or_else(|| whole("dockerfile contains no stages to build".into()))?;
        let check = match options.build_args.get("BUILDKIT_DOCKERFILE_CHECK") {
            Some(text) => {
                lint::parse_check(text).map_err(|cause| whole(format!("failed to parse check options: {cause}")))?
            }
            None => file.directives.check.clone(),
        };
        let target = options.target.as_deref().filter(|target| !target.is_empty());
        let target_name = target.or(last.name.as_deref()).unwrap_or_default();
        let mut converter = Self {
            options,
            lexer: Lexer::new(file.directives.escape),
            globals: platform::arguments(&options.build_platform, &options.platform, target_name, &options.build_args),
            graph: Graph::default(),
            stages: Vec::new(),
            by_name: HashMap::new(),
            others: HashMap::new(),
            target: 0,
            context: None,
            context_folder: None,
            context_paths: BTreeSet::new(),
            proxy: proxy(options),
            linter: Linter::new(&check),
            ignored,
            epoch: options.epoch,
            size: 0,
            hints: 0,
        };
        let predefined = converter.globals.map();
        converter.read_globals(&file.globals)?;
        converter.linter.file(file, &predefined, &converter.globals.map());
        if let (None, Some(text)) =
            (options.epoch, converter.globals.get("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()))
        {
            let seconds = text.parse().map_err(|_| whole(format!("invalid SOURCE_DATE_EPOCH: {text}")))?;
            converter.epoch = Some(seconds);
        }
        for stage in &file.stages {
            converter.add_stage(stage)?;
        }
        converter.target = converter.find_target(target).map_err(whole)?;
        for at in 0..file.stages.len() {
            converter.add_steps(at)?;
        }
        converter.refuse_circles()?;
        if let [only] = &mut converter.stages[..] {
            only.label.clear();
        }
        Ok(converter)
    }

    /// ARG before the first FROM.
    fn read_globals(&mut self, instructions: &[Instruction]) -> Result<(), Error> {
        for instruction in instructions {
            let Kind::Arg(args) = &instruction.kind else { continue };
            for arg in args {
                let value = match (self.options.build_args.get(&arg.name), &arg.default) {
                    (Some(given), _) => given.clone(),
                    (None, Some(default)) => {
                        let globals = std::mem::take(&mut self.globals);
                        let value = self.expand(default, &globals, instruction.span);
                        self.globals = globals;
                        value?
                    }
                    (None, None) => continue,
                };
                self.globals.set(&arg.name, &value);
            }
        }
        Ok(())
    }

    fn add_stage(&mut self, written: &'a instruction::Stage) -> Result<(), Error> {
        let error = |message: String| Error::new(message, written.span);
        let globals = self.globals.clone();
        self.count(globals.size(), written.span)?;
        let base_name = self.expand(&written.base, &globals, written.span)?;
        if base_name.is_empty() {
            return Err(error(format!("base name ({}) should not be blank", written.base)));
        }
        let platform = match &written.platform {
            None => None,
            Some(text) => {
                let expanded = self.expand(text, &globals, written.span)?;
                if expanded.is_empty() {
                    let message = format!("empty platform value from expression {text}");
                    let name = text.trim_matches(['$', '{', '}']);
                    return Err(error(suggest::with_hint(message, name, self.globals.names())));
                }
                let parsed = platform::parse(&expanded);
                Some(parsed.map_err(|cause| error(format!("failed to parse platform {text}: {cause}")))?)
            }
        };
        let name = written.name.as_deref().unwrap_or_default();
        let number = self.stages.len();
        let replaced = match name {
            "" => None,
            name => self.find_context(name, platform.as_ref().unwrap_or(&self.options.platform)),
        };
        let base = if replaced.is_some() { None } else { self.by_name.get(&base_name).copied() };
        let stage =
            Stage {
                written: Some(written),
                span: written.span,
                label: if name.is_empty() { format!("stage-{number}") } else { name.into() },
                base_name,
                base,
                replaced,
                platform,
                ignore_cache: self.options.no_cache.as_ref().is_some_and(|names| {
                    names.is_empty() || names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
                }),
                ..Stage::default()
            };
        self.stages.push(stage);
        if !name.is_empty() {
            self.by_name.insert(name.to_lowercase(), number);
        }
        Ok(())
    }

    /// A name, or a number from 0.
    fn find_target(&self, target: Option<&str>) -> Result<usize, String> {
        let Some(target) = target else { return Ok(self.stages.len() - 1) };
        let number = || target.parse().ok().filter(|number| *number < self.stages.len());
        self.by_name.get(&target.to_lowercase()).copied().or_else(number).ok_or_else(|| {
            let message = format!("target stage {target:?} could not be found");
            suggest::with_hint(message, target, self.stages.iter().map(|stage| stage.label.as_str()))
        })
    }

    fn add_steps(&mut self, at: usize) -> Result<(), Error> {
        let Some(written) = self.stages[at].written.filter(|_| self.stages[at].replaced.is_none()) else {
            return Ok(());
        };
        for instruction in &written.instructions {
            self.add_step(at, Cow::Borrowed(instruction), false)?;
        }
        Ok(())
    }

    /// Adds one instruction; whether it needs another stage.
    pub(super) fn add_step(
        &mut self,
        at: usize,
        instruction: Cow<'a, Instruction>,
        trigger: bool,
    ) -> Result<bool, Error> {
        let span = instruction.span;
        let sources = match &instruction.kind {
            Kind::Copy(copy) => match &copy.from {
                Some(from) => vec![Some(self.copy_source(from, span)?)],
                None => Vec::new(),
            },
            Kind::Run(run) => {
                let mut sources = Vec::new();
                for mount in &run.mounts {
                    let from = match (&mount.from, mount.kind) {
                        (_, MountKind::Tmpfs | MountKind::Secret | MountKind::Ssh) => None,
                        (None, MountKind::Cache) => Some(SCRATCH),
                        (from, _) => from.as_deref(),
                    };
                    if let Some(from) = from.filter(|from| from.contains('$')) {
                        let message = "'from' doesn't support variable expansion, define alias stage instead";
                        return Err(Error::new(format!("{message}: {from}"), span));
                    }
                    sources.push(from.map(|from| self.find_or_add(from, span)));
                }
                sources
            }
            _ => Vec::new(),
        };
        let needs: Vec<_> = sources.iter().flatten().map(|source| (*source, span)).collect();
        let stage = &mut self.stages[at];
        stage.total +=
            usize::from(matches!(instruction.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_)));
        let new = !needs.is_empty();
        stage.needs.extend(needs);
        stage.steps.push(Step { instruction, sources, trigger });
        Ok(new)
    }

    /// COPY --from
    fn copy_source(&mut self, from: &str, span: Span) -> Result<usize, Error> {
        if self.expand(from, &(), span)? != from {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using ARG from \
                           global scope as a workaround";
            return Err(Error::new(message, span));
        }
        if let Ok(number) = from.parse::<i64>() {
            return match usize::try_from(number) {
                Ok(number) if self.stages.get(number).is_some_and(|stage| stage.written.is_some()) => Ok(number),
                _ => Err(Error::new(format!("invalid stage index {number}"), span)),
            };
        }
        Ok(self.find_or_add(from, span))
    }

    /// The stage of a name, or what has to be fetched for it.
    fn find_or_add(&mut self, name: &str, span: Span) -> usize {
        if let Some(number) = self.by_name.get(&name.to_lowercase()).or_else(|| self.others.get(name)) {
            return *number;
        }
        let number = self.stages.len();
        self.others.insert(name.into(), number);
        self.stages.push(Stage { base_name: name.into(), span, ..Stage::default() });
        number
    }

    pub(super) fn refuse_circles(&self) -> Result<(), Error> {
        // 0: not seen, 1: being followed, 2: done. Deep chains must not use up the stack.
        let mut colours = vec![0_u8; self.stages.len()];
        for start in 0..self.stages.len() {
            let mut trail = vec![(start, 0)];
            while let Some((at, next)) = trail.pop() {
                let stage = &self.stages[at];
                colours[at] = 1;
                let need = match next {
                    0 => stage.base.map(|base| (base, stage.span)),
                    next => stage.needs.get(next - 1).copied(),
                };
                if next <= stage.needs.len() {
                    trail.push((at, next + 1));
                } else {
                    colours[at] = 2;
                }
                match need {
                    Some((need, span)) if colours[need] == 1 => {
                        let name = &self.stages[need].label;
                        return Err(Error::new(format!("circular dependency detected on stage: {name}"), span));
                    }
                    Some((need, _)) if colours[need] == 0 => trail.push((need, 0)),
                    _ => (),
                }
            }
        }
        Ok(())
    }

    /// Stages that the target needs, itself included.
    pub(super) fn reachable(&self) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.target];
        if self.options.all_stages {
            open.extend((0..self.stages.len()).filter(|at| self.stages[*at].written.is_some()));
        }
        while let Some(at) = open.pop() {
            if found.insert(at) {
                let stage = &self.stages[at];
                open.extend(stage.base.into_iter().chain(stage.needs.iter().map(|(need, _)| *need)));
            }
        }
        found
    }
}

/// What build arguments say of proxies; known without ARG, and neither in the image nor in the cache's keys.
fn proxy(options: &Options) -> Option<pb::ProxyEnv> {
    let mut proxy = pb::ProxyEnv::default();
    let mut found = false;
    for (name, value) in &options.build_args {
        let field = match name.to_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        found = true;
    }
    found.then_some(proxy)
}
