//! Where log lines go (stderr) and how they look.

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogConfig, LogFormat};

/// Why logging can't begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The level isn't a level, nor a list of `target=level`.
    #[error("log level {level:?} is not understood (use error, warn, info, debug or trace)")]
    Level {
        /// What was given.
        level: String,
        /// What the parser says.
        #[source]
        cause: tracing_subscriber::filter::ParseError,
    },
    /// Something installed a logger before.
    #[error("start logging")]
    Init(#[source] tracing_subscriber::util::TryInitError),
}

/// Starts logging to stderr.
pub(crate) fn init(config: &LogConfig) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(&config.level)
        .map_err(|cause| LoggingError::Level { level: config.level.clone(), cause })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    match config.format {
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(LoggingError::Init)
}
