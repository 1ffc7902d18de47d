//! `--mount` and `--device` of RUN.

use super::{Fault, values, words};
use crate::{
    expand::{Env, Lexer},
    instruction::{Device, Mount, MountKind, Sharing},
    suggest,
};

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];
const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];
const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

impl MountKind {
    /// Its word.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl Mount {
    /// This mount with variables filled in, in all of its values, and the names of those that are not set.
    pub fn expand(&self, lexer: &Lexer, env: &(impl Env + ?Sized)) -> Result<(Self, Vec<String>), String> {
        let mut unset = Vec::new();
        let mut fill = |word: &str| {
            let expanded = lexer.word(word, env).map_err(|error| error.to_string())?;
            unset.extend(expanded.unmatched);
            Ok(expanded.text)
        };
        let mount = read(&self.written, Some(&mut fill)).map_err(|fault| fault.message)?;
        Ok((mount, unset))
    }
}

/// Reads one; values with variables in them are left for later, and so is what depends on all of its values.
pub fn mount(text: &str) -> Result<Mount, Fault> {
    read(text, None)
}

type Fill<'a> = &'a mut dyn FnMut(&str) -> Result<String, String>;

fn read(text: &str, mut fill: Option<Fill>) -> Result<Mount, Fault> {
    let fields = words::csv(text).map_err(|why| Fault::at(format!("failed to parse csv mounts: {why}"), text))?;
    let mut mount = Mount {
        kind: MountKind::Bind,
        from: None,
        source: None,
        target: None,
        id: None,
        readonly: None,
        sharing: None,
        required: false,
        size: None,
        mode: None,
        uid: None,
        gid: None,
        env: None,
        written: text.to_owned(),
    };
    // Whether all of it is known: the kind may be a variable too, and then nobody knows what else is allowed.
    let (mut complete, mut kind_known) = (true, true);
    for field in &fields {
        let fault = |message: String| Fault::at(message, field);
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        let unexpected = |kind: MountKind| fault(format!("unexpected key '{key}' for mount type '{}'", kind.name()));
        let secretive = matches!(mount.kind, MountKind::Secret | MountKind::Ssh) || !kind_known;
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => mount.readonly = Some(true),
                "readwrite" | "rw" => mount.readonly = Some(false),
                "required" if secretive => mount.required = true,
                "required" => return Err(unexpected(mount.kind)),
                _ => return Err(fault(format!("invalid field '{field}' must be a key=value pair"))),
            }
            continue;
        };
        if !KEYS.contains(&key.as_str()) {
            let message = format!("unexpected key '{key}' in '{field}'");
            return Err(fault(suggest::with_hint(message, &key, KEYS)));
        }
        let filled;
        let value = match &mut fill {
            Some(fill) => {
                filled = fill(value).map_err(fault)?;
                filled.as_str()
            }
            None if key == "from" && value.find('$').is_some_and(|at| at + 1 < value.len()) => {
                let message = "'from' doesn't support variable expansion, define alias stage instead";
                return Err(fault(message.into()));
            }
            // These stay as written until then, and nothing about them can be wrong.
            None if matches!(key.as_str(), "source" | "src" | "target" | "dst" | "destination" | "id") => value,
            // Quotes and escapes may go, too.
            None if value.contains(['$', '\'', '"', '\\', '`']) => {
                complete = false;
                kind_known &= key != "type";
                continue;
            }
            None => value,
        };
        let invalid = || fault(format!("invalid value for {key}: {value}"));
        let some = || Some(value.to_owned()).filter(|value| !value.is_empty());
        match key.as_str() {
            "type" => {
                let lower = value.to_lowercase();
                let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == lower) else {
                    let message = format!("unsupported mount type {value:?}");
                    return Err(fault(suggest::with_hint(message, value, KINDS.map(|(name, _)| name))));
                };
                mount.kind = *kind;
            }
            "from" => mount.from = some(),
            "source" | "src" => mount.source = some(),
            "target" | "dst" | "destination" => mount.target = some(),
            "id" => mount.id = some(),
            "readonly" | "ro" => mount.readonly = Some(values::boolean(value).ok_or_else(invalid)?),
            "readwrite" | "rw" => mount.readonly = Some(!values::boolean(value).ok_or_else(invalid)?),
            "required" if secretive => mount.required = values::boolean(value).ok_or_else(invalid)?,
            "size" if mount.kind == MountKind::Tmpfs || !kind_known => {
                mount.size = Some(values::bytes(value).ok_or_else(invalid)?);
            }
            "env" if mount.kind == MountKind::Secret || !kind_known => mount.env = Some(value.into()),
            "required" | "size" | "env" => return Err(unexpected(mount.kind)),
            "sharing" => {
                let lower = value.to_lowercase();
                let Some((_, sharing)) = SHARINGS.iter().find(|(name, _)| *name == lower) else {
                    let message = format!("unsupported sharing value {value:?}");
                    return Err(fault(suggest::with_hint(message, value, SHARINGS.map(|(name, _)| name))));
                };
                mount.sharing = Some(*sharing);
            }
            _ => {
                let number = values::number(value, if key == "mode" { 8 } else { 10 });
                let number = number.ok_or_else(|| fault(format!("invalid value {value} for {key}")))?;
                match key.as_str() {
                    "mode" => mount.mode = Some(number),
                    "uid" => mount.uid = Some(number),
                    _ => mount.gid = Some(number),
                }
            }
        }
    }
    if complete {
        check(&mount).map_err(|message| Fault::at(message, text))?;
    }
    Ok(mount)
}

/// What does not go together.
fn check(mount: &Mount) -> Result<(), String> {
    let kind = mount.kind.name();
    if matches!(mount.kind, MountKind::Bind | MountKind::Tmpfs) {
        for (name, value) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if value.is_some() {
                return Err(format!("{name} not allowed for {kind:?} type mounts"));
            }
        }
    }
    if mount.kind == MountKind::Secret {
        if mount.from.is_some() {
            return Err("secret mount should not have a from".into());
        }
        if mount.sharing.is_some() {
            return Err("secret mount should not define sharing".into());
        }
        if mount.source.is_none() && mount.target.is_none() && mount.id.is_none() {
            return Err("invalid secret mount. one of source, target required".into());
        }
        if mount.source.is_some() && mount.id.is_some() {
            return Err("both source and id can't be set".into());
        }
    }
    if mount.sharing.is_some() && mount.kind != MountKind::Cache {
        return Err(format!("invalid cache sharing set for {kind} mount"));
    }
    Ok(())
}

/// `vendor.com/class=name,required`, `name=vendor.com/class`
pub fn device(text: &str) -> Result<Device, Fault> {
    let fields = words::csv(text).map_err(|why| Fault::at(format!("failed to parse csv devices: {why}"), text))?;
    let (mut name, mut required) = (String::new(), false);
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => required = true,
            ("required", Some(value)) => {
                required = values::boolean(value)
                    .ok_or_else(|| Fault::at(format!("invalid value for {key}: {value}"), &field))?;
            }
            ("name", Some(_)) if !name.is_empty() => {
                return Err(Fault::at(format!("device name already set to {name}"), &field));
            }
            ("name", Some(value)) => name = value.into(),
            _ if name.is_empty() => name = field,
            (_, None) => {
                return Err(Fault::at(format!("invalid field '{field}' must be a key=value pair"), &field));
            }
            (_, Some(_)) => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(Fault::at(suggest::with_hint(message, &key, ["name", "required"]), &field));
            }
        }
    }
    Ok(Device { name, required })
}
