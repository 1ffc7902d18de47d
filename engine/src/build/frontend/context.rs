//! Where a build's files come from, and reading the Dockerfile and the ignore file out of that.

use super::{Frontend, llb, options::platform_name};
use crate::build::{backend::Filesystem, error::BuildError};
use dockerfile::convert::{NamedContext, git::GitRef};
use filesync::patterns::Patterns;
use proto::{kind::ErrorKind, pb};
use std::{collections::BTreeMap, sync::Arc};

/// A Dockerfile is no larger, nor is what belongs to it.
const LIMIT: u64 = 2 << 20;
/// Name of what a web server gave.
const DOWNLOAD: &str = "context";

/// The main context, where it isn't a folder of the client's.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Where the files are.
    context: NamedContext,
    /// The same as LLB.
    definition: pb::Definition,
    /// The Dockerfile's name there, if the context is nothing but the Dockerfile.
    filename: Option<String>,
}

/// What was read before the Dockerfile is parsed.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The Dockerfile.
    pub text: Vec<u8>,
    /// Its name, for the user.
    pub name: String,
    /// Where it was read from.
    pub definition: pb::Definition,
    /// The ignore file that belongs to it alone.
    ignore: Option<(String, Vec<u8>)>,
}

impl Frontend<'_> {
    /// The main context, if it comes from the world or as LLB.
    pub async fn remote(&self) -> Result<Option<Remote>, BuildError> {
        let remote = match &self.wishes.remote {
            Some(text) => Some(self.remote_of(text).await?),
            None => self.inputs.get("context").map(|definition| Remote {
                context: NamedContext::Input(definition.clone(), None),
                definition: definition.clone(),
                filename: None,
            }),
        };
        let (Some(remote), Some(subdir)) = (&remote, &self.wishes.subdir) else { return Ok(remote) };
        let part = llb::copied(&remote.definition, subdir, false, "[internal] select folder of build context");
        let part = part.ok_or_else(|| BuildError::invalid("the build context is no graph of operations"))?;
        // As BuildKit: the Dockerfile is looked for in the whole.
        Ok(Some(Remote { context: NamedContext::Input(part, None), ..remote.clone() }))
    }

    /// The source that `text` names, if it names a git repository.
    fn git(&self, text: &str) -> Result<Option<pb::SourceOp>, BuildError> {
        let Some(reference) = GitRef::parse(text) else { return Ok(None) };
        let mut reference = reference.map_err(BuildError::invalid)?;
        if self.wishes.keep_git {
            reference.keep_git_dir = Some(true);
        }
        Ok(Some(reference.source()))
    }

    async fn remote_of(&self, text: &str) -> Result<Remote, BuildError> {
        if let Some(source) = self.git(text)? {
            let definition = llb::source(source.clone(), &format!("[internal] load git source {text}"));
            return Ok(Remote { context: NamedContext::Source(source), definition, filename: None });
        }
        if !is_url(text) {
            return Err(BuildError::invalid(format!("unsupported build context {text:?}: neither git nor http(s)")));
        }
        let source = llb::http(text, DOWNLOAD);
        let definition = llb::source(source.clone(), "[internal] load remote build context");
        let tree = self.tree(&definition).await.map_err(|e| e.while_doing("failed to resolve httpcontext"))?;
        let head = tree.read_file(DOWNLOAD, 0, Some(1024)).await;
        let head = head.map_err(|e| e.while_doing("failed to read downloaded context"))?;
        if is_archive(&head) {
            let unpacked = llb::copied(&definition, &format!("/{DOWNLOAD}"), true, "[internal] unpack build context");
            let unpacked =
                unpacked.ok_or_else(|| BuildError::invalid("the build context is no graph of operations"))?;
            return Ok(Remote {
                context: NamedContext::Input(unpacked.clone(), None),
                definition: unpacked,
                filename: None,
            });
        }
        Ok(Remote { context: NamedContext::Source(source), definition, filename: Some(DOWNLOAD.to_owned()) })
    }

    /// Reads the Dockerfile.
    pub async fn entry(&self, remote: Option<&Remote>) -> Result<Entry, BuildError> {
        let name = remote.and_then(|remote| remote.filename.clone()).unwrap_or_else(|| self.wishes.filename.clone());
        let definition = match (remote, self.inputs.get(&self.wishes.dockerfile_local)) {
            (Some(remote), _) if !self.wishes.local_dockerfile && self.wishes.remote.is_some() => {
                remote.definition.clone()
            }
            (_, Some(input)) if !self.wishes.local_dockerfile => input.clone(),
            _ => {
                let mut names = vec![name.clone(), format!("{name}.dockerignore")];
                names.extend(lower(&name));
                let local = &self.wishes.dockerfile_local;
                let source = llb::local(local, &self.session_of(local), &names, local, "");
                llb::source(source, &format!("[internal] load build definition from {name}"))
            }
        };
        let tree = self.tree(&definition).await.map_err(|e| e.while_doing("failed to resolve dockerfile"))?;
        let text = match (read(&*tree, &name).await, lower(&name)) {
            (Ok(text), _) => text,
            (Err(error), Some(other)) if error.kind == ErrorKind::NotFound => {
                read(&*tree, &other).await.map_err(|_| error)?
            }
            (Err(error), _) => return Err(error),
        };
        let own = format!("{name}.dockerignore");
        let ignore = match read(&*tree, &own).await {
            Ok(bytes) => Some((own, bytes)),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Entry { text, name, definition, ignore })
    }

    /// The main context for the conversion.
    pub async fn main(&self, remote: Option<Remote>, entry: &Entry) -> Result<NamedContext, BuildError> {
        if let Some(remote) = remote {
            return Ok(remote.context);
        }
        let (name, text) = match &entry.ignore {
            Some((name, text)) => (name.clone(), text.clone()),
            None => (".dockerignore".to_owned(), self.ignore_file("context", "[internal] load .dockerignore").await?),
        };
        let exclude = ignored(&text).map_err(|e| e.while_doing(&format!("failed parsing {name}")))?;
        if let Ok(patterns) = Patterns::new(&exclude) {
            // Asked for once.
            let _ = self.ignored.set(patterns);
        }
        Ok(NamedContext::Local { name: "context".to_owned(), exclude })
    }

    /// The `.dockerignore` of a client's folder; empty if there is none.
    async fn ignore_file(&self, local: &str, step: &str) -> Result<Vec<u8>, BuildError> {
        let name = ".dockerignore".to_owned();
        let hint = format!("{local}-{name}");
        let source = llb::local(local, &self.session_of(local), std::slice::from_ref(&name), &hint, "");
        let definition = llb::source(source, step);
        let tree = match self.tree(&definition).await {
            Ok(tree) => tree,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.while_doing("failed to read dockerignore patterns")),
        };
        match read(&*tree, &name).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        }
    }

    /// The client's other contexts, as far as they are for `platform`: `name::linux/arm64` goes before `name`.
    pub async fn named(&self, platform: &pb::Platform) -> Result<BTreeMap<String, NamedContext>, BuildError> {
        let suffix = format!("::{}", platform_name(platform));
        let mut contexts = BTreeMap::new();
        for (key, value) in &self.wishes.contexts {
            let name = match key.split_once("::") {
                Some((name, _)) if key.ends_with(&suffix) => name,
                Some(_) => continue,
                None if self.wishes.contexts.contains_key(&format!("{key}{suffix}")) => continue,
                None => key.as_str(),
            };
            contexts.insert(name.to_owned(), self.context(key, value).await?);
        }
        Ok(contexts)
    }

    async fn context(&self, key: &str, value: &str) -> Result<NamedContext, BuildError> {
        let unsupported = || BuildError::invalid(format!("unsupported context source {value} for {key}"));
        if let Some(source) = self.git(value)? {
            return Ok(NamedContext::Source(source));
        }
        if is_url(value) {
            let remote = self.remote_of(value).await?;
            return Ok(remote.context);
        }
        let (scheme, rest) = value.split_once(':').ok_or_else(unsupported)?;
        match scheme {
            "docker-image" => Ok(NamedContext::Image(rest.trim_start_matches("//").to_owned())),
            "local" => {
                let step = format!("[context {key}] load .dockerignore");
                let text = self.ignore_file(rest, &step).await?;
                let exclude = ignored(&text).map_err(|e| e.while_doing("failed parsing .dockerignore"))?;
                Ok(NamedContext::Local { name: rest.to_owned(), exclude })
            }
            "input" => {
                let definition = self.inputs.get(rest).cloned();
                let definition =
                    definition.ok_or_else(|| BuildError::invalid(format!("invalid input {rest} for {key}")))?;
                Ok(NamedContext::Input(definition, self.input_config(rest)?))
            }
            "oci-layout" => {
                Ok(NamedContext::Source(pb::SourceOp { identifier: value.to_owned(), ..Default::default() }))
            }
            _ => Err(unsupported()),
        }
    }

    /// `input-metadata:x`: JSON of what a frontend said of it, with bytes in base64.
    fn input_config(&self, input: &str) -> Result<Option<Vec<u8>>, BuildError> {
        use base64::Engine as _;
        let Some(text) = self.wishes.input_metadata.get(input) else { return Ok(None) };
        let bad = |what: String| BuildError::invalid(format!("failed to unmarshal input-metadata:{input}: {what}"));
        let read: BTreeMap<String, String> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let config = read.get("containerimage.config");
        let decoded = config.map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        decoded.transpose().map_err(|e| bad(e.to_string()))
    }

    async fn tree(&self, definition: &pb::Definition) -> Result<Arc<dyn Filesystem>, BuildError> {
        let reference = self.build.refer(definition.clone(), self.backend)?;
        reference.filesystem(self.build, self.backend).await
    }

    /// The session that serves a folder.
    fn session_of(&self, local: &str) -> String {
        let own = self.wishes.local_sessions.get(local).or_else(|| self.build.sessions.first());
        own.cloned().unwrap_or_default()
    }
}

