//! Who may do what, over HTTP: every route, every role, and a run of its own, of another, and one that is not there.
#![allow(clippy::unwrap_used)]

mod support;

use lastbeat_domain::Span;
use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_testkit::{Place, claimant, name};
use serde_json::{Value, json};
use support::Api;

const NOW: &str = "2026-05-04T00:00:00Z";
const MISSING: &str = "00000000-0000-4000-8000-000000000000";

/// The roles, in the order of the columns.
const ROLES: [&str; 5] = ["executor", "submitter", "auditor", "operator", "admin"];

/// A route about a run, with the statuses for each role: of a run of its own (for an executor: one that it holds; for a
/// submitter: one in its lane), of another's in another lane, and of one that is not there.
type Row = (&'static str, &'static str, fn(&str) -> Value, [[u16; 3]; 5]);

fn none(_: &str) -> Value {
    Value::Null
}

fn reason(_: &str) -> Value {
    json!({"reason": "why not"})
}

/// A report on attempt 1 under the run's claim.
fn report(claim: &str) -> Value {
    json!({"attempt": 1, "claim": claim})
}

fn failure(claim: &str) -> Value {
    json!({"attempt": 1, "claim": claim, "error": "broke"})
}

const SEES: [[u16; 3]; 5] = [[200, 404, 404], [200, 404, 404], [200, 200, 404], [200, 200, 404], [200, 200, 404]];
const REPORTS: [[u16; 3]; 5] = [[200, 404, 404], [403, 404, 404], [403, 403, 404], [403, 403, 404], [200, 200, 404]];

/// 409: allowed, and then decided against, since the runs of this test are neither failed nor lapsed.
const RUN_ROUTES: [Row; 13] = [
    ("GET", "/v1/runs/{id}", none, SEES),
    ("GET", "/v1/runs/{id}/why", none, SEES),
    ("GET", "/v1/runs/{id}/replay", none, SEES),
    ("GET", "/v1/runs/{id}/events", none, SEES),
    ("GET", "/v1/runs/{id}/bundle", none, SEES),
    ("POST", "/v1/runs/{id}/start", report, REPORTS),
    ("POST", "/v1/runs/{id}/heartbeat", report, REPORTS),
    ("POST", "/v1/runs/{id}/complete", report, REPORTS),
    ("POST", "/v1/runs/{id}/fail", failure, REPORTS),
    (
        "POST",
        "/v1/runs/{id}/cancelled",
        report,
        [[409, 404, 404], [403, 404, 404], [403, 403, 404], [403, 403, 404], [409, 409, 404]],
    ),
    (
        "POST",
        "/v1/runs/{id}/cancel",
        reason,
        [[403, 404, 404], [200, 404, 404], [403, 403, 404], [200, 200, 404], [200, 200, 404]],
    ),
    (
        "POST",
        "/v1/runs/{id}/requeue",
        reason,
        [[403, 404, 404], [409, 404, 404], [403, 403, 404], [409, 409, 404], [409, 409, 404]],
    ),
    (
        "POST",
        "/v1/runs/{id}/reap",
        reason,
        [[403, 404, 404], [403, 404, 404], [403, 403, 404], [409, 409, 404], [409, 409, 404]],
    ),
];

async fn tokens(api: &Api) -> Vec<String> {
    let admin = api.token("", json!({"name": "admin", "role": "admin"})).await;
    let mut tokens = Vec::new();
    for role in ROLES {
        let spec = match role {
            "executor" => json!({"name": "x", "role": role, "executor": "mac-7", "lanes": ["watcher"]}),
            "submitter" => json!({"name": "s", "role": role, "lanes": ["watcher"]}),
            "admin" => {
                tokens.push(admin.clone());
                continue;
            }
            role => json!({"name": role, "role": role}),
        };
        tokens.push(api.token(&admin, spec).await);
    }
    tokens
}

