//! Keys that results are found by.
//!
//! An operation has a digest of its own (`own`): of what it does, without names, metadata, proxies, addresses of extra hosts,
//! and what of a cache mount isn't its target, because none of it should change what comes out. Its inputs are left out too,
//! and where in an input it looks: these are said next to it. With that, a result is known by up to two keys:
//!
//! - by **definition**: `own`, and of each input the key of the record that it is, which of its results, and where in it the
//!   operation looks. Needs no result of anything.
//! - by **content**: `own`, and of each input that is only read the digest of the part that is read; of the others as above.
//!   Needs those inputs, and hits where another way led to the same files: a context with an edited file that isn't copied.
//!
//! A record is stored under one *canonical* key: by content if the operation has such a one, else by definition. Other keys are
//! aliases of it. What follows builds on the canonical key, so that a hit by content makes all that follows hit by definition.
//! A source's key is the one that the worker pinned it to. An operation that must be done again (`ignore_cache`) gets a key that
//! never was, and its key by definition becomes an alias of that: what follows is done again too, and the next build finds it.

use crate::worker::Selection;
use prost::Message;
use proto::{
    digest::Digest,
    pb::{self, file_action::Action, op::Op},
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// What of an operation goes into its keys.
#[derive(Debug, Clone)]
pub struct Own {
    /// Of what it does.
    pub digest: Digest,
    /// How it looks at its inputs, one for each.
    pub inputs: Vec<Look>,
}

/// How an operation looks at an input.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// Of the places in it, whether or not they are all that matters.
    pub place: Option<Digest>,
    /// All that it reads of the input; nothing: the input becomes part of the result, and its history matters.
    pub content: Option<Vec<Selection>>,
    /// Whether a result is made of it by adding to it.
    pub base: bool,
}

/// An input, as it goes into a key.
#[derive(Debug, Clone, Copy)]
pub enum Input {
    /// By its record, and which of its results.
    Record(Digest, usize),
    /// By the digest of what is read of it.
    Content(Digest),
}

/// What of `op` goes into its keys.
pub fn own(op: &pb::Op) -> Own {
    let mut plain = pb::Op { inputs: Vec::new(), constraints: None, ..op.clone() };
    let mut inputs = vec![Look::default(); op.inputs.len()];
    match &mut plain.op {
        Some(Op::Exec(exec)) => {
            let alone = look_exec(&exec.mounts, &mut inputs);
            plain_exec(exec, &alone);
        }
        Some(Op::File(file)) => {
            let alone = look_file(file, &mut inputs);
            plain_file(file, &inputs, &alone);
        }
        Some(Op::Merge(_) | Op::Diff(_)) => inputs.iter_mut().for_each(|look| look.base = true),
        _ => {}
    }
    // Files are the same on every platform; what depends on one runs, or is a source, whose key is its pin.
    if !matches!(plain.op, Some(Op::Exec(_))) {
        plain.platform = None;
    }
    Own { digest: hash("op", [plain.encode_to_vec().as_slice()]), inputs }
}

/// The key by definition.
pub fn by_definition(own: &Own, inputs: &[(Digest, usize)]) -> Digest {
    let inputs: Vec<_> = inputs.iter().map(|(key, output)| Input::Record(*key, *output)).collect();
    key("definition", own, &inputs)
}

/// The key by content.
pub fn by_content(own: &Own, inputs: &[Input]) -> Digest {
    key("content", own, inputs)
}

/// The key of a source that stands for `pinned`.
pub fn of_source(source: &pb::SourceOp, pinned: &Digest) -> Digest {
    // The same bytes under another name, mode or owner, or with the history of a repository: another filesystem.
    let shaping = |key: &str| key.starts_with("http.") || matches!(key, "git.keepgitdir" | "git.skipsubmodules");
    let mut parts = vec![pinned.to_string()];
    for (key, value) in source.attrs.iter().filter(|(key, _)| shaping(key)) {
        parts.extend([key.clone(), value.clone()]);
    }
    hash("source", parts.iter().map(String::as_bytes))
}

/// A key that never was before.
pub fn again(definition: &Digest) -> Digest {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let once = format!("{now} {} {count}", process::id());
    hash("again", [definition.to_string().as_bytes(), once.as_bytes()])
}

