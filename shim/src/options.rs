//! Runtime options, in the two forms in which containerd sends them.
//!
//! Clients that know runc's shim send `containerd.runc.v1.Options`. containerd's CRI plugin sends those for `io.containerd.runc.v2`
//! only; for every other runtime type, so for `io.containerd.berth.v1`, it sends `runtimeoptions.v1.Options` with the section of
//! its config.toml in it, or the path of a file. Their keys are taken as runc's are named there:
//!
//! ```toml
//! [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.berth]
//!   runtime_type = "io.containerd.berth.v1"
//!   [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.berth.options]
//!     BinaryName = "/usr/local/bin/berth-runtime"
//!     SystemdCgroup = true
//! ```
//! The parser reads keys with strings, integers and truth values, which is all that these options have; a crate for all of
//! TOML would be a tenth of the shim.

use std::{borrow::Cow, io::Read as _, path::PathBuf};

use prost_types::Any;
use proto::{containerd::runc::v1::Options, runtimeoptions::v1::Options as Generic, typeurl};

/// Most that a file of options may have.
const LIMIT: u64 = 64 << 10;

/// Why options can't be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    /// Another message.
    #[error("their type is {0:?}: containerd.runc.v1.Options and runtimeoptions.v1.Options are known")]
    Type(String),
    /// Bytes that aren't the message.
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
    /// No such file, or no text.
    #[error("read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// More than assignments of plain values.
    #[error("line {0} is not KEY = VALUE with a string, a number, true or false")]
    Line(usize),
    /// A key that runc's options don't have, or a value of another type.
    #[error("line {line}: {key} is no option of a runtime, or has a value of the wrong type")]
    Key {
        /// Where.
        line: usize,
        /// Which.
        key: String,
    },
}

/// Reads options; none are those of a caller that leaves everything to the shim.
pub(crate) fn read(any: Option<&Any>) -> Result<Options, OptionsError> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
        return Ok(Options::default());
    };
    if let Some(options) = typeurl::unpack::<Options>(any) {
        return Ok(options?);
    }
    // containerd 1.6 has the package below another.
    if !any.type_url.ends_with("runtimeoptions.v1.Options") {
        return Err(OptionsError::Type(any.type_url.clone()));
    }
    let generic = <Generic as prost::Message>::decode(any.value.as_slice())?;
    if generic.config_path.is_empty() {
        return parse(&String::from_utf8_lossy(&generic.config_body));
    }
    let path = PathBuf::from(generic.config_path);
    let mut text = String::new();
    let file = std::fs::File::open(&path).and_then(|file| file.take(LIMIT).read_to_string(&mut text));
    file.map_err(|cause| OptionsError::File { path, cause })?;
    parse(&text)
}

#[derive(Debug, PartialEq)]
enum Value<'a> {
    Text(Cow<'a, str>),
    Number(u32),
    Truth(bool),
}

fn parse(text: &str) -> Result<Options, OptionsError> {
    let mut options = Options::default();
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(OptionsError::Line(number))?;
        let key = key.trim().trim_matches('"');
        let value = value_of(value.trim()).ok_or(OptionsError::Line(number))?;
        set(&mut options, key, value).ok_or_else(|| OptionsError::Key { line: number, key: key.to_owned() })?;
    }
    Ok(options)
}

fn set(options: &mut Options, key: &str, value: Value<'_>) -> Option<()> {
    match (key, value) {
        ("NoPivotRoot", Value::Truth(on)) => options.no_pivot_root = on,
        ("NoNewKeyring", Value::Truth(on)) => options.no_new_keyring = on,
        ("SystemdCgroup", Value::Truth(on)) => options.systemd_cgroup = on,
        ("ShimCgroup", Value::Text(text)) => options.shim_cgroup = text.into(),
        ("BinaryName", Value::Text(text)) => options.binary_name = text.into(),
        ("Root", Value::Text(text)) => options.root = text.into(),
        ("CriuPath", Value::Text(text)) => options.criu_path = text.into(),
        ("CriuImagePath", Value::Text(text)) => options.criu_image_path = text.into(),
        ("CriuWorkPath", Value::Text(text)) => options.criu_work_path = text.into(),
        ("IoUid", Value::Number(id)) => options.io_uid = id,
        ("IoGid", Value::Number(id)) => options.io_gid = id,
        // Says what the section means to its writer; here it can mean nothing else.
        ("TypeUrl", Value::Text(_)) => {}
        _ => return None,
    }
    Some(())
}