#[tokio::test]
async fn every_route_about_a_run_does_what_the_role_may_and_hides_the_rest() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let tokens = tokens(&api).await;
    let admin = tokens[4].clone();
    let mut wrong = Vec::new();
    for (method, path, body, expected) in RUN_ROUTES {
        for (column, (role, token)) in ROLES.iter().zip(&tokens).enumerate() {
            let (own, own_claim) = api.claimed(&admin, "watcher", "mac-7").await;
            let (other, other_claim) = api.claimed(&admin, "sync", "mac-8").await;
            let runs = [(own, own_claim), (other, other_claim), (MISSING.to_owned(), "none".to_owned())];
            for (index, (run, claim)) in runs.iter().enumerate() {
                let said = api.call(token, method, &path.replace("{id}", run), body(claim)).await;
                if said.status != expected[column][index] {
                    wrong.push(format!("{method} {path} {role} {index}: {} {}", said.status, said.text));
                }
                if said.status == 404 {
                    let hidden = said.json["detail"].as_str().unwrap().replace(run, "X");
                    assert_eq!(hidden, "there is no run X; `lastbeat run list` shows what there is");
                }
                let nobody = api.call("", method, &path.replace("{id}", run), body(claim)).await;
                assert_eq!((nobody.status, nobody.code()), (401, "unauthorized"));
                assert_eq!(nobody.headers["www-authenticate"], "Bearer");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    api.server.stop().await;
}

/// A route that is about no single run: method, path, body, and the statuses for each role.
fn other_routes() -> Vec<(&'static str, &'static str, Value, [u16; 5])> {
    let batch = json!({"beats": [{"run": MISSING, "attempt": 1, "claim": "c"}]});
    let claims = |executor: &str, lane: &str| json!({"executor": executor, "lanes": [lane]});
    let create = |lane: &str| json!({"lane": lane});
    let create_claimed = |lane: &str, by: &str| json!({"lane": lane, "claim": {"executor": by}});
    vec![
        ("POST", "/v1/runs", create("watcher"), [403, 201, 403, 201, 201]),
        ("POST", "/v1/runs", create("sync"), [403, 403, 403, 201, 201]),
        ("POST", "/v1/runs", create_claimed("watcher", "mac-7"), [201, 403, 403, 403, 201]),
        ("POST", "/v1/runs", create_claimed("watcher", "mac-8"), [403, 403, 403, 403, 201]),
        ("POST", "/v1/runs", create_claimed("sync", "mac-7"), [403, 403, 403, 403, 201]),
        ("POST", "/v1/claims", claims("mac-7", "watcher"), [200, 403, 403, 403, 200]),
        ("POST", "/v1/claims", claims("mac-8", "watcher"), [403, 403, 403, 403, 200]),
        ("POST", "/v1/claims", claims("mac-7", "sync"), [403, 403, 403, 403, 200]),
        ("POST", "/v1/heartbeats", batch, [200, 403, 403, 403, 200]),
        ("GET", "/v1/runs", Value::Null, [200; 5]),
        ("GET", "/v1/goals", Value::Null, [200; 5]),
        ("GET", "/v1/goals/nobodys", Value::Null, [404; 5]),
        ("GET", "/v1/lanes", Value::Null, [200; 5]),
        ("GET", "/v1/lanes/watcher", Value::Null, [200; 5]),
        ("GET", "/v1/lanes/sync", Value::Null, [404, 404, 200, 200, 200]),
        ("PUT", "/v1/lanes/watcher", json!({}), [403, 403, 403, 200, 200]),
        ("PUT", "/v1/lanes/sync", json!({}), [404, 404, 403, 200, 200]),
        ("POST", "/v1/lanes/watcher/backtest", json!({}), [403, 403, 200, 200, 200]),
        ("POST", "/v1/lanes/sync/backtest", json!({}), [404, 404, 200, 200, 200]),
        ("GET", "/v1/holds", Value::Null, [200; 5]),
        ("POST", "/v1/holds/watcher/release", json!({}), [403, 403, 403, 409, 409]),
        ("POST", "/v1/holds/sync/release", json!({}), [404, 404, 403, 409, 409]),
        ("GET", "/v1/events", Value::Null, [403, 403, 200, 200, 200]),
        ("GET", "/v1/executors", Value::Null, [403, 403, 200, 200, 200]),
        ("GET", "/v1/tokens", Value::Null, [403, 403, 403, 403, 200]),
        ("POST", "/v1/tokens", json!({"name": "new", "role": "auditor"}), [403, 403, 403, 403, 201]),
        ("DELETE", "/v1/tokens/none", Value::Null, [403, 403, 403, 403, 404]),
        ("GET", "/metrics", Value::Null, [403, 403, 200, 200, 200]),
        ("GET", "/openapi.json", Value::Null, [200; 5]),
        ("GET", "/docs", Value::Null, [200; 5]),
        ("GET", "/livez", Value::Null, [200; 5]),
        ("GET", "/readyz", Value::Null, [200; 5]),
    ]
}

#[tokio::test]
async fn every_other_route_does_what_the_role_may() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let tokens = tokens(&api).await;
    let mut wrong = Vec::new();
    for (method, path, body, expected) in other_routes() {
        for (column, (role, token)) in ROLES.iter().zip(&tokens).enumerate() {
            let said = api.call(token, method, path, body.clone()).await;
            if said.status != expected[column] {
                wrong.push(format!("{method} {path} {body} {role}: {} {}", said.status, said.text));
            }
        }
        let nobody = api.call("", method, path, body).await.status;
        let is_for_all = path.ends_with('z') || path == "/docs";
        assert_eq!(nobody, if is_for_all { 200 } else { 401 }, "{method} {path}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    api.server.stop().await;
}

#[tokio::test]
async fn every_route_of_the_document_stands_in_these_tables() {
    let document: Value = serde_json::from_str(&lastbeat_server::openapi_json()).unwrap();
    let known: Vec<(String, String)> = RUN_ROUTES
        .iter()
        .map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned()))
        .chain(other_routes().iter().map(|(method, path, ..)| {
            let path = path.replace("/watcher", "/{lane}").replace("/nobodys", "/{key}").replace("/none", "/{id}");
            ((*method).to_owned(), path)
        }))
        .collect();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let route = (method.to_uppercase(), path.clone());
            assert!(known.contains(&route), "{route:?} is in no table");
        }
    }
}