/// The name of one result of a record, where results are named one by one.
pub fn of_result(key: &Digest, output: usize) -> Digest {
    if output == 0 { *key } else { hash("result", [key.to_string().as_bytes(), output.to_string().as_bytes()]) }
}

/// One digest for what several selections gave.
pub fn contents(digests: &[Digest]) -> Digest {
    let texts: Vec<_> = digests.iter().map(Digest::to_string).collect();
    hash("contents", texts.iter().map(String::as_bytes))
}

/// Of where an operation looks.
pub fn selection(selections: &[Selection]) -> Digest {
    let mut parts = Vec::new();
    for one in selections {
        parts.push(vec![u8::from(one.wildcard), u8::from(one.follow_links)]);
        for list in [&one.paths, &one.include, &one.exclude] {
            parts.push(list.len().to_le_bytes().to_vec());
            parts.extend(list.iter().map(|path| path.clone().into_bytes()));
        }
    }
    hash("selection", parts.iter().map(Vec::as_slice))
}

/// The target of a mount whose content is to be the key, but can't: a part of an input that is written to, and the rest of it
/// comes out too.
pub(crate) fn uncacheable(mounts: &[pb::Mount], inputs: usize) -> Option<String> {
    let on = |mount: &&pb::Mount| mount.content_cache == pb::MountContentCache::On as i32;
    let with_input = mounts.iter().filter(on).filter(|mount| input_of(mount, inputs).is_some());
    with_input.filter(|mount| !only_read(mount)).map(|mount| mount.dest.clone()).next()
}

fn key(kind: &str, own: &Own, inputs: &[Input]) -> Digest {
    let mut parts = vec![own.digest.to_string()];
    for (input, look) in inputs.iter().zip(&own.inputs) {
        parts.push(match input {
            Input::Content(digest) => format!("content {digest}"),
            Input::Record(key, output) => match look.place {
                Some(place) => format!("record {key} {output} {place}"),
                None => format!("record {key} {output}"),
            },
        });
    }
    hash(kind, parts.iter().map(String::as_bytes))
}

fn hash<'a>(kind: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"berth build 1 ");
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(kind.as_bytes());
    parts.into_iter().for_each(&mut add);
    Digest::from_bytes(hash.finalize().into())
}

fn plain_exec(exec: &mut pb::ExecOp, alone: &[bool]) {
    if let Some(meta) = &mut exec.meta {
        meta.proxy_env = None;
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
    }
    for mount in &mut exec.mounts {
        // The input's part of the key says where; but not which of two places is mounted where.
        if input_of(mount, alone.len()).is_none_or(|input| alone[input]) {
            mount.selector.clear();
        }
        mount.result_id.clear();
        mount.cache_opt = None;
    }
}

fn plain_file(file: &mut pb::FileOp, inputs: &[Look], alone: &[bool]) {
    for action in &mut file.actions {
        let second = usize::try_from(action.secondary_input).ok().filter(|second| *second < inputs.len());
        if let (Some(second), Some(Action::Copy(copy))) = (second, &mut action.action) {
            // Where it lay is said by the input's part of the key; by content, only what it is called matters. With two places
            // in one input, which of them is copied where would be lost.
            if alone[second] {
                copy.src = copy.src.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
            }
        }
    }
}

fn input_of(mount: &pb::Mount, inputs: usize) -> Option<usize> {
    let kind = pb::MountType::try_from(mount.mount_type).ok()?;
    if !matches!(kind, pb::MountType::Bind | pb::MountType::Cache) {
        return None;
    }
    usize::try_from(mount.input).ok().filter(|input| *input < inputs)
}

/// Whether nothing but what is selected can come out of the operation.
fn only_read(mount: &pb::Mount) -> bool {
    mount.output == -1 || mount.readonly || mount.selector.is_empty()
}

