//! Without a terminal: one line whenever something is in another state, no bars.

use super::Message;
use std::collections::HashMap;

/// What every id was last said to be.
#[derive(Debug, Default)]
pub struct Plain {
    states: HashMap<String, String>,
}

impl Plain {
    /// The text for a message; empty where it only moves a bar or says the same again.
    pub fn text(&mut self, message: &Message) -> String {
        if message.is_silent() || message.progress_detail.as_ref().is_some_and(|d| d.current > 0 || d.total > 0) {
            return String::new();
        }
        if let (Some(id), Some(_)) = (message.is_about(), &message.progress_detail) {
            if self.states.get(id) == Some(&message.status) {
                return String::new();
            }
            self.states.insert(id.to_owned(), message.status.clone());
        }
        message.line()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::message, *};

    #[test]
    fn one_line_per_change() {
        let mut plain = Plain::default();
        let text: String = [
            r#"{"status":"Pulling from library/x","id":"latest"}"#,
            r#"{"status":"Pulling fs layer","progressDetail":{},"id":"aaa"}"#,
            r#"{"status":"Pulling fs layer","progressDetail":{},"id":"bbb"}"#,
            r#"{"status":"Pulling fs layer","progressDetail":{},"id":"bbb"}"#,
            r#"{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"aaa"}"#,
            r#"{"status":"Pull complete","progressDetail":{},"id":"aaa"}"#,
            r#"{"progressDetail":{},"aux":{"Tag":"latest"}}"#,
            r#"{"status":"Status: Downloaded newer image for x:latest"}"#,
            r#"{"stream":"Loaded image: x:y\n"}"#,
        ]
        .iter()
        .map(|json| plain.text(&message(json)))
        .collect();
        assert_eq!(
            text,
            "latest: Pulling from library/x\naaa: Pulling fs layer\nbbb: Pulling fs layer\naaa: Pull complete\nStatus: Downloaded newer image for x:latest\nLoaded image: x:y\n"
        );
    }
}
