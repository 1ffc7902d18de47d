//! Stages: which are needed, what they begin with, and their instructions one after the other.

use super::{
    Converted, ImageConfig, NamedContext, Options,
    git::GitRef,
    image,
    image::Image,
    llb::{About, Graph, Output, Tree},
    path, platform,
    vars::Vars,
};
use crate::{
    Error,
    error::Span,
    expand::{Env, Lexer},
    instruction::{self, Dockerfile, Instruction, Kind, MountKind},
    lint::{self, Inherited, Linter},
    parse, suggest,
};
use proto::{
    digest::Digest,
    image_ref::ImageRef,
    pb::{self, op},
};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

const SCRATCH: &str = "scratch";
/// Bytes that variables, commands and what stages hand down may come to, all in all: 2 MB of Dockerfile can say so that a
/// thousand stages have ten thousand variables each.
const LARGEST: usize = if cfg!(test) { 24 << 20 } else { 256 << 20 };
/// Of these, what is looked through for hints.
const HINTS: usize = 64 << 20;
/// The arguments that say how a stage is to be scanned; no variables of commands.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

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
    written: Option<&'a instruction::Stage>,
    span: Span,
    /// For the user; empty if there is only one.
    label: String,
    /// The image.
    base_name: String,
    /// The stage, if it is one.
    base: Option<usize>,
    /// What the client gave in place of the whole stage, and its name.
    replaced: Option<(&'a str, &'a NamedContext)>,
    steps: Vec<Step<'a>>,
    needs: Vec<(usize, Span)>,
    resolved: bool,
    triggered: bool,
    dispatched: bool,
    /// Its first step, and what it is called. That has a number, which is known when the triggers are.
    from: Option<(Output, String)>,
    /// Steps that are shown, and how many of them were.
    total: usize,
    shown: usize,
    pub(super) ignore_cache: bool,
    /// What of a client's folder is used, if that is what it begins with.
    paths: BTreeSet<String>,
    folder: Option<(Output, &'a str, &'a str, &'a [String])>,
    pub(super) platform: Option<pb::Platform>,
    pub(super) tree: Tree,
    pub(super) env: Vars,
    pub(super) dir: String,
    pub(super) user: String,
    pub(super) image: Image,
    base_config: Option<Arc<Vec<u8>>>,
    /// Stages that are built on it and not gone through yet.
    heirs: usize,
    /// ARG, in their order.
    pub(super) args: Vec<(String, Option<String>)>,
    pub(super) cmd_set: bool,
    /// For the linter.
    inherited: Inherited,
}

impl Stage<'_> {
    /// Its name for the user.
    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

/// An image that must be asked for.
#[derive(Debug)]
pub(super) struct Question {
    stage: usize,
    /// The context that it is, if it is one.
    context: Option<String>,
    pub(super) reference: String,
    pub(super) shown: String,
    pub(super) platform: pb::Platform,
    pub(super) span: Span,
}

