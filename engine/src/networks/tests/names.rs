//! The resolver of names, asked from inside containers, with name servers on the LAN that answer as they are told.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use super::users::{at, join, plain};
use super::*;
use crate::networks::names::{Counters, RESOLVER, Zone, ZoneMember};

const A: u16 = 1;
const SOA: u16 = 6;
const PTR: u16 = 12;
const MX: u16 = 15;
const AAAA: u16 = 28;

/// Codes of answers.
const GOOD: u8 = 0;
const FAILED: u8 = 2;
const NO_NAME: u8 = 3;

/// A second and a third name server on the LAN.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 231, 200, 3);
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 231, 200, 4);

/// A message with one question.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u8,
    truncated: bool,
    /// Types and data of the records, of which those of the first section come first.
    records: Vec<(u16, Vec<u8>)>,
    /// How long the first of them may be kept.
    ttl: Option<u32>,
}

impl Answer {
    fn addresses(&self) -> Vec<IpAddr> {
        let address = |(_, data): &(u16, Vec<u8>)| match data.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(data.as_slice()).ok()?)),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(data.as_slice()).ok()?)),
            _ => None,
        };
        self.records.iter().filter_map(address).collect()
    }
}

fn read(reply: &[u8], message: &[u8]) -> Answer {
    assert_eq!(reply[..2], [0xab, 0xcd]);
    assert_eq!(&reply[12..message.len()], &message[12..], "the question as it was spelled");
    let word = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    let mut at = message.len();
    let (mut records, mut ttl) = (Vec::new(), None);
    for _ in 0..word(6) + word(8) {
        // All names are the question's.
        assert_eq!(reply[at..at + 2], [0xc0, 12]);
        let length = usize::from(word(at + 10));
        ttl.get_or_insert(u32::from_be_bytes(reply[at + 6..at + 10].try_into().expect("four bytes")));
        records.push((word(at + 2), reply[at + 12..at + 12 + length].to_vec()));
        at += 12 + length;
    }
    Answer { code: reply[3] & 0xf, truncated: reply[2] & 2 != 0, records, ttl }
}

/// What the resolver says in a namespace.
fn ask(endpoint: &Endpoint, message: &[u8], by_tcp: bool) -> Option<Answer> {
    let reply = within(&namespace_of(endpoint), || -> Option<Vec<u8>> {
        if by_tcp {
            let mut stream = TcpStream::connect((RESOLVER, 53)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.write_all(&[&(message.len() as u16).to_be_bytes(), message].concat()).ok()?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply).ok()?;
            return Some(reply);
        }
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        // Connected: an answer from another port than 53 isn't heard.
        socket.connect((RESOLVER, 53)).ok()?;
        socket.send(message).ok()?;
        let mut buffer = [0; 1500];
        let length = socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    })?;
    Some(read(&reply, message))
}

fn look_up(endpoint: &Endpoint, name: &str, kind: u16) -> Answer {
    ask(endpoint, &question(name, kind), false).expect("an answer")
}

/// Code and addresses.
fn resolve(endpoint: &Endpoint, name: &str, by_tcp: bool) -> Option<(u8, Vec<IpAddr>)> {
    ask(endpoint, &question(name, A), by_tcp).map(|answer| (answer.code, answer.addresses()))
}

/// A name server that does what the first label of a name says, and notes what it was asked.
#[derive(Debug, Clone, Default)]
struct NameServer {
    /// Ids and names, the latter in lower case; with `/tcp` where it was asked so.
    asked: Arc<Mutex<Vec<(u16, String)>>>,
}

