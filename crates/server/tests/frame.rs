//! The frame around every request, over real connections.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use lastbeat_server::{Options, Server, serve};
use lastbeat_testkit::{Place, name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn server(place: &Place) -> Server {
    let options = Options::new(SocketAddr::from(([127, 0, 0, 1], 0)), name("here/serve-1"));
    serve(place.store("frame").await, options).await.unwrap()
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn what_the_framework_refuses_is_a_problem_with_the_requests_id() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let server = server(&place).await;
    let request = "GET /nowhere HTTP/1.1\r\nhost: localhost\r\nx-request-id: mine-1\r\nconnection: close\r\n\r\n";
    let response = exchange(server.address, request).await;
    assert!(response.starts_with("HTTP/1.1 404"), "{response}");
    assert!(response.contains("application/problem+json"), "{response}");
    assert!(response.contains("x-request-id: mine-1"), "{response}");
    assert!(response.contains(r#""code":"no_such_route""#), "{response}");
    assert!(response.contains(r#""request_id":"mine-1""#), "{response}");
    let response =
        exchange(server.address, "DELETE /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 405"), "{response}");
    assert!(response.contains(r#""code":"method_not_allowed""#), "{response}");
    server.stop().await;
}

#[tokio::test]
async fn a_server_says_that_it_lives_and_is_ready_and_stops_although_a_client_says_nothing() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let server = server(&place).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    for path in ["/livez", "/readyz", "/metrics"] {
        let response =
            exchange(server.address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
                .await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    server.stop().await;
    drop(silent);
}
