//! `/images`: decode, call the rules, encode, tell the event bus.

use super::{ApiError, ApiResult, ApiVersion, Query, json};
use crate::{
    app::App,
    images::{
        ImageError, ImageGroup, ImageUser, ImageUsers,
        import::ImportRequest,
        list::{self, ListOptions},
        platform::Platform,
        progress::{Line, Lines},
        pull::PullRequest,
        push::PushRequest,
        remove::{PruneOptions, Removed},
        tag::new_name,
    },
    supervisor::transfer::Archive,
};
use axum::{
    body::{Body, BodyDataStream},
    extract::{Extension, Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use proto::digest::Digest;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// `GET /images/json`
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    RawQuery(query): RawQuery,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let options = ListOptions {
        filters: query.filters(list::FILTERS)?,
        shared_size: query.flag("shared-size"),
        manifests: query.flag("manifests"),
    };
    let mut images = app.images.list(&options, version).await?;
    if version.at_least(51) {
        let counts = app.containers.image_counts();
        for image in &mut images {
            image.count_containers(counts.get(image.id()).copied().unwrap_or(0));
        }
    }
    Ok(json(StatusCode::OK, &images))
}

/// `POST /images/create`: pull, or import with `fromSrc`.
pub async fn create(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let query = Query::parse(query.as_deref());
    match query.get("fromImage") {
        Some(image) => pull(app, image, &query, &headers).await,
        None if query.get("fromSrc").is_some() => import(app, &query, body).await,
        None => Err(ApiError::invalid("neither fromImage nor fromSrc is given")),
    }
}

async fn pull(app: Arc<App>, image: &str, query: &Query, headers: &HeaderMap) -> ApiResult {
    let auth = headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok());
    let request = PullRequest::parse(image, query.get("tag"), query.get("platform"), auth)?;
    if request.is_for_all_tags() {
        let tags = app.images.tags_of(&request.reference, request.credentials.clone()).await?;
        let (lines, body) = Lines::new();
        tokio::spawn(async move {
            if let Some(repository) = app.images.pull_tags(request, tags, &lines).await {
                let name = repository.familiar_repository();
                tell(&app, "pull", &name, name.clone(), BTreeMap::new());
            }
        });
        return Ok(progress(Body::from_stream(body)));
    }
    let pull = app.images.begin_pull(request).await?;
    let (lines, body) = Lines::new();
    tokio::spawn(async move {
        if let Some(reference) = app.images.finish_pull(pull, &lines).await {
            let name = reference.familiar();
            if let Ok(image) = app.images.resolve(&name).await {
                let labels = image.content.config.config.labels.clone();
                tell(&app, "pull", &name, reference.familiar_repository(), labels);
            }
        }
    });
    Ok(progress(Body::from_stream(body)))
}

async fn import(app: Arc<App>, query: &Query, body: Body) -> ApiResult {
    let request = ImportRequest::parse(
        query.get("fromSrc").unwrap_or_default(),
        query.get("repo"),
        query.get("tag"),
        query.get("message"),
        query.get("platform"),
        query.all("changes"),
    );
    let upload = Upload::new(body);
    // A task of its own: a client that goes away ends the body, and then what was begun is undone in order.
    let work = tokio::spawn(async move {
        let imported = async {
            let request = request?;
            let (name, labels) = (request.name.clone(), request.config.labels.clone());
            let id = app.images.import(request, upload.archive()).await?;
            if let Some(name) = name {
                tell(&app, "tag", &id.to_string(), name.familiar(), labels.clone());
            }
            tell(&app, "import", &id.to_string(), id.to_string(), labels);
            Ok::<Digest, ImageError>(id)
        };
        let imported = imported.await;
        upload.drain().await;
        imported
    });
    let id = work.await.map_err(|e| ApiError::internal(format!("import: {e}")))??;
    let (lines, body) = Lines::new();
    // Room for one line is there, so this does not wait.
    let _ = lines.write(Line::status(id.to_string())).await;
    drop(lines);
    Ok(progress(Body::from_stream(body)))
}