impl NameServer {
    /// Serves at an address of a namespace, which answers with these addresses.
    fn start(namespace: &OwnedFd, at: Ipv4Addr, address: [u8; 4]) -> Self {
        let server = Self::default();
        let (udp, tcp) = within(namespace, || {
            (UdpSocket::bind((at, 53)).expect("bind"), TcpListener::bind((at, 53)).expect("listen"))
        });
        let by_udp = server.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                if let Some(reply) = by_udp.answer(&buffer[..length], address, false) {
                    let _ = udp.send_to(&reply, from);
                }
            }
        });
        let by_tcp = server.clone();
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = tcp.accept() {
                let mut length = [0; 2];
                let _ = client.read_exact(&mut length);
                let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                let _ = client.read_exact(&mut message);
                if let Some(reply) = by_tcp.answer(&message, address, true) {
                    let _ = client.write_all(&[&(reply.len() as u16).to_be_bytes(), reply.as_slice()].concat());
                }
            }
        });
        server
    }

    fn answer(&self, message: &[u8], address: [u8; 4], by_tcp: bool) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut at = 12;
        while message[at] != 0 {
            let end = at + 1 + usize::from(message[at]);
            name.push(String::from_utf8_lossy(&message[at + 1..end]).to_lowercase());
            at = end;
        }
        let what = name[0].clone();
        let id = u16::from_be_bytes([message[0], message[1]]);
        let asked = name.join(".") + if by_tcp { "/tcp" } else { "" };
        locked(&self.asked).push((id, asked));
        let mut reply = message[..at + 5].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        let mut add = |section: usize, kind: u16, ttl: u32, data: &[u8]| {
            reply[7 + 2 * section] += 1;
            reply.extend([&[0xc0, 12], &kind.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes()[..]].concat());
            reply.extend((data.len() as u16).to_be_bytes());
            reply.extend(data);
        };
        // "Nothing" lasts for 20 seconds.
        let authority = [[0; 18].as_slice(), &[0, 0, 0, 20]].concat();
        match what.as_str() {
            "silent" => return None,
            "short" => add(0, A, 1, &address),
            "big" if by_tcp => (1..=100).for_each(|last| add(0, A, 60, &[9, 9, 9, last])),
            "big" => reply[2] |= 2,
            "none" => {
                add(1, SOA, 3600, &authority);
                reply[3] |= NO_NAME;
            }
            "unknown" => reply[3] |= NO_NAME,
            "fail" => reply[3] |= FAILED,
            slow => {
                add(0, A, 60, &address);
                if slow == "slow" {
                    std::thread::sleep(SILENCE);
                }
            }
        }
        Some(reply)
    }

    fn names(&self) -> Vec<String> {
        locked(&self.asked).iter().map(|(_, name)| name.clone()).collect()
    }

    fn count(&self, name: &str) -> usize {
        self.names().iter().filter(|asked| *asked == name).count()
    }
}

/// Names the host's servers, in a file that takes the place of the one before.
fn name_servers(host: &Host, servers: &[Ipv4Addr], more: &str) {
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let path = host.run_root().join("resolv.conf");
    std::fs::write(path.with_extension("new"), lines + more).expect("write");
    std::fs::rename(path.with_extension("new"), path).expect("rename");
}

/// A host with a resolver and this many containers on a network, which are called `c0`, `c1`...
fn with_resolver(host: &Host, count: usize) -> (Networks, Definition, Vec<Endpoint>) {
    within(&host.lan, || {
        for server in [SECOND, THIRD] {
            ip(&format!("addr add {server}/24 dev eth9"));
        }
    });
    let networks = host.open();
    networks.names().start_in_this_process(&host.run_root().join("resolv.conf"));
    let net = plain(&networks, "net");
    let endpoints = (0..count).map(|n| join(&networks, &format!("c{n}"), &[&net], &[])).collect();
    (networks, net, endpoints)
}

/// Ends what was begun.
fn end(networks: &Networks, endpoints: &[Endpoint]) {
    for (n, endpoint) in endpoints.iter().enumerate() {
        networks.detach(&format!("c{n}"), endpoint).expect("detach");
    }
    networks.names().end();
}

fn zone(id: &str, net: &Definition, endpoint: &Endpoint) -> Zone {
    Zone {
        id: id.to_owned(),
        members: vec![ZoneMember {
            network: net.id.clone(),
            network_name: net.name.clone(),
            addresses: vec![at(endpoint, net).into()],
            names: vec![id.to_owned(), format!("{id}-Alias")],
        }],
        forwards: true,
        ..Zone::default()
    }
}

