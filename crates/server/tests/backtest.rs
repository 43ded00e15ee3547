//! Backtests over HTTP: what the store says, within the bounds of a server.
#![allow(clippy::unwrap_used)]

mod support;

use std::ops::ControlFlow;
use std::time::Duration;

use lastbeat_domain::alternative::{Alternative, Window};
use lastbeat_domain::{LanePolicy, Span};
use lastbeat_server::Limits;
use lastbeat_store::Question;
use lastbeat_store::generate::{self, Workload};
use lastbeat_testkit::{Backend, Place, name};
use lastbeat_wire::BacktestDocument;
use serde_json::json;
use support::Api;

const NOW: &str = "2026-05-04T06:00:00Z";
const PATH: &str = "/v1/lanes/watcher/backtest";

/// A server on a store with a past, of two hundred runs.
async fn with_a_past(place: &Place, limits: Limits) -> Api {
    let store = place.store("a").await;
    let until = store.now().await.unwrap();
    let workload =
        Workload { runs: 200, events: 4_000, seed: 7, lane: name("watcher"), policy: LanePolicy::default(), until };
    store.import(generate::checked(&workload, &|_, _| ()).unwrap()).await.unwrap();
    Api::with(place, limits).await
}

async fn a_backtest_says_what_the_store_says(place: Place) {
    let api = with_a_past(&place, Limits::default()).await;
    let asked =
        json!({"heartbeat_window_seconds": [60, 180, 300.5], "claim_window_seconds": [null, 20], "examples": 3});
    let said = api.post(PATH, asked).await;
    assert_eq!(said.status, 200, "{said:?}");
    let lengths = [60_000, 180_000, 300_500].map(|millis| Some(Span::from_millis(millis))).to_vec();
    let claims = vec![None, Some(Span::from_seconds(20))];
    let lists = [(Window::HeartbeatWindow, lengths), (Window::ClaimWindow, claims)];
    let alternatives = Alternative::combinations(&lists).unwrap();
    let question = Question { lane: name("watcher"), alternatives, since: None, named_max: 3 };
    let report = api.store.backtest(&question, &|_, _| ControlFlow::Continue(())).await.unwrap();
    let mut there: BacktestDocument = serde_json::from_value(said.json.clone()).unwrap();
    let here = BacktestDocument::of(name("watcher"), None, &report);
    // The server's own beacons may come in between.
    there.at = here.at;
    assert_eq!(there, here);
    assert_eq!((there.runs, there.alternatives.len()), (200, 1 + 3 * 2));
    assert_eq!(
        said.json["alternatives"][1]["windows"],
        json!({"heartbeat_window_seconds": 60, "claim_window_seconds": null})
    );
    assert_eq!(said.json["alternatives"][1]["wrong_reaps"].as_array().unwrap().len(), 3);
    assert_eq!(said.json["recommendations"][0]["window"], "heartbeat_window");
    api.server.stop().await;
}

lastbeat_testkit::on_each_backend! {
    super::NOW;
    a_backtest_says_what_the_store_says,
}

#[tokio::test]
async fn with_nothing_named_windows_around_the_policy_are_tried() {
    let place = Place::on(Backend::Sqlite, NOW);
    let api = with_a_past(&place, Limits::default()).await;
    let tried = |json: &serde_json::Value| {
        let alternatives = json["alternatives"].as_array().unwrap().iter();
        alternatives.map(|alternative| alternative["windows"]["heartbeat_window_seconds"].clone()).collect::<Vec<_>>()
    };
    let around = vec![json!(null), json!(90), json!(120), json!(180), json!(270), json!(360), json!(540)];
    let without_body = support::said(api.request("POST", PATH)).await;
    assert_eq!((without_body.status, tried(&without_body.json)), (200, around.clone()));
    assert_eq!(tried(&api.post(PATH, json!({})).await.json), around);
    let late = api.post(PATH, json!({"since": "2026-05-04T06:00:00Z"})).await;
    assert_eq!((late.status, &late.json["runs"]), (200, &json!(0)));
    api.server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_tried_is_refused_by_name() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let many: Vec<u64> = (1..=65).collect();
    let refused = [
        (json!({"heartbeat_window_seconds": [0]}), "heartbeat_window_seconds"),
        (json!({"heartbeat_window_seconds": [null]}), "heartbeat_window_seconds[0]"),
        (json!({"coarse_ttl_seconds": "2h"}), "coarse_ttl_seconds"),
        (json!({"max_runtime_seconds": [-1]}), "max_runtime_seconds[0]"),
        (json!({"heartbeat_window": [60]}), "heartbeat_window"),
        (json!({"since": "yesterday"}), "since"),
        (json!({"examples": 1001}), "examples"),
    ];
    for (body, field) in refused {
        let said = api.post(PATH, body).await;
        assert_eq!((said.status, said.code(), &said.json["field"]), (422, "invalid", &json!(field)), "{said:?}");
    }
    let said = api.post(PATH, json!({"heartbeat_window_seconds": many})).await;
    assert_eq!((said.status, said.code()), (422, "invalid"));
    assert!(said.json["detail"].as_str().unwrap().contains("64 are tried at a time"), "{said:?}");
    api.server.stop().await;
}

#[tokio::test]
async fn what_takes_longer_than_an_answer_may_is_broken_off() {
    let place = Place::at(NOW);
    let api = with_a_past(&place, Limits { answer_time: Duration::ZERO, ..Limits::default() }).await;
    let said = api.post(PATH, json!({})).await;
    assert_eq!((said.status, said.code()), (503, "timeout"));
    assert!(said.json["detail"].as_str().unwrap().contains("`since`"), "{said:?}");
    api.server.stop().await;
}
