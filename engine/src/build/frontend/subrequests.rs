//! What can be asked of the frontend besides a build: `frontend.lint`, `frontend.outline`, `frontend.targets`. The answers are in
//! the result's metadata, as JSON and as text.

use crate::build::{error::BuildError, running::Outcome};
use base64::Engine as _;
use dockerfile::{
    Dockerfile,
    error::Span,
    instruction::{Kind, MountKind, Stage},
    lint::Warning,
};
use proto::pb;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _};

const VERSION: &str = "1.0.0";

fn result(json: &Value, text: String) -> Outcome {
    let pairs = [
        ("result.json", serde_json::to_vec_pretty(json).unwrap_or_default()),
        ("result.txt", text.into_bytes()),
        ("version", VERSION.as_bytes().to_vec()),
    ];
    Outcome { metadata: pairs.map(|(key, value)| (key.to_owned(), value)).into(), ..Outcome::default() }
}

/// `frontend.subrequests.describe`
pub fn describe() -> Outcome {
    let metadata = json!([{"name": "result.json"}, {"name": "result.txt"}]);
    let requests = [
        ("frontend.lint", "Lint source code."),
        ("frontend.outline", "List all parameters current build target supports."),
        ("frontend.targets", "List all targets current build supports."),
        ("frontend.subrequests.describe", "List available subrequest types."),
    ];
    let mut text = String::from("NAME                          VERSION DESCRIPTION\n");
    let rows: Vec<Value> = requests
        .iter()
        .map(|(name, about)| {
            let _ = writeln!(text, "{name:<30}{VERSION:<8}{about}");
            json!({"name": name, "version": VERSION, "type": "rpc", "description": about, "metadata": metadata})
        })
        .collect();
    result(&json!(rows), text)
}

/// `frontend.lint`
pub fn lint(warnings: &[Warning], error: Option<dockerfile::Error>, info: &pb::SourceInfo) -> Outcome {
    let mut text = String::new();
    let rows: Vec<Value> = warnings
        .iter()
        .map(|warning| {
            let _ = write!(text, "\nWARNING: {}", warning.rule);
            if !warning.url.is_empty() {
                let _ = write!(text, " - {}", warning.url);
            }
            let _ = writeln!(text, "\n{}\n{}", warning.detail, excerpt(info, warning.span));
            let mut row = json!({
                "ruleName": warning.rule, "description": warning.description, "detail": warning.detail,
                "location": location(warning.span),
            });
            if !warning.url.is_empty() {
                row["url"] = json!(warning.url);
            }
            row
        })
        .collect();
    let mut body = json!({"warnings": rows, "sources": [source(info)]});
    if let Some(error) = &error {
        body["buildError"] = json!({"message": error.to_string()});
        if let Some(span) = error.span {
            body["buildError"]["location"] = location(span);
        }
        let _ = writeln!(text, "\nERROR: {error}");
    }
    if warnings.is_empty() && error.is_none() {
        text = "Check complete, no warnings found.\n".to_owned();
    } else if error.is_none() {
        let (count, plural) = (warnings.len(), if warnings.len() == 1 { "" } else { "s" });
        text = format!(
            "Check complete, {count} warning{plural} ha{} been found!\n{text}",
            if count == 1 { "s" } else { "ve" }
        );
    }
    let failed = error.is_some() || !warnings.is_empty();
    let mut outcome = result(&body, text);
    outcome.metadata.insert("result.statuscode".to_owned(), i32::from(failed).to_string().into_bytes());
    outcome
}

/// `frontend.targets`
pub fn targets(file: &Dockerfile, info: &pb::SourceInfo) -> Outcome {
    let mut text = String::from("TARGET            DESCRIPTION\n");
    let last = file.stages.len().saturating_sub(1);
    let rows: Vec<Value> = file
        .stages
        .iter()
        .enumerate()
        .map(|(index, stage)| {
            let mut row = json!({"base": stage.base, "location": location(stage.span)});
            let about = about(stage);
            for (key, value) in
                [("name", stage.name.clone()), ("description", about.clone()), ("platform", stage.platform.clone())]
            {
                if let Some(value) = value {
                    row[key] = json!(value);
                }
            }
            let mut name = stage.name.clone().unwrap_or_else(|| index.to_string());
            if index == last {
                row["default"] = json!(true);
                name += " (default)";
            }
            let _ = writeln!(text, "{name:<18}{}", about.unwrap_or_default());
            row
        })
        .collect();
    result(&json!({"targets": rows, "sources": [info_bytes(info)]}), text)
}

