//! Hints of plugins after a command ("plugins": {"NAME": {"hooks": "run,build"}} in config.json), shown on terminals only and
//! only to those who ask for them: DOCKER_CLI_HOOKS, DOCKER_CLI_HINTS, or "features": {"hooks": "true"}.

use super::{ORIGINAL, Plugins, original};
use crate::config::{Config, own_variable};
use crate::output;
use crate::output::template::{Context, Template};
use crate::output::value::Value;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// What asks a plugin for a hint.
const HOOKS: &str = "docker-cli-plugin-hooks";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Answer {
    r#type: i64,
    template: String,
}

/// A command that has ended.
#[derive(Debug, Clone, Default)]
pub struct Ran {
    /// "container run", without flags and arguments.
    pub command: String,
    /// Names and values of its flags.
    pub flags: BTreeMap<String, String>,
    /// Its other words.
    pub words: Vec<String>,
    /// What went wrong, or "".
    pub error: String,
}

/// Whether hints are wanted.
fn wanted(config: &Config) -> bool {
    let truth = |text: &str| crate::args::values::boolean(text).unwrap_or(false);
    let variable = own_variable("DOCKER_CLI_HOOKS").or_else(|| own_variable("DOCKER_CLI_HINTS"));
    match variable {
        Some(text) => truth(&text),
        None => config.file.map("features").get("hooks").is_some_and(|text| truth(text)),
    }
}

/// Asks the plugins that want to be asked after this command, and prints what they say.
pub fn after(config: &Config, ran: &Ran) {
    if !crate::terminal::stdout_is_terminal() || !wanted(config) {
        return;
    }
    let hints = hints(config, ran);
    if !hints.is_empty() {
        let bold = |text: &str| if output::colours() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
        output::note(&format!("\n{}", bold("What's next:")));
        for line in hints.iter().flat_map(|hint| hint.lines()) {
            output::note(&format!("    {line}"));
        }
    }
}

fn hints(config: &Config, ran: &Ran) -> Vec<String> {
    let configured = config.file.value().get("plugins").map(Value::fields).unwrap_or_default();
    let plugins = Plugins::find(config);
    let mut hints = Vec::new();
    for (name, settings) in configured {
        let hook = ["hooks", "error-hooks"]
            .iter()
            .filter(|key| **key == "hooks" || !ran.error.is_empty())
            .find_map(|key| matching(settings.text(&[*key]), &ran.command));
        let (Some(hook), Some(plugin)) = (hook, plugins.get(name)) else { continue };
        if plugin.metadata.is_err() {
            continue;
        }
        let request = serde_json::json!({"RootCmd": hook, "Flags": ran.flags, "CommandError": ran.error});
        let answer = Command::new(&plugin.path)
            .args([HOOKS, &request.to_string()])
            .env(ORIGINAL, original())
            .stdin(Stdio::null())
            .output();
        // A hint that can't be had is none: the command itself is what counts.
        let Ok(answer) = answer else { continue };
        if let Ok(answer) = serde_json::from_slice::<Answer>(&answer.stdout)
            && answer.r#type == 0
            && let Some(hint) = filled_in(&answer.template, ran)
        {
            hints.push(hint);
        }
    }
    hints
}

/// The hook of a list that the command belongs to.
fn matching<'h>(hooks: &'h str, command: &str) -> Option<&'h str> {
    let belongs =
        |hook: &&str| command == *hook || command.strip_prefix(*hook).is_some_and(|rest| rest.starts_with(' '));
    hooks.split(',').map(str::trim).filter(|hook| !hook.is_empty()).find(belongs)
}

/// A hint with what the command was given: `{{.Name}}`, `{{flag . "x"}}`, `{{arg . 0}}`.
fn filled_in(template: &str, ran: &Ran) -> Option<String> {
    let template = template.replace("flag . ", "index .Flags ").replace("arg . ", "index .Args ");
    let flags = ran.flags.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let words = ran.words.iter().map(|word| Value::from(word.as_str())).collect();
    let fields = Value::object([
        ("Name", ran.command.as_str().into()),
        ("Flags", Value::Object(flags)),
        ("Args", Value::Array(words)),
    ]);
    let text = Template::parse(&template).ok()?.execute(&Context { fields, labels: Value::Null }).ok()?;
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_for_the_command() {
        assert_eq!(matching("build,container run", "container run"), Some("container run"));
        assert_eq!(matching("container", "container run"), Some("container"));
        assert_eq!(matching(" run , ", "run"), Some("run"));
        assert_eq!(matching("run", "runs"), None);
        assert_eq!(matching("", "run"), None);
        let ran = Ran {
            command: "run".into(),
            flags: [("name".to_owned(), "web".to_owned())].into(),
            words: vec!["img".into()],
            error: String::new(),
        };
        let hint = filled_in("{{.Name}} {{flag . \"name\"}} {{arg . 0}}", &ran);
        assert_eq!(hint.as_deref(), Some("run web img"));
        assert_eq!((filled_in("{{", &ran), filled_in(" ", &ran), filled_in("{{arg . 7}}", &ran)), (None, None, None));
    }
}
