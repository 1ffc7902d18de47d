//! What a build is made from: folders that the builder may ask for, addresses that it fetches, and standard input.

use super::classic::context::{LONGEST, Source, is_archive};
use super::specs::Attrs;
use crate::args::build::BuildArgs;
use crate::exit::{Failure, Outcome};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What the builder may have.
#[derive(Debug, Default)]
pub struct Inputs {
    /// Folders by the names under which the builder asks for them.
    pub folders: BTreeMap<String, PathBuf>,
    /// Attributes of the frontend.
    pub attrs: Attrs,
    /// An archive on standard input, under this name: its head has been read already.
    pub upload: Option<(String, Vec<u8>)>,
    /// By what the builder knows the same context again.
    pub shared_key: String,
    /// Folders of ours that go with this.
    made: Vec<Made>,
}

/// A folder of ours for a while.
#[derive(Debug)]
struct Made(PathBuf);

impl Made {
    fn new() -> Outcome<Self> {
        let failed = |cause| Failure::io("make a temporary folder", cause);
        let name = format!("berth-build-{}", super::random_id().map_err(failed)?);
        let path = std::env::temp_dir().join(name);
        std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            crate::output::log::debug(|| format!("{} stays: {error}", self.0.display()));
        }
    }
}

fn refused(text: impl Into<String>) -> Failure {
    Failure::Refused(format!("ERROR: failed to build: {}", text.into()))
}

impl Inputs {
    /// Looks at the context, the Dockerfile and the named contexts.
    pub fn of(args: &BuildArgs) -> Outcome<Self> {
        Self::read(args, &mut io::stdin().lock())
    }

    fn read(args: &BuildArgs, stdin: &mut dyn Read) -> Outcome<Self> {
        let mut inputs = Self::default();
        let file = args.file.as_deref().filter(|file| !file.is_empty());
        if let Some(address) = file.filter(|file| file.starts_with("http://") || file.starts_with("https://")) {
            return Err(refused(format!(
                "the Dockerfile {address} is an address: give it as the context, or fetch it first"
            )));
        }
        match Source::of(&args.context) {
            Source::Stdin if file == Some("-") => {
                return Err(refused("invalid argument: can't use stdin for both build context and dockerfile"));
            }
            Source::Stdin => inputs.take_stdin(file, stdin)?,
            Source::Remote(address) => {
                inputs.set("context", address);
                match file {
                    Some("-") => inputs.dockerfile_of(&read_all(stdin)?)?,
                    Some(path) if Path::new(path).is_absolute() => {
                        inputs.set("dockerfilekey", "dockerfile");
                        inputs.dockerfile_at(Path::new(path));
                    }
                    Some(path) => inputs.set("filename", path),
                    None => inputs.set("filename", "Dockerfile"),
                }
            }
            Source::Folder(path) => {
                let folder = PathBuf::from(path);
                if !folder.is_dir() {
                    let text = match folder.exists() {
                        true => format!("unable to prepare context: context must be a directory: {path}"),
                        false => format!("unable to prepare context: path {path:?} not found"),
                    };
                    return Err(refused(text));
                }
                let real = fs::canonicalize(&folder).map_err(|cause| Failure::io(format!("open {path}"), cause))?;
                inputs.shared_key = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
                inputs.folders.insert("context".to_owned(), folder.clone());
                match file {
                    Some("-") => inputs.dockerfile_of(&read_all(stdin)?)?,
                    Some(file) => {
                        if !Path::new(file).exists() {
                            let text = format!("failed to read dockerfile: open {file}: no such file or directory");
                            return Err(refused(text));
                        }
                        inputs.dockerfile_at(Path::new(file));
                    }
                    None => inputs.dockerfile_at(&folder.join("Dockerfile")),
                }
            }
        }
        for text in &args.build_context {
            inputs.named(text)?;
        }
        Ok(inputs)
    }

    fn set(&mut self, key: &str, value: &str) {
        self.attrs.insert(key.to_owned(), value.to_owned());
    }

    /// An archive is the context; anything else is a Dockerfile without one.
    fn take_stdin(&mut self, file: Option<&str>, stdin: &mut dyn Read) -> Outcome {
        let mut head = Vec::new();
        stdin.take(512).read_to_end(&mut head).map_err(|cause| Failure::io("read standard input", cause))?;
        if is_archive(&head) {
            let id = super::random_id().map_err(|cause| Failure::io("name the context", cause))?;
            self.set("context", &format!("http://buildkit-session/{id}"));
            self.set("filename", file.unwrap_or("Dockerfile"));
            self.upload = Some((id, head));
            return Ok(());
        }
        if file.is_some() {
            return Err(refused("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"));
        }
        head.extend(read_all(stdin)?);
        let empty = Made::new()?;
        self.folders.insert("context".to_owned(), empty.0.clone());
        self.made.push(empty);
        self.dockerfile_of(&head)
    }

    /// A Dockerfile that is in no folder.
    fn dockerfile_of(&mut self, text: &[u8]) -> Outcome {
        let folder = Made::new()?;
        let path = folder.0.join("Dockerfile");
        fs::write(&path, text).map_err(|cause| Failure::io(format!("write {}", path.display()), cause))?;
        self.set("dockerfilekey", "dockerfile");
        self.dockerfile_at(&path);
        self.made.push(folder);
        Ok(())
    }

    fn dockerfile_at(&mut self, path: &Path) {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "Dockerfile" && !path.exists() && folder.join("dockerfile").exists() {
            "dockerfile".clone_into(&mut name);
        }
        self.set("filename", &name);
        self.folders.insert("dockerfile".to_owned(), folder);
    }

