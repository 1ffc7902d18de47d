//! The proxy that makes the weather.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;

/// What is done to the answer of a request.
#[derive(Clone)]
pub(crate) enum Act {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The connection ends after so many bytes of the request's body.
    CutRequest(usize),
    /// One byte of the body is another.
    Corrupt(usize),
    /// Nothing comes any more after so many bytes of the body.
    Stall(usize),
    /// A redirect to another port.
    Redirect(u16),
    /// A status line with headers, in place of the answer.
    Status(&'static str, &'static str),
    /// The body never ends.
    Endless,
    /// The header promises another length.
    Claim(u64),
    /// Another body, as long as it likes.
    Swap(&'static [u8]),
    /// Slowly.
    Delay(Duration),
}

/// For the first so many requests of which the line holds all these words.
pub(crate) struct Rule {
    words: String,
    pub(crate) times: u32,
    act: Act,
}

pub(crate) fn rule(words: &str, times: u32, act: Act) -> Rule {
    Rule { words: words.to_owned(), times, act }
}

/// The proxy's state: what it has yet to do, and what it has seen.
#[derive(Default)]
pub(crate) struct Sky {
    pub(crate) rules: Vec<Rule>,
    /// One line per request: method, path, authorization, range.
    pub(crate) seen: Vec<String>,
    /// Each token is good for so many requests, if they are wanted at all.
    pub(crate) token_uses: Option<u32>,
    pub(crate) token: Option<(String, u32)>,
    pub(crate) tokens: u32,
    /// Pages of tags are answered here.
    pub(crate) tags: Vec<String>,
    /// The answer to a search.
    pub(crate) search: Option<serde_json::Value>,
    // Kept open for stalls.
    pub(crate) held: Vec<TcpStream>,
}

impl Sky {
    pub(crate) fn count(&self, words: &str) -> usize {
        self.seen.iter().filter(|line| words.split(' ').all(|word| line.contains(word))).count()
    }
}

/// A proxy before the registry at `upstream`, until the test's process ends.
pub(crate) fn under(upstream: u16, sky: Sky) -> (u16, Arc<Mutex<Sky>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let shared = Arc::new(Mutex::new(sky));
    let sky = shared.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sky = sky.clone();
            std::thread::spawn(move || pass(stream, port, upstream, &sky));
        }
    });
    (port, shared)
}

fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        // A client that tries TLS first.
        if head.is_empty() && byte[0] == 0x16 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1);
    lines.filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
}

fn pass(mut client: TcpStream, port: u16, upstream: u16, sky: &Mutex<Sky>) {
    let Some(head) = head_of(&mut client) else { return };
    let line = head.lines().next().unwrap().to_owned();
    let (method, path) = (line.split(' ').next().unwrap(), line.split(' ').nth(1).unwrap());
    let authorization = header(&head, "authorization").unwrap_or("-").to_owned();
    let act = {
        let mut sky = sky.lock().unwrap();
        let range = header(&head, "range").or(header(&head, "content-range")).unwrap_or("-");
        sky.seen.push(format!("{method} {path} auth={authorization} range={range}"));
        if let Some(answer) = own_answer(&mut sky, port, path, &authorization) {
            let length: u64 = header(&head, "content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
            let _ = std::io::copy(&mut (&client).take(length), &mut std::io::sink());
            let _ = client.write_all(answer.as_bytes());
            return;
        }
        let found = sky.rules.iter_mut().find(|rule| rule.times > 0 && rule.words.split(' ').all(|w| line.contains(w)));
        found.map(|rule| {
            rule.times -= 1;
            rule.act.clone()
        })
    };
    let length: usize = header(&head, "content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    match &act {
        Some(Act::Status(status, headers)) => {
            // Unread, it would become a reset that may hide the answer.
            let _ = std::io::copy(&mut (&client).take(length as u64), &mut std::io::sink());
            let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
            let _ = client.write_all(text.as_bytes());
            return;
        }
        Some(Act::Redirect(port)) => {
            let text = format!(
                "HTTP/1.1 307 x\r\nConnection: close\r\nContent-Length: 0\r\nLocation: http://127.0.0.1:{port}{path}\r\n\r\n"
            );
            let _ = client.write_all(text.as_bytes());
            return;
        }
        Some(Act::Delay(pause)) => std::thread::sleep(*pause),
        _ => {}
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", upstream)) else { return };
    let kept = head.split("\r\n").filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        !line.is_empty() && name != "connection" && name != "authorization"
    });
    let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
    if server.write_all(format!("{kept}Connection: close\r\n\r\n").as_bytes()).is_err() {
        return;
    }
    let taken = match act {
        Some(Act::CutRequest(after)) => after.min(length),
        _ => length,
    };
    let mut rest = taken;
    let mut chunk = vec![0; 64 << 10];
    while rest > 0 {
        let n = client.read(&mut chunk[..rest.min(64 << 10)]).unwrap_or(0);
        if n == 0 || server.write_all(&chunk[..n]).is_err() {
            return;
        }
        rest -= n;
    }
    if taken < length {
        return; // both connections end
    }
    let Some(answer) = head_of(&mut server) else { return };
    let mut body = Vec::new();
    if method != "HEAD" {
        let _ = server.read_to_end(&mut body);
    }
    send(client, &answer, body, act, sky);
}

