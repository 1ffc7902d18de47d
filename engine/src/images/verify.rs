//! `POST /images/verify`, Berth's own: every stored byte against its digest, every image against what it refers to. One
//! line for each fault, `{"id", "error"}`, and a last one with the totals.

use super::{ImageError, Images, names::RecordName, progress::Gone, progress::Lines};
use crate::supervisor::SupervisorError;
use proto::{
    berth::content::v1::{ObjectKind, VerifiedObject, VerifyEvent, VerifyRequest, VerifyTotals, verify_event::Event},
    kind::{ErrorKind, chain},
};
use serde_json::{Value, json};

/// A check whose supervisor has begun.
pub struct Verify(tonic::Streaming<VerifyEvent>);

impl Images {
    /// Begins; of certain images, or of everything. What fails before there is something to tell is an error status.
    pub async fn begin_verify(&self, names: &[&str]) -> Result<Verify, ImageError> {
        let mut images = Vec::new();
        for name in names {
            let group = self.resolve_group(name).await?;
            images.extend(group.records.into_iter().map(|record| record.name));
        }
        images.sort();
        images.dedup();
        let request = VerifyRequest { images };
        let call = |client: crate::supervisor::Client, request| async move { client.store().verify(request).await };
        let begun = self.client.retry(request, call).await;
        begun.map(Verify).map_err(|error| match error.kind() {
            ErrorKind::Unimplemented => ImageError::Unimplemented(
                "verify images: the supervisor cannot do it: it lacks berth.content.v1, use berth-supervisor".into(),
            ),
            _ => ImageError::supervisor("verify", "images", error),
        })
    }
}

impl Verify {
    /// Tells what is wrong, to the end.
    pub async fn relay(mut self, lines: &Lines) -> Result<(), Gone> {
        let mut ended = false;
        loop {
            let event = match self.0.message().await {
                Ok(Some(event)) => event,
                Ok(None) if ended => return Ok(()),
                Ok(None) => {
                    let error = SupervisorError::Protocol("it ended without totals".into());
                    return lines.write_value(&failure(&error)).await;
                }
                Err(status) => return lines.write_value(&failure(&status.into())).await,
            };
            match event.event {
                Some(Event::Object(object)) => {
                    for line in of_object(&object) {
                        lines.write_value(&line).await?;
                    }
                }
                Some(Event::Totals(totals)) => {
                    ended = true;
                    lines.write_value(&of_totals(&totals)).await?;
                }
                Some(Event::Plan(_)) | None => {}
            }
        }
    }
}

fn failure(error: &SupervisorError) -> Value {
    let text = format!("verify images: {}", chain(error));
    json!({"errorDetail": {"message": text}, "error": text})
}

fn of_object(object: &VerifiedObject) -> Vec<Value> {
    let id = match object.kind() {
        ObjectKind::Image => match RecordName::parse(&object.name).reference() {
            Some(reference) => reference.familiar(),
            None => object.name.clone(),
        },
        _ => object.name.clone(),
    };
    object.problems.iter().map(|problem| json!({"id": id, "error": problem})).collect()
}

fn of_totals(totals: &VerifyTotals) -> Value {
    let VerifyTotals { blobs, bytes, images, snapshots, remakeable, faulty } = *totals;
    let status = match faulty {
        0 => "everything is as it should be".to_owned(),
        1 => "1 object is damaged".to_owned(),
        many => format!("{many} objects are damaged"),
    };
    json!({
        "status": status, "blobs": blobs, "bytes": bytes, "images": images, "snapshots": snapshots,
        "remakeable": remakeable, "errors": faulty,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let object = |kind: ObjectKind, name: &str, problems: &[&str]| VerifiedObject {
            kind: kind.into(),
            name: name.into(),
            problems: problems.iter().map(|p| (*p).to_owned()).collect(),
            ..VerifiedObject::default()
        };
        assert!(of_object(&object(ObjectKind::Blob, "sha256:1", &[])).is_empty());
        let image = object(ObjectKind::Image, "docker.io/library/a:1", &["x is missing", "y too"]);
        let expected = [json!({"id": "a:1", "error": "x is missing"}), json!({"id": "a:1", "error": "y too"})];
        assert_eq!(of_object(&image), expected);
        let totals = of_totals(&VerifyTotals { blobs: 3, faulty: 1, ..VerifyTotals::default() });
        assert_eq!(
            (&totals["status"], &totals["blobs"], &totals["errors"]),
            (&json!("1 object is damaged"), &json!(3), &json!(1))
        );
    }
}
