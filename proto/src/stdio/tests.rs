use std::path::PathBuf;

use super::*;
use proptest::prelude::*;

fn log() -> LogFile {
    LogFile::new("/l")
}

#[test]
fn forms() {
    let fifo = |p: &str, reader| StdioUri::Fifo { path: p.into(), reader };
    let ring = Delivery::NonBlocking { max_buffer: 1 << 20 };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let syslog = |text: &str| SyslogAddress::parse(text).expect(text);
    let cases = [
        ("", StdioUri::Null),
        ("attach:", StdioUri::Attach),
        ("/run/a b%", fifo("/run/a b%", FifoReader::Awaited)),
        ("fifo:///a%20b", fifo("/a b", FifoReader::Awaited)),
        ("fifo:///a?reader=optional", fifo("/a", FifoReader::Optional)),
        ("file:///x", StdioUri::File { path: "/x".into() }),
        ("json-file:///l", StdioUri::JsonFile(log())),
        (
            "json-file:///l?max-size=10&max-file=3&compress=true&attr.a.b=c%26d",
            StdioUri::JsonFile(LogFile {
                max_size: Some(10),
                max_files: 3,
                compress: true,
                attributes: vec![pair("a.b", "c&d")],
                ..log()
            }),
        ),
        ("local:///l?mode=non-blocking", StdioUri::Local(LogFile { delivery: ring, ..log() })),
        (
            "local:///l?max-buffer-size=8192&mode=non-blocking",
            StdioUri::Local(LogFile { delivery: Delivery::NonBlocking { max_buffer: 8192 }, ..log() }),
        ),
        ("cri:///l", StdioUri::Cri { path: "/l".into(), delivery: Delivery::Blocking }),
        ("journald://", StdioUri::Journald(Journald::new())),
        (
            "journald:///s?tag=t&name=n&image=i&attr.k=v",
            StdioUri::Journald(Journald {
                socket: "/s".into(),
                tag: "t".into(),
                name: "n".into(),
                image: "i".into(),
                attributes: vec![pair("k", "v")],
                ..Journald::new()
            }),
        ),
        ("syslog://", StdioUri::Syslog(Syslog::new())),
        (
            "syslog://?address=tcp://127.0.0.1:5&format=rfc5424micro&facility=local3&tag=x&mode=blocking",
            StdioUri::Syslog(Syslog {
                address: syslog("tcp://127.0.0.1:5"),
                format: SyslogFormat::Rfc5424Micro,
                facility: 19,
                tag: "x".into(),
                delivery: Delivery::Blocking,
            }),
        ),
        (
            "binary:///b/in?a=1&flag&a=2",
            StdioUri::Binary(Binary { path: "/b/in".into(), args: vec![pair("a", "1"), pair("flag", "")] }),
        ),
    ];
    for (text, uri) in cases {
        assert_eq!(text.parse::<StdioUri>().as_ref(), Ok(&uri), "{text}");
        assert_eq!(uri.to_string().parse::<StdioUri>(), Ok(uri), "{text}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for bad in [
        "x",
        "file://rel",
        "file:///a?b=c",
        "fifo:///a?reader=never",
        "json-file:///l?max-file=0",
        "json-file:///l?max-size=0",
        "json-file:///l?max-size=x",
        "json-file:///l?compress=maybe",
        "json-file:///l?mode=fast",
        "json-file:///l?max-buffer-size=9999",
        "json-file:///l?mode=non-blocking&max-buffer-size=1",
        "json-file:///l?attr.=x",
        "local:///l?attr.a=x",
        "cri:///l?max-size=1",
        "journald://host",
        "journald:///s?facility=1",
        "syslog:///dev/log",
        "syslog://?address=tcp%2Btls://127.0.0.1:5",
        "syslog://?address=udp://log.example:514",
        "syslog://?facility=24",
        "syslog://?format=rfc1",
        "fifo:///a%00b",
        "fifo:///a%zz",
        "binary:///a?x=%00",
    ] {
        assert!(bad.parse::<StdioUri>().is_err(), "{bad}");
    }
    assert_eq!("gelf://x".parse::<StdioUri>(), Err(StdioError::Scheme("gelf".into())));
}

#[test]
fn syslog_addresses() {
    let v6: std::net::SocketAddr = "[::1]:514".parse().expect("address");
    let local: std::net::SocketAddr = "127.0.0.1:514".parse().expect("address");
    for (text, address) in [
        ("", SyslogAddress::Local),
        ("unix:///dev/log", SyslogAddress::Unix("/dev/log".into())),
        ("unixgram:///dev/log", SyslogAddress::Unixgram("/dev/log".into())),
        ("udp://127.0.0.1", SyslogAddress::Udp(local)),
        ("udp://localhost", SyslogAddress::Udp(local)),
        ("tcp://localhost:514", SyslogAddress::Tcp(local)),
        ("tcp://[::1]:514", SyslogAddress::Tcp(v6)),
        ("tcp://[::1]", SyslogAddress::Tcp(v6)),
    ] {
        assert_eq!(SyslogAddress::parse(text), Some(address), "{text}");
    }
    for bad in ["x", "udp://a.example:1", "tcp://localhost:x", "unix://rel", "http://127.0.0.1"] {
        assert_eq!(SyslogAddress::parse(bad), None, "{bad}");
    }
}

fn deliveries() -> impl Strategy<Value = Delivery> {
    prop_oneof![
        Just(Delivery::Blocking),
        (4096u64..u64::MAX).prop_map(|max_buffer| Delivery::NonBlocking { max_buffer })
    ]
}

proptest! {
    #[test]
    fn written_form_reads_back(
        path in "/[^\0]{0,40}", size in proptest::option::of(1..u64::MAX), files in 1u32..9, compress: bool,
        delivery in deliveries(), key in "[^\0]{1,20}", value in "[^\0]{0,20}", facility in 0u8..24, which in 0..9,
    ) {
        let path = PathBuf::from(path);
        let attributes = vec![(key.clone(), value.clone())];
        let log = LogFile { path: path.clone(), max_size: size, max_files: files, compress, delivery, attributes };
        let uri = match which {
            0 => StdioUri::Fifo { path, reader: FifoReader::Optional },
            1 => StdioUri::Fifo { path, reader: FifoReader::Awaited },
            2 => StdioUri::File { path },
            3 => StdioUri::JsonFile(log),
            4 => StdioUri::Local(LogFile { attributes: Vec::new(), ..log }),
            5 => StdioUri::Cri { path, delivery },
            6 => StdioUri::Journald(Journald {
                socket: path, tag: value.clone(), name: key, image: value, delivery, attributes: log.attributes,
            }),
            7 => StdioUri::Syslog(Syslog {
                address: SyslogAddress::Unixgram("/a b&c".into()), facility, tag: value, delivery, ..Syslog::new()
            }),
            _ => StdioUri::Binary(Binary { path, args: vec![(key, value)] }),
        };
        prop_assert_eq!(uri.to_string().parse::<StdioUri>().unwrap(), uri);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = text.parse::<StdioUri>();
    }
}