/// One run of [`super::convert`].
pub(super) struct Converter<'a> {
    pub(super) options: &'a Options,
    pub(super) lexer: Lexer,
    globals: Vars,
    pub(super) graph: Graph,
    pub(super) stages: Vec<Stage<'a>>,
    by_name: HashMap<String, usize>,
    /// What is only copied from.
    others: HashMap<String, usize>,
    target: usize,
    /// The main context, once something uses it, and what is used of it.
    context: Option<Tree>,
    context_folder: Option<Output>,
    context_paths: BTreeSet<String>,
    pub(super) proxy: Option<pb::ProxyEnv>,
    pub(super) linter: Linter,
    ignored: &'a (dyn Fn(&str) -> bool + Sync),
    epoch: Option<i64>,
    /// How many bytes it came to so far, and how many of them for hints.
    size: usize,
    hints: usize,
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

    /// The context that stands for `name`: a stage or an image, as written.
    fn find_context(&self, name: &str, platform: &pb::Platform) -> Option<(&'a str, &'a NamedContext)> {
        if ["scratch", "context"].iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return None;
        }
        let short = |name: &str| match name.parse::<ImageRef>() {
            Ok(image) => {
                let name = image.familiar();
                name.strip_suffix(":latest").unwrap_or(&name).to_owned()
            }
            Err(_) => name.to_owned(),
        };
        let name = short(name);
        let exact = format!("{name}::{}", platform::format(&platform::normalize(platform)));
        let known = |wanted: &str| {
            self.options.contexts.iter().find(|(key, _)| match key.split_once("::") {
                Some((key, platform)) => format!("{}::{platform}", short(key)) == wanted,
                None => short(key) == wanted,
            })
        };
        known(&exact).or_else(|| known(&name)).map(|(key, context)| (key.as_str(), context))
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
    fn add_step(&mut self, at: usize, instruction: Cow<'a, Instruction>, trigger: bool) -> Result<bool, Error> {
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

    fn refuse_circles(&self) -> Result<(), Error> {
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
    fn reachable(&self) -> BTreeSet<usize> {
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

    /// Begins the stages that can be begun, and says which images are needed for others; those that ask the same together.
    pub(super) fn questions(&mut self) -> Result<Vec<Vec<Question>>, Error> {
        let mut questions: Vec<Vec<Question>> = Vec::new();
        let mut known: HashMap<_, usize> = HashMap::new();
        for at in self.reachable() {
            if self.stages[at].resolved || self.stages[at].base.is_some() {
                continue;
            }
            self.stages[at].resolved = true;
            let Some(question) = self.begin(at)? else { continue };
            let key = (question.reference.clone(), question.platform.clone());
            match known.get(&key) {
                Some(number) => questions[*number].push(question),
                None => {
                    known.insert(key, questions.len());
                    questions.push(vec![question]);
                }
            }
        }
        Ok(questions)
    }

    fn begin(&mut self, at: usize) -> Result<Option<Question>, Error> {
        let platform = self.stages[at].platform.clone().unwrap_or_else(|| self.options.platform.clone());
        if let Some((name, context)) = self.stages[at].replaced {
            return self.begin_with(at, name, context, platform);
        }
        let name = self.stages[at].base_name.clone();
        if name == SCRATCH {
            // A platform of nothing is the target's.
            let platform = self.options.platform.clone();
            self.root(at, None, Image::empty(&platform), None, platform);
            return Ok(None);
        }
        let span = self.stages[at].span;
        if let Some((name, context)) = self.find_context(&name, &platform) {
            return self.begin_with(at, name, context, platform);
        }
        let reference: ImageRef =
            name.parse().map_err(|cause| Error::new(format!("failed to parse stage name {name:?}: {cause}"), span))?;
        let reference = reference.with_default_tag().to_string();
        Ok(Some(Question { stage: at, context: None, reference, shown: name, platform, span }))
    }

    /// Begins a stage with what the client gave.
    fn begin_with(
        &mut self,
        at: usize,
        name: &'a str,
        context: &'a NamedContext,
        platform: pb::Platform,
    ) -> Result<Option<Question>, Error> {
        let span = self.stages[at].span;
        let error = |cause: String| Error::new(format!("context {name}: {cause}"), span);
        let mut image = Image::empty(&platform);
        let mut base_config = None;
        let tree = match context {
            NamedContext::Image(reference) => {
                let reference = reference.strip_prefix("docker-image://").unwrap_or(reference);
                if reference != SCRATCH {
                    let parsed: ImageRef = reference.parse().map_err(|cause| error(format!("{cause}")))?;
                    return Ok(Some(Question {
                        stage: at,
                        context: Some(name.into()),
                        reference: parsed.with_default_tag().to_string(),
                        shown: reference.into(),
                        platform,
                        span,
                    }));
                }
                None
            }
            NamedContext::Local { name: folder, exclude } => {
                let output = self.graph.reserve();
                self.stages[at].folder = Some((output, name, folder, exclude));
                Some(output)
            }
            NamedContext::Source(source) => {
                let name = format!("[context {name}] {}", address(source));
                Some(self.graph.add(op::Op::Source(source.clone()), Vec::new(), None, About::named(name)))
            }
            NamedContext::Input(definition, config) => {
                if let Some(config) = config {
                    image = Image::read(config).map_err(|cause| error(format!("image configuration: {cause}")))?;
                    base_config = Some(config.clone());
                }
                self.graph.import(definition).map_err(error)?
            }
        };
        let platform = image.platform().filter(|_| base_config.is_some()).unwrap_or(platform);
        self.root(at, tree, image, base_config, platform);
        Ok(None)
    }

    fn root(&mut self, at: usize, tree: Tree, image: Image, config: Option<Vec<u8>>, platform: pb::Platform) {
        let stage = &mut self.stages[at];
        stage.tree = tree;
        stage.image = image;
        stage.base_config = config.map(Arc::new);
        stage.platform = Some(platform);
    }

    /// Begins a stage with an image.
    pub(super) fn answer(&mut self, question: Question, answer: &ImageConfig) -> Result<(), Error> {
        let Question { stage: at, ref context, ref reference, ref platform, span, .. } = question;
        let error = |message: String| Error::new(message, span);
        self.count(answer.config.len(), span)?;
        let image = Image::read(&answer.config)
            .map_err(|cause| error(format!("failed to parse image config of {reference}: {cause}")))?;
        if let (Some(written), Some(actual), None) = (self.stages[at].written, image.platform(), context) {
            let (expected, actual) = (platform::format(platform), platform::format(&platform::normalize(&actual)));
            self.linter.base_platform(written, &question.shown, &expected, &actual);
        }
        let name = answer.reference.as_deref().unwrap_or(reference);
        let parsed: ImageRef = name.parse().map_err(|cause| error(format!("failed to parse ref {name:?}: {cause}")))?;
        // The tag stays beside the digest, for the user.
        let pinned = parsed.digest().is_some();
        let mut full = parsed.with_default_tag().to_string();
        if !answer.digest.is_empty() && !pinned {
            let digest: Digest = answer.digest.parse().map_err(|cause| error(format!("digest of {name}: {cause}")))?;
            full = format!("{full}@{digest}");
        }
        let tree = if image.is_empty() {
            None
        } else {
            let stage = &mut self.stages[at];
            let about = About {
                name: context.as_ref().map_or_else(String::new, |name| format!("[context {name}] {}", question.shown)),
                command: stage.written.map(|stage| stage.text.clone()),
                span: Some(span),
                ..About::default()
            };
            let source = pb::SourceOp { identifier: format!("docker-image://{full}"), ..pb::SourceOp::default() };
            let output = self.graph.add(op::Op::Source(source), Vec::new(), Some(platform), about);
            if context.is_none() {
                stage.from = Some((output, format!("FROM {full}")));
            }
            Some(output)
        };
        self.root(at, tree, image, Some(answer.config.clone()), platform.clone());
        Ok(())
    }

    /// Adds what ONBUILD of bases says; whether that needs something new.
    pub(super) fn add_triggers(&mut self) -> Result<bool, Error> {
        let mut new = false;
        for at in self.reachable() {
            let stage = &mut self.stages[at];
            let Some(written) = stage.written.filter(|_| !stage.triggered && stage.replaced.is_none()) else {
                continue;
            };
            stage.triggered = true;
            let mut triggers = std::mem::take(&mut stage.image.config.on_build);
            if let Some(base) = stage.base {
                triggers.extend(self.stages[base].steps.iter().filter_map(|step| match &step.instruction.kind {
                    Kind::Onbuild(text) => Some(text.clone()),
                    _ => None,
                }));
            }
            let own = std::mem::take(&mut self.stages[at].steps);
            for trigger in triggers {
                let instruction = parse::trigger(&trigger, written.span)?;
                new |= self.add_step(at, Cow::Owned(instruction), true)?;
            }
            self.stages[at].steps.extend(own);
        }
        if new {
            self.refuse_circles()?;
        }
        Ok(new)
    }

    /// Goes through all stages that are needed.
    pub(super) fn finish(mut self) -> Result<Converted, Error> {
        let reachable = self.reachable();
        for at in &reachable {
            if let Some(base) = self.stages[*at].base {
                self.stages[base].heirs += 1;
            }
        }
        for at in reachable {
            if let Some((output, text)) = self.stages[at].from.take() {
                // What is only copied from has no steps that could be counted.
                let name = if self.stages[at].written.is_some() {
                    self.stages[at].total += 1;
                    self.next_name(at, &text, &Vars::default(), false)
                } else {
                    text
                };
                self.graph.rename(output, name);
            }
            if self.stages[at].written.is_some() {
                self.go_through(at)?;
            }
            let stage = &mut self.stages[at];
            stage.dispatched = true;
            if stage.heirs == 0 && at != self.target {
                (stage.image, stage.env) = (Image::default(), Vars::default());
            }
        }
        self.use_path(self.target, "/");
        self.describe_folders();
        let options = self.options;
        let target = &mut self.stages[self.target];
        let mut image = std::mem::take(&mut target.image);
        image.config.labels.extend(options.labels.clone());
        if !options.implicit_platform {
            let wanted = &options.platform;
            let same = wanted.os == image.os && wanted.architecture == image.architecture;
            image.os.clone_from(&wanted.os);
            image.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                image.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                image.os_version.clone_from(&wanted.os_version);
            }
        }
        if let Some(platform) = image.platform().map(|platform| platform::normalize(&platform)) {
            image.os = platform.os;
            image.architecture = platform.architecture;
            image.variant = platform.variant;
        }
        image.rootfs.diff_ids.clear();
        let config = serde_json::to_vec(&image).map_err(|cause| Error {
            message: format!("image configuration: {cause}"),
            span: None,
            column: None,
        })?;
        Ok(Converted {
            definition: target.tree.map(|tree| self.graph.definition(tree, &options.source)),
            config,
            base_config: target.base_config.take().map(Arc::unwrap_or_clone),
            epoch: self.epoch,
            warnings: self.linter.warnings().to_vec(),
            violation: self.linter.finish().err(),
        })
    }

    /// Notes that something of this size was made.
    pub(super) fn count(&mut self, size: usize, span: Span) -> Result<(), Error> {
        self.size = self.size.saturating_add(size);
        match self.size > LARGEST {
            true => {
                Err(Error::new("the Dockerfile comes to too much: variables, commands and stages, all in all", span))
            }
            false => Ok(()),
        }
    }

    /// Fills in the variables of a word.
    pub(super) fn expand(&mut self, word: &str, env: &impl Env, span: Span) -> Result<String, Error> {
        let expanded = self.lexer.word(word, env).map_err(|error| Error::new(error.to_string(), span))?;
        self.count(expanded.text.len(), span)?;
        Ok(expanded.text)
    }

    /// What the steps have in common with those of the stage below, or with the image's configuration.
    fn inherit(&mut self, at: usize) -> Result<(), Error> {
        let Some(base) = self.stages[at].base else { return Ok(()) };
        let below = &mut self.stages[base];
        below.heirs -= 1;
        // The last one may have what nobody else needs.
        let (mut image, env, args) = if below.heirs == 0 && base != self.target {
            (std::mem::take(&mut below.image), std::mem::take(&mut below.env), std::mem::take(&mut below.args))
        } else {
            let copies = (below.image.clone(), below.env.clone(), below.args.clone());
            let args: usize = copies.2.iter().map(|(name, _)| name.len() + 100).sum();
            self.count(copies.0.size() + args, self.stages[at].span)?;
            copies
        };
        self.count(env.size(), self.stages[at].span)?;
        image.config.on_build.clear();
        let below = &self.stages[base];
        let (tree, platform, inherited) = (below.tree, below.platform.clone(), below.inherited);
        let (dir, user, base_config) = (below.dir.clone(), below.user.clone(), below.base_config.clone());
        let stage = &mut self.stages[at];
        *stage = Stage { image, tree, env, platform, dir, user, args, base_config, inherited, ..std::mem::take(stage) };
        Ok(())
    }

    fn go_through(&mut self, at: usize) -> Result<(), Error> {
        self.inherit(at)?;
        let stage = &mut self.stages[at];
        if !stage.image.config.env.iter().any(|line| image::split(line).0 == "PATH") {
            stage.image.set_env("PATH", image::PATH);
        }
        for line in &stage.image.config.env {
            let (name, value) = image::split(line);
            stage.env.set(name, value);
        }
        if !stage.image.config.working_dir.is_empty() {
            stage.image.config.working_dir = path::clean(&stage.image.config.working_dir);
            stage.dir.clone_from(&stage.image.config.working_dir);
        }
        if stage.dir.is_empty() {
            stage.dir = "/".into();
        }
        if !stage.image.config.user.is_empty() {
            stage.user.clone_from(&stage.image.config.user);
        }
        if let Some(written) = stage.written.filter(|_| stage.replaced.is_none()) {
            stage.inherited.shell |= !stage.image.config.shell.is_empty();
            stage.inherited = self.linter.stage(written, stage.inherited);
        }
        for step in std::mem::take(&mut self.stages[at].steps) {
            self.step(at, &step)?;
            self.stages[at].steps.push(step);
        }
        Ok(())
    }

    fn step(&mut self, at: usize, step: &Step) -> Result<(), Error> {
        match &step.instruction.kind {
            Kind::Add(add) => self.add(at, step, add),
            Kind::Arg(args) => self.arg(at, step, args),
            Kind::Copy(copy) => self.copy(at, step, copy),
            Kind::Run(run) => self.run(at, step, run),
            other => self.meta(at, step, other),
        }
    }

    /// ARG of a stage.
    fn arg(&mut self, at: usize, step: &Step, args: &[instruction::Arg]) -> Result<(), Error> {
        let mut told = Vec::new();
        for arg in args {
            let value = match (self.options.build_args.get(&arg.name), &arg.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.word(at, default, step)?),
                (None, None) => self.globals.get(&arg.name).map(str::to_owned),
            };
            let stage = &mut self.stages[at];
            if let Some(value) = &value
                && !NO_VARIABLES.contains(&arg.name.as_str())
            {
                stage.env.set(&arg.name, value);
            }
            told.push(match &value {
                Some(value) => format!("{}={value}", arg.name),
                None => arg.name.clone(),
            });
            stage.args.push((arg.name.clone(), value));
        }
        self.record(at, format!("ARG {}", told.join(" ")), false);
        Ok(())
    }

    /// A word of an instruction with its variables filled in.
    pub(super) fn word(&mut self, at: usize, word: &str, step: &Step) -> Result<String, Error> {
        let expanded = self.lexer.word(word, &self.stages[at].env);
        let expanded = expanded.map_err(|error| step.error(error.to_string()))?;
        self.count(expanded.text.len(), step.span())?;
        self.undefined(at, step, &expanded.unmatched);
        Ok(expanded.text)
    }

    /// Tells of variables that were not set.
    pub(super) fn undefined(&mut self, at: usize, step: &Step, unmatched: &[String]) {
        if unmatched.is_empty() {
            return;
        }
        let stage = &self.stages[at];
        self.hints = self.hints.saturating_add(stage.env.size() + 60 * stage.args.len());
        if self.hints > HINTS {
            return;
        }
        let declared = stage.args.iter().map(|(name, _)| name.clone()).collect();
        let known = stage.env.names();
        self.linter.undefined_vars(&step.instruction, unmatched, &declared, known);
    }

    /// Tells of a path that the client leaves out of its context.
    pub(super) fn tell_ignored(&mut self, step: &Step, path: &str) {
        let path = path::clean(path);
        if path != "/" && !path::is_pattern(&path) && (self.ignored)(path.trim_start_matches('/')) {
            self.linter.ignored_file(&step.instruction, path.trim_start_matches('/'));
        }
    }

    /// Words of an instruction.
    pub(super) fn words(&mut self, at: usize, words: &[String], step: &Step) -> Result<Vec<String>, Error> {
        words.iter().map(|word| self.word(at, word, step)).collect()
    }

    /// Adds a line to the history of the stage's image.
    pub(super) fn record(&mut self, at: usize, what: String, layer: bool) {
        self.stages[at].image.record(what, layer, self.epoch);
    }

    /// Time stamp of files: nanoseconds, -1 for now.
    pub(super) fn file_time(&self) -> i64 {
        self.epoch.map_or(-1, |seconds| seconds.saturating_mul(1_000_000_000))
    }

    /// The stage's platform, which is known when its instructions are gone through.
    pub(super) fn platform(&self, at: usize) -> pb::Platform {
        self.stages[at].platform.clone().unwrap_or_else(|| self.options.platform.clone())
    }

    /// An instruction as its step is called: keyword in capitals, variables filled in as far as `lexer` does.
    pub(super) fn shown(&mut self, text: &str, lexer: &Lexer, env: &impl Env, span: Span) -> Result<String, Error> {
        let text = lexer.word(text, env).map_or_else(|_| text.to_owned(), |expanded| expanded.text);
        self.count(2 * text.len(), span)?;
        Ok(match text.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        })
    }

    /// `[build 2/5] RUN make`, counting it.
    pub(super) fn next_name(&mut self, at: usize, text: &str, env: &Vars, trigger: bool) -> String {
        self.stages[at].shown += 1;
        self.name(at, text, env, trigger)
    }

    /// The same, of the step that was counted last.
    pub(super) fn name(&self, at: usize, text: &str, env: &Vars, trigger: bool) -> String {
        let stage = &self.stages[at];
        if stage.total == 0 {
            return text.into();
        }
        let mut name = String::from("[");
        if self.options.multi_platform {
            let platform = self.platform(at);
            name += &format!("{}{} ", platform::format(&platform), platform::crossing(&platform, env));
        }
        if !stage.label.is_empty() {
            name += &format!("{} ", stage.label);
        }
        let width = stage.total.ilog10() as usize + 1;
        name += &format!("{:width$}/{}] ", stage.shown, stage.total);
        if trigger {
            name += "ONBUILD ";
        }
        name + text
    }

    /// The filesystem of what a step takes something from.
    pub(super) fn source(&mut self, source: usize, error: impl FnOnce(&str) -> Error) -> Result<Tree, Error> {
        let stage = &self.stages[source];
        if !stage.dispatched && stage.written.is_some() {
            let name = stage.written.and_then(|stage| stage.name.as_deref()).unwrap_or(&stage.label);
            return Err(error(name));
        }
        Ok(stage.tree)
    }

    /// Says that a path of the folder that a stage begins with is used.
    pub(super) fn use_path(&mut self, mut at: usize, path: &str) {
        while let Some(base) = self.stages[at].base {
            at = base;
        }
        self.stages[at].paths.insert(path::clean(path));
    }

    /// Says that a path of the main context is used.
    pub(super) fn use_context(&mut self, path: &str) {
        self.context_paths.insert(path::clean(path));
    }

    /// The main context.
    pub(super) fn main_context(&mut self, step: &Step) -> Result<Tree, Error> {
        if let Some(tree) = self.context {
            return Ok(tree);
        }
        let options = self.options;
        let tree = match &options.context {
            None | Some(NamedContext::Local { .. }) => {
                let output = self.graph.reserve();
                self.context_folder = Some(output);
                Some(output)
            }
            Some(NamedContext::Source(source)) => {
                let what = match source.identifier.starts_with("git://") {
                    true => "load git source",
                    false => "load remote build context",
                };
                let about = About::internal(&format!("{what} {}", address(source)));
                Some(self.graph.add(op::Op::Source(source.clone()), Vec::new(), None, about))
            }
            Some(NamedContext::Input(definition, _)) => {
                self.graph.import(definition).map_err(|cause| step.error(format!("build context: {cause}")))?
            }
            Some(NamedContext::Image(reference)) => {
                let reference = reference.strip_prefix("docker-image://").unwrap_or(reference);
                let image: ImageRef =
                    reference.parse().map_err(|cause| step.error(format!("build context: {cause}")))?;
                let identifier = format!("docker-image://{}", image.with_default_tag());
                let source = pb::SourceOp { identifier, ..pb::SourceOp::default() };
                let about = About::internal("load build context");
                Some(self.graph.add(op::Op::Source(source), Vec::new(), Some(&options.platform), about))
            }
        };
        self.context = Some(tree);
        Ok(tree)
    }

    /// Now that all is known that is used of them.
    fn describe_folders(&mut self) {
        let options = self.options;
        if let Some(output) = self.context_folder {
            let (name, exclude): (&str, &[String]) = match &options.context {
                Some(NamedContext::Local { name, exclude }) => (name, exclude),
                _ => ("context", &[]),
            };
            let source = local(options, name, name, exclude, &self.context_paths);
            self.graph.describe_source(output, source, About::internal("load build context"));
        }
        for stage in &self.stages {
            if let Some((output, name, folder, exclude)) = stage.folder {
                let source = local(options, folder, &format!("context:{name}"), exclude, &stage.paths);
                let about = About::named(format!("[context {name}] load from client"));
                self.graph.describe_source(output, source, about);
            }
        }
    }
}

