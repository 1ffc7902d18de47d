//! config.json: docker's keys. A value of the wrong kind is warned about and left out; the rest counts, as in docker.

use crate::output::{self, value::Value};
use std::{collections::BTreeMap, fs, io, path::Path};

/// What config.json says, credentials aside.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct ConfigFile {
    root: Value,
}

/// Keys whose value is a text.
const TEXTS: &[&str] = &[
    "detachKeys",
    "psFormat",
    "imagesFormat",
    "networksFormat",
    "pluginsFormat",
    "volumesFormat",
    "statsFormat",
    "serviceInspectFormat",
    "servicesFormat",
    "tasksFormat",
    "secretFormat",
    "configFormat",
    "nodesFormat",
    "currentContext",
    "credsStore",
    "experimental",
];
/// Keys whose value is a list of texts.
const LISTS: &[&str] = &["pruneFilters", "cliPluginsExtraDirs"];
/// Keys whose value is a map of texts.
const MAPS: &[&str] = &["HttpHeaders", "credHelpers", "aliases", "features"];
/// Keys whose value is a map of maps of texts.
const DEEP_MAPS: &[&str] = &["proxies", "plugins"];

impl ConfigFile {
    /// Reads the file; what is wrong with it is said on standard error and is nobody's end.
    pub fn read(path: &Path) -> Self {
        let warn = |what: &str, cause: &str| {
            output::note(&format!("WARNING: Error {what} config file: {cause}"));
            Self::default()
        };
        match fs::read(path) {
            Ok(text) => Self::parse(&text, &path.display().to_string()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                warn("loading", &format!("open {}: permission denied", path.display()))
            }
            Err(cause) => warn("loading", &format!("open {}: {cause}", path.display())),
        }
    }

    fn parse(text: &[u8], name: &str) -> Self {
        let warn = |cause: String| output::note(&format!("WARNING: Error parsing config file ({name}): {cause}"));
        match serde_json::from_slice::<Value>(text) {
            Ok(root) => {
                let (file, faults) = Self::checked(root);
                // One is said, as docker does; the others are likely the same mistake.
                if let Some(first) = faults.into_iter().next() {
                    warn(first);
                }
                file
            }
            Err(cause) if cause.is_eof() => {
                warn("unexpected EOF".to_owned());
                Self::default()
            }
            Err(cause) => {
                warn(cause.to_string());
                Self::default()
            }
        }
    }

    /// What can be read of a file, without a word about the rest.
    pub fn parse_quietly(text: &[u8]) -> Self {
        serde_json::from_slice::<Value>(text).map(|root| Self::checked(root).0).unwrap_or_default()
    }

    /// Leaves out what has the wrong type, and tells of it.
    fn checked(root: Value) -> (Self, Vec<String>) {
        let mut faults = Vec::new();
        let Value::Object(fields) = root else {
            faults.push(format!("json: cannot unmarshal {} into Go value of type configfile.ConfigFile", kind(&root)));
            return (Self::default(), faults);
        };
        let text = |value: &Value| matches!(value, Value::String(_) | Value::Null);
        let texts = |value: &Value| *value == Value::Null || value.fields_are(text);
        let mut kept = Vec::new();
        for (name, value) in fields {
            let (fits, wanted) = match name.as_str() {
                key if TEXTS.contains(&key) => (text(&value), "string"),
                key if LISTS.contains(&key) => (value == Value::Null || value.items_are(text), "[]string"),
                key if MAPS.contains(&key) => (texts(&value), "map[string]string"),
                key if DEEP_MAPS.contains(&key) => {
                    (value == Value::Null || value.fields_are(texts), "map[string]map[string]string")
                }
                "auths" => (value == Value::Null || value.fields_are(|_| true), "map[string]types.AuthConfig"),
                _ => (true, ""),
            };
            if fits {
                kept.push((name, value));
            } else {
                let has = kind(&value);
                faults.push(format!(
                    "json: cannot unmarshal {has} into Go struct field ConfigFile.{name} of type {wanted}"
                ));
            }
        }
        (Self { root: Value::Object(kept) }, faults)
    }

    /// Everything that is in it, for those who read keys of their own.
    pub fn value(&self) -> &Value {
        &self.root
    }

    /// A key that holds text; empty is the same as missing.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.root.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// A key that holds a list of texts.
    pub fn list(&self, key: &str) -> Vec<String> {
        let items = self.root.get(key).map(Value::items).unwrap_or_default();
        items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// A key that holds a map of texts.
    pub fn map(&self, key: &str) -> BTreeMap<String, String> {
        map_of(self.root.get(key))
    }

    /// One map of a key that holds maps of texts.
    pub fn inner_map(&self, key: &str, name: &str) -> Option<BTreeMap<String, String>> {
        let inner = self.root.get(key)?.get(name)?;
        Some(map_of(Some(inner)))
    }
}

fn map_of(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.map(Value::fields).unwrap_or_default();
    fields.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: &str) -> (ConfigFile, Vec<String>) {
        ConfigFile::checked(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn every_key_of_the_right_kind_is_kept() {
        let (file, faults) = checked(
            r#"{"psFormat":"x","statsFormat":"","pruneFilters":["a=b","c"],"HttpHeaders":{"A":"b"},"own":{"kept":[1]},
            "proxies":{"default":{"httpProxy":"p"}},"plugins":{"compose":{"hooks":"run"}},"features":null,
            "currentContext":"c","aliases":{"builder":"buildx"},"cliPluginsExtraDirs":["/x"],"auths":{"r":{}}}"#,
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!((file.text("psFormat"), file.text("statsFormat"), file.text("nope")), (Some("x"), None, None));
        assert_eq!(file.list("pruneFilters"), ["a=b", "c"]);
        assert_eq!(file.map("HttpHeaders")["A"], "b");
        assert_eq!(file.inner_map("plugins", "compose").unwrap()["hooks"], "run");
        assert_eq!(file.inner_map("plugins", "other"), None);
        assert!(file.map("features").is_empty() && file.value().get("own").is_some());
    }

    #[test]
    fn values_of_the_wrong_kind_are_left_out() {
        for (json, fault) in [
            (
                r#"{"psFormat":3}"#,
                "json: cannot unmarshal number into Go struct field ConfigFile.psFormat of type string",
            ),
            (
                r#"{"auths":3}"#,
                "json: cannot unmarshal number into Go struct field ConfigFile.auths of type map[string]types.AuthConfig",
            ),
            (
                r#"{"pruneFilters":"a"}"#,
                "json: cannot unmarshal string into Go struct field ConfigFile.pruneFilters of type []string",
            ),
            (r#"[1]"#, "json: cannot unmarshal array into Go value of type configfile.ConfigFile"),
        ] {
            let (file, faults) = checked(json);
            assert_eq!((faults, file.value().fields().len()), (vec![fault.to_owned()], 0), "{json}");
        }
        let (file, faults) = checked(r#"{"psFormat":3,"detachKeys":"a"}"#);
        assert_eq!((file.text("detachKeys"), faults.len()), (Some("a"), 1), "the rest counts");
    }

    #[test]
    fn a_broken_file_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert_eq!(ConfigFile::read(&path), ConfigFile::default());
        fs::write(&path, "{").unwrap();
        assert_eq!(ConfigFile::read(&path), ConfigFile::default());
        assert_eq!(ConfigFile::read(dir.path()), ConfigFile::default(), "a folder is no file");
    }
}
