//! Which hosts are asked and how: hosts.toml, certs.d, TLS, passwords, mirrors, proxies, and questions to registries.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

use proto::{
    berth::registry::v1::{
        Auth, LoginRequest, ResolveRequest, SearchFilters, SearchRequest, registry_client::RegistryClient,
    },
    digest::Digest,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Client, Supervisor, request, unpacking},
    push::{fill, run},
    registries::{DockerRegistry, Fake},
    weather::{Act, Sky, rule, under},
};

const CONFIG: &str = "[registry]\nsilence = \"2s\"\nconfig-path = ['ROOT/own', 'ROOT/docker']\n";

// A self-signed certificate for this machine and for one name.
fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=berth test",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:reg.test",
            "-keyout",
            &at("server.key"),
            "-out",
            &at("server.crt"),
        ],
    );
    dir
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn image() -> Image {
    Image::new(&[layer(&[("a", &noise(1 << 20))])], gzip)
}

async fn log_in(client: &Client, host: &str, user: &str, password: &str) -> Result<String, Status> {
    let auth = Some(Auth { username: user.into(), password: password.into(), ..Default::default() });
    let asked = LoginRequest { host: host.into(), auth, ..Default::default() };
    let answer = RegistryClient::new(client.channel.clone()).login(request(asked)).await?.into_inner();
    assert_eq!(answer.status, "Login Succeeded");
    Ok(answer.identity_token)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_registry_with_a_certificate_of_its_own() {
    let certificates = certificates();
    let registry = DockerRegistry::start_locked(certificates.path());
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let host = format!("127.0.0.1:{}", registry.port);
    let image = image();
    client
        .import(image.oci_archive("io.containerd.image.name", "docker.io/library/mine:1"), &unpacking())
        .await
        .0
        .unwrap();
    let name = format!("{host}/app:1");
    let me = Some((host.as_str(), "me", "secret"));

    // This machine's registries need no certificate, as with docker.
    let refused = client.push_as("docker.io/library/mine:1", &name, None).await.0.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().starts_with(&format!("push access denied for {host}/app")), "{refused:?}");
    client.push_as("docker.io/library/mine:1", &name, me).await.0.unwrap();

    // Said to be verified, it is: unknown, then known, without a restart in between.
    let file = supervisor.root.join(format!("own/127.0.0.1_{}_/hosts.toml", registry.port));
    write(&file, &format!("server = 'https://{host}'"));
    let unknown = client.pull(&name, Some(("me", "secret")), &unpacking()).await.0.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable);
    let cure = format!("signed by unknown authority: put its CA's certificate into /etc/docker/certs.d/{host}/ca.crt");
    assert!(unknown.message().contains(&cure), "{unknown:?}");
    for (text, works) in [
        (format!("server = 'https://{host}'\nca = '{}/server.crt'", certificates.path().display()), true),
        (format!("server = 'https://{host}'\nskip_verify = true"), true),
        (format!("server = 'https://{host}'\nca = 'nothing.pem'"), false),
        ("capabilities = ['bull']".to_owned(), false),
    ] {
        write(&file, &text);
        let done = log_in(&client, &host, "me", "secret").await;
        assert_eq!(done.is_ok(), works, "{text}: {done:?}");
        if let Err(error) = done {
            assert!(
                error.message().contains("nothing.pem: ")
                    || error.message().contains("hosts.toml: capabilities: unknown"),
                "{error:?}"
            );
        }
    }
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    let folder = supervisor.root.join(format!("docker/{host}"));
    fs::create_dir_all(&folder).unwrap();
    fs::copy(certificates.path().join("server.crt"), folder.join("ca.crt")).unwrap();
    assert_eq!(log_in(&client, &host, "me", "secret").await.unwrap(), "");
    let wrong = log_in(&client, &format!("https://{host}/v2/"), "me", "guess").await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    assert_eq!(wrong.message(), format!("login attempt to https://{host}/v2/ failed with status: 401 Unauthorized"));
    let denied = client.pull(&name, None, &unpacking()).await.0.unwrap_err();
    assert!(denied.message().starts_with(&format!("pull access denied for {host}/app")), "{denied:?}");
    client.pull(&name, Some(("me", "secret")), &unpacking()).await.0.unwrap();
    client.push_as(&name, &format!("{host}/other:1"), me).await.0.unwrap();
    let raw = run(
        "skopeo",
        &["inspect", "--raw", "--tls-verify=false", "--creds=me:secret", &format!("docker://{host}/other:1")],
    );
    assert!(raw == image.manifest);

    // A name that the certificate isn't for, and no TLS where it is asked for.
    let other = format!("localhost:{}", registry.port);
    write(
        supervisor.root.join(format!("own/{other}/hosts.toml")),
        &format!("server = 'https://{other}'\nca = '{}/ca.crt'", folder.display()),
    );
    let error = log_in(&client, &other, "me", "secret").await.unwrap_err();
    assert!(error.message().contains("certificate is not valid for localhost"), "{error:?}");
    let plain = DockerRegistry::start();
    let host = format!("127.0.0.1:{}", plain.port);
    let file = supervisor.root.join(format!("own/{host}/hosts.toml"));
    write(&file, &format!("server = 'https://{host}'"));
    let error = log_in(&client, &host, "me", "secret").await.unwrap_err();
    assert!(error.message().contains("http: server gave HTTP response to HTTPS client"), "{error:?}");
    write(&file, &format!("server = 'https://{host}'\nskip_verify = true"));
    log_in(&client, &host, "me", "secret").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_certificate_of_us() {
    let certificates = certificates();
    let at = |name: &str| certificates.path().join(name).to_str().unwrap().to_owned();
    let request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=me"];
    run("openssl", &[&request[..], &["-keyout", &at("me.key"), "-out", &at("me.csr")]].concat());
    run(
        "openssl",
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &at("me.csr"),
            "-CA",
            &at("server.crt"),
            "-CAkey",
            &at("server.key"),
            "-CAcreateserial",
            "-out",
            &at("me.crt"),
        ],
    );
    let registry = DockerRegistry::start_choosy(certificates.path());
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let host = format!("127.0.0.1:{}", registry.port);
    let folder = supervisor.root.join(format!("docker/{host}"));
    fs::create_dir_all(&folder).unwrap();
    fs::copy(at("server.crt"), folder.join("ca.crt")).unwrap();
    let error = log_in(&client, &host, "", "").await.unwrap_err();
    assert!(error.message().contains("put them as client.cert and client.key into"), "{error:?}");
    for (from, to) in [("me.crt", "client.cert"), ("me.key", "client.key")] {
        fs::copy(at(from), folder.join(to)).unwrap();
    }
    log_in(&client, &host, "", "").await.unwrap();
    let file = supervisor.root.join(format!("own/{host}/hosts.toml"));
    let pair = format!("[['{}', '{}']]", at("me.crt"), at("me.key"));
    write(file, &format!("server = 'https://{host}'\nca = '{}'\nclient = {pair}", at("server.crt")));
    log_in(&client, &host, "", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_in_order_and_the_server_last() {
    let image = image();
    let full = DockerRegistry::start();
    fill(&image, &format!("127.0.0.1:{}/app:1", full.port));
    let empty = DockerRegistry::start();
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let dead = testing::free_port();
    let (lacking, lacking_sky) = under(empty.port, Sky::default());
    let (broken, broken_sky) =
        under(full.port, Sky { rules: vec![rule("GET", 99, Act::Status("500 x", ""))], ..Sky::default() });
    let (corrupt, corrupt_sky) =
        under(full.port, Sky { rules: vec![rule("GET blobs", 9, Act::Corrupt(9))], ..Sky::default() });
    let (server, server_sky) = under(full.port, Sky { token_uses: Some(99), ..Sky::default() });
    let file = supervisor.root.join(format!("own/127.0.0.1:{server}/hosts.toml"));
    let mirror = |port: u16, more: &str| format!("[host.'http://127.0.0.1:{port}']\ncapabilities = ['pull'{more}]\n");
    let both = ", 'resolve'";
    write(
        &file,
        &format!("{}{}{}{}", mirror(dead, both), mirror(lacking, both), mirror(broken, both), mirror(corrupt, "")),
    );
    let name = format!("127.0.0.1:{server}/app:1");
    client.pull(&name, Some(("me", "secret")), &unpacking()).await.0.unwrap();
    assert_eq!(client.snapshots().await.len(), 1);
    for sky in [&lacking_sky, &broken_sky, &corrupt_sky] {
        let sky = sky.lock().unwrap();
        let ns = format!("ns=127.0.0.1%3A{server}");
        assert!(sky.count(&ns) == sky.seen.len() && sky.count("auth=-") == sky.seen.len(), "{:?}", sky.seen);
    }
    assert!(lacking_sky.lock().unwrap().count("manifests/1") == 1);
    assert!(corrupt_sky.lock().unwrap().count("manifests/1") == 0, "has no capability to resolve");
    assert!(corrupt_sky.lock().unwrap().count("GET blobs") >= 1);
    assert!(server_sky.lock().unwrap().count("ns=") == 0);

    // None of them: each is named with its reason.
    let error =
        client.pull(&format!("127.0.0.1:{server}/app:2"), Some(("me", "secret")), &unpacking()).await.0.unwrap_err();
    let words = [
        format!("manifest for 127.0.0.1:{server}/app:2 not found"),
        format!("http://127.0.0.1:{dead}/v2: registry 127.0.0.1:{dead} can't be reached"),
        format!("http://127.0.0.1:{lacking}/v2: manifest for"),
        format!("http://127.0.0.1:{broken}/v2: registry 127.0.0.1:{broken} answered 500"),
    ];
    assert_eq!(error.code(), Code::NotFound);
    assert!(words.iter().all(|words| error.message().contains(words)), "{error:?}");

    // Pushes pass by those that don't take any.
    let pushed = format!("127.0.0.1:{server}/app:3");
    client.push_as(&name, &pushed, Some(("", "me", "secret"))).await.0.unwrap();
    assert!(server_sky.lock().unwrap().count("PUT manifests/3") >= 1);
    assert_eq!(lacking_sky.lock().unwrap().count("PUT"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_corrupt_mirror_sent_is_unpacked_again_from_what_is_stored() {
    // Large, so that unpacking meets the damage long before the digest shows it.
    let image = Image::new(&[layer(&[("a", &noise(8 << 20))]), layer(&[("b", &noise(8 << 20))])], gzip);
    let full = DockerRegistry::start();
    fill(&image, &format!("127.0.0.1:{}/app:1", full.port));
    let (corrupt, corrupt_sky) =
        under(full.port, Sky { rules: vec![rule("GET blobs", 9, Act::Corrupt(1))], ..Sky::default() });
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let server = full.port;
    write(
        supervisor.root.join(format!("own/127.0.0.1:{server}/hosts.toml")),
        &format!("[host.'http://127.0.0.1:{corrupt}']\ncapabilities = ['pull']\n"),
    );
    client.pull(&format!("127.0.0.1:{server}/app:1"), None, &unpacking()).await.0.unwrap();
    assert!(corrupt_sky.lock().unwrap().count("GET blobs") >= 3, "config and layers");
    assert_eq!(client.snapshots().await.len(), 2);
    client.assert_sound().await;
}

// A proxy: CONNECT goes to `tls`, plain requests to `plain`, whatever host they name.
fn forward(plain: u16, tls: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = seen.clone();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let line = head.lines().next().unwrap().to_owned();
                let known = head.to_ascii_lowercase().contains("proxy-authorization: basic bwu6cebzdw==");
                shared.lock().unwrap().push(format!("{line} known={known}"));
                let tunnel = line.starts_with("CONNECT");
                let mut server = TcpStream::connect(("127.0.0.1", if tunnel { tls } else { plain })).unwrap();
                if tunnel {
                    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
                } else {
                    let path = line.split(' ').nth(1).unwrap().splitn(4, '/').nth(3).unwrap();
                    let rest = head.split_once("\r\n").unwrap().1;
                    let kept = rest.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
                    server.write_all(format!("GET /{path} HTTP/1.1\r\n{kept}").as_bytes()).unwrap();
                }
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    (port, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_proxy_plain_and_encrypted() {
    let certificates = certificates();
    let (plain, locked) = (DockerRegistry::start(), DockerRegistry::start_locked(certificates.path()));
    let image = image();
    fill(&image, &format!("127.0.0.1:{}/app:1", plain.port));
    let (proxy, seen) = forward(plain.port, locked.port);
    let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
    let root = dir.path().to_owned();
    write(root.join("config.toml"), &CONFIG.replace("ROOT", root.to_str().unwrap()));
    let address = format!("http://me:p%40sw@127.0.0.1:{proxy}");
    write(root.join("env"), &format!("HTTP_PROXY={address}\nhttps_proxy={address}\nNO_PROXY=direct.test\n"));
    let supervisor = Supervisor::start_in(root.clone(), Some(dir));
    let client = supervisor.client().await;
    write(root.join("own/plain.test/hosts.toml"), "server = 'http://plain.test'");
    client.pull("plain.test/app:1", None, &unpacking()).await.0.unwrap();
    assert!(
        seen.lock().unwrap().iter().any(|line| line == "GET http://plain.test/v2/app/manifests/1 HTTP/1.1 known=true")
    );
    fs::create_dir_all(root.join("docker/reg.test")).unwrap();
    fs::copy(certificates.path().join("server.crt"), root.join("docker/reg.test/ca.crt")).unwrap();
    log_in(&client, "reg.test", "me", "secret").await.unwrap();
    client.push_as("plain.test/app:1", "reg.test/app:1", Some(("reg.test", "me", "secret"))).await.0.unwrap();
    client.pull("reg.test/app:1", Some(("me", "secret")), &unpacking()).await.0.unwrap();
    assert!(seen.lock().unwrap().iter().any(|line| line == "CONNECT reg.test:443 HTTP/1.1 known=true"));
    let direct = log_in(&client, "direct.test", "me", "secret").await.unwrap_err();
    assert!(direct.message().starts_with("registry direct.test can't be reached"), "{direct:?}");
    assert!(!seen.lock().unwrap().iter().any(|line| line.contains("direct.test")));
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_come_from_their_makers() {
    let certificates = certificates();
    let maker = DockerRegistry::start_open(certificates.path());
    let image = image();
    let at = format!("127.0.0.1:{}", maker.port);
    fill(&image, &format!("{at}/theirs:1"));
    let blob = Digest::of(&image.layers[0]);
    let manifest = |urls: serde_json::Value| {
        let mut foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &image.layers[0]);
        foreign["urls"] = urls;
        let config = descriptor("application/vnd.docker.container.image.v1+json", &image.config);
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": config, "layers": [foreign],
        })
    };
    let mut fake = Fake::of(&image);
    fake.blobs.remove(&blob);
    let url = format!("https://{at}/v2/theirs/blobs/{blob}");
    let plain = url.replace("https", "http");
    fake.manifests.insert("1".into(), manifest(json!(["https://127.0.0.1:1/x", url])).to_string().into());
    fake.manifests.insert("plain".into(), manifest(json!([plain])).to_string().into());
    let (port, _) = fake.serve();
    let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
    let root = dir.path().to_owned();
    write(root.join("config.toml"), &CONFIG.replace("ROOT", root.to_str().unwrap()));
    // Known to the whole machine.
    write(root.join("env"), &format!("SSL_CERT_FILE={}/server.crt\n", certificates.path().display()));
    let supervisor = Supervisor::start_in(root, Some(dir));
    let client = supervisor.client().await;
    let name = format!("127.0.0.1:{port}/app:1");
    let error = client.pull(&format!("127.0.0.1:{port}/app:plain"), None, &unpacking()).await.0.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    assert_eq!(client.snapshots().await.len(), 1);
    // They are not given to other registries.
    let other = DockerRegistry::start();
    let (done, told) = client.push_as(&name, &format!("127.0.0.1:{}/app:1", other.port), None).await;
    assert!(told.iter().any(|p| p.event == "skipped" && p.name == blob.to_string()), "{done:?} {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let registry = DockerRegistry::start();
    let image = image();
    fill(&image, &format!("127.0.0.1:{}/app:1", registry.port));
    let mut registries = RegistryClient::new(client.channel.clone());
    let reference = format!("127.0.0.1:{}/app:1", registry.port);
    let asked = ResolveRequest { reference, ..Default::default() };
    let found = registries.resolve(request(asked.clone())).await.unwrap().into_inner();
    assert_eq!((found.digest, found.size as usize), (image.digest().to_string(), image.manifest.len()));
    assert!(found.manifest == image.manifest && found.config.is_empty());
    let asked = ResolveRequest { with_config: true, ..asked };
    let found = registries.resolve(request(asked)).await.unwrap().into_inner();
    assert!(found.config == image.config && found.image_digest == image.digest().to_string());
    let none = ResolveRequest { reference: format!("127.0.0.1:{}/app:none", registry.port), ..Default::default() };
    assert_eq!(registries.resolve(request(none)).await.unwrap_err().code(), Code::NotFound);

    let found = |name: &str, stars, official| json!({"name": name, "description": "d", "star_count": stars, "is_official": official});
    let results =
        json!({"num_results": 3, "results": [found("a", 9, true), found("b", 1, true), found("c", 9, false)]});
    let (port, sky) = under(registry.port, Sky { search: Some(results), token_uses: Some(99), ..Sky::default() });
    let filters = Some(SearchFilters { is_official: Some(true), stars: 3, ..Default::default() });
    let asked =
        SearchRequest { term: "some thing".into(), host: format!("127.0.0.1:{port}"), filters, ..Default::default() };
    let found = registries.search(request(asked.clone())).await.unwrap().into_inner().results;
    assert_eq!(found.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(sky.lock().unwrap().count("/v1/search?q=some%20thing&n=25"), 1);
    let error = registries.search(request(SearchRequest { limit: 101, ..asked })).await.unwrap_err();
    assert_eq!(error.message(), "limit 101 is outside the range of [1, 100]");

    // A registry with a token service: something to keep in place of the password.
    let host = format!("127.0.0.1:{port}");
    assert_eq!(log_in(&client, &host, "me", "secret").await.unwrap(), "an identity");
    let auth = Some(Auth { identity_token: "an identity".into(), ..Default::default() });
    let asked = ResolveRequest { reference: format!("{host}/app:1"), auth, ..Default::default() };
    registries.resolve(request(asked)).await.unwrap();
    assert_eq!(sky.lock().unwrap().count("POST /token auth=-"), 1);
    let wrong = log_in(&client, &host, "me", "guess").await.unwrap_err();
    let words = format!("Get \"http://{host}/v2/\": unauthorized: incorrect username or password");
    assert_eq!((wrong.code(), wrong.message()), (Code::Unauthenticated, words.as_str()));
}