/// Fills in `inputs`, and tells of which only one place is mounted.
fn look_exec(mounts: &[pb::Mount], inputs: &mut [Look]) -> Vec<bool> {
    let mut alone = vec![false; inputs.len()];
    let mut places: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut grown = Vec::new();
    for mount in mounts {
        let Some(input) = input_of(mount, inputs.len()) else { continue };
        inputs[input].base |= mount.output != -1;
        places.entry(input).or_default().push(format!("/{}", mount.selector));
        let by_content = match pb::MountContentCache::try_from(mount.content_cache) {
            Ok(pb::MountContentCache::On) => true,
            // To digest a whole root filesystem costs more than it is likely to bring.
            Ok(pb::MountContentCache::Default) => mount.dest != "/" && only_read(mount),
            _ => false,
        };
        // One mount of it that matters as it is, and the whole input does.
        if !by_content {
            grown.push(input);
        }
    }
    for (input, paths) in places {
        alone[input] = paths.len() == 1;
        let selection = vec![Selection { paths: outermost(paths), follow_links: true, ..Selection::default() }];
        inputs[input].place = Some(self::selection(&selection));
        inputs[input].content = (!grown.contains(&input)).then_some(selection);
    }
    alone
}

/// Fills in `inputs`, and tells of which only one place is read.
fn look_file(file: &pb::FileOp, inputs: &mut [Look]) -> Vec<bool> {
    let mut alone = vec![false; inputs.len()];
    let mut selections: BTreeMap<usize, Vec<Selection>> = BTreeMap::new();
    let mut add = |input: i64, selection: Selection| {
        if let Ok(input) = usize::try_from(input) {
            selections.entry(input).or_default().push(selection);
        }
    };
    let mut grown = Vec::new();
    for action in &file.actions {
        grown.extend(usize::try_from(action.input).ok());
        let owner = match &action.action {
            Some(Action::Copy(copy)) => {
                add(action.secondary_input, selection_of(copy));
                &copy.owner
            }
            Some(Action::Mkfile(file)) => &file.owner,
            Some(Action::Mkdir(dir)) => &dir.owner,
            Some(Action::Symlink(link)) => &link.owner,
            Some(Action::Rm(_)) | None => &None,
        };
        let Some(owner) = owner else { continue };
        for (who, list) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
            if let Some(pb::user_opt::User::ByName(named)) = who.as_ref().and_then(|who| who.user.as_ref()) {
                add(named.input, Selection { paths: vec![list.into()], follow_links: true, ..Selection::default() });
            }
        }
    }
    for input in &grown {
        if let Some(look) = inputs.get_mut(*input) {
            look.base = true;
        }
    }
    for (input, selections) in selections {
        // Results of earlier actions have no key of their own.
        let Some(look) = inputs.get_mut(input) else { continue };
        alone[input] = selections.len() == 1;
        let selections = together(selections);
        look.place = Some(selection(&selections));
        look.content = (!grown.contains(&input)).then_some(selections);
    }
    alone
}

fn selection_of(copy: &pb::FileActionCopy) -> Selection {
    Selection {
        paths: vec![copy.src.clone()],
        wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
        follow_links: copy.follow_symlink,
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
    }
}

fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Plain paths go together, others stay as they are.
fn together(selections: Vec<Selection>) -> Vec<Selection> {
    let mut plain: [Vec<String>; 2] = Default::default();
    let mut others = Vec::new();
    for selection in selections {
        if selection.wildcard || !selection.include.is_empty() || !selection.exclude.is_empty() {
            others.push(selection);
        } else {
            plain[usize::from(selection.follow_links)].extend(selection.paths);
        }
    }
    let mut all = Vec::new();
    for (follow_links, paths) in [false, true].into_iter().zip(plain) {
        if !paths.is_empty() {
            all.push(Selection { paths: outermost(paths), follow_links, ..Selection::default() });
        }
    }
    all.extend(others);
    all
}

/// Without those that lie in another; everything is no path at all.
fn outermost(mut paths: Vec<String>) -> Vec<String> {
    paths.sort();
    paths.dedup();
    if paths.iter().any(|path| matches!(path.as_str(), "" | "/" | "." | "./")) {
        return Vec::new();
    }
    let inside = |path: &String| {
        let mut above = path.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if paths.binary_search_by(|other| other.as_str().cmp(parent)).is_ok() {
                return true;
            }
            above = parent;
        }
        false
    };
    paths.iter().filter(|path| !inside(path)).cloned().collect()
}

#[cfg(test)]
mod tests;
