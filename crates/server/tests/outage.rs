//! A server whose database goes away and comes back.

mod support;

use std::sync::Arc;

use futures_util::future::join_all;
use lastbeat_server::serve;
use lastbeat_store::postgres;
use lastbeat_testkit::postgres::Cluster;
use serde_json::{Value, json};
use support::{client, options, said};

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_requests_are_put_off_and_then_go_on() {
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let url = cluster.create_database();
    postgres::migrate(&url).await.unwrap();
    let store = lastbeat_store::open(&url, false).await.unwrap();
    let server = serve(Arc::clone(&store), options()).await.unwrap();
    let (client, base) = (client(), format!("http://{}", server.address));
    let post = |path: &str, body: Value| {
        said(client.post(format!("{base}{path}")).header("content-type", "application/json").body(body.to_string()))
    };
    let get = |path: &str| said(client.get(format!("{base}{path}")));
    let made = post("/v1/runs", json!({"lane": "watcher", "claim": {"executor": "mac-7"}})).await;
    let beat = format!("/v1/runs/{}/heartbeat", made.json["run"].as_str().unwrap());
    let report = json!({"attempt": 1, "claim": made.json["claim"]});
    assert_eq!(post(&beat, report.clone()).await.status, 200);

    tokio::task::block_in_place(|| cluster.stop_immediate());
    let away = get("/v1/runs").await;
    assert_eq!((away.status, away.code()), (503, "unavailable"), "{away:?}");
    assert_eq!(away.headers["retry-after"], "1");
    assert!(!away.text.contains("postgres://"), "{away:?}");
    let ready = get("/readyz").await;
    assert_eq!((ready.status, &ready.json["status"]), (503, &json!("not_ready")));
    // Anybody may ask, so the database's own words stay in the log.
    let reason = ready.json["reason"].as_str().unwrap();
    assert!(reason.starts_with("the database ") && !reason.contains("127.0.0.1"), "{reason}");
    assert_eq!(get("/livez").await.status, 200);
    let waiting = post(&beat, report.clone());

    let back = async {
        tokio::task::yield_now().await;
        tokio::task::block_in_place(|| cluster.start_again());
    };
    let (heard, ()) = tokio::join!(waiting, back);
    // It was tried again until the database was back, or put off so that the client does.
    assert!(matches!(heard.status, 200 | 503), "{heard:?}");
    assert_eq!(post(&beat, report.clone()).await.status, 200);
    // A restart that nobody waits for costs no read its answer, however many connections died of it.
    for path in ["/v1/runs", "/readyz"] {
        join_all((0..8).map(|_| get("/v1/runs"))).await;
        tokio::task::block_in_place(|| {
            cluster.stop_immediate();
            cluster.start_again();
        });
        for said in join_all((0..8).map(|_| get(path))).await {
            assert_eq!(said.status, 200, "{path}: {said:?}");
        }
    }
    server.stop().await;
    store.close().await;
}