async fn read(tree: &dyn Filesystem, name: &str) -> Result<Vec<u8>, BuildError> {
    let said = |error: BuildError| {
        if error.kind == ErrorKind::NotFound {
            BuildError::not_found(format!("failed to read dockerfile: open {name}: no such file or directory"))
        } else {
            error.while_doing(&format!("failed to read {name}"))
        }
    };
    let bytes = tree.read_file(name, 0, Some(LIMIT + 1)).await.map_err(said)?;
    if bytes.len() as u64 > LIMIT {
        return Err(BuildError::invalid(format!("{name} is larger than {LIMIT} bytes")));
    }
    Ok(bytes)
}

/// `dockerfile`, as which a `Dockerfile` may be written, too.
fn lower(name: &str) -> Option<String> {
    let (folder, file) = name.rsplit_once('/').map_or(("", name), |(folder, file)| (folder, file));
    let other = (file == "Dockerfile").then(|| file.to_lowercase())?;
    Some(if folder.is_empty() { other } else { format!("{folder}/{other}") })
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// What BuildKit takes for an archive: packed by bzip2, gzip or xz, or a tar header.
fn is_archive(head: &[u8]) -> bool {
    let packed: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    packed.iter().any(|magic| head.starts_with(magic))
        || matches!(crate::untar::Untar::new(head).next_entry(), Ok(Some(_)))
}

/// The patterns of an ignore file.
fn ignored(text: &[u8]) -> Result<Vec<String>, BuildError> {
    filesync::patterns::read_ignore_file(text).map_err(|error| BuildError::of(ErrorKind::InvalidArgument, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives() {
        assert!(is_archive(&[0x1f, 0x8b, 8, 0]));
        assert!(is_archive(b"BZh9"));
        assert!(!is_archive(b"FROM scratch\n"));
        assert!(!is_archive(b""));
    }

    #[test]
    fn the_other_name() {
        assert_eq!(lower("Dockerfile").as_deref(), Some("dockerfile"));
        assert_eq!(lower("a/Dockerfile").as_deref(), Some("a/dockerfile"));
        assert_eq!(lower("Dockerfile.x"), None);
    }
}