#[test]
fn names_are_answered_beside_a_name_server_of_the_container() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 2);
        let own = NameServer::start(&namespace_of(&all[0]), Ipv4Addr::UNSPECIFIED, [9, 9, 9, 9]);
        let (a, b) = (at(&all[0], &net), at(&all[1], &net));
        let first = Zone { upstreams: vec![a.into()], ..zone("c0", &net, &all[0]) };
        let second = Zone { forwards: false, ..zone("c1", &net, &all[1]) };
        networks.serve_names(&first, None).expect("serve");
        networks.serve_names(&second, None).expect("serve");
        for by_tcp in [false, true] {
            assert_eq!(resolve(&all[0], "c1", by_tcp), Some((GOOD, vec![b.into()])));
            assert_eq!(resolve(&all[1], "C0-alias.Net", by_tcp), Some((GOOD, vec![a.into()])));
            assert_eq!(resolve(&all[1], "example.com", by_tcp), Some((FAILED, vec![])), "nobody to ask");
        }
        assert_eq!(resolve(&all[0], "example.com", false), Some((GOOD, vec![[9, 9, 9, 9].into()])));
        assert_eq!(own.names(), ["example.com"], "by the server it was given");
        // It is called otherwise from now on, then gone.
        let mut renamed = second;
        renamed.members[0].names = vec!["new".into()];
        networks.names().change(&renamed).expect("change");
        assert_eq!(resolve(&all[1], "new", false), Some((GOOD, vec![b.into()])));
        assert_eq!(resolve(&all[1], "c1", false), Some((FAILED, vec![])));
        networks.detach("c1", &all[1]).expect("detach");
        assert_eq!(networks.names().served().into_iter().collect::<Vec<_>>(), ["c0"]);
        end(&networks, &all[..1]);
    });
}

#[test]
fn addresses_of_both_versions_are_found_and_lead_back() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 3);
        let upstream = NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]);
        name_servers(host, &[OTHER], "");
        let six: [Ipv6Addr; 3] = [1, 2, 3].map(|last| [0xfd00, 0, 0, 0, 0, 0, 0xa, last].into());
        for (n, endpoint) in all.iter().enumerate() {
            let mut zone = zone(&format!("c{n}"), &net, endpoint);
            let four = zone.members[0].addresses[0];
            zone.members[0].addresses = [vec![four, six[0].into()], vec![four], vec![six[2].into()]][n].clone();
            zone.members[0].names.push("shared".into());
            networks.serve_names(&zone, None).expect("serve");
        }
        let addresses = |name: &str, kind: u16| {
            let answer = look_up(&all[0], name, kind);
            assert_eq!(answer.code, GOOD, "{name}");
            let mut addresses = answer.addresses();
            addresses.sort();
            addresses
        };
        let four = [0, 1].map(|n| IpAddr::from(at(&all[n], &net)));
        assert_eq!((addresses("c0", A), addresses("c0", AAAA)), (vec![four[0]], vec![six[0].into()]));
        assert_eq!((addresses("c1", A), addresses("c1", AAAA)), (vec![four[1]], vec![]), "no such address");
        assert_eq!((addresses("C2.net", A), addresses("C2.net", AAAA)), (vec![], vec![six[2].into()]));
        assert_eq!(addresses("shared", A), four);
        assert_eq!(addresses("shared", AAAA), [six[0], six[2]]);
        assert_eq!(look_up(&all[0], "c0", MX).records, [], "known, and has no such record");

        let [_, _, third, fourth] = at(&all[1], &net).octets();
        for (name, expected) in [
            (format!("{fourth}.{third}.231.10.IN-ADDR.arpa"), b"\x02c1\x03net\x00"),
            (format!("3.0.0.0.A.{}d.f.ip6.ARPA", "0.".repeat(25)), b"\x02c2\x03net\x00"),
        ] {
            assert_eq!(look_up(&all[0], &name, PTR).records, [(PTR, expected.to_vec())], "{name}");
        }
        assert_eq!(networks.names().served().len(), 3);
        assert_eq!(upstream.names(), [""; 0], "nothing of this is anybody else's business");
        end(&networks, &all);
    });
}

