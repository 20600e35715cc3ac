//! HTTP by hyper, for handlers that answer at once.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tower::ServiceExt;

use super::{HEAD_BYTES_MAX, House, Serve, Socket};

/// Serves a router on every connection.
#[derive(Clone, Debug)]
pub struct Routed(pub Router);

impl Serve for Routed {
    async fn serve(self: Arc<Self>, socket: Socket, house: Arc<House>) {
        serve(socket, self.0.clone(), house).await;
    }
}

/// Serves one connection, from what has been read of it on. Requests carry `Arc<House>` as an extension.
pub async fn serve(mut socket: Socket, router: Router, house: Arc<House>) {
    socket.replace_refusals();
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&house));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = http1::Builder::new();
    // Without a timer hyper's head timeout does nothing, in silence.
    http.timer(TokioTimer::new()).header_read_timeout(house.limits.head_timeout).max_buf_size(HEAD_BYTES_MAX);
    let mut serving = pin!(http.serve_connection(TokioIo::new(socket), service).with_upgrades());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = house.drain.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
