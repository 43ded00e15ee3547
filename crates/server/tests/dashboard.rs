//! The dashboard over HTTP: who gets in, whose forms are taken, and with which headers pages are sent.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::hold::Census;
use lastbeat_domain::{RunId, Span};
use lastbeat_testkit::{Backend, Place, claimant, name, run_id};
use serde_json::json;
use support::{Api, Said, said};

const NOW: &str = "2026-05-04T00:00:00Z";
/// An overview is shown again for longer than this, if nothing happens that ends it.
const SHOWN_AGAIN_FOR: Duration = Duration::from_millis(500);
const PAGES: [&str; 5] = ["/", "/goals", "/runs", "/lanes", "/executors"];

/// Asks as a browser does that follows no redirect, with cookies (none: "") and other headers.
async fn asked(api: &Api, path: &str, cookies: &str, headers: &[(&str, &str)]) -> Said {
    sent(api, "GET", path, cookies, headers, None).await
}

async fn sent(
    api: &Api,
    method: &str,
    path: &str,
    cookies: &str,
    headers: &[(&str, &str)],
    form: Option<String>,
) -> Said {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut request = client.request(method.parse().unwrap(), api.url(path)).header("cookie", cookies);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(form) = form {
        request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
    }
    said(request).await
}

/// The cookie that an answer sets, with what it says of it.
fn cookie(said: &Said) -> String {
    said.headers["set-cookie"].to_str().unwrap().to_owned()
}

fn first(cookie: &str) -> &str {
    cookie.split(';').next().unwrap()
}

/// The token of the form in a page.
fn csrf(said: &Said) -> String {
    let (_, rest) = said.text.split_once(r#"name="csrf" value=""#).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

async fn signed_in(api: &Api, token: &str) -> String {
    let page = asked(api, "/sign-in", "", &[]).await;
    let form = format!("csrf={}&token={token}&next=/runs", csrf(&page));
    let answer = sent(api, "POST", "/sign-in", first(&cookie(&page)), &[], Some(form)).await;
    assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (303, "/runs"), "{answer:?}");
    let set = cookie(&answer);
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax") && !set.contains("Secure"), "{set}");
    first(&set).to_owned()
}

#[tokio::test]
async fn a_browser_keeps_a_file_only_if_it_is_the_one_that_was_asked_for() {
    let place = Place::on(Backend::Sqlite, NOW);
    let api = Api::at(&place).await;
    let page = asked(&api, "/", "", &[]).await;
    let (_, rest) = page.text.split_once("/assets/dashboard.css?v=").unwrap();
    let digest = rest.split('"').next().unwrap();
    for (query, kept) in
        [(format!("?v={digest}"), true), ("?v=of-another-version".to_owned(), false), (String::new(), false)]
    {
        let file = asked(&api, &format!("/assets/dashboard.css{query}"), "", &[]).await;
        let said = file.headers["cache-control"].to_str().unwrap();
        assert_eq!(
            (file.status, said.contains("immutable"), said == "no-store"),
            (200, kept, !kept),
            "{query}: {said}"
        );
    }
}

#[tokio::test]
async fn every_page_is_sent_with_a_policy_that_lets_nothing_foreign_in() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let place = Place::on(backend, NOW);
        let api = Api::at(&place).await;
        let (run, _) = api.claimed("", "alpha", "worker").await;
        let run = format!("/runs/{run}");
        for path in PAGES.into_iter().chain([
            run.as_str(),
            "/lanes/alpha",
            "/lanes/alpha/backtest?windows=90s,3m",
            "/runs/nothing",
        ]) {
            let said = asked(&api, path, "", &[]).await;
            let expected = if path == "/runs/nothing" { 404 } else { 200 };
            assert_eq!(said.status, expected, "{path}: {}", said.text);
            let policy = said.headers["content-security-policy"].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
            assert!(said.headers["content-type"].to_str().unwrap().starts_with("text/html"), "{path}");
            for foreign in [" style=", "<style", "onclick", "http://", "https://", "javascript:"] {
                let text = said.text.replace(&format!("LASTBEAT_SERVER={}", api.url("")), "");
                assert!(!text.contains(foreign), "{path} has {foreign}");
            }
        }
        api.server.stop().await;
    }
}