fn send(mut client: TcpStream, head: &str, mut body: Vec<u8>, act: Option<Act>, sky: &Mutex<Sky>) {
    let mut head = head.to_owned();
    let with_length = |head: &str, length: Option<u64>| {
        let kept = head.split("\r\n").filter(|line| {
            !line.is_empty() && !line.to_ascii_lowercase().starts_with("content-length:") && !line.contains("chunked")
        });
        let mut text: String = kept.map(|line| format!("{line}\r\n")).collect();
        if let Some(length) = length {
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text + "\r\n"
    };
    let mut cut = None;
    match act {
        Some(Act::Corrupt(at)) if at < body.len() => body[at] ^= 1,
        Some(Act::Claim(length)) => head = with_length(&head, Some(length)),
        Some(Act::Swap(bytes)) => {
            body = bytes.to_vec();
            head = with_length(&head, Some(body.len() as u64));
        }
        Some(Act::Endless) => {
            head = with_length(&head, None);
            let _ = client.write_all(head.as_bytes());
            while client.write_all(&body).is_ok() && client.write_all(&[0; 4096]).is_ok() {}
            return;
        }
        Some(Act::Cut(after) | Act::Stall(after)) => cut = Some(after.min(body.len())),
        _ => {}
    }
    let sent = &body[..cut.unwrap_or(body.len())];
    let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(sent));
    if matches!(act, Some(Act::Stall(_))) {
        sky.lock().unwrap().held.push(client);
        return;
    }
    let _ = client.shutdown(Shutdown::Write);
    let _ = client.read(&mut [0]);
}

// Tokens and tags are the proxy's own.
fn own_answer(sky: &mut Sky, port: u16, path: &str, authorization: &str) -> Option<String> {
    let answer = |headers: String, body: String| {
        format!("HTTP/1.1 {headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    if path.starts_with("/token") {
        sky.tokens += 1;
        let token = format!("token-{}", sky.tokens);
        sky.token = Some((token.clone(), sky.token_uses.unwrap_or(0)));
        let mut body = json!({"token": token, "expires_in": 3600});
        if path.contains("offline_token=true") {
            body["refresh_token"] = "an identity".into();
        }
        // Who comes with the wrong password gets none.
        if authorization.starts_with("Basic") && !authorization.ends_with("bWU6c2VjcmV0") {
            let details = json!({"details": "incorrect username or password"}).to_string();
            return Some(answer("401 Unauthorized\r\n".into(), details));
        }
        return Some(answer("200 OK\r\n".into(), body.to_string()));
    }
    if let Some(found) = sky.search.as_ref().filter(|_| path.starts_with("/v1/search")) {
        return Some(answer("200 OK\r\n".into(), found.to_string()));
    }
    if sky.token_uses.is_some() && path.starts_with("/v2/") {
        let good = sky.token.as_mut().is_some_and(|(token, left)| {
            let good = *left > 0 && authorization == format!("Bearer {token}");
            *left -= u32::from(good);
            good
        });
        if !good {
            let challenge = format!(
                "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"\r\n"
            );
            return Some(answer(challenge, String::new()));
        }
    }
    let query = path.strip_prefix("/v2/many/tags/list")?;
    let last = query.split(['?', '&']).find_map(|p| p.strip_prefix("last="));
    let start = last.and_then(|last| sky.tags.iter().position(|tag| tag == last)).map_or(0, |at| at + 1);
    let page = &sky.tags[start..sky.tags.len().min(start + 100)];
    let mut headers = "200 OK\r\n".to_owned();
    if start + page.len() < sky.tags.len() {
        headers += &format!("Link: </v2/many/tags/list?n=100&last={}>; rel=\"next\"\r\n", page.last().unwrap());
    }
    Some(answer(headers, json!({"name": "many", "tags": page}).to_string()))
}
