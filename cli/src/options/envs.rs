//! Environment variables and labels, from flags and files.

use super::OptionError;
use serde_json::{Map, Value, json};
use std::fs;

/// Longest file of variables or labels: it all goes into one request.
const LONGEST: u64 = 16 << 20;

/// The environment of a process: files first, then flags. A bare name stands for the client's own value;
/// without one, a flag passes the name on (which unsets it in the image), a file passes nothing.
pub fn environment(
    files: &[String],
    flags: &[String],
    own: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, OptionError> {
    let mut all = Vec::new();
    for file in files {
        for line in lines(file, "environment: variable")? {
            if line.contains('=') {
                all.push(line);
            } else if let Some(value) = own(&line) {
                all.push(format!("{line}={value}"));
            }
        }
    }
    for flag in flags {
        match own(flag).filter(|_| !flag.contains('=')) {
            Some(value) => all.push(format!("{flag}={value}")),
            None => all.push(flag.clone()),
        }
    }
    Ok(all)
}

/// Labels: files first, then flags; a bare name has an empty value.
pub fn labels(files: &[String], flags: &[String]) -> Result<Map<String, Value>, OptionError> {
    let mut map = Map::new();
    let from_files = files.iter().map(|file| lines(file, "labels: label")).collect::<Result<Vec<_>, _>>()?;
    for text in from_files.iter().flatten().chain(flags) {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(OptionError::Invalid(format!("invalid label '{text}': empty name")));
        }
        map.insert(key.to_owned(), json!(value));
    }
    Ok(map)
}

/// key=value words as a map; a bare key has an empty value.
pub fn map(words: &[String]) -> Map<String, Value> {
    let pairs = words.iter().map(|word| word.split_once('=').unwrap_or((word, "")));
    pairs.map(|(key, value)| (key.to_owned(), json!(value))).collect()
}

/// Lines of a file that are neither empty nor comments.
fn lines(path: &str, what: &str) -> Result<Vec<String>, OptionError> {
    let size = fs::metadata(path).map_err(|cause| OptionError::file(path, cause))?.len();
    if size > LONGEST {
        return Err(OptionError::Invalid(format!("{path}: larger than {LONGEST} bytes")));
    }
    let bytes = fs::read(path).map_err(|cause| OptionError::file(path, cause))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| OptionError::Invalid(format!("env file {path} contains invalid utf8 bytes")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut out = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let name = line.split('=').next().unwrap_or_default();
        if name.contains(char::is_whitespace) {
            return Err(OptionError::Invalid(format!("poorly formatted {what} '{name}' contains whitespaces")));
        }
        if name.is_empty() {
            return Err(OptionError::Invalid(format!("no variable name on line '{line}'")));
        }
        out.push(line.to_owned());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> (tempfile::NamedTempFile, String) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        (file, path)
    }

    #[test]
    fn files_then_flags() {
        let own = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        let (_keep, path) = file("\u{feff}# note\n\nA=1 2\n  B=\nHOME\nNOPE\n");
        let flags = ["C=3", "HOME", "UNSET"].map(str::to_owned);
        let all = environment(&[path], &flags, own).unwrap();
        assert_eq!(all, ["A=1 2", "B=", "HOME=/h", "C=3", "HOME=/h", "UNSET"]);
    }

    #[test]
    fn bad_files() {
        let (_keep, path) = file("A B=1\n");
        let error = environment(&[path], &[], |_| None).unwrap_err().to_string();
        assert_eq!(error, "poorly formatted environment: variable 'A B' contains whitespaces");
        let error = environment(&["/no/file".to_owned()], &[], |_| None).unwrap_err().to_string();
        assert_eq!(error, "open /no/file: no such file or directory");
    }

    #[test]
    fn label_maps() {
        let (_keep, path) = file("a=1\nb=2\n");
        let map = labels(&[path], &["b=3".to_owned(), "c".to_owned()]).unwrap();
        assert_eq!(Value::Object(map), json!({"a":"1","b":"3","c":""}));
    }
}