/// A client's folder as a source: only these `paths` of it, if they are known.
fn local(options: &Options, name: &str, hint: &str, exclude: &[String], paths: &BTreeSet<String>) -> pb::SourceOp {
    let mut attrs = vec![("local.sharedkeyhint", hint.to_owned())];
    if !options.session.is_empty() {
        attrs.push(("local.session", options.session.clone()));
    }
    if !options.unique_id.is_empty() {
        attrs.push(("local.unique", options.unique_id.clone()));
    }
    if !exclude.is_empty() {
        attrs.push(("local.excludepatterns", json(exclude.iter().map(String::as_str))));
    }
    if !paths.is_empty() && !paths.contains("/") {
        attrs.push(("local.followpaths", json(paths.iter().map(|path| path.trim_start_matches('/')))));
    }
    let attrs = attrs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    pb::SourceOp { identifier: format!("local://{name}"), attrs }
}

fn json<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    serde_json::Value::from_iter(texts).to_string()
}

/// A source as people write it.
fn address(source: &pb::SourceOp) -> &str {
    source.attrs.get("git.fullurl").unwrap_or(&source.identifier)
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

/// Whether an ADD fetches `text` instead of looking for it in the context.
pub(super) fn is_remote(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://") || GitRef::parse(text).is_some()
}