/// `frontend.outline`
pub fn outline(file: &Dockerfile, target: Option<&str>, info: &pb::SourceInfo) -> Result<Outcome, BuildError> {
    let found = match target {
        Some(target) => file
            .stages
            .iter()
            .position(|stage| stage.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(target)))
            .or_else(|| target.parse().ok().filter(|index| *index < file.stages.len())),
        None => file.stages.len().checked_sub(1),
    };
    let Some(index) = found else {
        return Err(BuildError::not_found(format!("target stage {:?} could not be found", target.unwrap_or_default())));
    };
    let used = reach(file, index);
    let (mut args, mut secrets, mut ssh, mut caches) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let globals = file.globals.iter();
    let all = used.iter().flat_map(|index| &file.stages[*index].instructions);
    for instruction in globals.chain(all) {
        match &instruction.kind {
            Kind::Arg(list) => {
                for arg in list {
                    let mut row = json!({"name": arg.name, "location": location(instruction.span)});
                    if let Some(default) = &arg.default {
                        row["value"] = json!(default);
                    }
                    if let Some(about) = described(&arg.comment, &arg.name) {
                        row["description"] = json!(about);
                    }
                    args.entry(arg.name.clone()).or_insert(row);
                }
            }
            Kind::Run(run) => {
                for mount in &run.mounts {
                    let id = mount.id.clone().or_else(|| mount.target.clone()).unwrap_or_else(|| "default".to_owned());
                    let mut row = json!({"name": id, "location": location(instruction.span)});
                    if mount.required {
                        row["required"] = json!(true);
                    }
                    let rows = match mount.kind {
                        MountKind::Secret => &mut secrets,
                        MountKind::Ssh => &mut ssh,
                        MountKind::Cache => {
                            row = json!({"ID": id, "location": location(instruction.span)});
                            &mut caches
                        }
                        MountKind::Bind | MountKind::Tmpfs => continue,
                    };
                    rows.entry(id).or_insert(row);
                }
            }
            _ => {}
        }
    }
    let stage = &file.stages[index];
    let mut body = json!({"sources": [info_bytes(info)]});
    let mut text = String::new();
    for (key, value) in [("name", stage.name.clone()), ("description", about(stage))] {
        if let Some(value) = value {
            let title = if key == "name" { "TARGET" } else { "DESCRIPTION" };
            let _ = writeln!(text, "{title}:\t{value}");
            body[key] = json!(value);
        }
    }
    for (key, title, rows) in
        [("args", "BUILD ARG", args), ("secrets", "SECRET", secrets), ("ssh", "SSH", ssh), ("cache", "CACHE", caches)]
    {
        if rows.is_empty() {
            continue;
        }
        if key != "cache" {
            let _ = writeln!(text, "\n{title:<20}VALUE     DESCRIPTION");
            for (name, row) in &rows {
                let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
                let required = if row["required"] == json!(true) { "required" } else { "" };
                let _ = writeln!(text, "{name:<20}{:<10}{}", word("value") + required, word("description"));
            }
        }
        body[key] = rows.into_values().collect();
    }
    Ok(result(&body, text))
}

/// The stages that a stage needs, itself included, first ones first.
fn reach(file: &Dockerfile, target: usize) -> Vec<usize> {
    let mut needed = vec![false; file.stages.len()];
    // Only what comes before a stage can be meant by it.
    for index in (0..=target).rev() {
        if index == target {
            needed[index] = true;
        }
        if !needed[index] {
            continue;
        }
        let stage = &file.stages[index];
        let mut names = vec![stage.base.as_str()];
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Copy(copy) => names.extend(copy.from.as_deref()),
                Kind::Run(run) => names.extend(run.mounts.iter().filter_map(|mount| mount.from.as_deref())),
                _ => {}
            }
        }
        for name in names {
            let before = &file.stages[..index];
            let by_name = before.iter().rposition(|s| s.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(name)));
            if let Some(found) = by_name.or_else(|| name.parse().ok().filter(|n| *n < index)) {
                needed[found] = true;
            }
        }
    }
    (0..needed.len()).filter(|index| needed[*index]).collect()
}

/// A comment right above something that begins with its name describes it.
fn described(comment: &[String], name: &str) -> Option<String> {
    let first = comment.first()?.trim();
    let rest = first.strip_prefix(name)?.strip_prefix(' ')?;
    let more = comment[1..].iter().map(|line| line.trim());
    Some(std::iter::once(rest.trim()).chain(more).collect::<Vec<_>>().join(" "))
}

fn about(stage: &Stage) -> Option<String> {
    described(&stage.comment, stage.written_name.as_deref().or(stage.name.as_deref())?)
}

