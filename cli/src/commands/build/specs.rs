//! Flags of `build` that are little languages of their own: outputs, caches, secrets, ssh, attestations, annotations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Attributes, as BuildKit names them.
pub type Attrs = BTreeMap<String, String>;

/// What a flag's value lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A quote that isn't closed, or in the middle of a field.
    #[error("parse {0:?}: bare or unclosed quote")]
    Quote(String),
    /// A field without "=".
    #[error("invalid value {0}")]
    Field(String),
    /// A field of a secret without "=".
    #[error("invalid field '{0}' must be a key=value pair")]
    Pair(String),
    /// A key that nobody knows.
    #[error("unexpected key '{key}' in '{field}'")]
    Key {
        /// The key.
        key: String,
        /// The field.
        field: String,
    },
    /// Without "type".
    #[error("type is required for {0}")]
    Type(&'static str),
    /// An output that can't do without a place.
    #[error("dest is required for {0} exporter")]
    Destination(String),
    /// An output that has no use for a place.
    #[error("dest is not supported for {0} exporter")]
    NoDestination(String),
    /// A folder where there is no place for one.
    #[error("destination directory {0} is a file")]
    NotFolder(String),
    /// A file that is a folder.
    #[error("destination file {0} is a directory")]
    NotFile(String),
    /// A terminal instead of a file.
    #[error("dest file is required for {0} exporter. refusing to write to console")]
    Console(String),
    /// Another annotation than there are.
    #[error("invalid annotation {0:?}, expected [type:]key=value")]
    Annotation(String),
    /// A secret without a name.
    #[error("secret missing ID")]
    SecretId,
    /// A secret of another type.
    #[error("unsupported secret type {0:?}")]
    SecretType(String),
    /// `--call`
    #[error("invalid value for --call: {0}: build, check, outline or targets, and format=json")]
    Call(String),
}

/// The fields of one line of comma separated values.
pub fn fields(text: &str) -> Result<Vec<String>, SpecError> {
    let broken = || SpecError::Quote(text.to_owned());
    let (mut all, mut field) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    loop {
        if field.is_empty() && chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next().ok_or_else(broken)? {
                    '"' if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    '"' => break,
                    c => field.push(c),
                }
            }
            if chars.peek().is_some_and(|c| *c != ',') {
                return Err(broken());
            }
        }
        match chars.next() {
            None => {
                all.push(field);
                return Ok(all);
            }
            Some(',') => all.push(std::mem::take(&mut field)),
            Some('"') => return Err(broken()),
            Some(c) => field.push(c),
        }
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, SpecError> {
    let pair = |field: String| match field.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_lowercase(), value.to_owned())),
        None => Err(SpecError::Field(field)),
    };
    fields(text)?.into_iter().map(pair).collect()
}

/// Where a result goes at the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere: it stays at the engine, or goes to a registry.
    Engine,
    /// A file.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// A folder.
    Folder(PathBuf),
}

/// One output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exporter: image, docker, oci, tar, local, cacheonly.
    pub kind: String,
    /// What is said about it.
    pub attrs: Attrs,
    /// Where it goes.
    pub destination: Destination,
}

impl Output {
    fn new(kind: &str, attrs: &[(&str, &str)]) -> Self {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { kind: kind.to_owned(), attrs, destination: Destination::Engine }
    }

    /// Whether the image goes to a registry.
    pub fn pushes(&self) -> bool {
        self.attrs.get("push").is_some_and(|value| crate::args::values::boolean(value).unwrap_or(false))
    }

