//! The Dockerfile instructions that `docker import --change` (and commit) apply to an image's config.

use super::words::{expand, split};
use crate::api::{Config, config::Healthcheck};
use std::collections::BTreeMap;

/// Why a change can't be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Not one of those that change a config.
    #[error("{0} is not a valid change command")]
    Command(String),
    /// Nothing after the command.
    #[error("{0} requires at least one argument")]
    Missing(&'static str),
    /// Too much after the command.
    #[error("{0} requires exactly one argument")]
    Single(&'static str),
    /// `ENV a`
    #[error("Syntax error - can't find = in {0:?}. Must be of the form: name=value")]
    Pair(String),
    /// `EXPOSE x`
    #[error("Invalid containerPort: {0}")]
    Port(String),
    /// `EXPOSE 80/x`
    #[error("Invalid proto: {0}")]
    Protocol(String),
    /// `HEALTHCHECK`
    #[error("HEALTHCHECK: {0}")]
    Healthcheck(String),
    /// `ONBUILD ONBUILD`
    #[error("{0} isn't allowed as an ONBUILD trigger")]
    OnBuild(String),
    /// A quote or brace without its end, or a value that grows without bound.
    #[error("{command}: {cause} in {text:?}")]
    Word {
        /// The command.
        command: &'static str,
        /// What is wrong.
        cause: &'static str,
        /// Where.
        text: String,
    },
}

/// Applies instructions in their order; each string may hold several lines.
pub fn apply<'a>(config: &mut Config, changes: impl IntoIterator<Item = &'a str>) -> Result<(), ChangeError> {
    // Of a new entrypoint, the command of before is no argument.
    let mut own_command = false;
    for change in changes {
        for line in logical_lines(change) {
            let (word, rest) = line.split_once(|c: char| c.is_whitespace()).unwrap_or((&line, ""));
            let word = word.to_ascii_uppercase();
            apply_one(config, &word, rest.trim())?;
            own_command |= word == "CMD";
            if word == "ENTRYPOINT" && !own_command {
                config.cmd = None;
            }
        }
    }
    Ok(())
}

// A backslash at the end joins lines; empty lines and comments say nothing.
fn logical_lines(text: &str) -> Vec<String> {
    let (mut lines, mut current) = (Vec::new(), String::new());
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with('#') || (line.is_empty() && current.is_empty()) {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => {
                current.push_str(part);
                current.push(' ');
            }
            None => {
                current.push_str(line);
                lines.push(std::mem::take(&mut current));
            }
        }
    }
    lines.push(current);
    lines.into_iter().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn apply_one(config: &mut Config, command: &str, rest: &str) -> Result<(), ChangeError> {
    let env: BTreeMap<String, String> = (config.env.iter())
        .filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    match command {
        "CMD" => config.cmd = Some(arguments(rest, config.shell.as_deref())),
        "ENTRYPOINT" => config.entrypoint = Some(arguments(rest, config.shell.as_deref())),
        "ENV" => {
            for (key, value) in pairs("ENV", rest, &env)? {
                let list = &mut config.env;
                let entry = format!("{key}={value}");
                match list.iter_mut().find(|old| old.split('=').next() == Some(&key)) {
                    Some(old) => *old = entry,
                    None => list.push(entry),
                }
            }
        }
        "LABEL" => config.labels.extend(pairs("LABEL", rest, &env)?),
        "EXPOSE" => {
            for text in words("EXPOSE", rest, &env)? {
                for port in ports(&text)? {
                    config.exposed_ports.0.insert(port);
                }
            }
        }
        "VOLUME" => {
            let paths = match json_strings(rest) {
                Some(paths) => paths,
                None => words("VOLUME", rest, &env)?,
            };
            if paths.iter().all(|path| path.trim().is_empty()) {
                return Err(ChangeError::Missing("VOLUME"));
            }
            config.volumes.0.extend(paths);
        }
        "USER" => config.user = single("USER", rest, &env)?,
        "WORKDIR" => {
            let path = expand("WORKDIR", required("WORKDIR", rest)?, &env)?;
            config.working_dir = join_path(&config.working_dir, &path);
        }
        "STOPSIGNAL" => config.stop_signal = single("STOPSIGNAL", rest, &env)?,
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest)?),
        "ONBUILD" => {
            let trigger = required("ONBUILD", rest)?.split_whitespace().next().unwrap_or("").to_ascii_uppercase();
            if matches!(trigger.as_str(), "ONBUILD" | "MAINTAINER" | "FROM") {
                return Err(ChangeError::OnBuild(trigger));
            }
            config.on_build.get_or_insert_with(Vec::new).push(rest.to_owned());
        }
        other => return Err(ChangeError::Command(other.to_ascii_lowercase().chars().take(40).collect())),
    }
    Ok(())
}

fn required<'a>(command: &'static str, rest: &'a str) -> Result<&'a str, ChangeError> {
    if rest.is_empty() { Err(ChangeError::Missing(command)) } else { Ok(rest) }
}