#[tokio::test]
async fn with_tokens_a_browser_signs_in_and_the_api_takes_no_cookie() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let admin = api.token("", json!({"name": "ada", "role": "admin"})).await;
    let refused = asked(&api, "/runs?lane=a%20b", "", &[]).await;
    assert_eq!(
        (refused.status, refused.headers["location"].to_str().unwrap()),
        (303, "/sign-in?next=%2Fruns%3Flane%3Da%2520b")
    );
    let session = signed_in(&api, &admin).await;
    for path in PAGES {
        assert_eq!(asked(&api, path, &session, &[]).await.status, 200, "{path}");
    }
    assert_eq!(asked(&api, "/v1/runs", &session, &[]).await.status, 401);
    // Behind a proxy that speaks TLS the cookie is for TLS alone, and nobody is sent to another server.
    let page = asked(&api, "/sign-in?next=//evil.example/", "", &[]).await;
    let form = format!("csrf={}&token={admin}&next=//evil.example/", csrf(&page));
    let host = format!("https://{}", api.server.address);
    let answer = sent(&api, "POST", "/sign-in", first(&cookie(&page)), &[("origin", &host)], Some(form)).await;
    assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (303, "/"));
    assert!(cookie(&answer).ends_with("; Secure"));
    // A token that is revoked ends the session.
    let tokens = api.call(&admin, "GET", "/v1/tokens", serde_json::Value::Null).await;
    let id = tokens.json["tokens"][0]["id"].as_str().unwrap().to_owned();
    api.call(&admin, "DELETE", &format!("/v1/tokens/{id}"), serde_json::Value::Null).await;
    assert_eq!(asked(&api, "/", &session, &[]).await.status, 303);
    // Whoever sends a form then is told that nothing was done, and comes back to the page.
    let referer = format!("{}/runs/x?at=y", api.url(""));
    let form = Some("csrf=x&reason=because".to_owned());
    let late = sent(&api, "POST", "/runs/x/cancel", &session, &[("referer", &referer)], form).await;
    assert_eq!(late.status, 401);
    assert!(late.text.contains("nothing was done") && late.text.contains(r#"name="next" value="/runs/x?at=y""#));
    api.server.stop().await;
}

#[tokio::test]
async fn a_form_that_was_not_made_here_changes_nothing() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let (run, _) = api.claimed("", "alpha", "worker").await;
    let (page, path) = (format!("/runs/{run}"), format!("/runs/{run}/cancel"));
    // Open, on this machine: a page from elsewhere has neither the cookie nor what was made of it.
    let shown = asked(&api, &page, "", &[]).await;
    let (form, token) = (first(&cookie(&shown)).to_owned(), csrf(&shown));
    let good = format!("csrf={token}&reason=because");
    let own = format!("http://{}", api.server.address);
    let refused = [
        ("", own.as_str(), good.clone()),
        ("lastbeat_form=0123456789012345678901234567890123456789", own.as_str(), good.clone()),
        (form.as_str(), own.as_str(), "reason=because".to_owned()),
        (form.as_str(), "http://evil.example", good.clone()),
        (form.as_str(), "null", good.clone()),
    ];
    for (cookies, origin, body) in refused {
        let said = sent(&api, "POST", &path, cookies, &[("origin", origin)], Some(body)).await;
        assert_eq!(said.status, 403, "{cookies} {origin}: {}", said.text);
    }
    // A name that somebody lets lead here is not ours.
    assert_eq!(asked(&api, "/", "", &[("host", "evil.example")]).await.status, 403);
    assert!(api.get(&format!("/v1/runs/{run}")).await.json["cancel_requested"].is_null());
    // And without a reason nothing is done either.
    let empty = sent(&api, "POST", &path, &form, &[("origin", &own)], Some(format!("csrf={token}&reason=+"))).await;
    assert_eq!(empty.status, 422, "{}", empty.text);
    let done = sent(&api, "POST", &path, &form, &[("origin", &own)], Some(good)).await;
    assert_eq!(done.status, 303, "{}", done.text);
    let asked = api.get(&format!("/v1/runs/{run}")).await.json["cancel_requested"].clone();
    assert_eq!((asked["by"].as_str(), asked["reason"].as_str()), (Some("open"), Some("because")));
    api.server.stop().await;
}