    fn parse(text: &str, terminal: bool) -> Result<Self, SpecError> {
        let plain = !text.starts_with("type=") && fields(text)?.as_slice() == [text];
        if plain && !text.contains('=') {
            let kind = if text == "-" { "tar" } else { "local" };
            return Self::new(kind, &[]).to(text.to_owned(), terminal);
        }
        let (mut output, mut destination) = (Self::new("", &[]), String::new());
        for (key, value) in pairs(text)? {
            match key.as_str() {
                "type" => output.kind = value,
                "dest" => destination = value,
                _ => _ = output.attrs.insert(key, value),
            }
        }
        match output.kind.as_str() {
            "" => return Err(SpecError::Type("output")),
            "registry" => {
                output.kind = "image".to_owned();
                output.attrs.entry("push".to_owned()).or_insert_with(|| "true".to_owned());
            }
            _ => {}
        }
        output.to(destination, terminal)
    }

    fn to(mut self, path: String, terminal: bool) -> Result<Self, SpecError> {
        let kind = self.kind.clone();
        self.destination = match (kind.as_str(), path.as_str()) {
            ("local", "" | "-") => return Err(SpecError::Destination(kind)),
            ("local", _) if Path::new(&path).is_file() => return Err(SpecError::NotFolder(path)),
            ("local", _) => Destination::Folder(path.into()),
            ("oci" | "docker", _) if self.attrs.get("tar").is_some_and(|tar| tar == "false") => match path.as_str() {
                "" | "-" => return Err(SpecError::Destination(kind)),
                _ if Path::new(&path).is_file() => return Err(SpecError::NotFolder(path)),
                _ => Destination::Folder(path.into()),
            },
            ("docker", "") => Destination::Engine,
            ("oci" | "docker" | "tar", "" | "-") if terminal => return Err(SpecError::Console(kind)),
            ("oci" | "docker" | "tar", "" | "-") => Destination::Stdout,
            ("oci" | "docker" | "tar", _) if Path::new(&path).is_dir() => return Err(SpecError::NotFile(path)),
            ("oci" | "docker" | "tar", _) => Destination::File(path.into()),
            (_, "") => Destination::Engine,
            _ => return Err(SpecError::NoDestination(kind)),
        };
        Ok(self)
    }
}

/// The outputs: those of `--output`, with what `--push` and `--load` say.
pub fn outputs(texts: &[String], push: bool, load: bool, terminal: bool) -> Result<Vec<Output>, SpecError> {
    let mut all = texts.iter().map(|text| Output::parse(text, terminal)).collect::<Result<Vec<_>, _>>()?;
    if push {
        match all.iter_mut().find(|output| output.kind == "image") {
            Some(output) => _ = output.attrs.insert("push".to_owned(), "true".to_owned()),
            None => all.push(Output::new("image", &[("push", "true")])),
        }
    }
    if load && !all.iter().any(|output| output.kind == "docker" && output.destination == Destination::Engine) {
        all.push(Output::new("docker", &[]));
    }
    Ok(all)
}

/// One cache to build from or to export to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// registry, inline, local, ...
    pub kind: String,
    /// What is said about it.
    pub attrs: Attrs,
}

/// `--cache-from`, `--cache-to`: plain references are images of a registry.
pub fn caches(texts: &[String]) -> Result<Vec<Cache>, SpecError> {
    let mut all = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        if !text.contains('=') {
            let reference = |name: String| Cache { kind: "registry".into(), attrs: [("ref".into(), name)].into() };
            all.extend(fields(text)?.into_iter().map(reference));
            continue;
        }
        let mut cache = Cache { kind: String::new(), attrs: Attrs::new() };
        for (key, value) in pairs(text)? {
            match key.as_str() {
                "type" => cache.kind = value,
                _ => _ = cache.attrs.insert(key, value),
            }
        }
        if cache.kind.is_empty() {
            return Err(SpecError::Type("cache"));
        }
        all.push(cache);
    }
    Ok(all)
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file of the client.
    File(PathBuf),
    /// A variable of the client.
    Variable(String),
}

