//! An engine on another machine, through ssh: its `system dial-stdio` connects the two streams with the engine's socket.

use crate::output;
use std::{
    fmt, io,
    pin::Pin,
    process::Stdio,
    str::FromStr,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    process::{ChildStdin, ChildStdout, Command},
};

/// `[user@]host[:port][/socket]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshHost {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    socket: Option<String>,
}

/// Why this is no machine to reach by ssh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid SSH URL: {0}")]
pub struct SshError(String);

impl FromStr for SshHost {
    type Err = SshError;

    fn from_str(text: &str) -> Result<Self, SshError> {
        let refused = |why: &str| SshError(why.to_owned());
        if let Some((_, query)) = text.split_once('?') {
            return Err(SshError(format!("query parameters are not allowed: {query:?}")));
        }
        if let Some((_, fragment)) = text.split_once('#') {
            return Err(SshError(format!("fragments are not allowed: {fragment:?}")));
        }
        let (authority, path) = match text.find('/') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(refused("plain-text password is not supported"));
        }
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| SshError(format!("invalid port {port:?}")))?))
            }
            _ => (address, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(refused("hostname is empty"));
        }
        // What ssh would take for an option, or the remote shell for something else than a word.
        let odd = |c: char| c.is_whitespace() || c.is_control() || "'\"\\$`;&|<>()".contains(c);
        if host.starts_with('-') || user.is_some_and(|user| user.is_empty() || user.starts_with('-')) {
            return Err(refused("user and host must not begin with a dash"));
        }
        if text.contains(odd) {
            return Err(refused("blanks and signs of the shell are not allowed"));
        }
        let socket = (!path.trim_end_matches('/').is_empty()).then(|| path.to_owned());
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port, socket })
    }
}

impl fmt::Display for SshHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.socket.as_deref().unwrap_or_default())
    }
}

impl SshHost {
    /// The words after "ssh".
    fn arguments(&self) -> Vec<String> {
        let mut words: Vec<String> = ["-o", "ConnectTimeout=30", "-T"].map(str::to_owned).to_vec();
        if let Some(user) = &self.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        let host = self.socket.as_ref().map(|path| format!(" --host=unix://{path}")).unwrap_or_default();
        // The other machine has one of the two, or both: ours first. `sh -c` because a login shell may be no POSIX shell.
        let remote = format!(
            "sh -c 'if command -v berth >/dev/null 2>&1; then exec berth{host} system dial-stdio; fi; exec docker{host} system dial-stdio'"
        );
        words.extend(["--".to_owned(), self.host.clone(), remote]);
        words
    }

    /// Starts ssh; the connection is there when the engine answers.
    pub fn connect(&self) -> io::Result<Pipe> {
        let words = self.arguments();
        output::log::debug(|| format!("ssh {}", words.join(" ")));
        let mut child = Command::new("ssh")
            .args(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is for the container, and must not take the connection away.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (stdin, stdout) = (child.stdin.take().ok_or_else(gone)?, child.stdout.take().ok_or_else(gone)?);
        let stderr = child.stderr.take();
        let said = tokio::spawn(async move {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                    if said.len() < MOST_SAID {
                        said.extend_from_slice(&buffer[..count]);
                    }
                }
            }
            String::from_utf8_lossy(&said).trim().to_owned()
        });
        let command = words.join(" ");
        // ssh ended before the engine said a word: what it complained about is the error.
        let mut watched = child;
        let ending = async move {
            let said = said.await.unwrap_or_default();
            let how = match watched.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            io::Error::other(format!(
                "command [ssh {command}] has exited with {how}, make sure the URL is valid, and berth or docker is installed on the remote host: stderr={said}"
            ))
        };
        Ok(Pipe { stdin: Some(stdin), stdout, heard: false, ending: Box::pin(ending) })
    }
}

/// How much of ssh's complaints is kept.
const MOST_SAID: usize = 64 * 1024;

/// The two streams of a running ssh; it is killed when they are dropped.
pub struct Pipe {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// Something has come from the engine.
    heard: bool,
    /// Waits for the end, and tells of it. Holds the process.
    ending: Pin<Box<dyn Future<Output = io::Error> + Send>>,
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = std::task::ready!(Pin::new(&mut self.stdout).poll_read(cx, buf));
        if result.is_ok() && buf.filled().len() == before && !self.heard {
            return self.ending.as_mut().poll(cx).map(Err);
        }
        self.heard = true;
        Poll::Ready(result)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stdin {
            Some(stdin) => match std::task::ready!(Pin::new(stdin).poll_write(cx, data)) {
                // Why it went away is told by the other direction.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !self.heard => Poll::Ready(Ok(data.len())),
                result => Poll::Ready(result),
            },
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The other end sees the end of its input only when the pipe is closed.
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_ssh() {
        let of = |text: &str| text.parse::<SshHost>().map(|host| host.arguments().join(" "));
        assert_eq!(
            of("me@box:22/run/x.sock").as_deref(),
            Ok(
                "-o ConnectTimeout=30 -T -l me -p 22 -- box sh -c 'if command -v berth >/dev/null 2>&1; then exec berth --host=unix:///run/x.sock system dial-stdio; fi; exec docker --host=unix:///run/x.sock system dial-stdio'"
            )
        );
        assert!(of("box/").is_ok_and(|words| words.contains("-T -- box sh -c") && !words.contains("--host")));
        assert_eq!(
            "[::1]:2".parse::<SshHost>().map(|host| (host.host.clone(), host.to_string())),
            Ok(("::1".into(), "[::1]:2".into()))
        );
    }

    #[test]
    fn refusals() {
        for (text, part) in [
            ("box/?q", "query parameters are not allowed: \"q\""),
            ("box#f", "fragments are not allowed"),
            ("u:p@box", "plain-text password is not supported"),
            ("/x", "hostname is empty"),
            ("", "hostname is empty"),
            ("-oProxyCommand=x", "must not begin with a dash"),
            ("-lx@box", "must not begin with a dash"),
            ("box/a;b", "signs of the shell"),
            ("box/a'b", "signs of the shell"),
            ("box:99999", "invalid port"),
        ] {
            let error = text.parse::<SshHost>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
