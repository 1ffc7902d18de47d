//! What is wrong with one operation.

use super::GraphError;
use crate::keys;
use proto::{
    digest::Digest,
    pb::{self, file_action::Action, op::Op},
};

/// What an operation is, for errors.
pub(super) fn kind(op: Option<&Op>) -> &'static str {
    match op {
        None => "an end",
        Some(Op::Exec(_)) => "exec",
        Some(Op::Source(_)) => "a source",
        Some(Op::File(_)) => "a file operation",
        Some(Op::Build(_)) => "a build",
        Some(Op::Merge(_)) => "a merge",
        Some(Op::Diff(_)) => "a diff",
    }
}

/// The operation with its paths clean, and how many results it has.
pub(super) fn check(op: Digest, mut value: pb::Op) -> Result<(pb::Op, usize), GraphError> {
    let inputs = value.inputs.len();
    let at = At { op };
    if let Some(platform) = &value.platform {
        let parts = [&platform.architecture, &platform.os, &platform.variant, &platform.os_version];
        for part in parts.into_iter().chain(&platform.os_features) {
            at.text("platform", part)?;
        }
    }
    let outputs = match value.op.as_mut() {
        None => return Err(GraphError::Absent { op, field: "kind that is known here" }),
        Some(Op::Exec(exec)) => at.exec(exec, inputs)?,
        Some(Op::Source(source)) => at.source(source, inputs)?,
        Some(Op::File(file)) => at.file(file, inputs)?,
        Some(Op::Build(_)) => {
            return Err(GraphError::Unsupported { op, what: "a build whose definition is the result of another" });
        }
        Some(Op::Merge(merge)) => at.merge(merge, inputs)?,
        Some(Op::Diff(diff)) => at.diff(diff, inputs)?,
    };
    Ok((value, outputs))
}

struct At {
    op: Digest,
}

impl At {
    fn exec(&self, exec: &mut pb::ExecOp, inputs: usize) -> Result<usize, GraphError> {
        self.known::<pb::NetMode>("network mode", exec.network)?;
        self.known::<pb::SecurityMode>("security mode", exec.security)?;
        let Some(meta) = &mut exec.meta else { return Err(self.absent("meta")) };
        if meta.args.is_empty() {
            return Err(self.absent("args"));
        }
        let texts = meta.args.iter().chain(&meta.env).chain([&meta.user, &meta.hostname, &meta.cgroup_parent]);
        for text in texts {
            self.text("args, variable or user", text)?;
        }
        meta.cwd = self.path("working directory", "/", &meta.cwd)?;
        for secret in &exec.secretenv {
            self.text("secret", &secret.id)?;
            self.text("secret variable", &secret.name)?;
            if secret.id.is_empty() || secret.name.is_empty() {
                return Err(self.absent("id and name of a secret variable"));
            }
        }
        for host in &meta.extra_hosts {
            self.text("extra host", &host.host)?;
            self.text("extra host", &host.ip)?;
        }
        let mut outputs = Outputs::new();
        let mut roots = 0;
        for mount in &mut exec.mounts {
            self.mount(mount, &meta.cwd, inputs)?;
            if mount.dest == "/" {
                roots += 1;
                if mount.mount_type != pb::MountType::Bind as i32 {
                    return Err(self.value("mount", "/", "the root filesystem has to be a bind mount"));
                }
            }
            // Secrets and sockets of ssh come with 0 in all indices, and mean nothing by it.
            if mount.mount_type == pb::MountType::Bind as i32 {
                outputs.add(self, mount.output)?;
            }
        }
        match roots {
            1 => {}
            0 => return Err(self.absent("mount at /, the root filesystem")),
            _ => return Err(self.value("mount", "/", "there is more than one")),
        }
        if let Some(dest) = keys::uncacheable(&exec.mounts, inputs) {
            let why = "the key can't be made of the content of a part that is written to";
            return Err(self.value("content cache of mount", &dest, why));
        }
        outputs.count(self)
    }

