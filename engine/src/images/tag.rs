//! `docker tag`: one more name for an image.

use super::{ImageError, Images, ResolvedImage};
use proto::{containerd::types::Descriptor, image_ref::ImageRef};

/// The name that `repo` and `tag` make; `latest` without a tag.
pub fn new_name(repo: &str, tag: Option<&str>) -> Result<ImageRef, ImageError> {
    // "sha256:abc" would look like an id ever after.
    if repo == "sha256" || repo.starts_with("sha256:") {
        return Err(ImageError::Invalid("refusing to create an ambiguous tag using digest algorithm as name".into()));
    }
    let name: ImageRef = repo.parse()?;
    if name.digest().is_some() {
        return Err(ImageError::Invalid("refusing to create a tag with a digest reference".into()));
    }
    match tag {
        Some(tag) => name.with_tag(tag).map_err(|_| ImageError::Invalid("invalid tag format".into())),
        None => Ok(name.with_default_tag()),
    }
}

impl Images {
    /// Gives a new image its name, or the record that keeps it without one.
    pub async fn name_new(&self, name: Option<&ImageRef>, target: &Descriptor) -> Result<(), ImageError> {
        let _names = self.names.lock().await;
        let Some(name) = name else {
            return self.put_record(&super::names::dangling_name(&target.digest), target).await;
        };
        let name = name.to_string();
        let kept = self.keep_displaced(&name, &self.records().await?).await?;
        let named = self.put_record(&name, target).await;
        self.settle_displaced(&name, kept).await?;
        named
    }

    /// Points `name` to the image; an image that had the name and no other is kept without one.
    pub async fn tag(&self, image: &ResolvedImage, name: &ImageRef) -> Result<(), ImageError> {
        let _names = self.names.lock().await;
        let name = name.to_string();
        let records = self.records().await?;
        let kept = self.keep_displaced(&name, &records).await?;
        let named = self.put_record(&name, &image.target).await;
        self.settle_displaced(&name, kept).await?;
        named?;
        // The image has a name now, so the record that kept it without one goes.
        let nameless = super::names::dangling_name(&image.target.digest);
        if records.iter().any(|record| record.name == nameless) {
            self.delete_record(&nameless).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |repo, tag| new_name(repo, tag).map(|n| n.to_string()).map_err(|e| e.to_string());
        assert_eq!(name("a", None), Ok("docker.io/library/a:latest".into()));
        assert_eq!(name("reg:5000/a", Some("1")), Ok("reg:5000/a:1".into()));
        assert_eq!(name("a:2", None), Ok("docker.io/library/a:2".into()));
        assert!(name("sha256", Some("abc")).unwrap_err().starts_with("refusing to create an ambiguous tag"));
        assert_eq!(name("a", Some("t ")), Err("invalid tag format".into()));
        assert!(name("A", None).unwrap_err().starts_with("invalid reference format"));
        assert!(name("", None).unwrap_err().starts_with("invalid reference format"));
    }
}