/// `--secret`: its name and where it is. Without a place, a variable of that name counts before a file.
pub fn secret(text: &str, has_variable: &dyn Fn(&str) -> bool) -> Result<(String, SecretSource), SpecError> {
    let (mut id, mut kind, mut file, mut variable) = (String::new(), String::new(), None, None);
    for field in fields(text)? {
        let Some((key, value)) = field.split_once('=') else { return Err(SpecError::Pair(field)) };
        let value = value.to_owned();
        match key.trim().to_lowercase().as_str() {
            "id" => id = value,
            "type" if value == "file" || value == "env" => kind = value,
            "type" => return Err(SpecError::SecretType(value)),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            key => return Err(SpecError::Key { key: key.to_owned(), field: field.clone() }),
        }
    }
    if id.is_empty() {
        return Err(SpecError::SecretId);
    }
    let source = match (kind.as_str(), variable, file) {
        ("env", None, Some(name)) => SecretSource::Variable(name),
        ("env", None, None) => SecretSource::Variable(id.clone()),
        (_, Some(name), _) => SecretSource::Variable(name),
        (_, None, Some(path)) => SecretSource::File(path.into()),
        ("", None, None) if has_variable(&id) => SecretSource::Variable(id.clone()),
        (_, None, None) => SecretSource::File(id.clone().into()),
    };
    Ok((id, source))
}

/// `--ssh`: the agent's name, and the sockets or keys that are behind it; none is the user's own agent.
pub fn ssh(text: &str) -> (String, Vec<PathBuf>) {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    (id.to_owned(), paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect())
}

/// Attestations by type: what is asked of each. `--provenance` and `--sbom` are short for them; "false" takes one back.
pub fn attestations(
    texts: &[String],
    provenance: Option<&str>,
    sbom: Option<&str>,
) -> Result<BTreeMap<String, String>, SpecError> {
    let short = |kind: &str, value: &str| match crate::args::values::boolean(value) {
        Ok(on) => format!("type={kind},disabled={}", !on),
        Err(_) => format!("type={kind},{value}"),
    };
    let mut texts = texts.to_vec();
    texts.extend(provenance.map(|value| short("provenance", value)));
    texts.extend(sbom.map(|value| short("sbom", value)));
    let mut all = BTreeMap::new();
    for text in &texts {
        let (mut kind, mut disabled, mut rest) = (String::new(), false, Vec::new());
        for field in fields(text)? {
            match field.split_once('=') {
                Some(("type", value)) => value.clone_into(&mut kind),
                Some(("disabled", value)) => disabled = crate::args::values::boolean(value).unwrap_or(true),
                Some(_) => rest.push(field),
                None => return Err(SpecError::Field(field)),
            }
        }
        match (kind.is_empty(), disabled) {
            (true, _) => return Err(SpecError::Type("attestation")),
            (false, true) => _ = all.remove(&kind),
            (false, false) => _ = all.insert(kind, rest.join(",")),
        }
    }
    Ok(all)
}

/// `--annotation`, as attributes of an exporter.
pub fn annotations(texts: &[String]) -> Result<Attrs, SpecError> {
    let mut all = Attrs::new();
    for text in texts {
        let bad = || SpecError::Annotation(text.clone());
        let (left, value) = text.split_once('=').ok_or_else(bad)?;
        let (kinds, key) = left.split_once(':').unwrap_or(("", left));
        if key.is_empty() {
            return Err(bad());
        }
        for kind in kinds.split(',') {
            let base = kind.split_once('[').map_or(kind, |(base, _)| base);
            let prefix = match base {
                "" => "annotation".to_owned(),
                "index" | "index-descriptor" | "manifest" | "manifest-descriptor" => format!("annotation-{kind}"),
                _ => return Err(bad()),
            };
            all.insert(format!("{prefix}.{key}"), value.to_owned());
        }
    }
    Ok(all)
}

/// What is asked of a Dockerfile instead of building it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// lint, outline, targets
    pub name: String,
    /// JSON instead of text.
    pub json: bool,
}

