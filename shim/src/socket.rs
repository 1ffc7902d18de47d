//! The sockets of shims that were killed before they could remove them.

use std::{
    io::{ErrorKind, Read as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long the last descriptor of a process that is being killed may stay open.
const CLOSES: Duration = Duration::from_millis(200);

/// Removes a socket that nobody listens on any more, and those for consoles beside it. One that is listened on stays: a pod's
/// shim serves others.
pub(crate) fn remove_if_dead(socket: &Path) {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_stem()) else { return };
    if !is_dead(socket) {
        return;
    }
    let consoles = format!("{}.pty", name.to_string_lossy());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&consoles) {
            // What stays is a name without anybody behind it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_file(socket);
}

fn is_dead(socket: &Path) -> bool {
    loop {
        match UnixStream::connect(socket) {
            Err(error) => return error.kind() == ErrorKind::ConnectionRefused,
            // A process that is being killed closes one descriptor after the other: our connection may have got in before the
            // listener went, and ends with it. One that lives keeps it, or says something.
            Ok(mut stream) => {
                let read = stream.set_read_timeout(Some(CLOSES)).and_then(|()| stream.read(&mut [0]));
                match read {
                    Ok(0) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                    _ => return false,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::net::UnixListener};

    #[test]
    fn only_the_sockets_of_the_dead_go() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let listener = UnixListener::bind(at("a")).expect("socket");
        for name in ["a.pty0", "b", "b.pty0", "b.pty17", "c.pty0"] {
            drop(UnixListener::bind(at(name)).expect("socket"));
        }
        for name in ["a", "b", "nothing"] {
            remove_if_dead(&at(name));
        }
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["a", "a.pty0", "c.pty0"]);
        // One that dies while we ask.
        let (connected, dying) = std::sync::mpsc::channel();
        let asker = {
            let socket = at("a");
            std::thread::spawn(move || {
                connected.send(()).expect("send");
                is_dead(&socket)
            })
        };
        dying.recv().expect("asked");
        let (stream, _) = listener.accept().expect("the asker");
        drop(listener);
        drop(stream);
        assert!(asker.join().expect("asker"));
    }
}