#[tokio::test]
async fn lists_show_what_the_token_may_see_and_no_more() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let tokens = tokens(&api).await;
    let (own, _) = api.claimed(&tokens[4], "watcher", "mac-7").await;
    let (neighbour, _) = api.claimed(&tokens[4], "watcher", "mac-8").await;
    let (beyond, _) = api.claimed(&tokens[4], "sync", "mac-8").await;
    let expected: [&[&String]; 5] = [
        &[&own],
        &[&neighbour, &own],
        &[&beyond, &neighbour, &own],
        &[&beyond, &neighbour, &own],
        &[&beyond, &neighbour, &own],
    ];
    for (token, expected) in tokens.iter().zip(expected) {
        let said = api.call(token, "GET", "/v1/runs", Value::Null).await;
        let runs: Vec<&str> =
            said.json["runs"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect();
        assert_eq!(runs, expected);
        let lanes = api.call(token, "GET", "/v1/lanes", Value::Null).await.json["lanes"].as_array().unwrap().len();
        assert_eq!(lanes, if expected.len() == 3 { 2 } else { 1 });
    }
    api.server.stop().await;
}

#[tokio::test]
async fn an_executor_frees_a_key_and_takes_its_run_without_learning_anothers_claim() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let tokens = tokens(&api).await;
    let (executor, admin) = (&tokens[0], &tokens[4]);
    let held = json!({"lane": "watcher", "unique_key": "k", "claim": {"executor": "mac-8"}});
    let run = api.call(admin, "POST", "/v1/runs", held).await.json["run"].as_str().unwrap().to_owned();
    let mine = json!({"lane": "watcher", "unique_key": "k", "claim": {"executor": "mac-7"}});
    let found = api.call(executor, "POST", "/v1/runs", mine).await;
    assert_eq!((found.status, &found.json["run"], &found.json["claim"]), (200, &json!(run), &Value::Null));
    // It has not lapsed, so it is not reaped; that it may be tried is the point.
    let reap = api.call(executor, "POST", &format!("/v1/runs/{run}/reap"), json!({})).await;
    assert_eq!((reap.status, reap.code()), (409, "not_lapsed"));
    let elsewhere = json!({"lane": "watcher", "unique_key": "far", "claim": {"executor": "mac-7"}});
    api.call(admin, "POST", "/v1/runs", json!({"lane": "sync", "unique_key": "far"})).await;
    let hidden = api.call(executor, "POST", "/v1/runs", elsewhere).await;
    assert_eq!((hidden.status, hidden.code(), &hidden.json["run"]), (409, "unique_key_open", &Value::Null));
    api.server.stop().await;
}