/// `platform`: a JSON object as clients from 1.46 on send it, or words.
fn platforms(query: &Query) -> ApiResult<Vec<Platform>> {
    let given = query.all("platform").filter(|text| !text.is_empty());
    let read = given.map(|text| {
        if text.starts_with('{') {
            let platform = serde_json::from_str::<Platform>(text);
            return platform.map(|p| p.normalized()).map_err(|e| ApiError::invalid(format!("invalid platform: {e}")));
        }
        Platform::parse(text).map_err(|e| ApiError::invalid(e.to_string()))
    });
    read.collect()
}

/// `POST /images/load`: always 200; failures are a line.
pub async fn load(State(app): State<Arc<App>>, RawQuery(query): RawQuery, body: Body) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let (quiet, platforms) = (query.flag("quiet"), platforms(&query)?);
    let (lines, answer) = Lines::new();
    tokio::spawn(async move {
        let upload = Upload::new(body);
        for loaded in app.images.load(upload.archive(), platforms, quiet, &lines).await {
            let labels = labels_of(&app, &loaded.id).await;
            tell(&app, "load", &loaded.id.to_string(), loaded.id.to_string(), labels);
        }
        upload.drain().await;
    });
    Ok(progress(Body::from_stream(answer)))
}

/// `GET /images/{name}/json`, `/history`, `/get`: names hold slashes, so the last segment is looked at here.
pub async fn get_one(
    State(app): State<Arc<App>>,
    Extension(version): Extension<ApiVersion>,
    RawQuery(query): RawQuery,
    Path(path): Path<String>,
) -> ApiResult {
    match path.rsplit_once('/') {
        Some((name, "json")) => Ok(json(StatusCode::OK, &app.images.inspect(name, version).await?)),
        Some((name, "history")) => Ok(json(StatusCode::OK, &app.images.history(name).await?)),
        Some((name, "get")) => save(&app, &[name], platforms(&Query::parse(query.as_deref()))?).await,
        Some((_, action @ "attestations")) => Err(unbuilt("GET", action)),
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// `GET /images/get?names=a&names=b`
pub async fn get_many(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let names: Vec<&str> = query.all("names").collect();
    save(&app, &names, platforms(&query)?).await
}

async fn save(app: &App, names: &[&str], platforms: Vec<Platform>) -> ApiResult {
    let (saved, images) = app.images.begin_save(names, platforms).await?;
    for image in images {
        tell(app, "save", &image.id.to_string(), image.id.to_string(), image.content.config.config.labels.clone());
    }
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(saved.into_stream())).into_response())
}

/// `POST /images/{name}/tag`, `/push`.
pub async fn post_one(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> ApiResult {
    match path.rsplit_once('/') {
        Some((name, "tag")) => {
            let query = Query::parse(query.as_deref());
            let target = new_name(query.raw("repo").unwrap_or_default(), query.get("tag"))?;
            let image = app.images.resolve(name).await?;
            app.images.tag(&image, &target).await?;
            let labels = image.content.config.config.labels.clone();
            tell(&app, "tag", &image.id.to_string(), target.familiar(), labels);
            Ok(StatusCode::CREATED.into_response())
        }
        Some((name, "push")) => push(app, name, &Query::parse(query.as_deref()), &headers),
        _ => Err(ApiError::not_found("page not found")),
    }
}

// Answers at once: also what fails first is a line, as docker has it.
fn push(app: Arc<App>, name: &str, query: &Query, headers: &HeaderMap) -> ApiResult {
    let auth = headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok());
    let platform = platforms(query)?.into_iter().next();
    let request = PushRequest::parse(name, query.get("tag"), platform, auth)?;
    let (lines, body) = Lines::new();
    tokio::spawn(async move {
        for reference in app.images.push(request, &lines).await {
            let name = reference.familiar();
            let labels = match app.images.resolve(&name).await {
                Ok(image) => image.content.config.config.labels.clone(),
                Err(_) => BTreeMap::new(),
            };
            tell(&app, "push", &name, reference.familiar_repository(), labels);
        }
    });
    Ok(progress(Body::from_stream(body)))
}

