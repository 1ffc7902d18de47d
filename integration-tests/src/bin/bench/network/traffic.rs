//! Traffic between two namespaces: bytes, round trips, connections. One end each is a thread, so that nothing but the network
//! differs between those who are compared.

use super::place::{ACCEPT, ECHO, Ends, IPERF, Place, enter};
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Round trips of one round.
const TRIPS: usize = 4000;
/// How long connections are made in one round.
const CONNECTING: Duration = Duration::from_millis(500);
/// Clients that connect at the same time.
const CLIENTS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(5);

/// Which way traffic goes.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// From one container to another.
    Inside,
    /// From another host through a published port.
    Published,
}

impl Way {
    /// Both, with their names in the table.
    pub const ALL: [(Self, &'static str); 2] =
        [(Self::Inside, "between containers"), (Self::Published, "from another host through a published port")];

    fn from<'a>(self, place: &'a Place, ends: &'a Ends) -> BorrowedFd<'a> {
        match self {
            Self::Inside => ends.a.as_fd(),
            Self::Published => place.outside(),
        }
    }

    fn to(self, ends: &Ends, port: u16) -> SocketAddr {
        match self {
            Self::Inside => (ends.address, port).into(),
            Self::Published => Place::published(port),
        }
    }
}

/// Gbit/s by one TCP connection in a second, as iperf3 counts what arrived.
pub fn throughput(place: &Place, ends: &Ends, way: Way) -> Option<f64> {
    let _inside = enter(way.from(place, ends));
    let to = way.to(ends, IPERF);
    let mut iperf = Command::new("iperf3");
    iperf.args(["-4", "-J", "-t", "1", "-c", &to.ip().to_string(), "-p", &to.port().to_string()]);
    let output = iperf.stdin(Stdio::null()).output().ok()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    if let Some(error) = report["error"].as_str() {
        eprintln!("{}: iperf3: {error}", place.name);
    }
    Some(report["end"]["sum_received"]["bits_per_second"].as_f64()? / 1e9)
}

/// Microseconds of a round trip: the median, and what 99 of a hundred stay below.
#[derive(Debug, Clone, Copy)]
pub struct Trips {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

fn trips(mut once: impl FnMut() -> Option<()>) -> Option<Trips> {
    let mut times = Vec::with_capacity(TRIPS);
    // The first ones wake processors up, learn addresses and make entries in tables.
    for _ in 0..100 {
        once()?;
    }
    for _ in 0..TRIPS {
        let begun = Instant::now();
        once()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Some(Trips { p50: times[TRIPS / 2], p99: times[TRIPS * 99 / 100] })
}

/// One byte there and back, by TCP.
pub fn round_trips(place: &Place, ends: &Ends, way: Way) -> Option<Trips> {
    let mut client = {
        let _inside = enter(way.from(place, ends));
        TcpStream::connect_timeout(&way.to(ends, ECHO), PATIENCE).ok()?
    };
    client.set_nodelay(true).ok()?;
    client.set_read_timeout(Some(PATIENCE)).ok()?;
    thread::scope(|scope| {
        scope.spawn(|| echo(&ends.echo));
        let mut byte = [1];
        let found = trips(|| client.write_all(&byte).and_then(|()| client.read_exact(&mut byte)).ok());
        // The other end sees it and is done.
        drop(client);
        found
    })
}

fn echo(listener: &TcpListener) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let mut byte = [0];
    if stream.set_nodelay(true).is_ok() {
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    }
}

/// One byte there and back, by UDP.
pub fn round_trips_udp(place: &Place, ends: &Ends, way: Way) -> Option<Trips> {
    let client = {
        let _inside = enter(way.from(place, ends));
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        client.connect(way.to(ends, ECHO)).ok()?;
        client
    };
    client.set_read_timeout(Some(PATIENCE)).ok()?;
    let over = AtomicBool::new(false);
    // So that it looks whether all is over.
    ends.echo_udp.set_read_timeout(Some(Duration::from_millis(50))).ok()?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = [0];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = ends.echo_udp.recv_from(&mut byte) {
                    ends.echo_udp.send_to(&byte[..length], from).ok();
                }
            }
        });
        let mut byte = [1];
        let found = trips(|| client.send(&byte).and_then(|_| client.recv(&mut byte)).ok().map(drop));
        over.store(true, Ordering::Relaxed);
        found
    })
}

/// New TCP connections per second: made, one byte received, ended. They end with a reset, so that no port stays taken.
pub fn connections(place: &Place, ends: &Ends, way: Way) -> Option<f64> {
    let to = way.to(ends, ACCEPT);
    let made = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| serve(&ends.accept, &over));
        let _inside = enter(way.from(place, ends));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    while begun.elapsed() < CONNECTING {
                        match connect_once(to) {
                            Some(()) => made.fetch_add(1, Ordering::Relaxed),
                            None => return failed.store(true, Ordering::Relaxed),
                        };
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("a client");
        }
        over.store(true, Ordering::Relaxed);
        // The last one wakes the server.
        connect_once(to);
    });
    let failed = failed.into_inner();
    (!failed).then(|| made.into_inner() as f64 / CONNECTING.as_secs_f64())
}

fn connect_once(to: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &reset).ok()?;
    stream.read_exact(&mut [0]).ok()
}

fn serve(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { return };
        // The client ends it.
        if stream.write_all(&[1]).is_ok() && stream.set_read_timeout(Some(PATIENCE)).is_ok() {
            stream.read(&mut [0]).ok();
        }
    }
}
