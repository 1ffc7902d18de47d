//! Which shim and which OCI runtime a container gets.

use crate::config::Live;
use std::{
    borrow::Cow,
    fs::{DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

/// Berth's shim, by containerd's name of its type.
pub const BERTH: &str = "io.containerd.berth.v1";
/// What a containerd has of its own.
pub const RUNC: &str = "io.containerd.runc.v2";

/// Shim and runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The shim's type.
    pub shim: String,
    /// Name or path of the OCI runtime; empty means the shim's own choice.
    pub runtime: String,
    /// Whether the shim writes logs and serves attachments, below a supervisor that passes them on.
    pub attaches: bool,
}

/// Runtimes that are found beside the shim or on the PATH without being configured.
const KNOWN: [&str; 8] =
    ["berth-runtime", "runc", "crun", "youki", "runsc", "kata-runtime", "nvidia-container-runtime", "krun"];

/// Whether a container may ask for this runtime: one of the configuration's names, of a known one, a shim's type or a path.
pub fn is_known(name: &str, live: &Live) -> bool {
    name.is_empty()
        || live.runtimes.contains_key(name)
        || KNOWN.contains(&name)
        || name.starts_with("io.containerd.")
        || (name.starts_with('/') && Path::new(name).is_file())
}

/// What the configuration says that a name stands for. A runtime with arguments becomes a script that adds them: shims know
/// programs only.
pub fn by_name<'a>(name: &'a str, live: &'a Live, run: &Path) -> io::Result<Cow<'a, str>> {
    let Some(runtime) = live.runtimes.get(name) else {
        // The shim knows where its own is.
        return Ok(if name == KNOWN[0] { "" } else { name }.into());
    };
    if !runtime.kind.is_empty() {
        return Ok(runtime.kind.as_str().into());
    }
    if runtime.args.is_empty() {
        return Ok(runtime.path.as_str().into());
    }
    let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    let words: Vec<String> = std::iter::once(&runtime.path).chain(&runtime.args).map(quoted).collect();
    let text = format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "));
    let folder = run.join("runtimes");
    let script = folder.join(name);
    if std::fs::read_to_string(&script).is_ok_and(|written| written == text) {
        return Ok(script.display().to_string().into());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let random = crate::ids::random_bytes::<6>().map_err(io::Error::other)?;
    let part = folder.join(format!(".{}", proto::digest::hex(&random)));
    std::fs::write(&part, text)?;
    std::fs::set_permissions(&part, Permissions::from_mode(0o700))?;
    std::fs::rename(&part, &script)?;
    Ok(script.display().to_string().into())
}

/// Chooses by what the container asks for and what the engine's `--runtime` says: each is the type of a shim
/// (`io.containerd.…`), the name or path of a runtime, or empty. `attaches` is false for a supervisor that isn't Berth's: it
/// may know no shim but its own.
pub fn choose(asked: &str, configured: &str, attaches: bool) -> Choice {
    let is_shim = |name: &str| name.starts_with("io.containerd.");
    let standard = if attaches { BERTH } else { RUNC };
    let shim = [asked, configured].into_iter().find(|name| is_shim(name)).unwrap_or(standard);
    let runtime = match (asked, configured) {
        // The configured runtime is a program for the standard shim.
        ("", name) if !is_shim(name) => name,
        (asked, name) if asked == standard && !is_shim(name) => name,
        (asked, _) if !is_shim(asked) => asked,
        _ => "",
    };
    Choice { shim: shim.to_owned(), runtime: runtime.to_owned(), attaches: attaches && shim == BERTH }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let runtimes = serde_json::json!({
            "a": {"path": "/bin/a b", "runtimeArgs": ["--x", "it's"]}, "b": {"path": "/bin/b"},
            "c": {"runtimeType": "io.containerd.c.v1"},
        });
        let mut live = Live::default();
        live.runtimes = serde_json::from_value(runtimes).unwrap();
        let name = |name| by_name(name, &live, folder.path()).unwrap().into_owned();
        assert_eq!((name("b"), name("c"), name("runc")), ("/bin/b".into(), "io.containerd.c.v1".into(), "runc".into()));
        assert_eq!(name("berth-runtime"), "");
        let script = name("a");
        let written = std::fs::read_to_string(&script).unwrap();
        assert_eq!(written, "#!/bin/sh\nexec '/bin/a b' '--x' 'it'\\''s' \"$@\"\n");
        assert_eq!(name("a"), script);
        for (name, known) in [
            ("", true),
            ("a", true),
            ("runc", true),
            ("io.containerd.runc.v2", true),
            ("/bin/sh", true),
            ("foo", false),
            ("/no", false),
        ] {
            assert_eq!(is_known(name, &live), known, "{name}");
        }
    }

    #[test]
    fn shim_and_runtime() {
        for (asked, configured, attaches, shim, runtime) in [
            ("", "", true, BERTH, ""),
            ("", "", false, RUNC, ""),
            ("runc", "", true, BERTH, "runc"),
            ("", "/bin/crun", true, BERTH, "/bin/crun"),
            ("", "/bin/crun", false, RUNC, "/bin/crun"),
            (BERTH, "/bin/crun", true, BERTH, "/bin/crun"),
            (RUNC, "/bin/crun", true, RUNC, ""),
            ("", RUNC, true, RUNC, ""),
            ("youki", RUNC, true, RUNC, "youki"),
            (BERTH, "", false, BERTH, ""),
        ] {
            let chosen = choose(asked, configured, attaches);
            assert_eq!((&*chosen.shim, &*chosen.runtime), (shim, runtime), "{asked} {configured} {attaches}");
        }
        assert!(choose("", "", true).attaches);
        assert!(!choose(BERTH, "", false).attaches && !choose(RUNC, "", true).attaches);
    }
}