#[tokio::test]
async fn everybody_sees_what_the_api_would_tell_and_is_offered_what_it_would_do() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let admin = api.token("", json!({"name": "ada", "role": "admin"})).await;
    let submitter = api.token(&admin, json!({"name": "sue", "role": "submitter", "lanes": ["alpha"]})).await;
    let auditor = api.token(&admin, json!({"name": "axel", "role": "auditor"})).await;
    let (own, _) = api.claimed(&admin, "alpha", "worker").await;
    let (other, claim) = api.claimed(&admin, "secret", "worker").await;
    let (sue, axel) = (signed_in(&api, &submitter).await, signed_in(&api, &auditor).await);
    // What a submitter may not see is on no page, not even its name.
    for path in ["/", "/runs", "/lanes", "/goals"] {
        let said = asked(&api, path, &sue, &[]).await;
        assert_eq!(said.status, 200, "{path}");
        assert!(!said.text.contains("secret") && !said.text.contains(&other), "{path}: {}", said.text);
        assert!(asked(&api, path, &axel, &[]).await.status == 200, "{path}");
    }
    assert_eq!(asked(&api, &format!("/runs/{other}"), &sue, &[]).await.status, 404);
    assert_eq!(asked(&api, "/executors", &sue, &[]).await.status, 403);
    assert!(asked(&api, "/runs", &axel, &[]).await.text.contains(&other));
    // Nothing is offered to those who may not.
    let offers = |said: &Said| said.text.contains(r#"/cancel" method="post""#);
    assert!(offers(&asked(&api, &format!("/runs/{own}"), &sue, &[]).await));
    let seen = asked(&api, &format!("/runs/{other}"), &axel, &[]).await;
    assert!(!offers(&seen) && seen.text.contains(&claim));
    let token = csrf(&seen);
    let (path, form) = (format!("/runs/{other}/cancel"), format!("csrf={token}&reason=x"));
    assert_eq!(sent(&api, "POST", &path, &axel, &[], Some(form)).await.status, 403);
    api.server.stop().await;
}

#[tokio::test]
async fn a_hold_is_shown_above_all_else_and_released_with_a_reason_by_those_who_may() {
    let place = Place::at(NOW);
    let api = Api::without_sweeper(&place).await;
    api.claimed("", "alpha", "worker").await;
    let census = Census { beating: 40, silent: 40, lapsed: 30 };
    api.store.execute(vec![Command::ReviewHold { lane: name("alpha"), census }]).await.pop().unwrap().unwrap();
    let shown = asked(&api, "/", "", &[]).await;
    assert!(shown.text.contains("40 of 40 beating runs went silent at once"), "{}", shown.text);
    let (cookies, csrf) = (first(&cookie(&shown)).to_owned(), csrf(&shown));
    let release = |form: String| sent(&api, "POST", "/lanes/alpha/release", &cookies, &[], Some(form));
    assert_eq!(release("reason=x".to_owned()).await.status, 403);
    assert_eq!(release(format!("csrf={csrf}&reason=")).await.status, 422);
    assert_eq!(release(format!("csrf={csrf}&reason=the+power+is+gone")).await.status, 303);
    // Whoever released it sees that at once.
    let shown = asked(&api, "/", &cookies, &[]).await;
    assert!(shown.text.contains("was released") && !shown.text.contains("is held since"), "{}", shown.text);
    let feed = api.get("/v1/events?limit=100").await;
    let events = feed.json["events"].as_array().unwrap();
    let released = events.iter().find(|event| event["type"] == "reaping_released").unwrap();
    assert_eq!((released["by"].as_str(), released["reason"].as_str()), (Some("open"), Some("the power is gone")));
    api.server.stop().await;
}