#[test]
fn what_others_answer_is_kept_as_long_as_they_allow() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 1);
        let (first, second) =
            (NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]), NameServer::start(&host.lan, SECOND, [8, 8, 8, 8]));
        name_servers(host, &[OTHER], "");
        networks.serve_names(&zone("c0", &net, &all[0]), None).expect("serve");
        let asker = &all[0];
        let nine = Some((GOOD, vec![[9, 9, 9, 9].into()]));
        for name in ["web.example.com", "WEB.example.COM", "web.example.com"] {
            assert_eq!(resolve(asker, name, false), nine);
            assert_eq!(resolve(asker, name, true), nine);
        }
        assert_eq!(first.names(), ["web.example.com"], "once for all");
        for name in ["none.example.com", "unknown.example.com", "fail.example.com"] {
            let answers = [(); 3].map(|()| look_up(asker, name, A).code);
            assert_eq!(answers, [if name.starts_with("fail") { FAILED } else { NO_NAME }; 3], "{name}");
        }
        assert_eq!(first.count("none.example.com"), 1, "that there is none is kept");
        assert_eq!(first.count("unknown.example.com"), 3, "but not when nobody says for how long");
        assert_eq!(first.count("fail.example.com"), 3, "nor what has failed");

        assert_eq!(look_up(asker, "short.example.com", A).ttl, Some(1));
        eventually("it is asked for again", || {
            assert_eq!(resolve(asker, "short.example.com", false), nine);
            (first.count("short.example.com") == 2).then_some(())
        });
        let counters = networks.names().counters().expect("counters");
        assert_eq!((counters.answered, counters.dropped, counters.failed), (0, 0, 0));
        assert_eq!(counters.forwarded, first.names().len() as u64);
        assert!(counters.cached >= 8, "{counters:?}");

        // Other servers have other answers.
        name_servers(host, &[SECOND], "");
        assert_eq!(resolve(asker, "web.example.com", false), Some((GOOD, vec![[8, 8, 8, 8].into()])));
        assert_eq!(second.names(), ["web.example.com"]);
        end(&networks, &all);
    });
}

#[test]
fn what_ones_own_servers_answer_is_told_nobody_else() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 3);
        let hosts = NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]);
        let own = NameServer::start(&host.lan, SECOND, [8, 8, 8, 8]);
        let third = NameServer::start(&host.lan, THIRD, [7, 7, 7, 7]);
        name_servers(host, &[OTHER], "");
        for n in [0, 1, 2] {
            let upstreams = if n == 1 { vec![] } else { vec![SECOND.into()] };
            let zone = Zone { upstreams, ..zone(&format!("c{n}"), &net, &all[n]) };
            networks.serve_names(&zone, None).expect("serve");
        }
        let (eight, nine) = (Some((GOOD, vec![[8, 8, 8, 8].into()])), Some((GOOD, vec![[9, 9, 9, 9].into()])));
        for _ in 0..2 {
            assert_eq!(resolve(&all[0], "web.example.com", false), eight);
            assert_eq!(resolve(&all[1], "web.example.com", false), nine);
        }
        assert_eq!((hosts.names().len(), own.names().len()), (1, 1));
        assert_eq!(resolve(&all[2], "web.example.com", false), eight);
        assert_eq!(own.names().len(), 2, "each for itself");
        let other = Zone { upstreams: vec![THIRD.into()], ..zone("c0", &net, &all[0]) };
        networks.names().change(&other).expect("change");
        assert_eq!(resolve(&all[0], "web.example.com", false), Some((GOOD, vec![[7, 7, 7, 7].into()])));
        assert_eq!(third.names().len(), 1);
        end(&networks, &all);
    });
}

