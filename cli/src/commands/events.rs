//! `events`

use super::App;
use crate::args::system::EventsArgs;
use crate::client::Call;
use crate::exit::Outcome;
use crate::output::template::{Context, Template};
use crate::output::{self, json, time, value::Value};

/// Runs `events`.
pub async fn run(app: &App, args: &EventsArgs) -> Outcome {
    let since = args.since.as_deref().map(|text| time::point("since", text)).transpose()?;
    let until = args.until.as_deref().map(|text| time::point("until", text)).transpose()?;
    let template = match args.format.as_deref() {
        None | Some("" | "json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let call = Call::get("/events").maybe("since", since).maybe("until", until).filters(&args.filter);
    let mut reply = app.client().await?.send(call).await?;
    while let Some(event) = reply.object::<Value>().await? {
        let line = match (&template, args.format.as_deref()) {
            (Some(template), _) => template.execute(&Context { fields: go_fields(event), labels: Value::Null })?,
            (None, Some("json")) => json::line(&event),
            (None, _) => line(&event),
        };
        output::print_line(&line)?;
    }
    Ok(())
}

/// "time type action id (key=value, ...)"
fn line(event: &Value) -> String {
    let nanos = event.get("timeNano").and_then(Value::as_i64).unwrap_or(0);
    let seconds = event.get("time").and_then(Value::as_i64).unwrap_or(0);
    let when = if nanos != 0 { i128::from(nanos) } else { i128::from(seconds) * 1_000_000_000 };
    let mut text = format!(
        "{} {} {} {}",
        time::nanos(when),
        event.text(&["Type"]),
        event.text(&["Action"]),
        event.text(&["Actor", "ID"])
    );
    let mut attributes: Vec<String> = event
        .at(&["Actor", "Attributes"])
        .map(Value::fields)
        .unwrap_or_default()
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    attributes.sort();
    if !attributes.is_empty() {
        text.push_str(&format!(" ({})", attributes.join(", ")));
    }
    text
}

/// Templates use Go's names: time is Time and timeNano is TimeNano.
fn go_fields(event: Value) -> Value {
    match event {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| match name.as_str() {
                    "id" | "status" | "from" => (name, value),
                    _ => {
                        let mut letters = name.chars();
                        let first = letters.next().map(|c| c.to_ascii_uppercase());
                        (first.into_iter().chain(letters).collect(), value)
                    }
                })
                .collect(),
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_sorted_attributes() {
        let event = serde_json::from_str(
            r#"{"Type":"container","Action":"die","Actor":{"ID":"abc","Attributes":{"name":"x","exitCode":"0"}},"time":1,"timeNano":1000000002}"#,
        )
        .unwrap();
        let text = line(&event);
        assert!(text.ends_with(" container die abc (exitCode=0, name=x)"), "{text}");
        assert!(text.contains(":01.000000002"), "{text}");
        assert_eq!(go_fields(event).get("TimeNano").and_then(Value::as_i64), Some(1_000_000_002));
    }
}