fn single(command: &'static str, rest: &str, env: &BTreeMap<String, String>) -> Result<String, ChangeError> {
    let mut words = words(command, rest, env)?;
    match words.len() {
        1 => Ok(words.remove(0)),
        _ => Err(ChangeError::Single(command)),
    }
}

/// The JSON form as it is, anything else for the shell.
fn arguments(rest: &str, shell: Option<&[String]>) -> Vec<String> {
    match json_strings(rest) {
        Some(list) => list,
        None => {
            let default = ["/bin/sh".to_owned(), "-c".to_owned()];
            let mut list = shell.unwrap_or(&default).to_vec();
            list.push(rest.to_owned());
            list
        }
    }
}

fn json_strings(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

// `a=b c="d e"`, or the old form `a b c` that sets one.
fn pairs(
    command: &'static str,
    rest: &str,
    env: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, ChangeError> {
    let raw = split(command, required(command, rest)?)?;
    if !raw.first().is_some_and(|word| word.contains('=')) {
        let Some((key, value)) = rest.split_once(|c: char| c.is_whitespace()) else {
            return Err(ChangeError::Pair(rest.to_owned()));
        };
        return Ok(vec![(expand(command, key, env)?, expand(command, value.trim(), env)?)]);
    }
    raw.iter()
        .map(|word| {
            let (key, value) = word.split_once('=').ok_or_else(|| ChangeError::Pair(word.clone()))?;
            if key.is_empty() {
                return Err(ChangeError::Pair(word.clone()));
            }
            Ok((expand(command, key, env)?, expand(command, value, env)?))
        })
        .collect()
}

fn words(command: &'static str, rest: &str, env: &BTreeMap<String, String>) -> Result<Vec<String>, ChangeError> {
    split(command, required(command, rest)?)?.iter().map(|word| expand(command, word, env)).collect()
}

/// `80`, `80/udp`, `8000-8010/tcp`, each as docker keeps it.
fn ports(text: &str) -> Result<Vec<String>, ChangeError> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(ChangeError::Protocol(protocol.chars().take(40).collect()));
    }
    let bad = || ChangeError::Port(range.chars().take(40).collect());
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?),
        None => {
            let port = number(range).ok_or_else(bad)?;
            (port, port)
        }
    };
    if first > last {
        return Err(bad());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

// Relative paths go on from the folder before, as for a shell.
fn join_path(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn healthcheck(rest: &str) -> Result<Healthcheck, ChangeError> {
    let failed = |cause: String| ChangeError::Healthcheck(cause);
    let mut health = Healthcheck::default();
    let mut rest = required("HEALTHCHECK", rest)?;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, tail) = flag.split_once(|c: char| c.is_whitespace()).unwrap_or((flag, ""));
        let (name, value) = flag.split_once('=').ok_or_else(|| failed(format!("flag --{flag} has no value")))?;
        let duration = || {
            parse_duration(value)
                .filter(|nanos| *nanos == 0 || *nanos >= 1_000_000)
                .ok_or_else(|| failed(format!("--{name}={value} is not a duration of at least 1ms")))
        };
        match name {
            "interval" => health.interval = duration()?,
            "timeout" => health.timeout = duration()?,
            "start-period" => health.start_period = duration()?,
            "start-interval" => health.start_interval = duration()?,
            "retries" => {
                let count = value.parse::<i64>().ok().filter(|n| *n >= 0);
                health.retries = count.ok_or_else(|| failed(format!("--retries={value} is not a number")))?;
            }
            other => return Err(failed(format!("unknown flag --{other}"))),
        }
        rest = tail.trim_start();
    }
    let (kind, command) = rest.split_once(|c: char| c.is_whitespace()).unwrap_or((rest, ""));
    let command = command.trim();
    health.test = match kind.to_ascii_uppercase().as_str() {
        "NONE" if command.is_empty() => vec!["NONE".to_owned()],
        "NONE" => return Err(failed("NONE takes no arguments".into())),
        "CMD" if command.is_empty() => return Err(failed("missing command after CMD".into())),
        "CMD" => match json_strings(command) {
            Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        other => return Err(failed(format!("unknown type {other:?} (try CMD)"))),
    };
    Ok(health)
}

/// Go's durations (`1h30m`, `1.5s`, `300ms`) in nanoseconds; a bare `0` is one too.
pub fn parse_duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (text, 0f64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let nanos = match &rest[end..unit_end] {
            "h" => 3.6e12,
            "m" => 6e10,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        total += number * nanos;
        rest = &rest[unit_end..];
    }
    (total.is_finite() && total < i64::MAX as f64).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn changed(changes: &[&str]) -> Result<serde_json::Value, String> {
        let mut config = Config::default();
        apply(&mut config, changes.iter().copied()).map_err(|e| e.to_string())?;
        let mut value = serde_json::to_value(config).unwrap();
        let map = value.as_object_mut().unwrap();
        map.retain(|_, v| !crate::api::serial::is_zero(v) || v.as_object().is_some_and(|v| !v.is_empty()));
        if let Some(health) = map.get_mut("Healthcheck").and_then(|h| h.as_object_mut()) {
            health.retain(|_, v| !crate::api::serial::is_zero(v));
        }
        Ok(value)
    }

    #[test]
    fn instructions() {
        let cases: &[(&[&str], serde_json::Value)] = &[
            (&[r#"CMD ["/bin/sh", "-l"]"#], json!({"Cmd": ["/bin/sh", "-l"]})),
            (&["cmd echo hi"], json!({"Cmd": ["/bin/sh", "-c", "echo hi"]})),
            (&["CMD [oops"], json!({"Cmd": ["/bin/sh", "-c", "[oops"]})),
            (
                &["ENTRYPOINT nginx -g 'daemon off;'"],
                json!({"Entrypoint": ["/bin/sh", "-c", "nginx -g 'daemon off;'"]}),
            ),
            (&["ENV A=b", "ENV C=\"$A d\" E='$A'", "ENV A=z"], json!({"Env": ["A=z", "C=b d", "E=$A"]})),
            (&["ENV PATH /bin:/usr bin"], json!({"Env": ["PATH=/bin:/usr bin"]})),
            (&["ENV A=${X:-y} B=${X:+z} C=a\\ b"], json!({"Env": ["A=y", "B=", "C=a b"]})),
            (&["LABEL a=b \"c d\"=\"e\\\"f\"\nLABEL g=h"], json!({"Labels": {"a": "b", "c d": "e\"f", "g": "h"}})),
            (
                &["EXPOSE 80 53/udp 8000-8001"],
                json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}}),
            ),
            (&["VOLUME /a /b", r#"VOLUME ["/c d"]"#], json!({"Volumes": {"/a": {}, "/b": {}, "/c d": {}}})),
            (&["USER 1000:1000", "STOPSIGNAL SIGQUIT"], json!({"User": "1000:1000", "StopSignal": "SIGQUIT"})),
            (&["WORKDIR /a/../b", "WORKDIR c/./d"], json!({"WorkingDir": "/b/c/d"})),
            (
                &["HEALTHCHECK --interval=5s --retries=3 CMD curl x"],
                json!({"Healthcheck": {"Test": ["CMD-SHELL", "curl x"], "Interval": 5_000_000_000i64, "Retries": 3}}),
            ),
            (&["HEALTHCHECK NONE"], json!({"Healthcheck": {"Test": ["NONE"]}})),
            (&["ONBUILD RUN x"], json!({"OnBuild": ["RUN x"]})),
            (&["# nothing\n\nCMD \\\n  a \\\n  b"], json!({"Cmd": ["/bin/sh", "-c", "a  b"]})),
        ];
        for (changes, expected) in cases {
            assert_eq!(changed(changes).as_ref(), Ok(expected), "{changes:?}");
        }
    }

    #[test]
    fn refusals_are_dockers() {
        let cases = [
            ("FOO x", "foo is not a valid change command"),
            ("RUN x", "run is not a valid change command"),
            ("EXPOSE xyz", "Invalid containerPort: xyz"),
            ("EXPOSE 80/x", "Invalid proto: x"),
            ("EXPOSE 70000", "Invalid containerPort: 70000"),
            ("EXPOSE 9-1", "Invalid containerPort: 9-1"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV a", "Syntax error - can't find = in \"a\". Must be of the form: name=value"),
            ("ENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
            ("ENV a=\"b", "ENV: unterminated quote in \"a=\\\"b\""),
            ("USER a b", "USER requires exactly one argument"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("HEALTHCHECK --interval=x CMD y", "HEALTHCHECK: --interval=x is not a duration of at least 1ms"),
            ("VOLUME []", "VOLUME requires at least one argument"),
        ];
        for (change, expected) in cases {
            assert_eq!(changed(&[change]), Err(expected.to_owned()), "{change}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("1h", Some(3_600_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("300ms", Some(300_000_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("h", None),
            ("1x", None),
            ("1..5s", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(
            command in "(CMD|ENV|LABEL|EXPOSE|VOLUME|USER|WORKDIR|HEALTHCHECK|ONBUILD|STOPSIGNAL|ENTRYPOINT)",
            rest in "[ a-c0-9=$\\{\\}:'\"\\\\/.\\[\\],+\\-\\n#é]{0,40}",
        ) {
            let mut config = Config { env: vec!["a=1".into()], ..Config::default() };
            let _ = apply(&mut config, [format!("{command} {rest}").as_str()]);
        }

        #[test]
        fn env_keeps_values_that_are_quoted(value in "[ -~&&[^'\\\\]]{0,30}") {
            let mut config = Config::default();
            apply(&mut config, [format!("ENV K='{value}'").as_str()]).unwrap();
            prop_assert_eq!(config.env, vec![format!("K={value}")]);
        }

        #[test]
        fn workdir_is_absolute_and_clean(paths in prop::collection::vec("[a./]{1,8}", 1..4)) {
            let mut config = Config::default();
            for path in &paths {
                apply(&mut config, [format!("WORKDIR {path}").as_str()]).unwrap();
            }
            prop_assert!(config.working_dir.starts_with('/'));
            prop_assert!(!config.working_dir.split('/').any(|p| p == ".." || p == "."));
        }
    }
}
