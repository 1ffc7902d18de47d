//! Goes through the instructions of the stages that are needed.

use super::{
    Converted, image,
    image::Image,
    llb::Tree,
    path, platform,
    stages::{Converter, Stage, Step},
    vars::Vars,
};
use crate::{
    Error,
    instruction::{self, Kind},
    parse,
};
use std::{borrow::Cow, sync::Arc};

/// The arguments that say how a stage is to be scanned; no variables of commands.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl Converter<'_> {
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

    /// What the steps have in common with those of the stage below, or with the image's configuration.
    pub(super) fn inherit(&mut self, at: usize) -> Result<(), Error> {
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

    pub(super) fn go_through(&mut self, at: usize) -> Result<(), Error> {
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

    pub(super) fn step(&mut self, at: usize, step: &Step) -> Result<(), Error> {
        match &step.instruction.kind {
            Kind::Add(add) => self.add(at, step, add),
            Kind::Arg(args) => self.arg(at, step, args),
            Kind::Copy(copy) => self.copy(at, step, copy),
            Kind::Run(run) => self.run(at, step, run),
            other => self.meta(at, step, other),
        }
    }

    /// ARG of a stage.
    pub(super) fn arg(&mut self, at: usize, step: &Step, args: &[instruction::Arg]) -> Result<(), Error> {
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

    /// The filesystem of what a step takes something from.
    pub(super) fn source(&mut self, source: usize, error: impl FnOnce(&str) -> Error) -> Result<Tree, Error> {
        let stage = &self.stages[source];
        if !stage.dispatched && stage.written.is_some() {
            let name = stage.written.and_then(|stage| stage.name.as_deref()).unwrap_or(&stage.label);
            return Err(error(name));
        }
        Ok(stage.tree)
    }
}