#[tokio::test]
async fn a_hold_that_begins_or_ends_elsewhere_is_seen_before_all_else_is_gathered_anew() {
    let place = Place::at(NOW);
    let api = Api::without_sweeper(&place).await;
    api.claimed("", "alpha", "worker").await;
    let execute = async |command| api.store.execute(vec![command]).await.pop().unwrap().unwrap();
    let is_held = async || asked(&api, "/", "", &[]).await.text.contains("is held since");
    assert!(!is_held().await);
    let census = Census { beating: 40, silent: 40, lapsed: 30 };
    execute(Command::ReviewHold { lane: name("alpha"), census }).await;
    let began = Instant::now();
    while !is_held().await {
        assert!(began.elapsed() < SHOWN_AGAIN_FOR);
    }
    execute(Command::ReleaseHold { lane: name("alpha"), by: name("me"), reason: None }).await;
    let ended = Instant::now();
    while is_held().await {
        assert!(ended.elapsed() < SHOWN_AGAIN_FOR);
    }
    api.server.stop().await;
}

#[tokio::test]
async fn whoever_acts_on_a_run_sees_it_on_the_overview_at_once() {
    let place = Place::at(NOW);
    let api = Api::without_sweeper(&place).await;
    let made = api.post("/v1/runs", json!({"lane": "alpha", "goal": "ship"})).await;
    let run = made.json["run"].as_str().unwrap().to_owned();
    let shown = asked(&api, &format!("/runs/{run}"), "", &[]).await;
    let (cookies, form) = (first(&cookie(&shown)).to_owned(), format!("csrf={}&reason=because", csrf(&shown)));
    let before = asked(&api, "/", &cookies, &[]).await;
    assert!(row_of(&before, "ship").contains("waiting"), "{}", row_of(&before, "ship"));
    assert_eq!(sent(&api, "POST", &format!("/runs/{run}/cancel"), &cookies, &[], Some(form)).await.status, 303);
    let after = asked(&api, "/", &cookies, &[]).await;
    assert!(row_of(&after, "ship").contains("cancelled"), "{}", row_of(&after, "ship"));
    api.server.stop().await;
}

#[tokio::test]
async fn a_stream_tells_the_time_and_when_to_look_again() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let mut stream = api.request("GET", "/live").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut told = String::new();
    while told.matches("event: look").count() < 2 {
        told.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
    }
    let now = NOW.parse::<lastbeat_domain::Timestamp>().unwrap().as_micros().to_string();
    assert!(told.contains(&now[..6]), "{told}");
    api.server.stop().await;
}

/// The cursor of a page that ends with a name.
fn cursor_of(name: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, name)
}

/// What a page says of a goal: the row of its table.
fn row_of<'a>(said: &'a Said, goal: &str) -> &'a str {
    let (_, rest) = said.text.split_once(&format!("/runs?goal={goal}\"")).unwrap();
    rest.split_once("</tr>").unwrap().0
}