fn location(span: Span) -> Value {
    json!({"ranges": [{"start": {"line": span.first}, "end": {"line": span.last}}]})
}

fn source(info: &pb::SourceInfo) -> Value {
    json!({
        "filename": info.filename, "language": info.language,
        "data": base64::engine::general_purpose::STANDARD.encode(&info.data),
    })
}

fn info_bytes(info: &pb::SourceInfo) -> Value {
    json!(base64::engine::general_purpose::STANDARD.encode(&info.data))
}

fn excerpt(info: &pb::SourceInfo, span: Span) -> String {
    let text = String::from_utf8_lossy(&info.data);
    let mut shown = format!("{}:{}\n--------------------\n", info.filename, span.first);
    for (number, line) in (1..).zip(text.lines()) {
        if (span.first.saturating_sub(2)..=span.last + 2).contains(&number) {
            let mark = if (span.first..=span.last).contains(&number) { ">>>" } else { "   " };
            let _ = writeln!(shown, "{number:4} | {mark} {line}");
        }
    }
    shown + "--------------------"
}

#[cfg(test)]
mod tests {
    use super::*;
    use dockerfile::instruction::{Arg, Copy, Instruction};

    fn instruction(kind: Kind) -> Instruction {
        Instruction {
            kind,
            keyword: String::new(),
            text: String::new(),
            span: Span { first: 1, last: 1 },
            comment: vec![],
        }
    }

    fn stage(name: &str, base: &str, instructions: Vec<Kind>) -> Stage {
        Stage {
            name: Some(name.to_owned()),
            base: base.to_owned(),
            instructions: instructions.into_iter().map(instruction).collect(),
            comment: vec![format!("{name} is a stage")],
            ..Stage::default()
        }
    }

    fn arg(name: &str) -> Kind {
        let comment = vec![format!("{name} says something")];
        Kind::Arg(vec![Arg { name: name.into(), default: Some("1".into()), comment }])
    }

    fn file() -> Dockerfile {
        let copy = Copy { from: Some("lib".into()), ..Copy::default() };
        let stages = vec![
            stage("lib", "scratch", vec![arg("A")]),
            stage("other", "scratch", vec![arg("B")]),
            stage("out", "lib", vec![arg("C"), Kind::Copy(copy)]),
        ];
        Dockerfile { stages, ..Dockerfile::default() }
    }

    fn body(outcome: &Outcome) -> Value {
        serde_json::from_slice(&outcome.metadata["result.json"]).unwrap()
    }

    #[test]
    fn only_what_a_target_needs_is_outlined() {
        let info = pb::SourceInfo::default();
        let outline = outline(&file(), None, &info).unwrap();
        let body = body(&outline);
        let names: Vec<&str> = body["args"].as_array().unwrap().iter().filter_map(|a| a["name"].as_str()).collect();
        assert_eq!(names, ["A", "C"]);
        assert_eq!((&body["name"], &body["description"]), (&json!("out"), &json!("is a stage")));
        assert_eq!(body["args"][0]["description"], "says something");
        let other = super::outline(&file(), Some("nope"), &info).unwrap_err();
        assert!(other.message.contains("could not be found"));
        assert!(super::outline(&file(), Some("1"), &info).is_ok());
        assert!(super::outline(&Dockerfile::default(), None, &info).is_err());
    }

    #[test]
    fn all_targets() {
        let body = body(&targets(&file(), &pb::SourceInfo::default()));
        assert_eq!(body["targets"].as_array().unwrap().len(), 3);
        assert_eq!(body["targets"][2]["default"], true);
    }

    #[test]
    fn warnings_and_errors() {
        let info =
            pb::SourceInfo { data: b"FROM a as b\n".into(), filename: "Dockerfile".into(), ..Default::default() };
        let clean = lint(&[], None, &info);
        assert_eq!(clean.metadata["result.statuscode"], b"0");
        let warning = Warning {
            rule: "FromAsCasing",
            description: "d",
            url: "https://x",
            detail: "x".into(),
            span: Span { first: 1, last: 1 },
        };
        let found = lint(&[warning], None, &info);
        assert_eq!(found.metadata["result.statuscode"], b"1");
        assert_eq!(body(&found)["warnings"][0]["ruleName"], "FromAsCasing");
        assert!(String::from_utf8_lossy(&found.metadata["result.txt"]).contains(">>> FROM a as b"));
        let broken = lint(&[], Some(dockerfile::Error::new("bad", Span { first: 1, last: 1 })), &info);
        assert_eq!(body(&broken)["buildError"]["location"]["ranges"][0]["start"]["line"], 1);
    }
}
