//! What stages begin with, and what is copied from besides: images, folders of the client's, sources, LLB.

use super::{
    ImageConfig, NamedContext, Options,
    image::Image,
    llb::{About, Tree},
    path, platform,
    stages::{Converter, SCRATCH, Step},
};
use crate::{Error, error::Span};
use proto::{
    digest::Digest,
    image_ref::ImageRef,
    pb::{self, op},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

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

impl<'a> Converter<'a> {
    /// The context that stands for `name`: a stage or an image, as written.
    pub(super) fn find_context(&self, name: &str, platform: &pb::Platform) -> Option<(&'a str, &'a NamedContext)> {
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

    pub(super) fn begin(&mut self, at: usize) -> Result<Option<Question>, Error> {
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
    pub(super) fn begin_with(
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

    pub(super) fn root(
        &mut self,
        at: usize,
        tree: Tree,
        image: Image,
        config: Option<Vec<u8>>,
        platform: pb::Platform,
    ) {
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

    /// Now that all is known that is used of them.
    pub(super) fn describe_folders(&mut self) {
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
