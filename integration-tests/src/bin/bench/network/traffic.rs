//! Traffic between two namespaces: bytes, round trips, connections. One end each is a thread, so that nothing but the network
//! differs between those who are compared. Round trips are made on one processor: to wake another one up takes several times as long as
//! what lies between, and differs by chance.

use super::place::{ACCEPT, ECHO, Ends, IPERF, Place, enter};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
    unistd::Pid,
};
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
const TRIPS: usize = 1000;
/// How long connections are made in one round.
const CONNECTING: Duration = Duration::from_millis(200);
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
fn trips(mut once: impl FnMut() -> Option<()>) -> Option<[f64; 2]> {
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
    Some([times[TRIPS / 2], times[TRIPS * 99 / 100]])
}

/// One byte there and back, by TCP.
pub fn round_trips(place: &Place, ends: &Ends, way: Way) -> Option<[f64; 2]> {
    let mut client = {
        let _inside = enter(way.from(place, ends));
        TcpStream::connect_timeout(&way.to(ends, ECHO), PATIENCE).ok()?
    };
    client.set_nodelay(true).ok()?;
    client.set_read_timeout(Some(PATIENCE)).ok()?;
    thread::scope(|scope| {
        scope.spawn(|| {
            one_processor();
            echo(&ends.echo);
        });
        let client = scope.spawn(move || {
            one_processor();
            let mut byte = [1];
            // The other end sees the end of the connection and is done.
            trips(|| client.write_all(&byte).and_then(|()| client.read_exact(&mut byte)).ok())
        });
        client.join().expect("the client")
    })
}

/// Binds this thread to the first processor that it may use.
fn one_processor() {
    let this = Pid::from_raw(0);
    let may = sched_getaffinity(this).expect("our processors");
    let first = (0..CpuSet::count()).find(|cpu| may.is_set(*cpu).unwrap_or(false)).expect("a processor");
    let mut one = CpuSet::new();
    one.set(first).expect("a processor's number");
    sched_setaffinity(this, &one).expect("bind to a processor");
}

fn echo(listener: &TcpListener) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let mut byte = [0];
    if stream.set_nodelay(true).is_ok() {
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    }
}

/// One byte there and back, by UDP.
pub fn round_trips_udp(place: &Place, ends: &Ends, way: Way) -> Option<[f64; 2]> {
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
            one_processor();
            let mut byte = [0];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = ends.echo_udp.recv_from(&mut byte) {
                    ends.echo_udp.send_to(&byte[..length], from).ok();
                }
            }
        });
        let client = scope.spawn(|| {
            one_processor();
            let mut byte = [1];
            trips(|| client.send(&byte).and_then(|_| client.recv(&mut byte)).ok().map(drop))
        });
        let found = client.join().expect("the client");
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
    // So that it looks whether all is over.
    let limit = TimeVal::milliseconds(50);
    setsockopt(listener, sockopt::ReceiveTimeout, &limit).expect("a limit for accept(2)");
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        // The client ends it.
        if stream.write_all(&[1]).is_ok() && stream.set_read_timeout(Some(PATIENCE)).is_ok() {
            std::io::copy(&mut stream, &mut std::io::sink()).ok();
        }
    }
}
