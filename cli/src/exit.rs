//! Failures of commands, and the exit code of each: the one table.

use crate::client::{ClientError, demux::DemuxError};
use crate::config::ConfigError;
use crate::credentials::CredentialsError;
use crate::options::{OptionError, Plain};
use crate::output::{template::TemplateError, time::TimeError};
use std::io;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The surroundings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A context.
    #[error(transparent)]
    Context(#[from] crate::context::ContextError),
    /// An archive of a context.
    #[error(transparent)]
    Archive(#[from] crate::context::archive::ArchiveError),
    /// Credentials that are to be kept or forgotten.
    #[error("Error saving credentials: {0}")]
    Credentials(#[from] CredentialsError),
    /// Values of flags.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A template.
    #[error("template parsing error: {0}")]
    Template(#[from] TemplateError),
    /// A template of a list.
    #[error("template parsing error: {0}")]
    Listing(TemplateError),
    /// The engine lacks what was asked for: said before anything was done.
    #[error("{0}")]
    Gate(String),
    /// A time.
    #[error(transparent)]
    Time(#[from] TimeError),
    /// A reference to an image.
    #[error(transparent)]
    Reference(#[from] proto::image_ref::ImageRefError),
    /// The stream of a container.
    #[error(transparent)]
    Stream(#[from] DemuxError),
    /// A file or stream of the client.
    #[error("{operation}: {cause}")]
    Io {
        /// What was done to what.
        operation: String,
        /// What happened.
        cause: Plain,
    },
    /// The client refuses.
    #[error("{0}")]
    Refused(String),
    /// Some of several objects failed; their errors are one line each.
    #[error("{}", .0.join("\n"))]
    Several(Vec<String>),
    /// `run` failed before the container's own exit code counts.
    #[error("berth: {cause}\n\nRun 'berth run --help' for more information")]
    Run {
        /// Why.
        cause: Box<Failure>,
        /// 125, 126 or 127.
        code: u8,
    },
    /// A failure in better words.
    #[error("{text}")]
    Said {
        /// The words.
        text: String,
        /// Its code.
        code: u8,
    },
    /// Everything has been said: only the code is left.
    #[error("exit code {0}")]
    Exit(u8),
}

/// What a command comes to.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Run { code, .. } | Self::Said { code, .. } | Self::Exit(code) => *code,
            // docker's own: what can't even be read is another code than what can't be carried out.
            Self::Template(TemplateError::Parse { .. }) => 64,
            _ => 1,
        }
    }

    /// Gone, with nothing to say.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Exit(_))
    }

    /// A failure of the client's own streams and files.
    pub fn io(operation: impl Into<String>, cause: io::Error) -> Self {
        Self::Io { operation: operation.into(), cause: Plain(cause) }
    }

    /// `run` that could not create or start: the code depends on what the engine says, as in docker.
    pub fn in_run(self) -> Self {
        let text = self.to_string();
        let code = code_of_start_error(&text);
        match self {
            Self::Exit(_) | Self::Run { .. } | Self::Gate(_) => self,
            cause => Self::Run { cause: Box::new(cause), code },
        }
    }

    /// `run` that was refused by the client itself.
    pub fn in_run_flags(self) -> Self {
        Self::Run { cause: Box::new(self), code: 125 }
    }
}

/// 127: no such command; 126: it can't be run; 125: anything else.
pub fn code_of_start_error(text: &str) -> u8 {
    const MISSING: [&str; 3] =
        ["executable file not found", "no such file or directory", "system cannot find the file specified"];
    if MISSING.iter().any(|part| text.contains(part)) {
        127
    } else if text.contains("permission denied") || text.contains("is a directory") {
        126
    } else {
        125
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_run() {
        for (message, code) in [
            ("exec: \"x\": executable file not found in $PATH", 127),
            ("stat /x: no such file or directory", 127),
            ("exec /etc/passwd: permission denied", 126),
            ("exec: \"/\": is a directory", 126),
            ("No command specified", 125),
        ] {
            let failure = Failure::from(ClientError::Api { status: 400, message: message.into() }).in_run();
            assert_eq!(failure.code(), code, "{message}");
            assert!(failure.to_string().starts_with("berth: Error response from daemon: "), "{failure}");
        }
    }

    #[test]
    fn other_codes() {
        assert_eq!(Failure::Refused("x".into()).code(), 1);
        assert_eq!(Failure::Exit(42).code(), 42);
        assert_eq!(Failure::Refused("x".into()).in_run_flags().code(), 125);
        let broken = Failure::io("write /dev/stdout", io::Error::from_raw_os_error(32));
        assert_eq!((broken.to_string().as_str(), broken.code()), ("write /dev/stdout: broken pipe", 1));
        assert_eq!(Failure::Exit(3).in_run().code(), 3);
    }
}
