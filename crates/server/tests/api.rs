//! The life of runs over HTTP, on each kind of store.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use lastbeat_domain::Span;
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_testkit::{Place, on_each_backend};
use serde_json::{Value, json};
use support::{Api, said};

on_each_backend!("2026-05-04T00:00:00Z";
    a_run_lives_and_dies_and_says_why,
    many_heartbeats_are_answered_in_order,
    what_is_sent_again_gets_its_first_answer,
    a_claim_waits_for_work,
    goals_and_runs_come_in_pages,
    a_policy_is_replaced_unless_somebody_else_did_or_runs_would_lapse,
    facts_are_told_as_they_come,
);

async fn a_run_lives_and_dies_and_says_why(place: Place) {
    let api = Api::at(&place).await;
    let made = api.post("/v1/runs", json!({"lane": "watcher", "goal": "ship", "input": {"n": 1}})).await;
    assert_eq!((made.status, &made.json["status"], &made.json["verdict"]), (201, &json!("pending"), &json!("waiting")));
    let run = made.json["run"].as_str().unwrap().to_owned();
    assert_eq!(made.headers["location"], format!("/v1/runs/{run}").as_str());
    let claimed = api.post("/v1/claims", json!({"executor": "mac-7", "lanes": ["watcher"]})).await;
    assert_eq!((claimed.status, &claimed.json["run"], &claimed.json["input"]), (200, &json!(run), &json!({"n": 1})));
    let report = json!({"attempt": 1, "claim": claimed.json["claim"]});
    let path = |what: &str| format!("/v1/runs/{run}/{what}");
    assert_eq!(api.post(&path("start"), report.clone()).await.json["status"], "running");
    let beat = api.post(&path("heartbeat"), report.clone()).await;
    assert_eq!((beat.status, &beat.json["directive"]), (200, &json!("continue")));
    assert_eq!(beat.json["next_beat_within_seconds"], 30);
    let goal = api.get("/v1/goals/ship").await;
    assert_eq!((&goal.json["status"], &goal.json["runs"][0]["verdict"]), (&json!("running"), &json!("live")));
    place.clock.advance(Span::from_seconds(100));
    let cancel = api.post(&path("cancel"), json!({"reason": "enough"})).await;
    assert_eq!(cancel.json["cancel_requested"]["by"], "open");
    assert_eq!(api.post(&path("heartbeat"), report.clone()).await.json["directive"], "cancel");
    let premature = api.call("", "POST", &path("reap"), Value::Null).await;
    assert_eq!((premature.status, premature.code()), (409, "not_lapsed"));
    let why = api.get(&path("why")).await;
    assert_eq!((&why.json["verdict"], &why.json["rule"]), (&json!("live"), &json!("heartbeat_silence")));
    // Null is no reason, like no body.
    let again = api.request("POST", &path("cancel")).header("content-type", "application/json").body("null");
    assert_eq!(said(again).await.status, 200);
    let missing = api.get("/v1/runs/00000000-0000-4000-8000-000000000000/why").await;
    assert_eq!((missing.status, missing.code()), (404, "unknown_run"));
    let early = api.get(&path("why?at=2020-01-01T00:00:00Z")).await;
    assert_eq!((early.status, early.code()), (404, "unknown_run"));
    let ended = api.post(&path("complete"), json!({"attempt": 1, "claim": report["claim"], "output": 7})).await;
    assert_eq!((ended.status, &ended.json["status"]), (200, &json!("completed")));
    let fenced = api.post(&path("heartbeat"), report.clone()).await;
    assert_eq!((fenced.status, fenced.code(), &fenced.json["directive"]), (409, "settled", &json!("stop")));
    let stale = api.post(&path("heartbeat"), json!({"attempt": 2})).await;
    assert_eq!((stale.status, stale.code(), &stale.json["directive"]), (409, "stale_attempt", &json!("stop")));
    let replay = api.get(&path("replay")).await;
    assert_eq!(replay.json["state"]["status"], "completed");
    assert!(replay.json["stretches"].as_array().unwrap().len() > 3);
    assert_eq!(api.get("/v1/goals").await.json["goals"], json!([{"goal": "ship", "status": "completed"}]));
    api.server.stop().await;
}

