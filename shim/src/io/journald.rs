//! The journal, by its native protocol: a datagram of fields per message (systemd, JOURNAL_NATIVE_PROTOCOL), with the field
//! names of docker's driver.

use std::{
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use proto::stdio::Journald;
use tokio::{io::Interest, net::UnixDatagram};

use super::{
    lines::Stream,
    queue::{Outlet, Record},
};
use crate::clock;

/// The journal as a sink.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    /// Fields that every message has.
    fields: Vec<u8>,
    epoch: u64,
    count: u64,
    message: Vec<u8>,
}

/// A field; one with a line feed in it has its length in front.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// What the journal takes for a name: capital letters, digits and underscores, no underscore first.
fn field_name(key: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String = key.chars().map(legal).collect();
    name.trim_start_matches(|c: char| c == '_' || c.is_ascii_digit()).chars().take(64).collect()
}

impl Journal {
    /// The journal for a container.
    pub(super) fn new(place: &Journald, container: &str) -> Self {
        let short = container.get(..12).unwrap_or(container);
        let tag = if place.tag.is_empty() { short } else { place.tag.as_str() };
        let mut fields = Vec::new();
        for (name, value) in [
            ("CONTAINER_ID", short),
            ("CONTAINER_ID_FULL", container),
            ("CONTAINER_NAME", &place.name),
            ("CONTAINER_TAG", tag),
            ("IMAGE_NAME", &place.image),
            ("SYSLOG_IDENTIFIER", tag),
        ] {
            if !value.is_empty() {
                field(&mut fields, name, value.as_bytes());
            }
        }
        for (key, value) in &place.attributes {
            let name = field_name(key);
            if !name.is_empty() {
                field(&mut fields, &name, value.as_bytes());
            }
        }
        let epoch = RandomState::new().build_hasher().finish();
        Self { path: place.socket.clone(), socket: None, fields, epoch, count: 0, message: Vec::new() }
    }

    /// Connects, so that a socket that isn't there is known at once. One that refuses is being started again.
    pub(super) fn connect(&mut self) -> io::Result<()> {
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        match socket.connect(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
            other => other?,
        }
        socket.set_nonblocking(true)?;
        self.socket = Some(UnixDatagram::from_std(socket)?);
        Ok(())
    }

    fn encode(&mut self, record: &Record) {
        let entry = record.entry();
        let out = &mut self.message;
        out.clear();
        field(out, "MESSAGE", entry.text);
        // Severities of syslog: error and informational.
        field(out, "PRIORITY", if entry.stream == Stream::Stderr { b"3" } else { b"6" });
        field(out, "SYSLOG_TIMESTAMP", clock::rfc3339_nano(record.time).as_bytes());
        field(out, "CONTAINER_LOG_EPOCH", format!("{:064x}", self.epoch).as_bytes());
        field(out, "CONTAINER_LOG_ORDINAL", (self.count + 1).to_string().as_bytes());
        if let Some(partial) = entry.partial {
            if !partial.last {
                field(out, "CONTAINER_PARTIAL_MESSAGE", b"true");
            }
            field(out, "CONTAINER_PARTIAL_ID", format!("{:064x}", partial.id).as_bytes());
            field(out, "CONTAINER_PARTIAL_ORDINAL", partial.ordinal.to_string().as_bytes());
            field(out, "CONTAINER_PARTIAL_LAST", if partial.last { b"true" } else { b"false" });
        }
        out.extend_from_slice(&self.fields);
    }

    async fn pass_on(&mut self) -> io::Result<()> {
        if self.socket.is_none() {
            self.connect()?;
        }
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?;
        match socket.send(&self.message).await {
            Ok(_) => Ok(()),
            // More than a datagram takes: a sealed file goes in its place.
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EMSGSIZE | nix::libc::ENOBUFS)) => {
                let sealed = seal(&self.message)?;
                let send = || Ok(sys::fd::send_fds(socket, b"", &[sealed.as_fd()])?);
                socket.async_io(Interest::WRITABLE, send).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }
}

fn seal(message: &[u8]) -> io::Result<File> {
    let file = memfd_create(c"journal", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(message)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

impl Outlet for Journal {
    async fn send(&mut self, record: &Record) -> io::Result<()> {
        self.encode(record);
        let result = self.pass_on().await;
        match result {
            Ok(()) => self.count += 1,
            // It may be another socket next time.
            Err(_) => self.socket = None,
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_what_the_journal_takes() {
        for (key, name) in
            [("a.b-c", "A_B_C"), ("_x", "X"), ("9_y", "Y"), ("com.example/z", "COM_EXAMPLE_Z"), ("--", "")]
        {
            assert_eq!(field_name(key), name, "{key}");
        }
        let mut out = Vec::new();
        field(&mut out, "A", b"b=c");
        field(&mut out, "D", b"e\nf");
        assert_eq!(out, b"A=b=c\nD\n\x03\0\0\0\0\0\0\0e\nf\n");
    }
}
