//! COPY and ADD.

use super::{
    git::GitRef,
    llb::{self, About, Files, Tree},
    path,
    stages::{Converter, Step},
};
use crate::{
    Error,
    expand::Lexer,
    instruction::{Add, Copy, Sources},
};
use proto::{
    digest::Digest,
    pb::{self, file_action::Action, op},
};

/// What COPY and ADD say, variables filled in, and what they copy from.
struct Plan {
    keyword: &'static str,
    paths: Vec<String>,
    target: String,
    chown: String,
    chmod: String,
    exclude: Vec<String>,
    link: bool,
    parents: bool,
    checksum: Option<String>,
    keep_git_dir: Option<bool>,
    unpack: Option<bool>,
    /// The filesystem of paths.
    source: Tree,
}

impl Converter<'_> {
    pub(super) fn copy(&mut self, at: usize, step: &Step, copy: &Copy) -> Result<(), Error> {
        let mut plan = self.plan(at, step, "COPY", &copy.sources)?;
        plan.parents = copy.parents;
        if let Some(remote) = plan.paths.iter().find(|path| is_remote(path)) {
            return Err(step.error(match GitRef::parse(remote) {
                Some(_) => "source can't be a git ref for COPY",
                None => "source can't be a URL for COPY",
            }));
        }
        match step.sources.first().copied().flatten() {
            Some(source) => {
                let current = self.stage_name(at);
                plan.source = self.source(source, |name| {
                    let from = copy.from.as_deref().unwrap_or(name);
                    let message = format!("cannot copy from stage {from:?}");
                    step.error(format!("{message}, it needs to be defined before current stage {current:?}"))
                })?;
                plan.paths.iter().for_each(|path| self.use_path(source, path));
            }
            None => self.use_main(step, &mut plan)?,
        }
        self.put(at, step, plan, &copy.sources)
    }

    pub(super) fn add(&mut self, at: usize, step: &Step, add: &Add) -> Result<(), Error> {
        let mut plan = self.plan(at, step, "ADD", &add.sources)?;
        if let Some(checksum) = &add.checksum {
            if plan.paths.len() != 1 {
                return Err(step.error("checksum can't be specified for multiple sources"));
            }
            if !is_remote(&plan.paths[0]) {
                return Err(step.error("checksum requires HTTP(S) or Git sources"));
            }
            plan.checksum = Some(self.word(at, checksum, step)?);
        }
        plan.keep_git_dir = add.keep_git_dir;
        plan.unpack = add.unpack;
        self.use_main(step, &mut plan)?;
        self.put(at, step, plan, &add.sources)
    }

    fn plan(&mut self, at: usize, step: &Step, keyword: &'static str, sources: &Sources) -> Result<Plan, Error> {
        let mut word = |text: &Option<String>| match text {
            Some(text) => self.word(at, text, step),
            None => Ok(String::new()),
        };
        let (chown, chmod) = (word(&sources.chown)?, word(&sources.chmod)?);
        if let Some(problem) = wrong_mode(&chmod) {
            return Err(step.error(problem));
        }
        Ok(Plan {
            keyword,
            paths: self.words(at, &sources.paths, step)?,
            target: self.word(at, &sources.target, step)?,
            chown,
            chmod,
            exclude: self.words(at, &sources.exclude, step)?,
            link: sources.link,
            parents: false,
            checksum: None,
            keep_git_dir: None,
            unpack: None,
            source: None,
        })
    }

    /// Takes paths from the main context, if there are any.
    fn use_main(&mut self, step: &Step, plan: &mut Plan) -> Result<(), Error> {
        let local: Vec<&String> = plan.paths.iter().filter(|path| !is_remote(path)).collect();
        for path in &local {
            self.use_context(path);
            self.tell_ignored(step, path);
        }
        if !local.is_empty() {
            plan.source = self.main_context(step)?;
        }
        Ok(())
    }

    fn put(&mut self, at: usize, step: &Step, plan: Plan, sources: &Sources) -> Result<(), Error> {
        let stage = &self.stages[at];
        let (dir, env, below) = (stage.dir.clone(), stage.env.clone(), stage.tree);
        self.count(env.size(), step.span())?;
        let lexer = self.lexer;
        let shown = self.shown(&step.instruction.text, &lexer, &env, step.span())?;
        let name = self.next_name(at, &shown, &env, step.trigger);
        // Names of users are looked up below, so that a step that is linked and has names is not independent of it; BuildKit
        // resolves them in nothing then, which fails for all but numbers.
        let link = plan.link && plan.chmod.is_empty();
        let mut files = Files::on(if link { None } else { below });
        let target = path::target(&dir, &plan.target);
        let (mode, mode_str) = match i32::from_str_radix(&plan.chmod, 8) {
            Ok(mode) => (mode, String::new()),
            Err(_) => (-1, plan.chmod.clone()),
        };
        let base = pb::FileActionCopy {
            dest: target,
            owner: (!plan.chown.is_empty()).then(|| llb::owner(&plan.chown, files.base())),
            mode,
            mode_str,
            create_dest_path: true,
            timestamp: self.file_time(),
            exclude_patterns: plan.exclude.clone(),
            ..pb::FileActionCopy::default()
        };
        let mut history = plan.keyword.to_owned();
        if plan.parents {
            history += " --parents";
        }
        if !plan.chown.is_empty() {
            history += &format!(" --chown={}", plan.chown);
        }
        if !plan.chmod.is_empty() {
            history += &format!(" --chmod={}", plan.chmod);
        }
        for source in &plan.paths {
            history += &format!(" {source}");
            if let Some(git) = GitRef::parse(source) {
                let tree = self.fetch_git(step, &plan, git, &name)?;
                files.copy(Some(tree), pb::FileActionCopy { src: "/".into(), ..base.clone() });
            } else if is_remote(source) {
                let (tree, file) = self.fetch_url(step, &plan, source, &name)?;
                let unpack = plan.unpack.unwrap_or(false);
                let src = path::clean(&file);
                files.copy(
                    Some(tree),
                    pb::FileActionCopy { src, attempt_unpack_docker_compatibility: unpack, ..base.clone() },
                );
            } else {
                files.copy(plan.source, local(&plan, source, &base));
            }
        }
        for heredoc in &sources.heredocs {
            history += &format!(" <<{}", heredoc.name);
            let mut content = heredoc.text();
            if heredoc.expand {
                let expanded = Lexer::heredoc().word(&content, &env);
                let expanded = expanded.map_err(|error| step.error(error.to_string()))?;
                self.count(expanded.text.len(), step.span())?;
                self.undefined(at, step, &expanded.unmatched);
                content = expanded.text;
            }
            let file = path::clean(&heredoc.name);
            let mut inline = Files::on(None);
            inline.add(Action::Mkfile(pb::FileActionMkFile {
                path: file.clone(),
                mode: 0o644,
                data: content.into_bytes(),
                owner: None,
                timestamp: -1,
            }));
            let (op, inputs) = inline.finish();
            let tree = self.graph.add(op, inputs, None, About::internal("preparing inline document"));
            files.copy(Some(tree), pb::FileActionCopy { src: file, ..base.clone() });
        }
        history += &format!(" {}", plan.target);

        let mut about = About {
            name: name.clone(),
            command: Some(step.instruction.text.clone()),
            span: Some(step.span()),
            ignore_cache: self.stages[at].ignore_cache,
            group: None,
        };
        let (op, inputs) = files.finish();
        let tree = if link {
            let group = |weak| {
                Some(pb::ProgressGroup { id: format!("{name} {}", step.span().first), name: name.clone(), weak })
            };
            about.group = group(true);
            let copied = self.graph.add(op, inputs, None, about.clone());
            about.group = group(false);
            about.name = self.name(at, &format!("LINK {shown}"), &env, step.trigger);
            self.merge(below, copied, about)
        } else {
            self.graph.add(op, inputs, None, about)
        };
        self.stages[at].tree = Some(tree);
        self.record(at, format!("{history} # buildkit"), true);
        Ok(())
    }

    /// Lays a filesystem over another one.
    fn merge(&mut self, below: Tree, above: llb::Output, about: About) -> llb::Output {
        let Some(below) = below else { return above };
        let inputs = vec![below, above];
        let merge = pb::MergeOp { inputs: (0..2).map(|input| pb::MergeInput { input }).collect() };
        self.graph.add(op::Op::Merge(merge), inputs, None, about)
    }

    fn fetch_git(
        &mut self,
        step: &Step,
        plan: &Plan,
        git: Result<GitRef, String>,
        name: &str,
    ) -> Result<llb::Output, Error> {
        let mut git = git.map_err(|cause| step.error(cause))?;
        if plan.keep_git_dir.is_some() && git.keep_git_dir.is_some() && plan.keep_git_dir != git.keep_git_dir {
            return Err(step.error("inconsistent keep-git-dir configuration"));
        }
        git.keep_git_dir = git.keep_git_dir.or(plan.keep_git_dir);
        if let Some(checksum) = &plan.checksum {
            if !git.checksum.is_empty() && git.checksum != *checksum {
                return Err(step.error(format!("checksum mismatch {checksum:?} != {:?}", git.checksum)));
            }
            git.checksum.clone_from(checksum);
        }
        let about = About { span: Some(step.span()), ..About::named(name) };
        Ok(self.graph.add(op::Op::Source(git.source()), Vec::new(), None, about))
    }

    /// A file of the web, and its name.
    fn fetch_url(&mut self, step: &Step, plan: &Plan, url: &str, name: &str) -> Result<(llb::Output, String), Error> {
        let file = file_name(url);
        let mut attrs = vec![("http.filename".to_owned(), file.clone())];
        if let Some(checksum) = &plan.checksum {
            let digest: Digest =
                checksum.parse().map_err(|cause| step.error(format!("checksum {checksum:?}: {cause}")))?;
            attrs.push(("http.checksum".into(), digest.to_string()));
        }
        let source = pb::SourceOp { identifier: url.into(), attrs: attrs.into_iter().collect() };
        let about =
            About { command: Some(step.instruction.text.clone()), span: Some(step.span()), ..About::named(name) };
        Ok((self.graph.add(op::Op::Source(source), Vec::new(), None, about), file))
    }

    fn stage_name(&self, at: usize) -> String {
        self.stages[at].label().to_owned()
    }
}

