//! Clients for the tests: one that signs, and one that does not.

#![allow(dead_code)] // not every test file uses all of it

use std::io::{Read, Write};
use std::net::TcpStream;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use devserver::Server;

pub(crate) fn client(endpoint: &str) -> Client {
    client_with(endpoint, devserver::ACCESS_KEY, devserver::SECRET_KEY, "us-east-1")
}

pub(crate) fn client_with(
    endpoint: &str,
    access_key: &str,
    secret_key: &str,
    region: &str,
) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        .region(Region::new(region.to_owned()))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

pub(crate) fn server() -> (Server, Client) {
    // On threads of its own, so that `raw` may block.
    let server = Server::builder().start_blocking().unwrap();
    let client = client(&server.endpoint_url());
    (server, client)
}

/// The status and the error code of an answer that is an error.
pub(crate) fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E>>,
) -> (u16, String) {
    match result {
        Err(SdkError::ServiceError(error)) => {
            let code = error.err().meta().code().unwrap_or_default().to_owned();
            (error.raw().status().as_u16(), code)
        }
        other => panic!("not an answer that is an error: {other:?}"),
    }
}

/// Sends a request without a signature; the head and the body of the answer, as they came.
pub(crate) fn raw(address: &str, method: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n",
        address.trim_start_matches("http://")
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
    (head, answer[end + 4..].to_vec())
}