#[test]
fn long_answers_come_by_tcp_and_names_of_few_dots_are_completed() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 2);
        let upstream = NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]);
        name_servers(host, &[OTHER], "options ndots:2\n");
        for (n, completes) in [None, Some(false)].into_iter().enumerate() {
            let zone = Zone { completes, ..zone(&format!("c{n}"), &net, &all[n]) };
            networks.serve_names(&zone, None).expect("serve");
        }
        for round in 1..=2 {
            let cut = look_up(&all[0], "big.example.com", A);
            assert!(cut.truncated && cut.records.is_empty(), "{cut:?}");
            let whole = ask(&all[0], &question("big.example.com", A), true).expect("an answer");
            assert!(!whole.truncated && whole.records.len() == 100, "{whole:?}");
            assert_eq!(upstream.count("big.example.com"), round, "what is cut short isn't kept");
            assert_eq!(upstream.count("big.example.com/tcp"), 1, "what is whole is, but not told by UDP");
        }
        // The host's file says that names get a domain first; its own options, where there are some, say otherwise.
        assert_eq!(resolve(&all[0], "short", false), Some((GOOD, vec![])));
        assert_eq!(upstream.count("short"), 0);
        assert_eq!(resolve(&all[1], "short", false), Some((GOOD, vec![[9, 9, 9, 9].into()])));
        name_servers(host, &[OTHER], "");
        assert_eq!(resolve(&all[0], "short", false), Some((GOOD, vec![[9, 9, 9, 9].into()])));
        end(&networks, &all);
    });
}

#[test]
fn a_silent_server_is_asked_last_and_one_question_is_asked_once() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 1);
        // Bound, so that the kernel doesn't refuse; nobody reads.
        let silent = within(&host.lan, || UdpSocket::bind((SECOND, 53)).expect("bind"));
        silent.set_nonblocking(true).expect("flags");
        let heard = move || (0..).take_while(|_| silent.recv(&mut [0; 512]).is_ok()).count();
        let upstream = NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]);
        // Nobody is at the third: refused at once.
        name_servers(host, &[SECOND, THIRD, OTHER], "options timeout:1 attempts:1\n");
        networks.serve_names(&zone("c0", &net, &all[0]), None).expect("serve");
        let nine = Some((GOOD, vec![[9, 9, 9, 9].into()]));
        let timed = |name: &str| {
            let start = Instant::now();
            (resolve(&all[0], name, false), start.elapsed())
        };
        let (answer, took) = timed("a.example.com");
        assert_eq!(answer, nine);
        assert!((1..4).contains(&took.as_secs()), "{took:?}");
        assert_eq!(heard(), 1);
        let (answer, took) = timed("b.example.com");
        assert_eq!(answer, nine);
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(heard(), 0, "not asked again");

        // Many ask the same at once; the server takes its time.
        std::thread::scope(|scope| {
            let askers: Vec<_> = (0..10).map(|_| scope.spawn(|| resolve(&all[0], "slow.example.com", false))).collect();
            for asker in askers {
                assert_eq!(asker.join().expect("asker"), nine);
            }
        });
        assert_eq!(upstream.count("slow.example.com"), 1);
        let ids: BTreeSet<u16> = locked(&upstream.asked).iter().map(|(id, _)| *id).collect();
        assert!(ids.len() > 1 && ids.iter().any(|id| *id != 0xabcd), "not the asker's id: {ids:?}");

        // All are silent: told in time.
        name_servers(host, &[SECOND], "options timeout:1 attempts:2\n");
        let (answer, took) = timed("c.example.com");
        assert_eq!(answer, Some((FAILED, vec![])));
        assert!((2..5).contains(&took.as_secs()), "{took:?}");
        assert_eq!(heard(), 2);
        end(&networks, &all);
    });
}

