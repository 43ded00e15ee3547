//! JSON objects, and nothing else, where the description of the API says so.
//!
//! serde reads a struct from a list of its fields' values, too: `[]` would be a request of which everything was left out.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads what it holds from an object alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(OfFields(PhantomData)).map(Object)
    }
}

struct OfFields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OfFields<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

/// Reads an object that may be left out.
///
/// # Errors
/// If it is something else.
pub(crate) fn maybe<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Reads a list of objects.
///
/// # Errors
/// If it is something else.
pub(crate) fn each<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Object<T>>::deserialize(deserializer)?.into_iter().map(|object| object.0).collect())
}

#[cfg(test)]
mod tests {
    use crate::{BeatsRequest, CreateRequest};

    use super::*;

    fn refused<T: for<'de> Deserialize<'de> + fmt::Debug>(text: &str) -> bool {
        serde_json::from_str::<Object<T>>(text).unwrap_err().to_string().contains("expected an object")
    }

    #[test]
    fn a_list_is_no_object_however_deep() {
        assert!(serde_json::from_str::<Object<CreateRequest>>(r#"{"lane":"l","claim":{"executor":"e"}}"#).is_ok());
        assert!(refused::<CreateRequest>(r#"["l"]"#));
        assert!(refused::<CreateRequest>(r#"{"lane":"l","claim":["e"]}"#));
        assert!(serde_json::from_str::<Object<CreateRequest>>(r#"{"lane":"l","claim":null}"#).is_ok());
        assert!(refused::<BeatsRequest>(r#"{"beats":[["0190a1b2-0000-7000-8000-000000000000",1]]}"#));
    }
}