async fn many_heartbeats_are_answered_in_order(place: Place) {
    let api = Api::at(&place).await;
    let mut beats = Vec::new();
    for number in 0..5 {
        let (run, claim) = api.claimed("", "watcher", &format!("mac-{number}")).await;
        beats.push(json!({"run": run, "attempt": 1, "claim": claim}));
    }
    beats[1]["attempt"] = json!(2);
    beats[2]["claim"] = json!("another");
    beats[3]["run"] = json!("00000000-0000-4000-8000-000000000000");
    let said = api.post("/v1/heartbeats", json!({"beats": beats})).await;
    assert_eq!(said.status, 200);
    let results = said.json["results"].as_array().unwrap();
    for (beat, result) in beats.iter().zip(results) {
        assert_eq!(beat["run"], result["run"]);
    }
    let directives: Vec<&Value> = results.iter().map(|result| &result["directive"]).collect();
    assert_eq!(
        directives,
        ["continue", "stop", "stop", "", "continue"]
            .map(|word| match word {
                "" => Value::Null,
                word => json!(word),
            })
            .iter()
            .collect::<Vec<_>>()
    );
    assert_eq!(results[3]["error"]["code"], "unknown_run");
    api.server.stop().await;
}

async fn what_is_sent_again_gets_its_first_answer(place: Place) {
    let api = Api::at(&place).await;
    let send = |path: &'static str, key: &'static str, body: Value| {
        let request = api.request("POST", path).header("content-type", "application/json");
        said(request.header("idempotency-key", key).body(body.to_string()))
    };
    let create = json!({"lane": "watcher", "unique_key": "k"});
    let first = send("/v1/runs", "a", create.clone()).await;
    place.clock.advance(Span::from_seconds(5));
    let again = send("/v1/runs", "a", create.clone()).await;
    assert_eq!((first.status, &first.text), (again.status, &again.text));
    let other = send("/v1/runs", "b", create.clone()).await;
    assert_eq!((other.status, &other.json["existing"]), (200, &json!(true)));
    let reused = send("/v1/runs", "a", json!({"lane": "sync"})).await;
    assert_eq!((reused.status, reused.code()), (409, "idempotency_key_reused"));
    let claim = json!({"executor": "mac-7", "lanes": ["watcher"]});
    let first = send("/v1/claims", "c", claim.clone()).await;
    let again = send("/v1/claims", "c", claim.clone()).await;
    assert_eq!((first.status, &first.text), (200, &again.text));
    assert_eq!(send("/v1/claims", "d", claim).await.status, 204);
    api.server.stop().await;
}

async fn a_claim_waits_for_work(place: Place) {
    let api = Api::at(&place).await;
    let claim = json!({"executor": "mac-7", "lanes": ["other", "watcher"], "wait_seconds": 30});
    let started = std::time::Instant::now();
    let waiting = api.post("/v1/claims", claim.clone());
    let create = async {
        // The claim comes first more often than not; either way it gets the run.
        tokio::task::yield_now().await;
        api.post("/v1/runs", json!({"lane": "watcher"})).await
    };
    let (claimed, made) = tokio::join!(waiting, create);
    assert_eq!((claimed.status, &claimed.json["run"]), (200, &made.json["run"]));
    assert!(started.elapsed() < Duration::from_secs(10));
    let named = api.post("/v1/runs", json!({"lane": "watcher", "input": [1]})).await.json["run"].clone();
    let this = |executor: &str| {
        let request = api.request("POST", "/v1/claims").header("content-type", "application/json");
        let body = json!({"executor": executor, "run": named}).to_string();
        said(request.header("idempotency-key", "this").body(body))
    };
    let first = this("mac-7").await;
    assert_eq!((first.status, &first.json["run"], &first.json["input"]), (200, &named, &json!([1])));
    assert_eq!(this("mac-7").await.text, first.text);
    assert_eq!(this("mac-8").await.code(), "idempotency_key_reused");
    let taken = api.post("/v1/claims", json!({"executor": "mac-8", "run": named})).await;
    assert_eq!((taken.status, taken.code()), (409, "not_claimable"));
    // A server that stops lets nobody wait.
    let url = api.url("/v1/claims");
    let waiting = tokio::spawn(async move {
        let request = support::client().post(url).header("content-type", "application/json");
        said(request.body(claim.to_string())).await
    });
    let in_flight = async {
        while api.server.waiting_claims() == 0 {
            tokio::task::yield_now().await;
        }
    };
    in_flight.await;
    api.server.stop().await;
    assert_eq!(waiting.await.unwrap().status, 204);
}

