//! Contexts: named ways to an engine, in docker's own files, so that both command lines share them.
//!
//! `contexts/meta/SHA256-OF-NAME/meta.json` says where, `contexts/tls/SHA256-OF-NAME/docker/*.pem` hold what TLS needs.

pub mod archive;

use crate::options::Plain;
use crate::output::value::Value;
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The context that is not stored: flags and variables.
pub const DEFAULT: &str = "default";
/// The endpoint that is an engine.
const ENGINE: &str = "docker";
/// Names of the files of TLS.
pub const TLS_FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// Why a context can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// No such context.
    #[error("context {name:?}: context not found: open {}: no such file or directory{hint}", path.display())]
    Missing {
        /// Its name.
        name: String,
        /// Where it would be.
        path: PathBuf,
        /// What was likely meant.
        hint: String,
    },
    /// A name that is not allowed.
    #[error("context name {0:?} is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\"")]
    Name(String),
    /// "default"
    #[error("\"default\" is a reserved context name")]
    Reserved,
    /// It is there already.
    #[error("context {0:?} already exists")]
    Exists(String),
    /// A file.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        cause: Plain,
    },
    /// meta.json
    #[error("context {name:?}: {} is not a context: {cause}", path.display())]
    Json {
        /// The context.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
}

/// A context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// Its name.
    pub name: String,
    /// meta.json, with what we don't know of.
    pub meta: Value,
    /// Names and contents of its engine's TLS files.
    pub tls: Vec<(String, Vec<u8>)>,
}

impl Context {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let meta = Value::object([
            ("Name", name.into()),
            ("Metadata", Value::Object(Vec::new())),
            ("Endpoints", Value::object([(ENGINE, Value::object([("SkipTLSVerify", false.into())]))])),
        ]);
        Self { name: name.to_owned(), meta, tls: Vec::new() }
    }

    /// What people are to know about it.
    pub fn description(&self) -> &str {
        self.meta.text(&["Metadata", "Description"])
    }

    /// Where the engine is; "" for the default place.
    pub fn host(&self) -> &str {
        self.meta.text(&["Endpoints", ENGINE, "Host"])
    }

    /// The engine's certificate is not looked at.
    pub fn skip_tls_verify(&self) -> bool {
        self.meta.at(&["Endpoints", ENGINE, "SkipTLSVerify"]).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Sets the description; "" removes it.
    pub fn describe(&mut self, text: &str) {
        let metadata = self.meta.field("Metadata");
        if text.is_empty() {
            if let Value::Object(fields) = metadata {
                fields.retain(|(name, _)| name != "Description");
            }
        } else {
            *metadata.field("Description") = text.into();
        }
    }

    /// Sets where the engine is and how it is trusted.
    pub fn point_to(&mut self, host: &str, skip_tls_verify: bool) {
        let endpoint = self.meta.field("Endpoints").field(ENGINE);
        let mut fields = Vec::new();
        if !host.is_empty() {
            fields.push(("Host".to_owned(), Value::from(host)));
        }
        fields.push(("SkipTLSVerify".to_owned(), skip_tls_verify.into()));
        *endpoint = Value::Object(fields);
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        *self.meta.field("Name") = name.into();
    }

    /// One of its TLS files.
    pub fn tls_file(&self, name: &str) -> Option<&[u8]> {
        self.tls.iter().find(|(known, _)| known == name).map(|(_, data)| data.as_slice())
    }
}

