//! `config dump`, `check` and `default`.

use crate::daemon::{Daemon, output};

#[test]
fn the_configuration_is_dumped_checked_and_shown() {
    let daemon = Daemon::prepare();
    let (code, default, _) = output(daemon.command(&["config", "default"]).env("HOME", "/"));
    assert_eq!(code, Some(0));
    let at = daemon.path("supervisor.toml");
    std::fs::write(&at, &default).unwrap();
    let file = at.to_str().unwrap();
    assert_eq!(output(&mut daemon.command(&["config", "check", "--config", file])).0, Some(0), "{default}");

    std::fs::write(&at, "log-level = 'warn'\ndrain = '7s'\n[runtimes]\n'a.b' = '/x'\n").unwrap();
    let (code, dump, _) = output(&mut daemon.command(&["config", "dump", "--config", file, "--log-format", "json"]));
    assert_eq!(code, Some(0));
    let dump: toml::Table = dump.parse().unwrap();
    assert_eq!(dump["log-level"].as_str(), Some("warn"));
    assert_eq!(dump["log-format"].as_str(), Some("json"));
    assert_eq!(dump["drain"].as_str(), Some("7s"));
    assert_eq!(dump["run-root"].as_str(), daemon.path("run").to_str());
    assert_eq!(dump["listen"].as_str(), Some(&*format!("unix://{}", daemon.socket().display())));
    // Every key is there, those that nobody set too, and what is dumped can be read again.
    for key in ["data-root", "metrics", "log-file", "shim", "runtimes"] {
        assert!(dump.contains_key(key), "{key}");
    }
    std::fs::write(&at, dump.to_string()).unwrap();
    assert_eq!(output(&mut daemon.command(&["config", "check", "--config", file])).0, Some(0));

    std::fs::write(&at, "log-levl = 'warn'\n\nmetrics = 7\n").unwrap();
    let (code, _, words) = output(&mut daemon.command(&["config", "check", "--config", file]));
    assert_eq!(code, Some(1));
    let wanted = format!(
        "{file}:1: unknown key \"log-levl\": did you mean \"log-level\"?\n{file}:3: invalid type: integer `7`, expected a string\n"
    );
    assert_eq!(words, wanted);
    // Serving refuses it in one line, and dump too.
    for command in [&["--config", file][..], &["config", "dump", "--config", file]] {
        let (code, _, words) = output(&mut daemon.command(command));
        assert_eq!(code, Some(1));
        assert!(words.starts_with("berth-supervisor: configuration ") && words.lines().count() == 1, "{words}");
    }
}
