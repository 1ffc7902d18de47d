//! The image's defaults and the user's wishes become one configuration. Pure.

use crate::{api::Config, http::ApiError};

/// Environment every process gets unless it is set.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fills what the user left open from the image.
pub fn merge(user: &mut Config, image: &Config) {
    if user.entrypoint.as_deref().unwrap_or_default().is_empty() {
        // An entrypoint of the user's makes the image's command meaningless; without one it stays.
        if user.cmd.as_deref().unwrap_or_default().is_empty() {
            user.cmd = image.cmd.clone();
            user.args_escaped = image.args_escaped;
        }
        if user.entrypoint.is_none() {
            user.entrypoint = image.entrypoint.clone();
        }
    }
    for word in &image.env {
        let key = env_key(word);
        if !user.env.iter().any(|set| env_key(set) == key) {
            user.env.push(word.clone());
        }
    }
    user.exposed_ports.0.extend(image.exposed_ports.0.iter().cloned());
    user.volumes.0.extend(image.volumes.0.iter().cloned());
    for (key, value) in &image.labels {
        user.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    for (mine, theirs) in [
        (&mut user.user, &image.user),
        (&mut user.working_dir, &image.working_dir),
        (&mut user.stop_signal, &image.stop_signal),
    ] {
        if mine.is_empty() {
            mine.clone_from(theirs);
        }
    }
    user.shell = user.shell.take().or_else(|| image.shell.clone());
    user.stop_timeout = user.stop_timeout.or(image.stop_timeout);
    super::health::merge(&mut user.healthcheck, image.healthcheck.as_ref());
}

/// The command line: entrypoint, then command. `[""]` as entrypoint means none.
pub fn command_line(config: &Config) -> Result<(String, Vec<String>), ApiError> {
    let entrypoint = match config.entrypoint.as_deref() {
        Some([only]) if only.is_empty() => &[],
        Some(words) => words,
        None => &[],
    };
    let mut words = entrypoint.iter().chain(config.cmd.iter().flatten()).cloned();
    match words.next() {
        Some(path) => Ok((path, words.collect())),
        None => Err(ApiError::invalid("no command specified")),
    }
}

/// Environment of the first process: defaults first, then what was configured; an entry without `=` removes.
/// `further` is what linked containers say.
pub fn environment(config: &Config, hostname: &str, further: &[String]) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    env.extend_from_slice(further);
    overlay(&mut env, &config.env);
    env
}

/// Sets, replaces and removes variables in an environment.
pub fn overlay(env: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let key = env_key(change);
        let at = env.iter().position(|word| env_key(word) == key);
        match (change.contains('='), at) {
            (true, Some(at)) => env[at].clone_from(change),
            (true, None) => env.push(change.clone()),
            (false, Some(at)) => drop(env.remove(at)),
            (false, None) => {}
        }
    }
}

fn env_key(word: &str) -> &str {
    word.split_once('=').map_or(word, |(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Option<Vec<String>> {
        Some(list.iter().map(|&w| w.to_owned()).collect())
    }

    #[test]
    fn entrypoint_and_command() {
        let image = Config { entrypoint: words(&["/entry"]), cmd: words(&["a", "b"]), ..Config::default() };
        type Words = Option<Vec<String>>;
        let cases: [(Words, Words, &[&str]); 6] = [
            (None, None, &["/entry", "a", "b"]),
            (None, words(&["c"]), &["/entry", "c"]),
            (words(&["/mine"]), None, &["/mine"]),
            (words(&["/mine"]), words(&["c"]), &["/mine", "c"]),
            (words(&[""]), words(&["c"]), &["c"]),
            (words(&[]), words(&["c"]), &["c"]),
        ];
        for (entrypoint, cmd, expected) in cases {
            let mut user = Config { entrypoint, cmd, ..Config::default() };
            merge(&mut user, &image);
            let (path, args) = command_line(&user).unwrap();
            let line: Vec<_> = std::iter::once(path).chain(args).collect();
            assert_eq!(line, expected);
        }
        let mut cleared = Config { entrypoint: words(&[""]), ..Config::default() };
        merge(&mut cleared, &image);
        assert_eq!(command_line(&cleared).unwrap_err().message, "no command specified");
    }

    #[test]
    fn everything_else() {
        let image = Config {
            env: vec!["A=1".into(), "B=2".into()],
            user: "www".into(),
            working_dir: "/srv".into(),
            labels: [("k".to_owned(), "image".to_owned())].into(),
            ..Config::default()
        };
        let mut user = Config { env: vec!["B=3".into(), "C".into()], user: "0".into(), ..Config::default() };
        user.labels.insert("k".into(), "user".into());
        merge(&mut user, &image);
        assert_eq!(user.env, ["B=3", "C", "A=1"]);
        assert_eq!((user.user.as_str(), user.working_dir.as_str()), ("0", "/srv"));
        assert_eq!(user.labels["k"], "user");
    }

    #[test]
    fn environment_order_and_removal() {
        let config = Config {
            tty: true,
            env: vec!["HOSTNAME".into(), "TERM=vt100".into(), "X=a=b".into(), "NONE".into()],
            ..Config::default()
        };
        assert_eq!(environment(&config, "h", &[]), [DEFAULT_PATH, "TERM=vt100", "X=a=b"]);
    }
}