#[tokio::test]
async fn a_goal_stands_as_the_api_says_however_many_newer_runs_it_has() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let place = Place::on(backend, NOW);
        let api = Api::at(&place).await;
        let admin = api.token("", json!({"name": "ada", "role": "admin"})).await;
        let submitter = api.token(&admin, json!({"name": "sue", "role": "submitter", "lanes": ["beta"]})).await;
        let both = json!({"name": "bo", "role": "submitter", "lanes": ["beta", "gamma"]});
        let both = api.token(&admin, both).await;
        let claimed = json!({"lane": "beta", "goal": "ship", "claim": {"executor": "worker"}});
        assert_eq!(api.call(&admin, "POST", "/v1/runs", claimed).await.status, 201);
        // Newer ones wait, in a lane that not everybody sees.
        for _ in 0..55 {
            let made = api.call(&admin, "POST", "/v1/runs", json!({"lane": "alpha", "goal": "ship"})).await;
            assert_eq!(made.status, 201, "{made:?}");
        }
        for (token, waiting) in [(&admin, true), (&submitter, false), (&both, false)] {
            let told = api.call(token, "GET", "/v1/goals/ship", serde_json::Value::Null).await;
            assert_eq!(told.json["status"], "running");
            let session = signed_in(&api, token).await;
            for path in ["/", "/goals"] {
                let said = asked(&api, path, &session, &[]).await;
                let row = row_of(&said, "ship");
                assert!(row.contains(" running</span>") && row.contains(" presumed</span> 1"), "{path}: {row}");
                assert_eq!(row.contains("waiting") && row.contains("or more"), waiting, "{path}: {row}");
            }
        }
        api.server.stop().await;
    }
}

#[tokio::test]
async fn a_goal_is_running_though_the_newest_of_its_runs_in_flight_have_lapsed() {
    let place = Place::at(NOW);
    let store = place.store("a").await;
    let create = |number: u128| {
        let spec = Box::new(RunSpec { goal: Some(name("ship")), ..RunSpec::of_lane(name("alpha")) });
        let claim = (number > 1).then(|| claimant("worker", "c"));
        Command::Create { run: run_id(number), spec, claim }
    };
    // Before the server is there to be deaf.
    for made in store.execute((1..=60).map(create).collect()).await {
        made.unwrap();
    }
    place.clock.advance(Span::from_seconds(7_201));
    drop(store);
    let api = Api::without_sweeper(&place).await;
    let stands = async |word: &str| {
        let said = asked(&api, "/goals", "", &[]).await;
        let row = row_of(&said, "ship");
        let (_, cell) = row.split_once("<td>").unwrap();
        assert!(cell.split_once("</td>").unwrap().0.contains(word), "{word}: {row}");
        assert_eq!(api.get("/v1/goals/ship").await.json["status"], word);
    };
    stands("waiting").await;
    let taken = api.post("/v1/claims", json!({"executor": "late", "run": run_id(1).to_string()})).await;
    assert_eq!(taken.status, 200, "{taken:?}");
    stands("running").await;
    let path = format!("/v1/runs/{}/complete", run_id(1));
    let done = api.post(&path, json!({"attempt": 1, "claim": taken.json["claim"]})).await;
    assert_eq!(done.status, 200, "{done:?}");
    stands("lapsed").await;
    api.server.stop().await;
}

