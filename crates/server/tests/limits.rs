//! What a server puts up with: sizes, times, numbers, rates; and that a heartbeat gets through all the same.

mod support;

use std::time::Duration;

use lastbeat_server::Limits;
use lastbeat_testkit::Place;
use serde_json::{Value, json};
use support::{Api, said};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NOW: &str = "2026-05-04T00:00:00Z";

#[tokio::test]
async fn a_body_over_the_limit_is_read_to_its_end_and_refused_as_a_problem() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let body = format!("{{\"lane\":\"watcher\",\"input\":\"{}\"}}", "x".repeat(20 << 20));
    let request = api.request("POST", "/v1/runs").header("content-type", "application/json").body(body);
    let refused = said(request).await;
    assert_eq!((refused.status, refused.code()), (413, "body_too_large"));
    let input = "x".repeat(70 << 10);
    let refused = api.post("/v1/runs", json!({"lane": "watcher", "input": input})).await;
    assert_eq!((refused.status, refused.code(), &refused.json["field"]), (422, "too_large", &json!("input")));
    api.server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_by_name() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let plain = |body: &'static str| api.request("POST", "/v1/runs").body(body);
    let refused = said(plain("{}").header("content-type", "text/plain")).await;
    assert_eq!((refused.status, refused.code()), (415, "unsupported_media_type"));
    let refused = said(plain("{").header("content-type", "application/json")).await;
    assert_eq!((refused.status, refused.code()), (400, "broken_json"));
    let fields = [
        (json!({}), "lane"),
        (json!({"lane": ""}), "lane"),
        (json!({"lane": "l", "colour": 1}), "colour"),
        (json!({"lane": "l", "not_before": "soon"}), "not_before"),
        (json!({"lane": "l", "claim": {"executor": 7}}), "claim.executor"),
        (json!({"lane": "l", "labels": {"k": "\n"}}), "labels.k"),
    ];
    for (body, field) in fields {
        let refused = api.post("/v1/runs", body).await;
        assert_eq!((refused.status, refused.code()), (422, "invalid"), "{refused:?}");
        assert_eq!(refused.json["field"], field);
        assert_eq!(refused.headers["content-type"], "application/problem+json");
        assert_eq!(refused.json["request_id"], refused.headers["x-request-id"].to_str().unwrap());
    }
    for (path, field) in [
        ("/v1/runs?limit=0", "limit"),
        ("/v1/runs?limit=501", "limit"),
        ("/v1/runs?limit=many", "limit"),
        ("/v1/runs?status=dead", "status"),
        ("/v1/runs?verdict=dead", "verdict"),
        ("/v1/runs?stat=running", "stat"),
        ("/v1/runs?after=x", "after"),
        ("/v1/goals?after=!", "after"),
        ("/v1/events?after=x", "after"),
    ] {
        let refused = api.get(path).await;
        assert_eq!((refused.status, &refused.json["field"]), (422, &json!(field)), "{path} {refused:?}");
    }
    assert_eq!(api.get("/v1/runs/none").await.status, 404);
    let beats: Vec<Value> = (0..1_001).map(|_| json!({"run": uuid::Uuid::nil(), "attempt": 1})).collect();
    let refused = api.post("/v1/heartbeats", json!({"beats": beats})).await;
    assert_eq!((refused.status, &refused.json["field"]), (422, &json!("beats")));
    api.server.stop().await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let refused = said(api.request("GET", "/v1/runs").header("x-large", "x".repeat(20 << 10))).await;
    assert_eq!((refused.status, refused.code()), (431, "head_too_large"));
    let refused = said(api.request("GET", "/v1/runs").header("x-large", "x".repeat(100 << 10))).await;
    assert_eq!(refused.status, 431);
    api.server.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let limits = Limits { body_time: Duration::from_millis(100), ..Limits::default() };
    let place = Place::at(NOW);
    let api = Api::with(&place, limits).await;
    let mut stream = TcpStream::connect(api.server.address).await.unwrap();
    let head =
        "POST /v1/runs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 408") && response.contains("request_timeout"), "{response}");
    api.server.stop().await;
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_its_connection() {
    let limits = Limits { head_time: Duration::from_millis(100), ..Limits::default() };
    let place = Place::at(NOW);
    let api = Api::with(&place, limits).await;
    let mut stream = TcpStream::connect(api.server.address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(!response.contains("200"), "{response}");
    // Slowly is not at all: each byte counts from the first one.
    let mut stream = TcpStream::connect(api.server.address).await.unwrap();
    let mut sent = 0;
    while sent < 1_000 && stream.write_all(b"G").await.is_ok() {
        sent += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sent < 1_000);
    api.server.stop().await;
}

#[tokio::test]
async fn a_connection_may_rest_between_two_requests_for_longer_than_a_head_may_take() {
    let limits = Limits { head_time: Duration::from_millis(100), ..Limits::default() };
    let place = Place::at(NOW);
    let api = Api::with(&place, limits).await;
    let mut stream = TcpStream::connect(api.server.address).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut response = [0; 15];
        stream.read_exact(&mut response).await.unwrap();
        assert_eq!(&response, b"HTTP/1.1 200 OK");
        let mut rest = vec![0; 4_096];
        let _ = stream.read(&mut rest).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    api.server.stop().await;
}

#[tokio::test]
async fn connections_without_a_request_make_room_for_those_that_have_one() {
    let limits = Limits { connections: 20, ..Limits::default() };
    let place = Place::at(NOW);
    let api = Api::with(&place, limits).await;
    let (run, claim) = api.claimed("", "watcher", "mac-7").await;
    let path = format!("/v1/runs/{run}/heartbeat");
    let mut slow = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(api.server.address).await.unwrap();
        stream.write_all(b"POST /v1/heartbeats HTTP/1.1\r\nx-slow: ").await.unwrap();
        slow.push(stream);
        if number % 10 == 0 {
            // On a connection of its own: an idle one may have had to go.
            let client = support::client();
            let body = json!({"attempt": 1, "claim": claim}).to_string();
            let beat = client.post(api.url(&path)).header("content-type", "application/json").body(body);
            assert_eq!(said(beat).await.status, 200);
        }
    }
    api.server.stop().await;
}