async fn goals_and_runs_come_in_pages(place: Place) {
    let api = Api::at(&place).await;
    for number in 0..5 {
        api.post("/v1/runs", json!({"lane": "watcher", "goal": format!("g{}", number % 3)})).await;
    }
    for (list, field, all) in [("runs", "run", 5), ("goals", "goal", 3), ("events", "run", 5)] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/{list}?limit=2{after}")).await;
            let things = page.json[list].as_array().unwrap().clone();
            assert!(things.len() <= 2);
            seen.extend(things.into_iter().map(|thing| thing[field].clone()));
            match page.json["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), all, "{list}");
        seen.sort_by_key(Value::to_string);
        seen.dedup();
        assert_eq!(seen.len(), all, "{list}");
    }
    assert_eq!(api.get("/v1/runs?goal=g1&status=pending,claimed").await.json["runs"].as_array().unwrap().len(), 2);
    assert_eq!(api.get("/v1/runs?verdict=live").await.json["runs"], json!([]));
    let goal = api.get("/v1/goals/g0?limit=1").await;
    assert_eq!((&goal.json["status"], goal.json["next"].is_string()), (&json!("waiting"), true));
    api.server.stop().await;
}

async fn a_policy_is_replaced_unless_somebody_else_did_or_runs_would_lapse(place: Place) {
    let api = Api::at(&place).await;
    let set = |query: &'static str, version: &'static str, body: Value| {
        let request = api.request("PUT", &format!("/v1/lanes/watcher{query}")).header("if-match", version);
        said(request.header("content-type", "application/json").body(body.to_string()))
    };
    let policy = json!({"heartbeat_window_seconds": 600});
    let after = set("", "\"0\"", policy.clone()).await;
    assert_eq!((after.status, &after.json["policy_version"]), (200, &json!(1)));
    assert_eq!(after.json["policy"]["coarse_ttl_seconds"], 7200);
    let outdated = set("", "\"0\"", policy).await;
    assert_eq!((outdated.status, outdated.code()), (412, "policy_changed"));
    let (run, _) = api.claimed("", "watcher", "mac-7").await;
    // Not so long that the server's own silence would be what is noticed.
    place.clock.advance(Span::from_seconds(3));
    let tight = json!({"coarse_ttl_seconds": 1});
    let refused = set("", "*", tight.clone()).await;
    assert_eq!((refused.status, refused.code(), &refused.json["runs"]), (409, "would_lapse", &json!([run])));
    assert_eq!(set("?force=true", "*", tight).await.status, 200);
    let bad = set("", "*", json!({"heartbeat_window_seconds": 10})).await;
    assert_eq!((bad.status, bad.code()), (422, "invalid"));
    let unknown = set("", "*", json!({"window": 10})).await;
    assert_eq!((unknown.status, &unknown.json["field"]), (422, &json!("window")));
    api.server.stop().await;
}

/// Reads events of a stream until one has this id.
async fn read_until(response: &mut reqwest::Response, id: &str) -> String {
    let mut text = String::new();
    while !text.contains(&format!("id: {id}\n")) {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().expect("the stream goes on")).unwrap());
    }
    text
}

