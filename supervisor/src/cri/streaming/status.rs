//! The last word on the error stream: how a process ended, or why there is none.

use serde_json::json;

/// How exec or attach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Well, or nobody was to tell how.
    Success,
    /// The process's exit code isn't zero.
    Exit {
        /// What was run.
        command: String,
        /// The code.
        code: u32,
    },
    /// It came to nothing.
    Failed(String),
}

impl Verdict {
    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exit { command, code } => format!(
                "command terminated with non-zero exit code: error executing command [{command}], exit code {code}"
            ),
            Self::Failed(why) => format!("Internal error occurred: error executing command in container: {why}"),
        }
    }

    /// The words for a client of this version of `vN.channel.k8s.io`: a `Status` of Kubernetes' API from the fourth on; before it,
    /// text, and only if something went wrong.
    pub(super) fn text(&self, version: u8) -> Option<String> {
        if version < 4 {
            return Some(self.message()).filter(|message| !message.is_empty());
        }
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit { code, .. } => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "details": {"causes": [{"message": format!("error executing command in container: {why}")}]},
                "code": 500,
            }),
        };
        Some(status.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_kubernetes_own() {
        let exit = Verdict::Exit { command: "sh -c exit".into(), code: 3 };
        let read = |verdict: &Verdict| {
            let text = verdict.text(4).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(read(&Verdict::Success), json!({"metadata": {}, "status": "Success"}));
        let status = read(&exit);
        assert_eq!((&status["status"], &status["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(status["details"], json!({"causes": [{"reason": "ExitCode", "message": "3"}]}));
        let status = read(&Verdict::Failed("task web: not running".into()));
        assert_eq!((&status["reason"], &status["code"]), (&json!("InternalError"), &json!(500)));
        assert_eq!(
            (Verdict::Success.text(3), exit.text(1).map(|text| text.ends_with("exit code 3"))),
            (None, Some(true))
        );
    }
}