#[tokio::test]
async fn runs_that_lapsed_are_among_those_in_flight_however_many_newer_ones_there_are() {
    let place = Place::at(NOW);
    let store = place.store("a").await;
    let create = |run: RunId| {
        let spec = Box::new(RunSpec::of_lane(name("alpha")));
        Command::Create { run, spec, claim: Some(claimant("worker", "c")) }
    };
    // Before the server is there to be deaf.
    for (numbers, later) in [(1..=40, 7_201), (41..=1_090, 1)] {
        for made in store.execute(numbers.map(run_id).map(create).collect()).await {
            made.unwrap();
        }
        place.clock.advance(Span::from_seconds(later));
    }
    drop(store);
    let api = Api::without_sweeper(&place).await;
    let shown = asked(&api, "/", "", &[]).await;
    let (_, row) = shown.text.split_once(r#"href="/lanes/alpha""#).unwrap();
    let row = row.split_once("</tr>").unwrap().0;
    assert!(row.contains(">≈ 1090</td>"), "{row}");
    assert!(row.contains(" lapsed</span> ≈ 40<") && row.contains(" presumed</span> ≈ 1050<"), "{row}");
    api.server.stop().await;
}

#[tokio::test]
async fn where_nothing_is_seen_no_more_is_said_than_that() {
    let place = Place::at(NOW);
    let api = Api::without_sweeper(&place).await;
    // Nothing at all, and the way in is by the address that leads here.
    for path in ["/", "/runs"] {
        let said = asked(&api, path, "", &[]).await;
        assert!(said.text.contains("No run was ever made in this store"), "{path}");
        assert!(said.text.contains(&format!("LASTBEAT_SERVER={}\n", api.url(""))), "{path}: {}", said.text);
    }
    let admin = api.token("", json!({"name": "ada", "role": "admin"})).await;
    let submitter = api.token(&admin, json!({"name": "sue", "role": "submitter", "lanes": ["beta"]})).await;
    let other = api.token(&admin, json!({"name": "bo", "role": "submitter", "lanes": ["gamma"]})).await;
    api.claimed(&admin, "alpha", "worker").await;
    assert_eq!(api.call(&admin, "POST", "/v1/runs", json!({"lane": "gamma"})).await.status, 201);
    let (sue, bo) = (signed_in(&api, &submitter).await, signed_in(&api, &other).await);
    for (session, path, said) in [
        (&sue, "/", "No run that you may see was ever made"),
        (&sue, "/runs", "No run that you may see was ever made"),
        (&sue, "/runs?status=failed", "No run that you may see is like that."),
        (&sue, "/lanes", "No lane that you may see has a run yet."),
        (&bo, "/", "No open run that you may see can lapse."),
        (&bo, "/", "No reap that you may see among the latest facts."),
    ] {
        let page = asked(&api, path, session, &[]).await;
        assert!(page.text.contains(said), "{path}: {}", page.text);
    }
    api.server.stop().await;
}

#[tokio::test]
async fn that_nobody_listens_is_said_where_there_is_nothing_else_to_say() {
    let place = Place::at(NOW);
    let api = Api::without_sweeper(&place).await;
    while api.store.service_log().await.unwrap().beacons.is_empty() {
        tokio::task::yield_now().await;
    }
    place.clock.advance(Span::from_seconds(60));
    let said = asked(&api, "/", "", &[]).await;
    assert!(said.text.contains("Nothing here yet") && said.text.contains("▲ Deaf.</strong> Nobody has"), "{said:?}");
    // An address that a shell would take for something else is in no command.
    let said = asked(&api, "/", "", &[("host", "localhost:7;rm")]).await;
    assert!(said.text.contains("LASTBEAT_SERVER=http://localhost:PORT\n"), "{said:?}");
    api.server.stop().await;
}

#[tokio::test]
async fn a_list_that_was_cut_off_does_not_say_that_there_is_nothing() {
    let place = Place::at(NOW);
    let store = place.store("a").await;
    let create = |run: RunId| {
        let spec = Box::new(RunSpec::of_lane(name("alpha")));
        Command::Create { run, spec, claim: None }
    };
    for made in store.execute((1..=5_600).map(run_id).map(create).collect()).await {
        made.unwrap();
    }
    drop(store);
    let api = Api::without_sweeper(&place).await;
    let none = asked(&api, "/runs?verdict=live", "", &[]).await;
    let said = "None among the 5000 that were looked at; go on with the older ones.";
    assert!(none.text.contains(said) && none.text.contains(">Older</a>"), "{}", none.text);
    api.server.stop().await;
}

#[tokio::test]
async fn where_a_page_of_goals_ends_tells_nobody_the_name_of_one_it_may_not_see() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let place = Place::on(backend, NOW);
        let api = Api::at(&place).await;
        let admin = api.token("", json!({"name": "ada", "role": "admin"})).await;
        let submitter = api.token(&admin, json!({"name": "sue", "role": "submitter", "lanes": ["beta"]})).await;
        let own: Vec<String> = (0..24).map(|number| format!("a{number:02}")).chain(["x".into(), "z".into()]).collect();
        let hidden = ["h1", "h2", "h3", "y", "zz"].map(str::to_owned);
        let lanes = own.iter().map(|goal| ("beta", goal)).chain(hidden.iter().map(|goal| ("alpha", goal)));
        for (lane, goal) in lanes {
            let made = api.call(&admin, "POST", "/v1/runs", json!({"lane": lane, "goal": goal})).await;
            assert_eq!(made.status, 201, "{made:?}");
        }
        let ends_of_hidden = hidden.map(|goal| cursor_of(&goal));
        for limit in [1, 24, 25] {
            let (mut found, mut path) = (Vec::new(), format!("/v1/goals?limit={limit}"));
            loop {
                let page = api.call(&submitter, "GET", &path, serde_json::Value::Null).await;
                let goals = page.json["goals"].as_array().unwrap();
                found.extend(goals.iter().map(|goal| goal["goal"].as_str().unwrap().to_owned()));
                let Some(next) = page.json["next"].as_str() else { break };
                assert!(!goals.is_empty() && !ends_of_hidden.contains(&next.to_owned()), "{}", page.text);
                path = format!("/v1/goals?limit={limit}&after={next}");
            }
            assert_eq!(found, own);
        }
        let session = signed_in(&api, &submitter).await;
        let page = asked(&api, "/goals", &session, &[]).await;
        let (_, next) = page.text.split_once(r#"rel="next" href=""#).unwrap();
        let next = next.split('"').next().unwrap();
        assert_eq!(next, format!("/goals?after={}", cursor_of("x")));
        let page = asked(&api, next, &session, &[]).await;
        assert!(page.text.contains("/runs?goal=z\"") && !page.text.contains(r#"rel="next""#), "{}", page.text);
        api.server.stop().await;
    }
}

#[tokio::test]
async fn a_run_says_what_was_done_to_it_only_if_it_was() {
    let place = Place::at(NOW);
    let api = Api::without_sweeper(&place).await;
    let (claimed, _) = api.claimed("", "alpha", "worker").await;
    let (untouched, _) = api.claimed("", "alpha", "worker").await;
    let made = api.post("/v1/runs", json!({"lane": "alpha"})).await;
    let pending = made.json["run"].as_str().unwrap().to_owned();
    for act in ["cancel", "requeue", "reap"] {
        for run in [&untouched, &pending] {
            let said = asked(&api, &format!("/runs/{run}?done={act}"), "", &[]).await;
            assert!(said.status == 200 && !said.text.contains("class=\"done\""), "{act}: {}", said.text);
        }
    }
    let shown = asked(&api, &format!("/runs/{pending}"), "", &[]).await;
    let (cookies, form) = (first(&cookie(&shown)).to_owned(), format!("csrf={}&reason=because", csrf(&shown)));
    let told = [
        (&claimed, "✓ The run is to be cancelled. Its executor is told with its next heartbeat."),
        (&pending, "✓ The run was cancelled."),
    ];
    for (run, words) in told {
        let path = format!("/runs/{run}/cancel");
        let done = sent(&api, "POST", &path, &cookies, &[], Some(form.clone())).await;
        let page = asked(&api, done.headers["location"].to_str().unwrap(), &cookies, &[]).await;
        assert!(page.text.contains(words), "{}", page.text);
    }
    api.server.stop().await;
}

#[tokio::test]
async fn before_it_was_made_a_run_has_a_page_that_says_so() {
    let place = Place::at(NOW);
    let api = Api::at(&place).await;
    let (run, _) = api.claimed("", "alpha", "worker").await;
    for path in [format!("/runs/{run}?at=2020-01-01T00:00:00Z"), format!("/runs/{run}/why?at=2020-01-01T00:00:00Z")] {
        let said = asked(&api, &path, "", &[]).await;
        assert_eq!(said.status, 200, "{path}: {}", said.text);
        assert!(said.text.contains("there was no such run yet."), "{path}: {}", said.text);
    }
    api.server.stop().await;
}