/// A path of a context, a stage or an image.
fn local(plan: &Plan, source: &str, base: &pb::FileActionCopy) -> pb::FileActionCopy {
    let mut copy = pb::FileActionCopy {
        src: path::clean(source),
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack_docker_compatibility: plan.unpack.unwrap_or(plan.keyword == "ADD"),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..base.clone()
    };
    if plan.parents {
        // What stands before `/./` is not made at the target.
        let (folder, pattern) = source.split_once("/./").unwrap_or(("/", source));
        let pattern = path::clean(pattern);
        copy.src = path::clean(folder);
        if !path::is_pattern(folder) && !path::is_pattern(&pattern) {
            copy.required_paths = vec![pattern.trim_start_matches('/').to_owned()];
        }
        copy.include_patterns = vec![pattern.trim_start_matches('/').to_owned()];
    }
    copy
}

/// Whether an ADD fetches `text` instead of looking for it in the context.
fn is_remote(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://") || GitRef::parse(text).is_some()
}

/// The last part of a URL's path.
fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    match path::base(path) {
        "" | "." | ".." => "__unnamed__".into(),
        name => name.into(),
    }
}

/// What is wrong with --chmod: octal digits, or clauses as chmod(1) has them: `u+x,go=r`.
fn wrong_mode(mode: &str) -> Option<String> {
    if mode.is_empty() {
        return None;
    }
    if let Ok(number) = u32::from_str_radix(mode, 8) {
        return (number > 0o7777).then(|| not_octal(mode));
    }
    if mode.starts_with(|letter: char| {
        letter.is_ascii_digit() || "+-".contains(letter) && mode[1..].parse::<u32>().is_ok()
    }) {
        return Some(not_octal(mode));
    }
    let clause = |clause: &str| {
        let who = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let mut rest = who;
        loop {
            let Some(after) = rest.strip_prefix(['+', '-', '=']) else { return false };
            // Either permissions, or one of whom to take them from.
            let permissions = after.trim_start_matches(['r', 'w', 'x', 'X', 's', 't']);
            rest = match permissions.len() == after.len() {
                true => after.strip_prefix(['u', 'g', 'o']).unwrap_or(after),
                false => permissions,
            };
            if rest.is_empty() {
                return true;
            }
        }
    };
    (!mode.split(',').all(clause)).then(|| format!("invalid chmod parameter: '{mode}'"))
}

fn not_octal(mode: &str) -> String {
    format!("invalid chmod parameter: '{mode}'. it should be octal string and between 0 and 07777")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for good in
            ["", "0", "644", "0755", "7777", "u+x", "a=rx", "u=rwX,go=rX", "+x", "g=u", "u+x-w", "go-rwx", "=r", "o="]
        {
            assert_eq!(wrong_mode(good), None, "{good}");
        }
        for bad in ["8", "10000", "999", "x", "u", "u+x,", "u+q", "rwx", "0o644", "-1"] {
            assert!(wrong_mode(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn names_of_urls() {
        for (url, name) in [
            ("https://h/a/b.tar.gz?x=1", "b.tar.gz"),
            ("https://h/", "__unnamed__"),
            ("https://h", "__unnamed__"),
            ("http://h/a/", "a"),
            ("http://h/a/..", "__unnamed__"),
        ] {
            assert_eq!(file_name(url), name);
        }
    }
}
