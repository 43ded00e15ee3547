//! The bundle of a run over HTTP: an import file, without what its reader may not see.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Cursor;

use lastbeat_domain::Span;
use lastbeat_domain::decide::Command;
use lastbeat_store::{Store, check_import};
use lastbeat_testkit::{Place, name};
use serde_json::{Value, json};
use support::Api;

const NOW: &str = "2026-05-04T00:00:00Z";

#[tokio::test]
async fn a_bundle_is_imported_as_it_comes_and_answers_the_same() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let policy = json!({"heartbeat_window_seconds": 120});
    assert_eq!(api.call("", "PUT", "/v1/lanes/watcher", policy).await.status, 200);
    let (run, claim) = api.claimed("", "watcher", "mac-7").await;
    let report = json!({"attempt": 1, "claim": claim});
    api.post(&format!("/v1/runs/{run}/heartbeat"), report.clone()).await;
    for _ in 0..13 {
        place.clock.advance(Span::from_seconds(10));
        let promise = lastbeat_domain::listening::Promise::Within(Span::from_seconds(20));
        let (process, role) = (name("here/serve-1"), lastbeat_domain::listening::BeaconRole::Serve);
        api.store.execute(vec![Command::Beacon { process, role, promise }]).await.pop().unwrap().unwrap();
    }
    let reaped = api.post(&format!("/v1/runs/{run}/reap"), json!({})).await;
    assert_eq!(reaped.status, 200, "{reaped:?}");
    place.clock.advance(Span::from_seconds(5));
    assert_eq!(api.post(&format!("/v1/runs/{run}/heartbeat"), report).await.status, 409);

    let bundle = api.get(&format!("/v1/runs/{run}/bundle")).await;
    assert_eq!((bundle.status, &bundle.headers["content-type"]), (200, &"application/x-ndjson".parse().unwrap()));
    assert!(bundle.headers["content-disposition"].to_str().unwrap().contains(&format!("{run}.jsonl")));
    let copy = place.open("copy.db").await;
    copy.import(check_import(Cursor::new(&bundle.text), copy.now().await.unwrap()).unwrap()).await.unwrap();
    for second in [1, 60, 130, 134, 4_000] {
        let at = NOW.parse::<lastbeat_domain::Timestamp>().unwrap().plus(Span::from_seconds(second));
        let told = api.get(&format!("/v1/runs/{run}/why?at={at}")).await;
        let here = lastbeat_wire::answers::why(&copy, run.parse().unwrap(), Some(at), None).await.unwrap();
        assert_eq!(told.json, serde_json::to_value(here).unwrap(), "at {at}");
    }
    let last = api.get(&format!("/v1/runs/{run}/why")).await.json;
    assert_eq!(last["probably_wrong"], json!(true));
    // The log gives each fact a stamp of its own, a microsecond on where the clock stands still.
    let whole = |seconds: &Value| (seconds.as_f64().unwrap() * 100.0).round() / 100.0;
    let told = (whole(&last["afterwards"][0]["after_seconds"]), whole(&last["window_needed_seconds"]));
    assert_eq!(told, (5.0, 135.0));
    api.server.stop().await;
}

#[tokio::test]
async fn an_executor_is_told_its_own_claim_and_no_other() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let admin = api.token("", json!({"role": "admin", "name": "ada"})).await;
    let spec = json!({"role": "executor", "name": "mac-7", "executor": "mac-7", "lanes": ["watcher"]});
    let token = api.token(&admin, spec).await;
    let (run, first) = api.claimed(&admin, "watcher", "mac-8").await;
    let failure = json!({"attempt": 1, "claim": first, "error": "broke"});
    api.call(&admin, "POST", &format!("/v1/runs/{run}/fail"), failure).await;
    api.call(&admin, "POST", &format!("/v1/runs/{run}/requeue"), json!({})).await;
    let claims = json!({"executor": "mac-7", "lanes": ["watcher"]});
    let second = api.call(&token, "POST", "/v1/claims", claims).await.json["claim"].as_str().unwrap().to_owned();
    let text = api.call(&token, "GET", &format!("/v1/runs/{run}/bundle"), Value::Null).await.text;
    assert!(text.contains(&second) && !text.contains(&first), "{text}");
    let whole = api.call(&admin, "GET", &format!("/v1/runs/{run}/bundle"), Value::Null).await.text;
    assert!(whole.contains(&second) && whole.contains(&first));
    for secret in ["token_issued", "digest", "here/serve-1"] {
        assert!(!whole.contains(secret), "{secret} is in the bundle: {whole}");
    }
    api.server.stop().await;
}