#[tokio::test]
async fn a_revoked_token_admits_nobody_on_any_replica_within_a_second() {
    let place = Place::at(NOW);
    let (one, two) = (Api::at(&place).await, Api::at(&place).await);
    let tokens = tokens(&one).await;
    let auditor = &tokens[2];
    // A token that was made a moment ago on one replica is known on the other.
    assert_eq!(two.call(auditor, "GET", "/v1/runs", Value::Null).await.status, 200);
    let list = one.call(&tokens[4], "GET", "/v1/tokens", Value::Null).await;
    assert!(!list.text.contains("digest") && !list.text.contains("lb_"), "{}", list.text);
    let known =
        list.json["tokens"].as_array().unwrap().iter().find(|token| token["name"] == "auditor").unwrap().clone();
    let path = format!("/v1/tokens/{}", known["id"].as_str().unwrap());
    let started = std::time::Instant::now();
    let revoked = one.call(&tokens[4], "DELETE", &path, Value::Null).await;
    assert_eq!(
        (revoked.status, &revoked.json["state"], &revoked.json["revoked_by"]),
        (200, &json!("revoked"), &json!("admin"))
    );
    assert_eq!(one.call(auditor, "GET", "/v1/runs", Value::Null).await.status, 401);
    while two.call(auditor, "GET", "/v1/runs", Value::Null).await.status != 401 {
        assert!(started.elapsed().as_secs_f64() < 1.0, "the token still admits somebody");
    }
    let feed = one.call(&tokens[4], "GET", "/v1/events?limit=500", Value::Null).await;
    assert!(feed.text.contains("token_issued") && !feed.text.contains("digest"), "{}", feed.text);
    one.server.stop().await;
    two.server.stop().await;
}

#[tokio::test]
async fn what_a_revoked_token_had_begun_ends_with_it() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let tokens = tokens(&api).await;
    let (run, _) = api.claimed(&tokens[4], "watcher", "mac-7").await;
    let stream = |path: &str| {
        let request = api.request("GET", path).bearer_auth(&tokens[2]).header("accept", "text/event-stream");
        async { request.send().await.unwrap() }
    };
    let mut streams = [stream("/v1/events").await, stream(&format!("/v1/runs/{run}/events")).await];
    for stream in &mut streams {
        assert_eq!(stream.status(), 200);
        assert!(stream.chunk().await.unwrap().is_some());
    }
    let body = json!({"executor": "mac-7", "lanes": ["watcher"], "wait_seconds": 60});
    let waiting = api.call(&tokens[0], "POST", "/v1/claims", body);
    let revoke = async {
        while api.server.waiting_claims() == 0 {
            tokio::task::yield_now().await;
        }
        let list = api.call(&tokens[4], "GET", "/v1/tokens", Value::Null).await;
        for token in list.json["tokens"].as_array().unwrap().iter().filter(|token| token["name"] != "admin") {
            let path = format!("/v1/tokens/{}", token["id"].as_str().unwrap());
            assert_eq!(api.call(&tokens[4], "DELETE", &path, Value::Null).await.status, 200);
        }
        // Work that comes now is not for it.
        let made = api.call(&tokens[4], "POST", "/v1/runs", json!({"lane": "watcher"})).await;
        made.json["run"].as_str().unwrap().to_owned()
    };
    let (claimed, made) = tokio::join!(waiting, revoke);
    assert_eq!((claimed.status, claimed.code()), (401, "unauthorized"));
    let left = api.call(&tokens[4], "GET", &format!("/v1/runs/{made}"), Value::Null).await;
    assert_eq!(left.json["status"], "pending");
    for mut stream in streams {
        while stream.chunk().await.unwrap().is_some() {}
    }
    api.server.stop().await;
}