    /// `--build-context name=value`
    fn named(&mut self, text: &str) -> Outcome {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => (name, value),
            _ => return Err(refused(format!("invalid context value: {text}, expected key=value"))),
        };
        self.set("frontend.caps", "moby.buildkit.frontend.contexts+forward");
        let fetched = value.starts_with("docker-image://") || value.starts_with("target:");
        if fetched || matches!(Source::of(value), Source::Remote(_)) {
            self.set(&format!("context:{name}"), value);
            return Ok(());
        }
        if value.starts_with("oci-layout://") {
            return Err(refused(format!(
                "context {name}: oci-layout is not supported: load the layout, or push it, and use docker-image://"
            )));
        }
        let path = Path::new(value);
        if !path.is_dir() {
            let why = if path.exists() { "is not a directory" } else { "no such file or directory" };
            return Err(refused(format!("failed to get build context path {{{name} {value}}}: {why}")));
        }
        // Not to be mixed up with the two that every build has.
        let local = match name {
            "context" | "dockerfile" => format!("_{name}"),
            _ => name.to_owned(),
        };
        self.folders.insert(local.clone(), path.to_owned());
        self.set(&format!("context:{name}"), &format!("local:{local}"));
        Ok(())
    }
}

fn read_all(stdin: &mut dyn Read) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    stdin.take(LONGEST).read_to_end(&mut bytes).map_err(|cause| Failure::io("read standard input", cause))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(context: &str, file: Option<&str>, stdin: &[u8], named: &[&str]) -> Result<Inputs, String> {
        let args = BuildArgs {
            context: context.to_owned(),
            file: file.map(str::to_owned),
            build_context: named.iter().map(|text| (*text).to_owned()).collect(),
            ..BuildArgs::default()
        };
        Inputs::read(&args, &mut io::Cursor::new(stdin.to_vec())).map_err(|error| error.to_string())
    }

    #[test]
    fn folders() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        fs::write(dir.path().join("dockerfile"), "FROM scratch").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/D"), "FROM scratch").unwrap();
        let inputs = read(root, None, b"", &[]).unwrap();
        assert_eq!(inputs.folders["context"], dir.path());
        assert_eq!(
            (inputs.folders["dockerfile"].as_path(), inputs.attrs["filename"].as_str()),
            (dir.path(), "dockerfile")
        );
        fs::write(dir.path().join("Dockerfile"), "FROM scratch").unwrap();
        assert_eq!(read(root, None, b"", &[]).unwrap().attrs["filename"], "Dockerfile");
        let inputs = read(root, Some(&format!("{root}/sub/D")), b"", &[]).unwrap();
        assert_eq!(inputs.folders["dockerfile"], dir.path().join("sub"));
        assert_eq!(inputs.attrs["filename"], "D");
        let inputs =
            read(root, None, b"", &[&format!("more={root}/sub"), &format!("context={root}"), "i=docker-image://x"]);
        let inputs = inputs.unwrap();
        assert_eq!(inputs.attrs["context:more"], "local:more");
        assert_eq!(
            (inputs.attrs["context:context"].as_str(), inputs.attrs["context:i"].as_str()),
            ("local:_context", "docker-image://x")
        );
        for (context, named, want) in [
            ("/nonexistent", "", "path \"/nonexistent\" not found"),
            ("/dev/null", "", "context must be a directory"),
            (root, "x", "expected key=value"),
            (root, "x=/nonexistent", "no such file or directory"),
            (root, "x=oci-layout:///y", "oci-layout is not supported"),
        ] {
            let named: Vec<&str> = [named].into_iter().filter(|text| !text.is_empty()).collect();
            let error = read(context, None, b"", &named).unwrap_err();
            assert!(error.contains(want), "{context}: {error}");
        }
    }

    #[test]
    fn standard_input() {
        let inputs = read("-", None, b"FROM scratch\n", &[]).unwrap();
        let made = inputs.folders["dockerfile"].clone();
        assert_eq!(fs::read(made.join("Dockerfile")).unwrap(), b"FROM scratch\n");
        assert_eq!(fs::read_dir(&inputs.folders["context"]).unwrap().count(), 0);
        assert_eq!(inputs.attrs["dockerfilekey"], "dockerfile");
        drop(inputs);
        assert!(!made.exists(), "what was made is gone");
        let inputs = read("-", Some("D"), b"\x1f\x8b\x08rest", &[]).unwrap();
        let (id, head) = inputs.upload.unwrap();
        assert_eq!(inputs.attrs["context"], format!("http://buildkit-session/{id}"));
        assert_eq!((head.as_slice(), inputs.attrs["filename"].as_str()), (&b"\x1f\x8b\x08rest"[..], "D"));
        assert!(read("-", Some("D"), b"FROM scratch", &[]).unwrap_err().contains("build: ambiguous"));
        assert!(read("-", Some("-"), b"", &[]).is_err());
        let inputs = read("https://x/y.git#main", Some("-"), b"FROM a", &[]).unwrap();
        assert_eq!(inputs.attrs["context"], "https://x/y.git#main");
        assert!(inputs.folders.contains_key("dockerfile") && !inputs.folders.contains_key("context"));
        let inputs = read("git@host:repo", Some("a/D"), b"", &[]).unwrap();
        assert_eq!((inputs.attrs["filename"].as_str(), inputs.folders.len()), ("a/D", 0));
    }
}