/// CVE-2024-29018: by questions a program could tell things to others, from where nothing should get out.
#[test]
fn nothing_leaves_internal_networks() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 2);
        let upstream = NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]);
        name_servers(host, &[OTHER], "");
        networks.serve_names(&Zone { forwards: false, ..zone("c0", &net, &all[0]) }, None).expect("serve");
        networks.serve_names(&zone("c1", &net, &all[1]), None).expect("serve");
        assert_eq!(resolve(&all[1], "known.example.com", false), Some((GOOD, vec![[9, 9, 9, 9].into()])));
        let mut chaos = question("version.bind", 16);
        let class = chaos.len() - 1;
        chaos[class] = 3;
        let questions = [
            question("secret.example.com", A),
            question("known.example.com", A),
            question("secret", AAAA),
            question("secret.example.com", MX),
            question("1.2.3.4.in-addr.arpa", PTR),
            question("1.2.3.4.in-addr.arpa", A),
            question(&format!("{}ip6.arpa", "1.".repeat(32)), PTR),
            question("in-addr.arpa", 2),
            question("se cret.example.com", A),
            question("s\u{e9}cret.example.com", A),
            question("c1.secret", A),
            chaos,
        ];
        for message in questions {
            for by_tcp in [false, true] {
                let answer = ask(&all[0], &message, by_tcp).expect("an answer");
                assert_eq!((answer.code, answer.records.len()), (FAILED, 0), "{}", String::from_utf8_lossy(&message));
            }
        }
        let own = Some((GOOD, vec![at(&all[1], &net).into()]));
        assert_eq!(resolve(&all[0], "c1", false), own, "its own network's names");
        // What would have been sent before arrives before.
        assert_eq!(resolve(&all[1], "last.example.com", false), Some((GOOD, vec![[9, 9, 9, 9].into()])));
        assert_eq!(upstream.names(), ["known.example.com", "last.example.com"]);
        let counters = networks.names().counters().expect("counters");
        let expected = Counters { answered: 1, forwarded: 2, cached: 0, failed: 24, dropped: 0 };
        assert_eq!(counters, expected);
        end(&networks, &all);
    });
}

#[test]
fn a_burst_of_questions_is_answered() {
    on_a_host(|host| {
        let (networks, net, all) = with_resolver(host, 1);
        let upstream = NameServer::start(&host.lan, OTHER, [9, 9, 9, 9]);
        name_servers(host, &[OTHER], "");
        networks.serve_names(&zone("c0", &net, &all[0]), None).expect("serve");
        // From ten programs at once, each as much as it has room for answers to; good answers are counted.
        let burst = |names: &(dyn Fn(usize) -> String + Sync)| {
            within(&namespace_of(&all[0]), || {
                let asked = (0..10).map(|program| {
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
                    socket.connect((RESOLVER, 53)).expect("connect");
                    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
                    for n in 0..100 {
                        socket.send(&question(&names(100 * program + n), A)).expect("send");
                    }
                    socket
                });
                let is_good = |reply: &[u8]| reply[3] & 0xf == 0 && reply[7] == 1;
                let count = |socket: UdpSocket| {
                    let mut buffer = [0; 512];
                    (0..100).filter(|_| socket.recv(&mut buffer).is_ok_and(|length| is_good(&buffer[..length]))).count()
                };
                asked.collect::<Vec<_>>().into_iter().map(count).sum::<usize>()
            })
        };
        assert_eq!(burst(&|_| "c0".to_owned()), 1000);
        // More than may be under way: some wait.
        assert_eq!(burst(&|n| format!("n{n}.example.com")), 1000);
        assert_eq!(upstream.names().into_iter().collect::<BTreeSet<_>>().len(), 1000);
        // And from the container's own namespace, by a server of its own.
        let own = NameServer::start(&host.lan, SECOND, [8, 8, 8, 8]);
        let zone = Zone { upstreams: vec![SECOND.into()], ..zone("c0", &net, &all[0]) };
        networks.names().change(&zone).expect("change");
        assert_eq!(burst(&|n| format!("n{n}.example.com")), 1000);
        assert_eq!(own.names().into_iter().collect::<BTreeSet<_>>().len(), 1000);
        end(&networks, &all);
    });
}