/// `--call` and `--check`; a build is no question.
pub fn question(call: &str, check: bool) -> Result<Option<Question>, SpecError> {
    let bad = || SpecError::Call(call.to_owned());
    let (mut name, mut json) = (String::new(), false);
    for (at, field) in fields(call)?.into_iter().enumerate() {
        match field.split_once('=') {
            None if at == 0 => name = field,
            Some(("format", "json")) => json = true,
            Some(("format", "text")) => {}
            _ => return Err(bad()),
        }
    }
    if check {
        if !matches!(name.as_str(), "" | "build" | "check" | "lint") {
            return Err(bad());
        }
        "lint".clone_into(&mut name);
    }
    match name.as_str() {
        "" | "build" => Ok(None),
        "check" | "lint" => Ok(Some(Question { name: "lint".to_owned(), json })),
        "outline" | "targets" => Ok(Some(Question { name, json })),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(of: &[(&str, &str)]) -> Attrs {
        of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn comma_separated_values() {
        for (text, want) in [
            ("a,b", Ok(vec!["a", "b"])),
            ("", Ok(vec![""])),
            ("type=local,\"dest=a,b\"", Ok(vec!["type=local", "dest=a,b"])),
            ("\"a\"\"b\",", Ok(vec!["a\"b", ""])),
            ("\"a", Err(())),
            ("a\"b", Err(())),
            ("\"a\"b", Err(())),
        ] {
            let want = want.map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(fields(text).map_err(|_| ()), want, "{text}");
        }
    }

    #[test]
    fn outputs_of_all_kinds() {
        use Destination::{Engine, File, Folder, Stdout};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let file = format!("{path}/f");
        std::fs::write(&file, "").unwrap();
        let one = |text: &str| outputs(&[text.to_owned()], false, false, false).map(|mut all| all.remove(0));
        for (text, kind, about, destination) in [
            ("out", "local", attrs(&[]), Folder("out".into())),
            ("-", "tar", attrs(&[]), Stdout),
            ("type=local,dest=x", "local", attrs(&[]), Folder("x".into())),
            ("type=tar,dest=x.tar", "tar", attrs(&[]), File("x.tar".into())),
            ("type=oci", "oci", attrs(&[]), Stdout),
            ("type=oci,tar=false,dest=x", "oci", attrs(&[("tar", "false")]), Folder("x".into())),
            ("type=docker", "docker", attrs(&[]), Engine),
            ("type=docker,dest=-", "docker", attrs(&[]), Stdout),
            ("type=image,name=a,push=true", "image", attrs(&[("name", "a"), ("push", "true")]), Engine),
            ("type=registry", "image", attrs(&[("push", "true")]), Engine),
            ("type=cacheonly", "cacheonly", attrs(&[]), Engine),
        ] {
            assert_eq!(one(text), Ok(Output { kind: kind.into(), attrs: about, destination }), "{text}");
        }
        for (text, want) in [
            ("dest=x".to_owned(), "type is required for output"),
            ("type=local".to_owned(), "dest is required for local exporter"),
            (format!("type=local,dest={file}"), "is a file"),
            (format!("type=tar,dest={path}"), "is a directory"),
            ("type=image,dest=x".to_owned(), "dest is not supported for image exporter"),
            ("type=tar,x".to_owned(), "invalid value x"),
        ] {
            let error = one(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        let console = outputs(&["type=tar".into()], false, false, true).unwrap_err();
        assert_eq!(console.to_string(), "dest file is required for tar exporter. refusing to write to console");
    }

    #[test]
    fn push_and_load() {
        let of = |texts: &[&str], push, load| {
            let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            outputs(&texts, push, load, false)
                .map(|all| all.iter().map(|o| format!("{} {}", o.kind, o.pushes())).collect::<Vec<_>>().join(";"))
        };
        assert_eq!(of(&[], false, false).as_deref(), Ok(""));
        assert_eq!(of(&[], true, false).as_deref(), Ok("image true"));
        assert_eq!(of(&[], true, true).as_deref(), Ok("image true;docker false"));
        assert_eq!(of(&["type=image"], true, false).as_deref(), Ok("image true"));
        assert_eq!(of(&["type=docker"], false, true).as_deref(), Ok("docker false"));
        assert_eq!(of(&["out"], true, false).as_deref(), Ok("local false;image true"));
    }

    #[test]
    fn caches_old_and_new() {
        let of = |text: &str| caches(&[text.to_owned()]);
        let registry = |name: &str| Cache { kind: "registry".into(), attrs: attrs(&[("ref", name)]) };
        assert_eq!(of("a:1,b/c"), Ok(vec![registry("a:1"), registry("b/c")]));
        let mode = Cache { kind: "registry".into(), attrs: attrs(&[("ref", "r"), ("mode", "max")]) };
        assert_eq!(of("type=registry,ref=r,mode=max"), Ok(vec![mode]));
        assert_eq!(of("type=inline"), Ok(vec![Cache { kind: "inline".into(), attrs: Attrs::new() }]));
        assert_eq!(of("ref=r"), Err(SpecError::Type("cache")));
    }

    #[test]
    fn secrets() {
        let of = |text: &str| secret(text, &|name| name == "SET").map(|(id, source)| (id, format!("{source:?}")));
        for (text, id, source) in [
            ("id=a,src=/f", "a", "File(\"/f\")"),
            ("id=a,source=f", "a", "File(\"f\")"),
            ("id=a,env=V", "a", "Variable(\"V\")"),
            ("id=a,type=env,src=V", "a", "Variable(\"V\")"),
            ("type=file,id=a", "a", "File(\"a\")"),
            ("id=SET", "SET", "Variable(\"SET\")"),
            ("id=unset", "unset", "File(\"unset\")"),
        ] {
            assert_eq!(of(text), Ok((id.to_owned(), source.to_owned())), "{text}");
        }
        assert_eq!(of("src=x"), Err(SpecError::SecretId));
        assert!(of("id=a,what=x").is_err() && of("id").is_err() && of("id=a,type=x").is_err());
        assert_eq!(ssh("default"), ("default".to_owned(), vec![]));
        assert_eq!(ssh("a=/k1,/k2"), ("a".to_owned(), vec!["/k1".into(), "/k2".into()]));
    }

    #[test]
    fn attestations_and_annotations() {
        let of = |texts: &[&str], p, s| attestations(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>(), p, s);
        let one = |kind: &str, value: &str| BTreeMap::from([(kind.to_owned(), value.to_owned())]);
        assert_eq!(of(&["type=provenance,mode=max"], None, None), Ok(one("provenance", "mode=max")));
        assert_eq!(of(&[], Some("mode=max,version=v1"), None), Ok(one("provenance", "mode=max,version=v1")));
        assert_eq!(of(&["type=provenance"], Some("false"), Some("true")), Ok(one("sbom", "")));
        assert!(of(&["mode=max"], None, None).is_err());
        let texts = ["a.b=c=d", "index,manifest[linux/amd64]:k=v"].map(str::to_owned);
        assert_eq!(
            annotations(&texts),
            Ok(attrs(&[
                ("annotation.a.b", "c=d"),
                ("annotation-index.k", "v"),
                ("annotation-manifest[linux/amd64].k", "v"),
            ]))
        );
        assert!(annotations(&["x:k=v".into()]).is_err() && annotations(&["k".into()]).is_err());
    }

    #[test]
    fn questions() {
        let of = |call: &str, check| question(call, check).map(|q| q.map(|q| format!("{} {}", q.name, q.json)));
        for (call, check, want) in [
            ("build", false, None),
            ("build", true, Some("lint false")),
            ("check,format=json", false, Some("lint true")),
            ("outline", false, Some("outline false")),
            ("targets,format=text", false, Some("targets false")),
        ] {
            assert_eq!(of(call, check), Ok(want.map(str::to_owned)), "{call}");
        }
        assert!(of("x", false).is_err() && of("outline", true).is_err() && of("outline,format=x", false).is_err());
    }
}
