//! What runs inside the demo container.

use crate::exit::{Failure, Outcome};
use crate::output;
use nix::ifaddrs::getifaddrs;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process;
use std::thread;
use std::time::Duration;

/// Longest request line the small web server reads.
const LONGEST: u64 = 8 * 1024;

/// Does what the words say.
pub fn run(words: &[String]) -> Outcome {
    let mut words = words.iter().map(String::as_str);
    let action = words.next().unwrap_or("words");
    let mut number = |name: &str, default: u64| match words.next() {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|_| Failure::Refused(format!("demo {action}: {name} {text:?} is not a number")))
        }
    };
    match action {
        "words" => output::print(&words_of_welcome()),
        "serve" => {
            let port = number("port", 80)?;
            serve(u16::try_from(port).map_err(|_| Failure::Refused(format!("demo serve: no such port: {port}")))?)
        }
        "count" => count(number("count", 10)?, number("milliseconds", 1000)?),
        "sleep" => {
            thread::sleep(Duration::from_secs(number("seconds", 3600)?));
            Ok(())
        }
        "exit" => match u8::try_from(number("code", 0)? & 0xff).unwrap_or(1) {
            0 => Ok(()),
            code => Err(Failure::Exit(code)),
        },
        "cat" => {
            io::copy(&mut io::stdin().lock(), &mut io::stdout().lock())
                .map_err(|cause| Failure::io("copy stdin", cause))?;
            Ok(())
        }
        other => Err(Failure::Refused(format!(
            "demo: unknown action {other:?}; there are words, serve [PORT], count [N [MILLISECONDS]], sleep [SECONDS], exit [CODE], cat"
        ))),
    }
}

fn words_of_welcome() -> String {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut text = format!(
        "Hello from inside a Berth container.\n\n  process     {} (the first one it sees)\n  host name   {host}\n  user        {}\n",
        process::id(),
        user(),
    );
    if process::id() != 1 {
        text = text.replace(" (the first one it sees)", "");
    }
    text.push_str(&format!("  processes   {} in sight\n", processes()));
    text.push_str(&format!("  memory      {}\n", memory_limit().unwrap_or_else(|| "no limit in sight".to_owned())));
    text.push_str(&format!("  network     {}\n", addresses()));
    text.push_str("\nThe image holds one file, this program; berth made it in memory and the engine loaded it.\n");
    text
}

fn user() -> String {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then_some(name)
    });
    format!("{} ({uid}:{gid})", name.unwrap_or("nobody known"))
}

fn processes() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())).count()
}

/// The limit of this cgroup, v2 or v1, if the container can see it.
fn memory_limit() -> Option<String> {
    let text = fs::read_to_string("/sys/fs/cgroup/memory.max")
        .or_else(|_| fs::read_to_string("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        .ok()?;
    let bytes: i64 = text.trim().parse().ok()?;
    // v1 shows the largest page-aligned number where there is no limit.
    (bytes < i64::MAX / 2).then(|| format!("at most {}", output::units::binary_size(bytes)))
}

fn addresses() -> String {
    let mut all: Vec<String> = getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().to_string(),
                (_, Some(v6)) => v6.ip().to_string(),
                _ => return None,
            };
            Some(format!("{} {ip}", interface.interface_name))
        })
        .collect();
    all.sort();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

fn count(lines: u64, pause: u64) -> Outcome {
    for line in 1..=lines {
        output::print_line(&line.to_string())?;
        if line < lines {
            thread::sleep(Duration::from_millis(pause));
        }
    }
    Ok(())
}

/// A web server of one page.
fn serve(port: u16) -> Outcome {
    let listener = TcpListener::bind(("0.0.0.0", port))
        .map_err(|cause| Failure::io(format!("demo serve: listen on port {port}"), cause))?;
    let port = listener.local_addr().map_or(port, |address| address.port());
    output::print_line(&format!("serving on port {port}"))?;
    for connection in listener.incoming() {
        // One visitor's trouble is not the next one's.
        if let Err(error) = connection.and_then(answer) {
            output::note(&format!("demo serve: {error}"));
        }
    }
    Ok(())
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    connection.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut request = String::new();
    let mut reader = BufReader::new(io::Read::take(&connection, LONGEST));
    reader.read_line(&mut request)?;
    // The rest of the request is read, or closing would cut off the answer.
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let page = format!(
        "<!doctype html><meta charset=utf-8><title>Berth</title><h1>Hello from a Berth container</h1><pre>{}</pre>\n",
        words_of_welcome()
    );
    let found = request.starts_with("GET ") || request.starts_with("HEAD ");
    let status = if found { "200 OK" } else { "405 Method Not Allowed" };
    let body = if request.starts_with("HEAD ") { "" } else { &page };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        page.len()
    )?;
    output::print_line(&format!("{} {status}", request.trim_end()))
        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn welcome_names_the_facts() {
        let text = words_of_welcome();
        for part in ["process ", "host name", "user ", "memory ", "network "] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_page_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || answer(listener.accept().unwrap().0));
        let mut visitor = TcpStream::connect(address).unwrap();
        visitor.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        visitor.read_to_string(&mut text).unwrap();
        server.join().unwrap().unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("<h1>Hello"), "{text}");
    }

    #[test]
    fn bad_words() {
        let run = |words: &[&str]| run(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(run(&["exit", "7"]).unwrap_err().code(), 7);
        assert!(run(&["dance"]).unwrap_err().to_string().contains("unknown action \"dance\""));
        assert!(run(&["serve", "x"]).unwrap_err().to_string().contains("is not a number"));
    }
}
