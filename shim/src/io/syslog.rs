//! A syslog daemon: RFC 3164 and 5424 messages over a socket of this machine, UDP or TCP, as docker's driver writes them.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use proto::stdio::{Syslog, SyslogAddress, SyslogFormat};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket, UnixDatagram, UnixStream},
};

use super::{
    lines::Stream,
    queue::{Outlet, Record},
};
use crate::clock;

/// Where daemons listen on their own machine.
const LOCAL: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];
/// How long a TCP connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Channel {
    Datagram(UnixDatagram),
    Stream(UnixStream),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// A daemon as a sink.
#[derive(Debug)]
pub(super) struct SyslogSink {
    place: Syslog,
    tag: String,
    host: String,
    channel: Option<Channel>,
    message: Vec<u8>,
}

impl SyslogSink {
    /// For a container.
    pub(super) fn new(place: &Syslog, container: &str) -> Self {
        let short = container.get(..12).unwrap_or(container);
        let tag = if place.tag.is_empty() { short } else { place.tag.as_str() };
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self {
            place: place.clone(),
            tag: tag.to_owned(),
            host: host.unwrap_or_else(|| "localhost".to_owned()),
            channel: None,
            message: Vec::new(),
        }
    }

    /// A socket of this machine that isn't there is known before a message is sent.
    pub(super) fn check(&self) -> Result<(), (PathBuf, io::Error)> {
        let check = |path: &Path| std::fs::metadata(path).map(drop).map_err(|cause| (path.to_owned(), cause));
        match &self.place.address {
            SyslogAddress::Local if LOCAL.iter().any(|path| Path::new(path).exists()) => Ok(()),
            SyslogAddress::Local => check(Path::new(LOCAL[0])),
            SyslogAddress::Unix(path) | SyslogAddress::Unixgram(path) => check(path),
            SyslogAddress::Udp(_) | SyslogAddress::Tcp(_) => Ok(()),
        }
    }

    async fn connect(&self) -> io::Result<Channel> {
        let datagram = |path: &Path| {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            Ok(Channel::Datagram(socket))
        };
        match &self.place.address {
            SyslogAddress::Local => {
                let present = LOCAL.iter().map(Path::new).find(|path| path.exists()).unwrap_or(Path::new(LOCAL[0]));
                match datagram(present) {
                    Err(_) => UnixStream::connect(present).await.map(Channel::Stream),
                    connected => connected,
                }
            }
            SyslogAddress::Unixgram(path) => datagram(path),
            SyslogAddress::Unix(path) => match UnixStream::connect(path).await {
                Err(error) if error.raw_os_error() == Some(nix::libc::EPROTOTYPE) => datagram(path),
                connected => connected.map(Channel::Stream),
            },
            SyslogAddress::Udp(address) => {
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(address).await?;
                Ok(Channel::Udp(socket))
            }
            SyslogAddress::Tcp(address) => {
                let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
                connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(Channel::Tcp)
            }
        }
    }

    fn encode(&mut self, record: &Record) {
        let entry = record.entry();
        let severity = if entry.stream == Stream::Stderr { 3 } else { 6 };
        let priority = u32::from(self.place.facility) << 3 | severity;
        let (host, tag, pid) = (&self.host, &self.tag, std::process::id());
        let head = match self.place.format {
            SyslogFormat::Local => format!("<{priority}>{} {tag}[{pid}]: ", stamp(record.time, Stamp::Short)),
            SyslogFormat::Rfc3164 => format!("<{priority}>{} {host} {tag}[{pid}]: ", stamp(record.time, Stamp::Short)),
            SyslogFormat::Rfc5424 => {
                format!("<{priority}>1 {} {host} {tag} {pid} {tag} - ", stamp(record.time, Stamp::Seconds))
            }
            SyslogFormat::Rfc5424Micro => {
                format!("<{priority}>1 {} {host} {tag} {pid} {tag} - ", stamp(record.time, Stamp::Micros))
            }
        };
        self.message.clear();
        self.message.extend_from_slice(head.as_bytes());
        self.message.extend_from_slice(entry.text);
        // On a stream it is what ends a message (RFC 6587, 3.4.2), and datagrams have it too.
        self.message.push(b'\n');
    }

    async fn pass_on(&mut self) -> io::Result<()> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.connect().await?,
        };
        match self.channel.insert(channel) {
            Channel::Datagram(socket) => socket.send(&self.message).await.map(drop),
            Channel::Udp(socket) => socket.send(&self.message).await.map(drop),
            Channel::Stream(stream) => stream.write_all(&self.message).await,
            Channel::Tcp(stream) => stream.write_all(&self.message).await,
        }
    }
}

impl Outlet for SyslogSink {
    async fn send(&mut self, record: &Record) -> io::Result<()> {
        self.encode(record);
        let result = self.pass_on().await;
        if let Err(error) = &result {
            self.channel = None;
            // Too long for a datagram for ever: what fits is better than nothing.
            if error.raw_os_error() == Some(nix::libc::EMSGSIZE) && self.message.len() > 1024 {
                self.message.truncate(1024);
                return self.pass_on().await;
            }
        }
        result
    }
}

#[derive(Debug, Clone, Copy)]
enum Stamp {
    /// `Nov  1 07:05:09`, local time.
    Short,
    /// RFC 3339 with the local offset.
    Seconds,
    /// The same with microseconds.
    Micros,
}

fn stamp(at: SystemTime, form: Stamp) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let offset = sys::clock::utc_offset(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    render(since, offset, form)
}

fn render(since: Duration, offset: i64, form: Stamp) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let local = since.as_secs().saturating_add_signed(offset);
    let text = clock::rfc3339_nano(UNIX_EPOCH + Duration::from_secs(local));
    let (date, time) = (&text[..10], &text[11..19]);
    let zone = if offset == 0 {
        "Z".to_owned()
    } else {
        let (sign, minutes) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs() / 60);
        format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    };
    match form {
        Stamp::Short => {
            let number = |text: &str| text.parse::<usize>().unwrap_or(1);
            let month = MONTHS[(number(&date[5..7]) - 1) % 12];
            format!("{month} {:>2} {time}", number(&date[8..10]))
        }
        Stamp::Seconds => format!("{date}T{time}{zone}"),
        Stamp::Micros => format!("{date}T{time}.{:06}{zone}", since.subsec_micros()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_local() {
        // 2026-11-01T22:30:09.000123456Z
        let at = Duration::new(1_793_572_209, 123_456);
        for (offset, form, text) in [
            (0, Stamp::Short, "Nov  1 22:30:09"),
            (7200, Stamp::Short, "Nov  2 00:30:09"),
            (0, Stamp::Seconds, "2026-11-01T22:30:09Z"),
            (-12_600, Stamp::Seconds, "2026-11-01T19:00:09-03:30"),
            (3600, Stamp::Micros, "2026-11-01T23:30:09.000123+01:00"),
        ] {
            assert_eq!(render(at, offset, form), text);
        }
    }
}
