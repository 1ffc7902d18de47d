//! The command line as containerd writes it: Go's flag syntax (one dash or two, `-key value` or `-key=value`).

use std::time::Duration;

/// What the program was called with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// Whose container it is.
    pub(crate) namespace: String,
    /// Socket of the supervisor, where events go.
    pub(crate) address: String,
    /// Program that publishes events, for shims that can't; not needed here, accepted.
    pub(crate) publish_binary: String,
    /// The container.
    pub(crate) id: String,
    /// Bundle folder (`delete`); the working directory if empty.
    pub(crate) bundle: String,
    /// More words on stderr.
    pub(crate) debug: bool,
    /// Socket to serve on, in place of the one that follows from address, namespace and id.
    pub(crate) socket: String,
    /// Print the version.
    pub(crate) version: bool,
    /// Print what this shim can do.
    pub(crate) info: bool,
    /// What is to be done.
    pub(crate) action: Option<Action>,
}

/// The actions of the shim contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Leave a shim running and say where it listens.
    Start,
    /// Clean up after a shim that is gone.
    Delete,
}

/// How long an OCI runtime may take for one operation before it counts as hung. Pulling in a slow file system or a loaded
/// machine can cost seconds; a minute helps nobody any more.
const RUNTIME_LIMIT: Duration = Duration::from_secs(60);

/// The limit: `BERTH_SHIM_RUNTIME_TIMEOUT` in seconds, as containerd and Berth's supervisor pass their environment on.
pub(crate) fn runtime_limit() -> Duration {
    let seconds = std::env::var("BERTH_SHIM_RUNTIME_TIMEOUT").ok().and_then(|text| text.parse().ok());
    seconds.filter(|seconds| *seconds > 0).map_or(RUNTIME_LIMIT, Duration::from_secs)
}

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// No such flag.
    #[error("flag {0:?} is not known")]
    Unknown(String),
    /// A flag at the end that should have a value.
    #[error("flag {0:?} needs a value")]
    NoValue(String),
    /// A switch with something else than a truth value.
    #[error("flag {flag:?}: {value:?} is neither true nor false")]
    NotBool {
        /// The flag.
        flag: String,
        /// What came with it.
        value: String,
    },
    /// Neither start nor delete.
    #[error("action {0:?} is not known: start and delete are")]
    Action(String),
    /// Something after the action.
    #[error("argument {0:?} is one too many")]
    TooMany(String),
}

/// Reads the arguments that follow the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Args, ArgsError> {
    let mut args = Args::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let flag = match argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) {
            Some("") if argument == "--" => {
                if let Some(word) = rest.next() {
                    set_action(&mut args, &word)?;
                }
                continue;
            }
            Some(flag) if !flag.is_empty() && args.action.is_none() => flag,
            _ => {
                set_action(&mut args, &argument)?;
                continue;
            }
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let switch = match name {
            "debug" => Some(&mut args.debug),
            "v" | "version" => Some(&mut args.version),
            "info" => Some(&mut args.info),
            _ => None,
        };
        if let Some(switch) = switch {
            *switch = match value.as_deref() {
                None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
                Some(other) => return Err(ArgsError::NotBool { flag: name.into(), value: other.into() }),
            };
            continue;
        }
        let place = match name {
            "namespace" => &mut args.namespace,
            "address" => &mut args.address,
            "publish-binary" => &mut args.publish_binary,
            "id" => &mut args.id,
            "bundle" => &mut args.bundle,
            "socket" => &mut args.socket,
            _ => return Err(ArgsError::Unknown(argument)),
        };
        *place = match value {
            Some(value) => value,
            None => rest.next().ok_or_else(|| ArgsError::NoValue(argument.clone()))?,
        };
    }
    Ok(args)
}

fn set_action(args: &mut Args, word: &str) -> Result<(), ArgsError> {
    if args.action.is_some() {
        return Err(ArgsError::TooMany(word.to_owned()));
    }
    args.action = Some(match word {
        "start" => Action::Start,
        "delete" => Action::Delete,
        other => return Err(ArgsError::Action(other.to_owned())),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(line: &str) -> Result<Args, ArgsError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn go_style_lines() {
        let start = Args {
            namespace: "k8s.io".into(),
            address: "/run/s.sock".into(),
            publish_binary: "/bin/x".into(),
            id: "web".into(),
            action: Some(Action::Start),
            ..Args::default()
        };
        for line in [
            "-namespace k8s.io -address /run/s.sock -publish-binary /bin/x -id web start",
            "--namespace=k8s.io --address=/run/s.sock -publish-binary=/bin/x --id web -- start",
            "-debug=false -namespace=k8s.io -address /run/s.sock -publish-binary /bin/x -id=web start",
        ] {
            assert_eq!(read(line).as_ref(), Ok(&start), "{line}");
        }
        let delete = read("-id a -bundle /b -debug delete").expect("valid");
        assert_eq!((delete.action, delete.debug, delete.bundle.as_str()), (Some(Action::Delete), true, "/b"));
        assert!(read("-v").expect("valid").version && read("--info").expect("valid").info);
        assert_eq!(read("").expect("valid").action, None);
        // A value may look like a flag.
        assert_eq!(read("-id -x start").expect("valid").id, "-x");
    }

    #[test]
    fn refusals_name_the_word() {
        for (line, error) in [
            ("-nope start", ArgsError::Unknown("-nope".into())),
            ("-id", ArgsError::NoValue("-id".into())),
            ("-debug=maybe", ArgsError::NotBool { flag: "debug".into(), value: "maybe".into() }),
            ("stop", ArgsError::Action("stop".into())),
            ("-", ArgsError::Action("-".into())),
            ("start again", ArgsError::TooMany("again".into())),
            ("start -id x", ArgsError::TooMany("-id".into())),
        ] {
            assert_eq!(read(line), Err(error), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(words in proptest::collection::vec(".{0,12}", 0..8)) {
            let _ = parse(words);
        }

        #[test]
        fn values_survive(id in "[^\0]{1,20}") {
            let args = parse([format!("-id={id}"), "start".to_owned()]).unwrap();
            prop_assert_eq!(args.id, id);
        }
    }
}