    fn mount(&self, mount: &mut pb::Mount, cwd: &str, inputs: usize) -> Result<(), GraphError> {
        let kind = self.known::<pb::MountType>("mount type", mount.mount_type)?;
        self.known::<pb::MountContentCache>("content cache", mount.content_cache)?;
        if mount.dest.is_empty() {
            return Err(self.absent("target of a mount"));
        }
        mount.dest = self.path("target of a mount", cwd, &mount.dest)?;
        mount.selector = self.path("selector of a mount", "/", &mount.selector)?.split_off(1);
        match kind {
            pb::MountType::Bind => self.index("input of a mount", mount.input, -1, inputs)?,
            pb::MountType::Cache => {
                self.index("input of a mount", mount.input, -1, inputs)?;
                let Some(cache) = &mount.cache_opt else { return Err(self.absent("options of a cache mount")) };
                self.known::<pb::CacheSharingOpt>("sharing of a cache mount", cache.sharing)?;
                self.text("id of a cache mount", &cache.id)?;
                if mount.output != -1 {
                    return Err(self.value("cache mount", &mount.dest, "it can't have a result"));
                }
            }
            pb::MountType::Secret => {
                let Some(secret) = &mount.secret_opt else { return Err(self.absent("options of a secret")) };
                self.text("id of a secret", &secret.id)?;
                self.mode("mode of a secret", i64::from(secret.mode))?;
            }
            pb::MountType::Ssh => {
                let Some(ssh) = &mount.ssh_opt else { return Err(self.absent("options of an ssh mount")) };
                self.text("id of an ssh mount", &ssh.id)?;
                self.mode("mode of an ssh mount", i64::from(ssh.mode))?;
            }
            pb::MountType::Tmpfs => {
                if mount.tmpfs_opt.is_some_and(|tmpfs| tmpfs.size < 0) {
                    return Err(self.value("size of tmpfs", &mount.dest, "it is negative"));
                }
            }
        }
        Ok(())
    }

    fn source(&self, source: &pb::SourceOp, inputs: usize) -> Result<usize, GraphError> {
        if inputs != 0 {
            return Err(self.value("source", &source.identifier, "a source has no inputs"));
        }
        self.text("source", &source.identifier)?;
        if !source.identifier.contains("://") {
            return Err(self.value("source", &source.identifier, "it has no scheme"));
        }
        for text in source.attrs.iter().flat_map(|(key, value)| [key, value]) {
            self.text("attribute of a source", text)?;
        }
        Ok(1)
    }

    fn file(&self, file: &pb::FileOp, inputs: usize) -> Result<usize, GraphError> {
        if file.actions.is_empty() {
            return Err(self.absent("actions"));
        }
        let mut outputs = Outputs::new();
        for (at, action) in file.actions.iter().enumerate() {
            self.index("input of an action", action.input, -1, inputs + at)?;
            self.index("secondary input of an action", action.secondary_input, -1, inputs + at)?;
            let (owner, mode) = match &action.action {
                None => return Err(self.absent("kind of an action that is known here")),
                Some(Action::Copy(copy)) => {
                    let paths = copy.include_patterns.iter().chain(&copy.exclude_patterns).chain(&copy.required_paths);
                    for path in paths.chain([&copy.src, &copy.dest, &copy.mode_str]) {
                        self.text("path of an action", path)?;
                    }
                    (&copy.owner, copy.mode)
                }
                Some(Action::Mkfile(file)) => {
                    self.text("path of an action", &file.path)?;
                    (&file.owner, file.mode)
                }
                Some(Action::Mkdir(dir)) => {
                    self.text("path of an action", &dir.path)?;
                    (&dir.owner, dir.mode)
                }
                Some(Action::Symlink(link)) => {
                    self.text("path of an action", &link.oldpath)?;
                    self.text("path of an action", &link.newpath)?;
                    (&link.owner, 0)
                }
                Some(Action::Rm(rm)) => {
                    self.text("path of an action", &rm.path)?;
                    (&None, 0)
                }
            };
            if mode != -1 {
                self.mode("mode of an action", i64::from(mode))?;
            }
            self.owner(owner.as_ref(), inputs)?;
            outputs.add(self, action.output)?;
        }
        outputs.count(self)
    }

