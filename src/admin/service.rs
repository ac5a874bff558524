//! The admin listener's service: an axum router, called for each request.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use tower_service::Service as _;

use crate::http1::Version;
use crate::http1::body::{Decoder, Framing};
use crate::server::connection::{Client, Connection, Exchange as Received, Next};
use crate::server::head::{Fields, Persistence, Response as OwnResponse, encode_map};
use crate::server::stream::Socket;
use crate::server::{Begin, Limits, Service, http2};

/// Answers requests by a router. Their bodies are not read: no route wants one.
#[derive(Clone, Debug)]
pub struct AdminService(Router);

/// A request on its way to the router.
#[derive(Debug)]
pub struct Exchange {
    request: Request<Body>,
    framing: Framing,
    /// Whether the client waits for `100 Continue`: it may send the body or not.
    waits: bool,
    version: Version,
    persists: bool,
}

impl AdminService {
    /// A service that answers by this router.
    #[must_use]
    pub fn new(router: Router) -> Self {
        Self(router)
    }

    async fn call(&self, request: Request<Body>) -> Response<Bytes> {
        let is_head = request.method() == Method::HEAD;
        let response: Result<_, Infallible> = self.0.clone().call(request).await;
        let Ok(response) = response;
        let (mut head, body) = response.into_parts();
        // The routes' bodies are in memory: to read them cannot fail.
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if !is_head || !head.headers.contains_key(CONTENT_LENGTH) {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Response::from_parts(head, if is_head { Bytes::new() } else { body })
    }
}

impl Service for AdminService {
    type Exchange = Box<Exchange>;

    fn begin(&self, received: &Received<'_>, out: &mut Vec<u8>) -> Begin<Box<Exchange>> {
        let request = received.request;
        let parsed = (request.method.parse::<Method>(), request.target.path_and_query().parse::<Uri>());
        let (Ok(method), Ok(uri)) = parsed else {
            let body = b"400 bad request\n";
            let fields = b"content-type: text/plain; charset=utf-8\r\ncontent-length: 16\r\n";
            let status = StatusCode::BAD_REQUEST;
            let response = OwnResponse { status, fields, more: [b"", b""], body, is_head: request.method == "HEAD" };
            response.encode(out, received.persistence);
            return Begin::Respond;
        };
        let mut routed = Request::new(Body::empty());
        (*routed.method_mut(), *routed.uri_mut()) = (method, uri);
        *routed.headers_mut() = Fields::Lines(request.fields).to_map();
        let exchange = Exchange {
            request: routed,
            framing: request.framing,
            waits: request.expects_continue && received.body.is_empty(),
            version: request.version,
            persists: request.persists,
        };
        Begin::Run(Box::new(exchange), 0)
    }

    async fn run<S: Socket>(&self, exchange: Box<Exchange>, connection: &mut Connection<S>) -> Next {
        let Exchange { request, framing, waits, version, persists } = *exchange;
        let response = self.call(request).await;
        let persistence = connection.persistence(version, persists && !waits);
        let mut fields = Vec::new();
        encode_map(&mut fields, response.headers());
        let own = OwnResponse {
            status: response.status(),
            fields: &fields,
            more: [b"", b""],
            body: response.body(),
            is_head: false,
        };
        let body = (!waits).then(|| Decoder::new(framing));
        match connection.respond(|out| own.encode(out, persistence), body).await {
            true if persistence != Persistence::Closes => Next::Persist,
            true if framing == Framing::Length(0) && connection.input.is_empty() => Next::Close,
            _ => Next::Linger,
        }
    }

    async fn stream(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>, _: Client, limits: Limits) {
        let (head, body) = request.into_parts();
        let response = self.call(Request::from_parts(head, Body::empty())).await;
        http2::respond(respond, response, limits.idle_timeout).await;
        http2::discard(body).await;
    }
}