/// The folder of all contexts.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store below the folder of config.json.
    pub fn new(config: &Path) -> Self {
        Self { root: config.join("contexts") }
    }

    /// Folder of a context's meta.json.
    pub fn meta_path(&self, name: &str) -> PathBuf {
        self.root.join("meta").join(folder(name))
    }

    /// Folder of a context's TLS files.
    pub fn tls_path(&self, name: &str) -> PathBuf {
        self.root.join("tls").join(folder(name))
    }

    /// A context is stored under this name.
    pub fn has(&self, name: &str) -> bool {
        self.meta_path(name).join("meta.json").exists()
    }

    /// Reads a context.
    pub fn load(&self, name: &str) -> Result<Context, ContextError> {
        check(name)?;
        let path = self.meta_path(name).join("meta.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let names = self.names();
                let near = crate::output::similar::nearest(name, names.iter().map(String::as_str).chain([DEFAULT]));
                let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                return Err(ContextError::Missing { name: name.to_owned(), path, hint });
            }
            Err(cause) => return Err(ContextError::Io { operation: "open", path, cause: Plain(cause) }),
        };
        let meta: Value = serde_json::from_slice(&text).map_err(|cause| ContextError::Json {
            name: name.to_owned(),
            path: path.clone(),
            cause,
        })?;
        let mut tls = Vec::new();
        for file in files_of(&self.tls_path(name).join(ENGINE))? {
            let data = fs::read(&file).map_err(|cause| ContextError::Io {
                operation: "open",
                path: file.clone(),
                cause: Plain(cause),
            })?;
            tls.push((file.file_name().unwrap_or_default().to_string_lossy().into_owned(), data));
        }
        Ok(Context { name: name.to_owned(), meta, tls })
    }

    /// Names of all that are stored, in order.
    pub fn names(&self) -> Vec<String> {
        let folders = fs::read_dir(self.root.join("meta")).into_iter().flatten().flatten();
        let names = folders.filter_map(|entry| {
            let meta: Value = serde_json::from_slice(&fs::read(entry.path().join("meta.json")).ok()?).ok()?;
            let name = meta.text(&["Name"]).to_owned();
            // A folder that isn't the one of its name can't be loaded by it.
            (entry.file_name().to_str() == Some(folder(&name).as_str())).then_some(name)
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Writes a context: TLS first, so that meta.json never names what isn't there.
    pub fn save(&self, context: &Context) -> Result<(), ContextError> {
        check(&context.name)?;
        let tls = self.tls_path(&context.name);
        remove(&tls)?;
        if !context.tls.is_empty() {
            let dir = tls.join(ENGINE);
            make(&dir, 0o700)?;
            for (name, data) in &context.tls {
                write(&dir.join(name), data, 0o600)?;
            }
        }
        let dir = self.meta_path(&context.name);
        make(&dir, 0o755)?;
        let text = crate::output::json::line(&context.meta);
        write(&dir.join("meta.json"), text.as_bytes(), 0o644)
    }

    /// Removes a context.
    pub fn remove(&self, name: &str) -> Result<(), ContextError> {
        remove(&self.meta_path(name))?;
        remove(&self.tls_path(name))
    }
}

/// Refuses names that can't be stored.
pub fn check(name: &str) -> Result<(), ContextError> {
    if name == DEFAULT {
        return Err(ContextError::Reserved);
    }
    let inner = |c: u8| c.is_ascii_alphanumeric() || b"_.+-".contains(&c);
    match name.as_bytes() {
        [first, rest @ ..] if first.is_ascii_alphanumeric() && !rest.is_empty() && rest.iter().all(|c| inner(*c)) => {
            Ok(())
        }
        _ => Err(ContextError::Name(name.to_owned())),
    }
}

fn folder(name: &str) -> String {
    Sha256::digest(name.as_bytes()).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, ContextError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(ContextError::Io { operation: "read", path: dir.to_owned(), cause: Plain(cause) }),
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

fn make(dir: &Path, mode: u32) -> Result<(), ContextError> {
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(|cause| ContextError::Io {
        operation: "mkdir",
        path: dir.to_owned(),
        cause: Plain(cause),
    })
}

fn remove(dir: &Path) -> Result<(), ContextError> {
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(ContextError::Io { operation: "remove", path: dir.to_owned(), cause: Plain(cause) })
        }
        _ => Ok(()),
    }
}

/// Replaces a file as a whole.
fn write(path: &Path, data: &[u8], mode: u32) -> Result<(), ContextError> {
    let fault = |cause| ContextError::Io { operation: "write", path: path.to_owned(), cause: Plain(cause) };
    let new = path.with_extension(format!("new{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new).map_err(fault)?;
    file.write_all(data).and_then(|()| file.set_permissions(Permissions::from_mode(mode))).map_err(fault)?;
    fs::rename(&new, path).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["ab", "a.b", "0-_+", "A1"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "a b", "-ab", "a/b", "../x", "aé"] {
            assert!(matches!(check(bad), Err(ContextError::Name(_))), "{bad}");
        }
        assert!(matches!(check(DEFAULT), Err(ContextError::Reserved)));
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert!(store.names().is_empty() && !store.has("foo"));
        let mut context = Context::new("foo");
        context.describe("d d");
        context.point_to("tcp://127.0.0.1:9999", false);
        store.save(&context).unwrap();
        let path =
            dir.path().join("contexts/meta/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae/meta.json");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"Name":"foo","Metadata":{"Description":"d d"},"Endpoints":{"docker":{"Host":"tcp://127.0.0.1:9999","SkipTLSVerify":false}}}"#
        );
        assert_eq!(store.load("foo").unwrap(), context);
        context.tls = vec![("ca.pem".into(), b"x".to_vec())];
        context.describe("");
        store.save(&context).unwrap();
        let again = store.load("foo").unwrap();
        assert_eq!(
            (again.description(), again.tls_file("ca.pem"), again.tls_file("key.pem")),
            ("", Some(&b"x"[..]), None)
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let tls = store.tls_path("foo");
        assert_eq!((mode(&tls), mode(&tls.join("docker/ca.pem")), mode(&path)), (0o700, 0o600, 0o644));
        assert_eq!(store.names(), ["foo"]);
        store.remove("foo").unwrap();
        assert!(!tls.exists() && store.names().is_empty());
        let error = store.load("foo").unwrap_err().to_string();
        assert!(error.starts_with("context \"foo\": context not found: open "), "{error}");
    }

    #[test]
    fn what_others_wrote_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        make(&store.meta_path("foo"), 0o755).unwrap();
        let text =
            r#"{"Name":"foo","Metadata":{"own":1},"Endpoints":{"kubernetes":{"x":2},"docker":{"SkipTLSVerify":true}}}"#;
        fs::write(store.meta_path("foo").join("meta.json"), text).unwrap();
        let mut context = store.load("foo").unwrap();
        assert!(context.skip_tls_verify() && context.host().is_empty());
        context.describe("d");
        store.save(&context).unwrap();
        let text = fs::read_to_string(store.meta_path("foo").join("meta.json")).unwrap();
        assert_eq!(
            text,
            r#"{"Name":"foo","Metadata":{"own":1,"Description":"d"},"Endpoints":{"kubernetes":{"x":2},"docker":{"SkipTLSVerify":true}}}"#
        );
        fs::write(store.meta_path("foo").join("meta.json"), "{").unwrap();
        assert!(store.load("foo").unwrap_err().to_string().contains("is not a context"));
    }
}