    fn owner(&self, owner: Option<&pb::ChownOpt>, inputs: usize) -> Result<(), GraphError> {
        let Some(owner) = owner else { return Ok(()) };
        for who in [&owner.user, &owner.group].into_iter().flatten() {
            if let Some(pb::user_opt::User::ByName(named)) = &who.user {
                self.text("owner", &named.name)?;
                self.index("input of an owner", named.input, 0, inputs)?;
            }
        }
        Ok(())
    }

    fn merge(&self, merge: &pb::MergeOp, inputs: usize) -> Result<usize, GraphError> {
        if merge.inputs.len() != inputs || inputs == 0 {
            let field = "count of merged inputs";
            return Err(GraphError::Index { op: self.op, field, index: merge.inputs.len() as i64, count: inputs });
        }
        for input in &merge.inputs {
            self.index("input of a merge", input.input, 0, inputs)?;
        }
        Ok(1)
    }

    fn diff(&self, diff: &pb::DiffOp, inputs: usize) -> Result<usize, GraphError> {
        let (Some(lower), Some(upper)) = (diff.lower, diff.upper) else {
            return Err(self.absent("lower and upper filesystem"));
        };
        self.index("lower input of a diff", lower.input, -1, inputs)?;
        self.index("upper input of a diff", upper.input, -1, inputs)?;
        Ok(1)
    }

    fn known<E: TryFrom<i32>>(&self, field: &'static str, value: i32) -> Result<E, GraphError> {
        E::try_from(value).map_err(|_| GraphError::Unknown { op: self.op, field, value: value.into() })
    }

    fn index(&self, field: &'static str, index: i64, least: i64, count: usize) -> Result<(), GraphError> {
        let fits = index >= least && index < i64::try_from(count).unwrap_or(i64::MAX);
        if fits { Ok(()) } else { Err(GraphError::Index { op: self.op, field, index, count }) }
    }

    fn mode(&self, field: &'static str, mode: i64) -> Result<(), GraphError> {
        if (0..=0o7777).contains(&mode) {
            return Ok(());
        }
        Err(self.value(field, &format!("{mode:o}"), "it is not between 0 and 7777"))
    }

    fn text(&self, field: &'static str, text: &str) -> Result<(), GraphError> {
        if text.contains('\0') { Err(self.value(field, text, "it has a zero byte")) } else { Ok(()) }
    }

    /// `path` seen from `base`, absolute and clean: nothing in it leads up any more.
    fn path(&self, field: &'static str, base: &str, path: &str) -> Result<String, GraphError> {
        self.text(field, path)?;
        let mut parts = Vec::new();
        let base = if path.starts_with('/') { "" } else { base };
        for part in base.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Ok(format!("/{}", parts.join("/")))
    }

    fn absent(&self, field: &'static str) -> GraphError {
        GraphError::Absent { op: self.op, field }
    }

    fn value(&self, field: &'static str, value: &str, why: &'static str) -> GraphError {
        GraphError::Value { op: self.op, field, value: value.chars().take(200).collect(), why }
    }
}

/// Results: each number once, from 0 without a gap.
struct Outputs(Vec<i64>);

impl Outputs {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, at: &At, output: i64) -> Result<(), GraphError> {
        if output < -1 {
            return Err(GraphError::Index { op: at.op, field: "output", index: output, count: self.0.len() });
        }
        if output != -1 {
            self.0.push(output);
        }
        Ok(())
    }

    fn count(mut self, at: &At) -> Result<usize, GraphError> {
        self.0.sort_unstable();
        let count = self.0.len();
        let stray = self.0.iter().zip(0..).find(|(output, place)| *output != place);
        match stray {
            Some((output, _)) => Err(GraphError::Index { op: at.op, field: "output", index: *output, count }),
            None => Ok(count),
        }
    }
}