/// A value with nothing but a comment behind it.
fn value_of(text: &str) -> Option<Value<'_>> {
    let (value, rest) = match text.as_bytes().first()? {
        b'\'' => {
            let end = text[1..].find('\'')? + 1;
            (Value::Text(text[1..end].into()), &text[end + 1..])
        }
        b'"' => basic_string(text)?,
        _ => {
            let end = text.find('#').unwrap_or(text.len());
            let value = match text[..end].trim() {
                "true" => Value::Truth(true),
                "false" => Value::Truth(false),
                digits => Value::Number(digits.parse().ok()?),
            };
            (value, &text[end..])
        }
    };
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with('#')).then_some(value)
}

fn basic_string(text: &str) -> Option<(Value<'_>, &str)> {
    let (mut out, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices().skip(1) {
        match (escaped, letter) {
            (false, '"') => return Some((Value::Text(out.into()), &text[at + 1..])),
            (false, '\\') => escaped = true,
            (true, '"' | '\\') | (false, _) => {
                out.push(letter);
                escaped = false;
            }
            // Names and paths need no other.
            (true, _) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    fn generic(type_url: &str, generic: &Generic) -> Any {
        Any { type_url: type_url.to_owned(), value: generic.encode_to_vec() }
    }

    #[test]
    fn both_forms_say_the_same() {
        let wanted = Options {
            binary_name: "/usr/local/bin/berth-runtime".into(),
            systemd_cgroup: true,
            io_uid: 1000,
            root: r#"/run/a "b" \c"#.into(),
            ..Options::default()
        };
        assert_eq!(read(None).unwrap(), Options::default());
        assert_eq!(read(Some(&typeurl::pack(&wanted))).unwrap(), wanted);
        let body = "# as it stands in config.toml\nBinaryName = '/usr/local/bin/berth-runtime'\n\nIoUid = 1000 # a user\n\
                    \"SystemdCgroup\" = true\nNoPivotRoot=false\nTypeUrl = \"x\"\nRoot = \"/run/a \\\"b\\\" \\\\c\" # root";
        let inline = Generic { config_body: body.into(), ..Generic::default() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("options.toml");
        std::fs::write(&file, body).unwrap();
        let by_path = Generic { config_path: file.display().to_string(), ..Generic::default() };
        for type_url in ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"] {
            assert_eq!(read(Some(&generic(type_url, &inline))).unwrap(), wanted);
            assert_eq!(read(Some(&generic(type_url, &by_path))).unwrap(), wanted);
            assert_eq!(read(Some(&generic(type_url, &Generic::default()))).unwrap(), Options::default());
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(read(Some(&generic("runtimeoptions.v1.Options", &by_path))), Err(OptionsError::File { .. })));
        assert!(matches!(read(Some(&generic("x.Other", &inline))), Err(OptionsError::Type(_))));
    }

    #[test]
    fn what_is_no_option_is_said_with_its_line() {
        for (body, error) in [
            ("\nBinary = \"/x\"", "line 2: Binary is no option of a runtime, or has a value of the wrong type"),
            (
                "SystemdCgroup = \"yes\"",
                "line 1: SystemdCgroup is no option of a runtime, or has a value of the wrong type",
            ),
            ("[options]", "line 1 is not KEY = VALUE with a string, a number, true or false"),
            ("Root = [\"a\"]", "line 1 is not KEY = VALUE with a string, a number, true or false"),
            ("Root = \"a", "line 1 is not KEY = VALUE with a string, a number, true or false"),
            ("Root = 'a' b", "line 1 is not KEY = VALUE with a string, a number, true or false"),
            ("IoUid = -1", "line 1 is not KEY = VALUE with a string, a number, true or false"),
        ] {
            assert_eq!(parse(body).unwrap_err().to_string(), error);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_name_survives(name in "[^\n\r\\p{Cc}]{0,40}") {
            let quoted = format!("BinaryName = \"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(parse(&quoted).unwrap().binary_name, name);
        }
    }
}