async fn facts_are_told_as_they_come(place: Place) {
    let api = Api::at(&place).await;
    let (run, claim) = api.claimed("", "watcher", "mac-7").await;
    let stream = |path: &str, seen: &str| {
        let request = api.request("GET", path).header("accept", "text/event-stream");
        if seen.is_empty() { request.send() } else { request.header("last-event-id", seen.to_owned()).send() }
    };
    let mut feed = stream("/v1/events", "").await.unwrap();
    assert_eq!(feed.headers()["content-type"], "text/event-stream");
    let first = read_until(&mut feed, "2").await;
    assert!(first.contains("event: created") && first.contains("event: claimed"), "{first}");
    let mut of_run = stream(&format!("/v1/runs/{run}/events"), "1").await.unwrap();
    let report = json!({"attempt": 1, "claim": claim});
    for _ in 0..3 {
        api.post(&format!("/v1/runs/{run}/heartbeat"), report.clone()).await;
    }
    api.post(&format!("/v1/runs/{run}/complete"), report).await;
    let rest = of_run_to_its_end(&mut of_run).await;
    assert!(!rest.contains("event: created"), "{rest}");
    assert_eq!(rest.matches("event: heartbeat").count(), 3, "{rest}");
    assert!(rest.contains("event: completed"), "{rest}");
    let again = stream(&format!("/v1/runs/{run}/events"), "6").await.unwrap();
    assert_eq!(again.status(), 204);
    let later = read_until(&mut feed, "4").await;
    assert!(later.contains("event: completed"), "{later}");
    // A stream ends when the server stops.
    api.server.stop().await;
    while feed.chunk().await.unwrap().is_some() {}
}

async fn of_run_to_its_end(response: &mut reqwest::Response) -> String {
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

#[tokio::test]
async fn a_server_beacons_while_it_answers_and_says_goodbye() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let api = Api::at(&place).await;
    let store = api.store.clone();
    let own = loop {
        let service = store.service_log().await.unwrap();
        if let Some(own) = service.beacons.first() {
            break own.clone();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((own.process.as_str(), own.role), ("here/serve-1", BeaconRole::Serve));
    assert!(own.promise.unwrap() > own.at);
    api.server.stop().await;
    let last = store.service_log().await.unwrap().beacons.clone();
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].promise, Promise::Within(Span::ZERO).until(last[0].at));
}

#[tokio::test]
async fn a_replay_up_to_long_after_the_last_promise_takes_no_longer() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let api = Api::at(&place).await;
    let policy = json!({"heartbeat_interval_seconds": 1, "heartbeat_window_seconds": 30, "coarse_ttl_seconds": 30});
    assert_eq!(api.call("", "PUT", "/v1/lanes/watcher", policy).await.status, 200);
    while api.store.service_log().await.unwrap().beacons.is_empty() {
        tokio::task::yield_now().await;
    }
    let (run, _) = api.claimed("", "watcher", "mac-7").await;
    let replay = api.get(&format!("/v1/runs/{run}/replay?at=9999-12-31T00:00:00Z")).await;
    assert_eq!(replay.status, 200, "{}", replay.text);
    // Nobody promised to listen for so long, so nobody may say that it lapsed.
    let last = replay.json["stretches"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["verdict"], &last["to"]), (&json!("presumed"), &json!("9999-12-31T00:00:00.000000Z")));
    api.server.stop().await;
}

#[tokio::test]
async fn two_servers_share_one_postgres_and_one_may_go() {
    let place = Place::on(lastbeat_testkit::Backend::Postgres, "2026-05-04T00:00:00Z");
    let (one, two) = (Api::at(&place).await, Api::at(&place).await);
    let (run, claim) = one.claimed("", "watcher", "mac-7").await;
    let beat = format!("/v1/runs/{run}/heartbeat");
    let report = json!({"attempt": 1, "claim": claim});
    assert_eq!(one.post(&beat, report.clone()).await.status, 200);
    // What one server is told wakes nobody on the other, who looks for it.
    let waiting = two.post("/v1/claims", json!({"executor": "mac-8", "lanes": ["watcher"], "wait_seconds": 30}));
    let made = async {
        tokio::task::yield_now().await;
        one.post("/v1/runs", json!({"lane": "watcher"})).await
    };
    let (claimed, made) = tokio::join!(waiting, made);
    assert_eq!((claimed.status, &claimed.json["run"]), (200, &made.json["run"]));
    one.server.stop().await;
    assert_eq!(two.post(&beat, report).await.status, 200);
    assert_eq!(two.get(&format!("/v1/runs/{run}/why")).await.json["verdict"], "live");
    two.server.stop().await;
}
