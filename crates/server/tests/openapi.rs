//! The description of the API is made from the code; the copy that is checked in is the same.
#![allow(clippy::unwrap_used)]

mod support;

use lastbeat_testkit::Place;
use serde_json::{Value, json};
use support::Api;

/// Where the copy is.
const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

#[test]
fn the_copy_in_docs_has_not_drifted() {
    let made = lastbeat_server::openapi_json();
    if std::env::var_os("LASTBEAT_WRITE_OPENAPI").is_some() {
        std::fs::write(COPY, &made).unwrap();
    }
    let kept = std::fs::read_to_string(COPY).unwrap_or_default();
    assert!(kept == made, "docs/openapi.json is not what the code says; LASTBEAT_WRITE_OPENAPI=1 cargo test writes it");
}

#[test]
fn every_reference_leads_somewhere_and_every_route_says_what_it_is() {
    let document: Value = serde_json::from_str(&lastbeat_server::openapi_json()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    check_references(&document, &document);
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, route) in item.as_object().unwrap() {
            assert!(route["summary"].is_string(), "{method} {path}");
            assert!(route["responses"]["default"].is_object(), "{method} {path}");
        }
    }
}

fn check_references(document: &Value, part: &Value) {
    match part {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let found = document.pointer(reference.trim_start_matches('#'));
                assert!(found.is_some(), "{reference} leads nowhere");
            }
            fields.values().for_each(|part| check_references(document, part));
        }
        Value::Array(parts) => parts.iter().for_each(|part| check_references(document, part)),
        _ => {}
    }
}

#[tokio::test]
async fn the_docs_page_needs_nobody_else() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let api = Api::at(&place).await;
    for path in ["/docs", "/docs/page.js", "/docs/page.css"] {
        let said = api.get(path).await;
        assert_eq!(said.status, 200, "{path}");
        assert!(!said.text.contains("https://") && !said.text.contains("<script>"), "{path}");
        assert!(said.headers["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    }
    assert_eq!(api.get("/openapi.json").await.text, lastbeat_server::openapi_json());
    api.server.stop().await;
}

#[tokio::test]
async fn with_tokens_the_page_is_there_for_a_browser_and_the_document_for_a_token() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let api = Api::at(&place).await;
    let admin = api.token("", json!({"name": "admin", "role": "admin"})).await;
    let page = api.get("/docs").await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains(r#"id="token""#) && page.text.contains("stored nowhere"), "{}", page.text);
    let script = api.get("/docs/page.js").await;
    assert!(script.text.contains("Bearer ${token}") && !script.text.contains("Storage"), "{}", script.text);
    // What stands without a token tells of no route.
    let document: Value = serde_json::from_str(&lastbeat_server::openapi_json()).unwrap();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(!page.text.contains(path) && !script.text.contains(path), "{path}");
    }
    assert_eq!(api.get("/openapi.json").await.status, 401);
    let read = api.call(&admin, "GET", "/openapi.json", Value::Null).await;
    assert_eq!((read.status, read.text), (200, lastbeat_server::openapi_json()));
    api.server.stop().await;
}
