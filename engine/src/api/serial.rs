//! How Go clients write JSON: `null` wherever a value is empty, a string where a list of one was meant, sets as maps of
//! empty objects.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
};

/// `null` reads as the default of the type.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A list of words, or one string that is the only word (API before 1.20 and image files of that time).
pub fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}

/// A list or a map that may be `null`: used like an empty one, and shown again as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrNull<T> {
    value: T,
    null: bool,
}

impl<T: Default> Default for OrNull<T> {
    fn default() -> Self {
        Self { value: T::default(), null: true }
    }
}

impl<T> From<T> for OrNull<T> {
    fn from(value: T) -> Self {
        Self { value, null: false }
    }
}

impl<T> Deref for OrNull<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for OrNull<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<'a, T> IntoIterator for &'a OrNull<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.value.into_iter()
    }
}

impl<T: Serialize + Default + PartialEq> Serialize for OrNull<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.null && self.value == T::default() {
            return serializer.serialize_none();
        }
        self.value.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for OrNull<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<T>::deserialize(deserializer)?.map_or_else(Self::default, Self::from))
    }
}

/// `null` for an empty list.
pub fn null_if_empty<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { list.serialize(serializer) }
}

/// A set, written `{"80/tcp": {}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set(pub BTreeSet<String>);

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for key in &self.0 {
            map.serialize_entry(key, &serde_json::Map::new())?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(deserializer)?.unwrap_or_default();
        Ok(Self(map.into_iter().map(|(key, _)| key).collect()))
    }
}

/// Whether a JSON value is what Go leaves in a field that nobody set.
pub fn is_zero(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_zero),
    }
}