#[tokio::test]
async fn an_overheard_claim_of_another_stays_anothers_after_it_was_quoted_for_an_attempt_of_ones_own() {
    let place = Place::at(NOW);
    // Its token's executor lost the first attempt by a reap, before the server was there to be deaf.
    let (store, run) = (place.store("a").await, lastbeat_testkit::run_id(1));
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    let create = Command::Create { run, spec, claim: Some(claimant("mac-7", "c1")) };
    store.execute(vec![create]).await.pop().unwrap().unwrap();
    place.clock.advance(Span::from_seconds(7_201));
    let reap = Command::Reap { run, by: name("sweeper"), by_hand: None };
    store.execute(vec![reap]).await.pop().unwrap().unwrap();
    place.clock.advance(Span::from_seconds(7_201));
    let api = Api::at(&place).await;
    let tokens = tokens(&api).await;
    let (executor, admin) = (&tokens[0], &tokens[4]);
    let again = api.call(admin, "POST", &format!("/v1/runs/{run}/requeue"), json!({})).await;
    assert_eq!(again.status, 200, "{again:?}");
    let body = json!({"executor": "mac-8", "run": run});
    let taken = api.call(admin, "POST", "/v1/claims", body).await;
    assert_eq!((taken.status, &taken.json["attempt"]), (200, &json!(2)), "{taken:?}");
    let path = format!("/v1/runs/{run}/heartbeat");
    let beat =
        |attempt: u32| api.call(executor, "POST", &path, json!({"attempt": attempt, "claim": taken.json["claim"]}));
    assert_eq!(beat(2).await.status, 403);
    assert_eq!(beat(1).await.status, 409);
    assert_eq!(beat(2).await.status, 403);
    api.server.stop().await;
}

#[tokio::test]
async fn a_page_from_elsewhere_does_nothing_through_a_browser_on_this_machine() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let port = api.server.address.port();
    let ask = |header: &'static str, value: String| support::said(api.request("GET", "/v1/runs").header(header, value));
    for (header, value, status) in [
        ("host", format!("localhost:{port}"), 200),
        ("host", format!("[::1]:{port}"), 200),
        ("host", format!("evil.example:{port}"), 403),
        ("origin", format!("http://127.0.0.1:{port}"), 200),
        ("origin", "https://evil.example".to_owned(), 403),
        ("origin", "null".to_owned(), 403),
    ] {
        assert_eq!(ask(header, value.clone()).await.status, status, "{header}: {value}");
    }
    let admin = api.token("", json!({"name": "admin", "role": "admin"})).await;
    let named = api.request("GET", "/v1/runs").header("host", "lastbeat.example").bearer_auth(admin);
    assert_eq!(support::said(named).await.status, 200);
    api.server.stop().await;
}

#[tokio::test]
async fn a_server_without_tokens_is_for_this_machine_alone() {
    let place = Place::at(NOW);
    let anywhere = lastbeat_server::Options { listen: ([0, 0, 0, 0], 0).into(), ..support::options() };
    let store = place.store("a").await;
    let refused = lastbeat_server::serve(store.clone(), anywhere.clone()).await.err().unwrap();
    assert!(refused.to_string().contains("token create"), "{refused}");
    let api = Api::at(&place).await;
    assert!(api.server.is_open);
    let admin = api.token("", json!({"name": "first", "role": "admin"})).await;
    assert_eq!(api.get("/v1/runs").await.status, 401);
    assert_eq!(api.call(&admin, "GET", "/v1/runs", Value::Null).await.status, 200);
    lastbeat_server::serve(store, anywhere).await.unwrap().stop().await;
    api.server.stop().await;
}
