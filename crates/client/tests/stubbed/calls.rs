//! Calls to servers that are down, slow, or lose their answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lastbeat_client::{Api, ClientError, Lease, Options};
use lastbeat_wire::{ClaimRequest, CreateRequest};
use serde_json::json;

use crate::stub::{Asked, Does, RUN, Stub, claimed, fenced, unavailable};

fn api(servers: &str) -> Api {
    let options = Options::new(servers).unwrap().request_timeout(Duration::from_millis(500));
    Api::new(options.patience(Duration::from_secs(5)).token("lb_secret")).unwrap()
}

fn lane() -> CreateRequest {
    CreateRequest::of_lane("watcher".parse().unwrap())
}

fn anything() -> ClaimRequest {
    let lanes = vec!["watcher".parse().unwrap()];
    ClaimRequest { executor: "mac-7".parse().unwrap(), lanes, device: None, wait_seconds: None, run: None }
}

/// Does one thing the first time, and another from then on.
fn first_then(first: Does, then: Does) -> impl Fn(&Asked) -> Does {
    let times = AtomicUsize::new(0);
    move |_| if times.fetch_add(1, Ordering::SeqCst) == 0 { first.clone() } else { then.clone() }
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_repeated_under_the_same_key() {
    let stub = Stub::start(first_then(Does::Loses, Does::Answers(201, "", claimed())));
    let answer = api(&stub.url).create(&lane()).await.unwrap();
    assert_eq!(answer.run.run.to_string(), RUN);
    let asked = stub.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[0].line.as_str(), &asked[0].body), ("POST /v1/runs", &json!({"lane": "watcher"})));
    let keys: Vec<_> = asked.iter().map(|asked| asked.header("idempotency-key").unwrap()).collect();
    assert_eq!(keys[0], keys[1]);
    assert_eq!(asked[1].header("authorization"), Some("Bearer lb_secret"));
    api(&stub.url).create(&lane()).await.unwrap();
    assert_ne!(stub.asked()[2].header("idempotency-key").unwrap(), keys[0], "another creation has another key");
}

#[tokio::test]
async fn what_must_not_be_done_twice_is_not_repeated_when_its_answer_is_lost() {
    let stub = Stub::start(|_| Does::Loses);
    let error = api(&stub.url).requeue(RUN.parse().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
    assert_eq!(stub.asked().len(), 1);
    // Turned away at the door, it was not done, and may be asked for again.
    let stub = Stub::start(first_then(Does::Answers(429, "", json!({})), Does::Answers(200, "", claimed())));
    api(&stub.url).requeue(RUN.parse().unwrap(), None).await.unwrap();
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_down_or_hangs_and_is_kept() {
    let hangs = Stub::start(|_| Does::Hangs);
    let well = Stub::start(|_| Does::Answers(204, "", json!(null)));
    let api = api(&format!("{},{},{}", nobody(), hangs.url, well.url));
    assert!(api.claim(&anything()).await.unwrap().is_none());
    let started = Instant::now();
    assert!(api.claim(&anything()).await.unwrap().is_none());
    assert!(started.elapsed() < Duration::from_millis(500), "the one that answered is asked first");
    assert_eq!((hangs.asked().len(), well.asked().len()), (1, 2));
}

#[tokio::test]
async fn retry_after_is_heeded() {
    let stub = Stub::start(first_then(unavailable("retry-after: 1\r\n"), Does::Answers(200, "", claimed())));
    let started = Instant::now();
    api(&stub.url).claim(&anything()).await.unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn patience_ends_with_what_was_the_matter() {
    let options = || Options::new(&nobody()).unwrap().patience(Duration::from_millis(300));
    let error = Api::new(options()).unwrap().run(RUN.parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.is_transient(), "{error}");
    let stub = Stub::start(|_| unavailable(""));
    let options = Options::new(&stub.url).unwrap().patience(Duration::from_millis(300));
    let error = Api::new(options).unwrap().run(RUN.parse().unwrap()).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), ("unavailable", "the database is away"));
    assert!(stub.asked().len() >= 2);
}

#[tokio::test]
async fn an_end_is_reported_until_the_answer_is_known() {
    let times = AtomicUsize::new(0);
    let stub = Stub::start(move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => Does::Answers(200, "", claimed()),
        1 => Does::Loses,
        2 => unavailable(""),
        3 => Does::Hangs,
        _ => Does::Answers(200, "", claimed()),
    });
    let options = Options::new(&stub.url).unwrap().request_timeout(Duration::from_millis(300));
    // Impatient with everything else.
    let api = Api::new(options.patience(Duration::ZERO)).unwrap();
    let lease = Lease::of(&api.claim(&anything()).await.unwrap().unwrap()).unwrap();
    api.complete(&lease, Some(json!({"n": 1}))).await.unwrap();
    let asked = stub.asked();
    assert_eq!(asked.len(), 5);
    for asked in &asked[1..] {
        assert_eq!(asked.line, format!("POST /v1/runs/{RUN}/complete"));
        assert_eq!(asked.body, json!({"attempt": 1, "claim": "c", "output": {"n": 1}}));
    }
}

#[tokio::test]
async fn a_refusal_is_told_as_the_server_said_it_and_not_repeated() {
    let stub = Stub::start(|_| fenced());
    let error = api(&stub.url).run(RUN.parse().unwrap()).await.unwrap_err();
    assert!(error.is_fenced() && !error.is_transient());
    assert_eq!((error.code(), error.to_string().as_str()), ("stale_attempt", "attempt 1 was reaped"));
    assert_eq!(stub.asked().len(), 1);
    let page = Stub::start(|_| Does::Answers(200, "", json!("welcome")));
    let error = api(&page.url).run(RUN.parse().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), "bad_answer");
}

#[tokio::test]
async fn names_and_instants_are_written_into_the_address_as_they_are_meant() {
    let stub = Stub::start(|_| Does::Answers(404, "", json!({})));
    let api = api(&format!("{}/behind/a/proxy", stub.url));
    api.lane(&"a/b c?ü".parse().unwrap()).await.unwrap_err();
    let at = Some("2026-05-04T02:00:00Z".parse().unwrap());
    api.why(RUN.parse().unwrap(), at, Some(2)).await.unwrap_err();
    let asked = stub.asked();
    assert_eq!(asked[0].line, "GET /behind/a/proxy/v1/lanes/a%2Fb%20c%3F%C3%BC");
    let why = format!("GET /behind/a/proxy/v1/runs/{RUN}/why?at=2026-05-04T02%3A00%3A00.000000Z&attempt=2");
    assert_eq!(asked[1].line, why);
}
