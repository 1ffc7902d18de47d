//! `login` and `logout`.

use super::App;
use crate::args::registry::{LoginArgs, LogoutArgs};
use crate::client::{Call, Client};
use crate::credentials::{AuthConfig, HUB, HUB_KEY, Kept, host_of, key_of};
use crate::exit::{Failure, Outcome};
use crate::output;
use crate::terminal;
use serde::Deserialize;
use std::io::{self, BufRead, Read, Write};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Accepted {
    status: String,
    identity_token: String,
}

const NOT_A_TERMINAL: &str = "Error: Cannot perform an interactive login from a non TTY device";

/// Runs `login`.
pub async fn run(app: &App, args: &LoginArgs) -> Outcome {
    let password = password(args)?;
    warn_of_variable(app);
    let key = match args.server.as_deref().map(host_of) {
        None | Some("") | Some(HUB) => HUB_KEY,
        Some(host) => key_of(host),
    };
    let client = app.client().await?;
    let mut known = AuthConfig { server: key.to_owned(), ..AuthConfig::default() };
    if args.username.is_none() && password.is_none() {
        let stored = app.config.credentials.of(key);
        if !stored.username.is_empty() && !stored.password.is_empty() {
            output::note(&format!("Authenticating with existing credentials... [Username: {}]", stored.username));
            output::note(
                "\n Info -> To login with a different account, run 'berth logout' followed by 'berth login'\n\n",
            );
            match ask(&client, &stored).await {
                Ok(accepted) => return keep(app, stored, accepted, true),
                Err(error) => output::note(&format!("Login did not succeed, error: {error}")),
            }
        }
        known.username = stored.username;
    }
    let auth = complete(known, args.username.as_deref(), password).await?;
    let accepted = ask(&client, &auth).await?;
    keep(app, auth, accepted, false)
}

/// The password of the flags or of standard input.
fn password(args: &LoginArgs) -> Outcome<Option<String>> {
    let given = args.password.as_deref().filter(|password| !password.is_empty());
    if args.password_stdin && given.is_some() {
        let text = "conflicting options: cannot specify both --password and --password-stdin";
        return Err(Failure::Refused(text.to_owned()));
    }
    if let Some(password) = given {
        output::note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        return Ok(Some(password.to_owned()));
    }
    if !args.password_stdin {
        return Ok(None);
    }
    if args.username.as_deref().unwrap_or_default().is_empty() {
        let text = "the --password-stdin option requires --username to be set";
        return Err(Failure::Refused(text.to_owned()));
    }
    let mut text = String::new();
    // A token is short; whatever is longer was not meant for us.
    let read = io::stdin().lock().take(64 * 1024).read_to_string(&mut text);
    read.map_err(|cause| Failure::io("read the password from standard input", cause))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

/// Asks the user for what is missing.
async fn complete(mut auth: AuthConfig, username: Option<&str>, password: Option<String>) -> Outcome<AuthConfig> {
    let username = username.map(str::trim).filter(|name| !name.is_empty());
    if (username.is_none() || password.is_none()) && !terminal::stdin_is_terminal() {
        return Err(Failure::Refused(NOT_A_TERMINAL.to_owned()));
    }
    match username {
        Some(name) => name.clone_into(&mut auth.username),
        None => {
            if auth.server == HUB_KEY {
                output::print_line(
                    "Log in to Docker Hub with your Docker ID or email address, and with your password or, better, a personal access token.",
                )?;
            }
            let known = std::mem::take(&mut auth.username);
            let typed = match known.as_str() {
                "" => prompt("Username: ".to_owned(), false).await?,
                known => prompt(format!("Username ({known}): "), false).await?,
            };
            auth.username = if typed.is_empty() { known } else { typed };
            if auth.username.is_empty() {
                return Err(Failure::Refused("Error: Non-null Username Required".to_owned()));
            }
        }
    }
    auth.password = match password {
        Some(password) => password,
        None => prompt("Password: ".to_owned(), true).await?,
    };
    if auth.password.is_empty() {
        return Err(Failure::Refused("Error: Password Required".to_owned()));
    }
    Ok(auth)
}

/// One line from the terminal; a secret one does not appear on it.
async fn prompt(question: String, secret: bool) -> Outcome<String> {
    let fault = |cause| Failure::io("read the terminal", cause);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    output::print(&question)?;
    let silence = if secret { Some(terminal::NoEcho::enter().map_err(fault)?) } else { None };
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    // The echo comes back on every way out of here.
    let line = tokio::select! {
        line = line => line.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(fault)?,
        _ = interrupt.recv() => {
            drop(silence);
            // The cursor is still on the line of the question.
            let _ = writeln!(io::stdout());
            return Err(Failure::Exit(130));
        }
    };
    if silence.is_some() {
        output::print("\n")?;
    }
    let line = if secret { line.trim_end_matches(['\r', '\n']) } else { line.trim() };
    Ok(line.to_owned())
}

async fn ask(client: &Client, auth: &AuthConfig) -> Outcome<Accepted> {
    Ok(client.send(Call::post("/auth").json(auth)).await?.json().await?)
}

/// Keeps what the registry has accepted: its token in place of the password, if it gave one. Who has credentials in a file
/// already has been warned.
fn keep(app: &App, mut auth: AuthConfig, accepted: Accepted, known: bool) -> Outcome {
    if !accepted.identity_token.is_empty() {
        auth.password.clear();
        auth.identity_token = accepted.identity_token;
    }
    if let Kept::Unencrypted(path) = app.config.credentials.keep(&auth)?
        && !known
    {
        output::note(&format!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n",
            path.display()
        ));
    }
    if accepted.status.is_empty() { Ok(()) } else { output::print_line(&accepted.status) }
}

/// Runs `logout`.
pub fn logout(app: &App, args: &LogoutArgs) -> Outcome {
    warn_of_variable(app);
    let hub = HUB_KEY.to_owned();
    let (host, keys) = match args.server.as_deref().filter(|server| !server.is_empty()) {
        None => (HUB_KEY, vec![hub]),
        Some(server) if key_of(host_of(server)) == HUB_KEY => (HUB_KEY, vec![hub]),
        Some(server) => {
            let host = host_of(server);
            // Older clients filed credentials under any of these.
            let mut keys: Vec<String> = [server, host]
                .into_iter()
                .map(str::to_owned)
                .chain(["http://", "https://"].map(|s| format!("{s}{host}")))
                .collect();
            keys.dedup();
            (host, keys)
        }
    };
    output::print_line(&format!("Removing login credentials for {host}"))?;
    let results: Vec<_> = keys.iter().map(|key| (key, app.config.credentials.forget(key))).collect();
    // One that worked is the one that counts: nobody keeps credentials under several of these names.
    if results.iter().all(|(_, result)| result.is_err()) {
        output::note("WARNING: could not erase credentials:");
        for (key, error) in results.iter().filter_map(|(key, result)| Some((key, result.as_ref().err()?))) {
            output::note(&format!("{key}: {error}"));
        }
    }
    Ok(())
}

fn warn_of_variable(app: &App) {
    if app.config.credentials.by_variable() {
        output::note(
            "WARNING: DOCKER_AUTH_CONFIG is set and wins over what login and logout keep: unset it to use that.",
        );
    }
}