#[tokio::test]
async fn a_token_that_asks_too_often_is_told_when_to_come_back_and_beats_all_the_same() {
    let limits = Limits { rate: 0.5, burst: 3.0, ..Limits::default() };
    let place = Place::at(NOW);
    let api = Api::with(&place, limits).await;
    let admin = api.token("", json!({"name": "admin", "role": "admin"})).await;
    let (run, claim) = api.claimed(&admin, "watcher", "mac-7").await;
    for _ in 0..2 {
        assert_eq!(api.call(&admin, "GET", "/v1/runs", Value::Null).await.status, 200);
    }
    let refused = api.call(&admin, "GET", "/v1/runs", Value::Null).await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    assert_eq!(refused.headers["retry-after"], "2");
    let claim_refused = api.call(&admin, "POST", "/v1/claims", json!({"executor": "e", "lanes": ["l"]})).await;
    assert_eq!(claim_refused.status, 429);
    for _ in 0..20 {
        let body = json!({"attempt": 1, "claim": claim});
        assert_eq!(api.call(&admin, "POST", &format!("/v1/runs/{run}/heartbeat"), body).await.status, 200);
    }
    assert_eq!(api.get("/livez").await.status, 200);
    api.server.stop().await;
}

#[tokio::test]
async fn who_asks_and_never_reads_the_answers_is_cut_off() {
    let limits = Limits { write_time: Duration::from_millis(200), ..Limits::default() };
    let place = Place::at(NOW);
    let api = Api::with(&place, limits).await;
    let mut stream = TcpStream::connect(api.server.address).await.unwrap();
    let request = "GET /docs/page.js HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    // Until the server takes no more, and then until it has had enough.
    while stream.write_all(request.as_bytes()).await.is_ok() {}
    assert_eq!(api.get("/livez").await.status, 200);
    api.server.stop().await;
}

/// With two places each, as many requests as there are places would wait for one another.
#[tokio::test]
async fn a_page_of_the_dashboard_takes_one_place() {
    let place = Place::at(NOW);
    let api = Api::with(&place, Limits { requests: 1, ..Limits::default() }).await;
    for path in ["/", "/runs", "/lanes", "/sign-in", "/v1/runs"] {
        let said = said(reqwest::Client::new().get(api.url(path))).await;
        assert_eq!(said.status, 200, "{path}: {}", said.text);
    }
}
