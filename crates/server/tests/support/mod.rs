//! A server in this process, and a client that says plainly what came back.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its part of this, and a test may panic")]

use std::net::SocketAddr;
use std::sync::Arc;

use lastbeat_server::{Limits, Options, Server, serve};
use lastbeat_store::Store;
use lastbeat_testkit::{Place, name};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// A server and its store.
pub(crate) struct Api {
    pub(crate) server: Server,
    pub(crate) store: Arc<dyn Store>,
    client: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) json: Value,
}

impl Said {
    /// The code of a problem.
    pub(crate) fn code(&self) -> &str {
        self.json["code"].as_str().unwrap_or_default()
    }
}

pub(crate) fn options() -> Options {
    Options::new(SocketAddr::from(([127, 0, 0, 1], 0)), name("here/serve-1"))
}

pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

impl Api {
    /// Starts a server on a store of the place.
    pub(crate) async fn at(place: &Place) -> Api {
        Api::with(place, Limits::default()).await
    }

    pub(crate) async fn with(place: &Place, limits: Limits) -> Api {
        let store = place.store("a").await;
        let server = serve(Arc::clone(&store), Options { limits, ..options() }).await.unwrap();
        Api { server, store, client: client() }
    }

    /// The same with a server that does not sweep.
    pub(crate) async fn without_sweeper(place: &Place) -> Api {
        let store = place.store("a").await;
        let server = serve(Arc::clone(&store), Options { sweep_interval: None, ..options() }).await.unwrap();
        Api { server, store, client: client() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), self.url(path))
    }

    /// Sends a request with a token (none: "") and a body (none: null).
    pub(crate) async fn call(&self, token: &str, method: &str, path: &str, body: Value) -> Said {
        let mut request = self.request(method, path);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        said(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Said {
        self.call("", "GET", path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Said {
        self.call("", "POST", path, body).await
    }

    /// Makes a token and returns its secret.
    pub(crate) async fn token(&self, admin: &str, spec: Value) -> String {
        let made = self.call(admin, "POST", "/v1/tokens", spec).await;
        assert_eq!(made.status, 201, "{made:?}");
        made.json["token"].as_str().unwrap().to_owned()
    }

    /// Makes a run in a lane, claimed by an executor; returns its id and its claim.
    pub(crate) async fn claimed(&self, admin: &str, lane: &str, executor: &str) -> (String, String) {
        let made = self.call(admin, "POST", "/v1/runs", json!({"lane": lane, "claim": {"executor": executor}})).await;
        assert_eq!(made.status, 201, "{made:?}");
        let field = |field: &str| made.json[field].as_str().unwrap().to_owned();
        (field("run"), field("claim"))
    }
}

pub(crate) async fn said(request: reqwest::RequestBuilder) -> Said {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    Said { status, headers, text, json }
}