/// `POST /images/verify`, Berth's own.
pub async fn verify(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref());
    let names: Vec<&str> = query.all("names").collect();
    let verify = app.images.begin_verify(&names).await?;
    let (lines, body) = Lines::new();
    tokio::spawn(async move {
        // A client that goes away ends it.
        let _ = verify.relay(&lines).await;
    });
    Ok(progress(Body::from_stream(body)))
}

/// `DELETE /images/{name}`
pub async fn remove(State(app): State<Arc<App>>, RawQuery(query): RawQuery, Path(name): Path<String>) -> ApiResult {
    let force = Query::parse(query.as_deref()).flag("force");
    let (group, removed) = app.images.remove(&name, force, &*app).await?;
    tell_removed(&app, &group, &removed);
    Ok(json(StatusCode::OK, &removed))
}

/// `POST /images/prune`
pub async fn prune(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> ApiResult {
    let filters = Query::parse(query.as_deref()).filters(&["dangling", "label", "label!", "until"])?;
    let options = PruneOptions {
        named: filters.boolean("dangling")? == Some(false),
        until: list::until(&filters)?,
        labels: &|labels| filters.labels(labels),
        only: None,
    };
    let (done, freed) = app.images.prune(&options, &*app).await?;
    let mut lines = Vec::new();
    for (group, removed) in done {
        tell_removed(&app, &group, &removed);
        lines.extend(removed);
    }
    app.events.publish("image", "prune", "", BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]));
    let lines = if lines.is_empty() { json!(null) } else { json!(lines) };
    Ok(json(StatusCode::OK, &json!({"ImagesDeleted": lines, "SpaceReclaimed": freed})))
}

impl ImageUsers for App {
    fn users_of(&self, image: &Digest) -> Vec<ImageUser> {
        self.containers.image_users(&image.to_string())
    }
}

fn unbuilt(method: &str, action: &str) -> ApiError {
    ApiError::not_implemented(format!("{method} /images/{{name}}/{action} is not implemented in berth yet"))
}

/// How long a client may take to send the rest of an archive that nobody wants any more.
const DRAIN: Duration = Duration::from_secs(30);

/// The body of a request that holds an archive.
#[derive(Clone)]
struct Upload(Arc<Mutex<BodyDataStream>>);

impl Upload {
    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body.into_data_stream())))
    }

    /// The bytes for whoever reads them.
    fn archive(&self) -> Archive {
        Box::pin(futures_util::stream::unfold(self.clone(), async |upload| {
            let piece = upload.0.lock().await.next().await?;
            Some((piece.map_err(std::io::Error::other), upload))
        }))
    }

    /// Reads what was left over. A client in the middle of sending would otherwise see a broken connection instead of
    /// the answer that says why.
    async fn drain(self) {
        let mut body = self.0.lock().await;
        let rest = async { while let Some(Ok(_)) = body.next().await {} };
        if tokio::time::timeout(DRAIN, rest).await.is_err() {
            tracing::debug!("client cut off in the middle of its archive");
        }
    }
}

fn progress(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn tell(app: &App, action: &str, id: &str, name: String, mut attributes: BTreeMap<String, String>) {
    attributes.insert("name".into(), name);
    app.events.publish("image", action, id, attributes);
}

/// Tells the event bus what a removal did.
pub fn tell_removed(app: &App, group: &ImageGroup, removed: &[Removed]) {
    let id = group.id.to_string();
    for one in removed {
        match one {
            Removed::Untagged(_) => tell(app, "untag", &id, id.clone(), group.content.config.config.labels.clone()),
            Removed::Deleted(_) => tell(app, "delete", &id, id.clone(), BTreeMap::new()),
        }
    }
}

async fn labels_of(app: &App, id: &Digest) -> BTreeMap<String, String> {
    match app.images.resolve(&id.to_string()).await {
        Ok(image) => image.content.config.config.labels.clone(),
        Err(_) => BTreeMap::new(),
    }
}
