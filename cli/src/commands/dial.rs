//! `system dial-stdio`: a connection to the engine on standard input and output, for docker's ssh:// hosts.

use super::App;
use crate::exit::{Failure, Outcome};
use tokio::io::AsyncWriteExt;

/// Runs `system dial-stdio`.
pub async fn run(app: &App) -> Outcome {
    let client = app.client().await?;
    let (mut from, mut to) = tokio::io::split(client.raw().await?);
    let up = tokio::spawn(async move {
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
        // The end of the input is the end of the requests; answers may still be under way.
        let _ = to.shutdown().await;
        copied.map(drop)
    });
    let mut out = tokio::io::stdout();
    let down = async {
        tokio::io::copy(&mut from, &mut out).await?;
        out.flush().await
    };
    let result = down.await.map_err(|cause| Failure::io("copy from the engine", cause));
    // A read of standard input can't be interrupted, and must not hold up the end.
    up.abort();
    result
}
