//! Addresses to serve on, as `-H` and `hosts` name them.

use std::path::PathBuf;

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// HOST:PORT.
    Tcp(String),
    /// The service manager's sockets: all, or those of this name or number.
    Passed(String),
}

impl Address {
    /// Reads `unix:///PATH`, `tcp://HOST:PORT` or `fd://`; `secure` decides which port `tcp://` means.
    pub fn parse(text: &str, default: &std::path::Path, secure: bool) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("address {text:?}: {why}"));
        match text.split_once("://") {
            Some(("unix", "")) => Ok(Self::Unix(default.to_owned())),
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => bad("the path of a socket begins with /"),
            Some(("fd", name)) => Ok(Self::Passed(name.trim_end_matches('/').to_owned())),
            Some(("tcp", rest)) => {
                let rest = rest.trim_end_matches('/');
                if rest.contains('/') {
                    return bad("nothing goes after the port");
                }
                let port = if secure { 2376 } else { 2375 };
                let (host, port) = match rest.rsplit_once(':') {
                    // An IPv6 address without a port ends in its bracket.
                    Some((host, number)) if !number.ends_with(']') => match number {
                        "" => (host, port),
                        number => match number.parse::<u16>() {
                            Ok(number) => (host, number),
                            Err(_) => return bad("the port is no number"),
                        },
                    },
                    _ => (rest, port),
                };
                let host = if host.is_empty() { "127.0.0.1" } else { host };
                Ok(Self::Tcp(format!("{host}:{port}")))
            }
            _ => bad("neither unix:///PATH, tcp://HOST:PORT nor fd://"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn addresses() {
        let parse = |text| Address::parse(text, Path::new("/r/engine.sock"), false);
        for (text, expected) in [
            ("unix:///a", Address::Unix("/a".into())),
            ("unix://", Address::Unix("/r/engine.sock".into())),
            ("tcp://0.0.0.0:1234", Address::Tcp("0.0.0.0:1234".into())),
            ("tcp://", Address::Tcp("127.0.0.1:2375".into())),
            ("tcp://:80/", Address::Tcp("127.0.0.1:80".into())),
            ("tcp://[::1]:80", Address::Tcp("[::1]:80".into())),
            ("tcp://[::1]", Address::Tcp("[::1]:2375".into())),
            ("tcp://host", Address::Tcp("host:2375".into())),
            ("fd://", Address::Passed(String::new())),
            ("fd://engine", Address::Passed("engine".into())),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        assert_eq!(Address::parse("tcp://h", Path::new("/"), true), Ok(Address::Tcp("h:2376".into())));
        for bad in ["unix://rel", "/path", "tcp://a:b", "tcp://a:1/x", "npipe:////./pipe", "", "tcp://a:99999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
